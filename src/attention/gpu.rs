//! The GPU backend: the same stages with the kernels of `kernels/`, over pages in the device's memory.
//!
//! Pages are in the device's memory alone where nobody on the host reads a row ([`Resident`]): a step's rows do not pass the
//! host then, and all sequences of a batch share each launch. Else it reads a copy of the cache's pages, kept up to date
//! through [`PageCopies`], one sequence at a time; lanes name pages by block ([`Pages::Placed`](super::Pages::Placed)), and
//! values that live on the host come as the cache has them and are copied for the call. Of rows that are exact at first and
//! go into codes later (int4, int2) there are pages of codes and pages of exact rows; the cache makes the codes.
//!
//! # Where it differs from the processor's
//!
//! Sums run over other ranges of slots, so bits differ; those of the kernels are the same on every device. Scores and the sum
//! of values are one kernel where both lie on the device: the time of both is then that of the scores. A prefill's rows come
//! from products of whole matrices, a decode step's do not: a prompt in other chunks gives other bits.
//!
//! It does not have keys at one distance beyond a window, codes that are not uniform, or values of int4 and int2 that are
//! pulled from the host: a run that needs them is refused before it starts ([`check`] has the page types).

mod decode;
mod pages;
mod prefill;
mod resident;
mod standing;
mod tables;

use std::cell::{OnceCell, RefCell};

use super::bounds::PageBounds;
use super::lane::{HeadLane, Rows, Shape};
use super::pages::{LanePages, PageSelection};
use super::probabilities::Probabilities;
use super::select::{LaneSelection, Selection};
use super::{Attention, PrefillTime, Queries, RowSink, Wants};
use crate::device::gpu::{Array, DeviceError, Gpu, Result, Room};
use crate::device::launch::{Bend, Cell, Heads};
use crate::event::BlockId;

pub use pages::{NewTokens, PageCopies, Stretch};
pub use resident::{
    Answer, Choice, KeptSums, LaneTable, LayerErrors, LayerRows, Lost, Part, Picture, Pull, PullTime,
    Question, Resident, StepRows, TopRows,
};

use pages::Pool;
use resident::Batch;
use tables::Turns;

/// Attention on a GPU.
pub struct GpuAttention<G: Gpu> {
    gpu: G,
    shape: Shape,
    pool: Pool<G>,
    rooms: Rooms<G>,
    turns: Turns<G>,
    batch: Batch<G>,
    /// What the latest scores are of.
    scored: Scored,
    /// The latest rows, once somebody asks.
    rows: OnceCell<Probabilities>,
    selection: Selection,
    pages: PageSelection,
    column_sums: Vec<Vec<f32>>,
    /// Whether the rows of the latest selection are on the device.
    staged: bool,
    fault: RefCell<Option<DeviceError>>,
}

/// Arrays that are used from call to call.
struct Rooms<G: Gpu> {
    words: Room<G>,
    queries: Room<G>,
    partial: Room<G>,
    max_sum: Room<G>,
    totals: Room<G>,
    out: Room<G>,
    rows: Room<G>,
    marks: Room<G>,
    choice: Room<G>,
    /// Pages of the host for one call, and rows pulled from there.
    staged: Room<G>,
    counts: Room<G>,
    /// A layer's keys and values as matrices.
    keys: Room<G>,
    values: Room<G>,
    angles: Room<G>,
    tile: Room<G>,
    sums: Room<G>,
}

impl<G: Gpu> Rooms<G> {
    const fn new() -> Self {
        Self {
            words: Room::new("block tables"),
            queries: Room::new("queries"),
            partial: Room::new("partial sums"),
            max_sum: Room::new("partial sums"),
            totals: Room::new("partial sums"),
            out: Room::new("attention's output"),
            rows: Room::new("probabilities"),
            marks: Room::new("a selection"),
            choice: Room::new("a selection"),
            staged: Room::new("values pulled from the host"),
            counts: Room::new("a selection"),
            keys: Room::new("a layer's keys"),
            values: Room::new("a layer's values"),
            angles: Room::new("angles"),
            tile: Room::new("a tile of scores"),
            sums: Room::new("sums of attention"),
        }
    }
}

