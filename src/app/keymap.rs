//! Chords: how keys are written, matched and remapped.
//!
//! A chord is one key or several in a row, written `Ctrl-d`, `Shift-Left`, `F1`, `g 3`. Terminals disagree about Shift
//! on characters (`G` arrives with or without it), so a character carries its own case and never Shift.

use std::fmt;
use std::str::FromStr;

use crossterm::event::{KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use thiserror::Error;

use super::command::{COMMANDS, Command, Context};

/// Longest chord, in keys.
const MAX_KEYS: usize = 4;

/// One key with its modifiers, normalised.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Key {
    /// Which key.
    pub code: KeyCode,
    /// Control, Alt, Shift; never Shift on a character.
    pub mods: KeyModifiers,
}

/// Keys in a row.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Chord(pub Vec<Key>);

/// Why a chord or a binding was refused.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum KeyError {
    /// Not a key.
    #[error(
        "'{0}' is not a key: write Ctrl-d, Shift-Left, F1, Space or a character; keys in a row with spaces: 'g 3'"
    )]
    Key(String),
    /// No or too many keys.
    #[error("a chord has 1 to {MAX_KEYS} keys, '{0}' has not")]
    Length(String),
    /// No such command.
    #[error("there is no command '{name}'{}: `kvista keys` lists them", suggestion(.near.as_deref()))]
    Command {
        /// What was asked for.
        name: String,
        /// The command nearest to it.
        near: Option<String>,
    },
    /// One chord would begin another one.
    #[error("'{chord}' cannot be both '{command}' and the beginning of '{other}'")]
    Prefix {
        /// The shorter chord.
        chord: String,
        /// Its command.
        command: &'static str,
        /// The longer chord.
        other: String,
    },
}

fn suggestion(near: Option<&str>) -> String {
    near.map(|n| format!(" (did you mean '{n}'?)")).unwrap_or_default()
}

/// Names of keys that are not characters; the first name of a code is the one printed.
const NAMES: &[(&str, KeyCode)] = &[
    ("Space", KeyCode::Char(' ')),
    ("Enter", KeyCode::Enter),
    ("Esc", KeyCode::Esc),
    ("Tab", KeyCode::Tab),
    ("Backspace", KeyCode::Backspace),
    ("Delete", KeyCode::Delete),
    ("Left", KeyCode::Left),
    ("Right", KeyCode::Right),
    ("Up", KeyCode::Up),
    ("Down", KeyCode::Down),
    ("Home", KeyCode::Home),
    ("End", KeyCode::End),
    ("PgUp", KeyCode::PageUp),
    ("PgDn", KeyCode::PageDown),
    ("Insert", KeyCode::Insert),
    ("Return", KeyCode::Enter),
    ("Escape", KeyCode::Esc),
    ("Del", KeyCode::Delete),
    ("PageUp", KeyCode::PageUp),
    ("PageDown", KeyCode::PageDown),
];

impl Key {
    /// A key as a terminal reports it.
    pub fn new(code: KeyCode, mods: KeyModifiers) -> Self {
        let mut mods = mods & (KeyModifiers::CONTROL | KeyModifiers::ALT | KeyModifiers::SHIFT);
        let code = match code {
            KeyCode::BackTab => {
                mods |= KeyModifiers::SHIFT;
                KeyCode::Tab
            }
            KeyCode::Char(c) => {
                let shifted = mods.contains(KeyModifiers::SHIFT);
                mods -= KeyModifiers::SHIFT;
                // Ctrl-Shift-d and Ctrl-D are one key; most terminals cannot tell them from Ctrl-d.
                let c = if mods.contains(KeyModifiers::CONTROL) {
                    c.to_ascii_lowercase()
                } else if shifted {
                    c.to_ascii_uppercase()
                } else {
                    c
                };
                KeyCode::Char(c)
            }
            other => other,
        };
        Self { code, mods }
    }

    /// The key of an event; `None` for a release. Repeats are told apart by the caller.
    pub fn of(event: &KeyEvent) -> Option<Self> {
        (event.kind != KeyEventKind::Release).then(|| Self::new(event.code, event.modifiers))
    }

