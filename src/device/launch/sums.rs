//! What attention leaves to each position, for the rules that go by it.

use std::ops::Range;

use super::super::gpu::{Array, Gpu, Launch, Result};
use super::{Heads, grid, words};

const THREADS: usize = 256;
/// Threads of a block that selects.
const SELECT_THREADS: u32 = 512;

/// Sums, `[owner][kv_head][stride]` each, by position; no array for a kind that is not kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sums {
    /// Attention received, f32.
    pub sum: Array,
    /// Its squares, f32.
    pub squares: Array,
    /// Queries that could see the position, u32.
    pub count: Array,
    /// Attention from the newest query, f32.
    pub last: Array,
    /// Attention from the queries of a window, f32.
    pub window: Array,
    /// Positions that there may be.
    pub stride: usize,
    /// `[sequence]`: whose they are; none: as they come.
    pub owners: Array,
}

impl Sums {
    /// None of them yet.
    pub const fn none(stride: usize, owners: Array) -> Self {
        let none = Array::NONE;
        Self { sum: none, squares: none, count: none, last: none, window: none, stride, owners }
    }

    /// Kinds that there are.
    pub fn kinds(&self) -> usize {
        let all = [self.sum, self.squares, self.count, self.last, self.window];
        all.iter().filter(|&&array| array != Array::NONE).count()
    }
}

/// Rows of probabilities are added to what there is: `accumulate`.
#[derive(Clone, Debug)]
pub struct Accumulate {
    /// Heads and row length.
    pub heads: Heads,
    /// Sequences.
    pub sequences: usize,
    /// Queries of each.
    pub queries: usize,
    /// Most slots of a lane.
    pub slots: usize,
    /// To what.
    pub sums: Sums,
    /// Positions of the queries that the window is of.
    pub window: Range<u32>,
    /// Probabilities, `[sequence][head][query][row_stride]`.
    pub rows: Array,
    /// From one row to the next.
    pub row_stride: usize,
    /// Of every slot.
    pub positions: Array,
    /// `[sequence][kv_head]`, eight words each; a lane's query is the position of the first.
    pub lanes: Array,
}

impl Accumulate {
    /// Starts it.
    ///
    /// # Errors
    /// Sizes that are too large, or a device that fails.
    pub fn launch(&self, gpu: &impl Gpu) -> Result<()> {
        if self.slots == 0 || self.sequences == 0 {
            return Ok(());
        }
        let sums = &self.sums;
        let [heads, kv_heads, queries, row_stride, position_stride] =
            words([self.heads.heads, self.heads.kv_heads, self.queries, self.row_stride, sums.stride])?;
        let args = [
            sums.sum.into(),
            sums.squares.into(),
            sums.count.into(),
            sums.last.into(),
            sums.window.into(),
            // No ring.
            Array::NONE.into(),
            sums.owners.into(),
            self.rows.into(),
            self.positions.into(),
            self.lanes.into(),
            heads,
            kv_heads,
            queries,
            row_stride,
            position_stride,
            1u32.into(),
            self.window.start.into(),
            self.window.end.into(),
        ];
        let grid = grid([self.slots.div_ceil(THREADS), self.heads.kv_heads, self.sequences])?;
        gpu.launch(&Launch {
            file: "accumulate",
            kernel: "accumulate",
            grid,
            block: THREADS as u32,
            args: &args,
        })
    }
}

/// Lanes of some sequences, and the sums of their positions.
#[derive(Clone, Copy, Debug)]
pub struct SumLanes {
    /// KV heads.
    pub kv_heads: usize,
    /// Sequences.
    pub sequences: usize,
    /// Most slots of a lane.
    pub slots: usize,
    /// The sums.
    pub sums: Sums,
    /// Of every slot.
    pub positions: Array,
    /// `[sequence][kv_head]`, eight words each.
    pub lanes: Array,
}

