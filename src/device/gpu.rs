//! A GPU as kvista uses it: memory, copies, kernels by name, matrix products.
//!
//! # Two queues
//!
//! A handle asks of one queue, and what is asked of a queue happens in that order. The first handle is of the queue that
//! computes, where the tensor library's own work goes too; [`Gpu::copies`] gives one of a second queue, whose work goes on
//! beside it. Between the two there is no order but that of marks: [`Gpu::mark`] in the one, [`Gpu::after`] in the other. The
//! host waits only in a download, in [`Gpu::wait`] and [`Gpu::elapsed_ns`], and where memory of its own is given back.
//!
//! The device's memory comes and goes in the order of the queue that computes:
//! - the queue of copies uses it only behind a mark of the other one that was made since it was taken (taking it through a
//!   handle of the queue of copies does that);
//! - what the queue of copies still uses is given back only once the queue that computes is behind a mark of that use, or the
//!   host has waited for it.

use candle_core::Tensor;
use thiserror::Error;

use super::memory::free_bytes;

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
    /// The host's memory does not suffice: page-locked memory cannot be swapped out.
    #[error(
        "the host cannot lock {asked_bytes} bytes of memory for {what}{}: use a smaller context (--blocks) or batch, or \
         --device cpu",
        free_of_host(*free_bytes)
    )]
    HostMemory {
        /// What they were for.
        what: &'static str,
        /// Bytes asked for.
        asked_bytes: u64,
        /// Bytes that were free then, where the system tells.
        free_bytes: Option<u64>,
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

impl DeviceError {
    /// The host has no page-locked memory to give; what is free is asked for.
    pub fn host_memory(what: &'static str, bytes: usize) -> Self {
        Self::HostMemory { what, asked_bytes: bytes as u64, free_bytes: free_bytes() }
    }
}

fn free_of_host(free_bytes: Option<u64>) -> String {
    free_bytes.map_or_else(String::new, |bytes| format!(" ({bytes} bytes are free)"))
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

/// A device that computes, and one of its two queues ([module](self)); clones are of the same queue.
///
/// Arrays may be parts of the device's memory or of page-locked memory of the host, in every call alike.
pub trait Gpu: Clone + Send + 'static {
    /// A piece of the device's memory, aligned to 256 bytes; given back when dropped.
    type Memory: Send;

    /// A piece of page-locked memory of the host that kernels reach; given back when dropped, once both queues are idle.
    type Pinned: Send;

    /// How far a queue had come: what was asked of it until then.
    type Mark: Send;

    /// The same device, asking of the queue of copies.
    #[must_use]
    fn copies(&self) -> Self;

    /// Marks what was asked of this queue until now.
    ///
    /// # Errors
    /// [`DeviceError`], here and below.
    fn mark(&self) -> Result<Self::Mark>;

    /// What is asked of this queue from now on happens only behind a mark of either queue. The host does not wait.
    fn after(&self, mark: &Self::Mark) -> Result<()>;

    /// Time of the device from one mark to a later one, in ns; 0 where it is not later. Waits for both.
    fn elapsed_ns(&self, from: &Self::Mark, to: &Self::Mark) -> Result<u64>;

    /// Takes memory, whatever is in it. `what` is for the message where there is none.
    fn allocate(&self, what: &'static str, bytes: usize) -> Result<Self::Memory>;

    /// Where a piece of memory begins.
    fn array(&self, memory: &Self::Memory) -> Array;

    /// Takes page-locked memory of the host, whatever is in it. It belongs to no queue's order. `what` is for the message where
    /// there is none.
    fn allocate_host(&self, what: &'static str, bytes: usize) -> Result<Self::Pinned>;

    /// Where a piece of the host's memory begins for kernels and copies.
    fn host_array(&self, pinned: &Self::Pinned) -> Array;

    /// Copies bytes to an array. They may be changed once this returns.
    fn upload(&self, to: Array, bytes: &[u8]) -> Result<()>;

    /// Copies bytes from an array, and waits for them.
    fn download(&self, from: Array, to: &mut [u8]) -> Result<()>;

    /// Copies bytes from one piece of memory to another.
    fn copy(&self, from: Array, to: Array, bytes: usize) -> Result<()>;

    /// Makes bytes 0.
    fn clear(&self, at: Array, bytes: usize) -> Result<()>;

    /// Waits for all that was asked of this queue.
    fn wait(&self) -> Result<()>;

    /// Starts a kernel.
    fn launch(&self, launch: &Launch<'_>) -> Result<()>;

    /// Starts matrix products; the queue of copies does none.
    fn multiply(&self, products: &Products) -> Result<()>;

    /// Copies a tensor's elements, contiguous f32 of this device, to an array. Whichever handle is asked, the queue that
    /// computes does it, which also made them.
    fn read_tensor(&self, tensor: &Tensor, to: Array) -> Result<()>;

    /// A new tensor `[rows][columns]` of f32 with a copy of an array's elements, at least one. Whichever handle is asked, the
    /// queue that computes does it, which also reads them.
    fn tensor(&self, from: Array, rows: usize, columns: usize) -> Result<Tensor>;
}

/// Of a tensor that [`Gpu::read_tensor`] takes, where in its storage its elements begin and end.
///
/// # Errors
/// It is none of f32, or does not lie in one piece.
pub fn elements_of(tensor: &Tensor) -> Result<(usize, usize)> {
    let refused =
        |what: String| DeviceError::Limit(format!("rows come from tensors of f32 in one piece, not {what}"));
    if tensor.dtype() != candle_core::DType::F32 {
        return Err(refused(format!("of {}", tensor.dtype().as_str())));
    }
    let spread = || refused(format!("with strides {:?} for shape {:?}", tensor.stride(), tensor.dims()));
    tensor.layout().contiguous_offsets().ok_or_else(spread)
}

/// Elements of a tensor that [`Gpu::tensor`] makes.
///
/// # Errors
/// There are none, or more bytes of them than can be.
pub fn elements(rows: usize, columns: usize) -> Result<usize> {
    let elements = rows.checked_mul(columns).filter(|&n| n > 0 && n <= isize::MAX as usize / 4);
    elements
        .ok_or_else(|| DeviceError::Limit(format!("a tensor of {rows} x {columns} elements cannot be made")))
}

/// An array that grows with what is put into it, and is used again. The handle it is used with is of the queue that computes,
/// unless what is in it never grows.
pub struct Room<G: Gpu> {
    what: &'static str,
    on_host: bool,
    memory: Option<Held<G>>,
    bytes: usize,
}

/// Memory of either kind.
enum Held<G: Gpu> {
    Device(G::Memory),
    Host(G::Pinned),
}

impl<G: Gpu> Held<G> {
    fn array(&self, gpu: &G) -> Array {
        match self {
            Self::Device(memory) => gpu.array(memory),
            Self::Host(pinned) => gpu.host_array(pinned),
        }
    }
}

impl<G: Gpu> Room<G> {
    /// No memory yet; `what` it is for.
    pub const fn new(what: &'static str) -> Self {
        Self { what, on_host: false, memory: None, bytes: 0 }
    }

    /// The same in page-locked memory of the host. Each time that it grows, the host waits for the device.
    pub const fn on_host(what: &'static str) -> Self {
        Self { what, on_host: true, memory: None, bytes: 0 }
    }

    fn taken(&self, gpu: &G, bytes: usize) -> Result<Held<G>> {
        if self.on_host {
            gpu.allocate_host(self.what, bytes).map(Held::Host)
        } else {
            gpu.allocate(self.what, bytes).map(Held::Device)
        }
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
            self.memory = Some(self.taken(gpu, roomy)?);
            self.bytes = roomy;
        }
        Ok(self.array(gpu))
    }

    /// At least `bytes`, the first `kept` of which stay what they are. No more is taken than asked for: who keeps what is in
    /// it knows by how much it grows. While it grows both pieces are there, unless nothing is kept.
    ///
    /// # Errors
    /// There is no more memory.
    pub fn grown(&mut self, gpu: &G, kept: usize, bytes: usize) -> Result<Array> {
        if self.bytes < bytes {
            if kept == 0 {
                (self.memory, self.bytes) = (None, 0);
            }
            let new = self.taken(gpu, bytes)?;
            if self.memory.is_some() {
                gpu.copy(self.array(gpu), new.array(gpu), kept.min(self.bytes))?;
            }
            (self.memory, self.bytes) = (Some(new), bytes);
        }
        Ok(self.array(gpu))
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
        self.memory.as_ref().map_or(Array::NONE, |memory| memory.array(gpu))
    }
}
