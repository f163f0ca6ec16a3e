//! A layer's cache made by chance: lanes with holes and ragged ends, tables in gangs and apart, pages of every type.

use half::{bf16, f16};
use kvista::quant::{Codec, CodedRows, Grouping};
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::host::Buffer;

pub(crate) const HOLE: u32 = u32::MAX;
/// The window of a layer without one, and the cap of scores without one.
pub(crate) const ALL_POSITIONS: u32 = u32::MAX;
pub(crate) const NO_CAP: f32 = 0.0;
/// Slots per partial result, as in `base.cuh`.
pub(crate) const SPLIT: usize = 256;
const PAGE: usize = 32;

/// Page types.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cell {
    F32,
    F16,
    Bf16,
    Int8,
    Int4,
    Int2,
}

impl Cell {
    pub(crate) const ALL: [Self; 6] = [Self::F32, Self::F16, Self::Bf16, Self::Int8, Self::Int4, Self::Int2];

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
            Self::Int8 => "int8",
            Self::Int4 => "int4",
            Self::Int2 => "int2",
        }
    }

    /// Whether keys share their page's scales, and the newest rows are exact.
    pub(crate) const fn is_kivi(self) -> bool {
        matches!(self, Self::Int4 | Self::Int2)
    }

    pub(crate) fn codec(self, keys: bool, head_dim: usize) -> Option<Codec> {
        let grouping = if keys { Grouping::Channel(PAGE) } else { Grouping::Token(PAGE) };
        match self {
            Self::F32 | Self::F16 | Self::Bf16 => None,
            Self::Int8 => Some(Codec::new(8, Grouping::Token(head_dim), head_dim)),
            Self::Int4 => Some(Codec::new(4, grouping, head_dim)),
            Self::Int2 => Some(Codec::new(2, grouping, head_dim)),
        }
    }

    pub(crate) fn row_bytes(self, head_dim: usize) -> usize {
        match self {
            Self::F32 => 4 * head_dim,
            Self::F16 | Self::Bf16 => 2 * head_dim,
            _ => self.codec(false, head_dim).unwrap().row_bytes(),
        }
    }

    /// Bytes of some rows, a whole page of them where keys share scales, and what they are read as.
    pub(crate) fn encode(
        self,
        keys: bool,
        rows: &[f32],
        live: &[bool],
        head_dim: usize,
    ) -> (Vec<u8>, Vec<f32>) {
        match self {
            Self::F32 => (rows.iter().flat_map(|x| x.to_le_bytes()).collect(), rows.to_vec()),
            Self::F16 => {
                let halves: Vec<f16> = rows.iter().map(|&x| f16::from_f32(x)).collect();
                let bytes = halves.iter().flat_map(|x| x.to_le_bytes()).collect();
                (bytes, halves.iter().map(|x| x.to_f32()).collect())
            }
            Self::Bf16 => {
                let halves: Vec<bf16> = rows.iter().map(|&x| bf16::from_f32(x)).collect();
                let bytes = halves.iter().flat_map(|x| x.to_le_bytes()).collect();
                (bytes, halves.iter().map(|x| x.to_f32()).collect())
            }
            _ => {
                let codec = self.codec(keys, head_dim).unwrap();
                let mut coded = vec![0; live.len() * codec.row_bytes()];
                codec.encode(rows, live, &mut coded);
                let mut read = vec![0.0; rows.len()];
                CodedRows::new(codec, &coded, &[]).decode(&mut read);
                (coded, read)
            }
        }
    }
}

/// What a scene looks like; see [`Scene::new`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    pub(crate) cell: Cell,
    pub(crate) sequences: usize,
    pub(crate) kv_heads: usize,
    pub(crate) group: usize,
    pub(crate) head_dim: usize,
    pub(crate) block_size: usize,
    /// Most slots of a lane.
    pub(crate) slots: usize,
    /// Share of slots that are holes.
    pub(crate) holes: f64,
    /// Tokens of a prefill at the end of every lane, which are never holes; their queries are the lane's.
    pub(crate) fresh: usize,
}

impl Plan {
    /// A plan by chance; decode, within the limits of the type.
    pub(crate) fn chance(rng: &mut ChaCha8Rng, cell: Cell) -> Self {
        let kivi = cell.is_kivi();
        let head_dims: &[usize] =
            if kivi { &[32, 64, 96, 128, 256] } else { &[32, 40, 64, 80, 96, 128, 192, 256] };
        let block_sizes: &[usize] = if kivi { &[32] } else { &[1, 4, 16, 16, 24, 32, 64] };
        Self {
            cell,
            sequences: rng.random_range(1..=4),
            kv_heads: rng.random_range(1..4),
            group: rng.random_range(1..10),
            head_dim: *pick(rng, head_dims),
            block_size: *pick(rng, block_sizes),
            slots: *pick(rng, &[1, 7, 33, 70, 255, 256, 257, 300, 530]),
            holes: *pick(rng, &[0.0, 0.1, 0.6]),
            fresh: 1,
        }
    }

