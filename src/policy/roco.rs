//! RoCo: robust cache omission. Tokens of steady, low attention go; those of changing attention are spared.
//!
//! Source: Ren and Zhu, "On the Efficacy of Eviction Policy for Key-Value Constrained Generative Language Model
//! Inference", arXiv 2402.06262; rule read in the authors' code (DRSY/EasyKV). Per token, mean and standard deviation of
//! the attention it received. The `recent` share of the budget says how many of the highest deviation are spared; of the
//! others, the last `newest` tokens aside, the one of smallest mean is lost.
//!
//! Deviations:
//! - Where one decision has to lose many tokens (the prompt), those of highest deviation are spared once and the
//!   smallest means of the others are lost together; the source works in strides.
//! - The source's decode mode never evicts the prompt and overrides `recent` with 0.3; here it holds all the time.
//! - Per KV head, on the mean over the query heads that share it, as the source.

use super::inputs::{HeadInputs, Moment};
use super::param::{self, Param};
use super::registry::{Build, Entry, Evidence, Granularity, Source};
use super::rule::{Cut, PerHead};
use super::select::{Best, keys};
use super::{Needs, Verdict};
use crate::event::{Head, Reason};

pub(super) const ENTRY: Entry = Entry {
    name: "roco",
    title: "RoCo",
    doc: "loses tokens of low mean attention, and spares those whose attention changes most",
    source: Source {
        paper: "On the Efficacy of Eviction Policy for Key-Value Constrained Generative Language Model Inference",
        arxiv: "2402.06262",
        at: "github.com/DRSY/EasyKV",
        evidence: Evidence::Source,
    },
    source_defaults: "recent 0.1 (0.3 while decoding), last 10 tokens protected",
    acts: "at the end of the prompt (or after each chunk of it: when=chunk), then after every token",
    granularity: Granularity::Head,
    params: &[
        Param::budget("slots kept per head"),
        Param::real("recent", (0.0, 1.0), 0.1, "share of the budget spared for changing attention")
            .steps(0.05, 0.25)
            .live(),
        Param::int("newest", (0, 65_536), 10, "newest tokens that are always kept").steps(1.0, 8.0).live(),
        Param::when(param::PROMPT),
    ],
    deviations: &[
        "the prompt is cut at once; the source works in strides",
        "the prompt can be evicted while decoding, and `recent` stays what it is",
    ],
    build: Build::Evict(|part| {
        PerHead::rule(part, RoCo { recent: part.real("recent"), newest: part.int("newest") })
    }),
};

#[derive(Debug)]
struct RoCo {
    recent: f64,
    newest: u32,
}

impl Cut for RoCo {
    const FIXED: &[&str] = &["newest"];

    fn needs(&self) -> Needs {
        Needs { sum: true, squares: true, count: true, ..Needs::NONE }
    }

    fn cut(&self, _: &Moment, h: Head, head: &HeadInputs<'_>, slots: u32) -> Option<Verdict> {
        let (n, budget) = (head.positions.len(), slots as usize);
        let lose = n - budget;
        let means = head.each(|p| head.acc.mean(p));
        let deviations: Vec<f32> =
            head.positions.iter().zip(&means).map(|(&p, &mean)| deviation(head, p, mean)).collect();
        // Everyone but the newest; if those alone are above the budget, its newest part.
        let candidates = n - (self.newest as usize).min(budget);
        let spared = (self.recent * budget as f64) as usize + self.newest as usize;
        let open = (n - 1).saturating_sub(spared).max(lose).min(candidates);
        let changing = keys(&deviations[..candidates]);
        let spared = Best::of(&changing, candidates - open);
        let steady: Vec<usize> = (0..candidates).filter(|&i| !spared.has(i, changing[i])).collect();
        let means_of_steady: Vec<f32> = steady.iter().map(|&i| means[i]).collect();
        let ranks = keys(&means_of_steady);
        let best = Best::of(&ranks, open - lose);
        let mut keep = vec![true; n];
        for (i, (&at, &rank)) in steady.iter().zip(&ranks).enumerate() {
            keep[at] = best.has(i, rank);
        }
        let cutoff = best.lowest(&ranks);
        Verdict::of_kept(h, Reason::LowScore, head.positions, &keep)
            .map(|verdict| verdict.with_scores(head.positions, &means, cutoff))
    }
}

/// Standard deviation of the attention that a token received.
fn deviation(head: &HeadInputs<'_>, p: u32, mean: f32) -> f32 {
    let square = head.acc.squares(p) / head.acc.count(p).max(1) as f32;
    (square - mean * mean).max(0.0).sqrt()
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Layer, kept};

    /// Six queries. Token 1 is steady and low, token 2 low but in bursts, 0 and 3 high.
    fn layer() -> Layer {
        Layer::of_attention(&[vec![
            vec![1.0],
            vec![0.9, 0.1],
            vec![0.9, 0.1, 0.0],
            vec![0.4, 0.1, 0.0, 0.5],
            vec![0.1, 0.1, 0.4, 0.4, 0.0],
            vec![0.5, 0.1, 0.0, 0.4, 0.0, 0.0],
        ]])
    }

    #[test]
    fn the_steady_and_low_go_and_the_changing_are_spared() {
        // Means: 0.63, 0.1, 0.1, 0.43, 0, 0. Deviations: 0.33, 0, 0.17, 0.05, 0, 0.
        // One to lose; token 5 is newest; spared is the one of highest deviation beyond it.
        assert_eq!(kept("roco:budget=5,recent=0.2,newest=1", &layer()), [[0, 1, 2, 3, 5]]);
        // Two to lose of 4, 1 and 3 (0 and 2 are spared): 4 and 1.
        assert_eq!(kept("roco:budget=4,recent=0.25,newest=1", &layer()), [[0, 2, 3, 5]]);
        // The whole budget is the newest.
        assert_eq!(kept("roco:budget=2,newest=1,recent=0", &layer())[0].len(), 2);
    }
}
