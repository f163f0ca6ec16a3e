//! How large the parts of a recording may be. The writer refuses what exceeds these bounds, so that the reader can
//! refuse it too, and everything above the reader may trust a step's ids and sizes.

use std::collections::HashSet;

use super::wire::CodecError;
use crate::event::{
    Crush, LaneRegret, LayerCoding, LayerReads, LayerTraffic, MAX_CHANNELS, Merge, RunInfo, SeqStep, Shadow,
    Step, StepId, TierUse,
};

/// Uncompressed bytes of a chunk.
pub const MAX_CHUNK_BYTES: u64 = 64 << 20;
/// Bytes of all messages of one step together; attention pictures that would exceed it are left out.
pub const MAX_STEP_BYTES: usize = 48 << 20;
/// Positions are below this.
pub const MAX_POSITION: u32 = 1 << 24;
/// Steps are below this: a message's `sequence` is a u32.
pub const MAX_STEP: StepId = 1 << 32;
/// Victims, ranges and top cells of one step together.
pub const MAX_ELEMENTS: usize = 1 << 25;
/// Sequences are below this.
pub const MAX_SEQS: u32 = 1 << 16;
/// Layers of a model, and heads of a layer.
pub const MAX_LAYERS: u32 = 1024;
/// Elements of a head.
pub const MAX_HEAD_DIM: u32 = 1 << 16;
/// Durations (ns) and byte counts of one step: 78 hours, 256 TiB. Sums over layers and steps stay far from overflow.
pub const MAX_QUANTITY: u64 = 1 << 48;
/// Times since the run began, in nanoseconds.
pub const MAX_TIME_NS: u64 = 1 << 53;

/// Elements that may still be decoded for a step: a few bytes can stand for many elements, and this bounds how many.
#[derive(Debug)]
pub(super) struct Budget {
    left: usize,
}

impl Budget {
    pub(super) const fn of_a_step() -> Self {
        Self { left: MAX_ELEMENTS }
    }

    pub(super) fn spend(&mut self, elements: usize) -> Result<(), CodecError> {
        self.left = self.left.checked_sub(elements).ok_or(CodecError::TooLarge)?;
        Ok(())
    }
}

/// The bounds that a model sets to the steps of its run.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shape {
    layers: u32,
    heads: u32,
    kv_heads: u32,
}

impl Shape {
    /// The shape of a run's model, if its description makes sense.
    pub(super) fn of(run: &RunInfo) -> Result<Self, String> {
        let model = &run.model;
        let (layers, heads, kv_heads) = (model.layers, model.heads, model.kv_heads);
        let shared_evenly = if kv_heads == 0 { heads == 0 } else { heads % kv_heads == 0 };
        if layers > MAX_LAYERS || heads > MAX_LAYERS || !shared_evenly {
            return Err(format!("a model of {layers} layers, {heads} heads and {kv_heads} KV heads"));
        }
        if model.head_dim > MAX_HEAD_DIM {
            return Err(format!("heads of {} elements", model.head_dim));
        }
        let block_size = run.settings.block_size;
        if model.context > MAX_POSITION || !(1..=MAX_POSITION).contains(&block_size) {
            return Err(format!("a context of {} tokens in blocks of {block_size}", model.context));
        }
        Ok(Self { layers, heads, kv_heads })
    }

    /// Whether a step fits the model and the bounds of the format; says what does not.
    pub(super) fn check(&self, step: &Step) -> Result<(), String> {
        if step.step >= MAX_STEP {
            return Err(format!("ids end at {}", MAX_STEP - 1));
        }
        if step.layer_ns.len() > self.layers as usize {
            return Err(format!("it times {} layers of {}", step.layer_ns.len(), self.layers));
        }
        if step.start_ns > MAX_TIME_NS || quantities(step).any(|q| q > MAX_QUANTITY) {
            return Err("a time or a number of bytes is beyond reason".into());
        }
        if step.traffic.iter().any(|t| u32::from(t.layer) >= self.layers) {
            return Err("it moves bytes of a layer that the model has not".into());
        }
        if step.reads.iter().any(|r| u32::from(r.layer) >= self.layers) {
            return Err("it reads pages of a layer that the model has not".into());
        }
        let codes = |c: &LayerCoding| {
            let errors = [c.k.squared_error, c.k.squares, c.v.squared_error, c.v.squares];
            u32::from(c.layer) < self.layers
                && c.k_channels.len() <= MAX_CHANNELS
                && errors.into_iter().all(|e| e.is_finite() && e >= 0.0)
        };
        if !step.coding.iter().all(codes) {
            return Err("its rows in codes are not those of this model, or their errors no numbers".into());
        }
        let mut seen = HashSet::new();
        for seq in &step.seqs {
            if seq.seq >= MAX_SEQS || !seen.insert(seq.seq) {
                return Err(format!("sequence {} is there twice, or too large", seq.seq));
            }
            self.check_seq(seq).map_err(|why| format!("sequence {}: {why}", seq.seq))?;
        }
        Ok(())
    }