    pub(crate) const fn heads(&self) -> usize {
        self.kv_heads * self.group
    }
}

pub(crate) fn pick<'a, T>(rng: &mut ChaCha8Rng, of: &'a [T]) -> &'a T {
    &of[rng.random_range(0..of.len())]
}

pub(crate) fn seeded(seed: u64) -> ChaCha8Rng {
    ChaCha8Rng::seed_from_u64(seed)
}

pub(crate) fn uniform(rng: &mut ChaCha8Rng, n: usize, most: f32) -> Vec<f32> {
    (0..n).map(|_| rng.random_range(-most..most)).collect()
}

/// One lane and what its rows are read as.
#[derive(Clone, Debug, Default)]
pub(crate) struct LaneScene {
    pub(crate) words: [u32; 8],
    pub(crate) positions: Vec<u32>,
    /// Row of each slot in the slabs, and in those of exact pages.
    pub(crate) rows: Vec<usize>,
    pub(crate) exact_rows: Vec<usize>,
    pub(crate) k_coded: usize,
    pub(crate) v_coded: usize,
    pub(crate) query: u32,
    /// As written, `[slot][head_dim]`.
    pub(crate) written_keys: Vec<f32>,
    pub(crate) written_values: Vec<f32>,
    /// As read.
    pub(crate) keys: Vec<f32>,
    pub(crate) values: Vec<f32>,
}

impl LaneScene {
    pub(crate) fn slots(&self) -> usize {
        self.positions.len()
    }

    /// Whether a query at a position sees a slot.
    pub(crate) fn sees(&self, query: u32, slot: usize) -> bool {
        self.positions[slot] != HOLE && self.positions[slot] <= query
    }
}

/// Lanes `[sequence][kv_head]`, tables and slabs.
#[derive(Clone, Debug)]
pub(crate) struct Scene {
    pub(crate) plan: Plan,
    pub(crate) lanes: Vec<LaneScene>,
    pub(crate) blocks: Vec<u32>,
    pub(crate) positions: Vec<u32>,
    pub(crate) k: Vec<u8>,
    pub(crate) v: Vec<u8>,
    pub(crate) exact_k: Vec<u8>,
    pub(crate) exact_v: Vec<u8>,
}

impl Scene {
    pub(crate) fn new(plan: Plan, rng: &mut ChaCha8Rng) -> Self {
        let d = plan.head_dim;
        let most_blocks = plan.slots.div_ceil(plan.block_size);
        // Gangs of ids in a row, shuffled; more than are used.
        let mut gangs: Vec<u32> = (0..(plan.sequences * most_blocks + 3) as u32).collect();
        gangs.shuffle(rng);
        let rows = gangs.len() * plan.kv_heads * plan.block_size;
        let mut exact_gangs = gangs.clone();
        exact_gangs.shuffle(rng);
        let mut scene = Self {
            plan,
            lanes: Vec::new(),
            blocks: vec![u32::MAX / 2; 5],
            positions: vec![0; 3],
            k: vec![0xff; rows * plan.cell.row_bytes(d)],
            v: vec![0xff; rows * plan.cell.row_bytes(d)],
            exact_k: vec![0xff; if plan.cell.is_kivi() { rows * d * 4 } else { 0 }],
            exact_v: vec![0xff; if plan.cell.is_kivi() { rows * d * 4 } else { 0 }],
        };
        for _ in 0..plan.sequences {
            let slots = rng.random_range(plan.slots.div_ceil(2)..=plan.slots).max(plan.fresh);
            let count = slots.div_ceil(plan.block_size);
            let own: Vec<u32> = gangs.split_off(gangs.len() - count);
            let exact: Vec<u32> = exact_gangs.split_off(exact_gangs.len() - count);
            scene.sequence(rng, slots, &own, &exact);
        }
        scene
    }

    /// A sequence whose heads are one gang or apart, then with lengths and holes of their own.
    fn sequence(&mut self, rng: &mut ChaCha8Rng, slots: usize, own: &[u32], exact: &[u32]) {
        let plan = self.plan;
        let kv_heads = plan.kv_heads as u32;
        let gang = rng.random_bool(0.5);
        let mut shared: Option<LaneScene> = None;
        for head in 0..kv_heads {
            let mut lane = if let Some(lane) = &shared {
                lane.clone()
            } else {
                let fewer = rng.random_range(slots.div_ceil(2)..=slots).max(plan.fresh);
                let (slots, head) = if gang { (slots, None) } else { (fewer, Some(head)) };
                self.lane(rng, slots, own, exact, head)
            };
            if gang {
                shared = Some(lane.clone());
                lane.words[3] = head;
            }
            lane.rows = self.rows(&lane, lane.words[0]);
            lane.exact_rows = self.rows(&lane, lane.words[7]);
            self.fill(rng, &mut lane);
            self.lanes.push(lane);
        }
    }

