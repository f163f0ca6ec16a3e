//! The rules of the house that the compiler does not check: which room may use which, what a room never touches, where
//! `unsafe` may stand, how long a file may be. The floors are read from the table in `src/lib.rs`.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

/// Longest file, in lines.
const MAX_LINES: usize = 700;
/// Lines above an `unsafe` in which its `SAFETY` comment may stand.
const SAFETY_LINES: usize = 6;

/// What a room never names, and files that may.
const FORBIDDEN: [(&str, &[&str], &[&str]); 3] = [
    (
        "ui",
        &["std::fs", "std::net", "Instant", "SystemTime", "mpsc", "tokio", "std::env", "std::process"],
        &["ui/terminal.rs"],
    ),
    ("state", &["ratatui", "crossterm", "std::fs", "Instant", "SystemTime"], &[]),
    ("policy", &["candle", "candle_core", "std::fs", "std::io", "Instant", "SystemTime"], &[]),
];

/// Where `unsafe` may stand.
const UNSAFE: [&str; 4] = ["attention.rs", "attention/", "device/", "model/bytes.rs"];

/// A source file: its path under `src`, its text, and the text with comments, strings and characters blanked.
struct Source {
    path: String,
    text: String,
    code: String,
}

impl Source {
    fn new(path: &str, text: &str) -> Self {
        Self { path: path.into(), text: text.into(), code: blanked(text) }
    }

    /// `trace/index.rs` and `trace.rs` are of the room `trace`.
    fn room(&self) -> &str {
        self.path.split('/').next().unwrap_or_default().trim_end_matches(".rs")
    }
}

type Floors = BTreeMap<String, u32>;

/// The rooms of the table in the crate's documentation: `//! | 3 | [`model`], [`trace`] | … |`.
fn floors(lib: &str) -> Floors {
    let mut floors = Floors::new();
    for line in lib.lines().filter_map(|line| line.strip_prefix("//! |")) {
        let mut cells = line.split('|').map(str::trim);
        let Some(floor) = cells.next().and_then(|cell| cell.parse().ok()) else { continue };
        let rooms = cells.next().unwrap_or_default().split('`').skip(1).step_by(2);
        floors.extend(rooms.map(|room| (room.to_owned(), floor)));
    }
    floors
}

/// Every fault of a file, one line each.
fn faults(source: &Source, floors: &Floors) -> Vec<String> {
    let mut faults = Vec::new();
    let lines = source.text.lines().count();
    if lines > MAX_LINES {
        faults.push(format!("{}: {lines} lines, at most {MAX_LINES}: it holds two subjects", source.path));
    }
    let mut fault = |at: usize, what: String| {
        let line = source.code[..at].matches('\n').count() + 1;
        faults.push(format!("{}:{line}: {what}", source.path));
    };
    let room = source.room();
    match floors.get(room) {
        Some(floor) => {
            for (at, used) in uses(&source.code) {
                match floors.get(used) {
                    _ if used == room => {}
                    Some(below) if below < floor => {}
                    Some(_) => fault(at, format!("{room} uses {used}, which is not on a lower floor")),
                    None => fault(at, format!("{room} uses {used}, which is on no floor")),
                }
            }
        }
        None if room == "lib" => {}
        None => fault(0, "on no floor of the table in src/lib.rs".into()),
    }
    for (_, names, _) in
        FORBIDDEN.iter().filter(|(of, _, except)| *of == room && !except.contains(&source.path.as_str()))
    {
        for name in *names {
            for at in words(&source.code, name) {
                fault(at, format!("{room} never names {name}"));
            }
        }
    }
    for at in words(&source.code, "unsafe") {
        if !UNSAFE.iter().any(|place| source.path.starts_with(place)) {
            fault(at, format!("unsafe outside {UNSAFE:?}"));
        } else if !has_safety_comment(source, at) {
            fault(at, "unsafe without a SAFETY comment".into());
        }
    }
    faults
}

