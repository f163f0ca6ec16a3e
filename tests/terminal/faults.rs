//! Panics on purpose in each thread: the terminal is given back, what was recorded is whole, one line says what was.

use std::path::Path;

use crate::program::run;
use crate::session::{Session, Start};

/// A recorded run with a fault on purpose, running until it strikes.
fn faulty(fault: &str, file: &Path) -> Session {
    let args = [
        "run",
        "--prompt",
        "Mia was",
        "--max-tokens",
        "20",
        "--pace",
        "8",
        "--record",
        file.to_str().unwrap(),
    ];
    let session = Start::new(args).variable("KVISTA_FAULT", fault).go();
    session.is_taken();
    // In place of the hint, the recording is announced.
    session.shows("PAUSED");
    session.keys(" ");
    session
}

#[track_caller]
fn is_sound(file: &Path, least_steps: u64) {
    let verified = run(["verify", "--json", file.to_str().unwrap()]).ok().lines().remove(0);
    assert!(verified["steps"].as_u64().unwrap() >= least_steps, "{verified}");
    assert_eq!(verified["complete"], true, "{verified}");
}

/// What was said in the end, outside of the alternate screen.
#[track_caller]
fn said(session: &Session, words: &str) {
    let contents = session.contents();
    assert!(contents.contains(words), "{words:?} was not said:\n{contents}");
}

#[test]
fn in_the_engine_it_is_shown_and_the_ui_lives() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("run.mcap");
    let mut session = faulty("engine:3", &file);
    session.shows("internal fault in thread 'engine'");
    session.keys("\u{1b}");
    session.hides("internal fault in thread 'engine'");
    // What was computed before can still be looked at.
    session.keys("8");
    session.shows("fate");
    session.keys("\u{3}");
    assert_eq!(session.exit_code(), 3);
    session.is_given_back();
    said(&session, "kvista: internal fault");
    is_sound(&file, 3);
}

#[test]
fn in_the_recorder_it_is_shown_and_the_run_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("run.mcap");
    let mut session = faulty("recorder:3", &file);
    session.shows("internal fault in thread 'recorder'");
    session.keys("\u{1b}");
    session.shows("decode 20/20");
    session.keys("\u{3}");
    session.exit_code();
    session.is_given_back();
    // What was flushed before is a recording, or there is none: never something half written that passes for whole.
    let verified = run(["verify", file.to_str().unwrap()]);
    assert!(matches!(verified.code, Some(0..=2)), "{}", verified.err());
}

#[test]
fn in_the_ui_it_ends_and_the_recording_is_finished() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("run.mcap");
    let mut session = faulty("ui:3", &file);
    assert_eq!(session.exit_code(), 3);
    session.is_given_back();
    said(&session, "kvista: internal fault in thread 'main'");
    said(&session, "a fault on purpose in the ui at step 3");
    is_sound(&file, 3);
}

#[test]
fn what_is_wrong_before_the_first_frame_leaves_the_terminal_alone() {
    for (args, words) in [
        (&["run", "--threads", "0"][..], "--threads 0"),
        (&["--theme", "nope"], "no theme is called 'nope'"),
        (&["replay", "/nonexistent.mcap"], "/nonexistent.mcap: cannot open"),
    ] {
        let mut session = Start::new(args.iter().copied()).go();
        assert_eq!(session.exit_code(), 2, "{args:?}");
        session.is_given_back();
        said(&session, words);
        assert!(
            !session.bytes().windows(8).any(|bytes| bytes == b"\x1b[?1049h"),
            "{args:?} took the terminal"
        );
    }
}

#[test]
fn what_only_the_model_can_tell_is_one_line_too() {
    for (args, words) in [
        (
            &["run", "--model", "/nonexistent/model", "--prompt", "a"][..],
            "/nonexistent/model: no such folder",
        ),
        (&["run", "--policy", "nope"], "no eviction policy is called 'nope'"),
    ] {
        let mut session = Start::new(args.iter().copied()).go();
        assert_eq!(session.exit_code(), 2, "{args:?}");
        session.is_given_back();
        said(&session, words);
    }
}
