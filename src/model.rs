//! Floor 3: decoder, weights, tokenizers.
//!
//! A model is a folder as Hugging Face lays it out (`config.json`, `model.safetensors`, `tokenizer.json`), or the
//! embedded [`demo`]. The [`Decoder`] is linear algebra only: rotation, attention and the cache lie between its
//! [`Decoder::qkv`] and [`Decoder::mix`], and the engine puts them there.
//!
//! Files come from anywhere. Every size a file states is checked before memory is taken for it, and each refusal is one
//! line with the file, what is wrong in it, and what would be right.

mod bytes;
pub mod chat;
pub mod config;
pub mod decoder;
pub mod demo;
mod error;
pub mod footprint;
mod gguf;
#[cfg(test)]
mod golden;
pub mod hub;
mod matrix;
pub mod sampler;
mod shards;
mod tensors;
pub mod tokenizer;
mod weights;

use std::fs::File;
use std::io::Read;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

pub use chat::{ChatTemplate, Message, Role};
pub use config::Config;
pub use decoder::{Decoder, Qkv};
pub use error::Error;
pub use footprint::{Footprint, Sharing};
pub use sampler::{Drawn, Sampler};
pub use tokenizer::Tokenizer;

use bytes::Bytes;
use tensors::Placed;
use weights::Safetensors;

/// Bytes on their way: a file being fetched, weights being read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress<'a> {
    /// What is on its way.
    pub what: &'a str,
    /// Bytes that are there.
    pub done_bytes: u64,
    /// Bytes of all of it.
    pub total_bytes: u64,
}

/// Hears of progress, often; a `Break` ends the loading with [`Error::Stopped`].
pub type Watch<'a> = dyn FnMut(&Progress<'_>) -> ControlFlow<()> + 'a;

/// What every fallible call of this room returns.
pub type Result<T> = std::result::Result<T, Error>;

/// A decoder and the tokenizer that belongs to it.
#[derive(Debug)]
pub struct Model {
    /// The weights and what to do with them.
    pub decoder: Decoder,
    /// Text to ids and back.
    pub tokenizer: Tokenizer,
    /// How a conversation is put to it, or why it cannot be.
    pub chat: Result<ChatTemplate>,
}

impl Model {
    /// A model that no conversation was shown how to be put to.
    pub fn new(decoder: Decoder, tokenizer: Tokenizer) -> Self {
        let chat = Err(Error::Chat(format!(
            "model '{}' has no chat template: leave --chat out, and what is typed goes on with the text",
            decoder.card().name
        )));
        Self { decoder, tokenizer, chat }
    }
}

/// Largest `config.json` or `generation_config.json` read; real ones stay under 32 KiB.
const MAX_CONFIG_BYTES: u64 = 1 << 20;
/// Largest `tokenizer.json` read; the largest known (a vocabulary of 262,144) is 33 MB.
const MAX_TOKENIZER_BYTES: u64 = 64 << 20;

/// Loads a model folder.
///
/// # Errors
/// A missing folder or file, a configuration this build does not support, weights that do not fit the configuration,
/// an unreadable tokenizer.
pub fn load(folder: &Path) -> Result<Model> {
    let shown = folder.display().to_string();
    if !folder.exists() {
        return Err(Error::NoFolder { path: shown });
    }
    if !folder.is_dir() {
        return Err(Error::NotAFolder { path: shown });
    }
    let config_path = folder.join("config.json");
    let mut config =
        Config::parse(&config_path.display().to_string(), &read(&config_path, MAX_CONFIG_BYTES)?)?;
    let generation = folder.join("generation_config.json");
    if generation.is_file() {
        config.add_generation(&generation.display().to_string(), &read(&generation, MAX_CONFIG_BYTES)?)?;
    }
    // A word list of the embedded model's kind stands in where there is no tokenizer.json: another run of its training.
    let word_list = folder.join("vocab.json");
    let is_words = !folder.join("tokenizer.json").exists() && word_list.exists();
    let tokenizer_path = if is_words { word_list } else { folder.join("tokenizer.json") };
    let tokenizer_json = read(&tokenizer_path, MAX_TOKENIZER_BYTES)?;

    let weights_path = weights_path(folder)?;
    let weights = Safetensors::open(weights_path.display().to_string(), map(&weights_path)?)?;
    let weights = Placed::new(weights, &config);
    // The header vouches for the vocabulary's size before a table of that length is made.
    weights::check(&weights, &config)?;
    let shown_path = tokenizer_path.display().to_string();
    let tokenizer = if is_words {
        Tokenizer::from_words(&shown_path, &tokenizer_json, &config)?
    } else {
        Tokenizer::from_json(&shown_path, &tokenizer_json, &config)?
    };
    drop(tokenizer_json);
    let chat = ChatTemplate::of_folder(folder, &tokenizer);
    let decoder = Decoder::load(config, weights, (name_of(folder), shown), Ok)?;
    Ok(Model { decoder, tokenizer, chat })
}

/// The folder's own name, also where the path is `.` or ends in `..`.
fn name_of(folder: &Path) -> String {
    let named = |path: &Path| path.file_name().map(|name| name.to_string_lossy().into_owned());
    named(folder)
        .or_else(|| folder.canonicalize().ok().as_deref().and_then(named))
        .unwrap_or_else(|| folder.display().to_string())
}

