//! Floor 7: parse, dispatch, exit code.
//!
//! Exit codes (stable): 0 done, 1 a check failed, 2 bad usage or bad input, 3 internal fault. Every failure is one line
//! on standard error that says what, where and what to do; `report` is the only reporter.

mod args;
mod bench;
mod doctor;
mod eval;
mod facts;
mod footprint;
mod headless;
mod json;
mod loading;
mod look;
mod player;
mod screen;
mod setup;
mod sweep;
mod talk;

use std::io::{self, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;

use clap::Parser;

use args::{Args, Verb};

/// Why the program ends other than well.
#[derive(Debug)]
pub(crate) enum Failure {
    /// A check the person asked for came out negative; what it found was printed already. Exit code 1.
    Check,
    /// Nobody reads the output any more. Exit code 0: the reader has seen enough.
    Unread,
    /// Bad usage or input. Exit code 2.
    Input(String),
    /// A fault of ours or of the machine. Exit code 3.
    Fault(String),
}

impl Failure {
    pub(crate) fn input(why: impl std::fmt::Display) -> Self {
        Self::Input(why.to_string())
    }

    pub(crate) fn fault(why: impl std::fmt::Display) -> Self {
        Self::Fault(why.to_string())
    }
}

/// Output to a closed pipe ends the program quietly, but by the usual way out: a recording is to be finished.
fn output(error: &io::Error) -> Failure {
    if error.kind() == io::ErrorKind::BrokenPipe {
        Failure::Unread
    } else {
        Failure::Fault(format!("standard output: {error}"))
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        output(&error)
    }
}

/// Runs the program with the process's arguments.
pub fn main() -> ExitCode {
    let args = match Args::try_parse() {
        Ok(args) => args,
        Err(error) => {
            // clap prints help and version to standard output with success, usage errors to standard error.
            let code = if error.use_stderr() { 2 } else { 0 };
            // A closed pipe while printing help is not worth a word.
            let _ = error.print();
            return ExitCode::from(code);
        }
    };
    crate::ui::terminal::install_panic_hook();
    match catch_unwind(AssertUnwindSafe(|| dispatch(args))) {
        Ok(Ok(())) => ExitCode::SUCCESS,
        Ok(Err(failure)) => report(&failure),
        // The hook has told it.
        Err(_) => ExitCode::from(3),
    }
}

fn dispatch(args: Args) -> Result<(), Failure> {
    match args.verb {
        None => screen::demo(&args.look),
        Some(Verb::Run(run)) => {
            if run.headless || run.json || run.plain || !screen::is_terminal() {
                // Nothing is drawn, but a wrong theme or configuration is refused all the same, not passed over.
                look::Appearance::resolve(&args.look, false)?;
                headless::run(&run)
            } else {
                screen::run(&run, &args.look)
            }
        }
        Some(Verb::Replay(replay)) => player::replay(&replay, &args.look),
        Some(Verb::Inspect(inspect)) => facts::inspect(&inspect),
        Some(Verb::Verify(verify)) => facts::verify(&verify),
        Some(Verb::Repair(repair)) => facts::repair(&repair),
        Some(Verb::Eval(eval)) => eval::eval(&eval, &args.look),
        Some(Verb::Bench(bench)) => bench::bench(&bench),
        Some(Verb::Policies(list)) => facts::policies(&list),
        Some(Verb::Doctor(list)) => doctor::doctor(&list),
        Some(Verb::Themes(list)) => facts::themes(&list),
        Some(Verb::Keys(list)) => facts::keys(&list),
        Some(Verb::Config(config)) => facts::config(&config),
        Some(Verb::Completions { shell }) => facts::completions(shell),
        Some(Verb::Man) => facts::man(),
    }
}

/// Prints the one line and gives the exit code.
fn report(failure: &Failure) -> ExitCode {
    let (code, why) = match failure {
        Failure::Check => return ExitCode::from(1),
        Failure::Unread => return ExitCode::SUCCESS,
        Failure::Input(why) => (2, why),
        Failure::Fault(why) => (3, why),
    };
    // What went wrong may quote a file: nothing of it reaches the terminal raw, and it stays one line.
    let line: String = why.split_whitespace().collect::<Vec<_>>().join(" ");
    remark(&format!("kvista: {}", crate::ui::text::safe(line.as_bytes(), crate::ui::theme::Symbols::Ascii)));
    ExitCode::from(code)
}

/// A line on standard error. Where that is closed, nobody wants to know: no reason to panic, as `eprintln` would.
fn remark(line: &str) {
    let _ = writeln!(io::stderr(), "{line}");
}
