//! H2O: heavy hitters by cumulative attention, and the most recent tokens.
//!
//! Source: Zhang et al., "H2O: Heavy-Hitter Oracle for Efficient Generative Inference of Large Language Models",
//! arXiv 2306.14048; rule read in the authors' code (FMInference/H2O). After each forward every token's score grows by
//! the attention it received. When more than HH + R tokens are resident, the R most recent stay, and among the rest
//! the HH with the largest scores; each head decides for itself, and what is dropped never returns. Scores never
//! decay, so early tokens have an advantage: that is the rule's own.
//!
//! `variant=kvpress` is ObservedAttention of NVIDIA/kvpress: the sum is divided by the number of queries that could see
//! the token, which takes that advantage away (there: no recent tokens, `recent=0`, and the prompt alone).
//!
//! Deviations:
//! - One budget, split: R = round(recent × budget), HH = budget − R. The source states two shares of the prompt (0.1
//!   and 0.1 in its example, so halves as here) or two numbers (4 and 512 in the class).
//! - Heads are KV heads. Under grouped-query attention the score is the mean over the query heads that share one; it
//!   ranks as their sum does. The source sums over the batch too; here a sequence has its own scores.
//! - With `when=chunk` the rule also acts inside the prompt, which the source feeds in one forward.
//! - `by=layer` and `by=page` (scores averaged over the heads) are ours.

use super::Needs;
use super::inputs::{HeadInputs, Moment};
use super::param::{self, Param};
use super::registry::{Build, Entry, Evidence, Granularity, Source};
use super::rule::{Score, Scored};
use super::select::{Protected, RankedBy};
use crate::event::Head;

const KVPRESS: &str = "kvpress";

pub(super) const ENTRY: Entry = Entry {
    name: "h2o",
    title: "H2O",
    doc: "keeps the most recent tokens and, of the rest, those that drew the most attention so far",
    source: Source {
        paper: "H2O: Heavy-Hitter Oracle for Efficient Generative Inference of Large Language Models",
        arxiv: "2306.14048",
        at: "github.com/FMInference/H2O",
        evidence: Evidence::Source,
    },
    source_defaults: "heavy hitters 10% and recent 10% of the prompt in the example; 4 and 512 slots in the class",
    acts: "at the end of the prompt (or after each chunk of it: when=chunk), then after every token",
    granularity: Granularity::Head,
    params: &[
        Param::budget("slots kept per head: heavy hitters and recent tokens together"),
        Param::real("recent", (0.0, 1.0), 0.5, "share of the budget for the most recent tokens")
            .steps(0.05, 0.25)
            .live(),
        Param::when(param::PROMPT),
        Param::variant(
            &["paper", KVPRESS],
            "the sum of the attention, or its mean over the queries that could see the token",
        ),
        Param::by("head"),
    ],
    deviations: &[
        "one budget split by `recent`; the source states heavy hitters and recent tokens apart",
        "decides per KV head, on the mean over the query heads that share it (it ranks as their sum)",
        "each sequence has its own scores; the source sums over the batch",
        "when=chunk also acts inside the prompt, which the source feeds in one forward",
        "by=layer and by=page are ours",
    ],
    build: Build::Score(|part| {
        Scored::rule(part, H2o { recent: part.real("recent"), mean: part.choice("variant") == KVPRESS })
    }),
};

#[derive(Debug)]
struct H2o {
    recent: f64,
    mean: bool,
}

impl Score for H2o {
    fn needs(&self) -> Needs {
        Needs { sum: true, count: self.mean, ..Needs::NONE }
    }

    fn protected(&self, slots: u32) -> Protected {
        Protected::newest_share(self.recent, slots)
    }

    fn ranked_by(&self) -> Option<RankedBy> {
        Some(if self.mean { RankedBy::Mean } else { RankedBy::Sum })
    }

    fn scores(&self, _: &Moment, _: Head, head: &HeadInputs<'_>) -> Vec<f32> {
        if self.mean { head.each(|p| head.acc.mean(p)) } else { head.each(|p| head.acc.sum(p)) }
    }
}
