//! Attention under InfLLM (arXiv 2402.04617): a window, and a memory of blocks on the host behind it.
//!
//! Nothing is ever evicted, so a position's slot is the position.

use super::core::Engine;
use super::forward::{Gathered, mean_dropped, share_out};
use super::lanes::{Copied, Lanes, Reading, RecalledLanes, full_precision, rows_bytes};
use super::memory::BlockCopy;
use super::sequence::Work;
use crate::attention::{Queries, Rope, Rotation, Scoring, Wants, observe};
use crate::cache::{Cache, HOLE};
use crate::event::{Head, Layer, LayerReads, LayerTraffic, Phase, Position, ScoreLevel, SeqId, Stage};
use crate::policy::Infllm;

/// What a step reads of a layer, all heads alike.
struct Recall {
    /// Position per slot, a hole where nothing is read.
    slots: Vec<Position>,
    /// Blocks read.
    retrieved: Vec<usize>,
    /// Those that had to be copied to the device.
    loaded: usize,
}

impl Engine {
    /// Attention of one sequence in one layer: the first tokens, the blocks that fit, what is in no block yet, and the
    /// window. Then tokens that have left the window become blocks, and their rows go to the host.
    pub(super) fn attend_with_memory(
        &mut self,
        layer: usize,
        w: &Work,
        infllm: Infllm,
        queries: Queries<'_>,
        out: &mut [f32],
        gathered: &mut Gathered,
    ) {
        let at = Some(layer as Layer);
        let recall = self.recall_blocks(layer, w, infllm, queries);
        let level = self.picture_level();
        let sequence = &self.sequences[w.index];
        let pages =
            RecalledLanes::of(&self.cache, (sequence.id, layer as Layer), infllm, &sequence.far[layer]);
        let lanes = pages.lanes(
            &recall.slots,
            far_reading(self.ropes.of(layer), self.model.decoder.config().scoring(layer), infllm),
        );
        match w.stage {
            Stage::Decode => {
                self.attention.scores(queries, &lanes);
                self.timer.lap(at, Phase::Score);
                self.attention.weighted_sum(&lanes, out);
                self.timer.lap(at, Phase::WeightedSum);
            }
            Stage::Prefill => {
                let wants = Wants { column_sums: true, last_row: level != ScoreLevel::Off };
                let time = self.attention.prefill(queries, &lanes, wants, &mut [], out);
                self.timer.lap(at, Phase::Score);
                share_out(&mut self.timer, layer, &time, Phase::Policy);
                if level != ScoreLevel::Off {
                    let probabilities = self.attention.probabilities();
                    gathered.groups.extend(observe(level, layer as Layer, probabilities, None, &lanes));
                    self.timer.lap(at, Phase::Probe);
                }
            }
        }
        drop(lanes);
        drop(pages);
        self.receive(layer, w);
        self.timer.lap(at, Phase::Policy);
        if w.stage == Stage::Decode {
            self.picture_of_all(layer, w, infllm, (queries, &recall), gathered);
        }
        let reads = self.block_reads(layer, w, &recall);
        self.add_reads(&reads);
        self.timer.lap(at, Phase::Probe);
        self.form_blocks(layer, w, infllm);
        self.timer.lap(at, Phase::Append);
    }

    /// Chooses the blocks of a step and brings them to the device.
    fn recall_blocks(&mut self, layer: usize, w: &Work, infllm: Infllm, queries: Queries<'_>) -> Recall {
        let at = Some(layer as Layer);
        let config = self.model.decoder.config();
        let (d, kv_heads) = (config.head_dim, config.kv_heads);
        let query =
            mean_query(queries.rows, config.heads * d, d, self.ropes.of(layer), infllm.local as usize);
        let sequence = &mut self.sequences[w.index];
        let (place, memory) = ((sequence.id, layer as Layer), &mut sequence.far[layer]);
        let retrieved = memory.choose(&query, d, config.heads / kv_heads, infllm.retrieved());
        self.timer.lap(at, Phase::Select);
        let cache = &self.cache;
        let loaded = memory.bring(&retrieved, infllm.cache as usize, |block| {
            copy_block(cache, place, infllm, block, kv_heads)
        });
        let mut slots = cache.table(place.0, place.1).lane(0).slots.to_vec();
        for block in (0..memory.blocks()).filter(|block| retrieved.binary_search(block).is_err()) {
            let positions = infllm.positions(block as u32);
            slots[positions.start as usize..positions.end as usize].fill(HOLE);
        }
        let rows = |blocks: usize| blocks as u64 * u64::from(infllm.block) * kv_heads as u64;
        self.traffic[layer].add(&LayerTraffic {
            h2d_bytes: 2 * rows(loaded) * cache.config().dtype.written_row_bytes(d) as u64,
            rows: rows(loaded),
            asked_rows: rows(retrieved.len()),
            ..LayerTraffic::default()
        });
        self.timer.lap(at, Phase::VPull);
        Recall { slots, retrieved, loaded }
    }

    /// Adds up who received the attention of the newest queries.
    fn receive(&mut self, layer: usize, w: &Work) {
        let kv_heads = self.model.decoder.config().kv_heads;
        let memory = &mut self.sequences[w.index].far[layer];
        for h in 0..kv_heads {
            match w.stage {
                Stage::Prefill => memory.receive(h, kv_heads, self.attention.column_sums(h)),
                Stage::Decode => {
                    let probabilities = self.attention.probabilities();
                    let mut row = vec![0.0; probabilities.slots(h)];
                    probabilities.add_group_mean(h, &mut row);
                    memory.receive(h, kv_heads, &row);
                }
            }
        }
    }

