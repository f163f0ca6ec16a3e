//! FastGen: every head gets the cheapest of five policies that keeps enough of its attention.
//!
//! Source: Ge et al., "Model Tells You What to Discard: Adaptive KV Cache Compression for LLMs", arXiv 2310.01801; rule
//! read in cold-compress, which the authors' repository points to. At the end of the prompt a head tries, cheapest
//! first: special tokens; and punctuation; and frequent tokens; and local ones; everything. A policy's recovery is the
//! share of the attention, mean over the prompt's queries, that fell on what it keeps; the first policy to reach
//! `recovery` is the head's. It is applied at the end of the prompt and after every token. Frequent tokens are those of
//! the highest mean attention among the rest.
//!
//! Deviations:
//! - Rules keep nothing between decisions: the choice is worked out anew each time, from what the prompt's queries
//!   paid, and comes out the same.
//! - `budget` is ours: a head that would keep more loses what drew the least attention on the mean. The source has
//!   none, so the default leaves it out.
//! - Recovery of the local policy counts, for each query, the tokens shortly before it, as at that query's time.
//! - Per KV head, on the mean over the query heads that share it.

use std::sync::Arc;

use super::accumulate::near_queries;
use super::inputs::{HeadInputs, Moment, TokenClass, When};
use super::param::Param;
use super::registry::{Build, Entry, Evidence, Granularity, Source};
use super::rule::{Acts, Terms};
use super::select::better;
use super::{EvictPolicy, Needs, SpecError, Verdict};
use crate::event::{Head, Position, Reason};

pub(super) const ENTRY: Entry = Entry {
    name: "fastgen",
    title: "FastGen",
    doc: "gives every head the cheapest mix of special, punctuation, frequent and local tokens that recovers its attention",
    source: Source {
        paper: "Model Tells You What to Discard: Adaptive KV Cache Compression for LLMs",
        arxiv: "2310.01801",
        at: "github.com/AnswerDotAI/cold-compress",
        evidence: Evidence::Source,
    },
    source_defaults: "recovery 0.9, frequent 0.3 and local 0.3 of the length, 4 first tokens",
    acts: "at the end of the prompt, then after every token",
    granularity: Granularity::Head,
    params: &[
        Param::budget("most slots per head, over whatever its mix keeps; 100% leaves it to the mix"),
        Param::real("recovery", (0.0, 1.0), 0.9, "share of the attention that a head's mix must have kept")
            .steps(0.01, 0.05),
        Param::real("frequent", (0.0, 1.0), 0.3, "frequent tokens, as a share of the prompt")
            .steps(0.05, 0.25),
        Param::real("local", (0.0, 1.0), 0.3, "local tokens, as a share of the prompt").steps(0.05, 0.25),
        Param::int("sinks", (0, 65_536), 4, "first tokens that are always kept").steps(1.0, 4.0),
    ],
    deviations: &[
        "a budget over the mix is ours",
        "the mix is worked out anew at each decision from what the prompt's queries paid; it comes out the same",
        "decides per KV head, on the mean over the query heads that share it",
    ],
    build: Build::Evict(|part| {
        Arc::new(FastGen {
            terms: Terms::of(part, &["sinks"]).acting(Acts::Tokens),
            recovery: part.real("recovery"),
            frequent: part.real("frequent"),
            local: part.real("local"),
            sinks: part.int("sinks"),
        })
    }),
};

#[derive(Debug)]
struct FastGen {
    terms: Terms,
    recovery: f64,
    frequent: f64,
    local: f64,
    sinks: u32,
}

/// The mixes, cheapest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Mix {
    Special,
    Punctuation,
    Frequent,
    Local,
    Full,
}

impl EvictPolicy for FastGen {
    fn needs(&self) -> Needs {
        Needs { sum: true, count: true, near: Some(self.local), classes: true, ..Needs::NONE }
    }

    fn acts(&self, when: When) -> bool {
        self.terms.acts(when)
    }

    fn slots(&self, moment: &Moment) -> Option<u32> {
        self.terms.slots(moment)
    }

    /// A mix may keep less than there are slots.
    fn rests(&self, _: &Moment, _: u32) -> bool {
        false
    }

    fn decide(&self, moment: &Moment, heads: &[HeadInputs<'_>], out: &mut Vec<Verdict>) {
        for (h, head) in heads.iter().enumerate() {
            let mut keep = self.kept(self.mix(moment, head), moment, head);
            let scores = head.each(|p| head.acc.mean(p));
            let lowest = self.slots(moment).and_then(|slots| self.cap(&mut keep, slots, head, &scores));
            let reason = if lowest.is_some() { Reason::LowScore } else { Reason::Unclassed };
            out.extend(Verdict::of_kept(h as Head, reason, head.positions, &keep));
        }
    }

    fn check(&self, prompt_len: u32) -> Result<(), SpecError> {
        self.terms.check(prompt_len)
    }
}

impl FastGen {
    fn is_special(&self, head: &HeadInputs<'_>, p: Position) -> bool {
        p < self.sinks || head.class(p) == TokenClass::Special
    }

