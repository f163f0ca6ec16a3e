//! A chunk of queries: keys and values as matrices, products, a softmax between them.

use std::time::Instant;

use super::super::lane::{HOLE, HeadLane};
use super::super::probabilities::add_group_mean;
use super::super::{PrefillTime, Queries, RowSink, Wants};
use super::tables::Part;
use super::{GpuAttention, as_bytes, bend, heads, word_bytes};
use crate::device::gpu::{Array, Gpu, Matrices, Products, Result};
use crate::device::launch::{Accumulate, Heads, LANE_QUERY, LANE_WORDS, Softmax};

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
        let shape = heads(self.shape);
        let Heads { heads, kv_heads, head_dim: d } = shape;
        let (width, columns) = (self.shape.width(), self.scored.row_stride);
        let tokens = queries.rows.len() / width;
        if tokens == 0 || columns == 0 {
            return Ok(());
        }
        let stride = Self::matrix_stride(lanes);
        let values = self.matrix(lanes, Part::Values, queries.first, stride)?;
        // The tables that stay on the device are those of the keys; positions are the same.
        let keys = self.matrix(lanes, Part::Keys, queries.first, stride)?;
        let lane_words = self.rooms.words.array(&self.gpu);
        let positions = lane_words.offset(4 * kv_heads * LANE_WORDS);
        let rows = self.turned_queries(queries.rows, queries.first, lanes);
        let (gpu, rooms) = (self.gpu.clone(), &mut self.rooms);
        let rows = rooms.queries.filled(&gpu, as_bytes(&rows))?;
        let outputs = rooms.out.of(&gpu, 4 * tokens * width)?;
        let per_tile = (TILE_BYTES / (4 * heads * columns)).clamp(1, tokens);
        let array = rooms.tile.of(&gpu, 4 * heads * per_tile * columns)?;
        let reach = lanes.iter().flat_map(|lane| lane.slots).filter(|&&p| p != HOLE).max();
        let position_stride = reach.map_or(0, |&last| last as usize + 1);
        let sums = rooms.sums.of(&gpu, 4 * kv_heads * position_stride)?;
        if wants.column_sums {
            gpu.clear(sums, 4 * kv_heads * position_stride)?;
        }
        let mut probed = 0;
        for first in (0..tokens).step_by(per_tile) {
            let tile = Tile { first, queries: per_tile.min(tokens - first), array, columns };
            if first > 0 {
                let position = queries.first.saturating_add(first as u32);
                for h in 0..kv_heads {
                    gpu.upload(
                        lane_words.offset(4 * (LANE_WORDS * h + LANE_QUERY)),
                        word_bytes(&[position]),
                    )?;
                }
            }
            let part =
                |array: Array, h: usize| array.offset(4 * (tile.first * width + h * (heads / kv_heads) * d));
            let cells = tile.queries * columns;
            for h in 0..kv_heads {
                let scores = Matrices {
                    array: array.offset(4 * h * (heads / kv_heads) * cells),
                    row_stride: columns,
                    stride: cells,
                };
                gpu.multiply(&Products {
                    count: heads / kv_heads,
                    m: tile.queries,
                    n: columns,
                    k: d,
                    a: Matrices { array: part(rows, h), row_stride: width, stride: d },
                    b: Matrices { array: keys.offset(4 * h * stride * d), row_stride: d, stride: 0 },
                    transposed: true,
                    out: scores,
                })?;
            }
            let softmax = Softmax {
                heads: shape,
                queries: tile.queries,
                tile: array,
                positions,
                lanes: lane_words,
                columns,
                row_stride: columns,
                scale: self.shape.scale(),
                bend: bend(lanes),
            };
            softmax.launch(&gpu)?;
            for h in 0..kv_heads {
                let probabilities = Matrices {
                    array: array.offset(4 * h * (heads / kv_heads) * cells),
                    row_stride: columns,
                    stride: cells,
                };
                gpu.multiply(&Products {
                    count: heads / kv_heads,
                    m: tile.queries,
                    n: d,
                    k: columns,
                    a: probabilities,
                    b: Matrices { array: values.offset(4 * h * stride * d), row_stride: d, stride: 0 },
                    transposed: false,
                    out: Matrices { array: part(outputs, h), row_stride: width, stride: d },
                })?;
            }
            if wants.column_sums {
                let accumulate = Accumulate {
                    heads: shape,
                    queries: tile.queries,
                    slots: columns,
                    sums,
                    position_stride,
                    rows: array,
                    row_stride: columns,
                    positions,
                    lanes: lane_words,
                };
                accumulate.launch(&gpu)?;
            }
            if !sinks.is_empty() {
                let began = Instant::now();
                self.pour(tile, queries.first, lanes, sinks)?;
                probed += began.elapsed().as_nanos() as u64;
            }
            if wants.last_row && first + tile.queries == tokens {
                self.keep_last_row(tile)?;
            }
        }
        gpu.download(outputs, bytemuck::cast_slice_mut(out))?;
        let done = Instant::now();
        if wants.column_sums {
            self.fetch_sums(lanes, sums, position_stride)?;
        }
        time.probe_ns = probed + done.elapsed().as_nanos() as u64;
        // One number for both products: they run behind each other on the device, and are waited for together.
        time.score_ns = (done - start).as_nanos() as u64 - probed;
        Ok(())
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

    /// What each slot received, out of what each position did.
    fn fetch_sums(&mut self, lanes: &[HeadLane<'_>], sums: Array, stride: usize) -> Result<()> {
        let mut of_positions = vec![0.0f32; lanes.len() * stride];
        self.gpu.download(sums, bytemuck::cast_slice_mut(&mut of_positions))?;
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
