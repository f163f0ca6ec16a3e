//! The grammar of the command line: `NAME[:PARAM=VALUE,…][+NAME…]`, both ways.

use std::fmt;
use std::sync::Arc;

use thiserror::Error;

use super::EvictPolicy;
use super::param::{Budget, ParamKind, Value};
use super::read::ReadRule;
use super::registry::{self, Build, Entry, Kind};
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
    /// Two entries that cannot be joined.
    #[error("{left}+{right}: {why}: name one of them")]
    Composition {
        /// The first.
        left: &'static str,
        /// The second.
        right: &'static str,
        /// Why not.
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

/// What a changed parameter means for the run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// Name, value before, value from now on.
    pub tuning: Tuning,
    /// Whether it is in force from the next decision; otherwise the prompt must be run again.
    pub live: bool,
}

/// An entry of the registry with a value for each of its parameters.
#[derive(Clone, Debug)]
pub struct Spec {
    entry: &'static Entry,
    values: Vec<Value>,
}

impl Spec {
    /// The entry with every parameter at its default.
    pub fn new(entry: &'static Entry) -> Self {
        Self { entry, values: entry.params.iter().map(|param| param.default).collect() }
    }

    /// Reads a spelled entry of one kind. Blanks around names and values are ignored.
    ///
    /// # Errors
    ///
    /// See [`SpecError`]. Two joined entries of one kind are always refused: no composition is legal yet.
    pub fn parse(kind: Kind, text: &str) -> Result<Self, SpecError> {
        let mut parts = text.split('+');
        let spec = Self::parse_part(kind, parts.next().unwrap_or_default())?;
        match parts.next() {
            None => Ok(spec),
            Some(next) => {
                let (left, right) = (spec.entry, Self::parse_part(kind, next)?.entry);
                Err(SpecError::Composition {
                    left: left.name,
                    right: right.name,
                    why: why_apart(left, right),
                })
            }
        }
    }

    fn parse_part(kind: Kind, text: &str) -> Result<Self, SpecError> {
        let (name, params) = match text.split_once(':') {
            Some((name, params)) => (name.trim(), Some(params)),
            None => (text.trim(), None),
        };
        let mut spec = Self::new(find(kind, name)?);
        let mut given = vec![false; spec.values.len()];
        for piece in params.into_iter().flat_map(|params| params.split(',')) {
            let (name, value) = piece.split_once('=').ok_or_else(|| spec.malformed(piece))?;
            let index = spec.index(name.trim())?;
            if std::mem::replace(&mut given[index], true) {
                return Err(SpecError::Duplicate {
                    entry: spec.entry.name,
                    param: spec.entry.params[index].name,
                });
            }
            spec.values[index] = spec.read(index, value.trim())?;
        }
        Ok(spec)
    }

    /// The table it instantiates.
    pub fn entry(&self) -> &'static Entry {
        self.entry
    }

    /// One value per parameter, in the order of [`Entry::params`].
    pub fn values(&self) -> &[Value] {
        &self.values
    }

    /// The value of a parameter.
    pub fn get(&self, param: &str) -> Option<Value> {
        self.entry.params.iter().position(|p| p.name == param).map(|index| self.values[index])
    }

    /// The budget, where there is one.
    pub fn budget(&self) -> Option<Budget> {
        self.values.iter().find_map(|value| match value {
            Value::Budget(budget) => Some(*budget),
            _ => None,
        })
    }

    /// Sets a parameter; `None` if it has that value already.
    ///
    /// # Errors
    ///
    /// Unknown parameter or bad value; nothing changes then.
    pub fn set(&mut self, param: &str, value: &str) -> Result<Option<Change>, SpecError> {
        let index = self.index(param.trim())?;
        let to = self.read(index, value.trim())?;
        let from = std::mem::replace(&mut self.values[index], to);
        let param = &self.entry.params[index];
        Ok((from != to).then(|| Change {
            tuning: Tuning { name: param.name.into(), from: from.to_string(), to: to.to_string() },
            live: param.live,
        }))
    }

    /// The rule with these values. Only for entries that evict, which [`Spec::parse`] has made sure of.
    pub(super) fn evictor(&self) -> Arc<dyn EvictPolicy> {
        match self.entry.build {
            Build::Evict(build) => build(self),
            Build::Read(_) => unreachable!("{} was parsed as an evictor", self.entry.name),
        }
    }

    /// The rule with these values. Only for read sets.
    pub(super) fn reader(&self) -> ReadRule {
        match self.entry.build {
            Build::Read(build) => build(self),
            Build::Evict(_) => unreachable!("{} was parsed as a read set", self.entry.name),
        }
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

    fn index(&self, name: &str) -> Result<usize, SpecError> {
        let params = self.entry.params;
        params.iter().position(|param| param.name == name).ok_or_else(|| {
            let names: Vec<_> = params.iter().map(|param| param.name).collect();
            let known = match names.as_slice() {
                [] => "it takes none".into(),
                [only] => format!("use {only}"),
                _ => format!("use one of {}", names.join(", ")),
            };
            SpecError::UnknownParam {
                entry: self.entry.name,
                name: shown(name),
                hint: hint(name, &names),
                known,
            }
        })
    }

    fn read(&self, index: usize, text: &str) -> Result<Value, SpecError> {
        let param = &self.entry.params[index];
        param.kind.parse(text).ok_or_else(|| SpecError::BadValue {
            entry: self.entry.name,
            param: param.name,
            value: shown(text),
            range: param.kind.range(),
        })
    }

    fn malformed(&self, piece: &str) -> SpecError {
        let example = match self.entry.params.first() {
            Some(param) if param.kind == ParamKind::Budget => "budget=25%".into(),
            Some(param) => format!("{}={}", param.name, param.default),
            None => return self.index(piece.trim()).expect_err("it has no parameters"),
        };
        SpecError::Malformed { entry: self.entry.name, text: shown(piece.trim()), example }
    }
}

