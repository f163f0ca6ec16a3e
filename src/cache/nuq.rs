//! Pages whose rows are exact until a calibration, and non-uniform codes from then on (KVQuant, arXiv 2401.18079).
//!
//! Rows are kept exact until enough tokens are there, or the compressed span of the prompt ends. Then, per sequence and
//! layer, every channel of the keys gets its thresholds, keys and values get a codebook each, and what is resident goes
//! into codes but for the first tokens. From then on a row goes into codes as it is written: thresholds of keys are
//! fixed, those of values come with the token. So codes never depend on the page they lie in, and move as they are.
//!
//! Thresholds of a token's values are taken over all KV heads, as in the source; every head's page keeps a copy of them,
//! for heads lose their tokens apart. Where heads have lost a token before the calibration, those that are left count.
//!
//! The calibration itself (two thresholds per channel of the keys, two codebooks, per layer and sequence) is no part of
//! any page and not counted in its tier.

use std::collections::BTreeMap;
use std::ops::Range;

use super::coding::Tally;
use super::config::CacheConfig;
use super::dtype::{KvDtype, Nuq};
use super::pool::{Part, Pool};
use super::shelf::Shelf;
use super::table::{LaneView, LayerTable};
use super::{Cache, CacheError, HOLE};
use crate::event::{BlockId, Head, Layer, Position, SeqId};
use crate::quant::{CodedRows, NuqCodec, NuqLayout, OUTLIER_BYTES, Thresholds, k_means};

/// How the rows of one sequence go into codes.
#[derive(Clone, Debug)]
pub(super) struct Calibration {
    /// Tokens of the sequence after which a layer is calibrated.
    tokens: Position,
    /// Share of the values that are outliers.
    share: f64,
    layers: Vec<LayerCodecs>,
}

#[derive(Clone, Debug)]
struct LayerCodecs {
    /// By KV head; they share a codebook.
    keys: Vec<NuqCodec>,
    values: NuqCodec,
}

impl Calibration {
    /// Nothing calibrated yet; `None` where pages are of another type.
    pub(super) fn of(config: &CacheConfig) -> Option<Self> {
        let KvDtype::Nuq(nuq) = config.dtype else { return None };
        let blank = |part| NuqCodec::blank(nuq.layout(part, config.shape.head_dim));
        let codecs = LayerCodecs {
            keys: vec![blank(Part::K); usize::from(config.shape.kv_heads)],
            values: blank(Part::V),
        };
        Some(Self {
            tokens: nuq.calibrate,
            share: nuq.outliers(),
            layers: vec![codecs; usize::from(config.shape.layers)],
        })
    }

    /// Whether a layer's rows go into codes as they are written.
    pub(super) fn is_done(&self, layer: Layer) -> bool {
        !self.layers[usize::from(layer)].values.points().is_empty()
    }

    /// Thresholds of the values of every token, `[token][kv_head][head_dim]`.
    pub(super) fn thresholds(&self, v: &[f32], stride: usize) -> Vec<Thresholds> {
        v.chunks_exact(stride).map(|row| Thresholds::of(&mut row.to_vec(), self.share)).collect()
    }

    /// Codecs of the keys and the values of one KV head.
    pub(super) fn codecs(&self, layer: Layer, head: Head) -> (&NuqCodec, &NuqCodec) {
        let layer = &self.layers[usize::from(layer)];
        (&layer.keys[usize::from(head)], &layer.values)
    }
}

/// Pages of one kind (K or V) in one tier. A page's leading rows may be exact, the others are in codes.
#[derive(Clone, Debug)]
pub(super) struct NuqStore {
    pages: Shelf<Page>,
    layout: NuqLayout,
    /// Rows per page.
    width: usize,
}

#[derive(Clone, Debug, Default)]
struct Page {
    exact: Box<[f32]>,
    /// Rows in codes, all that the page has room for.
    dense: Box<[u8]>,
    /// Their outliers, row by row.
    sparse: Vec<u8>,
    /// Whether what is written next goes into codes.
    in_codes: bool,
}

impl NuqStore {
    pub(super) const fn new(layout: NuqLayout, width: usize) -> Self {
        Self { pages: Shelf::new(), layout, width }
    }

    /// A page of exact rows.
    pub(super) fn allocate(&mut self, id: BlockId) {
        self.pages.put(id, Page { exact: vec![0.0; self.layout.row * self.width].into(), ..Page::default() });
    }

