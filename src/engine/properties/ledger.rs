//! Who is resident after every step, and that who was lost could be.

use std::collections::{BTreeMap, BTreeSet};

use crate::engine::Engine;
use crate::engine::merging::tests::check_merges;
use crate::event::{Layer, Position, Reason, SeqId, SeqStep, Stage, Step};
use crate::policy::{Granularity, Value, When};

/// Who is resident and who was lost, per (sequence, layer, KV head), from the steps alone.
#[derive(Default)]
pub(super) struct Ledger {
    lanes: BTreeMap<(SeqId, usize), Lane>,
}

#[derive(Default)]
struct Lane {
    resident: BTreeSet<Position>,
    lost: BTreeSet<Position>,
}

impl Ledger {
    pub(super) fn enter(&mut self, engine: &Engine, step: &Step) {
        let config = engine.model.decoder.config();
        for part in &step.seqs {
            for l in 0..config.layers * config.kv_heads {
                let lane = self.lanes.entry((part.seq, l)).or_default();
                assert_eq!(part.first as usize, lane.resident.len() + lane.lost.len(), "positions in order");
                lane.resident.extend(part.first..part.first + part.fed.len() as Position);
            }
            for e in &part.evictions {
                let heads = e.head.map_or(0..config.kv_heads, |h| usize::from(h)..usize::from(h) + 1);
                for h in heads {
                    let key = (part.seq, usize::from(e.layer) * config.kv_heads + h);
                    let lane = self.lanes.get_mut(&key).unwrap();
                    if e.reason != Reason::LayerWindow {
                        check_protected(engine, lane, &e.positions);
                    }
                    for p in &e.positions {
                        assert!(lane.resident.remove(p), "only residents are lost");
                        assert!(lane.lost.insert(*p), "and only once");
                    }
                    assert_eq!(lane.resident.len(), e.kept as usize);
                }
            }
            let resident = |lane| &self.lanes[&(part.seq, lane)].resident;
            check_merges(part, config.kv_heads, resident);
            for (l, &resident) in part.resident.iter().enumerate() {
                assert_eq!(self.lanes[&(part.seq, l)].resident.len(), resident as usize);
            }
            check_budget(engine, part);
        }
    }
}

fn check_budget(engine: &Engine, part: &SeqStep) {
    let fed = part.first as usize + part.fed.len();
    let when = match part.stage {
        _ if part.fed.is_empty() => When::EndOfPrompt,
        Stage::Decode => When::Token,
        Stage::Prefill if fed == engine.context_len => When::EndOfPrompt,
        Stage::Prefill => When::Chunk,
    };
    let kv_heads = engine.model.decoder.config().kv_heads;
    for (layer, residents) in part.resident.chunks_exact(kv_heads).enumerate() {
        let moment = engine.brought(part.seq as usize).moment(layer as Layer, when);
        let Some(bound) = engine.policy.bound(&moment, kv_heads as u32) else { continue };
        if engine.policy.acts(when) {
            assert!(residents.iter().all(|&n| n <= bound.per_head), "{residents:?} residents, {bound:?}");
            assert!(residents.iter().map(|&n| u64::from(n)).sum::<u64>() <= bound.per_layer);
        }
    }
}

/// Streaming keeps the first `sinks` and fills the budget with the newest; H2O keeps its recent share.
fn check_protected(engine: &Engine, lane: &Lane, victims: &[Position]) {
    let spec = engine.policy.spec();
    let Some(budget) = engine.policy.slots(engine.prompt.len() as u32) else { return };
    let by_token = spec.parts().len() == 1 && spec.parts()[0].granularity() != Granularity::Page;
    if !by_token || !matches!(spec.entry().name, "h2o" | "tova" | "streaming") {
        return;
    }
    let (sinks, recent) = match (spec.get("sinks"), spec.get("recent")) {
        (Some(Value::Int(sinks)), _) => (sinks, budget - sinks),
        (_, Some(Value::Real(recent))) => (0, (recent * f64::from(budget)).round() as u32),
        _ => (0, 0),
    };
    let newest: BTreeSet<_> = lane.resident.iter().rev().take(recent as usize).collect();
    for p in victims {
        assert!(*p >= sinks, "sink {p} was lost");
        assert!(!newest.contains(p), "recent token {p} was lost");
    }
    let kept = lane.resident.len() - victims.len();
    assert_eq!(kept, budget as usize, "a decision takes what is above the budget, no more");
}
