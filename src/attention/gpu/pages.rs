//! The pages in a GPU's memory: where each block lies, and how rows come there.

use std::collections::HashSet;

use super::super::lane::Rows;
use super::{as_bytes, word_bytes};
use crate::device::gpu::{Array, DeviceError, Gpu, Result, Room};
use crate::device::launch::{Append, Cell, LANE_WORDS};
use crate::event::BlockId;

/// New rows of one (sequence, layer), of consecutive tokens.
#[derive(Clone, Copy, Debug)]
pub struct NewTokens<'a> {
    /// `[token][kv_head][head_dim]`, as they are to be stored.
    pub keys: &'a [f32],
    /// The same; `None` where values live on the host.
    pub values: Option<&'a [f32]>,
    /// Per KV head, the slot of the first token and the blocks that the tokens lie in, from the slot's own on.
    pub places: &'a [(usize, Vec<BlockId>)],
}

/// A copy of the cache's pages, kept where attention reads it.
pub trait PageCopies {
    /// Writes the rows of new tokens.
    ///
    /// # Errors
    /// There is no more memory, or the device fails; so below.
    fn append(&mut self, tokens: NewTokens<'_>) -> Result<()>;

    /// Writes rows of a block, as the cache stores them, from row `row` on. `values` are `None` where they live on the host.
    fn put(&mut self, block: BlockId, row: usize, keys: Rows<'_>, values: Option<Rows<'_>>) -> Result<()>;

    /// Forgets blocks that were given back.
    fn free(&mut self, blocks: &[BlockId]);
}

/// Where a block lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    /// Whether its values lie beside its keys.
    pub(super) has_values: bool,
    /// Page of the slab.
    pub(super) page: u32,
}

/// Pages of one kind: with their values, or keys alone.
struct Slabs<G: Gpu> {
    keys: Room<G>,
    values: Option<Room<G>>,
    /// Pages that there is memory for, and those that were ever used.
    capacity: usize,
    used: usize,
    free: Vec<u32>,
}

/// All pages.
pub(super) struct Pool<G: Gpu> {
    cell: Cell,
    head_dim: usize,
    block_size: usize,
    /// Pages that the cache will use, if it uses all.
    most: usize,
    with_values: Slabs<G>,
    keys_alone: Slabs<G>,
    places: Vec<Option<Place>>,
    words: Room<G>,
    rows: [Room<G>; 2],
}

impl<G: Gpu> Slabs<G> {
    const fn new(with_values: bool) -> Self {
        Self {
            keys: Room::new("keys"),
            values: if with_values { Some(Room::new("values")) } else { None },
            capacity: 0,
            used: 0,
            free: Vec::new(),
        }
    }

    fn take(&mut self, gpu: &G, page_bytes: usize, most: usize) -> Result<u32> {
        /// Memory taken at first.
        const FEWEST_BYTES: usize = 1 << 20;
        if let Some(page) = self.free.pop() {
            return Ok(page);
        }
        if self.used == self.capacity {
            let roomy = (2 * self.capacity).max(FEWEST_BYTES.div_ceil(page_bytes));
            let capacity = roomy.min(most).max(self.used + 1);
            for room in [Some(&mut self.keys), self.values.as_mut()].into_iter().flatten() {
                room.grown(gpu, self.used * page_bytes, capacity * page_bytes)?;
            }
            self.capacity = capacity;
        }
        self.used += 1;
        Ok(self.used as u32 - 1)
    }
}

impl<G: Gpu> Pool<G> {
    pub(super) const fn new(cell: Cell, head_dim: usize, block_size: usize, most: usize) -> Self {
        Self {
            cell,
            head_dim,
            block_size,
            most,
            with_values: Slabs::new(true),
            keys_alone: Slabs::new(false),
            places: Vec::new(),
            words: Room::new("block tables"),
            rows: [Room::new("new keys"), Room::new("new values")],
        }
    }

    pub(super) const fn cell(&self) -> Cell {
        self.cell
    }

    pub(super) fn place(&self, block: BlockId) -> Option<Place> {
        self.places.get(block as usize).copied().flatten()
    }

    /// Slabs of keys and values in which such pages lie.
    pub(super) fn slabs(&self, gpu: &G, has_values: bool) -> [Array; 2] {
        let slabs = if has_values { &self.with_values } else { &self.keys_alone };
        [slabs.keys.array(gpu), slabs.values.as_ref().map_or(Array::NONE, |room| room.array(gpu))]
    }

    const fn page_bytes(&self) -> usize {
        self.block_size * self.cell.row_bytes(self.head_dim)
    }

