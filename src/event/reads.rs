//! What a read set by pages read, layer by layer.

use serde::{Deserialize, Serialize};

use super::ids::Layer;

/// Pages of K and V read for one layer in one step, all sequences together: pages that heads chose by their bounds
/// (Quest, arXiv 2406.10774), or blocks of a memory that a layer retrieved (InfLLM, arXiv 2402.04617), which are counted
/// once for all KV heads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerReads {
    /// Decoder layer.
    pub layer: Layer,
    /// Pages there were, KV heads added up (measured).
    pub pages: u64,
    /// Pages read: the union of the query heads' picks per KV head (measured).
    pub read: u64,
    /// Pages that the query heads picked, before the union (measured).
    pub asked: u64,
    /// Of those read, pages that had to be copied to the device (measured).
    #[serde(default)]
    pub loaded: u64,
    /// Bytes of K and V of the live rows in the pages read (measured).
    pub read_bytes: u64,
    /// Bytes of K and V of all live rows: what reading everything reads (measured).
    pub dense_bytes: u64,
    /// Bytes of K among `dense_bytes` (measured).
    pub key_bytes: u64,
    /// Bytes kept beside K and V to choose by, and read for it: bounds or representatives (measured).
    pub index_bytes: u64,
    /// Largest exact probabilities looked up, query heads added up; 0 in a step without a picture (sampled).
    pub top: u64,
    /// Those in pages that their head read (sampled).
    pub top_read: u64,
}

impl LayerReads {
    /// Adds what else was read; the layer stays. A recording's sums end at the largest number.
    pub fn add(&mut self, other: &Self) {
        let more = other.counts();
        for (sum, more) in [
            &mut self.pages,
            &mut self.read,
            &mut self.asked,
            &mut self.loaded,
            &mut self.read_bytes,
            &mut self.dense_bytes,
            &mut self.key_bytes,
            &mut self.index_bytes,
            &mut self.top,
            &mut self.top_read,
        ]
        .into_iter()
        .zip(more)
        {
            *sum = sum.saturating_add(more);
        }
    }

    /// Every count, in the order of the fields; the last two depend on the picture, the others do not.
    pub const fn counts(&self) -> [u64; 10] {
        [
            self.pages,
            self.read,
            self.asked,
            self.loaded,
            self.read_bytes,
            self.dense_bytes,
            self.key_bytes,
            self.index_bytes,
            self.top,
            self.top_read,
        ]
    }
}
