//! KVCrush: a part of the budget goes to tokens that stand for their like; a wrapper over any rule that scores tokens.
//!
//! Source: Jha et al., "KVCrush: Key Value Cache Size-Reduction using Similarity in Head-Behaviour", arXiv 2503.00022;
//! rule read in three implementations, each of which is a variant here. The scoring rule keeps the most important units
//! (groups of consecutive tokens, pages where `group` is the block size, single tokens with `group=1`). Of the others,
//! each has a short binary signature made of keep-or-drop bits; the Hamming distance to one anchor stands in for
//! clustering, and representatives are picked along it.
//!
//! - `vllm` (vLLM pull request 47967; nearest to the paper): a bit per token and KV head, set in the upper half of that
//!   head's scores. Each head keeps its own important units; representatives are picked by distance ascending, evenly
//!   spread, the same for all heads, passing over those that head 0 keeps already (other heads may hold duplicates).
//! - `openvino` (the authors' C++ in OpenVINO GenAI): scores of all heads together, a bit per token, set in the upper
//!   half of all that competes, kept or not; every (n div m)-th unit by distance ascending.
//! - `torch` (OpenVINO contrib, PyTorch): bits over the units that are not important, clear in the lower half; an
//!   anchor bit per *unit*, the distance is how many of its bits differ from it; by distance descending, evenly spread.
//!
//! Deviations:
//! - Representatives come out of the budget, as in `torch` and `vllm`; `openvino` adds them to it.
//! - The scoring rule and what it protects are those wrapped; the sources bring their own (a window of the last
//!   queries, pooled). A unit with a protected token stays whole, so up to 2 × (group − 1) residents may be over.
//! - A random anchor is drawn from the seed, once per layer; the sources draw anew each time.
//! - Of equal distances the earlier unit comes first.

mod picture;
mod signature;

pub use self::picture::CrushPicture;

use self::picture::Shown;
use self::signature::{Anchor, Signatures, Signed, by_distance, pick_spread, pick_stepped};
use super::inputs::{HeadInputs, Moment};
use super::param::Param;
use super::plan::Plan;
use super::registry::{Build, Entry, Evidence, Granularity, Source};
use super::rule::{Wrap, Wrapped};
use super::select::{Best, Protected, Ranked, comparable, keys};
use super::spec::Part;
use super::units::{Units, unit_slack};
use super::{Bound, Verdict};
use crate::event::crush::{BitRow, MAX_UNITS};
use crate::event::{Head, Layer, Position, Reason};

const VLLM: &str = "vllm";
const OPENVINO: &str = "openvino";
const TORCH: &str = "torch";

pub(super) const ENTRY: Entry = Entry {
    name: "kvcrush",
    title: "KVCrush",
    doc: "on top of a rule that scores: part of the budget goes to tokens that stand for those of like signature",
    source: Source {
        paper: "KVCrush: Key Value Cache Size-Reduction using Similarity in Head-Behaviour",
        arxiv: "2503.00022",
        at: "OpenVINO GenAI (C++), OpenVINO contrib (PyTorch), vLLM pull request 47967",
        evidence: Evidence::Source,
    },
    source_defaults: "vllm: ratio 0.25, blocks of 16, anchor alternating or mean; torch: 64 of 512 tokens, groups of 32, \
                      alternating; openvino: off, random anchor",
    acts: "with the rule it wraps",
    granularity: Granularity::Head,
    params: &[
        Param::real("kvcrush.ratio", (0.0, 1.0), 0.25, "share of the open places for representatives")
            .steps(0.05, 0.25)
            .live()
            .headline(),
        Param::choice("kvcrush.variant", &[VLLM, OPENVINO, TORCH], VLLM, "whose signatures, order and picks"),
        Param::choice(
            "kvcrush.anchor",
            &["mean", "alternating", "random", "zeros", "ones", "inv-mean"],
            "alternating",
            "what signatures are measured against",
        ),
        Param::int("kvcrush.group", (1, 1024), 16, "tokens kept or lost together; 1 decides by token")
            .steps(1.0, 16.0),
    ],
    deviations: &[
        "representatives come out of the budget; openvino adds them to it",
        "scores and protected tokens are those of the rule it wraps",
        "a random anchor is drawn once per layer, from the seed",
    ],
    build: Build::Wrap {
        build: |part, rule| Wrapped::rule(rule, Crushing::of(part)),
        fits: |base| match base.granularity() {
            Granularity::Page => {
                Err("kvcrush has units of its own: use by=head or by=layer, and kvcrush.group for pages")
            }
            _ => Ok(()),
        },
    },
};

