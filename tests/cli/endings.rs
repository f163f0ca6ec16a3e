//! Runs that end early: signals, closed pipes, full disks. The recording is always whole up to there.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};

use crate::program::{command, finish, path, run};

/// A run that would take a minute: 20 steps a second.
fn paced(file: &Path) -> Command {
    let mut command = command();
    command.args([
        "run",
        "--headless",
        "--prompt",
        "Mia",
        "--max-tokens",
        "1200",
        "--ignore-eos",
        "--pace",
        "20",
    ]);
    command.arg("--record").arg(file).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn signal(child: &Child, signal: Signal) {
    kill_process(Pid::from_child(child), signal).unwrap();
}

/// Reads lines until `count` steps were printed.
fn read_steps(child: &mut Child, count: usize) -> BufReader<std::process::ChildStdout> {
    let mut out = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    for _ in 0..count {
        line.clear();
        out.read_line(&mut line).unwrap();
        assert!(line.starts_with("{\"step\""), "{line:?}");
    }
    out
}

fn steps(file: &Path) -> u64 {
    let ran = run(["replay", "--headless", "--format", "json", file.to_str().unwrap()]).ok();
    ran.summary()["steps"].as_u64().unwrap()
}

#[test]
fn an_interrupt_finishes_the_recording() {
    let dir = tempfile::tempdir().unwrap();
    for (name, with) in [("int", Signal::INT), ("term", Signal::TERM), ("hup", Signal::HUP)] {
        let file = dir.path().join(format!("{name}.mcap"));
        let mut child = paced(&file).arg("--json").spawn().unwrap();
        let mut out = read_steps(&mut child, 6);
        signal(&child, with);
        let mut rest = String::new();
        out.read_to_string(&mut rest).unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(0), "{name}");
        assert!(rest.lines().last().unwrap().starts_with("{\"summary\""), "{name}: {rest}");
        assert!(steps(&file) >= 6, "{name}");
        run(["verify", file.to_str().unwrap()]).ok();
        let facts = run(["inspect", "--json", file.to_str().unwrap()]).ok().lines().remove(0);
        assert_eq!(facts["complete"], true, "{name}");
    }
}

#[test]
fn a_killed_run_loses_at_most_about_its_last_second() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("run.mcap");
    let mut child = paced(&file).arg("--json").spawn().unwrap();
    // 80 steps at 20 a second are 4 seconds of which 3 were flushed; half of them leaves room for a busy machine.
    let out = read_steps(&mut child, 80);
    signal(&child, Signal::KILL);
    child.wait().unwrap();
    drop(out);
    assert!(steps(&file) >= 40, "{} steps of 80", steps(&file));
}

#[test]
fn a_closed_pipe_ends_quietly() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("run.mcap");
    let mut child = paced(&file).arg("--json").spawn().unwrap();
    drop(read_steps(&mut child, 1));
    let mut err = String::new();
    child.stderr.take().unwrap().read_to_string(&mut err).unwrap();
    assert_eq!((child.wait().unwrap().code(), err.as_str()), (Some(0), ""));
    run(["verify", file.to_str().unwrap()]).ok();

    for args in [&["policies"][..], &["man"], &["keys", "--json"], &["completions", "bash"], &["--help"]] {
        let mut child = command().args(args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        drop(child.stdout.take());
        let mut err = String::new();
        child.stderr.take().unwrap().read_to_string(&mut err).unwrap();
        assert_eq!((child.wait().unwrap().code(), err.as_str()), (Some(0), ""), "{args:?}");
    }
}

#[test]
fn a_full_disk_costs_the_recording_not_the_answer() {
    let args = ["run", "--headless", "--prompt", "Mia was a girl.", "--max-tokens", "4"];
    let expected = run(args).ok().out();
    let full = run(args.iter().chain(&["--record", "/dev/full"]));
    assert_eq!((full.code, full.out()), (Some(3), expected.clone()));
    let said: Vec<String> =
        full.err().lines().filter(|l| l.starts_with("kvista: ")).map(Into::into).collect();
    assert!(matches!(&said[..], [line] if line.contains("/dev/full") && line.contains("space")), "{said:?}");
    assert!(!full.err().contains("panic"), "{}", full.err());

    // A file that may not grow: what fitted is kept.
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("run.mcap");
    let script = "ulimit -f 8; trap '' XFSZ; exec \"$@\"";
    let mut shell = Command::new("bash");
    shell.args(["-c", script, "sh", path()]).args(args).arg("--record").arg(&file);
    let limited = finish(&mut shell);
    assert_eq!((limited.code, limited.out()), (Some(3), expected), "{}", limited.err());
    assert!(fs::metadata(&file).unwrap().len() <= 8 * 1024);
}