    fn check_seq(&self, seq: &SeqStep) -> Result<(), String> {
        if seq.fed.len() as u64 + u64::from(seq.first) > u64::from(MAX_POSITION) {
            return Err(format!("positions end at {}", MAX_POSITION - 1));
        }
        let cells = (self.layers * self.kv_heads) as usize;
        if seq.resident.len() != cells || ![0, cells].contains(&seq.dropped.len()) {
            return Err(format!(
                "columns of {} and {} values, the model has {cells} (layer, KV head) pairs",
                seq.resident.len(),
                seq.dropped.len()
            ));
        }
        if seq.resident.iter().any(|&n| n > MAX_POSITION) {
            return Err("more tokens are resident than there are positions".into());
        }
        let in_model = |layer: u16, head: Option<u16>| {
            u32::from(layer) < self.layers && head.is_none_or(|head| u32::from(head) < self.kv_heads)
        };
        if !seq.crush.iter().all(Crush::is_sound) || !seq.crush.is_sorted_by(|a, b| a.layer < b.layer) {
            return Err("signatures of units break their own rules".into());
        }
        let in_order = |a: &Merge, b: &Merge| (a.layer, a.head) < (b.layer, b.head);
        if !seq.merges.iter().all(Merge::is_sound) || !seq.merges.is_sorted_by(in_order) {
            return Err("what was merged breaks its own rules".into());
        }
        if let Some(shadow) = &seq.shadow {
            self.check_shadow(shadow)?;
        }
        let tables = seq.tables.iter().all(|t| in_model(t.layer, t.head));
        let evictions = seq.evictions.iter().all(|e| in_model(e.layer, e.head));
        let pictures = seq.attention.iter().flat_map(|a| &a.groups).all(|g| {
            in_model(g.layer, Some(g.kv_head)) && g.rows.iter().all(|r| u32::from(r.head) < self.heads)
        });
        let crushed = seq.crush.iter().all(|c| in_model(c.layer, None));
        let merged = seq
            .merges
            .iter()
            .all(|m| in_model(m.layer, Some(m.head)) && m.with.is_none_or(|with| in_model(with, None)));
        if tables && evictions && pictures && crushed && merged {
            Ok(())
        } else {
            Err("a layer or head is named that the model has not".into())
        }
    }

    fn check_shadow(&self, shadow: &Shadow) -> Result<(), String> {
        if shadow.ns > MAX_QUANTITY || shadow.bytes > MAX_QUANTITY {
            return Err("a time or a number of bytes of the twin is beyond reason".into());
        }
        let is_positive = |x: f64| x >= 0.0;
        let judged = shadow.judged.is_none_or(|j| is_positive(j.kl.into()) && j.logprob <= 0.0);
        if !judged || !is_positive(shadow.regret) || !shadow.regret.is_finite() {
            return Err("what the twin tells is not of probabilities".into());
        }
        let in_model = |lane: &LaneRegret| {
            u32::from(lane.layer) < self.layers && u32::from(lane.head) < self.kv_heads && lane.is_sound()
        };
        if shadow.victims.iter().all(in_model) {
            Ok(())
        } else {
            Err("regrets are of no layer or head of the model, or no sums".into())
        }
    }
}