    /// A page of rows in codes.
    pub(super) fn allocate_coded(&mut self, id: BlockId) {
        let dense = vec![0; self.layout.row_bytes() * self.width].into();
        self.pages.put(id, Page { dense, in_codes: true, ..Page::default() });
    }

    pub(super) fn free(&mut self, id: BlockId) {
        self.pages.free(id);
    }

    pub(super) fn copy_page(&mut self, from: BlockId, to: BlockId) {
        self.pages.copy(from, to);
    }

    pub(super) fn rows<'a>(&'a self, id: BlockId, codec: &'a NuqCodec) -> CodedRows<'a> {
        let page = self.pages.page(id);
        CodedRows::nuq(codec, &page.exact, &page.dense, &page.sparse)
    }

    /// Leading rows of a page that are exact.
    pub(super) fn exact_rows(&self, id: BlockId) -> usize {
        self.pages.page(id).exact.len() / self.layout.row
    }

    /// The rows of a page in codes, and the outliers of each.
    pub(super) fn coded(&self, id: BlockId) -> (Range<usize>, Vec<usize>) {
        let each = self.pages.page(id).dense.chunks_exact(self.layout.row_bytes());
        (self.exact_rows(id)..self.width, each.map(|row| self.layout.outliers(row)).collect())
    }

    pub(super) fn held_bytes(&self) -> usize {
        let bytes = |p: &Page| size_of_val(&*p.exact) + p.dense.len() + p.sparse.len();
        self.pages.iter().map(bytes).sum()
    }

    /// Writes `n` rows from slot `slot` on into exact pages; row `i` starts at `rows[i * stride]`.
    pub(super) fn write(&mut self, lane: LaneView<'_>, slot: usize, n: usize, rows: &[f32], stride: usize) {
        let (width, row) = (self.width, self.layout.row);
        for i in 0..n {
            let page = self.pages.page_mut(lane.block((slot + i) / width));
            let at = (slot + i) % width * row;
            page.exact[at..at + row].copy_from_slice(&rows[i * stride..][..row]);
        }
    }

    /// The exact row of a slot.
    fn exact(&self, lane: LaneView<'_>, slot: usize) -> &[f32] {
        &self.pages.page(lane.block(slot / self.width)).exact[slot % self.width * self.layout.row..]
            [..self.layout.row]
    }

    /// Cuts the exact rows of a page off behind the first `rows`; what comes behind them is in codes then.
    fn cut_exact(&mut self, id: BlockId, rows: usize) {
        let (row, coded) = (self.layout.row, self.width - rows);
        let dense = vec![0; coded * self.layout.row_bytes()].into();
        let page = self.pages.page_mut(id);
        let exact = page.exact[..rows * row].into();
        *page = Page { exact, dense, sparse: Vec::new(), in_codes: true };
    }

    /// Puts a row in codes into a page. Rows come in order.
    fn put_row(&mut self, id: BlockId, at: usize, dense: &[u8], sparse: &[u8]) {
        let at = (at - self.exact_rows(id)) * dense.len();
        let page = self.pages.page_mut(id);
        page.dense[at..at + dense.len()].copy_from_slice(dense);
        page.sparse.reserve_exact(sparse.len());
        page.sparse.extend_from_slice(sparse);
    }

    /// Lays the rows `kept` of a lane (slots as they were, ascending) into its pages from `first` on, as they are;
    /// `blocks` are the lane's pages as they were.
    pub(super) fn gather(&mut self, blocks: &[BlockId], first: usize, kept: &[usize]) {
        let (width, row, row_bytes) = (self.width, self.layout.row, self.layout.row_bytes());
        let Some(in_codes) = blocks.get(first).map(|&id| self.pages.page(id).in_codes) else { return };
        let mut pages: Vec<Page> = Vec::new();
        for rows in kept.chunks(width) {
            let (mut exact, mut dense, mut sparse) = (Vec::new(), Vec::new(), Vec::new());
            for slot in rows {
                let page = self.pages.page(blocks[slot / width]);
                let (at, first_coded) = (slot % width, page.exact.len() / row);
                let Some(at) = at.checked_sub(first_coded) else {
                    exact.extend_from_slice(&page.exact[at * row..(at + 1) * row]);
                    continue;
                };
                let (before, own) = page.dense[..(at + 1) * row_bytes].split_at(at * row_bytes);
                let skipped = self.layout.outliers_of(before) * OUTLIER_BYTES;
                dense.extend_from_slice(own);
                sparse.extend_from_slice(
                    &page.sparse[skipped..][..self.layout.outliers_of(own) * OUTLIER_BYTES],
                );
            }
            if in_codes {
                dense.resize((width - exact.len() / row) * row_bytes, 0);
            } else {
                exact.resize(width * row, 0.0);
            }
            pages.push(Page { exact: exact.into(), dense: dense.into(), sparse, in_codes });
        }
        for (page, &id) in pages.into_iter().zip(&blocks[first..]) {
            self.pages.replace(id, page);
        }
    }
}

