//! StreamingLLM: attention sinks and a sliding window.
//!
//! Source: Xiao et al., "Efficient Streaming Language Models with Attention Sinks", arXiv 2309.17453; rule read in the
//! authors' code (mit-han-lab/streaming-llm): keep the first `sinks` tokens and the last W, evict the middle, all
//! layers and heads alike. Keys are stored before RoPE and rotated by their slot in the cache, so positions restart
//! inside it and a stream of any length stays within the angles the model was trained on.
//!
//! Deviations:
//! - The window is what the budget leaves beside the sinks, W = budget − sinks; the source states W (512 in the class,
//!   2000 in its demo).
//! - The source makes room before a forward, so a new token attends to exactly the budget; here the rule acts after it,
//!   like the others, and a new token attends to one slot more, itself.
//! - The source feeds a prompt in one forward. With `when=chunk` the set that is kept after the prompt is the same (it
//!   depends on positions alone), but tokens of later chunks never attended to what earlier decisions lost, so their K
//!   and V differ; `when=prompt` is the source's order, at the memory of the whole prompt.

use std::sync::Arc;

use super::inputs::{HeadInputs, Moment, When};
use super::param::{self, Param};
use super::registry::{Build, Entry, Evidence, Granularity, Source};
use super::rule::Terms;
use super::select::{Protected, select};
use super::spec::Part;
use super::{EvictPolicy, Rope, SpecError, Verdict};

pub(super) const ENTRY: Entry = Entry {
    name: "streaming",
    title: "StreamingLLM",
    doc: "keeps the first tokens (sinks) and a window of the last; the middle is lost",
    source: Source {
        paper: "Efficient Streaming Language Models with Attention Sinks",
        arxiv: "2309.17453",
        at: "github.com/mit-han-lab/streaming-llm",
        evidence: Evidence::Source,
    },
    source_defaults: "4 sinks; window 512 in the class, 2000 in the demo",
    acts: "after each chunk of the prompt (or at its end: when=prompt), then after every token",
    granularity: Granularity::Layer,
    params: &[
        Param::budget("slots kept, sinks included: the window is budget - sinks"),
        Param::int("sinks", (0, 65_536), 4, "first tokens that are always kept").steps(1.0, 4.0).live(),
        Param::switch(
            "reposition",
            true,
            "rotate keys by their rank in the cache, as the paper; false keeps their true positions",
        ),
        Param::when(param::CHUNK),
    ],
    deviations: &[
        "the window is budget - sinks; the source states the window",
        "acts after a forward, so a new token attends to the budget and itself; the source makes room before",
        "with when=chunk, K and V of later chunks are computed without what earlier decisions lost",
    ],
    build: Build::Evict(|part| Arc::new(Streaming::of(part))),
};

/// Sinks and a window: also the shape of LM-Infinite.
#[derive(Debug)]
pub(super) struct Streaming {
    terms: Terms,
    sinks: u32,
    reposition: bool,
}

impl Streaming {
    /// From an entry that declares the parameters of this one.
    pub(super) fn of(part: &Part) -> Self {
        Self {
            terms: Terms::of(part, &["sinks"]),
            sinks: part.int("sinks"),
            reposition: part.switch("reposition"),
        }
    }
}

impl EvictPolicy for Streaming {
    fn acts(&self, when: When) -> bool {
        self.terms.acts(when)
    }

    fn slots(&self, moment: &Moment) -> Option<u32> {
        self.terms.slots(moment)
    }

    fn decide(&self, moment: &Moment, heads: &[HeadInputs<'_>], out: &mut Vec<Verdict>) {
        let (Some(budget), Some(head)) = (self.slots(moment), heads.first()) else {
            return;
        };
        // The protected take the whole budget, also where sinks were raised after the first tokens had gone: nothing
        // competes, nothing is scored.
        let sinks = head.positions.partition_point(|&p| p < self.sinks) as u32;
        let protected = Protected { sinks: self.sinks, recent: budget.saturating_sub(sinks) };
        out.extend(select(None, head.positions, budget, protected, &[]));
    }

    fn rope(&self) -> Rope {
        if self.reposition { Rope::Pre } else { Rope::Post }
    }

    fn check(&self, prompt_len: u32) -> Result<(), SpecError> {
        self.terms.check(prompt_len)
    }
}
