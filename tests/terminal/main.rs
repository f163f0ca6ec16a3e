//! The terminal UI, on the real program in a pseudo-terminal: what a person sees and types, and how the terminal is
//! given back whatever happens.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails, also in the functions that tests share")]

#[path = "../common/hub.rs"]
mod hub;
#[path = "../common/program.rs"]
mod program;

mod faults;
mod leaving;
mod loading;
mod looks;
mod playing;
mod session;
mod story;
mod turns;
