//! Turns typed in the terminal, and text that is never cut within a character.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use crate::program::{self, HOSTILE, is_obeyed};
use crate::session::{Session, Start};

fn line(session: &Session, with: &str) -> String {
    session.contents().lines().find(|line| line.contains(with)).unwrap_or_default().to_owned()
}

#[test]
fn a_turn_goes_on_with_the_text() {
    let mut session =
        Start::new(["run", "--prompt", "Once there was a boy named Leo", "--max-tokens", "5"]).go();
    session.shows("Space runs the model");
    session.keys("T ");
    session.shows("DONE");
    session.shows("decode 5/5");

    session.keys("I");
    session.shows("text that the model goes on with");
    // The keys of the views are letters here.
    session.keys("Leo met q");
    session.shows("go on with: Leo met q");
    session.keys("\r");
    session.shows("the model does not know the word 'met'");
    session.keys("\u{15}");
    session.hides("does not know the word");
    session.keys("He took a red ball");
    session.keys("\r");
    session.hides("go on with:");
    session.shows("turn 2 decode 5/5");
    session.shows("DONE");
    session.shows("He took a red ball");

    // An empty turn is not fed, and Esc gives it up.
    session.keys("I\r");
    session.shows("an empty turn is not fed");
    session.keys("\u{1b}");
    session.hides("go on with:");

    // What is pasted is text: nothing of it is a key, and none of it reaches the terminal as it is.
    session.keys("I");
    session.shows("go on with:");
    let before = session.bytes().len();
    session.keys(&format!("\u{1b}[200~{}q\u{1b}[201~", HOSTILE.concat().replace('\u{1b}', "\u{202e}")));
    session.shows("⟨U+202E⟩");
    let after = String::from_utf8_lossy(&session.bytes()[before..]).into_owned();
    assert!(!after.contains('\u{202e}') && !after.contains('\u{9b}'), "{after:?}");
    assert!(!session.contents().chars().any(|c| c != '\n' && is_obeyed(c)));
    session.keys("\u{1b}");
    session.hides("go on with:");

    // r says the same again.
    session.keys("r");
    session.shows("turn 2 decode 5/5");
    session.shows("vs last run: equal for 10 tokens");
    session.keys("7");
    session.shows("tokens of turn 2 fed");
    session.keys("q");
    assert_eq!(session.exit_code(), 0);
    session.is_given_back();
}

#[test]
fn a_turn_cuts_a_paused_answer_short_and_waits_for_one_under_way() {
    let mut session =
        Start::new(["run", "--prompt", "Once there was a boy named Leo", "--max-tokens", "40"]).go();
    session.shows("Space runs the model");
    session.keys(".");
    session.shows("decode 2/40");
    session.keys(".");
    session.shows("decode 3/40");
    session.keys("IHe took a red ball\r");
    session.hides("go on with:");
    session.shows("turn 2");
    session.shows("RUN");
    session.keys("IHe was happy\r");
    session.shows("said once the model has answered");
    session.keys("T");
    session.shows("turn 3 decode 40/40");
    session.shows("DONE");
    session.keys("q");
    assert_eq!(session.exit_code(), 0);
}

/// The embedded model as a folder of which each file may be changed.
fn folder(parent: &Path) -> PathBuf {
    let folder = parent.join("talker");
    let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/model/demo");
    fs::create_dir(&folder).unwrap();
    for file in ["config.json", "model.safetensors", "vocab.json"] {
        fs::copy(demo.join(file), folder.join(file)).unwrap();
    }
    folder
}

