//! What a sweep has found so far, in a file that it can go on from: a line of JSON each, the first about the prompts.

use std::collections::HashSet;
use std::fs::File;
use std::io::{BufRead, BufReader, Seek, SeekFrom, Write};
use std::path::Path;
use std::sync::Mutex;

use serde::{Deserialize, Serialize};

use super::exams::{Prompts, SweepTask};
use crate::eval::{EvalError, Result};

/// Longest line read.
const MAX_LINE_BYTES: u64 = 1 << 16;
/// Most outcomes read.
const MAX_OUTCOMES: usize = 4_000_000;

/// How one prompt came out under one way to keep the cache.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    /// What was asked.
    pub task: SweepTask,
    /// Number of the prompt.
    pub exam: usize,
    /// The regime's name.
    pub cell: String,
    /// Answer tokens.
    pub tokens: u64,
    /// Those the model would have said itself.
    pub right: u64,
    /// Mean negative log-likelihood of an answer token, nats.
    pub loss: f64,
    /// Share of the compressed tokens that a (layer, KV head) holds after the decision, on the average (measured).
    pub kept: f64,
    /// Bytes of the rows held then, against all of them as f32 (measured).
    pub bytes: f64,
    /// Time of the decision at the end of the compressed span (measured, one thread).
    pub decision_ns: u64,
    /// Time of a decode step, mean (measured, one thread).
    pub step_ns: u64,
    /// What of it went into keeping the accumulators and deciding.
    pub policy_ns: u64,
}

/// What the outcomes are of. Outcomes of other prompts or another model are never mixed with these.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Header {
    pub(super) kvista: String,
    pub(super) model: crate::event::ModelCard,
    pub(super) prompts: Prompts,
}

/// Outcomes so far, kept in memory, and in a file where there is one.
pub(super) struct Ledger {
    outcomes: Mutex<Vec<Outcome>>,
    file: Option<Mutex<File>>,
}

impl Ledger {
    /// Goes on from a file, which is made if it is not there.
    pub(super) fn open(path: Option<&Path>, header: &Header) -> Result<Self> {
        let Some(path) = path else { return Ok(Self { outcomes: Mutex::default(), file: None }) };
        let failed = |error: &std::io::Error| EvalError::File { path: path.into(), why: error.to_string() };
        let mut file = File::options()
            .read(true)
            .append(true)
            .create(true)
            .open(path)
            .map_err(|error| failed(&error))?;
        let (found, whole_bytes) = read(&mut file, header).map_err(|why| match why {
            Unread::Io(error) => failed(&error),
            Unread::Other(why) => EvalError::File { path: path.into(), why: why.into() },
        })?;
        // A line cut off by the end of a run is written again.
        file.set_len(whole_bytes).map_err(|error| failed(&error))?;
        if whole_bytes == 0 {
            let line = serde_json::to_string(header).expect("a header is JSON") + "\n";
            file.write_all(line.as_bytes()).map_err(|error| failed(&error))?;
        }
        Ok(Self { outcomes: Mutex::new(found), file: Some(Mutex::new(file)) })
    }

    pub(super) fn done(&self) -> HashSet<(SweepTask, usize, String)> {
        let outcomes = self.outcomes.lock().expect("no holder panics");
        outcomes.iter().map(|outcome| (outcome.task, outcome.exam, outcome.cell.clone())).collect()
    }

    /// Takes in outcomes, all or none of which are in the file afterwards.
    pub(super) fn add(&self, found: Vec<Outcome>) -> std::io::Result<()> {
        if let Some(file) = &self.file {
            let lines: String = found
                .iter()
                .map(|outcome| serde_json::to_string(outcome).expect("an outcome is JSON") + "\n")
                .collect();
            file.lock().expect("no holder panics").write_all(lines.as_bytes())?;
        }
        self.outcomes.lock().expect("no holder panics").extend(found);
        Ok(())
    }

    pub(super) fn into_outcomes(self) -> Vec<Outcome> {
        self.outcomes.into_inner().expect("no holder panics")
    }
}

