//! Quest: a step reads the pages whose keys could score highest, by a bound that is cheap to compute.
//!
//! Source: Tang et al., "Quest: Query-Aware Sparsity for Efficient Long-Context LLM Inference", arXiv 2406.10774,
//! section 3, and its repository (`evaluation/quest_attention.py`): per page and channel the minimum `m` and the maximum
//! `M` of the keys after RoPE; `u = sum_c max(q_c * m_c, q_c * M_c)` bounds the score of every key of the page; each
//! query head reads the `max(min, budget / page)` pages of largest bound beside the newest, and the softmax runs over
//! those alone. The first layers and the prompt read everything. Nothing is lost, and nothing moves between tiers: what
//! is saved is bandwidth.
//!
//! The rule's numbers are here; bounds and choice are attention's.

use super::param::Param;
use super::read::ReadRule;
use super::registry::{Build, Entry, Evidence, Granularity, Source};
use crate::event::Layer;

pub(super) const ENTRY: Entry = Entry {
    name: "quest",
    title: "Quest",
    doc: "reads only the pages of K and V whose keys could score highest, by the bound of their channels' minima and maxima",
    source: Source {
        paper: "Quest: Query-Aware Sparsity for Efficient Long-Context LLM Inference",
        arxiv: "2406.10774",
        at: "section 3; github.com/mit-han-lab/Quest",
        evidence: Evidence::Source,
    },
    source_defaults: "a budget of 1024 tokens in its scripts, pages of 16, layers 0 and 1 dense, at least 3 pages",
    acts: "at every generated token; the prompt reads everything",
    granularity: Granularity::Head,
    params: &[
        // The names carry the rule's: an evictor has a budget too, and both can be tuned in one run.
        Param::int(
            "quest.budget",
            (1, 1 << 24),
            1024,
            "slots read per query head and step, in whole pages beside the newest",
        )
        .steps(16.0, 128.0)
        .live()
        .headline(),
        Param::int("quest.page", (1, 1024), 16, "slots per page of the bounds; need not be the block size"),
        Param::int("quest.dense", (0, 1024), 2, "first layers that read everything"),
        Param::int("quest.min", (0, 1 << 20), 3, "fewest pages read beside the newest, whatever the budget")
            .live(),
    ],
    deviations: &[
        "pages are cut from the slots of the cache, so under an evictor a page may span positions that were apart",
        "the newest page is read beside the chosen ones also where it is full",
        "a policy that scores attention sees the probabilities of the pages read, and 0 elsewhere",
        "keys must lie rotated: policies that rotate anew at read are refused",
    ],
    build: Build::Read(|spec| {
        ReadRule::Quest(Quest {
            budget: spec.int("quest.budget"),
            page: spec.int("quest.page"),
            dense_layers: spec.int("quest.dense"),
            min: spec.int("quest.min"),
        })
    }),
};

/// The numbers of a Quest read set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quest {
    /// Slots read per query head and step.
    pub budget: u32,
    /// Slots per page of the bounds, at least 1.
    pub page: u32,
    /// First layers that read everything.
    pub dense_layers: u32,
    /// Fewest pages read beside the newest.
    pub min: u32,
}

impl Quest {
    /// Whether a layer reads everything.
    pub const fn is_dense(&self, layer: Layer) -> bool {
        (layer as u32) < self.dense_layers
    }

    /// Pages that a query head reads beside the newest.
    pub fn pages(&self) -> usize {
        self.min.max(self.budget / self.page) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::parse_read;

    #[test]
    fn the_budget_counts_whole_pages_and_the_least_stands() {
        let rule = |text: &str| match parse_read(text).unwrap().rule() {
            ReadRule::Quest(quest) => quest,
            other => panic!("{other:?}"),
        };
        assert_eq!(rule("quest").pages(), 64);
        assert_eq!(rule("quest:budget=31,page=16,min=0").pages(), 1);
        assert_eq!(rule("quest:budget=31").pages(), 3);
        assert_eq!([0, 1, 2].map(|layer| rule("quest").is_dense(layer)), [true, true, false]);
        assert_eq!(parse_read("quest:page=8,budget=64").unwrap().to_string(), "quest:budget=64,page=8");
    }
}
