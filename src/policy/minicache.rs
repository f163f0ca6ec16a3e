//! MiniCache: adjacent layers keep one direction for each token, and their own lengths.
//!
//! Source: Liu et al., "MiniCache: KV Cache Compression in Depth Dimension for Large Language Models", arXiv 2405.14366;
//! rule read in a port (Zefan-Cai/KVCache-Factory, `pyramidkv/minicache.py`). From the middle of the depth on, layers are
//! taken in pairs. Of a token's rows in both the directions (row over length) are interpolated on the sphere: with Ω the
//! angle between them the shared direction is sin((1 − t)Ω)/sin Ω of the lower's and sin(tΩ)/sin Ω of the upper's; each
//! layer's row becomes that direction times its own length. K and V alike. The tokens with the largest angles between
//! their keys (`retain`, rounded up, per head) stay as they were, K and V.
//!
//! Both rows of a token are rotated by the same position, so merging after RoPE is merging before it.
//!
//! Deviations:
//! - Acts once, at the end of the compressed span; what is generated after it is not merged.
//! - Behind an evictor only tokens that both layers hold in a KV head take part.
//! - Both layers' rows stay in their pages: what sharing would save is modelled, never measured. A merged pair of rows
//!   would be one row and two lengths of 4 bytes.
//! - Opposite directions have no shared one: such a token stays as it was (the port divides by almost nothing).

use super::knorm::norm;
use super::merge::MergeRule;
use super::param::Param;
use super::registry::{Build, Entry, Evidence, Granularity, Source};
use crate::event::Layer;

/// Sines below this count as none: the directions are the same, or opposite.
const SINE_FLOOR: f64 = 1e-6;

pub(super) const ENTRY: Entry = Entry {
    name: "minicache",
    title: "MiniCache",
    doc: "pairs of layers from the middle on share a direction per token and keep their lengths; nothing is lost",
    source: Source {
        paper: "MiniCache: KV Cache Compression in Depth Dimension for Large Language Models",
        arxiv: "2405.14366",
        at: "the port in github.com/Zefan-Cai/KVCache-Factory",
        evidence: Evidence::Source,
    },
    source_defaults: "t 0.6, 5% of the tokens unmerged, from half the depth on",
    acts: "once, at the end of the prompt",
    granularity: Granularity::Head,
    params: &[
        Param::real("t", (0.0, 1.0), 0.6, "how far the shared direction lies towards the upper layer's")
            .steps(0.05, 0.2)
            .headline(),
        Param::real(
            "retain",
            (0.0, 1.0),
            0.05,
            "share of the tokens, those of largest angle, that stay unmerged",
        )
        .steps(0.01, 0.05),
        Param::real("from", (0.0, 1.0), 0.5, "share of the depth below which layers are left alone")
            .steps(0.05, 0.25),
    ],
    deviations: &[
        "acts once, at the end of the prompt; what is generated is not merged",
        "behind an evictor only tokens that both layers hold in a KV head take part",
        "both layers' rows stay in their pages: what sharing would save is modelled, never measured",
        "a token whose directions are opposite stays as it was",
        "a V row whose home is the host is altered there: nothing crosses the link for it",
    ],
    build: Build::Merge(|part| {
        MergeRule::Layers(MiniCache {
            t: part.real("t"),
            retain: part.real("retain"),
            from: part.real("from"),
        })
    }),
};

/// The numbers of a MiniCache.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct MiniCache {
    /// 0: the lower layer's direction; 1: the upper's.
    pub t: f64,
    /// Share of the tokens that stay unmerged.
    pub retain: f64,
    /// Share of the depth below which layers are left alone.
    pub from: f64,
}

impl MiniCache {
    /// The pairs (lower, upper) of a model of so many layers.
    pub fn pairs(&self, layers: Layer) -> impl Iterator<Item = (Layer, Layer)> + use<> {
        let first = (self.from * f64::from(layers)) as Layer;
        (first..layers).step_by(2).zip((first.saturating_add(1)..layers).step_by(2))
    }

    /// Which tokens of a KV head are merged, from their keys in both layers, `[token][head_dim]`: all but those of largest
    /// angle, of equal ones the later.
    pub fn merged(&self, lower: &[f32], upper: &[f32], head_dim: usize) -> Vec<bool> {
        let rows = lower.chunks_exact(head_dim.max(1)).zip(upper.chunks_exact(head_dim.max(1)));
        let cosines: Vec<f64> = rows.map(|(a, b)| cosine(a, b)).collect();
        let mut order: Vec<usize> = (0..cosines.len()).collect();
        // What is no number is at the largest angle of all.
        let like = |i: usize| if cosines[i].is_nan() { f64::NEG_INFINITY } else { cosines[i] };
        order.sort_by(|&a, &b| like(a).total_cmp(&like(b)).then(b.cmp(&a)));
        let retained = (self.retain * cosines.len() as f64).ceil() as usize;
        let mut merged: Vec<bool> = cosines.iter().map(|cosine| cosine.is_finite()).collect();
        order.iter().take(retained).for_each(|&i| merged[i] = false);
        merged
    }

