//! What a full-cache twin tells of a run: how far off the run's words are, and what its victims would have been worth.
//!
//! The twin is fed the tokens of the run (teacher forcing), with f32 pages, losing nothing and reading everything. What
//! it tells is the cost of everything the run does otherwise: eviction, a read set, pages in codes.

use serde::{Deserialize, Serialize};

use super::ids::{Head, Layer, Position};
use super::step::spelled;

/// The twin's part of one sequence's step.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Shadow {
    /// Time that the twin took (measured). It begins when the step is over: it is in none of the step's own times.
    pub ns: u64,
    /// Bytes of the twin's pages and of its accounts of what was lost, for this sequence (counted). They are in no tier.
    pub bytes: u64,
    /// How the twin sees the draw; `None` where none was made, or where it judges only some of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub judged: Option<Judged>,
    /// Regret that came up since the step before, all victims together (measured).
    pub regret: f64,
    /// Regret told by victim; on the recording's `/evict` channel. What was not told yet is told later: the largest
    /// accounts come first, at most [`MAX_TOLD`] in a step, and in the sequence's last step up to [`MAX_TOLD_LAST`].
    #[serde(skip)]
    pub victims: Vec<LaneRegret>,
}

/// Most victims whose regret is told in a step.
pub const MAX_TOLD: usize = 1_024;
/// Most in a sequence's last step.
pub const MAX_TOLD_LAST: usize = 1 << 20;

/// One draw, seen by the run and by the twin after the same tokens. Plain softmaxes of all logits (temperature 1).
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Judged {
    /// Kullback-Leibler divergence of the run's distribution from the twin's, KL(twin ‖ run), over the whole
    /// vocabulary, in nats (derived).
    #[serde(with = "spelled")]
    pub kl: f32,
    /// Whether both find the same token likeliest (derived).
    pub agrees: bool,
    /// Natural logarithm of the probability that the twin gives the token drawn; the run's own is
    /// [`Sampled::logprob`](super::Sampled::logprob).
    #[serde(with = "spelled")]
    pub logprob: f32,
}

/// Regret of victims of one (layer, KV head): since it was lost, the twin's attention probability on the victim, mean over
/// the query heads of the group, summed over the queries fed (those of the prompt and the question too).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LaneRegret {
    /// Decoder layer.
    pub layer: Layer,
    /// KV head.
    pub head: Head,
    /// What is added to the regret of a position, positions ascending (measured).
    pub told: Vec<(Position, f32)>,
}

impl LaneRegret {
    /// Whether positions ascend and every sum is one of probabilities.
    pub fn is_sound(&self) -> bool {
        self.told.is_sorted_by(|a, b| a.0 < b.0) && self.told.iter().all(|t| t.1.is_finite() && t.1 >= 0.0)
    }
}
