//! NACL: proxy tokens judge, and chance has a part.
//!
//! Source: Chen et al., "NACL: A General and Effective KV Cache Eviction Framework for LLMs at Inference Time", arXiv
//! 2408.03675; rule read in the port of KVCache-Factory. At the end of the prompt, tokens are scored by the attention of
//! the proxy queries (the prompt's last). Proxies and sinks stay; most of the rest of the budget goes to the highest
//! scores, and what is left is drawn from the others with probabilities softmax(score / temperature).
//!
//! Deviations:
//! - `window`, `random` and `temperature` are our own defaults: the source's could not be read.
//! - The draw without replacement takes the highest score / temperature + Gumbel noise, which has the same
//!   distribution; the noise is a function of seed, layer, head and token.
//! - Per KV head, on the mean over the query heads that share it.

use super::inputs::{HeadInputs, Moment};
use super::noise::{self, Use};
use super::param::Param;
use super::registry::{Build, Entry, Evidence, Granularity, Source};
use super::rule::{Cut, PerHead};
use super::select::{Protected, better, comparable};
use super::{Needs, Verdict};
use crate::event::{Head, Reason};

pub(super) const ENTRY: Entry = Entry {
    name: "nacl",
    title: "NACL",
    doc: "keeps what the prompt's last tokens attend to, and draws a part of the budget at random by the same scores",
    source: Source {
        paper: "NACL: A General and Effective KV Cache Eviction Framework for LLMs at Inference Time",
        arxiv: "2408.03675",
        at: "the port in github.com/Zefan-Cai/KVCache-Factory",
        evidence: Evidence::Source,
    },
    source_defaults: "could not be read",
    acts: "at the end of the prompt; what is generated is added",
    granularity: Granularity::Head,
    params: &[
        Param::budget("slots kept per head at the end of the prompt, proxies and sinks included"),
        Param::int("window", (1, 4096), 16, "last tokens of the prompt: they judge, and are kept")
            .steps(1.0, 8.0),
        Param::int("sinks", (0, 65_536), 4, "first tokens that are always kept").steps(1.0, 4.0),
        Param::real("random", (0.0, 1.0), 0.3, "share of the open places that is drawn").steps(0.05, 0.25),
        Param::real("temperature", (0.001, 1000.0), 1.0, "how little the scores count in the draw")
            .steps(0.1, 1.0),
    ],
    deviations: &[
        "window, random and temperature have our own defaults",
        "the draw takes the highest of score / temperature + Gumbel noise: the same distribution",
        "decides per KV head, on the mean over the query heads that share it",
    ],
    build: Build::Evict(|part| {
        PerHead::rule(
            part,
            Nacl {
                window: part.int("window"),
                sinks: part.int("sinks"),
                random: part.real("random"),
                temperature: part.real("temperature"),
            },
        )
    }),
};

#[derive(Debug)]
struct Nacl {
    window: u32,
    sinks: u32,
    random: f64,
    temperature: f64,
}

impl Cut for Nacl {
    const FIXED: &[&str] = &["window", "sinks"];

    fn needs(&self) -> Needs {
        Needs { window: self.window, ..Needs::NONE }
    }

    fn cut(&self, moment: &Moment, h: Head, head: &HeadInputs<'_>, slots: u32) -> Option<Verdict> {
        let positions = head.positions;
        let candidates = Protected { sinks: self.sinks, recent: self.window }.candidates(positions, slots);
        let places = slots as usize - (positions.len() - candidates.len());
        let mut scores = head.each(|p| head.acc.window(p));
        let mut order: Vec<usize> = candidates.collect();
        order.sort_unstable_by(|&a, &b| better(&scores, a, b));
        let sure = places - (self.random * places as f64).round() as usize;
        for &i in &order[sure..] {
            let place = [Use::NaclDraw as u64, moment.layer.into(), h.into(), positions[i].into()];
            let noise = noise::gumbel(moment.seed, place);
            scores[i] = (f64::from(comparable(scores[i])) / self.temperature + noise) as f32;
        }
        // Without a draw the scores themselves decide, and the cutoff is one of them.
        let drawn = sure < places;
        if drawn {
            order[sure..].sort_unstable_by(|&a, &b| better(&scores, a, b));
        } else {
            order[sure..].iter().for_each(|&i| scores[i] = head.acc.window(positions[i]));
        }
        let mut keep = vec![true; positions.len()];
        order[places..].iter().for_each(|&i| keep[i] = false);
        let cutoff = places.checked_sub(1).map(|last| comparable(scores[order[last]]));
        let reason = match (drawn, cutoff) {
            (true, _) => Reason::Drawn,
            (false, Some(_)) => Reason::LowScore,
            (false, None) => Reason::OutsideWindow,
        };
        Verdict::of_kept(h, reason, positions, &keep)
            .map(|verdict| verdict.with_scores(positions, &scores, cutoff))
    }
}

#[cfg(test)]
mod tests {
    use super::super::parse_policy;
    use super::super::testing::{Layer, kept};

    fn layer() -> Layer {
        Layer::of_last_rows(&[(0..40).map(|i| i as f32 / 1000.0).collect()])
    }

    #[test]
    fn without_chance_it_keeps_sinks_proxies_and_the_highest() {
        let kept = kept("nacl:budget=8,window=2,sinks=2,random=0", &layer());
        assert_eq!(kept, [[0, 1, 34, 35, 36, 37, 38, 39]]);
    }

    #[test]
    fn a_part_of_the_places_is_drawn_from_the_seed() {
        let text = "nacl:budget=20,window=2,sinks=2,random=0.5";
        let a = kept(text, &layer());
        assert_eq!(a, kept(text, &layer()));
        assert_ne!(a, kept(text, &layer().with_seed(3)));
        // Of 16 places 8 are sure: 30 to 37.
        assert!((30..38).all(|p| a[0].contains(&p)));
    }

    #[test]
    fn it_wants_room_beside_its_window_and_its_sinks() {
        let told = parse_policy("nacl:budget=20").unwrap().check(100).unwrap_err().to_string();
        assert!(told.contains("window=16 and sinks=4 must leave room"), "{told}");
        assert!(told.ends_with("use at least 21 slots, or lower window or sinks"), "{told}");
        assert!(parse_policy("nacl:budget=21").unwrap().check(100).is_ok());
    }

    #[test]
    fn a_cold_draw_is_no_draw() {
        let cold = "nacl:budget=20,window=2,sinks=2,random=1,temperature=0.001";
        let kept = kept(cold, &Layer::of_last_rows(&[(0..40).map(|i| i as f32).collect()]));
        assert_eq!(kept[0][2..], (22..40).collect::<Vec<_>>());
    }
}