impl SumLanes {
    /// Of every slot what its position has, `[sequence][kv_head][kind][slots]`: `take_sums`.
    ///
    /// # Errors
    /// Sizes that are too large, or a device that fails.
    pub fn take(&self, out: Array, gpu: &impl Gpu) -> Result<()> {
        if self.slots == 0 || self.sequences == 0 {
            return Ok(());
        }
        let sums = &self.sums;
        let [kv_heads, position_stride, out_stride] = words([self.kv_heads, sums.stride, self.slots])?;
        let args = [
            out.into(),
            sums.sum.into(),
            sums.squares.into(),
            sums.count.into(),
            sums.last.into(),
            sums.window.into(),
            sums.owners.into(),
            self.positions.into(),
            self.lanes.into(),
            kv_heads,
            position_stride,
            out_stride,
        ];
        let grid = grid([self.slots.div_ceil(THREADS), self.kv_heads, self.sequences])?;
        gpu.launch(&Launch {
            file: "accumulate",
            kernel: "take_sums",
            grid,
            block: THREADS as u32,
            args: &args,
        })
    }

    /// Scores `[sequence][kv_head][slots]` of the sums that there are: the sum, the sum per query where there is a count,
    /// what the newest query paid where there is no sum; of one head the mean over all: `score_slots`.
    pub(super) fn score(&self, heads: usize, scores: Array, gpu: &impl Gpu) -> Result<()> {
        let sums = &self.sums;
        let [kv_heads, position_stride, score_stride] = words([self.kv_heads, sums.stride, self.slots])?;
        let args = [
            scores.into(),
            sums.sum.into(),
            sums.count.into(),
            sums.last.into(),
            sums.owners.into(),
            self.positions.into(),
            self.lanes.into(),
            kv_heads,
            position_stride,
            score_stride,
        ];
        let grid = grid([self.slots.div_ceil(THREADS), heads, self.sequences])?;
        gpu.launch(&Launch {
            file: "accumulate",
            kernel: "score_slots",
            grid,
            block: THREADS as u32,
            args: &args,
        })
    }
}

/// Who is lost where a budget is kept: `score_slots`, then `select_keep`.
#[derive(Clone, Copy, Debug)]
pub struct SelectKeep {
    /// Whose, and the sums that scores are made of: the sum, the sum per query where there is a count, what the newest
    /// query paid where there is no sum.
    pub of: SumLanes,
    /// One decision for all heads of a layer, by their mean score.
    pub as_one: bool,
    /// How many stay.
    pub budget: usize,
    /// Positions below this one stay.
    pub sinks: u32,
    /// So many of the newest stay.
    pub recent: u32,
    /// Scratch, `[sequence][kv_head][slots]` f32.
    pub scores: Array,
    /// `[sequence][kv_head][list]`: slots of those that are lost.
    pub victims: Array,
    /// The same: their scores.
    pub lost: Array,
    /// Most that a lane loses.
    pub list: usize,
    /// `[sequence][kv_head]`: how many are lost.
    pub counts: Array,
    /// `[sequence][kv_head]`: the lowest score that stayed, NaN where nobody competed.
    pub cutoffs: Array,
}

impl SelectKeep {
    /// Starts it.
    ///
    /// # Errors
    /// Sizes that are too large, or a device that fails.
    pub fn launch(&self, gpu: &impl Gpu) -> Result<()> {
        let SumLanes { kv_heads, sequences, slots, positions, lanes, .. } = self.of;
        if slots == 0 || sequences == 0 {
            return Ok(());
        }
        let heads = if self.as_one { 1 } else { kv_heads };
        self.of.score(heads, self.scores, gpu)?;
        let [kv_heads, score_stride, list, budget] = words([kv_heads, slots, self.list, self.budget])?;
        let args = [
            // Who stays is nobody's question.
            Array::NONE.into(),
            self.victims.into(),
            self.lost.into(),
            self.counts.into(),
            self.cutoffs.into(),
            self.scores.into(),
            positions.into(),
            lanes.into(),
            kv_heads,
            score_stride,
            0u32.into(),
            list,
            budget,
            self.sinks.into(),
            self.recent.into(),
        ];
        let grid = grid([heads, sequences, 1])?;
        gpu.launch(&Launch {
            file: "select",
            kernel: "select_keep",
            grid,
            block: SELECT_THREADS,
            args: &args,
        })
    }
}