    /// The head's mix: a function of what the prompt's queries paid.
    fn mix(&self, moment: &Moment, head: &HeadInputs<'_>) -> Mix {
        let n = moment.span_len;
        let share = |mass: f64| mass / f64::from(n.max(1));
        let (special, rest): (Vec<_>, Vec<_>) = (0..n).partition(|&p| self.is_special(head, p));
        let (punctuation, mut rest): (Vec<_>, Vec<_>) =
            rest.into_iter().partition(|&p| head.class(p) == TokenClass::Punctuation);
        let paid = |tokens: &[Position]| tokens.iter().map(|&p| f64::from(head.acc.span(p))).sum::<f64>();
        let mut mass = paid(&special);
        if share(mass) >= self.recovery {
            return Mix::Special;
        }
        mass += paid(&punctuation);
        if share(mass) >= self.recovery {
            return Mix::Punctuation;
        }
        let mean = |p: Position| head.acc.span(p) / (n - p) as f32;
        rest.sort_unstable_by(|&a, &b| mean(b).total_cmp(&mean(a)).then(b.cmp(&a)));
        let (frequent, rest) = rest.split_at(near_queries(self.frequent, n).min(rest.len() as u32) as usize);
        mass += paid(frequent);
        if share(mass) >= self.recovery {
            return Mix::Frequent;
        }
        mass += rest.iter().map(|&p| f64::from(head.acc.near(p))).sum::<f64>();
        if share(mass) >= self.recovery { Mix::Local } else { Mix::Full }
    }

    /// Which residents the mix keeps.
    fn kept(&self, mix: Mix, moment: &Moment, head: &HeadInputs<'_>) -> Vec<bool> {
        if mix == Mix::Full {
            return vec![true; head.positions.len()];
        }
        let local_from = moment.next_position.saturating_sub(near_queries(self.local, moment.span_len));
        let mut keep: Vec<bool> = head
            .positions
            .iter()
            .map(|&p| {
                self.is_special(head, p)
                    || mix >= Mix::Punctuation && head.class(p) == TokenClass::Punctuation
                    || mix == Mix::Local && p >= local_from
                    // The token just generated has been seen by nobody else: it is judged from the next step on.
                    || moment.when == When::Token && p + 1 == moment.next_position
            })
            .collect();
        if mix >= Mix::Frequent {
            let scores = head.each(|p| head.acc.mean(p));
            let classed = |p| self.is_special(head, p) || head.class(p) == TokenClass::Punctuation;
            let mut rest: Vec<usize> = (0..keep.len()).filter(|&i| !classed(head.positions[i])).collect();
            rest.sort_unstable_by(|&a, &b| better(&scores, a, b));
            rest.truncate(near_queries(self.frequent, moment.span_len) as usize);
            for i in rest {
                keep[i] = true;
            }
        }
        keep
    }

    /// Cuts what is kept down to `slots`, first tokens last; the lowest score left where anything was cut.
    fn cap(&self, keep: &mut [bool], slots: u32, head: &HeadInputs<'_>, scores: &[f32]) -> Option<f32> {
        let kept: Vec<usize> = (0..keep.len()).filter(|&i| keep[i]).collect();
        let over = kept.len().checked_sub(slots as usize).filter(|&over| over > 0)?;
        let mut order: Vec<usize> = kept.into_iter().filter(|&i| head.positions[i] >= self.sinks).collect();
        order.sort_unstable_by(|&a, &b| better(scores, b, a));
        order[..over.min(order.len())].iter().for_each(|&i| keep[i] = false);
        order.get(over).map(|&i| scores[i])
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Layer, kept};
    use super::TokenClass::{Plain, Punctuation, Special};
    use super::*;

    const CLASSES: [TokenClass; 10] =
        [Special, Plain, Plain, Plain, Punctuation, Plain, Plain, Plain, Plain, Plain];

    /// Ten queries that each pay everything to one token of their past.
    fn layer(to: impl Fn(usize) -> usize) -> Layer {
        let row = |q: usize| (0..=q).map(|t| if t == to(q) { 1.0 } else { 0.0 }).collect();
        Layer::of_attention(&[(0..10).map(row).collect()]).with_classes(&CLASSES)
    }

    const TEXT: &str = "fastgen:sinks=0,frequent=0.2,local=0.2,recovery=0.9";

    #[test]
    fn a_head_gets_the_cheapest_mix_that_recovers_its_attention() {
        assert_eq!(kept(TEXT, &layer(|_| 0)), [[0]]);
        assert_eq!(kept(TEXT, &layer(|q| if q >= 4 { 4 } else { 0 })), [[0, 4]]);
        // Two plain tokens draw it all: the two frequent ones.
        assert_eq!(kept(TEXT, &layer(|q| if q >= 6 { 6 } else { q.min(2) })), [[0, 2, 4, 6]]);
        // Everyone looks at itself: local, and the two frequent ones are the latest of equals.
        assert_eq!(kept(TEXT, &layer(|q| q)), [[0, 4, 8, 9]]);
        // Everyone looks three back, and far: nothing but everything will do.
        assert_eq!(kept(TEXT, &layer(|q| q.saturating_sub(3)))[0].len(), 10);
    }

    #[test]
    fn a_budget_caps_the_mix_by_mean_attention() {
        let text = format!("{TEXT},budget=3");
        let text = text.replace("sinks=0", "sinks=1");
        let kept = kept(&text, &layer(|q| q.saturating_sub(3)));
        assert_eq!(kept[0].len(), 3);
        assert_eq!(kept[0][0], 0);
    }
}
