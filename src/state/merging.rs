//! Rows that were merged: who went where, and how far merging moved what stayed.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use super::FoldError;
use super::keyframe::MAX_COUNT;
use crate::event::crush::BitRow;
use crate::event::{
    Drift, Eviction, Head, Layer, Merge, MergeArc, ModelCard, Position, Reason, SeqId, Step, StepId,
};

/// Merges of one (layer, KV head) remembered; older ones are forgotten.
const MAX_MERGES: usize = 16_384;
/// Arcs and victims of all of them together.
const MAX_ELEMENTS: usize = 1 << 18;

/// Everything merged since the run began.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct MergeLog {
    /// One per layer; empty until something is merged or might have been.
    pub layers: Vec<MergedLayer>,
    /// The newest, oldest first.
    recent: VecDeque<Told>,
    /// Arcs and victims in `recent`.
    elements: usize,
}

/// One layer's sums.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct MergedLayer {
    /// (token, KV head) pairs merged (measured).
    pub merged: u64,
    /// Those that were not: victims lost, or tokens too unlike in two layers (measured).
    pub apart: u64,
    /// Change of K rows (measured).
    pub k: Drift,
    /// Change of V rows (measured).
    pub v: Drift,
    /// Bytes that sharing rows of two layers would save (modelled).
    pub saved_bytes: u64,
}

impl MergedLayer {
    /// Share of the tokens that were merged (derived); `None` before the first.
    pub fn share(&self) -> Option<f64> {
        let all = self.merged + self.apart;
        (all > 0).then(|| self.merged as f64 / all as f64)
    }

    fn add(&mut self, merge: &Merge) {
        self.merged = self.merged.saturating_add(merge.merged.into());
        self.apart = self.apart.saturating_add(merge.apart.into());
        self.k = self.k.with(&merge.k);
        self.v = self.v.with(&merge.v);
        self.saved_bytes = self.saved_bytes.saturating_add(merge.saved_bytes);
    }
}

/// Victims of one (layer, KV head) in one step. Not a [`Merge`]: a keyframe's encoding has no place for absent fields.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Told {
    step: StepId,
    seq: SeqId,
    layer: Layer,
    head: Head,
    /// One bit per victim, set where it was merged.
    fates: BitRow,
    /// Where they went, as far as recorded.
    arcs: Vec<MergeArc>,
}

impl Told {
    fn elements(&self) -> usize {
        self.arcs.len() + self.fates.0.len()
    }

    /// Whether the `i`-th victim was merged, and where it went.
    fn victim(&self, i: usize, position: Position) -> Option<MergedVictim> {
        let at = || self.arcs.binary_search_by_key(&position, |arc| arc.from).ok();
        self.fates.bit(i).then(|| MergedVictim { heads: 1, of: 1, arc: at().map(|i| self.arcs[i]) })
    }
}

/// What became of a victim beside the tables.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct MergedVictim {
    /// KV heads in which it was merged, of those that lost it by the decision.
    pub heads: u32,
    /// All those KV heads.
    pub of: u32,
    /// Where it went, in the first of them whose arc is recorded.
    pub arc: Option<MergeArc>,
}

impl MergeLog {
    pub(super) fn fold(&mut self, step: &Step, model: &ModelCard) -> Result<(), FoldError> {
        for part in &step.seqs {
            for merge in &part.merges {
                self.layers.resize_with(model.layers as usize, MergedLayer::default);
                let layer = self.layers.get_mut(usize::from(merge.layer));
                let Some(layer) =
                    layer.filter(|_| merge.is_sound() && u32::from(merge.head) < model.kv_heads)
                else {
                    return Err(FoldError::Contradiction {
                        step: step.step,
                        what: format!("what was merged in layer {} does not fit the model", merge.layer),
                    });
                };
                layer.add(merge);
                if merge.with.is_none() {
                    let told = Told {
                        step: step.step,
                        seq: part.seq,
                        layer: merge.layer,
                        head: merge.head,
                        fates: merge.fates.clone(),
                        arcs: merge.arcs.clone(),
                    };
                    self.elements += told.elements();
                    self.recent.push_back(told);
                }
            }
        }
        // What is newest always stays, however large it is.
        while self.recent.len() > 1 && (self.recent.len() > MAX_MERGES || self.elements > MAX_ELEMENTS) {
            if let Some(oldest) = self.recent.pop_front() {
                self.elements -= oldest.elements();
            }
        }
        Ok(())
    }

