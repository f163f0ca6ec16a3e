//! What becomes of a layer's scores between the products and the softmax.

use super::lane::HOLE;
use crate::event::Position;

/// How a layer's scores are bent; by default they are not.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Scoring {
    /// A query at position `p` sees the positions above `p - window` alone; at least 1.
    pub window: Option<Position>,
    /// A score `s` becomes `cap * tanh(s / cap)` (Gemma 2).
    pub softcap: Option<f32>,
}

impl Scoring {
    /// Whether a query sees a position that is not after it.
    pub fn sees(self, query: Position, position: Position) -> bool {
        self.window.is_none_or(|window| position.saturating_add(window) > query)
    }

    /// Number of leading slots whose positions have left a query's window. `from` is that of an earlier query, or 0.
    pub(super) fn hidden(self, slots: &[Position], query: Position, from: usize) -> usize {
        if self.window.is_none() {
            return 0;
        }
        let left = |&&position: &&Position| position == HOLE || !self.sees(query, position);
        from + slots[from..].iter().take_while(left).count()
    }

    /// Bends the scores of one query, of which the leading `hidden` have left its window.
    pub(super) fn bend(self, scores: &mut [f32], hidden: usize) {
        let (left, seen) = scores.split_at_mut(hidden);
        left.fill(f32::NEG_INFINITY);
        if let Some(cap) = self.softcap {
            // Slots without a score stay so.
            for score in seen.iter_mut().filter(|score| **score > f32::NEG_INFINITY) {
                *score = cap * (*score / cap).tanh();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::cpu::CpuAttention;
    use super::super::{Attention, HeadLane, Pages, Queries, Rotation, Shape, Wants};
    use super::*;

    #[test]
    fn a_window_hides_what_lies_its_length_behind_and_holes_before_it() {
        let scoring = Scoring { window: Some(3), softcap: None };
        let slots = [0, HOLE, 2, 3, HOLE, 5, 6];
        assert_eq!(scoring.hidden(&slots, 2, 0), 0);
        assert_eq!(scoring.hidden(&slots, 3, 0), 2);
        assert_eq!(scoring.hidden(&slots, 6, 2), 5);
        assert_eq!(scoring.hidden(&[1, HOLE], 9, 0), 2);
        assert_eq!(Scoring::default().hidden(&slots, 6, 0), 0);
        assert!(Scoring { window: Some(Position::MAX), softcap: None }.sees(Position::MAX - 1, 0));
    }

    #[test]
    fn a_cap_bounds_scores_and_leaves_holes() {
        let scoring = Scoring { window: None, softcap: Some(2.0) };
        let mut scores = [f32::NEG_INFINITY, 0.0, 1.0, -1000.0];
        scoring.bend(&mut scores, 0);
        assert_eq!(scores, [f32::NEG_INFINITY, 0.0, 2.0 * 0.5f32.tanh(), -2.0]);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// A chunk over a lane with holes: each query sees its window alone, under a cap.
        #[test]
        fn a_chunk_sees_its_windows_and_capped_scores(
            d in 1usize..9, block_size in 1usize..9, slots in 2usize..40, fresh in 1usize..9, window in 1u32..44,
            cap in prop::option::of(0.2f32..3.0), holes in any::<u64>(),
            keys in prop::collection::vec(-2.0f32..2.0, 40 * 8), queries in prop::collection::vec(-2.0f32..2.0, 9 * 16),
        ) {
            let fresh = fresh.min(slots);
            let shape = Shape::new(2, 1, d).unwrap();
            let table: Vec<Position> = (0..slots)
                .map(|s| if s < slots - fresh && holes >> s & 1 == 1 { HOLE } else { s as Position })
                .collect();
            let keys = &keys[..slots * d];
            let pages: Vec<&[f32]> = keys.chunks(block_size * d).collect();
            let lane = HeadLane {
                slots: &table,
                block_size,
                k: Pages::F32(&pages),
                v: Pages::F32(&pages),
                rotation: Rotation::None,
                scoring: Scoring { window: Some(window), softcap: cap },
            };
            let rows = &queries[..fresh * 2 * d];
            let mut out = vec![0.0; rows.len()];
            let (first, wants) = ((slots - fresh) as Position, Wants::default());
            CpuAttention::new(shape).prefill(Queries { rows, first }, &[lane], wants, &mut [], &mut out);
            for (i, query) in rows.chunks_exact(d).enumerate() {
                let at = slots - fresh + i / 2;
                let score = |slot: usize| {
                    let product = query.iter().zip(&keys[slot * d..]).map(|(q, k)| f64::from(*q) * f64::from(*k));
                    let score = product.sum::<f64>() / (d as f64).sqrt();
                    cap.map(f64::from).map_or(score, |cap| cap * (score / cap).tanh()).exp()
                };
                let seen = (0..=at).filter(|&slot| table[slot] != HOLE && at - slot < window as usize);
                let seen: Vec<usize> = seen.collect();
                let total: f64 = seen.iter().map(|&slot| score(slot)).sum();
                for c in 0..d {
                    let sum: f64 = seen.iter().map(|&s| score(s) / total * f64::from(keys[s * d + c])).sum();
                    prop_assert!((f64::from(out[i * d + c]) - sum).abs() < 2e-5, "{} {}", out[i * d + c], sum);
                }
            }
        }
    }
}
