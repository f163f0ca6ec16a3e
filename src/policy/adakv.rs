//! AdaKV: the heads of a layer share its budget; a wrapper over any rule that scores per head.
//!
//! Source: Feng et al., "Ada-KV: Optimizing KV Cache Eviction by Adaptive Budget Allocation for Efficient LLM
//! Inference", arXiv 2407.11550; rule read in NVIDIA/kvpress (AdaKVPress). With a budget of n slots per head, every
//! head is sure of its int(n × floor) highest scores; of all others in the layer the lowest are lost until
//! heads × n are left. So a head whose attention is spread wide keeps more than one whose attention is sharp.
//!
//! Deviations:
//! - What the scoring rule protects (its window, its sinks) is sure too and counts into the floor; kvpress gives such
//!   tokens the highest score, which comes to the same wherever the floor is not below them.
//! - The authors' own code rounds head capacities; kvpress and this do not.

use std::cmp::{Ordering, Reverse};

use super::Bound;
use super::inputs::HeadInputs;
use super::param::Param;
use super::plan::Plan;
use super::registry::{Build, Entry, Evidence, Granularity, Source};
use super::rule::{Wrap, Wrapped};
use super::select::{Best, Protected, keys, threshold};

pub(super) const ENTRY: Entry = Entry {
    name: "adakv",
    title: "AdaKV",
    doc: "on top of a rule that scores per head: the heads of a layer share its budget, the lowest scores of all go",
    source: Source {
        paper: "Ada-KV: Optimizing KV Cache Eviction by Adaptive Budget Allocation for Efficient LLM Inference",
        arxiv: "2407.11550",
        at: "github.com/NVIDIA/kvpress, AdaKVPress",
        evidence: Evidence::Source,
    },
    source_defaults: "floor 0.2 in kvpress and in the authors' script, 0.5 in their function",
    acts: "with the rule it wraps",
    granularity: Granularity::Head,
    params: &[Param::real(
        "adakv.floor",
        (0.0, 1.0),
        0.2,
        "share of its own budget that every head is sure of",
    )
    .steps(0.05, 0.2)
    .live()
    .headline()],
    deviations: &["what the rule protects is sure too, and counts into the floor"],
    build: Build::Wrap {
        build: |part, rule| Wrapped::rule(rule, AdaKv { floor: part.real("adakv.floor") }),
        fits: |base| match base.granularity() {
            Granularity::Head => Ok(()),
            _ => Err(
                "adakv shares a layer's budget over its heads, and this rule decides for the whole layer: \
                      use by=head where it has it, or leave adakv out",
            ),
        },
    },
};

#[derive(Debug)]
struct AdaKv {
    floor: f64,
}

impl Wrap for AdaKv {
    fn bound(&self, Bound { per_layer, .. }: Bound, _: u32) -> Bound {
        Bound { per_head: per_layer.min(u32::MAX.into()) as u32, per_layer }
    }

    fn change(&self, plan: Plan) -> Plan {
        Plan { floor: Some(self.floor), ..plan }
    }
}

