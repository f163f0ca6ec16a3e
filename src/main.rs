//! The `kvista` program: everything is in the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    kvista::cli::main()
}
