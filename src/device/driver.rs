//! The NVIDIA driver as it is found at run time: devices, memory, copy speeds. Used by every build, also by those that
//! cannot compute on a GPU: the library is opened by name and may be missing.
//!
//! Source of names, types and constants: NVIDIA CUDA driver API, header `cuda.h`.

use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::ptr;
use std::time::Instant;

use libloading::Library;
use thiserror::Error;

/// Where the system's loader finds the driver.
const LIBRARY: &str = if cfg!(windows) { "nvcuda.dll" } else { "libcuda.so.1" };
/// Longest device name read.
const NAME_BYTES: usize = 256;
/// Copies timed per direction; the best of them is taken, the others were disturbed.
const COPIES: usize = 5;

/// `CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT` and the compute capability's two numbers.
const MULTIPROCESSORS: c_int = 16;
const CAPABILITY_MAJOR: c_int = 75;
const CAPABILITY_MINOR: c_int = 76;

/// Why the driver cannot be used.
#[derive(Debug, Error)]
pub enum DriverError {
    /// There is no such library.
    #[error(
        "{LIBRARY} is not to be found: no NVIDIA driver is installed, or it is not on the loader's path ({0})"
    )]
    Missing(String),
    /// It is no CUDA driver, or one from before 2014.
    #[error(
        "{LIBRARY} has no {symbol}: not a CUDA driver of this century's teens or later, install a newer one"
    )]
    Symbol {
        /// The function.
        symbol: &'static str,
    },
    /// It refused.
    #[error("{call} failed with error {code} ({text}): {advice}")]
    Call {
        /// The function.
        call: &'static str,
        /// Its result, a `CUresult`.
        code: c_int,
        /// The driver's own name for it.
        text: String,
        /// What to do.
        advice: &'static str,
    },
}

type Result<T> = std::result::Result<T, DriverError>;

/// The driver, loaded and initialised.
pub struct Driver {
    library: Library,
}

/// One GPU.
#[derive(Clone, Debug, PartialEq)]
pub struct Gpu {
    /// Its number, as in `--device cuda:N`.
    pub index: u32,
    /// What the driver calls it.
    pub name: String,
    /// Compute capability, such as (9, 0).
    pub capability: (u32, u32),
    /// Streaming multiprocessors.
    pub multiprocessors: u32,
}

/// What a GPU's memory has and moves, in this process (measured).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Memory {
    /// Bytes that can be allocated.
    pub free_bytes: u64,
    /// Bytes in all.
    pub total_bytes: u64,
    /// Pinned host memory to the device, bytes per second.
    pub h2d_bytes_per_s: f64,
    /// The device to pinned host memory.
    pub d2h_bytes_per_s: f64,
    /// Within the device: read plus written.
    pub d2d_bytes_per_s: f64,
}

/// Calls a function of the driver by its name and its argument types; its result becomes a [`Result`].
macro_rules! call {
    ($driver:expr, $name:literal ($($kind:ty = $value:expr),*)) => {
        $driver.check($name, {
            #[allow(unsafe_code)]
            // SAFETY: `cuda.h` declares a function of this name, of these argument types, that returns a `CUresult`. Each
            // caller's pointers are references to locals, or allocations of this API at least as long as the copy.
            unsafe {
                let function = $driver
                    .library
                    .get::<unsafe extern "C" fn($($kind),*) -> c_int>($name.as_bytes())
                    .map_err(|_| DriverError::Symbol { symbol: $name })?;
                function($($value),*)
            }
        })
    };
}

impl Driver {
    /// Loads and initialises the driver.
    ///
    /// # Errors
    /// [`DriverError`]: it is missing, is not one, or finds no device.
    pub fn open() -> Result<Self> {
        // SAFETY: loading runs the library's initialisers. It is the system's own driver, found by the system's loader, and
        // every program that computes on a GPU loads it so.
        #[allow(unsafe_code)]
        let library =
            unsafe { Library::new(LIBRARY) }.map_err(|error| DriverError::Missing(error.to_string()))?;
        let driver = Self { library };
        call!(driver, "cuInit"(c_uint = 0))?;
        Ok(driver)
    }

