//! What changed in the pages, for whoever keeps a copy of them elsewhere.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;

use super::Cache;
use super::pool::Part;
use super::table::{LaneView, RowMove};
use crate::event::{BlockId, Head, Layer, SeqId};

/// Rows of one KV head that were written since somebody last asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChangedRows {
    /// KV head.
    pub head: Head,
    /// Slots of its lane as it is now.
    pub slots: Range<usize>,
    /// Whether it is their keys that changed.
    pub keys: bool,
    /// Whether it is their values.
    pub values: bool,
}

/// Something done to pages that a backend alone has, in the order in which it happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PageOp {
    /// A page becomes what another is, before it is written to: that one is shared.
    Copy {
        /// The shared block.
        from: BlockId,
        /// The block that takes its place.
        to: BlockId,
    },
    /// Rows of one KV head move together, order kept.
    Move {
        /// The blocks of the stretch that changes, in table order.
        blocks: Vec<BlockId>,
        /// Slots of the stretch whose rows move, ascending.
        kept: Vec<u32>,
        /// The slot that the first of them moves to; the others follow. None moves up.
        first: u32,
    },
    /// A block was given back. It may be in use again by now.
    Free(BlockId),
}

/// Rows of a block. Slots of a lane are counted anew when a block before them goes, blocks keep their names.
#[derive(Clone, Debug)]
struct Written {
    head: Head,
    block: BlockId,
    rows: Range<usize>,
    /// One of the two pages, where the other stays as it is.
    only: Option<Part>,
}

/// Kept where somebody follows.
#[derive(Clone, Debug, Default)]
pub(super) struct Changes {
    followed: bool,
    rows: BTreeMap<(SeqId, Layer), Vec<Written>>,
    freed: Vec<BlockId>,
    /// Kept where pages are a backend's alone.
    ops: Option<Vec<PageOp>>,
}

impl Changes {
    pub(super) fn of_ops() -> Self {
        Self { ops: Some(Vec::new()), ..Self::default() }
    }

    pub(super) fn copy(&mut self, from: BlockId, to: BlockId) {
        self.ops.get_or_insert_default().push(PageOp::Copy { from, to });
    }

    /// Rows of a lane whose blocks, in table order, were `blocks`, moved together.
    pub(super) fn rearrange(&mut self, blocks: &[BlockId], moves: &[RowMove], width: usize) {
        let Some(hole) = moves.first().map(|run| run.to) else { return };
        let before = hole as usize / width;
        let skipped = (before * width) as u32;
        let kept = moves.iter().flat_map(|run| run.from - skipped..run.from - skipped + run.len).collect();
        let blocks = blocks[before..].to_vec();
        self.ops.get_or_insert_default().push(PageOp::Move { blocks, kept, first: hole - skipped });
    }

    pub(super) fn write(&mut self, of: (SeqId, Layer, Head), lane: LaneView<'_>, slots: Range<usize>) {
        self.note(of, lane, slots, None);
    }

    /// Keys or values of a lane went into codes.
    pub(super) fn code(
        &mut self,
        of: (SeqId, Layer, Head),
        lane: LaneView<'_>,
        slots: Range<usize>,
        part: Part,
    ) {
        self.note(of, lane, slots, Some(part));
    }

    fn note(
        &mut self,
        (seq, layer, head): (SeqId, Layer, Head),
        lane: LaneView<'_>,
        slots: Range<usize>,
        only: Option<Part>,
    ) {
        if !self.followed {
            return;
        }
        let (width, written) = (lane.block_size as usize, self.rows.entry((seq, layer)).or_default());
        for i in slots.start / width..slots.end.div_ceil(width) {
            let rows = slots.start.max(i * width) - i * width..slots.end.min((i + 1) * width) - i * width;
            written.push(Written { head, block: lane.block(i), rows, only });
        }
    }

    pub(super) fn free(&mut self, id: BlockId) {
        if self.followed {
            self.freed.push(id);
        }
        if let Some(ops) = &mut self.ops {
            ops.push(PageOp::Free(id));
        }
    }

    pub(super) fn remove(&mut self, seq: SeqId) {
        self.rows.retain(|(of, _), _| *of != seq);
    }
}

impl Cache {
    /// From now on changes of exact pages and of pages of uniform codes are kept until they are
    /// [taken](Self::take_changes): rows that are written, and those that go into codes later. All that there is counts as changed, so that a copy can begin with nothing.
    pub fn follow(&mut self) {
        self.changes = Changes { followed: true, ..Changes::default() };
        for (&seq, sequence) in &self.sequences {
            for (layer, table) in sequence.tables.iter().enumerate() {
                for head in 0..table.heads() {
                    let lane = table.lane(head);
                    self.changes.write((seq, layer as Layer, head), lane, 0..lane.slots.len());
                }
            }
        }
    }

