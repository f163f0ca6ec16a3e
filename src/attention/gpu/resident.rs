//! Layers whose rows never pass the host: queries, keys and values come from the tensor library on the device, pages are
//! the device's alone, and what is attended goes back to the tensor library. All sequences of a batch share each launch.
//!
//! Values of layers whose home is the host (KCache, arXiv 2404.18057) are written to memory of the host that kernels reach,
//! and pulled from there, in the queue of copies: in a decode step the rows of one half of the batch come while the other
//! half is scored, in a prefill a layer's values go and come while its scores are made.

mod chunk;
mod contract;
mod crush;
mod errors;
mod kept;
mod moves;
mod picture;
mod pull;
mod reused;
mod sums;

use std::ops::Range;

use candle_core::Tensor;

use errors::Errors;
use kept::KeptLayer;
use picture::Pictures;
use reused::PulledLast;
use sums::LayerSums;

use super::pages::Home;
use super::standing::{Placed, Standing, Words};
use super::tables::Tables;
use super::{GpuAttention, word_bytes};
use crate::attention::{HeadLane, Rope, RowSink, Wants};
use crate::device::gpu::{Array, Gpu, Result, Room};
use crate::device::launch::{Append, Bend, Decode, FillRows, LANE_WORDS, RopeRows};
use crate::event::{BlockId, Layer, Position, ScoreLevel, SeqId};

pub use contract::{Choice, LaneTable, LayerRows, Part, Resident, StepRows, TopRows};
pub use errors::LayerErrors;
pub use picture::Picture;
pub(super) use pull::Pulled;
pub use pull::{Pull, PullTime};
pub use sums::{Answer, KeptSums, Lost, Question};

/// What is kept for it, from step to step and within one.
pub(super) struct Batch<G: Gpu> {
    /// The queue of copies.
    copies: G,
    standing: Standing<G>,
    step: StepRows,
    now: Option<Now>,
    rooms: BatchRooms<G>,
    /// By parity of the layer, when the values that lie in its rooms have been written to the host.
    pushed: [Option<G::Mark>; 2],
    marks: Vec<G::Mark>,
    pull: Pull,
    /// Whether rows that were pulled are kept, and those of each layer.
    keeps: bool,
    kept: Vec<KeptLayer<G>>,
    /// Clocked pulls: layer, begin and end in the queue of copies, begin and end of the wait for them.
    pulls: Vec<(Layer, [G::Mark; 4])>,
    /// Clocked pushes: layer, begin and end in the queue of copies.
    pushes: Vec<(Layer, [G::Mark; 2])>,
    /// Per layer, the parts whose choices were made in this step, and whether rows of the last were at hand.
    chosen: Vec<Vec<(Range<usize>, bool)>>,
    /// By layer.
    pulled_last: Vec<PulledLast<G>>,
    errors: Errors<G>,
    /// By layer.
    sums: Vec<LayerSums<G>>,
    pictures: Pictures<G>,
}

struct BatchRooms<G: Gpu> {
    /// By parity of the layer, as the new values.
    words: [Room<G>; 2],
    q_angles: Room<G>,
    k_angles: Room<G>,
    q: Room<G>,
    k: Room<G>,
    v: [Room<G>; 2],
    out: Room<G>,
    rows: Room<G>,
    choices: Room<G>,
    /// Slots that were chosen, of the layer under way.
    chosen: Room<G>,
    weights: Room<G>,
    staged: Room<G>,
    asked_words: Room<G>,
    answers: Room<G>,
    crush: Room<G>,
}

/// The layer under way.
#[derive(Clone, Debug)]
struct Now {
    layer: Layer,
    values_on_host: bool,
    bend: Bend,
    /// Of all parts.
    tables: Tables,
    parts: Vec<NowPart>,
    /// Of each part, its sequence.
    owners: Array,
    q: Array,
    out: Array,
    /// Parts and row stride of the latest decode.
    decoded: (Range<usize>, usize),
}

#[derive(Clone, Debug)]
struct NowPart {
    sequence: SeqId,
    first_row: usize,
    first: Position,
    tokens: usize,
    /// Slots per KV head.
    slots: Vec<usize>,
    /// Pages per KV head, where rows are copied one by one.
    pages: Vec<Vec<u32>>,
}

