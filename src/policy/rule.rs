//! What rules share: a budget, what a decision covers, when it is made; and the forms in which a rule is written.
//!
//! A rule that ranks tokens is a [`Score`], one that cuts every head in one piece a [`Cut`], one that changes the plan of
//! another a [`Wrap`]. What is none of these implements [`EvictPolicy`] itself, on its [`Terms`].

use std::fmt;
use std::sync::Arc;

use super::inputs::{HeadInputs, Moment, When};
use super::param::{self, Budget};
use super::plan::{self, Plan};
use super::registry::Granularity;
use super::select::{Protected, Ranked, RankedBy};
use super::spec::Part;
use super::{Bound, EvictPolicy, Needs, Rope, Shares, SpecError, Verdict};
use crate::event::Head;

/// When a rule decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Acts {
    /// At the end of the prompt.
    Once,
    /// At the end of the prompt, then after every token.
    Tokens,
    /// After every chunk of the prompt, then after every token.
    Chunks,
}

impl Acts {
    /// As the parameter `when` or `decode` says; a rule that declares neither acts once.
    fn of(part: &Part) -> Self {
        let declares = |name| part.params().any(|(param, _)| param.name == name);
        match () {
            () if declares("when") && part.choice("when") == param::CHUNK => Self::Chunks,
            () if declares("when") || declares("decode") && part.switch("decode") => Self::Tokens,
            () => Self::Once,
        }
    }

    fn at(self, when: When) -> bool {
        match when {
            When::Chunk => self == Self::Chunks,
            When::EndOfPrompt => true,
            When::Token => self != Self::Once,
        }
    }
}

/// What the parameters say that nearly every rule declares.
#[derive(Clone, Debug)]
pub(super) struct Terms {
    name: &'static str,
    budget: Budget,
    by: Granularity,
    acts: Acts,
    /// The parameters of slots that are kept in any case, and their number: there must be room beside them.
    fixed: Vec<(&'static str, u32)>,
}

impl Terms {
    /// From a part that declares a budget. `fixed` names its parameters of slots that are kept in any case.
    pub(super) fn of(part: &Part, fixed: &[&'static str]) -> Self {
        Self {
            name: part.entry().name,
            budget: part.budget().expect("every evictor but the full cache declares a budget"),
            by: part.granularity(),
            acts: Acts::of(part),
            fixed: fixed.iter().map(|&param| (param, part.int(param))).collect(),
        }
    }

    /// The same for a rule that acts at fixed moments, whatever its parameters.
    pub(super) fn acting(self, acts: Acts) -> Self {
        Self { acts, ..self }
    }

    pub(super) fn acts(&self, when: When) -> bool {
        self.acts.at(when)
    }

    pub(super) fn slots(&self, moment: &Moment) -> Option<u32> {
        self.budget.slots(moment.prompt_len)
    }

    pub(super) fn check(&self, prompt_len: u32) -> Result<(), SpecError> {
        SpecError::unless_room(self.name, self.budget, prompt_len, &self.fixed)
    }
}

/// A rule that ranks tokens: the protected stay, and of the others those of the highest score.
pub(super) trait Score: fmt::Debug + Send + Sync + 'static {
    /// The parameters of slots that are kept in any case.
    const FIXED: &'static [&'static str] = &[];

    /// What it reads of attention and of the cache.
    fn needs(&self) -> Needs {
        Needs::NONE
    }

    /// Slots of each head of the moment's layer; `None`: no bound.
    fn slots(&self, budget: Budget, moment: &Moment) -> Option<u32> {
        budget.slots(moment.prompt_len)
    }

    /// See [`EvictPolicy::shares`].
    fn shares(&self) -> Option<Shares> {
        None
    }

    /// How many stay of `residents`, which are more than there are `slots`.
    fn stay(&self, slots: u32, _residents: u32) -> u32 {
        slots
    }

    /// Who is kept whatever the score.
    fn protected(&self, _slots: u32) -> Protected {
        Protected::default()
    }

    /// What the scores are where they are sums of attention and nothing else.
    fn ranked_by(&self) -> Option<RankedBy> {
        None
    }

    /// One score per resident, in order; the higher stays.
    fn scores(&self, moment: &Moment, h: Head, head: &HeadInputs<'_>) -> Vec<f32>;
}

/// A score with its terms: a whole rule.
#[derive(Debug)]
pub(super) struct Scored<S> {
    terms: Terms,
    score: S,
}

impl<S: Score> Scored<S> {
    pub(super) fn rule(part: &Part, score: S) -> Arc<dyn EvictPolicy> {
        Arc::new(Self { terms: Terms::of(part, S::FIXED), score })
    }

    /// The same for a rule that acts at fixed moments, whatever its parameters.
    pub(super) fn acting(part: &Part, score: S, acts: Acts) -> Arc<dyn EvictPolicy> {
        Arc::new(Self { terms: Terms::of(part, S::FIXED).acting(acts), score })
    }
}

impl<S: Score> EvictPolicy for Scored<S> {
    fn needs(&self) -> Needs {
        self.score.needs()
    }

    fn acts(&self, when: When) -> bool {
        self.terms.acts(when)
    }

    fn slots(&self, moment: &Moment) -> Option<u32> {
        self.score.slots(self.terms.budget, moment)
    }

