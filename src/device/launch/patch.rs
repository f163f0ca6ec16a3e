//! Words put in place.

use super::super::gpu::{Array, Gpu, Launch, Result};
use super::{grid, words};

const THREADS: usize = 256;

/// Words of a table that change: `patch_words`.
#[derive(Clone, Copy, Debug)]
pub struct PatchWords {
    /// The table.
    pub words: Array,
    /// Which words, no two alike.
    pub places: Array,
    /// What they become.
    pub values: Array,
    /// How many.
    pub n: usize,
}

impl PatchWords {
    /// Starts it.
    ///
    /// # Errors
    /// [`DeviceError`](crate::device::gpu::DeviceError).
    pub fn launch(&self, gpu: &impl Gpu) -> Result<()> {
        if self.n == 0 {
            return Ok(());
        }
        let [n] = words([self.n])?;
        let args = [self.words.into(), self.places.into(), self.values.into(), n];
        let grid = grid([self.n.div_ceil(THREADS), 1, 1])?;
        gpu.launch(&Launch { file: "patch", kernel: "patch_words", grid, block: THREADS as u32, args: &args })
    }
}