/// Rooms named by paths that begin at the crate: `crate::event::Step`, `crate::{event, state::State}`.
fn uses(code: &str) -> Vec<(usize, &str)> {
    let mut used = Vec::new();
    for (at, path) in code.match_indices("crate::").map(|(at, start)| (at, &code[at + start.len()..])) {
        match path.strip_prefix('{') {
            Some(group) => used.extend(group_names(group).into_iter().map(|name| (at, name))),
            None => used.push((at, identifier(path))),
        }
    }
    // `macro_rules` spell the crate `$crate`; a path into it begins at the crate too, and is counted the same.
    used.retain(|(_, name)| !name.is_empty());
    used
}

/// First names of the items of a braced group, after its opening brace.
fn group_names(group: &str) -> Vec<&str> {
    let (mut depth, mut start, mut names) = (0, 0, Vec::new());
    for (i, c) in group.char_indices() {
        match c {
            '{' => depth += 1,
            '}' | ',' if depth == 0 => {
                names.push(identifier(group[start..i].trim_start()));
                if c == '}' {
                    break;
                }
                start = i + 1;
            }
            '}' => depth -= 1,
            _ => {}
        }
    }
    names
}

fn identifier(text: &str) -> &str {
    text.split(|c: char| !is_word(c)).next().unwrap_or_default()
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// Where a name stands as a whole word, or as the beginning of a path.
fn words<'a>(code: &'a str, name: &'a str) -> impl Iterator<Item = usize> + 'a {
    code.match_indices(name)
        .map(|(at, _)| at)
        .filter(move |&at| !code[..at].ends_with(is_word) && !code[at + name.len()..].starts_with(is_word))
}

fn has_safety_comment(source: &Source, at: usize) -> bool {
    let line = source.code[..at].matches('\n').count();
    let near = source.text.lines().take(line + 1).skip(line.saturating_sub(SAFETY_LINES));
    near.into_iter().any(|line| line.contains("SAFETY:") || line.contains("# Safety"))
}

/// The text with everything blanked that is no code, at unchanged offsets.
fn blanked(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = bytes.to_vec();
    let mut at = 0;
    while at < bytes.len() {
        let length = skipped(&text[at..], text[..at].ends_with(is_word));
        for byte in &mut out[at..at + length] {
            if *byte != b'\n' {
                *byte = b' ';
            }
        }
        at += length.max(text[at..].chars().next().map_or(1, char::len_utf8));
    }
    String::from_utf8(out).expect("whole characters were blanked")
}

/// Bytes of the comment, string or character that the text begins with.
fn skipped(text: &str, in_word: bool) -> usize {
    let to = |end: &str, from: usize| text[from..].find(end).map_or(text.len(), |i| from + i + end.len());
    if text.starts_with("//") {
        return text.find('\n').unwrap_or(text.len());
    }
    if text.starts_with("/*") {
        return to("*/", 2);
    }
    if let Some(rest) = text.strip_prefix('"') {
        return 1 + escaped(rest, '"');
    }
    if text.starts_with('r') && !in_word {
        let hashes = text[1..].chars().take_while(|c| *c == '#').count();
        if text[1 + hashes..].starts_with('"') {
            return to(&format!("\"{}", "#".repeat(hashes)), 2 + hashes);
        }
    }
    if let Some(rest) = text.strip_prefix('\'') {
        let first = rest.chars().next();
        // A lifetime has no closing quote after its first character.
        let is_char = first.is_some_and(|c| c == '\\' || rest[c.len_utf8()..].starts_with('\''));
        return if is_char { 1 + escaped(rest, '\'') } else { 0 };
    }
    0
}

/// Bytes up to and with the closing quote.
fn escaped(text: &str, quote: char) -> usize {
    let mut chars = text.char_indices();
    while let Some((i, c)) = chars.next() {
        if c == '\\' {
            chars.next();
        } else if c == quote {
            return i + 1;
        }
    }
    text.len()
}

fn sources(folder: &Path, root: &Path, out: &mut Vec<Source>) {
    for entry in fs::read_dir(folder).expect("the sources can be read") {
        let path = entry.expect("the sources can be read").path();
        if path.is_dir() {
            sources(&path, root, out);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let name =
                path.strip_prefix(root).expect("it is under the root").to_string_lossy().replace('\\', "/");
            out.push(Source::new(&name, &fs::read_to_string(&path).expect("the sources are text")));
        }
    }
}

fn house() -> (Vec<Source>, Floors) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut all = Vec::new();
    sources(&root, &root, &mut all);
    let lib = all.iter().find(|source| source.path == "lib.rs").expect("the crate has a root");
    let floors = floors(&lib.text);
    (all, floors)
}