/// The latest probabilities: per KV head the slots of its lane, and where they are.
#[derive(Clone, Debug, Default)]
struct Scored {
    slots: Vec<usize>,
    row_stride: usize,
    /// Whether the stage that made them also left the output.
    has_output: bool,
}

/// Whether attention over such heads and pages runs on a GPU.
///
/// # Errors
/// It does not: one line.
pub fn check(shape: Shape, kv_dtype: &str) -> Result<Cell> {
    heads(shape).check()?;
    // What else is spelled there, an exact window or shares of outliers, is the cache's matter.
    match kv_dtype.split(':').next().unwrap_or(kv_dtype) {
        "f32" => Ok(Cell::F32),
        "f16" => Ok(Cell::F16),
        "int8" => Ok(Cell::Int8),
        "int4" => Ok(Cell::Int4),
        "int2" => Ok(Cell::Int2),
        other => Err(DeviceError::Limit(format!(
            "pages of {other} are not read yet: use --kv-dtype f32, f16, int8, int4 or int2, or --device \
             cpu"
        ))),
    }
}

const fn heads(shape: Shape) -> Heads {
    Heads { heads: shape.heads(), kv_heads: shape.kv_heads(), head_dim: shape.head_dim() }
}

impl<G: Gpu> GpuAttention<G> {
    /// A backend for layers of this shape, over pages of `block_size` rows stored as `cell`, at most `most_pages`.
    pub fn new(gpu: G, shape: Shape, cell: Cell, block_size: usize, most_pages: usize) -> Self {
        let kv_heads = shape.kv_heads();
        Self {
            batch: Batch::new(&gpu),
            gpu,
            shape,
            pool: Pool::new(cell, [kv_heads, shape.head_dim()], block_size, most_pages),
            rooms: Rooms::new(),
            turns: Turns::new(),
            scored: Scored { slots: vec![0; kv_heads], ..Scored::default() },
            rows: OnceCell::new(),
            selection: Selection { lanes: vec![LaneSelection::default(); kv_heads] },
            pages: PageSelection { lanes: vec![LanePages::default(); kv_heads] },
            column_sums: vec![Vec::new(); kv_heads],
            staged: false,
            fault: RefCell::new(None),
        }
    }

    /// Does something unless the device has failed; notes where it fails. Whether it was done.
    fn attempt(&mut self, what: impl FnOnce(&mut Self) -> Result<()>) -> bool {
        if self.fault.get_mut().is_some() {
            return false;
        }
        match what(self) {
            Ok(()) => true,
            Err(error) => {
                *self.fault.get_mut() = Some(error);
                false
            }
        }
    }

