//! The pages in a GPU's memory: where each block lies, and how rows come there.

mod mixed;

use super::super::lane::Rows;
use super::{as_bytes, word_bytes};
use crate::device::gpu::{Array, DeviceError, Gpu, Result, Room};
use crate::device::launch::{Append, Cell, LANE_WORDS};
use crate::event::BlockId;

pub(super) use mixed::MixedPlace;

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
    /// `[row][head_dim]`; `None` where they are what they were. Keys of a page in codes with scales of the page are all of its
    /// rows.
    pub keys: Option<Rows<'a>>,
    /// The same; `None` too where values live on the host.
    pub values: Option<Rows<'a>>,
    /// Where rows go into codes later, leading rows of the block that are there now: of keys and of values.
    pub in_codes: [usize; 2],
}

/// A copy of the cache's pages, kept where attention reads it.
pub trait PageCopies {
    /// Writes the rows of new tokens.
    ///
    /// # Errors
    /// There is no more memory, or the device fails; so below.
    fn append(&mut self, tokens: NewTokens<'_>) -> Result<()>;

    /// Writes rows that are stored already: those that moved, were altered, or went into codes. Of all of their blocks the
    /// values live on the host, or of none.
    fn put(&mut self, stretches: &[Stretch<'_>], values_on_host: bool) -> Result<()>;

    /// Forgets blocks that were given back.
    fn free(&mut self, blocks: &[BlockId]);

    /// Bytes of the pages that are here.
    fn held_bytes(&self) -> u64;
}

/// Where the two pages of a block lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Home {
    /// Both on the device.
    Device,
    /// The keys on the device; of the values there is no copy.
    KeysAlone,
    /// The keys on the device, the values in memory of the host that kernels reach.
    ValuesOnHost,
}

/// A block's place in the slabs of its home.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) home: Home,
    pub(super) page: u32,
}

const NONE: u32 = u32::MAX;

/// Pages of one home. Block ids come in frames of one per KV head, and a frame's pages follow each other here too.
struct Slabs<G: Gpu> {
    keys: Room<G>,
    values: Option<Room<G>>,
    /// Frames that there is memory for, and those that were ever used.
    capacity: usize,
    used: usize,
    free: Vec<u32>,
    /// By frame of ids: where it lies, and how many of its blocks are here.
    frames: Vec<(u32, u32)>,
}

/// Pages of rows that are stored in one way, by block.
struct Paged<G: Gpu> {
    kv_heads: usize,
    page_bytes: usize,
    /// Frames that the cache will use, if it uses all.
    most: usize,
    /// By [`Home`].
    slabs: [Slabs<G>; 3],
    homes: Vec<Option<Home>>,
}

/// All pages.
pub(super) struct Pool<G: Gpu> {
    cell: Cell,
    head_dim: usize,
    block_size: usize,
    pages: Paged<G>,
    /// Where rows go into codes later, pages of those that are not there yet, beside those of codes. A block has either or
    /// both.
    exact: Paged<G>,
    /// Then by block, the leading rows that are in codes: of keys and of values.
    in_codes: Vec<[u32; 2]>,
    words: Room<G>,
    rows: [Room<G>; 2],
}

impl<G: Gpu> Slabs<G> {
    const fn new(values: Option<Room<G>>) -> Self {
        Self { keys: Room::new("keys"), values, capacity: 0, used: 0, free: Vec::new(), frames: Vec::new() }
    }

    /// Sees to memory for so many frames.
    fn grow(&mut self, gpu: &G, frame_bytes: usize, capacity: usize) -> Result<()> {
        if capacity > self.capacity {
            if self.free.len() == self.used {
                // Nothing is kept, and nothing is there any more where there is no memory for as much.
                self.free.clear();
                (self.used, self.capacity) = (0, 0);
            }
            for room in [Some(&mut self.keys), self.values.as_mut()].into_iter().flatten() {
                room.grown(gpu, self.used * frame_bytes, capacity * frame_bytes)?;
            }
            self.capacity = capacity;
        }
        Ok(())
    }

    /// The place of a frame, of which one more block is here from now on.
    fn take(&mut self, gpu: &G, frame: usize, frame_bytes: usize, most: usize) -> Result<u32> {
        /// Memory taken at first.
        const FEWEST_BYTES: usize = 1 << 20;
        if self.frames.len() <= frame {
            self.frames.resize(frame + 1, (NONE, 0));
        }
        if self.frames[frame].0 == NONE {
            let place = if let Some(place) = self.free.pop() {
                place
            } else {
                if self.used == self.capacity {
                    let roomy = (2 * self.capacity).max(FEWEST_BYTES.div_ceil(frame_bytes));
                    self.grow(gpu, frame_bytes, roomy.min(most).max(self.used + 1))?;
                }
                self.used += 1;
                self.used as u32 - 1
            };
            self.frames[frame].0 = place;
        }
        let (place, blocks) = &mut self.frames[frame];
        *blocks += 1;
        Ok(*place)
    }

