//! A GPU as kvista uses it: memory, copies, kernels by name, matrix products. All of it happens in the order in which it
//! was asked for; only a download and [`Gpu::wait`] wait.

use thiserror::Error;

/// Why the device cannot go on: one line.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum DeviceError {
    /// There is no GPU to be had.
    #[error("{0}")]
    Absent(String),
    /// Its memory does not suffice.
    #[error(
        "the GPU has no room for {asked_bytes} bytes of {what} ({free_bytes} of {total_bytes} bytes are free): use a \
         smaller model, context (--blocks) or batch, or --device cpu"
    )]
    OutOfMemory {
        /// What they were for.
        what: &'static str,
        /// Bytes asked for.
        asked_bytes: u64,
        /// Bytes that were free then.
        free_bytes: u64,
        /// Bytes in all.
        total_bytes: u64,
    },
    /// A call failed: the device is lost, or kvista asked for something wrong.
    #[error("the GPU failed in {call}: {text}; nvidia-smi and the kernel's log may tell more")]
    Call {
        /// What was called.
        call: String,
        /// What the driver says.
        text: String,
    },
    /// Something that the kernels cannot take.
    #[error("on a GPU, {0}")]
    Limit(String),
}

/// What every fallible call of a device returns.
pub type Result<T> = std::result::Result<T, DeviceError>;

/// Where an array begins in a device's memory; 0 is no array.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Array(u64);

impl Array {
    /// No array, for what is not wanted.
    pub const NONE: Self = Self(0);

    /// The array at an address.
    pub const fn at(address: u64) -> Self {
        Self(address)
    }

    /// The array that begins so many bytes further on.
    #[must_use]
    pub const fn offset(self, bytes: usize) -> Self {
        Self(self.0 + bytes as u64)
    }

    /// Its address.
    pub const fn address(self) -> u64 {
        self.0
    }
}

/// An argument of a kernel.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Arg {
    /// A pointer.
    Array(Array),
    /// `int` or `unsigned`.
    Word(u32),
    /// `float`.
    Real(f32),
}

impl Arg {
    /// The bits that a kernel reads, as many of the eight bytes as its parameter is long.
    pub const fn bits(self) -> u64 {
        match self {
            Self::Array(array) => array.address(),
            Self::Word(word) => word as u64,
            Self::Real(real) => real.to_bits() as u64,
        }
    }
}

impl From<Array> for Arg {
    fn from(array: Array) -> Self {
        Self::Array(array)
    }
}
impl From<u32> for Arg {
    fn from(word: u32) -> Self {
        Self::Word(word)
    }
}
impl From<f32> for Arg {
    fn from(real: f32) -> Self {
        Self::Real(real)
    }
}

/// A kernel to be started; [`super::launch`] makes them.
#[derive(Clone, Copy, Debug)]
pub struct Launch<'a> {
    /// `kernels/FILE.cu`.
    pub file: &'static str,
    /// The kernel's name.
    pub kernel: &'a str,
    /// Blocks.
    pub grid: [u32; 3],
    /// Threads of a block.
    pub block: u32,
    /// In the kernel's order.
    pub args: &'a [Arg],
}

/// Products of f32 matrices, some of one shape together: `out[m][n] = a[m][k] * b`, rows as far apart as the strides say,
/// in elements.
#[derive(Clone, Copy, Debug)]
pub struct Products {
    /// How many.
    pub count: usize,
    /// Rows of `a` and of the result.
    pub m: usize,
    /// Columns of the result.
    pub n: usize,
    /// Columns of `a`.
    pub k: usize,
    /// `[m][k]`.
    pub a: Matrices,
    /// `[n][k]`, or `[k][n]` where it is not `transposed`.
    pub b: Matrices,
    /// Whether the rows of `b` are those of its transpose.
    pub transposed: bool,
    /// `[m][n]`.
    pub out: Matrices,
}

