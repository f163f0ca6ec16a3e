//! Rows going into codes: when, and how far off they come out.

use super::pool::Part;
use super::table::{HOLE, LaneView};
use super::{Cache, CacheError, KIVI_GROUP, KvDtype, KvShape, Pages};
use crate::event::attention::quantise;
use crate::event::{CodingError, Head, Layer, LayerCoding, MAX_CHANNELS, SeqId};

/// Tokens that a step must put into codes, in every head, for its channels to be told.
const TELLING_TOKENS: u64 = 32;

/// Errors of all layers: of this step, and per K channel since the cache was made.
#[derive(Clone, Debug)]
pub(super) struct Tally {
    layers: Vec<LayerTally>,
    kv_heads: u64,
    head_dim: usize,
}

#[derive(Clone, Debug, Default)]
struct LayerTally {
    step: LayerCoding,
    /// Squared error and squares, `[kv_head][channel]`; empty where there are too many to tell.
    channels: Vec<[f64; 2]>,
}

impl Tally {
    pub(super) fn new(shape: KvShape, dtype: KvDtype) -> Self {
        let channels = usize::from(shape.kv_heads) * shape.head_dim;
        let told = if dtype.is_coded() && channels <= MAX_CHANNELS { channels } else { 0 };
        let layer = |layer| LayerTally {
            step: LayerCoding { layer, ..LayerCoding::default() },
            channels: vec![[0.0; 2]; told],
        };
        Self {
            layers: (0..shape.layers).map(layer).collect(),
            kv_heads: shape.kv_heads.into(),
            head_dim: shape.head_dim,
        }
    }

    /// One row as it was and as it will be read.
    pub(super) fn measure(&mut self, layer: Layer, head: Head, part: Part, was: &[f32], is: &[f32]) {
        let LayerTally { step, channels } = &mut self.layers[usize::from(layer)];
        let sum = match part {
            Part::K => &mut step.k,
            Part::V => &mut step.v,
        };
        sum.rows += 1;
        let first = usize::from(head) * self.head_dim;
        let mut channels = match part {
            Part::K => channels.get_mut(first..first + self.head_dim).unwrap_or_default(),
            Part::V => &mut [],
        }
        .iter_mut();
        for (&was, &is) in was.iter().zip(is) {
            let channel = channels.next();
            if !was.is_finite() {
                continue;
            }
            let (error, square) = ((f64::from(was) - f64::from(is)).powi(2), f64::from(was).powi(2));
            sum.squared_error += error;
            sum.squares += square;
            if let Some([errors, squares]) = channel {
                *errors += error;
                *squares += square;
            }
        }
    }

    pub(super) fn recoded(&mut self, layer: Layer, rows: u64) {
        self.layers[usize::from(layer)].step.recoded_rows += rows;
    }

    fn take(&mut self) -> Vec<LayerCoding> {
        let telling = TELLING_TOKENS * self.kv_heads;
        let take = |LayerTally { step, channels }: &mut LayerTally| {
            let blank = LayerCoding { layer: step.layer, ..LayerCoding::default() };
            if *step == blank {
                return None;
            }
            let mut told = std::mem::replace(step, blank);
            if told.k.rows >= telling {
                let relative = |&[squared_error, squares]: &[f64; 2]| {
                    CodingError { rows: 1, squared_error, squares }.relative().unwrap_or(0.0)
                };
                told.k_channels = channels.iter().map(|c| quantise(relative(c) as f32)).collect();
            }
            Some(told)
        };
        self.layers.iter_mut().filter_map(take).collect()
    }
}

