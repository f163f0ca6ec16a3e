//! The policy's turn: inputs from cache and accumulators, verdicts carried out and recorded.

use super::EngineError;
use super::core::Engine;
use crate::cache::Victims;
use crate::event::evict::MAX_SCORED_VICTIMS;
use crate::event::{Eviction, Finish, Head, Layer, Position, SeqStep, Stage};
use crate::policy::{HeadInputs, Moment, Verdict, When};

impl Engine {
    /// Lets the policy decide in every layer of one sequence, and evicts. Layers ascending, heads ascending.
    pub(super) fn decide(&mut self, index: usize, when: When) -> Result<Vec<Eviction>, EngineError> {
        if !self.policy.acts(when) {
            return Ok(Vec::new());
        }
        let layers = self.model.decoder.config().layers as Layer;
        let mut evictions = Vec::new();
        for layer in 0..layers {
            let verdicts = self.verdicts(index, layer, layers, when);
            if verdicts.is_empty() {
                continue;
            }
            self.carry_out(index, layer, &verdicts)?;
            evictions.extend(verdicts.into_iter().map(|v| v.recorded(layer)));
        }
        if evictions.iter().map(|e| e.positions.len()).sum::<usize>() > MAX_SCORED_VICTIMS {
            evictions.iter_mut().for_each(Eviction::thin_scores);
        }
        Ok(evictions)
    }

    fn verdicts(&self, index: usize, layer: Layer, layers: Layer, when: When) -> Vec<Verdict> {
        let s = &self.sequences[index];
        let table = self.cache.table(s.id, layer);
        let residents: Vec<Vec<Position>> = (0..table.heads())
            .map(|h| table.lane(h).slots.iter().copied().filter(|&p| p != crate::cache::HOLE).collect())
            .collect();
        let inputs: Vec<HeadInputs<'_>> = residents
            .iter()
            .enumerate()
            .map(|(h, positions)| HeadInputs {
                positions,
                acc: &s.accumulators[self.lane_index(usize::from(layer), h)],
            })
            .collect();
        let moment = Moment {
            when,
            layer,
            layers,
            prompt_len: self.prompt.len() as u32,
            next_position: s.fed.len() as Position,
            step: self.step,
        };
        let mut out = Vec::new();
        self.policy.decide(&moment, &inputs, &mut out);
        out
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
        let evictions = self.decide(index, When::EndOfPrompt)?;
        if self.cache.free_blocks() == before {
            self.sequences[index].finish = Some(Finish::PoolExhausted);
        }
        Ok(self.idle_part(index, evictions))
    }

    /// The part of a sequence that feeds nothing in this step.
    pub(super) fn idle_part(&mut self, index: usize, evictions: Vec<Eviction>) -> SeqStep {
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
            evictions,
            attention: None,
        }
    }
}
