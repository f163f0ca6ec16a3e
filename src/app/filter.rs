//! The `/` query over lists: `kind=evict layer=1 score<0.1 age>20 token~key`, and plain words.
//!
//! Terms are separated by blanks and all must hold. A term is a field, an operator and a value, or a plain word, which
//! must occur somewhere in the row. `~` is "contains", case ignored; a value or word with blanks stands in double
//! quotes. A row without the field does not match.

use std::borrow::Cow;

use thiserror::Error;

/// Most terms of a query.
const MAX_TERMS: usize = 32;

/// Why a query is refused; one line.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum FilterError {
    /// No such field.
    #[error("there is no field '{name}'{}: use {}", near.map(|n| format!(" (did you mean '{n}'?)")).unwrap_or_default(), field_list())]
    Field {
        /// What was asked for.
        name: String,
        /// The nearest field.
        near: Option<&'static str>,
    },
    /// The field holds text.
    #[error("{0} is text: compare it with =, != or ~")]
    Text(&'static str),
    /// The field holds a number.
    #[error("{field} is a number: '{value}' is none")]
    Number {
        /// The field.
        field: &'static str,
        /// What was given.
        value: String,
    },
    /// Nothing after the operator.
    #[error("'{0}' has no value")]
    NoValue(String),
    /// A quote that is not closed.
    #[error("a double quote is not closed")]
    Quote,
    /// Too many terms.
    #[error("a filter takes at most {MAX_TERMS} terms")]
    TooLong,
}

/// What rows can be asked about, and the columns of a list of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Field {
    /// Kind of a log line: `run`, `prefill`, `token`, `evict`, `tune`, `finish`, `gap`; a victim's is `evict`.
    Kind,
    /// Step.
    Step,
    /// Decoder layer.
    Layer,
    /// KV head.
    Head,
    /// Position of the token.
    Position,
    /// Text of the token.
    Token,
    /// Why it was lost.
    Reason,
    /// Its score.
    Score,
    /// The decision's cutoff.
    Cutoff,
    /// Rank below the cutoff.
    Rank,
    /// Distance to the cutoff.
    Margin,
    /// Age in tokens.
    Age,
    /// Attention that it would have drawn later.
    Regret,
}

impl Field {
    /// Fields with their names; the first name of a field is the one shown.
    pub const NAMES: [(&'static str, Self); 14] = [
        ("kind", Self::Kind),
        ("step", Self::Step),
        ("layer", Self::Layer),
        ("head", Self::Head),
        ("pos", Self::Position),
        ("position", Self::Position),
        ("token", Self::Token),
        ("reason", Self::Reason),
        ("score", Self::Score),
        ("cutoff", Self::Cutoff),
        ("rank", Self::Rank),
        ("margin", Self::Margin),
        ("age", Self::Age),
        ("regret", Self::Regret),
    ];

    /// The name shown.
    pub fn name(self) -> &'static str {
        let named = Self::NAMES.iter().find(|&&(_, field)| field == self);
        named.expect("every field has a name").0
    }

    const fn is_text(self) -> bool {
        matches!(self, Self::Kind | Self::Token | Self::Reason)
    }
}

fn field_list() -> String {
    Field::NAMES.map(|(name, _)| name).join(", ")
}

/// A row that can be filtered.
pub trait Row {
    /// A number field; `None` where the row has none.
    fn number(&self, field: Field) -> Option<f64>;
    /// A text field; `None` where the row has none.
    fn text(&self, field: Field) -> Option<Cow<'_, str>>;
    /// The whole row as shown, for plain words.
    fn line(&self) -> Cow<'_, str>;
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Op {
    Eq,
    Ne,
    Lt,
    Le,
    Gt,
    Ge,
    Has,
}

/// Longer operators first: `<=` must not be read as `<`.
const OPS: [(&str, Op); 7] = [
    ("!=", Op::Ne),
    ("<=", Op::Le),
    (">=", Op::Ge),
    ("=", Op::Eq),
    ("<", Op::Lt),
    (">", Op::Gt),
    ("~", Op::Has),
];

#[derive(Clone, Debug, PartialEq)]
enum Term {
    Word(String),
    Text { field: Field, op: Op, value: String },
    Number { field: Field, op: Op, value: f64 },
}

/// A parsed query; the empty one matches everything.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Filter {
    source: String,
    terms: Vec<Term>,
}

impl Filter {
    /// Reads a query.
    pub fn parse(source: &str) -> Result<Self, FilterError> {
        let words = split(source)?;
        if words.len() > MAX_TERMS {
            return Err(FilterError::TooLong);
        }
        let terms = words.into_iter().map(term).collect::<Result<_, _>>()?;
        Ok(Self { source: source.trim().to_owned(), terms })
    }

    /// The query as typed.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// Whether it matches everything.
    pub fn is_empty(&self) -> bool {
        self.terms.is_empty()
    }