    fn bound(&self, moment: &Moment, kv_heads: u32) -> Option<Bound> {
        Some(plan::bound(self.terms.by, self.slots(moment)?, moment.block_size, kv_heads))
    }

    fn shares(&self) -> Option<Shares> {
        self.score.shares()
    }

    fn plan(&self, moment: &Moment, heads: &[HeadInputs<'_>]) -> Option<Plan> {
        let slots = self.slots(moment)?;
        let most = heads.iter().map(|head| head.positions.len()).max()? as u32;
        if self.rests(moment, most) {
            return None;
        }
        Some(Plan {
            by: self.terms.by,
            budget: self.score.stay(slots, most),
            protected: self.score.protected(slots),
            scores: (0..).zip(heads).map(|(h, head)| self.score.scores(moment, h, head)).collect(),
            floor: None,
            crush: None,
        })
    }

    fn ranked(&self, moment: &Moment, most: u32) -> Option<Ranked> {
        let (by, slots) = (self.score.ranked_by()?, self.slots(moment)?);
        let as_one = match self.terms.by {
            Granularity::Head => false,
            Granularity::Layer => true,
            Granularity::Page => return None,
        };
        let (budget, protected) = (self.score.stay(slots, most), self.score.protected(slots));
        Some(Ranked { by, as_one, budget, protected, crush: None })
    }

    fn check(&self, prompt_len: u32) -> Result<(), SpecError> {
        self.terms.check(prompt_len)
    }
}

/// A rule that decides for every head in one piece: there is no score for wrappers to work on.
pub(super) trait Cut: fmt::Debug + Send + Sync + 'static {
    /// The parameters of slots that are kept in any case.
    const FIXED: &'static [&'static str] = &[];

    /// What it reads of attention and of the cache.
    fn needs(&self) -> Needs;

    /// Decides for one head that holds more than its `slots`.
    fn cut(&self, moment: &Moment, h: Head, head: &HeadInputs<'_>, slots: u32) -> Option<Verdict>;
}

/// A cut with its terms: a whole rule.
#[derive(Debug)]
pub(super) struct PerHead<C> {
    terms: Terms,
    cut: C,
}

impl<C: Cut> PerHead<C> {
    pub(super) fn rule(part: &Part, cut: C) -> Arc<dyn EvictPolicy> {
        Arc::new(Self { terms: Terms::of(part, C::FIXED), cut })
    }
}

impl<C: Cut> EvictPolicy for PerHead<C> {
    fn needs(&self) -> Needs {
        self.cut.needs()
    }

    fn acts(&self, when: When) -> bool {
        self.terms.acts(when)
    }

    fn slots(&self, moment: &Moment) -> Option<u32> {
        self.terms.slots(moment)
    }

    fn decide(&self, moment: &Moment, heads: &[HeadInputs<'_>], out: &mut Vec<Verdict>) {
        let Some(slots) = self.slots(moment) else { return };
        let over = (0..).zip(heads).filter(|(_, head)| head.positions.len() > slots as usize);
        out.extend(over.filter_map(|(h, head)| self.cut.cut(moment, h, head, slots)));
    }

    fn check(&self, prompt_len: u32) -> Result<(), SpecError> {
        self.terms.check(prompt_len)
    }
}

/// What a wrapper does to the rule before it.
pub(super) trait Wrap: fmt::Debug + Send + Sync + 'static {
    /// The bound, from that of the rule.
    fn bound(&self, of_rule: Bound, kv_heads: u32) -> Bound;

    /// The plan, from that of the rule.
    fn change(&self, plan: Plan) -> Plan;

    /// The same of a decision that is made of sums alone; `None` where it is not any more.
    fn ranked(&self, _: Ranked) -> Option<Ranked> {
        None
    }
}

/// A rule behind which a wrapper stands.
#[derive(Debug)]
pub(super) struct Wrapped<W> {
    inner: Arc<dyn EvictPolicy>,
    wrap: W,
}

impl<W: Wrap> Wrapped<W> {
    pub(super) fn rule(inner: Arc<dyn EvictPolicy>, wrap: W) -> Arc<dyn EvictPolicy> {
        Arc::new(Self { inner, wrap })
    }
}

impl<W: Wrap> EvictPolicy for Wrapped<W> {
    fn needs(&self) -> Needs {
        self.inner.needs()
    }

    fn acts(&self, when: When) -> bool {
        self.inner.acts(when)
    }

    fn slots(&self, moment: &Moment) -> Option<u32> {
        self.inner.slots(moment)
    }

    fn bound(&self, moment: &Moment, kv_heads: u32) -> Option<Bound> {
        Some(self.wrap.bound(self.inner.bound(moment, kv_heads)?, kv_heads))
    }

    fn plan(&self, moment: &Moment, heads: &[HeadInputs<'_>]) -> Option<Plan> {
        Some(self.wrap.change(self.inner.plan(moment, heads)?))
    }

    fn ranked(&self, moment: &Moment, most: u32) -> Option<Ranked> {
        self.wrap.ranked(self.inner.ranked(moment, most)?)
    }

    fn shares(&self) -> Option<Shares> {
        self.inner.shares()
    }

    fn rope(&self) -> Rope {
        self.inner.rope()
    }

    fn check(&self, prompt_len: u32) -> Result<(), SpecError> {
        self.inner.check(prompt_len)
    }
}