impl<G: Gpu> Batch<G> {
    pub(super) fn new(gpu: &G) -> Self {
        Self {
            copies: gpu.copies(),
            standing: Standing::new(),
            step: StepRows {
                positions: Vec::new(),
                parts: Vec::new(),
                layers: 0,
                read: None,
                sums: None,
                clocked: false,
                measured: false,
                counted: false,
            },
            now: None,
            rooms: BatchRooms {
                words: [Room::new("block tables"), Room::new("block tables")],
                q_angles: Room::new("angles"),
                k_angles: Room::new("angles"),
                q: Room::new("queries"),
                k: Room::new("new keys"),
                v: [Room::new("new values"), Room::new("new values")],
                out: Room::new("attention's output"),
                rows: Room::new("probabilities"),
                choices: Room::new("a selection"),
                chosen: Room::new("a selection"),
                weights: Room::new("a selection"),
                staged: Room::new("values pulled from the host"),
                asked_words: Room::new("block tables"),
                answers: Room::new("a decision"),
                crush: Room::new("a decision"),
            },
            pushed: [None, None],
            marks: Vec::new(),
            pull: Pull::default(),
            keeps: false,
            kept: Vec::new(),
            pulls: Vec::new(),
            pushes: Vec::new(),
            chosen: Vec::new(),
            pulled_last: Vec::new(),
            errors: Errors::new(),
            sums: Vec::new(),
            pictures: Pictures::new(),
        }
    }

    fn now(&self) -> &Now {
        self.now.as_ref().expect("a layer is under way")
    }
}

/// The home of pages that the device has alone.
const fn home(values_on_host: bool) -> Home {
    if values_on_host { Home::ValuesOnHost } else { Home::Device }
}