    /// Whether all terms hold for a row.
    pub fn matches(&self, row: &impl Row) -> bool {
        self.terms.iter().all(|term| match term {
            Term::Word(word) => contains(&row.line(), word),
            Term::Text { field, op, value } => row.text(*field).is_some_and(|text| match op {
                Op::Eq => text.trim().eq_ignore_ascii_case(value),
                Op::Ne => !text.trim().eq_ignore_ascii_case(value),
                _ => contains(&text, value),
            }),
            Term::Number { field, op, value } => row.number(*field).is_some_and(|x| match op {
                Op::Eq => x == *value,
                Op::Ne => x != *value,
                Op::Lt => x < *value,
                Op::Le => x <= *value,
                Op::Gt => x > *value,
                Op::Ge => x >= *value,
                Op::Has => false,
            }),
        })
    }
}

fn contains(text: &str, lowered: &str) -> bool {
    text.to_lowercase().contains(lowered)
}

/// Splits at blanks outside quotes. The flag says whether the word began with a quote, and so is plain.
fn split(source: &str) -> Result<Vec<(bool, String)>, FilterError> {
    let mut words = Vec::new();
    let mut word: Option<(bool, String)> = None;
    let mut quoted = false;
    for c in source.chars() {
        if c == '"' {
            quoted = !quoted;
            word.get_or_insert((true, String::new()));
        } else if c.is_whitespace() && !quoted {
            words.extend(word.take());
        } else {
            word.get_or_insert((false, String::new())).1.push(c);
        }
    }
    if quoted {
        return Err(FilterError::Quote);
    }
    words.extend(word);
    words.retain(|(_, text)| !text.is_empty());
    Ok(words)
}

fn term((plain, word): (bool, String)) -> Result<Term, FilterError> {
    let name_len = word.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(word.len());
    let (name, rest) = word.split_at(name_len);
    let op = OPS.iter().find(|(symbol, _)| rest.starts_with(symbol));
    let Some(&(symbol, op)) = op.filter(|_| !plain && !name.is_empty()) else {
        return Ok(Term::Word(word.to_lowercase()));
    };
    let value = &rest[symbol.len()..];
    let Some(&(name, field)) = Field::NAMES.iter().find(|(known, _)| known.eq_ignore_ascii_case(name)) else {
        let near = super::nearest(name, Field::NAMES.iter().map(|(known, _)| *known));
        return Err(FilterError::Field { name: name.to_owned(), near });
    };
    if value.is_empty() {
        return Err(FilterError::NoValue(word));
    }
    if field.is_text() {
        if !matches!(op, Op::Eq | Op::Ne | Op::Has) {
            return Err(FilterError::Text(name));
        }
        return Ok(Term::Text { field, op, value: value.to_lowercase() });
    }
    match value.parse() {
        Ok(number) if op != Op::Has => Ok(Term::Number { field, op, value: number }),
        _ => Err(FilterError::Number {
            field: name,
            value: format!("{}{value}", if op == Op::Has { "~" } else { "" }),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    struct Sample;

    impl Row for Sample {
        fn number(&self, field: Field) -> Option<f64> {
            match field {
                Field::Layer => Some(1.0),
                Field::Score => Some(0.05),
                Field::Age => Some(30.0),
                _ => None,
            }
        }
        fn text(&self, field: Field) -> Option<Cow<'_, str>> {
            match field {
                Field::Kind => Some("evict".into()),
                Field::Token => Some(" Key ring".into()),
                _ => None,
            }
        }
        fn line(&self) -> Cow<'_, str> {
            "evicted ' Key ring' of layer 1".into()
        }
    }

    fn matches(query: &str) -> bool {
        Filter::parse(query).unwrap().matches(&Sample)
    }

    #[test]
    fn terms_are_joined_by_and() {
        for yes in [
            "",
            "kind=evict layer=1 score<0.1 age>20 token~key",
            "KEY",
            "token~\"key ring\"",
            "age>=30",
            "layer!=2",
            "\"layer=1\"",
            "\"of layer\"",
        ] {
            assert_eq!(matches(yes), yes != "\"layer=1\"", "{yes}");
        }
        for no in
            ["layer=2", "score>0.1", "kind=evict age<20", "token~door", "rank<5", "nowhere", "kind!=evict"]
        {
            assert!(!matches(no), "{no}");
        }
    }

    #[test]
    fn a_field_is_read_by_the_name_that_is_shown() {
        for (name, field) in Field::NAMES {
            let known = |name: &str| Field::NAMES.iter().find(|(n, _)| *n == name).map(|n| n.1);
            assert_eq!((known(name), known(field.name())), (Some(field), Some(field)));
        }
        assert_eq!(Field::Position.name(), "pos");
    }

    #[test]
    fn refusals_are_one_clear_line() {
        for (query, says) in [
            ("scor<1", "did you mean 'score'"),
            ("layer=one", "layer is a number"),
            ("token<3", "token is text"),
            ("layer=", "no value"),
            ("token~\"a", "not closed"),
        ] {
            let error = Filter::parse(query).unwrap_err().to_string();
            assert!(error.contains(says) && !error.contains('\n'), "{query}: {error}");
        }
    }

    proptest! {
        #[test]
        fn any_text_parses_or_is_refused_without_a_panic(query in "\\PC{0,60}") {
            if let Ok(filter) = Filter::parse(&query) {
                filter.matches(&Sample);
            }
        }

        #[test]
        fn numbers_compare_as_numbers(x in -1e6f64..1e6) {
            prop_assert_eq!(matches(&format!("score<{x}")), 0.05 < x);
            prop_assert_eq!(matches(&format!("score>={x}")), 0.05 >= x);
        }
    }
}
