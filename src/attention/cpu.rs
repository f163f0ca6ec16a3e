//! The CPU backend: plain slices; one task per KV head, or one per KV head and range of slots where there are few heads
//! and many slots.

use std::time::Instant;

use rayon::prelude::*;

use super::bounds::PageBounds;
use super::kernel::add;
use super::lane::{HeadLane, Rows, Shape};
use super::pages::{Everything, LanePages, PageSelection};
use super::probabilities::{LaneRows, Probabilities, add_group_mean};
use super::select::{LaneSelection, Selection};
use super::tile::{RANGE_SLOTS, RangeSum, Tile, tile_queries, weighted_sum_chosen};
use super::{Attention, PrefillTime, Queries, RowSink, Wants};
use crate::device::Isa;

/// Multiply-adds from which a stage is shared out over threads. Waking rayon's workers costs some ten microseconds;
/// this much work takes one core about a hundred, so sharing it out never loses much and soon wins.
const PARALLEL_WORK: usize = 1 << 19;

/// Tasks per thread below which one per KV head would leave threads without work at the end.
const TASKS_PER_THREAD: usize = 4;

/// Floats of a cache line: rows of a tile start that much apart from a power of two, which would put them all into
/// one set of the L1 cache.
const LINE: usize = 16;

/// Attention on the CPU, on the rayon pool that is current where it is called.
#[derive(Debug)]
pub struct CpuAttention {
    shape: Shape,
    heads: Vec<HeadScratch>,
    probabilities: Probabilities,
    selection: Selection,
    pages: PageSelection,
}

/// What one KV head's task works in.
#[derive(Clone, Debug, Default)]
struct HeadScratch {
    tile: Tile,
    /// A block of K or V as f32.
    block: Vec<f32>,
    /// Probabilities of a prefill's tile.
    probs: Vec<f32>,
    sum: RangeSum,
    /// A prefill's output of this head, `[token][head of the group][head_dim]`.
    out: Vec<f32>,
    column_sums: Vec<f32>,
    /// One query's mean row, on its way to a sink.
    mean: Vec<f32>,
    time: PrefillTime,
}

impl CpuAttention {
    /// A backend for layers of this shape.
    pub fn new(shape: Shape) -> Self {
        Self {
            shape,
            heads: vec![HeadScratch::default(); shape.kv_heads()],
            probabilities: Probabilities::new(shape.group(), shape.kv_heads()),
            selection: Selection { lanes: vec![LaneSelection::default(); shape.kv_heads()] },
            pages: PageSelection { lanes: vec![LanePages::default(); shape.kv_heads()] },
        }
    }

    /// Whether `queries` against these lanes are work enough for several threads.
    fn in_parallel(&self, queries: usize, slots: usize) -> bool {
        let work = slots.saturating_mul(queries).saturating_mul(self.shape.group() * self.shape.head_dim());
        work >= PARALLEL_WORK && rayon::current_num_threads() > 1
    }