#[test]
fn a_conversation_begins_with_its_first_turn() {
    let dir = tempfile::tempdir().unwrap();
    let folder = folder(dir.path());
    let template = "{% for m in messages %} {{ m.content | trim }}{% endfor %}";
    fs::write(folder.join("chat_template.jinja"), template).unwrap();
    let model = folder.to_str().unwrap();
    let mut session = Start::new(["run", "--chat", "--max-tokens", "5", "--model", model]).go();
    session.shows("LISTENING");
    session.shows("the next turn goes through the chat template");
    session.keys("Once there was a boy named Leo\r");
    session.hides("goes through the chat template");
    session.shows("DONE");
    session.keys("IHe had a red ball");
    session.shows("you: He had a red ball");
    session.keys("\r");
    session.shows("turn 2 decode 5/5");
    session.shows("DONE");
    assert!(!line(&session, "answer").is_empty(), "{}", session.contents());
    session.keys("q");
    assert_eq!(session.exit_code(), 0);
    session.is_given_back();
    // One session at a time.
    drop(session);

    // Without a template there is nothing to open the screen for.
    let mut session = Start::new(["run", "--chat"]).go();
    assert_eq!(session.exit_code(), 2);
    let said = String::from_utf8_lossy(&session.bytes()).into_owned();
    assert!(said.contains("model 'demo' has no chat template: leave --chat out"), "{said}");
}

/// A tokenizer whose tokens are `w0`, `w1` and so on, but for some ids that are single bytes.
fn tokenizer(bytes: &[(u64, u8)]) -> String {
    let spelled = |id: u64| match bytes.iter().find(|(of, _)| *of == id) {
        Some((_, byte)) => format!("<0x{byte:02X}>"),
        None => format!("w{id}"),
    };
    let vocabulary: Map<String, Value> = (0..608).map(|id| (spelled(id), json!(id))).collect();
    json!({
        "version": "1.0", "added_tokens": [], "pre_tokenizer": { "type": "Whitespace" },
        "decoder": { "type": "ByteFallback" },
        "model": { "type": "WordLevel", "vocab": vocabulary, "unk_token": "w300" },
    })
    .to_string()
}

/// What the model draws first is made to be the bytes of two characters, a token for each.
#[test]
fn characters_come_whole_out_of_their_bytes() {
    const TEXT: &str = "☃🦙";
    let dir = tempfile::tempdir().unwrap();
    let folder = folder(dir.path());
    fs::remove_file(folder.join("vocab.json")).unwrap();
    let model = folder.to_str().unwrap();
    let args = |prompt: &str| {
        let args = ["run", "--prompt", prompt, "--max-tokens", "7", "--ignore-eos", "--model", model];
        args.map(str::to_owned).to_vec()
    };
    fs::write(folder.join("tokenizer.json"), tokenizer(&[])).unwrap();
    let drawn = |prompt: &str| -> Vec<u64> {
        let summary =
            program::run([args(prompt), vec!["--headless".into(), "--json".into()]].concat()).ok().summary();
        summary["token_ids"].as_array().unwrap().iter().map(|id| id.as_u64().unwrap()).collect()
    };
    let (prompt, ids) = (301..340)
        .find_map(|id| {
            let prompt = format!("w{id}");
            let ids = drawn(&prompt);
            let all: BTreeSet<_> = ids.iter().copied().collect();
            // The prompt's word and the one for what is unknown keep their spelling.
            let fits = all.len() == TEXT.len() && !all.contains(&id) && !all.contains(&300);
            fits.then_some((prompt, ids))
        })
        .expect("some word that seven others follow");
    let bytes: Vec<(u64, u8)> = ids.into_iter().zip(TEXT.bytes()).collect();
    fs::write(folder.join("tokenizer.json"), tokenizer(&bytes)).unwrap();

    let mut session = Start::new([args(&prompt), vec!["--headless".into()]].concat()).go();
    assert_eq!(session.exit_code(), 0);
    let shown = String::from_utf8_lossy(&session.bytes()).into_owned();
    assert!(shown.contains(TEXT) && !shown.contains("⟨x"), "{shown:?}");
    let plain = program::run([args(&prompt), vec!["--plain".into()]].concat()).ok().out();
    assert!(plain.contains("drew part of a character, bytes [f0]"), "{plain}");
    // One session at a time.
    drop(session);

    let mut session = Start::new(args(&prompt)).go();
    session.shows("Space runs the model");
    session.keys("8T ");
    session.shows("DONE");
    session.shows("☃··🦙···");
    session.keys("q");
    assert_eq!(session.exit_code(), 0);
}
