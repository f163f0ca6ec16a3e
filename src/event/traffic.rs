//! Rows that moved between tiers.

use serde::{Deserialize, Serialize};

use super::ids::Layer;

/// Rows moved between tiers for one layer in one step, all sequences together: V alone (KCache), or K and V of whole
/// blocks (InfLLM), whose rows count once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerTraffic {
    /// Decoder layer.
    pub layer: Layer,
    /// Bytes host to device (measured).
    pub h2d_bytes: u64,
    /// Bytes device to host (measured).
    pub d2h_bytes: u64,
    /// V rows pulled: the union of the query heads' picks per KV head (measured).
    pub rows: u64,
    /// V rows the query heads asked for, before the union (measured).
    pub asked_rows: u64,
    /// Pulled rows that the previous step had pulled too (measured).
    pub reused_rows: u64,
    /// Time from the choice of rows until they may be summed (measured): gathering them, and on a GPU run the copy over the
    /// real link. Rows that go to the host are not in it, they are part of [`Phase::Append`](super::Phase::Append). Where
    /// rows stay on a GPU it is told by its own clock, in the steps that it is clocked in; else it is 0 there.
    pub copy_ns: u64,
    /// Time that the bytes of both directions would take at the configured link speed (modelled, on a GPU run too: what
    /// the real link took is in `copy_ns`).
    pub link_ns: u64,
    /// The part of `link_ns` that attention waits for, because it is not hidden behind compute (modelled). All of it where
    /// nothing is computed while rows are on their way: on a CPU run, and where rows pass the host. Where they stay on a
    /// GPU, the share is the one of its copies, both ways, that the layer waited for in the newest step that was clocked.
    pub stall_ns: u64,
}

impl LayerTraffic {
    /// Adds what else moved; the layer stays. A recording's sums end at the largest number.
    pub fn add(&mut self, other: &Self) {
        for (sum, more) in [
            (&mut self.h2d_bytes, other.h2d_bytes),
            (&mut self.d2h_bytes, other.d2h_bytes),
            (&mut self.rows, other.rows),
            (&mut self.asked_rows, other.asked_rows),
            (&mut self.reused_rows, other.reused_rows),
            (&mut self.copy_ns, other.copy_ns),
            (&mut self.link_ns, other.link_ns),
            (&mut self.stall_ns, other.stall_ns),
        ] {
            *sum = sum.saturating_add(more);
        }
    }

    /// Share of the link's time that was hidden behind compute: 1 - stall / link (modelled, as both are). `None` where
    /// nothing moved.
    pub fn overlap(&self) -> Option<f64> {
        (self.link_ns > 0).then(|| (1.0 - self.stall_ns as f64 / self.link_ns as f64).max(0.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overlap_is_what_the_stall_leaves_of_the_link() {
        let overlap =
            |link_ns, stall_ns| LayerTraffic { link_ns, stall_ns, ..LayerTraffic::default() }.overlap();
        assert_eq!(overlap(0, 0), None);
        assert_eq!(overlap(200, 200), Some(0.0));
        assert_eq!(overlap(200, 50), Some(0.75));
        assert_eq!(overlap(200, 300), Some(0.0), "a recording may claim anything");
    }
}
