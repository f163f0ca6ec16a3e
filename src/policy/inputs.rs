//! What a decision is made of: the moment, and what each KV head brings.

use super::accumulate::{Accumulators, QueryMoments};
use crate::event::{Layer, Position, StepId};

/// The point of a run at which a policy may act.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum When {
    /// A chunk was fed that does not end the compressed span: one inside it, or one after it (the question).
    Chunk,
    /// The last chunk of the compressed span (the prompt, or its context part) was fed.
    EndOfPrompt,
    /// A generated token was fed.
    Token,
}

/// When and where a decision is asked for: once per layer of one sequence.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Moment {
    /// What was just fed.
    pub when: When,
    /// Decoder layer that decides.
    pub layer: Layer,
    /// Decoder layers of the model.
    pub layers: Layer,
    /// Tokens of the prompt: what a percentage is taken of.
    pub prompt_len: u32,
    /// Tokens of the compressed span: the prompt, or its context part.
    pub span_len: u32,
    /// Position the next token will get: tokens fed so far.
    pub next_position: Position,
    /// Slots per block.
    pub block_size: u32,
    /// The engine step.
    pub step: StepId,
    /// How many times the mean budget this layer gets, where the rule has shared it over the layers.
    pub share: Option<f32>,
    /// Seed of the sequence: all that a rule may draw from.
    pub seed: u64,
}

/// What a token is, for rules that treat some alike.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum TokenClass {
    /// A word or a part of one.
    #[default]
    Plain,
    /// Nothing but punctuation.
    Punctuation,
    /// A control token of the vocabulary, such as the beginning of a text.
    Special,
}

/// What one KV head brings to a decision. Slices of a kind that the policy's [`Needs`](super::Needs) do not name may be
/// empty.
#[derive(Clone, Copy, Debug)]
pub struct HeadInputs<'a> {
    /// Resident positions, ascending and unique.
    pub positions: &'a [Position],
    /// Slot of each resident in the head's table, ascending; empty where slots and positions are the same.
    pub slots: &'a [u32],
    /// The head's accumulators; they hold what the policy's needs name.
    pub acc: &'a Accumulators,
    /// Keys of the residents as attention reads them, `[resident][head_dim]`, full precision.
    pub keys: &'a [f32],
    /// Values of the residents, `[resident][head_dim]`, full precision.
    pub values: &'a [f32],
    /// Class of every token fed so far, by position.
    pub classes: &'a [TokenClass],
    /// Queries of the span before RoPE: one per query head that reads this KV head.
    pub queries: &'a [QueryMoments],
    /// The model's RoPE frequencies, one per pair of elements: element `i` turns with element `i + frequencies.len()`.
    pub frequencies: &'a [f64],
    /// Factor on what turns, in queries and keys alike.
    pub amplitude: f64,
}

impl<'a> HeadInputs<'a> {
    /// A head that brings positions and accumulators alone.
    pub const fn new(positions: &'a [Position], acc: &'a Accumulators) -> Self {
        Self {
            positions,
            slots: &[],
            acc,
            keys: &[],
            values: &[],
            classes: &[],
            queries: &[],
            frequencies: &[],
            amplitude: 1.0,
        }
    }

    /// One number per resident, in order.
    pub(super) fn each(&self, of: impl Fn(Position) -> f32) -> Vec<f32> {
        self.positions.iter().map(|&p| of(p)).collect()
    }

    /// Elements per head, where keys or values were brought.
    pub(super) fn head_dim(&self) -> usize {
        self.keys.len().max(self.values.len()).checked_div(self.positions.len()).unwrap_or(0)
    }

    /// Keys in the order of the residents.
    pub(super) fn key_rows(&self) -> impl Iterator<Item = &'a [f32]> + use<'a> {
        self.keys.chunks_exact(self.head_dim().max(1))
    }

    /// Values in the order of the residents.
    pub(super) fn value_rows(&self) -> impl Iterator<Item = &'a [f32]> + use<'a> {
        self.values.chunks_exact(self.head_dim().max(1))
    }

    /// The class of a token.
    pub(super) fn class(&self, position: Position) -> TokenClass {
        self.classes.get(position as usize).copied().unwrap_or_default()
    }

    /// The page in which the `i`-th resident lies.
    pub(super) fn page(&self, i: usize, block_size: u32) -> u32 {
        self.slots.get(i).copied().unwrap_or(self.positions[i]) / block_size.max(1)
    }
}