/// Matrices that lie in one array.
#[derive(Clone, Copy, Debug)]
pub struct Matrices {
    /// The first of them.
    pub array: Array,
    /// From one row to the next, in elements.
    pub row_stride: usize,
    /// From one matrix to the next; 0 where it is the same one again.
    pub stride: usize,
}

/// A device that computes. Memory is given back when it is dropped, after what was asked for before.
pub trait Gpu: Clone + Send + 'static {
    /// A piece of its memory, aligned to 256 bytes.
    type Memory: Send;

    /// Takes memory, whatever is in it. `what` is for the message where there is none.
    ///
    /// # Errors
    /// [`DeviceError`], here and below.
    fn allocate(&self, what: &'static str, bytes: usize) -> Result<Self::Memory>;

    /// Where a piece of memory begins.
    fn array(&self, memory: &Self::Memory) -> Array;

    /// Copies bytes to the device. They may be changed once this returns.
    fn upload(&self, to: Array, bytes: &[u8]) -> Result<()>;

    /// Copies bytes from the device, and waits for them.
    fn download(&self, from: Array, to: &mut [u8]) -> Result<()>;

    /// Copies bytes within the device, from one piece of memory to another.
    fn copy(&self, from: Array, to: Array, bytes: usize) -> Result<()>;

    /// Makes bytes 0.
    fn clear(&self, at: Array, bytes: usize) -> Result<()>;

    /// Waits for all that was asked for.
    fn wait(&self) -> Result<()>;

    /// Starts a kernel.
    fn launch(&self, launch: &Launch<'_>) -> Result<()>;

    /// Starts matrix products.
    fn multiply(&self, products: &Products) -> Result<()>;
}

/// An array that grows with what is put into it, and is used again.
pub struct Room<G: Gpu> {
    what: &'static str,
    memory: Option<G::Memory>,
    bytes: usize,
}

impl<G: Gpu> Room<G> {
    /// No memory yet; `what` it is for.
    pub const fn new(what: &'static str) -> Self {
        Self { what, memory: None, bytes: 0 }
    }

    /// At least `bytes`; what was in it is lost where it has to grow.
    ///
    /// # Errors
    /// There is no more memory.
    pub fn of(&mut self, gpu: &G, bytes: usize) -> Result<Array> {
        if self.bytes < bytes || self.memory.is_none() {
            // Given back first: both at once may not fit.
            self.memory = None;
            self.bytes = 0;
            // Contexts grow a token at a time: not a new piece for each.
            let roomy = bytes.max(256).saturating_add(bytes / 4).next_multiple_of(256);
            self.memory = Some(gpu.allocate(self.what, roomy)?);
            self.bytes = roomy;
        }
        Ok(self.memory.as_ref().map_or(Array::NONE, |memory| gpu.array(memory)))
    }

    /// At least `bytes`, the first `kept` of which stay what they are.
    ///
    /// # Errors
    /// There is no more memory.
    pub fn grown(&mut self, gpu: &G, kept: usize, bytes: usize) -> Result<Array> {
        if self.bytes < bytes
            && let Some(old) = self.memory.take()
        {
            let new = gpu.allocate(self.what, bytes)?;
            gpu.copy(gpu.array(&old), gpu.array(&new), kept.min(self.bytes))?;
            (self.memory, self.bytes) = (Some(new), bytes);
        }
        self.of(gpu, bytes)
    }

    /// Copies what is given into it.
    ///
    /// # Errors
    /// There is no more memory, or the copy fails.
    pub fn filled(&mut self, gpu: &G, bytes: &[u8]) -> Result<Array> {
        let array = self.of(gpu, bytes.len())?;
        gpu.upload(array, bytes)?;
        Ok(array)
    }

    /// Where it begins; nothing while there is nothing in it.
    pub fn array(&self, gpu: &G) -> Array {
        self.memory.as_ref().map_or(Array::NONE, |memory| gpu.array(memory))
    }
}
