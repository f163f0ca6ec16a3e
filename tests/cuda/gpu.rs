//! The same kernels on a GPU, where there is one: with `KVISTA_GPU` set, every test of this folder runs on it.
//!
//! The driver is opened by name and the fatbins are those that `.ci/fatbin` made (`KVISTA_FATBINS` is their folder).
//! Source of names and types: NVIDIA CUDA driver API, header `cuda.h`.
#![allow(unsafe_code)]

use std::ffi::{CString, c_char, c_int, c_uint, c_void};
use std::path::PathBuf;
use std::sync::LazyLock;
use std::{env, fs, ptr};

use libloading::Library;

use crate::host::{Arg, GUARD};

type Status = c_int;
type Handle = *mut c_void;

/// The driver's functions that are used, with the first device's primary context.
struct Driver {
    library: Library,
    context: usize,
}

static DRIVER: LazyLock<Driver> = LazyLock::new(Driver::open);

/// A module of kernels on the device.
pub(crate) struct Module(usize);

/// Memory of the device.
pub(crate) struct Memory {
    address: u64,
}

/// Calls a function of the driver, which must succeed.
macro_rules! call {
    ($driver:expr, $name:literal, ($($type:ty),*), $($arg:expr),* $(,)?) => {{
        // SAFETY: the driver's function of this name has this signature; pointers are valid for the call.
        let status = unsafe {
            $driver.library.get::<unsafe extern "C" fn($($type),*) -> Status>(concat!($name, "\0").as_bytes()).unwrap()(
                $($arg),*
            )
        };
        assert_eq!(status, 0, concat!($name, " failed: see CUresult"));
    }};
}

impl Driver {
    fn open() -> Self {
        // SAFETY: the driver's library is meant to be opened so.
        let library = unsafe { Library::new("libcuda.so.1") }.expect("KVISTA_GPU is set: an NVIDIA driver");
        let mut driver = Self { library, context: 0 };
        let (mut device, mut context): (c_int, Handle) = (0, ptr::null_mut());
        call!(driver, "cuInit", (c_uint), 0);
        call!(driver, "cuDeviceGet", (*mut c_int, c_int), &raw mut device, 0);
        call!(driver, "cuDevicePrimaryCtxRetain", (*mut Handle, c_int), &raw mut context, device);
        driver.context = context as usize;
        driver
    }

    fn enter(&self) -> &Self {
        call!(self, "cuCtxSetCurrent", (Handle), self.context as Handle);
        self
    }
}

/// Whether tests run on a GPU.
pub(crate) fn is_wanted() -> bool {
    env::var_os("KVISTA_GPU").is_some()
}

impl Memory {
    pub(crate) fn new(bytes: usize) -> Self {
        let mut address = 0;
        call!(DRIVER.enter(), "cuMemAlloc_v2", (*mut u64, usize), &raw mut address, bytes.max(1));
        Self { address }
    }

    pub(crate) const fn arg(&self) -> Arg {
        Arg::of_bits(self.address)
    }

    /// Copies from `from` on.
    fn fill(&self, from: *const u8, bytes: usize) {
        let from = from.cast();
        call!(DRIVER.enter(), "cuMemcpyHtoD_v2", (u64, *const c_void, usize), self.address, from, bytes);
    }

    fn fetch(&self, to: *mut u8, bytes: usize) {
        let to = to.cast();
        call!(DRIVER.enter(), "cuMemcpyDtoH_v2", (*mut c_void, u64, usize), to, self.address, bytes);
    }

    pub(crate) fn write(&self, bytes: &[u8]) {
        self.fill(bytes.as_ptr(), bytes.len());
    }

    /// Its first bytes, once all that was started is done.
    pub(crate) fn read(&self, bytes: usize) -> Vec<u8> {
        let mut read = vec![0; bytes];
        self.fetch(read.as_mut_ptr(), bytes);
        read
    }

    /// Copies all of another piece of the same size.
    pub(crate) fn copy(&self, from: &Self, bytes: usize) {
        call!(DRIVER.enter(), "cuMemcpyDtoD_v2", (u64, u64, usize), self.address, from.address, bytes);
    }

    /// Starts to make its first bytes 0.
    pub(crate) fn clear(&self, bytes: usize) {
        call!(DRIVER.enter(), "cuMemsetD8_v2", (u64, u8, usize), self.address, 0, bytes);
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // A kernel that fails takes every later call along, and two panics at once would end the other tests too.
        if std::thread::panicking() {
            return;
        }
        call!(DRIVER.enter(), "cuMemFree_v2", (u64), self.address);
    }
}

/// A moment on the device's clock, between what was started before and after.
pub(crate) struct Event(usize);

