//! D2O: heavy hitters under layer budgets, and victims that go into kept tokens like them.
//!
//! Source: Wan et al., "D2O: Dynamic Discriminative Operations for Efficient Long-Context Inference of Large Language
//! Models", arXiv 2406.13035; rule read in the authors' code (AIoT-MLSys-Lab/D2O). It has two halves, and here they are
//! two: what is lost is this evictor's decision, and what becomes of it is a [merge](merge) that stands behind any
//! evictor. `--policy d2o:budget=20% --merge d2o` is the paper's system.
//!
//! As H2O the evictor keeps recent tokens and, of the rest, those of the largest cumulative attention, the first ones
//! (`sinks`) always. Layers 0, 1 and the last are exempt: they lose nothing. The others share the budget by how flat their
//! attention is: per KV head the variance of the attention that the prompt's tokens received, brought to 0..1 over the
//! layer's heads; v is the mean of these, and a layer gets softmax(−v) × layers times the budget, at least 1% and at most
//! 100% of the prompt, split into recent tokens and heavy hitters in the given proportion.
//!
//! Deviations:
//! - One budget, split by `recent`; the source states heavy hitters and recent tokens apart (0.1 and 0.1).
//! - Acts at the end of the prompt already; the source lets one generated token pass first.
//! - Heads are KV heads: under grouped-query attention sums are means over the query heads that share one.
//! - The exempt layers come on top of the budget, as in the source: the mean over all layers lies above it.

pub(super) mod merge;

use super::inputs::{HeadInputs, Moment};
use super::param::{Budget, Param};
use super::registry::{Build, Entry, Evidence, Granularity, Source};
use super::rule::{Acts, Score, Scored};
use super::select::Protected;
use super::{Needs, Shares};
use crate::event::Head;

const SOURCE: Source = Source {
    paper: "D2O: Dynamic Discriminative Operations for Efficient Long-Context Inference of Large Language Models",
    arxiv: "2406.13035",
    at: "github.com/AIoT-MLSys-Lab/D2O",
    evidence: Evidence::Source,
};

/// Least share of the prompt that a layer keeps.
const LEAST_SHARE: f64 = 0.01;
/// Added to the range of the variances, which may be 0.
const RANGE_FLOOR: f64 = 1e-6;

pub(super) const ENTRY: Entry = Entry {
    name: "d2o",
    title: "D2O",
    doc: "as H2O, more slots in layers of flat attention; layers 0, 1 and the last keep everything",
    source: SOURCE,
    source_defaults: "heavy hitters 10% and recent 10% of the prompt, 4 sinks",
    acts: "at the end of the prompt, then after every token",
    granularity: Granularity::Head,
    params: &[
        Param::budget(
            "slots kept per head, mean over the layers before limits; exempt layers keep everything",
        ),
        Param::real("recent", (0.0, 1.0), 0.5, "share of a layer's slots for the most recent tokens")
            .steps(0.05, 0.25)
            .live(),
        Param::int("sinks", (0, 1024), 4, "first tokens, kept whatever their score").steps(1.0, 4.0).live(),
    ],
    deviations: &[
        "one budget split by `recent`; the source states heavy hitters and recent tokens apart",
        "acts at the end of the prompt already; the source lets one generated token pass",
        "decides per KV head, on the mean over the query heads that share it",
        "merging is a rule of its own: --merge d2o",
    ],
    build: Build::Score(|part| {
        let d2o = D2o { recent: part.real("recent"), sinks: part.int("sinks") };
        Scored::acting(part, d2o, Acts::Tokens)
    }),
};

#[derive(Debug)]
struct D2o {
    recent: f64,
    sinks: u32,
}

impl Score for D2o {
    const FIXED: &'static [&'static str] = &["sinks"];

    fn needs(&self) -> Needs {
        Needs { sum: true, ..Needs::NONE }
    }

    fn slots(&self, budget: Budget, moment: &Moment) -> Option<u32> {
        let budget = budget.slots(moment.prompt_len)?;
        let is_exempt = moment.layer < 2 || moment.layer + 1 == moment.layers;
        let share = f64::from(moment.share.unwrap_or(1.0)) * f64::from(budget);
        let least = LEAST_SHARE * f64::from(moment.prompt_len);
        // A budget of more slots than the prompt has is meant for what is generated too.
        let slots = share.clamp(least, f64::from(moment.prompt_len.max(budget))) as u32;
        (!is_exempt).then(|| slots.max(1))
    }

    fn shares(&self) -> Option<Shares> {
        Some(shares)
    }

    fn protected(&self, slots: u32) -> Protected {
        Protected { sinks: self.sinks, recent: (self.recent * f64::from(slots)).round() as u32 }
    }

    fn scores(&self, _: &Moment, _: Head, head: &HeadInputs<'_>) -> Vec<f32> {
        head.positions.iter().map(|&p| head.acc.sum(p)).collect()
    }
}

