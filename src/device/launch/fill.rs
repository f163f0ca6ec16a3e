//! Contexts made of chance.

use super::super::gpu::{Array, Gpu, Launch, Result};
use super::{Cell, Heads, grid, words};

/// Rows of a block, each a warp's.
const ROWS: usize = 8;
/// Standard deviation of the sum of four whole numbers of 16 bits, which a number is a multiple of: sqrt((2^32 - 1) / 3).
const DEVIATION: f64 = 37_837.227_237_206_48;

/// About normal numbers into every slot of the lanes, holes too: `fill_rows_*`. They depend on the seed and on lane, slot and
/// element, not on where the blocks lie; K and V, and layers, are told apart by their seeds.
#[derive(Clone, Copy, Debug)]
pub struct FillRows {
    /// How the pages store rows.
    pub cell: Cell,
    /// Elements of a row.
    pub head_dim: usize,
    /// KV heads.
    pub kv_heads: usize,
    /// Sequences.
    pub sequences: usize,
    /// Slots per block.
    pub block_size: usize,
    /// Most slots of a lane.
    pub slots: usize,
    /// The slab.
    pub slab: Array,
    /// Block tables.
    pub blocks: Array,
    /// `[sequence][kv_head]`, eight words each.
    pub lanes: Array,
    /// Tells one filling from another.
    pub seed: u32,
    /// Standard deviation of the numbers, whose mean is 0; the largest are below 3.5 times as much.
    pub sigma: f32,
}

impl FillRows {
    /// Starts it.
    ///
    /// # Errors
    /// Rows of a length that the kernels do not take, sizes that are too large, or a device that fails.
    pub fn launch(&self, gpu: &impl Gpu) -> Result<()> {
        Heads { heads: 1, kv_heads: 1, head_dim: self.head_dim }.check()?;
        if self.slots == 0 || self.sequences == 0 {
            return Ok(());
        }
        let [head_dim, block_size] = words([self.head_dim, self.block_size])?;
        let step = (f64::from(self.sigma) / DEVIATION) as f32;
        let args = [
            self.slab.into(),
            self.blocks.into(),
            self.lanes.into(),
            self.seed.into(),
            step.into(),
            head_dim,
            block_size,
        ];
        let grid = grid([self.slots.div_ceil(ROWS), self.kv_heads, self.sequences])?;
        let kernel = format!("fill_rows_{}", self.cell.name());
        gpu.launch(&Launch { file: "fill", kernel: &kernel, grid, block: 256, args: &args })
    }
}