enum Unread {
    Io(std::io::Error),
    Other(&'static str),
}

impl From<std::io::Error> for Unread {
    fn from(error: std::io::Error) -> Self {
        Self::Io(error)
    }
}

/// The outcomes in a file, and the bytes of its whole lines.
fn read(file: &mut File, header: &Header) -> std::result::Result<(Vec<Outcome>, u64), Unread> {
    file.seek(SeekFrom::Start(0))?;
    let mut reader = BufReader::new(file);
    let (mut found, mut whole_bytes) = (Vec::new(), 0);
    let mut line = Vec::new();
    loop {
        line.clear();
        let bytes = std::io::Read::take(&mut reader, MAX_LINE_BYTES).read_until(b'\n', &mut line)?;
        if bytes == 0 || line.last() != Some(&b'\n') {
            if bytes as u64 == MAX_LINE_BYTES || (bytes > 0 && whole_bytes == 0) {
                return Err(Unread::Other("it is not a file of sweep results: give another one"));
            }
            return Ok((found, whole_bytes));
        }
        if whole_bytes == 0 {
            let there: Header = serde_json::from_slice(&line)
                .map_err(|_| Unread::Other("it is not a file of sweep results: give another one"))?;
            if there != *header {
                return Err(Unread::Other(
                    "its results are of other prompts, another model or another version: give another file",
                ));
            }
        } else {
            let outcome = serde_json::from_slice(&line).map_err(|_| {
                Unread::Other("a line of it is damaged: remove that line, or give another file")
            })?;
            if found.len() == MAX_OUTCOMES {
                return Err(Unread::Other("it has too many lines: give another file"));
            }
            found.push(outcome);
        }
        whole_bytes += bytes as u64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header() -> Header {
        Header {
            kvista: "kvista 0".into(),
            model: crate::event::ModelCard::default(),
            prompts: Prompts {
                seed: 1,
                lengths: vec![512],
                depths: vec![0.5],
                tokens: 512,
                span: crate::eval::Span::Context,
            },
        }
    }

    fn outcome(exam: usize) -> Outcome {
        Outcome {
            task: SweepTask::Recall,
            exam,
            cell: "h2o 25%".into(),
            tokens: 3,
            right: 2,
            loss: 0.125,
            kept: 0.25,
            bytes: 0.25,
            decision_ns: 9,
            step_ns: 7,
            policy_ns: 5,
        }
    }

    fn outcomes(path: &Path) -> Vec<Outcome> {
        Ledger::open(Some(path), &header()).unwrap().into_outcomes()
    }

    #[test]
    fn a_sweep_goes_on_where_it_ended() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("sweep.jsonl");
        let ledger = Ledger::open(Some(&path), &header()).unwrap();
        ledger.add(vec![outcome(0), outcome(1)]).unwrap();
        drop(ledger);
        assert_eq!(outcomes(&path), [outcome(0), outcome(1)]);
        let whole = std::fs::read(&path).unwrap();
        std::fs::write(&path, &whole[..whole.len() - 3]).unwrap();
        let ledger = Ledger::open(Some(&path), &header()).unwrap();
        assert!(!ledger.done().contains(&(SweepTask::Recall, 1, "h2o 25%".into())));
        ledger.add(vec![outcome(1)]).unwrap();
        drop(ledger);
        assert_eq!(std::fs::read(&path).unwrap(), whole);
    }

    #[test]
    fn what_is_not_its_own_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("sweep.jsonl");
        let refused = |text: &[u8]| {
            std::fs::write(&path, text).unwrap();
            let why = Ledger::open(Some(&path), &header()).err().expect("refused").to_string();
            assert_eq!(std::fs::read(&path).unwrap(), text);
            why
        };
        assert!(refused(b"a letter to a friend\n").contains("not a file of sweep results"));
        assert!(refused(b"no line").contains("not a file of sweep results"));
        assert!(refused(&vec![b'x'; 1 << 17]).contains("not a file of sweep results"));
        let mut other = header();
        other.prompts.seed = 2;
        let other = serde_json::to_string(&other).unwrap() + "\n";
        assert!(refused(other.as_bytes()).contains("other prompts"));
        let damaged = serde_json::to_string(&header()).unwrap() + "\n{\"task\":\n";
        assert!(refused(damaged.as_bytes()).contains("damaged"));
    }
}
