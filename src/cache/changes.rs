//! What changed in the pages, for whoever keeps a copy of them elsewhere.

use std::collections::BTreeMap;
use std::ops::Range;

use super::Cache;
use crate::event::{BlockId, Head, Layer, SeqId};

/// Rows of one KV head that were written since somebody last asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChangedRows {
    /// KV head.
    pub head: Head,
    /// Slots of its lane as it is now.
    pub slots: Range<usize>,
}

/// Kept where somebody follows.
#[derive(Clone, Debug, Default)]
pub(super) struct Changes {
    followed: bool,
    rows: BTreeMap<(SeqId, Layer), Vec<ChangedRows>>,
    freed: Vec<BlockId>,
}

impl Changes {
    pub(super) fn write(&mut self, seq: SeqId, layer: Layer, head: Head, slots: Range<usize>) {
        if self.followed {
            self.rows.entry((seq, layer)).or_default().push(ChangedRows { head, slots });
        }
    }

    pub(super) fn free(&mut self, id: BlockId) {
        if self.followed {
            self.freed.push(id);
        }
    }

    pub(super) fn remove(&mut self, seq: SeqId) {
        self.rows.retain(|(of, _), _| *of != seq);
    }
}

impl Cache {
    /// From now on changes of exact pages and of pages of rows in 8-bit codes are kept until they are
    /// [taken](Self::take_changes). All that there is counts as changed, so that a copy can begin with nothing.
    pub fn follow(&mut self) {
        self.changes = Changes { followed: true, ..Changes::default() };
        for (&seq, sequence) in &self.sequences {
            for (layer, table) in sequence.tables.iter().enumerate() {
                for head in 0..table.heads() {
                    self.changes.write(seq, layer as Layer, head, 0..table.lane(head).slots.len());
                }
            }
        }
    }

    /// Rows of a (sequence, layer) that were written or moved since the last call, in the order in which that happened.
    pub fn take_changes(&mut self, seq: SeqId, layer: Layer) -> Vec<ChangedRows> {
        let mut changes = self.changes.rows.remove(&(seq, layer)).unwrap_or_default();
        if let Some(sequence) = self.sequences.get(&seq) {
            let table = &sequence.tables[usize::from(layer)];
            for ChangedRows { head, slots } in &mut changes {
                // What was lost meanwhile is nobody's business any more.
                slots.end = slots.end.min(table.lane(*head).slots.len());
            }
        }
        changes.retain(|change| !change.slots.is_empty());
        changes
    }

    /// Blocks that were given back since the last call; some may be in use again.
    pub fn take_freed(&mut self) -> Vec<BlockId> {
        std::mem::take(&mut self.changes.freed)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::super::{CacheConfig, KvDtype, KvShape, NewRows, Pages, RopeMode, Victims};
    use super::*;
    use crate::event::Position;

    const HEADS: Head = 2;

    fn cache() -> Cache {
        let mut cache = Cache::new(CacheConfig {
            shape: KvShape { layers: 2, kv_heads: HEADS, head_dim: 2 },
            block_size: 3,
            blocks: 200,
            dtype: KvDtype::F32,
            rope: RopeMode::Post,
            host_v_from_layer: None,
            far_blocks: false,
            salt: [0; 32],
        })
        .unwrap();
        cache.add(0);
        cache
    }

    type Copies = HashMap<BlockId, Vec<[f32; 2]>>;

    fn row(cache: &Cache, layer: Layer, head: Head, slot: usize) -> [f32; 2] {
        let Pages::F32(list) = cache.pages(0, layer, head).0 else { panic!("pages of f32") };
        list.row(slot).try_into().unwrap()
    }

    /// Brings a copy up to date with what changed.
    fn bring(cache: &mut Cache, copies: &mut Copies, layer: Layer) {
        for id in cache.take_freed() {
            copies.remove(&id);
        }
        for ChangedRows { head, slots } in cache.take_changes(0, layer) {
            for slot in slots {
                let id = cache.table(0, layer).lane(head).block(slot / 3);
                let page = copies.entry(id).or_insert_with(|| vec![[f32::NAN; 2]; 3]);
                page[slot % 3] = row(cache, layer, head, slot);
            }
        }
    }

    fn check(cache: &Cache, copies: &Copies, layer: Layer) {
        for head in 0..HEADS {
            let lane = cache.table(0, layer).lane(head);
            for (slot, &position) in lane.slots.iter().enumerate().filter(|(_, p)| **p != Position::MAX) {
                let copy = copies[&lane.block(slot / 3)][slot % 3];
                assert_eq!(copy, row(cache, layer, head, slot), "position {position}");
            }
        }
    }

    proptest! {
        /// Appends, losses of some heads or all, compactions and altered rows, in steps: a copy that is brought up to date
        /// from time to time, and one that begins late, both hold every live row.
        #[test]
        fn a_copy_can_follow(steps in prop::collection::vec((1usize..5, any::<u64>(), any::<bool>(), 0u8..4), 1..14), late in 0usize..14) {
            let mut cache = cache();
            cache.follow();
            let mut copies = Copies::new();
            let mut next = 0;
            for (i, (n, lost, alike, rare)) in steps.into_iter().enumerate() {
                if i == late {
                    copies.clear();
                    cache.follow();
                }
                cache.reserve(0, next, n).unwrap();
                let rows: Vec<f32> = (0..n * 4).map(|i| (next as usize * 100 + i) as f32).collect();
                for layer in 0..2 {
                    cache.write(0, layer, next, &rows, &rows).unwrap();
                }
                next += n as Position;
                if rare > 0 {
                    bring(&mut cache, &mut copies, 0);
                    check(&cache, &copies, 0);
                }
                for layer in 0..2 {
                    let of = |head: Head| -> Vec<Position> {
                        let lane = cache.table(0, layer).lane(head);
                        let bit = |p: Position| lost >> ((p as usize * 5 + usize::from(head) * usize::from(!alike) * 7) % 64) & 1;
                        lane.slots.iter().copied().filter(|&p| p != Position::MAX && bit(p) == 1).collect()
                    };
                    let victims: Vec<Vec<Position>> = (0..HEADS).map(of).collect();
                    let sets: Vec<&[Position]> = victims.iter().map(Vec::as_slice).collect();
                    cache.evict(0, layer, &Victims::PerHead(&sets)).unwrap();
                    if let Some(&p) = cache.table(0, layer).lane(1).slots.iter().find(|p| **p != Position::MAX) {
                        cache.alter(0, layer, 1, p, NewRows { k: Some(&[0.5, lost as f32]), v: None }).unwrap();
                    }
                    if lost % 3 > 0 {
                        cache.compact(0, layer).unwrap();
                    }
                }
                cache.take_ops(0);
            }
            for layer in 0..2 {
                bring(&mut cache, &mut copies, layer);
                check(&cache, &copies, layer);
            }
        }
    }

    #[test]
    fn nothing_is_kept_where_nobody_follows() {
        let mut cache = cache();
        cache.reserve(0, 0, 1).unwrap();
        cache.write(0, 0, 0, &[1.0; 4], &[1.0; 4]).unwrap();
        assert!(cache.take_changes(0, 0).is_empty());
        cache.follow();
        assert_eq!(cache.take_changes(0, 0).len(), 2);
        cache.remove(0);
        assert_eq!(cache.take_freed().len(), 4);
        assert!(cache.take_changes(0, 1).is_empty());
    }
}
