#![allow(warnings, clippy::all, clippy::pedantic)]
use super::super::inputs::*;
use super::super::plan::Plan;
use super::super::registry::Granularity;
use super::super::select::{better, comparable};
use super::super::{Verdict, noise, noise::Use};
use super::signature::Anchor;
use super::{Crushing, Variant};
use crate::event::crush::{BitRow, Fate};
use crate::event::{Crush, Head, Position, Reason};
use std::collections::BTreeMap;
/// Consecutive residents that are kept or lost as one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Unit {
    /// Indices of its residents.
    pub(super) residents: std::ops::Range<usize>,
    /// None of them is protected.
    pub(super) competes: bool,
}

/// Residents as units: runs for which `of` gives the same number.
pub(super) fn units(
    residents: usize,
    candidates: &std::ops::Range<usize>,
    of: impl Fn(usize) -> u32,
) -> Vec<Unit> {
    let mut units: Vec<Unit> = Vec::new();
    for i in 0..residents {
        match units.last_mut() {
            Some(unit) if of(unit.residents.start) == of(i) => unit.residents.end = i + 1,
            _ => units.push(Unit { residents: i..i + 1, competes: false }),
        }
    }
    for unit in &mut units {
        unit.competes = candidates.start <= unit.residents.start && unit.residents.end <= candidates.end;
    }
    units
}

/// Most tokens above the budget when units of `width` are kept whole: those around the sinks and around the window.
#[allow(dead_code)]
const fn unit_slack(width: u32) -> u32 {
    2 * width.saturating_sub(1)
}

/// How many of the competing units can stay: `kept` of the tokens are in units that do not compete. Units are taken in
/// the given order until the next one does not fit.
pub(super) fn fitting(units: &[Unit], order: &[usize], fixed: usize, budget: u32) -> usize {
    let mut left = (budget as usize).saturating_sub(fixed);
    order
        .iter()
        .take_while(|&&u| {
            let fits = units[u].residents.len() <= left;
            left = left.saturating_sub(units[u].residents.len());
            fits
        })
        .count()
}

/// Mean score of each unit.
pub(super) fn unit_scores(units: &[Unit], scores: &[f32]) -> Vec<f32> {
    units
        .iter()
        .map(|unit| {
            let total: f32 = scores[unit.residents.clone()].iter().map(|&s| comparable(s)).sum();
            total / unit.residents.len() as f32
        })
        .collect()
}

/// Signatures with their anchor and distances.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Signed {
    /// Per unit; empty for one that takes no part.
    pub(super) rows: Vec<Vec<bool>>,
    /// One bit per column, or one per unit.
    pub(super) anchor: Vec<bool>,
    pub(super) anchor_per_unit: bool,
    /// Per unit; 0 for one that takes no part.
    pub(super) distances: Vec<u32>,
}

/// Anchor and distances for the rows that take part. With `per_unit` the anchor has one bit per unit, and the distance
/// is how many bits of the unit differ from it; the mean is then the majority inside the unit.
pub(super) fn distances(rows: Vec<Vec<bool>>, anchor: Anchor, per_unit: bool, seed: (u64, u16)) -> Signed {
    let ones = |row: &[bool]| row.iter().filter(|&&bit| bit).count();
    let taking_part = rows.iter().filter(|row| !row.is_empty()).count();
    let width = rows.iter().map(Vec::len).max().unwrap_or(0);
    let len = if per_unit { rows.len() } else { width };
    // Ones among how many, for the majority at each place of the anchor.
    let share = |i: usize| {
        if per_unit {
            (ones(&rows[i]), rows[i].len())
        } else {
            (rows.iter().filter(|row| row.get(i) == Some(&true)).count(), taking_part)
        }
    };
    let bit = |i: usize| match anchor {
        Anchor::Mean => 2 * share(i).0 > share(i).1,
        Anchor::InverseMean => 2 * share(i).0 < share(i).1,
        Anchor::Alternating => i % 2 == 1,
        Anchor::Random => noise::bits(seed.0, [Use::CrushAnchor as u64, seed.1.into(), i as u64]) & 1 == 1,
        Anchor::Zeros => false,
        Anchor::Ones => true,
    };
    let anchor: Vec<bool> = (0..len).map(bit).collect();
    let distance = |(u, row): (usize, &Vec<bool>)| {
        let differs = |(i, &bit): (usize, &bool)| bit != anchor[if per_unit { u } else { i }];
        row.iter().enumerate().filter(|&at| differs(at)).count() as u32
    };
    let distances = rows.iter().enumerate().map(distance).collect();
    Signed { rows, anchor, anchor_per_unit: per_unit, distances }
}

/// Marks the `ones` highest of the scored tokens in `among`, exactly so many; of equals the later.
pub(super) fn upper_half(scores: &[f32], among: &[usize], ones: usize) -> Vec<bool> {
    let mut order = among.to_vec();
    order.sort_unstable_by(|&a, &b| better(scores, a, b));
    let mut marks = vec![false; scores.len()];
    order[..ones].iter().for_each(|&i| marks[i] = true);
    marks
}

/// By distance ascending, every (n div m)-th of the eligible units, m of them.
pub(super) fn pick_stepped(distances: &[u32], eligible: &[usize], budget: usize) -> Vec<usize> {
    let mut order = eligible.to_vec();
    order.sort_by_key(|&u| distances[u]);
    let m = order.len().min(budget);
    let Some(step) = order.len().checked_div(m) else { return Vec::new() };
    order.into_iter().step_by(step).take(m).collect()
}

/// `budget` of the units in order, evenly spread from the first to the last: the whole parts of
/// `linspace(0, n - 1, budget)`.
pub(super) fn pick_spread(order: &[usize], budget: usize) -> Vec<usize> {
    let m = order.len().min(budget);
    (0..m).map(|i| order[i * (order.len() - 1) / (m - 1).max(1)]).collect()
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
        let important = if positions.len() <= budget as usize {
            order.len()
        } else {
            fitting(&units, &order, fixed, budget - reserved.min(budget))
        };
        Self { head, positions, scores, units, worth, order, important, representatives }
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
    let shown = lane.units.len().min(crate::event::crush::MAX_UNITS);
    Crush {
        layer: moment.layer,
        units: lane.units.len() as u32,
        bits: signed.rows.iter().map(Vec::len).max().unwrap_or(0) as u32,
        anchor: BitRow::new(&signed.anchor),
        anchor_per_unit: signed.anchor_per_unit,
        first: lane.units[..shown].iter().map(|unit| lane.positions[unit.residents.start]).collect(),
        fates: (0..shown).map(|u| fate(u).letter()).collect(),
        signatures: signed.rows[..shown].iter().map(|row| BitRow::new(row)).collect(),
        distances: signed.distances[..shown].to_vec(),
    }
}
