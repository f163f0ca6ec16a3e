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

mod signature;

use std::collections::BTreeMap;

use self::signature::{Anchor, Signed, distances, pick_spread, pick_stepped, upper_half};
use super::inputs::{HeadInputs, Moment};
use super::param::Param;
use super::plan::{Plan, Unit, fitting, unit_scores, unit_slack, units};
use super::registry::{Build, Entry, Evidence, Granularity, Source};
use super::rule::{Wrap, Wrapped};
use super::select::{better, comparable};
use super::spec::Part;
use super::{Bound, Verdict};
use crate::event::crush::{BitRow, Fate};
use crate::event::{Crush, Head, Position, Reason};

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
pub(super) struct Crushing {
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
}

/// What decides for itself: a KV head, or the layer.
struct Lane<'a> {
    head: Option<Head>,
    positions: &'a [Position],
    scores: Vec<f32>,
    units: Vec<Unit>,
    worth: Vec<f32>,
    /// Competing units, best first.
    order: Vec<usize>,
    /// How many of those stay for their score.
    important: usize,
    /// How many of them are representatives, at most.
    representatives: usize,
    /// How many would stay for their score if there were no representatives.
    by_score: usize,
}

impl<'a> Lane<'a> {
    fn new(
        head: Option<Head>,
        positions: &'a [Position],
        scores: Vec<f32>,
        budget: u32,
        plan: &Plan,
        Crushing { ratio, group, .. }: Crushing,
    ) -> Self {
        let candidates = plan.protected.candidates(positions, budget);
        let units = units(positions.len(), &candidates, |i| positions[i] / group);
        let worth = unit_scores(&units, &scores);
        let mut order: Vec<usize> = (0..units.len()).filter(|&u| units[u].competes).collect();
        order.sort_unstable_by(|&a, &b| better(&worth, a, b));
        let fixed = units.iter().filter(|unit| !unit.competes).map(|unit| unit.residents.len()).sum();
        let places = (budget as usize).saturating_sub(fixed);
        // A unit is lost only where something has to be.
        let representatives = (ratio * places as f64) as usize / group as usize;
        let reserved = (representatives * group as usize) as u32;
        let stay = |reserved: u32| {
            if positions.len() <= budget as usize {
                order.len()
            } else {
                fitting(&units, &order, fixed, budget - reserved.min(budget))
            }
        };
        let (important, by_score) = (stay(reserved), stay(0));
        Self { head, positions, scores, units, worth, order, important, representatives, by_score }
    }

    /// Number of a unit that is the same in all heads.
    fn id(&self, unit: usize, group: u32) -> u32 {
        self.positions[self.units[unit].residents.start] / group
    }

    fn verdict(&self, chosen: &[bool]) -> Option<Verdict> {
        let mut keep = vec![true; self.positions.len()];
        for &u in &self.order[self.important..] {
            if !chosen[u] {
                keep[self.units[u].residents.clone()].fill(false);
            }
        }
        let mut scores = vec![0.0; self.positions.len()];
        for (unit, &worth) in self.units.iter().zip(&self.worth) {
            scores[unit.residents.clone()].fill(worth);
        }
        let cutoff = self.important.checked_sub(1).map(|last| comparable(self.worth[self.order[last]]));
        Verdict::of_kept(self.head.unwrap_or(0), Reason::Represented, self.positions, &keep).map(|verdict| {
            Verdict { head: self.head, ..verdict }.with_scores(self.positions, &scores, cutoff)
        })
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
    let per_head = plan.by == Granularity::Head && crushing.variant == Variant::Vllm;
    let lanes: Vec<Lane<'_>> = if per_head {
        let budgets = plan.budgets(heads);
        (0..heads.len())
            .map(|h| {
                let scores = plan.scores[h].clone();
                Lane::new(Some(h as Head), heads[h].positions, scores, budgets[h], plan, crushing)
            })
            .collect()
    } else {
        vec![Lane::new(None, first.positions, plan.layer_scores(), plan.budget, plan, crushing)]
    };
    let signed = sign(plan, crushing, &lanes, moment);
    let picked = pick(crushing, &lanes[0], &signed);
    let ids: Vec<u32> = picked.iter().map(|&u| lanes[0].id(u, crushing.group)).collect();
    let mut verdicts: Vec<Verdict> = lanes
        .iter()
        .filter_map(|lane| {
            // The picks are the first head's; one whose share of the layer is smaller has places for fewer.
            let ids = &ids[..lane.representatives.min(ids.len())];
            let chosen: Vec<bool> =
                (0..lane.units.len()).map(|u| ids.contains(&lane.id(u, crushing.group))).collect();
            lane.verdict(&chosen)
        })
        .collect();
    if let Some(first) = verdicts.first_mut() {
        first.crush = Some(Box::new(picture(&lanes[0], &signed, &picked, moment)));
    }
    out.extend(verdicts);
}

