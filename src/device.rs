//! Floor 1: the machine that computes. What its processor can do, found when the program starts, the innermost loops
//! written for it, matrix products, and the NVIDIA driver where there is one.

pub mod driver;
mod gemm;
#[cfg(feature = "cuda")]
pub mod kernels;
pub mod memory;
pub mod simd;
mod threads;

pub use gemm::matmul;
pub use simd::{Isa, Q8Block, Stored};
pub use threads::compute_on;
