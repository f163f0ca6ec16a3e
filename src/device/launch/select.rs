//! A read set: which rows, and their sum.

use super::super::gpu::{Array, Gpu, Launch, Result};
use super::{Cell, Heads, SPLIT, grid, words};

/// Query heads of a block that sums staged rows.
const WEIGHTED_HEADS: usize = 8;

/// The largest probabilities of each head's row, as marks: `select_top`.
#[derive(Clone, Copy, Debug)]
pub struct SelectTop {
    /// Heads and row length.
    pub heads: Heads,
    /// Sequences.
    pub sequences: usize,
    /// Most slots of a lane.
    pub slots: usize,
    /// `[sequence][head][words(slots)]`.
    pub marks: Array,
    /// `[sequence][head]`: how many.
    pub counts: Array,
    /// `[sequence][head][list_stride]`: which, ascending; none where marks do.
    pub list: Array,
    /// From one head's list to the next's.
    pub list_stride: usize,
    /// Probabilities `[sequence][head][row_stride]`.
    pub rows: Array,
    /// From one row to the next.
    pub row_stride: usize,
    /// Of every slot.
    pub positions: Array,
    /// `[sequence][kv_head]`, eight words each.
    pub lanes: Array,
    /// How many to choose.
    pub n: usize,
    /// Whether the query's own slot is taken too.
    pub own: bool,
}

impl SelectTop {
    /// Words of a row of marks over so many slots: whole tiles of 512.
    pub const fn words(slots: usize) -> usize {
        slots.div_ceil(512) * 16
    }

    /// Starts it.
    ///
    /// # Errors
    /// Sizes that are too large, or a device that fails.
    pub fn launch(&self, gpu: &impl Gpu) -> Result<()> {
        if self.sequences == 0 {
            return Ok(());
        }
        let Heads { heads, kv_heads, .. } = self.heads;
        let [heads_, kv_heads, row_stride, word_stride, list_stride, n] = words([
            heads,
            kv_heads,
            self.row_stride,
            Self::words(self.slots),
            self.list_stride,
            self.n.min(self.slots),
        ])?;
        let args = [
            self.marks.into(),
            self.counts.into(),
            self.list.into(),
            self.rows.into(),
            self.positions.into(),
            self.lanes.into(),
            heads_,
            kv_heads,
            row_stride,
            word_stride,
            list_stride,
            n,
            u32::from(self.own).into(),
        ];
        let grid = grid([heads, self.sequences, 1])?;
        gpu.launch(&Launch { file: "select", kernel: "select_top", grid, block: 512, args: &args })
    }
}

/// What the heads of a group chose, together: `select_union`.
#[derive(Clone, Copy, Debug)]
pub struct Union {
    /// The choice.
    pub of: SelectTop,
    /// `[sequence][kv_head][list_stride]`, ascending.
    pub slots: Array,
    /// `[sequence][kv_head]`: how many.
    pub counts: Array,
    /// `[sequence][head][list_stride]`, 0 where the head did not ask.
    pub weights: Array,
    /// `[sequence][head]`: the mass that it did not ask for.
    pub dropped: Array,
    /// Room for a list.
    pub list_stride: usize,
}

impl Union {
    /// Starts it, the choice having been started.
    ///
    /// # Errors
    /// Sizes that are too large, or a device that fails.
    pub fn launch(&self, gpu: &impl Gpu) -> Result<()> {
        if self.of.sequences == 0 {
            return Ok(());
        }
        let Heads { heads, kv_heads, .. } = self.of.heads;
        let [heads, kv_heads_, row_stride, word_stride, list_stride] =
            words([heads, kv_heads, self.of.row_stride, SelectTop::words(self.of.slots), self.list_stride])?;
        let args = [
            self.slots.into(),
            self.counts.into(),
            self.weights.into(),
            self.dropped.into(),
            self.of.marks.into(),
            self.of.rows.into(),
            self.of.lanes.into(),
            heads,
            kv_heads_,
            row_stride,
            word_stride,
            list_stride,
        ];
        let grid = grid([kv_heads, self.of.sequences, 1])?;
        gpu.launch(&Launch { file: "select", kernel: "select_union", grid, block: 512, args: &args })
    }
}

/// The sum over staged rows of V: `weighted_*`, `weighted_combine`.
#[derive(Clone, Copy, Debug)]
pub struct Weighted {
    /// How the rows are stored.
    pub cell: Cell,
    /// Heads and row length.
    pub heads: Heads,
    /// Sequences.
    pub sequences: usize,
    /// Most rows of a KV head.
    pub rows: usize,
    /// `[sequence][kv_head][row_stride]` rows.
    pub staged: Array,
    /// From one KV head's rows to the next's.
    pub row_stride: usize,
    /// `[sequence][head][weight_stride]`.
    pub weights: Array,
    /// From one head's weights to the next's.
    pub weight_stride: usize,
    /// `[sequence][kv_head]`: how many rows.
    pub counts: Array,
    /// `[sequence][head]`: the mass that each head's weights leave out, which their sum is scaled up for; none for a sum as
    /// it is.
    pub dropped: Array,
    /// Scratch of [`partial_elements`](Self::partial_elements) f32.
    pub partial: Array,
    /// `[sequence][head][head_dim]`.
    pub out: Array,
}

impl Weighted {
    /// Elements of scratch.
    pub const fn partial_elements(heads: Heads, sequences: usize, rows: usize) -> usize {
        sequences * heads.heads * rows.div_ceil(SPLIT) * heads.head_dim
    }

    /// Starts it.
    ///
    /// # Errors
    /// Rows of a length that the kernels do not take, or a device that fails.
    pub fn launch(&self, gpu: &impl Gpu) -> Result<()> {
        self.heads.check()?;
        if self.sequences == 0 {
            return Ok(());
        }
        let Heads { heads, kv_heads, head_dim } = self.heads;
        let splits = self.rows.div_ceil(SPLIT);
        let [heads_, kv_heads_, head_dim_, splits_, row_stride, weight_stride] =
            words([heads, kv_heads, head_dim, splits, self.row_stride, self.weight_stride])?;
        if splits > 0 {
            let args = [
                self.partial.into(),
                self.staged.into(),
                self.weights.into(),
                self.counts.into(),
                heads_,
                kv_heads_,
                head_dim_,
                splits_,
                row_stride,
                weight_stride,
            ];
            let size = if head_dim > 128 { 256 } else { 128 };
            let kernel = format!("weighted_{}_d{size}", self.cell.name());
            let parts = self.heads.group().div_ceil(WEIGHTED_HEADS);
            let grid = grid([splits, kv_heads * parts, self.sequences])?;
            gpu.launch(&Launch { file: "weighted", kernel: &kernel, grid, block: 128, args: &args })?;
        }
        let args = [
            self.out.into(),
            self.partial.into(),
            self.counts.into(),
            self.dropped.into(),
            heads_,
            kv_heads_,
            head_dim_,
            splits_,
        ];
        let grid = grid([heads, self.sequences, 1])?;
        gpu.launch(&Launch { file: "weighted", kernel: "weighted_combine", grid, block: 256, args: &args })
    }
}
