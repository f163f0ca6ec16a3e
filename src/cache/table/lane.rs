//! One lane: the blocks and slots of the gang, or of one KV head after the heads parted.

use std::ops::Range;

use super::{HOLE, TableError};
use crate::event::{BlockId, Head, Position};

/// `len` rows that moved from slot `from` on to slot `to` on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RowMove {
    /// First source slot.
    pub from: u32,
    /// First destination slot, below `from`.
    pub to: u32,
    /// Rows.
    pub len: u32,
}

/// One KV head's slots and blocks.
#[derive(Clone, Copy, Debug)]
pub struct LaneView<'a> {
    /// Position or [`HOLE`] per slot, in table order, which is the order of positions.
    pub slots: &'a [Position],
    /// Resident tokens.
    pub live: usize,
    /// Slots per block.
    pub block_size: u32,
    entries: &'a [BlockId],
    /// What a gang entry is away from this head's block.
    offset: BlockId,
}

impl<'a> LaneView<'a> {
    /// Number of blocks.
    pub const fn block_count(&self) -> usize {
        self.entries.len()
    }

    /// Id of the `i`-th block in table order.
    pub const fn block(&self, i: usize) -> BlockId {
        self.entries[i].wrapping_add(self.offset)
    }

    /// The blocks in table order as the table keeps them: of a gang, head 0's.
    pub const fn entries(&self) -> &'a [BlockId] {
        self.entries
    }

    /// The blocks in table order.
    pub fn blocks(&self) -> impl ExactSizeIterator<Item = BlockId> + DoubleEndedIterator + use<'a> {
        let offset = self.offset;
        self.entries.iter().map(move |id| id.wrapping_add(offset))
    }

    /// The slots of the `i`-th block, fewer than `block_size` in the last.
    pub fn block_slots(&self, i: usize) -> &'a [Position] {
        let width = self.block_size as usize;
        &self.slots[i * width..self.slots.len().min((i + 1) * width)]
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Lane {
    pub(super) blocks: Vec<BlockId>,
    /// Fills all blocks but the last completely, the last at least in part.
    pub(super) slots: Vec<Position>,
    /// Live slots per block, so that finding an empty one does not walk the slots.
    pub(super) block_live: Vec<u32>,
    pub(super) live: usize,
}

