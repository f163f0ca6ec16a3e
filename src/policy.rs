//! Floor 1: the published rules, pure: no tensors, no I/O, no clock.
//!
//! A policy is *declared*: the [accumulators](Needs) it needs, a score over them, a [selection](select) rule, its
//! [parameters](Param) and when it acts. The engine keeps the accumulators, tells the policy the [`Moment`], and carries
//! out the [`Verdict`]s. The same code runs live, in what-if and in tests, and it is deterministic given its inputs and
//! the moment's seed.
//!
//! Every rule is one file, which begins with its source and what differs from it, and one line of [`REGISTRY`]; command
//! line, tuner and help are driven by that table. An *evictor* ([`Policy`]) loses state; a *read set* ([`ReadSet`]) loses
//! nothing but does not read some rows in a step. A *merge* ([`Merging`]) alters rows: those that a decision keeps take in
//! those that it loses, or two layers become alike. The three are never mixed. A *wrapper* stands behind an evictor that
//! scores tokens and changes its [`Plan`]: `h2o:budget=25%+adakv`.
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
use crate::event::{Crush, Eviction, Head, Layer, Position, Reason};

pub mod accumulate;
pub mod inputs;
pub mod merge;
pub mod param;
pub mod plan;
pub mod read;
pub mod registry;
pub mod select;
pub mod spec;

mod noise;
mod rule;
mod units;

mod adakv;
mod buzz;
mod cam;
mod crush;
mod d2o;
mod expected;
mod fastgen;
mod full;
mod h2o;
mod infllm;
mod kcache;
mod keydiff;
mod keyformer;
mod knorm;
mod lm_infinite;
mod minicache;
mod nacl;
mod pyramidkv;
mod quest;
mod random;
mod roco;
mod scissorhands;
mod snapkv;
mod streaming;
mod tova;

pub use accumulate::{Accumulators, Needs, QueryMoments, Site, SumKind};
pub use crush::{CrushPicture, Crushing};
pub use infllm::Infllm;
pub use inputs::{HeadInputs, Moment, TokenClass, When};
pub use kcache::Kcache;
pub use merge::{Entering, HeadMerge, Memory, MergeRule, Merging, Parting, VictimMerge, blend, parse_merge};
pub use minicache::MiniCache;
pub use param::{Budget, Param, ParamKind, Value};
pub use plan::Plan;
pub use quest::Quest;
pub use read::{ReadRule, ReadSet, parse_read};
pub use registry::{Entry, Evidence, Granularity, Kind, REGISTRY};
pub use select::{Ranked, RankedBy};
pub use spec::{Change, Spec, SpecError};

/// How keys must be stored for a policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Rope {
    /// Before the rotary embedding; attention rotates keys and queries alike by their rank among the residents.
    Pre,
    /// After the rotary embedding, at the token's own position.
    Post,
}

/// Most residents of a layer after a decision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bound {
    /// Of any one KV head.
    pub per_head: u32,
    /// Of all KV heads together.
    pub per_layer: u64,
}

impl Bound {
    /// The same for every head.
    pub fn each(per_head: u32, kv_heads: u32) -> Self {
        Self { per_head, per_layer: u64::from(per_head) * u64::from(kv_heads) }
    }
}

/// One decision: who is lost in one (layer, KV head), or in a whole layer.
#[derive(Clone, Debug, PartialEq)]
pub struct Verdict {
    /// KV head, or `None` when all heads of the layer lose the same positions.
    pub head: Option<Head>,
    /// Why.
    pub reason: Reason,
    /// Lowest score among the kept tokens that competed by score; `None` where nothing was scored.
    pub cutoff: Option<f32>,
    /// Positions lost, ascending; never empty.
    pub victims: Vec<Position>,
    /// One score per victim, never NaN; empty where nothing was scored.
    pub scores: Vec<f32>,
    /// Tokens resident after the decision, per head.
    pub kept: u32,
    /// What KVCrush saw, on the first verdict of a layer that it decided.
    pub crush: Option<Box<Crush>>,
}

impl Verdict {
    /// A decision without scores.
    fn unscored(head: Option<Head>, reason: Reason, victims: Vec<Position>, kept: u32) -> Self {
        Self { head, reason, cutoff: None, victims, scores: Vec::new(), kept, crush: None }
    }

    /// A decision by score; where nobody that stays was scored, the victims' scores say nothing.
    fn scored(
        head: Option<Head>,
        reason: Reason,
        victims: Vec<Position>,
        mut scores: Vec<f32>,
        cutoff: Option<f32>,
        kept: u32,
    ) -> Self {
        if cutoff.is_none() {
            scores.clear();
        }
        Self { cutoff, scores, ..Self::unscored(head, reason, victims, kept) }
    }

    /// A decision of one head in which `keep` says who stays; `None` where everyone does.
    fn of_kept(head: Head, reason: Reason, positions: &[Position], keep: &[bool]) -> Option<Self> {
        let victims: Vec<_> =
            positions.iter().zip(keep).filter_map(|(&p, &keep)| (!keep).then_some(p)).collect();
        let kept = (positions.len() - victims.len()) as u32;
        (!victims.is_empty()).then(|| Self::unscored(Some(head), reason, victims, kept))
    }

