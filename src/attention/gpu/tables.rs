//! Block tables, positions and lanes as the kernels read them, and the turns of a rotation.

use super::super::lane::{HOLE, HeadLane, Pages, Rotation};
use super::super::rope::Rope;
use super::pages::{Home, MixedPlace, stored};
use super::{GpuAttention, as_bytes, word_bytes};
use crate::device::gpu::{Array, DeviceError, Gpu, Result, Room};
use crate::device::launch::{Cell, GatherPages, LANE_CODED, LANE_EXACT, LANE_WORDS, RopeRows};

/// Which of a lane's pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    Keys,
    Values,
}

impl Part {
    const fn of<'a>(self, lane: &HeadLane<'a>) -> Pages<'a> {
        match self {
            Self::Keys => lane.k,
            Self::Values => lane.v,
        }
    }
}

/// The lanes of one (sequence, layer) on the device.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tables {
    pub(super) lanes: Array,
    pub(super) positions: Array,
    pub(super) blocks: Array,
    /// Slabs that the blocks are of; no values where they do not lie beside the keys.
    pub(super) k: Array,
    pub(super) v: Array,
    /// Those of exact keys and values, where rows go into codes later.
    pub(super) exact: [Array; 2],
    pub(super) cell: Cell,
    pub(super) block_size: usize,
}

/// Slots of a page of a matrix that stands in for pages.
const MATRIX_PAGE: usize = 256;

/// Words of the lanes, of their positions, and of their block tables.
#[derive(Default)]
struct Words {
    lanes: Vec<u32>,
    positions: Vec<u32>,
    blocks: Vec<u32>,
}

