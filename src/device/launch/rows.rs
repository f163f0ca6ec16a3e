//! Rows on their way: into pages, out of pages, turned.

use super::super::gpu::{Array, Gpu, Launch, Result};
use super::{Cell, Heads, grid, words};

/// Warps of a block, each with a row.
const ROWS: usize = 8;

/// New rows into their slots: `append_*`. Every (token, KV head) is a row of its own, so that heads whose lanes have parted
/// differ in their slots.
#[derive(Clone, Copy, Debug)]
pub struct Append {
    /// How the pages store rows.
    pub cell: Cell,
    /// Rows, `[row][head_dim]` each.
    pub rows: usize,
    /// Elements of a row.
    pub head_dim: usize,
    /// Slots per block.
    pub block_size: usize,
    /// Slabs; K and V are appended alike.
    pub k: Array,
    /// Slab of values.
    pub v: Array,
    /// f32, as they are to be stored.
    pub keys: Array,
    /// f32.
    pub values: Array,
    /// Of each row, the lane that it belongs to.
    pub lane_of: Array,
    /// Of each row, its slot in the lane.
    pub slots: Array,
    /// Block tables.
    pub blocks: Array,
    /// Eight words each.
    pub lanes: Array,
    /// Keys alone: what would be written of values is left out.
    pub keys_only: bool,
}

impl Append {
    /// Starts it.
    ///
    /// # Errors
    /// Rows that are too long, or a device that fails.
    pub fn launch(&self, gpu: &impl Gpu) -> Result<()> {
        Heads { heads: 1, kv_heads: 1, head_dim: self.head_dim }.check()?;
        if self.rows == 0 {
            return Ok(());
        }
        let [rows, head_dim, block_size] = words([self.rows, self.head_dim, self.block_size])?;
        let args = [
            self.k.into(),
            self.v.into(),
            self.keys.into(),
            self.values.into(),
            // The keys come turned.
            Array::NONE.into(),
            Array::NONE.into(),
            self.lane_of.into(),
            self.slots.into(),
            self.blocks.into(),
            self.lanes.into(),
            rows,
            1u32.into(),
            head_dim,
            0u32.into(),
            block_size,
            0u32.into(),
        ];
        // Values are the second layer of the grid.
        let grid = grid([self.rows.div_ceil(ROWS), 1, if self.keys_only { 1 } else { 2 }])?;
        let kernel = format!("append_{}", self.cell.name());
        gpu.launch(&Launch { file: "append", kernel: &kernel, grid, block: 256, args: &args })
    }
}

/// Rows turned in place, each by an angle of its own: `rope_rows`.
#[derive(Clone, Copy, Debug)]
pub struct RopeRows {
    /// Rows, `[row][head_dim]` each.
    pub rows: usize,
    /// Elements of a row.
    pub head_dim: usize,
    /// Pairs that turn.
    pub half: usize,
    /// f32.
    pub array: Array,
    /// `[index][2 * half]`: cosines, then sines.
    pub turns: Array,
    /// Of each row, its index.
    pub angles: Array,
}

impl RopeRows {
    /// Starts it.
    ///
    /// # Errors
    /// A device that fails.
    pub fn launch(&self, gpu: &impl Gpu) -> Result<()> {
        if self.rows == 0 || self.half == 0 {
            return Ok(());
        }
        let [rows, head_dim, half] = words([self.rows, self.head_dim, self.half])?;
        let args =
            [self.array.into(), self.turns.into(), self.angles.into(), rows, 1u32.into(), head_dim, half];
        let grid = grid([self.rows.div_ceil(ROWS), 1, 1])?;
        gpu.launch(&Launch { file: "append", kernel: "rope_rows", grid, block: 256, args: &args })
    }
}

/// A layer's pages as one matrix of f32 per KV head: `gather_pages_*_to_f32`.
#[derive(Clone, Copy, Debug)]
pub struct GatherPages {
    /// How the pages store rows.
    pub cell: Cell,
    /// Heads and row length.
    pub heads: Heads,
    /// Slots per block.
    pub block_size: usize,
    /// Most slots of a lane.
    pub slots: usize,
    /// `[kv_head][row_stride][head_dim]`; only rows of a lane's slots are written.
    pub out: Array,
    /// Rows from one KV head to the next.
    pub row_stride: usize,
    /// The slab.
    pub slab: Array,
    /// Block tables.
    pub blocks: Array,
    /// Of every slot.
    pub positions: Array,
    /// Of one sequence.
    pub lanes: Array,
}

impl GatherPages {
    /// Starts it.
    ///
    /// # Errors
    /// Rows of a length that the kernels do not take, or a device that fails.
    pub fn launch(&self, gpu: &impl Gpu) -> Result<()> {
        self.heads.check()?;
        if self.slots == 0 {
            return Ok(());
        }
        let [head_dim, block_size, row_stride] =
            words([self.heads.head_dim, self.block_size, self.row_stride])?;
        let args = [
            self.out.into(),
            self.slab.into(),
            Array::NONE.into(),
            self.blocks.into(),
            self.positions.into(),
            self.lanes.into(),
            head_dim,
            block_size,
            row_stride,
            // K and V of these types lie alike.
            0u32.into(),
        ];
        let grid = grid([self.slots.div_ceil(ROWS), self.heads.kv_heads, 1])?;
        let kernel = format!("gather_pages_{}_to_f32", self.cell.name());
        gpu.launch(&Launch { file: "gather", kernel: &kernel, grid, block: 256, args: &args })
    }
}
