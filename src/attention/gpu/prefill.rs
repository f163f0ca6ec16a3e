//! A chunk of queries: keys and values as matrices, products, a softmax between them.

use std::ops::Range;
use std::time::Instant;

use super::super::lane::{HOLE, HeadLane};
use super::super::probabilities::add_group_mean;
use super::super::{PrefillTime, Queries, RowSink, Wants};
use super::resident::Pulled;
use super::tables::Part;
use super::{GpuAttention, as_bytes, bend, heads, word_bytes};
use crate::device::gpu::{Array, Gpu, Matrices, Products, Result};
use crate::device::launch::{Accumulate, Heads, LANE_QUERY, LANE_WORDS, Softmax, Sums};
use crate::event::Position;

/// Most bytes of a tile of scores.
const TILE_BYTES: usize = 256 << 20;

/// Some consecutive queries of a chunk, and their probabilities on the device.
#[derive(Clone, Copy)]
struct Tile {
    /// First of them in the chunk, and how many.
    first: usize,
    queries: usize,
    /// `[head][query][columns]`.
    array: Array,
    columns: usize,
}

/// A chunk of queries and what they see, all on the device.
pub(super) struct Chunk<M> {
    /// `[token][head][head_dim]`, rotated; so is the output.
    pub(super) queries: Array,
    pub(super) outputs: Array,
    pub(super) first: Position,
    pub(super) tokens: usize,
    /// `[kv_head][stride][head_dim]`.
    pub(super) keys: Array,
    pub(super) values: Array,
    pub(super) stride: usize,
    /// Where the values come from the host, the pull that brings them.
    pub(super) values_pulled: Option<Pulled<M>>,
    pub(super) lanes: Array,
    pub(super) positions: Array,
    /// Where attention is added up by position, and the queries of its window, where it stays on the device.
    pub(super) sums: Option<(Sums, Range<Position>)>,
}

