//! Random: what a rule must beat.
//!
//! Own definition: every (layer, KV head, position) has a uniform score drawn once from the seed, and the highest stay,
//! so that the kept set is a uniform sample at every length. NVIDIA/kvpress has one for the prompt alone
//! (`decode=false`).

use super::inputs::{HeadInputs, Moment};
use super::noise::{self, Use};
use super::param::Param;
use super::registry::{Build, Entry, Evidence, Granularity, Source};
use super::rule::{Score, Scored};
use crate::event::Head;

pub(super) const ENTRY: Entry = Entry {
    name: "random",
    title: "Random",
    doc: "keeps a uniform sample of the tokens, drawn from the seed: what a rule must beat",
    source: Source { paper: "", arxiv: "", at: "", evidence: Evidence::Own },
    source_defaults: "",
    acts: "at the end of the prompt, then after every token (decode)",
    granularity: Granularity::Head,
    params: &[Param::budget("slots kept per head"), Param::decode(true), Param::by("head")],
    deviations: &[],
    build: Build::Score(|part| Scored::rule(part, Random)),
};

#[derive(Debug)]
struct Random;

impl Score for Random {
    fn scores(&self, moment: &Moment, h: Head, head: &HeadInputs<'_>) -> Vec<f32> {
        let place = |p| [Use::RandomScore as u64, moment.layer.into(), h.into(), u64::from(p)];
        head.each(|p| noise::uniform(moment.seed, place(p)) as f32)
    }
}
