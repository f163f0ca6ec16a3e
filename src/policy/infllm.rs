//! InfLLM: the first tokens and a local window are always read; what lies between is cut into blocks that live on the
//! host, and a step brings back the few whose representative keys fit its queries.
//!
//! Source: Xiao et al., "InfLLM: Training-Free Long-Context Extrapolation for LLMs with an Efficient Context Memory",
//! arXiv 2402.04617, section 3, and its repository (`inf_llm/attention/context_manager.py`). A block's representatives
//! are the `repr` keys that received the most attention while they were in the window; a step's relevance of a block is
//! the product of its mean query with their mean, all heads together, and the `topk` most relevant blocks are read.
//! Everything outside the window is attended at one relative distance, the window's length, so that a model meets no
//! distance beyond it. Blocks on the device are copies, the least recently used of which goes first.
//!
//! The rule's numbers are here; attention at a fixed distance is attention's, moving blocks the cache's.

use super::param::Param;
use super::read::ReadRule;
use super::registry::{Build, Entry, Evidence, Granularity, Source};
use crate::event::Position;

pub(super) const ENTRY: Entry = Entry {
    name: "infllm",
    title: "InfLLM",
    doc: "reads the first tokens, a local window, and the few blocks in between that fit the queries; those live on the host",
    source: Source {
        paper: "InfLLM: Training-Free Long-Context Extrapolation for LLMs with an Efficient Context Memory",
        arxiv: "2402.04617",
        at: "section 3; github.com/thunlp/InfLLM",
        evidence: Evidence::Source,
    },
    source_defaults: "init 128, local 4096, blocks of 128, topk 16, repr 4, 32 blocks cached, 512 tokens at a time",
    acts: "at every chunk of the prompt and every generated token, over the blocks there were before it",
    granularity: Granularity::Layer,
    params: &[
        Param::int(
            "local",
            (1, 1 << 20),
            4096,
            "tokens of the window that is read as it lies; all others are attended at this distance",
        )
        .headline(),
        Param::int("init", (0, 1 << 20), 128, "first tokens, which are always read"),
        Param::int("block", (1, 1 << 16), 128, "tokens per block of the memory; whole blocks of the cache"),
        Param::int("topk", (0, 1 << 16), 16, "blocks read per layer and step, at most `cache`").live(),
        Param::int("repr", (1, 1 << 16), 4, "keys that stand for a block"),
        Param::int("cache", (1, 1 << 16), 32, "blocks of a layer that may lie on the device as copies")
            .live(),
    ],
    deviations: &[
        "a step's queries are the chunk as --chunk has it; the source takes up to 512 tokens at a time",
        "tokens go to the memory after the step in which a whole block of them has left the window",
        "a token's received attention includes what queries of its last step paid from beyond the window",
        "received attention and representatives are per KV head, the mean over its query heads",
        "the mean of a block's representative keys is kept on the device in f32",
        "a copied block goes by least recent use; the source's score of the attention on it is not there",
        "only under --policy full and with f32 or f16 pages",
    ],
    build: Build::Read(|spec| {
        ReadRule::Infllm(Infllm {
            init: spec.int("init"),
            local: spec.int("local"),
            block: spec.int("block"),
            topk: spec.int("topk"),
            repr: spec.int("repr"),
            cache: spec.int("cache"),
        })
    }),
};

/// The numbers of an InfLLM read set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Infllm {
    /// First tokens, always read.
    pub init: u32,
    /// Tokens of the local window, at least 1.
    pub local: u32,
    /// Tokens per block of the memory, at least 1.
    pub block: u32,
    /// Blocks read per layer and step.
    pub topk: u32,
    /// Keys that stand for a block, at least 1.
    pub repr: u32,
    /// Blocks of a layer that may lie on the device as copies, at least 1.
    pub cache: u32,
}

impl Infllm {
    /// Blocks in the memory once a sequence has `tokens`.
    pub const fn blocks(&self, tokens: u32) -> u32 {
        tokens.saturating_sub(self.local).saturating_sub(self.init) / self.block
    }

    /// The positions of a block.
    pub const fn positions(&self, block: u32) -> std::ops::Range<Position> {
        let first = self.init + block * self.block;
        first..first + self.block
    }

    /// Whether the home of a position is the host once a sequence has `tokens`; its K and V go together.
    pub const fn on_host(&self, position: Position, tokens: u32) -> bool {
        position >= self.init && (position - self.init) / self.block < self.blocks(tokens)
    }

    /// Blocks read per layer and step.
    pub fn retrieved(&self) -> usize {
        self.topk.min(self.cache) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::parse_read;

    #[test]
    fn blocks_form_behind_the_window_and_after_the_first_tokens() {
        let text = "infllm:init=4,local=10,block=3,topk=9,cache=2";
        let ReadRule::Infllm(rule) = parse_read(text).unwrap().rule() else { panic!() };
        assert_eq!([0, 16, 17, 19, 20].map(|n| rule.blocks(n)), [0, 0, 1, 1, 2]);
        assert_eq!((rule.positions(1), rule.retrieved()), (7..10, 2));
        assert_eq!([3, 4, 6, 7].map(|p| rule.on_host(p, 17)), [false, true, true, false]);
        assert_eq!(parse_read("infllm").unwrap().to_string(), "infllm:local=4096");
    }
}
