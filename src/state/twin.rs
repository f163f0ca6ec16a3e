//! What a full-cache twin has told of the run: how far off its words are, and the regret of every victim.

use serde::{Deserialize, Serialize};

use super::{FoldError, SeqState};
use crate::event::{Head, Layer, Position, Provenance, SeqId, SeqStep, Shadow, Step, StepId};

/// Everything told so far, by sequence; empty without `--shadow`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Twin {
    /// By id.
    pub seqs: Vec<SeqTwin>,
}

/// What was told of one sequence.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct SeqTwin {
    /// Sums since the run began.
    pub tally: Tally,
    /// The newest draw that was judged.
    pub last: Option<LastDraw>,
    /// Bytes of the twin now (measured).
    pub bytes: u64,
    /// Regret told of each victim, positions ascending, per (layer, KV head), layer-major; empty before the first.
    victims: Vec<Vec<(Position, f32)>>,
}

/// A draw that was judged. [`Judged`](crate::event::Judged) spells its infinities for JSON, in a way that the bytes of a
/// keyframe cannot be read back from.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct LastDraw {
    /// When.
    pub step: StepId,
    /// KL(twin ‖ run), nats.
    pub kl: f32,
    /// Whether both found the same token likeliest.
    pub agrees: bool,
}

/// Sums over draws and steps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Tally {
    /// Draws judged.
    pub judged: u64,
    /// Of these, draws where run and twin found the same token likeliest.
    pub agreed: u64,
    /// Sum of KL(twin ‖ run), nats.
    pub kl: f64,
    /// Sum of the log-probabilities that the run gave the tokens drawn.
    pub run_logprob: f64,
    /// Sum of those that the twin gave them.
    pub twin_logprob: f64,
    /// Regret of all victims, told by victim or not yet.
    pub regret: f64,
    /// Of this, what was told by victim.
    pub told: f64,
    /// Time of the twin.
    pub ns: u64,
}

impl Tally {
    fn mean(&self, sum: f64) -> Option<f64> {
        (self.judged > 0).then(|| sum / self.judged as f64)
    }

    /// Mean of KL(twin ‖ run), nats; `None` before the first draw judged. Derived, as all of these.
    pub fn mean_kl(&self) -> Option<f64> {
        self.mean(self.kl)
    }

    /// Share of the draws judged where run and twin find the same token likeliest.
    pub fn agreement(&self) -> Option<f64> {
        self.mean(self.agreed as f64)
    }

    /// Perplexity of the tokens judged under the run: e to the minus mean log-probability.
    pub fn perplexity(&self) -> Option<f64> {
        self.mean(self.run_logprob).map(|mean| (-mean).exp())
    }

    /// The same under the twin.
    pub fn twin_perplexity(&self) -> Option<f64> {
        self.mean(self.twin_logprob).map(|mean| (-mean).exp())
    }

    /// These sums and others.
    #[must_use]
    pub fn with(&self, other: &Self) -> Self {
        Self {
            judged: self.judged + other.judged,
            agreed: self.agreed + other.agreed,
            kl: self.kl + other.kl,
            run_logprob: self.run_logprob + other.run_logprob,
            twin_logprob: self.twin_logprob + other.twin_logprob,
            regret: self.regret + other.regret,
            told: self.told + other.told,
            ns: self.ns.saturating_add(other.ns),
        }
    }
}

impl SeqTwin {
    fn fold(&mut self, step: StepId, part: &SeqStep, shadow: &Shadow, shape: Shape) -> Result<(), String> {
        let mut tally = Tally { ns: shadow.ns, regret: shadow.regret, ..Tally::default() };
        if let Some(judged) = shadow.judged {
            let Some(drawn) = &part.sampled else { return Err("a draw is judged that was not made".into()) };
            tally = Tally {
                judged: 1,
                agreed: judged.agrees.into(),
                kl: judged.kl.into(),
                run_logprob: drawn.logprob.into(),
                twin_logprob: judged.logprob.into(),
                ..tally
            };
            self.last = Some(LastDraw { step, kl: judged.kl, agrees: judged.agrees });
        }
        self.bytes = shadow.bytes;
        if !shadow.victims.is_empty() {
            self.victims.resize(shape.lanes, Vec::new());
        }
        for lane in &shadow.victims {
            let known = lane.is_sound() && lane.told.last().is_none_or(|t| (t.0 as usize) < shape.tokens);
            let index = usize::from(lane.layer) * shape.kv_heads + usize::from(lane.head);
            let held =
                self.victims.get_mut(index).filter(|_| known && usize::from(lane.head) < shape.kv_heads);
            let Some(held) = held else {
                return Err(format!("regret of layer {} is of no victim of this run", lane.layer));
            };
            tally.told += lane.told.iter().map(|t| f64::from(t.1)).sum::<f64>();
            add(held, &lane.told);
        }
        self.tally = self.tally.with(&tally);
        Ok(())
    }

