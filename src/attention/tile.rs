//! A tile: some consecutive queries of one KV head's group against its lane. Decode is a tile of one query.

use std::ops::Range;

use crate::device::{Isa, Stored};
use crate::event::Position;

use super::kernel::{add, softmax};
use super::lane::{HOLE, HeadLane, Rotation, Rows, Shape};
use super::pages::Reads;
use super::scoring::Scoring;

/// Slots per partial sum; see the room's note on same bits.
pub const RANGE_SLOTS: usize = 1024;

/// Probability cells that a tile of several queries may take: 1 MiB, about one core's L2 cache.
const TILE_CELLS: usize = 1 << 18;
/// Most queries per tile. Their rows of Q and of output stay in L1 while K and V go by.
const TILE_QUERIES: usize = 16;

/// How many queries go into a tile over a lane of `slots`.
pub(super) fn tile_queries(shape: Shape, slots: usize) -> usize {
    (TILE_CELLS / (shape.group() * slots.max(1))).clamp(1, TILE_QUERIES)
}

/// The queries of a tile, made ready for one KV head.
#[derive(Clone, Debug, Default)]
pub(super) struct Tile {
    pub(super) group: usize,
    pub(super) head_dim: usize,
    /// Position of the first query; the others follow.
    pub(super) first: Position,
    /// `[query][head of the group][head_dim]`, scaled, and rotated where the lane asks for it.
    pub(super) rows: Vec<f32>,
    /// The same for keys beyond a window; empty where the lane has none.
    pub(super) far_rows: Vec<f32>,
    /// Per query, how many leading slots it may see.
    visible: Vec<usize>,
}

impl Tile {
    /// Takes the queries in `rows` (`[query][head][head_dim]`, all heads), the first of them at `position`.
    pub(super) fn load(
        &mut self,
        shape: Shape,
        kv_head: usize,
        rows: &[f32],
        position: Position,
        lane: &HeadLane<'_>,
    ) {
        (self.group, self.head_dim) = (shape.group(), shape.head_dim());
        let width = self.group * self.head_dim;
        self.first = position;
        self.rows.clear();
        self.far_rows.clear();
        self.visible.clear();
        let mut seen = (0, 0);
        for (t, heads) in rows.chunks_exact(shape.width()).enumerate() {
            let position = position.saturating_add(t as Position);
            seen = lane.visible(position, seen);
            self.visible.push(seen.0);
            self.rows.extend_from_slice(&heads[kv_head * width..][..width]);
            let own = &mut self.rows[t * width..];
            if let Rotation::Windowed { rope, window } = lane.rotation {
                self.far_rows.extend_from_slice(own);
                rope.apply_heads(&mut self.far_rows[t * width..], self.head_dim, window as usize);
                rope.apply_heads(own, self.head_dim, position as usize);
            } else if let Some((rope, index)) = lane.rotation.at(seen.1.saturating_sub(1), position) {
                rope.apply_heads(own, self.head_dim, index);
            }
        }
        for x in self.rows.iter_mut().chain(&mut self.far_rows) {
            *x *= shape.scale();
        }
    }

    /// Number of queries.
    pub(super) fn len(&self) -> usize {
        self.visible.len()
    }

    /// Leading slots that a query may see.
    pub(super) fn visible(&self, query: usize) -> usize {
        self.visible[query]
    }

    /// Slots that the last query may see; the others see fewer.
    pub(super) fn reach(&self) -> usize {
        self.visible.last().copied().unwrap_or(0)
    }

    /// First query that sees `slot`, looking from `from` on.
    pub(super) fn first_to_see(&self, slot: usize, mut from: usize) -> usize {
        while self.visible[from] <= slot {
            from += 1;
        }
        from
    }

    /// The queries, `[query][head of the group][head_dim]`.
    pub(super) fn rows(&self) -> &[f32] {
        &self.rows
    }

    /// Rows of probabilities: query heads of the group for each query.
    fn rows_of_cells(&self) -> usize {
        self.visible.len() * self.group
    }