impl<G: Gpu> GpuAttention<G> {
    pub(super) fn prefill_chunk(
        &mut self,
        queries: Queries<'_>,
        lanes: &[HeadLane<'_>],
        wants: Wants,
        sinks: &mut [&mut dyn RowSink],
        out: &mut [f32],
        time: &mut PrefillTime,
    ) -> Result<()> {
        let start = Instant::now();
        let tokens = queries.rows.len() / self.shape.width();
        if tokens == 0 || self.scored.row_stride == 0 {
            return Ok(());
        }
        let stride = Self::matrix_stride(lanes);
        let values = self.matrix(lanes, Part::Values, queries.first, stride)?;
        // The tables that stay on the device are those of the keys; positions are the same.
        let keys = self.matrix(lanes, Part::Keys, queries.first, stride)?;
        let lane_words = self.rooms.words.array(&self.gpu);
        let rows = self.turned_queries(queries.rows, queries.first, lanes);
        let mut chunk = Chunk {
            queries: self.rooms.queries.filled(&self.gpu, as_bytes(&rows))?,
            outputs: self.rooms.out.of(&self.gpu, size_of_val(out))?,
            first: queries.first,
            tokens,
            keys,
            values,
            stride,
            values_pulled: None,
            lanes: lane_words,
            positions: lane_words.offset(4 * self.shape.kv_heads() * LANE_WORDS),
            sums: None,
        };
        let sums_ns = self.attend_chunk(&mut chunk, lanes, wants, sinks)?;
        self.gpu.download(chunk.outputs, bytemuck::cast_slice_mut(out))?;
        time.probe_ns = sums_ns;
        // One number for both products: they run behind each other on the device, and are waited for together.
        time.score_ns = start.elapsed().as_nanos() as u64 - sums_ns;
        Ok(())
    }

    /// Attends, and hands out what is wanted; how long the host was busy with that.
    pub(super) fn attend_chunk(
        &mut self,
        chunk: &mut Chunk<G::Mark>,
        lanes: &[HeadLane<'_>],
        wants: Wants,
        sinks: &mut [&mut dyn RowSink],
    ) -> Result<u64> {
        let shape = heads(self.shape);
        let Heads { heads, kv_heads, head_dim: d } = shape;
        let (group, width, columns) = (shape.group(), self.shape.width(), self.scored.row_stride);
        let gpu = self.gpu.clone();
        let per_tile = (TILE_BYTES / (4 * heads * columns)).clamp(1, chunk.tokens);
        let array = self.rooms.tile.of(&gpu, 4 * heads * per_tile * columns)?;
        let columns_of = if wants.column_sums { Some(self.begin_column_sums(lanes)?) } else { None };
        let sums = chunk.sums.clone().or(columns_of.map(|sums| (sums, 0..0)));
        let mut probed_ns = 0;
        for first in (0..chunk.tokens).step_by(per_tile) {
            let tile = Tile { first, queries: per_tile.min(chunk.tokens - first), array, columns };
            if first > 0 {
                let position = chunk.first.saturating_add(first as u32);
                for h in 0..kv_heads {
                    gpu.upload(
                        chunk.lanes.offset(4 * (LANE_WORDS * h + LANE_QUERY)),
                        word_bytes(&[position]),
                    )?;
                }
            }
            let cells = tile.queries * columns;
            // Of a KV head: rows of its query heads in an array of all tokens, its keys or values, its part of the tile.
            let rows = |array: Array, h: usize| Matrices {
                array: array.offset(4 * (tile.first * width + h * group * d)),
                row_stride: width,
                stride: d,
            };
            let context = |array: Array, h: usize| Matrices {
                array: array.offset(4 * h * chunk.stride * d),
                row_stride: d,
                stride: 0,
            };
            let of_tile = |h: usize| Matrices {
                array: array.offset(4 * h * group * cells),
                row_stride: columns,
                stride: cells,
            };
            for h in 0..kv_heads {
                gpu.multiply(&Products {
                    count: group,
                    m: tile.queries,
                    n: columns,
                    k: d,
                    a: rows(chunk.queries, h),
                    b: context(chunk.keys, h),
                    transposed: true,
                    out: of_tile(h),
                })?;
            }
            let softmax = Softmax {
                heads: shape,
                queries: tile.queries,
                tile: array,
                positions: chunk.positions,
                lanes: chunk.lanes,
                columns,
                row_stride: columns,
                scale: self.shape.scale(),
                bend: bend(lanes),
            };
            softmax.launch(&gpu)?;
            if let Some(pulled) = chunk.values_pulled.take() {
                self.wait_for(pulled)?;
            }
            for h in 0..kv_heads {
                gpu.multiply(&Products {
                    count: group,
                    m: tile.queries,
                    n: d,
                    k: columns,
                    a: of_tile(h),
                    b: context(chunk.values, h),
                    transposed: false,
                    out: rows(chunk.outputs, h),
                })?;
            }
            if let Some((sums, window)) = &sums {
                let accumulate = Accumulate {
                    heads: shape,
                    sequences: 1,
                    queries: tile.queries,
                    slots: columns,
                    sums: *sums,
                    window: window.clone(),
                    rows: array,
                    row_stride: columns,
                    positions: chunk.positions,
                    lanes: chunk.lanes,
                };
                accumulate.launch(&gpu)?;
            }
            if !sinks.is_empty() {
                let began = Instant::now();
                self.pour(tile, chunk.first, lanes, sinks)?;
                probed_ns += began.elapsed().as_nanos() as u64;
            }
            if wants.last_row && first + tile.queries == chunk.tokens {
                self.keep_last_row(tile)?;
            }
        }
        if let Some(sums) = columns_of {
            let began = Instant::now();
            self.fetch_column_sums(lanes, sums)?;
            probed_ns += began.elapsed().as_nanos() as u64;
        }
        Ok(probed_ns)
    }

    /// Every query's mean row to the sinks.
    fn pour(
        &self,
        tile: Tile,
        first: u32,
        lanes: &[HeadLane<'_>],
        sinks: &mut [&mut dyn RowSink],
    ) -> Result<()> {
        let (group, cells) = (self.shape.group(), tile.queries * tile.columns);
        let mut rows = vec![0.0f32; group * cells];
        for (h, (lane, sink)) in lanes.iter().zip(sinks).enumerate() {
            let from = tile.array.offset(4 * h * group * cells);
            self.gpu.download(from, bytemuck::cast_slice_mut(&mut rows))?;
            let mut seen = (0, 0);
            for query in 0..tile.queries {
                let position = first.saturating_add((tile.first + query) as u32);
                seen = lane.visible(position, seen);
                let mut mean = vec![0.0; seen.0];
                add_group_mean(&rows[query * tile.columns..], cells, group, &mut mean);
                sink.row(position, &mean);
            }
        }
        Ok(())
    }

    /// The last query's rows, kept as the latest probabilities.
    fn keep_last_row(&mut self, tile: Tile) -> Result<()> {
        let (heads, columns) = (self.shape.heads(), tile.columns);
        let rows = self.rooms.rows.of(&self.gpu, 4 * heads * columns)?;
        for head in 0..heads {
            let last = (head + 1) * tile.queries - 1;
            let from = tile.array.offset(4 * last * columns);
            self.gpu.copy(from, rows.offset(4 * head * columns), 4 * columns)?;
        }
        Ok(())
    }

    /// Sums of a chunk's own, from nothing.
    fn begin_column_sums(&mut self, lanes: &[HeadLane<'_>]) -> Result<Sums> {
        let reach = lanes.iter().flat_map(|lane| lane.slots).filter(|&&p| p != HOLE).max();
        let stride = reach.map_or(0, |&last| last as usize + 1);
        let bytes = 4 * lanes.len() * stride;
        let sum = self.rooms.sums.of(&self.gpu, bytes)?;
        self.gpu.clear(sum, bytes)?;
        Ok(Sums { sum, ..Sums::none(stride, Array::NONE) })
    }

    /// What each slot received, out of what each position did.
    fn fetch_column_sums(&mut self, lanes: &[HeadLane<'_>], sums: Sums) -> Result<()> {
        let stride = sums.stride;
        let mut of_positions = vec![0.0f32; lanes.len() * stride];
        self.gpu.download(sums.sum, bytemuck::cast_slice_mut(&mut of_positions))?;
        for ((own, lane), sums) in
            self.column_sums.iter_mut().zip(lanes).zip(of_positions.chunks(stride.max(1)))
        {
            for (own, &position) in own.iter_mut().zip(lane.slots) {
                *own = sums.get(position as usize).copied().unwrap_or(0.0);
            }
        }
        Ok(())
    }
}
