//! Nothing that a prompt, a model or an argument says reaches a terminal as more than a picture of itself.

use crate::program::{HOSTILE, Ran, hostile_model, is_obeyed, run};

#[track_caller]
fn harmless(ran: &Ran) {
    for (stream, text) in [("standard output", ran.out()), ("standard error", ran.err())] {
        let bad = text.lines().find(|line| line.chars().any(is_obeyed));
        assert_eq!(bad, None, "on {stream}");
    }
}

#[test]
fn a_hostile_prompt_is_drawn_as_a_picture_of_itself() {
    let dir = tempfile::tempdir().unwrap();
    let (prompt, file) = (dir.path().join("prompt"), dir.path().join("run.mcap"));
    std::fs::write(&prompt, HOSTILE.concat()).unwrap();
    let (prompt, file) = (prompt.to_str().unwrap(), file.to_str().unwrap());
    let args = ["run", "--headless", "--max-tokens", "3", "--prompt-file", prompt];
    let plain = run(args.iter().chain(&["--plain", "--record", file])).ok();
    harmless(&plain);
    harmless(&run(args.iter().chain(&["--json"])).ok());
    every_way_out(file);

    // The line that repeats the run says the very prompt, in a shell's spelling.
    let repeat = plain.out().lines().find_map(|l| l.strip_prefix("repeat: ").map(str::to_owned)).unwrap();
    for spelled in ["\\u001b[3J", "\\u009b31m", "\\u202e", "\\u2066\\u200b"] {
        assert!(repeat.contains(spelled), "{spelled}: {repeat}");
    }
}

#[test]
fn a_hostile_model_is_drawn_as_a_picture_of_itself() {
    let dir = tempfile::tempdir().unwrap();
    let model = hostile_model(dir.path());
    let (model, file) = (model.to_str().unwrap(), dir.path().join("run.mcap"));
    let file = file.to_str().unwrap();
    let args =
        ["run", "--headless", "--model", model, "--prompt", "a a a a", "--max-tokens", "24", "--ignore-eos"];
    harmless(&run(args.iter().chain(&["--plain", "--record", file])).ok());
    let json = run(args.iter().chain(&["--json"])).ok();
    harmless(&json);
    assert!(json.summary()["text"].as_str().unwrap().chars().any(is_obeyed), "the model is not hostile");
    every_way_out(file);
    harmless(&run(["inspect", model]).ok());
}

/// Everything that prints something of a recording.
fn every_way_out(file: &str) {
    for args in [
        &["replay", "--headless", "--format", "json", file][..],
        &["inspect", file],
        &["inspect", "--json", file],
        &["verify", file],
        &["verify", "--json", file],
    ] {
        harmless(&run(args).ok());
    }
    for view in ["overview", "attention", "evictions", "log", "text", "policy"] {
        for format in ["text", "svg"] {
            harmless(&run(["replay", "--headless", "--view", view, "--format", format, file]).ok());
        }
        let ansi = run(["replay", "--headless", "--view", view, "--format", "ansi", file]).ok().out();
        for sequence in ansi.split('\u{1b}').skip(1) {
            let end = sequence.find(|c: char| !c.is_ascii_digit() && !"[;".contains(c));
            assert_eq!(end.map(|at| &sequence[at..=at]), Some("m"), "{view}: {sequence:?}");
        }
        let other = |c: char| !matches!(c, '\u{1b}' | '\n') && is_obeyed(c);
        assert!(!ansi.contains(other), "{view}");
    }
}

#[test]
fn hostile_arguments_are_quoted_harmlessly() {
    for hostile in HOSTILE {
        for args in [
            &["run", "--headless", "--prompt", "a", "--model", hostile][..],
            &["run", "--headless", "--prompt", "a", "--policy", hostile],
            &["run", "--headless", "--prompt", "a", "--kcache", hostile],
            &["run", "--headless", "--prompt", "a", "--device", hostile],
            &["run", "--headless", "--prompt", "a", "--compress", hostile],
            &["run", "--headless", "--prompt-file", hostile],
            &["replay", "--headless", hostile],
            &["verify", hostile],
            &["inspect", hostile],
        ] {
            run(args).refusal();
        }
    }
}
