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

/// What computes a run.
pub(crate) fn backend() -> Backend {
    if is_real() {
        let settings = Settings { device: "cuda:0".into(), ..Settings::default() };
        return Backend::of(&settings).unwrap();
    }
    Backend::gpu(Emulated::new(0), candle_core::Device::Cpu)
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
    use kvista::device::cuda::{Cuda, Piece as OfCuda};
    use kvista::device::gpu::{Array, Gpu, Launch, Products, Result};

    use super::{Emulated, is_real};
    use crate::emulated::Piece as OfEmulated;

    #[derive(Clone)]
    pub(crate) enum Device {
        Emulated(Emulated),
        Cuda(Cuda),
    }

    pub(crate) enum Piece {
        Emulated(OfEmulated),
        Cuda(OfCuda),
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
    }
}