    fn check_lanes(&self, lanes: &[HeadLane<'_>]) {
        assert_eq!(lanes.len(), self.shape.kv_heads(), "one lane per KV head");
    }

    fn check_scored(&self, lanes: &[HeadLane<'_>]) {
        self.check_lanes(lanes);
        let same = lanes.iter().zip(&self.scored.slots).all(|(lane, &slots)| lane.slots.len() == slots);
        assert!(same, "the lanes that were scored");
    }

    /// Makes ready for new probabilities over these lanes.
    fn begin(&mut self, lanes: &[HeadLane<'_>]) {
        self.check_lanes(lanes);
        self.rows = OnceCell::new();
        self.scored = Scored {
            slots: lanes.iter().map(|lane| lane.slots.len()).collect(),
            row_stride: lanes.iter().map(|lane| lane.slots.len()).max().unwrap_or(0),
            has_output: false,
        };
        self.staged = false;
    }

    /// Makes ready for sums of columns, where they are wanted.
    fn begin_sums(&mut self, lanes: &[HeadLane<'_>], wants: Wants) {
        for (sums, lane) in self.column_sums.iter_mut().zip(lanes) {
            sums.clear();
            sums.resize(if wants.column_sums { lane.slots.len() } else { 0 }, 0.0);
        }
    }

    /// Rows of 0.
    fn no_rows(&self) -> Probabilities {
        let mut rows = Probabilities::new(self.shape.group(), self.shape.kv_heads());
        for (lane, &slots) in rows.lanes_mut().iter_mut().zip(&self.scored.slots) {
            lane.resize(slots, self.shape.group());
        }
        rows
    }

    /// Rows `[head][stride]` over the scored slots, out of the device's memory.
    fn fetch_rows(&self, from: Array, stride: usize) -> Result<Probabilities> {
        let (heads, group) = (self.shape.heads(), self.shape.group());
        let mut all = vec![0.0f32; heads * stride];
        self.gpu.download(from, bytemuck::cast_slice_mut(&mut all))?;
        let mut rows = self.no_rows();
        for (lane, all) in rows.lanes_mut().iter_mut().zip(all.chunks(group * stride.max(1))) {
            let slots = lane.slots;
            for (row, from) in lane.rows.chunks_mut(slots.max(1)).zip(all.chunks(stride.max(1))) {
                row.copy_from_slice(&from[..slots]);
            }
        }
        Ok(rows)
    }

    /// The output that the latest stage left.
    fn fetch_output(&mut self, out: &mut [f32]) {
        assert_eq!(out.len(), self.shape.width(), "the output is [head][head_dim]");
        out.fill(0.0);
        if self.scored.slots.iter().all(|&slots| slots == 0) {
            return;
        }
        let array = self.rooms.out.array(&self.gpu);
        self.attempt(|this| this.gpu.download(array, bytemuck::cast_slice_mut(out)));
    }
}

impl<G: Gpu> Attention for GpuAttention<G> {
    fn shape(&self) -> Shape {
        self.shape
    }

    fn scores(&mut self, query: Queries<'_>, lanes: &[HeadLane<'_>]) {
        self.begin(lanes);
        self.attempt(|this| this.decode(query, lanes, Array::NONE, 0));
    }

    fn select_top(&mut self, lanes: &[HeadLane<'_>], n: usize, include_self: bool) -> &Selection {
        self.check_scored(lanes);
        if !self.attempt(|this| this.choose_top(n, include_self)) {
            self.choose(lanes, |selection, rows, lane, _| selection.choose(rows, lane.slots, 0, None));
        }
        &self.selection
    }

    fn weighted_sum(&mut self, lanes: &[HeadLane<'_>], out: &mut [f32]) {
        self.check_scored(lanes);
        assert!(
            self.scored.has_output || self.fault.get_mut().is_some() || lanes[0].slots.is_empty(),
            "values on the device, or selected ones"
        );
        self.fetch_output(out);
    }

    fn stage(&mut self, values: &[Rows<'_>]) {
        assert_eq!(values.len(), self.shape.kv_heads(), "staged rows per KV head");
        self.staged = self.attempt(|this| this.stage_rows(values));
    }

    fn weighted_sum_selected(&mut self, values: &[Rows<'_>], out: &mut [f32]) {
        if !std::mem::take(&mut self.staged) {
            self.stage(values);
            self.staged = false;
        }
        out.fill(0.0);
        self.attempt(|this| this.sum_staged(out));
    }

    fn select_pages(
        &mut self,
        query: Queries<'_>,
        lanes: &[HeadLane<'_>],
        bounds: &[PageBounds],
        most: usize,
    ) -> &PageSelection {
        self.check_lanes(lanes);
        let (d, width) = (self.shape.head_dim(), self.shape.group() * self.shape.head_dim());
        // The bounds are kept on the host: they are two rows per page, and chosen from there.
        let scaled: Vec<f32> = query.rows.iter().map(|q| q * self.shape.scale()).collect();
        for ((pages, bounds), queries) in self.pages.lanes.iter_mut().zip(bounds).zip(scaled.chunks(width)) {
            pages.choose(queries, bounds, d, most);
        }
        &self.pages
    }

    fn scores_of_pages(&mut self, query: Queries<'_>, lanes: &[HeadLane<'_>]) {
        self.begin(lanes);
        self.attempt(|this| {
            let stride = this.scored.row_stride.div_ceil(32);
            let marks = this.page_marks(lanes, stride);
            let marks = this.rooms.marks.filled(&this.gpu, word_bytes(&marks))?;
            this.decode(query, lanes, marks, stride)
        });
    }

    fn weighted_sum_of_pages(&mut self, lanes: &[HeadLane<'_>], out: &mut [f32]) {
        self.weighted_sum(lanes, out);
    }

    fn select_chosen_pages(&mut self, lanes: &[HeadLane<'_>]) -> &Selection {
        self.check_scored(lanes);
        let pages = std::mem::take(&mut self.pages);
        self.choose(lanes, |selection, rows, lane, h| {
            selection.choose_pages(rows, lane.slots, pages.lane(h));
        });
        self.pages = pages;
        &self.selection
    }

    fn select_slots(&mut self, lanes: &[HeadLane<'_>], read: &[bool]) -> &Selection {
        self.check_scored(lanes);
        self.choose(lanes, |selection, rows, lane, _| selection.choose_slots(rows, lane.slots, read));
        &self.selection
    }

    fn prefill(
        &mut self,
        queries: Queries<'_>,
        lanes: &[HeadLane<'_>],
        wants: Wants,
        sinks: &mut [&mut dyn RowSink],
        out: &mut [f32],
    ) -> PrefillTime {
        assert!(sinks.is_empty() || sinks.len() == lanes.len(), "one sink per KV head, or none");
        assert!(queries.rows.len().is_multiple_of(self.shape.width()), "queries are [token][head][head_dim]");
        assert_eq!(out.len(), queries.rows.len(), "the output is as long as the queries");
        self.begin(lanes);
        self.begin_sums(lanes, wants);
        out.fill(0.0);
        let mut time = PrefillTime::default();
        self.attempt(|this| this.prefill_chunk(queries, lanes, wants, sinks, out, &mut time));
        time
    }

    fn probabilities(&self) -> &Probabilities {
        self.rows.get_or_init(|| {
            let is_lost = self.fault.borrow().is_some();
            if is_lost || self.scored.row_stride == 0 {
                return self.no_rows();
            }
            let from = self.rooms.rows.array(&self.gpu);
            self.fetch_rows(from, self.scored.row_stride).unwrap_or_else(|error| {
                *self.fault.borrow_mut() = Some(error);
                self.no_rows()
            })
        })
    }

    fn pages(&self) -> &PageSelection {
        &self.pages
    }

    fn selection(&self) -> &Selection {
        &self.selection
    }

    fn column_sums(&self, kv_head: usize) -> &[f32] {
        &self.column_sums[kv_head]
    }

    fn copies(&mut self) -> Option<&mut dyn PageCopies> {
        Some(self)
    }

    fn resident(&mut self) -> Option<&mut dyn Resident> {
        Some(self)
    }

    fn take_fault(&mut self) -> Option<DeviceError> {
        self.fault.get_mut().clone()
    }
}

impl<G: Gpu> PageCopies for GpuAttention<G> {
    fn append(&mut self, tokens: NewTokens<'_>) -> Result<()> {
        self.pool.append(&self.gpu, tokens)
    }

    fn put(&mut self, stretches: &[Stretch<'_>], values_on_host: bool) -> Result<()> {
        self.pool.put(&self.gpu, stretches, values_on_host)
    }

    fn free(&mut self, blocks: &[BlockId]) {
        self.pool.free(blocks);
    }

    fn held_bytes(&self) -> u64 {
        self.pool.held_bytes() as u64
    }
}

/// How the scores of a layer are bent: all its lanes alike.
fn bend(lanes: &[HeadLane<'_>]) -> Bend {
    lanes
        .first()
        .map_or_else(Bend::default, |lane| Bend { window: lane.scoring.window, cap: lane.scoring.softcap })
}

fn as_bytes(values: &[f32]) -> &[u8] {
    bytemuck::cast_slice(values)
}

fn word_bytes(words: &[u32]) -> &[u8] {
    bytemuck::cast_slice(words)
}