    /// The character it types into a line, if any.
    pub fn typed(self) -> Option<char> {
        match self.code {
            KeyCode::Char(c) if self.mods.is_empty() => Some(c),
            _ => None,
        }
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (bit, name) in
            [(KeyModifiers::CONTROL, "Ctrl-"), (KeyModifiers::ALT, "Alt-"), (KeyModifiers::SHIFT, "Shift-")]
        {
            if self.mods.contains(bit) {
                f.write_str(name)?;
            }
        }
        if let Some((name, _)) = NAMES.iter().find(|(_, code)| *code == self.code) {
            return f.write_str(name);
        }
        match self.code {
            KeyCode::Char(c) => write!(f, "{c}"),
            KeyCode::F(n) => write!(f, "F{n}"),
            other => write!(f, "{other:?}"),
        }
    }
}

impl FromStr for Key {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, KeyError> {
        let wrong = || KeyError::Key(text.to_owned());
        let mut rest = text;
        let mut mods = KeyModifiers::NONE;
        while let Some((head, tail)) = rest.split_once('-').filter(|(_, tail)| !tail.is_empty()) {
            mods |= match head.to_ascii_lowercase().as_str() {
                "ctrl" | "c" => KeyModifiers::CONTROL,
                "alt" | "a" | "m" => KeyModifiers::ALT,
                "shift" | "s" => KeyModifiers::SHIFT,
                _ => return Err(wrong()),
            };
            rest = tail;
        }
        let named = NAMES.iter().find(|(name, _)| name.eq_ignore_ascii_case(rest)).map(|&(_, code)| code);
        let function = || rest.strip_prefix(['F', 'f'])?.parse().ok().filter(|n| (1..=24).contains(n));
        let mut chars = rest.chars();
        let code = match (named, chars.next(), chars.next()) {
            (Some(code), ..) => code,
            (None, Some(c), None) if !c.is_control() => KeyCode::Char(c),
            _ => KeyCode::F(function().ok_or_else(wrong)?),
        };
        Ok(Self::new(code, mods))
    }
}

impl fmt::Display for Chord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, key) in self.0.iter().enumerate() {
            if i > 0 {
                f.write_str(" ")?;
            }
            write!(f, "{key}")?;
        }
        Ok(())
    }
}

impl FromStr for Chord {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, KeyError> {
        let keys = text.split_whitespace().map(str::parse).collect::<Result<Vec<Key>, _>>()?;
        if keys.is_empty() || keys.len() > MAX_KEYS {
            return Err(KeyError::Length(text.to_owned()));
        }
        Ok(Self(keys))
    }
}

/// What keys pressed so far mean.
#[derive(Clone, Copy, Debug)]
pub enum Lookup {
    /// A whole chord.
    Run(&'static Command),
    /// The beginning of one.
    Prefix,
    /// Nothing.
    Unbound,
}

/// One binding in force.
#[derive(Clone, Debug)]
pub struct Binding {
    /// Keys.
    pub chord: Chord,
    /// What they do.
    pub command: &'static Command,
}

/// All bindings in force.
#[derive(Clone, Debug)]
pub struct Keymap {
    bindings: Vec<Binding>,
}

impl Default for Keymap {
    fn default() -> Self {
        let bindings = COMMANDS
            .iter()
            .flat_map(|command| {
                command.keys.iter().map(move |keys| Binding {
                    chord: keys.parse().expect("a test parses every chord of the registry"),
                    command,
                })
            })
            .collect();
        Self { bindings }
    }
}

impl Keymap {
    /// Gives a chord to a command: in the command's context it loses whatever it did before; longer chords of that
    /// context that begin with it go too. The empty command name unbinds the chord everywhere.
    pub fn bind(&mut self, chord: &str, command: &str) -> Result<(), KeyError> {
        let chord: Chord = chord.parse()?;
        if command.is_empty() {
            self.bindings.retain(|b| b.chord != chord);
            return Ok(());
        }
        let Some(command) = COMMANDS.iter().find(|c| c.name == command) else {
            let near = super::nearest(command, COMMANDS.iter().map(|c| c.name)).map(str::to_owned);
            return Err(KeyError::Command { name: command.to_owned(), near });
        };
        let same = |b: &&Binding| b.command.context == command.context;
        if let Some(shorter) = self.bindings.iter().filter(same).find(|b| is_begin(&b.chord, &chord)) {
            return Err(KeyError::Prefix {
                chord: shorter.chord.to_string(),
                command: shorter.command.name,
                other: chord.to_string(),
            });
        }
        self.bindings.retain(|b| !(same(&b) && (b.chord == chord || is_begin(&chord, &b.chord))));
        self.bindings.push(Binding { chord, command });
        Ok(())
    }

