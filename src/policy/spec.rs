//! The grammar of the command line: `NAME[:PARAM=VALUE,…][+NAME…]`, both ways.

use std::fmt;
use std::sync::Arc;

use thiserror::Error;

use super::EvictPolicy;
use super::merge::MergeRule;
use super::param::{Budget, Param, ParamKind, Value};
use super::read::ReadRule;
use super::registry::{self, Build, Entry, Granularity, Kind};
use crate::event::Tuning;

/// Why a spelled policy is refused. Each message is one line.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum SpecError {
    /// Nothing was named.
    #[error("no {kind} named: use one of {known}")]
    Empty {
        /// What was asked for.
        kind: Kind,
        /// The names there are.
        known: String,
    },
    /// There is no such entry of any kind.
    #[error("no {kind} is called '{name}'{hint}: use one of {known}")]
    UnknownName {
        /// What was asked for.
        kind: Kind,
        /// What was given.
        name: String,
        /// ` (did you mean 'h2o'?)`, or empty.
        hint: String,
        /// The names there are.
        known: String,
    },
    /// The entry exists but is of the other kind.
    #[error("{name} is {is}, not {wanted}: give it to --{flag}")]
    WrongKind {
        /// The entry.
        name: &'static str,
        /// Its kind, with an article.
        is: &'static str,
        /// What was asked for, with an article.
        wanted: &'static str,
        /// The flag that takes it.
        flag: &'static str,
    },
    /// The entry has no such parameter.
    #[error("{entry} has no parameter '{name}'{hint}: {known}")]
    UnknownParam {
        /// The entry.
        entry: &'static str,
        /// What was given.
        name: String,
        /// ` (did you mean 'budget'?)`, or empty.
        hint: String,
        /// The parameters there are.
        known: String,
    },
    /// A piece between commas is not `PARAM=VALUE`.
    #[error("{entry}: '{text}' is not PARAM=VALUE: write it as in {entry}:{example}")]
    Malformed {
        /// The entry.
        entry: &'static str,
        /// The piece.
        text: String,
        /// A well-formed one.
        example: String,
    },
    /// A parameter was given twice.
    #[error("{entry}: {param} is given twice: give it once")]
    Duplicate {
        /// The entry.
        entry: &'static str,
        /// The parameter.
        param: &'static str,
    },
    /// A value of the wrong type or out of range.
    #[error("{entry}: {param} cannot be '{value}': use {range}")]
    BadValue {
        /// The entry.
        entry: &'static str,
        /// The parameter.
        param: &'static str,
        /// What was given.
        value: String,
        /// What is taken.
        range: String,
    },
    /// A wrapper stands first.
    #[error("{name} works on what another policy scores: write it behind one, as in h2o:budget=25%+{name}")]
    WrapperAlone {
        /// The wrapper.
        name: &'static str,
    },
    /// Two entries that cannot be joined.
    #[error("{left}+{right}: {why}")]
    Composition {
        /// The first.
        left: &'static str,
        /// The second.
        right: &'static str,
        /// Why not, and what to do.
        why: &'static str,
    },
    /// The budget leaves no room beside the parts that a policy always keeps.
    #[error(
        "{entry}: budget={budget} is {slots} slots for a prompt of {prompt_len} tokens, but {fixed} must leave room for \
         others: use at least {needed} slots, or lower {parts}"
    )]
    BudgetTooSmall {
        /// The entry.
        entry: &'static str,
        /// The budget as given.
        budget: String,
        /// The budget in slots.
        slots: u32,
        /// Tokens of the prompt.
        prompt_len: u32,
        /// The fixed part as given: `sinks=4`, or several: `window=16 and sinks=4`.
        fixed: String,
        /// Its name: `sinks`, or the names of several.
        parts: String,
        /// The least budget, in slots.
        needed: u32,
    },
}

impl SpecError {
    /// Refuses a budget that leaves no slot beside the `fixed` ones, named by their parameters.
    pub(super) fn unless_room(
        entry: &'static str,
        budget: Budget,
        prompt_len: u32,
        fixed: &[(&'static str, u32)],
    ) -> Result<(), Self> {
        let kept = fixed.iter().fold(0u32, |kept, &(_, slots)| kept.saturating_add(slots));
        let each = |spell: &dyn Fn((&str, u32)) -> String, word: &str| {
            fixed.iter().map(|&part| spell(part)).collect::<Vec<_>>().join(word)
        };
        match budget.slots(prompt_len).filter(|_| !fixed.is_empty()) {
            Some(slots) if slots <= kept => Err(Self::BudgetTooSmall {
                entry,
                budget: budget.to_string(),
                slots,
                prompt_len,
                fixed: each(&|(param, slots)| format!("{param}={slots}"), " and "),
                parts: each(&|(param, _)| param.into(), " or "),
                needed: kept.saturating_add(1),
            }),
            _ => Ok(()),
        }
    }
}

/// What a changed parameter means for the run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// Name, value before, value from now on.
    pub tuning: Tuning,
    /// Whether it is in force from the next decision; otherwise the prompt must be run again.
    pub live: bool,
}

/// One rule of a spelling: an entry of the registry with a value for each of its parameters.
#[derive(Clone, Debug)]
pub struct Part {
    entry: &'static Entry,
    values: Vec<Value>,
}

impl Part {
    /// The entry with every parameter at its default.
    pub(super) fn new(entry: &'static Entry) -> Self {
        Self { entry, values: entry.params.iter().map(|param| param.default).collect() }
    }

