//! KeyDiff: keys unlike the others matter.
//!
//! Source: Park et al., "KeyDiff: Key Similarity-Based KV Cache Eviction for Long-Context LLM Inference in
//! Resource-Constrained Environments", arXiv 2504.15364; rule read in NVIDIA/kvpress (KeyDiffPress): a token's score is
//! minus the cosine between its key and the mean of all normalised keys of the KV head; the highest stay.
//!
//! Deviations: kvpress's wrapper works block by block (128); here the rule acts at the end of the prompt, with `decode`
//! after every token too. `by=layer` and `by=page` are ours.

use super::Needs;
use super::inputs::{HeadInputs, Moment};
use super::knorm::{norms, row_sums};
use super::param::Param;
use super::registry::{Build, Entry, Evidence, Granularity, Source};
use super::rule::{Score, Scored};
use crate::event::Head;

/// Norms below this count as this much (`torch.nn.functional.normalize` and `cosine_similarity`).
const NORMALIZE_FLOOR: f64 = 1e-12;
const COSINE_FLOOR: f64 = 1e-8;

pub(super) const ENTRY: Entry = Entry {
    name: "keydiff",
    title: "KeyDiff",
    doc: "keeps the tokens whose keys are least like the mean key; needs no attention",
    source: Source {
        paper: "KeyDiff: Key Similarity-Based KV Cache Eviction for Long-Context LLM Inference in Resource-Constrained Environments",
        arxiv: "2504.15364",
        at: "github.com/NVIDIA/kvpress, KeyDiffPress",
        evidence: Evidence::Source,
    },
    source_defaults: "none: a ratio is given; blocks of 128 in its wrapper",
    acts: "at the end of the prompt; with decode after every token too",
    granularity: Granularity::Head,
    params: &[Param::budget("slots kept per head"), Param::decode(false), Param::by("head")],
    deviations: &["decode, by=layer and by=page are ours; kvpress has a wrapper that works block by block"],
    build: Build::Score(|part| Scored::rule(part, KeyDiff)),
};

#[derive(Debug)]
struct KeyDiff;

impl Score for KeyDiff {
    fn needs(&self) -> Needs {
        Needs { keys: true, ..Needs::NONE }
    }

    fn scores(&self, _: &Moment, _: Head, head: &HeadInputs<'_>) -> Vec<f32> {
        unlikeness(head)
    }
}

/// Minus the cosine to the mean direction, per resident.
fn unlikeness(head: &HeadInputs<'_>) -> Vec<f32> {
    let mut anchor = vec![0.0f64; head.head_dim()];
    let lengths = norms(head.keys, head.head_dim());
    for (key, length) in head.key_rows().zip(&lengths) {
        let length = length.max(NORMALIZE_FLOOR);
        anchor.iter_mut().zip(key).for_each(|(sum, &x)| *sum += f64::from(x) / length);
    }
    for sum in &mut anchor {
        *sum /= head.positions.len() as f64;
    }
    let anchor_length = anchor.iter().map(|x| x * x).sum::<f64>().sqrt().max(COSINE_FLOOR);
    let dots = row_sums(head.keys, head.head_dim(), |i, x| x * anchor[i]);
    let cosines =
        dots.iter().zip(&lengths).map(|(dot, length)| dot / (length.max(COSINE_FLOOR) * anchor_length));
    cosines.map(|cosine| -cosine as f32).collect()
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Layer, kept};

    #[test]
    fn the_odd_directions_stay_whatever_their_length() {
        let keys = vec![1.0, 0.0, 9.0, 0.9, 0.0, 0.01, 2.0, -0.1, -1.0, 1.0];
        let layer = Layer::of_keys(2, &[keys]);
        assert_eq!(kept("keydiff:budget=2", &layer), [[2, 4]]);
        assert_eq!(kept("keydiff:budget=1", &layer), [[4]]);
    }
}
