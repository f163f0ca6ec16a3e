//! LM-Infinite: a Λ-shaped mask of first and last tokens.
//!
//! Source: Han et al., "LM-Infinite: Zero-Shot Extreme Length Generalization for Large Language Models", arXiv
//! 2308.16137; rule read in the copy that InfLLM's repository keeps. The first n_init tokens and the last n_local stay;
//! beyond n_local the first ones are attended at the one fixed relative distance n_local.
//!
//! Deviations:
//! - Masked tokens are evicted: what the mask hides for good is lost here.
//! - The window is what the budget leaves beside the first tokens; the source states both.
//! - The fixed distance: with `reposition` (the default) keys turn by their rank in the cache, which puts the first
//!   tokens at n_local + (n_init − i) in place of n_local for all of them, and leaves the window's distances as they
//!   are; without it their true distances stay.

use std::sync::Arc;

use super::param::{self, Param};
use super::registry::{Build, Entry, Evidence, Granularity, Source};
use super::streaming::Streaming;

pub(super) const ENTRY: Entry = Entry {
    name: "lm-infinite",
    title: "LM-Infinite",
    doc: "keeps the first tokens and a window of the last; the first are attended as if just beyond the window",
    source: Source {
        paper: "LM-Infinite: Zero-Shot Extreme Length Generalization for Large Language Models",
        arxiv: "2308.16137",
        at: "the copy in github.com/thunlp/InfLLM",
        evidence: Evidence::Source,
    },
    source_defaults: "128 first tokens and a window of 6144 in that copy",
    acts: "after each chunk of the prompt (or at its end: when=prompt), then after every token",
    granularity: Granularity::Layer,
    params: &[
        Param::budget("slots kept, first tokens included: the window is budget - sinks"),
        Param::int("sinks", (0, 65_536), 4, "first tokens that are always kept").steps(1.0, 4.0).live(),
        Param::switch(
            "reposition",
            true,
            "attend to the first tokens as if just beyond the window; false keeps their true distances",
        ),
        Param::when(param::CHUNK),
    ],
    deviations: &[
        "what the mask hides is evicted",
        "the window is budget - sinks; the source states both",
        "the first tokens come to lie in a row beyond the window, not all at its one distance",
    ],
    build: Build::Evict(|part| Arc::new(Streaming::of(part))),
};
