//! TOVA: the cache as a bounded multi-state RNN; the newest query alone judges.
//!
//! Source: Oren et al., "Transformers are Multi-State RNNs", arXiv 2401.06104; rule read in the authors' code
//! (schwartz-lab-NLP/TOVA). After attention, a token's score is the mean over all query heads of the layer of the
//! newest query's attention on it. When more than the budget are resident, the highest stay; one set per layer for all
//! heads. Nothing is protected: sinks and the new token itself compete too. `variant=kvpress` spares the newest token,
//! as NVIDIA/kvpress does.
//!
//! Deviations:
//! - The budget may be a share of the prompt; the source states slots (512 in its readme).
//! - With `when=chunk` the rule also acts inside the prompt, which the source feeds in one forward.
//! - `by=head` and `by=page` are ours.

use super::Needs;
use super::inputs::{HeadInputs, Moment};
use super::param::{self, Param};
use super::registry::{Build, Entry, Evidence, Granularity, Source};
use super::rule::{Score, Scored};
use super::select::{Protected, RankedBy};
use crate::event::Head;

const KVPRESS: &str = "kvpress";

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
    acts: "at the end of the prompt (or after each chunk of it: when=chunk), then after every token",
    granularity: Granularity::Layer,
    params: &[
        Param::budget("slots kept per layer, the same for all its heads"),
        Param::when(param::PROMPT),
        Param::variant(&["paper", KVPRESS], "the newest token competes too, or is spared"),
        Param::by("layer"),
    ],
    deviations: &[
        "the budget may be a share of the prompt; the source states slots",
        "when=chunk also acts inside the prompt, which the source feeds in one forward",
        "by=head and by=page are ours",
    ],
    build: Build::Score(|part| Scored::rule(part, Tova { spares_newest: part.choice("variant") == KVPRESS })),
};

#[derive(Debug)]
struct Tova {
    spares_newest: bool,
}

impl Score for Tova {
    fn needs(&self) -> Needs {
        Needs { last_row: true, ..Needs::NONE }
    }

    fn protected(&self, _: u32) -> Protected {
        Protected { sinks: 0, recent: u32::from(self.spares_newest) }
    }

    fn ranked_by(&self) -> Option<RankedBy> {
        Some(RankedBy::LastRow)
    }

    // Groups are equally large, so the mean of their means is the mean over all query heads of the layer.
    fn scores(&self, _: &Moment, _: Head, head: &HeadInputs<'_>) -> Vec<f32> {
        head.each(|p| head.acc.last_row(p))
    }
}
