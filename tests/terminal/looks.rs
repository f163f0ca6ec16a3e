//! Colours, themes, terminals that say nothing, and text that would be obeyed.

use crate::program::{HOSTILE, hostile_model, is_obeyed};
use crate::session::Start;

/// Every cell of the screen.
fn cells(screen: &vt100::Screen) -> impl Iterator<Item = &vt100::Cell> {
    let (rows, columns) = screen.size();
    (0..rows.get()).flat_map(move |row| (0..columns.get()).filter_map(move |column| screen.cell(row, column)))
}

#[test]
fn without_colours_the_data_is_in_the_characters() {
    let mut session = Start::new(["run", "--pace", "4000"]).variable("NO_COLOR", "1").go();
    session.shows("Space runs the model");
    session.keys(" ");
    session.shows("DONE");
    session.keys("3");
    session.until("a ramp of characters without a colour", |screen| {
        let colourless = cells(screen)
            .all(|cell| cell.fgcolor() == vt100::Color::Default && cell.bgcolor() == vt100::Color::Default);
        let contents = screen.contents();
        // At least three strengths in one head's row.
        let ramp =
            |line: &str| ["·", "░", "▒", "▓", "█"].iter().filter(|glyph| line.contains(**glyph)).count();
        colourless && contents.contains("probability") && contents.lines().any(|line| ramp(line) >= 3)
    });
    session.keys("q");
    assert_eq!(session.exit_code(), 0);
}

#[test]
fn the_background_chooses_the_theme() {
    for (background, theme) in [
        (Some("ffff/ffff/ffff"), "light"),
        (Some("0000/0000/0000"), "dark"),
        // A terminal that does not answer is not waited for.
        (None, "dark"),
    ] {
        let mut session = Start::new(["run", "--prompt", "Mia"]).background(background).go();
        session.shows("Space runs the model");
        session.keys("t");
        session.until(theme, |s| s.contents().lines().any(|line| line.contains(&format!("▸ {theme}"))));
        session.keys("\u{1b}");
        session.hides(&format!("▸ {theme}"));
        session.keys("q");
        assert_eq!(session.exit_code(), 0);
        session.is_given_back();
    }
}

#[test]
fn a_theme_is_tried_on_and_taken_off() {
    let mut session = Start::new(["run", "--prompt", "Mia"]).variable("COLORTERM", "truecolor").go();
    session.shows("Space runs the model");
    let colours =
        |screen: &vt100::Screen| -> Vec<vt100::Color> { cells(screen).map(vt100::Cell::fgcolor).collect() };
    let now = || {
        let mut seen = Vec::new();
        let taken = std::cell::RefCell::new(&mut seen);
        session.until("a frame", |screen| {
            **taken.borrow_mut() = colours(screen);
            true
        });
        seen
    };
    let before = now();
    session.keys("t");
    session.shows("▸ dark");
    session.keys("j");
    session.until("another theme", |s| !s.contents().contains("▸ dark") && colours(s) != before);
    session.keys("\u{1b}");
    session.until("the first theme", |s| colours(s) == before);
    session.keys("q");
    assert_eq!(session.exit_code(), 0);
}

#[test]
fn a_hostile_prompt_never_reaches_the_terminal_raw() {
    let dir = tempfile::tempdir().unwrap();
    let prompt = dir.path().join("prompt");
    std::fs::write(&prompt, HOSTILE.concat()).unwrap();
    tour(&[
        "run",
        "--prompt-file",
        prompt.to_str().unwrap(),
        "--max-tokens",
        "4",
        "--policy",
        "h2o:budget=16",
    ]);
}

#[test]
fn a_hostile_model_never_reaches_the_terminal_raw() {
    let dir = tempfile::tempdir().unwrap();
    let model = hostile_model(dir.path());
    let model = model.to_str().unwrap();
    tour(&["run", "--model", model, "--prompt", "a a a a", "--max-tokens", "40", "--policy", "h2o:budget=8"]);
}

/// Runs to the end, opens every view, and wants nothing written but what a TUI writes.
fn tour(args: &[&str]) {
    let mut session = Start::new(args.iter().copied().chain(["--pace", "4000"])).go();
    session.shows("Space runs the model");
    session.keys(" ");
    session.shows("DONE");
    for (key, content) in [
        ("2", "block tables"),
        ("3", "probability"),
        ("4", "cutoff"),
        ("7", "what happened"),
        ("8", "fate"),
        ("1", "blocks"),
    ] {
        session.keys(key);
        session.until(content, |s| s.contents().lines().skip(3).any(|line| line.contains(content)));
        assert!(session.contents().chars().all(|c| c == '\n' || !is_obeyed(c)), "{}", session.contents());
    }
    session.keys("q");
    assert_eq!(session.exit_code(), 0);
    session.is_given_back();
    let bytes = String::from_utf8(session.bytes()).expect("whole characters");
    only_a_tui(&bytes);
}

/// Modes that are switched on entering and leaving.
const MODES: [&str; 9] = ["1000", "1002", "1003", "1015", "1006", "1004", "1049", "2004", "2026"];

/// Fails at the first sequence that neither drawing nor entering nor leaving a screen writes.
fn only_a_tui(bytes: &str) {
    let mut parts = bytes.split('\u{1b}');
    let plain = |text: &str| {
        let bad = text.chars().find(|&c| !matches!(c, '\r' | '\n') && is_obeyed(c));
        assert_eq!(bad, None, "in {text:?}");
    };
    plain(parts.next().unwrap_or_default());
    let mut switched = 0;
    let mut parts = parts.peekable();
    while let Some(part) = parts.next() {
        let Some(sequence) = part.strip_prefix('[') else {
            // Questions about colours, each ended by BEL or ST.
            let question = part.strip_prefix(']').unwrap_or_else(|| panic!("ESC {part:?}"));
            assert!(question.starts_with("10;?") || question.starts_with("11;?"), "OSC {question:?}");
            let rest = question[4..].strip_prefix('\u{7}');
            let rest = rest.unwrap_or_else(|| {
                let end = parts.next().expect("an end");
                end.strip_prefix('\\').unwrap_or_else(|| panic!("ESC {end:?} ends no question"))
            });
            plain(rest);
            continue;
        };
        let end = sequence.find(|c: char| !c.is_ascii_digit() && !";?".contains(c)).expect("a final byte");
        let (parameters, rest) = sequence.split_at(end);
        match rest.as_bytes()[0] {
            // Colours; places; questions what the terminal is.
            b'm' | b'H' | b'c' => {}
            // The screen is cleared whole, never the scroll-back.
            b'J' => assert!(matches!(parameters, "2" | ""), "CSI {sequence:?}"),
            b'h' | b'l' => {
                let mode = parameters.strip_prefix('?').unwrap_or_else(|| panic!("CSI {sequence:?}"));
                assert!(mode == "25" || MODES.contains(&mode), "CSI {sequence:?}");
                switched += usize::from(mode == "1049");
            }
            _ => panic!("CSI {sequence:?}"),
        }
        plain(&rest[1..]);
    }
    assert_eq!(switched, 2, "the alternate screen is entered once and left once");
}
