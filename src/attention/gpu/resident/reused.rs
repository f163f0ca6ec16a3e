//! What each sequence pulled last, by position: how much of what it chooses next is reused is counted there, so that no list
//! of rows has to be fetched for it.

use crate::device::gpu::{Array, Gpu, Result, Room};

/// Positions of a layer, of all sequences: how many `[sequence][kv_head]`, then `[sequence][kv_head][stride]`.
pub(super) struct PulledLast<G: Gpu> {
    words: Room<G>,
    sequences: usize,
    stride: usize,
}

impl<G: Gpu> PulledLast<G> {
    pub(super) const fn new() -> Self {
        Self { words: Room::new("positions that were pulled"), sequences: 0, stride: 0 }
    }

    /// Positions, their counts and the stride, with places for so many sequences and at least `list` positions; there will be
    /// no more than `most`.
    pub(super) fn of(
        &mut self,
        gpu: &G,
        [sequences, kv_heads, list, most]: [usize; 4],
    ) -> Result<(Array, Array, usize)> {
        if sequences > self.sequences || list > self.stride {
            // A context grows a token at a time.
            let stride = if list > self.stride { most.min(2 * list).max(list) } else { self.stride };
            let (lanes, held) = (sequences.max(self.sequences) * kv_heads, self.sequences * kv_heads);
            let mut words = Room::new("positions that were pulled");
            let new: Array = words.grown(gpu, 0, 4 * lanes * (1 + stride))?;
            gpu.clear(new, 4 * lanes)?;
            let old = self.words.array(gpu);
            if held > 0 {
                gpu.copy(old, new, 4 * held)?;
            }
            for lane in 0..held {
                let (from, to) = (held + lane * self.stride, lanes + lane * stride);
                gpu.copy(old.offset(4 * from), new.offset(4 * to), 4 * self.stride)?;
            }
            *self = Self { words, sequences: lanes / kv_heads, stride };
        }
        let counts = self.words.array(gpu);
        Ok((counts.offset(4 * self.sequences * kv_heads), counts, self.stride))
    }
}
