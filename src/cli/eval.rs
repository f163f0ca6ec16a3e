//! `kvista eval`: tasks with a right answer, counted.

use std::io::{self, IsTerminal, Write};
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use serde_json::json;

use super::args::{EvalArgs, EvalTask, Look};
use super::json::print_facts;
use super::loading::Loading;
use super::setup::{self, ModelSource};
use super::{Failure, output, remark};
use crate::eval::{self, EvalError, Lab, Line, Regime, Span, Table};

/// Most prompts per cell; more is a typing mistake.
const MAX_PROMPTS: usize = 100_000;

/// Lengths of passkey prompts.
const LENGTHS: [usize; 4] = [512, 1024, 2048, 4096];

/// Runs the task and prints what it found.
pub(super) fn eval(args: &EvalArgs, look: &Look) -> Result<(), Failure> {
    if args.sweep {
        return super::sweep::sweep(args, look);
    }
    let &[task] = &args.tasks[..] else {
        return Err(Failure::Input("several tasks at once are for --sweep: name one".into()));
    };
    let regime = regime(args)?;
    let n = args.prompts.unwrap_or(task.usual_prompts());
    let lengths = if args.lengths.is_empty() { &LENGTHS[..] } else { &args.lengths };
    let watch = Watch::default();
    let progress = |what: &str, done: usize, of: usize| watch.tell(what, done, of);
    let lab = lab(args, n, &progress)?;
    let tokens = args.tokens.unwrap_or(task.usual_tokens());
    let found = match task {
        EvalTask::Demo => {
            let found = eval::demo(&lab, n);
            watch.end();
            let (lines, tables) = found.map_err(failure)?;
            return judged(&lines, &tables, args.json);
        }
        EvalTask::Perplexity => {
            return Err(Failure::Input("perplexity compares ways to keep the cache: add --sweep".into()));
        }
        EvalTask::Passkey => eval::passkey(&lab, &regime, lengths, &depths(args)?, n),
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

/// The model under examination, for `n` prompts per cell.
pub(super) fn lab<'a>(args: &EvalArgs, n: usize, progress: eval::Progress<'a>) -> Result<Lab<'a>, Failure> {
    let threads = setup::threads(args.threads)?;
    if n == 0 || n > MAX_PROMPTS {
        return Err(Failure::Input(format!("--n {n}: use 1 to {MAX_PROMPTS} prompts")));
    }
    let source = ModelSource::of(args.model.as_deref());
    let mut loading = Loading::new(&Arc::new(AtomicBool::new(false)));
    let model = source.load(None, &mut |progress| loading.hear(progress));
    loading.end();
    let model = Arc::new(model.map_err(Failure::input)?);
    Lab::new(model, threads as usize, args.seed, progress).map_err(failure)
}

fn regime(args: &EvalArgs) -> Result<Regime, Failure> {
    let span = span(args)?;
    let of_policy = Regime::policy(&args.policy);
    let chunk = if args.policy == "full" { Regime::full().chunk } else { of_policy.chunk };
    let read = args.read.clone().unwrap_or_default();
    let merge = args.merge.clone().unwrap_or_default();
    Ok(Regime { read, merge, kv_dtype: args.kv_dtype.clone(), span, chunk, ..of_policy })
}

/// What is compressed before the answer is asked for.
pub(super) fn span(args: &EvalArgs) -> Result<Span, Failure> {
    match args.compress.as_str() {
        "context" => Ok(Span::Context),
        "prompt" => Ok(Span::Prompt),
        other => Err(Failure::Input(format!("--compress {other}: use context or prompt"))),
    }
}

pub(super) fn depths(args: &EvalArgs) -> Result<Vec<f32>, Failure> {
    match args.depths.iter().find(|depth| !(0.0..=1.0).contains(*depth)) {
        Some(depth) => Err(Failure::Input(format!("--depths {depth}: use shares of the context, 0 to 1"))),
        None => Ok(args.depths.clone()),
    }
}

pub(super) fn failure(error: EvalError) -> Failure {
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

pub(super) fn say(lines: impl IntoIterator<Item = String>) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    for line in lines {
        writeln!(out, "{line}").map_err(|error| output(&error))?;
    }
    Ok(())
}

/// Progress on standard error: one line that is written over where a person watches, else a line per part.
pub(super) struct Watch {
    /// Whether the line under the cursor is ours.
    open: Mutex<bool>,
    since: Instant,
}

impl Default for Watch {
    fn default() -> Self {
        Self { open: Mutex::default(), since: Instant::now() }
    }
}

impl Watch {
    pub(super) fn tell(&self, what: &str, done: usize, of: usize) {
        let mut open = self.open.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if io::stderr().is_terminal() {
            // Where it is closed, nobody watches.
            let _ = write!(io::stderr(), "\r\x1b[K{what}: {done} of {of}");
            let _ = write!(io::stderr(), "{}", self.left(done, of));
            let _ = io::stderr().flush();
            *open = true;
        } else if done == of {
            remark(&format!("{what}: {of} done"));
        }
    }

    /// How long the rest takes at the pace so far, once that says something.
    fn left(&self, done: usize, of: usize) -> String {
        let spent = self.since.elapsed().as_secs_f64();
        if spent < 10.0 || of < 20 || done == 0 {
            return String::new();
        }
        let minutes = spent / done as f64 * (of - done) as f64 / 60.0;
        if minutes < 1.0 {
            ", less than a minute left".into()
        } else {
            format!(", about {minutes:.0} min left")
        }
    }

    pub(super) fn end(&self) {
        let mut open = self.open.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if std::mem::take(&mut *open) {
            let _ = write!(io::stderr(), "\r\x1b[K");
        }
    }
}
