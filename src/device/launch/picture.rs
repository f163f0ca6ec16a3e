//! The attention picture of a decode step.

use super::super::gpu::{Array, Gpu, Launch, Result};
use super::{Heads, grid, words};

const THREADS: u32 = 256;
/// Values of a block.
const RANGE: usize = 2048;

/// Rows of probabilities that become a picture.
#[derive(Clone, Copy, Debug)]
pub struct PictureRows {
    /// Heads and row length.
    pub heads: Heads,
    /// Sequences.
    pub sequences: usize,
    /// Most slots of a lane.
    pub slots: usize,
    /// `[sequence][head][row_stride]` f32.
    pub rows: Array,
    /// From one row to the next.
    pub row_stride: usize,
    /// `[sequence][kv_head]`, eight words each.
    pub lanes: Array,
}

/// Rows as bytes, and what no byte carries.
#[derive(Clone, Copy, Debug)]
pub struct Cells {
    /// `[sequence][head][stride]` bytes.
    pub cells: Array,
    /// From one row to the next.
    pub stride: usize,
    /// `[sequence][head][ranges]` f32, see [`PictureRows::ranges`].
    pub lost: Array,
    /// `[256]` f32: the smallest value of each cell.
    pub bounds: Array,
}

/// The slots that a row's picture has.
#[derive(Clone, Copy, Debug)]
pub struct TopSlots {
    /// `[sequence][head][word_stride]`: marks of [`SelectTop`](super::SelectTop).
    pub marks: Array,
    /// Words of a row of marks.
    pub word_stride: usize,
    /// `[sequence][head][stride of the cells]`, ascending.
    pub list: Array,
    /// `[sequence][head]`: how many.
    pub counts: Array,
}

impl PictureRows {
    /// Ranges that a row of so many values is summed in.
    pub const fn ranges(values: usize) -> usize {
        values.div_ceil(RANGE)
    }

    fn start(
        &self,
        gpu: &impl Gpu,
        kernel: &str,
        values: usize,
        args: &[super::super::gpu::Arg],
    ) -> Result<()> {
        let grid = grid([Self::ranges(values), self.heads.heads, self.sequences])?;
        gpu.launch(&Launch { file: "picture", kernel, grid, block: THREADS, args })
    }

    /// Rows become what their heads read: `used_rows`. `slots` are `[sequence][kv_head][list_stride]`, `counts`
    /// `[sequence][kv_head]`, `weights` `[sequence][head][list_stride]`.
    ///
    /// # Errors
    /// Sizes that are too large, or a device that fails.
    pub fn keep_used(
        &self,
        [weights, slots, counts]: [Array; 3],
        list_stride: usize,
        gpu: &impl Gpu,
    ) -> Result<()> {
        if self.slots == 0 || self.sequences == 0 {
            return Ok(());
        }
        let [heads, kv_heads, row_stride, list_stride] =
            words([self.heads.heads, self.heads.kv_heads, self.row_stride, list_stride])?;
        let args = [
            self.rows.into(),
            weights.into(),
            slots.into(),
            counts.into(),
            self.lanes.into(),
            heads,
            kv_heads,
            row_stride,
            list_stride,
        ];
        self.start(gpu, "used_rows", self.slots, &args)
    }

    /// A byte per value of rows that have one per `per` slots: `picture_cells`.
    ///
    /// # Errors
    /// Sizes that are too large, or a device that fails.
    pub fn cells(&self, to: &Cells, per: usize, gpu: &impl Gpu) -> Result<()> {
        if self.slots == 0 || self.sequences == 0 {
            return Ok(());
        }
        let [heads, kv_heads, per_, row_stride, cell_stride] =
            words([self.heads.heads, self.heads.kv_heads, per, self.row_stride, to.stride])?;
        let args = [
            to.cells.into(),
            to.lost.into(),
            self.rows.into(),
            to.bounds.into(),
            self.lanes.into(),
            heads,
            kv_heads,
            per_,
            row_stride,
            cell_stride,
        ];
        self.start(gpu, "picture_cells", self.slots.div_ceil(per), &args)
    }

    /// A byte for each slot that was chosen: `picture_top`.
    ///
    /// # Errors
    /// Sizes that are too large, or a device that fails.
    pub fn top(&self, to: &Cells, chosen: &TopSlots, gpu: &impl Gpu) -> Result<()> {
        if self.slots == 0 || self.sequences == 0 {
            return Ok(());
        }
        let [heads, kv_heads, row_stride, word_stride, list_stride] =
            words([self.heads.heads, self.heads.kv_heads, self.row_stride, chosen.word_stride, to.stride])?;
        let args = [
            to.cells.into(),
            to.lost.into(),
            self.rows.into(),
            chosen.marks.into(),
            chosen.list.into(),
            chosen.counts.into(),
            to.bounds.into(),
            self.lanes.into(),
            heads,
            kv_heads,
            row_stride,
            word_stride,
            list_stride,
        ];
        self.start(gpu, "picture_top", self.slots, &args)
    }

    /// Sums over blocks of slots, `[sequence][head][block_stride]`: `row_block_sums`.
    ///
    /// # Errors
    /// Sizes that are too large, or a device that fails.
    pub fn block_sums(
        &self,
        to: Array,
        block_size: usize,
        block_stride: usize,
        gpu: &impl Gpu,
    ) -> Result<()> {
        if self.slots == 0 || self.sequences == 0 {
            return Ok(());
        }
        let [heads, kv_heads, block_size_, row_stride, block_stride] =
            words([self.heads.heads, self.heads.kv_heads, block_size, self.row_stride, block_stride])?;
        let args = [
            to.into(),
            self.rows.into(),
            self.lanes.into(),
            heads,
            kv_heads,
            block_size_,
            row_stride,
            block_stride,
        ];
        let blocks = self.slots.div_ceil(block_size).div_ceil(THREADS as usize);
        let grid = grid([blocks, self.heads.heads, self.sequences])?;
        gpu.launch(&Launch { file: "combine", kernel: "row_block_sums", grid, block: THREADS, args: &args })
    }
}