    /// Whether a decode stage over these lanes is shared out by ranges of slots.
    fn in_ranges(&self, lanes: &[HeadLane<'_>]) -> bool {
        self.shape.kv_heads() < TASKS_PER_THREAD * rayon::current_num_threads()
            && lanes.iter().any(|lane| lane.slots.len() > RANGE_SLOTS)
            && self.in_parallel(1, slots(lanes))
    }

    /// The probabilities of one query, range by range. Three rounds, since a row's largest score and its sum have to be
    /// known before what follows.
    fn scores_in_ranges(&mut self, query: Queries<'_>, lanes: &[HeadLane<'_>]) {
        let (isa, shape, heads) = (Isa::best(), self.shape, &mut self.heads);
        let mut ranges = Vec::new();
        for ((h, lane), rows) in lanes.iter().enumerate().zip(self.probabilities.lanes_mut()) {
            let tile = &mut heads[h].tile;
            tile.load(shape, h, query.rows, query.first, lane);
            rows.resize(lane.slots.len(), shape.group());
            let mut rows: Vec<_> = rows
                .rows
                .chunks_mut(lane.slots.len().max(1))
                .map(|row| {
                    let (seen, rest) = row.split_at_mut(tile.reach());
                    rest.fill(0.0);
                    seen.chunks_mut(RANGE_SLOTS)
                })
                .collect();
            for first in (0..tile.reach()).step_by(RANGE_SLOTS) {
                let cells = rows.iter_mut().filter_map(Iterator::next).collect();
                ranges.push(ScoreRange { head: h, first, cells, tops: Vec::new(), sums: Vec::new() });
            }
        }
        ranges.par_iter_mut().for_each(|range| {
            let tile = &heads[range.head].tile;
            tile.products(&lanes[range.head], &Everything, range.first, &mut range.cells, &mut Vec::new());
            range.tops.extend(range.cells.iter().map(|row| isa.max(row)));
        });
        share_out(&mut ranges, f32::NEG_INFINITY, |range| &mut range.tops, f32::max);
        ranges.par_iter_mut().for_each(|range| {
            for (row, &top) in range.cells.iter_mut().zip(&range.tops) {
                range.sums.push(if top == f32::NEG_INFINITY { 0.0 } else { isa.exp_and_sum(row, top) });
            }
        });
        share_out(&mut ranges, 0.0, |range| &mut range.sums, |sum, part| sum + part);
        ranges.par_iter_mut().for_each(|range| {
            for ((row, &sum), &top) in range.cells.iter_mut().zip(&range.sums).zip(&range.tops) {
                if top == f32::NEG_INFINITY {
                    row.fill(0.0);
                } else {
                    isa.scale(row, 1.0 / sum);
                }
            }
        });
    }

