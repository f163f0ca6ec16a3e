//! Scissorhands: what was important stays important; a history of "below uniform" marks decides.
//!
//! Source: Liu et al., "Scissorhands: Exploiting the Persistence of Importance Hypothesis for LLM KV Cache Compression
//! at Test Time", arXiv 2305.17118. The body of the rule is from memory of the paper; history and recent are the
//! defaults that cold-compress quotes. A query marks every token to which it pays less than the uniform share, 1 over
//! the tokens it sees. When more than the budget are resident, the last `recent` stay and the tokens with the most
//! marks among the newest `history` queries are lost, as many as `drop` of the budget at once.
//!
//! Deviations:
//! - After the prompt as many are lost as bring the cache to the budget, if that is more than `drop` says.
//! - The paper gives later layers larger budgets; here every layer has the same.
//! - Per KV head, on the mean over the query heads that share it. Of equal marks the later token stays.

use super::Needs;
use super::inputs::{HeadInputs, Moment};
use super::param::{self, Param};
use super::registry::{Build, Entry, Evidence, Granularity, Source};
use super::rule::{Score, Scored};
use super::select::Protected;
use crate::event::Head;

pub(super) const ENTRY: Entry = Entry {
    name: "scissorhands",
    title: "Scissorhands",
    doc: "loses the tokens that most of the last queries paid less than their share, many at once",
    source: Source {
        paper: "Scissorhands: Exploiting the Persistence of Importance Hypothesis for LLM KV Cache Compression at Test Time",
        arxiv: "2305.17118",
        at: "the paper; history and recent as quoted in github.com/AnswerDotAI/cold-compress",
        evidence: Evidence::Memory,
    },
    source_defaults: "history 400, recent 10; half of the budget lost at once is from memory",
    acts: "at the end of the prompt (or after each chunk of it: when=chunk), then after every token",
    granularity: Granularity::Head,
    params: &[
        Param::budget("most slots per head; a decision leaves less"),
        Param::int("history", (1, 4096), 400, "newest queries whose marks count").steps(1.0, 50.0),
        Param::int("recent", (0, 65_536), 10, "newest tokens that are always kept").steps(1.0, 8.0).live(),
        Param::real("drop", (0.0, 0.95), 0.5, "share of the budget lost at once").steps(0.05, 0.25).live(),
        Param::when(param::PROMPT),
    ],
    deviations: &[
        "after the prompt as many are lost as bring the cache to the budget",
        "every layer has the same budget; the paper gives later layers more",
        "decides per KV head, on the mean over the query heads that share it",
    ],
    build: Build::Score(|part| {
        Scored::rule(
            part,
            Scissorhands {
                history: part.int("history"),
                recent: part.int("recent"),
                drop: part.real("drop"),
            },
        )
    }),
};

#[derive(Debug)]
struct Scissorhands {
    history: u32,
    recent: u32,
    drop: f64,
}

impl Score for Scissorhands {
    const FIXED: &[&str] = &["recent"];

    fn needs(&self) -> Needs {
        Needs { marks: self.history, ..Needs::NONE }
    }

    fn stay(&self, slots: u32, residents: u32) -> u32 {
        let dropped = (self.drop * f64::from(slots)) as u32;
        slots.min(residents.saturating_sub(dropped)).max(1)
    }

    fn protected(&self, _: u32) -> Protected {
        Protected { sinks: 0, recent: self.recent }
    }

    fn scores(&self, _: &Moment, _: Head, head: &HeadInputs<'_>) -> Vec<f32> {
        head.each(|p| -(head.acc.marks(p) as f32))
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Layer, kept};

    #[test]
    fn the_most_marked_go_half_a_budget_at_once() {
        // Uniform would be 1/(q+1). Tokens 1 and 3 draw next to nothing, 4 and 5 little at the end.
        let rows: Vec<Vec<f32>> = vec![
            vec![1.0],
            vec![0.9, 0.1],
            vec![0.5, 0.05, 0.45],
            vec![0.5, 0.0, 0.5, 0.0],
            vec![0.4, 0.0, 0.3, 0.0, 0.3],
            vec![0.3, 0.0, 0.3, 0.0, 0.2, 0.2],
        ];
        let layer = Layer::of_attention(&[rows]);
        // 6 residents, budget 5: min(5, 6 - 2) = 4 stay.
        assert_eq!(kept("scissorhands:budget=5,recent=1,drop=0.5", &layer), [vec![0, 2, 4, 5]]);
        // Without a drop the budget stays; token 1 has five marks, token 3 three.
        assert_eq!(kept("scissorhands:budget=5,recent=1,drop=0", &layer), [vec![0, 2, 3, 4, 5]]);
        // A history of two queries: 1 and 3 have two marks each, of equals the later stays.
        assert_eq!(kept("scissorhands:budget=5,recent=1,drop=0,history=2", &layer), [vec![0, 2, 3, 4, 5]]);
    }
}