impl Event {
    pub(crate) fn new() -> Self {
        let mut event: Handle = ptr::null_mut();
        call!(DRIVER.enter(), "cuEventCreate", (*mut Handle, c_uint), &raw mut event, 0);
        Self(event as usize)
    }

    pub(crate) fn record(&self) {
        let stream = ptr::null_mut();
        call!(DRIVER.enter(), "cuEventRecord", (Handle, Handle), self.0 as Handle, stream);
    }

    /// Both must have come to pass.
    pub(crate) fn seconds_since(&self, earlier: &Self) -> f64 {
        let mut milliseconds = 0.0f32;
        let (from, to) = (earlier.0 as Handle, self.0 as Handle);
        let at = &raw mut milliseconds;
        call!(DRIVER.enter(), "cuEventElapsedTime", (*mut f32, Handle, Handle), at, from, to);
        f64::from(milliseconds) * 1e-3
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        if std::thread::panicking() {
            return;
        }
        call!(DRIVER.enter(), "cuEventDestroy_v2", (Handle), self.0 as Handle);
    }
}

impl Module {
    pub(crate) fn load(name: &str) -> Self {
        let cache = || {
            let of_user = || PathBuf::from(env::var_os("HOME").unwrap()).join(".cache");
            env::var_os("XDG_CACHE_HOME").map_or_else(of_user, PathBuf::from).join("kvista/fatbin")
        };
        let folder = env::var_os("KVISTA_FATBINS").map_or_else(cache, PathBuf::from);
        let file = folder.join(name).with_extension("fatbin");
        let fatbin =
            fs::read(&file).unwrap_or_else(|e| panic!("{}: {e}; run .ci/fatbin first", file.display()));
        let (mut module, image): (Handle, _) = (ptr::null_mut(), fatbin.as_ptr().cast());
        call!(DRIVER.enter(), "cuModuleLoadData", (*mut Handle, *const c_void), &raw mut module, image);
        Self(module as usize)
    }

    /// Starts a kernel; [`synchronise`] waits for it.
    pub(crate) fn launch(&self, name: &str, grid: [usize; 3], block: usize, args: &[Arg]) {
        type Launch = unsafe extern "C" fn(
            Handle,
            c_uint,
            c_uint,
            c_uint,
            c_uint,
            c_uint,
            c_uint,
            c_uint,
            Handle,
            *mut Handle,
            *mut Handle,
        ) -> Status;
        let (mut function, symbol): (Handle, _) = (ptr::null_mut(), CString::new(name).unwrap());
        let driver = DRIVER.enter();
        let module = self.0 as Handle;
        let at = &raw mut function;
        call!(
            driver,
            "cuModuleGetFunction",
            (*mut Handle, Handle, *const c_char),
            at,
            module,
            symbol.as_ptr()
        );
        let mut cells: Vec<u64> = args.iter().map(Arg::bits).collect();
        let mut pointers: Vec<Handle> = cells.iter_mut().map(|cell| ptr::from_mut(cell).cast()).collect();
        let [x, y, z] = grid.map(|n| n as c_uint);
        // SAFETY: the driver reads as many cells as the kernel has parameters.
        let status = unsafe {
            driver.library.get::<Launch>(b"cuLaunchKernel\0").unwrap()(
                function,
                x,
                y,
                z,
                block as c_uint,
                1,
                1,
                0,
                ptr::null_mut(),
                pointers.as_mut_ptr(),
                ptr::null_mut(),
            )
        };
        assert_eq!(status, 0, "{name} cannot be launched: see CUresult");
    }

    /// Runs a kernel on copies of its arrays, guards and all, and copies them back.
    pub(crate) fn run(&self, name: &str, grid: [usize; 3], block: usize, args: &[Arg]) {
        let copies: Vec<Option<Memory>> = args
            .iter()
            .map(|arg| {
                let (start, bytes) = arg.array()?;
                let memory = Memory::new(bytes);
                memory.fill(start, bytes);
                Some(memory)
            })
            .collect();
        let of_device = |(arg, copy): (&Arg, &Option<Memory>)| match copy {
            Some(memory) => Arg::of_bits(memory.address + GUARD as u64),
            None => *arg,
        };
        self.launch(name, grid, block, &args.iter().zip(&copies).map(of_device).collect::<Vec<_>>());
        synchronise();
        for (arg, copy) in args.iter().zip(&copies) {
            if let (Some((start, bytes)), Some(memory)) = (arg.array(), copy) {
                memory.fetch(start, bytes);
            }
        }
    }
}

/// Waits for everything that was started.
pub(crate) fn synchronise() {
    // SAFETY: the driver's function takes nothing.
    let status = unsafe {
        DRIVER.enter().library.get::<unsafe extern "C" fn() -> Status>(b"cuCtxSynchronize\0").unwrap()()
    };
    assert_eq!(status, 0, "a kernel failed: see CUresult");
}
