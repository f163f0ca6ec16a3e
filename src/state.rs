//! Floor 3: reducers. [`State`] folds [`Step`]s into what views draw, the same way live and in replay.
//!
//! A state is a value: it can be cloned to freeze a picture, compared, written as a keyframe and read back. Folding the
//! same steps gives the same state, whether they come from the engine, from a file, or from a keyframe plus the steps
//! behind it. Everything in it is bounded: logs and histories forget their oldest entries and say how many.
//!
//! Residency is not recorded, it is re-derived: the block tables of floor 2 are pure, and [`State::fold`] applies the
//! recorded operations and victims to its own copies. The `resident` column of every step is checked against them.

mod bounded;
mod break_even;
mod card;
mod coding;
mod crush;
mod eviction_log;
mod hash;
mod history;
mod keyframe;
mod latency;
mod merging;
mod reads;
mod sequence;
mod summary;
#[cfg(test)]
mod tests;
mod traffic;
mod twin;

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use thiserror::Error;

pub use break_even::{BreakEven, RowRates};
pub use card::{HeadFate, Reader, TokenCard};
pub use coding::{ChannelError, CodedLayer, Coding};
pub use crush::CrushPictures;
pub use eviction_log::{Decision, EvictionLog};
pub use hash::StateHash;
pub use history::{History, StepSummary};
pub use keyframe::KeyframeError;
pub use latency::{Latency, PhaseHistograms, Quote};
pub use merging::{MergeLog, MergeSummary, MergedLayer, MergedPart, MergedVictim};
pub use reads::Reads;
pub use sequence::{Pending, SeqState, Token, Turn};
pub use summary::{CodedPart, ShadowSummary, Summary};
pub use traffic::Traffic;
pub use twin::{LastDraw, SeqTwin, Tally, Twin};

use crate::cache::Compacted;
use crate::event::{RunInfo, SeqId, Step, StepId, TierUse, Tuning};

/// Most sequences, (layer, KV head) pairs and slots a state will hold; a recording that asks for more is refused.
const MAX_SEQS: usize = 4_096;
const MAX_LANES: u64 = 65_536;
/// Most layers; each has histograms of its own.
const MAX_LAYERS: u64 = 1_024;
const MAX_SLOTS: u64 = 1 << 27;
/// Parameter changes remembered.
const MAX_TUNING: usize = 4_096;

/// Why a step could not be folded. Live this is a fault of ours; in a replay the recording is damaged or foreign.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum FoldError {
    /// Steps must arrive in order, without holes.
    #[error("step {got} follows step {last}: steps are missing or out of order")]
    OutOfOrder {
        /// The step that arrived.
        got: StepId,
        /// The newest step folded before.
        last: StepId,
    },
    /// Something in the step contradicts what was folded before it.
    #[error("step {step}: {what}")]
    Contradiction {
        /// The step that arrived.
        step: StepId,
        /// What does not fit.
        what: String,
    },
    /// The run is larger than a state may be.
    #[error("{what}: more than kvista will hold in memory ({limit})")]
    TooLarge {
        /// What there is too much of.
        what: &'static str,
        /// The bound.
        limit: u64,
    },
}

/// Everything the views draw about one run, up to its newest step.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct State {
    /// What the run is. Not part of a keyframe; [`State::from_keyframe`] puts it back.
    #[serde(skip)]
    pub run: Arc<RunInfo>,
    /// Newest step folded.
    pub step: Option<StepId>,
    /// End of the newest step, ns since the run began.
    pub at_ns: u64,
    /// Every sequence, by id.
    #[serde(deserialize_with = "bounded::sequences")]
    pub seqs: Vec<SeqState>,
    /// Bytes by tier after the newest step.
    pub tiers: Vec<TierUse>,
    /// Histograms.
    pub latency: Latency,
    /// V traffic.
    pub traffic: Traffic,
    /// Rows that went into codes, and how far off they came out. Stands behind the other fields in a keyframe.
    #[serde(skip)]
    pub coding: Coding,
    /// What a read set by pages read. Stands behind the other fields in a keyframe.
    #[serde(skip)]
    pub reads: Reads,
    /// Rows that were merged. Stands behind the other fields in a keyframe.
    #[serde(skip)]
    pub merging: MergeLog,
    /// What KVCrush saw when it last decided. Behind the other fields in a keyframe, too.
    #[serde(skip)]
    pub crush: CrushPictures,
    /// What compaction has moved so far, all sequences together. Behind the other fields in a keyframe, too.
    #[serde(skip)]
    pub compacted: Compacted,
    /// What a full-cache twin told. The last part of a keyframe.
    #[serde(skip)]
    pub twin: Twin,
    /// One line per step, for time axes.
    pub history: History,
    /// Who was evicted, when, why.
    pub evictions: EvictionLog,
    /// Parameter changes, oldest first.
    pub tuning: Vec<(StepId, Tuning)>,
    /// Attention pictures left out so far because a consumer lagged.
    pub dropped_samples: u64,
    /// Steps that were lost to this consumer (a gap) before the newest resynchronisation.
    pub gap_steps: u64,
    /// Over decisions, residency, token ids and byte counts of all steps so far.
    pub hash: StateHash,
}