/// Slots of each head, `heads × budget` in all (or what is resident, if that is less). Within a head the highest
/// scores are taken in any case, so the split is all there is to decide.
pub(super) fn split(
    budget: u32,
    floor: f64,
    protected: Protected,
    heads: &[HeadInputs<'_>],
    scores: &[Vec<f32>],
) -> Vec<u32> {
    let sure = (f64::from(budget) * floor) as usize;
    let mut slots = Vec::with_capacity(heads.len());
    // What competes beyond a head's sure part, head by head.
    let (mut open, mut whose) = (Vec::new(), Vec::new());
    for (h, (head, scores)) in heads.iter().zip(scores).enumerate() {
        let candidates = protected.candidates(head.positions, budget);
        let fixed = head.positions.len() - candidates.len();
        let keys = keys(&scores[candidates.clone()]);
        let taken = sure.saturating_sub(fixed).min(keys.len());
        let surest = Best::of(&keys, taken);
        slots.push((fixed + taken) as u32);
        for (i, (&key, &position)) in keys.iter().zip(&head.positions[candidates]).enumerate() {
            if !surest.has(i, key) {
                open.push(key);
                whose.push((position, Reverse(h)));
            }
        }
    }
    let whole = u64::from(budget) * heads.len() as u64;
    let taken: u64 = slots.iter().map(|&n| u64::from(n)).sum();
    let places = (whole.saturating_sub(taken) as usize).min(open.len());
    if places > 0 {
        let lowest = threshold(&open, places);
        let mut left = places;
        let mut equal = Vec::new();
        for (&key, &of) in open.iter().zip(&whose) {
            match key.cmp(&lowest) {
                Ordering::Greater => {
                    slots[of.1.0] += 1;
                    left -= 1;
                }
                Ordering::Equal => equal.push(of),
                Ordering::Less => {}
            }
        }
        // Ties: the later position stays, of equal positions that of the first head.
        equal.sort_unstable_by(|a, b| b.cmp(a));
        for &(_, Reverse(h)) in &equal[..left] {
            slots[h] += 1;
        }
    }
    slots
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::super::Accumulators;
    use super::super::select::better;
    use super::super::testing::{Layer, kept};
    use super::*;

    /// Two heads, one sharp and one flat, ten tokens.
    fn layer() -> Layer {
        let mut sharp = vec![0.001; 10];
        (sharp[2], sharp[7]) = (0.5, 0.4);
        let flat = vec![0.09, 0.11, 0.10, 0.12, 0.08, 0.13, 0.07, 0.14, 0.06, 0.10];
        Layer::of_last_rows(&[sharp, flat])
    }

    #[test]
    fn the_flat_head_keeps_more_than_the_sharp_one() {
        let kept = kept("h2o:budget=4,recent=0+adakv:floor=0.5", &layer());
        assert_eq!(kept[0], [2, 7]);
        assert_eq!(kept[1], [1, 2, 3, 5, 7, 9]);
    }

    proptest! {
        /// Scores of few values, so that ties are everywhere.
        #[test]
        fn the_split_is_that_of_sorting_everything(
            rows in vec(vec(0..4u8, 12), 1..5),
            (budget, sinks, recent) in (1..14u32, 0..4u32, 0..4u32),
            floor in 0.0..1.0,
        ) {
            let scores: Vec<Vec<f32>> = rows.iter().map(|row| row.iter().map(|&s| s.into()).collect()).collect();
            let positions: Vec<u32> = (0..12).map(|i| 3 * i).collect();
            let acc = Accumulators::default();
            let heads = std::vec::from_elem(HeadInputs::new(&positions, &acc), rows.len());
            let protected = Protected { sinks, recent };
            let candidates = protected.candidates(&positions, budget);
            let fixed = positions.len() - candidates.len();
            let mut sure: Vec<u32> = Vec::new();
            let mut open = Vec::new();
            for (h, scores) in scores.iter().enumerate() {
                let mut ranked: Vec<usize> = candidates.clone().collect();
                ranked.sort_by(|&a, &b| better(scores, a, b));
                let taken = ((f64::from(budget) * floor) as usize).saturating_sub(fixed).min(ranked.len());
                sure.push((fixed + taken) as u32);
                open.extend(ranked[taken..].iter().map(|&i| (scores[i] as u8, positions[i], Reverse(h))));
            }
            open.sort_by(|a, b| b.cmp(a));
            let places = (budget as usize * rows.len()).saturating_sub(sure.iter().sum::<u32>() as usize);
            open.iter().take(places).for_each(|&(_, _, Reverse(h))| sure[h] += 1);
            prop_assert_eq!(split(budget, floor, protected, &heads, &scores), sure);
        }
    }

    #[test]
    fn a_whole_floor_is_the_rule_alone() {
        let layer = layer();
        assert_eq!(
            kept("h2o:budget=4,recent=0+adakv:floor=1", &layer),
            kept("h2o:budget=4,recent=0", &layer)
        );
    }

    #[test]
    fn without_a_floor_a_head_may_keep_next_to_nothing() {
        let layer = Layer::of_last_rows(&[vec![0.0; 6], vec![1.0; 6]]);
        let kept = kept("h2o:budget=3,recent=0+adakv:floor=0", &layer);
        assert_eq!((kept[0].len(), kept[1].len()), (0, 6));
    }

    #[test]
    fn the_protected_stay_in_every_head() {
        let layer = Layer::of_last_rows(&[vec![0.0; 6], vec![1.0; 6]]);
        let kept = kept("h2o:budget=3,recent=0.34+adakv:floor=0", &layer);
        assert_eq!(kept[0], [5]);
        assert_eq!(kept[1], [1, 2, 3, 4, 5]);
    }
}
