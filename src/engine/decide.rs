//! The policy's turn: inputs from cache and accumulators, verdicts carried out and recorded.

use rayon::prelude::*;

use super::EngineError;
use super::core::Engine;
use super::merging::bound_arcs;
use crate::cache::{CacheError, Victims};
use crate::event::evict::MAX_SCORED_VICTIMS;
use crate::event::{Crush, Eviction, Finish, Head, Layer, Merge, Position, Reason, SeqStep, Stage};
use crate::policy::{Needs, Verdict, When};

/// The decisions of one sequence in one step.
#[derive(Default)]
pub(super) struct Decided {
    pub(super) evictions: Vec<Eviction>,
    pub(super) crush: Vec<Crush>,
    pub(super) merges: Vec<Merge>,
}

impl Engine {
    /// Takes out what left the windows of a sequence's layers, lets the policy decide on what remains, and evicts both.
    /// Layers ascending; within one its window first, then heads ascending.
    pub(super) fn decide(&mut self, index: usize, when: When) -> Result<Decided, EngineError> {
        let mut decided = Decided::default();
        let acts = self.policy.acts(when);
        if acts {
            self.share_budget(index);
        }
        let mut verdicts = if acts { self.verdicts(index, when) } else { Vec::new() }.into_iter();
        for layer in 0..self.model.decoder.config().layers as Layer {
            let passed = self.passed(index, layer);
            let mut verdicts = verdicts.next().unwrap_or_default();
            if passed.is_empty() && verdicts.is_empty() {
                continue;
            }
            decided.merges.extend(self.merge_victims(index, layer, when, &verdicts)?);
            self.carry_out(index, layer, &passed, &verdicts)?;
            decided.crush.extend(verdicts.iter_mut().filter_map(|v| v.crush.take()).map(|crush| *crush));
            decided.evictions.extend(passed);
            decided.evictions.extend(verdicts.into_iter().map(|v| v.recorded(layer)));
        }
        if decided.evictions.iter().map(|e| e.positions.len()).sum::<usize>() > MAX_SCORED_VICTIMS {
            decided.evictions.iter_mut().for_each(Eviction::thin_scores);
        }
        bound_arcs(&mut decided.merges);
        Ok(decided)
    }

    /// What left the window of a layer, a decision per KV head, or one where all lose the same.
    fn passed(&self, index: usize, layer: Layer) -> Vec<Eviction> {
        let brought = self.brought(index);
        if brought.first_seen(layer) == 0 {
            return Vec::new();
        }
        let table = self.cache.table(self.sequences[index].id, layer);
        let decision = |head: Head| {
            let positions: Vec<Position> = brought.passed(layer, head).collect();
            Eviction {
                layer,
                head: Some(head),
                reason: Reason::LayerWindow,
                cutoff: None,
                kept: (table.live(head) - positions.len()) as u32,
                positions,
                scores: Vec::new(),
            }
        };
        let mut passed: Vec<Eviction> = (0..table.heads()).map(decision).collect();
        let is_one = |a: &Eviction, b: &Eviction| a.positions == b.positions && a.kept == b.kept;
        if passed.windows(2).all(|pair| is_one(&pair[0], &pair[1])) {
            passed.truncate(1);
            for decision in &mut passed {
                decision.head = None;
            }
        }
        passed.retain(|decision| !decision.positions.is_empty());
        passed
    }

    /// Before a sequence's first decision a rule may look at all layers, to share its budget over them.
    fn share_budget(&mut self, index: usize) {
        let Some(share) = self.policy.shares().filter(|_| self.sequences[index].shares.is_empty()) else {
            return;
        };
        let layers = 0..self.model.decoder.config().layers as Layer;
        let brought = self.brought(index);
        let residents: Vec<_> = layers.clone().map(|layer| brought.residents(layer, Needs::NONE)).collect();
        let inputs: Vec<_> = layers.zip(&residents).map(|(layer, own)| brought.inputs(layer, own)).collect();
        let shares = share(&inputs);
        self.sequences[index].shares = shares;
    }

    /// What the policy decides for every layer: no layer's decision changes what another's is made of.
    fn verdicts(&self, index: usize, when: When) -> Vec<Vec<Verdict>> {
        let made = &self.decisions;
        let brought = self.brought(index);
        let layers = self.model.decoder.config().layers as Layer;
        let verdicts = (0..layers).into_par_iter().map(|layer| match made.get(&(index, layer)) {
            Some(verdicts) => verdicts.clone(),
            None => brought.verdicts(layer, when),
        });
        verdicts.collect()
    }

    /// Evicts what left a layer's window and what the policy takes, at once: a replay does so too, and what it frees must
    /// be the same.
    fn carry_out(
        &mut self,
        index: usize,
        layer: Layer,
        passed: &[Eviction],
        verdicts: &[Verdict],
    ) -> Result<(), EngineError> {
        let seq = self.sequences[index].id;
        let passed = passed.iter().map(|e| (e.head, &*e.positions));
        let decisions: Vec<(Option<Head>, &[Position])> =
            passed.chain(verdicts.iter().map(|v| (v.head, &*v.victims))).collect();
        // What has left the window lies before everything the policy decides on, so joined lists ascend.
        let of = |head: Head| -> Vec<Position> {
            let mine = decisions.iter().filter(|(of, _)| of.is_none_or(|of| of == head));
            mine.flat_map(|(_, positions)| positions.iter().copied()).collect()
        };
        if decisions.iter().all(|(head, _)| head.is_none()) {
            self.cache.evict(seq, layer, &Victims::All(&of(0)))?;
        } else {
            let per_head: Vec<Vec<Position>> =
                (0..self.model.decoder.config().kv_heads as Head).map(of).collect();
            let per_head: Vec<&[Position]> = per_head.iter().map(Vec::as_slice).collect();
            self.cache.evict(seq, layer, &Victims::PerHead(&per_head))?;
        }
        let table = self.cache.table(seq, layer);
        let (slots, stranded) = (0..table.heads())
            .map(|h: Head| (table.lane(h).slots.len(), table.stranded(h)))
            .fold((0, 0), |(a, b), (x, y)| (a + x, b + y));
        if stranded as f64 > self.info.settings.compact * slots as f64 {
            match self.cache.compact(seq, layer) {
                // No block is free for what others share: nothing has moved, and the next decision tries again.
                Err(CacheError::Exhausted(_)) => {}
                moved => moved?,
            }
        }
        Ok(())
    }

    /// A sequence found no free block. An evicting policy is made to decide at once, and the next step tries again;
    /// if that frees nothing, the sequence ends and says so.
    pub(super) fn starve(&mut self, index: usize) -> Result<SeqStep, EngineError> {
        let before = self.cache.free_blocks();
        self.ask_device([index], [(index, When::EndOfPrompt)])?;
        let decided = self.decide(index, When::EndOfPrompt)?;
        // What was given back may be another sequence's within this step.
        self.carry_out_on_device()?;
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
            merges: decided.merges,
            shadow: None,
            evictions: decided.evictions,
            attention: None,
        }
    }
}
