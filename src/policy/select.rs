//! The one selection that all scoring rules share: top-k among what is not protected.

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

/// Keeps the protected residents and, in the places that are left, the highest-scored others; `None` when everything
/// fits the budget.
///
/// `positions` ascend; `score` is asked for the positions that compete, once each. Exactly `budget` residents stay.
/// - Ties: the *later* position stays. (The references use `torch.topk`, whose order of ties is unspecified.)
/// - NaN ranks as minus infinity, below every number: a broken score never keeps a token.
/// - When the protected take the whole budget nobody competes: the reason is [`Reason::OutsideWindow`], without scores.
pub fn select(
    head: Option<Head>,
    positions: &[Position],
    budget: u32,
    protected: Protected,
    score: impl Fn(Position) -> f32,
) -> Option<Verdict> {
    let budget = budget as usize;
    if positions.len() <= budget {
        return None;
    }
    let sinks = positions.partition_point(|&p| p < protected.sinks).min(budget);
    let recent = (protected.recent as usize).min(budget - sinks);
    let candidates = &positions[sinks..positions.len() - recent];
    let places = budget - sinks - recent;
    let kept = budget as u32;
    if places == 0 {
        let victims = candidates.to_vec();
        return Some(Verdict {
            head,
            reason: Reason::OutsideWindow,
            cutoff: None,
            victims,
            scores: Vec::new(),
            kept,
        });
    }
    // Best first. Positions are unique, so the order is total and the unstable selection deterministic.
    let mut ranked: Vec<(f32, Position)> = candidates.iter().map(|&p| (comparable(score(p)), p)).collect();
    ranked.select_nth_unstable_by(places - 1, |a, b| b.0.total_cmp(&a.0).then(b.1.cmp(&a.1)));
    let cutoff = Some(ranked[places - 1].0);
    let mut lost = ranked.split_off(places);
    lost.sort_unstable_by_key(|&(_, p)| p);
    Some(Verdict {
        head,
        reason: Reason::LowScore,
        cutoff,
        victims: lost.iter().map(|&(_, p)| p).collect(),
        scores: lost.iter().map(|&(s, _)| s).collect(),
        kept,
    })
}

/// A score under which `total_cmp` and `==` agree: no NaN, no minus zero.
fn comparable(score: f32) -> f32 {
    if score.is_nan() { f32::NEG_INFINITY } else { score + 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SCORES: [f32; 6] = [3.0, 1.0, 2.0, 1.0, 5.0, 0.0];

    fn run(budget: u32, sinks: u32, recent: u32) -> Option<Verdict> {
        let positions = [0, 1, 2, 3, 4, 5];
        select(Some(0), &positions, budget, Protected { sinks, recent }, |p| SCORES[p as usize])
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
        let verdict =
            select(None, &[0, 1, 2, 3, 4], 2, Protected::default(), |p| scores[p as usize]).unwrap();
        assert_eq!(verdict.victims, [0, 1, 2]);
        assert_eq!(verdict.scores, [f32::NEG_INFINITY, -1e30, 0.0]);
        assert_eq!(verdict.cutoff, Some(0.0));
    }
}