    /// A token's rows in both layers, K or V, with one direction and the lengths they had. `None` where there is no such
    /// direction.
    pub fn share(&self, lower: &[f32], upper: &[f32]) -> Option<[Vec<f32>; 2]> {
        let lengths = [norm(lower), norm(upper)];
        let angle = cosine(lower, upper).clamp(-1.0, 1.0).acos();
        let sine = angle.sin();
        let [a, b] = if sine > SINE_FLOOR {
            [((1.0 - self.t) * angle).sin() / sine, (self.t * angle).sin() / sine]
        } else {
            [1.0 - self.t, self.t]
        };
        let direction =
            |(&x, &y): (&f32, &f32)| a * f64::from(x) / lengths[0] + b * f64::from(y) / lengths[1];
        let direction: Vec<f64> = lower.iter().zip(upper).map(direction).collect();
        let length = direction.iter().map(|x| x * x).sum::<f64>().sqrt();
        (length > SINE_FLOOR)
            .then(|| lengths.map(|own| direction.iter().map(|x| (x / length * own) as f32).collect()))
    }

    /// Bytes that a pair of rows of `row_bytes` would save as one row and two lengths, of a token's K or V (modelled).
    pub fn saved_bytes(row_bytes: u64) -> u64 {
        row_bytes.saturating_sub(2 * size_of::<f32>() as u64)
    }
}

fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let dot: f64 = a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum();
    dot / (norm(a) * norm(b))
}

#[cfg(test)]
mod tests {
    use super::*;

    const RULE: MiniCache = MiniCache { t: 0.6, retain: 0.05, from: 0.5 };

    #[test]
    fn pairs_begin_in_the_middle() {
        let pairs = |layers| RULE.pairs(layers).collect::<Vec<_>>();
        assert_eq!(pairs(8), [(4, 5), (6, 7)]);
        assert_eq!(pairs(5), [(2, 3)]);
        assert_eq!((pairs(1), pairs(0)), (vec![], vec![]));
        assert_eq!(MiniCache { from: 1.0, ..RULE }.pairs(8).count(), 0);
    }

    #[test]
    fn a_right_angle_is_cut_at_t() {
        // 60% of 90 degrees is 54: (cos 54, sin 54), times 2 and times 5.
        let [lower, upper] = RULE.share(&[2.0, 0.0], &[0.0, 5.0]).unwrap();
        let (x, y) = (54f64.to_radians().cos() as f32, 54f64.to_radians().sin() as f32);
        for (row, length) in [(lower, 2.0), (upper, 5.0)] {
            assert!((row[0] - length * x).abs() < 1e-6 && (row[1] - length * y).abs() < 1e-6, "{row:?}");
        }
    }

    #[test]
    fn like_directions_stay_and_opposite_ones_share_nothing() {
        let [lower, upper] = RULE.share(&[3.0, 4.0], &[6.0, 8.0]).unwrap();
        for (was, is) in [3.0, 4.0, 6.0, 8.0].iter().zip(lower.iter().chain(&upper)) {
            assert!((was - is).abs() < 1e-6);
        }
        let half = MiniCache { t: 0.5, ..RULE };
        assert_eq!(half.share(&[1.0, 0.0], &[-2.0, 0.0]), None);
        assert_eq!(RULE.share(&[0.0, 0.0], &[1.0, 0.0]), None);
        assert_eq!(RULE.share(&[f32::NAN, 0.0], &[1.0, 0.0]), None);
    }

    #[test]
    fn the_largest_angles_stay_apart() {
        let lower = [1.0, 0.0, 1.0, 0.0, 1.0, 0.0, 1.0, 0.0];
        let upper = [1.0, 0.0, 1.0, 1.0, 0.0, 1.0, 2.0, 0.0];
        let merged = |retain| MiniCache { retain, ..RULE }.merged(&lower, &upper, 2);
        assert_eq!(merged(0.25), [true, true, false, true]);
        // Rounded up, and of the two at no angle the later one.
        assert_eq!(merged(0.26), [true, false, false, true]);
        assert_eq!(merged(0.75), [true, false, false, false]);
        assert_eq!(merged(0.0), [true; 4]);
        assert_eq!(RULE.merged(&[], &[], 2), [false; 0]);
    }

    #[test]
    fn a_pair_of_rows_saves_one_less_its_lengths() {
        assert_eq!((MiniCache::saved_bytes(128), MiniCache::saved_bytes(4)), (120, 0));
    }
}
