//! ExpectedAttention: what queries to come will attend to, judged by the queries that were.
//!
//! Source: Devoto et al., "Expected Attention: KV Cache Compression by Estimating Attention from Future Queries
//! Distribution", arXiv 2510.00636; rule read in NVIDIA/kvpress (ExpectedAttentionPress). Per query head, mean and
//! covariance of the prompt's queries before RoPE are turned by the rotation averaged over the next `future`
//! positions; a key's expected logit is `mu·k / sqrt(d) + k·Sigma·k / 2d`. Softmax over the tokens, mean over the query
//! heads that share the KV head, plus `epsilon`, times the norm of the value. The first `sinks` tokens stay, and their
//! queries do not count.
//!
//! Deviations: none known; `by=layer` and `by=page` are ours.

use super::inputs::{HeadInputs, Moment};
use super::knorm::norm;
use super::param::Param;
use super::registry::{Build, Entry, Evidence, Granularity, Source};
use super::rule::{Score, Scored};
use super::select::Protected;
use super::{Needs, QueryMoments};
use crate::event::Head;

pub(super) const ENTRY: Entry = Entry {
    name: "expected",
    title: "ExpectedAttention",
    doc: "keeps the tokens that queries to come are expected to attend to, by mean and covariance of those that were",
    source: Source {
        paper: "Expected Attention: KV Cache Compression by Estimating Attention from Future Queries Distribution",
        arxiv: "2510.00636",
        at: "github.com/NVIDIA/kvpress, ExpectedAttentionPress",
        evidence: Evidence::Source,
    },
    source_defaults: "512 future positions, 4 sinks, covariance and value norm on, epsilon 0",
    acts: "at the end of the prompt; what is generated is added",
    granularity: Granularity::Head,
    params: &[
        Param::budget("slots kept per head at the end of the prompt, sinks included"),
        Param::int("sinks", (0, 65_536), 4, "first tokens that are always kept").steps(1.0, 4.0),
        Param::int("future", (1, 65_536), 512, "positions ahead over which the rotation is averaged")
            .steps(16.0, 128.0),
        Param::switch("covariance", true, "whether the spread of the queries counts, not their mean alone"),
        Param::switch("vnorm", true, "whether scores are scaled by the norms of the values"),
        Param::real("epsilon", (0.0, 1.0), 0.0, "added to every expected probability before the scaling")
            .steps(0.01, 0.1),
        Param::by("head"),
    ],
    deviations: &["by=layer and by=page are ours"],
    build: Build::Score(|part| {
        Scored::rule(
            part,
            Expected {
                sinks: part.int("sinks"),
                future: part.int("future"),
                covariance: part.switch("covariance"),
                vnorm: part.switch("vnorm"),
                epsilon: part.real("epsilon"),
            },
        )
    }),
};

#[derive(Debug)]
struct Expected {
    sinks: u32,
    future: u32,
    covariance: bool,
    vnorm: bool,
    epsilon: f64,
}

impl Score for Expected {
    const FIXED: &[&str] = &["sinks"];

    fn needs(&self) -> Needs {
        Needs { keys: true, values: self.vnorm, queries: Some(self.sinks), ..Needs::NONE }
    }

    fn protected(&self, _: u32) -> Protected {
        Protected { sinks: self.sinks, recent: 0 }
    }

    fn scores(&self, moment: &Moment, _: Head, head: &HeadInputs<'_>) -> Vec<f32> {
        let turn = mean_turn(head.frequencies, moment.next_position, self.future);
        let turn: Vec<_> =
            turn.into_iter().map(|(cos, sin)| (head.amplitude * cos, head.amplitude * sin)).collect();
        let sinks = head.positions.partition_point(|&p| p < self.sinks);
        let mut scores = vec![0.0f64; head.positions.len()];
        for queries in head.queries.iter().filter(|queries| queries.count() > 0) {
            let logits = self.logits(head, queries, &turn);
            let judged = &logits[sinks..];
            let top = judged.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let total: f64 = judged.iter().map(|x| (x - top).exp()).sum();
            for (score, x) in scores[sinks..].iter_mut().zip(judged) {
                *score += (x - top).exp() / total / head.queries.len() as f64;
            }
        }
        if self.vnorm {
            for (score, value) in scores.iter_mut().zip(head.value_rows()) {
                *score = (*score + self.epsilon) * norm(value);
            }
        }
        scores.into_iter().map(|score| score as f32).collect()
    }
}

