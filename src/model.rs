//! Floor 3: decoder, weights, tokenizers.
//!
//! A model is a folder as Hugging Face lays it out (`config.json`, `model.safetensors`, `tokenizer.json`), a GGUF file,
//! either of them by its name on the [`hub`], or the embedded [`demo`]. The [`Decoder`] is linear algebra only: rotation,
//! attention and the cache lie between its [`Decoder::qkv`] and [`Decoder::mix`], and the engine puts them there.
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
mod on_device;
mod precision;
mod repeating;
pub mod sampler;
mod shards;
mod tensors;
pub mod tokenizer;
mod watched;
mod weights;

use std::fs::File;
use std::io::Read;
use std::ops::ControlFlow;
use std::path::Path;

pub use chat::{ChatTemplate, Message, Role};
pub use config::Config;
pub use decoder::{Decoder, Qkv};
pub use error::Error;
pub use footprint::{Footprint, Sharing};
pub use on_device::{Arithmetic, OnDevice, Stream};
pub use precision::Precision;
pub use sampler::{Drawn, Sampler};
pub use tokenizer::Tokenizer;

use bytes::Bytes;
use shards::Sharded;
use tensors::Placed;
use watched::Watched;
use weights::{Safetensors, Source};

use crate::device::memory;

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

/// Loads a model: a folder as Hugging Face lays it out, or a GGUF file.
///
/// # Errors
/// As [`load_as`].
pub fn load(path: &Path) -> Result<Model> {
    load_as(path, &path.display().to_string(), None, &mut |_| ControlFlow::Continue(()))
}

/// Loads a model. `source` is what its card says it came from; `weights` the type that its projections are put into, or
/// none to leave them as they are; `watch` hears of the progress.
///
/// # Errors
/// A missing folder or file, a configuration this build does not support, weights that do not fit the configuration or
/// the type they are to be put into, an unreadable tokenizer; [`Error::Stopped`] where `watch` says so.
pub fn load_as(
    path: &Path,
    source: &str,
    weights: Option<Precision>,
    watch: &mut Watch<'_>,
) -> Result<Model> {
    let shown = path.display().to_string();
    if !path.exists() {
        return Err(Error::NoModel { path: shown });
    }
    let card = (name_of(path), source.to_owned());
    if is_gguf(path) {
        return load_gguf(path, card, weights, watch);
    }
    if !path.is_dir() {
        return Err(Error::NotAModel { path: shown });
    }
    load_folder(path, card, weights, watch)
}

fn load_folder(
    folder: &Path,
    card: (String, String),
    weights: Option<Precision>,
    watch: &mut Watch<'_>,
) -> Result<Model> {
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
    let shown_path = tokenizer_path.display().to_string();
    let tokenizer = |config: &Config| {
        if is_words {
            Tokenizer::from_words(&shown_path, &tokenizer_json, config)
        } else {
            Tokenizer::from_json(&shown_path, &tokenizer_json, config)
        }
    };

    let chat = |tokenizer: &Tokenizer| ChatTemplate::of_folder(folder, tokenizer);
    let file = folder.join("model.safetensors");
    let index = folder.join("model.safetensors.index.json");
    if !file.exists() && index.exists() {
        assemble(config, Sharded::open(&index)?, (&index, card), (tokenizer, chat), weights, watch)
    } else {
        let source = Safetensors::open(file.display().to_string(), map(&file)?)?;
        assemble(config, source, (&file, card), (tokenizer, chat), weights, watch)
    }
}

fn load_gguf(
    path: &Path,
    card: (String, String),
    weights: Option<Precision>,
    watch: &mut Watch<'_>,
) -> Result<Model> {
    let shown = path.display().to_string();
    let bytes = map(path)?;
    let file = bytes.clone();
    let header = gguf::Header::parse(&shown, file.as_slice())?;
    let config = header.config(file.as_slice())?;
    let vocabulary = tokenizer::Vocabulary::read(&header, file.as_slice())?;
    let template = header.text("tokenizer.chat_template")?.map(ToOwned::to_owned);
    let source = gguf::Gguf::new(header, bytes, &config)?;
    let tokenizer = |config: &Config| Tokenizer::from_gguf(&shown, &vocabulary, config);
    let chat = |tokenizer: &Tokenizer| match &template {
        Some(template) => ChatTemplate::of_metadata(&shown, template, tokenizer),
        None => Err(Error::Chat(format!("{shown}: no chat template in its metadata: leave --chat out"))),
    };
    assemble(config, source, (path, card), (tokenizer, chat), weights, watch)
}