    /// Rows of a (sequence, layer) that were written, moved or put into codes since the last call; some may be named twice.
    ///
    /// # Panics
    /// The model has no such layer.
    pub fn take_changes(&mut self, seq: SeqId, layer: Layer) -> Vec<ChangedRows> {
        let Some(written) = self.changes.rows.remove(&(seq, layer)) else { return Vec::new() };
        let table = self.table(seq, layer);
        let mut changed = Vec::new();
        for head in 0..table.heads() {
            let lane = table.lane(head);
            let places: HashMap<BlockId, usize> = lane.blocks().enumerate().map(|(i, id)| (id, i)).collect();
            for Written { block, rows, only, .. } in written.iter().filter(|written| written.head == head) {
                // What was lost meanwhile is nobody's business any more.
                let Some(&i) = places.get(block) else { continue };
                let first = i * lane.block_size as usize;
                let slots = first + rows.start..first + rows.end.min(lane.block_slots(i).len());
                if !slots.is_empty() {
                    let [keys, values] = [Part::K, Part::V].map(|part| only.is_none_or(|only| only == part));
                    changed.push(ChangedRows { head, slots, keys, values });
                }
            }
        }
        changed
    }

    /// What was done to pages since the last call, where they are a backend's alone.
    pub fn take_page_ops(&mut self) -> Vec<PageOp> {
        self.changes.ops.as_mut().map(std::mem::take).unwrap_or_default()
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
        row_of(cache, 0, layer, head, slot)
    }

    fn row_of(cache: &Cache, seq: SeqId, layer: Layer, head: Head, slot: usize) -> [f32; 2] {
        let Pages::F32(list) = cache.pages(seq, layer, head).0 else { panic!("pages of f32") };
        list.row(slot).try_into().unwrap()
    }

