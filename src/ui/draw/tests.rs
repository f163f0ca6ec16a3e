use proptest::prelude::*;
use ratatui::buffer::Buffer;
use ratatui::layout::Rect;

use super::samples::{STEPS, app, press};
use super::{Drawn, render};
use crate::app::{App, Msg, Overlay};
use crate::engine::{Item, Status};
use crate::ui::export::{styled_dump, text};
use crate::ui::theme::{Styles, dark, plain};

fn drawn(app: &App, width: u16, height: u16, styles: &Styles) -> (Buffer, Drawn) {
    let area = Rect::new(0, 0, width, height);
    let mut buf = Buffer::empty(area);
    let drawn = render(&mut buf, area, app, styles);
    (buf, drawn)
}

#[test]
fn every_view_at_80_by_24() {
    let mut app = app(STEPS);
    for (digit, name) in ["1", "2", "3", "4", "5", "6", "7", "8", "9"].into_iter().zip(crate::app::View::ALL)
    {
        press(&mut app, digit);
        let (buf, _) = drawn(&app, 80, 24, &dark());
        insta::assert_snapshot!(format!("80x24_{}", name.name()), styled_dump(&buf));
    }
}

#[test]
fn the_overview_at_200_by_60() {
    let (buf, _) = drawn(&app(STEPS), 200, 60, &plain());
    insta::assert_snapshot!("200x60_overview", text(&buf));
}

#[test]
fn overlays_lie_on_top() {
    for (keys, name) in [
        ("?", "help"),
        ("p", "params"),
        ("t", "themes"),
        ("x", "export"),
        ("m '", "bookmarks"),
        ("/", "filter"),
        ("P", "prompt"),
        ("I", "turn"),
    ] {
        let mut app = app(STEPS);
        press(&mut app, keys);
        assert!(app.overlay().is_some(), "{keys} opens nothing");
        let (buf, _) = drawn(&app, 100, 30, &plain());
        insta::assert_snapshot!(format!("overlay_{name}"), text(&buf));
    }
}

/// What is typed, pasted and refused, on the lowest lines; nothing of it reaches the screen as it is.
#[test]
fn a_turn_is_typed_on_the_lowest_lines() {
    let mut app = app(STEPS);
    app.pending.chat = true;
    press(&mut app, "I");
    app.update(Msg::Paste("Hi\u{1b}[2J \u{202e}evil\u{202c}\u{7}\n日本 🦙 e\u{301}: ".into()));
    app.update(Msg::Paste("a long turn goes on over the next lines ".repeat(4)));
    let (buf, _) = drawn(&app, 80, 24, &dark());
    insta::assert_snapshot!("80x24_turn", styled_dump(&buf));
    assert!(!text(&buf).contains(['\u{1b}', '\u{202e}', '\u{7}']));
    press(&mut app, "Enter");
    app.update(Msg::Item(Item::Status(Status::Unsaid(
        "the turn has 90 tokens,\u{1b}[31m 12 are left".into(),
    ))));
    let (buf, _) = drawn(&app, 200, 60, &plain());
    insta::assert_snapshot!("200x60_turn", text(&buf));
    for (width, height) in [(10, 3), (24, 2), (3, 8), (40, 1)] {
        drawn(&app, width, height, &dark());
    }
    press(&mut app, "Esc");
    app.pending.chat = false;
    press(&mut app, "I");
    assert!(text(&drawn(&app, 80, 24, &plain()).0).contains("text that the model goes on with"));
}

#[test]
fn small_screens_still_say_something_useful() {
    let app = app(STEPS);
    for (width, height) in [(60, 15), (40, 12), (20, 5)] {
        let (buf, _) = drawn(&app, width, height, &plain());
        let text = text(&buf);
        assert!(text.contains("PAUSED"), "{text}");
        assert!(text.contains("key"), "the sequence's own text: {text}");
        assert!(!text.contains("too small"), "{text}");
    }
    let (buf, _) = drawn(&app, 10, 3, &plain());
    assert!(text(&buf).starts_with("PAUSED"), "{}", text(&buf));
}

#[test]
fn nothing_from_the_model_reaches_the_screen_raw() {
    let mut app = app(STEPS);
    for digit in ["1", "4", "7", "8", "9"] {
        press(&mut app, digit);
        let (buf, _) = drawn(&app, 120, 40, &dark());
        for cell in buf.content() {
            assert!(!cell.symbol().chars().any(char::is_control), "{:?}", cell.symbol());
        }
    }
}

#[test]
fn wrong_and_right_are_said_in_words() {
    let (buf, _) = drawn(&app(STEPS), 120, 40, &plain());
    assert!(text(&buf).contains("wrong"), "{}", text(&buf));
}

#[test]
fn pauses_losses_and_failures_are_in_the_header() {
    let mut app = app(STEPS);
    app.frozen = true;
    app.recording = Some("run.mcap".into());
    app.status = Status::Failed("the pool is\u{1b}[31m gone".into());
    let (buf, _) = drawn(&app, 120, 40, &plain());
    let text = text(&buf);
    for words in ["FROZEN", "REC", "FAILED", "pictures dropped 1", "the pool is^[[31m gone"] {
        assert!(text.contains(words), "{words} is missing: {text}");
    }
}

#[test]
fn the_viewport_tells_where_the_panes_are() {
    let (_, drawn) = drawn(&app(STEPS), 120, 40, &dark());
    assert_eq!(drawn.panes.len(), 4);
    assert!(drawn.panes.iter().all(|&[_, _, width, height]| width > 0 && height > 0), "{drawn:?}");
    assert!(drawn.tokens_per_line > 1 && drawn.rows > 0, "{drawn:?}");
}

#[test]
fn faults_and_questions_cover_the_middle() {
    let mut app = app(2);
    app.update(Msg::WorkerPanic("recorder: disk full".into()));
    let (buf, _) = drawn(&app, 80, 24, &plain());
    assert!(text(&buf).contains("recorder: disk full"));
    app.overlays.push(Overlay::ConfirmQuit);
    let (buf, _) = drawn(&app, 80, 24, &plain());
    assert!(text(&buf).contains("A recording is being written"));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(384))]

    #[test]
    fn any_size_any_view_any_moment(
        width in 0_u16..250,
        height in 0_u16..80,
        steps in 0..=STEPS,
        keys in prop::collection::vec(
            prop::sample::select(vec![
                "1", "2", "3", "4", "5", "6", "7", "8", "9", "z", "|", "Tab", "h", "j", "k", "l", "g g", "G", "<", ">", "(",
                ")", "i", "?", "p", "t", "x", "/", "Esc", "m", "'", "P", "v", ",", ".", "o", "O", "I",
            ]),
            0..8,
        ),
        colour: bool,
    ) {
        let mut app = app(steps);
        press(&mut app, &keys.join(" "));
        drawn(&app, width, height, &if colour { dark() } else { plain() });
    }

    #[test]
    fn small_sizes_in_every_view(width in 0_u16..48, height in 0_u16..20, digit in 1_u8..=9) {
        let mut app = app(STEPS);
        press(&mut app, &digit.to_string());
        drawn(&app, width, height, &dark());
    }
}
