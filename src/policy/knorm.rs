//! Knorm: keys of small norm matter.
//!
//! Source: Devoto et al., "A Simple and Effective L2 Norm-Based Strategy for KV Cache Compression", arXiv 2406.11430;
//! rule read in NVIDIA/kvpress (KnormPress): the tokens with the smallest key norms stay, per KV head, at the end of the
//! prompt. RoPE turns keys and leaves their norms as they are.
//!
//! Deviations: with `decode` it goes on deciding while tokens are generated; `by=layer` and `by=page` are ours.

use super::Needs;
use super::inputs::{HeadInputs, Moment};
use super::param::Param;
use super::registry::{Build, Entry, Evidence, Granularity, Source};
use super::rule::{Score, Scored};
use crate::event::Head;

pub(super) const ENTRY: Entry = Entry {
    name: "knorm",
    title: "Knorm",
    doc: "keeps the tokens whose keys are shortest; needs no attention",
    source: Source {
        paper: "A Simple and Effective L2 Norm-Based Strategy for KV Cache Compression",
        arxiv: "2406.11430",
        at: "github.com/NVIDIA/kvpress, KnormPress",
        evidence: Evidence::Source,
    },
    source_defaults: "none: a ratio is given",
    acts: "at the end of the prompt; with decode after every token too",
    granularity: Granularity::Head,
    params: &[Param::budget("slots kept per head"), Param::decode(false), Param::by("head")],
    deviations: &["decode, by=layer and by=page are ours"],
    build: Build::Score(|part| Scored::rule(part, Knorm)),
};

#[derive(Debug)]
struct Knorm;

impl Score for Knorm {
    fn needs(&self) -> Needs {
        Needs { keys: true, ..Needs::NONE }
    }

    fn scores(&self, _: &Moment, _: Head, head: &HeadInputs<'_>) -> Vec<f32> {
        norms(head.keys, head.head_dim()).into_iter().map(|length| -length as f32).collect()
    }
}

/// Euclidean length.
pub(super) fn norm(row: &[f32]) -> f64 {
    row.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>().sqrt()
}

/// Euclidean length of every row.
pub(super) fn norms(rows: &[f32], width: usize) -> Vec<f64> {
    row_sums(rows, width, |_, x| x * x).into_iter().map(f64::sqrt).collect()
}

/// Sum of a term of each element and its place, for every row. A sum has to wait for itself, so several rows go on at
/// once; each is added up from its first element on.
pub(super) fn row_sums(rows: &[f32], width: usize, term: impl Fn(usize, f64) -> f64) -> Vec<f64> {
    const AT_ONCE: usize = 8;
    let mut out = Vec::with_capacity(rows.len() / width.max(1));
    for block in rows.chunks(AT_ONCE * width.max(1)) {
        let mut sums = [0.0; AT_ONCE];
        for i in 0..width {
            for (sum, row) in sums.iter_mut().zip(block.chunks_exact(width)) {
                *sum += term(i, f64::from(row[i]));
            }
        }
        out.extend_from_slice(&sums[..block.len() / width.max(1)]);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Layer, kept};
    use super::{norm, norms};

    #[test]
    fn rows_together_have_the_bits_of_each_alone() {
        let rows: Vec<f32> = (0..21 * 5).map(|i| (i * 37 % 101) as f32 / 7.0 - 5.0).collect();
        let alone: Vec<f64> = rows.chunks_exact(5).map(norm).collect();
        assert_eq!(norms(&rows, 5), alone);
        assert_eq!(norms(&[], 0), [0.0; 0]);
    }

    #[test]
    fn the_shortest_keys_stay() {
        let keys = vec![3.0, 4.0, 1.0, 0.0, 0.0, 2.0, 6.0, 8.0];
        let layer = Layer::of_keys(2, &[keys.clone(), keys.into_iter().rev().collect()]);
        assert_eq!(kept("knorm:budget=2", &layer), [[1, 2], [1, 2]]);
        assert_eq!(kept("knorm:budget=3", &layer), [[0, 1, 2], [1, 2, 3]]);
        assert_eq!(kept("knorm:budget=3,by=layer", &layer), [[1, 2, 3], [1, 2, 3]]);
    }
}
