//! The table of everything that can be named on the command line: one line per rule.

use std::fmt;
use std::sync::Arc;

use super::accumulate::Needs;
use super::merge::MergeRule;
use super::param::Param;
use super::read::ReadRule;
use super::spec::Part;
use super::{
    EvictPolicy, adakv, buzz, cam, crush, d2o, expected, fastgen, full, h2o, infllm, kcache, keydiff,
    keyformer, knorm, lm_infinite, minicache, nacl, pyramidkv, quest, random, roco, scissorhands, snapkv,
    streaming, tova,
};

/// Every rule: evictors, then their wrappers, then read sets, then merges. A new rule is its own file and one line here.
pub static REGISTRY: &[Entry] = &[
    full::ENTRY,
    streaming::ENTRY,
    h2o::ENTRY,
    tova::ENTRY,
    random::ENTRY,
    lm_infinite::ENTRY,
    scissorhands::ENTRY,
    snapkv::ENTRY,
    pyramidkv::ENTRY,
    keyformer::ENTRY,
    fastgen::ENTRY,
    roco::ENTRY,
    buzz::ENTRY,
    nacl::ENTRY,
    d2o::ENTRY,
    knorm::ENTRY,
    keydiff::ENTRY,
    expected::ENTRY,
    adakv::ENTRY,
    crush::ENTRY,
    kcache::ENTRY,
    quest::ENTRY,
    infllm::ENTRY,
    cam::ENTRY,
    d2o::merge::ENTRY,
    minicache::ENTRY,
];

/// What a rule does to the cache. Never drawn alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// State is lost.
    Evict,
    /// Nothing is lost; some rows are not read in a step.
    Read,
    /// State is altered: rows go into others, or become alike.
    Merge,
}

impl Kind {
    /// Every kind, in the order in which they are offered.
    pub const ALL: [Self; 3] = [Self::Evict, Self::Read, Self::Merge];

    /// The kind with its article.
    pub const fn with_article(self) -> &'static str {
        match self {
            Self::Evict => "an eviction policy",
            Self::Read => "a read set",
            Self::Merge => "a merge rule",
        }
    }

    /// The flag of `kvista run` that takes it, without dashes.
    pub const fn flag(self) -> &'static str {
        match self {
            Self::Evict => "policy",
            Self::Read => "read",
            Self::Merge => "merge",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Evict => "eviction policy",
            Self::Read => "read set",
            Self::Merge => "merge rule",
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
    /// All heads of a layer keep the same whole pages: nothing is stranded.
    Page,
}

impl Granularity {
    /// The words shown.
    pub const fn words(self) -> &'static str {
        match self {
            Self::Head => "per head",
            Self::Layer => "per layer",
            Self::Page => "per page of a layer",
        }
    }

    /// As the parameter `by` spells it.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Head => "head",
            Self::Layer => "layer",
            Self::Page => "page",
        }
    }

    pub(super) fn from_word(word: &str) -> Option<Self> {
        [Self::Head, Self::Layer, Self::Page].into_iter().find(|by| by.word() == word)
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
    /// A rule that scores tokens: it has a plan, which wrappers can change.
    Score(fn(&Part) -> Arc<dyn EvictPolicy>),
    /// A rule that decides in one piece.
    Evict(fn(&Part) -> Arc<dyn EvictPolicy>),
    /// A wrapper; `fits` says why it cannot stand behind a rule that scores.
    Wrap {
        build: fn(&Part, Arc<dyn EvictPolicy>) -> Arc<dyn EvictPolicy>,
        fits: fn(&Part) -> Result<(), &'static str>,
    },
    Read(fn(&Part) -> ReadRule),
    Merge(fn(&Part) -> MergeRule),
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
            Build::Score(_) | Build::Evict(_) | Build::Wrap { .. } => Kind::Evict,
            Build::Read(_) => Kind::Read,
            Build::Merge(_) => Kind::Merge,
        }
    }

    /// Whether it stands behind an evictor and never alone.
    pub const fn is_wrapper(&self) -> bool {
        matches!(self.build, Build::Wrap { .. })
    }

    /// Whether wrappers can stand behind it.
    pub const fn takes_wrappers(&self) -> bool {
        matches!(self.build, Build::Score(_))
    }

    /// What it is, in words.
    pub const fn what(&self) -> &'static str {
        match self.build {
            Build::Score(_) | Build::Evict(_) => "eviction policy",
            Build::Wrap { .. } => "wrapper of an eviction policy",
            Build::Read(_) => "read set",
            Build::Merge(_) => "merge rule",
        }
    }

    /// What it reads of attention and of the cache, with its parameters at their defaults.
    pub fn needs(&'static self) -> Needs {
        match self.build {
            Build::Score(build) | Build::Evict(build) => build(&Part::new(self)).needs(),
            Build::Merge(build) => build(&Part::new(self)).needs(),
            Build::Wrap { .. } | Build::Read(_) => Needs::NONE,
        }
    }
}

/// The entry of that name, one of this kind where there are two.
pub fn entry(kind: Kind, name: &str) -> Option<&'static Entry> {
    let named = || REGISTRY.iter().filter(|entry| entry.name == name);
    named().find(|entry| entry.kind() == kind).or_else(|| named().next())
}

/// The entries of one kind that can stand alone, in the order of the table.
pub fn of_kind(kind: Kind) -> impl Iterator<Item = &'static Entry> {
    REGISTRY.iter().filter(move |entry| entry.kind() == kind && !entry.is_wrapper())
}

/// The wrappers, in the order of the table.
pub fn wrappers() -> impl Iterator<Item = &'static Entry> {
    REGISTRY.iter().filter(|entry| entry.is_wrapper())
}

#[cfg(test)]
mod tests {
    use super::super::param::Value;
    use super::super::spec::Spec;
    use super::*;

    #[test]
    fn every_entry_is_complete_and_builds() {
        for (i, entry) in REGISTRY.iter().enumerate() {
            let name = entry.name;
            let is_same = |earlier: &Entry| earlier.name == name && earlier.kind() == entry.kind();
            assert!(!REGISTRY[..i].iter().any(is_same), "{name} is declared twice");
            for text in [name, entry.title, entry.doc, entry.acts] {
                assert!(!text.is_empty() && !text.contains('\n'), "{name}: '{text}'");
            }
            assert_eq!(entry.source.evidence == Evidence::Own, entry.source.paper.is_empty(), "{name}");
            let alone = |name: &str| Spec::parse(entry.kind(), name);
            match entry.kind() {
                Kind::Evict if entry.is_wrapper() => drop(alone(&format!("h2o+{name}")).unwrap().evictor()),
                Kind::Evict => drop(alone(name).unwrap().evictor()),
                Kind::Read => drop(alone(name).unwrap().reader()),
                Kind::Merge => drop(alone(name).unwrap().merger()),
            }
        }
    }

    #[test]
    fn parameters_of_wrappers_carry_their_name() {
        for wrapper in wrappers() {
            let prefix = format!("{}.", wrapper.name);
            assert!(wrapper.params.iter().all(|param| param.name.starts_with(&prefix)), "{prefix}");
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