/// The parameters of a decision.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Crushing {
    variant: Variant,
    anchor: Anchor,
    ratio: f64,
    group: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Variant {
    Vllm,
    OpenVino,
    Torch,
}

impl Crushing {
    fn of(part: &Part) -> Self {
        Self {
            variant: match part.choice("kvcrush.variant") {
                OPENVINO => Variant::OpenVino,
                TORCH => Variant::Torch,
                _ => Variant::Vllm,
            },
            anchor: match part.choice("kvcrush.anchor") {
                "mean" => Anchor::Mean,
                "random" => Anchor::Random,
                "zeros" => Anchor::Zeros,
                "ones" => Anchor::Ones,
                "inv-mean" => Anchor::InverseMean,
                _ => Anchor::Alternating,
            },
            ratio: part.real("kvcrush.ratio"),
            group: part.int("kvcrush.group"),
        }
    }

    /// Positions of a unit.
    pub const fn group(&self) -> u32 {
        self.group
    }

    /// Share of the open places for representatives.
    pub const fn ratio(&self) -> f64 {
        self.ratio
    }

    /// The anchor of a layer, of so many bits, as words of which the first bit is the highest; `None` where it is made of
    /// the signatures' columns.
    pub fn fixed_anchor(&self, bits: usize, seed: u64, layer: Layer) -> Option<Vec<u64>> {
        let bits: Option<Vec<bool>> = (0..bits).map(|i| self.anchor.fixed(i, (seed, layer))).collect();
        bits.map(|bits| signature::words(&bits))
    }

    /// Whether an anchor of the columns has the bits of the minority; else those of the majority.
    pub fn is_of_minority(&self) -> bool {
        self.anchor == Anchor::InverseMean
    }
}

impl Wrap for Crushing {
    fn bound(&self, Bound { per_head, per_layer }: Bound, kv_heads: u32) -> Bound {
        let slack = unit_slack(self.group);
        Bound {
            per_head: per_head.saturating_add(slack),
            per_layer: per_layer + u64::from(slack) * u64::from(kv_heads),
        }
    }

    fn change(&self, plan: Plan) -> Plan {
        Plan { crush: Some(*self), ..plan }
    }

    fn ranked(&self, ranked: Ranked) -> Option<Ranked> {
        let per_head = self.variant == Variant::Vllm && !ranked.as_one;
        per_head.then_some(Ranked { crush: Some(*self), ..ranked })
    }
}

/// What decides for itself: a KV head, or the layer.
struct Lane<'a> {
    head: Option<Head>,
    positions: &'a [Position],
    units: Units,
    worth: Vec<f32>,
    /// Of the competing units.
    keys: Vec<i32>,
    /// Those that stay for their score.
    important: Best,
    /// How many more stay as representatives, at most.
    representatives: usize,
    budget: u32,
}

impl<'a> Lane<'a> {
    fn new(
        head: Option<Head>,
        positions: &'a [Position],
        scores: &[f32],
        budget: u32,
        protected: Protected,
        Crushing { ratio, group, .. }: Crushing,
    ) -> Self {
        let candidates = protected.candidates(positions, budget);
        let units = match group {
            1 => Units::single(positions.len(), &candidates),
            _ => Units::new(positions.len(), &candidates, |i| positions[i] / group),
        };
        let worth = units.worth(scores);
        let keys = keys(&worth[units.competing()]);
        let fixed = positions.len() - units.competing_residents().len();
        let places = (budget as usize).saturating_sub(fixed);
        let representatives = (ratio * places as f64) as usize / group as usize;
        let reserved = (representatives * group as usize) as u32;
        let lane =
            Self { head, positions, units, worth, keys, important: Best::ALL, representatives, budget };
        Self { important: lane.best(budget - reserved.min(budget)), ..lane }
    }

    /// The competing units that stay for their score where there are so many slots in all. A unit is lost only where
    /// something has to be.
    fn best(&self, slots: u32) -> Best {
        if self.positions.len() <= self.budget as usize {
            Best::ALL
        } else {
            Best::of(&self.keys, self.units.fitting(&self.worth, slots))
        }
    }

