//! The `kvista` program: everything is in the library.

fn main() {}
