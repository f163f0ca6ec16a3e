//! The kernels of `kernels/`, their own source compiled for the host, against the CPU's arithmetic. No GPU is needed, a
//! C++ compiler is.
//!
//! Every launch runs under several schedules of its threads, which must give the same bits; outputs begin as NaN, and what
//! a kernel must not read is NaN too. The error bounds are those of `bounds` in each room, relative to the sum of
//! magnitudes that the exact result is made of.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails, also in the functions that tests share")]

mod accumulate;
mod attention;
mod bounds;
mod clocked;
mod codes;
mod crush;
mod decode;
mod device;
mod emulated;
mod engine;
mod errors;
mod fill;
#[expect(dead_code, reason = "benches/kernels.rs measures with the rest")]
mod gpu;
mod host;
mod launches;
mod measured;
mod memory;
mod moves;
mod pages;
mod picture;
mod prefill;
mod queues;
mod represented;
mod reused;
mod scene;
mod select;
mod shim;
mod weighted;