impl Words {
    /// Lanes without tables yet; `query` is the position of the (first) query. Heads of a gang share their positions.
    fn of(lanes: &[HeadLane<'_>], query: u32) -> Self {
        let mut words = Self::default();
        let mut last: Option<(&[u32], u32)> = None;
        for lane in lanes {
            let start = match last {
                Some((slots, start)) if std::ptr::eq(slots, lane.slots) => start,
                _ => {
                    let start = words.positions.len() as u32;
                    words.positions.extend_from_slice(lane.slots);
                    start
                }
            };
            last = Some((lane.slots, start));
            words.lanes.extend([0, start, lane.slots.len() as u32, 0, 0, 0, query, 0]);
        }
        words
    }

    /// Puts down where the table of a KV head begins: what is added next.
    fn begin_table(&mut self, kv_head: usize) {
        self.lanes[kv_head * LANE_WORDS] = self.blocks.len() as u32;
    }

    /// Puts down the tables of a KV head whose rows go into codes later, and how many of its leading slots are there.
    fn put_mixed(&mut self, kv_head: usize, places: &[MixedPlace], block_size: usize) {
        self.begin_table(kv_head);
        self.blocks.extend(places.iter().map(|place| place.pages[0]));
        let lane = &mut self.lanes[kv_head * LANE_WORDS..][..LANE_WORDS];
        lane[LANE_EXACT] = self.blocks.len() as u32;
        self.blocks.extend(places.iter().map(|place| place.pages[1]));
        for part in 0..2 {
            let last = places.iter().rposition(|place| place.in_codes[part] > 0);
            let slots = last.map_or(0, |i| i * block_size + places[i].in_codes[part]);
            lane[LANE_CODED + part] = slots as u32;
        }
    }
}

impl<G: Gpu> GpuAttention<G> {
    /// Copies the tables of these lanes to the device, for a query at `query`.
    pub(super) fn load(&mut self, lanes: &[HeadLane<'_>], part: Part, query: u32) -> Result<Tables> {
        debug_assert!(
            lanes.iter().all(|lane| !matches!(lane.rotation, Rotation::Windowed { .. })),
            "the run was checked"
        );
        let mut words = Words::of(lanes, query);
        let block_size = lanes[0].block_size;
        let cell = self.pool.cell();
        if let Pages::Placed(_) = part.of(&lanes[0]) {
            let mut home = Home::Device;
            for (h, lane) in lanes.iter().enumerate() {
                let Pages::Placed(blocks) = part.of(lane) else { return Err(apart()) };
                if cell.goes_into_codes_later() {
                    let places: Vec<MixedPlace> =
                        blocks.iter().map(|&block| self.pool.find_mixed(block)).collect::<Result<_>>()?;
                    home = places.last().map_or(home, |place| place.home);
                    words.put_mixed(h, &places, block_size);
                    continue;
                }
                words.begin_table(h);
                for &block in blocks {
                    let place = self.pool.find(block)?;
                    home = place.home;
                    words.blocks.push(place.page);
                }
            }
            let [mut codes, exact] =
                [self.pool.slabs(&self.gpu, home), self.pool.exact_slabs(&self.gpu, home)];
            // No slab of values means scores alone. As long as no row is in codes there is no memory for codes, which nobody
            // reads then.
            for (codes, exact) in codes.iter_mut().zip(exact).filter(|(codes, _)| **codes == Array::NONE) {
                *codes = exact;
            }
            let slabs = [codes, exact];
            return self.place(&words, slabs, cell, block_size);
        }
        // Pages of the host: whole ones, side by side.
        let page_bytes = block_size * cell.row_bytes(self.shape.head_dim());
        let mut bytes = Vec::new();
        for (h, lane) in lanes.iter().enumerate() {
            words.begin_table(h);
            let pages = part.of(lane);
            for i in 0..lane.slots.len().div_ceil(block_size) {
                words.blocks.push((bytes.len() / page_bytes) as u32);
                let rows = block_size.min(lane.slots.len() - i * block_size);
                let end = bytes.len() + page_bytes;
                stored(pages.page(i, rows * self.shape.head_dim()), cell, &mut bytes)?;
                bytes.resize(end, 0);
            }
        }
        let slab = self.rooms.staged.filled(&self.gpu, &bytes)?;
        self.place(&words, [[slab; 2], [Array::NONE; 2]], cell, block_size)
    }

    /// Tables of matrices `[kv_head][stride][head_dim]` of f32, as if they were pages.
    pub(super) fn load_matrices(
        &mut self,
        lanes: &[HeadLane<'_>],
        query: u32,
        [k, v]: [Array; 2],
        stride: usize,
    ) -> Result<Tables> {
        let mut words = Words::of(lanes, query);
        let pages = stride / MATRIX_PAGE;
        for h in 0..lanes.len() {
            words.begin_table(h);
            words.blocks.extend((0..pages).map(|i| (h * pages + i) as u32));
        }
        self.place(&words, [[k, v], [Array::NONE; 2]], Cell::F32, MATRIX_PAGE)
    }

    fn place(
        &mut self,
        words: &Words,
        [[k, v], exact]: [[Array; 2]; 2],
        cell: Cell,
        block_size: usize,
    ) -> Result<Tables> {
        let all = [&*words.lanes, &words.positions, &words.blocks].concat();
        let lanes = self.rooms.words.filled(&self.gpu, word_bytes(&all))?;
        let positions = lanes.offset(4 * words.lanes.len());
        let blocks = positions.offset(4 * words.positions.len());
        Ok(Tables { lanes, positions, blocks, k, v, exact, cell, block_size })
    }

    /// Rows of a matrix of a layer's keys or values: whole pages of what stands in for pages.
    pub(super) fn matrix_stride(lanes: &[HeadLane<'_>]) -> usize {
        lanes.iter().map(|lane| lane.slots.len()).max().unwrap_or(0).next_multiple_of(MATRIX_PAGE)
    }

    /// A layer's keys or values as one matrix of f32 per KV head, `[kv_head][stride][head_dim]`, turned where the lanes ask
    /// for it; what is behind a lane's slots is 0.
    pub(super) fn matrix(
        &mut self,
        lanes: &[HeadLane<'_>],
        part: Part,
        query: u32,
        stride: usize,
    ) -> Result<Array> {
        let tables = self.load(lanes, part, query)?;
        let gpu = self.gpu.clone();
        let out = self.gather_matrix(&gpu, &tables, part, stride)?;
        if part == Part::Keys {
            self.turn(lanes, out, stride)?;
        }
        Ok(out)
    }

    /// Where such a matrix lies, and its bytes.
    pub(super) fn matrix_room(&mut self, part: Part, stride: usize) -> Result<(Array, usize)> {
        let bytes = 4 * self.shape.kv_heads() * stride * self.shape.head_dim();
        let room = match part {
            Part::Keys => &mut self.rooms.keys,
            Part::Values => &mut self.rooms.values,
        };
        Ok((room.of(&self.gpu, bytes)?, bytes))
    }

    /// The same as the rows lie in pages, in a queue of the device.
    pub(super) fn gather_matrix(
        &mut self,
        queue: &G,
        tables: &Tables,
        part: Part,
        stride: usize,
    ) -> Result<Array> {
        let heads = super::heads(self.shape);
        let (out, bytes) = self.matrix_room(part, stride)?;
        // A probability of 0 times what happened to lie there is not 0 if that was no number.
        queue.clear(out, bytes)?;
        let gather = GatherPages {
            cell: tables.cell,
            heads,
            block_size: tables.block_size,
            slots: self.scored.row_stride,
            out,
            row_stride: stride,
            slab: if part == Part::Keys { tables.k } else { tables.v },
            exact: tables.exact[part as usize],
            values: part == Part::Values,
            blocks: tables.blocks,
            positions: tables.positions,
            lanes: tables.lanes,
        };
        gather.launch(queue)?;
        Ok(out)
    }

    /// Turns the keys of a matrix by what their lanes say.
    fn turn(&mut self, lanes: &[HeadLane<'_>], keys: Array, stride: usize) -> Result<()> {
        let mut angles = vec![0u32; lanes.len() * stride];
        let mut turning = None;
        for (lane, angles) in lanes.iter().zip(angles.chunks_mut(stride.max(1))) {
            let live = lane.slots.iter().zip(angles).filter(|(position, _)| **position != HOLE);
            for (rank, (&position, angle)) in live.enumerate() {
                let Some((rope, index)) = lane.rotation.at(rank, position) else { return Ok(()) };
                *angle = index as u32;
                turning = Some(rope);
            }
        }
        let Some(rope) = turning else { return Ok(()) };
        let indices = angles.iter().max().map_or(0, |&most| most as usize + 1);
        let turns = self.turns.of(&self.gpu, rope, indices)?;
        let angles = self.rooms.angles.filled(&self.gpu, word_bytes(&angles))?;
        let (rows, head_dim) = (lanes.len() * stride, self.shape.head_dim());
        let half = rope.frequencies().len();
        RopeRows { rows, head_dim, half, array: keys, turns, angles }.launch(&self.gpu)
    }

    /// The queries turned by what their lanes say, `[token][head][head_dim]`.
    pub(super) fn turned_queries(&self, rows: &[f32], first: u32, lanes: &[HeadLane<'_>]) -> Vec<f32> {
        let mut rows = rows.to_vec();
        let width = self.shape.group() * self.shape.head_dim();
        for (h, lane) in lanes.iter().enumerate() {
            if let Rotation::None = lane.rotation {
                continue;
            }
            let mut seen = (0, 0);
            for (t, heads) in rows.chunks_exact_mut(self.shape.width()).enumerate() {
                let position = first.saturating_add(t as u32);
                seen = lane.visible(position, seen);
                if let Some((rope, index)) = lane.rotation.at(seen.1.saturating_sub(1), position) {
                    rope.apply_heads(&mut heads[h * width..][..width], self.shape.head_dim(), index);
                }
            }
        }
        rows
    }
}

fn apart() -> DeviceError {
    DeviceError::Limit(
        "pages of the host and of the device cannot be read as one layer: a fault of kvista's".into(),
    )
}

/// Cosines and sines of rotations, on the device.
pub(super) struct Turns<G: Gpu> {
    kinds: Vec<Kind<G>>,
}

/// Those of one rotation.
struct Kind<G: Gpu> {
    frequencies: Vec<f64>,
    amplitude: f64,
    indices: usize,
    table: Room<G>,
}

impl<G: Gpu> Turns<G> {
    pub(super) const fn new() -> Self {
        Self { kinds: Vec::new() }
    }

    /// The table of a rotation, for indices below `indices`.
    pub(super) fn of(&mut self, gpu: &G, rope: &Rope, indices: usize) -> Result<Array> {
        /// Indices made at a time.
        const STEP: usize = 1024;
        let known = self
            .kinds
            .iter()
            .position(|kind| kind.frequencies == rope.frequencies() && kind.amplitude == rope.amplitude());
        let at = known.unwrap_or_else(|| {
            let frequencies = rope.frequencies().to_vec();
            let table = Room::new("angles");
            self.kinds.push(Kind { frequencies, amplitude: rope.amplitude(), indices: 0, table });
            self.kinds.len() - 1
        });
        let kind = &mut self.kinds[at];
        if kind.indices < indices {
            let width = 2 * kind.frequencies.len();
            let n = indices.next_multiple_of(STEP);
            let mut turns = vec![0.0; n * width];
            for (index, turns) in turns.chunks_exact_mut(width.max(1)).enumerate() {
                rope.fill(turns, index);
            }
            kind.table.filled(gpu, as_bytes(&turns))?;
            kind.indices = n;
        }
        Ok(kind.table.array(gpu))
    }
}
