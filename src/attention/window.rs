//! Scores of lanes that are read near and far: within a window at their true distance, beyond it at the window's length
//! (InfLLM, arXiv 2402.04617).

use super::lane::{HOLE, HeadLane};
use super::pages::Reads;
use super::rope::Rope;
use super::tile::{Parts, Tile, is_read};
use crate::device::Isa;
use crate::event::Position;

impl Tile {
    /// Products of every row with the keys it sees, which lie in the pages before RoPE. Each key is rotated once for all
    /// the queries that are near. Slots and cells as in [`Tile::products`].
    pub(super) fn windowed_products(
        &self,
        lane: &HeadLane<'_>,
        (rope, window): (&Rope, Position),
        read: &impl Reads,
        first: usize,
        cells: &mut [&mut [f32]],
        scratch: &mut Vec<f32>,
    ) {
        let (isa, d, group) = (Isa::best(), self.head_dim, self.group);
        let (mut query, mut turned) = (0, vec![0.0; d]);
        let slots = first..first + cells.first().map_or(0, |row| row.len());
        for row in &mut *cells {
            row.fill(f32::NEG_INFINITY);
        }
        for part in Parts::of(slots, lane.block_size) {
            let table = &lane.slots[part.slots.clone()];
            if !is_read(read, part.slots.start, table) {
                continue;
            }
            let page = lane.k.page(part.block, part.end_row() * d).cut(part.row * d, part.end_row() * d);
            let keys = page.widen(scratch);
            for ((key, &position), slot) in keys.chunks_exact(d).zip(table).zip(part.slots) {
                if position == HOLE || !read.any(slot) {
                    continue;
                }
                query = self.first_to_see(slot, query);
                // The first query for which the key lies beyond the window, and so do all after it.
                let far = (position.saturating_add(window).saturating_sub(self.first) as usize).max(query);
                let far = far.min(self.len());
                if query < far {
                    turned.copy_from_slice(key);
                    rope.apply(&mut turned, position as usize);
                }
                for (r, row) in cells.iter_mut().enumerate().skip(query * group) {
                    if read.head(r % group, slot) {
                        row[slot - first] = if r < far * group {
                            isa.dot(&self.rows[r * d..][..d], &turned)
                        } else {
                            isa.dot(&self.far_rows[r * d..][..d], key)
                        };
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::cpu::CpuAttention;
    use super::super::{Attention, Pages, Queries, Rotation, Scoring, Shape, Wants};
    use super::*;

    /// Turns a row as RoFormer has it, in f64.
    fn turned(row: &[f32], index: usize) -> Vec<f64> {
        let (d, mut out) = (row.len(), row.iter().map(|&x| f64::from(x)).collect::<Vec<_>>());
        for i in 0..d / 2 {
            let (sin, cos) = (index as f64 * 100f64.powf(-2.0 * i as f64 / d as f64)).sin_cos();
            (out[i], out[i + d / 2]) =
                (out[i] * cos - out[i + d / 2] * sin, out[i + d / 2] * cos + out[i] * sin);
        }
        out
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        /// Within the window at the true distance, beyond it at the window's length, holes nowhere.
        #[test]
        fn keys_beyond_the_window_are_all_one_distance_away(
            half in 1usize..5, block_size in 1usize..9, slots in 2usize..40, fresh in 1usize..6,
            window in 1u32..30, holes in any::<u64>(),
            values in prop::collection::vec(-1.0f32..1.0, 40 * 8), queries in prop::collection::vec(-1.0f32..1.0, 6 * 16),
        ) {
            let (d, fresh) = (2 * half, fresh.min(slots));
            let (shape, rope) = (Shape::new(2, 1, d).unwrap(), Rope::new(d, 100.0, 16));
            let table: Vec<Position> = (0..slots)
                .map(|s| if s < slots - fresh && holes >> s & 1 == 1 { HOLE } else { s as Position })
                .collect();
            let keys = &values[..slots * d];
            let pages: Vec<&[f32]> = keys.chunks(block_size * d).collect();
            let lane = HeadLane {
                slots: &table,
                block_size,
                k: Pages::F32(&pages),
                v: Pages::F32(&pages),
                rotation: Rotation::Windowed { rope: &rope, window },
                scoring: Scoring::default(),
            };
            let rows = &queries[..fresh * 2 * d];
            let mut attention = CpuAttention::new(shape);
            let mut out = vec![0.0; rows.len()];
            let wants = Wants { column_sums: false, last_row: true };
            let first = (slots - fresh) as Position;
            attention.prefill(Queries { rows, first }, &[lane], wants, &mut [], &mut out);
            for (i, query) in rows.chunks_exact(d).enumerate() {
                let at = slots - fresh + i / 2;
                let score = |slot: usize| {
                    let far = at - slot >= window as usize;
                    let q = turned(query, if far { window as usize } else { at });
                    let k = turned(&keys[slot * d..][..d], if far { 0 } else { slot });
                    (q.iter().zip(&k).map(|(a, b)| a * b).sum::<f64>() / (d as f64).sqrt()).exp()
                };
                let seen: Vec<usize> = (0..=at).filter(|&slot| table[slot] != HOLE).collect();
                let total: f64 = seen.iter().map(|&slot| score(slot)).sum();
                for c in 0..d {
                    let sum: f64 = seen.iter().map(|&s| score(s) / total * f64::from(keys[s * d + c])).sum();
                    prop_assert!((f64::from(out[i * d + c]) - sum).abs() < 2e-5);
                }
            }
        }
    }
}
