//! Block tables of one (sequence, layer): which position lies in which slot of which block. Pure: no memory, no clock.
//!
//! The cache keeps one per (sequence, layer) beside its pages; a reducer keeps the same and re-derives residency from
//! recorded steps ([`super::replay()`]). Both see the same tables because every operation here depends on its arguments
//! alone.
//!
//! While all KV heads agree, one *gang* stands for the whole layer: one entry per row of blocks, holding the id of head
//! 0's block, the others' ids following in a row. The gang parts for good when a decision treats heads differently.

mod lane;
mod wire;

use std::ops::Range;

use crate::event::{BlockId, Head, Position};
use lane::Lane;
pub use lane::{LaneView, RowMove};

/// What a slot holds whose token was evicted: the slot is *stranded* until compaction.
pub const HOLE: Position = Position::MAX;
/// Most slots of one lane; longer contexts are refused, so that a hostile recording cannot claim more.
pub const MAX_LANE_SLOTS: usize = 1 << 24;
/// Most slots of one table, all lanes together.
pub const MAX_TABLE_SLOTS: usize = 1 << 26;
/// Most KV heads of one layer.
pub const MAX_KV_HEADS: Head = 1024;
/// Largest block size.
pub const MAX_BLOCK_SIZE: u32 = 1024;

/// What a table refuses. The table is unchanged then.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TableError {
    /// Block size 0 or above [`MAX_BLOCK_SIZE`].
    #[error("block size {0}: use 1 to {MAX_BLOCK_SIZE}")]
    BlockSize(u32),
    /// No KV heads, or more than [`MAX_KV_HEADS`].
    #[error("{0} KV heads: use 1 to {MAX_KV_HEADS}")]
    Heads(Head),
    /// More slots than [`MAX_LANE_SLOTS`] or [`MAX_TABLE_SLOTS`].
    #[error("{slots} slots are more than a block table holds ({limit})")]
    TooLong {
        /// Slots asked for.
        slots: u64,
        /// The limit that was passed.
        limit: usize,
    },
    /// Positions were not strictly ascending, or ran past the largest position.
    #[error("position {0} is out of order")]
    OutOfOrder(Position),
    /// A victim that is not resident.
    #[error("position {position} is not resident{}", .head.map(|h| format!(" in KV head {h}")).unwrap_or_default())]
    NotResident {
        /// The KV head, or `None` for the gang.
        head: Option<Head>,
        /// The position.
        position: Position,
    },
    /// A per-head decision with the wrong number of heads.
    #[error("a decision for {given} KV heads does not fit {heads}")]
    HeadCount {
        /// Heads of the table.
        heads: Head,
        /// Heads of the decision.
        given: usize,
    },
    /// A shared prefix can only be adopted whole, by an empty table.
    #[error("{blocks} shared blocks with {tokens} tokens do not fit: adopt full blocks, onto an empty table")]
    Adoption {
        /// Blocks offered.
        blocks: usize,
        /// Tokens in them.
        tokens: usize,
    },
    /// The block to replace is not in the table.
    #[error("block {0} is not in the table")]
    UnknownBlock(BlockId),
    /// Recorded blocks do not fit what the table needs.
    #[error("layer {layer}: the step's {what} blocks do not fit its tables")]
    Blocks {
        /// Decoder layer.
        layer: u16,
        /// Which column of [`crate::event::TableOps`].
        what: &'static str,
    },
    /// A step names a layer or KV head that the tables do not have.
    #[error("layer {layer}, KV head {head:?}: no such block table")]
    NoLane {
        /// Decoder layer.
        layer: u16,
        /// KV head.
        head: Option<Head>,
    },
    /// A serialised table contradicts itself.
    #[error("damaged block table: {0}")]
    Damaged(&'static str),
}

