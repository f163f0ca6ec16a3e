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

    /// What a backend measured: rows of a step, and the channels of all steps, where it tells them.
    fn add(&mut self, layer: Layer, [k, v]: [CodingError; 2], k_channels: &[[f64; 2]]) {
        let LayerTally { step, channels } = &mut self.layers[usize::from(layer)];
        (step.k, step.v) = (step.k.with(&k), step.v.with(&v));
        if channels.len() == k_channels.len() {
            channels.copy_from_slice(k_channels);
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

    /// Whether the channels of K are told, if this step puts so many tokens into codes.
    pub fn tells_channels(&self, tokens: usize) -> bool {
        tokens as u64 >= TELLING_TOKENS && self.tally.layers.iter().any(|layer| !layer.channels.is_empty())
    }

    /// Notes what a backend measured of the rows that it put into codes in this step: errors of keys and of values, and
    /// squared error and squares of every K channel since the run began, `[kv_head][channel]`; none where it does not tell.
    ///
    /// # Errors
    /// No such layer.
    pub fn note_coding(
        &mut self,
        layer: Layer,
        keys_and_values: [CodingError; 2],
        k_channels: &[[f64; 2]],
    ) -> Result<(), CacheError> {
        self.check_layer(layer)?;
        self.tally.add(layer, keys_and_values, k_channels);
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
        let (dtype, head_dim) = (self.config.dtype, self.config.shape.head_dim);
        match self.pages(seq, layer, head).1 {
            Pages::Coded(pages) if dtype.goes_into_codes_later() => {
                slots.map(|slot| pages.row(slot).bytes() as u64).sum()
            }
            _ => (slots.count() * dtype.written_row_bytes(head_dim)) as u64,
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

#[cfg(test)]
mod tests {
    use super::super::{CacheConfig, RopeMode, Victims};
    use super::*;

    const CONFIG: CacheConfig = CacheConfig {
        shape: KvShape { layers: 2, kv_heads: 2, head_dim: 8 },
        block_size: 4,
        blocks: 100,
        dtype: KvDtype::Int8,
        rope: RopeMode::Post,
        host_v_from_layer: Some(1),
        far_blocks: false,
        salt: [0; 32],
    };

    /// Rows in 8-bit codes may lie in a backend's pages alone: what they take is counted as if they lay here.
    #[test]
    fn rows_that_are_elsewhere_take_as_much() {
        let (mut own, mut without) = (Cache::new(CONFIG).unwrap(), Cache::without_pages(CONFIG).unwrap());
        for (step, (first, n)) in [(0, 40), (40, 1), (41, 3)].into_iter().enumerate() {
            let rows: Vec<f32> = (0..n * 16).map(|i| (i * i % 101) as f32 / 7.0 - 5.0).collect();
            let victims: Vec<u32> = (0..first + n as u32).filter(|p| p % 3 == step as u32).collect();
            for cache in [&mut own, &mut without] {
                cache.add(0);
                cache.reserve(0, first, n).unwrap();
            }
            for layer in 0..2 {
                own.write(0, layer, first, &rows, &rows).unwrap();
                without.note_written(0, layer, first, n).unwrap();
            }
            for cache in [&mut own, &mut without] {
                cache.evict(0, 0, &Victims::All(&victims)).unwrap();
                cache.compact(0, 0).unwrap();
                cache.take_ops(0);
            }
            assert_eq!(own.usage(), without.usage());
            for (layer, head) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
                let bytes = |cache: &Cache| {
                    [cache.live_value_bytes(0, layer, head), cache.newest_value_bytes(0, layer, head, 1)]
                };
                assert_eq!(bytes(&own), bytes(&without));
                assert_eq!(bytes(&own), [own.table(0, layer).live(head) as u64 * 12, 12]);
            }
        }
    }

    #[test]
    fn what_a_backend_measured_is_told_as_what_was_measured_here() {
        let (mut own, mut without) = (Cache::new(CONFIG).unwrap(), Cache::without_pages(CONFIG).unwrap());
        own.add(0);
        // Too few tokens for their channels to be told, then enough.
        let mut channels = vec![[0.0; 2]; 16];
        for (first, n) in [(0, 3), (3, 32)] {
            let rows: Vec<f32> = (0..n * 16).map(|i| (i * i % 101) as f32 / 7.0 - 5.0).collect();
            own.reserve(0, first, n).unwrap();
            own.write(0, 1, first, &rows, &rows).unwrap();
            let mut sum = CodingError { rows: 2 * n as u64, ..CodingError::default() };
            for (i, row) in rows.chunks(8).enumerate() {
                let (token, head) = (first as usize + i / 2, i % 2);
                let mut read = [0.0; 8];
                let Pages::Coded(pages) = own.pages(0, 1, head as Head).0 else { panic!("pages in codes") };
                pages.row(token).decode(&mut read);
                for (i, (&was, is)) in row.iter().zip(read).enumerate() {
                    let of = [(f64::from(was) - f64::from(is)).powi(2), f64::from(was).powi(2)];
                    let channel = &mut channels[head * 8 + i];
                    (channel[0], channel[1]) = (channel[0] + of[0], channel[1] + of[1]);
                    (sum.squared_error, sum.squares) = (sum.squared_error + of[0], sum.squares + of[1]);
                }
            }
            let of_channels = if without.tells_channels(n) { &*channels } else { &[] };
            without.note_coding(1, [sum, sum], of_channels).unwrap();
            let (own, without) = (own.take_coding(), without.take_coding());
            assert_eq!(own[0].k_channels.len(), if n < 32 { 0 } else { 16 });
            assert_eq!((own.len(), own[0].layer, &own[0].k_channels), (1, 1, &without[0].k_channels));
            assert_eq!((own[0].k.rows, own[0].v.rows), (without[0].k.rows, without[0].v.rows));
            assert!((own[0].k.relative().unwrap() - without[0].k.relative().unwrap()).abs() < 1e-12);
        }
        assert!(without.note_coding(2, [CodingError::default(); 2], &[]).is_err(), "there are two layers");
    }

    #[test]
    #[should_panic(expected = "rows and pages that stay as they are")]
    fn rows_that_go_into_codes_later_lie_here() {
        let _ = Cache::without_pages(CacheConfig {
            block_size: 32,
            dtype: KvDtype::Kivi { bits: 4, residual: 32 },
            ..CONFIG
        });
    }
}
