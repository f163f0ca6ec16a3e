//! Keyformer: a cumulative Gumbel softmax, so that tokens lost earlier do not bend the scores of the rest.
//!
//! Source: Adnan et al., "Keyformer: KV Cache Reduction through Key Tokens Selection for Efficient Generative
//! Inference", arXiv 2403.09054; rule read in the authors' code. Per query, `softmax((x + z) / tau)` over the tokens
//! that are left, with x the attention scores and z Gumbel noise, is added to each token's score; tau grows by `growth`
//! per generated token. The most recent tokens stay, and of the rest those of the highest score. Attention itself uses
//! the plain softmax.
//!
//! Deviations:
//! - One budget, of which `recent` is a share, as in the source (there: 60% of the prompt and 30% of that).
//! - Under grouped-query attention the noise is applied to the mean probability of the group: one score per KV head.
//! - Noise is a function of seed, layer, head, query and token, not of a generator's state.

use super::Needs;
use super::accumulate::Noise;
use super::inputs::{HeadInputs, Moment};
use super::param::{self, Param};
use super::registry::{Build, Entry, Evidence, Granularity, Source};
use super::rule::{Score, Scored};
use super::select::Protected;
use crate::event::Head;

pub(super) const ENTRY: Entry = Entry {
    name: "keyformer",
    title: "Keyformer",
    doc: "keeps the most recent tokens and, of the rest, those of the highest cumulative attention with Gumbel noise",
    source: Source {
        paper: "Keyformer: KV Cache Reduction through Key Tokens Selection for Efficient Generative Inference",
        arxiv: "2403.09054",
        at: "github.com/d-matrix-ai/keyformer-llm",
        evidence: Evidence::Source,
    },
    source_defaults: "60% of the prompt, 30% of that for recent tokens, tau 1.0 and 0.01 more per token",
    acts: "at the end of the prompt (or after each chunk of it: when=chunk), then after every token",
    granularity: Granularity::Head,
    params: &[
        Param::budget("slots kept per head: key tokens and recent tokens together"),
        Param::real("recent", (0.0, 1.0), 0.3, "share of the budget for the most recent tokens")
            .steps(0.05, 0.25)
            .live(),
        Param::real("tau", (0.01, 100.0), 1.0, "temperature in the prompt").steps(0.1, 1.0),
        Param::real("growth", (0.0, 10.0), 0.01, "what every generated token adds to the temperature")
            .steps(0.01, 0.1),
        Param::when(param::PROMPT),
        Param::by("head"),
    ],
    deviations: &[
        "noise is applied to the mean over the query heads that share a KV head",
        "noise is a function of seed, layer, head, query and token; the source draws it in order",
        "by=layer and by=page are ours",
    ],
    build: Build::Score(|part| {
        let noise = Noise { start: part.real("tau"), growth: part.real("growth") };
        Scored::rule(part, Keyformer { recent: part.real("recent"), noise })
    }),
};

#[derive(Debug)]
struct Keyformer {
    recent: f64,
    noise: Noise,
}

impl Score for Keyformer {
    fn needs(&self) -> Needs {
        Needs { noisy: Some(self.noise), ..Needs::NONE }
    }

    fn protected(&self, slots: u32) -> Protected {
        Protected::newest_share(self.recent, slots)
    }

    fn scores(&self, _: &Moment, _: Head, head: &HeadInputs<'_>) -> Vec<f32> {
        head.each(|p| head.acc.noisy(p))
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Layer, kept};

    #[test]
    fn a_cold_softmax_picks_what_the_noise_raises_and_the_recent_stay() {
        let rows: Vec<Vec<f32>> =
            (1..=12).map(|n| (0..n).map(|t| if t == 3 { 0.9 } else { 0.1 / n as f32 }).collect()).collect();
        let layer = Layer::of_attention(&[rows]);
        let kept = kept("keyformer:budget=4,recent=0.5", &layer);
        assert!(kept[0].contains(&3) && kept[0].ends_with(&[10, 11]), "{kept:?}");
    }

    #[test]
    fn another_seed_draws_other_noise() {
        let rows: Vec<Vec<f32>> = (1..=60).map(|n| vec![1.0 / n as f32; n]).collect();
        let layer = Layer::of_attention(&[rows]);
        let text = "keyformer:budget=20,recent=0";
        assert_eq!(kept(text, &layer), kept(text, &layer));
        assert_ne!(kept(text, &layer), kept(text, &layer.clone().with_seed(1)));
    }
}
