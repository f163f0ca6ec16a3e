//! The attention picture of decode steps, made where the rows are: what is fetched is a byte per cell, of all layers once
//! they have run.

use std::ops::Range;

use super::GpuAttention;
use crate::attention::cells::CELLS;
use crate::attention::gpu::heads;
use crate::attention::observe::{PictureCells, PictureRow};
use crate::attention::select::bounded;
use crate::device::gpu::{Array, Gpu, Result, Room};
use crate::device::launch::{Cells, PictureRows, SelectTop, TopSlots};
use crate::event::{Layer, ScoreLevel};

/// What each picture of a step is aligned to, in bytes.
const ALIGNED: usize = 256;

/// The picture of one part of a layer.
#[derive(Clone, Debug, PartialEq)]
pub struct Picture {
    /// Decoder layer.
    pub layer: Layer,
    /// Part of the step.
    pub part: usize,
    /// One per query head.
    pub rows: Vec<PictureRow>,
}

/// What is kept for it.
pub(super) struct Pictures<G: Gpu> {
    /// The smallest value of each cell.
    bounds: Room<G>,
    sums: Room<G>,
    marks: Room<G>,
    /// The step's pictures, one behind the other in `room` until they are fetched together.
    drawn: Vec<Drawn>,
    room: Room<G>,
    /// Bytes of `room`, and how many of them hold pictures.
    held: usize,
    used: usize,
}

/// The picture of some parts of a layer: words, then cells.
struct Drawn {
    /// Where it begins among the step's, in bytes.
    first: usize,
    layer: Layer,
    level: ScoreLevel,
    parts: Range<usize>,
    heads: usize,
    /// Slots per KV head of each part.
    slots: Vec<Vec<usize>>,
    ranges: usize,
    /// Cells from one row to the next.
    stride: usize,
    block_size: usize,
}

impl Drawn {
    const fn rows(&self) -> usize {
        self.parts.end.saturating_sub(self.parts.start) * self.heads
    }

    /// Words of what no cell carries, of what was not read, of how many were chosen and of which.
    const fn lengths(&self) -> [usize; 4] {
        let rows = self.rows();
        let list = if matches!(self.level, ScoreLevel::Top(_)) { rows * self.stride } else { 0 };
        [rows * self.ranges, rows, rows, list]
    }

    fn words(&self) -> usize {
        self.lengths().iter().sum()
    }

    fn bytes(&self) -> usize {
        4 * self.words() + self.rows() * self.stride
    }

    /// A row of so many slots out of the words that were fetched.
    fn row(&self, words: &[u32], row: usize, slots: usize) -> PictureRow {
        let [lost, dropped, counts, list] = self.lengths();
        let cells =
            &bytemuck::cast_slice::<u32, u8>(&words[lost + dropped + counts + list..])[row * self.stride..];
        let pixels = match self.level {
            ScoreLevel::Off | ScoreLevel::Full => PictureCells::Slots(cells[..slots].to_vec()),
            ScoreLevel::Blocks => PictureCells::Blocks(cells[..slots.div_ceil(self.block_size)].to_vec()),
            ScoreLevel::Top(_) => {
                let n = words[lost + dropped + row] as usize;
                let chosen = &words[lost + dropped + counts + row * self.stride..][..n];
                PictureCells::Top(chosen.iter().copied().zip(cells.iter().copied()).collect())
            }
        };
        let own = PictureRows::ranges(values_of(self.level, slots, self.block_size));
        let mass = words[row * self.ranges..][..own].iter().map(|&word| f64::from(f32::from_bits(word)));
        PictureRow {
            pixels,
            dropped: bounded(mass.sum::<f64>() + f64::from(f32::from_bits(words[lost + row]))),
        }
    }
}

/// Values that cells are chosen or made of, in a row of so many slots.
fn values_of(level: ScoreLevel, slots: usize, block_size: usize) -> usize {
    if level == ScoreLevel::Blocks { slots.div_ceil(block_size) } else { slots }
}

impl<G: Gpu> Pictures<G> {
    pub(super) const fn new() -> Self {
        Self {
            bounds: Room::new("a picture"),
            sums: Room::new("a picture"),
            marks: Room::new("a picture"),
            drawn: Vec::new(),
            room: Room::new("a picture"),
            held: 0,
            used: 0,
        }
    }

    pub(super) fn begin(&mut self) {
        self.drawn.clear();
        self.used = 0;
    }

    /// Room for so many bytes more; where they begin among the step's. What is there already stays, and is copied where there
    /// is more than the first of `layers` alike foretold.
    fn room(&mut self, gpu: &G, bytes: usize, layers: usize) -> Result<usize> {
        let (first, end) = (self.used, (self.used + bytes).next_multiple_of(ALIGNED));
        let foretold = if first == 0 { end * layers } else { end };
        if foretold > self.held {
            self.held = foretold + foretold / 4;
            self.room.grown(gpu, first, self.held)?;
        }
        self.used = end;
        Ok(first)
    }