    /// Newest CUDA version the driver knows, such as (13, 0).
    ///
    /// # Errors
    /// [`DriverError`], here and below.
    pub fn cuda_version(&self) -> Result<(u32, u32)> {
        let mut version: c_int = 0;
        call!(self, "cuDriverGetVersion"(*mut c_int = &raw mut version))?;
        Ok((version as u32 / 1000, version as u32 % 1000 / 10))
    }

    /// All GPUs that this process may use.
    pub fn gpus(&self) -> Result<Vec<Gpu>> {
        let mut count: c_int = 0;
        call!(self, "cuDeviceGetCount"(*mut c_int = &raw mut count))?;
        (0..count.max(0)).map(|index| self.gpu(index)).collect()
    }

    fn gpu(&self, index: c_int) -> Result<Gpu> {
        let device = self.device(index)?;
        let mut name: [c_char; NAME_BYTES] = [0; NAME_BYTES];
        call!(self, "cuDeviceGetName"(*mut c_char = name.as_mut_ptr(), c_int = NAME_BYTES as c_int, c_int = device))?;
        let name: Vec<u8> = name.iter().map(|&c| c as u8).take_while(|&c| c != 0).collect();
        let attribute = |which: c_int| -> Result<u32> {
            let mut value: c_int = 0;
            call!(self, "cuDeviceGetAttribute"(*mut c_int = &raw mut value, c_int = which, c_int = device))?;
            Ok(value.max(0) as u32)
        };
        Ok(Gpu {
            index: index as u32,
            name: String::from_utf8_lossy(&name).into_owned(),
            capability: (attribute(CAPABILITY_MAJOR)?, attribute(CAPABILITY_MINOR)?),
            multiprocessors: attribute(MULTIPROCESSORS)?,
        })
    }

    fn device(&self, index: c_int) -> Result<c_int> {
        let mut device: c_int = 0;
        call!(self, "cuDeviceGet"(*mut c_int = &raw mut device, c_int = index))?;
        Ok(device)
    }

    /// A GPU's memory, and how fast `bytes` move to it, from it and within it.
    pub fn measure(&self, gpu: &Gpu, bytes: usize) -> Result<Memory> {
        let device = self.device(gpu.index as c_int)?;
        let (mut context, mut before): (*mut c_void, *mut c_void) = (ptr::null_mut(), ptr::null_mut());
        call!(self, "cuCtxGetCurrent"(*mut *mut c_void = &raw mut before))?;
        call!(self, "cuDevicePrimaryCtxRetain"(*mut *mut c_void = &raw mut context, c_int = device))?;
        let measured =
            call!(self, "cuCtxSetCurrent"(*mut c_void = context)).and_then(|()| self.copies(bytes));
        // The context may end here, and the thread must not be left in one that has.
        let left = call!(self, "cuCtxSetCurrent"(*mut c_void = before));
        call!(self, "cuDevicePrimaryCtxRelease_v2"(c_int = device))?;
        left.and(measured)
    }

    /// In the current context.
    fn copies(&self, bytes: usize) -> Result<Memory> {
        let (mut free, mut total) = (0usize, 0usize);
        call!(self, "cuMemGetInfo_v2"(*mut usize = &raw mut free, *mut usize = &raw mut total))?;
        let (from, to, host) =
            (Device::new(self, bytes)?, Device::new(self, bytes)?, Pinned::new(self, bytes)?);
        let (from, to, host) = (from.address, to.address, host.address);
        let h2d = self.fastest(
            bytes,
            || call!(self, "cuMemcpyHtoD_v2"(u64 = to, *const c_void = host, usize = bytes)),
        )?;
        let d2h = self
            .fastest(bytes, || call!(self, "cuMemcpyDtoH_v2"(*mut c_void = host, u64 = to, usize = bytes)))?;
        let d2d =
            self.fastest(bytes, || call!(self, "cuMemcpyDtoD_v2"(u64 = from, u64 = to, usize = bytes)))?;
        Ok(Memory {
            free_bytes: free as u64,
            total_bytes: total as u64,
            h2d_bytes_per_s: h2d,
            d2h_bytes_per_s: d2h,
            d2d_bytes_per_s: 2.0 * d2d,
        })
    }