    /// What a step merged in one (layer, KV head).
    fn of(&self, step: StepId, seq: SeqId, layer: Layer, head: Head) -> Option<&Told> {
        let first = self.recent.partition_point(|told| told.step < step);
        let mine = self.recent.range(first..).take_while(|told| told.step == step);
        mine.filter(|told| told.seq == seq).find(|told| (told.layer, told.head) == (layer, head))
    }

    /// What became of the `i`-th victim of a decision; `None` where nothing was merged. `kv_heads` is how many a decision
    /// of the whole layer covers.
    pub fn victim(
        &self,
        at: (StepId, SeqId),
        eviction: &Eviction,
        i: usize,
        kv_heads: Head,
    ) -> Option<MergedVictim> {
        let heads = eviction.head.map_or(0..kv_heads, |head| head..head.saturating_add(1));
        let of = u32::from(heads.end - heads.start);
        let merged = heads.filter_map(|head| self.victim_of(at, eviction, i, head));
        merged
            .reduce(|all, one| MergedVictim { heads: all.heads + 1, of: 1, arc: all.arc.or(one.arc) })
            .map(|merged| MergedVictim { of, ..merged })
    }

    /// The same in one KV head.
    pub(super) fn victim_of(
        &self,
        (step, seq): (StepId, SeqId),
        eviction: &Eviction,
        i: usize,
        head: Head,
    ) -> Option<MergedVictim> {
        // A layer's window takes its own before a policy names the victims that may merge.
        let &position = eviction.positions.get(i).filter(|_| eviction.reason != Reason::LayerWindow)?;
        self.of(step, seq, eviction.layer, head)?.victim(i, position)
    }

    /// Whether it is what folding leaves behind, for a model of so many layers.
    pub(super) fn is_sound(&self, layers: usize, newest: Option<StepId>) -> bool {
        let counts = |layer: &MergedLayer| {
            [layer.merged, layer.apart, layer.saved_bytes].into_iter().all(|n| n <= MAX_COUNT)
        };
        [0, layers].contains(&self.layers.len())
            && self.layers.iter().all(counts)
            && self.recent.len() <= MAX_MERGES
            && self.elements == self.recent.iter().map(Told::elements).sum::<usize>()
            && self.recent.iter().all(|told| {
                told.arcs.is_sorted_by(|a, b| a.from < b.from) && told.arcs.iter().all(|arc| arc.targets > 0)
            })
            && self.recent.iter().zip(self.recent.iter().skip(1)).all(|(a, b)| a.step <= b.step)
            && self.recent.back().is_none_or(|told| Some(told.step) <= newest)
    }

    /// All layers together.
    pub fn sum(&self) -> MergedLayer {
        self.layers.iter().fold(MergedLayer::default(), |sum, layer| MergedLayer {
            merged: sum.merged.saturating_add(layer.merged),
            apart: sum.apart.saturating_add(layer.apart),
            k: sum.k.with(&layer.k),
            v: sum.v.with(&layer.v),
            saved_bytes: sum.saved_bytes.saturating_add(layer.saved_bytes),
        })
    }

    /// Whether no rule ever had anything to merge.
    pub fn is_empty(&self) -> bool {
        self.layers.is_empty()
    }
}

/// Words for where a victim went: `merged into 17`, `merged into 17 and 31 more`, `merged in 3 of 4 heads`.
impl std::fmt::Display for MergedVictim {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.arc {
            Some(MergeArc { into, targets: 1, .. }) => write!(f, "merged into {into}")?,
            Some(MergeArc { into, targets, .. }) => write!(f, "merged into {into} and {} more", targets - 1)?,
            None => f.write_str("merged")?,
        }
        if self.of > 1 { write!(f, " in {} of {} heads", self.heads, self.of) } else { Ok(()) }
    }
}

/// What a merge rule did, for the summary.
#[derive(Clone, Debug, Serialize)]
pub struct MergeSummary {
    /// The rule.
    pub rule: String,
    /// All layers.
    #[serde(flatten)]
    pub all: MergedPart,
    /// By layer.
    pub layers: Vec<MergedPart>,
}

