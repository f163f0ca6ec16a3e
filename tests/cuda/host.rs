//! Compiles a .cu file with `host.cpp` and runs its kernels.
#![allow(unsafe_code)]

use std::collections::HashMap;
use std::ffi::{CString, c_char, c_int, c_void};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, LazyLock, Mutex};
use std::{env, fs, process};

use libloading::Library;
use memmap2::MmapMut;

use crate::gpu::{self, Module};

/// Compiler flags. No contraction, so that products and sums round as they are written.
const FLAGS: [&str; 11] = [
    "-std=c++17",
    "-O1",
    "-fPIC",
    "-shared",
    "-fno-stack-protector",
    "-U_FORTIFY_SOURCE",
    "-ffp-contract=off",
    "-Wall",
    "-Wextra",
    "-Werror",
    "-Wno-unknown-pragmas",
];

/// Schedules of threads that every launch runs under: ascending, descending, shuffled.
pub(crate) const SCHEDULES: u32 = 3;

type LaunchFn = unsafe extern "C" fn(
    *const c_char,
    *const u32,
    *const u32,
    *mut *mut c_void,
    u32,
    *mut c_char,
    usize,
) -> c_int;

/// The kernels of one file.
pub(crate) enum Kernels {
    /// Compiled for the host. Launches take turns: the library has one scheduler.
    Host(Mutex<Library>),
    Gpu(Module),
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// The C++ compiler, or `None` where there is none.
static COMPILER: LazyLock<Option<String>> = LazyLock::new(|| {
    let name = env::var("CXX").unwrap_or_else(|_| "c++".to_owned());
    let found = Command::new(&name).arg("--version").output().is_ok_and(|output| output.status.success());
    found.then_some(name)
});

/// Everything that a compiled file depends on, as one name.
fn fingerprint(source: &Path, compiler: &str) -> String {
    let mut hasher = blake3::Hasher::new();
    hasher.update(compiler.as_bytes());
    hasher.update(FLAGS.concat().as_bytes());
    let mut files: Vec<PathBuf> = [root().join("kernels"), root().join("tests/cuda")]
        .iter()
        .flat_map(|folder| fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()))
        .filter(|path| path.extension().is_some_and(|e| e == "cuh" || e == "h" || e == "cpp"))
        .collect();
    files.push(source.to_owned());
    files.sort();
    for file in files {
        hasher.update(&fs::read(file).unwrap());
    }
    hasher.finalize().to_hex()[..16].to_owned()
}

/// Compiles `source` unless that was done before.
fn compile(source: &Path, compiler: &str) -> PathBuf {
    let stem = source.file_stem().unwrap().to_string_lossy();
    let out = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let library = out.join(format!("{stem}-{}.so", fingerprint(source, compiler)));
    if library.exists() {
        return library;
    }
    let partial = out.join(format!("{stem}-{}.partial.so", process::id()));
    let output = Command::new(compiler)
        .args(FLAGS)
        .args(["-I", "tests/cuda", "-I", "kernels"])
        .arg(format!("-DKV_SOURCE=\"{}\"", source.display()))
        .args([Path::new("tests/cuda/host.cpp"), Path::new("-o"), &partial])
        .current_dir(root())
        .output()
        .unwrap();
    assert!(output.status.success(), "{stem}: {}", String::from_utf8_lossy(&output.stderr));
    fs::rename(partial, &library).unwrap();
    library
}

/// The kernels of `kernels/NAME.cu`; `None`, with a line that says so, where there is no C++ compiler. On a GPU if that is
/// asked for.
pub(crate) fn kernels(name: &str) -> Option<Arc<Kernels>> {
    if gpu::is_wanted() {
        return Some(Arc::new(Kernels::Gpu(Module::load(name))));
    }
    load(&root().join("kernels").join(format!("{name}.cu")))
}

/// The kernels of a file, compiled for the host.
pub(crate) fn load(source: &Path) -> Option<Arc<Kernels>> {
    type Slot = Arc<Mutex<Option<Arc<Kernels>>>>;
    static LOADED: LazyLock<Mutex<HashMap<PathBuf, Slot>>> = LazyLock::new(Mutex::default);
    let Some(compiler) = &*COMPILER else {
        println!("skipped: no C++ compiler (c++, or what CXX names)");
        return None;
    };
    let slot = LOADED.lock().unwrap().entry(source.to_owned()).or_default().clone();
    let mut slot = slot.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    if slot.is_none() {
        let library = compile(source, compiler);
        // SAFETY: the library was compiled from this repository; its initialisers only fill a table of its own.
        let library = unsafe { Library::new(library) }.unwrap();
        *slot = Some(Arc::new(Kernels::Host(Mutex::new(library))));
    }
    slot.clone()
}

