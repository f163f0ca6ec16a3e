//! Conversations without a screen.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Stdio;

use serde_json::json;

use crate::program::{Ran, command, finish, run};

/// Simply what was said, a sentence after the other.
const PLAIN: &str = "{% for m in messages %} {{ m.content | trim }}{% endfor %}";

/// The embedded model as a model folder with a chat template.
fn model(parent: &Path, template: &str) -> PathBuf {
    let folder = parent.join("talker");
    let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/model/demo");
    fs::create_dir(&folder).unwrap();
    for file in ["config.json", "model.safetensors", "vocab.json"] {
        fs::copy(demo.join(file), folder.join(file)).unwrap();
    }
    let config = json!({ "bos_token": "<s>", "chat_template": template });
    fs::write(folder.join("tokenizer_config.json"), config.to_string()).unwrap();
    folder
}

fn talk(folder: &Path, said: &str, more: &[&str]) -> Ran {
    let script = folder.join("said.txt");
    fs::write(&script, said).unwrap();
    let mut command = command();
    command.args(["run", "--headless", "--chat", "--max-tokens", "6", "--model"]).arg(folder).args(more);
    finish(command.stdin(Stdio::from(File::open(script).unwrap())))
}

const SAID: &str = "Once there was a boy named Leo\n\nHe had a red ball\r\nThey played all day";

#[test]
fn each_line_is_a_turn_on_the_same_cache() {
    let dir = tempfile::tempdir().unwrap();
    let folder = model(dir.path(), PLAIN);
    let file = dir.path().join("talk.mcap").to_str().unwrap().to_owned();
    let budget = ["--json", "--policy", "h2o:budget=16", "--record", &file];
    let ran = talk(&folder, SAID, &budget).ok();
    let summary = ran.summary();
    let turns = summary["turns"].as_array().unwrap();
    assert_eq!(turns.len(), 3);
    for (turn, length) in turns.iter().zip([7, 5, 4]) {
        assert_eq!(turn["prompt_ids"].as_array().unwrap().len(), length, "{turn}");
        assert_eq!(turn["token_ids"].as_array().unwrap().len(), 6, "{turn}");
    }
    assert_eq!(summary["token_ids"].as_array().unwrap().len(), 18);
    assert!(ran.lines().iter().any(|line| line["step"]["seqs"][0]["fed"][1]["origin"] == "turn"));

    // The recording holds all of it, and plays to the same state.
    let verified = run(["verify", &file]).ok().out();
    assert!(verified.contains("state"), "{verified}");
    let replayed = run(["replay", "--headless", "--format", "json", &file]).ok().summary();
    assert_eq!(replayed["state_hash"], summary["state_hash"]);
    assert_eq!(replayed["turns"], summary["turns"]);
    let log = run(["replay", "--headless", "--view", "log", "--at", "-1", &file]).ok().out();
    assert!(log.contains("tokens of turn 3 fed"), "{log}");
    let header = run(["replay", "--headless", "--view", "text", "--at", "-1", &file]).ok().out();
    assert!(header.contains("turn 3 decode 6/6"), "{header}");

    // The same again is the same.
    assert_eq!(talk(&folder, SAID, &budget[..3]).ok().summary()["state_hash"], summary["state_hash"]);
}

#[test]
fn answers_are_lines_and_one_prompt_is_one_turn() {
    let dir = tempfile::tempdir().unwrap();
    let folder = model(dir.path(), PLAIN);
    let ran = talk(&folder, SAID, &[]).ok();
    assert_eq!(ran.out().lines().count(), 3, "{}", ran.out());
    assert!(ran.err().contains("3 turns on the same cache"), "{}", ran.err());
    let plain = talk(&folder, SAID, &["--plain"]).ok().out();
    assert!(plain.contains("turn, 6 tokens"), "{plain}");
    assert!(plain.contains("--chat --prompt 'Once there was a boy named Leo'"), "{plain}");

    let once = talk(&folder, "not read", &["--json", "--prompt", "Once there was a boy named Leo"]).ok();
    assert!(once.summary().get("turns").is_none());
    assert_eq!(once.summary()["prompt_ids"].as_array().unwrap().len(), 7);
}

#[test]
fn a_template_that_rewrites_feeds_the_whole_again() {
    let dir = tempfile::tempdir().unwrap();
    let folder = model(
        dir.path(),
        "{% for m in messages %}{% if m.role == 'user' %} {{ m.content }}{% endif %}{% endfor %}",
    );
    let ran = talk(&folder, SAID, &["--json"]).ok();
    assert_eq!(ran.err().matches("the chat template rewrites what was said before").count(), 2);
    let summaries: Vec<_> = ran.lines().into_iter().filter(|line| line.get("summary").is_some()).collect();
    assert_eq!(summaries.len(), 3, "each run has its own");
    let given = |i: usize| summaries[i]["summary"]["prompt_ids"].as_array().unwrap().len();
    assert_eq!([given(0), given(1), given(2)], [7, 12, 16]);
}

#[test]
fn what_cannot_be_talked_to_is_refused_in_one_line() {
    let refused = |ran: Ran, why: &str| {
        assert_eq!(ran.code, Some(2), "{}", ran.err());
        assert!(ran.err().contains(why) && ran.err().lines().count() == 1, "{}", ran.err());
    };
    refused(run(["run", "--headless", "--chat"]), "model 'demo' has no chat template: leave --chat out");
    refused(run(["run", "--headless", "--chat", "--prompt", "Mia"]), "has no chat template");
    let dir = tempfile::tempdir().unwrap();
    let folder = model(dir.path(), PLAIN);
    refused(talk(&folder, "\n \n", &[]), "--chat: no turn");
    refused(talk(&folder, "Mia\n", &["--batch", "2"]), "a conversation is one sequence");
    for (template, why) in [
        (
            "{% for a in range(99999) %}{% for b in range(99999) %}x{% endfor %}{% endfor %}",
            "costs more than any",
        ),
        ("{{ raise_exception('no\u{1b}[2J') }}", "the template says: no"),
        ("{% if %}", "syntax error"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let folder = model(dir.path(), template);
        let ran = talk(&folder, "Mia\n", &[]);
        assert!(!ran.err().contains('\u{1b}'));
        refused(ran, why);
        // It harms nobody who does not chat.
        run([
            "run",
            "--headless",
            "--prompt",
            "Mia",
            "--max-tokens",
            "1",
            "--model",
            folder.to_str().unwrap(),
        ])
        .ok();
    }
    // A later turn that the template refuses ends the program; what was recorded so far is finished.
    let dir = tempfile::tempdir().unwrap();
    let strict =
        "{% if messages | length > 1 %}{{ raise_exception('enough') }}{% endif %} {{ messages[0].content }}";
    let folder = model(dir.path(), strict);
    let file = dir.path().join("talk.mcap").to_str().unwrap().to_owned();
    let ran = talk(&folder, SAID, &["--record", &file]);
    assert_eq!(ran.code, Some(2));
    assert!(ran.err().contains("the template says: enough"), "{}", ran.err());
    run(["verify", &file]).ok();
}
