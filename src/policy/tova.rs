//! TOVA: the cache as a bounded multi-state RNN; the newest query alone judges.
//!
//! Source: Oren et al., "Transformers are Multi-State RNNs", arXiv 2401.06104; rule read in the authors' code
//! (schwartz-lab-NLP/TOVA). After attention, a token's score is the mean over all query heads of the layer of the
//! newest query's attention on it. When more than the budget are resident, the highest stay; one set per layer for all
//! heads. Nothing is protected: sinks and the new token itself compete too
//! (NVIDIA/kvpress spares the newest).
//!
//! Deviations:
//! - The budget may be a share of the prompt; the source states slots (512 in its readme).
//! - With `when=chunk` the rule also acts inside the prompt, which the source feeds in one forward.

use std::sync::Arc;

use super::accumulate::Needs;
use super::param::{self, Budget, Param};
use super::registry::{Build, Entry, Evidence, Granularity, Source};
use super::select::{Protected, select};
use super::{EvictPolicy, HeadInputs, Moment, Verdict, When};

pub(super) const ENTRY: Entry = Entry {
    name: "tova",
    title: "TOVA",
    doc: "keeps the tokens to which the newest query attends most, one set per layer; nothing is protected",
    source: Source {
        paper: "Transformers are Multi-State RNNs",
        arxiv: "2401.06104",
        at: "github.com/schwartz-lab-NLP/TOVA",
        evidence: Evidence::Source,
    },
    source_defaults: "512 slots in the readme",
    needs: Needs { last_row: true, ..Needs::NONE },
    acts: "at the end of the prompt (or after each chunk of it: when=chunk), then after every token",
    granularity: Granularity::Layer,
    params: &[Param::budget("slots kept per layer, the same for all its heads"), Param::when(param::PROMPT)],
    deviations: &[
        "the budget may be a share of the prompt; the source states slots",
        "when=chunk also acts inside the prompt, which the source feeds in one forward",
    ],
    build: Build::Evict(|spec| {
        Arc::new(Tova {
            budget: spec.budget().expect("declared above"),
            in_prompt: spec.choice("when") == param::CHUNK,
        })
    }),
};

#[derive(Debug)]
struct Tova {
    budget: Budget,
    in_prompt: bool,
}

impl EvictPolicy for Tova {
    fn acts(&self, when: When) -> bool {
        when != When::Chunk || self.in_prompt
    }

    fn decide(&self, moment: &Moment, heads: &[HeadInputs<'_>], out: &mut Vec<Verdict>) {
        let (Some(budget), Some(first)) = (self.budget.slots(moment.prompt_len), heads.first()) else {
            return;
        };
        // Groups are equally large, so the mean of their means is the mean over all query heads of the layer.
        let mean = |p| heads.iter().map(|head| head.acc.last_row(p)).sum::<f32>() / heads.len() as f32;
        out.extend(select(None, first.positions, budget, Protected::default(), mean));
    }
}