    /// Number of a unit that is the same in all heads.
    fn id(&self, unit: usize, group: u32) -> usize {
        (self.positions[self.units.residents(unit).start] / group) as usize
    }

    /// The competing units that do not stay for their score.
    fn open(&self) -> impl Iterator<Item = usize> {
        let ranks = self.units.competing().zip(self.keys.iter().enumerate());
        ranks.filter(|&(_, (i, &key))| !self.important.has(i, key)).map(|(unit, _)| unit)
    }

    fn verdict(&self, picks: &Picks, group: u32) -> Option<Verdict> {
        // The picks are the first head's; one whose share of the layer is smaller has places for fewer.
        let lost = self.open().filter(|&u| picks.place(self.id(u, group)) >= self.representatives);
        let (mut victims, mut scores) = (Vec::new(), Vec::new());
        for unit in lost {
            let own = self.units.residents(unit);
            scores.extend(std::iter::repeat_n(comparable(self.worth[unit]), own.len()));
            victims.extend_from_slice(&self.positions[own]);
        }
        if victims.is_empty() {
            return None;
        }
        let cutoff = self.important.lowest(&self.keys);
        let kept = (self.positions.len() - victims.len()) as u32;
        Some(Verdict::scored(self.head, Reason::Represented, victims, scores, cutoff, kept))
    }
}

/// The representatives by the number of their unit, which is the same in all heads.
struct Picks(Vec<usize>);

impl Picks {
    const NONE: usize = usize::MAX;

    fn new(ids: impl Iterator<Item = usize>) -> Self {
        let mut places = Vec::new();
        for (place, id) in ids.enumerate() {
            if places.len() <= id {
                places.resize(id + 1, Self::NONE);
            }
            places[id] = place;
        }
        Self(places)
    }

    /// Place in the order of the picks; [`Picks::NONE`] for a unit that was not picked.
    fn place(&self, id: usize) -> usize {
        self.0.get(id).copied().unwrap_or(Self::NONE)
    }
}

/// Carries out a plan that has representatives.
pub(super) fn decide(
    plan: &Plan,
    crushing: Crushing,
    moment: &Moment,
    heads: &[HeadInputs<'_>],
    out: &mut Vec<Verdict>,
) {
    let Some(first) = heads.first() else { return };
    let lane = |head, positions, scores: &[f32], budget| {
        Lane::new(head, positions, scores, budget, plan.protected, crushing)
    };
    let per_head = plan.by == Granularity::Head && crushing.variant == Variant::Vllm;
    let of_layer = if per_head { None } else { Some(plan.layer_scores()) };
    let lanes: Vec<Lane<'_>> = if let Some(scores) = &of_layer {
        vec![lane(None, first.positions, scores, plan.budget)]
    } else {
        let heads = heads.iter().zip(&plan.scores).zip(plan.budgets(heads)).enumerate();
        heads
            .map(|(h, ((head, scores), budget))| lane(Some(h as Head), head.positions, scores, budget))
            .collect()
    };
    if lanes.iter().all(|lane| lane.open().next().is_none()) {
        return;
    }
    let signatures = match &of_layer {
        Some(scores) if crushing.variant != Variant::Vllm => token_bits(crushing, &lanes[0], scores),
        _ => head_bits(plan, &lanes, crushing.group),
    };
    let seed = (moment.seed, moment.layer);
    let signed = Signed::new(signatures, crushing.anchor, crushing.variant == Variant::Torch, seed);
    let picked = pick(crushing.variant, &lanes[0], &signed.distances);
    let picks = Picks::new(picked.iter().map(|&u| lanes[0].id(u, crushing.group)));
    let mut verdicts: Vec<Verdict> =
        lanes.iter().filter_map(|lane| lane.verdict(&picks, crushing.group)).collect();
    if let Some(first) = verdicts.first_mut() {
        let picture = picture(&lanes[0], &signed, &picks, crushing.group);
        first.crush = Some(Box::new(picture.recorded(moment.layer, lanes[0].head)));
    }
    out.extend(verdicts);
}

