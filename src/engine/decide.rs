//! The policy's turn: inputs from cache and accumulators, verdicts carried out and recorded.

use super::EngineError;
use super::core::{Engine, rotation, sequence_seed};
use super::lanes::full_precision;
use crate::cache::{HOLE, Victims};
use crate::event::evict::MAX_SCORED_VICTIMS;
use crate::event::{Crush, Eviction, Finish, Head, Layer, Position, SeqStep, Stage};
use crate::policy::{HeadInputs, Moment, Needs, Verdict, When};

/// The decisions of one sequence in one step.
#[derive(Default)]
pub(super) struct Decided {
    pub(super) evictions: Vec<Eviction>,
    pub(super) crush: Vec<Crush>,
}

/// What one KV head lends to a decision.
struct Residents {
    positions: Vec<Position>,
    slots: Vec<u32>,
    keys: Vec<f32>,
    values: Vec<f32>,
}

impl Engine {
    /// Lets the policy decide in every layer of one sequence, and evicts. Layers ascending, heads ascending.
    pub(super) fn decide(&mut self, index: usize, when: When) -> Result<Decided, EngineError> {
        let mut decided = Decided::default();
        if !self.policy.acts(when) {
            return Ok(decided);
        }
        for layer in 0..self.model.decoder.config().layers as Layer {
            let mut verdicts = self.verdicts(index, layer, when);
            if verdicts.is_empty() {
                continue;
            }
            self.carry_out(index, layer, &verdicts)?;
            decided.crush.extend(verdicts.iter_mut().filter_map(|v| v.crush.take()).map(|crush| *crush));
            decided.evictions.extend(verdicts.into_iter().map(|v| v.recorded(layer)));
        }
        if decided.evictions.iter().map(|e| e.positions.len()).sum::<usize>() > MAX_SCORED_VICTIMS {
            decided.evictions.iter_mut().for_each(Eviction::thin_scores);
        }
        Ok(decided)
    }

    /// The moment at which one layer of a sequence decides.
    pub(super) fn moment(&self, index: usize, layer: Layer, when: When) -> Moment {
        let s = &self.sequences[index];
        Moment {
            when,
            layer,
            layers: self.model.decoder.config().layers as Layer,
            prompt_len: self.prompt.len() as u32,
            span_len: self.context_len as u32,
            next_position: s.fed.len() as Position,
            block_size: self.cache.config().block_size,
            step: self.step,
            seed: sequence_seed(&self.info.settings, s.id),
        }
    }

    fn verdicts(&self, index: usize, layer: Layer, when: When) -> Vec<Verdict> {
        let s = &self.sequences[index];
        let needs = self.policy.needs();
        let heads = self.cache.table(s.id, layer).heads();
        let residents: Vec<Residents> = (0..heads).map(|h| self.residents(index, layer, h, needs)).collect();
        let group = self.model.decoder.config().heads / usize::from(heads);
        let inputs: Vec<HeadInputs<'_>> = residents
            .iter()
            .enumerate()
            .map(|(h, own)| {
                let lane = self.lane_index(usize::from(layer), h);
                HeadInputs {
                    slots: &own.slots,
                    keys: &own.keys,
                    values: &own.values,
                    classes: &s.classes,
                    queries: s.queries.get(lane * group..(lane + 1) * group).unwrap_or_default(),
                    frequencies: self.rope.frequencies(),
                    ..HeadInputs::new(&own.positions, &s.accumulators[lane])
                }
            })
            .collect();
        let mut out = Vec::new();
        self.policy.decide(&self.moment(index, layer, when), &inputs, &mut out);
        out
    }

    fn residents(&self, index: usize, layer: Layer, head: Head, needs: Needs) -> Residents {
        let seq = self.sequences[index].id;
        let lane = self.cache.table(seq, layer).lane(head);
        let live = || lane.slots.iter().enumerate().filter(|&(_, &p)| p != HOLE);
        let slots: Vec<u32> = live().map(|(slot, _)| slot as u32).collect();
        let positions: Vec<Position> = live().map(|(_, &p)| p).collect();
        let (keys, values) = self.cache.pages(seq, layer, head);
        let mut keys = if needs.keys { full_precision(&keys, &slots) } else { Vec::new() };
        // A policy is shown the keys as attention reads them.
        let head_dim = self.cache.config().shape.head_dim;
        let rotation = rotation(&self.rope, &self.cache, &self.policy);
        for (rank, (key, &position)) in keys.chunks_exact_mut(head_dim).zip(&positions).enumerate() {
            rotation.turn(key, rank, position);
        }
        Residents {
            positions,
            keys,
            values: if needs.values { full_precision(&values, &slots) } else { Vec::new() },
            slots,
        }
    }

    fn carry_out(&mut self, index: usize, layer: Layer, verdicts: &[Verdict]) -> Result<(), EngineError> {
        let seq = self.sequences[index].id;
        if let [Verdict { head: None, victims, .. }] = verdicts {
            self.cache.evict(seq, layer, &Victims::All(victims))?;
        } else {
            let mut per_head: Vec<&[Position]> = vec![&[]; self.model.decoder.config().kv_heads];
            for v in verdicts {
                per_head[usize::from(v.head.unwrap_or(0))] = &v.victims;
            }
            self.cache.evict(seq, layer, &Victims::PerHead(&per_head))?;
        }
        let table = self.cache.table(seq, layer);
        let (slots, stranded) = (0..table.heads())
            .map(|h: Head| (table.lane(h).slots.len(), table.stranded(h)))
            .fold((0, 0), |(a, b), (x, y)| (a + x, b + y));
        if stranded as f64 > self.info.settings.compact * slots as f64 {
            self.cache.compact(seq, layer)?;
        }
        Ok(())
    }

    /// A sequence found no free block. An evicting policy is made to decide at once, and the next step tries again;
    /// if that frees nothing, the sequence ends and says so.
    pub(super) fn starve(&mut self, index: usize) -> Result<SeqStep, EngineError> {
        let before = self.cache.free_blocks();
        let decided = self.decide(index, When::EndOfPrompt)?;
        if self.cache.free_blocks() == before {
            self.sequences[index].finish = Some(Finish::PoolExhausted);
        }
        Ok(self.idle_part(index, decided))
    }

    /// The part of a sequence that feeds nothing in this step.
    pub(super) fn idle_part(&mut self, index: usize, decided: Decided) -> SeqStep {
        let s = &self.sequences[index];
        let mut resident = Vec::new();
        self.cache.resident(s.id, &mut resident);
        SeqStep {
            seq: s.id,
            stage: if s.pending.is_some() { Stage::Decode } else { Stage::Prefill },
            first: s.fed.len() as Position,
            fed: Vec::new(),
            sampled: None,
            tables: self.cache.take_ops(s.id),
            resident,
            dropped: Vec::new(),
            finish: s.finish,
            crush: decided.crush,
            evictions: decided.evictions,
            attention: None,
        }
    }
}
