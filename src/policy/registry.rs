//! The table of everything that can be named on the command line: one line per rule.

use std::fmt;
use std::sync::Arc;

use super::accumulate::Needs;
use super::param::Param;
use super::read::ReadRule;
use super::spec::Spec;
use super::{EvictPolicy, full, h2o, kcache, streaming, tova};

/// Every rule, evictors first. A new rule is its own file and one line here.
pub static REGISTRY: &[Entry] = &[full::ENTRY, streaming::ENTRY, h2o::ENTRY, tova::ENTRY, kcache::ENTRY];

/// What a rule does to the cache. Never drawn alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// State is lost.
    Evict,
    /// Nothing is lost; some rows are not read in a step.
    Read,
}

impl Kind {
    /// The kind with its article.
    pub const fn with_article(self) -> &'static str {
        match self {
            Self::Evict => "an eviction policy",
            Self::Read => "a read set",
        }
    }

    /// The flag of `kvista run` that takes it, without dashes.
    pub const fn flag(self) -> &'static str {
        match self {
            Self::Evict => "policy",
            Self::Read => "read",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Evict => "eviction policy",
            Self::Read => "read set",
        })
    }
}

/// How the rule here is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Evidence {
    /// Read in the source code of the reference implementation.
    Source,
    /// Read in the abstract or the authors' own page; the details are our reading of it.
    Abstract,
    /// From memory of the paper; not checked against a text.
    Memory,
    /// Our own definition.
    Own,
}

impl Evidence {
    /// The words shown.
    pub const fn words(self) -> &'static str {
        match self {
            Self::Source => "read in source",
            Self::Abstract => "read in abstract",
            Self::Memory => "from memory",
            Self::Own => "own definition",
        }
    }
}

/// What one decision covers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Granularity {
    /// Each KV head keeps its own tokens: gangs of blocks split.
    Head,
    /// All heads of a layer keep the same tokens.
    Layer,
}

impl Granularity {
    /// The words shown.
    pub const fn words(self) -> &'static str {
        match self {
            Self::Head => "per head",
            Self::Layer => "per layer",
        }
    }
}

/// Where a rule comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Source {
    /// Title of the paper; empty for our own.
    pub paper: &'static str,
    /// Its arXiv id; empty where there is none.
    pub arxiv: &'static str,
    /// The section or repository the rule was taken from.
    pub at: &'static str,
    /// How it is known.
    pub evidence: Evidence,
}

/// How to make the rule from its values.
#[derive(Clone, Copy, Debug)]
pub(super) enum Build {
    Evict(fn(&Spec) -> Arc<dyn EvictPolicy>),
    Read(fn(&Spec) -> ReadRule),
}

/// One rule, declared.
#[derive(Clone, Copy, Debug)]
pub struct Entry {
    /// Name on the command line.
    pub name: &'static str,
    /// Name in the literature.
    pub title: &'static str,
    /// The rule in one line.
    pub doc: &'static str,
    /// Where it comes from.
    pub source: Source,
    /// Defaults of the source, where ours differ or say less.
    pub source_defaults: &'static str,
    /// Accumulators it needs.
    pub needs: Needs,
    /// When it acts, in words.
    pub acts: &'static str,
    /// What one decision covers.
    pub granularity: Granularity,
    /// Parameters, the headline one first.
    pub params: &'static [Param],
    /// What differs from the source, one line each.
    pub deviations: &'static [&'static str],
    pub(super) build: Build,
}

impl Entry {
    /// What the rule does to the cache.
    pub const fn kind(&self) -> Kind {
        match self.build {
            Build::Evict(_) => Kind::Evict,
            Build::Read(_) => Kind::Read,
        }
    }
}

/// The entry of that name.
pub fn entry(name: &str) -> Option<&'static Entry> {
    REGISTRY.iter().find(|entry| entry.name == name)
}

/// The entries of one kind, in the order of the table.
pub fn of_kind(kind: Kind) -> impl Iterator<Item = &'static Entry> {
    REGISTRY.iter().filter(move |entry| entry.kind() == kind)
}

#[cfg(test)]
mod tests {
    use super::super::param::Value;
    use super::*;

    #[test]
    fn every_entry_is_complete_and_builds() {
        for (i, entry) in REGISTRY.iter().enumerate() {
            let name = entry.name;
            assert!(REGISTRY[..i].iter().all(|earlier| earlier.name != name), "{name} is declared twice");
            for text in [name, entry.title, entry.doc, entry.acts] {
                assert!(!text.is_empty() && !text.contains('\n'), "{name}: '{text}'");
            }
            assert_eq!(entry.source.evidence == Evidence::Own, entry.source.paper.is_empty(), "{name}");
            let spec = Spec::new(entry);
            match entry.kind() {
                Kind::Evict => drop(spec.evictor()),
                Kind::Read => drop(spec.reader()),
            }
        }
    }

    #[test]
    fn every_parameter_is_documented_and_its_default_in_range() {
        for entry in REGISTRY {
            for (i, param) in entry.params.iter().enumerate() {
                let name = format!("{}:{}", entry.name, param.name);
                assert!(entry.params[..i].iter().all(|earlier| earlier.name != param.name), "{name} twice");
                assert!(!param.doc.is_empty() && !param.doc.contains('\n'), "{name}");
                assert!(param.fine > 0.0 && param.coarse >= param.fine, "{name}");
                assert_eq!(param.kind.parse(&param.default.to_string()), Some(param.default), "{name}");
                assert_eq!(param.headline, i == 0, "{name}: the headline parameter is the first");
                let budget = matches!(param.default, Value::Budget(_));
                assert!(!budget || (param.name == "budget" && param.live), "{name}");
            }
        }
    }
}
