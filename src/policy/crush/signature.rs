//! Bits, anchors, distances and picks: the arithmetic that the three implementations share or do each their way.

use crate::policy::noise::{self, Use};
use crate::policy::select::better;

/// What signatures are measured against.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Anchor {
    /// The majority of each column, strictly above one half.
    Mean,
    /// Strictly below one half.
    InverseMean,
    /// 0, 1, 0, 1 …
    Alternating,
    /// Coin flips from the seed.
    Random,
    Zeros,
    Ones,
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
