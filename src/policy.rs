//! Floor 1: the published rules, pure: no tensors, no I/O, no clock.
//!
//! A policy is *declared*: the [accumulators](Needs) it needs, a score over them, a [selection](select) rule, its
//! [parameters](Param) and when it acts. The engine keeps the accumulators, tells the policy the [`Moment`], and carries
//! out the [`Verdict`]s. The same code runs live, in what-if and in tests, and it is deterministic given its inputs.
//!
//! Every rule is one file, which begins with its source and what differs from it, and one line of [`REGISTRY`]; command
//! line, tuner and help are driven by that table. An *evictor* ([`Policy`]) loses state; a *read set* ([`ReadSet`]) loses
//! nothing but does not read some rows in a step. The two are never mixed.
//!
//! ```
//! use kvista::policy::{Policy, parse_policy};
//!
//! let mut policy: Policy = parse_policy("h2o:budget=25%,recent=0.5")?;
//! assert_eq!(policy.to_string(), "h2o:budget=25%"); // 0.5 is the default
//! assert_eq!(policy.slots(1000), Some(250));
//! let change = policy.set("budget", "10%")?.expect("it changed");
//! assert_eq!((change.tuning.from.as_str(), change.live), ("25%", true));
//! # Ok::<(), kvista::policy::SpecError>(())
//! ```

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use crate::event::evict::recorded_score;
use crate::event::{Eviction, Head, Layer, Position, Reason, StepId};

pub mod accumulate;
pub mod param;
pub mod read;
pub mod registry;
pub mod select;
pub mod spec;

mod full;
mod h2o;
mod kcache;
mod streaming;
mod tova;

pub use accumulate::{Accumulators, Needs};
pub use kcache::Kcache;
pub use param::{Budget, Param, ParamKind, Value};
pub use read::{ReadRule, ReadSet, parse_read};
pub use registry::{Entry, Evidence, Granularity, Kind, REGISTRY};
pub use spec::{Change, Spec, SpecError};

/// The point of a run at which a policy may act.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum When {
    /// A chunk was fed that does not end the compressed span: one inside it, or one after it (the question).
    Chunk,
    /// The last chunk of the compressed span (the prompt, or its context part) was fed.
    EndOfPrompt,
    /// A generated token was fed.
    Token,
}

/// How keys must be stored for a policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Rope {
    /// Before the rotary embedding; attention rotates keys and queries alike by their rank among the residents.
    Pre,
    /// After the rotary embedding, at the token's own position.
    Post,
}

/// When and where a decision is asked for: once per layer of one sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moment {
    /// What was just fed.
    pub when: When,
    /// Decoder layer that decides.
    pub layer: Layer,
    /// Decoder layers of the model.
    pub layers: Layer,
    /// Tokens of the prompt: what a percentage is taken of.
    pub prompt_len: u32,
    /// Position the next token will get: tokens fed so far.
    pub next_position: Position,
    /// The engine step.
    pub step: StepId,
}

/// What one KV head brings to a decision.
#[derive(Clone, Copy, Debug)]
pub struct HeadInputs<'a> {
    /// Resident positions, ascending and unique.
    pub positions: &'a [Position],
    /// The head's accumulators; they hold what the policy's [`Needs`] name.
    pub acc: &'a Accumulators,
}

/// One decision: who is lost in one (layer, KV head), or in a whole layer.
#[derive(Clone, Debug, PartialEq)]
pub struct Verdict {
    /// KV head, or `None` when all heads of the layer lose the same positions.
    pub head: Option<Head>,
    /// Why.
    pub reason: Reason,
    /// Lowest score among the kept tokens that competed; `None` where nothing was scored.
    pub cutoff: Option<f32>,
    /// Positions lost, ascending; never empty.
    pub victims: Vec<Position>,
    /// One score per victim, never NaN; empty where nothing was scored.
    pub scores: Vec<f32>,
    /// Tokens resident after the decision, per head.
    pub kept: u32,
}

impl Verdict {
    /// The decision as it is recorded. The cutoff is rounded as the scores are, so that no victim comes out above it.
    pub fn recorded(self, layer: Layer) -> Eviction {
        Eviction {
            layer,
            head: self.head,
            reason: self.reason,
            cutoff: self.cutoff.map(|cutoff| recorded_score(cutoff).to_f32()),
            kept: self.kept,
            positions: self.victims,
            scores: self.scores.into_iter().map(recorded_score).collect(),
        }
    }
}