impl PartialEq for Spec {
    fn eq(&self, other: &Self) -> bool {
        self.entry.name == other.entry.name && self.values == other.values
    }
}

/// The canonical spelling: the parameters that differ from their default, and the headline ones always.
impl fmt::Display for Spec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.entry.name)?;
        let mut separator = ':';
        for (param, value) in self.entry.params.iter().zip(&self.values) {
            if param.headline || *value != param.default {
                write!(f, "{separator}{}={value}", param.name)?;
                separator = ',';
            }
        }
        Ok(())
    }
}

fn find(kind: Kind, name: &str) -> Result<&'static Entry, SpecError> {
    let names: Vec<_> = registry::of_kind(kind).map(|entry| entry.name).collect();
    let known = names.join(", ");
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
        Kind::Read => "both choose what is read",
        Kind::Evict if left.name == "full" || right.name == "full" => {
            "full keeps everything and joins no other"
        }
        Kind::Evict => "both evict, and one cache has one evictor",
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
            ("", "no eviction policy named: use one of full, streaming, h2o, tova"),
            (
                "h20:budget=25%",
                "no eviction policy is called 'h20' (did you mean 'h2o'?): use one of full, streaming, h2o, tova",
            ),
            ("lru", "no eviction policy is called 'lru': use one of full, streaming, h2o, tova"),
            ("kcache:n=8", "kcache is a read set, not an eviction policy: give it to --read"),
            (
                "h2o:bugdet=25%",
                "h2o has no parameter 'bugdet' (did you mean 'budget'?): use one of budget, recent, when",
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
            ("h2o+kcache", "kcache is a read set, not an eviction policy: give it to --read"),
        ] {
            assert_eq!(refused(given), message);
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

    fn any_spec() -> impl Strategy<Value = Spec> {
        (0..registry::REGISTRY.len()).prop_flat_map(|index| {
            let entry = &registry::REGISTRY[index];
            let values: Vec<_> = entry.params.iter().map(|param| value(param.kind)).collect();
            values.prop_map(move |values| Spec { entry, values })
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
        fn any_text_is_read_or_refused_in_one_line(text in "(h2o|tova|full|kcache|[a-z0-9]{0,6})[:+,=%.a-z0-9\\PC]{0,40}") {
            if let Err(error) = parse_policy(&text) {
                let message = error.to_string();
                prop_assert!(!message.is_empty() && !message.chars().any(char::is_control), "{}", message);
            }
        }

        #[test]
        fn nudging_never_leaves_the_range(spec in any_spec(), by in -1000i32..1000, coarse: bool) {
            for (param, &value) in spec.entry().params.iter().zip(spec.values()) {
                let moved = param.nudge(value, by, coarse);
                prop_assert_eq!(param.kind.parse(&moved.to_string()), Some(moved), "{}", param.name);
            }
        }
    }
}
