//! Sweeps: many ways to keep the cache, judged on the same prompts. Every prompt is fed once for all ways that can share
//! it ([`Trunk`]); each goes on from there on its own.

mod exams;
mod grid;
mod ledger;
mod summary;

use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::sync::Arc;

pub use self::exams::{Prompts, SweepTask};
pub use self::grid::{BUDGETS, Cell, Grid};
pub use self::ledger::Outcome;
use self::ledger::{Header, Ledger};
pub use self::summary::{Column, Refused, Summary, Tally};
use super::lab::Marks;
use super::{EvalError, Lab, Result};
use crate::engine::{Engine, Observe, Prompt, Trunk};
use crate::event::{Phase, Settings};

/// What a sweep is to find out.
#[derive(Clone, Debug)]
pub struct Sweep {
    /// What is asked.
    pub tasks: Vec<SweepTask>,
    /// Prompts of each task.
    pub n: usize,
    /// Which prompts.
    pub prompts: Prompts,
    /// The ways to keep the cache, the one that others are held against first.
    pub cells: Vec<Cell>,
}

/// A prompt for cells that share its trunk.
struct Unit {
    task: SweepTask,
    exam: usize,
    cells: Vec<usize>,
}

impl Sweep {
    /// Runs what the file at `path` does not have yet, and adds it there. The summary is of everything that was asked
    /// for now, whatever else the file has.
    ///
    /// # Errors
    /// Prompts that the model or the tasks cannot have, a file that is not of this sweep or cannot be written, and what
    /// the engine refuses. What was found before is in the file.
    pub fn run(&self, lab: &Lab<'_>, path: Option<&Path>) -> Result<Summary> {
        self.prompts.check(lab)?;
        let card = lab.model.decoder.card();
        let header = Header {
            kvista: concat!("kvista ", env!("CARGO_PKG_VERSION")).into(),
            model: card.clone(),
            prompts: self.prompts.clone(),
        };
        let (settings, refused) = self.settings(lab);
        let ledger = Ledger::open(path, &header)?;
        let units = self.units(lab, &settings, &ledger.done())?;
        lab.each("sweep", units.len(), |i| {
            let outcomes = self.unit(lab, &settings, &units[i])?;
            ledger.add(outcomes).map_err(|error| EvalError::File {
                path: path.unwrap_or(Path::new("")).into(),
                why: error.to_string(),
            })
        })?;
        Ok(Summary::of(self, &ledger.into_outcomes(), refused))
    }

    /// The settings of each cell; those that a prompt of the sweep is too short for are left out.
    fn settings(&self, lab: &Lab<'_>) -> (Vec<Option<Settings>>, Vec<Refused>) {
        let tokens = self.prompts.least_tokens(&self.tasks);
        let mut refused = Vec::new();
        let settings = self
            .cells
            .iter()
            .map(|cell| {
                let fits = grid::fits(&cell.regime, tokens).and_then(|settings| {
                    let prompt = Prompt { text: "a".into(), ..Prompt::default() };
                    let full = Settings { policy: "full".into(), merge: String::new(), ..settings.clone() };
                    // What the model refuses whatever the prompt, such as pages that its heads do not fit.
                    crate::engine::check(&lab.model, &full, &prompt).map_err(|error| error.to_string())?;
                    Ok(settings)
                });
                fits.map_err(|why| refused.push(Refused { cell: cell.regime.name.clone(), why })).ok()
            })
            .collect();
        (settings, refused)
    }

    /// What is left to do: all cells of a prompt one after the other, so that an interrupted sweep knows something of
    /// each.
    fn units(
        &self,
        lab: &Lab<'_>,
        settings: &[Option<Settings>],
        done: &HashSet<(SweepTask, usize, String)>,
    ) -> Result<Vec<Unit>> {
        let mut units = Vec::new();
        let usable: Vec<usize> = (0..self.cells.len()).filter(|&c| settings[c].is_some()).collect();
        for exam in 0..self.n {
            for &task in &self.tasks {
                let left: Vec<usize> = usable
                    .iter()
                    .copied()
                    .filter(|&c| !done.contains(&(task, exam, self.cells[c].regime.name.clone())))
                    .collect();
                let wanted: Vec<Settings> = left.iter().filter_map(|&c| settings[c].clone()).collect();
                let groups = Trunk::groups(&lab.model, &wanted)?;
                units.extend(groups.into_iter().map(|group| Unit {
                    task,
                    exam,
                    cells: group.into_iter().map(|i| left[i]).collect(),
                }));
            }
        }
        Ok(units)
    }

    fn unit(&self, lab: &Lab<'_>, settings: &[Option<Settings>], unit: &Unit) -> Result<Vec<Outcome>> {
        let exam = self.prompts.exam(lab, unit.task, unit.exam);
        let settings: Vec<Settings> = unit
            .cells
            .iter()
            .filter_map(|&c| settings[c].clone())
            .map(|settings| Settings { max_tokens: exam.rest.len().max(1) as u32, ..settings })
            .collect();
        let all: Vec<&Settings> = settings.iter().collect();
        let prompt = Prompt { text: exam.context.clone(), ..Prompt::default() };
        let trunk = Trunk::new(Arc::clone(&lab.model), &all, &prompt, &exam.rest)?;
        unit.cells
            .iter()
            .zip(&settings)
            .map(|(&c, settings)| {
                let (engine, decision_ns) = trunk.branch(settings)?;
                let ending = Ending::of(engine)?;
                let answers = ending.told.iter().zip(&exam.answers).filter(|(_, answer)| **answer);
                let marks = Marks::of(answers.map(|(told, _)| told));
                Ok(Outcome {
                    task: unit.task,
                    exam: unit.exam,
                    cell: self.cells[c].regime.name.clone(),
                    tokens: marks.tokens,
                    right: marks.right,
                    loss: marks.loss,
                    kept: ending.kept,
                    bytes: ending.bytes,
                    decision_ns,
                    step_ns: ending.step_ns,
                    policy_ns: ending.policy_ns,
                })
            })
            .collect()
    }
}