    fn parse(kind: Kind, text: &str) -> Result<Self, SpecError> {
        let (name, params) = match text.split_once(':') {
            Some((name, params)) => (name.trim(), Some(params)),
            None => (text.trim(), None),
        };
        let mut part = Self::new(find(kind, name)?);
        let mut given = vec![false; part.values.len()];
        for piece in params.into_iter().flat_map(|params| params.split(',')) {
            let (name, value) = piece.split_once('=').ok_or_else(|| part.malformed(piece))?;
            let index = part.index(name.trim())?;
            if std::mem::replace(&mut given[index], true) {
                return Err(SpecError::Duplicate {
                    entry: part.entry.name,
                    param: part.entry.params[index].short(),
                });
            }
            part.values[index] = part.read(index, value.trim())?;
        }
        Ok(part)
    }

    /// The table it instantiates.
    pub fn entry(&self) -> &'static Entry {
        self.entry
    }

    /// One value per parameter, in the order of [`Entry::params`].
    pub fn values(&self) -> &[Value] {
        &self.values
    }

    /// The parameters with their values.
    pub fn params(&self) -> impl Iterator<Item = (&'static Param, Value)> + '_ {
        self.entry.params.iter().zip(self.values.iter().copied())
    }

    /// The value of a parameter, by its full name.
    fn get(&self, param: &str) -> Option<Value> {
        self.params().find(|(p, _)| p.name == param).map(|(_, value)| value)
    }

    /// What one decision of it covers.
    pub fn granularity(&self) -> Granularity {
        match self.get("by") {
            Some(Value::Choice(word)) => Granularity::from_word(word).unwrap_or(self.entry.granularity),
            _ => self.entry.granularity,
        }
    }

    /// The budget, where there is one.
    pub(super) fn budget(&self) -> Option<Budget> {
        self.values.iter().find_map(|value| match value {
            Value::Budget(budget) => Some(*budget),
            _ => None,
        })
    }

    pub(super) fn int(&self, param: &str) -> u32 {
        match self.get(param) {
            Some(Value::Int(value)) => value,
            _ => self.undeclared(param),
        }
    }

    pub(super) fn real(&self, param: &str) -> f64 {
        match self.get(param) {
            Some(Value::Real(value)) => value,
            _ => self.undeclared(param),
        }
    }

    pub(super) fn switch(&self, param: &str) -> bool {
        match self.get(param) {
            Some(Value::Bool(value)) => value,
            _ => self.undeclared(param),
        }
    }

    pub(super) fn choice(&self, param: &str) -> &'static str {
        match self.get(param) {
            Some(Value::Choice(value)) => value,
            _ => self.undeclared(param),
        }
    }

    /// A rule's file reads a parameter that its own table does not declare; the registry's tests build every entry.
    fn undeclared(&self, param: &str) -> ! {
        unreachable!("{} declares no such parameter: {param}", self.entry.name)
    }

    fn position(&self, name: &str) -> Option<usize> {
        self.entry.params.iter().position(|param| param.name == name || param.short() == name)
    }

    fn index(&self, name: &str) -> Result<usize, SpecError> {
        self.position(name).ok_or_else(|| {
            let names = self.entry.params.iter().map(Param::short).collect::<Vec<_>>();
            unknown(self.entry.name, name, &names)
        })
    }

    fn read(&self, index: usize, text: &str) -> Result<Value, SpecError> {
        let param = &self.entry.params[index];
        param.kind.parse(text).ok_or_else(|| SpecError::BadValue {
            entry: self.entry.name,
            param: param.short(),
            value: shown(text),
            range: param.kind.range(),
        })
    }

    fn malformed(&self, piece: &str) -> SpecError {
        let example = match self.entry.params.first() {
            Some(param) if param.kind == ParamKind::Budget => "budget=25%".into(),
            Some(param) => format!("{}={}", param.short(), param.default),
            None => return self.index(piece.trim()).expect_err("it has no parameters"),
        };
        SpecError::Malformed { entry: self.entry.name, text: shown(piece.trim()), example }
    }
}

