//! The one selection that all scoring rules share: top-k among what is not protected.

use std::cmp::Ordering;
use std::ops::Range;

use crate::event::{Head, Position, Reason};

use super::Verdict;

/// Residents that a rule keeps whatever their score. Where both do not fit the budget, sinks go first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Protected {
    /// Positions below this one (sinks).
    pub sinks: u32,
    /// So many of the newest residents.
    pub recent: u32,
}

impl Protected {
    /// The newest of so many slots: this share of them.
    pub(super) fn newest_share(share: f64, slots: u32) -> Self {
        Self { sinks: 0, recent: (share * f64::from(slots)).round() as u32 }
    }

    /// Indices of the residents that compete under a budget.
    pub(super) fn candidates(self, positions: &[Position], budget: u32) -> Range<usize> {
        let budget = budget as usize;
        let sinks = positions.partition_point(|&p| p < self.sinks).min(budget);
        let recent = (self.recent as usize).min(budget - sinks).min(positions.len() - sinks);
        sinks..positions.len() - recent
    }
}

/// Keeps the protected residents and, in the places that are left, the highest-scored others; `None` when everything
/// fits the budget.
///
/// `positions` ascend; `scores` has one per position. Exactly `budget` residents stay.
/// - Ties: the *later* position stays. (The references use `torch.topk`, whose order of ties is unspecified.)
/// - NaN ranks as minus infinity, below every number: a broken score never keeps a token.
/// - When the protected take the whole budget nobody competes: the reason is [`Reason::OutsideWindow`], without scores.
pub fn select(
    head: Option<Head>,
    positions: &[Position],
    budget: u32,
    protected: Protected,
    scores: &[f32],
) -> Option<Verdict> {
    if positions.len() <= budget as usize {
        return None;
    }
    let candidates = protected.candidates(positions, budget);
    let places = budget as usize - (positions.len() - candidates.len());
    if places == 0 {
        let victims = positions[candidates].to_vec();
        return Some(Verdict::unscored(head, Reason::OutsideWindow, victims, budget));
    }
    let mut ranked: Vec<usize> = candidates.collect();
    ranked.select_nth_unstable_by(places - 1, |&a, &b| better(scores, a, b));
    let cutoff = comparable(scores[ranked[places - 1]]);
    let mut lost = ranked.split_off(places);
    lost.sort_unstable();
    Some(Verdict {
        head,
        reason: Reason::LowScore,
        cutoff: Some(cutoff),
        victims: lost.iter().map(|&i| positions[i]).collect(),
        scores: lost.iter().map(|&i| comparable(scores[i])).collect(),
        kept: budget,
        crush: None,
    })
}

/// Best first: the higher score, then the later index. Indices are unique, so the order is total and an unstable
/// selection deterministic.
pub(super) fn better(scores: &[f32], a: usize, b: usize) -> Ordering {
    comparable(scores[b]).total_cmp(&comparable(scores[a])).then(b.cmp(&a))
}

/// A score under which `total_cmp` and `==` agree: no NaN, no minus zero.
pub(super) fn comparable(score: f32) -> f32 {
    if score.is_nan() { f32::NEG_INFINITY } else { score + 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SCORES: [f32; 6] = [3.0, 1.0, 2.0, 1.0, 5.0, 0.0];

    fn run(budget: u32, sinks: u32, recent: u32) -> Option<Verdict> {
        select(Some(0), &[0, 1, 2, 3, 4, 5], budget, Protected { sinks, recent }, &SCORES)
    }

    #[test]
    fn the_lowest_go_and_the_cutoff_is_the_lowest_that_stayed() {
        let verdict = run(3, 0, 0).unwrap();
        assert_eq!(verdict.victims, [1, 3, 5]);
        assert_eq!(verdict.scores, [1.0, 1.0, 0.0]);
        assert_eq!((verdict.cutoff, verdict.kept, verdict.reason), (Some(2.0), 3, Reason::LowScore));
    }

    #[test]
    fn of_equal_scores_the_later_position_stays() {
        let verdict = run(4, 0, 0).unwrap();
        assert_eq!(verdict.victims, [1, 5]);
        assert_eq!(verdict.cutoff, Some(1.0));
    }

    #[test]
    fn the_protected_stay_whatever_their_score() {
        assert_eq!(run(4, 2, 1).unwrap().victims, [2, 3]);
        assert_eq!(run(3, 2, 1).unwrap().victims, [2, 3, 4]);
        // Both do not fit: the sinks go first.
        assert_eq!(run(2, 2, 3).unwrap().victims, [2, 3, 4, 5]);
        assert_eq!(run(3, 2, 3).unwrap().victims, [2, 3, 4]);
    }

    #[test]
    fn without_competition_there_are_no_scores() {
        let verdict = run(3, 1, 2).unwrap();
        assert_eq!((verdict.reason, verdict.cutoff), (Reason::OutsideWindow, None));
        assert_eq!((verdict.victims.as_slice(), verdict.scores.len()), ([1, 2, 3].as_slice(), 0));
    }

    #[test]
    fn what_fits_is_left_alone() {
        assert_eq!(run(6, 0, 0), None);
        assert_eq!(run(7, 9, 9), None);
    }

    #[test]
    fn nan_ranks_below_every_number_and_zeros_are_equal() {
        let scores = [f32::NAN, -1e30, 0.0, -0.0, f32::INFINITY];
        let verdict = select(None, &[0, 1, 2, 3, 4], 2, Protected::default(), &scores).unwrap();
        assert_eq!(verdict.victims, [0, 1, 2]);
        assert_eq!(verdict.scores, [f32::NEG_INFINITY, -1e30, 0.0]);
        assert_eq!(verdict.cutoff, Some(0.0));
    }
}
