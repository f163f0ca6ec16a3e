//! Eviction decisions: who was lost, with which score, against which cutoff.

use half::f16;
use serde::{Deserialize, Serialize};

use super::ids::{Head, Layer, Position};

/// Why a victim was chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[repr(u8)]
pub enum Reason {
    /// Its score was below the cutoff.
    LowScore = 0,
    /// It left the window a positional policy keeps; such victims carry no score.
    OutsideWindow = 1,
    /// It drew less than others where chance decides with the scores.
    Drawn = 2,
    /// Another token of its segment scored higher, or an older sample was thinned out; such victims carry no score.
    Thinned = 3,
    /// It is of no class that its head keeps; such victims carry no score.
    Unclassed = 4,
    /// Its score was below the cutoff, and others were chosen to stand for its like.
    Represented = 5,
    /// It left the window of its layer, which is the model's own; such victims carry no score.
    LayerWindow = 6,
}

impl Reason {
    /// The code in a recording back to the reason.
    pub const fn from_code(code: u8) -> Option<Self> {
        match code {
            0 => Some(Self::LowScore),
            1 => Some(Self::OutsideWindow),
            2 => Some(Self::Drawn),
            3 => Some(Self::Thinned),
            4 => Some(Self::Unclassed),
            5 => Some(Self::Represented),
            6 => Some(Self::LayerWindow),
            _ => None,
        }
    }

    /// The words shown to a person.
    pub const fn words(self) -> &'static str {
        match self {
            Self::LowScore => "score below the cutoff",
            Self::OutsideWindow => "left the window",
            Self::Drawn => "lost the draw",
            Self::Thinned => "thinned out of its segment",
            Self::Unclassed => "of no class its head keeps",
            Self::Represented => "below the cutoff, others represent it",
            Self::LayerWindow => "left the window of its layer",
        }
    }
}

/// One decision of one (layer, KV head): state that is lost.
///
/// `rank` and `margin` of a victim are derived ([`Eviction::rank`], [`Eviction::margin`]); its age is the step's last
/// position minus its own.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Eviction {
    /// Decoder layer.
    pub layer: Layer,
    /// KV head, or `None` where the whole layer decided alike.
    pub head: Option<Head>,
    /// Why.
    pub reason: Reason,
    /// Lowest score among the kept tokens that competed; `None` where the policy has no scores.
    pub cutoff: Option<f32>,
    /// Tokens resident after the decision.
    pub kept: u32,
    /// Positions lost, ascending.
    pub positions: Vec<Position>,
    /// One score per victim; empty where the policy has none; NaN where it was left out of a very large decision.
    pub scores: Vec<f16>,
}

/// Most victims of one step whose scores are all recorded; above it only [`NEAREST_SCORES`] per head are.
pub const MAX_SCORED_VICTIMS: usize = 65_536;
/// Scores kept per decision, nearest the cutoff, once a step exceeds [`MAX_SCORED_VICTIMS`].
pub const NEAREST_SCORES: usize = 64;

/// A policy score as it is recorded: saturated to the finite range of f16, so that a large sum stays comparable.
pub fn recorded_score(score: f32) -> f16 {
    f16::from_f32(score.clamp(f16::MIN.to_f32(), f16::MAX.to_f32()))
}

impl Eviction {
    /// Rank below the cutoff: 1 is the victim that came nearest to staying. `None` without a score. Derived: one plus
    /// the number of victims of this decision with a higher score, ties going to the later position.
    pub fn rank(&self, victim: usize) -> Option<usize> {
        let mine = self.scores.get(victim).copied().filter(|s| !s.is_nan())?;
        let above =
            self.scores.iter().enumerate().filter(|&(i, &s)| s > mine || (s == mine && i > victim)).count();
        Some(above + 1)
    }

    /// Distance to the cutoff, `cutoff - score`. `None` without a score or a cutoff. Derived.
    pub fn margin(&self, victim: usize) -> Option<f32> {
        let mine = self.scores.get(victim).copied().filter(|s| !s.is_nan())?;
        self.cutoff.map(|cutoff| cutoff - mine.to_f32())
    }

    /// Leaves only the scores nearest the cutoff (the highest); the others become NaN.
    pub fn thin_scores(&mut self) {
        if self.scores.len() <= NEAREST_SCORES {
            return;
        }
        let mut order: Vec<usize> = (0..self.scores.len()).collect();
        order.sort_by(|&a, &b| self.scores[b].total_cmp(&self.scores[a]));
        for &i in &order[NEAREST_SCORES..] {
            self.scores[i] = f16::NAN;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decision(scores: &[f32]) -> Eviction {
        Eviction {
            layer: 0,
            head: Some(0),
            reason: Reason::LowScore,
            cutoff: Some(5.0),
            kept: 3,
            positions: (0..scores.len() as u32).collect(),
            scores: scores.iter().map(|&s| recorded_score(s)).collect(),
        }
    }

    #[test]
    fn rank_counts_from_the_cutoff_and_ties_favour_the_later_position() {
        let d = decision(&[1.0, 4.0, 1.0, 2.0]);
        assert_eq!((0..4).map(|i| d.rank(i).unwrap()).collect::<Vec<_>>(), [4, 1, 3, 2]);
        assert_eq!(d.margin(1), Some(1.0));
        assert_eq!(d.rank(9), None);
    }

    #[test]
    fn thinning_keeps_the_highest_scores() {
        let mut d = decision(&(0..200).map(|i| i as f32).collect::<Vec<_>>());
        d.thin_scores();
        assert_eq!(d.scores.iter().filter(|s| !s.is_nan()).count(), NEAREST_SCORES);
        assert!(d.scores[135].is_nan() && !d.scores[136].is_nan());
    }

    #[test]
    fn scores_saturate_instead_of_becoming_infinite() {
        assert_eq!(recorded_score(1e9), f16::MAX);
        assert_eq!(recorded_score(-1e9), f16::MIN);
    }
}
