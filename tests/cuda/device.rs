//! The device that whole stages and runs are tested on: the emulated one, or with feature `cuda` and `KVISTA_GPU` set the GPU
//! itself, as the program opens it.

use kvista::engine::backend::Backend;
use kvista::event::Settings;

use crate::emulated::Emulated;
use crate::gpu::is_wanted;

/// Whether the tests run on a GPU through the program's own code.
pub(crate) fn is_real() -> bool {
    cfg!(feature = "cuda") && is_wanted()
}

/// What computes a run; where it is emulated, an even schedule lets the queue of copies come late, an odd one all else.
pub(crate) fn backend(schedule: u32) -> Backend {
    if is_real() {
        let settings = Settings { device: "cuda:0".into(), ..Settings::default() };
        return Backend::of(&settings).unwrap();
    }
    Backend::gpu(Emulated::new(schedule), candle_core::Device::Cpu)
}

/// Where the tensor library has what the device reads.
pub(crate) fn tensors() -> candle_core::Device {
    #[cfg(feature = "cuda")]
    if is_real() {
        return kvista::device::cuda::Cuda::open(0).unwrap().tensors();
    }
    candle_core::Device::Cpu
}

#[cfg(not(feature = "cuda"))]
pub(crate) type Device = Emulated;

/// A device, whose threads run in the order of a schedule if it is emulated.
#[cfg(not(feature = "cuda"))]
pub(crate) fn device(schedule: u32) -> Device {
    Emulated::new(schedule)
}

#[cfg(feature = "cuda")]
pub(crate) use real::{Device, device};

#[cfg(feature = "cuda")]
mod real {
    use candle_core::Tensor;
    use kvista::device::cuda::{Cuda, Mark as MarkOfCuda, Piece as OfCuda, Pinned as PinnedOfCuda};
    use kvista::device::gpu::{Array, Gpu, Launch, Products, Result};

    use super::{Emulated, is_real};
    use crate::emulated::{Mark as MarkOfEmulated, Piece as OfEmulated, Pinned as PinnedOfEmulated};

    #[derive(Clone)]
    pub(crate) enum Device {
        Emulated(Emulated),
        Cuda(Cuda),
    }

    pub(crate) enum Piece {
        Emulated(OfEmulated),
        Cuda(OfCuda),
    }

    pub(crate) enum Pinned {
        Emulated(PinnedOfEmulated),
        Cuda(PinnedOfCuda),
    }

    pub(crate) enum Mark {
        Emulated(MarkOfEmulated),
        Cuda(MarkOfCuda),
    }

    pub(crate) fn device(schedule: u32) -> Device {
        if is_real() {
            return Device::Cuda(Cuda::open(0).unwrap());
        }
        Device::Emulated(Emulated::new(schedule))
    }

    macro_rules! on {
        ($device:expr, $gpu:ident => $call:expr) => {
            match $device {
                Device::Emulated($gpu) => $call,
                Device::Cuda($gpu) => $call,
            }
        };
    }

    impl Gpu for Device {
        type Memory = Piece;
        type Pinned = Pinned;
        type Mark = Mark;

        fn copies(&self) -> Self {
            match self {
                Self::Emulated(gpu) => Self::Emulated(gpu.copies()),
                Self::Cuda(gpu) => Self::Cuda(gpu.copies()),
            }
        }

        fn mark(&self) -> Result<Mark> {
            match self {
                Self::Emulated(gpu) => gpu.mark().map(Mark::Emulated),
                Self::Cuda(gpu) => gpu.mark().map(Mark::Cuda),
            }
        }

        fn after(&self, mark: &Mark) -> Result<()> {
            match (self, mark) {
                (Self::Emulated(gpu), Mark::Emulated(mark)) => gpu.after(mark),
                (Self::Cuda(gpu), Mark::Cuda(mark)) => gpu.after(mark),
                _ => panic!("a mark of another device"),
            }
        }

        fn elapsed_ns(&self, from: &Mark, to: &Mark) -> Result<u64> {
            match (self, from, to) {
                (Self::Emulated(gpu), Mark::Emulated(from), Mark::Emulated(to)) => gpu.elapsed_ns(from, to),
                (Self::Cuda(gpu), Mark::Cuda(from), Mark::Cuda(to)) => gpu.elapsed_ns(from, to),
                _ => panic!("marks of another device"),
            }
        }

        fn allocate(&self, what: &'static str, bytes: usize) -> Result<Piece> {
            match self {
                Self::Emulated(gpu) => gpu.allocate(what, bytes).map(Piece::Emulated),
                Self::Cuda(gpu) => gpu.allocate(what, bytes).map(Piece::Cuda),
            }
        }

        fn array(&self, memory: &Piece) -> Array {
            match (self, memory) {
                (Self::Emulated(gpu), Piece::Emulated(memory)) => gpu.array(memory),
                (Self::Cuda(gpu), Piece::Cuda(memory)) => gpu.array(memory),
                _ => panic!("memory of another device"),
            }
        }

        fn allocate_host(&self, what: &'static str, bytes: usize) -> Result<Pinned> {
            match self {
                Self::Emulated(gpu) => gpu.allocate_host(what, bytes).map(Pinned::Emulated),
                Self::Cuda(gpu) => gpu.allocate_host(what, bytes).map(Pinned::Cuda),
            }
        }

        fn host_array(&self, pinned: &Pinned) -> Array {
            match (self, pinned) {
                (Self::Emulated(gpu), Pinned::Emulated(pinned)) => gpu.host_array(pinned),
                (Self::Cuda(gpu), Pinned::Cuda(pinned)) => gpu.host_array(pinned),
                _ => panic!("memory of another device"),
            }
        }

        fn upload(&self, to: Array, bytes: &[u8]) -> Result<()> {
            on!(self, gpu => gpu.upload(to, bytes))
        }

        fn download(&self, from: Array, to: &mut [u8]) -> Result<()> {
            on!(self, gpu => gpu.download(from, to))
        }

        fn copy(&self, from: Array, to: Array, bytes: usize) -> Result<()> {
            on!(self, gpu => gpu.copy(from, to, bytes))
        }

        fn clear(&self, at: Array, bytes: usize) -> Result<()> {
            on!(self, gpu => gpu.clear(at, bytes))
        }

        fn wait(&self) -> Result<()> {
            on!(self, gpu => gpu.wait())
        }

        fn launch(&self, launch: &Launch<'_>) -> Result<()> {
            on!(self, gpu => gpu.launch(launch))
        }

        fn multiply(&self, products: &Products) -> Result<()> {
            on!(self, gpu => gpu.multiply(products))
        }

        fn read_tensor(&self, tensor: &Tensor, to: Array) -> Result<()> {
            on!(self, gpu => gpu.read_tensor(tensor, to))
        }

        fn tensor(&self, from: Array, rows: usize, columns: usize) -> Result<Tensor> {
            on!(self, gpu => gpu.tensor(from, rows, columns))
        }
    }
}
