//! The prompts of a sweep, each the same whatever the cache does.

use serde::{Deserialize, Serialize};

use crate::eval::lab::Exam;
use crate::eval::recall::KEY_TOKENS;
use crate::eval::{Lab, Result, Span};
use crate::model::demo::{DocumentKind, prompt};

/// Most tokens of the questions at the end of a document that are told after the compression.
const MOST_QUESTIONS: usize = 224;
/// Tokens told after it where questions go on further back than that.
const QUESTIONS: usize = 96;
/// Most tokens from one answer to the next of the same run of questions.
const QUESTION_TOKENS: usize = 40;
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
            SweepTask::Recall => self.tokens.saturating_sub(MOST_QUESTIONS + 48),
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
                let ends =
                    |i: usize| lab.model.tokenizer.piece(document.ids[i]).lossy().ends_with(['.', ',', '?']);
                let cut = before_questions(&document.answers, ends);
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

/// Where the last run of questions of a document begins: after the sentence before the first one's. `ends` says whether a
/// token ends a sentence or an entry.
fn before_questions(answers: &[bool], ends: impl Fn(usize) -> bool) -> usize {
    let tokens = answers.len();
    let last = answers.iter().rposition(|&answer| answer).unwrap_or(tokens);
    let mut first = last;
    for i in (0..last).rev().filter(|&i| answers[i]) {
        if first - i > QUESTION_TOKENS {
            break;
        }
        first = i;
    }
    if first + MOST_QUESTIONS < tokens {
        first = last.min(tokens.saturating_sub(QUESTIONS));
    }
    // A question has two sentences: what is asked, and the one that the answer ends.
    let back = |from: usize| (1..from).rev().find(|&i| ends(i - 1)).unwrap_or(1);
    back(back(first))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn questions_at_the_end_are_not_compressed() {
        // A sentence of ten tokens each; answers are its fifth.
        let ends = |i: usize| i % 10 == 9;
        let answers = |at: &[usize], tokens: usize| {
            let mut answers = vec![false; tokens];
            for &i in at {
                answers[i] = true;
            }
            answers
        };
        assert_eq!(before_questions(&answers(&[105, 455, 475], 490), ends), 440);
        let many: Vec<usize> = (5..490).step_by(10).collect();
        assert_eq!(before_questions(&answers(&many, 490), ends), 380);
        assert_eq!(before_questions(&answers(&[200], 490), ends), 180);
        assert_eq!(before_questions(&answers(&[], 490), ends), 470);
        assert_eq!(before_questions(&answers(&[3], 5), ends), 1);
    }

    #[test]
    fn what_is_asked_at_the_end_was_told_before() {
        let model = std::sync::Arc::new(crate::model::demo::load().unwrap());
        let lab = Lab::new(model, 1, 0, &|_, _, _| ()).unwrap();
        let prompts =
            Prompts { seed: 3, lengths: vec![512], depths: vec![0.5], tokens: 1024, span: Span::Context };
        for i in 0..8 {
            let exam = prompts.exam(&lab, SweepTask::Recall, i);
            assert!(exam.answers.iter().any(|&answer| answer), "{i}");
            assert!((16..=MOST_QUESTIONS + 60).contains(&exam.rest.len()), "{i}: {}", exam.rest.len());
            let again = lab.model.tokenizer.encode(&exam.context).unwrap();
            assert_eq!(again.len() + exam.rest.len(), 1024, "{i}: what is cut is fed again as it was");
        }
        let text = prompts.exam(&lab, SweepTask::Perplexity, 0);
        assert_eq!((text.rest.len(), text.answers), (TEXT, vec![true; TEXT]));
    }
}