    /// Probabilities of every row over the slots that it reads into `probs`, rows `stride` apart. Each K row is read
    /// once for all of them.
    pub(super) fn scores(
        &self,
        lane: &HeadLane<'_>,
        read: &impl Reads,
        probs: &mut [f32],
        stride: usize,
        scratch: &mut Vec<f32>,
    ) {
        let mut cells: Vec<&mut [f32]> =
            probs.chunks_mut(stride).take(self.rows_of_cells()).map(|row| &mut row[..self.reach()]).collect();
        self.products(lane, read, 0, &mut cells, scratch);
        for (r, row) in probs.chunks_mut(stride).take(self.rows_of_cells()).enumerate() {
            let (seen, rest) = row.split_at_mut(self.visible[r / self.group]);
            softmax(seen);
            rest.fill(0.0);
        }
    }

    /// Scores of every row: its products, as the layer bends them, with the keys of the slots from `first` on, as many as
    /// there are cells for them; `-inf` where a slot is not read. What stands where a query does not see a slot means
    /// nothing.
    pub(super) fn products(
        &self,
        lane: &HeadLane<'_>,
        read: &impl Reads,
        first: usize,
        cells: &mut [&mut [f32]],
        scratch: &mut Vec<f32>,
    ) {
        if let Rotation::Windowed { rope, window } = lane.rotation {
            self.windowed_products(lane, (rope, window), read, first, cells, scratch);
        } else {
            self.plain_products(lane, read, first, cells, scratch);
        }
        self.bend(lane, first, cells);
    }

    /// Scores as the layer bends them, each query's over the slots that it sees.
    fn bend(&self, lane: &HeadLane<'_>, first: usize, cells: &mut [&mut [f32]]) {
        if lane.scoring == Scoring::default() {
            return;
        }
        let mut hidden = 0;
        for (r, row) in cells.iter_mut().enumerate() {
            let query = r / self.group;
            let seen = self.visible[query].saturating_sub(first).min(row.len());
            let slots = &lane.slots[first..first + seen];
            hidden =
                lane.scoring.hidden(slots, self.first.saturating_add(query as Position), hidden.min(seen));
            lane.scoring.bend(&mut row[..seen], hidden);
        }
    }

    fn plain_products<R: Reads>(
        &self,
        lane: &HeadLane<'_>,
        read: &R,
        first: usize,
        cells: &mut [&mut [f32]],
        scratch: &mut Vec<f32>,
    ) {
        let (isa, d) = (Isa::best(), self.head_dim);
        let slots = first..first + cells.first().map_or(0, |row| row.len());
        let mut rank = live(&lane.slots[..first]);
        for part in Parts::of(slots, lane.block_size) {
            let table = &lane.slots[part.slots.clone()];
            let first_rank = rank;
            rank += live(table);
            let at = part.slots.start - first..part.slots.end - first;
            if !is_read(read, part.slots.start, table) {
                for row in &mut *cells {
                    row[at.clone()].fill(f32::NEG_INFINITY);
                }
                continue;
            }
            let keys = keys(lane, &part, table, d, first_rank, cells.len(), scratch);
            let mut ahead = part.ahead(|block, rows| lane.k.ahead(block, rows * d));
            for (r, row) in cells.iter_mut().enumerate() {
                if self.visible[r / self.group] > part.slots.start {
                    isa.dot_rows(&self.rows[r * d..][..d], keys, ahead, &mut row[at.clone()]);
                    ahead = Stored::NONE;
                }
            }
            if R::ALL && rank - first_rank == table.len() {
                continue;
            }
            for (slot, &position) in part.slots.clone().zip(table) {
                let unread = |&(r, _): &(usize, _)| position == HOLE || !read.head(r % self.group, slot);
                for (_, row) in cells.iter_mut().enumerate().filter(unread) {
                    row[slot - first] = f32::NEG_INFINITY;
                }
            }
        }
    }

    /// Probabilities times values into `sum`, for the rows that [`Tile::scores`] filled.
    pub(super) fn weighted_sum(
        &self,
        lane: &HeadLane<'_>,
        read: &impl Reads,
        probs: &[f32],
        stride: usize,
        sum: &mut RangeSum,
        scratch: &mut Vec<f32>,
    ) {
        sum.start(self.rows_of_cells(), self.head_dim);
        self.add_weighted(lane, read, 0..self.reach(), probs, stride, sum, scratch);
        sum.finish();
    }

