//! What a sequence brings to a decision: residents, accumulators, the moment.

use super::core::{Engine, rotation, sequence_seed};
use super::lanes::full_precision;
use super::sequence::Sequence;
use crate::attention::Ropes;
use crate::cache::{Cache, HOLE};
use crate::event::{Head, Layer, Position, StepId};
use crate::model::Config;
use crate::policy::{HeadInputs, Moment, Needs, Policy, Verdict, When};

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

/// One sequence as decisions see it, apart from the rest of the engine: its layers may decide side by side.
#[derive(Clone, Copy)]
pub(super) struct Brought<'a> {
    sequence: &'a Sequence,
    cache: &'a Cache,
    policy: &'a Policy,
    config: &'a Config,
    ropes: &'a Ropes,
    prompt_len: u32,
    span_len: u32,
    step: StepId,
    seed: u64,
}

impl Engine {
    /// What a sequence brings to a decision.
    pub(super) fn brought(&self, index: usize) -> Brought<'_> {
        let sequence = &self.sequences[index];
        Brought {
            sequence,
            cache: &self.cache,
            policy: &self.policy,
            config: self.model.decoder.config(),
            ropes: &self.ropes,
            prompt_len: self.prompt.len() as u32,
            span_len: self.context_len as u32,
            step: self.step,
            seed: sequence_seed(&self.info.settings, sequence.id),
        }
    }
}

impl<'a> Brought<'a> {
    /// First position that the next query of a layer sees: what lies before it has left the layer's window.
    pub(super) fn first_seen(self, layer: Layer) -> Position {
        let next = self.sequence.fed.len() as Position;
        self.config.window(usize::from(layer)).map_or(0, |window| (next + 1).saturating_sub(window))
    }

    /// The moment at which a layer decides.
    pub(super) fn moment(self, layer: Layer, when: When) -> Moment {
        Moment {
            when,
            layer,
            layers: self.config.layers as Layer,
            prompt_len: self.prompt_len,
            span_len: self.span_len,
            next_position: self.sequence.fed.len() as Position,
            block_size: self.cache.config().block_size,
            step: self.step,
            share: self.sequence.shares.get(usize::from(layer)).copied(),
            seed: self.seed,
        }
    }

    /// Most tokens that a KV head of a layer brings to a decision: those that have left the layer's window do not count.
    pub(super) fn most_residents(self, layer: Layer) -> u32 {
        let table = self.cache.table(self.sequence.id, layer);
        (0..table.heads()).map(|h| table.live(h) - self.passed(layer, h).count()).max().unwrap_or(0) as u32
    }

    /// What lies in a KV head of a layer still and has left the layer's window.
    pub(super) fn passed(self, layer: Layer, head: Head) -> impl Iterator<Item = Position> + 'a {
        let first = self.first_seen(layer);
        let slots = if first == 0 { &[] } else { self.cache.table(self.sequence.id, layer).lane(head).slots };
        slots.iter().copied().take_while(move |&p| p == HOLE || p < first).filter(|&p| p != HOLE)
    }

    /// What the policy decides for a layer.
    pub(super) fn verdicts(self, layer: Layer, when: When) -> Vec<Verdict> {
        let moment = self.moment(layer, when);
        if self.policy.rests(&moment, self.most_residents(layer)) {
            return Vec::new();
        }
        let mut residents = self.residents(layer, self.policy.needs());
        // A policy is shown the keys as attention reads them; a merge rule, as they lie.
        let head_dim = self.cache.config().shape.head_dim;
        let rotation = rotation(self.ropes.of(usize::from(layer)), self.cache, self.policy);
        for own in &mut residents {
            for (rank, (key, &position)) in
                own.keys.chunks_exact_mut(head_dim).zip(&own.positions).enumerate()
            {
                rotation.turn(key, rank, position);
            }
        }
        let inputs = self.inputs(layer, &residents);
        let mut out = Vec::new();
        self.policy.decide(&moment, &inputs, &mut out);
        out
    }

    /// What every KV head of a layer brings to a decision.
    pub(super) fn inputs(self, layer: Layer, residents: &'a [Residents]) -> Vec<HeadInputs<'a>> {
        let s = self.sequence;
        let kv_heads = residents.len();
        let group = self.config.heads / kv_heads;
        let rope = self.ropes.of(usize::from(layer));
        residents
            .iter()
            .enumerate()
            .map(|(h, own)| {
                let lane = usize::from(layer) * kv_heads + h;
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
    pub(super) fn residents(self, layer: Layer, needs: Needs) -> Vec<Residents> {
        (0..self.config.kv_heads as Head).map(|head| self.lane_residents(layer, head, needs)).collect()
    }

    /// Those of one KV head. What has left the layer's window is not among them.
    pub(super) fn lane_residents(self, layer: Layer, head: Head, needs: Needs) -> Residents {
        let seq = self.sequence.id;
        let lane = self.cache.table(seq, layer).lane(head);
        let first = self.first_seen(layer);
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
}
