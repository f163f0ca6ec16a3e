//! What a person types, and the text of tokens.

use std::borrow::Cow;
use std::sync::LazyLock;

use kvista::app::filter::{Field, Row};
use kvista::app::{Chord, Filter};
use kvista::event::ScoreLevel;
use kvista::model::{self, Tokenizer};
use kvista::policy::{parse_policy, parse_read};
use kvista::ui::text::{fit, glyphs, safe, width};
use kvista::ui::theme::Symbols;

use super::refused;

/// `SPEC`, then lines of `PARAM VALUE` that are tuned.
fn tuned(text: &str) -> (&str, impl Iterator<Item = (&str, &str)>) {
    let mut lines = text.lines();
    let spec = lines.next().unwrap_or_default();
    (spec, lines.map(|line| line.split_once(' ').unwrap_or((line, ""))))
}

pub fn policy(bytes: &[u8]) -> bool {
    let text = String::from_utf8_lossy(bytes);
    let (spec, changes) = tuned(&text);
    let mut policy = match parse_policy(spec) {
        Ok(policy) => policy,
        Err(error) => return refused(&error),
    };
    for (param, value) in changes {
        if let Err(error) = policy.set(param, value) {
            refused(&error);
        }
    }
    for prompt_len in [0, 1, 600, u32::MAX] {
        policy.slots(prompt_len);
        if let Err(error) = policy.check(prompt_len) {
            refused(&error);
        }
    }
    let canonical = policy.to_string();
    let again = parse_policy(&canonical).expect("what is printed is understood");
    assert_eq!(again.to_string(), canonical);
    true
}

pub fn read_set(bytes: &[u8]) -> bool {
    let text = String::from_utf8_lossy(bytes);
    let (spec, changes) = tuned(&text);
    let mut read = match parse_read(spec) {
        Ok(read) => read,
        Err(error) => return refused(&error),
    };
    for (param, value) in changes {
        if let Err(error) = read.set(param, value) {
            refused(&error);
        }
    }
    let canonical = read.to_string();
    let again = parse_read(&canonical).expect("what is printed is understood");
    assert_eq!(again.to_string(), canonical);
    true
}

struct Victim;

impl Row for Victim {
    fn number(&self, field: Field) -> Option<f64> {
        (field != Field::Rank).then_some(0.25)
    }

    fn text(&self, field: Field) -> Option<Cow<'_, str>> {
        (field != Field::Reason).then_some(" Straße".into())
    }

    fn line(&self) -> Cow<'_, str> {
        "layer 1 lost ' Straße'".into()
    }
}

pub fn filter(bytes: &[u8]) -> bool {
    let text = String::from_utf8_lossy(bytes);
    match Filter::parse(&text) {
        Ok(filter) => {
            filter.matches(&Victim);
            assert_eq!(Filter::parse(filter.source()), Ok(filter.clone()));
            true
        }
        Err(error) => refused(&error),
    }
}

pub fn chord(bytes: &[u8]) -> bool {
    let text = String::from_utf8_lossy(bytes);
    let chord = text.parse::<Chord>();
    if let Ok(chord) = &chord {
        assert_eq!(chord.to_string().parse().as_ref(), Ok(chord));
    }
    chord.is_ok()
}

pub fn score_level(bytes: &[u8]) -> bool {
    let text = String::from_utf8_lossy(bytes);
    let level = text.parse::<ScoreLevel>();
    if let Ok(level) = level {
        assert_eq!(level.to_string().parse(), Ok(level));
    }
    level.is_ok()
}

pub fn prompt(bytes: &[u8]) -> bool {
    static DEMO: LazyLock<Tokenizer> =
        LazyLock::new(|| model::demo::load().expect("the embedded model").tokenizer);
    let text = String::from_utf8_lossy(bytes);
    let ids = DEMO.encode_continuation(&text).expect("every text has bytes");
    assert_eq!(DEMO.text(&ids), text, "ids stand for the text");
    DEMO.encode(&text).expect("every text has bytes");
    true
}

pub fn token_text(bytes: &[u8]) -> bool {
    for symbols in [Symbols::Block, Symbols::Ascii] {
        let line = safe(bytes, symbols);
        assert!(!line.chars().any(char::is_control), "{line:?}");
        let columns: usize = glyphs(bytes, symbols).map(|glyph| usize::from(glyph.width)).sum();
        for room in [0, 1, 2, columns / 2, columns] {
            assert!(width(&fit(&line, room, symbols)) <= room, "{line:?} in {room}");
        }
    }
    true
}
