//! The one selection that all scoring rules share: top-k among what is not protected.

use std::cmp::Ordering;
use std::ops::Range;

use crate::event::{Head, Position, Reason};

use super::Verdict;
use super::crush::Crushing;

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

/// A decision that is made of sums of attention alone, so that it can be made where those are kept.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Ranked {
    /// What is a token's score.
    pub by: RankedBy,
    /// One decision for all heads of the layer, by their mean; all of them hold the same tokens.
    pub as_one: bool,
    /// Slots of each head.
    pub budget: u32,
    /// Kept whatever the score.
    pub protected: Protected,
    /// KVCrush decides on these scores, each head for itself.
    pub crush: Option<Crushing>,
}

/// The score of a [`Ranked`] decision; the higher stays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RankedBy {
    /// Attention received so far.
    Sum,
    /// The same per query that could see the token.
    Mean,
    /// Attention received from the newest query.
    LastRow,
}

impl Ranked {
    /// What was decided elsewhere as [`select`] or KVCrush would, for so many residents: who is lost, ascending, their
    /// scores, and the lowest score that stayed, if anybody competed.
    pub fn verdict(
        &self,
        head: Option<Head>,
        residents: u32,
        victims: Vec<Position>,
        scores: Vec<f32>,
        cutoff: Option<f32>,
    ) -> Option<Verdict> {
        let reason = match (self.crush, cutoff) {
            (Some(_), _) => Reason::Represented,
            (None, None) => Reason::OutsideWindow,
            (None, Some(_)) => Reason::LowScore,
        };
        let kept = residents - victims.len() as u32;
        (!victims.is_empty()).then(|| Verdict::scored(head, reason, victims, scores, cutoff, kept))
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
    let keys = keys(&scores[candidates.clone()]);
    let best = Best::of(&keys, places);
    let lost = keys.len() - places;
    let (mut victims, mut lost_scores) = (Vec::with_capacity(lost), Vec::with_capacity(lost));
    for (i, (&key, &position)) in keys.iter().zip(&positions[candidates]).enumerate() {
        if !best.has(i, key) {
            victims.push(position);
            lost_scores.push(score_of(key));
        }
    }
    let cutoff = best.lowest(&keys);
    Some(Verdict {
        head,
        reason: Reason::LowScore,
        cutoff,
        victims,
        scores: lost_scores,
        kept: budget,
        crush: None,
    })
}

/// Scores as whole numbers of the same order: NaN below every number, zeros equal.
pub(super) fn keys(scores: &[f32]) -> Vec<i32> {
    scores.iter().map(|&score| turned(comparable(score).to_bits() as i32)).collect()
}

/// The score of a key, as [`comparable`] has it.
fn score_of(key: i32) -> f32 {
    f32::from_bits(turned(key) as u32)
}

/// Turns the order of negative numbers around: bits of floats sort by magnitude. Done twice it changes nothing.
const fn turned(bits: i32) -> i32 {
    bits ^ ((bits >> 31) as u32 >> 1) as i32
}

/// A key that at least `n` of the keys reach and, equal ones aside, no more.
///
/// Found bit by bit, the highest first. Each of at most 32 passes compares everything without a branch, which is several
/// times faster than to partition, and as fast on keys made to be slow.
pub(super) fn threshold(keys: &[i32], n: usize) -> i32 {
    let mut lowest = i32::MIN;
    for bit in (0..32).rev() {
        let higher = lowest.wrapping_add((1u32 << bit) as i32);
        let reach = keys.iter().map(|&key| u32::from(key >= higher)).sum::<u32>() as usize;
        if reach >= n {
            lowest = higher;
        }
        if reach == n {
            break;
        }
    }
    lowest
}

/// The best of some scores: whose key is above a threshold, and of those equal to it the later ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Best {
    key: i32,
    /// Index of the first that is among them with this very key.
    from: usize,
}

impl Best {
    /// All of them.
    pub(super) const ALL: Self = Self { key: i32::MIN, from: 0 };

    /// The `n` best.
    pub(super) fn of(keys: &[i32], n: usize) -> Self {
        if n == 0 {
            return Self { key: i32::MAX, from: usize::MAX };
        }
        if n >= keys.len() {
            return Self::ALL;
        }
        let key = threshold(keys, n);
        let reach = keys.iter().map(|&k| u32::from(k >= key)).sum::<u32>() as usize;
        let from = match reach - n {
            0 => 0,
            passed => equal(keys, key).nth(passed).expect("more of them are equal than have no place"),
        };
        Self { key, from }
    }

    /// Whether the score at an index is one of them.
    pub(super) const fn has(self, index: usize, key: i32) -> bool {
        key > self.key || key == self.key && index >= self.from
    }

    /// The lowest of their scores.
    pub(super) fn lowest(self, keys: &[i32]) -> Option<f32> {
        let here = keys.iter().enumerate().filter(|&(i, &key)| self.has(i, key));
        here.map(|(_, &key)| key).min().map(score_of)
    }
}

fn equal(keys: &[i32], to: i32) -> impl Iterator<Item = usize> + '_ {
    keys.iter().enumerate().filter(move |&(_, &key)| key == to).map(|(i, _)| i)
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
    fn the_best_are_those_that_sorting_puts_first() {
        let scores =
            [2.0, f32::NAN, -1.0, 2.0, 0.0, -0.0, f32::NEG_INFINITY, 2.0, -3.5, f32::INFINITY, 1e-40];
        let keys = keys(&scores);
        assert!(
            keys.iter()
                .zip(scores)
                .all(|(&key, score)| score_of(key).to_bits() == comparable(score).to_bits())
        );
        let mut order: Vec<usize> = (0..scores.len()).collect();
        order.sort_by(|&a, &b| better(&scores, a, b));
        for n in 0..=scores.len() {
            let best = Best::of(&keys, n);
            let mut found: Vec<usize> = (0..keys.len()).filter(|&i| best.has(i, keys[i])).collect();
            found.sort_by(|&a, &b| better(&scores, a, b));
            assert_eq!(found, order[..n], "{n}");
            assert_eq!(best.lowest(&keys), found.last().map(|&i| comparable(scores[i])), "{n}");
        }
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