    /// Brings a copy up to date with what changed.
    fn bring(cache: &mut Cache, copies: &mut Copies, layer: Layer) {
        for id in cache.take_freed() {
            copies.remove(&id);
        }
        for ChangedRows { head, slots, .. } in cache.take_changes(0, layer) {
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

    /// What a backend does to pages that it alone has.
    fn carry_out(cache: &mut Cache, pages: &mut Copies) {
        for op in cache.take_page_ops() {
            match op {
                PageOp::Copy { from, to } => {
                    let page = pages[&from].clone();
                    pages.insert(to, page);
                }
                PageOp::Move { blocks, kept, first } => {
                    let place = |slot: u32| (blocks[slot as usize / 3], slot as usize % 3);
                    for (to, from) in (first..).zip(kept) {
                        assert!(to < from);
                        let ((from, a), (to, b)) = (place(from), place(to));
                        let row = pages[&from][a];
                        pages.get_mut(&to).unwrap()[b] = row;
                    }
                }
                PageOp::Free(id) => drop(pages.remove(&id)),
            }
        }
    }

    proptest! {
        /// Two sequences with a shared prefix, appends, losses of some heads or all, compactions: a backend that has the
        /// pages alone and does as it is told holds every live row that a cache with pages holds.
        #[test]
        fn pages_can_be_elsewhere(steps in prop::collection::vec((1usize..7, any::<u64>(), any::<bool>()), 1..12), shared in 0usize..9) {
            let mut own = cache();
            let mut without = Cache::without_pages(*own.config()).unwrap();
            without.add(0);
            let mut pages = Copies::new();
            let tokens: Vec<u32> = (0..shared as u32).collect();
            let mut next = [0; 2];
            for (i, (n, lost, alike)) in steps.into_iter().enumerate() {
                let seq = u32::from(i > 0 && lost % 2 > 0);
                let n = if i == 0 { n.max(shared) } else { n };
                if seq == 1 && next[1] == 0 {
                    for cache in [&mut own, &mut without] {
                        cache.add(1);
                        next[1] = cache.share_prefix(1, &tokens) as Position;
                    }
                }
                let first = next[seq as usize];
                let rows: Vec<f32> = (0..n * 4).map(|j| (i * 100 + j) as f32).collect();
                own.reserve(seq, first, n).unwrap();
                without.reserve(seq, first, n).unwrap();
                for layer in 0..2 {
                    own.write(seq, layer, first, &rows, &rows).unwrap();
                    without.note_written(seq, layer, first, n).unwrap();
                    for head in 0..HEADS {
                        let lane = without.table(seq, layer).lane(head);
                        for slot in lane.slots.len() - n..lane.slots.len() {
                            let page = pages.entry(lane.block(slot / 3)).or_insert_with(|| vec![[f32::NAN; 2]; 3]);
                            page[slot % 3] = row_of(&own, seq, layer, head, slot);
                        }
                    }
                }
                next[seq as usize] += n as Position;
                if i == 0 {
                    own.offer_prefix(0, &tokens);
                    without.offer_prefix(0, &tokens);
                }
                for layer in 0..2 {
                    let of = |head: Head| -> Vec<Position> {
                        let lane = own.table(seq, layer).lane(head);
                        let bit = |p: Position| lost >> ((p as usize * 5 + usize::from(head) * usize::from(!alike) * 7) % 64) & 1;
                        lane.slots.iter().copied().filter(|&p| p != Position::MAX && bit(p) == 1).collect()
                    };
                    let victims: Vec<Vec<Position>> = (0..HEADS).map(of).collect();
                    let sets: Vec<&[Position]> = victims.iter().map(Vec::as_slice).collect();
                    for cache in [&mut own, &mut without] {
                        cache.evict(seq, layer, &Victims::PerHead(&sets)).unwrap();
                        if lost % 3 > 0 {
                            cache.compact(seq, layer).unwrap();
                        }
                    }
                }
                prop_assert_eq!(own.take_ops(seq), without.take_ops(seq));
                carry_out(&mut without, &mut pages);
                prop_assert_eq!(own.usage(), without.usage());
                prop_assert_eq!(without.held_bytes(), [0, 0]);
                for (seq, layer) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
                    if seq == 1 && next[1] == 0 {
                        continue;
                    }
                    for head in 0..HEADS {
                        let lane = without.table(seq, layer).lane(head);
                        prop_assert_eq!(lane.slots, own.table(seq, layer).lane(head).slots);
                        for (slot, _) in lane.slots.iter().enumerate().filter(|(_, p)| **p != Position::MAX) {
                            prop_assert_eq!(pages[&lane.block(slot / 3)][slot % 3], row_of(&own, seq, layer, head, slot));
                        }
                    }
                }
            }
        }
    }

    fn decoded(pages: &Pages<'_>, slot: usize) -> Vec<f32> {
        let Pages::Coded(list) = pages else { panic!("pages in codes") };
        let mut row = vec![0.0; 32];
        list.row(slot).decode(&mut row);
        row
    }

    proptest! {
        /// Rows that go into codes after they were written, are lost and move together: a copy that is told of keys and of
        /// values each for themselves holds what the cache reads.
        #[test]
        fn a_copy_can_follow_rows_into_codes(steps in prop::collection::vec((1usize..60, any::<u64>()), 1..8), windows in 1u32..3) {
            let mut cache = Cache::new(CacheConfig {
                shape: KvShape { layers: 1, kv_heads: HEADS, head_dim: 32 },
                block_size: 32,
                dtype: KvDtype::Kivi { bits: 4, residual: 32 * windows },
                ..*cache().config()
            })
            .unwrap();
            cache.add(0);
            cache.follow();
            let mut copies = HashMap::<(BlockId, usize), [Vec<f32>; 2]>::new();
            let mut next = 0;
            for (n, lost) in steps {
                cache.reserve(0, next, n).unwrap();
                let rows: Vec<f32> = (0..n * 64).map(|i| ((next as usize * 64 + i) as f32 * 0.37).sin()).collect();
                cache.write(0, 0, next, &rows, &rows).unwrap();
                next += n as Position;
                cache.quantise(0, 0).unwrap();
                let of = |head: Head| -> Vec<Position> {
                    let lane = cache.table(0, 0).lane(head);
                    let is_lost = |p: Position| lost >> ((p as usize * 5 + usize::from(head)) % 64) & 3 == 3;
                    lane.slots.iter().copied().filter(|&p| p != Position::MAX && is_lost(p)).collect()
                };
                let victims: Vec<Vec<Position>> = (0..HEADS).map(of).collect();
                let sets: Vec<&[Position]> = victims.iter().map(Vec::as_slice).collect();
                cache.evict(0, 0, &Victims::PerHead(&sets)).unwrap();
                if lost % 2 > 0 {
                    cache.compact(0, 0).unwrap();
                }
                cache.take_ops(0);
                if lost % 5 == 0 {
                    continue;
                }
                for ChangedRows { head, slots, keys, values } in cache.take_changes(0, 0) {
                    let (k, v) = cache.pages(0, 0, head);
                    for slot in slots {
                        let id = cache.table(0, 0).lane(head).block(slot / 32);
                        let copy = copies.entry((id, slot % 32)).or_default();
                        for (copy, pages) in copy.iter_mut().zip([(keys, &k), (values, &v)]) {
                            if pages.0 {
                                *copy = decoded(pages.1, slot);
                            }
                        }
                    }
                }
                for head in 0..HEADS {
                    let (lane, (k, v)) = (cache.table(0, 0).lane(head), cache.pages(0, 0, head));
                    for (slot, _) in lane.slots.iter().enumerate().filter(|(_, p)| **p != Position::MAX) {
                        let copy = &copies[&(lane.block(slot / 32), slot % 32)];
                        prop_assert_eq!(copy, &[decoded(&k, slot), decoded(&v, slot)], "slot {}", slot);
                    }
                }
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
