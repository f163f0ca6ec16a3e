//! PyramidKV: SnapKV with a budget that shrinks from layer to layer.
//!
//! Source: Cai et al., "PyramidKV: Dynamic KV Cache Compression based on Pyramidal Information Funneling", arXiv
//! 2406.02069; rule read in the authors' code. With c = budget − window, the last layer keeps lo = c div beta tokens
//! beside the window and the first hi = 2c − lo (clipped to what there is), the others lie evenly between, by integer
//! steps. A prompt below twice c is cut as SnapKV does.
//!
//! `variant=kvpress` is that of NVIDIA/kvpress: steps are real numbers, rounded (halves to even) at the end, the window
//! is among the tokens counted, and where hi ≥ lo ≥ window does not hold every layer keeps the same.
//!
//! Deviations: those of SnapKV. A model of one layer keeps hi.

use super::Needs;
use super::inputs::{HeadInputs, Moment};
use super::param::{Budget, Param};
use super::registry::{Build, Entry, Evidence, Granularity, Source};
use super::rule::{Score, Scored};
use super::select::Protected;
use super::snapkv::{KERNEL, KVPRESS, POOL, SnapKv};
use crate::event::Head;

pub(super) const ENTRY: Entry = Entry {
    name: "pyramidkv",
    title: "PyramidKV",
    doc: "SnapKV with more slots in the first layers and fewer in the last; the budget is the mean over the layers",
    source: Source {
        paper: "PyramidKV: Dynamic KV Cache Compression based on Pyramidal Information Funneling",
        arxiv: "2406.02069",
        at: "github.com/Zefan-Cai/KVCache-Factory",
        evidence: Evidence::Source,
    },
    source_defaults: "beta 20; in the evaluation window 8, the maximum over 7, and 128 or 2048 slots",
    acts: "at the end of the prompt; what is generated is added",
    granularity: Granularity::Head,
    params: &[
        Param::budget(
            "slots kept per head at the end of the prompt, mean over the layers, the window included",
        ),
        Param::int("beta", (1, 1024), 20, "the last layer keeps one part in so many beside the window")
            .steps(1.0, 10.0),
        Param::int("window", (1, 4096), 8, "last tokens of the prompt: they judge, and are kept")
            .steps(1.0, 8.0),
        KERNEL,
        POOL,
        Param::variant(&["paper", KVPRESS], "integer steps beside the window, or real steps that count it"),
        Param::by("head"),
    ],
    deviations: &[
        "decides per KV head, on the mean over the query heads that share it; the source decides per query head",
        "by=layer and by=page are ours",
    ],
    build: Build::Score(|part| {
        Scored::rule(
            part,
            PyramidKv {
                beta: part.int("beta"),
                kvpress: part.choice("variant") == KVPRESS,
                judge: SnapKv::of(part),
            },
        )
    }),
};

#[derive(Debug)]
struct PyramidKv {
    beta: u32,
    kvpress: bool,
    judge: SnapKv,
}

/// A layer among the layers of a model.
#[derive(Clone, Copy, Debug)]
struct Step {
    layer: u32,
    layers: u32,
}

impl Score for PyramidKv {
    const FIXED: &[&str] = SnapKv::FIXED;

    fn needs(&self) -> Needs {
        self.judge.needs()
    }

    fn slots(&self, budget: Budget, moment: &Moment) -> Option<u32> {
        let cap = budget.slots(moment.prompt_len)?;
        let at = Step { layer: moment.layer.into(), layers: moment.layers.into() };
        let fed = moment.next_position;
        Some(if self.kvpress {
            kvpress_slots(budget.exact(moment.prompt_len), self.judge.window, self.beta, fed, at)
        } else {
            paper_slots(cap, self.judge.window, self.beta, fed, at)
        })
    }

    fn protected(&self, slots: u32) -> Protected {
        self.judge.protected(slots)
    }

    fn scores(&self, moment: &Moment, h: Head, head: &HeadInputs<'_>) -> Vec<f32> {
        self.judge.scores(moment, h, head)
    }
}

/// Slots of a layer, the window included, for a prompt of `fed` tokens.
fn paper_slots(cap: u32, window: u32, beta: u32, fed: u32, Step { layer, layers }: Step) -> u32 {
    let c = cap.saturating_sub(window);
    if fed < cap || fed < 2 * c {
        return cap;
    }
    let (mut lo, mut hi) = (c / beta, 2 * c - c / beta);
    if hi >= fed - window {
        hi = fed - window;
        lo = (2 * c).saturating_sub(hi);
    }
    let step = hi.saturating_sub(lo) / (layers - 1).max(1);
    window + hi - layer * step
}

fn kvpress_slots(cap: f64, window: u32, beta: u32, fed: u32, Step { layer, layers }: Step) -> u32 {
    let (fed, window) = (f64::from(fed), f64::from(window));
    let mut lo = cap / f64::from(beta);
    let mut hi = 2.0 * cap - lo;
    if hi >= fed - window {
        hi = fed - window;
        lo = 2.0 * cap - hi;
    }
    if !(fed >= hi && hi >= lo && lo >= window) {
        return cap.round_ties_even() as u32;
    }
    let step = (hi - lo) / f64::from((layers - 1).max(1));
    (hi - f64::from(layer) * step).round_ties_even() as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layers(cap: u32, fed: u32) -> Vec<u32> {
        (0..32).map(|layer| paper_slots(cap, 8, 20, fed, Step { layer, layers: 32 })).collect()
    }

    #[test]
    fn the_pyramids_of_the_papers_settings() {
        let beside = |cap| layers(cap, 1 << 20).into_iter().map(|n| n - 8).collect::<Vec<_>>();
        let (small, large) = (beside(128), beside(2048));
        assert_eq!((small[0], small[1], small[31]), (234, 227, 17));
        assert_eq!((large[0], large[31]), (3978, 103));
        let mean = |slots: &[u32]| f64::from(slots.iter().sum::<u32>()) / 32.0;
        assert_eq!((mean(&small), mean(&large)), (125.5, 2040.5));
    }

    #[test]
    fn short_prompts_are_cut_alike_in_every_layer() {
        assert_eq!(layers(128, 239), [128; 32]);
        assert_eq!(layers(128, 100), [128; 32]);
        // hi is clipped to 242 - 8 = 234; at 240 it is 232, and lo 8.
        assert_eq!(layers(128, 242)[0], 242);
        let clipped = layers(128, 240);
        assert_eq!((clipped[0], clipped[31]), (240, 240 - 31 * 7));
    }

    #[test]
    fn kvpress_rounds_real_steps_and_falls_back_to_the_same_for_all() {
        let slots = |cap, fed, layer| kvpress_slots(cap, 8, 20, fed, Step { layer, layers: 4 });
        // lo 10, hi 390, steps of 126.67.
        assert_eq!([0, 1, 2, 3].map(|layer| slots(200.0, 1000, layer)), [390, 263, 137, 10]);
        // lo would be 5, below the window.
        assert_eq!(slots(100.5, 1000, 0), 100);
        // hi clipped to 392 - 8; then lo is 16.
        assert_eq!([0, 3].map(|layer| slots(200.0, 392, layer)), [384, 16]);
    }

    #[test]
    fn one_layer_is_no_pyramid() {
        assert_eq!(paper_slots(16, 8, 20, 100, Step { layer: 0, layers: 1 }), 24);
        assert_eq!(kvpress_slots(200.0, 8, 20, 1000, Step { layer: 0, layers: 1 }), 390);
    }
}