/// What rows go through on their way into codes.
pub(super) struct Coder<'a> {
    pub(super) keys: &'a mut NuqStore,
    pub(super) values: &'a mut NuqStore,
    pub(super) pool: &'a mut Pool,
    pub(super) tally: &'a mut Tally,
}

impl Coder<'_> {
    /// Puts the rows of freshly appended tokens, K and V as `[token][kv_head][head_dim]`, into codes; `own` are the
    /// thresholds of their values.
    pub(super) fn append(
        &mut self,
        calibration: &Calibration,
        (layer, head): (Layer, Head),
        lane: LaneView<'_>,
        slot: usize,
        [k, v]: [&[f32]; 2],
        own: &[Thresholds],
    ) {
        let codecs = &calibration.layers[usize::from(layer)];
        let d = codecs.values.layout().row;
        let stride = codecs.keys.len() * d;
        let column = usize::from(head) * d;
        let (key_codec, value_codec) = calibration.codecs(layer, head);
        for (i, &own) in own.iter().enumerate() {
            let row = i * stride + column..i * stride + column + d;
            let place = (lane.block((slot + i) / self.keys.width), (slot + i) % self.keys.width);
            self.put((layer, head, Part::K), place, key_codec, &k[row.clone()], Thresholds::default());
            self.put((layer, head, Part::V), place, value_codec, &v[row], own);
        }
    }

    /// Puts one live row into codes, and tells how far off it comes out.
    fn put(
        &mut self,
        (layer, head, part): (Layer, Head, Part),
        (id, at): (BlockId, usize),
        codec: &NuqCodec,
        row: &[f32],
        own: Thresholds,
    ) {
        let (mut dense, mut sparse) = (vec![0; codec.layout().row_bytes()], Vec::new());
        let outliers = codec.encode(row, own, &mut dense, &mut sparse);
        let mut back = vec![0.0; row.len()];
        CodedRows::nuq(codec, &[], &dense, &sparse).decode(&mut back);
        self.tally.measure(layer, head, part, row, &back);
        let store = if part == Part::K { &mut *self.keys } else { &mut *self.values };
        store.put_row(id, at, &dense, &sparse);
        self.pool.note_outliers(id, part, at, outliers);
    }
}

impl Cache {
    /// The span of a sequence that calibrates ends with the tokens reserved so far, however many they are (but 32 and the
    /// exact ones; see [`Nuq::calibrate`]). Changes nothing for other types of pages, or after the calibration.
    pub fn end_calibration(&mut self, seq: SeqId) {
        let KvDtype::Nuq(nuq) = self.config.dtype else { return };
        let Some(sequence) = self.sequences.get_mut(&seq) else { return };
        if let Some(calibration) = &mut sequence.calibration {
            let tokens = sequence.next.max(nuq.first + Nuq::LEAST_TOKENS);
            calibration.tokens = calibration.tokens.min(tokens);
        }
    }

    /// The codebooks of a layer, of keys and of values, ascending, between -1 and 1; `None` before the calibration.
    pub fn codebooks(&self, seq: SeqId, layer: Layer) -> Option<[&[f32]; 2]> {
        let calibration = self.sequences.get(&seq)?.calibration.as_ref()?;
        let (keys, values) = calibration.is_done(layer).then(|| calibration.codecs(layer, 0))?;
        Some([keys.points(), values.points()])
    }

    /// Makes thresholds and codebooks of a layer once enough tokens are there, and puts what is resident into codes.
    pub(super) fn calibrate(&mut self, seq: SeqId, layer: Layer, nuq: Nuq) -> Result<(), CacheError> {
        let home = self.home(layer);
        let sequence = self.sequences.get_mut(&seq).ok_or(CacheError::NoSequence(seq))?;
        let calibration = sequence.calibration.as_mut().expect("made with the sequence");
        let tokens = calibration.tokens;
        if calibration.is_done(layer) || sequence.written[usize::from(layer)] < tokens {
            return Ok(());
        }
        let mut coder = Coder {
            keys: self.pages.keys.nuq_mut(),
            values: self.pages.values[home as usize].nuq_mut(),
            pool: &mut self.pool,
            tally: &mut self.tally,
        };
        let table = &sequence.tables[usize::from(layer)];
        let codecs = &mut calibration.layers[usize::from(layer)];
        let span = nuq.first..tokens;
        coder.fit_keys(table, span.clone(), nuq, &mut codecs.keys);
        let own = coder.fit_values(table, span, nuq, &mut codecs.values);
        for head in 0..table.heads() {
            let codecs = (&codecs.keys[usize::from(head)], &codecs.values);
            coder.settle((layer, head), table.lane(head), nuq.first, codecs, &own);
        }
        Ok(())
    }
}

