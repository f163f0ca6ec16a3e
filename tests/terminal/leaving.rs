//! Other sizes, suspension, quitting, a window that closes: the terminal is given back, the recording finished.

use std::path::Path;

use rustix::process::Signal;

use crate::program::{is_obeyed, run};
use crate::session::{Session, Start};

/// A run with a recording, part of it decoded.
fn recording(file: &Path) -> Session {
    let file = file.to_str().unwrap();
    let session =
        Start::new(["run", "--prompt", "Mia was", "--max-tokens", "400", "--pace", "20", "--record", file])
            .go();
    session.is_taken();
    // In place of the hint, the recording is announced.
    session.shows("PAUSED");
    session.keys(" ");
    session.until("12 tokens", |s| decoded(s) >= 12);
    session
}

/// Tokens decoded so far, as the header says: `decode 12/400`.
fn decoded(screen: &vt100::Screen) -> u32 {
    let contents = screen.contents();
    let count = contents.split_once("decode ").and_then(|(_, rest)| rest.split_once('/'));
    count.and_then(|(count, _)| count.parse().ok()).unwrap_or(0)
}

/// The recording is whole and has about what was seen.
#[track_caller]
fn is_whole(file: &Path) {
    let file = file.to_str().unwrap();
    run(["verify", file]).ok();
    let facts = run(["inspect", "--json", file]).ok().lines().remove(0);
    assert_eq!(facts["complete"], true);
    assert!(facts["steps"].as_u64().unwrap() >= 12, "{facts}");
}

#[test]
fn every_size_shows_something() {
    let mut session = Start::new([""; 0]).size(200, 60).go();
    session.shows("Space runs the model");
    for (columns, rows, view) in
        [(40, 12, "2"), (10, 3, "3"), (1, 1, "4"), (80, 24, "5"), (10, 3, "8"), (200, 60, "1")]
    {
        session.resize(columns, rows);
        session.keys(view);
        session.until(&format!("a frame of {columns}x{rows}"), |s| !s.contents().trim().is_empty());
    }
    session.shows("Space runs the model");
    session.shows("What is the pass key?");
    session.keys("q");
    assert_eq!(session.exit_code(), 0);
    session.is_given_back();
}

#[test]
fn a_key_in_the_moment_of_a_resize_is_heard() {
    let mut session = Start::new([""; 0]).size(200, 60).go();
    session.shows("Space runs the model");
    for round in 0..12 {
        let (view, text) = [("4", "nothing was lost"), ("1", "What is the pass key?")][round % 2];
        for (i, key) in (0..).zip(["2", "3", "5", "6", view]) {
            session.resize(180 - 7 * i, 50 - i);
            session.keys(key);
        }
        session.shows(text);
    }
    session.keys("q");
    assert_eq!(session.exit_code(), 0);
}

#[test]
fn suspended_by_key_and_by_signal_it_comes_back() {
    let mut session = Start::new(["run", "--prompt", "Mia was a girl"]).under_a_shell().go();
    for by_key in [true, false] {
        session.is_taken();
        session.shows("Space runs the model");
        if by_key {
            session.keys("\u{1a}");
        } else {
            session.signal(Signal::TSTP);
        }
        session.is_stopped();
        session.until("the terminal given back", |s| !s.alternate_screen());
        session.is_given_back();
        session.resume();
    }
    session.is_taken();
    session.shows("Space runs the model");
    // And it still hears keys.
    session.keys("8");
    session.shows("Text");
    session.keys("q");
    assert_eq!(session.exit_code(), 0);
    session.is_given_back();
}

#[test]
fn quitting_asks_only_while_recording() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("run.mcap");
    let mut session = recording(&file);
    session.keys("q");
    session.shows("It will be finished first");
    session.keys("n");
    session.hides("It will be finished first");
    session.keys("q");
    session.shows("It will be finished first");
    session.keys("y");
    assert_eq!(session.exit_code(), 0);
    session.is_given_back();
    is_whole(&file);
}

#[test]
fn quitting_at_once_finishes_the_recording() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("run.mcap");
    let mut session = recording(&file);
    session.keys("\u{3}");
    assert_eq!(session.exit_code(), 0);
    session.is_given_back();
    is_whole(&file);
}

#[test]
fn the_last_picture_may_stay() {
    let mut session = Start::new(["run", "--prompt", "Mia was a girl"]).go();
    session.shows("Space runs the model");
    session.keys("Q");
    assert_eq!(session.exit_code(), 0);
    session.is_given_back();
    assert!(session.contents().contains("Mia was a girl"), "{}", session.contents());
}

#[test]
fn signals_end_it_with_the_recording_finished() {
    let dir = tempfile::tempdir().unwrap();
    for (name, signal) in [("term", Signal::TERM), ("hup", Signal::HUP)] {
        let file = dir.path().join(format!("{name}.mcap"));
        let mut session = recording(&file);
        session.signal(signal);
        assert_eq!(session.exit_code(), 0, "{name}");
        session.is_given_back();
        is_whole(&file);
    }
}

#[test]
fn a_window_that_closes_ends_it_with_the_recording_finished() {
    let dir = tempfile::tempdir().unwrap();
    // More than once, since what the program does in that moment differs.
    for nth in 0..4 {
        let file = dir.path().join(format!("{nth}.mcap"));
        let mut session = recording(&file);
        session.close_window();
        session.exit_code();
        is_whole(&file);
    }
}

#[test]
fn a_recording_can_be_started_and_stopped_by_key() {
    let dir = tempfile::tempdir().unwrap();
    let mut session =
        Start::new(["run", "--prompt", "Mia", "--max-tokens", "300", "--pace", "20"]).folder(dir.path()).go();
    session.shows("Space runs the model");
    session.keys(" ");
    session.until("3 tokens", |s| decoded(s) >= 3);
    session.keys("R");
    session.shows("kvista-1.mcap");
    session.until("12 tokens", |s| decoded(s) >= 12);
    session.keys("R");
    session.shows("steps");
    session.keys("\u{3}");
    assert_eq!(session.exit_code(), 0);
    let file = dir.path().join("kvista-1.mcap");
    let verified = run(["verify", file.to_str().unwrap()]);
    assert_eq!(verified.code, Some(0), "{}", verified.out());
    // It began in mid-run: a keyframe stands for what came before.
    assert!(
        run(["replay", "--headless", file.to_str().unwrap()])
            .ok()
            .out()
            .chars()
            .all(|c| c == '\n' || !is_obeyed(c))
    );
}