    /// Bytes per second of the fastest of some copies, after one that warms up.
    fn fastest(&self, bytes: usize, copy: impl Fn() -> Result<()>) -> Result<f64> {
        let timed = || {
            let start = Instant::now();
            copy()?;
            call!(self, "cuCtxSynchronize"())?;
            Ok(start.elapsed().as_secs_f64())
        };
        timed()?;
        let mut best = f64::INFINITY;
        for _ in 0..COPIES {
            best = best.min(timed()?);
        }
        Ok(bytes as f64 / best.max(1e-9))
    }

    fn check(&self, call: &'static str, code: c_int) -> Result<()> {
        if code == 0 {
            return Ok(());
        }
        Err(DriverError::Call { call, code, text: self.error_name(code), advice: advice(code) })
    }

    fn error_name(&self, code: c_int) -> String {
        let mut name: *const c_char = ptr::null();
        // SAFETY: `cuGetErrorName(CUresult, const char **)` writes a pointer to a string that lives as long as the library,
        // or null for a code that it does not know.
        #[allow(unsafe_code)]
        unsafe {
            let Ok(function) = self
                .library
                .get::<unsafe extern "C" fn(c_int, *mut *const c_char) -> c_int>(b"cuGetErrorName")
            else {
                return "unnamed".into();
            };
            if function(code, &raw mut name) != 0 || name.is_null() {
                return "unnamed".into();
            }
            CStr::from_ptr(name).to_string_lossy().into_owned()
        }
    }
}

/// What a person can do about a `CUresult`.
const fn advice(code: c_int) -> &'static str {
    match code {
        2 => "free memory on the device, or use a smaller model, batch or context",
        3 | 999 => {
            "the driver is not running as it should; load its kernel module (nvidia-smi tells more) or reboot"
        }
        34 => "this is the toolkit's stub, not a driver; keep lib/stubs off LD_LIBRARY_PATH",
        100 => "no GPU is visible; look at nvidia-smi and CUDA_VISIBLE_DEVICES",
        101 => "there is no such device; look at nvidia-smi and CUDA_VISIBLE_DEVICES",
        803 => "the driver's library and its kernel module differ in version; reboot after the update",
        _ => "nvidia-smi may tell more",
    }
}

/// Memory on the device, given back when dropped.
struct Device<'a> {
    driver: &'a Driver,
    address: u64,
}

impl<'a> Device<'a> {
    fn new(driver: &'a Driver, bytes: usize) -> Result<Self> {
        let mut address = 0u64;
        call!(driver, "cuMemAlloc_v2"(*mut u64 = &raw mut address, usize = bytes))?;
        Ok(Self { driver, address })
    }
}

impl Drop for Device<'_> {
    fn drop(&mut self) {
        let driver = self.driver;
        // Nothing can be done about memory that cannot be given back.
        let _ = (|| call!(driver, "cuMemFree_v2"(u64 = self.address)))();
    }
}

/// Pinned memory of the host, given back when dropped.
struct Pinned<'a> {
    driver: &'a Driver,
    address: *mut c_void,
}

impl<'a> Pinned<'a> {
    fn new(driver: &'a Driver, bytes: usize) -> Result<Self> {
        let mut address: *mut c_void = ptr::null_mut();
        call!(driver, "cuMemHostAlloc"(*mut *mut c_void = &raw mut address, usize = bytes, c_uint = 0))?;
        Ok(Self { driver, address })
    }
}

impl Drop for Pinned<'_> {
    fn drop(&mut self) {
        let driver = self.driver;
        let _ = (|| call!(driver, "cuMemFreeHost"(*mut c_void = self.address)))();
    }
}
