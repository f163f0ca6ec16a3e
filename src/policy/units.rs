//! Units: residents in runs that are kept or lost as one.

use std::ops::Range;

use super::Verdict;
use super::select::{Best, comparable, keys};
use crate::event::Reason;

/// Runs of residents of one head.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Units {
    /// Index of the first resident of each, and how many residents there are.
    starts: Vec<usize>,
    /// Those without a protected resident: they lie in a row.
    competing: Range<usize>,
}

impl Units {
    /// Runs for which `of` gives the same number.
    pub(super) fn new(residents: usize, candidates: &Range<usize>, of: impl Fn(usize) -> u32) -> Self {
        let mut starts = Vec::new();
        let mut last = None;
        for i in 0..residents {
            let unit = Some(of(i));
            if unit != last {
                starts.push(i);
                last = unit;
            }
        }
        starts.push(residents);
        Self::at(starts, candidates)
    }

    /// Every resident for itself.
    pub(super) fn single(residents: usize, candidates: &Range<usize>) -> Self {
        Self::at((0..=residents).collect(), candidates)
    }

    fn at(starts: Vec<usize>, candidates: &Range<usize>) -> Self {
        let first = starts[..starts.len() - 1].partition_point(|&start| start < candidates.start);
        let end = starts[1..].partition_point(|&end| end <= candidates.end);
        Self { starts, competing: first..end.max(first) }
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.starts.len() - 1
    }

    /// The units without a protected resident.
    pub(super) fn competing(&self) -> Range<usize> {
        self.competing.clone()
    }

    /// Indices of a unit's residents.
    pub(super) fn residents(&self, unit: usize) -> Range<usize> {
        self.starts[unit]..self.starts[unit + 1]
    }

    /// Indices of the residents that compete.
    pub(super) fn competing_residents(&self) -> Range<usize> {
        self.starts[self.competing.start]..self.starts[self.competing.end]
    }

    /// Mean score of each unit.
    pub(super) fn worth(&self, scores: &[f32]) -> Vec<f32> {
        if self.len() == scores.len() {
            return scores.iter().map(|&score| comparable(score)).collect();
        }
        self.starts
            .windows(2)
            .map(|ends| {
                let own = &scores[ends[0]..ends[1]];
                own.iter().map(|&score| comparable(score)).sum::<f32>() / own.len() as f32
            })
            .collect()
    }

    /// How many of the competing units can stay within `budget` residents: the best first, until the next one does not
    /// fit.
    pub(super) fn fitting(&self, worth: &[f32], budget: u32) -> usize {
        let competing = self.competing_residents().len();
        let mut left = (budget as usize).saturating_sub(self.starts[self.len()] - competing);
        if competing == self.competing.len() {
            return left.min(competing);
        }
        let mut order: Vec<usize> = self.competing().collect();
        order.sort_unstable_by(|&a, &b| super::select::better(worth, a, b));
        let fits = order.iter().take_while(|&&unit| {
            let own = self.residents(unit).len();
            let fits = own <= left;
            left = left.saturating_sub(own);
            fits
        });
        fits.count()
    }

    /// The `keep` best competing units stay in all heads, the others are lost; every token of a unit has the unit's
    /// score. `None` where nothing is lost.
    pub(super) fn verdict(&self, positions: &[u32], worth: &[f32], keep: usize) -> Option<Verdict> {
        let keys = keys(&worth[self.competing()]);
        let best = Best::of(&keys, keep);
        let lost =
            || self.competing().zip(keys.iter().enumerate()).filter(|&(_, (i, &key))| !best.has(i, key));
        let tokens = || lost().flat_map(|(unit, _)| self.residents(unit).map(move |i| (unit, i)));
        let victims: Vec<u32> = tokens().map(|(_, i)| positions[i]).collect();
        if victims.is_empty() {
            return None;
        }
        let left = (positions.len() - victims.len()) as u32;
        let Some(cutoff) = best.lowest(&keys) else {
            return Some(Verdict::unscored(None, Reason::OutsideWindow, victims, left));
        };
        Some(Verdict {
            head: None,
            reason: Reason::LowScore,
            cutoff: Some(cutoff),
            scores: tokens().map(|(unit, _)| comparable(worth[unit])).collect(),
            victims,
            kept: left,
            crush: None,
        })
    }
}

/// Most tokens above the budget when units of `width` are kept whole: those around the sinks and around the window.
pub(super) const fn unit_slack(width: u32) -> u32 {
    2 * width.saturating_sub(1)
}
