//! Merges: rows are altered. Either what a decision would lose goes into what it keeps, or two layers become alike.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use super::accumulate::Needs;
use super::inputs::{HeadInputs, Moment};
use super::minicache::MiniCache;
use super::registry::{Entry, Kind};
use super::spec::{Change, Spec, SpecError};
use crate::event::{Head, MergeArc, Position};

/// The rule of a merge, for the engine to carry out.
#[derive(Clone, Debug)]
pub enum MergeRule {
    /// Victims of every decision, before their rows are lost.
    Victims(Arc<dyn VictimMerge>),
    /// Pairs of layers, once, at the end of the compressed span.
    Layers(MiniCache),
}

impl MergeRule {
    /// What it reads of attention and of the cache; keys and values only where it merges.
    pub fn needs(&self) -> Needs {
        match self {
            Self::Victims(rule) => rule.needs(),
            Self::Layers(_) => Needs { keys: true, values: true, ..Needs::NONE },
        }
    }
}

/// A rule that merges what an evictor would lose.
pub trait VictimMerge: fmt::Debug + Send + Sync {
    /// What it reads of attention and of the cache; keys and values only at decisions that lose something.
    fn needs(&self) -> Needs;

    /// How a victim's row enters a kept one.
    fn entering(&self) -> Entering;

    /// Whether keys are merged as values are; otherwise they are lost.
    fn keys(&self) -> bool;

    /// Decides for one layer, all its KV heads in order: what goes where, one per head that loses something, heads
    /// ascending. `memory` is what the rule keeps of this (sequence, layer) from decision to decision.
    fn merge(&self, moment: &Moment, heads: &[Parting<'_>], memory: &mut Memory) -> Vec<HeadMerge>;
}

/// How a victim's row enters a kept one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entering {
    /// Weight times row is added to the kept row.
    Added,
    /// The kept row becomes the mean of itself and of weight times row of all that enter it.
    Averaged,
}

/// What a merge rule remembers of one (sequence, layer).
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Memory {
    /// The similarity asked for at the decision before.
    pub(super) threshold: Option<f64>,
}

/// One KV head at a decision.
#[derive(Clone, Debug)]
pub struct Parting<'a> {
    /// Its residents.
    pub head: HeadInputs<'a>,
    /// Which of them are lost, one per resident.
    pub lost: &'a [bool],
}

impl Parting<'_> {
    /// Indices of the residents that are lost, ascending.
    pub(super) fn victims(&self) -> impl Iterator<Item = usize> {
        (0..self.lost.len()).filter(|&i| self.lost[i])
    }

    /// Indices of the residents that stay, ascending.
    pub(super) fn kept(&self) -> Vec<usize> {
        (0..self.lost.len()).filter(|&i| !self.lost[i]).collect()
    }
}

/// What goes where in one KV head.
#[derive(Clone, Debug, PartialEq)]
pub struct HeadMerge {
    /// KV head.
    pub head: Head,
    /// Similarity asked for, where the rule has such a threshold.
    pub threshold: Option<f32>,
    /// The victims that are merged, positions ascending.
    pub arcs: Vec<MergeArc>,
}

/// The kept rows that merging changes: (index of the resident, its new row), ascending. `rows` are those of all residents,
/// `[resident][head_dim]`; an arc's targets are the kept residents from [`MergeArc::into`] on.
pub fn blend(
    entering: Entering,
    arcs: &[MergeArc],
    positions: &[Position],
    lost: &[bool],
    rows: &[f32],
) -> Vec<(usize, Vec<f32>)> {
    let head_dim = rows.len().checked_div(positions.len()).unwrap_or(0);
    let row = |i: usize| &rows[i * head_dim..][..head_dim];
    let kept: Vec<usize> = (0..positions.len()).filter(|&i| !lost[i]).collect();
    let mut changed: Vec<Option<(Vec<f32>, u32)>> = vec![None; kept.len()];
    for arc in arcs {
        let Ok(from) = positions.binary_search(&arc.from) else { continue };
        let first = kept.partition_point(|&i| positions[i] < arc.into);
        let targets = kept[first..].iter().zip(&mut changed[first..]);
        for (&into, changed) in targets.take(arc.targets as usize) {
            let (sum, entered) = changed.get_or_insert_with(|| (row(into).to_vec(), 0));
            sum.iter_mut().zip(row(from)).for_each(|(sum, &x)| *sum += arc.weight * x);
            *entered += 1;
        }
    }
    let finished = kept.into_iter().zip(changed).filter_map(|(i, changed)| {
        let (mut row, entered) = changed?;
        if entering == Entering::Averaged {
            for x in &mut row {
                *x /= (entered + 1) as f32;
            }
        }
        Some((i, row))
    });
    finished.collect()
}

/// A merge rule with its parameters, as spelled on the command line.
#[derive(Clone, Debug)]
pub struct Merging {
    spec: Spec,
    rule: MergeRule,
}

/// Reads a merge rule: `cam:m=16`, `d2o`, `minicache:t=0.5`.
///
/// # Errors
///
/// One clear line, as [`super::parse_policy`].
pub fn parse_merge(text: &str) -> Result<Merging, SpecError> {
    let spec = Spec::parse(Kind::Merge, text)?;
    let rule = spec.merger();
    Ok(Merging { spec, rule })
}

impl Merging {
    /// The table of this rule.
    pub fn entry(&self) -> &'static Entry {
        self.spec.entry()
    }

    /// The parameters and their values.
    pub fn spec(&self) -> &Spec {
        &self.spec
    }

    /// The rule with the present values.
    pub fn rule(&self) -> &MergeRule {
        &self.rule
    }

    /// What it reads of attention and of the cache.
    pub fn needs(&self) -> Needs {
        self.rule.needs()
    }

    /// Sets a parameter, written as on the command line; `None` if it has that value already. In force from the next
    /// decision if [`Change::live`].
    ///
    /// # Errors
    ///
    /// Unknown parameter, or a value out of range; the rule is unchanged then.
    pub fn set(&mut self, param: &str, value: &str) -> Result<Option<Change>, SpecError> {
        let change = self.spec.set(param, value)?;
        if change.is_some() {
            self.rule = self.spec.merger();
        }
        Ok(change)
    }
}

impl PartialEq for Merging {
    fn eq(&self, other: &Self) -> bool {
        self.spec == other.spec
    }
}

impl fmt::Display for Merging {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.spec.fmt(f)
    }
}

impl FromStr for Merging {
    type Err = SpecError;
    fn from_str(text: &str) -> Result<Self, SpecError> {
        parse_merge(text)
    }
}

#[cfg(test)]
pub(crate) mod tests;
