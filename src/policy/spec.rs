//! The grammar of the command line: `NAME[:PARAM=VALUE,…][+NAME…]`, both ways.

use std::fmt;
use std::sync::Arc;

use thiserror::Error;

use super::EvictPolicy;
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
         others: use at least {needed} slots, or fewer {parts}"
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
        /// The fixed part as given: `sinks=4`.
        fixed: String,
        /// Its name: `sinks`.
        parts: &'static str,
        /// The least budget, in slots.
        needed: u32,
    },
}

impl SpecError {
    /// Refuses a budget that leaves no slot beside the `fixed` ones that the parameter `parts` asks for.
    pub(super) fn unless_room(
        entry: &'static str,
        budget: Budget,
        prompt_len: u32,
        parts: &'static str,
        fixed: u32,
    ) -> Result<(), Self> {
        match budget.slots(prompt_len) {
            Some(slots) if slots <= fixed => Err(Self::BudgetTooSmall {
                entry,
                budget: budget.to_string(),
                slots,
                prompt_len,
                fixed: format!("{parts}={fixed}"),
                parts,
                needed: fixed.saturating_add(1),
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
                    _ => "it does not rank tokens by a score, which is what a wrapper works on: use h2o or snapkv, for one",
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
    match registry::entry(name) {
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
mod tests {
    use proptest::prelude::*;

    use super::super::{ReadSet, parse_policy, parse_read};
    use super::*;

    const NAMES: &str = "full, random, streaming, lm-infinite, h2o, scissorhands, tova, snapkv, pyramidkv, keyformer, fastgen, roco, buzz, nacl, knorm, keydiff, expected";

    fn refused(text: &str) -> String {
        parse_policy(text).expect_err(text).to_string()
    }

    #[test]
    fn what_is_read_prints_canonically() {
        for (given, canonical) in [
            ("full", "full"),
            ("h2o", "h2o:budget=100%"),
            ("h2o:recent=0.5,budget=25%", "h2o:budget=25%"),
            (" h2o : recent = 0.30 , budget = 25.0 % ", "h2o:budget=25%,recent=0.3"),
            ("streaming:budget=512,sinks=4,reposition=true", "streaming:budget=512"),
            ("streaming:budget=512,reposition=false", "streaming:budget=512,reposition=false"),
            ("tova:budget=12.5%,when=chunk", "tova:budget=12.5%,when=chunk"),
            ("h2o:budget=25%+kvcrush:ratio=.25+adakv", "h2o:budget=25%+kvcrush:ratio=0.25+adakv:floor=0.2"),
            (" snapkv + adakv : adakv.floor = 0.5 ", "snapkv:budget=100%+adakv:floor=0.5"),
        ] {
            assert_eq!(parse_policy(given).unwrap().to_string(), canonical);
        }
        for (given, canonical) in [
            ("kcache", "kcache:n=64"),
            ("kcache:n=64,l=1,renorm=false,include_self=true", "kcache:n=64"),
            ("kcache:l=0,n=32,renorm=true", "kcache:n=32,l=0,renorm=true"),
        ] {
            assert_eq!(parse_read(given).unwrap().to_string(), canonical);
        }
    }

    #[test]
    fn refusals_say_what_is_wrong_and_what_to_do() {
        for (given, message) in [
            ("", "no eviction policy named: use one of NAMES"),
            (
                "h20:budget=25%",
                "no eviction policy is called 'h20' (did you mean 'h2o'?): use one of NAMES",
            ),
            ("lru", "no eviction policy is called 'lru': use one of NAMES"),
            ("kcache:n=8", "kcache is a read set, not an eviction policy: give it to --read"),
            (
                "h2o:bugdet=25%",
                "h2o has no parameter 'bugdet' (did you mean 'budget'?): use one of budget, recent, when, variant, by",
            ),
            ("full:budget=4", "full has no parameter 'budget': it takes none"),
            ("h2o:25%", "h2o: '25%' is not PARAM=VALUE: write it as in h2o:budget=25%"),
            ("h2o:budget=4,", "h2o: '' is not PARAM=VALUE: write it as in h2o:budget=25%"),
            ("h2o:budget=4,budget=4", "h2o: budget is given twice: give it once"),
            (
                "tova:budget=0",
                "tova: budget cannot be '0': use slots (at least 1) or a share of the prompt (above 0%; 100% keeps everything)",
            ),
            ("h2o:recent=1.5", "h2o: recent cannot be '1.5': use a number from 0 to 1"),
            ("h2o:recent=nan", "h2o: recent cannot be 'nan': use a number from 0 to 1"),
            ("h2o:when=never", "h2o: when cannot be 'never': use prompt or chunk"),
            ("streaming:reposition=yes", "streaming: reposition cannot be 'yes': use true or false"),
            ("h2o+tova", "h2o+tova: both evict, and one cache has one evictor: name one of them"),
            ("h2o:budget=8+h2o", "h2o+h2o: both evict, and one cache has one evictor: name one of them"),
            ("tova+full", "tova+full: full keeps everything and joins no other: name one of them"),
            (
                "adakv",
                "adakv works on what another policy scores: write it behind one, as in h2o:budget=25%+adakv",
            ),
            (
                "streaming:budget=64+adakv",
                "streaming+adakv: it does not rank tokens by a score, which is what a wrapper works on: use h2o or \
                 snapkv, for one",
            ),
            ("full+kvcrush", "full+kvcrush: full keeps everything, there is nothing to wrap: name a policy that evicts"),
            (
                "tova:budget=64+adakv",
                "tova+adakv: adakv shares a layer's budget over its heads, and this rule decides for the whole layer: \
                 use by=head where it has it, or leave adakv out",
            ),
            ("h2o+adakv+adakv", "h2o+adakv: the wrapper is named twice: name it once"),
            ("h2o+adakv:flor=1", "adakv has no parameter 'flor' (did you mean 'floor'?): use floor"),
            ("h2o+kvcrush:ratio=2", "kvcrush: ratio cannot be '2': use a number from 0 to 1"),
            ("h2o+adakv+tova", "h2o+tova: both evict, and one cache has one evictor: name one of them"),
            ("h2o+kcache", "kcache is a read set, not an eviction policy: give it to --read"),
        ] {
            assert_eq!(refused(given), message.replace("NAMES", NAMES));
        }
        let read = |text: &str| parse_read(text).expect_err(text).to_string();
        assert_eq!(read("h2o"), "h2o is an eviction policy, not a read set: give it to --policy");
        assert_eq!(read("kcache:n=0"), "kcache: n cannot be '0': use a whole number from 1 to 1048576");
        assert_eq!(read("kcache+kcache"), "kcache+kcache: both choose what is read: name one of them");
    }

    #[test]
    fn a_hostile_spelling_stays_one_short_line() {
        let message = refused(&format!("\x1b[2J\n{}", "x".repeat(1 << 20)));
        assert!(!message.chars().any(char::is_control) && message.len() < 300, "{message}");
        let many = refused(&"h2o:budget=1+".repeat(10_000));
        assert!(many.starts_with("h2o+h2o: "), "{many}");
    }

    #[test]
    fn changes_say_from_to_and_whether_they_are_live() {
        let mut policy = parse_policy("streaming:budget=25%").unwrap();
        let change = policy.set("budget", "64").unwrap().unwrap();
        let tuning = Tuning { name: "budget".into(), from: "25%".into(), to: "64".into() };
        assert_eq!(change, Change { tuning, live: true });
        assert_eq!(policy.slots(1000), Some(64));
        assert_eq!(policy.set("budget", "64").unwrap(), None);
        assert!(!policy.set("reposition", "false").unwrap().unwrap().live);
        let before = policy.clone();
        assert!(policy.set("budget", "0").is_err() && policy.set("bugdet", "1").is_err());
        assert_eq!(policy, before);

        let mut wrapped = parse_policy("h2o:budget=25%+adakv").unwrap();
        let change = wrapped.set("adakv.floor", "0.5").unwrap().unwrap();
        let tuning = Tuning { name: "adakv.floor".into(), from: "0.2".into(), to: "0.5".into() };
        assert_eq!(change, Change { tuning, live: true });
        assert_eq!(wrapped.spec().get("adakv.floor"), Some(Value::Real(0.5)));
        let before = wrapped.clone();
        let message = wrapped.set("by", "page").unwrap_err().to_string();
        assert!(message.starts_with("h2o+adakv: adakv shares"), "{message}");
        assert_eq!(wrapped, before);
        assert!(wrapped.set("floor", "1").is_err());

        let mut read: ReadSet = "kcache".parse().unwrap();
        assert!(read.set("n", "8").unwrap().unwrap().live);
        assert!(!read.set("l", "0").unwrap().unwrap().live);
        let ReadRule::Kcache(kcache) = read.rule();
        assert_eq!((kcache.n, kcache.exempt_layers), (8, 0));
    }

    /// A value of the kind, as a person could reach it.
    fn value(kind: ParamKind) -> BoxedStrategy<Value> {
        match kind {
            ParamKind::Int { min, max } => (min..=max).prop_map(Value::Int).boxed(),
            ParamKind::Real { min, max } => (min..=max).prop_map(Value::Real).boxed(),
            ParamKind::Bool => any::<bool>().prop_map(Value::Bool).boxed(),
            ParamKind::Budget => prop_oneof![
                (1u32..).prop_map(|slots| Value::Budget(Budget::Slots(slots))),
                (1e-6f32..=100.0).prop_map(|percent| Value::Budget(Budget::Percent(percent))),
            ]
            .boxed(),
            ParamKind::Choice(words) => prop::sample::select(words).prop_map(Value::Choice).boxed(),
        }
    }

    fn any_part(entry: &'static Entry) -> impl Strategy<Value = Part> {
        let values: Vec<_> = entry.params.iter().map(|param| value(param.kind)).collect();
        values.prop_map(move |values| Part { entry, values })
    }

    /// Any rule with any of the wrappers that fit it.
    fn any_spec() -> impl Strategy<Value = Spec> {
        let alone: Vec<_> = registry::REGISTRY.iter().filter(|entry| !entry.is_wrapper()).collect();
        let wrappers: Vec<_> = registry::wrappers().map(|entry| (any_part(entry), any::<bool>())).collect();
        (prop::sample::select(alone).prop_flat_map(any_part), wrappers).prop_map(|(base, wrappers)| {
            let mut spec = Spec { parts: vec![base] };
            for (wrapper, wanted) in wrappers {
                spec.parts.push(wrapper);
                if !wanted || spec.check_composition().is_err() {
                    spec.parts.pop();
                }
            }
            spec
        })
    }

    proptest! {
        #[test]
        fn every_spec_reads_back_as_it_prints(spec in any_spec()) {
            let text = spec.to_string();
            let back = Spec::parse(spec.entry().kind(), &text).unwrap();
            prop_assert_eq!(back.to_string(), text);
            prop_assert_eq!(back, spec);
        }

        #[test]
        fn any_text_is_read_or_refused_in_one_line(text in "(h2o|tova|full|kcache|adakv|kvcrush|[a-z0-9]{0,6})[:+,=%.a-z0-9\\PC]{0,40}") {
            if let Err(error) = parse_policy(&text) {
                let message = error.to_string();
                prop_assert!(!message.is_empty() && !message.chars().any(char::is_control), "{}", message);
            }
        }

        #[test]
        fn nudging_never_leaves_the_range(spec in any_spec(), by in -1000i32..1000, coarse: bool) {
            for (param, value) in spec.params() {
                let moved = param.nudge(value, by, coarse);
                prop_assert_eq!(param.kind.parse(&moved.to_string()), Some(moved), "{}", param.name);
            }
        }
    }
}
