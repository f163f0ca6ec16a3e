//! Putting other values in rows of tokens that stay.

use super::pool::Part;
use super::{Cache, CacheError, Pages, TableError};
use crate::event::{Head, Layer, Position, SeqId};

/// Rows to write over a resident's, `[head_dim]` each; `None` leaves the old one.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct NewRows<'a> {
    /// Key.
    pub k: Option<&'a [f32]>,
    /// Value.
    pub v: Option<&'a [f32]>,
}

impl Cache {
    /// Writes over the rows of a resident token of one KV head. From then on the sequence computes with other values than
    /// its tokens give: it is lossy ([`Self::mark_lossy`]).
    ///
    /// Rows in 8-bit codes go into codes once more, and their error counts again, against the new values.
    ///
    /// # Errors
    /// The token is not resident; its page is shared with another sequence, whose rows these are too; or its row is in codes
    /// that share scales with other rows ([`KvDtype::Kivi`](super::KvDtype::Kivi)).
    ///
    /// # Panics
    /// A row is not of `head_dim` elements.
    pub fn alter(
        &mut self,
        seq: SeqId,
        layer: Layer,
        head: Head,
        position: Position,
        new: NewRows<'_>,
    ) -> Result<(), CacheError> {
        self.check_layer(layer)?;
        self.mark_lossy(seq);
        let home = self.home(layer);
        let sequence = self.sequences.get(&seq).ok_or(CacheError::NoSequence(seq))?;
        let table = &sequence.tables[usize::from(layer)];
        let slot = Some(head)
            .filter(|&head| head < table.heads())
            .and_then(|head| table.slot_of(head, position))
            .ok_or(TableError::NotResident { head: Some(head), position })?;
        let lane = table.lane(head);
        if self.pool.owners(lane.block(slot / self.config.block_size as usize)) > 1 {
            return Err(CacheError::Unalterable {
                layer,
                position,
                why: "its page is shared with another sequence",
            });
        }
        if self.config.dtype.goes_into_codes_later() {
            return Err(CacheError::Unalterable {
                layer,
                position,
                why: "its row shares scales with others",
            });
        }
        let head_dim = self.config.shape.head_dim;
        self.changes.write((seq, layer, head), lane, slot..slot + 1);
        let values = &mut self.pages.values[home as usize];
        for (part, arena, row) in [(Part::K, &mut self.pages.keys, new.k), (Part::V, values, new.v)] {
            let Some(row) = row else { continue };
            assert_eq!(row.len(), head_dim, "a row is of one head");
            arena.write(lane, slot, 1, row, head_dim);
            if let Pages::Coded(pages) = arena.pages(arena, lane, None) {
                let mut back = vec![0.0; head_dim];
                pages.row(slot).decode(&mut back);
                self.tally.measure(layer, head, part, row, &back);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::{CacheConfig, KvDtype, KvShape, RopeMode, Victims};
    use super::*;

    fn cache(dtype: KvDtype) -> Cache {
        let mut cache = Cache::new(CacheConfig {
            shape: KvShape { layers: 2, kv_heads: 2, head_dim: 2 },
            block_size: 2,
            blocks: 64,
            dtype,
            rope: RopeMode::Post,
            host_v_from_layer: Some(1),
            far_blocks: false,
            salt: [0; 32],
        })
        .unwrap();
        cache.add(0);
        feed(&mut cache, 0, 0);
        cache
    }

    /// Four tokens; element `d` of head `h` of token `p` is `10 p + 2 h + d`, the same in V less 0.5.
    fn feed(cache: &mut Cache, seq: SeqId, first: Position) {
        cache.reserve(seq, first, 4).unwrap();
        let k: Vec<f32> = (0..4).flat_map(|p| (0..4).map(move |i| (10 * p + i) as f32)).collect();
        let v: Vec<f32> = k.iter().map(|x| x - 0.5).collect();
        for layer in 0..2 {
            cache.write(seq, layer, first, &k, &v).unwrap();
        }
    }

    fn rows(pages: Pages<'_>, slots: std::ops::Range<usize>) -> Vec<Vec<f32>> {
        let row = |slot| match pages {
            Pages::F32(list) => list.row(slot).to_vec(),
            Pages::F16(list) => list.row(slot).iter().map(|x| x.to_f32()).collect(),
            Pages::Coded(list) => {
                let mut row = vec![0.0; 2];
                list.row(slot).decode(&mut row);
                row
            }
        };
        slots.map(row).collect()
    }

    #[test]
    fn one_row_of_one_head_changes_and_no_other() {
        for dtype in [KvDtype::F32, KvDtype::F16, KvDtype::Int8] {
            let mut cache = cache(dtype);
            let all = |cache: &Cache| {
                let lanes = (0..2).flat_map(|l| (0..2).map(move |h| (l, h)));
                lanes
                    .flat_map(|(l, h)| {
                        let (k, v) = cache.pages(0, l, h);
                        [rows(k, 0..4), rows(v, 0..4)]
                    })
                    .collect::<Vec<_>>()
            };
            let before = all(&cache);
            let (k, v) = ([1.0, -2.0], [0.25, 0.5]);
            cache.alter(0, 1, 1, 2, NewRows { k: Some(&k), v: Some(&v) }).unwrap();
            cache.alter(0, 0, 0, 3, NewRows { v: Some(&v), ..NewRows::default() }).unwrap();
            let mut want = before;
            // [(layer 0, head 0) K, V, (0, 1) K, V, (1, 0) K, V, (1, 1) K, V]
            (want[6][2], want[7][2], want[1][3]) = (k.into(), v.into(), v.into());
            let near = |a: &Vec<Vec<f32>>, b: &Vec<Vec<f32>>| {
                a.iter().flatten().zip(b.iter().flatten()).all(|(a, b)| (a - b).abs() < 0.02)
            };
            let after = all(&cache);
            assert!(after.iter().zip(&want).all(|(a, b)| near(a, b)), "{dtype}: {after:?} {want:?}");
        }
    }

    #[test]
    fn what_is_not_there_is_not_altered() {
        let mut cache = cache(KvDtype::F32);
        let row = [0.0; 2];
        let new = NewRows { k: Some(&row), v: None };
        cache.evict(0, 0, &Victims::All(&[1])).unwrap();
        let not_resident = |error| matches!(error, CacheError::Table(TableError::NotResident { .. }));
        assert!(not_resident(cache.alter(0, 0, 0, 1, new).unwrap_err()));
        assert!(not_resident(cache.alter(0, 0, 0, 4, new).unwrap_err()));
        assert!(not_resident(cache.alter(0, 0, 2, 0, new).unwrap_err()));
        assert_eq!(cache.alter(0, 2, 0, 0, new), Err(CacheError::NoLayer(2)));
        assert_eq!(cache.alter(1, 0, 0, 0, new), Err(CacheError::NoSequence(1)));
        cache.alter(0, 0, 0, 2, new).unwrap();
    }

    #[test]
    fn pages_of_others_stay_and_what_is_altered_is_not_shared() {
        let mut cache = cache(KvDtype::F32);
        let tokens = [5, 6, 7, 8];
        cache.offer_prefix(0, &tokens);
        cache.add(1);
        assert_eq!(cache.share_prefix(1, &tokens[..3]), 2);
        let row = [0.0; 2];
        let new = NewRows { k: Some(&row), v: None };
        let error = cache.alter(1, 0, 0, 0, new).unwrap_err();
        assert!(matches!(error, CacheError::Unalterable { .. }), "{error}");
        assert!(!error.to_string().contains('\n'));
        // A page of its own may be altered; after that nobody adopts what the sequence offered.
        cache.alter(0, 0, 0, 3, new).unwrap();
        cache.remove(1);
        cache.add(2);
        assert_eq!(cache.share_prefix(2, &tokens), 0);
    }

    #[test]
    fn rows_in_codes_with_shared_scales_are_refused() {
        let mut cache = Cache::new(CacheConfig {
            shape: KvShape { layers: 1, kv_heads: 1, head_dim: 32 },
            block_size: 32,
            blocks: 8,
            dtype: KvDtype::Kivi { bits: 4, residual: 32 },
            rope: RopeMode::Post,
            host_v_from_layer: None,
            far_blocks: false,
            salt: [0; 32],
        })
        .unwrap();
        cache.add(0);
        cache.reserve(0, 0, 1).unwrap();
        cache.write(0, 0, 0, &[1.0; 32], &[1.0; 32]).unwrap();
        let error = cache.alter(0, 0, 0, 0, NewRows { k: Some(&[0.0; 32]), v: None }).unwrap_err();
        assert!(matches!(error, CacheError::Unalterable { .. }), "{error}");
    }
}
