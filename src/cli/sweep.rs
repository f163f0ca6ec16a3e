//! `kvista eval … --sweep`: many ways to keep the cache on the same prompts, as a table and a heat picture.

use std::fs;
use std::io::{self, IsTerminal};

use serde_json::json;

use super::Failure;
use super::args::{EvalArgs, EvalTask, Look};
use super::eval::{Watch, depths, failure, lab, say, span};
use super::json::print_facts;
use super::look::Appearance;
use crate::eval::Span;
use crate::eval::sweep::{Grid, Prompts, Sweep, SweepTask};
use crate::ui;

/// Prompts of each task.
const PROMPTS: usize = 100;
const LENGTHS: [usize; 2] = [768, 1280];
/// Tokens of the prompts whose length does not vary.
const TOKENS: usize = 1024;

/// Runs the sweep and prints what it found.
pub(super) fn sweep(args: &EvalArgs, look: &Look) -> Result<(), Failure> {
    let appearance = Appearance::resolve(look, false)?;
    let n = args.prompts.unwrap_or(PROMPTS);
    let sweep = asked(args, n)?;
    let watch = Watch::default();
    let progress = |what: &str, done: usize, of: usize| watch.tell(what, done, of);
    let lab = lab(args, n, &progress)?;
    let found = sweep.run(&lab, args.results.as_deref());
    watch.end();
    let summary = found.map_err(failure)?;
    if let Some(path) = &args.svg {
        let styles = appearance.picture(look)?;
        let picture = ui::sweep::picture(&summary, &styles);
        fs::write(path, ui::export::svg(&picture, styles.page(), "kvista eval --sweep"))
            .map_err(|error| Failure::Input(format!("{}: {error}", path.display())))?;
    }
    if args.json {
        return print_facts(&json!({ "sweep": summary }));
    }
    say(summary.table().lines())?;
    let left_out =
        summary.refused.iter().map(|refused| format!("  {} left out: {}", refused.cell, refused.why));
    say(left_out.chain([String::new()]))?;
    let styles = appearance.styles(&appearance.theme)?;
    let picture = ui::sweep::picture(&summary, &styles);
    let picture =
        if io::stdout().is_terminal() { ui::export::ansi(&picture) } else { ui::export::text(&picture) };
    say(picture.lines().map(str::to_owned))
}

fn asked(args: &EvalArgs, n: usize) -> Result<Sweep, Failure> {
    let or = |own: &[usize], usual: &[usize]| if own.is_empty() { usual.to_vec() } else { own.to_vec() };
    let mut tasks = Vec::new();
    for task in &args.tasks {
        tasks.push(match task {
            EvalTask::Passkey => SweepTask::Passkey,
            EvalTask::Recall => SweepTask::Recall,
            EvalTask::Perplexity => SweepTask::Perplexity,
            _ => return Err(Failure::Input("--sweep takes passkey, recall and perplexity".into())),
        });
    }
    tasks.sort_unstable();
    tasks.dedup();
    let span = span(args)?;
    if span == Span::Prompt && tasks != [SweepTask::Passkey] {
        return Err(Failure::Input(
            "--compress prompt is for passkey alone: the questions of recall lie among their answers".into(),
        ));
    }
    let grid = Grid {
        policies: args.policies.clone(),
        budgets: args.budgets.clone(),
        kv_dtypes: args.kv_dtypes.clone(),
        reads: args.reads.clone(),
        merges: args.merges.clone(),
        span,
    };
    let prompts = Prompts {
        seed: args.seed,
        lengths: or(&args.lengths, &LENGTHS),
        depths: depths(args)?,
        tokens: args.tokens.unwrap_or(TOKENS),
        span,
    };
    Ok(Sweep { tasks, n, prompts, cells: grid.cells().map_err(failure)? })
}