/// The rule of an evictor.
pub trait EvictPolicy: fmt::Debug + Send + Sync {
    /// Whether the rule decides at such a moment; [`EvictPolicy::decide`] is asked only then.
    fn acts(&self, when: When) -> bool;

    /// Decides for one layer and appends its verdicts, heads ascending; none where nothing is lost. `heads` are all KV
    /// heads of the layer in order. Afterwards the residents of every head are within the budget: no rule here takes
    /// slack.
    ///
    /// A rule that decides per layer reads the residents of the first head: all heads of its layers hold the same.
    fn decide(&self, moment: &Moment, heads: &[HeadInputs<'_>], out: &mut Vec<Verdict>);

    /// How keys must be stored.
    fn rope(&self) -> Rope {
        Rope::Post
    }

    /// Whether the budget leaves room for the fixed parts of the rule, now that the prompt length is known.
    fn check(&self, _prompt_len: u32) -> Result<(), SpecError> {
        Ok(())
    }
}

/// An evictor with its parameters, as spelled on the command line.
#[derive(Clone, Debug)]
pub struct Policy {
    spec: Spec,
    rule: Arc<dyn EvictPolicy>,
}

/// Reads an eviction policy: `h2o:budget=25%,recent=0.5`, `full`.
///
/// # Errors
///
/// One clear line for an unknown name or parameter, a value out of range, a duplicate, or a composition of two
/// evictors.
pub fn parse_policy(text: &str) -> Result<Policy, SpecError> {
    Spec::parse(Kind::Evict, text).map(Policy::new)
}

impl Policy {
    fn new(spec: Spec) -> Self {
        let rule = spec.evictor();
        Self { spec, rule }
    }

    /// The table of this policy: title, source, parameters.
    pub fn entry(&self) -> &'static Entry {
        self.spec.entry()
    }

    /// The parameters and their values, in the order of [`Entry::params`].
    pub fn spec(&self) -> &Spec {
        &self.spec
    }

    /// The accumulators to keep.
    pub fn needs(&self) -> Needs {
        self.entry().needs
    }

    /// How keys must be stored.
    pub fn rope(&self) -> Rope {
        self.rule.rope()
    }

    /// Whether it decides at such a moment.
    pub fn acts(&self, when: When) -> bool {
        self.rule.acts(when)
    }

    /// Slots that may stay resident per (layer, head) for a prompt of that many tokens; `None`: everything stays.
    pub fn slots(&self, prompt_len: u32) -> Option<u32> {
        self.spec.budget()?.slots(prompt_len)
    }

    /// Whether the policy can work on a prompt of that many tokens.
    ///
    /// # Errors
    ///
    /// [`SpecError::BudgetTooSmall`] when the budget leaves no room beside the fixed parts, such as sinks.
    pub fn check(&self, prompt_len: u32) -> Result<(), SpecError> {
        self.rule.check(prompt_len)
    }

    /// Decides for one layer, see [`EvictPolicy::decide`]; appends nothing at a moment at which the policy does not act.
    pub fn decide(&self, moment: &Moment, heads: &[HeadInputs<'_>], out: &mut Vec<Verdict>) {
        if self.acts(moment.when) {
            self.rule.decide(moment, heads, out);
        }
    }

    /// Sets a parameter, written as on the command line; `None` if it has that value already. A lower budget takes
    /// effect at the next decision; a higher one brings nothing back.
    ///
    /// [`Policy::check`] the result before putting it in force: a live budget can shrink under the sinks.
    ///
    /// # Errors
    ///
    /// Unknown parameter, or a value out of range; the policy is unchanged then.
    pub fn set(&mut self, param: &str, value: &str) -> Result<Option<Change>, SpecError> {
        let change = self.spec.set(param, value)?;
        if change.is_some() {
            self.rule = self.spec.evictor();
        }
        Ok(change)
    }
}

impl Default for Policy {
    /// `full`: nothing is ever lost.
    fn default() -> Self {
        Self::new(Spec::new(&full::ENTRY))
    }
}

impl PartialEq for Policy {
    fn eq(&self, other: &Self) -> bool {
        self.spec == other.spec
    }
}

impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.spec.fmt(f)
    }
}

impl FromStr for Policy {
    type Err = SpecError;
    fn from_str(text: &str) -> Result<Self, SpecError> {
        parse_policy(text)
    }
}

#[cfg(test)]
mod tests;
