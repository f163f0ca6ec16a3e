//! The configuration file's text. Where it lies and how it is read is the caller's business.

use std::collections::BTreeMap;

use serde::Deserialize;
use thiserror::Error;
use toml::Spanned;

use super::Keymap;
use super::params::{MAX_PACE, MIN_PACE};

/// A documented file with every key at its default.
pub const DEFAULT_TEXT: &str = include_str!("config/default.toml");

/// Keys of the file.
const KEYS: [&str; 7] = ["theme", "color", "symbols", "mouse", "pace", "fps", "keys"];
const COLORS: [&str; 5] = ["auto", "always", "never", "256", "16"];
const SYMBOLS: [&str; 3] = ["braille", "block", "ascii"];
/// Frames per second the screen may be drawn at.
const FPS: std::ops::RangeInclusive<u16> = 1..=30;

/// A file that is refused; one line, `file:line:column: what`.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{file}:{line}:{column}: {what}")]
pub struct ConfigError {
    /// The file, as given.
    pub file: String,
    /// Line, from 1.
    pub line: usize,
    /// Column in characters, from 1.
    pub column: usize,
    /// What is wrong, and what to do.
    pub what: String,
}

/// What the file says; `None` where it says nothing.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Config {
    /// Name of a theme.
    pub theme: Option<String>,
    /// As `--color`.
    pub color: Option<String>,
    /// As `--symbols`.
    pub symbols: Option<String>,
    /// Whether the mouse is captured.
    pub mouse: Option<bool>,
    /// Steps per second; 0 is as fast as it goes.
    pub pace: Option<f64>,
    /// Most frames per second.
    pub fps: Option<u16>,
    /// Chord to command; the empty command unbinds.
    pub keys: BTreeMap<String, String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    theme: Option<String>,
    color: Option<Spanned<String>>,
    symbols: Option<Spanned<String>>,
    mouse: Option<bool>,
    pace: Option<Spanned<f64>>,
    fps: Option<Spanned<u16>>,
    #[serde(default)]
    keys: BTreeMap<Spanned<String>, Spanned<String>>,
}

impl Config {
    /// Reads the text of a file. `file` is only named in errors.
    ///
    /// # Errors
    /// Anything that is not understood, with its place; nothing is ignored.
    pub fn parse(text: &str, file: &str) -> Result<Self, ConfigError> {
        let at = |offset: usize, what: String| {
            // The parser's offsets lie on characters.
            let head = text.get(..offset).unwrap_or(text);
            let line_start = head.rfind('\n').map_or(0, |i| i + 1);
            ConfigError {
                file: file.to_owned(),
                line: head.matches('\n').count() + 1,
                column: head[line_start..].chars().count() + 1,
                what,
            }
        };
        let read: File = toml::from_str(text).map_err(|e| {
            let start = e.span().map_or(0, |s| s.start);
            at(start, explain(e.message(), text.get(e.span().unwrap_or(0..0)).unwrap_or("")))
        })?;
        let one_of = |value: Option<Spanned<String>>, key: &str, known: &[&str]| match value {
            Some(v) if !known.contains(&v.get_ref().as_str()) => {
                let near = super::nearest(v.get_ref(), known.iter().copied());
                let hint = near.map(|n| format!(" (did you mean '{n}'?)")).unwrap_or_default();
                let what = format!("{key} = '{}'{hint}: use {}", v.get_ref(), known.join(", "));
                Err(at(v.span().start, what))
            }
            value => Ok(value.map(Spanned::into_inner)),
        };
        let color = one_of(read.color, "color", &COLORS)?;
        let symbols = one_of(read.symbols, "symbols", &SYMBOLS)?;
        if let Some(pace) =
            read.pace.as_ref().filter(|p| *p.get_ref() != 0.0 && !(MIN_PACE..=MAX_PACE).contains(p.get_ref()))
        {
            let what = format!(
                "pace = {}: use {MIN_PACE} to {MAX_PACE} steps per second, or 0 for as fast as it goes",
                pace.get_ref()
            );
            return Err(at(pace.span().start, what));
        }
        if let Some(fps) = read.fps.as_ref().filter(|f| !FPS.contains(f.get_ref())) {
            let what = format!("fps = {}: use {} to {}", fps.get_ref(), FPS.start(), FPS.end());
            return Err(at(fps.span().start, what));
        }
        let mut keymap = Keymap::default();
        for (chord, command) in &read.keys {
            keymap.bind(chord.get_ref(), command.get_ref()).map_err(|e| {
                let in_command = matches!(e, super::keymap::KeyError::Command { .. });
                at(if in_command { command.span().start } else { chord.span().start }, e.to_string())
            })?;
        }
        Ok(Self {
            theme: read.theme,
            color,
            symbols,
            mouse: read.mouse,
            pace: read.pace.map(Spanned::into_inner),
            fps: read.fps.map(Spanned::into_inner),
            keys: read.keys.into_iter().map(|(k, v)| (k.into_inner(), v.into_inner())).collect(),
        })
    }