/// Every duration and byte count of a step.
fn quantities(step: &Step) -> impl Iterator<Item = u64> + '_ {
    let of_tier =
        |t: &TierUse| [t.live_bytes, t.stranded_bytes, t.unfilled_bytes, t.copies_bytes, t.capacity_bytes];
    let of_traffic = |t: &LayerTraffic| {
        [t.h2d_bytes, t.d2h_bytes, t.rows, t.asked_rows, t.reused_rows, t.copy_ns, t.link_ns, t.stall_ns]
    };
    [step.wall_ns, step.probe.ns, step.probe.dropped]
        .into_iter()
        .chain(step.outer_ns)
        .chain(step.layer_ns.iter().flatten().copied())
        .chain(step.tiers.iter().flat_map(of_tier))
        .chain(step.traffic.iter().flat_map(of_traffic))
        .chain(step.reads.iter().flat_map(LayerReads::counts))
        .chain(step.coding.iter().flat_map(|c| [c.k.rows, c.v.rows, c.recoded_rows]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::merge::tests::sample as merge;
    use crate::event::{Crush, Eviction, Judged, Reason, TableOps};
    use crate::trace::samples::{run, step};

    #[test]
    fn a_step_of_another_model_is_refused() {
        let shape = Shape::of(&run()).unwrap();
        shape.check(&step(0)).unwrap();
        let refuses = |change: &dyn Fn(&mut Step)| {
            let mut bad = step(0);
            change(&mut bad);
            assert!(shape.check(&bad).is_err());
        };
        refuses(&|s| s.step = MAX_STEP);
        refuses(&|s| s.wall_ns = u64::MAX);
        refuses(&|s| s.layer_ns = vec![[0; 12]; 3]);
        refuses(&|s| s.layer_ns[0][0] = u64::MAX);
        refuses(&|s| s.tiers[0].live_bytes = u64::MAX);
        refuses(&|s| s.traffic[0].layer = 2);
        refuses(&|s| s.reads[0].layer = 2);
        refuses(&|s| s.reads[0].read_bytes = u64::MAX);
        refuses(&|s| s.coding[0].layer = 2);
        refuses(&|s| s.coding[0].k.rows = u64::MAX);
        refuses(&|s| s.coding[0].v.squares = -1.0);
        refuses(&|s| s.coding[0].k_channels = vec![0; MAX_CHANNELS + 1]);
        let refuses_shadow = |change: &dyn Fn(&mut Shadow)| {
            refuses(&|s| change(s.seqs[0].shadow.insert(Shadow::default())));
        };
        let lane = |layer, regret| LaneRegret { layer, head: 0, told: vec![(1, regret)] };
        refuses_shadow(&|s| s.ns = u64::MAX);
        refuses_shadow(&|s| s.regret = f64::NAN);
        refuses_shadow(&|s| s.judged = Some(Judged { kl: -1.0, agrees: true, logprob: -1.0 }));
        refuses_shadow(&|s| s.judged = Some(Judged { kl: 1.0, agrees: true, logprob: f32::NAN }));
        refuses_shadow(&|s| s.victims = vec![lane(2, 1.0)]);
        refuses_shadow(&|s| s.victims = vec![lane(0, f32::INFINITY)]);
        refuses(&|s| s.seqs.push(s.seqs[0].clone()));
        refuses(&|s| s.seqs[0].seq = MAX_SEQS);
        refuses(&|s| s.seqs[0].first = u32::MAX);
        refuses(&|s| s.seqs[0].resident.push(0));
        refuses(&|s| s.seqs[0].resident[0] = u32::MAX);
        refuses(&|s| s.seqs[0].dropped.truncate(1));
        refuses(&|s| s.seqs[0].tables.push(TableOps { layer: 2, ..TableOps::default() }));
        refuses(&|s| s.seqs[0].crush.push(Crush { layer: 2, ..Crush::default() }));
        refuses(&|s| s.seqs[0].crush.push(Crush { first: vec![0], ..Crush::default() }));
        refuses(&|s| s.seqs[0].crush = vec![Crush::default(); 2]);
        refuses(&|s| s.seqs[0].merges = vec![Merge { layer: 2, ..merge() }]);
        refuses(&|s| s.seqs[0].merges = vec![Merge { head: 1, ..merge() }]);
        refuses(&|s| s.seqs[0].merges = vec![Merge { merged: 7, ..merge() }]);
        refuses(&|s| s.seqs[0].merges = vec![merge(); 2]);
        refuses(&|s| {
            s.seqs[0].evictions.push(Eviction {
                layer: 0,
                head: Some(1),
                reason: Reason::LowScore,
                cutoff: None,
                kept: 0,
                positions: vec![],
                scores: vec![],
            });
        });
    }

    #[test]
    fn a_model_beyond_reason_is_refused() {
        let mut bad = run();
        bad.model.layers = 4_000_000_000;
        assert!(Shape::of(&bad).is_err());
        bad = run();
        bad.model.kv_heads = bad.model.heads + 1;
        assert!(Shape::of(&bad).is_err());
        bad.model.kv_heads = 0;
        assert!(Shape::of(&bad).is_err());
        bad = run();
        bad.settings.block_size = 0;
        assert!(Shape::of(&bad).is_err());
        Shape::of(&RunInfo::default()).unwrap();
    }
}