impl Lane {
    pub(super) fn view(&self, offset: BlockId, block_size: u32) -> LaneView<'_> {
        LaneView { slots: &self.slots, live: self.live, block_size, entries: &self.blocks, offset }
    }

    /// The same lane with ids `by` further: a head's own lane out of the gang's.
    pub(super) fn shifted(&self, by: BlockId) -> Self {
        let mut lane = self.clone();
        for id in &mut lane.blocks {
            *id = id.wrapping_add(by);
        }
        lane
    }

    /// The last resident position.
    pub(super) fn last(&self) -> Option<Position> {
        self.slots.iter().rev().copied().find(|&p| p != HOLE)
    }

    pub(super) fn entries_needed(&self, n: usize, width: usize) -> usize {
        (self.slots.len() + n).div_ceil(width) - self.blocks.len()
    }

    /// Appends positions; `ids` gives the blocks that [`Self::entries_needed`] counts.
    pub(super) fn append(
        &mut self,
        first: Position,
        n: usize,
        width: usize,
        ids: &mut impl Iterator<Item = BlockId>,
    ) {
        let needed = self.entries_needed(n, width);
        self.blocks.extend(ids.take(needed));
        self.block_live.resize(self.blocks.len(), 0);
        for slot in self.slots.len()..self.slots.len() + n {
            self.block_live[slot / width] += 1;
        }
        self.slots.extend(first..first + n as Position);
        self.live += n;
    }

    /// The slot of a position at or after slot `from`. A binary search that steps over holes: blocks without a live slot
    /// are released, so a run of holes is shorter than two blocks.
    pub(super) fn find(&self, from: usize, position: Position) -> Option<usize> {
        let (mut low, mut high) = (from, self.slots.len());
        while low < high {
            let middle = low + (high - low) / 2;
            let Some(probe) = (middle..high).find(|&i| self.slots[i] != HOLE) else {
                high = middle;
                continue;
            };
            match self.slots[probe].cmp(&position) {
                std::cmp::Ordering::Equal => return Some(probe),
                std::cmp::Ordering::Less => low = probe + 1,
                std::cmp::Ordering::Greater => high = middle,
            }
        }
        None
    }

    /// The slots of strictly ascending victims.
    pub(super) fn locate(&self, victims: &[Position], head: Option<Head>) -> Result<Vec<usize>, TableError> {
        if let Some(pair) = victims.windows(2).find(|pair| pair[0] >= pair[1]) {
            return Err(TableError::OutOfOrder(pair[1]));
        }
        let mut from = 0;
        victims
            .iter()
            .map(|&position| {
                let slot = self.find(from, position).ok_or(TableError::NotResident { head, position })?;
                from = slot + 1;
                Ok(slot)
            })
            .collect()
    }

    /// Makes holes of live slots.
    pub(super) fn strand(&mut self, slots: &[usize], width: usize) {
        for &slot in slots {
            self.slots[slot] = HOLE;
            self.block_live[slot / width] -= 1;
        }
        self.live -= slots.len();
    }

    pub(super) fn release_empty(&mut self, width: usize, mut released: impl FnMut(BlockId)) {
        let Some(first) = self.block_live.iter().position(|&live| live == 0) else { return };
        let (mut kept, mut slots) = (first, first * width);
        for block in first..self.blocks.len() {
            if self.block_live[block] == 0 {
                released(self.blocks[block]);
                continue;
            }
            let range = block * width..self.slots.len().min((block + 1) * width);
            let len = range.len();
            self.slots.copy_within(range, slots);
            self.blocks[kept] = self.blocks[block];
            self.block_live[kept] = self.block_live[block];
            kept += 1;
            slots += len;
        }
        self.blocks.truncate(kept);
        self.block_live.truncate(kept);
        self.slots.truncate(slots);
    }

    /// From the first hole's block to the last block that stays: those take in rows, or end short of being full and
    /// will take in the next append.
    pub(super) fn compaction_writes(&self, width: usize) -> &[BlockId] {
        match self.slots.iter().position(|&p| p == HOLE) {
            Some(hole) => &self.blocks[hole / width..self.live.div_ceil(width)],
            None => &[],
        }
    }

    pub(super) fn compact(&mut self, width: usize) -> (Vec<RowMove>, Vec<BlockId>) {
        let mut moves: Vec<RowMove> = Vec::new();
        let hole = self.slots.iter().position(|&p| p == HOLE).unwrap_or(self.slots.len());
        let mut to = hole;
        for from in hole..self.slots.len() {
            if self.slots[from] == HOLE {
                continue;
            }
            self.slots[to] = self.slots[from];
            match moves.last_mut() {
                Some(run) if run.from + run.len == from as u32 => run.len += 1,
                _ => moves.push(RowMove { from: from as u32, to: to as u32, len: 1 }),
            }
            to += 1;
        }
        self.slots.truncate(to);
        let freed = self.blocks.split_off(to.div_ceil(width));
        self.count_live(width);
        (moves, freed)
    }

    /// Recounts the live slots from the slots.
    pub(super) fn count_live(&mut self, width: usize) {
        self.block_live =
            self.slots.chunks(width).map(|b| b.iter().filter(|&&p| p != HOLE).count() as u32).collect();
        self.live = self.block_live.iter().map(|&n| n as usize).sum();
    }

    pub(super) fn resident_ranges(&self) -> impl Iterator<Item = Range<Position>> + '_ {
        let mut live = self.slots.iter().copied().filter(|&p| p != HOLE).peekable();
        std::iter::from_fn(move || {
            let start = live.next()?;
            let mut end = start + 1;
            while live.next_if_eq(&end).is_some() {
                end += 1;
            }
            Some(start..end)
        })
    }
}