    /// The bindings in force with this file.
    ///
    /// # Errors
    /// One clear line; a parsed file's bindings are not refused.
    pub fn keymap(&self) -> Result<Keymap, String> {
        let mut keymap = Keymap::default();
        for (chord, command) in &self.keys {
            keymap.bind(chord, command).map_err(|e| e.to_string())?;
        }
        Ok(keymap)
    }
}

/// The parser's message in one line, with the key that was probably meant.
fn explain(message: &str, found: &str) -> String {
    let line = message.split_whitespace().collect::<Vec<_>>().join(" ");
    if !line.starts_with("unknown field") {
        return line;
    }
    let near = super::nearest(found.trim_matches('"'), KEYS.into_iter());
    let hint = near.map(|n| format!(" (did you mean '{n}'?)")).unwrap_or_default();
    format!("there is no key '{found}'{hint}: use {}", KEYS.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(text: &str) -> String {
        Config::parse(text, "config.toml").unwrap_err().to_string()
    }

    #[test]
    fn the_documented_default_changes_nothing() {
        let config = Config::parse(DEFAULT_TEXT, "default").unwrap();
        assert!(config.keys.is_empty());
        for key in KEYS {
            assert!(DEFAULT_TEXT.contains(key), "{key} is not documented");
        }
        let examples: Vec<_> = DEFAULT_TEXT.lines().map(|l| l.strip_prefix("# = ").unwrap_or(l)).collect();
        assert!(Config::parse(&examples.join("\n"), "examples").is_ok());
    }

    #[test]
    fn every_key_is_read() {
        let text = "theme = \"light\"\ncolor = \"256\"\nsymbols = \"ascii\"\nmouse = false\npace = 4\nfps = 10\n[keys]\n\"b\" = \"engine.rerun\"\n";
        let config = Config::parse(text, "f").unwrap();
        assert_eq!(config.theme.as_deref(), Some("light"));
        assert_eq!(config.symbols.as_deref(), Some("ascii"));
        assert_eq!((config.mouse, config.pace, config.fps), (Some(false), Some(4.0), Some(10)));
        assert_eq!(config.keys["b"], "engine.rerun");
    }

    #[test]
    fn errors_say_where_and_what_to_do() {
        for (text, starts, says) in [
            ("mouse = true\nthem = \"dark\"", "config.toml:2:1: ", "did you mean 'theme'"),
            ("symbols = \"asci\"", "config.toml:1:11: ", "did you mean 'ascii'"),
            ("fps = 100", "config.toml:1:7: ", "use 1 to 30"),
            ("pace = -1", "config.toml:1:8: ", "steps per second"),
            ("mouse = 3", "config.toml:1:9: ", "boolean"),
            ("[keys]\n\"b\" = \"engine.rerunn\"", "config.toml:2:7: ", "did you mean 'engine.rerun'"),
            ("[keys]\n\"Hyper-b\" = \"engine.rerun\"", "config.toml:2:1: ", "not a key"),
            ("theme = ", "config.toml:1:", ""),
        ] {
            let error = refused(text);
            assert!(
                error.starts_with(starts) && error.contains(says) && !error.contains('\n'),
                "{text}: {error}"
            );
        }
    }
}