#[test]
fn the_house_stands() {
    let (sources, floors) = house();
    assert!(sources.len() > 50, "{}", sources.len());
    let faults: Vec<String> = sources.iter().flat_map(|source| faults(source, &floors)).collect();
    assert!(faults.is_empty(), "\n{}\n", faults.join("\n"));
}

#[test]
fn every_module_is_on_a_floor_and_every_room_exists() {
    let (sources, floors) = house();
    let lib = sources.iter().find(|source| source.path == "lib.rs").expect("the crate has a root");
    let mut modules: Vec<&str> = lib.code.split("mod ").skip(1).map(identifier).collect();
    modules.push("main");
    modules.sort_unstable();
    assert_eq!(modules, floors.keys().map(String::as_str).collect::<Vec<_>>());
}

/// Faults of a made-up file in a house of three floors.
fn found(path: &str, text: &str) -> Vec<String> {
    let table = "//! | 2 | [`ui`], [`app`] | |\n//! | 1 | [`state`], [`attention`] | |\n//! | 0 | [`policy`], [`event`] | |\n";
    faults(&Source::new(path, text), &floors(table))
}

#[test]
fn a_room_that_reaches_up_or_sideways_is_found() {
    for (path, text) in [
        ("event/step.rs", "use crate::state::State;"),
        ("state.rs", "use crate::attention::Rope;"),
        ("state.rs", "use crate::{event::Step, ui::draw};"),
        ("state.rs", "use crate::{event::{Step, Tier}, app};"),
        ("state.rs", "fn f(_: crate::app::App) {}"),
        ("state.rs", "use crate::nowhere::Thing;"),
        ("nowhere.rs", ""),
    ] {
        assert_eq!(found(path, text).len(), 1, "{path}: {text}");
    }
    for (path, text) in [
        ("ui/draw.rs", "use crate::{event::{Step, Tier}, state};\nuse crate::ui::text;"),
        (
            "state.rs",
            "// use crate::app::App;\n/* crate::ui */ const S: &str = \"crate::ui\"; const R: &str = r#\"crate::\"ui\"#;",
        ),
        ("lib.rs", "pub mod ui;"),
    ] {
        assert_eq!(found(path, text), [""; 0], "{path}: {text}");
    }
}

#[test]
fn a_room_that_touches_what_it_must_not_is_found() {
    for (path, text) in [
        ("ui/draw.rs", "let t = std::time::Instant::now();"),
        ("ui/draw.rs", "use std::fs;"),
        ("state/hash.rs", "use ratatui::style::Color;"),
        ("policy/h2o.rs", "use candle_core::Tensor;"),
        ("event/step.rs", "unsafe { f() }"),
        ("attention/cpu.rs", "unsafe { f() }"),
    ] {
        assert_eq!(found(path, text).len(), 1, "{path}: {text}");
    }
    for (path, text) in [
        ("ui/terminal.rs", "use std::env;"),
        (
            "ui/draw.rs",
            "let instantly = Instantly; // Instant\nlet c = 'x'; let s: &'static str = \"tokio\";",
        ),
        ("policy/h2o.rs", "let candles = 1;"),
        ("attention/cpu.rs", "// SAFETY: the lane is as long as the row.\nlet x = unsafe { f() };"),
    ] {
        assert_eq!(found(path, text), [""; 0], "{path}: {text}");
    }
}

#[test]
fn a_file_that_is_too_long_is_found() {
    assert_eq!(found("ui.rs", &"\n".repeat(MAX_LINES)), [""; 0]);
    assert_eq!(found("ui.rs", &"\n".repeat(MAX_LINES + 1)).len(), 1);
}