impl PartialEq for Part {
    fn eq(&self, other: &Self) -> bool {
        self.entry.name == other.entry.name && self.values == other.values
    }
}

/// The canonical spelling: the parameters that differ from their default, and the headline ones always.
impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.entry.name)?;
        let mut separator = ':';
        for (param, value) in self.params() {
            if param.headline || value != param.default {
                write!(f, "{separator}{}={value}", param.short())?;
                separator = ',';
            }
        }
        Ok(())
    }
}

/// A whole spelling: a rule, and the wrappers behind it.
#[derive(Clone, Debug, PartialEq)]
pub struct Spec {
    /// The rule, then its wrappers in the order given; never empty.
    parts: Vec<Part>,
}

impl Spec {
    /// The entry with every parameter at its default, without wrappers.
    pub fn new(entry: &'static Entry) -> Self {
        Self { parts: vec![Part::new(entry)] }
    }

    /// Reads a spelled entry of one kind and its wrappers. Blanks around names and values are ignored.
    ///
    /// # Errors
    ///
    /// See [`SpecError`].
    pub fn parse(kind: Kind, text: &str) -> Result<Self, SpecError> {
        let mut spec = Self { parts: Vec::new() };
        for text in text.split('+') {
            spec.parts.push(Part::parse(kind, text)?);
            spec.check_composition()?;
        }
        Ok(spec)
    }

    /// Whether the parts can stand behind each other.
    fn check_composition(&self) -> Result<(), SpecError> {
        let (base, wrappers) = self.parts.split_first().expect("a spelling has a rule");
        if base.entry.is_wrapper() {
            return Err(SpecError::WrapperAlone { name: base.entry.name });
        }
        for (i, wrapper) in wrappers.iter().enumerate() {
            let refuse = |why| {
                let (left, right) = (base.entry.name, wrapper.entry.name);
                Err(SpecError::Composition { left, right, why })
            };
            let Build::Wrap { fits, .. } = wrapper.entry.build else {
                return refuse(why_apart(base.entry, wrapper.entry));
            };
            if !base.entry.takes_wrappers() {
                return refuse(match base.entry.name {
                    "full" => "full keeps everything, there is nothing to wrap: name a policy that evicts",
                    _ => {
                        "it does not rank tokens by a score, which is what a wrapper works on: use h2o or snapkv, for one"
                    }
                });
            }
            if wrappers[..i].iter().any(|earlier| earlier.entry.name == wrapper.entry.name) {
                return refuse("the wrapper is named twice: name it once");
            }
            if let Err(why) = fits(base) {
                return refuse(why);
            }
        }
        Ok(())
    }

    /// The table of the rule, without its wrappers.
    pub fn entry(&self) -> &'static Entry {
        self.parts[0].entry
    }

    /// The rule, then its wrappers.
    pub fn parts(&self) -> &[Part] {
        &self.parts
    }

    /// One value per parameter of the rule, in the order of [`Entry::params`].
    pub fn values(&self) -> &[Value] {
        &self.parts[0].values
    }

    /// All parameters with their values, those of wrappers last.
    pub fn params(&self) -> impl Iterator<Item = (&'static Param, Value)> + '_ {
        self.parts.iter().flat_map(Part::params)
    }

    /// The names of rule and wrappers: `h2o+adakv`.
    pub fn names(&self) -> String {
        self.parts.iter().map(|part| part.entry.name).collect::<Vec<_>>().join("+")
    }

    /// The value of a parameter; a wrapper's by its full name, `adakv.floor`.
    pub fn get(&self, param: &str) -> Option<Value> {
        self.parts.iter().find_map(|part| part.get(param))
    }

    /// The budget, where there is one.
    pub fn budget(&self) -> Option<Budget> {
        self.parts[0].budget()
    }

    /// Sets a parameter; `None` if it has that value already.
    ///
    /// # Errors
    ///
    /// Unknown parameter, bad value, or one that a wrapper cannot work with; nothing changes then.
    pub fn set(&mut self, param: &str, value: &str) -> Result<Option<Change>, SpecError> {
        let (name, value) = (param.trim(), value.trim());
        let (part, index) = self.locate(name)?;
        let to = self.parts[part].read(index, value)?;
        let from = std::mem::replace(&mut self.parts[part].values[index], to);
        if let Err(error) = self.check_composition() {
            self.parts[part].values[index] = from;
            return Err(error);
        }
        let param = &self.parts[part].entry.params[index];
        Ok((from != to).then(|| Change {
            tuning: Tuning { name: param.name.into(), from: from.to_string(), to: to.to_string() },
            live: param.live,
        }))
    }

    /// The part and the index of a parameter by its full name.
    fn locate(&self, name: &str) -> Result<(usize, usize), SpecError> {
        let found = self.parts.iter().enumerate().find_map(|(i, part)| {
            part.entry.params.iter().position(|param| param.name == name).map(|index| (i, index))
        });
        found.ok_or_else(|| {
            let names: Vec<_> = self.params().map(|(param, _)| param.name).collect();
            unknown(self.entry().name, name, &names)
        })
    }

    /// The rule with these values. Only for entries that evict, which [`Spec::parse`] has made sure of.
    pub(super) fn evictor(&self) -> Arc<dyn EvictPolicy> {
        let base = &self.parts[0];
        let rule = match base.entry.build {
            Build::Score(build) | Build::Evict(build) => build(base),
            _ => unreachable!("{} was parsed as an evictor", base.entry.name),
        };
        self.parts[1..].iter().fold(rule, |rule, part| match part.entry.build {
            Build::Wrap { build, .. } => build(part, rule),
            _ => unreachable!("{} was parsed as a wrapper", part.entry.name),
        })
    }

    /// The rule with these values. Only for read sets.
    pub(super) fn reader(&self) -> ReadRule {
        let base = &self.parts[0];
        match base.entry.build {
            Build::Read(build) => build(base),
            _ => unreachable!("{} was parsed as a read set", base.entry.name),
        }
    }

    /// The rule with these values. Only for merges.
    pub(super) fn merger(&self) -> MergeRule {
        let base = &self.parts[0];
        match base.entry.build {
            Build::Merge(build) => build(base),
            _ => unreachable!("{} was parsed as a merge", base.entry.name),
        }
    }
}