    /// Regret told so far of a victim of one lane.
    fn told(&self, lane: usize, position: Position) -> f32 {
        let held = self.victims.get(lane).map(Vec::as_slice).unwrap_or_default();
        held.binary_search_by_key(&position, |told| told.0).map_or(0.0, |i| held[i].1)
    }

    fn is_sound(&self, shape: Shape) -> bool {
        let is_sound = |lane: &Vec<(Position, f32)>| {
            lane.is_sorted_by(|a, b| a.0 < b.0)
                && lane.last().is_none_or(|last| (last.0 as usize) < shape.tokens)
                && lane.iter().all(|told| told.1.is_finite() && told.1 >= 0.0)
        };
        [0, shape.lanes].contains(&self.victims.len())
            && self.victims.iter().all(is_sound)
            && self.tally.judged <= super::keyframe::MAX_COUNT
            && self.tally.agreed <= self.tally.judged
    }
}

/// What a sequence's regrets must fit into.
#[derive(Clone, Copy)]
struct Shape {
    lanes: usize,
    kv_heads: usize,
    tokens: usize,
}

impl Shape {
    fn of(seq: &SeqState) -> Self {
        let kv_heads = seq.layers.first().map_or(0, |table| usize::from(table.heads()));
        Self { lanes: seq.layers.len() * kv_heads, kv_heads, tokens: seq.tokens.len() }
    }
}

/// Adds what was told to what is held; both are by ascending position.
fn add(held: &mut Vec<(Position, f32)>, told: &[(Position, f32)]) {
    let known = held.len();
    for &(position, regret) in told {
        match held[..known].binary_search_by_key(&position, |told| told.0) {
            Ok(i) => held[i].1 += regret,
            Err(_) => held.push((position, regret)),
        }
    }
    // Two ascending runs: a stable sort merges them.
    held.sort_by_key(|told| told.0);
}

impl Twin {
    pub(super) fn fold(&mut self, step: &Step, seqs: &[SeqState]) -> Result<(), FoldError> {
        for part in &step.seqs {
            let Some(shadow) = &part.shadow else { continue };
            let index = part.seq as usize;
            if self.seqs.len() <= index {
                self.seqs.resize_with(index + 1, SeqTwin::default);
            }
            let wrong = |what| FoldError::Contradiction { step: step.step, what };
            self.seqs[index].fold(step.step, part, shadow, Shape::of(&seqs[index])).map_err(wrong)?;
        }
        Ok(())
    }

    /// Whether a keyframe's twin is one of these sequences.
    pub(super) fn is_sound(&self, seqs: &[SeqState]) -> bool {
        self.seqs.len() <= seqs.len()
            && self.seqs.iter().zip(seqs).all(|(twin, seq)| twin.is_sound(Shape::of(seq)))
    }

    /// What was told of a sequence; `None` without a twin.
    pub fn of(&self, seq: SeqId) -> Option<&SeqTwin> {
        self.seqs.get(seq as usize)
    }

    /// Sums over all sequences; `None` without a twin.
    pub fn sum(&self) -> Option<Tally> {
        self.seqs.iter().map(|seq| seq.tally).reduce(|sum, tally| sum.with(&tally))
    }

    /// Bytes of the twin now, all sequences (measured).
    pub fn bytes(&self) -> u64 {
        self.seqs.iter().fold(0, |sum, seq| sum.saturating_add(seq.bytes))
    }
}

impl super::State {
    /// What kind of numbers divergence, agreement and perplexities are: computed from every draw, or from some.
    pub fn twin_provenance(&self) -> Provenance {
        if self.run.settings.shadow > 1 { Provenance::Sampled } else { Provenance::Derived }
    }

