//! One query: scores, choices, sums.

use super::super::lane::{HeadLane, Pages, Rotation, Rows};
use super::super::pages::Reads;
use super::super::select::LaneSelection;
use super::super::{Attention, Queries};
use super::pages::stored;
use super::tables::Part;
use super::{GpuAttention, as_bytes, bend, heads, word_bytes};
use crate::device::gpu::{Array, Gpu, Result};
use crate::device::launch::{Decode, LANE_WORDS, SelectTop, Union, Weighted};

impl<G: Gpu> GpuAttention<G> {
    /// Probabilities of one query over the slots that are marked, and the output where values lie on the device.
    pub(super) fn decode(
        &mut self,
        query: Queries<'_>,
        lanes: &[HeadLane<'_>],
        read: Array,
        read_stride: usize,
    ) -> Result<()> {
        assert_eq!(query.rows.len(), self.shape.width(), "one query is [head][head_dim]");
        let (heads, slots) = (heads(self.shape), self.scored.row_stride);
        if slots == 0 {
            return Ok(());
        }
        let has_values = matches!(lanes[0].v, Pages::Placed(_));
        let turned = lanes.iter().any(|lane| !matches!(lane.rotation, Rotation::None));
        let tables = if turned {
            let stride = Self::matrix_stride(lanes);
            let k = self.matrix(lanes, Part::Keys, query.first, stride)?;
            let v =
                if has_values { self.matrix(lanes, Part::Values, query.first, stride)? } else { Array::NONE };
            self.load_matrices(lanes, query.first, [k, v], stride)?
        } else {
            self.load(lanes, Part::Keys, query.first)?
        };
        let rows =
            if turned { self.turned_queries(query.rows, query.first, lanes) } else { query.rows.into() };
        let (gpu, rooms) = (&self.gpu, &mut self.rooms);
        let queries = rooms.queries.filled(gpu, as_bytes(&rows))?;
        let decode = Decode {
            heads,
            cell: tables.cell,
            block_size: tables.block_size,
            sequences: 1,
            slots,
            scale: self.shape.scale(),
            bend: bend(lanes),
            queries,
            k: tables.k,
            v: if has_values { tables.v } else { Array::NONE },
            exact: tables.exact,
            blocks: tables.blocks,
            positions: tables.positions,
            lanes: tables.lanes,
            read,
            read_stride,
            partial: rooms.partial.of(gpu, 4 * Decode::partial_elements(heads, 1, slots))?,
            max_sum: rooms.max_sum.of(gpu, 4 * Decode::max_sum_elements(heads, 1, slots))?,
            totals: rooms.totals.of(gpu, 8 * heads.heads)?,
            out: if has_values { rooms.out.of(gpu, 4 * self.shape.width())? } else { Array::NONE },
            rows: rooms.rows.of(gpu, 4 * heads.heads * slots)?,
            row_stride: slots,
        };
        self.scored.has_output = has_values;
        decode.launch(gpu)
    }

    /// The largest probabilities of the latest scores, chosen on the device.
    pub(super) fn choose_top(&mut self, n: usize, own: bool) -> Result<()> {
        let heads = heads(self.shape);
        let (slots, group) = (self.scored.row_stride, heads.group());
        if slots == 0 {
            self.selection.lanes.iter_mut().for_each(|lane| *lane = LaneSelection::default());
            return Ok(());
        }
        let list = slots.min(group.saturating_mul(n.saturating_add(1)));
        // One array, so that one copy brings everything back: counts of unions and of heads, masses, slots, weights.
        let lengths = [heads.kv_heads, heads.heads, heads.heads, heads.kv_heads * list, heads.heads * list];
        let (gpu, rooms) = (&self.gpu, &mut self.rooms);
        let marks = rooms.marks.of(gpu, 4 * heads.heads * SelectTop::words(slots))?;
        let all = rooms.choice.of(gpu, 4 * lengths.iter().sum::<usize>())?;
        let mut arrays = [all; 5];
        for i in 1..5 {
            arrays[i] = arrays[i - 1].offset(4 * lengths[i - 1]);
        }
        let [counts, asked, dropped, slots_of, weights] = arrays;
        // The tables of the scores still lie where they were put.
        let lanes = rooms.words.array(gpu);
        let positions = lanes.offset(4 * heads.kv_heads * LANE_WORDS);
        let top = SelectTop {
            heads,
            sequences: 1,
            slots,
            marks,
            counts: asked,
            list: Array::NONE,
            list_stride: 0,
            rows: rooms.rows.array(gpu),
            row_stride: slots,
            positions,
            lanes,
            n,
            own,
        };
        top.launch(gpu)?;
        Union { of: top, slots: slots_of, counts, weights, dropped, list_stride: list }.launch(gpu)?;
        let mut words = vec![0u32; lengths.iter().sum()];
        gpu.download(all, bytemuck::cast_slice_mut(&mut words))?;
        self.take_selection(split(&words, lengths), list);
        Ok(())
    }

    /// A choice of one query, made on the device: counts of unions and of heads, masses that were dropped, slots of unions and
    /// weights of heads, both at most `list` in a row.
    pub(super) fn take_selection(&mut self, words: [&[u32]; 5], list: usize) {
        let [counts, asked, dropped, slots, weights] = words;
        let group = self.shape.group();
        let floats = |words: &[u32]| -> Vec<f32> { words.iter().map(|&word| f32::from_bits(word)).collect() };
        let per_lane = counts.iter().zip(slots.chunks(list)).zip(weights.chunks(group * list));
        let per_group = asked.chunks(group).zip(dropped.chunks(group));
        for ((lane, ((&count, slots), weights)), (asked, dropped)) in
            self.selection.lanes.iter_mut().zip(per_lane).zip(per_group)
        {
            let count = (count as usize).min(list);
            let weights = weights.chunks(list).flat_map(|row| floats(&row[..count])).collect();
            let asked = asked.iter().map(|&n| n as usize).sum();
            lane.take(slots[..count].into(), weights, asked, &floats(dropped));
        }
    }

    /// A choice made on the host, from the latest probabilities.
    pub(super) fn choose(
        &mut self,
        lanes: &[HeadLane<'_>],
        mut choose: impl FnMut(&mut LaneSelection, &[f32], &HeadLane<'_>, usize),
    ) {
        let mut selection = std::mem::take(&mut self.selection);
        let rows = self.probabilities();
        for (h, (lane, selection)) in lanes.iter().zip(&mut selection.lanes).enumerate() {
            choose(selection, &rows.lane(h).rows, lane, h);
        }
        self.selection = selection;
    }

    /// Marks of the slots of the pages that each head chose, `[head][stride]`.
    pub(super) fn page_marks(&self, lanes: &[HeadLane<'_>], stride: usize) -> Vec<u32> {
        let group = self.shape.group();
        let mut marks = vec![0u32; self.shape.heads() * stride];
        for (head, marks) in marks.chunks_mut(stride.max(1)).enumerate() {
            let pages = self.pages.lane(head / group);
            let read = (0..lanes[head / group].slots.len()).filter(|&slot| pages.head(head % group, slot));
            read.for_each(|slot| marks[slot / 32] |= 1 << (slot % 32));
        }
        marks
    }

    /// Rows of the longest union of the latest selection.
    fn most_chosen(&self) -> usize {
        self.selection.lanes.iter().map(|lane| lane.slots().len()).max().unwrap_or(0)
    }

    /// Copies rows pulled from the host, of the latest selection, and waits until they are there.
    pub(super) fn stage_rows(&mut self, values: &[Rows<'_>]) -> Result<()> {
        let (cell, d) = (self.pool.cell(), self.shape.head_dim());
        let piece = self.most_chosen() * cell.row_bytes(d);
        let mut bytes = Vec::new();
        for (h, (&rows, lane)) in values.iter().zip(&self.selection.lanes).enumerate() {
            assert_eq!(rows.len(), lane.slots().len() * d, "one staged row per slot of the union");
            stored(rows, cell, &mut bytes)?;
            bytes.resize((h + 1) * piece, 0);
        }
        self.rooms.staged.filled(&self.gpu, &bytes)?;
        self.gpu.wait()
    }

    /// The sum over the rows that were copied.
    pub(super) fn sum_staged(&mut self, out: &mut [f32]) -> Result<()> {
        let (heads, cell, most) = (heads(self.shape), self.pool.cell(), self.most_chosen());
        if most == 0 {
            return Ok(());
        }
        let (mut counts, mut weights) = (Vec::new(), Vec::new());
        for lane in &self.selection.lanes {
            counts.push(lane.slots().len() as u32);
            for head in 0..heads.group() {
                weights.extend_from_slice(lane.weights(head));
                weights.resize(weights.len() + most - lane.slots().len(), 0.0f32);
            }
        }
        let (gpu, rooms) = (&self.gpu, &mut self.rooms);
        let weighted = Weighted {
            cell,
            heads,
            sequences: 1,
            rows: most,
            staged: rooms.staged.array(gpu),
            row_stride: most,
            weights: rooms.choice.filled(gpu, as_bytes(&weights))?,
            weight_stride: most,
            counts: rooms.counts.filled(gpu, word_bytes(&counts))?,
            dropped: Array::NONE,
            partial: rooms.partial.of(gpu, 4 * Weighted::partial_elements(heads, 1, most))?,
            out: rooms.out.of(gpu, 4 * self.shape.width())?,
        };
        weighted.launch(gpu)?;
        gpu.download(weighted.out, bytemuck::cast_slice_mut(out))
    }
}

/// Pieces of these lengths, in a row.
pub(super) fn split<const N: usize>(mut words: &[u32], lengths: [usize; N]) -> [&[u32]; N] {
    lengths.map(|n| {
        let (own, rest) = words.split_at(n);
        words = rest;
        own
    })
}
