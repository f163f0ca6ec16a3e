//! Moving survivors together, and copying what is shared before it is written.

use super::pool::{Demand, Part};
use super::sequence::Turn;
use super::{Cache, CacheError, HOLE, members};
use crate::event::{BlockId, Head, Layer, SeqId};

impl Cache {
    /// Moves the survivors of one (sequence, layer) together, order kept, and gives back the blocks left over. Pages that
    /// other sequences share are copied first, and stay as they are.
    ///
    /// Codes of V, of rows that are groups of their own, and of keys whose thresholds the whole lane shares move as they
    /// are. Keys in codes per channel of a page share their
    /// page's scales: they are decoded, full pages of them go into codes again (a second loss, counted as
    /// [`LayerCoding::recoded_rows`](crate::event::LayerCoding::recoded_rows)), and those of the page where they end stay
    /// decoded until the exact window is full.
    ///
    /// # Errors
    /// No block is free for such a copy, or the layer was compacted in this step already.
    pub fn compact(&mut self, seq: SeqId, layer: Layer) -> Result<(), CacheError> {
        self.check_layer(layer)?;
        let sequence = self.sequences.get(&seq).ok_or(CacheError::NoSequence(seq))?;
        let table = &sequence.tables[usize::from(layer)];
        if (0..table.heads()).all(|head| table.stranded(head) == 0) {
            return Ok(());
        }
        if sequence.turns[usize::from(layer)] == Turn::Done {
            return Err(CacheError::OutOfOrder { seq, what: "a second compaction of one layer" });
        }
        let heads = self.config.shape.kv_heads;
        let is_shared = |&(key, id): &_| members(key, id, heads).any(|id| self.pool.owners(id) > 1);
        let shared: Vec<(Option<Head>, BlockId)> = table.compaction_writes().filter(is_shared).collect();
        let (gangs, singles) = if table.is_split() { (0, shared.len()) } else { (shared.len(), 0) };
        self.pool.check(Demand { gangs, singles })?;

        self.let_go_behind_holes(seq, layer);
        for (key, from) in shared {
            self.copy_on_write(seq, layer, key, from);
        }
        self.move_together(seq, layer);
        Ok(())
    }

    /// Lets go of the slots in every block that compaction touches; [`Self::move_together`] takes hold again.
    fn let_go_behind_holes(&mut self, seq: SeqId, layer: Layer) {
        let width = self.config.block_size as usize;
        let table = &self.sequences[&seq].tables[usize::from(layer)];
        for head in 0..table.heads() {
            let lane = table.lane(head);
            let Some(hole) = lane.slots.iter().position(|&p| p == HOLE) else { continue };
            for slot in (hole - hole % width..lane.slots.len()).filter(|&slot| lane.slots[slot] != HOLE) {
                self.pool.let_go(lane.block(slot / width), slot % width);
            }
        }
    }

    fn copy_on_write(&mut self, seq: SeqId, layer: Layer, key: Option<Head>, from: BlockId) {
        let heads = self.config.shape.kv_heads;
        let home = self.home(layer);
        let to = self.pool.take(key, home);
        for (from, to) in members(key, from, heads).zip(members(key, to, heads)) {
            if self.has_pages {
                self.pages.keys.copy_page(from, to);
                self.pages.values[home as usize].copy_page(from, to);
            } else {
                self.changes.copy(from, to);
            }
            self.release(from);
        }
        let sequence = self.sequences.get_mut(&seq).expect("the caller looked it up");
        let table = &mut sequence.tables[usize::from(layer)];
        table.replace_block(from, to).expect("the block came from this table");
        sequence.ops(layer, key).copied.push((from, to));
    }

    fn move_together(&mut self, seq: SeqId, layer: Layer) {
        let width = self.config.block_size as usize;
        let home = self.home(layer);
        let heads = self.config.shape.kv_heads;
        let sequence = self.sequences.get_mut(&seq).expect("the caller looked it up");
        sequence.turns[usize::from(layer)] = Turn::Done;
        sequence.rearranged[usize::from(layer)] += 1;
        let table = &mut sequence.tables[usize::from(layer)];
        // Per KV head: its blocks, the first that compaction touches, and the slots from there on that are kept.
        let before: Vec<(Vec<BlockId>, usize, Vec<usize>)> = (0..heads)
            .map(|head| {
                let lane = table.lane(head);
                let hole = lane.slots.iter().position(|&p| p == HOLE).unwrap_or(lane.slots.len());
                let first = hole / width;
                let kept = (first * width..lane.slots.len()).filter(|&slot| lane.slots[slot] != HOLE);
                (lane.blocks().collect(), first, kept.collect())
            })
            .collect();
        let done = table.compact();
        let mut released = Vec::new();
        for lane in &done {
            for head in lane.head.map_or(0..heads, |h| h..h + 1) {
                let (blocks, first, kept) = &before[usize::from(head)];
                let values = &mut self.pages.values[home as usize];
                let view = table.lane(head);
                if self.has_pages {
                    let recoded = self.pages.keys.move_rows(blocks, *first, kept, &lane.moves);
                    self.tally.recoded(layer, recoded);
                    values.move_rows(blocks, *first, kept, &lane.moves);
                    self.changes.write((seq, layer, head), view, first * width..view.slots.len());
                } else {
                    self.changes.rearrange(blocks, &lane.moves, width);
                }
                for i in *first..view.block_count() {
                    let id = view.block(i);
                    self.pool.clear(id);
                    self.pool.fill(id, 0, view.block_slots(i).len());
                    for (part, arena) in [(Part::K, &self.pages.keys), (Part::V, &*values)] {
                        let Some((rows, outliers)) = arena.coded(id) else { continue };
                        self.pool.code(id, part, rows.clone());
                        for (row, n) in rows.zip(outliers) {
                            self.pool.note_outliers(id, part, row, n);
                        }
                    }
                }
            }
            released.extend(lane.freed.iter().flat_map(|&id| members(lane.head, id, heads)));
        }
        for lane in done {
            let ops = sequence.ops(layer, lane.head);
            ops.compacted = true;
            ops.freed.extend(lane.freed);
        }
        for id in released {
            self.release(id);
        }
    }
}
