//! A plan: what a rule that scores tokens wants kept, before it is carried out. Wrappers change plans.

use super::adakv;
use super::crush::{self, Crushing};
use super::inputs::{HeadInputs, Moment};
use super::registry::Granularity;
use super::select::{Protected, comparable, select};
use super::{Bound, Verdict};
use crate::event::{Head, Reason};

/// Scores of one layer, and how much of it stays.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Tokens per head, tokens of the layer, or pages of the layer.
    pub(super) by: Granularity,
    /// Slots of each head.
    pub(super) budget: u32,
    /// Kept whatever the score.
    pub(super) protected: Protected,
    /// Per KV head one score per resident; the higher stays. Where the layer decides as one, the mean counts.
    pub(super) scores: Vec<Vec<f32>>,
    /// The heads share their budgets: each is sure of this part of its own.
    pub(super) floor: Option<f64>,
    /// Part of the budget goes to representatives.
    pub(super) crush: Option<Crushing>,
}

impl Plan {
    /// Carries the plan out: verdicts in order, none where nothing is lost.
    pub(super) fn decide(self, moment: &Moment, heads: &[HeadInputs<'_>], out: &mut Vec<Verdict>) {
        if let Some(crushing) = self.crush {
            return crush::decide(&self, crushing, moment, heads, out);
        }
        match self.by {
            Granularity::Head => {
                let budgets = self.budgets(heads);
                let lanes = heads.iter().zip(&self.scores).zip(budgets).enumerate();
                out.extend(lanes.filter_map(|(h, ((head, scores), budget))| {
                    select(Some(h as Head), head.positions, budget, self.protected, scores)
                }));
            }
            Granularity::Layer => {
                let Some(first) = heads.first() else { return };
                out.extend(select(None, first.positions, self.budget, self.protected, &self.layer_scores()));
            }
            Granularity::Page => {
                let Some(first) = heads.first() else { return };
                out.extend(select_pages(self.budget, self.protected, first, moment, &self.layer_scores()));
            }
        }
    }

    /// Mean over the heads, which hold the same tokens.
    pub(super) fn layer_scores(&self) -> Vec<f32> {
        let (tokens, heads) = (self.scores.first().map_or(0, Vec::len), self.scores.len() as f32);
        (0..tokens).map(|i| self.scores.iter().map(|scores| scores[i]).sum::<f32>() / heads).collect()
    }

    /// Slots per KV head.
    pub(super) fn budgets(&self, heads: &[HeadInputs<'_>]) -> Vec<u32> {
        match self.floor {
            Some(floor) => adakv::split(self.budget, floor, self.protected, heads, &self.scores),
            None => vec![self.budget; heads.len()],
        }
    }
}

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
pub(super) const fn unit_slack(width: u32) -> u32 {
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

/// Keeps whole pages, the layer as one: a page is worth the mean score of its tokens. A page that holds a protected
/// token stays, so up to [`unit_slack`] residents may be above the budget.
fn select_pages(
    budget: u32,
    protected: Protected,
    head: &HeadInputs<'_>,
    moment: &Moment,
    scores: &[f32],
) -> Option<Verdict> {
    let positions = head.positions;
    if positions.len() <= budget as usize {
        return None;
    }
    let candidates = protected.candidates(positions, budget);
    let units = units(positions.len(), &candidates, |i| head.page(i, moment.block_size));
    let worth = unit_scores(&units, scores);
    let mut order: Vec<usize> = (0..units.len()).filter(|&u| units[u].competes).collect();
    order.sort_unstable_by(|&a, &b| super::select::better(&worth, a, b));
    let fixed = units.iter().filter(|unit| !unit.competes).map(|unit| unit.residents.len()).sum();
    let keep = fitting(&units, &order, fixed, budget);
    verdict_of_units(None, positions, &units, &worth, &order, keep)
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

/// The first `keep` units of `order` stay, the others are lost; every token of a unit has the unit's score.
pub(super) fn verdict_of_units(
    head: Option<Head>,
    positions: &[u32],
    units: &[Unit],
    worth: &[f32],
    order: &[usize],
    keep: usize,
) -> Option<Verdict> {
    let (kept, lost) = order.split_at(keep);
    let mut lost = lost.to_vec();
    lost.sort_unstable();
    let tokens = || lost.iter().flat_map(|&u| units[u].residents.clone().map(move |i| (u, i)));
    let victims: Vec<u32> = tokens().map(|(_, i)| positions[i]).collect();
    if victims.is_empty() {
        return None;
    }
    let left = (positions.len() - victims.len()) as u32;
    let Some(&worst) = kept.last() else {
        return Some(Verdict::unscored(head, Reason::OutsideWindow, victims, left));
    };
    Some(Verdict {
        head,
        reason: Reason::LowScore,
        cutoff: Some(comparable(worth[worst])),
        scores: tokens().map(|(u, _)| comparable(worth[u])).collect(),
        victims,
        kept: left,
        crush: None,
    })
}

/// The bound of `slots` per head, where pages of `block_size` stay whole.
pub(super) fn bound(by: Granularity, slots: u32, block_size: u32, kv_heads: u32) -> Bound {
    let slack = if by == Granularity::Page { unit_slack(block_size) } else { 0 };
    Bound::each(slots.saturating_add(slack), kv_heads)
}