    /// What `keys` mean; the first context that knows them decides.
    pub fn lookup(&self, contexts: &[Context], keys: &[Key]) -> Lookup {
        for &context in contexts {
            let mut here = self.bindings.iter().filter(|b| b.command.context == context);
            let mut prefix = false;
            if let Some(whole) = here.find(|b| {
                prefix |= b.chord.0.len() > keys.len() && b.chord.0.starts_with(keys);
                b.chord.0 == keys
            }) {
                return Lookup::Run(whole.command);
            }
            if prefix {
                return Lookup::Prefix;
            }
        }
        Lookup::Unbound
    }

    /// Bindings that go on from `keys`.
    pub fn continuations<'a>(
        &'a self,
        contexts: &'a [Context],
        keys: &'a [Key],
    ) -> impl Iterator<Item = &'a Binding> {
        self.bindings.iter().filter(move |b| {
            contexts.contains(&b.command.context)
                && b.chord.0.len() > keys.len()
                && b.chord.0.starts_with(keys)
        })
    }

    /// Chords of a command, as they are in force; a remapped one first.
    pub fn keys_of<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a Chord> {
        self.bindings.iter().filter(move |b| b.command.name == name).map(|b| &b.chord)
    }

    /// All bindings.
    pub fn bindings(&self) -> &[Binding] {
        &self.bindings
    }
}

/// Whether `short` begins `long` without being it.
fn is_begin(short: &Chord, long: &Chord) -> bool {
    short.0.len() < long.0.len() && long.0.starts_with(&short.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chords_print_as_they_parse() {
        for text in
            ["g 3", "Ctrl-d", "Shift-Left", "F1", "Space", "G", "-", "Ctrl--", "<", "Shift-Tab", "PgDn", "'"]
        {
            assert_eq!(text.parse::<Chord>().unwrap().to_string(), text);
        }
        assert_eq!("C-d".parse::<Chord>().unwrap().to_string(), "Ctrl-d");
        for text in ["", "g g g g g", "Hyper-x", "F99", "nonsense", "Ctrl-nonsense"] {
            assert!(text.parse::<Chord>().is_err(), "{text}");
        }
    }

    #[test]
    fn terminals_that_disagree_about_shift_mean_the_same_key() {
        let g = Key::new(KeyCode::Char('G'), KeyModifiers::NONE);
        assert_eq!(g, Key::new(KeyCode::Char('G'), KeyModifiers::SHIFT));
        assert_eq!(g, Key::new(KeyCode::Char('g'), KeyModifiers::SHIFT));
        assert_eq!(
            Key::new(KeyCode::BackTab, KeyModifiers::NONE),
            Key::new(KeyCode::Tab, KeyModifiers::SHIFT)
        );
    }

    #[test]
    fn releases_are_not_keys() {
        let mut event = KeyEvent::new(KeyCode::Char('x'), KeyModifiers::NONE);
        assert!(Key::of(&event).is_some());
        event.kind = KeyEventKind::Release;
        assert!(Key::of(&event).is_none());
    }

    #[test]
    fn remapping_replaces_and_refuses_clearly() {
        let mut map = Keymap::default();
        map.bind("b", "engine.rerun").unwrap();
        let b: Chord = "b".parse().unwrap();
        assert!(matches!(map.lookup(&[Context::Global], &b.0), Lookup::Run(c) if c.name == "engine.rerun"));
        let error = map.bind("b", "engine.rerunn").unwrap_err().to_string();
        assert!(error.contains("did you mean 'engine.rerun'"), "{error}");
        assert!(matches!(map.bind("b x", "app.help"), Err(KeyError::Prefix { .. })));
        map.bind("g", "app.help").unwrap();
        let g3: Chord = "g 3".parse().unwrap();
        assert!(matches!(map.lookup(&[Context::Global], &g3.0), Lookup::Unbound));
        map.bind("b", "").unwrap();
        assert!(matches!(map.lookup(&[Context::Global], &b.0), Lookup::Unbound));
    }

    #[test]
    fn a_prefix_lists_its_continuations() {
        let map = Keymap::default();
        let g: Chord = "g".parse().unwrap();
        assert!(matches!(map.lookup(&[Context::Global], &g.0), Lookup::Prefix));
        assert!(map.continuations(&[Context::Global], &g.0).count() >= 12);
    }
}
