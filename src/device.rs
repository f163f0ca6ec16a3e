//! Floor 1: the machine that computes. What its processor can do, found when the program starts, the innermost loops
//! written for it, matrix products, the NVIDIA driver where there is one, and GPUs: what they are asked for ([`gpu`]), the
//! kernels ([`launch`]), and with feature `cuda` one that does it.

#[cfg(feature = "cuda")]
pub mod cuda;
pub mod driver;
mod gemm;
pub mod gpu;
#[cfg(feature = "cuda")]
pub mod kernels;
pub mod launch;
pub mod memory;
pub mod simd;
mod threads;

pub use gemm::matmul;
pub use simd::{Isa, Q8Block, Stored};
pub use threads::compute_on;
