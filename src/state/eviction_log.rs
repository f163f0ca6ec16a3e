//! Who was evicted, when and why: the newest decisions, bounded.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use super::keyframe::MAX_COUNT;
use crate::event::{Eviction, Position, SeqId, StepId};

/// Victims and decisions remembered; older decisions are forgotten and counted.
const MAX_VICTIMS: usize = 65_536;
const MAX_DECISIONS: usize = 16_384;

/// One decision of one (layer, KV head) or of a whole layer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Decision {
    /// When.
    pub step: StepId,
    /// Which sequence.
    pub seq: SeqId,
    /// Newest position at that time; a victim's age is this minus its own position.
    pub at: Position,
    /// What was decided.
    pub eviction: Eviction,
}

impl Decision {
    /// Age of a victim in tokens when it was lost. Derived.
    pub fn age(&self, victim: usize) -> Option<u32> {
        self.eviction.positions.get(victim).map(|&p| self.at.saturating_sub(p))
    }
}

/// The newest decisions, oldest first.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct EvictionLog {
    decisions: VecDeque<Decision>,
    victims: usize,
    total_victims: u64,
    total_decisions: u64,
}

impl EvictionLog {
    pub(super) fn push(&mut self, step: StepId, seq: SeqId, at: Position, eviction: &Eviction) {
        self.total_decisions += 1;
        self.total_victims += eviction.positions.len() as u64;
        self.victims += eviction.positions.len();
        self.decisions.push_back(Decision { step, seq, at, eviction: eviction.clone() });
        // The newest decision always stays, however large it is.
        while self.decisions.len() > 1 && (self.victims > MAX_VICTIMS || self.decisions.len() > MAX_DECISIONS)
        {
            if let Some(oldest) = self.decisions.pop_front() {
                self.victims -= oldest.eviction.positions.len();
            }
        }
    }

    /// Whether it is what folding leaves behind, for sequences of so many tokens.
    pub(super) fn is_sound(&self, tokens: impl Fn(SeqId) -> usize) -> bool {
        let victims: usize = self.decisions.iter().map(|d| d.eviction.positions.len()).sum();
        victims == self.victims
            && (self.victims as u64..=MAX_COUNT).contains(&self.total_victims)
            && (self.decisions.len() as u64..=MAX_COUNT).contains(&self.total_decisions)
            && self.decisions.iter().all(|d| {
                let Eviction { positions, scores, .. } = &d.eviction;
                positions.is_sorted_by(|a, b| a < b)
                    && positions.last().is_none_or(|&p| (p as usize) < tokens(d.seq))
                    && (scores.is_empty() || scores.len() == positions.len())
            })
    }

    /// Decisions remembered, oldest first.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = &Decision> + ExactSizeIterator {
        self.decisions.iter()
    }

    /// Every remembered decision that took `position` of `seq`, oldest first, with the victim's index in it.
    pub fn of(&self, seq: SeqId, position: Position) -> impl Iterator<Item = (&Decision, usize)> {
        self.decisions
            .iter()
            .filter(move |d| d.seq == seq)
            .filter_map(move |d| d.eviction.positions.binary_search(&position).ok().map(|i| (d, i)))
    }

    /// Victims since the run began (measured).
    pub fn total_victims(&self) -> u64 {
        self.total_victims
    }

    /// Decisions since the run began (measured).
    pub fn total_decisions(&self) -> u64 {
        self.total_decisions
    }

    /// Decisions forgotten because the log is bounded.
    pub fn forgotten(&self) -> u64 {
        self.total_decisions - self.decisions.len() as u64
    }
}
