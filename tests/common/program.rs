//! The real program, run in a clean environment, and the material that both test suites feed it.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::{Map, Value, json};

/// Enough for a few dozen prompt tokens, so that a budget of 16 evicts.
pub(crate) const PROMPT: &str = "Mia was a lonely girl who lived near the church. One day Mia took a red carpet to \
                                 the cave. They played with the red carpet all day.";

/// Variables that would change what the program does or how it looks.
pub(crate) const DROPPED_VARIABLES: [&str; 12] = [
    "NO_COLOR",
    "COLORTERM",
    "CLICOLOR",
    "CLICOLOR_FORCE",
    "SSH_CONNECTION",
    "KVISTA_CONFIG",
    "KVISTA_FAULT",
    "LINES",
    "COLUMNS",
    "HF_ENDPOINT",
    "HF_HUB_CACHE",
    "HF_TOKEN",
];

/// The program that these tests were built with.
pub(crate) fn path() -> &'static str {
    env!("CARGO_BIN_EXE_kvista")
}

/// What a run of the program left behind.
pub(crate) struct Ran {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: Vec<u8>,
}

impl Ran {
    pub(crate) fn out(&self) -> String {
        String::from_utf8(self.stdout.clone()).expect("standard output is UTF-8")
    }

    pub(crate) fn err(&self) -> String {
        String::from_utf8(self.stderr.clone()).expect("standard error is UTF-8")
    }

    /// Exit code 0, or the test fails with what the program said.
    #[track_caller]
    pub(crate) fn ok(self) -> Self {
        assert_eq!(self.code, Some(0), "{}", self.err());
        self
    }

    /// Standard output, every line of it JSON.
    #[track_caller]
    pub(crate) fn lines(&self) -> Vec<Value> {
        let out = self.out();
        out.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"))).collect()
    }

    /// The `summary` of the last line.
    #[track_caller]
    pub(crate) fn summary(&self) -> Map<String, Value> {
        let last = self.lines().pop().expect("a last line");
        last["summary"].as_object().unwrap_or_else(|| panic!("the last line is no summary: {last}")).clone()
    }
}

/// The program, not yet started: no terminal, no configuration of whoever runs the tests.
pub(crate) fn command() -> Command {
    let mut command = Command::new(path());
    for name in DROPPED_VARIABLES {
        command.env_remove(name);
    }
    command.env("XDG_CONFIG_HOME", "/nonexistent").env("TERM", "xterm-256color");
    command.stdin(Stdio::null());
    command
}

/// Runs the program to its end.
pub(crate) fn run<S: AsRef<std::ffi::OsStr>>(args: impl IntoIterator<Item = S>) -> Ran {
    finish(command().args(args))
}

/// Runs a prepared command to its end.
pub(crate) fn finish(command: &mut Command) -> Ran {
    let out = command.output().expect("the program starts");
    Ran { code: out.status.code(), stdout: out.stdout, stderr: out.stderr }
}

/// A headless run of a short prompt under a policy that evicts; `more` arguments come behind.
pub(crate) fn short_run(more: &[&str]) -> Ran {
    let args = ["run", "--headless", "--json", "--prompt", PROMPT, "--policy", "h2o:budget=16"];
    run(args.iter().chain(&["--chunk", "8", "--max-tokens", "12"]).chain(more))
}

/// Whether a terminal may obey a character instead of drawing it: controls, and what reorders or hides text.
pub(crate) fn is_obeyed(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{2069}' | '\u{feff}')
}

/// Texts that a terminal would obey, each another trick.
pub(crate) const HOSTILE: [&str; 8] = [
    "\u{1b}[3J",
    "\u{1b}]2;pwned\u{7}",
    "\u{9b}31m",
    "\u{202e}abc",
    "\u{1b}c",
    "\r\u{8}\u{7}",
    "\u{2066}\u{200b}",
    "\u{1b}[?1049l\u{1b}[6n",
];

/// The embedded model's files as a model folder whose every token is hostile text. Its one harmless word is `a`.
pub(crate) fn hostile_model(parent: &Path) -> PathBuf {
    let folder = parent.join("hostile");
    let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/model/demo");
    std::fs::create_dir(&folder).unwrap();
    for file in ["config.json", "model.safetensors"] {
        std::fs::copy(demo.join(file), folder.join(file)).unwrap();
    }
    let mut vocabulary = Map::from_iter([("a".to_owned(), json!(0))]);
    vocabulary.extend((1..608).map(|id| (format!("{}{id}", HOSTILE[id % HOSTILE.len()]), json!(id))));
    let tokenizer = json!({
        "version": "1.0", "added_tokens": [], "pre_tokenizer": { "type": "Whitespace" },
        "model": { "type": "WordLevel", "vocab": vocabulary, "unk_token": "a" },
    });
    std::fs::write(folder.join("tokenizer.json"), tokenizer.to_string()).unwrap();
    folder
}
