//! SnapKV: the last queries of the prompt say which of its tokens matter.
//!
//! Source: Li et al., "SnapKV: LLM Knows What You are Looking for Before Generation", arXiv 2404.14469; rule read in the
//! authors' code (FasterDecoding/SnapKV). At the end of the prompt, every token before the last `window` is worth the
//! attention of those last queries, summed and pooled over its neighbours; the window and the highest stay. While
//! decoding nothing is lost: the cache grows by what is generated.
//!
//! `variant=kvpress` is that of NVIDIA/kvpress: the mean over the window's queries and an average over five neighbours,
//! whatever `pool` and `kernel` say. It ranks as the paper's does with `pool=avg,kernel=5`.
//!
//! Deviations:
//! - Per KV head, on the mean over the query heads that share it; the source repeats keys and decides per query head.
//! - Nothing happens at `chunk` moments: with `--compress context` the question's queries are not in the window.

use super::Needs;
use super::inputs::{HeadInputs, Moment};
use super::param::Param;
use super::registry::{Build, Entry, Evidence, Granularity, Source};
use super::rule::{Score, Scored};
use super::select::Protected;
use super::spec::Part;
use crate::event::Head;

pub(super) const KVPRESS: &str = "kvpress";
const AVERAGE: &str = "avg";
const HIGHEST: &str = "max";

pub(super) const ENTRY: Entry = Entry {
    name: "snapkv",
    title: "SnapKV",
    doc: "keeps the prompt's last tokens and, of those before, the ones that these attend to most, with their neighbours",
    source: Source {
        paper: "SnapKV: LLM Knows What You are Looking for Before Generation",
        arxiv: "2404.14469",
        at: "github.com/FasterDecoding/SnapKV",
        evidence: Evidence::Source,
    },
    source_defaults: "window 32 and 2048 slots, average over 5; in the LongBench runs the maximum over 7; kvpress: window 64",
    acts: "at the end of the prompt; what is generated is added",
    granularity: Granularity::Head,
    params: &[
        Param::budget("slots kept per head at the end of the prompt, the window included"),
        WINDOW,
        KERNEL,
        POOL,
        Param::variant(
            &["paper", KVPRESS],
            "as the authors' code, or mean over the window and average over five",
        ),
        Param::by("head"),
    ],
    deviations: &[
        "decides per KV head, on the mean over the query heads that share it; the source decides per query head",
        "by=layer and by=page are ours",
    ],
    build: Build::Score(|part| Scored::rule(part, SnapKv::of(part))),
};

pub(super) const WINDOW: Param =
    Param::int("window", (1, 4096), 32, "last tokens of the prompt: they judge, and are kept")
        .steps(1.0, 8.0);
pub(super) const KERNEL: Param =
    Param::int("kernel", (1, 255), 7, "neighbours pooled, the token itself among them").steps(2.0, 4.0);
pub(super) const POOL: Param = Param::choice(
    "pool",
    &[HIGHEST, AVERAGE],
    HIGHEST,
    "how neighbours are pooled: their maximum or their average",
);

/// The last tokens judge those before: also the rule of PyramidKV.
#[derive(Debug)]
pub(super) struct SnapKv {
    pub(super) window: u32,
    pool: Pool,
}

impl SnapKv {
    /// From an entry that declares these parameters.
    pub(super) fn of(part: &Part) -> Self {
        Self { window: part.int("window"), pool: Pool::of(part) }
    }
}

impl Score for SnapKv {
    const FIXED: &[&str] = &["window"];

    fn needs(&self) -> Needs {
        Needs { window: self.window, ..Needs::NONE }
    }

    fn protected(&self, _: u32) -> Protected {
        Protected { sinks: 0, recent: self.window }
    }