/// An argument of a kernel, in the eight bytes that hold it; of an array, its address.
#[derive(Clone, Copy)]
pub(crate) struct Arg {
    bits: u64,
    /// Bytes of an array of this process.
    bytes: Option<usize>,
}

impl Arg {
    pub(crate) const fn of_bits(bits: u64) -> Self {
        Self { bits, bytes: None }
    }

    pub(crate) const fn bits(&self) -> u64 {
        self.bits
    }

    /// Where an array with its guards begins, and how long it is.
    pub(crate) fn array(&self) -> Option<(*mut u8, usize)> {
        self.bytes.map(|bytes| ((self.bits - GUARD as u64) as *mut u8, bytes + 2 * GUARD))
    }
}

impl From<usize> for Arg {
    fn from(x: usize) -> Self {
        Self::of_bits(u64::from(u32::try_from(x).unwrap()))
    }
}
impl From<u32> for Arg {
    fn from(x: u32) -> Self {
        Self::of_bits(x.into())
    }
}
impl From<f32> for Arg {
    fn from(x: f32) -> Self {
        Self::of_bits(x.to_bits().into())
    }
}
/// An absent array.
pub(crate) const NULL: Arg = Arg::of_bits(0);

impl Kernels {
    /// Runs a kernel under a schedule.
    ///
    /// # Errors
    /// What went wrong between its threads, in a sentence.
    pub(crate) fn try_run(
        &self,
        name: &str,
        grid: [usize; 3],
        block: usize,
        args: &[Arg],
        schedule: u32,
    ) -> Result<(), String> {
        let library = match self {
            Self::Host(library) => library.lock().unwrap_or_else(std::sync::PoisonError::into_inner),
            Self::Gpu(module) => {
                module.run(name, grid, block, args);
                return Ok(());
            }
        };
        let name = CString::new(name).unwrap();
        let grid = grid.map(|n| n as u32);
        let block = [block as u32, 1, 1];
        let mut cells: Vec<u64> = args.iter().map(Arg::bits).collect();
        let mut pointers: Vec<*mut c_void> =
            cells.iter_mut().map(|cell| std::ptr::from_mut(cell).cast()).collect();
        let mut message = [0u8; 512];
        // SAFETY: `kv_launch` has this signature. It reads as many cells as the kernel has parameters, at most eight bytes
        // each; the arrays that they point at outlive the call, are as long as the caller says, and have guards around.
        let failed = unsafe {
            let launch = library.get::<LaunchFn>(b"kv_launch\0").unwrap();
            launch(
                name.as_ptr(),
                grid.as_ptr(),
                block.as_ptr(),
                pointers.as_mut_ptr(),
                schedule,
                message.as_mut_ptr().cast(),
                message.len(),
            )
        };
        if failed == 0 { Ok(()) } else { Err(format!("{name:?}: {}", text(&message))) }
    }

    /// The same, which must go well.
    pub(crate) fn run(&self, name: &str, grid: [usize; 3], block: usize, args: &[Arg], schedule: u32) {
        self.try_run(name, grid, block, args, schedule).unwrap();
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes.split(|&b| b == 0).next().unwrap()).into_owned()
}

/// Runs under every schedule, which must all give the same.
pub(crate) fn same_bits<T: PartialEq + std::fmt::Debug>(run: impl Fn(u32) -> T) -> T {
    let first = run(0);
    for schedule in 1..SCHEDULES {
        assert!(run(schedule) == first, "schedule {schedule} gives other bits");
    }
    first
}

/// Bytes on either side of an array that nobody may change.
pub(crate) const GUARD: usize = 64;
const CANARY: u8 = 0xc5;

/// A whole number of pages, whatever their size here.
const FENCE: usize = 64 * 1024;

unsafe extern "C" {
    /// POSIX; 0 of the last argument: no access.
    fn mprotect(address: *mut c_void, length: usize, protection: c_int) -> c_int;
}

/// An array as a kernel gets it: aligned to 16 bytes, between two guards. Where kernels run on the host, the second one cannot
/// even be read: whoever reads behind an array's last 16 bytes, on a GPU another array or nothing at all, ends the tests.
#[derive(Debug)]
pub(crate) struct Buffer {
    memory: MmapMut,
    /// Where the array begins in the memory, and where the bytes end that may be read.
    start: usize,
    end: usize,
    bytes: usize,
}

