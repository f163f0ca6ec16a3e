//! Vocabularies of well-known models, as llama.cpp has them in GGUF files, against the ids it makes of its own test texts
//! (`models/ggml-vocab-*.gguf.inp` and `.out`).

use std::path::PathBuf;

use super::{Tokenizer, Vocabulary};
use crate::model::Config;
use crate::model::demo;
use crate::model::gguf::Header;

/// What stands between the texts.
const APART: &str = "\n__ggml_vocab_test__\n";

fn folder() -> Option<PathBuf> {
    let folder = std::env::var_os("KVISTA_TEST_DATA").map(|data| PathBuf::from(data).join("gguf-vocab"));
    if folder.is_none() {
        eprintln!("skipped: KVISTA_TEST_DATA is not set");
    }
    folder
}

/// A vocabulary's texts and ids that differ, one line each.
fn faults(folder: &std::path::Path, name: &str) -> Result<Vec<String>, String> {
    let path = folder.join(format!("ggml-vocab-{name}.gguf"));
    let file = std::fs::read(&path).unwrap();
    let header = Header::parse(name, &file).map_err(|e| e.to_string())?;
    let vocabulary = Vocabulary::read(&header, &file).map_err(|e| e.to_string())?;
    let config = Config {
        vocab: vocabulary.tokens.len(),
        bos: vocabulary.bos,
        ..Config::parse("config.json", demo::CONFIG).unwrap()
    };
    let tokenizer = Tokenizer::from_gguf(name, &vocabulary, &config).map_err(|e| e.to_string())?;
    let read = |ending: &str| std::fs::read_to_string(format!("{}{ending}", path.display())).unwrap();
    let (inputs, outputs) = (read(".inp"), read(".out"));
    let texts: Vec<&str> = inputs.split(APART).collect();
    let lines: Vec<&str> = outputs.lines().collect();
    // The last text is followed by the mark's own line.
    let texts = &texts[..lines.len().min(texts.len())];
    assert_eq!((texts.len(), texts.len() > 40), (lines.len(), true), "{name}");
    let mut faults = Vec::new();
    for (text, line) in texts.iter().zip(&lines) {
        let expected: Vec<u32> = line.split_whitespace().map(|id| id.parse().unwrap()).collect();
        let ids = tokenizer.encode_rendered(text).map_err(|e| e.to_string())?;
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
    Ok(faults)
}

#[test]
fn well_known_vocabularies_make_the_ids_of_their_source() {
    let Some(folder) = folder() else { return };
    let mut names: Vec<String> = std::fs::read_dir(&folder)
        .unwrap()
        .filter_map(|entry| {
            let name = entry.unwrap().file_name().into_string().ok()?;
            Some(name.strip_prefix("ggml-vocab-")?.strip_suffix(".gguf")?.to_owned())
        })
        .collect();
    names.sort_unstable();
    assert!(!names.is_empty());
    let mut wrong = Vec::new();
    for name in &names {
        match faults(&folder, name) {
            Ok(faults) => wrong.extend(faults),
            Err(why) => wrong.push(why),
        }
    }
    assert!(wrong.is_empty(), "{} faults\n{}", wrong.len(), wrong.join("\n"));
}