    /// Probabilities times values, range by range.
    fn weighted_sum_in_ranges(&mut self, lanes: &[HeadLane<'_>]) {
        let (heads, probabilities) = (&self.heads, &self.probabilities);
        let ranges: Vec<_> = (0..lanes.len())
            .flat_map(|h| (0..heads[h].tile.reach()).step_by(RANGE_SLOTS).map(move |first| (h, first)))
            .collect();
        let parts: Vec<_> = ranges
            .par_iter()
            .map(|&(h, first)| {
                let (tile, rows) = (&heads[h].tile, probabilities.lane(h));
                let slots = first..tile.reach().min(first + RANGE_SLOTS);
                let (mut sum, mut block) = (RangeSum::default(), Vec::new());
                sum.start(tile.group, tile.head_dim);
                tile.add_weighted(
                    &lanes[h],
                    &Everything,
                    slots,
                    &rows.rows,
                    rows.slots,
                    &mut sum,
                    &mut block,
                );
                sum.finish();
                sum
            })
            .collect();
        for head in &mut self.heads {
            head.sum.start(head.tile.group, head.tile.head_dim);
        }
        for ((h, _), part) in ranges.into_iter().zip(parts) {
            add(self.heads[h].sum.total_mut(), part.total());
        }
    }

    /// Runs one task per KV head, each with its own scratch and probability rows.
    fn each_head(&mut self, parallel: bool, task: impl Fn(usize, &mut HeadScratch, &mut LaneRows) + Sync) {
        let mut nothing = vec![(); self.heads.len()];
        self.each_head_with(parallel, &mut nothing, |h, scratch, rows, ()| task(h, scratch, rows));
    }

    /// The same, each task with its own part of `with`.
    fn each_head_with<W: Send>(
        &mut self,
        parallel: bool,
        with: &mut [W],
        task: impl Fn(usize, &mut HeadScratch, &mut LaneRows, &mut W) + Sync,
    ) {
        let rows = self.probabilities.lanes_mut();
        if parallel {
            let heads =
                self.heads.par_iter_mut().zip(rows.par_iter_mut()).zip(with.par_iter_mut()).enumerate();
            heads.for_each(|(h, ((scratch, rows), with))| task(h, scratch, rows, with));
        } else {
            let heads = self.heads.iter_mut().zip(rows).zip(with).enumerate();
            heads.for_each(|(h, ((scratch, rows), with))| task(h, scratch, rows, with));
        }
    }

    fn check_lanes(&self, lanes: &[HeadLane<'_>]) {
        assert_eq!(lanes.len(), self.shape.kv_heads(), "one lane per KV head");
    }

    fn check_scored(&self, lanes: &[HeadLane<'_>]) {
        self.check_lanes(lanes);
        let same = |(h, lane): (usize, &HeadLane<'_>)| self.probabilities.slots(h) == lane.slots.len();
        assert!(lanes.iter().enumerate().all(same), "the lanes are not those of the latest scores");
    }

    /// Hands each KV head's sums to its place in one token's output.
    fn gather(&self, out: &mut [f32]) {
        assert_eq!(out.len(), self.shape.width(), "the output is [head][head_dim]");
        let width = self.shape.group() * self.shape.head_dim();
        for (out, head) in out.chunks_exact_mut(width).zip(&self.heads) {
            out.copy_from_slice(head.sum.total());
        }
    }
}

impl Attention for CpuAttention {
    fn shape(&self) -> Shape {
        self.shape
    }

    fn scores(&mut self, query: Queries<'_>, lanes: &[HeadLane<'_>]) {
        self.check_lanes(lanes);
        assert_eq!(query.rows.len(), self.shape.width(), "one query is [head][head_dim]");
        if self.in_ranges(lanes) {
            return self.scores_in_ranges(query, lanes);
        }
        let shape = self.shape;
        let parallel = self.in_parallel(1, slots(lanes));
        self.each_head(parallel, |h, scratch, rows| {
            let lane = &lanes[h];
            scratch.tile.load(shape, h, query.rows, query.first, lane);
            rows.resize(lane.slots.len(), shape.group());
            if rows.slots > 0 {
                scratch.tile.scores(lane, &Everything, &mut rows.rows, rows.slots, &mut scratch.block);
            }
        });
    }

    fn select_top(&mut self, lanes: &[HeadLane<'_>], n: usize, include_self: bool) -> &Selection {
        self.check_scored(lanes);
        let parallel = self.in_parallel(1, slots(lanes));
        let mut selection = std::mem::take(&mut self.selection);
        self.each_head_with(parallel, &mut selection.lanes, |h, scratch, rows, selection| {
            let own = scratch.tile.reach().checked_sub(1).filter(|_| include_self);
            selection.choose(&rows.rows, lanes[h].slots, n, own);
        });
        self.selection = selection;
        &self.selection
    }

    fn weighted_sum(&mut self, lanes: &[HeadLane<'_>], out: &mut [f32]) {
        self.check_scored(lanes);
        if self.in_ranges(lanes) {
            self.weighted_sum_in_ranges(lanes);
            return self.gather(out);
        }
        let parallel = self.in_parallel(1, slots(lanes));
        self.each_head(parallel, |h, scratch, rows| {
            let HeadScratch { tile, block, sum, .. } = scratch;
            tile.weighted_sum(&lanes[h], &Everything, &rows.rows, rows.slots, sum, block);
        });
        self.gather(out);
    }

    fn weighted_sum_selected(&mut self, values: &[Rows<'_>], out: &mut [f32]) {
        assert_eq!(values.len(), self.shape.kv_heads(), "staged rows per KV head");
        let d = self.shape.head_dim();
        for (h, (scratch, &values)) in self.heads.iter_mut().zip(values).enumerate() {
            let chosen = self.selection.lane(h);
            assert_eq!(values.len(), chosen.slots().len() * d, "one staged row per slot of the union");
            let shape = (self.shape.group(), d);
            let HeadScratch { sum, block, .. } = scratch;
            weighted_sum_chosen(chosen.slots(), chosen.all_weights(), values, shape, sum, block);
        }
        self.gather(out);
    }

    fn select_pages(
        &mut self,
        query: Queries<'_>,
        lanes: &[HeadLane<'_>],
        bounds: &[PageBounds],
        most: usize,
    ) -> &PageSelection {
        self.check_lanes(lanes);
        assert_eq!(query.rows.len(), self.shape.width(), "one query is [head][head_dim]");
        for (h, (pages, scratch)) in self.pages.lanes.iter_mut().zip(&mut self.heads).enumerate() {
            scratch.tile.load(self.shape, h, query.rows, query.first, &lanes[h]);
            pages.choose(scratch.tile.rows(), &bounds[h], self.shape.head_dim(), most);
        }
        &self.pages
    }

    fn scores_of_pages(&mut self, query: Queries<'_>, lanes: &[HeadLane<'_>]) {
        self.check_lanes(lanes);
        let shape = self.shape;
        let parallel = self.in_parallel(1, slots(lanes));
        let mut pages = std::mem::take(&mut self.pages);
        self.each_head_with(parallel, &mut pages.lanes, |h, scratch, rows, pages| {
            let lane = &lanes[h];
            scratch.tile.load(shape, h, query.rows, query.first, lane);
            rows.resize(lane.slots.len(), shape.group());
            if rows.slots > 0 {
                scratch.tile.scores(lane, pages, &mut rows.rows, rows.slots, &mut scratch.block);
            }
        });
        self.pages = pages;
    }

    fn weighted_sum_of_pages(&mut self, lanes: &[HeadLane<'_>], out: &mut [f32]) {
        self.check_scored(lanes);
        let parallel = self.in_parallel(1, slots(lanes));
        let mut pages = std::mem::take(&mut self.pages);
        self.each_head_with(parallel, &mut pages.lanes, |h, scratch, rows, pages| {
            let HeadScratch { tile, block, sum, .. } = scratch;
            tile.weighted_sum(&lanes[h], pages, &rows.rows, rows.slots, sum, block);
        });
        self.pages = pages;
        self.gather(out);
    }

    fn select_chosen_pages(&mut self, lanes: &[HeadLane<'_>]) -> &Selection {
        self.check_scored(lanes);
        for (h, selection) in self.selection.lanes.iter_mut().enumerate() {
            let rows = &self.probabilities.lane(h).rows;
            selection.choose_pages(rows, lanes[h].slots, self.pages.lane(h));
        }
        &self.selection
    }

    fn select_slots(&mut self, lanes: &[HeadLane<'_>], read: &[bool]) -> &Selection {
        self.check_scored(lanes);
        for (h, selection) in self.selection.lanes.iter_mut().enumerate() {
            selection.choose_slots(&self.probabilities.lane(h).rows, lanes[h].slots, read);
        }
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
        self.check_lanes(lanes);
        let shape = self.shape;
        assert!(sinks.is_empty() || sinks.len() == lanes.len(), "one sink per KV head, or none");
        assert!(queries.rows.len().is_multiple_of(shape.width()), "queries are [token][head][head_dim]");
        assert_eq!(out.len(), queries.rows.len(), "the output is as long as the queries");
        let tokens = queries.rows.len() / shape.width();
        let parallel = self.in_parallel(tokens, slots(lanes));
        let mut sinks: Vec<Option<&mut dyn RowSink>> =
            sinks.iter_mut().map(|sink| Some(&mut **sink)).collect();
        sinks.resize_with(lanes.len(), || None);
        self.each_head_with(parallel, &mut sinks, |h, scratch, rows, sink| {
            let asked = Asked { wants, last: rows, sink: sink.as_deref_mut() };
            scratch.prefill(shape, h, queries, &lanes[h], asked);
        });
        let width = shape.group() * shape.head_dim();
        for (t, out) in out.chunks_exact_mut(shape.width()).enumerate() {
            for (out, head) in out.chunks_exact_mut(width).zip(&self.heads) {
                out.copy_from_slice(&head.out[t * width..][..width]);
            }
        }
        self.heads.iter().fold(PrefillTime::default(), |sum, head| PrefillTime {
            score_ns: sum.score_ns + head.time.score_ns,
            weighted_sum_ns: sum.weighted_sum_ns + head.time.weighted_sum_ns,
            probe_ns: sum.probe_ns + head.time.probe_ns,
        })
    }

    fn probabilities(&self) -> &Probabilities {
        &self.probabilities
    }

    fn selection(&self) -> &Selection {
        &self.selection
    }

    fn pages(&self) -> &PageSelection {
        &self.pages
    }

    fn column_sums(&self, kv_head: usize) -> &[f32] {
        &self.heads[kv_head].column_sums
    }
}

/// One range of slots of a KV head, on the way from products to probabilities.
struct ScoreRange<'a> {
    head: usize,
    first: usize,
    /// Cells of the range, one row per query head of the group.
    cells: Vec<&'a mut [f32]>,
    /// Largest score of each row, in the range and then in all of them.
    tops: Vec<f32>,
    /// The same of the sum of powers.
    sums: Vec<f32>,
}

/// Brings the values that ranges have of each row together, in ascending order, and gives them to all ranges.
fn share_out(
    ranges: &mut [ScoreRange<'_>],
    start: f32,
    values: impl for<'r> Fn(&'r mut ScoreRange<'_>) -> &'r mut Vec<f32>,
    join: impl Fn(f32, f32) -> f32,
) {
    for of_head in ranges.chunk_by_mut(|a, b| a.head == b.head) {
        let mut joined = vec![start; of_head[0].cells.len()];
        for range in &mut *of_head {
            joined.iter_mut().zip(&*values(range)).for_each(|(all, part)| *all = join(*all, *part));
        }
        for range in of_head {
            values(range).clone_from(&joined);
        }
    }
}

/// What is asked of one KV head's prefill beside its output.
struct Asked<'a, 's> {
    wants: Wants,
    last: &'a mut LaneRows,
    sink: Option<&'a mut (dyn RowSink + 's)>,
}

impl HeadScratch {
    /// One KV head's share of a chunk, tile by tile.
    fn prefill(
        &mut self,
        shape: Shape,
        kv_head: usize,
        queries: Queries<'_>,
        lane: &HeadLane<'_>,
        asked: Asked<'_, '_>,
    ) {
        let Asked { wants, last, mut sink } = asked;
        let (slots, group) = (lane.slots.len(), shape.group());
        let stride = (slots.next_multiple_of(LINE) | LINE).max(LINE);
        let per_tile = tile_queries(shape, slots);
        self.time = PrefillTime::default();
        self.out.clear();
        self.column_sums.clear();
        self.column_sums.resize(if wants.column_sums { slots } else { 0 }, 0.0);
        for (i, rows) in queries.rows.chunks(per_tile * shape.width()).enumerate() {
            let first = queries.first.saturating_add((i * per_tile) as u32);
            let start = Instant::now();
            self.tile.load(shape, kv_head, rows, first, lane);
            self.probs.resize(self.tile.len() * group * stride, 0.0);
            self.tile.scores(lane, &Everything, &mut self.probs, stride, &mut self.block);
            let scored = Instant::now();
            self.tile.weighted_sum(lane, &Everything, &self.probs, stride, &mut self.sum, &mut self.block);
            self.out.extend_from_slice(self.sum.total());
            let summed = Instant::now();
            self.hand_out(wants, group, stride, slots, last);
            if let Some(sink) = &mut sink {
                self.pour(first, group, stride, &mut **sink);
            }
            self.time.score_ns += (scored - start).as_nanos() as u64;
            self.time.weighted_sum_ns += (summed - scored).as_nanos() as u64;
            self.time.probe_ns += summed.elapsed().as_nanos() as u64;
        }
    }

    /// Every query's mean row to the sink; `first` is the position of the tile's first query.
    fn pour(&mut self, first: u32, group: usize, stride: usize, sink: &mut dyn RowSink) {
        for (i, query) in self.probs.chunks_exact(group * stride).take(self.tile.len()).enumerate() {
            self.mean.clear();
            self.mean.resize(self.tile.visible(i), 0.0);
            add_group_mean(query, stride, group, &mut self.mean);
            sink.row(first + i as u32, &self.mean);
        }
    }

    /// What the caller wants of the tile's probabilities; the last tile's last query is what remains in `last`.
    fn hand_out(&mut self, wants: Wants, group: usize, stride: usize, slots: usize, last: &mut LaneRows) {
        if wants.column_sums {
            for query in self.probs.chunks_exact(group * stride) {
                add_group_mean(query, stride, group, &mut self.column_sums);
            }
        }
        if wants.last_row {
            last.resize(slots, group);
            let query = &self.probs[(self.tile.len() - 1) * group * stride..];
            for (row, from) in last.rows.chunks_exact_mut(slots.max(1)).zip(query.chunks_exact(stride)) {
                row.copy_from_slice(&from[..slots]);
            }
        }
    }
}

fn slots(lanes: &[HeadLane<'_>]) -> usize {
    lanes.iter().map(|lane| lane.slots.len()).sum()
}
