//! What lies between the products of a prefill.

use super::super::gpu::{Array, Gpu, Launch, Result};
use super::{Bend, Heads, grid, words};

/// A tile of products becomes probabilities: `prefill_softmax`.
#[derive(Clone, Copy, Debug)]
pub struct Softmax {
    /// Heads and row length.
    pub heads: Heads,
    /// Queries of the tile.
    pub queries: usize,
    /// `[head][query][row_stride]` f32.
    pub tile: Array,
    /// Of every slot.
    pub positions: Array,
    /// Of one sequence; a lane's query is the position of the tile's first.
    pub lanes: Array,
    /// Cells of a row.
    pub columns: usize,
    /// From one row to the next.
    pub row_stride: usize,
    /// The factor on products.
    pub scale: f32,
    /// What a query sees, and how scores are bent.
    pub bend: Bend,
}

impl Softmax {
    /// Starts it.
    ///
    /// # Errors
    /// A tile that is too large, or a device that fails.
    pub fn launch(&self, gpu: &impl Gpu) -> Result<()> {
        if self.queries == 0 {
            return Ok(());
        }
        let Heads { heads, kv_heads, .. } = self.heads;
        let [heads_, kv_heads, columns, row_stride] =
            words([heads, kv_heads, self.columns, self.row_stride])?;
        let args = [
            self.tile.into(),
            self.positions.into(),
            self.lanes.into(),
            heads_,
            kv_heads,
            columns,
            row_stride,
            self.scale.into(),
            self.bend.window(),
            self.bend.cap(),
        ];
        let grid = grid([self.queries, heads, 1])?;
        gpu.launch(&Launch { file: "prefill", kernel: "prefill_softmax", grid, block: 256, args: &args })
    }
}
