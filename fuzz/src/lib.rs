//! Every parser of kvista with inputs it should take: one table, driven by libFuzzer (`fuzz_targets/`) and, on stable
//! Rust, by `tests/hostile.rs`, which includes this file.
//!
//! A driver hands one input to a parser and uses what comes out as the program would. It may be refused, in one line; a
//! panic, memory without bound and a result that contradicts itself are faults.

#![allow(missing_docs, unreachable_pub)]

mod files;
mod formats;
mod seeds;
mod traces;
mod words;

/// A parser that reads what others wrote.
pub struct Parser {
    /// Name of its fuzz target.
    pub name: &'static str,
    /// Good inputs to start from.
    pub seeds: fn() -> Vec<Vec<u8>>,
    /// Runs one input; whether it was taken.
    pub drive: fn(&[u8]) -> bool,
    /// Mutated inputs in a run of the tests, chosen by what an input costs.
    pub rounds: usize,
}

/// All of them.
pub const PARSERS: [Parser; 23] = [
    Parser { name: "recording", seeds: seeds::recordings, drive: traces::recording, rounds: 2_000 },
    Parser { name: "messages", seeds: seeds::messages, drive: traces::messages, rounds: 5_000 },
    Parser { name: "repair", seeds: seeds::messages, drive: traces::repair, rounds: 1_000 },
    Parser { name: "views", seeds: seeds::messages, drive: traces::views, rounds: 500 },
    Parser { name: "evict", seeds: seeds::evict, drive: traces::evict, rounds: 10_000 },
    Parser { name: "attention", seeds: seeds::attention, drive: traces::attention, rounds: 10_000 },
    Parser { name: "latency", seeds: seeds::latency, drive: traces::latency, rounds: 10_000 },
    Parser { name: "keyframe", seeds: seeds::keyframes, drive: traces::keyframe, rounds: 10_000 },
    Parser { name: "model_config", seeds: seeds::model_configs, drive: files::model_config, rounds: 10_000 },
    Parser { name: "weights", seeds: seeds::weights, drive: files::weights, rounds: 1_000 },
    Parser { name: "gguf", seeds: formats::ggufs, drive: formats::gguf, rounds: 2_000 },
    Parser { name: "shards", seeds: formats::indices, drive: formats::shards, rounds: 1_000 },
    Parser { name: "tokenizer", seeds: seeds::tokenizers, drive: files::tokenizer, rounds: 3_000 },
    Parser { name: "word_list", seeds: seeds::word_lists, drive: files::word_list, rounds: 1_000 },
    Parser { name: "theme", seeds: seeds::themes, drive: files::theme, rounds: 2_000 },
    Parser { name: "config", seeds: seeds::configs, drive: files::config, rounds: 3_000 },
    Parser { name: "policy", seeds: seeds::policies, drive: words::policy, rounds: 5_000 },
    Parser { name: "read_set", seeds: seeds::read_sets, drive: words::read_set, rounds: 5_000 },
    Parser { name: "filter", seeds: seeds::filters, drive: words::filter, rounds: 5_000 },
    Parser { name: "chord", seeds: seeds::chords, drive: words::chord, rounds: 5_000 },
    Parser { name: "score_level", seeds: seeds::score_levels, drive: words::score_level, rounds: 3_000 },
    Parser { name: "prompt", seeds: seeds::texts, drive: words::prompt, rounds: 3_000 },
    Parser { name: "token_text", seeds: seeds::texts, drive: words::token_text, rounds: 5_000 },
];

/// A parser by name.
///
/// # Panics
/// There is none of that name.
pub fn parser(name: &str) -> &'static Parser {
    const ALL: &[Parser] = &PARSERS;
    ALL.iter().find(|parser| parser.name == name).expect("every target names a parser of the table")
}

/// A refusal: one line. The input was not taken.
fn refused(why: &impl std::fmt::Display) -> bool {
    let line = why.to_string();
    assert!(!line.is_empty() && !line.contains('\n'), "a refusal is one line: {line:?}");
    false
}
