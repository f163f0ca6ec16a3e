//! A document while it is written.

use super::Document;
use crate::model::demo::story::Part;
use crate::model::demo::{BOS, encode};

/// What a piece of text is to one who reads from the left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mark {
    Plain,
    /// Given away by the text before.
    Answer,
    /// Given away by nothing.
    Random,
}

/// Text as tokens, up to a length.
pub(super) struct Draft {
    document: Document,
    tokens: usize,
}

impl Draft {
    pub(super) fn new(tokens: usize) -> Self {
        let mut document = Document {
            ids: Vec::with_capacity(tokens + 64),
            weights: Vec::with_capacity(tokens + 64),
            answers: Vec::with_capacity(tokens + 64),
        };
        document.ids.push(BOS);
        document.weights.push(0.0);
        document.answers.push(false);
        Self { document, tokens }
    }

    pub(super) fn len(&self) -> usize {
        self.document.ids.len()
    }

    /// Tokens still missing.
    pub(super) fn room(&self) -> usize {
        self.tokens.saturating_sub(self.len())
    }

    pub(super) fn is_full(&self) -> bool {
        self.room() == 0
    }

    /// Goes on with a text whose first byte begins a token: a space or a punctuation mark.
    pub(super) fn add(&mut self, text: &str, weight: f32, mark: Mark) {
        let Document { ids, weights, answers } = &mut self.document;
        let from = ids.len();
        ids.extend(encode(text));
        weights.resize(ids.len(), weight);
        answers.resize(ids.len(), mark == Mark::Answer);
        // The space before a number is a token of its own, which anyone can tell.
        if mark != Mark::Plain && ids.get(from) == Some(&u32::from(b' ')) {
            weights[from] = 1.0;
            answers[from] = false;
        }
    }

    /// A space and the word.
    pub(super) fn add_word(&mut self, word: &str, weight: f32, mark: Mark) {
        self.add(&format!(" {word}"), weight, mark);
    }

    /// A sentence of a story; its weights are scaled by `share`, but for words that nobody could tell.
    pub(super) fn tell(&mut self, sentence: &[Part], share: f32) {
        for Part { text, weight } in sentence {
            self.add(text, if *weight < 1.0 { *weight } else { weight * share }, Mark::Plain);
        }
    }

    /// Cut to its length.
    pub(super) fn finish(mut self) -> Document {
        let Document { ids, weights, answers } = &mut self.document;
        ids.truncate(self.tokens);
        weights.truncate(self.tokens);
        answers.truncate(self.tokens);
        self.document
    }
}
