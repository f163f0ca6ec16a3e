//! What a sweep found, by way to keep the cache: shares, losses paired with the full cache, costs.

use std::collections::HashMap;

use serde::Serialize;

use super::{ByExam, Outcome, Sweep, SweepTask};
use crate::eval::{Measure, Row, Table};

/// Everything a sweep found.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Summary {
    /// What was asked.
    pub tasks: Vec<SweepTask>,
    /// One per way to keep the cache, in the order of the grid.
    pub tallies: Vec<Tally>,
    /// Ways to keep the cache that the prompts are too short for.
    pub refused: Vec<Refused>,
}

/// A way to keep the cache that was left out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Refused {
    /// The regime's name.
    pub cell: String,
    /// Why.
    pub why: String,
}

/// One way to keep the cache.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Tally {
    /// The regime's name.
    pub cell: String,
    /// The row of a picture: everything but the budget.
    pub family: String,
    /// The budget, where the policy has one.
    pub budget: Option<String>,
    /// Share of the compressed tokens held, measured.
    pub kept: Measure,
    /// Bytes held against all rows as f32, measured.
    pub bytes: Measure,
    /// One per task.
    pub columns: Vec<Column>,
    /// Time of the decision at the end of the prompt, microseconds, measured.
    pub decision_us: Measure,
    /// Time per decode step of keeping accumulators and deciding, microseconds, measured.
    pub policy_us: Measure,
    /// Its share of the decode step, derived.
    pub policy_share: Measure,
}

/// One task under one way to keep the cache.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Column {
    /// The task.
    pub task: SweepTask,
    /// Pass keys told exactly; else tokens that the model would have said itself.
    pub right: Measure,
    /// Mean negative log-likelihood of an answer token, nats.
    pub loss: Measure,
    /// What it exceeds that of the full cache by, prompt by prompt.
    pub loss_over_full: Measure,
    /// Of pass keys: the exact ones by length and depth.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub places: Vec<Place>,
}

/// Pass keys of one length and depth.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Place {
    /// Tokens of the prompt.
    pub tokens: usize,
    /// Where the key stands, share of the context.
    pub depth: f32,
    /// Keys told exactly.
    pub exact: Measure,
}

impl Summary {
    pub(super) fn of(sweep: &Sweep, outcomes: &[Outcome], refused: Vec<Refused>) -> Self {
        let mut by_cell: HashMap<&str, ByExam<'_>> = HashMap::new();
        for outcome in outcomes.iter().filter(|o| o.exam < sweep.n && sweep.tasks.contains(&o.task)) {
            by_cell.entry(&outcome.cell).or_default().insert((outcome.task, outcome.exam), outcome);
        }
        let nothing = ByExam::new();
        let full = sweep.cells.first().and_then(|c| by_cell.get(c.regime.name.as_str())).unwrap_or(&nothing);
        let tallies = sweep
            .cells
            .iter()
            .filter_map(|cell| {
                let own = by_cell.get(cell.regime.name.as_str())?;
                let mean = |of: &dyn Fn(&Outcome) -> f64| {
                    Measure::mean(&in_order(own, &sweep.tasks, sweep.n).map(of).collect::<Vec<_>>())
                };
                Some(Tally {
                    cell: cell.regime.name.clone(),
                    family: cell.family.clone(),
                    budget: cell.budget.clone(),
                    kept: mean(&|o| o.kept),
                    bytes: mean(&|o| o.bytes),
                    columns: sweep.tasks.iter().map(|&task| Column::of(sweep, task, own, full)).collect(),
                    decision_us: mean(&|o| o.decision_ns as f64 / 1e3),
                    policy_us: mean(&|o| o.policy_ns as f64 / 1e3),
                    policy_share: mean(&|o| o.policy_ns as f64 / o.step_ns.max(1) as f64),
                })
            })
            .collect();
        Self { tasks: sweep.tasks.clone(), tallies, refused }
    }

