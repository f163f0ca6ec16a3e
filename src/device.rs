//! Floor 1: the machine that computes. What its processor can do, found when the program starts, and the innermost
//! loops written for it.

pub mod simd;

pub use simd::{Isa, Stored};