/// Counts and drift of a layer, or of all.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct MergedPart {
    /// (token, KV head) pairs merged (measured).
    pub merged: u64,
    /// Victims lost, or tokens kept apart (measured).
    pub apart: u64,
    /// Norm of the change of K rows over their norm (measured); null where none was altered.
    pub k_drift: Option<f64>,
    /// The same of V rows.
    pub v_drift: Option<f64>,
    /// Bytes that sharing would save (modelled).
    pub saved_bytes_modelled: u64,
}

impl From<&MergedLayer> for MergedPart {
    fn from(layer: &MergedLayer) -> Self {
        Self {
            merged: layer.merged,
            apart: layer.apart,
            k_drift: layer.k.relative(),
            v_drift: layer.v.relative(),
            saved_bytes_modelled: layer.saved_bytes,
        }
    }
}

impl MergeLog {
    pub(super) fn summary(&self, rule: &str) -> Option<MergeSummary> {
        (!rule.is_empty()).then(|| MergeSummary {
            rule: rule.to_owned(),
            all: MergedPart::from(&self.sum()),
            layers: self.layers.iter().map(MergedPart::from).collect(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::merge::tests::sample;
    use crate::event::step::tests::sample_step;

    fn model() -> ModelCard {
        ModelCard { layers: 2, kv_heads: 1, ..ModelCard::default() }
    }

    fn step(id: StepId, merges: Vec<Merge>) -> Step {
        let mut step = sample_step();
        step.step = id;
        step.seqs[0].merges = merges;
        step
    }

    fn eviction() -> Eviction {
        Eviction {
            layer: 1,
            head: None,
            reason: Reason::LowScore,
            cutoff: None,
            kept: 9,
            positions: vec![2, 4, 5, 8, 9],
            scores: Vec::new(),
        }
    }

    #[test]
    fn merged_victims_are_told_from_lost_ones() {
        let mut log = MergeLog::default();
        log.fold(&step(3, vec![sample()]), &model()).unwrap();
        log.fold(&step(4, Vec::new()), &model()).unwrap();
        let words = |i| log.victim((3, 0), &eviction(), i, 1).map(|v| v.to_string());
        assert_eq!(words(1).as_deref(), Some("merged into 6 and 1 more"));
        assert_eq!(words(4).as_deref(), Some("merged into 10"));
        assert_eq!((words(0), words(5)), (None, None));
        assert_eq!(log.victim((4, 0), &eviction(), 1, 1), None);
        let window = Eviction { reason: Reason::LayerWindow, ..eviction() };
        assert_eq!(log.victim((3, 0), &window, 1, 1), None, "what left a window is nobody's victim to merge");
        let two = log.victim((3, 0), &eviction(), 4, 2).unwrap();
        assert_eq!(two.to_string(), "merged into 10 in 1 of 2 heads");
        assert_eq!((log.layers[1].merged, log.layers[1].apart, log.layers[0].share()), (2, 3, None));
        assert_eq!(log.sum().share(), Some(0.4));
    }

    #[test]
    fn the_oldest_are_forgotten_and_the_sums_stay() {
        let mut log = MergeLog::default();
        for id in 0..MAX_MERGES as u64 + 10 {
            log.fold(&step(id, vec![sample()]), &model()).unwrap();
        }
        assert_eq!(log.recent.len(), MAX_MERGES);
        assert_eq!(log.victim((9, 0), &eviction(), 1, 1), None);
        assert_eq!(log.sum().merged, 2 * (MAX_MERGES as u64 + 10));
        let newest = MAX_MERGES as u64 + 9;
        assert!(log.is_sound(2, Some(newest)) && !log.is_sound(3, Some(newest)));
        assert!(!log.is_sound(2, Some(newest - 1)));
        log.elements += 1;
        assert!(!log.is_sound(2, Some(newest)));
    }

    #[test]
    fn merges_of_another_model_are_refused() {
        for bad in
            [Merge { layer: 2, ..sample() }, Merge { head: 1, ..sample() }, Merge { merged: 9, ..sample() }]
        {
            assert!(MergeLog::default().fold(&step(0, vec![bad]), &model()).is_err());
        }
    }
}
