//! Tables as they are recorded in a keyframe: slots as runs, so that a long lane is small.

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::lane::Lane;
use super::{HOLE, LayerTable, MAX_LANE_SLOTS, TableError, fits_table};
use crate::event::{BlockId, Head, Position};

#[derive(Serialize, Deserialize)]
struct Wire {
    block_size: u32,
    heads: Head,
    split: bool,
    lanes: Vec<WireLane>,
}

#[derive(Serialize, Deserialize)]
struct WireLane {
    blocks: Vec<BlockId>,
    /// (first position, slots); [`HOLE`] as the first position stands for as many holes.
    runs: Vec<(Position, u32)>,
}

impl Serialize for LayerTable {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let lanes = self.lanes.iter().map(WireLane::from).collect();
        Wire { block_size: self.block_size, heads: self.heads, split: self.split, lanes }
            .serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for LayerTable {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Wire::deserialize(deserializer)?.try_into().map_err(serde::de::Error::custom)
    }
}

impl From<&Lane> for WireLane {
    fn from(lane: &Lane) -> Self {
        let mut runs: Vec<(Position, u32)> = Vec::new();
        for &position in &lane.slots {
            match runs.last_mut() {
                Some((HOLE, len)) if position == HOLE => *len += 1,
                Some((start, len)) if *start != HOLE && position == *start + *len => *len += 1,
                _ => runs.push((position, 1)),
            }
        }
        Self { blocks: lane.blocks.clone(), runs }
    }
}

impl WireLane {
    fn slots(&self) -> u64 {
        self.runs.iter().map(|&(_, len)| u64::from(len)).sum()
    }

    /// Checked before anything is expanded: a block id must be there for every `width` slots, so what a lane costs is in
    /// proportion to its bytes.
    fn check(&self, width: usize, gang_heads: Head) -> Result<(), TableError> {
        let slots = self.slots();
        if slots > MAX_LANE_SLOTS as u64 {
            return Err(TableError::TooLong { slots, limit: MAX_LANE_SLOTS });
        }
        if (slots as usize).div_ceil(width) != self.blocks.len() {
            return Err(TableError::Damaged("the number of blocks does not fit the slots"));
        }
        if self.blocks.iter().any(|id| id.checked_add(BlockId::from(gang_heads - 1)).is_none()) {
            return Err(TableError::Damaged("a block id is too large"));
        }
        let mut least = 0;
        for &(start, len) in &self.runs {
            if start == HOLE {
                continue;
            }
            match start.checked_add(len) {
                Some(end) if start >= least => least = end,
                _ => return Err(TableError::OutOfOrder(start)),
            }
        }
        Ok(())
    }

    fn expand(self, width: usize) -> Result<Lane, TableError> {
        let mut slots = Vec::with_capacity(self.slots() as usize);
        for (start, len) in self.runs {
            if start == HOLE {
                slots.resize(slots.len() + len as usize, HOLE);
            } else {
                slots.extend(start..start + len);
            }
        }
        let mut lane = Lane { blocks: self.blocks, slots, ..Lane::default() };
        lane.count_live(width);
        // Tables are recorded after empty blocks were released; the search in a lane relies on short runs of holes.
        if lane.block_live.contains(&0) {
            return Err(TableError::Damaged("a block without a resident token"));
        }
        Ok(lane)
    }
}

impl TryFrom<Wire> for LayerTable {
    type Error = TableError;

    fn try_from(wire: Wire) -> Result<Self, TableError> {
        let mut table = Self::new(wire.heads, wire.block_size)?;
        if wire.lanes.len() != if wire.split { usize::from(wire.heads) } else { 1 } {
            return Err(TableError::Damaged("the number of lanes does not fit the KV heads"));
        }
        let width = table.width();
        for lane in &wire.lanes {
            lane.check(width, if wire.split { 1 } else { wire.heads })?;
        }
        fits_table(wire.lanes.iter().map(|l| l.slots() as usize).sum())?;
        table.split = wire.split;
        table.lanes = wire.lanes.into_iter().map(|l| l.expand(width)).collect::<Result<_, _>>()?;
        Ok(table)
    }
}
