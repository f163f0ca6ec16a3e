//! The merging half of D2O: a victim goes into the kept token whose key is most like its own, if it is like enough.
//!
//! Rule read in the authors' code (AIoT-MLSys-Lab/D2O, `modeling_llama3_7b_13b_d2o.py`). Of every victim the cosines
//! between its key and the kept keys of its head; the largest names its target. The threshold of a layer is the mean of
//! these largest cosines over victims and heads, blended by `alpha` with the threshold before and by `beta` with the new
//! mean; at the first decision it is the mean. The i-th victims of all heads stand or fall together: where the mean of
//! their largest cosines reaches the threshold, each goes into its target, K and V alike: a target becomes the mean of
//! its own row and of (cosine × row) of all that enter it. The others are lost.
//!
//! Keys are compared and averaged as they are stored: after RoPE (as the authors do), each at its own position; under a
//! policy that keeps them before RoPE, before it.
//!
//! Deviations:
//! - A head in which a victim's largest cosine is not above 0 loses it though the heads' mean may reach the threshold;
//!   the authors would add it with a negative weight.
//! - Heads are KV heads; the authors' code repeats them for every query head.
//! - Where heads lose different numbers of tokens (AdaKV), the mean is over the heads that have an i-th victim.

use std::sync::Arc;

use super::super::Needs;
use super::super::inputs::{HeadInputs, Moment};
use super::super::knorm::norm;
use super::super::merge::{Entering, HeadMerge, Memory, MergeRule, Parting, VictimMerge};
use super::super::param::Param;
use super::super::registry::{Build, Entry, Granularity};
use super::SOURCE;
use crate::event::{Head, MergeArc, Position};

pub(in crate::policy) const ENTRY: Entry = Entry {
    name: "d2o",
    title: "D2O merge",
    doc: "K and V of a victim go into the kept token of most similar key, if the layer's threshold is reached",
    source: SOURCE,
    source_defaults: "alpha 0.5, beta 0.5",
    acts: "with every decision of the policy it stands behind",
    granularity: Granularity::Head,
    params: &[
        Param::real("alpha", (0.0, 1.0), 0.5, "weight of the threshold before")
            .steps(0.05, 0.25)
            .live()
            .headline(),
        Param::real("beta", (0.0, 1.0), 0.5, "weight of the mean similarity of the present victims")
            .steps(0.05, 0.25)
            .live(),
    ],
    deviations: &[
        "a victim whose similarity is not above 0 in a head is lost there; the source would subtract it",
        "decides per KV head; the source repeats keys for every query head",
        "where heads lose different numbers, the i-th victims of those that have one are judged together",
        "a V row whose home is the host is altered there: nothing crosses the link for it",
    ],
    build: Build::Merge(|part| {
        MergeRule::Victims(Arc::new(D2oMerge { alpha: part.real("alpha"), beta: part.real("beta") }))
    }),
};

#[derive(Debug)]
struct D2oMerge {
    alpha: f64,
    beta: f64,
}

/// A victim's nearest kept token.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Nearest {
    /// Indices of victim and target among the residents.
    victim: usize,
    target: usize,
    cosine: f32,
}

impl VictimMerge for D2oMerge {
    fn needs(&self) -> Needs {
        Needs { keys: true, values: true, ..Needs::NONE }
    }

    fn entering(&self) -> Entering {
        Entering::Averaged
    }

    fn keys(&self) -> bool {
        true
    }

    fn merge(&self, _: &Moment, heads: &[Parting<'_>], memory: &mut Memory) -> Vec<HeadMerge> {
        let nearest: Vec<Vec<Nearest>> = heads.iter().map(nearest).collect();
        let all = mean(nearest.iter().flatten());
        let blended = |before| all.map(|all| self.alpha * before + self.beta * all);
        let threshold = memory.threshold.map_or(all, blended);
        memory.threshold = threshold.or(memory.threshold);
        let most = nearest.iter().map(Vec::len).max().unwrap_or(0);
        let alike: Vec<bool> =
            (0..most).map(|i| mean(nearest.iter().filter_map(|head| head.get(i))) >= threshold).collect();
        let losing =
            heads.iter().zip(&nearest).enumerate().filter(|(_, (parting, _))| parting.lost.contains(&true));
        losing
            .map(|(h, (parting, nearest))| {
                let merged = nearest.iter().zip(&alike).filter(|&(n, &alike)| alike && n.cosine > 0.0);
                HeadMerge {
                    head: h as Head,
                    threshold: threshold.map(|threshold| threshold as f32),
                    arcs: merged.map(|(n, _)| n.arc(parting.head.positions)).collect(),
                }
            })
            .collect()
    }
}

impl Nearest {
    fn arc(self, positions: &[Position]) -> MergeArc {
        let (from, into) = (positions[self.victim], positions[self.target]);
        // A cosine may come out above 1 by rounding.
        MergeArc { from, into, targets: 1, weight: self.cosine.min(1.0) }
    }
}

/// The nearest kept token of every victim of a head; none where nothing stays.
fn nearest(parting: &Parting<'_>) -> Vec<Nearest> {
    let kept = parting.kept();
    if kept.is_empty() {
        return Vec::new();
    }
    let directions = directions(&parting.head);
    let of = |victim: usize| {
        let cosines = kept.iter().map(|&target| (target, dot(&directions[victim], &directions[target])));
        let first = Nearest { victim, target: kept[0], cosine: -1.0 };
        // Of equal ones the earliest; what is no number is like nothing.
        cosines.fold(
            first,
            |best, (target, cosine)| {
                if cosine > best.cosine { Nearest { victim, target, cosine } } else { best }
            },
        )
    };
    parting.victims().map(of).collect()
}

/// Keys of length 1, one per resident; zero stays zero.
fn directions(head: &HeadInputs<'_>) -> Vec<Vec<f32>> {
    let unit = |key: &[f32]| {
        let length = norm(key);
        key.iter().map(|&x| if length > 0.0 { (f64::from(x) / length) as f32 } else { 0.0 }).collect()
    };
    head.key_rows().map(unit).collect()
}

/// Sums in eight lanes, so that the compiler may use wide registers; the order is fixed.
fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut lanes = [0.0f32; 8];
    for (a, b) in a.chunks(8).zip(b.chunks(8)) {
        lanes.iter_mut().zip(a.iter().zip(b)).for_each(|(sum, (&a, &b))| *sum += a * b);
    }
    lanes.iter().sum()
}

