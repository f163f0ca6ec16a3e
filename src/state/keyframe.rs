//! A whole state as bytes, so that a replay can start anywhere.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::crush::Picture;
use super::{FoldError, MAX_SEQS, MAX_TUNING, PhaseHistograms, State};
use crate::cache::Compacted;
use crate::event::{PHASES, RunInfo};

/// Version of the encoding, the first byte of a keyframe.
const VERSION: u8 = 1;
/// Bound of every count, so that sums of them stay far from overflowing.
pub(super) const MAX_COUNT: u64 = 1 << 53;
/// As many as there are [`crate::event::Tier`]s.
const MAX_TIERS: usize = 4;

/// Why a keyframe could not be read.
#[derive(Debug, Error)]
pub enum KeyframeError {
    /// Written by another version of kvista.
    #[error(
        "keyframe of version {0}, this build reads version {VERSION}: replay from the start, or use the build that recorded it"
    )]
    Version(u8),
    /// Damaged.
    #[error("damaged keyframe: {0}")]
    Damaged(String),
    /// Its shape is not the run's.
    #[error(transparent)]
    Shape(#[from] FoldError),
}

/// What stands behind the codes, as JSON: its parts have fields that are left out where they are empty.
#[derive(Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
struct Tail {
    /// Layers and rows.
    compacted: (u64, u64),
    crush: Vec<Picture>,
    prompt_copy_ns: u64,
}

impl Tail {
    fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

impl State {
    /// This state as bytes. [`RunInfo`] is not in it.
    pub fn keyframe(&self) -> Vec<u8> {
        let mut bytes = postcard::to_extend(self, vec![VERSION]).expect("every field is serialisable");
        let tail = Tail {
            compacted: (self.compacted.layers, self.compacted.rows),
            crush: self.crush.to_wire(),
            prompt_copy_ns: self.traffic.prompt_copy_ns,
        };
        // Behind the rest and only as far as needed, so that recordings without them keep their version.
        let behind = [
            !self.coding.layers.is_empty(),
            !self.reads.total.is_empty(),
            !self.merging.is_empty(),
            !self.twin.seqs.is_empty(),
            !tail.is_empty(),
        ];
        let last = behind.iter().rposition(|&has| has);
        if last >= Some(0) {
            bytes = postcard::to_extend(&self.coding, bytes).expect("every field is serialisable");
        }
        if last >= Some(1) {
            bytes = postcard::to_extend(&self.reads, bytes).expect("every field is serialisable");
        }
        if last >= Some(2) {
            bytes = postcard::to_extend(&self.merging, bytes).expect("every field is serialisable");
        }
        if last >= Some(3) {
            bytes = postcard::to_extend(&self.twin, bytes).expect("every field is serialisable");
        }
        if last >= Some(4) {
            serde_json::to_writer(&mut bytes, &tail).expect("a vector takes everything");
        }
        bytes
    }

    /// The state a keyframe holds; equal to the one it was made from.
    pub fn from_keyframe(run: Arc<RunInfo>, bytes: &[u8]) -> Result<Self, KeyframeError> {
        let (&version, body) = bytes.split_first().ok_or_else(|| KeyframeError::Damaged("empty".into()))?;
        if version != VERSION {
            return Err(KeyframeError::Version(version));
        }
        let blank = Self::new(run)?;
        let damaged = |e: postcard::Error| KeyframeError::Damaged(e.to_string());
        let (mut state, mut behind): (Self, _) = postcard::take_from_bytes(body).map_err(damaged)?;
        if !behind.is_empty() {
            (state.coding, behind) = postcard::take_from_bytes(behind).map_err(damaged)?;
        }
        if !behind.is_empty() {
            (state.reads, behind) = postcard::take_from_bytes(behind).map_err(damaged)?;
        }
        if !behind.is_empty() {
            (state.merging, behind) = postcard::take_from_bytes(behind).map_err(damaged)?;
        }
        if !behind.is_empty() {
            (state.twin, behind) = postcard::take_from_bytes(behind).map_err(damaged)?;
        }
        if !behind.is_empty() {
            let tail: Tail =
                serde_json::from_slice(behind).map_err(|e| KeyframeError::Damaged(e.to_string()))?;
            state.compacted = Compacted { layers: tail.compacted.0, rows: tail.compacted.1 };
            state.crush = tail.crush.into_iter().collect();
            state.traffic.prompt_copy_ns = tail.prompt_copy_ns;
        }
        state.run = blank.run;
        state.check()?;
        Ok(state)
    }

    /// A keyframe comes from a file. What later folds and views index, subtract or walk must be as a fold leaves it, or
    /// they would panic or never end.
    fn check(&self) -> Result<(), FoldError> {
        let wrong = |what: &str| FoldError::Contradiction {
            step: self.step.unwrap_or(0),
            what: format!("the keyframe's {what} are not those of this run"),
        };
        let layers = self.run.model.layers as usize;
        let shaped = |set: &PhaseHistograms| set.layers.len() == layers && set.phases.len() == PHASES;
        let counts = [
            self.compacted.layers,
            self.compacted.rows,
            self.step.unwrap_or(0),
            self.gap_steps,
            self.dropped_samples,
            self.latency.decoded.0,
            self.traffic.pull_steps,
        ];
        let tiers = self.tiers.iter().flat_map(|t| {
            [t.live_bytes, t.stranded_bytes, t.unfilled_bytes, t.copies_bytes, t.capacity_bytes]
        });
        if !counts.into_iter().chain(tiers).all(|n| n <= MAX_COUNT) || self.tiers.len() > MAX_TIERS {
            return Err(wrong("counts"));
        }
        if !shaped(&self.latency.prefill) || !shaped(&self.latency.decode) {
            return Err(wrong("histograms"));
        }
        if self.traffic.last.len() != layers || self.traffic.total.len() != layers {
            return Err(wrong("traffic columns"));
        }
        if !self.reads.is_sound(layers) {
            return Err(wrong("pages read"));
        }
        if !self.coding.is_sound(layers) {
            return Err(wrong("rows in codes"));
        }
        if !self.merging.is_sound(layers, self.step) {
            return Err(wrong("merged rows"));
        }
        if !self.crush.is_sound(self.step, self.seqs.len(), layers) {
            return Err(wrong("signatures of units"));
        }
        if self.tuning.len() > MAX_TUNING || !self.history.is_sound(self.step) {
            return Err(wrong("histories"));
        }
        let in_order = self.seqs.iter().enumerate().all(|(i, s)| s.seq as usize == i);
        if self.seqs.len() > MAX_SEQS || !in_order || !self.seqs.iter().all(|s| s.is_sound(&self.run)) {
            return Err(wrong("sequences"));
        }
        if !self.twin.is_sound(&self.seqs) {
            return Err(wrong("regrets"));
        }
        let tokens = |seq| self.seq(seq).map_or(0, |s| s.tokens.len());
        if !self.evictions.is_sound(tokens) {
            return Err(wrong("decisions"));
        }
        Ok(())
    }
}