    /// The same of some slots, added to what `sum` has.
    #[expect(clippy::too_many_arguments, reason = "what is read, where, by which weights, into what")]
    pub(super) fn add_weighted<R: Reads>(
        &self,
        lane: &HeadLane<'_>,
        read: &R,
        slots: Range<usize>,
        probs: &[f32],
        stride: usize,
        sum: &mut RangeSum,
        scratch: &mut Vec<f32>,
    ) {
        let (isa, d) = (Isa::best(), self.head_dim);
        for part in Parts::of(slots, lane.block_size) {
            let start = part.slots.start;
            let table = &lane.slots[part.slots.clone()];
            if !is_read(read, start, table) {
                continue;
            }
            let page = lane.v.page(part.block, part.end_row() * d).cut(part.row * d, part.end_row() * d);
            let values = stored(page, self.rows_of_cells(), scratch);
            let mut ahead = part.ahead(|block, rows| lane.v.ahead(block, rows * d));
            let whole = R::ALL && live(table) == table.len();
            for run in runs(part.slots.clone(), whole, |slot| table[slot - start] != HOLE && read.any(slot)) {
                for run in cut_by_ranges(run) {
                    sum.enter(run.start);
                    for (r, sum) in sum.rows() {
                        let seen = run.start..run.end.min(self.visible[r / self.group]);
                        for run in runs(seen, R::ALL, |slot| read.head(r % self.group, slot)) {
                            let weights = &probs[r * stride..][run.clone()];
                            let rows = values.cut((run.start - start) * d, (run.end - start) * d);
                            isa.add_rows(sum, weights, rows, ahead);
                            ahead = Stored::NONE;
                        }
                    }
                }
            }
        }
    }
}

/// Weighted sum of chosen rows of V, `[chosen][head_dim]`; `weights` is `[head of the group][chosen]`.
pub(super) fn weighted_sum_chosen(
    chosen: &[u32],
    weights: &[f32],
    values: Rows<'_>,
    (group, d): (usize, usize),
    sum: &mut RangeSum,
    scratch: &mut Vec<f32>,
) {
    sum.start(group, d);
    let mut first = 0;
    for range in chosen.chunk_by(|a, b| *a as usize / RANGE_SLOTS == *b as usize / RANGE_SLOTS) {
        sum.enter(range[0] as usize);
        let rows = stored(values.cut(first * d, (first + range.len()) * d), group, scratch);
        for (r, part) in sum.rows() {
            let weights = &weights[r * chosen.len() + first..][..range.len()];
            Isa::best().add_rows(part, weights, rows, Stored::NONE);
        }
        first += range.len();
    }
    sum.finish();
}

/// Slots of one block.
pub(super) struct Part {
    pub(super) block: usize,
    /// The first of them within the block.
    pub(super) row: usize,
    pub(super) slots: Range<usize>,
    /// How many rows of the next block come after them.
    next: usize,
}

impl Part {
    /// One past the last of them within the block.
    pub(super) fn end_row(&self) -> usize {
        self.row + self.slots.len()
    }

    /// What is read after it: a number of rows of the next block.
    fn ahead<'a>(&self, rows: impl FnOnce(usize, usize) -> Stored<'a>) -> Stored<'a> {
        if self.next == 0 { Stored::NONE } else { rows(self.block + 1, self.next) }
    }
}

/// Slots, block by block.
pub(super) struct Parts {
    slots: Range<usize>,
    block_size: usize,
}

impl Parts {
    pub(super) fn of(slots: Range<usize>, block_size: usize) -> Self {
        Self { slots, block_size }
    }
}

impl Iterator for Parts {
    type Item = Part;

    fn next(&mut self) -> Option<Part> {
        let start = self.slots.start;
        if start >= self.slots.end {
            return None;
        }
        let (block, row) = (start / self.block_size, start % self.block_size);
        let end = (start - row + self.block_size).min(self.slots.end);
        self.slots.start = end;
        let next = (self.slots.end - end).min(self.block_size);
        Some(Part { block, row, slots: start..end, next })
    }
}