/// Signatures and distances of the first lane's units.
fn sign(plan: &Plan, crushing: Crushing, lanes: &[Lane<'_>], moment: &Moment) -> Signed {
    let lane = &lanes[0];
    let group = crushing.group as usize;
    let rows = match crushing.variant {
        Variant::Vllm => head_bits(plan, lanes, crushing.group),
        Variant::OpenVino => {
            let competing: Vec<usize> = tokens(lane, &lane.order);
            let ones = upper_half(&lane.scores, &competing, competing.len() / 2);
            unit_bits(lane, group, &ones)
        }
        Variant::Torch => {
            let open: Vec<usize> = tokens(lane, &lane.order[lane.important..]);
            let ones = upper_half(&lane.scores, &open, open.len() - open.len() / 2);
            unit_bits(lane, group, &ones)
        }
    };
    let seed = (moment.seed, moment.layer);
    // Torch signs what is not important; the others everything that competes.
    let takes_part = |u: usize| match crushing.variant {
        Variant::Torch => lane.order[lane.important..].contains(&u),
        _ => lane.units[u].competes,
    };
    let rows = rows.into_iter().enumerate().map(|(u, row)| if takes_part(u) { row } else { Vec::new() });
    distances(rows.collect(), crushing.anchor, crushing.variant == Variant::Torch, seed)
}

/// Indices of the residents in these units.
fn tokens(lane: &Lane<'_>, of: &[usize]) -> Vec<usize> {
    let mut tokens: Vec<usize> = of.iter().flat_map(|&u| lane.units[u].residents.clone()).collect();
    tokens.sort_unstable();
    tokens
}

/// Bits of each unit by place within its group; a missing token is a 0.
fn unit_bits(lane: &Lane<'_>, group: usize, ones: &[bool]) -> Vec<Vec<bool>> {
    let row = |unit: &Unit| {
        let mut bits = vec![false; group];
        for i in unit.residents.clone() {
            bits[lane.positions[i] as usize % group] = ones[i];
        }
        bits
    };
    lane.units.iter().map(row).collect()
}

/// Bits of each unit of the first lane, by place within the group and then by head.
fn head_bits(plan: &Plan, lanes: &[Lane<'_>], group: u32) -> Vec<Vec<bool>> {
    let heads = plan.scores.len();
    let width = group as usize;
    // Which of the lane's tokens are in the upper half of each head's scores.
    let ones: Vec<BTreeMap<Position, bool>> = (0..heads)
        .map(|h| {
            let lane = &lanes[h.min(lanes.len() - 1)];
            let competing = tokens(lane, &lane.order);
            let upper = upper_half(&plan.scores[h], &competing, competing.len() / 2);
            competing.into_iter().map(|i| (lane.positions[i], upper[i])).collect()
        })
        .collect();
    let row = |unit: &Unit| {
        let mut bits = vec![false; width * heads];
        for i in unit.residents.clone() {
            let p = lanes[0].positions[i];
            for (h, ones) in ones.iter().enumerate() {
                bits[p as usize % width * heads + h] = ones.get(&p).copied().unwrap_or(false);
            }
        }
        bits
    };
    lanes[0].units.iter().map(row).collect()
}

/// The representatives among the first lane's units that do not stay for their score.
fn pick(crushing: Crushing, lane: &Lane<'_>, signed: &Signed) -> Vec<usize> {
    let mut open = lane.order[lane.important..].to_vec();
    open.sort_unstable();
    let wanted = lane.representatives;
    match crushing.variant {
        Variant::OpenVino => pick_stepped(&signed.distances, &open, wanted),
        Variant::Torch => {
            open.sort_by_key(|&u| std::cmp::Reverse(signed.distances[u]));
            pick_spread(&open, wanted)
        }
        Variant::Vllm => {
            open.sort_by_key(|&u| signed.distances[u]);
            pick_spread(&open, wanted)
        }
    }
}

/// What the first lane's decision looked like.
fn picture(lane: &Lane<'_>, signed: &Signed, picked: &[usize], moment: &Moment) -> Crush {
    let important = &lane.order[..lane.important];
    let first_open = lane.units.iter().position(|unit| unit.competes).unwrap_or(0);
    let fate = |u: usize| match &lane.units[u] {
        Unit { competes: false, .. } if u < first_open => Fate::Start,
        Unit { competes: false, .. } => Fate::Recent,
        _ if important.contains(&u) => Fate::Important,
        _ if picked.contains(&u) => Fate::Representative,
        _ => Fate::Lost,
    };
    let by_score = &lane.order[..lane.by_score];
    let by_score = |u: usize| !lane.units[u].competes || by_score.contains(&u);
    let shown = lane.units.len().min(crate::event::crush::MAX_UNITS);
    Crush {
        layer: moment.layer,
        head: lane.head,
        units: lane.units.len() as u32,
        bits: signed.rows.iter().map(Vec::len).max().unwrap_or(0) as u32,
        anchor: BitRow::new(&signed.anchor),
        anchor_per_unit: signed.anchor_per_unit,
        first: lane.units[..shown].iter().map(|unit| lane.positions[unit.residents.start]).collect(),
        fates: (0..shown).map(|u| fate(u).letter()).collect(),
        signatures: signed.rows[..shown].iter().map(|row| BitRow::new(row)).collect(),
        distances: signed.distances[..shown].to_vec(),
        by_score: BitRow::new(&(0..shown).map(by_score).collect::<Vec<_>>()),
    }
}

#[cfg(test)]
mod tests;