    /// Regret of a victim of one KV head, or of all heads of the layer together (measured): what was told of it so far,
    /// which may lag behind for victims that are read little. `None` without a twin.
    pub fn regret(&self, seq: SeqId, layer: Layer, head: Option<Head>, position: Position) -> Option<f32> {
        let twin = self.twin.of(seq)?;
        let kv_heads = self.run.model.kv_heads as usize;
        let first = usize::from(layer) * kv_heads;
        Some(match head {
            Some(head) => twin.told(first + usize::from(head), position),
            None => (first..first + kv_heads).map(|lane| twin.told(lane, position)).sum(),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;

    use super::super::State;
    use super::*;
    use crate::event::step::tests::plain_step;
    use crate::event::{Judged, LaneRegret, ModelCard, RunInfo, Sampled};

    fn run() -> Arc<RunInfo> {
        let model = ModelCard { layers: 1, heads: 1, kv_heads: 1, head_dim: 2, ..ModelCard::default() };
        Arc::new(RunInfo { model, ..RunInfo::default() })
    }

    /// A step whose twin tells regrets of the only lane, and judges a draw of log-probability -1.
    fn told(i: StepId, regrets: &[(Position, f32)], kl: f32) -> Step {
        let mut step = plain_step(i);
        let part = &mut step.seqs[0];
        part.sampled = Some(Sampled { id: 1, piece: "x".into(), logprob: -1.0, margin: 1.0 });
        part.shadow = Some(Shadow {
            ns: 5,
            bytes: 100 * (i + 1),
            judged: Some(Judged { kl, agrees: kl < 1.0, logprob: -3.0 }),
            regret: 1.0,
            victims: vec![LaneRegret { layer: 0, head: 0, told: regrets.to_vec() }],
        });
        step
    }

    fn folded(steps: impl IntoIterator<Item = Step>) -> Result<State, FoldError> {
        let mut state = State::new(run()).unwrap();
        steps.into_iter().try_for_each(|step| state.fold(&step)).map(|()| state)
    }

    fn eventful() -> State {
        folded([told(0, &[], 0.5), told(1, &[(1, 0.25)], 1.5), told(2, &[(0, 0.5), (1, 0.125)], 0.25)])
            .unwrap()
    }

    #[test]
    fn what_was_told_adds_up() {
        let state = eventful();
        let regret = |position| state.regret(0, 0, Some(0), position);
        assert_eq!([0, 1, 2].map(regret), [Some(0.5), Some(0.375), Some(0.0)]);
        assert_eq!(state.regret(0, 0, None, 1), Some(0.375));
        assert_eq!(state.regret(1, 0, None, 1), None);
        let tally = state.twin.sum().unwrap();
        assert_eq!((tally.judged, tally.agreed, tally.kl), (3, 2, 2.25));
        assert_eq!((tally.regret, tally.told, tally.ns, state.twin.bytes()), (3.0, 0.875, 15, 300));
        assert_eq!((tally.mean_kl(), tally.perplexity()), (Some(0.75), Some(1f64.exp())));
        assert_eq!(tally.twin_perplexity(), Some(3f64.exp()));
        assert_eq!(state.twin.seqs[0].last, Some(LastDraw { step: 2, kl: 0.25, agrees: true }));
        let summary = state.summary().shadow.unwrap();
        assert_eq!((summary.judged, summary.agreement), (3, Some(2.0 / 3.0)));
        assert!(folded([plain_step(0)]).unwrap().summary().shadow.is_none());
        assert_eq!(Tally::default().perplexity(), None);
    }

    #[test]
    fn what_no_twin_can_tell_is_refused() {
        for bad in [&[(1, 0.5)][..], &[(0, -1.0)], &[(0, f32::NAN)], &[(0, 0.5), (0, 0.5)]] {
            assert!(folded([told(0, bad, 0.5)]).is_err(), "{bad:?}");
        }
        let change = |change: &dyn Fn(&mut SeqStep)| {
            let mut step = told(0, &[], 0.5);
            change(&mut step.seqs[0]);
            folded([step])
        };
        assert!(change(&|part| part.sampled = None).is_err());
        assert!(change(&|part| part.shadow.as_mut().unwrap().victims[0].layer = 1).is_err());
        assert!(change(&|part| part.shadow.as_mut().unwrap().victims[0].head = 1).is_err());
        change(&|_| {}).unwrap();
    }

    #[test]
    fn it_travels_behind_a_keyframe_and_is_checked() {
        let state = eventful();
        assert_eq!(State::from_keyframe(run(), &state.keyframe()).unwrap(), state);
        let mut far = state.clone();
        far.twin.seqs[0].victims[0].push((3, 0.5));
        let mut odd = state.clone();
        odd.twin.seqs[0].tally.agreed = 4;
        let mut more = state;
        more.twin.seqs.push(SeqTwin::default());
        for bad in [far, odd, more] {
            assert!(State::from_keyframe(run(), &bad.keyframe()).is_err());
        }
    }

    proptest! {
        #[test]
        fn damage_to_its_bytes_never_panics(back in 0..80usize, bit in 0..8u8) {
            let mut bytes = eventful().keyframe();
            let at = bytes.len() - 1 - back.min(bytes.len() - 1);
            bytes[at] ^= 1 << bit;
            if let Ok(mut state) = State::from_keyframe(run(), &bytes) {
                let _ = (state.summary(), state.fold(&told(3, &[(2, 0.5)], 0.5)));
            }
        }
    }
}