/// The longest runs of slots for which something holds, in order; where it holds for all of them, nobody is asked.
fn runs(
    mut slots: Range<usize>,
    all: bool,
    holds: impl Fn(usize) -> bool,
) -> impl Iterator<Item = Range<usize>> {
    std::iter::from_fn(move || {
        if all {
            let run = std::mem::replace(&mut slots, 0..0);
            return (!run.is_empty()).then_some(run);
        }
        let start = slots.find(|&slot| holds(slot))?;
        let end = slots.find(|&slot| !holds(slot)).unwrap_or(slots.end);
        Some(start..end)
    })
}

/// A run of slots, cut where ranges begin.
fn cut_by_ranges(run: Range<usize>) -> impl Iterator<Item = Range<usize>> {
    let mut start = run.start;
    std::iter::from_fn(move || {
        let end = (start / RANGE_SLOTS + 1).saturating_mul(RANGE_SLOTS).min(run.end);
        let part = start..end;
        start = end;
        (!part.is_empty()).then_some(part)
    })
}

/// Whether a block holds a live slot that is read; `first` is its first slot.
pub(super) fn is_read(read: &impl Reads, first: usize, slots: &[Position]) -> bool {
    slots.iter().zip(first..).any(|(&p, slot)| p != HOLE && read.any(slot))
}

fn live(slots: &[Position]) -> usize {
    slots.iter().filter(|&&p| p != HOLE).count()
}

/// Rows as the loops read them: where they lie, unless they are in codes, or of half width and read so often that
/// widening them once is less work.
fn stored<'s, 'a: 's>(rows: Rows<'a>, readers: usize, scratch: &'s mut Vec<f32>) -> Stored<'s> {
    match rows {
        Rows::F32(rows) => Stored::F32(rows),
        Rows::F16(rows) if readers == 1 => Stored::F16(rows),
        Rows::F16(_) | Rows::Coded(_) => Stored::F32(rows.copy_into(scratch)),
    }
}

/// The keys of a part, rotated where the lane asks for it; `rank` is that of its first live slot.
fn keys<'s, 'a: 's>(
    lane: &HeadLane<'a>,
    part: &Part,
    table: &[Position],
    d: usize,
    mut rank: usize,
    readers: usize,
    scratch: &'s mut Vec<f32>,
) -> Stored<'s> {
    let page = lane.k.page(part.block, part.end_row() * d).cut(part.row * d, part.end_row() * d);
    if let Rotation::None | Rotation::Windowed { .. } = lane.rotation {
        return stored(page, readers, scratch);
    }
    let keys = page.copy_into(scratch);
    for (key, &position) in keys.chunks_exact_mut(d).zip(table) {
        if position != HOLE {
            lane.rotation.turn(key, rank, position);
            rank += 1;
        }
    }
    Stored::F32(keys)
}

/// Sums of weighted rows, made of partial sums over fixed ranges of slots.
#[derive(Clone, Debug, Default)]
pub(super) struct RangeSum {
    head_dim: usize,
    range: usize,
    part: Vec<f32>,
    total: Vec<f32>,
}

impl RangeSum {
    /// Begins anew with sums of 0.
    pub(super) fn start(&mut self, rows: usize, head_dim: usize) {
        (self.head_dim, self.range) = (head_dim, 0);
        for sums in [&mut self.part, &mut self.total] {
            sums.clear();
            sums.resize(rows * head_dim, 0.0);
        }
    }

    /// Moves on to the range of `slot`; slots come in ascending order.
    fn enter(&mut self, slot: usize) {
        let range = slot / RANGE_SLOTS;
        if range != self.range {
            self.finish();
            self.range = range;
        }
    }

    /// The partial sums of the rows, with their indices.
    fn rows(&mut self) -> impl Iterator<Item = (usize, &mut [f32])> {
        self.part.chunks_exact_mut(self.head_dim).enumerate()
    }

    /// Adds the range under way to the sums.
    pub(super) fn finish(&mut self) {
        add(&mut self.total, &self.part);
        self.part.fill(0.0);
    }

    /// The sums, `[row][head_dim]`.
    pub(super) fn total(&self) -> &[f32] {
        &self.total
    }

    pub(super) fn total_mut(&mut self) -> &mut [f32] {
        &mut self.total
    }
}
