//! Read sets: nothing is lost, some rows are not read in a step.

use std::fmt;
use std::str::FromStr;

use super::infllm::Infllm;
use super::kcache::Kcache;
use super::quest::Quest;
use super::registry::{Entry, Kind};
use super::spec::{Change, Spec, SpecError};

/// The rule of a read set, for attention to carry out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadRule {
    /// The N rows of V with the highest probability, per query head.
    Kcache(Kcache),
    /// The pages of K and V whose keys could score highest, per query head.
    Quest(Quest),
    /// The first tokens, a window, and the blocks between that fit the queries; blocks live on the host.
    Infllm(Infllm),
}

impl ReadRule {
    /// First layer whose V lives on the host; `None` where all of it is on the device.
    pub const fn host_v_from_layer(self) -> Option<u32> {
        match self {
            Self::Kcache(kcache) => Some(kcache.exempt_layers),
            Self::Quest(_) | Self::Infllm(_) => None,
        }
    }

    /// The memory behind the window, where a position's K and V may both live on the host.
    pub const fn memory(self) -> Option<Infllm> {
        match self {
            Self::Infllm(infllm) => Some(infllm),
            Self::Kcache(_) | Self::Quest(_) => None,
        }
    }

    /// Whether keys must lie in the cache as RoPE left them.
    pub const fn needs_rotated_keys(self) -> bool {
        matches!(self, Self::Quest(_))
    }
}

/// A read set with its parameters, as spelled on the command line.
#[derive(Clone, Debug, PartialEq)]
pub struct ReadSet {
    spec: Spec,
    rule: ReadRule,
}

/// Reads a read set: `kcache:n=64,l=1`.
///
/// # Errors
///
/// One clear line, as [`super::parse_policy`].
pub fn parse_read(text: &str) -> Result<ReadSet, SpecError> {
    let spec = Spec::parse(Kind::Read, text)?;
    let rule = spec.reader();
    Ok(ReadSet { spec, rule })
}

impl ReadSet {
    /// The table of this read set.
    pub fn entry(&self) -> &'static Entry {
        self.spec.entry()
    }

    /// The parameters and their values, in the order of [`Entry::params`].
    pub fn spec(&self) -> &Spec {
        &self.spec
    }

    /// The rule with the present values.
    pub fn rule(&self) -> ReadRule {
        self.rule
    }

    /// Sets a parameter, written as on the command line; `None` if it has that value already. In force from the next
    /// step if [`Change::live`].
    ///
    /// # Errors
    ///
    /// Unknown parameter, or a value out of range; the read set is unchanged then.
    pub fn set(&mut self, param: &str, value: &str) -> Result<Option<Change>, SpecError> {
        let change = self.spec.set(param, value)?;
        if change.is_some() {
            self.rule = self.spec.reader();
        }
        Ok(change)
    }
}

impl fmt::Display for ReadSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.spec.fmt(f)
    }
}

impl FromStr for ReadSet {
    type Err = SpecError;
    fn from_str(text: &str) -> Result<Self, SpecError> {
        parse_read(text)
    }
}
