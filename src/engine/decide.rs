//! The policy's turn: inputs from cache and accumulators, verdicts carried out and recorded.

use super::EngineError;
use super::core::{Engine, rotation, sequence_seed};
use super::lanes::full_precision;
use super::merging::bound_arcs;
use crate::cache::{CacheError, HOLE, Victims};
use crate::event::evict::MAX_SCORED_VICTIMS;
use crate::event::{Crush, Eviction, Finish, Head, Layer, Merge, Position, Reason, SeqStep, Stage};
use crate::policy::{HeadInputs, Moment, Needs, Verdict, When};

/// The decisions of one sequence in one step.
#[derive(Default)]
pub(super) struct Decided {
    pub(super) evictions: Vec<Eviction>,
    pub(super) crush: Vec<Crush>,
    pub(super) merges: Vec<Merge>,
}

/// What one KV head lends to a decision.
pub(super) struct Residents {
    pub(super) positions: Vec<Position>,
    slots: Vec<u32>,
    pub(super) keys: Vec<f32>,
    pub(super) values: Vec<f32>,
}

impl Residents {
    /// Which of them the verdicts of their layer take from a KV head.
    pub(super) fn lost(&self, head: Head, verdicts: &[Verdict]) -> Vec<bool> {
        let mut lost = vec![false; self.positions.len()];
        for verdict in verdicts.iter().filter(|v| v.head.is_none_or(|h| h == head)) {
            for (lost, p) in lost.iter_mut().zip(&self.positions) {
                *lost |= verdict.victims.binary_search(p).is_ok();
            }
        }
        lost
    }
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
        for layer in 0..self.model.decoder.config().layers as Layer {
            let passed = self.passed(index, layer);
            let mut verdicts = if acts { self.verdicts(index, layer, when) } else { Vec::new() };
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

    /// First position that the next query of a layer sees: what lies before it has left the layer's window.
    pub(super) fn first_seen(&self, index: usize, layer: Layer) -> Position {
        let next = self.sequences[index].fed.len() as Position;
        self.window(usize::from(layer)).map_or(0, |window| (next + 1).saturating_sub(window))
    }

    /// What left the window of a layer, a decision per KV head, or one where all lose the same.
    fn passed(&self, index: usize, layer: Layer) -> Vec<Eviction> {
        let first = self.first_seen(index, layer);
        if first == 0 {
            return Vec::new();
        }
        let table = self.cache.table(self.sequences[index].id, layer);
        let decision = |head: Head| {
            let slots = table.lane(head).slots.iter().copied();
            let positions: Vec<Position> =
                slots.take_while(|&p| p == HOLE || p < first).filter(|&p| p != HOLE).collect();
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
        let residents: Vec<_> =
            layers.clone().map(|layer| self.residents(index, layer, Needs::NONE)).collect();
        let inputs: Vec<_> =
            layers.zip(&residents).map(|(layer, own)| self.inputs(index, layer, own)).collect();
        let shares = share(&inputs);
        self.sequences[index].shares = shares;
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
            share: s.shares.get(usize::from(layer)).copied(),
            seed: sequence_seed(&self.info.settings, s.id),
        }
    }

    /// Most tokens that a KV head of a layer brings to a decision: those that have left the layer's window do not count.
    pub(super) fn most_residents(&self, index: usize, layer: Layer) -> u32 {
        let table = self.cache.table(self.sequences[index].id, layer);
        let first = self.first_seen(index, layer);
        let passed = |h: Head| match first {
            0 => 0,
            first => {
                let slots = table.lane(h).slots.iter();
                slots.take_while(|&&p| p == HOLE || p < first).filter(|&&p| p != HOLE).count()
            }
        };
        (0..table.heads()).map(|h| table.live(h) - passed(h)).max().unwrap_or(0) as u32
    }

    fn verdicts(&mut self, index: usize, layer: Layer, when: When) -> Vec<Verdict> {
        if let Some(verdicts) = self.decisions.remove(&(index, layer)) {
            return verdicts;
        }
        let moment = self.moment(index, layer, when);
        if self.policy.rests(&moment, self.most_residents(index, layer)) {
            return Vec::new();
        }
        let mut residents = self.residents(index, layer, self.policy.needs());
        // A policy is shown the keys as attention reads them; a merge rule, as they lie.
        let head_dim = self.cache.config().shape.head_dim;
        let rotation = rotation(self.ropes.of(usize::from(layer)), &self.cache, &self.policy);
        for own in &mut residents {
            for (rank, (key, &position)) in
                own.keys.chunks_exact_mut(head_dim).zip(&own.positions).enumerate()
            {
                rotation.turn(key, rank, position);
            }
        }
        let inputs = self.inputs(index, layer, &residents);
        let mut out = Vec::new();
        self.policy.decide(&moment, &inputs, &mut out);
        out
    }

    /// What every KV head of a layer brings to a decision.
    pub(super) fn inputs<'a>(
        &'a self,
        index: usize,
        layer: Layer,
        residents: &'a [Residents],
    ) -> Vec<HeadInputs<'a>> {
        let s = &self.sequences[index];
        let group = self.model.decoder.config().heads / residents.len();
        let rope = self.ropes.of(usize::from(layer));
        residents
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
                    frequencies: rope.frequencies(),
                    amplitude: rope.amplitude(),
                    ..HeadInputs::new(&own.positions, &s.accumulators[lane])
                }
            })
            .collect()
    }

    /// The residents of every KV head of a layer, with the rows that are needed.
    pub(super) fn residents(&self, index: usize, layer: Layer, needs: Needs) -> Vec<Residents> {
        let heads = self.model.decoder.config().kv_heads as Head;
        (0..heads).map(|head| self.lane_residents(index, layer, head, needs)).collect()
    }

    /// Those of one KV head. What has left the layer's window is not among them.
    pub(super) fn lane_residents(&self, index: usize, layer: Layer, head: Head, needs: Needs) -> Residents {
        let seq = self.sequences[index].id;
        let lane = self.cache.table(seq, layer).lane(head);
        let first = self.first_seen(index, layer);
        let live = || lane.slots.iter().enumerate().filter(|&(_, &p)| p != HOLE && p >= first);
        let slots: Vec<u32> = live().map(|(slot, _)| slot as u32).collect();
        let positions: Vec<Position> = live().map(|(_, &p)| p).collect();
        let (keys, values) = self.cache.pages(seq, layer, head);
        Residents {
            positions,
            keys: if needs.keys { full_precision(&keys, &slots) } else { Vec::new() },
            values: if needs.values { full_precision(&values, &slots) } else { Vec::new() },
            slots,
        }
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
        self.ask_device(&[index], &[(index, When::EndOfPrompt)])?;
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
