//! Files beside a model, and a person's own.

use std::path::Path;

use kvista::app::Config as AppConfig;
use kvista::model::{self, Config, Footprint, Tokenizer};
use kvista::ui::theme::{Depth, Symbols, Theme, ThemeFile};

use super::{refused, seeds};

pub fn model_config(bytes: &[u8]) -> bool {
    match Config::parse("config.json", bytes) {
        Ok(mut config) => {
            config.parameters();
            config.qkv_width();
            config.card("name".into(), String::new(), "f32".into());
            let ropes = config.ropes(config.context);
            for layer in 0..config.layers {
                config.scoring(layer);
                ropes.of(layer).apply(&mut vec![1.0; config.head_dim], config.context - 1);
            }
            Footprint::parse("config.json", bytes).expect("what the decoder runs has a cache");
            if let Err(error) = config.add_generation("generation_config.json", bytes) {
                refused(&error);
            }
            true
        }
        Err(error) => refused(&error),
    }
}

/// A folder with good configuration and tokenizer, and these weights.
pub fn weights(bytes: &[u8]) -> bool {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let write = |name: &str, bytes: &[u8]| write(folder.path(), name, bytes);
    write("config.json", seeds::TINY_CONFIG.as_bytes());
    write("tokenizer.json", seeds::BYTE_LEVEL.as_bytes());
    write("model.safetensors", bytes);
    use_model(folder.path())
}

/// Loads a model, and asks the decoder for a layer and for logits.
pub(crate) fn use_model(path: &Path) -> bool {
    match model::load(path) {
        Ok(model) => {
            let x = model.decoder.embed(&[1, 2]).expect("both ids have rows");
            model.decoder.qkv(0, &x).expect("there is a layer");
            model.decoder.logits(&x).expect("two rows");
            true
        }
        Err(error) => refused(&error),
    }
}

fn write(folder: &Path, name: &str, bytes: &[u8]) {
    std::fs::write(folder.join(name), bytes).expect("the temporary folder can be written");
}

pub fn tokenizer(bytes: &[u8]) -> bool {
    let config = Config::parse("config.json", seeds::TINY_CONFIG.as_bytes()).expect("a good configuration");
    match Tokenizer::from_json("tokenizer.json", bytes, &config) {
        Ok(tokenizer) => use_tokenizer(&tokenizer),
        Err(error) => refused(&error),
    }
}

/// The vocabulary's size is the length of the list, where that can be told, so that more than the length is tried.
pub fn word_list(bytes: &[u8]) -> bool {
    let tiny = Config::parse("config.json", seeds::TINY_CONFIG.as_bytes()).expect("a good configuration");
    let vocab = serde_json::from_slice::<Vec<String>>(bytes).map_or(tiny.vocab, |list| list.len());
    match Tokenizer::from_words("vocab.json", bytes, &Config { vocab, ..tiny }) {
        Ok(tokenizer) => use_tokenizer(&tokenizer),
        Err(error) => refused(&error),
    }
}

pub fn use_tokenizer(tokenizer: &Tokenizer) -> bool {
    for text in ["", "a", " a é\n the\u{0}key", "日本👩\u{200d}🚀"] {
        for ids in [tokenizer.encode(text), tokenizer.encode_continuation(text)] {
            match ids {
                Ok(ids) => {
                    tokenizer.text(&ids);
                    assert!(ids.iter().all(|id| (*id as usize) < tokenizer.vocab_size()));
                }
                Err(error) => _ = refused(&error),
            }
        }
    }
    (0..=tokenizer.vocab_size() as u32).for_each(|id| drop(tokenizer.piece(id)));
    true
}

pub fn theme(bytes: &[u8]) -> bool {
    let text = String::from_utf8_lossy(bytes);
    let file = |name: &str| {
        (name == "mine")
            .then(|| ThemeFile { path: "themes/mine.toml".into(), text: text.clone().into_owned() })
    };
    match Theme::load("mine", &file) {
        Ok(theme) => {
            for depth in [Depth::None, Depth::Ansi, Depth::Indexed, Depth::True] {
                let mut styles = theme.styles(depth, Symbols::Block);
                styles.next_ramp();
                for value in [f32::NAN, -1.0, 0.0, 0.5, 2.0] {
                    styles.heat(value);
                }
            }
            true
        }
        Err(error) => refused(&error),
    }
}

pub fn config(bytes: &[u8]) -> bool {
    let text = String::from_utf8_lossy(bytes);
    match AppConfig::parse(&text, "config.toml") {
        Ok(config) => config.keymap().is_ok_and(|keymap| !keymap.bindings().is_empty()),
        Err(error) => refused(&error),
    }
}