/// What a branch came to.
struct Ending {
    told: Vec<crate::engine::Told>,
    kept: f64,
    bytes: f64,
    step_ns: u64,
    policy_ns: u64,
}

impl Ending {
    fn of(mut engine: Engine) -> Result<Self> {
        engine.set_observe(Observe::Events);
        let card = &Arc::clone(engine.info()).model;
        let lanes = f64::from(card.layers * card.kv_heads);
        let row_bytes = f64::from(2 * card.head_dim * size_of::<f32>() as u32);
        let (mut step_ns, mut policy_ns, mut steps) = (0, 0, 0);
        let (mut kept, mut bytes) = (None, None);
        while let Some(step) = engine.step()? {
            let part = &step.seqs[0];
            // What the first step after the decision held, the token that it fed left out.
            let fed = f64::from(part.first) + part.fed.len() as f64;
            let resident = part.resident.iter().map(|&n| f64::from(n)).sum::<f64>() / lanes;
            let live = step.tiers.iter().map(|tier| tier.live_bytes).sum::<u64>() as f64;
            kept.get_or_insert((resident - 1.0) / (fed - 1.0));
            bytes.get_or_insert(live / (fed * lanes * row_bytes));
            step_ns += step.wall_ns;
            policy_ns += step.phase_ns(Phase::Policy);
            steps += 1;
        }
        let steps = steps.max(1);
        Ok(Self {
            told: engine.take_told(),
            kept: kept.unwrap_or(1.0),
            bytes: bytes.unwrap_or(1.0),
            step_ns: step_ns / steps,
            policy_ns: policy_ns / steps,
        })
    }
}

/// Outcomes of one cell by prompt.
type ByExam<'a> = HashMap<(SweepTask, usize), &'a Outcome>;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eval::Span;
    use crate::model::demo;

    fn sweep(n: usize) -> Sweep {
        let grid = Grid {
            policies: vec!["full".into(), "streaming:reposition=false".into(), "h2o".into(), "snapkv".into()],
            budgets: vec!["25%".into(), "4".into()],
            ..Grid::default()
        };
        Sweep {
            tasks: SweepTask::ALL.to_vec(),
            n,
            prompts: Prompts {
                seed: 7,
                lengths: vec![256],
                depths: vec![0.3],
                tokens: 448,
                span: Span::Context,
            },
            cells: grid.cells().unwrap(),
        }
    }

    #[test]
    fn a_sweep_counts_pairs_resumes_and_says_what_it_leaves_out() {
        let model = Arc::new(demo::load().unwrap());
        let told = std::sync::atomic::AtomicUsize::new(0);
        let progress = |_: &str, _: usize, of: usize| told.store(of, std::sync::atomic::Ordering::Relaxed);
        let lab = Lab::new(model, 2, 7, &progress).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("sweep.jsonl");
        let first = sweep(1).run(&lab, Some(&path)).unwrap();
        let units = told.load(std::sync::atomic::Ordering::Relaxed);
        let both = sweep(2).run(&lab, Some(&path)).unwrap();
        assert_eq!(
            told.load(std::sync::atomic::Ordering::Relaxed),
            units,
            "the second prompts alone were run"
        );
        let alone = sweep(2).run(&lab, None).unwrap();

        // Four slots do not hold SnapKV's window of 32, nor StreamingLLM's sinks and a token.
        let refused: Vec<&str> = both.refused.iter().map(|refused| refused.cell.as_str()).collect();
        assert_eq!(refused, ["streaming:reposition=false 4", "snapkv 4"]);
        assert_eq!(both.tallies.len(), 5);
        for (a, b) in both.tallies.iter().zip(&alone.tallies) {
            assert_eq!(a.without_times(), b.without_times());
        }
        let tally = |summary: &Summary, name: &str| {
            summary.tallies.iter().find(|tally| tally.cell == name).expect("it was run").clone()
        };
        let full = tally(&both, "full");
        assert_eq!((full.kept.value, full.bytes.value), (1.0, 1.0));
        assert!(full.columns.iter().all(|column| column.loss_over_full.value == 0.0));
        let streaming = tally(&both, "streaming:reposition=false 25%");
        assert!((streaming.kept.value - 0.25).abs() < 0.01, "{streaming:?}");
        let passkey = &streaming.columns[0];
        assert_eq!((passkey.task, passkey.right.n), (SweepTask::Passkey, 2));
        assert!(passkey.loss_over_full.value > 0.5, "the key is outside its window: {passkey:?}");
        assert_eq!(tally(&first, "h2o 4").columns[0].right.n, 1);
    }
}