impl Expected {
    /// Expected logit of every resident under one query head.
    fn logits(&self, head: &HeadInputs<'_>, queries: &QueryMoments, turn: &[(f64, f64)]) -> Vec<f64> {
        let d = head.head_dim();
        let mut mean = queries.mean();
        rotate(&mut mean, turn);
        let covariance = self.covariance.then(|| rotated_covariance(queries, turn));
        let expected = |key: &[f32]| {
            let dot = |row: &[f64]| row.iter().zip(key).map(|(a, &k)| a * f64::from(k)).sum::<f64>();
            let spread = covariance.as_ref().map_or(0.0, |rows| {
                rows.chunks_exact(d).zip(key).map(|(row, &k)| f64::from(k) * dot(row)).sum()
            });
            dot(&mean) / (d as f64).sqrt() + spread / (2.0 * d as f64)
        };
        head.key_rows().map(expected).collect()
    }
}

/// Cosine and sine of each frequency, averaged over the `future` positions from `first` on.
fn mean_turn(frequencies: &[f64], first: u32, future: u32) -> Vec<(f64, f64)> {
    let mean = |of: &dyn Fn(f64) -> f64| {
        (0..future).map(|i| of(f64::from(first + i))).sum::<f64>() / f64::from(future)
    };
    frequencies.iter().map(|f| (mean(&|p| (p * f).cos()), mean(&|p| (p * f).sin()))).collect()
}

/// The rotation applied to a vector; elements beyond the rotated width stay.
fn rotate(row: &mut [f64], turn: &[(f64, f64)]) {
    let half = turn.len();
    for (i, &(cos, sin)) in turn.iter().enumerate() {
        let (a, b) = (row[i], row[i + half]);
        row[i] = a * cos - b * sin;
        row[i + half] = b * cos + a * sin;
    }
}

/// `R Sigma Rᵀ`, `[head_dim][head_dim]`.
fn rotated_covariance(queries: &QueryMoments, turn: &[(f64, f64)]) -> Vec<f64> {
    let mut rows = queries.covariance();
    let d = rows.len().isqrt();
    // Sigma Rᵀ: every row is turned. Then R from the left: every column is, which is every row of the transpose.
    rows.chunks_exact_mut(d).for_each(|row| rotate(row, turn));
    let mut columns: Vec<f64> = (0..d * d).map(|i| rows[i % d * d + i / d]).collect();
    columns.chunks_exact_mut(d).for_each(|row| rotate(row, turn));
    columns
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Layer, kept};
    use super::*;

    #[test]
    fn turning_is_linear_and_its_mean_shrinks() {
        let turn = mean_turn(&[0.0, 1.0], 10, 512);
        assert_eq!(turn[0], (1.0, 0.0));
        assert!(turn[1].0.abs() < 0.01 && turn[1].1.abs() < 0.01);
        let mut row = [1.0, 2.0, 3.0, 4.0];
        rotate(&mut row, &[(0.0, 1.0), (1.0, 0.0)]);
        assert_eq!(row, [-3.0, 2.0, 1.0, 4.0]);
    }

    #[test]
    fn a_covariance_turns_from_both_sides() {
        let mut queries = QueryMoments::default();
        for query in [[2.0, 0.0], [-2.0, 0.0], [0.0, 1.0], [0.0, -1.0]] {
            queries.observe(&query);
        }
        // A quarter turn swaps the axes.
        let rows = rotated_covariance(&queries, &[(0.0, 1.0)]);
        for (value, expected) in rows.into_iter().zip([0.5, 0.0, 0.0, 2.0]) {
            assert!((value - expected).abs() < 1e-12, "{value} {expected}");
        }
    }

    #[test]
    fn keys_along_the_queries_stay_and_so_do_sinks() {
        // No rotation to speak of: one pair of elements at frequency 0. Queries point along the first axis.
        let keys = vec![0.0, 0.0, 1.0, 0.0, 0.0, 1.0, 3.0, 0.0, -3.0, 0.0, 2.0, 0.0];
        let queries: Vec<f32> = (0..6).flat_map(|_| [1.0, 0.0]).collect();
        let layer =
            Layer::of_keys(2, &[keys]).with_values(&[vec![1.0; 12]]).with_queries(&[queries], vec![0.0]);
        assert_eq!(kept("expected:budget=3,sinks=1", &layer), [[0, 3, 5]]);
        assert_eq!(kept("expected:budget=2,sinks=0", &layer), [[3, 5]]);
        // A long value outweighs.
        let mut values = vec![1.0; 12];
        values[4] = 1000.0;
        let layer = layer.with_values(&[values]);
        assert_eq!(kept("expected:budget=2,sinks=0", &layer), [[2, 3]]);
        assert_eq!(kept("expected:budget=2,sinks=0,vnorm=false", &layer), [[3, 5]]);
    }
}