    /// One block less of a frame is here.
    fn give_back(&mut self, frame: usize) {
        let (place, blocks) = &mut self.frames[frame];
        *blocks -= 1;
        if *blocks == 0 {
            self.free.push(std::mem::replace(place, NONE));
        }
    }
}

impl<G: Gpu> Paged<G> {
    fn new(kv_heads: usize, page_bytes: usize, most_pages: usize) -> Self {
        let slabs = [
            Slabs::new(Some(Room::new("values"))),
            Slabs::new(None),
            Slabs::new(Some(Room::on_host("values"))),
        ];
        Self { kv_heads, page_bytes, most: most_pages.div_ceil(kv_heads), slabs, homes: Vec::new() }
    }

    const fn frame_bytes(&self) -> usize {
        self.page_bytes * self.kv_heads
    }

    fn place(&self, block: BlockId) -> Option<Place> {
        let home = self.homes.get(block as usize).copied().flatten()?;
        let (frame, head) = (block as usize / self.kv_heads, block as usize % self.kv_heads);
        let page = self.slabs[home as usize].frames[frame].0 * self.kv_heads as u32 + head as u32;
        Some(Place { home, page })
    }

    fn slabs(&self, gpu: &G, home: Home) -> [Array; 2] {
        let slabs = &self.slabs[home as usize];
        [slabs.keys.array(gpu), slabs.values.as_ref().map_or(Array::NONE, |room| room.array(gpu))]
    }

    fn reserve(&mut self, gpu: &G, home: Home, frames: usize) -> Result<()> {
        let frame_bytes = self.frame_bytes();
        let slabs = &mut self.slabs[home as usize];
        slabs.grow(gpu, frame_bytes, slabs.used + frames.saturating_sub(slabs.free.len()))
    }

    fn put(&mut self, gpu: &G, block: BlockId, home: Home) -> Result<u32> {
        let id = block as usize;
        if self.homes.len() <= id {
            self.homes.resize(id + 1, None);
        }
        if self.homes[id] != Some(home) {
            // A layer of another kind had the block.
            self.free(block);
            let frame_bytes = self.frame_bytes();
            self.slabs[home as usize].take(gpu, id / self.kv_heads, frame_bytes, self.most)?;
            self.homes[id] = Some(home);
        }
        Ok(self.place(block).map_or(NONE, |place| place.page))
    }

    /// Named twice, a block is still free once.
    fn free(&mut self, block: BlockId) {
        if let Some(home) = self.homes.get_mut(block as usize).and_then(Option::take) {
            self.slabs[home as usize].give_back(block as usize / self.kv_heads);
        }
    }

    fn held_bytes(&self) -> usize {
        let frames =
            |slabs: &Slabs<G>| (slabs.used - slabs.free.len()) * if slabs.values.is_some() { 2 } else { 1 };
        self.slabs.iter().map(frames).sum::<usize>() * self.frame_bytes()
    }
}

impl<G: Gpu> Pool<G> {
    pub(super) fn new(
        cell: Cell,
        [kv_heads, head_dim]: [usize; 2],
        block_size: usize,
        most_pages: usize,
    ) -> Self {
        let paged = |cell: Cell| Paged::new(kv_heads, block_size * cell.row_bytes(head_dim), most_pages);
        Self {
            cell,
            head_dim,
            block_size,
            pages: paged(cell),
            exact: paged(Cell::F32),
            in_codes: Vec::new(),
            words: Room::new("block tables"),
            rows: [Room::new("new keys"), Room::new("new values")],
        }
    }

    pub(super) const fn cell(&self) -> Cell {
        self.cell
    }

    pub(super) const fn block_size(&self) -> usize {
        self.block_size
    }

    pub(super) fn place(&self, block: BlockId) -> Option<Place> {
        self.pages.place(block)
    }

    /// The same of a block that has its pages.
    pub(super) fn find(&self, block: BlockId) -> Result<Place> {
        self.place(block).ok_or_else(|| no_page(block))
    }

    /// Slabs of keys and values of a home; the second is no array where it has none.
    pub(super) fn slabs(&self, gpu: &G, home: Home) -> [Array; 2] {
        self.pages.slabs(gpu, home)
    }

    pub(super) const fn page_bytes(&self) -> usize {
        self.pages.page_bytes
    }

    /// Bytes of all pages.
    pub(super) fn held_bytes(&self) -> usize {
        self.pages.held_bytes() + self.exact.held_bytes()
    }