/// Words that a row takes to its place: lane and slot.
fn places(parts: &[Part<'_>], kv_heads: usize) -> [Vec<u32>; 2] {
    let (mut lane_of, mut slots) = (Vec::new(), Vec::new());
    for (i, part) in parts.iter().enumerate() {
        for token in 0..part.tokens {
            for head in 0..kv_heads {
                lane_of.push((i * kv_heads + head) as u32);
                slots.push((part.table(head).slots.len() - part.tokens + token) as u32);
            }
        }
    }
    [lane_of, slots]
}

impl<G: Gpu> GpuAttention<G> {
    /// Sees to pages for the blocks that new rows lie in.
    fn place_new(&mut self, parts: &[Part<'_>], home: Home) -> Result<()> {
        let (kv_heads, width) = (self.shape.kv_heads(), self.pool.block_size());
        for part in parts {
            for head in 0..kv_heads {
                let table = part.table(head);
                let first = (table.slots.len() - part.tokens) / width;
                let add = if part.tables.len() == 1 { head as BlockId } else { 0 };
                for &block in &table.blocks[first..] {
                    self.pool.put_place(&self.gpu, block + add, home)?;
                }
            }
        }
        Ok(())
    }

    /// Where the blocks of a KV head's lane lie.
    fn pages_of(&self, part: &Part<'_>, head: usize) -> Vec<u32> {
        let add = if part.tables.len() == 1 { head as BlockId } else { 0 };
        let places = part.table(head).blocks.iter().map(|&block| self.pool.place(block + add));
        places.map(|place| place.map_or(0, |place| place.page)).collect()
    }

    /// Turns rows in place, all heads of a token by its position.
    fn turn_rows(&mut self, rows: Array, count: usize, angles: Array, rope: &Rope) -> Result<()> {
        let indices = self.batch.step.positions.iter().max().map_or(0, |&last| last as usize + 1);
        let turns = self.turns.of(&self.gpu, rope, indices)?;
        let (head_dim, half) = (self.shape.head_dim(), rope.frequencies().len());
        RopeRows { rows: count, head_dim, half, array: rows, turns, angles }.launch(&self.gpu)
    }

    /// Writes new rows to their pages; values whose home is the host in the queue of copies.
    fn append_rows(
        &mut self,
        layer: usize,
        parts: &[Part<'_>],
        words: &Words,
        placed: Placed,
        home: Home,
        [keys, values]: [Array; 2],
    ) -> Result<(Tables, Array)> {
        let kv_heads = self.shape.kv_heads();
        let [lane_of, slots] = places(parts, kv_heads);
        let rows = lane_of.len();
        let more = [lane_of, slots, parts.iter().map(|part| part.sequence).collect()].concat();
        let [lanes, lane_of] =
            words.patch(&self.gpu, &mut self.batch.rooms.words[layer % 2], placed, &more)?;
        let slots = lane_of.offset(4 * rows);
        let [k, v] = self.pool.slabs(&self.gpu, home);
        let on_host = home == Home::ValuesOnHost;
        let (cell, block_size) = (self.pool.cell(), self.pool.block_size());
        let append = Append {
            cell,
            rows,
            head_dim: self.shape.head_dim(),
            block_size,
            k,
            v,
            keys,
            values,
            lane_of,
            slots,
            blocks: placed.blocks,
            lanes,
            keys_only: on_host,
        };
        append.launch(&self.gpu)?;
        if on_host {
            let ready = self.gpu.mark()?;
            let copies = &self.batch.copies;
            copies.after(&ready)?;
            let begun = self.clocked_copies()?;
            // The launch for keys alone, with values for keys.
            Append { k: v, keys: values, ..append }.launch(copies)?;
            self.batch.pushed[layer % 2] = Some(copies.mark()?);
            if let Some(begun) = begun {
                self.batch.pushes.push((layer as Layer, [begun, self.batch.copies.mark()?]));
            }
        }
        let Placed { positions, blocks } = placed;
        let owners = slots.offset(4 * rows);
        let exact = [Array::NONE; 2];
        Ok((Tables { lanes, positions, blocks, k, v, exact, cell, block_size }, owners))
    }

    /// Probabilities of some parts of one row each, and their output where values lie on the device.
    fn decode_rows(
        &mut self,
        parts: Range<usize>,
        stride: usize,
        rows: Array,
        has_values: bool,
    ) -> Result<()> {
        let heads = super::heads(self.shape);
        let now = self.batch.now();
        let (width, sequences) = (self.shape.width(), parts.len());
        let first_row = now.parts[parts.start].first_row;
        let (gpu, rooms) = (&self.gpu, &mut self.rooms);
        let decode = Decode {
            heads,
            cell: now.tables.cell,
            block_size: now.tables.block_size,
            sequences,
            slots: stride,
            scale: self.shape.scale(),
            bend: now.bend,
            queries: now.q.offset(4 * first_row * width),
            k: now.tables.k,
            v: if has_values { now.tables.v } else { Array::NONE },
            exact: now.tables.exact,
            blocks: now.tables.blocks,
            positions: now.tables.positions,
            lanes: now.lanes(parts.start, heads.kv_heads),
            read: Array::NONE,
            read_stride: 0,
            partial: rooms.partial.of(gpu, 4 * Decode::partial_elements(heads, sequences, stride))?,
            max_sum: rooms.max_sum.of(gpu, 4 * Decode::max_sum_elements(heads, sequences, stride))?,
            totals: rooms.totals.of(gpu, 8 * sequences * heads.heads)?,
            out: if has_values { now.out.offset(4 * first_row * width) } else { Array::NONE },
            rows,
            row_stride: stride,
        };
        decode.launch(gpu)
    }
}

impl Now {
    /// Words of the lanes from a part on.
    fn lanes(&self, part: usize, kv_heads: usize) -> Array {
        lanes_from(self.tables.lanes, part, kv_heads)
    }
}

fn lanes_from(lanes: Array, part: usize, kv_heads: usize) -> Array {
    lanes.offset(4 * LANE_WORDS * part * kv_heads)
}

impl<G: Gpu> Resident for GpuAttention<G> {
    fn copy_page(&mut self, from: BlockId, to: BlockId) -> Result<()> {
        self.copy_block(from, to)
    }

    fn move_rows(&mut self, lanes: &[(&[BlockId], &[u32], u32)]) -> Result<()> {
        self.move_lanes(lanes)
    }

    fn free(&mut self, blocks: &[BlockId]) {
        self.pool.free(blocks);
    }

    fn begin_step(&mut self, step: StepRows) -> Result<()> {
        let (heads, kv_heads) = (self.shape.heads(), self.shape.kv_heads());
        let angles = |heads: usize| -> Vec<u32> {
            step.positions.iter().flat_map(|&position| std::iter::repeat_n(position, heads)).collect()
        };
        let rooms = &mut self.batch.rooms;
        rooms.q_angles.filled(&self.gpu, word_bytes(&angles(heads)))?;
        rooms.k_angles.filled(&self.gpu, word_bytes(&angles(kv_heads)))?;
        self.batch.marks.clear();
        self.batch.pulls.clear();
        self.batch.pictures.begin();
        self.batch.pushes.clear();
        self.batch.chosen = vec![Vec::new(); step.layers];
        self.batch.step = step;
        Ok(())
    }

    fn begin_layer(&mut self, rows: &LayerRows<'_>, parts: &[Part<'_>]) -> Result<()> {
        let layer = usize::from(rows.layer);
        // What the queue of copies still reads is not written over.
        if let Some(pushed) = self.batch.pushed[layer % 2].take() {
            self.gpu.after(&pushed)?;
        }
        let home = home(rows.values_on_host);
        self.place_new(parts, home)?;
        self.begin_sums_of_layer(layer)?;
        let (heads, kv_heads, d) = (self.shape.heads(), self.shape.kv_heads(), self.shape.head_dim());
        let n = self.batch.step.positions.len();
        assert_eq!(parts.iter().map(|part| part.tokens).sum::<usize>(), n, "the rows of the step");
        let (placed, words) = self.batch.standing.bring(&self.gpu, &self.pool, layer, parts, kv_heads)?;
        let [q, k, out] = {
            let rooms = &mut self.batch.rooms;
            [(&mut rooms.q, heads), (&mut rooms.k, kv_heads), (&mut rooms.out, heads)]
                .map(|(room, heads)| room.of(&self.gpu, 4 * n * heads * d))
        };
        let (q, k, out) = (q?, k?, out?);
        self.gpu.read_tensor(rows.q, q)?;
        self.gpu.read_tensor(rows.k, k)?;
        let angles =
            [&self.batch.rooms.q_angles, &self.batch.rooms.k_angles].map(|room| room.array(&self.gpu));
        self.turn_rows(q, n * heads, angles[0], rows.rope)?;
        self.turn_rows(k, n * kv_heads, angles[1], rows.rope)?;
        let v = self.batch.rooms.v[layer % 2].of(&self.gpu, 4 * n * kv_heads * d)?;
        self.gpu.read_tensor(rows.v, v)?;
        let (tables, owners) = self.append_rows(layer, parts, &words, placed, home, [k, v])?;
        if self.batch.step.measured {
            self.measure_rows(layer, [k, v])?;
        }
        let mut first_row = 0;
        let now_parts = parts
            .iter()
            .map(|part| {
                let slots = (0..kv_heads).map(|head| part.table(head).slots.len()).collect();
                let pages = if self.batch.pull == Pull::Gather || !rows.values_on_host {
                    Vec::new()
                } else {
                    (0..kv_heads).map(|head| self.pages_of(part, head)).collect()
                };
                let own = NowPart {
                    sequence: part.sequence,
                    first_row,
                    first: part.first,
                    tokens: part.tokens,
                    slots,
                    pages,
                };
                first_row += part.tokens;
                own
            })
            .collect();
        self.batch.now = Some(Now {
            layer: rows.layer,
            values_on_host: rows.values_on_host,
            bend: Bend { window: rows.scoring.window, cap: rows.scoring.softcap },
            tables,
            parts: now_parts,
            owners,
            q,
            out,
            decoded: (0..0, 0),
        });
        Ok(())
    }

    fn decode(&mut self, parts: Range<usize>, keeps_rows: bool) -> Result<()> {
        let heads = self.shape.heads();
        let now = self.batch.now();
        assert!(now.parts[parts.clone()].iter().all(|part| part.tokens == 1), "parts of one row");
        let stride = now.parts[parts.clone()].iter().map(NowPart::most).max().unwrap_or(0);
        let reads = now.values_on_host;
        let rows = if keeps_rows || reads || self.batch.step.sums.is_some() {
            self.batch.rooms.rows.of(&self.gpu, 4 * parts.len() * heads * stride)?
        } else {
            Array::NONE
        };
        if let Some(now) = &mut self.batch.now {
            now.decoded = (parts.clone(), stride);
        }
        if reads {
            self.decode_chosen(parts.clone(), stride, rows)?;
        } else {
            self.decode_rows(parts.clone(), stride, rows, true)?;
        }
        self.accumulate_rows(parts, stride, rows)
    }

    fn prefill(
        &mut self,
        part: usize,
        lanes: &[HeadLane<'_>],
        wants: Wants,
        sinks: &mut [&mut dyn RowSink],
    ) -> Result<()> {
        self.prefill_part(part, lanes, wants, sinks)
    }

    fn output(&mut self) -> Result<Tensor> {
        let out = self.batch.now().out;
        self.gpu.tensor(out, self.batch.step.positions.len(), self.shape.width())
    }

    fn look_at(&mut self, part: usize) -> Result<()> {
        self.fetch_part(part)
    }

    fn draw(&mut self, level: ScoreLevel) -> Result<()> {
        self.draw_decoded(level)
    }

    fn pictures(&mut self) -> Result<Vec<Picture>> {
        self.fetch_pictures()
    }

    fn ask(&mut self, questions: &[Question<'_>]) -> Result<Vec<Vec<Answer>>> {
        self.answer(questions)
    }

    fn choices(&mut self) -> Result<Vec<Vec<Choice>>> {
        self.fetch_choices()
    }

    fn errors(&mut self, with_channels: bool) -> Result<Vec<LayerErrors>> {
        self.fetch_errors(with_channels)
    }

    fn mark(&mut self) -> Result<()> {
        if self.batch.step.clocked {
            self.batch.marks.push(self.gpu.mark()?);
        }
        Ok(())
    }

    fn laps_ns(&mut self) -> Result<Vec<u64>> {
        let marks = std::mem::take(&mut self.batch.marks);
        marks.windows(2).map(|pair| self.gpu.elapsed_ns(&pair[0], &pair[1])).collect()
    }

    fn pulls(&mut self) -> Result<Vec<PullTime>> {
        self.pull_times()
    }

    fn set_pull(&mut self, pull: Pull, keeps: bool) {
        self.batch.pull = if keeps { Pull::Gather } else { pull };
        self.batch.keeps = keeps;
    }

    fn fill(&mut self, layer: Layer, parts: &[Part<'_>], values_on_host: bool, seed: u32) -> Result<()> {
        let home = home(values_on_host);
        self.place_new(parts, home)?;
        let (layer, kv_heads) = (usize::from(layer), self.shape.kv_heads());
        let (placed, words) = self.batch.standing.bring(&self.gpu, &self.pool, layer, parts, kv_heads)?;
        let [lanes, _] = words.patch(&self.gpu, &mut self.batch.rooms.words[layer % 2], placed, &[])?;
        let slots = parts.iter().flat_map(|part| &part.tables).map(|table| table.slots.len()).max();
        let slabs = self.pool.slabs(&self.gpu, home);
        for (part, slab) in slabs.into_iter().enumerate() {
            let fill = FillRows {
                cell: self.pool.cell(),
                head_dim: self.shape.head_dim(),
                kv_heads,
                sequences: parts.len(),
                block_size: self.pool.block_size(),
                slots: slots.unwrap_or(0),
                slab,
                blocks: placed.blocks,
                lanes,
                seed: seed.wrapping_add((2 * layer + part) as u32),
                sigma: 1.0,
            };
            fill.launch(&self.gpu)?;
        }
        Ok(())
    }

    fn reserve(&mut self, pages: usize, values_on_host: bool) -> Result<()> {
        let home = home(values_on_host);
        self.pool.reserve(&self.gpu, home, pages.div_ceil(self.shape.kv_heads()))
    }
}