/// The flatter a layer's attention, the more it gets.
fn shares(layers: &[Vec<HeadInputs<'_>>]) -> Vec<f32> {
    let flatness: Vec<f64> = layers.iter().map(|heads| (-spread(heads)).exp()).collect();
    let total: f64 = flatness.iter().sum();
    flatness.iter().map(|x| (x / total * layers.len() as f64) as f32).collect()
}

/// Mean over a layer's heads of the variance of the attention received, brought to 0..1 over the heads.
fn spread(heads: &[HeadInputs<'_>]) -> f64 {
    let variances: Vec<f64> = heads.iter().map(variance).collect();
    let least = variances.iter().copied().fold(f64::INFINITY, f64::min);
    let most = variances.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let scaled = variances.iter().map(|x| (x - least) / (most - least + RANGE_FLOOR)).sum::<f64>();
    let mean = scaled / heads.len().max(1) as f64;
    if mean.is_finite() { mean } else { 0.0 }
}

/// Of the attention that a head's tokens received: the sample's, divided by one less than their number.
fn variance(head: &HeadInputs<'_>) -> f64 {
    let n = head.positions.len() as f64;
    let received = || head.positions.iter().map(|&p| f64::from(head.acc.sum(p)));
    let mean = received().sum::<f64>() / n;
    if n > 1.0 { received().map(|x| (x - mean).powi(2)).sum::<f64>() / (n - 1.0) } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Layer, kept};
    use super::super::{Accumulators, parse_policy};
    use super::*;

    const RULE: D2o = D2o { recent: 0.5, sinks: 4 };

    fn received(sums: &[f32]) -> Accumulators {
        let positions: Vec<u32> = (0..sums.len() as u32).collect();
        let mut acc = Accumulators::new(Needs { sum: true, ..Needs::NONE });
        acc.observe_prefill(&positions, 1, sums, &[]);
        acc
    }

    #[test]
    fn flatter_layers_get_more() {
        // Variances 1 and 0 of the heads of the first layer: 1 and 0 when scaled, mean 1/2. Equal ones of the second: 0.
        let accs = [[0.0, 1.0, 2.0], [1.0; 3], [1.0; 3], [2.0; 3]].map(|sums| received(&sums));
        let positions = [0, 1, 2];
        let head = |i: usize| HeadInputs::new(&positions, &accs[i]);
        let shares = shares(&[vec![head(0), head(1)], vec![head(2), head(3)]]);
        let steep = (-0.5f64 / (1.0 + RANGE_FLOOR)).exp();
        let want = [2.0 * steep / (steep + 1.0), 2.0 / (steep + 1.0)];
        assert!(
            shares.iter().zip(want).all(|(&a, b)| (f64::from(a) - b).abs() < 1e-6),
            "{shares:?} {want:?}"
        );
        assert!((shares.iter().sum::<f32>() - 2.0).abs() < 1e-6);
    }

    #[test]
    fn the_first_two_layers_and_the_last_are_exempt_and_the_others_limited() {
        let at = |layer, share| {
            let moment = Layer::of_last_rows(&[vec![0.0; 100]]).at(layer, 6).moment();
            RULE.slots(Budget::Slots(10), &Moment { share, ..moment })
        };
        assert_eq!([0, 1, 5].map(|layer| at(layer, Some(1.0))), [None; 3]);
        assert_eq!(
            [None, Some(1.5), Some(0.01), Some(50.0)].map(|share| at(2, share)),
            [10, 15, 1, 100].map(Some)
        );
    }

    #[test]
    fn the_first_tokens_and_the_newest_stay_and_the_heaviest_between() {
        let mut row = vec![0.01; 12];
        (row[6], row[8]) = (0.5, 0.3);
        let layer = Layer::of_last_rows(&[row]).at(2, 6);
        assert_eq!(kept("d2o:budget=8,recent=0.25", &layer), [[0, 1, 2, 3, 6, 8, 10, 11]]);
        assert_eq!(kept("d2o:budget=8,recent=0.25", &layer.at(0, 6)), [(0..12).collect::<Vec<_>>()]);
    }

    #[test]
    fn wrappers_hand_the_shares_on() {
        let policy = parse_policy("d2o:budget=8+adakv").unwrap();
        let acc = received(&[0.0, 1.0]);
        let heads = || vec![HeadInputs::new(&[0, 1], &acc)];
        assert_eq!(policy.shares().unwrap()(&[heads(), heads()]), [1.0, 1.0]);
        assert!(parse_policy("h2o:budget=8").unwrap().shares().is_none());
    }
}