/// Why an append changed nothing. `taken` are blocks that were handed to the table before the failure; their owner takes
/// them back.
#[derive(Debug, PartialEq, Eq)]
pub enum AppendError<E> {
    /// The table refuses; no block was asked for.
    Refused(TableError),
    /// No more blocks.
    Take {
        /// The caller's own error.
        error: E,
        /// Blocks to take back.
        taken: Vec<(Option<Head>, BlockId)>,
    },
}

/// One eviction decision for a layer. Positions are strictly ascending.
#[derive(Clone, Copy, Debug)]
pub enum Victims<'a> {
    /// Every KV head loses the same positions.
    All(&'a [Position]),
    /// One set per KV head. Equal sets keep the gang together.
    PerHead(&'a [&'a [Position]]),
}

impl<'a> Victims<'a> {
    /// The victims of one KV head.
    pub fn of(&self, head: Head) -> &'a [Position] {
        match self {
            Self::All(positions) => positions,
            Self::PerHead(sets) => sets.get(usize::from(head)).copied().unwrap_or_default(),
        }
    }

    /// Whether nobody is lost.
    pub fn is_empty(&self) -> bool {
        match self {
            Self::All(positions) => positions.is_empty(),
            Self::PerHead(sets) => sets.iter().all(|s| s.is_empty()),
        }
    }
}

/// What [`LayerTable::compact`] did to one lane.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LaneCompaction {
    /// KV head, `None` for the gang.
    pub head: Option<Head>,
    /// Rows to move, destinations ascending and never above their source, so that they can be done in place in order.
    /// Slots count in table order: slot `s` is slot `s % block_size` of block `s / block_size` *before* the compaction.
    pub moves: Vec<RowMove>,
    /// Blocks that hold nothing any more, in table order.
    pub freed: Vec<BlockId>,
}

/// Block tables of one (sequence, layer).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayerTable {
    block_size: u32,
    heads: Head,
    split: bool,
    /// One per KV head once split, else one.
    lanes: Vec<Lane>,
}

impl LayerTable {
    /// An empty table.
    ///
    /// # Errors
    /// No heads or more than [`MAX_KV_HEADS`], or a block size outside 1 to [`MAX_BLOCK_SIZE`].
    pub fn new(heads: Head, block_size: u32) -> Result<Self, TableError> {
        if heads == 0 || heads > MAX_KV_HEADS {
            return Err(TableError::Heads(heads));
        }
        if block_size == 0 || block_size > MAX_BLOCK_SIZE {
            return Err(TableError::BlockSize(block_size));
        }
        Ok(Self { block_size, heads, split: false, lanes: vec![Lane::default()] })
    }

    /// Slots per block.
    pub const fn block_size(&self) -> u32 {
        self.block_size
    }

    /// KV heads of the layer.
    pub const fn heads(&self) -> Head {
        self.heads
    }

    /// Whether the heads have parted.
    pub const fn is_split(&self) -> bool {
        self.split
    }

    /// The key of each lane as it is recorded: `None` for the gang, else the KV heads in order.
    pub fn keys(&self) -> impl Iterator<Item = Option<Head>> + use<> {
        let split = self.split;
        (0..self.lanes.len()).map(move |i| split.then_some(i as Head))
    }

    fn width(&self) -> usize {
        self.block_size as usize
    }

    fn of(&self, head: Head) -> &Lane {
        debug_assert!(head < self.heads, "KV head {head} of {}", self.heads);
        &self.lanes[if self.split { usize::from(head) } else { 0 }]
    }

