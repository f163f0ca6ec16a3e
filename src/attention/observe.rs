//! The attention picture: probability rows as [`AttentionGroup`]s at a [`ScoreLevel`].

use crate::event::{AttentionGroup, Cells, Head, HeadRow, Layer, Position, ScoreLevel};

use super::cells::CELLS;
use super::lane::{HOLE, HeadLane};
use super::probabilities::Probabilities;
use super::select::{Selection, bounded, largest, mass_outside};

/// One group per KV head of `layer`, ascending; none at [`ScoreLevel::Off`].
///
/// With a read set (`read`) only the probabilities that a head used are drawn. A row's `dropped` is the mass of every
/// probability that no cell carries: not read, outside the top K, or in a cell of 0.
///
/// # Panics
///
/// When `probabilities` or `read` are not of these lanes.
pub fn observe(
    level: ScoreLevel,
    layer: Layer,
    probabilities: &Probabilities,
    read: Option<&Selection>,
    lanes: &[HeadLane<'_>],
) -> Vec<AttentionGroup> {
    if level == ScoreLevel::Off {
        return Vec::new();
    }
    let mut scratch = Scratch::default();
    let mut groups = Vec::with_capacity(lanes.len());
    for (kv_head, lane) in lanes.iter().enumerate() {
        let mut rows = Vec::with_capacity(probabilities.group());
        for (i, row) in probabilities.rows(kv_head).enumerate() {
            assert_eq!(row.len(), lane.slots.len(), "the probabilities are of another lane");
            let head = (kv_head * probabilities.group() + i) as Head;
            let used = read.map(|read| scratch.used(row, read, kv_head, i));
            let unread = read.map_or(0.0, |read| read.lane(kv_head).dropped()[i]);
            let row = used.as_deref().unwrap_or(row);
            let (cells, lost) = match level {
                ScoreLevel::Off | ScoreLevel::Full => full(row, lane.slots),
                ScoreLevel::Top(k) => scratch.ranking.top(row, lane.slots, k as usize),
                ScoreLevel::Blocks => blocks(row, lane.block_size),
            };
            rows.push(HeadRow { head, dropped: bounded(lost + f64::from(unread)), cells });
            if let Some(used) = used {
                scratch.row = used;
            }
        }
        groups.push(AttentionGroup {
            layer,
            kv_head: kv_head as Head,
            positions: live_ranges(lane.slots),
            rows,
        });
    }
    groups
}

/// A query head's row as cells, of a picture that was made elsewhere.
#[derive(Clone, Debug, PartialEq)]
pub struct PictureRow {
    /// The cells.
    pub pixels: PictureCells,
    /// The mass that none of them carries, as of [`observe`].
    pub dropped: f32,
}

/// Cells of a row by slot.
#[derive(Clone, Debug, PartialEq)]
pub enum PictureCells {
    /// Of every slot.
    Slots(Vec<u8>),
    /// Of the slots that were chosen, ascending.
    Top(Vec<(u32, u8)>),
    /// Of every block of slots.
    Blocks(Vec<u8>),
}

/// What [`observe`] gives for rows that are cells already: `rows` of one KV head, the first of which is query head `first`,
/// over its slots.
pub fn picture_group(
    layer: Layer,
    kv_head: Head,
    first: Head,
    rows: Vec<PictureRow>,
    slots: &[Position],
) -> AttentionGroup {
    let has_holes = slots.contains(&HOLE);
    let cells = |pixels: PictureCells| match pixels {
        PictureCells::Slots(cells) if !has_holes => Cells::Full(cells),
        PictureCells::Slots(cells) => {
            let live = cells.into_iter().zip(slots).filter(|&(_, &position)| position != HOLE);
            Cells::Full(live.map(|(cell, _)| cell).collect())
        }
        PictureCells::Top(cells) => {
            let shown = cells.into_iter().filter(|&(_, cell)| cell > 0);
            Cells::Top(shown.map(|(slot, cell)| (slots[slot as usize], cell)).collect())
        }
        PictureCells::Blocks(cells) => Cells::Blocks(cells),
    };
    let rows = (first..).zip(rows).map(|(head, PictureRow { pixels, dropped })| HeadRow {
        head,
        dropped,
        cells: cells(pixels),
    });
    AttentionGroup { layer, kv_head, positions: live_ranges(slots), rows: rows.collect() }
}

#[derive(Default)]
struct Scratch {
    row: Vec<f32>,
    ranking: Ranking,
}

#[derive(Default)]
struct Ranking {
    keys: Vec<u64>,
    chosen: Vec<u32>,
}

impl Scratch {
    /// The row with what the head did not read set to 0, in a buffer that the caller gives back.
    fn used(&mut self, row: &[f32], read: &Selection, kv_head: usize, head: usize) -> Vec<f32> {
        let mut used = std::mem::take(&mut self.row);
        used.clear();
        used.resize(row.len(), 0.0);
        let lane = read.lane(kv_head);
        for (&slot, &weight) in lane.slots().iter().zip(lane.weights(head)) {
            used[slot as usize] = weight;
        }
        used
    }
}

impl Ranking {
    fn top(&mut self, row: &[f32], slots: &[Position], k: usize) -> (Cells, f64) {
        largest(row, slots, k, &mut self.keys, &mut self.chosen);
        let mut lost = f64::from(mass_outside(row, &self.chosen));
        let mut cells = Vec::with_capacity(self.chosen.len());
        for &slot in &self.chosen {
            let p = row[slot as usize];
            match CELLS.quantise(p) {
                0 => lost += f64::from(p),
                cell => cells.push((slots[slot as usize], cell)),
            }
        }
        (Cells::Top(cells), lost)
    }
}

fn full(row: &[f32], slots: &[Position]) -> (Cells, f64) {
    if !slots.contains(&HOLE) {
        return whole(row);
    }
    let mut lost = 0.0;
    let mut cells = Vec::with_capacity(row.len());
    for (&p, _) in row.iter().zip(slots).filter(|&(_, &position)| position != HOLE) {
        let cell = CELLS.quantise(p);
        if cell == 0 {
            lost += f64::from(p);
        }
        cells.push(cell);
    }
    (Cells::Full(cells), lost)
}

/// The same where there are no holes: without a branch per slot, and in partial sums that do not wait for each other.
fn whole(row: &[f32]) -> (Cells, f64) {
    let (mut cells, mut lost) = (Vec::with_capacity(row.len()), [0.0f64; 8]);
    for chunk in row.chunks(lost.len()) {
        cells.extend(chunk.iter().zip(&mut lost).map(|(&p, lost)| {
            let cell = CELLS.quantise(p);
            *lost += if cell == 0 { f64::from(p) } else { 0.0 };
            cell
        }));
    }
    (Cells::Full(cells), lost.iter().sum())
}

fn blocks(row: &[f32], block_size: usize) -> (Cells, f64) {
    let mut lost = 0.0;
    let mut cells = Vec::with_capacity(row.len().div_ceil(block_size));
    for block in row.chunks(block_size) {
        let sum: f32 = block.iter().sum();
        let cell = CELLS.quantise(sum);
        if cell == 0 {
            lost += f64::from(sum);
        }
        cells.push(cell);
    }
    (Cells::Blocks(cells), lost)
}

/// Live positions as ascending half-open ranges.
fn live_ranges(slots: &[Position]) -> Vec<(Position, Position)> {
    let mut ranges: Vec<(Position, Position)> = Vec::new();
    for &position in slots.iter().filter(|&&p| p != HOLE) {
        match ranges.last_mut() {
            Some((_, end)) if *end == position => *end += 1,
            _ => ranges.push((position, position + 1)),
        }
    }
    ranges
}
