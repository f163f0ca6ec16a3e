//! How far rows in codes are off.

use super::super::gpu::{Array, Gpu, Launch, Result};
use super::{Heads, grid, words};

/// Squared errors of rows that go into codes of 8 bits: `coding_errors`.
#[derive(Clone, Copy, Debug)]
pub struct CodingErrors {
    /// Heads and row length; query heads do not matter.
    pub heads: Heads,
    /// Tokens.
    pub tokens: usize,
    /// `[token][kv_head][head_dim]` of f32, as they are stored.
    pub keys: Array,
    /// The same.
    pub values: Array,
    /// Keys, then values: per KV head squared error and squares, f64.
    pub sums: Array,
    /// `[kv_head][head_dim]`: squared error and squares of K, f64, to which these rows' are added.
    pub channels: Array,
}

impl CodingErrors {
    /// Bytes of the sums.
    pub const fn sums_bytes(kv_heads: usize) -> usize {
        2 * kv_heads * 16
    }

    /// Bytes of the channels.
    pub const fn channels_bytes(heads: Heads) -> usize {
        heads.kv_heads * heads.head_dim * 16
    }

    /// Starts it.
    ///
    /// # Errors
    /// Rows of a length that the kernels do not take, or a device that fails.
    pub fn launch(&self, gpu: &impl Gpu) -> Result<()> {
        self.heads.check()?;
        let [tokens, kv_heads, head_dim] = words([self.tokens, self.heads.kv_heads, self.heads.head_dim])?;
        let args = [
            self.sums.into(),
            self.channels.into(),
            self.keys.into(),
            self.values.into(),
            tokens,
            kv_heads,
            head_dim,
        ];
        let grid = grid([self.heads.kv_heads, 2, 1])?;
        gpu.launch(&Launch { file: "errors", kernel: "coding_errors", grid, block: 256, args: &args })
    }
}