    /// The same with scores: the cutoff is the lowest of those kept for their score.
    fn with_scores(mut self, positions: &[Position], scores: &[f32], cutoff: Option<f32>) -> Self {
        if cutoff.is_some() {
            self.cutoff = cutoff;
            let index = |p| positions.binary_search(p).expect("a victim is resident");
            self.scores = self.victims.iter().map(|p| select::comparable(scores[index(p)])).collect();
        }
        self
    }

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

/// How many times the mean budget each layer gets ([`Moment::share`]): asked once per sequence, before its first decision.
/// The layers bring positions and accumulators.
pub type Shares = fn(&[Vec<HeadInputs<'_>>]) -> Vec<f32>;

/// The rule of an evictor.
pub trait EvictPolicy: fmt::Debug + Send + Sync {
    /// What it reads of attention and of the cache.
    fn needs(&self) -> Needs {
        Needs::NONE
    }

    /// Whether the rule decides at such a moment; [`EvictPolicy::decide`] is asked only then.
    fn acts(&self, when: When) -> bool;

    /// Slots of each head of the moment's layer; `None`: no bound.
    fn slots(&self, moment: &Moment) -> Option<u32>;

    /// Most residents after a decision at this moment: the slots, and the slack that the rule takes.
    fn bound(&self, moment: &Moment, kv_heads: u32) -> Option<Bound> {
        Some(Bound::each(self.slots(moment)?, kv_heads))
    }

    /// How the budget is shared over the layers, of a rule that must see all of them to say so.
    fn shares(&self) -> Option<Shares> {
        None
    }

    /// The plan of a rule that scores tokens, for wrappers to change; `None` where nothing is lost, and of a rule that
    /// decides in one piece.
    fn plan(&self, _: &Moment, _: &[HeadInputs<'_>]) -> Option<Plan> {
        None
    }

    /// The decision of a layer in which one head holds `most` tokens and none more, where it is made of sums of attention
    /// alone and all residents compete; `None`: [`decide`](Self::decide) has to be asked.
    fn ranked(&self, _: &Moment, _most: u32) -> Option<Ranked> {
        None
    }

    /// Decides for one layer and appends its verdicts, heads ascending, one per head or one for the layer; none where
    /// nothing is lost. `heads` are all KV heads of the layer in order. Afterwards the residents are within the bound.
    ///
    /// A rule that decides per layer reads the residents of the first head: all heads of its layers hold the same.
    fn decide(&self, moment: &Moment, heads: &[HeadInputs<'_>], out: &mut Vec<Verdict>) {
        if let Some(plan) = self.plan(moment, heads) {
            plan.decide(moment, heads, out);
        }
    }

    /// Whether nothing is lost at this moment where no head holds more than `most` tokens. What a decision reads need
    /// not be gathered then; a rule that takes more than what is above its slots says no.
    fn rests(&self, moment: &Moment, most: u32) -> bool {
        self.slots(moment).is_none_or(|slots| most <= slots)
    }

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

/// Reads an eviction policy: `h2o:budget=25%,recent=0.5`, `snapkv:budget=512+kvcrush:ratio=0.25+adakv`, `full`.
///
/// # Errors
///
/// One clear line for an unknown name or parameter, a value out of range, a duplicate, or a composition that makes no
/// sense.
pub fn parse_policy(text: &str) -> Result<Policy, SpecError> {
    Spec::parse(Kind::Evict, text).map(Policy::new)
}

impl Policy {
    fn new(spec: Spec) -> Self {
        let rule = spec.evictor();
        Self { spec, rule }
    }

    /// The table of this policy, without its wrappers: title, source, parameters.
    pub fn entry(&self) -> &'static Entry {
        self.spec.entry()
    }

    /// The parameters and their values.
    pub fn spec(&self) -> &Spec {
        &self.spec
    }

    /// The accumulators to keep.
    pub fn needs(&self) -> Needs {
        self.rule.needs()
    }

    /// How keys must be stored.
    pub fn rope(&self) -> Rope {
        self.rule.rope()
    }

    /// Whether it decides at such a moment.
    pub fn acts(&self, when: When) -> bool {
        self.rule.acts(when)
    }

    /// Whether nothing is lost at this moment where no head holds more than `most` tokens: [`decide`](Self::decide) would
    /// append nothing.
    pub fn rests(&self, moment: &Moment, most: u32) -> bool {
        !self.acts(moment.when) || self.rule.rests(moment, most)
    }

    /// Slots that may stay resident per (layer, head) for a prompt of that many tokens, on the average over layers and
    /// heads; `None`: everything stays.
    pub fn slots(&self, prompt_len: u32) -> Option<u32> {
        self.spec.budget()?.slots(prompt_len)
    }

    /// Most residents of the moment's layer after a decision at it; `None`: no bound.
    pub fn bound(&self, moment: &Moment, kv_heads: u32) -> Option<Bound> {
        self.rule.bound(moment, kv_heads)
    }

    /// Whether the policy can work on a prompt of that many tokens.
    ///
    /// # Errors
    ///
    /// [`SpecError::BudgetTooSmall`] when the budget leaves no room beside the fixed parts, such as sinks.
    pub fn check(&self, prompt_len: u32) -> Result<(), SpecError> {
        self.rule.check(prompt_len)
    }

    /// How the budget is shared over the layers, see [`EvictPolicy::shares`].
    pub fn shares(&self) -> Option<Shares> {
        self.rule.shares()
    }

    /// A decision that can be made where sums of attention are kept, see [`EvictPolicy::ranked`].
    pub fn ranked(&self, moment: &Moment, most: u32) -> Option<Ranked> {
        self.rule.ranked(moment, most)
    }

    /// Decides for one layer, see [`EvictPolicy::decide`]; appends nothing at a moment at which the policy does not act.
    pub fn decide(&self, moment: &Moment, heads: &[HeadInputs<'_>], out: &mut Vec<Verdict>) {
        if self.acts(moment.when) {
            self.rule.decide(moment, heads, out);
        }
    }

    /// Sets a parameter, written as on the command line (that of a wrapper with its name before it: `adakv.floor`);
    /// `None` if it has that value already. A lower budget takes effect at the next decision; a higher one brings
    /// nothing back.
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
pub(crate) mod testing;
#[cfg(test)]
mod tests;