impl Buffer {
    /// `bytes` bytes of 0xff: NaN as f32, f16 and bf16.
    pub(crate) fn poisoned(bytes: usize) -> Self {
        let roomy = bytes.next_multiple_of(16);
        let behind = if gpu::is_wanted() { GUARD } else { 0 };
        let mut memory = MmapMut::map_anon(GUARD + roomy + behind + 2 * FENCE).unwrap();
        let address = memory.as_mut_ptr() as usize;
        let end = (address + GUARD + roomy + behind).next_multiple_of(FENCE) - address;
        // SAFETY: the range is whole pages of this mapping, which nothing refers to: `all` ends before them.
        let status = unsafe { mprotect(memory.as_mut_ptr().add(end).cast(), FENCE, 0) };
        assert_eq!(status, 0, "pages cannot be protected");
        let mut buffer = Self { memory, start: end - behind - roomy, end, bytes };
        buffer.all().fill(CANARY);
        buffer.bytes_mut().fill(0xff);
        buffer
    }

    /// Room for `n` elements of four bytes, poisoned.
    pub(crate) fn room(n: usize) -> Self {
        Self::poisoned(4 * n)
    }

    /// Room for `n` elements of four bytes, zeros.
    pub(crate) fn zeros(n: usize) -> Self {
        Self::of_u32(&vec![0; n])
    }

    pub(crate) fn of_bytes(bytes: &[u8]) -> Self {
        let mut buffer = Self::poisoned(bytes.len());
        buffer.bytes_mut().copy_from_slice(bytes);
        buffer
    }

    pub(crate) fn of_u32(values: &[u32]) -> Self {
        Self::of_bytes(&values.iter().flat_map(|x| x.to_ne_bytes()).collect::<Vec<_>>())
    }

    pub(crate) fn of_f32(values: &[f32]) -> Self {
        Self::of_bytes(&values.iter().flat_map(|x| x.to_ne_bytes()).collect::<Vec<_>>())
    }

    /// The array and its guards, as far as they may be read.
    fn all(&mut self) -> &mut [u8] {
        let (start, end) = (self.start - GUARD, self.end);
        // SAFETY: these bytes are within the mapping, and may be read and written. A slice of the whole mapping would have the
        // fence in it.
        unsafe { std::slice::from_raw_parts_mut(self.memory.as_mut_ptr().add(start), end - start) }
    }

    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        let end = GUARD + self.bytes;
        &mut self.all()[GUARD..end]
    }

    /// The array as an argument.
    pub(crate) fn arg(&mut self) -> Arg {
        // Of everything, so that the guards may be read through it.
        let start = self.all().as_mut_ptr() as u64;
        Arg { bits: start + GUARD as u64, bytes: Some(self.bytes) }
    }

    /// What is in it now.
    ///
    /// # Panics
    /// Something was written beside it.
    pub(crate) fn bytes(&mut self) -> Vec<u8> {
        self.check();
        self.bytes_mut().to_vec()
    }

    /// Bytes of the array.
    pub(crate) const fn len(&self) -> usize {
        self.bytes
    }

    /// Nothing was written beside it.
    ///
    /// # Panics
    /// Something was.
    pub(crate) fn check(&mut self) {
        let end = GUARD + self.bytes;
        let all = self.all();
        assert!(all[..GUARD].iter().chain(&all[end..]).all(|&b| b == CANARY), "a write beside the array");
    }

    pub(crate) fn u32s(&mut self) -> Vec<u32> {
        self.bytes().as_chunks::<4>().0.iter().map(|&b| u32::from_ne_bytes(b)).collect()
    }
}

impl Clone for Buffer {
    fn clone(&self) -> Self {
        // SAFETY: the array is within the mapping, and may be read.
        Self::of_bytes(unsafe {
            std::slice::from_raw_parts(self.memory.as_ptr().add(self.start), self.bytes)
        })
    }
}

/// Bits as numbers.
pub(crate) fn floats(bits: &[u32]) -> Vec<f32> {
    bits.iter().map(|&x| f32::from_bits(x)).collect()
}

/// The largest `|got - want| / magnitude` of results whose terms have that magnitude in sum, which must be within
/// `bound`; a result that is no number fails.
pub(crate) fn within(what: &str, bound: f64, cases: impl IntoIterator<Item = (f32, f64, f64)>) -> f64 {
    let mut worst = 0.0f64;
    for (i, (got, want, magnitude)) in cases.into_iter().enumerate() {
        let error = (f64::from(got) - want).abs() / magnitude.max(1e-30);
        assert!(
            error <= bound,
            "{what}, element {i}: {got} is not {want} (off by {error:.2e}, bound {bound:.1e})"
        );
        worst = worst.max(error);
    }
    worst
}