impl Cache {
    /// Puts into codes what has left the exact window of a layer ([`KvDtype::Kivi`]), or all there is once that is enough
    /// to calibrate on ([`KvDtype::Nuq`]); nothing to do for other types. To be called after the layer's attention, so
    /// that a prefill chunk is read exactly by its own queries.
    ///
    /// Under KIVI K grows to `residual` slots, holes among them, which then go into codes all at once: whole pages. Of V
    /// the newest `residual` live rows stay exact.
    ///
    /// # Errors
    /// No such sequence or layer.
    pub fn quantise(&mut self, seq: SeqId, layer: Layer) -> Result<(), CacheError> {
        self.check_layer(layer)?;
        let residual = match self.config.dtype {
            KvDtype::Kivi { residual, .. } => residual,
            KvDtype::Nuq(nuq) => return self.calibrate(seq, layer, nuq),
            _ => return Ok(()),
        };
        let home = self.home(layer);
        let sequence = self.sequences.get(&seq).ok_or(CacheError::NoSequence(seq))?;
        let table = &sequence.tables[usize::from(layer)];
        for head in 0..table.heads() {
            let lane = table.lane(head);
            let parts = [
                (Part::K, self.pages.keys.kivi_mut()),
                (Part::V, self.pages.values[home as usize].kivi_mut()),
            ];
            for (part, store) in parts {
                let codes = in_codes(lane, |i| store.in_codes(lane.block(i)));
                let end = match part {
                    Part::K => codes + (lane.slots.len() - codes) / residual as usize * residual as usize,
                    Part::V => before_newest(lane, codes, residual as usize),
                };
                if end > codes {
                    self.changes.code((seq, layer, head), lane, codes..end, part);
                }
                for i in codes / KIVI_GROUP..end.div_ceil(KIVI_GROUP) {
                    let live: Vec<bool> = lane.block_slots(i).iter().map(|&p| p != HOLE).collect();
                    let (id, rows) = (lane.block(i), (end - i * KIVI_GROUP).min(KIVI_GROUP));
                    store.code(id, rows, &live, |was, is| self.tally.measure(layer, head, part, was, is));
                    self.pool.code(id, part, 0..rows);
                }
            }
        }
        Ok(())
    }

    /// Rows that went into codes since the last call, by layer; layers without any are absent.
    pub fn take_coding(&mut self) -> Vec<LayerCoding> {
        self.tally.take()
    }

    /// Bytes of V of the live rows of one KV head.
    ///
    /// # Panics
    /// The sequence was never added, or the model has no such layer or head.
    pub fn live_value_bytes(&self, seq: SeqId, layer: Layer, head: Head) -> u64 {
        let lane = self.table(seq, layer).lane(head);
        let live = (0..lane.slots.len()).filter(|&slot| lane.slots[slot] != HOLE);
        self.value_bytes(seq, layer, head, live)
    }

    /// Bytes of V of the newest `n` slots of one KV head, as they lie.
    ///
    /// # Panics
    /// The sequence was never added, or the model has no such layer or head, or it has fewer slots.
    pub fn newest_value_bytes(&self, seq: SeqId, layer: Layer, head: Head, n: usize) -> u64 {
        let slots = self.table(seq, layer).lane(head).slots.len();
        self.value_bytes(seq, layer, head, slots - n..slots)
    }

    fn value_bytes(&self, seq: SeqId, layer: Layer, head: Head, slots: impl Iterator<Item = usize>) -> u64 {
        let row_bytes = self.config.dtype.written_row_bytes(self.config.shape.head_dim);
        match self.pages(seq, layer, head).1 {
            Pages::Coded(pages) => slots.map(|slot| pages.row(slot).bytes() as u64).sum(),
            Pages::F32(_) | Pages::F16(_) => (slots.count() * row_bytes) as u64,
        }
    }
}

/// Leading slots of a lane that are in codes.
pub(super) fn in_codes(lane: LaneView<'_>, page: impl Fn(usize) -> usize) -> usize {
    let last = (0..lane.block_count()).rev().find(|&i| page(i) > 0);
    last.map_or(0, |i| i * lane.block_size as usize + page(i))
}

/// The slot behind the newest live row that is not among the newest `n`, `from` if all are.
fn before_newest(lane: LaneView<'_>, from: usize, n: usize) -> usize {
    let mut exact = (from..lane.slots.len()).rev().filter(|&slot| lane.slots[slot] != HOLE);
    exact.nth(n).map_or(from, |slot| slot + 1)
}