    /// The place of a block that is written to.
    fn put_place(&mut self, gpu: &G, block: BlockId, has_values: bool) -> Result<u32> {
        let id = block as usize;
        if self.places.len() <= id {
            self.places.resize(id + 1, None);
        }
        match self.places[id] {
            Some(place) if place.has_values == has_values => return Ok(place.page),
            // A layer of the other kind has the block now.
            Some(_) => self.free(&[block]),
            None => {}
        }
        let (page_bytes, most) = (self.page_bytes(), self.most);
        let slabs = if has_values { &mut self.with_values } else { &mut self.keys_alone };
        let page = slabs.take(gpu, page_bytes, most)?;
        self.places[id] = Some(Place { has_values, page });
        Ok(page)
    }

    pub(super) fn free(&mut self, blocks: &[BlockId]) {
        // Named twice, a block is still free once.
        let blocks: HashSet<BlockId> = blocks.iter().copied().collect();
        let mut freed: Vec<Place> = blocks
            .into_iter()
            .filter_map(|block| self.places.get_mut(block as usize).and_then(Option::take))
            .collect();
        // In an order that does not change from run to run.
        freed.sort_unstable_by_key(|place| std::cmp::Reverse(place.page));
        for Place { has_values, page } in freed {
            if has_values { &mut self.with_values } else { &mut self.keys_alone }.free.push(page);
        }
    }

    pub(super) fn append(&mut self, gpu: &G, tokens: NewTokens<'_>) -> Result<()> {
        let NewTokens { keys, values, places } = tokens;
        let (kv_heads, d) = (places.len(), self.head_dim);
        let rows = keys.len() / d;
        let (mut lanes, mut tables) = (Vec::with_capacity(kv_heads * LANE_WORDS), Vec::new());
        for (_, blocks) in places {
            lanes.extend([tables.len() as u32, 0, 0, 0, 0, 0, 0, 0]);
            for &block in blocks {
                tables.push(self.put_place(gpu, block, values.is_some())?);
            }
        }
        let (mut lane_of, mut slots) = (Vec::with_capacity(rows), Vec::with_capacity(rows));
        for token in 0..rows / kv_heads {
            for (head, (first, _)) in places.iter().enumerate() {
                lane_of.push(head as u32);
                slots.push((first % self.block_size + token) as u32);
            }
        }
        let words = [lanes, lane_of, slots, tables].map(|words| (words.len(), words));
        let all: Vec<u32> = words.iter().flat_map(|(_, words)| words.iter().copied()).collect();
        let lanes = self.words.filled(gpu, word_bytes(&all))?;
        let lane_of = lanes.offset(4 * words[0].0);
        let slots = lane_of.offset(4 * words[1].0);
        let blocks = slots.offset(4 * words[2].0);
        let [new_keys, new_values] = &mut self.rows;
        let keys = new_keys.filled(gpu, as_bytes(keys))?;
        let keys_only = values.is_none();
        let values = match values {
            Some(values) => new_values.filled(gpu, as_bytes(values))?,
            None => Array::NONE,
        };
        let [k, v] = self.slabs(gpu, !keys_only);
        let (cell, block_size) = (self.cell, self.block_size);
        let append = Append {
            cell,
            rows,
            head_dim: d,
            block_size,
            k,
            v,
            keys,
            values,
            lane_of,
            slots,
            blocks,
            lanes,
            keys_only,
        };
        append.launch(gpu)
    }

    pub(super) fn put(
        &mut self,
        gpu: &G,
        block: BlockId,
        row: usize,
        keys: Rows<'_>,
        values: Option<Rows<'_>>,
    ) -> Result<()> {
        let page = self.put_place(gpu, block, values.is_some())? as usize;
        let at = (page * self.block_size + row) * self.cell.row_bytes(self.head_dim);
        let [k, v] = self.slabs(gpu, values.is_some());
        let mut bytes = Vec::new();
        for (slab, rows) in [(k, Some(keys)), (v, values)] {
            let Some(rows) = rows else { continue };
            bytes.clear();
            stored(rows, self.cell, &mut bytes)?;
            gpu.upload(slab.offset(at), &bytes)?;
        }
        Ok(())
    }
}

/// Appends the bytes of rows as they are stored, which must be how the cells of this device are.
pub(super) fn stored(rows: Rows<'_>, cell: Cell, bytes: &mut Vec<u8>) -> Result<()> {
    match (rows, cell) {
        (Rows::F32(rows), Cell::F32) => bytes.extend_from_slice(as_bytes(rows)),
        (Rows::F16(rows), Cell::F16) => bytes.extend_from_slice(bytemuck::cast_slice(rows)),
        (Rows::Coded(rows), Cell::Int8) => rows.copy_stored(bytes, &mut Vec::new()),
        (_, cell) => {
            return Err(DeviceError::Limit(format!(
                "pages of another type than {} cannot be read",
                cell.name()
            )));
        }
    }
    Ok(())
}