    /// The table for a person: a row per way to keep the cache.
    pub fn table(&self) -> Table {
        let mut columns: Vec<String> = vec!["kept".into(), "bytes".into()];
        for task in &self.tasks {
            match task {
                SweepTask::Passkey => columns.push("passkey exact".into()),
                SweepTask::Recall => columns.push("recall right".into()),
                SweepTask::Perplexity => columns.push("perplexity".into()),
            }
            columns.push(format!("{} nats over full", task.name()));
        }
        columns.extend(["us at the prompt's end", "us per step", "of the step"].map(Into::into));
        let rows = self.tallies.iter().map(|tally| {
            let mut cells = vec![tally.kept.plain(), tally.bytes.plain()];
            for column in &tally.columns {
                cells.push(if column.task == SweepTask::Perplexity {
                    column.loss.exp()
                } else {
                    column.right
                });
                cells.push(column.loss_over_full);
            }
            cells.extend([tally.decision_us.plain(), tally.policy_us.plain(), tally.policy_share.plain()]);
            Row { name: tally.cell.clone(), cells }
        });
        Table {
            task: "sweep".into(),
            what: "each way to keep the cache on the same prompts; kept and bytes after the decision at the end of the \
                   compressed span; 95% intervals; times of one thread, measured"
                .into(),
            columns,
            of: "cache".into(),
            rows: rows.collect(),
        }
    }
}

/// Outcomes by task and prompt.
fn in_order<'a>(own: &'a ByExam<'_>, tasks: &'a [SweepTask], n: usize) -> impl Iterator<Item = &'a Outcome> {
    let keys = tasks.iter().flat_map(move |&task| (0..n).map(move |exam| (task, exam)));
    keys.filter_map(|key| own.get(&key).copied())
}

impl Column {
    fn of(sweep: &Sweep, task: SweepTask, own: &ByExam<'_>, full: &ByExam<'_>) -> Self {
        let tasks = [task];
        let found: Vec<&Outcome> =
            in_order(own, &tasks, sweep.n).filter(|outcome| outcome.tokens > 0).collect();
        let exact = |outcome: &&&Outcome| outcome.right == outcome.tokens;
        let right = if task == SweepTask::Passkey {
            Measure::share(found.iter().filter(exact).count() as u64, found.len() as u64)
        } else {
            let sum = |of: fn(&Outcome) -> u64| found.iter().map(|outcome| of(outcome)).sum();
            Measure::share(sum(|o| o.right), sum(|o| o.tokens))
        };
        let losses: Vec<f64> = found.iter().map(|outcome| outcome.loss).collect();
        let pairs = found.iter().filter_map(|o| Some((o.loss, full.get(&(task, o.exam))?.loss)));
        let (own_losses, full_losses): (Vec<f64>, Vec<f64>) = pairs.unzip();
        let mut places: Vec<Place> = Vec::new();
        if task == SweepTask::Passkey {
            let mut seen: Vec<(usize, f32)> = (0..sweep.n).map(|exam| sweep.prompts.place(exam)).collect();
            seen.sort_by(|a, b| a.0.cmp(&b.0).then(a.1.total_cmp(&b.1)));
            seen.dedup();
            places = seen
                .into_iter()
                .map(|(tokens, depth)| {
                    let here = found.iter().filter(|o| sweep.prompts.place(o.exam) == (tokens, depth));
                    Place { tokens, depth, exact: Measure::share_of(here.map(|o| o.right == o.tokens)) }
                })
                .collect();
        }
        Self {
            task,
            right,
            loss: Measure::mean(&losses),
            loss_over_full: Measure::difference(&own_losses, &full_losses),
            places,
        }
    }
}

#[cfg(test)]
impl Tally {
    /// What must be the same however often it is measured.
    pub(super) fn without_times(&self) -> Self {
        let none = Measure::default();
        Self { decision_us: none, policy_us: none, policy_share: none, ..self.clone() }
    }
}
