//! Positions and block tables of every layer, which stay on the device from step to step: only what changed is put in place.

use super::pages::Pool;
use super::resident::Part;
use crate::device::gpu::{Array, DeviceError, Gpu, Result, Room};
use crate::device::launch::{LANE_WORDS, PatchWords};
use crate::event::SeqId;

/// Words that are put in place one by one; more go as a piece.
const MOST_PATCHES: usize = 64;

/// The tables of all layers.
pub(super) struct Standing<G: Gpu> {
    layers: Vec<LayerTables<G>>,
}

/// Those of a layer: regions of equal size, one per lane of slots, first the positions of all, then the blocks of all.
struct LayerTables<G: Gpu> {
    words: Room<G>,
    slots: usize,
    blocks: usize,
    regions: Vec<Known>,
}

/// What a region holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Known {
    of: Option<(SeqId, u64)>,
    slots: usize,
    blocks: usize,
}

/// Where the tables of a layer lie.
#[derive(Clone, Copy, Debug)]
pub(super) struct Placed {
    pub(super) positions: Array,
    pub(super) blocks: Array,
}

/// What a call brings to the device beside the tables.
#[derive(Default)]
pub(super) struct Words {
    /// `[part][kv_head]`.
    pub(super) lanes: Vec<u32>,
    places: Vec<u32>,
    values: Vec<u32>,
}

impl<G: Gpu> Standing<G> {
    pub(super) const fn new() -> Self {
        Self { layers: Vec::new() }
    }

    /// Brings the tables of a layer up to date with those of the parts, but for the words that [`Words::patch`] puts in
    /// place. Every block has its page.
    pub(super) fn bring(
        &mut self,
        gpu: &G,
        pool: &Pool<G>,
        layer: usize,
        parts: &[Part<'_>],
        kv_heads: usize,
    ) -> Result<(Placed, Words)> {
        while self.layers.len() <= layer {
            let words = Room::new("block tables");
            self.layers.push(LayerTables { words, slots: 0, blocks: 0, regions: Vec::new() });
        }
        let own = &mut self.layers[layer];
        own.fit(gpu, parts)?;
        let base = own.words.array(gpu);
        let (regions, slots, blocks) = (own.regions.len(), own.slots, own.blocks);
        let mut words = Words::default();
        let mut region = 0;
        for part in parts {
            let first = region;
            for table in &part.tables {
                let now = Known {
                    of: Some((part.sequence, part.rearranged)),
                    slots: table.slots.len(),
                    blocks: table.blocks.len(),
                };
                let known = std::mem::replace(&mut own.regions[region], now);
                let goes_on = known.of == now.of && known.slots <= now.slots && known.blocks <= now.blocks;
                let (from_slot, from_block) = if goes_on { (known.slots, known.blocks) } else { (0, 0) };
                let pages: Vec<u32> = table.blocks[from_block..]
                    .iter()
                    .map(|&id| pool.find(id).map(|place| place.page))
                    .collect::<Result<_>>()?;
                words.put(gpu, base, region * slots + from_slot, &table.slots[from_slot..])?;
                words.put(gpu, base, regions * slots + region * blocks + from_block, &pages)?;
                region += 1;
            }
            for head in 0..kv_heads {
                let own = if part.tables.len() == 1 { 0 } else { head };
                let at = first + own;
                // The heads of a gang lie in a row.
                let add = if part.tables.len() == 1 { head } else { 0 };
                let filled = part.tables[own].slots.len();
                words.lanes.extend([at * blocks, at * slots, filled, add, 0, 0].map(|word| word as u32));
                words.lanes.extend([part.first, 0]);
            }
        }
        debug_assert_eq!(words.lanes.len(), parts.len() * kv_heads * LANE_WORDS);
        Ok((Placed { positions: base, blocks: base.offset(4 * regions * slots) }, words))
    }
}

impl<G: Gpu> LayerTables<G> {
    /// Sees to regions that are many and long enough. They are made anew where they are not, and hold nothing then.
    fn fit(&mut self, gpu: &G, parts: &[Part<'_>]) -> Result<()> {
        let tables = || parts.iter().flat_map(|part| &part.tables);
        let regions = tables().count();
        let slots = tables().map(|table| table.slots.len()).max().unwrap_or(0);
        let blocks = tables().map(|table| table.blocks.len()).max().unwrap_or(0);
        if regions <= self.regions.len() && slots <= self.slots && blocks <= self.blocks {
            return Ok(());
        }
        // A context grows a token at a time.
        (self.slots, self.blocks) = (slots + slots / 4 + 64, blocks + blocks / 4 + 8);
        self.regions = vec![Known::default(); regions];
        let words = regions * (self.slots + self.blocks);
        if u32::try_from(words).is_err() {
            return Err(DeviceError::Limit(format!(
                "block tables of {words} words are more than a kernel takes"
            )));
        }
        self.words.of(gpu, 4 * words)?;
        Ok(())
    }
}

impl Words {
    /// Words that belong at a place: at once, or among those to be put in place.
    fn put<G: Gpu>(&mut self, gpu: &G, base: Array, place: usize, words: &[u32]) -> Result<()> {
        if words.len() > MOST_PATCHES {
            return gpu.upload(base.offset(4 * place), super::word_bytes(words));
        }
        self.places.extend((place..place + words.len()).map(|place| place as u32));
        self.values.extend_from_slice(words);
        Ok(())
    }

    /// Brings lanes and patches to the device, and `more` behind them; puts the patches in place. Returns where the lanes
    /// and where `more` begin.
    pub(super) fn patch<G: Gpu>(
        &self,
        gpu: &G,
        room: &mut Room<G>,
        placed: Placed,
        more: &[u32],
    ) -> Result<[Array; 2]> {
        let all = [&*self.lanes, &self.places, &self.values, more].concat();
        let lanes = room.filled(gpu, super::word_bytes(&all))?;
        let places = lanes.offset(4 * self.lanes.len());
        let values = places.offset(4 * self.places.len());
        PatchWords { words: placed.positions, places, values, n: self.places.len() }.launch(gpu)?;
        Ok([lanes, values.offset(4 * self.values.len())])
    }
}
