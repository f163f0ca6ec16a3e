//! One frame of every view, in every size and format, without a terminal.

use unicode_width::UnicodeWidthStr;

use crate::program::{command, finish, is_obeyed, run, short_run};

const VIEWS: [&str; 9] =
    ["overview", "blocks", "attention", "evictions", "traffic", "latency", "log", "text", "policy"];
const SIZES: [(usize, usize); 4] = [(200, 60), (80, 24), (40, 12), (10, 3)];

struct Recorded {
    _dir: tempfile::TempDir,
    file: String,
}

impl Recorded {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("run.mcap").to_str().unwrap().to_owned();
        short_run(&["--record", &file]).ok();
        Self { _dir: dir, file }
    }

    fn frame(&self, view: &str, (width, height): (usize, usize), format: &str) -> String {
        let size = format!("{width}x{height}");
        let args = ["replay", "--headless", "--view", view, "--size", &size, "--format", format, &self.file];
        run(args).ok().out()
    }
}

#[test]
fn text_fits_its_frame_in_every_view_and_size() {
    let recorded = Recorded::new();
    for view in VIEWS {
        for size in SIZES {
            let text = recorded.frame(view, size, "text");
            let lines: Vec<&str> = text.lines().collect();
            assert_eq!(lines.len(), size.1, "{view} {size:?}:\n{text}");
            for line in lines {
                assert!(line.width() <= size.0 && !line.chars().any(is_obeyed), "{view} {size:?}: {line:?}");
            }
            assert!(text.split_whitespace().next().is_some(), "{view} {size:?} shows nothing");
        }
    }
}

#[test]
fn every_view_is_another_picture() {
    let recorded = Recorded::new();
    let mut frames = VIEWS.map(|view| recorded.frame(view, (120, 40), "text"));
    frames.sort();
    assert!(frames.windows(2).all(|pair| pair[0] != pair[1]));
}

#[test]
fn colours_add_nothing_but_themselves() {
    let recorded = Recorded::new();
    for view in VIEWS {
        let ansi = recorded.frame(view, (80, 24), "ansi");
        let bare = without_colours(&ansi);
        assert!(!bare.chars().any(|c| c != '\n' && is_obeyed(c)), "{view}: {bare:?}");
        assert!(ansi.len() > bare.len(), "{view} has no colour");
        assert_eq!(bare.lines().count(), 24, "{view}");
        let plain = finish(command().args([
            "replay",
            "--headless",
            "--color",
            "never",
            "--view",
            view,
            "--size",
            "80x24",
            "--format",
            "ansi",
            &recorded.file,
        ]))
        .ok()
        .out();
        assert!(
            !plain.contains("38;") && !plain.contains("48;"),
            "{view} has colours in spite of --color never"
        );
    }
}

/// Takes `ESC [ … m` out, and nothing else.
fn without_colours(ansi: &str) -> String {
    let mut parts = ansi.split("\u{1b}[");
    let mut bare = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let end = part.find(|c: char| !c.is_ascii_digit() && c != ';').expect("an end");
        assert_eq!(part.as_bytes()[end], b'm', "only colours are set: {part:?}");
        bare.push_str(&part[end + 1..]);
    }
    bare
}

#[test]
fn no_color_changes_no_character() {
    let recorded = Recorded::new();
    for view in VIEWS {
        let args = ["replay", "--headless", "--view", view, "--size", "100x30", &recorded.file];
        let plain = finish(command().args(args).env("NO_COLOR", "1")).ok().out();
        assert_eq!(plain, recorded.frame(view, (100, 30), "text"), "{view}");
    }
}

#[test]
fn pictures_are_well_formed() {
    let recorded = Recorded::new();
    for view in VIEWS {
        for size in [(80, 24), (10, 3)] {
            let svg = recorded.frame(view, size, "svg");
            let tags = tags(&svg).unwrap_or_else(|why| panic!("{view} {size:?}: {why}"));
            assert_eq!(tags.first().map(String::as_str), Some("svg"), "{view}");
            assert!(tags.iter().any(|tag| tag == "text" || tag == "tspan"), "{view} {size:?} has no text");
        }
    }
}

/// Names of the elements of a document, in order; an error where it is not well-formed.
fn tags(xml: &str) -> Result<Vec<String>, String> {
    let (mut open, mut seen): (Vec<String>, Vec<String>) = (Vec::new(), Vec::new());
    let mut rest = xml;
    while let Some(start) = rest.find('<') {
        entities(&rest[..start])?;
        let end = rest[start..].find('>').ok_or("a tag without an end")? + start;
        let tag = &rest[start + 1..end];
        rest = &rest[end + 1..];
        if tag.starts_with(['?', '!']) {
            continue;
        }
        if let Some(name) = tag.strip_prefix('/') {
            if open.pop().as_deref() != Some(name) {
                return Err(format!("</{name}> closes nothing"));
            }
            continue;
        }
        let (body, closed) = tag.strip_suffix('/').map_or((tag, false), |body| (body, true));
        if body.contains('<') || body.matches('"').count() % 2 != 0 {
            return Err(format!("<{tag}>"));
        }
        entities(body)?;
        let name = body.split_whitespace().next().ok_or("a tag without a name")?.to_owned();
        seen.push(name.clone());
        if !closed {
            open.push(name);
        }
    }
    if open.is_empty() && rest.trim().is_empty() { Ok(seen) } else { Err(format!("still open: {open:?}")) }
}

/// Every `&` begins an entity that XML knows.
fn entities(text: &str) -> Result<(), String> {
    for part in text.split('&').skip(1) {
        let name = part.split_once(';').map_or("", |(name, _)| name);
        if !(name.starts_with('#') || ["amp", "lt", "gt", "quot", "apos"].contains(&name)) {
            return Err(format!("&{part}"));
        }
    }
    Ok(())
}

#[test]
fn the_selection_can_be_given() {
    let recorded = Recorded::new();
    let frame = |more: &[&str]| {
        let args = ["replay", "--headless", "--view", "text", "--size", "80x30", &recorded.file];
        run(args.iter().chain(more)).ok().out()
    };
    assert!(frame(&["--token", "3"]).contains("token 3 "), "{}", frame(&["--token", "3"]));
    assert_ne!(frame(&["--at", "2"]), frame(&["--at", "-1"]));
}