/// Tokenizer and decoder, once the weights' headers have vouched for the vocabulary's size.
fn assemble(
    config: Config,
    source: impl Source,
    (path, card): (&Path, (String, String)),
    (tokenizer, chat): (
        impl FnOnce(&Config) -> Result<Tokenizer>,
        impl FnOnce(&Tokenizer) -> Result<ChatTemplate>,
    ),
    weights: Option<Precision>,
    watch: &mut Watch<'_>,
) -> Result<Model> {
    let source = Placed::new(source, &config);
    weights::check(&source, &config)?;
    let shown = path.display().to_string();
    if let Some(weights) = weights {
        weights.check(&shown, &config)?;
    }
    let needed_bytes = weights.map_or_else(|| source.copied_bytes(), |weights| weights.bytes(&config));
    check_memory(&shown, needed_bytes, memory::free_bytes())?;
    let tokenizer = tokenizer(&config)?;
    let chat = chat(&tokenizer);
    let what = card.0.clone();
    let source = Watched::new(source, &what, weights, watch);
    let mut decoder = Decoder::load(config, source, card, |matrix| match weights {
        Some(weights) => weights.apply(&matrix),
        None => Ok(matrix),
    })?;
    decoder.note_weights(weights);
    Ok(Model { decoder, tokenizer, chat })
}

/// Refuses weights that would not fit into the memory that is left, where the system says how much that is: a sparse file
/// can promise terabytes, and without this the system would end the process halfway through them.
fn check_memory(path: &str, needed_bytes: u64, free_bytes: Option<u64>) -> Result<()> {
    match free_bytes {
        Some(free_bytes) if needed_bytes > free_bytes => {
            Err(Error::Memory { path: path.into(), needed_bytes, free_bytes })
        }
        _ => Ok(()),
    }
}

/// The configuration of a GGUF file, in the words of a `config.json`.
///
/// # Errors
/// A file that is not there or no GGUF file, or metadata of another kind of model.
pub fn gguf_config(path: &Path) -> Result<Vec<u8>> {
    let bytes = map(path)?;
    gguf::Header::parse(&path.display().to_string(), bytes.as_slice())?.config_json(bytes.as_slice())
}

/// Whether a path names a GGUF file.
pub fn is_gguf(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("gguf")) && !path.is_dir()
}

/// The folder's own name, also where the path is `.` or ends in `..`.
fn name_of(folder: &Path) -> String {
    let named = |path: &Path| path.file_name().map(|name| name.to_string_lossy().into_owned());
    named(folder)
        .or_else(|| folder.canonicalize().ok().as_deref().and_then(named))
        .unwrap_or_else(|| folder.display().to_string())
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
        assert!(error(folder).contains("index.json: no usable index"), "{}", error(folder));
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
    fn weights_that_do_not_fit_into_memory_are_refused() {
        check_memory("w", 1 << 40, None).unwrap();
        check_memory("w", 1_000_000_000, Some(1_000_000_000)).unwrap();
        let text = check_memory("w", 3_000_000_000, Some(2_000_000_000)).unwrap_err().to_string();
        assert_eq!(
            text,
            "w: its weights need 3.0 GB of memory, 2.0 GB is free; choose a smaller model, or a smaller type with --weights"
        );
    }

    #[test]
    fn an_endless_configuration_is_cut_off() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("config.json"), vec![b' '; (MAX_CONFIG_BYTES + 1) as usize]).unwrap();
        assert!(load(dir.path()).unwrap_err().to_string().contains("longer than"));
    }
}