impl State {
    /// The state before the first step. Errors when the model card's shape is outside the bounds.
    pub fn new(run: Arc<RunInfo>) -> Result<Self, FoldError> {
        let (layers, kv_heads) = (u64::from(run.model.layers), u64::from(run.model.kv_heads));
        if layers > MAX_LAYERS {
            return Err(FoldError::TooLarge { what: "layers", limit: MAX_LAYERS });
        }
        if layers * kv_heads > MAX_LANES || kv_heads > u64::from(u16::MAX) {
            return Err(FoldError::TooLarge { what: "layers times KV heads", limit: MAX_LANES });
        }
        if kv_heads == 0
            || !run.model.heads.is_multiple_of(run.model.kv_heads)
            || run.settings.block_size == 0
        {
            return Err(FoldError::Contradiction {
                step: 0,
                what:
                    "the model card has no KV heads, heads that KV heads do not divide, or blocks of 0 slots"
                        .into(),
            });
        }
        Ok(Self {
            latency: Latency::new(layers as usize),
            traffic: Traffic::new(layers as usize),
            coding: Coding::default(),
            reads: Reads::default(),
            merging: MergeLog::default(),
            crush: CrushPictures::default(),
            compacted: Compacted::default(),
            twin: Twin::default(),
            run,
            step: None,
            at_ns: 0,
            seqs: Vec::new(),
            tiers: Vec::new(),
            history: History::default(),
            evictions: EvictionLog::default(),
            tuning: Vec::new(),
            dropped_samples: 0,
            gap_steps: 0,
            hash: StateHash::default(),
        })
    }

    /// Folds one step. On an error the state must not be used further: it may hold part of the step.
    pub fn fold(&mut self, step: &Step) -> Result<(), FoldError> {
        match self.step {
            Some(last) if step.step != last + 1 => {
                return Err(FoldError::OutOfOrder { got: step.step, last });
            }
            None if step.step != 0 => return Err(FoldError::OutOfOrder { got: step.step, last: 0 }),
            _ => {}
        }
        for part in &step.seqs {
            let index = part.seq as usize;
            if index > self.seqs.len() || index >= MAX_SEQS {
                return Err(FoldError::Contradiction {
                    step: step.step,
                    what: format!("sequence {} appears before its predecessors", part.seq),
                });
            }
            if index == self.seqs.len() {
                let seq = SeqState::new(part.seq, &self.run)
                    .map_err(|e| FoldError::Contradiction { step: step.step, what: e.to_string() })?;
                self.seqs.push(seq);
            }
            let compacted = self.seqs[index].fold(step.step, step.wall_ns, part)?;
            self.compacted = self.compacted.and(compacted);
            self.crush.fold(step.step, part, self.run.model.layers)?;
            for eviction in &part.evictions {
                self.evictions.push(step.step, part.seq, part.last_position(), eviction);
            }
        }
        let slots: u64 = self.seqs.iter().map(SeqState::slots).sum();
        if slots > MAX_SLOTS {
            return Err(FoldError::TooLarge { what: "slots of all block tables", limit: MAX_SLOTS });
        }
        self.tiers.clone_from(&step.tiers);
        self.latency.fold(step, &self.seqs);
        self.traffic.fold(step);
        self.coding.fold(step, &self.run.model)?;
        self.reads.fold(step, self.run.model.layers as usize)?;
        self.merging.fold(step, &self.run.model)?;
        self.twin.fold(step, &self.seqs)?;
        self.tuning.extend(step.tuning.iter().map(|t| (step.step, t.clone())));
        if self.tuning.len() > MAX_TUNING {
            self.tuning.drain(..self.tuning.len() - MAX_TUNING);
        }
        self.dropped_samples = step.probe.dropped;
        self.history.push(StepSummary::of(step, &self.seqs));
        self.hash = self.hash.chain(step, &self.seqs);
        self.step = Some(step.step);
        self.at_ns = step.end_ns();
        Ok(())
    }

    /// One sequence.
    pub fn seq(&self, seq: SeqId) -> Option<&SeqState> {
        self.seqs.get(seq as usize)
    }

    /// (layer, KV head) pairs of the model.
    pub fn lanes(&self) -> usize {
        (self.run.model.layers * self.run.model.kv_heads) as usize
    }

    /// Attention mass not read by the read set, mean over all (layer, KV head) of the newest step; `None` when no read
    /// set acted. Derived.
    pub fn mass_dropped(&self) -> Option<f32> {
        let all = self.seqs.iter().flat_map(|s| s.dropped.iter().copied());
        let (sum, n) = all.fold((0.0, 0u32), |(sum, n), x| (sum + x, n + 1));
        (n > 0).then(|| sum / n as f32)
    }

    /// Current value of a parameter that was tuned, if it was.
    pub fn tuned(&self, name: &str) -> Option<&str> {
        self.tuning.iter().rev().find(|(_, t)| t.name == name).map(|(_, t)| t.to.as_str())
    }
}
