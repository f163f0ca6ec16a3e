//! A second cache of the same model: f32 pages, nothing lost, everything read that the model reads: windows of its layers
//! hide what they hide.

use std::ops::Range;
use std::sync::Arc;

use super::super::EngineError;
use super::super::forward::rotate;
use super::super::lanes::{Lanes, Reading};
use super::judge::kl_divergence;
use super::ledger::Ledger;
use crate::attention::cpu::CpuAttention;
use crate::attention::{Attention, Queries, Ropes, Rotation, Shape, Wants};
use crate::cache::{Cache, CacheConfig, KvDtype, KvShape, RopeMode};
use crate::event::{Head, Judged, Layer, Position, SeqId};
use crate::model::{self, Model, Sampler};

/// Slots of a page.
pub(super) const BLOCK_SIZE: u32 = 16;

pub(super) struct Twin {
    model: Arc<Model>,
    cache: Cache,
    attention: CpuAttention,
    ropes: Ropes,
    /// Greedy: it is asked for the likeliest token.
    sampler: Sampler,
}

impl Twin {
    pub(super) fn new(model: Arc<Model>, batch: u32, reach: Position) -> Result<Self, EngineError> {
        let config = model.decoder.config();
        let shape = Shape::new(config.heads, config.kv_heads, config.head_dim)
            .map_err(|e| EngineError::Setting(e.to_string()))?;
        let mut cache = Cache::new(CacheConfig {
            shape: KvShape {
                layers: config.layers as u16,
                kv_heads: config.kv_heads as u16,
                head_dim: config.head_dim,
            },
            block_size: BLOCK_SIZE,
            blocks: 0,
            dtype: KvDtype::F32,
            rope: RopeMode::Post,
            host_v_from_layer: None,
            far_blocks: false,
            salt: [0; 32],
        })?;
        (0..batch as SeqId).for_each(|seq| cache.add(seq));
        Ok(Self {
            attention: CpuAttention::new(shape),
            ropes: config.ropes(reach as usize),
            sampler: Sampler::new(0, 0.0, 1.0, model.tokenizer.unused()),
            cache,
            model,
        })
    }

    /// Logits of a row.
    pub(super) fn vocab(&self) -> usize {
        self.model.decoder.config().vocab
    }

    /// Layer-major indices of the lanes that a decision concerns.
    pub(super) fn lanes(&self, layer: Layer, head: Option<Head>) -> Range<usize> {
        let heads = self.model.decoder.config().kv_heads;
        let first = usize::from(layer) * heads;
        match head {
            Some(head) => first + usize::from(head)..first + usize::from(head) + 1,
            None => first..first + heads,
        }
    }

    /// Layer and KV head of a lane.
    pub(super) fn lane_ids(&self, lane: usize) -> (Layer, Head) {
        let heads = self.model.decoder.config().kv_heads;
        ((lane / heads) as Layer, (lane % heads) as Head)
    }

    /// Bytes of all pages.
    #[cfg(test)]
    pub(super) fn page_bytes(&self) -> u64 {
        self.cache.held_bytes().iter().sum()
    }

    /// Takes tokens of a sequence in, the first at `first`, and enters what their queries read of victims into the
    /// ledger. Returns the last layer's rows.
    pub(super) fn feed(
        &mut self,
        seq: SeqId,
        first: Position,
        ids: &[u32],
        ledger: &mut Ledger,
    ) -> Result<Vec<f32>, EngineError> {
        self.cache.reserve(seq, first, ids.len())?;
        let mut x = self.model.decoder.embed(ids)?;
        for layer in 0..self.model.decoder.config().layers {
            let mut qkv = self.model.decoder.qkv(layer, &x)?;
            rotate(self.ropes.of(layer), self.model.decoder.config(), &mut qkv, first as usize..);
            self.cache.write(seq, layer as Layer, first, &qkv.k, &qkv.v)?;
            let pages = Lanes::of(&self.cache, seq, layer as Layer);
            let scoring = self.model.decoder.config().scoring(layer);
            let lanes = pages.resident(Reading { rotation: Rotation::None, scoring });
            let mut sinks = ledger.sinks(self.lanes(layer as Layer, None));
            let mut out = vec![0.0; qkv.q.len()];
            let queries = Queries { rows: &qkv.q, first };
            self.attention.prefill(queries, &lanes, Wants::default(), &mut sinks, &mut out);
            x = self.model.decoder.mix(layer, x, &out)?;
        }
        // Nobody replays its tables.
        self.cache.take_ops(seq);
        Ok(x)
    }

    /// Holds a draw of the run, its logits and the id drawn, against what the twin sees after the last of its `rows`.
    pub(super) fn judge(&self, rows: &[f32], run: &[f32], drawn: u32) -> Result<Judged, EngineError> {
        let own = self.model.decoder.logits(&rows[rows.len() - self.model.decoder.config().hidden..])?;
        let is_possible = own[drawn as usize].is_finite();
        Ok(Judged {
            kl: kl_divergence(&own, run) as f32,
            agrees: self.sampler.largest(&own)? == self.sampler.largest(run)?,
            logprob: if is_possible { model::sampler::logprob(&own, drawn) } else { f32::NEG_INFINITY },
        })
    }
}
