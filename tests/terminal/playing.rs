//! A recording in the terminal.

use crate::program::short_run;
use crate::session::Start;

#[test]
fn a_recording_plays_steps_and_jumps() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("run.mcap");
    let file = file.to_str().unwrap();
    let steps = short_run(&["--record", file]).ok().summary()["steps"].as_u64().unwrap();
    let last = steps - 1;
    let at = |step: u64| format!("· step {step} ");

    let mut session = Start::new(["replay", file]).go();
    session.is_taken();
    session.shows("REPLAY");
    session.shows(&at(0));
    session.shows("Space plays the recording");
    session.keys(".");
    session.shows(&at(1));
    session.keys("..");
    session.shows(&at(3));
    session.keys(",");
    session.shows(&at(2));
    session.keys("gl");
    session.shows(&at(last));
    session.keys("g0");
    session.shows(&at(0));
    session.keys(" ");
    session.shows(&at(last));
    // The victims of the first decision, from the log.
    session.keys("g0e");
    session.keys("4");
    session.shows("score below the cutoff");
    // A recording cannot be run again, and says so instead of doing nothing.
    session.keys("P");
    session.shows("a recording cannot be given another prompt");
    session.keys("q");
    assert_eq!(session.exit_code(), 0);
    session.is_given_back();
}

#[test]
fn a_recording_opens_where_it_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("run.mcap");
    let file = file.to_str().unwrap();
    short_run(&["--record", file]).ok();
    let mut session = Start::new(["replay", file, "--at", "4", "--view", "log"]).go();
    session.shows("· step 4 ");
    session.shows("what happened");
    session.keys("q");
    assert_eq!(session.exit_code(), 0);
    session.is_given_back();
}