    /// Memory for so many more frames of a home, at once.
    pub(super) fn reserve(&mut self, gpu: &G, home: Home, frames: usize) -> Result<()> {
        self.pages.reserve(gpu, home, frames)
    }

    /// The page of a block that is written to.
    pub(super) fn put_place(&mut self, gpu: &G, block: BlockId, home: Home) -> Result<u32> {
        self.pages.put(gpu, block, home)
    }

    pub(super) fn free(&mut self, blocks: &[BlockId]) {
        for &block in blocks {
            self.pages.free(block);
            self.exact.free(block);
            if let Some(in_codes) = self.in_codes.get_mut(block as usize) {
                *in_codes = [0; 2];
            }
        }
    }

    /// How rows are stored as they come, and the pages that they go to.
    const fn written(&mut self) -> (Cell, &mut Paged<G>) {
        if self.cell.goes_into_codes_later() {
            (Cell::F32, &mut self.exact)
        } else {
            (self.cell, &mut self.pages)
        }
    }

    pub(super) fn append(&mut self, gpu: &G, tokens: NewTokens<'_>) -> Result<()> {
        let NewTokens { keys, values, places } = tokens;
        let home = home(values.is_none());
        let mut lanes = NewRows::default();
        for (_, blocks) in places {
            lanes.begin_lane();
            for &block in blocks {
                lanes.tables.push(self.written().1.put(gpu, block, home)?);
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
        let (block_size, keys_only) = (self.block_size, values.is_none());
        let (cell, pages) = self.written();
        let [k, v] = pages.slabs(gpu, home(keys_only));
        let [new_keys, new_values] = &mut self.rows;
        let keys = new_keys.filled(gpu, as_bytes(keys))?;
        let values = match values {
            Some(values) => new_values.filled(gpu, as_bytes(values))?,
            None => Array::NONE,
        };
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

    pub(super) fn put(&mut self, gpu: &G, stretches: &[Stretch<'_>], values_on_host: bool) -> Result<()> {
        if stretches.is_empty() {
            return Ok(());
        }
        let home = home(values_on_host);
        match self.cell {
            Cell::F32 | Cell::F16 => self.put_exact(gpu, stretches, values_on_host),
            Cell::Int8 => self.put_codes(gpu, stretches, home),
            Cell::Int4 | Cell::Int2 => self.put_mixed(gpu, stretches, home),
        }
    }

    /// Widened, and narrowed again on the way: that changes no bit, and all of them go in one launch.
    fn put_exact(&mut self, gpu: &G, stretches: &[Stretch<'_>], values_on_host: bool) -> Result<()> {
        let (mut lanes, mut keys, mut values) = (NewRows::default(), Vec::new(), Vec::new());
        for (i, stretch) in stretches.iter().enumerate() {
            lanes.begin_lane();
            lanes.tables.push(self.put_place(gpu, stretch.block, home(values_on_host))?);
            let mut scratch = Vec::new();
            let rows = stretch.keys.ok_or_else(half_a_change)?;
            (0..rows.len() / self.head_dim).for_each(|row| lanes.push(i, stretch.row + row));
            keys.extend_from_slice(rows.widen(&mut scratch));
            if !values_on_host {
                values.extend_from_slice(stretch.values.ok_or_else(half_a_change)?.widen(&mut scratch));
            }
        }
        self.scatter(gpu, lanes, &keys, (!values_on_host).then_some(&*values))
    }

    /// Codes as they are: making them anew of what they decode to would change them.
    fn put_codes(&mut self, gpu: &G, stretches: &[Stretch<'_>], home: Home) -> Result<()> {
        let row_bytes = self.cell.row_bytes(self.head_dim);
        let mut bytes = Vec::new();
        for &Stretch { block, row, keys, values, .. } in stretches {
            let page = self.put_place(gpu, block, home)? as usize;
            let at = (page * self.block_size + row) * row_bytes;
            let [k, v] = self.slabs(gpu, home);
            for (slab, rows) in [(k, keys), (v, values)] {
                let Some(rows) = rows else { continue };
                bytes.clear();
                stored(rows, self.cell, &mut bytes)?;
                gpu.upload(slab.offset(at), &bytes)?;
            }
        }
        Ok(())
    }
}

/// The home of a block that is copied with its values, or without.
const fn home(values_on_host: bool) -> Home {
    if values_on_host { Home::KeysAlone } else { Home::Device }
}

fn no_page(block: BlockId) -> DeviceError {
    DeviceError::Limit(format!("block {block} has no page there: a fault of kvista's"))
}

fn half_a_change() -> DeviceError {
    DeviceError::Limit("rows changed whose keys or values did not: a fault of kvista's".into())
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
