//! The prompts of a sweep, each the same whatever the cache does.

use serde::{Deserialize, Serialize};

use crate::eval::lab::Exam;
use crate::eval::{Lab, Result, Span};
use crate::model::demo::{DocumentKind, prompt};

/// Tokens of a pass key: a space and five digits.
const KEY_TOKENS: usize = 6;
/// Tokens told after the compression, of a document with questions.
const QUESTIONS: usize = 96;
/// The same of a text whose every token counts.
const TEXT: usize = 128;

/// What is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SweepTask {
    /// A key hidden in stories, by length and depth.
    Passkey,
    /// Keys, labels, facts and tables asked for at the end of documents.
    Recall,
    /// Stories: every token after the compression counts.
    Perplexity,
}

impl SweepTask {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Passkey, Self::Recall, Self::Perplexity];

    /// The name on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Passkey => "passkey",
            Self::Recall => "recall",
            Self::Perplexity => "perplexity",
        }
    }
}

/// Which prompts are made.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Prompts {
    /// Seed of the first; the others count up.
    pub seed: u64,
    /// Lengths of passkey prompts, tokens; in turn.
    pub lengths: Vec<usize>,
    /// Depths of the key, shares of the context; in turn.
    pub depths: Vec<f32>,
    /// Tokens of the other prompts.
    pub tokens: usize,
    /// What is compressed before the answer is asked for.
    pub span: Span,
}

impl Prompts {
    /// Fewest tokens that are compressed in any prompt of the tasks.
    pub(super) fn least_tokens(&self, tasks: &[SweepTask]) -> usize {
        let compressed = |task: &SweepTask| match task {
            SweepTask::Passkey => self.lengths.iter().copied().min().unwrap_or(0).saturating_sub(48),
            SweepTask::Recall => self.tokens.saturating_sub(QUESTIONS + 48),
            SweepTask::Perplexity => self.tokens.saturating_sub(TEXT),
        };
        tasks.iter().map(compressed).min().unwrap_or(0)
    }

    /// Length and depth of a passkey prompt.
    pub fn place(&self, exam: usize) -> (usize, f32) {
        let depth = self.depths[exam % self.depths.len()];
        (self.lengths[exam / self.depths.len() % self.lengths.len()], depth)
    }

    pub(super) fn check(&self, lab: &Lab<'_>) -> Result<()> {
        self.lengths.iter().chain([&self.tokens]).try_for_each(|&tokens| lab.check_length(tokens))
    }

    /// The prompt of that number.
    pub(super) fn exam(&self, lab: &Lab<'_>, task: SweepTask, exam: usize) -> Exam {
        let seed = self.seed + exam as u64;
        match task {
            SweepTask::Passkey => {
                let (length, depth) = self.place(exam);
                Exam::of(&prompt::passkey(seed, length - KEY_TOKENS, depth), self.span)
            }
            SweepTask::Recall => {
                const KINDS: [DocumentKind; 4] =
                    [DocumentKind::Pass, DocumentKind::Facts, DocumentKind::Repeated, DocumentKind::Table];
                let document = prompt::recall(seed, KINDS[exam % KINDS.len()], self.tokens);
                // What is compressed ends with a sentence or an entry.
                let ends = |id: u32| lab.model.tokenizer.piece(id).lossy().ends_with(['.', ',']);
                let latest = self.tokens - QUESTIONS;
                let cut = (1..=latest).rev().find(|&i| ends(document.ids[i - 1])).unwrap_or(latest);
                Exam {
                    context: lab.model.tokenizer.text(&document.ids[1..cut]),
                    rest: document.ids[cut..].to_vec(),
                    answers: document.answers[cut..].to_vec(),
                }
            }
            SweepTask::Perplexity => {
                let document = prompt::recall(seed, DocumentKind::Story, self.tokens);
                let cut = self.tokens - TEXT;
                Exam {
                    context: lab.model.tokenizer.text(&document.ids[1..cut]),
                    rest: document.ids[cut..].to_vec(),
                    answers: vec![true; TEXT],
                }
            }
        }
    }
}
