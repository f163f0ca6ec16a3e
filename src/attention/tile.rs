//! A tile: some consecutive queries of one KV head's group against its lane. Decode is a tile of one query.

use crate::event::Position;

use super::kernel::{add, add_scaled, dot, softmax};
use super::lane::{HOLE, HeadLane, Rotation, Rows, Shape};
use super::pages::Reads;

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
        let (d, reach) = (self.head_dim, self.reach());
        for row in probs.chunks_mut(stride).take(self.visible.len() * self.group) {
            row.fill(f32::NEG_INFINITY);
        }
        if let Rotation::Windowed { rope, window } = lane.rotation {
            self.windowed_products(lane, (rope, window), read, probs, stride, scratch);
            return self.softmax(lane, probs, stride);
        }
        let (mut rank, mut query) = (0, 0);
        for (block, slots) in lane.slots[..reach].chunks(lane.block_size).enumerate() {
            let first_rank = rank;
            rank += live(slots);
            if !is_read(read, block * lane.block_size, slots) {
                continue;
            }
            let keys = keys(lane, block, slots, d, first_rank, scratch);
            for (i, key) in keys.chunks_exact(d).enumerate() {
                let slot = block * lane.block_size + i;
                if slots[i] == HOLE || !read.any(slot) {
                    continue;
                }
                query = self.first_to_see(slot, query);
                let rows = self.rows.chunks_exact(d).enumerate().skip(query * self.group);
                for (r, row) in rows.filter(|&(r, _)| read.head(r % self.group, slot)) {
                    probs[r * stride + slot] = dot(row, key);
                }
            }
        }
        self.softmax(lane, probs, stride);
    }

    /// Products to probabilities, each row over the slots that its query sees.
    fn softmax(&self, lane: &HeadLane<'_>, probs: &mut [f32], stride: usize) {
        let mut hidden = 0;
        for (r, row) in probs.chunks_mut(stride).take(self.visible.len() * self.group).enumerate() {
            let query = r / self.group;
            let (seen, rest) = row.split_at_mut(self.visible[query]);
            let slots = &lane.slots[..seen.len()];
            hidden = lane.scoring.hidden(slots, self.first.saturating_add(query as Position), hidden);
            lane.scoring.bend(seen, hidden);
            softmax(seen);
            rest.fill(0.0);
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
        let (d, reach) = (self.head_dim, self.reach());
        sum.start(self.visible.len() * self.group, d);
        let mut query = 0;
        for (block, slots) in lane.slots[..reach].chunks(lane.block_size).enumerate() {
            if !is_read(read, block * lane.block_size, slots) {
                continue;
            }
            let values = lane.v.page(block, slots.len() * d).widen(scratch);
            for (i, value) in values.chunks_exact(d).enumerate() {
                let slot = block * lane.block_size + i;
                if slots[i] == HOLE || !read.any(slot) {
                    continue;
                }
                query = self.first_to_see(slot, query);
                sum.enter(slot);
                for (r, part) in sum.rows(query * self.group) {
                    add_scaled(part, probs[r * stride + slot], value);
                }
            }
        }
        sum.finish();
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
    /// Rows converted at a time.
    const BATCH: usize = 64;
    sum.start(group, d);
    for (batch, slots) in chosen.chunks(BATCH).enumerate() {
        let first = batch * BATCH;
        let rows = values.cut(first * d, (first + slots.len()) * d).widen(scratch);
        for (i, (value, &slot)) in rows.chunks_exact(d).zip(slots).enumerate() {
            sum.enter(slot as usize);
            for (r, part) in sum.rows(0) {
                add_scaled(part, weights[r * chosen.len() + first + i], value);
            }
        }
    }
    sum.finish();
}

/// Whether a block holds a live slot that is read; `first` is its first slot.
pub(super) fn is_read(read: &impl Reads, first: usize, slots: &[Position]) -> bool {
    slots.iter().zip(first..).any(|(&p, slot)| p != HOLE && read.any(slot))
}

fn live(slots: &[Position]) -> usize {
    slots.iter().filter(|&&p| p != HOLE).count()
}

/// One block's keys as f32, rotated where the lane asks for it; `rank` is that of the block's first live slot.
fn keys<'s, 'a: 's>(
    lane: &HeadLane<'a>,
    block: usize,
    slots: &[Position],
    d: usize,
    mut rank: usize,
    scratch: &'s mut Vec<f32>,
) -> &'s [f32] {
    let page = lane.k.page(block, slots.len() * d);
    if let Rotation::None | Rotation::Windowed { .. } = lane.rotation {
        return page.widen(scratch);
    }
    let keys = page.copy_into(scratch);
    for (key, &position) in keys.chunks_exact_mut(d).zip(slots) {
        if position != HOLE {
            lane.rotation.turn(key, rank, position);
            rank += 1;
        }
    }
    keys
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
    fn start(&mut self, rows: usize, head_dim: usize) {
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

    /// The partial sums of the rows from `first` on, with their indices.
    fn rows(&mut self, first: usize) -> impl Iterator<Item = (usize, &mut [f32])> {
        self.part.chunks_exact_mut(self.head_dim).enumerate().skip(first)
    }

    fn finish(&mut self) {
        add(&mut self.total, &self.part);
        self.part.fill(0.0);
    }

    /// The sums, `[row][head_dim]`.
    pub(super) fn total(&self) -> &[f32] {
        &self.total
    }
}