impl Coder<'_> {
    /// Thresholds of every channel of every head, and one codebook.
    fn fit_keys(&self, table: &LayerTable, span: Range<Position>, nuq: Nuq, codecs: &mut [NuqCodec]) {
        let mut inside = Vec::new();
        let mut thresholds = Vec::new();
        for head in 0..table.heads() {
            let lane = table.lane(head);
            let rows: Vec<&[f32]> = (0..lane.slots.len())
                .filter(|&slot| span.contains(&lane.slots[slot]))
                .map(|slot| self.keys.exact(lane, slot))
                .collect();
            let channels = (0..self.keys.layout.row).map(|channel| {
                let mut column: Vec<f32> = rows.iter().map(|row| row[channel]).collect();
                let thresholds = Thresholds::of(&mut column, nuq.outliers());
                inside.extend(column.iter().filter_map(|&x| thresholds.normalised(x)));
                thresholds
            });
            thresholds.push(channels.collect::<Vec<_>>());
        }
        let points = k_means(&mut inside, 1 << nuq.bits);
        for (codec, thresholds) in codecs.iter_mut().zip(thresholds) {
            *codec = codec.calibrated(points.clone(), thresholds);
        }
    }

    /// The codebook of the values. Returns the thresholds of every token that will go into codes.
    fn fit_values(
        &self,
        table: &LayerTable,
        span: Range<Position>,
        nuq: Nuq,
        codec: &mut NuqCodec,
    ) -> BTreeMap<Position, Thresholds> {
        let mut tokens: BTreeMap<Position, Vec<f32>> = BTreeMap::new();
        for head in 0..table.heads() {
            let lane = table.lane(head);
            for (slot, &position) in lane.slots.iter().enumerate() {
                if position != HOLE && position >= span.start {
                    tokens.entry(position).or_default().extend(self.values.exact(lane, slot));
                }
            }
        }
        let mut inside = Vec::new();
        let own = tokens.into_iter().map(|(position, mut values)| {
            let thresholds = Thresholds::of(&mut values, nuq.outliers());
            if position < span.end {
                inside.extend(values.iter().filter_map(|&x| thresholds.normalised(x)));
            }
            (position, thresholds)
        });
        let own = own.collect();
        *codec = codec.calibrated(k_means(&mut inside, 1 << nuq.bits), Vec::new());
        own
    }

    /// Puts the rows of a lane into codes, those before position `first` aside.
    fn settle(
        &mut self,
        (layer, head): (Layer, Head),
        lane: LaneView<'_>,
        first: Position,
        (key_codec, value_codec): (&NuqCodec, &NuqCodec),
        own: &BTreeMap<Position, Thresholds>,
    ) {
        // Holes among the exact rows too: a lane's exact rows come before its rows in codes.
        let end = lane.slots.iter().rposition(|&p| p < first).map_or(0, |slot| slot + 1);
        for (i, id) in lane.blocks().enumerate() {
            let slots = lane.block_slots(i);
            let exact = end.saturating_sub(i * self.keys.width).min(slots.len());
            let rows = [&*self.keys, &*self.values].map(|store| store.pages.page(id).exact.clone());
            self.keys.cut_exact(id, exact);
            self.values.cut_exact(id, exact);
            for part in [Part::K, Part::V] {
                self.pool.code(id, part, exact..self.keys.width);
            }
            for (at, &position) in slots.iter().enumerate().skip(exact).filter(|&(_, &p)| p != HOLE) {
                let [key, value] = [0, 1].map(|part| {
                    let d = self.keys.layout.row;
                    &rows[part][at * d..(at + 1) * d]
                });
                self.put((layer, head, Part::K), (id, at), key_codec, key, Thresholds::default());
                self.put((layer, head, Part::V), (id, at), value_codec, value, own[&position]);
            }
        }
    }
}
