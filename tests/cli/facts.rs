//! Verbs that only print: help, lists, configuration, completions, the manual.

use serde_json::json;

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
fn a_models_cache_is_counted_from_its_configuration() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("config.json");
    let shape = |layers: u32, heads: u32, kv_heads: u32| {
        let hidden = heads * 128;
        let json = format!(
            r#"{{"model_type": "llama", "num_hidden_layers": {layers}, "num_attention_heads": {heads},
                "num_key_value_heads": {kv_heads}, "hidden_size": {hidden}, "max_position_embeddings": 4096}}"#
        );
        std::fs::write(&file, json).unwrap();
    };
    let inspect = |more: &[&str]| run(["inspect", dir.path().to_str().unwrap()].iter().chain(more)).ok();
    // LLaMA2-7B: half a MiB per token at f16, 128 GiB for 8 sequences of 32k.
    shape(32, 32, 32);
    let out = inspect(&["--batch", "8", "--context", "32768"]).out();
    let own = out.lines().find(|line| line.starts_with("MHA (its own)")).unwrap();
    assert!(own.contains("512 KiB") && own.contains("128 GiB"), "{out}");
    // LLaMA2-70B: its own, as multi-head attention, and what is quoted of it.
    shape(80, 64, 8);
    let out = inspect(&[]).out();
    assert!(out.contains("320 KiB") && out.contains("2.50 MiB") && out.contains("0.5 to 0.125 MB"), "{out}");
    let facts = inspect(&["--json"]).lines().remove(0);
    assert_eq!(
        (&facts["sharings_f16"][1]["bytes_per_token"], &facts["provenance"]),
        (&json!(320 << 10), &json!("derived"))
    );
    std::fs::write(&file, r#"{"num_hidden_layers": "many"}"#).unwrap();
    let line = run(["inspect", file.to_str().unwrap()]).refusal();
    assert!(line.contains("config.json: num_hidden_layers \"many\" is not an integer from 1"), "{line}");
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

#[test]
fn a_sweep_compares_and_goes_on_from_its_file() {
    let dir = tempfile::tempdir().unwrap();
    let (results, svg) = (dir.path().join("sweep.jsonl"), dir.path().join("sweep.svg"));
    let sweep = |more: &[&str]| {
        let fixed =
            ["eval", "passkey", "--sweep", "--n", "2", "--lengths", "256", "--policies", "h2o snapkv"];
        let files = ["--results", results.to_str().unwrap(), "--svg", svg.to_str().unwrap()];
        run(fixed.iter().chain(&files).chain(more)).ok()
    };
    let found = sweep(&["--budgets", "25%,4", "--json"]).lines();
    let summary = &found[0]["sweep"];
    let names: Vec<&str> =
        summary["tallies"].as_array().unwrap().iter().map(|t| t["cell"].as_str().unwrap()).collect();
    assert_eq!(names, ["full", "h2o 25%", "h2o 4", "snapkv 25%"]);
    assert_eq!(summary["refused"][0]["cell"], json!("snapkv 4"));
    assert_eq!(summary["tallies"][1]["columns"][0]["right"]["n"], json!(2));
    let lines = std::fs::read_to_string(&results).unwrap().lines().count();
    assert_eq!(lines, 1 + 2 * 4);
    let text = sweep(&["--budgets", "25%,4"]);
    assert_eq!(std::fs::read_to_string(&results).unwrap().lines().count(), lines, "nothing was run again");
    assert!(text.out().contains("h2o 25%") && text.out().contains("snapkv 4 left out: "), "{}", text.out());
    assert!(std::fs::read_to_string(&svg).unwrap().contains("passkey"));
}