/// The canonical spelling of all parts.
impl fmt::Display for Spec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, part) in self.parts.iter().enumerate() {
            if i > 0 {
                f.write_str("+")?;
            }
            part.fmt(f)?;
        }
        Ok(())
    }
}

fn unknown(entry: &'static str, name: &str, names: &[&str]) -> SpecError {
    let known = match names {
        [] => "it takes none".into(),
        [only] => format!("use {only}"),
        _ => format!("use one of {}", names.join(", ")),
    };
    SpecError::UnknownParam { entry, name: shown(name), hint: hint(name, names), known }
}

fn find(kind: Kind, name: &str) -> Result<&'static Entry, SpecError> {
    let mut names: Vec<_> = registry::of_kind(kind).map(|entry| entry.name).collect();
    let known = names.join(", ");
    if kind == Kind::Evict {
        names.extend(registry::wrappers().map(|entry| entry.name));
    }
    if name.is_empty() {
        return Err(SpecError::Empty { kind, known });
    }
    match registry::entry(kind, name) {
        Some(entry) if entry.kind() == kind => Ok(entry),
        Some(entry) => Err(SpecError::WrongKind {
            name: entry.name,
            is: entry.kind().with_article(),
            wanted: kind.with_article(),
            flag: entry.kind().flag(),
        }),
        None => Err(SpecError::UnknownName { kind, name: shown(name), hint: hint(name, &names), known }),
    }
}

fn why_apart(left: &Entry, right: &Entry) -> &'static str {
    match left.kind() {
        Kind::Read => "both choose what is read: name one of them",
        Kind::Merge => "both merge: name one of them",
        Kind::Evict if left.name == "full" || right.name == "full" => {
            "full keeps everything and joins no other: name one of them"
        }
        Kind::Evict => "both evict, and one cache has one evictor: name one of them",
    }
}

/// Longest piece of a person's text repeated in a message.
const SHOWN_CHARS: usize = 40;

/// A person's text for a one-line message: cut, control characters spelled.
fn shown(text: &str) -> String {
    let cut = text.chars().count() > SHOWN_CHARS;
    let mut out: String = text.chars().take(SHOWN_CHARS).flat_map(char::escape_debug).collect();
    if cut {
        out.push('…');
    }
    out
}

/// ` (did you mean 'h2o'?)` where one of the names is near.
fn hint(given: &str, names: &[&str]) -> String {
    if given.is_empty() || given.len() > SHOWN_CHARS {
        return String::new();
    }
    let given = given.to_lowercase();
    let near = names
        .iter()
        .map(|name| (if name.starts_with(&given) { 0 } else { edits(&given, name) }, name))
        .min_by_key(|&(distance, _)| distance)
        .filter(|&(distance, name)| distance <= name.len() / 3);
    near.map(|(_, name)| format!(" (did you mean '{name}'?)")).unwrap_or_default()
}

/// Levenshtein distance: insertions, deletions and substitutions between two short words.
fn edits(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, &y) in b.iter().enumerate() {
            let substituted = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests;
