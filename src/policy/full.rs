//! The full cache: nothing is ever lost. What every other rule is measured against.

use std::sync::Arc;

use super::inputs::{HeadInputs, Moment, When};
use super::registry::{Build, Entry, Evidence, Granularity, Source};
use super::{EvictPolicy, Verdict};

pub(super) const ENTRY: Entry = Entry {
    name: "full",
    title: "Full cache",
    doc: "keeps everything",
    source: Source { paper: "", arxiv: "", at: "", evidence: Evidence::Own },
    source_defaults: "",
    acts: "never",
    granularity: Granularity::Layer,
    params: &[],
    deviations: &[],
    build: Build::Evict(|_| Arc::new(Full)),
};

#[derive(Debug)]
struct Full;

impl EvictPolicy for Full {
    fn acts(&self, _: When) -> bool {
        false
    }

    fn slots(&self, _: &Moment) -> Option<u32> {
        None
    }

    fn decide(&self, _: &Moment, _: &[HeadInputs<'_>], _: &mut Vec<Verdict>) {}
}