    fn bounds(&mut self, gpu: &G) -> Result<Array> {
        match self.bounds.array(gpu) {
            Array::NONE => self.bounds.filled(gpu, bytemuck::cast_slice(CELLS.bounds())),
            array => Ok(array),
        }
    }
}

impl<G: Gpu> GpuAttention<G> {
    /// Makes the picture of the latest decode out of its rows, which are not what they were after that.
    pub(super) fn draw_decoded(&mut self, level: ScoreLevel) -> Result<()> {
        if level == ScoreLevel::Off {
            return Ok(());
        }
        let heads = heads(self.shape);
        let now = self.batch.now();
        let (parts, slots) = now.decoded.clone();
        let (layer, lanes) = (now.layer, now.lanes(parts.start, heads.kv_heads));
        let positions = now.tables.positions;
        let gpu = self.gpu.clone();
        let rows = PictureRows {
            heads,
            sequences: parts.len(),
            slots,
            rows: self.batch.rooms.rows.array(&gpu),
            row_stride: slots,
            lanes,
        };
        let block_size = self.pool.block_size();
        let values = values_of(level, slots, block_size);
        let stride = if let ScoreLevel::Top(k) = level { values.min(k as usize) } else { values };
        let mut drawn = Drawn {
            first: 0,
            layer,
            level,
            heads: heads.heads,
            slots: now.parts[parts.clone()].iter().map(|part| part.slots.clone()).collect(),
            parts,
            ranges: PictureRows::ranges(values),
            stride,
            block_size,
        };
        let unread = self.keep_used(&rows, &drawn)?;
        let layers = self.batch.step.layers;
        let pictures = &mut self.batch.pictures;
        drawn.first = pictures.room(&gpu, drawn.bytes(), layers)?;
        let base = pictures.room.array(&gpu).offset(drawn.first);
        let [lost, dropped, counts, list] = drawn.lengths();
        let at = |words: usize| base.offset(4 * words);
        match unread {
            Some(unread) => gpu.copy(unread, at(lost), 4 * dropped)?,
            None => gpu.clear(at(lost), 4 * dropped)?,
        }
        let to = Cells {
            cells: at(lost + dropped + counts + list),
            stride,
            lost: base,
            bounds: pictures.bounds(&gpu)?,
        };
        match level {
            ScoreLevel::Off | ScoreLevel::Full => rows.cells(&to, 1, &gpu)?,
            ScoreLevel::Blocks => {
                let sums = pictures.sums.of(&gpu, 4 * drawn.rows() * stride)?;
                rows.block_sums(sums, block_size, stride, &gpu)?;
                PictureRows { rows: sums, row_stride: stride, ..rows }.cells(&to, block_size, &gpu)?;
            }
            ScoreLevel::Top(k) => {
                let word_stride = SelectTop::words(slots);
                let chosen = TopSlots {
                    marks: pictures.marks.of(&gpu, 4 * drawn.rows() * word_stride)?,
                    word_stride,
                    list: at(lost + dropped + counts),
                    counts: at(lost + dropped),
                };
                let select = SelectTop {
                    heads,
                    sequences: rows.sequences,
                    slots,
                    marks: chosen.marks,
                    counts: chosen.counts,
                    list: chosen.list,
                    list_stride: stride,
                    rows: rows.rows,
                    row_stride: slots,
                    positions,
                    lanes,
                    n: k as usize,
                    own: false,
                };
                select.launch(&gpu)?;
                rows.top(&to, &chosen, &gpu)?;
            }
        }
        pictures.drawn.push(drawn);
        Ok(())
    }

    /// Where a read set chose, leaves in the rows what was read; the masses that were not.
    fn keep_used(&mut self, rows: &PictureRows, drawn: &Drawn) -> Result<Option<Array>> {
        if !self.batch.now().values_on_host {
            return Ok(None);
        }
        let choices = self.choices_of_step();
        let (base, first) = (self.batch.rooms.choices.array(&self.gpu), drawn.parts.start);
        let [counts, _, dropped, slots] = choices.arrays(base, usize::from(drawn.layer), first);
        let weights = self.batch.rooms.weights.array(&self.gpu);
        let weights = weights.offset(4 * first * choices.heads * choices.list);
        rows.keep_used([weights, slots, counts], choices.list, &self.gpu)?;
        Ok(Some(dropped))
    }

    /// The pictures that were made in this step.
    pub(super) fn fetch_pictures(&mut self) -> Result<Vec<Picture>> {
        let mut pictures = Vec::new();
        let group = self.shape.group();
        let step = &self.batch.pictures;
        let mut all = vec![0u32; step.used / 4];
        self.gpu.download(step.room.array(&self.gpu), bytemuck::cast_slice_mut(&mut all))?;
        for drawn in &step.drawn {
            let words = &all[drawn.first / 4..];
            for (i, part) in drawn.parts.clone().enumerate() {
                let row =
                    |head: usize| drawn.row(words, i * drawn.heads + head, drawn.slots[i][head / group]);
                pictures.push(Picture {
                    layer: drawn.layer,
                    part,
                    rows: (0..drawn.heads).map(row).collect(),
                });
            }
        }
        Ok(pictures)
    }
}