    fn scores(&self, _: &Moment, _: Head, head: &HeadInputs<'_>) -> Vec<f32> {
        let judged = head.positions.len().saturating_sub(self.window as usize);
        let (before, own) = head.positions.split_at(judged);
        let drawn: Vec<f32> = before.iter().map(|&p| head.acc.window(p)).collect();
        let mut scores = self.pool.run(&drawn);
        if self.pool.mean_of_window {
            for score in &mut scores {
                *score /= self.window as f32;
            }
        }
        // The window is protected; where a tiny layer budget cannot hold it all, its newest tokens go last.
        scores.extend(own.iter().map(|_| f32::MAX));
        scores
    }
}

/// One-dimensional pooling, stride 1, as long as its input. The average counts what lies beyond the ends as 0 and
/// divides by the whole kernel, as `torch.nn.functional.avg_pool1d` does with its defaults.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Pool {
    kernel: usize,
    average: bool,
    mean_of_window: bool,
}

impl Pool {
    fn of(part: &Part) -> Self {
        if part.choice("variant") == KVPRESS {
            return Self { kernel: 5, average: true, mean_of_window: true };
        }
        let average = part.choice("pool") == AVERAGE;
        Self { kernel: part.int("kernel") as usize, average, mean_of_window: false }
    }

    fn run(self, values: &[f32]) -> Vec<f32> {
        let half = self.kernel / 2;
        let window = |i: usize| &values[i.saturating_sub(half)..(i + self.kernel - half).min(values.len())];
        let pooled = |i| {
            let window = window(i);
            if self.average {
                window.iter().sum::<f32>() / self.kernel as f32
            } else {
                window.iter().copied().fold(f32::NEG_INFINITY, f32::max)
            }
        };
        (0..values.len()).map(pooled).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::super::When;
    use super::super::parse_policy;
    use super::super::testing::{Layer, kept};
    use super::*;

    const VALUES: [f32; 5] = [1.0, 5.0, 2.0, 0.0, 3.0];

    #[test]
    fn pools_by_hand() {
        let pool = |kernel, average| Pool { kernel, average, mean_of_window: false }.run(&VALUES);
        assert_eq!(pool(3, false), [5.0, 5.0, 5.0, 3.0, 3.0]);
        assert_eq!(pool(3, true), [2.0, 8.0 / 3.0, 7.0 / 3.0, 5.0 / 3.0, 1.0]);
        assert_eq!(pool(1, true), VALUES);
        assert_eq!(pool(99, false), [5.0; 5]);
    }

    /// Eight tokens; the last two queries look at token 1 and a little at 4.
    fn layer() -> Layer {
        let mut rows: Vec<Vec<f32>> = (1..=8).map(|n| vec![1.0 / n as f32; n]).collect();
        rows[6] = vec![0.0, 0.6, 0.0, 0.0, 0.3, 0.0, 0.1];
        rows[7] = vec![0.1, 0.5, 0.0, 0.0, 0.2, 0.0, 0.1, 0.1];
        Layer::of_attention(&[rows])
    }

    #[test]
    fn the_window_judges_and_stays_with_the_best_and_their_neighbours() {
        assert_eq!(kept("snapkv:budget=4,window=2,kernel=1", &layer()), [[1, 4, 6, 7]]);
        // Pooled over three, tokens 0, 1 and 2 are worth 1.1 each: of equals the later two stay.
        assert_eq!(kept("snapkv:budget=4,window=2,kernel=3", &layer()), [[1, 2, 6, 7]]);
        assert_eq!(
            kept("snapkv:budget=5,window=2,variant=kvpress", &layer()),
            kept("snapkv:budget=5,window=2,pool=avg,kernel=5", &layer())
        );
    }

    #[test]
    fn it_acts_on_the_prompt_alone_and_wants_room_beside_its_window() {
        let policy = parse_policy("snapkv:budget=32").unwrap();
        assert_eq!(
            [When::Chunk, When::EndOfPrompt, When::Token].map(|w| policy.acts(w)),
            [false, true, false]
        );
        assert!(policy.check(100).unwrap_err().to_string().contains("window=32"));
        assert!(parse_policy("snapkv:budget=33").unwrap().check(100).is_ok());
    }
}
