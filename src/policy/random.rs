//! Random: what a rule must beat.
//!
//! Own definition: every (layer, KV head, position) has a uniform score drawn once from the seed, and the highest stay,
//! so that the kept set is a uniform sample at every length. NVIDIA/kvpress has one for the prompt alone
//! (`decode=false`).

use std::sync::Arc;

use super::inputs::{HeadInputs, Moment, When};
use super::noise::{self, Use};
use super::param::{Budget, Param};
use super::plan::{self, Plan};
use super::registry::{Build, Entry, Evidence, Granularity, Source};
use super::select::Protected;
use super::{Bound, EvictPolicy};

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
    build: Build::Score(|part| {
        Arc::new(Random {
            budget: part.budget().expect("declared above"),
            decode: part.switch("decode"),
            by: part.granularity(),
        })
    }),
};

#[derive(Debug)]
struct Random {
    budget: Budget,
    decode: bool,
    by: Granularity,
}

impl EvictPolicy for Random {
    fn acts(&self, when: When) -> bool {
        when == When::EndOfPrompt || when == When::Token && self.decode
    }

    fn slots(&self, moment: &Moment) -> Option<u32> {
        self.budget.slots(moment.prompt_len)
    }

    fn bound(&self, moment: &Moment, kv_heads: u32) -> Option<Bound> {
        Some(plan::bound(self.by, self.slots(moment)?, moment.block_size, kv_heads))
    }

    fn plan(&self, moment: &Moment, heads: &[HeadInputs<'_>]) -> Option<Plan> {
        Plan::new(self.by, self.slots(moment), Protected::default(), heads, |h, head| {
            let place = |p| [Use::RandomScore as u64, moment.layer.into(), h as u64, u64::from(p)];
            head.positions.iter().map(|&p| noise::uniform(moment.seed, place(p)) as f32).collect()
        })
    }
}
