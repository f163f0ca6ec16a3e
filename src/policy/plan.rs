//! A plan: what a rule that scores tokens wants kept, before it is carried out. Wrappers change plans.

use super::adakv;
use super::crush::{self, Crushing};
use super::inputs::{HeadInputs, Moment};
use super::registry::Granularity;
use super::select::{Protected, select};
use super::units::{Units, unit_slack};
use super::{Bound, Verdict};
use crate::event::Head;

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
        let Some((first, others)) = self.scores.split_first() else { return Vec::new() };
        let mut means = first.clone();
        for scores in others {
            means.iter_mut().zip(scores).for_each(|(sum, score)| *sum += score);
        }
        for sum in &mut means {
            *sum /= self.scores.len() as f32;
        }
        means
    }

    /// Slots per KV head.
    pub(super) fn budgets(&self, heads: &[HeadInputs<'_>]) -> Vec<u32> {
        match self.floor {
            Some(floor) => adakv::split(self.budget, floor, self.protected, heads, &self.scores),
            None => vec![self.budget; heads.len()],
        }
    }
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
    let units = Units::new(positions.len(), &candidates, |i| head.page(i, moment.block_size));
    let worth = units.worth(scores);
    let keep = units.fitting(&worth, budget);
    units.verdict(positions, &worth, keep)
}

/// The bound of `slots` per head, where pages of `block_size` stay whole.
pub(super) fn bound(by: Granularity, slots: u32, block_size: u32, kv_heads: u32) -> Bound {
    let slack = if by == Granularity::Page { unit_slack(block_size) } else { 0 };
    Bound::each(slots.saturating_add(slack), kv_heads)
}
