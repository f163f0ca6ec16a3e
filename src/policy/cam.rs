//! CaM: the value of a token that leaves goes into the values of the next tokens that stay, by chance.
//!
//! Source: Zhang et al., "CaM: Cache Merging for Memory-efficient LLMs Inference", ICML 2024 (OpenReview LCTmppB165);
//! rule read in the authors' streaming code (zyxxmu/cam) and in NVIDIA/kvpress (CAMPress). When token v is lost, its
//! window is the next M tokens that stay; with p = clamp(A[v] / mean of A over the window, 0, 1), A being the attention
//! received so far, a coin is tossed per KV head: on heads V[v]/M is added to the V of each of them, else V[v] is lost.
//! K[v] is lost in any case. Where fewer than M tokens stay behind v, M is their number (kvpress). A quotient that is no
//! number counts as 0.
//!
//! Keys are not touched, so it makes no difference whether they are kept before or after RoPE.
//!
//! Deviations:
//! - Every victim of every decision is tried, those at the end of the prompt too. The authors lose one token per step;
//!   kvpress acts on what is generated alone, and tries as many of the best victims as there were steps since it acted.
//! - A is summed from the first token on (as the authors' code; kvpress starts with the first generated one). Under
//!   grouped-query attention it is the mean over the query heads that share a KV head (kvpress's too).
//! - A head's own victims and window count; kvpress has one set of victims for all heads of a layer.
//! - The coin comes from the run's seed and its place, so a run can be repeated.

use std::sync::Arc;

use super::Needs;
use super::inputs::Moment;
use super::merge::{Entering, HeadMerge, Memory, MergeRule, Parting, VictimMerge};
use super::noise::{self, Use};
use super::param::Param;
use super::registry::{Build, Entry, Evidence, Granularity, Source};
use crate::event::{Head, MergeArc};

pub(super) const ENTRY: Entry = Entry {
    name: "cam",
    title: "CaM",
    doc: "the V row of a victim is spread over the next M tokens that stay, by chance in proportion to its attention",
    source: Source {
        paper: "CaM: Cache Merging for Memory-efficient LLMs Inference",
        arxiv: "",
        at: "OpenReview LCTmppB165; github.com/zyxxmu/cam, github.com/NVIDIA/kvpress, CAMPress",
        evidence: Evidence::Source,
    },
    source_defaults: "M 32 in kvpress and in the evaluation, 16 in the streaming variant",
    acts: "with every decision of the policy it stands behind",
    granularity: Granularity::Head,
    params: &[Param::int("m", (1, 1024), 32, "kept tokens behind a victim that its V row is spread over")
        .steps(1.0, 8.0)
        .live()
        .headline()],
    deviations: &[
        "tries every victim, at the end of the prompt too; kvpress acts on generated tokens and tries some",
        "attention is summed from the first token on, mean over the query heads that share a KV head",
        "each KV head has its own victims and window",
        "a V row whose home is the host is altered there: nothing crosses the link for it",
    ],
    build: Build::Merge(|part| MergeRule::Victims(Arc::new(Cam { m: part.int("m") }))),
};

#[derive(Debug)]
struct Cam {
    m: u32,
}

impl VictimMerge for Cam {
    fn needs(&self) -> Needs {
        Needs { sum: true, values: true, ..Needs::NONE }
    }

    fn entering(&self) -> Entering {
        Entering::Added
    }

    fn keys(&self) -> bool {
        false
    }

    fn merge(&self, moment: &Moment, heads: &[Parting<'_>], _: &mut Memory) -> Vec<HeadMerge> {
        let heads = heads.iter().enumerate().filter(|(_, parting)| parting.lost.contains(&true));
        heads
            .map(|(h, parting)| HeadMerge {
                head: h as Head,
                threshold: None,
                arcs: self.arcs(moment, h as Head, parting),
            })
            .collect()
    }
}

impl Cam {
    fn arcs(&self, moment: &Moment, head: Head, parting: &Parting<'_>) -> Vec<MergeArc> {
        let positions = parting.head.positions;
        let kept = parting.kept();
        let attention = |i: usize| f64::from(parting.head.acc.sum(positions[i]));
        let arc = |v: usize| {
            let behind = &kept[kept.partition_point(|&i| i < v)..];
            let window = &behind[..behind.len().min(self.m as usize)];
            let &first = window.first()?;
            let mean = window.iter().map(|&i| attention(i)).sum::<f64>() / window.len() as f64;
            let place = [Use::CamCoin as u64, moment.layer.into(), head.into(), u64::from(positions[v])];
            (noise::uniform(moment.seed, place) < probability(attention(v), mean)).then(|| MergeArc {
                from: positions[v],
                into: positions[first],
                targets: window.len() as u32,
                weight: 1.0 / window.len() as f32,
            })
        };
        parting.victims().filter_map(arc).collect()
    }
}

/// Chance that a victim is merged, from its attention and the mean of its window's.
fn probability(own: f64, mean: f64) -> f64 {
    let quotient = own / mean;
    if quotient.is_nan() { 0.0 } else { quotient.clamp(0.0, 1.0) }
}

#[cfg(test)]
mod tests {
    use super::super::merge::tests::{Lane, merged};
    use super::*;

    #[test]
    fn the_chance_is_the_share_of_the_windows_mean() {
        assert_eq!(probability(1.0, 4.0), 0.25);
        assert_eq!([probability(5.0, 4.0), probability(1.0, 0.0)], [1.0, 1.0]);
        assert_eq!([probability(0.0, 0.0), probability(f64::NAN, 1.0)], [0.0, 0.0]);
    }

    /// Victims 1 and 4 of six tokens; the attention of each.
    fn head(attention: [f32; 6]) -> Lane {
        let values = (0..6).flat_map(|i| [i as f32, 10.0 * i as f32]).collect();
        Lane::new(2, Vec::new(), values, &[1, 4]).with_attention(&attention)
    }

    #[test]
    fn a_sure_victim_is_spread_over_the_next_kept() {
        // Victim 1: its window is 2 and 3; victim 4: only 5 stays behind it.
        let (merges, rows) = merged("cam:m=2", &[head([0.0, 9.0, 1.0, 1.0, 9.0, 1.0])], 0);
        let arcs = [(1, 2, 2, 0.5), (4, 5, 1, 1.0)].map(MergeArc::from);
        assert_eq!(merges[0].arcs, arcs);
        assert_eq!(rows[0].values, [(2, vec![2.5, 25.0]), (3, vec![3.5, 35.0]), (5, vec![9.0, 90.0])]);
        assert!(rows[0].keys.is_empty());
    }

    #[test]
    fn a_victim_that_nobody_attended_to_is_lost() {
        let (merges, rows) = merged("cam:m=2", &[head([0.0, 0.0, 1.0, 1.0, 0.0, 1.0])], 0);
        assert!(merges[0].arcs.is_empty() && rows[0].values.is_empty());
    }

    #[test]
    fn the_coin_is_fair_and_follows_the_seed() {
        let even = head([0.0, 0.5, 1.0, 1.0, 0.5, 1.0]);
        let tosses: Vec<Vec<_>> =
            (0..400).map(|seed| merged("cam:m=2", std::slice::from_ref(&even), seed).0).collect();
        let heads: usize = tosses.iter().map(|m| m[0].arcs.len()).sum();
        assert!((330..470).contains(&heads), "{heads} of 800");
        assert_eq!(merged("cam:m=2", std::slice::from_ref(&even), 7).0, tosses[7]);
    }
}