fn weights_path(folder: &Path) -> Result<PathBuf> {
    let path = folder.join("model.safetensors");
    let index = folder.join("model.safetensors.index.json");
    if !path.exists() && index.exists() {
        return Err(Error::Sharded { path: index.display().to_string() });
    }
    Ok(path)
}

fn open(path: &Path) -> Result<File> {
    let shown = || path.display().to_string();
    let file = File::open(path).map_err(|source| match source.kind() {
        std::io::ErrorKind::NotFound => Error::NoFile { path: shown() },
        _ => Error::Read { path: shown(), source },
    })?;
    let kind = file.metadata().map_err(|source| Error::Read { path: shown(), source })?;
    // A device or a pipe has no length to check anything against.
    if kind.is_file() { Ok(file) } else { Err(Error::NoFile { path: shown() }) }
}

fn map(path: &Path) -> Result<Bytes> {
    Bytes::map(&open(path)?).map_err(|source| Error::Read { path: path.display().to_string(), source })
}

fn read(path: &Path, limit_bytes: u64) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    open(path)?
        .take(limit_bytes + 1)
        .read_to_end(&mut bytes)
        .map_err(|source| Error::Read { path: path.display().to_string(), source })?;
    if bytes.len() as u64 > limit_bytes {
        return Err(Error::TooLong { path: path.display().to_string(), limit_bytes });
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_missing_part_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let error = |path: &Path| load(path).unwrap_err().to_string();
        assert!(error(&dir.path().join("nowhere")).contains("nowhere: no such folder"));

        let folder = dir.path();
        assert!(error(folder).contains("config.json: no such file"), "{}", error(folder));
        std::fs::write(folder.join("config.json"), demo::CONFIG).unwrap();
        assert!(error(&folder.join("config.json")).contains("not a folder"));
        assert!(error(folder).contains("tokenizer.json: no such file"), "{}", error(folder));
        std::fs::write(folder.join("tokenizer.json"), "{").unwrap();
        assert!(error(folder).contains("model.safetensors: no such file"), "{}", error(folder));
        std::fs::write(folder.join("model.safetensors.index.json"), "{}").unwrap();
        assert!(error(folder).contains("sharded"), "{}", error(folder));
        std::fs::write(folder.join("model.safetensors"), demo::WEIGHTS).unwrap();
        assert!(error(folder).contains("tokenizer.json: "), "{}", error(folder));
        std::fs::write(folder.join("generation_config.json"), "[]").unwrap();
        assert!(error(folder).contains("generation_config.json: "), "{}", error(folder));
    }

    #[test]
    fn a_folder_loads_with_its_own_name_and_all_its_end_tokens() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("mine");
        std::fs::create_dir(&folder).unwrap();
        for (file, bytes) in [
            ("config.json", demo::CONFIG),
            ("model.safetensors", demo::WEIGHTS),
            ("tokenizer.json", tokenizer::tests::BYTE_LEVEL.as_bytes()),
            ("generation_config.json", br#"{"eos_token_id": [6, 7]}"#),
        ] {
            std::fs::write(folder.join(file), bytes).unwrap();
        }
        let model = load(&folder).unwrap();
        let card = model.decoder.card();
        assert_eq!((card.name.as_str(), card.weights.as_str()), ("mine", "f16"));
        assert_eq!(Path::new(&card.source), folder);
        assert_eq!((model.tokenizer.bos(), model.tokenizer.eos()), (Some(256), [6, 7].as_slice()));
        let logits = |decoder: &Decoder| decoder.logits(&decoder.embed(&[300]).unwrap()).unwrap();
        assert_eq!(logits(&model.decoder), logits(&demo::load().unwrap().decoder));

        std::fs::write(folder.join("model.safetensors"), &demo::WEIGHTS[..1_000_000]).unwrap();
        let text = load(&folder).unwrap_err().to_string();
        assert!(text.contains("model.safetensors: truncated") && text.contains("has 1000000"), "{text}");
    }

    #[test]
    fn a_word_list_stands_in_for_a_tokenizer() {
        let dir = tempfile::tempdir().unwrap();
        for (file, bytes) in [
            ("config.json", demo::CONFIG),
            ("model.safetensors", demo::WEIGHTS),
            ("vocab.json", include_bytes!("model/demo/vocab.json")),
        ] {
            std::fs::write(dir.path().join(file), bytes).unwrap();
        }
        assert!(demo::is_spoken_by(&load(dir.path()).unwrap().tokenizer));
        std::fs::write(dir.path().join("vocab.json"), br#"{"a": 0}"#).unwrap();
        let text = load(dir.path()).unwrap_err().to_string();
        assert!(text.contains("vocab.json: not a list of strings"), "{text}");
    }

    #[test]
    fn a_model_can_move_to_the_engine_thread() {
        const fn is_send<T: Send + 'static>() {}
        is_send::<(Model, Sampler)>();
    }

    #[test]
    fn an_endless_configuration_is_cut_off() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("config.json"), vec![b' '; (MAX_CONFIG_BYTES + 1) as usize]).unwrap();
        assert!(load(dir.path()).unwrap_err().to_string().contains("longer than"));
    }
}
