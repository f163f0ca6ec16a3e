//! What can be wrong with a theme, in one line each.

use std::fmt;

/// A place in a theme file, 1-based.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct At {
    /// The file, or `NAME.toml (built in)`.
    pub file: String,
    /// Line, from 1.
    pub line: usize,
    /// Column in characters, from 1.
    pub column: usize,
}

impl At {
    /// The place of a byte offset in a text.
    pub(super) fn new(file: &str, text: &str, offset: usize) -> Self {
        let before = text.get(..offset).unwrap_or(text);
        let start = before.rfind('\n').map_or(0, |newline| newline + 1);
        Self {
            file: file.to_owned(),
            line: before.matches('\n').count() + 1,
            column: before[start..].chars().count() + 1,
        }
    }
}

impl fmt::Display for At {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.file, self.line, self.column)
    }
}

/// Why a theme cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ThemeError {
    /// No theme of that name, built in or in the person's folder.
    #[error("no theme is called '{name}'{}", if .nearest.is_some() { hint(.nearest) } else { ": kvista themes lists them".into() })]
    Unknown {
        /// The name asked for.
        name: String,
        /// The most similar name there is.
        nearest: Option<String>,
    },
    /// The file is not TOML.
    #[error("{at}: {message}")]
    Syntax {
        /// Where.
        at: At,
        /// What the parser says.
        message: String,
    },
    /// A key, role, modifier or ramp that does not exist.
    #[error("{at}: unknown {what} '{found}'{}", hint(.nearest))]
    UnknownName {
        /// Where.
        at: At,
        /// What kind of name it would be.
        what: &'static str,
        /// The name given.
        found: String,
        /// The most similar name there is.
        nearest: Option<String>,
    },
    /// A value that is not a colour.
    #[error("{at}: '{found}' is not a colour{}: give #rrggbb, a palette name, an ANSI name or default", hint(.nearest))]
    Color {
        /// Where.
        at: At,
        /// The value given.
        found: String,
        /// The most similar name there is.
        nearest: Option<String>,
    },
    /// A value of the wrong kind.
    #[error("{at}: {key} must be {expected}, found {found}")]
    Kind {
        /// Where.
        at: At,
        /// Which key.
        key: String,
        /// What it must be.
        expected: &'static str,
        /// What it is.
        found: String,
    },
    /// `inherits` names a theme that does not exist.
    #[error("{at}: inherits '{name}', but no theme is called so{}", hint(.nearest))]
    Parent {
        /// Where.
        at: At,
        /// The name given.
        name: String,
        /// The most similar name there is.
        nearest: Option<String>,
    },
    /// Themes that inherit from each other in a circle.
    #[error("{at}: themes inherit in a circle: {chain}")]
    Cycle {
        /// Where the circle closes.
        at: At,
        /// `a -> b -> a`.
        chain: String,
    },
}

// The signature is thiserror's: it passes the field by reference.
#[allow(clippy::ref_option)]
fn hint(nearest: &Option<String>) -> String {
    nearest.as_ref().map_or_else(String::new, |name| format!(", did you mean '{name}'?"))
}

/// The candidate most like `word`, if one is like it at all: at most a third of its letters differ.
pub fn nearest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let limit = (word.chars().count() / 3).max(1);
    candidates
        .into_iter()
        .map(|candidate| (edits(word, candidate), candidate))
        .filter(|&(distance, _)| distance <= limit)
        .min_by_key(|&(distance, _)| distance)
        .map(|(_, candidate)| candidate)
}

/// Edit distance in characters: one is put in, left out, replaced, or swapped with its neighbour.
fn edits(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut before: Vec<usize> = Vec::new();
    let mut above: Vec<usize> = (0..=b.len()).collect();
    for i in 1..=a.len() {
        let mut row = vec![i];
        for j in 1..=b.len() {
            let replaced = above[j - 1] + usize::from(a[i - 1] != b[j - 1]);
            let mut least = replaced.min(above[j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                least = least.min(before[j - 2] + 1);
            }
            row.push(least);
        }
        before = std::mem::replace(&mut above, row);
    }
    above[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn similar_names_are_offered_and_others_are_not() {
        let names = ["title", "border", "border-focus"];
        assert_eq!(nearest("tittle", names), Some("title"));
        assert_eq!(nearest("borderfocus", names), Some("border-focus"));
        assert_eq!(nearest("quux", names), None);
        assert_eq!(edits("kitten", "sitting"), 3);
        assert_eq!(edits("drak", "dark"), 1);
        assert_eq!(edits("", "ab"), 2);
    }

    #[test]
    fn places_count_characters() {
        let at = At::new("x.toml", "é = 1\nüü = 2", "é = 1\nüü".len());
        assert_eq!(at.to_string(), "x.toml:2:3");
    }
}