fn mean<'n>(nearest: impl Iterator<Item = &'n Nearest>) -> Option<f64> {
    let (sum, n) = nearest.fold((0.0, 0u32), |(sum, n), near| (sum + f64::from(near.cosine), n + 1));
    (n > 0).then(|| sum / f64::from(n))
}

#[cfg(test)]
mod tests {
    use super::super::super::merge::tests::{Lane, merged, merged_with};
    use super::*;

    /// Residents 0 to 4 with keys of two elements, 1 and 3 lost.
    fn head(keys: [[f32; 2]; 5]) -> Lane {
        let keys: Vec<f32> = keys.concat();
        let values = keys.iter().map(|x| x + 1.0).collect();
        Lane::new(2, keys, values, &[1, 3])
    }

    #[test]
    fn the_like_are_averaged_and_the_others_lost() {
        // Victim 1 has the direction of 0; victim 3 is at 45 degrees to both 0 and 2.
        let one = head([[2.0, 0.0], [4.0, 0.0], [0.0, 3.0], [1.0, 1.0], [-1.0, 0.0]]);
        let (merges, rows) = merged("d2o", &[one], 0);
        let cosine = 0.5f32.sqrt();
        let mean = f64::midpoint(1.0, f64::from(cosine)) as f32;
        assert!((merges[0].threshold.unwrap() - mean).abs() < 1e-6);
        assert_eq!(merges[0].arcs, [MergeArc { from: 1, into: 0, targets: 1, weight: 1.0 }]);
        // (2 + 1 * 4) / 2, and (3 + 5) / 2 for the values.
        assert_eq!(rows[0].keys, [(0, vec![3.0, 0.0])]);
        assert_eq!(rows[0].values, [(0, vec![4.0, 1.0])]);
    }

    #[test]
    fn a_target_of_two_is_the_mean_of_three() {
        let one = head([[2.0, 0.0], [4.0, 0.0], [0.0, 1.0], [6.0, 0.0], [0.0, 2.0]]);
        let (merges, rows) = merged("d2o", &[one], 0);
        assert_eq!(merges[0].arcs.len(), 2);
        assert_eq!(rows[0].keys, [(0, vec![4.0, 0.0])]);
    }

    #[test]
    fn the_heads_mean_decides_and_the_threshold_follows() {
        let sure = head([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0], [1.0, 1.0]]);
        let odd = head([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0], [0.0, 0.0]]);
        // Largest cosines: 1 and 1 in the first head; 0 (with the zero key) and 0 in the second. All means are 0.5.
        let mut memory = Memory::default();
        let heads = [sure, odd];
        let (merges, _) = merged_with("d2o:alpha=0.5,beta=0.25", &heads, 0, &mut memory);
        assert_eq!(merges.iter().map(|m| m.arcs.len()).collect::<Vec<_>>(), [2, 0]);
        assert_eq!(memory.threshold, Some(0.5));
        let (merges, _) = merged_with("d2o:alpha=0.5,beta=0.25", &heads, 0, &mut memory);
        assert_eq!(merges[0].threshold, Some(0.375));
        assert_eq!(memory.threshold, Some(0.375));
    }

    #[test]
    fn where_nothing_stays_nothing_is_merged() {
        let all = Lane::new(2, vec![1.0; 4], vec![1.0; 4], &[0, 1]);
        let (merges, rows) = merged("d2o", &[all], 0);
        assert!(merges[0].arcs.is_empty() && merges[0].threshold.is_none() && rows[0].keys.is_empty());
    }
}