    /// For a picture of a decode step: what every block would have drawn at its distance, held against what was read.
    fn picture_of_all(
        &mut self,
        layer: usize,
        w: &Work,
        infllm: Infllm,
        (queries, recall): (Queries<'_>, &Recall),
        gathered: &mut Gathered,
    ) {
        let level = self.picture_level();
        if level == ScoreLevel::Off {
            return;
        }
        let pages = Lanes::of(&self.cache, self.sequences[w.index].id, layer as Layer);
        let lanes = pages.resident(far_reading(
            self.ropes.of(layer),
            self.model.decoder.config().scoring(layer),
            infllm,
        ));
        self.attention.scores(queries, &lanes);
        let read: Vec<bool> = recall.slots.iter().map(|&p| p != HOLE).collect();
        self.attention.select_slots(&lanes, &read);
        let selection = self.attention.selection();
        gathered.dropped.extend(mean_dropped(selection));
        let probabilities = self.attention.probabilities();
        gathered.groups.extend(observe(level, layer as Layer, probabilities, Some(selection), &lanes));
    }

    /// Blocks and bytes that a step read of a layer.
    fn block_reads(&self, layer: usize, w: &Work, recall: &Recall) -> LayerReads {
        let sequence = &self.sequences[w.index];
        let memory = &sequence.far[layer];
        let read = recall.retrieved.len() as u64;
        let mut sum = LayerReads {
            layer: layer as Layer,
            pages: memory.blocks() as u64,
            read,
            asked: read,
            loaded: recall.loaded as u64,
            index_bytes: memory.index_bytes(),
            ..LayerReads::default()
        };
        let all = || 0..recall.slots.len();
        let read = || all().filter(|&slot| recall.slots[slot] != HOLE);
        for h in 0..self.model.decoder.config().kv_heads {
            let (keys, values) = self.cache.pages(sequence.id, layer as Layer, h as Head);
            let key_bytes = rows_bytes(&keys, all());
            sum.key_bytes += key_bytes;
            sum.dense_bytes += key_bytes + rows_bytes(&values, all());
            sum.read_bytes += rows_bytes(&keys, read()) + rows_bytes(&values, read());
        }
        sum
    }

    /// Makes blocks of what has left the window, and moves their rows to the host.
    fn form_blocks(&mut self, layer: usize, w: &Work, infllm: Infllm) {
        let config = self.model.decoder.config();
        let (d, kv_heads) = (config.head_dim, config.kv_heads);
        let tokens = w.first + w.ids.len() as Position;
        let sequence = &mut self.sequences[w.index];
        let (seq, memory) = (sequence.id, &mut sequence.far[layer]);
        for block in memory.blocks()..infllm.blocks(tokens) as usize {
            let positions = infllm.positions(block as u32);
            let positions = positions.start as usize..positions.end as usize;
            let mut means = Vec::with_capacity(kv_heads * d);
            for h in 0..kv_heads {
                let chosen = memory.most_received(h, positions.clone(), infllm.repr as usize);
                let slots: Vec<u32> = chosen.iter().map(|&slot| slot as u32).collect();
                let keys = full_precision(&self.cache.pages(seq, layer as Layer, h as Head).0, &slots);
                means.extend(mean(&keys, d, slots.len()));
            }
            memory.remember(means);
            self.traffic[layer].d2h_bytes += self.cache.send_to_host(seq, layer as Layer, positions);
        }
    }

    /// Bytes of all copies on the device, sequences and layers added up.
    pub(super) fn copies_bytes(&self) -> u64 {
        self.sequences.iter().flat_map(|s| &s.far).map(super::memory::LayerMemory::copies_bytes).sum()
    }
}

/// What is within the window at its distance, what is beyond it at the window's length.
const fn far_reading(rope: &Rope, scoring: Scoring, infllm: Infllm) -> Reading<'_> {
    Reading { rotation: Rotation::Windowed { rope, window: infllm.local }, scoring }
}

/// Copies the rows of a block to the device.
fn copy_block(
    cache: &Cache,
    (seq, layer): (SeqId, Layer),
    infllm: Infllm,
    block: usize,
    kv_heads: usize,
) -> BlockCopy {
    let positions = infllm.positions(block as u32);
    let slots = positions.start as usize..positions.end as usize;
    let (keys, values) = (0..kv_heads as Head)
        .map(|h| {
            let (keys, values) = cache.pages(seq, layer, h);
            (Copied::rows(&keys, slots.clone()), Copied::rows(&values, slots.clone()))
        })
        .unzip();
    BlockCopy { block, used: 0, keys, values }
}

/// The mean of the queries of a step, rotated by the distance at which blocks are attended, `[head][head_dim]`.
fn mean_query(rows: &[f32], width: usize, head_dim: usize, rope: &Rope, distance: usize) -> Vec<f32> {
    let mut query = mean(rows, width, rows.len() / width);
    rope.apply_heads(&mut query, head_dim, distance);
    query
}

fn mean(rows: &[f32], width: usize, n: usize) -> Vec<f32> {
    let mut sum = vec![0.0f64; width];
    for row in rows.chunks_exact(width) {
        sum.iter_mut().zip(row).for_each(|(sum, x)| *sum += f64::from(*x));
    }
    sum.into_iter().map(|x| (x / n.max(1) as f64) as f32).collect()
}