    /// One KV head's lane. `head` must be below [`Self::heads`].
    pub fn lane(&self, head: Head) -> LaneView<'_> {
        let offset = if self.split { 0 } else { BlockId::from(head) };
        self.of(head).view(offset, self.block_size)
    }

    /// Resident tokens of a KV head.
    pub fn live(&self, head: Head) -> usize {
        self.of(head).live
    }

    /// Slots of evicted tokens in blocks still held.
    pub fn stranded(&self, head: Head) -> usize {
        let lane = self.of(head);
        lane.slots.len() - lane.live
    }

    /// Slots never written at the end of the last block.
    pub fn unfilled(&self, head: Head) -> usize {
        let lane = self.of(head);
        lane.blocks.len() * self.width() - lane.slots.len()
    }

    /// The slot, in table order, that holds a position.
    pub fn slot_of(&self, head: Head, position: Position) -> Option<usize> {
        self.of(head).find(0, position)
    }

    /// Resident positions of a KV head as ascending half-open ranges.
    pub fn resident_ranges(&self, head: Head) -> impl Iterator<Item = Range<Position>> + '_ {
        self.of(head).resident_ranges()
    }

    /// Blocks that appending `n` tokens takes, all KV heads together.
    pub fn blocks_needed(&self, n: usize) -> usize {
        let entries: usize = self.lanes.iter().map(|l| l.entries_needed(n, self.width())).sum();
        if self.split { entries } else { entries * usize::from(self.heads) }
    }

    /// Blocks that appending `n` tokens takes for one KV head.
    pub fn blocks_needed_by(&self, head: Head, n: usize) -> usize {
        self.of(head).entries_needed(n, self.width())
    }

    /// Whether [`Self::append`] would be refused.
    ///
    /// # Errors
    /// Positions out of order or past [`HOLE`], or more slots than a table holds.
    pub fn check_append(&self, first: Position, n: usize) -> Result<(), TableError> {
        if n == 0 {
            return Ok(());
        }
        if n as u64 > u64::from(HOLE - first) {
            return Err(TableError::OutOfOrder(HOLE));
        }
        let mut total = 0;
        for lane in &self.lanes {
            let slots = lane.slots.len() + n;
            if slots > MAX_LANE_SLOTS {
                return Err(TableError::TooLong { slots: slots as u64, limit: MAX_LANE_SLOTS });
            }
            if lane.last().is_some_and(|last| last >= first) {
                return Err(TableError::OutOfOrder(first));
            }
            total += slots;
        }
        fits_table(total)
    }

    /// Appends `n` positions from `first` on to every KV head. `take(None)` is asked for each new gang entry (id of head
    /// 0's block), `take(Some(head))` for each new block of a parted head; heads and blocks in order.
    ///
    /// # Errors
    /// All or nothing: on an error the table is unchanged.
    pub fn append<E>(
        &mut self,
        first: Position,
        n: usize,
        mut take: impl FnMut(Option<Head>) -> Result<BlockId, E>,
    ) -> Result<(), AppendError<E>> {
        self.check_append(first, n).map_err(AppendError::Refused)?;
        let width = self.width();
        let mut taken = Vec::new();
        for (key, lane) in self.keys().zip(&self.lanes) {
            for _ in 0..lane.entries_needed(n, width) {
                match take(key) {
                    Ok(id) => taken.push((key, id)),
                    Err(error) => return Err(AppendError::Take { error, taken }),
                }
            }
        }
        let mut ids = taken.into_iter().map(|(_, id)| id);
        for lane in &mut self.lanes {
            lane.append(first, n, width, &mut ids);
        }
        Ok(())
    }

    /// Puts the full gang blocks of a shared prefix, positions from 0, onto an empty table.
    ///
    /// # Errors
    /// The table holds something, or the blocks are not full.
    pub fn adopt(&mut self, blocks: &[BlockId], tokens: usize) -> Result<(), TableError> {
        let full = blocks.len().checked_mul(self.width()) == Some(tokens);
        if self.split || !full || !self.lanes[0].blocks.is_empty() {
            return Err(TableError::Adoption { blocks: blocks.len(), tokens });
        }
        self.check_append(0, tokens)?;
        let width = self.width();
        self.lanes[0].append(0, tokens, width, &mut blocks.iter().copied());
        Ok(())
    }

    /// Copy on write: `to` stands where `from` stood. While the gang holds, both are ids of head 0's block.
    ///
    /// # Errors
    /// `from` is not in the table.
    pub fn replace_block(&mut self, from: BlockId, to: BlockId) -> Result<(), TableError> {
        let mut blocks = self.lanes.iter_mut().flat_map(|l| &mut l.blocks);
        let block = blocks.find(|b| **b == from).ok_or(TableError::UnknownBlock(from))?;
        *block = to;
        Ok(())
    }

    /// One decision for the layer. Slots of victims become [`HOLE`]s; the gang parts if heads lose different positions.
    ///
    /// # Errors
    /// A victim that is not resident, or positions out of order: the table is unchanged.
    pub fn evict(&mut self, victims: &Victims<'_>) -> Result<(), TableError> {
        let heads = usize::from(self.heads);
        if let Victims::PerHead(sets) = victims
            && sets.len() != heads
        {
            return Err(TableError::HeadCount { heads: self.heads, given: sets.len() });
        }
        let alike = match victims {
            Victims::All(_) => true,
            Victims::PerHead(sets) => sets.windows(2).all(|pair| pair[0] == pair[1]),
        };
        let parts = !alike && !self.split;
        if parts {
            fits_table(self.lanes[0].slots.len() * heads)?;
        }
        let located = if self.split || parts {
            (0..self.heads)
                .map(|h| self.of(h).locate(victims.of(h), Some(h)))
                .collect::<Result<Vec<_>, _>>()?
        } else {
            vec![self.lanes[0].locate(victims.of(0), None)?]
        };
        if parts {
            self.part();
        }
        let width = self.width();
        for (lane, slots) in self.lanes.iter_mut().zip(&located) {
            lane.strand(slots, width);
        }
        Ok(())
    }

    fn part(&mut self) {
        let gang = self.lanes.pop().expect("a gang has one lane");
        self.lanes = (0..self.heads).map(|h| gang.shifted(BlockId::from(h))).collect();
        self.split = true;
    }

    /// Drops blocks without a live slot and returns them, in table order (KV heads in order once parted).
    pub fn release_empty(&mut self) -> Vec<(Option<Head>, BlockId)> {
        let width = self.width();
        let mut freed = Vec::new();
        for (key, lane) in self.keys().zip(&mut self.lanes) {
            lane.release_empty(width, |id| freed.push((key, id)));
        }
        freed
    }

    /// Blocks that compaction would change, as (key, id) in table order: those must not be shared then. Includes a last
    /// block that only loses its tail, because the next append fills it again.
    pub fn compaction_writes(&self) -> impl Iterator<Item = (Option<Head>, BlockId)> + '_ {
        let width = self.width();
        self.keys()
            .zip(&self.lanes)
            .flat_map(move |(key, lane)| lane.compaction_writes(width).iter().map(move |&id| (key, id)))
    }

    /// Moves survivors together, order kept. Lanes without a hole are absent from the result.
    pub fn compact(&mut self) -> Vec<LaneCompaction> {
        let width = self.width();
        let keys = self.keys();
        keys.zip(&mut self.lanes)
            .filter(|(_, lane)| lane.live < lane.slots.len())
            .map(|(head, lane)| {
                let (moves, freed) = lane.compact(width);
                LaneCompaction { head, moves, freed }
            })
            .collect()
    }

    /// Every block of the table as (key, id): gang entries by head 0's id.
    pub fn entries(&self) -> impl Iterator<Item = (Option<Head>, BlockId)> + '_ {
        self.keys().zip(&self.lanes).flat_map(|(key, lane)| lane.blocks.iter().map(move |&id| (key, id)))
    }
}

/// Refuses a table whose lanes together hold too much.
fn fits_table(slots: usize) -> Result<(), TableError> {
    if slots > MAX_TABLE_SLOTS {
        return Err(TableError::TooLong { slots: slots as u64, limit: MAX_TABLE_SLOTS });
    }
    Ok(())
}

#[cfg(test)]
mod tests;
