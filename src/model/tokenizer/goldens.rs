//! Vocabularies of well-known models against the ids that llama.cpp makes of its own test texts
//! (`models/ggml-vocab-*.gguf` with `.inp` and `.out`).
//!
//! The vocabularies are read here leniently, by their strings alone: copies that went through a text channel have every
//! byte that is not UTF-8 replaced, numbers among them, and [`Header`](crate::model::gguf::Header) rightly refuses those.

use std::path::{Path, PathBuf};

use super::{TokenKind, Tokenizer, Vocabulary};
use crate::model::{Config, demo};

/// What stands between the texts.
const APART: &str = "\n__ggml_vocab_test__\n";
/// What a text channel puts in place of a byte.
const REPLACED: &[u8] = "\u{fffd}".as_bytes();

fn data() -> Option<PathBuf> {
    let folder = std::env::var_os("KVISTA_TEST_DATA").map(PathBuf::from);
    if folder.is_none() {
        eprintln!("skipped: KVISTA_TEST_DATA is not set");
    }
    folder
}

/// A file of which numbers may be worn.
struct Worn<'a> {
    file: &'a [u8],
    at: usize,
}

impl<'a> Worn<'a> {
    /// Behind the name of an entry.
    fn entry(file: &'a [u8], name: &str) -> Option<Self> {
        let at = file.windows(name.len()).position(|window| window == name.as_bytes())?;
        Some(Self { file, at: at + name.len() })
    }

    /// The next bytes, `None` for each that was replaced.
    fn bytes(&mut self, count: usize) -> Vec<Option<u8>> {
        (0..count)
            .map(|_| {
                let rest = &self.file[self.at.min(self.file.len())..];
                let is_worn = rest.starts_with(REPLACED);
                self.at += if is_worn { REPLACED.len() } else { 1 };
                rest.first().copied().filter(|_| !is_worn)
            })
            .collect()
    }

    /// The next string; of one whose length was replaced, the shortest that something like a string follows.
    fn string(&mut self) -> String {
        let length = self.bytes(8);
        let is_length = |bytes: &[Option<u8>]| bytes[2..].iter().all(|byte| *byte == Some(0));
        let text_of =
            |from: usize, length: usize| std::str::from_utf8(self.file.get(from..from + length)?).ok();
        let len = match (length[0], length[1]) {
            (Some(low), Some(high)) => usize::from(low) + 256 * usize::from(high),
            _ => (128..512)
                .find(|&len| {
                    let mut next = Self { file: self.file, at: self.at + len };
                    let follows = next.bytes(8);
                    text_of(self.at, len).is_some()
                        && is_length(&follows)
                        && follows[..2] != [Some(0), Some(0)]
                })
                .expect("a string of some length"),
        };
        let text = text_of(self.at, len).expect("a string").to_owned();
        self.at += len;
        text
    }

    /// The strings of an array, up to the next entry's name.
    fn strings(mut self) -> Vec<String> {
        self.bytes(4 + 4 + 8);
        let mut strings = Vec::new();
        while self.at < self.file.len() {
            let next = self.string();
            if next.starts_with("tokenizer.") || next.starts_with("general.") {
                break;
            }
            strings.push(next);
        }
        strings
    }
}

fn vocabulary(file: &[u8], name: &str) -> Vocabulary {
    let strings = |key: &str| Worn::entry(file, key).map(Worn::strings).unwrap_or_default();
    let text = |key: &str| {
        Worn::entry(file, key).map_or_else(String::new, |mut worn| {
            worn.bytes(4);
            worn.string()
        })
    };
    let tokens = strings("tokenizer.ggml.tokens");
    let mut kinds = Worn::entry(file, "tokenizer.ggml.token_type").expect("kinds");
    kinds.bytes(4 + 4 + 8);
    let kinds = tokens.iter().map(|_| TokenKind::of(kinds.bytes(4)[0].map_or(0, i32::from))).collect();
    Vocabulary {
        model: text("tokenizer.ggml.model"),
        pre: text("tokenizer.ggml.pre"),
        // Llama's vocabulary is in the order of its merges, behind three special tokens and the bytes.
        scores: (0..tokens.len()).map(|id| -(id.saturating_sub(259) as f32)).collect(),
        kinds,
        merges: strings("tokenizer.ggml.merges"),
        unknown: Some(0),
        strips_right: name == "phi-3",
        tokens,
        ..Vocabulary::default()
    }
}

fn config(vocab: usize) -> Config {
    Config { vocab, bos: None, ..Config::parse("config.json", demo::CONFIG).unwrap() }
}

/// Texts whose ids differ from the golden ones, one line each.
fn faults(tokenizer: &Tokenizer, folder: &Path, name: &str) -> Vec<String> {
    let read = |ending: &str| {
        std::fs::read_to_string(folder.join(format!("ggml-vocab-{name}.gguf{ending}"))).unwrap()
    };
    let (inputs, outputs) = (read(".inp"), read(".out"));
    let texts: Vec<&str> = inputs.split(APART).collect();
    let lines: Vec<&str> = outputs.lines().collect();
    assert!(lines.len() >= 40 && texts.len() >= lines.len(), "{name}: {} {}", texts.len(), lines.len());
    let mut faults = Vec::new();
    for (text, line) in texts.iter().zip(&lines) {
        let expected: Vec<u32> = line.split_whitespace().map(|id| id.parse().unwrap()).collect();
        let ids = tokenizer.encode_rendered(text).unwrap();
        if ids != expected {
            faults.push(format!("{name}: {text:?}: {ids:?}, not {expected:?}"));
        }
        // Byte by byte the pieces are the text again; SentencePiece's has its space before it.
        let bytes: Vec<u8> = ids.iter().flat_map(|id| tokenizer.piece(*id).0).collect();
        let again = String::from_utf8(bytes).unwrap();
        if again != **text && again != format!(" {text}") {
            faults.push(format!("{name}: {text:?} comes back as {again:?}"));
        }
    }
    faults
}

#[test]
fn well_known_vocabularies_make_the_ids_of_their_source() {
    let Some(data) = data() else { return };
    let folder = data.join("gguf-vocab");
    let mut wrong = Vec::new();
    for name in ["deepseek-llm", "falcon", "gpt-2", "llama-spm", "phi-3", "starcoder"] {
        let file = std::fs::read(folder.join(format!("ggml-vocab-{name}.gguf"))).unwrap();
        let vocabulary = vocabulary(&file, name);
        match Tokenizer::from_gguf(name, &vocabulary, &config(vocabulary.tokens.len())) {
            Ok(tokenizer) => wrong.extend(faults(&tokenizer, &folder, name)),
            Err(why) => wrong.push(why.to_string()),
        }
    }
    assert!(wrong.is_empty(), "{} faults\n{}", wrong.len(), wrong.join("\n"));
}

/// The same vocabularies as their authors' `tokenizer.json`.
#[test]
fn tokenizer_files_make_the_same_ids() {
    let Some(data) = data() else { return };
    for (file, name, vocab) in [("llama2", "llama-spm", 32_000), ("phi-3", "phi-3", 32_064)] {
        let path = data.join(format!("tokenizers/{file}-tokenizer.json"));
        let tokenizer = Tokenizer::from_json(name, &std::fs::read(path).unwrap(), &config(vocab)).unwrap();
        let wrong = faults(&tokenizer, &data.join("gguf-vocab"), name);
        assert!(wrong.is_empty(), "{} faults\n{}", wrong.len(), wrong.join("\n"));
    }
}