/// Bits of each unit by place within its group, from the scores of all heads together; a missing token is a 0. Torch
/// signs what is not important, OpenVINO everything that competes.
fn token_bits(crushing: Crushing, lane: &Lane<'_>, scores: &[f32]) -> Signatures {
    let torch = crushing.variant == Variant::Torch;
    let units: Vec<usize> = if torch { lane.open().collect() } else { lane.units.competing().collect() };
    let mut takes_part = vec![false; lane.units.len()];
    for &u in &units {
        takes_part[u] = true;
    }
    let residents = || units.iter().flat_map(|&u| lane.units.residents(u).map(move |i| (u, i)));
    let scores: Vec<f32> = residents().map(|(_, i)| scores[i]).collect();
    let keys = keys(&scores);
    // Torch clears the lower half, rounded down.
    let ones = if torch { keys.len() - keys.len() / 2 } else { keys.len() / 2 };
    let upper = Best::of(&keys, ones);
    let mut signatures = Signatures::new(crushing.group as usize, takes_part);
    for ((unit, i), (n, &key)) in residents().zip(keys.iter().enumerate()) {
        let at = signatures.place(Some(unit)) + (lane.positions[i] % crushing.group) as usize;
        signatures.set(at, upper.has(n, key));
    }
    signatures
}

/// Bits of each competing unit of the first lane, by place within the group and then by head: whether a token is in the
/// upper half of the head's scores.
fn head_bits(plan: &Plan, lanes: &[Lane<'_>], group: u32) -> Signatures {
    let lane = &lanes[0];
    let heads = plan.scores.len();
    let mut takes_part = vec![false; lane.units.len()];
    takes_part[lane.units.competing()].fill(true);
    let mut signatures = Signatures::new(group as usize * heads, takes_part);
    // Heads hold tokens of their own: what the first lane lacks counts for nothing.
    let nowhere = signatures.place(None);
    let end = lane.positions[lane.units.competing_residents()].last().map_or(0, |&p| p as usize + 1);
    let mut places = vec![nowhere; end];
    for unit in lane.units.competing() {
        let own = lane.units.residents(unit);
        let first = lane.id(unit, group) * group as usize;
        for &p in &lane.positions[own] {
            places[p as usize] = signatures.place(Some(unit)) + (p as usize - first) * heads;
        }
    }
    for (h, scores) in plan.scores.iter().enumerate() {
        let lane = &lanes[h.min(lanes.len() - 1)];
        let competing = lane.units.competing_residents();
        let keys = keys(&scores[competing.clone()]);
        let upper = Best::of(&keys, keys.len() / 2);
        for (i, (&p, &key)) in lane.positions[competing].iter().zip(&keys).enumerate() {
            let place = places.get(p as usize).copied().unwrap_or(nowhere);
            signatures.set(place + h, upper.has(i, key));
        }
    }
    signatures
}

/// The representatives among the first lane's units that do not stay for their score.
fn pick(variant: Variant, lane: &Lane<'_>, distances: &[u32]) -> Vec<usize> {
    let open: Vec<usize> = lane.open().collect();
    match variant {
        Variant::OpenVino => pick_stepped(&by_distance(&open, |u| distances[u]), lane.representatives),
        Variant::Torch => {
            let farthest = distances.iter().copied().max().unwrap_or(0);
            pick_spread(&by_distance(&open, |u| farthest - distances[u]), lane.representatives)
        }
        Variant::Vllm => pick_spread(&by_distance(&open, |u| distances[u]), lane.representatives),
    }
}

/// What the first lane's decision looked like.
fn picture(lane: &Lane<'_>, signed: &Signed, picks: &Picks, group: u32) -> CrushPicture {
    let competing = lane.units.competing();
    // Who would stay if there were no representatives.
    let best = lane.best(lane.budget);
    let is_among = |best: Best, u: usize| {
        competing.contains(&u) && best.has(u - competing.start, lane.keys[u - competing.start])
    };
    let shown = |u: usize| Shown {
        first: lane.positions[lane.units.residents(u).start],
        signature: signed.signatures.recorded(u),
        distance: signed.distances[u],
        important: is_among(lane.important, u),
        picked: picks.place(lane.id(u, group)) != Picks::NONE,
        by_score: !competing.contains(&u) || is_among(best, u),
    };
    let shown = (0..lane.units.len().min(MAX_UNITS)).map(shown).collect();
    CrushPicture {
        units: lane.units.len(),
        bits: signed.signatures.width(),
        anchor: BitRow::new(&signed.anchor),
        anchor_per_unit: signed.anchor_per_unit,
        shown,
        competing,
    }
}

#[cfg(test)]
mod tests;
