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

/// Consecutive rows of a block, as the cache stores them.
#[derive(Clone, Copy, Debug)]
pub struct Stretch<'a> {
    /// The block.
    pub block: BlockId,
    /// The first of them.
    pub row: usize,
    /// `[row][head_dim]`.
    pub keys: Rows<'a>,
    /// The same; `None` where values live on the host, which is so of all stretches or of none.
    pub values: Option<Rows<'a>>,
}

/// A copy of the cache's pages, kept where attention reads it.
pub trait PageCopies {
    /// Writes the rows of new tokens.
    ///
    /// # Errors
    /// There is no more memory, or the device fails; so below.
    fn append(&mut self, tokens: NewTokens<'_>) -> Result<()>;

    /// Writes rows that are stored already: those that moved or were altered.
    fn put(&mut self, stretches: &[Stretch<'_>]) -> Result<()>;

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
        let mut lanes = NewRows::default();
        for (_, blocks) in places {
            lanes.begin_lane();
            for &block in blocks {
                lanes.tables.push(self.put_place(gpu, block, values.is_some())?);
            }
        }
        for token in 0..keys.len() / self.head_dim / places.len() {
            for (head, (first, _)) in places.iter().enumerate() {
                lanes.push(head, first % self.block_size + token);
            }
        }
        self.scatter(gpu, lanes, keys, values)
    }

    /// Writes rows of f32, each to its slot of its lane.
    fn scatter(&mut self, gpu: &G, to: NewRows, keys: &[f32], values: Option<&[f32]>) -> Result<()> {
        let d = self.head_dim;
        let rows = keys.len() / d;
        let NewRows { lanes, lane_of, slots, tables } = to;
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

    pub(super) fn put(&mut self, gpu: &G, stretches: &[Stretch<'_>]) -> Result<()> {
        let Some(first) = stretches.first() else { return Ok(()) };
        let has_values = first.values.is_some();
        if self.cell == Cell::Int8 {
            return self.put_codes(gpu, stretches, has_values);
        }
        // Widened, and narrowed again on the way: that changes no bit, and all of them go in one launch.
        let (mut lanes, mut keys, mut values) = (NewRows::default(), Vec::new(), Vec::new());
        for (i, stretch) in stretches.iter().enumerate() {
            lanes.begin_lane();
            lanes.tables.push(self.put_place(gpu, stretch.block, has_values)?);
            (0..stretch.keys.len() / self.head_dim).for_each(|row| lanes.push(i, stretch.row + row));
            let mut scratch = Vec::new();
            keys.extend_from_slice(stretch.keys.widen(&mut scratch));
            if let Some(rows) = stretch.values {
                values.extend_from_slice(rows.widen(&mut scratch));
            }
        }
        self.scatter(gpu, lanes, &keys, has_values.then_some(&*values))
    }

    /// Codes as they are: making them anew of what they decode to would change them.
    fn put_codes(&mut self, gpu: &G, stretches: &[Stretch<'_>], has_values: bool) -> Result<()> {
        let row_bytes = self.cell.row_bytes(self.head_dim);
        let mut bytes = Vec::new();
        for &Stretch { block, row, keys, values } in stretches {
            let page = self.put_place(gpu, block, has_values)? as usize;
            let at = (page * self.block_size + row) * row_bytes;
            let [k, v] = self.slabs(gpu, has_values);
            for (slab, rows) in [(k, Some(keys)), (v, values)] {
                let Some(rows) = rows else { continue };
                bytes.clear();
                stored(rows, self.cell, &mut bytes)?;
                gpu.upload(slab.offset(at), &bytes)?;
            }
        }
        Ok(())
    }
}

/// Where rows go: lanes, and of each row the lane and the slot in it.
#[derive(Default)]
struct NewRows {
    lanes: Vec<u32>,
    lane_of: Vec<u32>,
    slots: Vec<u32>,
    tables: Vec<u32>,
}

impl NewRows {
    /// Begins a lane: its table is what is added next.
    fn begin_lane(&mut self) {
        let mut lane = [0; LANE_WORDS];
        lane[0] = self.tables.len() as u32;
        self.lanes.extend(lane);
    }

    fn push(&mut self, lane: usize, slot: usize) {
        self.lane_of.push(lane as u32);
        self.slots.push(slot as u32);
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
