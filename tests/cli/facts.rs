//! Verbs that only print: help, lists, configuration, completions, the manual.

use crate::program::{command, finish, run, short_run};

#[test]
fn lists_are_one_json_object() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("run.mcap");
    let file = file.to_str().unwrap();
    short_run(&["--record", file]).ok();
    for (args, field) in [
        (&["policies", "--json"][..], "policies"),
        (&["themes", "--json"], "themes"),
        (&["keys", "--json"], "keys"),
        (&["inspect", "--json", "demo"], "model"),
        (&["inspect", "--json", file], "steps"),
        (&["verify", "--json", file], "state_hash"),
    ] {
        let lines = run(args).ok().lines();
        assert_eq!(lines.len(), 1, "{args:?}");
        let value = &lines[0][field];
        assert!(!value.is_null() && value != &serde_json::json!([]), "{args:?} has no {field}");
    }
}

#[test]
fn every_fact_has_words() {
    for args in [
        &["policies"][..],
        &["themes"],
        &["keys"],
        &["inspect", "demo"],
        &["config"],
        &["config", "path"],
        &["config", "default"],
        &["config", "check"],
        &["completions", "bash"],
        &["completions", "zsh"],
        &["completions", "fish"],
        &["man"],
        &["--version"],
        &["help"],
    ] {
        let ran = run(args).ok();
        assert!(!ran.out().trim().is_empty() && ran.err().is_empty(), "{args:?}");
    }
}

#[test]
fn the_default_configuration_is_right() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("config.toml");
    std::fs::write(&file, run(["config", "default"]).ok().out()).unwrap();
    let checked = finish(command().args(["config", "check"]).env("KVISTA_CONFIG", &file)).ok();
    assert_eq!(checked.out(), format!("{}: right\n", file.display()));
    let path = finish(command().args(["config", "path"]).env("KVISTA_CONFIG", &file)).ok();
    assert_eq!(path.out(), format!("{}\n", file.display()));
}

#[test]
fn the_line_that_repeats_a_run_repeats_it() {
    let args =
        ["run", "--headless", "--prompt", "it's a \"day\" for $HOME\n\tMia", "--policy", "h2o:budget=8"];
    let plain = run(args.iter().chain(&["--max-tokens", "4", "--plain"])).ok().out();
    let line = plain.lines().find_map(|line| line.strip_prefix("repeat: kvista ")).unwrap();
    let script = format!("exec \"$0\" {line} --headless --json");
    let mut shell = std::process::Command::new("bash");
    let again = finish(shell.arg("-c").arg(script).arg(crate::program::path())).ok().summary();
    let first = run(args.iter().chain(&["--max-tokens", "4", "--json"])).ok().summary();
    assert_eq!(again["state_hash"], first["state_hash"], "{line}");
}

#[test]
fn help_of_every_verb() {
    let verbs = [
        "run",
        "replay",
        "inspect",
        "verify",
        "repair",
        "eval",
        "policies",
        "themes",
        "keys",
        "config",
        "completions",
        "man",
    ];
    let mut all = run(["--help"]).ok().out();
    for verb in verbs {
        all += &["\n$ kvista ", verb, " --help\n", &run([verb, "--help"]).ok().out()].concat();
    }
    insta::assert_snapshot!("help", all);
    let version = run(["--version"]).ok().out();
    assert_eq!(version, format!("kvista {}\n", env!("CARGO_PKG_VERSION")));
}