    /// Tables and positions; with a head, its own.
    fn lane(
        &mut self,
        rng: &mut ChaCha8Rng,
        slots: usize,
        own: &[u32],
        exact: &[u32],
        head: Option<u32>,
    ) -> LaneScene {
        let plan = self.plan;
        let kv_heads = plan.kv_heads as u32;
        let ids =
            |gangs: &[u32]| -> Vec<u32> { gangs.iter().map(|g| g * kv_heads + head.unwrap_or(0)).collect() };
        let table = self.blocks.len() as u32;
        self.blocks.extend(ids(own));
        let exact_table = self.blocks.len() as u32;
        self.blocks.extend(ids(exact));
        let start = self.positions.len() as u32;
        // Positions skip what compaction has taken out before; the fresh ones follow each other.
        let mut position = 0;
        let positions: Vec<u32> = (0..slots)
            .map(|slot| {
                let fresh = slot + plan.fresh >= slots;
                position += if fresh { 1 } else { rng.random_range(1..3) };
                if !fresh && rng.random_bool(plan.holes) { HOLE } else { position }
            })
            .collect();
        self.positions.extend(&positions);
        let query = position + 1 - plan.fresh as u32;
        let (k_coded, v_coded) = if plan.cell.is_kivi() {
            (rng.random_range(0..=slots / PAGE) * PAGE, rng.random_range(0..=slots))
        } else {
            (0, 0)
        };
        let words = [table, start, slots as u32, 0, k_coded as u32, v_coded as u32, query, exact_table];
        LaneScene { words, positions, k_coded, v_coded, query, ..LaneScene::default() }
    }

    fn rows(&self, lane: &LaneScene, table: u32) -> Vec<usize> {
        let size = self.plan.block_size;
        let id = |slot: usize| (self.blocks[table as usize + slot / size] + lane.words[3]) as usize;
        (0..lane.slots()).map(|slot| id(slot) * size + slot % size).collect()
    }

    /// Writes the rows of live slots; those of holes stay what the slab is filled with.
    fn fill(&mut self, rng: &mut ChaCha8Rng, lane: &mut LaneScene) {
        let (d, cell, slots) = (self.plan.head_dim, self.plan.cell, lane.slots());
        lane.written_keys = uniform(rng, slots * d, 2.0);
        lane.written_values = uniform(rng, slots * d, 2.0);
        lane.keys = vec![f32::NAN; slots * d];
        lane.values = vec![f32::NAN; slots * d];
        if cell.is_kivi() {
            self.fill_coded(lane);
        }
        for slot in (0..slots).filter(|&slot| lane.positions[slot] != HOLE) {
            for (keys, written, read, coded) in [
                (true, &lane.written_keys, &mut lane.keys, lane.k_coded),
                (false, &lane.written_values, &mut lane.values, lane.v_coded),
            ] {
                let row = &written[slot * d..][..d];
                let exact = cell.is_kivi() && slot >= coded;
                if cell.is_kivi() && keys && !exact {
                    continue;
                }
                let as_cell = if exact { Cell::F32 } else { cell };
                let (bytes, values) = as_cell.encode(false, row, &[true], d);
                read[slot * d..][..d].copy_from_slice(&values);
                let at = if exact { lane.exact_rows[slot] } else { lane.rows[slot] } * bytes.len();
                let slab = match (keys, exact) {
                    (true, false) => &mut self.k,
                    (true, true) => &mut self.exact_k,
                    (false, false) => &mut self.v,
                    (false, true) => &mut self.exact_v,
                };
                slab[at..at + bytes.len()].copy_from_slice(&bytes);
            }
        }
    }

    /// Pages of keys in codes.
    fn fill_coded(&mut self, lane: &mut LaneScene) {
        let (d, cell) = (self.plan.head_dim, self.plan.cell);
        for first in (0..lane.k_coded).step_by(PAGE) {
            let live: Vec<bool> = lane.positions[first..first + PAGE].iter().map(|&p| p != HOLE).collect();
            let (bytes, read) =
                cell.encode(true, &lane.written_keys[first * d..(first + PAGE) * d], &live, d);
            lane.keys[first * d..(first + PAGE) * d].copy_from_slice(&read);
            let at = lane.rows[first] / PAGE * bytes.len();
            self.k[at..at + bytes.len()].copy_from_slice(&bytes);
        }
    }

    pub(crate) fn lane_of(&self, sequence: usize, kv_head: usize) -> &LaneScene {
        &self.lanes[sequence * self.plan.kv_heads + kv_head]
    }

    pub(crate) fn lane_words(&self) -> Buffer {
        Buffer::of_u32(&self.lanes.iter().flat_map(|lane| lane.words).collect::<Vec<_>>())
    }

    pub(crate) fn most_slots(&self) -> usize {
        self.lanes.iter().map(LaneScene::slots).max().unwrap()
    }
}
