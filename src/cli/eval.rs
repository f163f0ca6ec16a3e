//! `kvista eval`: tasks with a right answer, counted.

use std::io::{self, IsTerminal, Write};
use std::sync::Arc;
use std::sync::Mutex;

use serde_json::json;

use super::args::{EvalArgs, EvalTask};
use super::json::print_facts;
use super::setup::{self, ModelSource};
use super::{Failure, output, remark};
use crate::eval::{self, EvalError, Lab, Line, Regime, Span, Table};

/// Most prompts per cell; more is a typing mistake.
const MAX_PROMPTS: usize = 100_000;

/// Runs the task and prints what it found.
pub(super) fn eval(args: &EvalArgs) -> Result<(), Failure> {
    let threads = setup::threads(args.threads)?;
    let regime = regime(args)?;
    let n = args.prompts.unwrap_or(args.task.usual_prompts());
    if n == 0 || n > MAX_PROMPTS {
        return Err(Failure::Input(format!("--n {n}: use 1 to {MAX_PROMPTS} prompts")));
    }
    let model = Arc::new(ModelSource::of(args.model.as_deref()).load().map_err(Failure::input)?);
    let watch = Watch::default();
    let progress = |what: &str, done: usize, of: usize| watch.tell(what, done, of);
    let lab = Lab::new(model, threads as usize, args.seed, &progress).map_err(failure)?;
    let tokens = args.tokens.unwrap_or(args.task.usual_tokens());
    let found = match args.task {
        EvalTask::Demo => {
            let found = eval::demo(&lab, n);
            watch.end();
            let (lines, tables) = found.map_err(failure)?;
            return judged(&lines, &tables, args.json);
        }
        EvalTask::Passkey => eval::passkey(&lab, &regime, &args.lengths, &depths(args)?, n),
        EvalTask::Recall => eval::recall(&lab, tokens, n),
        EvalTask::Repeated => {
            eval::repeated(&lab, &eval::repeated_regimes(&args.budget), tokens, eval::REPEATED, n)
        }
        EvalTask::Votes => eval::votes(&lab, &eval::vote_regimes(), &eval::VOTES, n),
        EvalTask::Stories => eval::stories(&lab, n),
        EvalTask::Losses => eval::losses(&lab, tokens, n),
        EvalTask::Heads => eval::heads(&lab, tokens, n),
        EvalTask::Controls => eval::controls(&lab, tokens, 0.3, n),
    };
    watch.end();
    let table = found.map_err(failure)?;
    if args.json { print_facts(&json!({ "table": table })) } else { say(table.lines()) }
}

fn regime(args: &EvalArgs) -> Result<Regime, Failure> {
    let span = match args.compress.as_str() {
        "context" => Span::Context,
        "prompt" => Span::Prompt,
        other => return Err(Failure::Input(format!("--compress {other}: use context or prompt"))),
    };
    let of_policy = Regime::policy(&args.policy);
    let chunk = if args.policy == "full" { Regime::full().chunk } else { of_policy.chunk };
    let read = args.read.clone().unwrap_or_default();
    Ok(Regime { read, kv_dtype: args.kv_dtype.clone(), span, chunk, ..of_policy })
}

fn depths(args: &EvalArgs) -> Result<Vec<f32>, Failure> {
    match args.depths.iter().find(|depth| !(0.0..=1.0).contains(*depth)) {
        Some(depth) => Err(Failure::Input(format!("--depths {depth}: use shares of the context, 0 to 1"))),
        None => Ok(args.depths.clone()),
    }
}

fn failure(error: EvalError) -> Failure {
    if error.is_input() { Failure::input(error) } else { Failure::fault(error) }
}

/// Prints the tables and the demands; fails where one is not met.
fn judged(lines: &[Line], tables: &[Table], as_json: bool) -> Result<(), Failure> {
    if as_json {
        print_facts(&json!({ "lines": lines, "tables": tables }))?;
    } else {
        for table in tables {
            say(table.lines())?;
            say([String::new()])?;
        }
        let width = lines.iter().map(|line| line.what.chars().count()).max().unwrap_or(0);
        say(lines.iter().map(|line| {
            let passed = if line.passed { "pass" } else { "FAIL" };
            format!("{passed}  {:<width$}  {}, wanted {}", line.what, line.found, line.wanted)
        }))?;
    }
    if lines.iter().all(|line| line.passed) { Ok(()) } else { Err(Failure::Check) }
}

fn say(lines: impl IntoIterator<Item = String>) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    for line in lines {
        writeln!(out, "{line}").map_err(|error| output(&error))?;
    }
    Ok(())
}

/// Progress on standard error: one line that is written over where a person watches, else a line per part.
#[derive(Default)]
struct Watch {
    /// Whether the line under the cursor is ours.
    open: Mutex<bool>,
}

impl Watch {
    fn tell(&self, what: &str, done: usize, of: usize) {
        let mut open = self.open.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if io::stderr().is_terminal() {
            // Where it is closed, nobody watches.
            let _ = write!(io::stderr(), "\r\x1b[K{what}: {done} of {of}");
            let _ = io::stderr().flush();
            *open = true;
        } else if done == of {
            remark(&format!("{what}: {of} done"));
        }
    }

    fn end(&self) {
        let mut open = self.open.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if std::mem::take(&mut *open) {
            let _ = write!(io::stderr(), "\r\x1b[K");
        }
    }
}
