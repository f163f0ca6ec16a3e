//! The command line's contract, on the real program: what is printed where, exit codes, recordings, signals.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails, also in the functions that tests share")]

#[path = "../common/hub.rs"]
mod hub;
#[path = "../common/program.rs"]
mod program;

mod bench;
mod chat;
mod doctor;
mod endings;
mod facts;
mod frames;
mod hostile_text;
mod models;
mod recordings;
mod refusals;
mod runs;
