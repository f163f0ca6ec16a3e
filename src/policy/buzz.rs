//! BUZZ: a beehive of samples. What leaves the window is cut into segments, and the best token of each stays.
//!
//! Source: Zhao et al., "BUZZ: Beehive-structured Sparse KV Cache with Segmented Heavy Hitters for Efficient LLM
//! Inference", arXiv 2410.23079; rule read in the authors' code. The cache is [sinks | old samples | fresh | window].
//! When old and fresh together exceed a threshold, old samples are thinned (one in (stride + 1) / 2 stays) and fresh
//! tokens are cut into segments of `stride`, of which each head keeps the one of highest cumulative attention.
//!
//! Deviations:
//! - One budget: `recent` of what it leaves beside the sinks is the window, the rest the threshold; the source states
//!   both. Its 160 and 400 are `budget=564` here.
//! - Rules keep nothing between decisions, so fresh tokens are the last run of consecutive positions before the
//!   window. An old sample right before them is taken as fresh.
//! - Where one pass does not get a long prompt under the threshold, samples are thinned again until it is.
//! - The source resets the scores of samples; samples are thinned by place here as there, so nothing depends on it.

use super::inputs::{HeadInputs, Moment};
use super::param::{self, Param};
use super::registry::{Build, Entry, Evidence, Granularity, Source};
use super::rule::{Cut, PerHead};
use super::select::{Protected, better};
use super::{Needs, Verdict};
use crate::event::{Head, Position, Reason};

pub(super) const ENTRY: Entry = Entry {
    name: "buzz",
    title: "BUZZ",
    doc: "keeps sinks, a window, and of the rest the most attended token of each segment, thinned as they age",
    source: Source {
        paper: "BUZZ: Beehive-structured Sparse KV Cache with Segmented Heavy Hitters for Efficient LLM Inference",
        arxiv: "2410.23079",
        at: "the authors' code",
        evidence: Evidence::Source,
    },
    source_defaults: "4 sinks, window 160, threshold 400, stride 5",
    acts: "at the end of the prompt (or after each chunk of it: when=chunk), then after every token",
    granularity: Granularity::Head,
    params: &[
        Param::budget("most slots per head; a decision leaves less"),
        Param::int("sinks", (0, 65_536), 4, "first tokens that are always kept").steps(1.0, 4.0).live(),
        Param::real("recent", (0.0, 1.0), 0.285, "share of the rest for the window of the last tokens")
            .steps(0.05, 0.25)
            .live(),
        Param::int("stride", (2, 4096), 5, "tokens per segment").steps(1.0, 4.0).live(),
        Param::when(param::PROMPT),
    ],
    deviations: &[
        "one budget for sinks, window and threshold; the source states each",
        "fresh tokens are the last run of consecutive positions before the window",
        "samples of a long prompt are thinned until they fit",
    ],
    build: Build::Evict(|part| {
        PerHead::rule(
            part,
            Buzz {
                sinks: part.int("sinks"),
                recent: part.real("recent"),
                stride: part.int("stride") as usize,
            },
        )
    }),
};

#[derive(Debug)]
struct Buzz {
    sinks: u32,
    recent: f64,
    stride: usize,
}

impl Cut for Buzz {
    const FIXED: &[&str] = &["sinks"];

    fn needs(&self) -> Needs {
        Needs { sum: true, ..Needs::NONE }
    }

    fn cut(&self, _: &Moment, h: Head, head: &HeadInputs<'_>, slots: u32) -> Option<Verdict> {
        Verdict::of_kept(h, Reason::Thinned, head.positions, &self.keep(head, slots))
    }
}

impl Buzz {
    fn keep(&self, head: &HeadInputs<'_>, budget: u32) -> Vec<bool> {
        let positions = head.positions;
        let recent = (self.recent * f64::from(budget.saturating_sub(self.sinks))).round() as u32;
        let middle = Protected { sinks: self.sinks, recent }.candidates(positions, budget);
        let threshold = budget as usize - (positions.len() - middle.len());
        let scores = head.each(|p| head.acc.sum(p));
        let fresh = middle.start + fresh_from(&positions[middle.clone()]);
        let old: Vec<usize> = (middle.start..fresh).collect();
        let fresh: Vec<usize> = (fresh..middle.end).collect();
        let mut samples = thinned(&old, self.stride);
        samples.extend(fresh.chunks(self.stride).map(|segment| {
            let best = segment.iter().copied().min_by(|&a, &b| better(&scores, a, b));
            best.expect("a segment has a token")
        }));
        while samples.len() > threshold {
            samples = if threshold == 0 { Vec::new() } else { thinned(&samples, self.stride.max(3)) };
        }
        let mut keep = vec![true; positions.len()];
        keep[middle].fill(false);
        for i in samples {
            keep[i] = true;
        }
        keep
    }
}

/// Every `(stride + 1) / 2`-th.
fn thinned(samples: &[usize], stride: usize) -> Vec<usize> {
    samples.iter().copied().step_by(stride.div_ceil(2)).collect()
}

/// Index of the first of the last run of consecutive positions.
fn fresh_from(positions: &[Position]) -> usize {
    positions.windows(2).rposition(|pair| pair[0] + 1 != pair[1]).map_or(0, |i| i + 1)
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Layer, kept};
    use super::super::{Accumulators, When, parse_policy};
    use super::*;

    #[test]
    fn each_segment_keeps_its_best() {
        let mut row = vec![0.0; 16];
        (row[3], row[6], row[7], row[11]) = (0.4, 0.1, 0.3, 0.2);
        let layer = Layer::of_last_rows(&[row]);
        // One sink, 11 others by budget 12: a window of round(0.4 * 11) = 4, a threshold of 7 and 11 in the middle.
        // Segments 1-5, 6-10, 11.
        assert_eq!(kept("buzz:budget=12,sinks=1,recent=0.4", &layer), [[0, 3, 7, 11, 12, 13, 14, 15]]);
    }

    #[test]
    fn old_samples_are_thinned_by_place() {
        let positions = [0, 3, 7, 9, 14, 20, 21, 22, 23, 24, 25, 26];
        let policy = parse_policy("buzz:budget=11,sinks=1,recent=0.1").unwrap();
        let mut acc = Accumulators::new(policy.needs());
        acc.observe_decode(&positions, &[0.0, 9.0, 9.0, 9.0, 9.0, 0.1, 0.0, 0.2, 0.0, 0.3, 0.0, 0.0]);
        let mut out = Vec::new();
        let moment =
            Moment { when: When::Token, next_position: 27, ..Layer::of_last_rows(&[vec![0.0; 10]]).moment() };
        policy.decide(&moment, &[HeadInputs::new(&positions, &acc)], &mut out);
        // Old: 3, 7, 9, 14, of which the first of three stays. Fresh: 20-24 and 25. Window: 26.
        assert_eq!(out[0].victims, [7, 9, 20, 21, 22, 23]);
    }

    #[test]
    fn runs_are_found_from_the_end() {
        assert_eq!(fresh_from(&[1, 2, 4, 5, 6]), 2);
        assert_eq!(fresh_from(&[1, 2, 3]), 0);
        assert_eq!(fresh_from(&[]), 0);
    }
}
