//! One line per step, for time axes and for "when did that happen".

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use super::SeqState;
use super::keyframe::MAX_COUNT;
use crate::event::{Stage, Step, StepId, Tier, TierUse};

/// Steps remembered; older ones are forgotten and counted.
const MAX_STEPS: usize = 8_192;

/// A step in numbers.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct StepSummary {
    /// Which step.
    pub step: StepId,
    /// Start, ns since the run began (measured).
    pub start_ns: u64,
    /// Duration (measured).
    pub wall_ns: u64,
    /// Prefill or decode (a mixed batch counts as prefill).
    pub stage: Stage,
    /// Tokens fed, all sequences.
    pub tokens: u32,
    /// Victims, all sequences, layers and heads (measured).
    pub victims: u32,
    /// Resident tokens summed over all (sequence, layer, KV head) (measured).
    pub resident: u64,
    /// Allocated bytes on the device tier (measured).
    pub device_bytes: u64,
    /// Allocated bytes on the host tier (measured).
    pub host_bytes: u64,
    /// Bytes host to device in the step (measured).
    pub h2d_bytes: u64,
    /// Bytes device to host in the step (measured).
    pub d2h_bytes: u64,
    /// Mean attention mass the read set did not read; 0 without one (derived).
    pub dropped: f32,
    /// Time spent observing (measured).
    pub probe_ns: u64,
    /// A parameter changed at this step.
    pub tuned: bool,
}

impl StepSummary {
    pub(super) fn of(step: &Step, seqs: &[SeqState]) -> Self {
        let bytes = |tier| step.tiers.iter().filter(|t| t.tier == tier).map(TierUse::allocated_bytes).sum();
        let dropped: Vec<f32> = step.seqs.iter().flat_map(|s| s.dropped.iter().copied()).collect();
        Self {
            step: step.step,
            start_ns: step.start_ns,
            wall_ns: step.wall_ns,
            stage: step.stage(),
            tokens: step.seqs.iter().map(|s| s.fed.len() as u32).sum(),
            victims: step.victims() as u32,
            resident: seqs.iter().flat_map(|s| &s.resident).map(|&n| u64::from(n)).sum(),
            device_bytes: bytes(Tier::Device),
            host_bytes: bytes(Tier::Host),
            h2d_bytes: step.traffic.iter().map(|t| t.h2d_bytes).sum(),
            d2h_bytes: step.traffic.iter().map(|t| t.d2h_bytes).sum(),
            dropped: if dropped.is_empty() {
                0.0
            } else {
                dropped.iter().sum::<f32>() / dropped.len() as f32
            },
            probe_ns: step.probe.ns,
            tuned: !step.tuning.is_empty(),
        }
    }
}

/// The newest steps, oldest first.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct History {
    steps: VecDeque<StepSummary>,
    forgotten: u64,
}

impl History {
    /// Adds the newest step. Public so that an overview of a whole recording can be collected without folding.
    pub fn push(&mut self, summary: StepSummary) {
        if self.steps.len() == MAX_STEPS {
            self.steps.pop_front();
            self.forgotten += 1;
        }
        self.steps.push_back(summary);
    }

    /// Whether it is what folding up to `newest` leaves behind: no more than is remembered, steps in a row.
    pub(super) fn is_sound(&self, newest: Option<StepId>) -> bool {
        let in_a_row = self.steps.iter().zip(self.steps.iter().skip(1)).all(|(a, b)| a.step + 1 == b.step);
        self.steps.len() <= MAX_STEPS
            && self.forgotten <= MAX_COUNT
            && self.steps.iter().all(|s| s.step <= MAX_COUNT)
            && in_a_row
            && self.last().map(|s| s.step) == newest
    }

    /// The steps remembered, oldest first.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = &StepSummary> + ExactSizeIterator {
        self.steps.iter()
    }

    /// One step.
    pub fn get(&self, step: StepId) -> Option<&StepSummary> {
        let first = self.steps.front()?.step;
        self.steps.get(usize::try_from(step.checked_sub(first)?).ok()?)
    }

    /// The newest step.
    pub fn last(&self) -> Option<&StepSummary> {
        self.steps.back()
    }

    /// Number remembered.
    pub fn len(&self) -> usize {
        self.steps.len()
    }

    /// Whether no step was folded yet.
    pub fn is_empty(&self) -> bool {
        self.steps.is_empty()
    }

    /// Steps forgotten because the history is bounded.
    pub fn forgotten(&self) -> u64 {
        self.forgotten
    }
}
