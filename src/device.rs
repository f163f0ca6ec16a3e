//! Floor 1: what the processor does fast. Slices in, slices out; nothing here knows of models or caches.

pub mod driver;
mod gemm;

pub use gemm::matmul;
