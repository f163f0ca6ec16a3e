//! Text to token ids, and each id to the bytes it stands for.
//!
//! A `tokenizer.json` is encoded by the `tokenizers` crate. Its decoder is not used: it works on whole sequences, while
//! a profiler shows every token by itself. The bytes of each token are derived once, from the vocabulary and the kind
//! of the decoder; set one after the other they are the text, with the leading space that a decoder would strip.

mod gguf;
mod stream;
mod words;

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};

use serde::Deserialize;
use serde_json::Value;

pub use self::gguf::{TokenKind, Vocabulary};
pub use self::stream::{TextStream, open_tail};
use self::words::Words;
use super::error::{MOST_REASON_CHARS, quoted};
use super::{Config, Error, Result};
use crate::event::Piece;

/// Text to ids and back, for one model.
#[derive(Debug)]
pub struct Tokenizer {
    scheme: Scheme,
    /// Bytes by id, one per row of the embedding; empty where the vocabulary has no such token.
    pieces: Vec<Piece>,
    /// Control tokens, ascending: no part of a text.
    special: Vec<u32>,
    /// Rows of the embedding that no token has, ascending.
    unused: Vec<u32>,
    bos: Option<u32>,
    eos: Vec<u32>,
}

#[derive(Debug)]
enum Scheme {
    /// A Hugging Face `tokenizer.json`.
    Hf {
        inner: Box<tokenizers::Tokenizer>,
        /// Whether it puts a space before every text.
        prefixes_space: bool,
    },
    /// Longest matching word, else one byte.
    Words(Words),
}

impl Tokenizer {
    /// Reads a `tokenizer.json`; `path` is only named in errors.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] where the crate refuses it.
    pub fn from_json(path: &str, json: &[u8], config: &Config) -> Result<Self> {
        let fault = |reason: String| Error::Tokenizer {
            path: path.into(),
            reason: format!("not a usable tokenizer: {}", quoted(&reason, MOST_REASON_CHARS)),
        };
        let parts: Parts = serde_json::from_slice(json).map_err(|error| fault(error.to_string()))?;
        if parts.normalizer.as_ref().is_some_and(has_precompiled) {
            return Err(fault("normalizer Precompiled is not supported".into()));
        }
        let mut inner = parse(json).map_err(fault)?;
        // A prompt is never cut or padded behind a person's back.
        inner.with_truncation(None).map_err(|error| fault(error.to_string()))?;
        inner.with_padding(None);

        let spelling = Spelling::of(&parts.decoder.unwrap_or_default());
        let added = inner.get_added_tokens_decoder();
        let mut vocab: Vec<(u32, String)> =
            inner.get_vocab(true).into_iter().map(|(token, id)| (id, token)).collect();
        // The map's order is random; two tokens of one id must not take turns.
        vocab.sort_unstable();

        let mut pieces = vec![Piece::default(); config.vocab];
        let mut used = vec![false; config.vocab];
        for (id, token) in &vocab {
            let Some(piece) = pieces.get_mut(*id as usize) else { continue };
            used[*id as usize] = true;
            *piece =
                if added.contains_key(id) { token.as_str().into() } else { Piece(spelling.bytes(token)) };
        }
        let mut special: Vec<u32> =
            added.iter().filter(|(_, token)| token.special).map(|(id, _)| *id).collect();
        special.sort_unstable();

        // A template of special tokens that are not there fails with the first text: better here than in a run.
        hf_ids(&inner, "", true).map_err(|error| fault(error.to_string()))?;
        let prefixes_space = hf_ids(&inner, "a", false)
            .ok()
            .and_then(|ids| ids.first().copied())
            .and_then(|id| pieces.get(id as usize))
            .is_some_and(|piece| piece.0.starts_with(b" "));
        Ok(Self {
            scheme: Scheme::Hf { inner: Box::new(inner), prefixes_space },
            unused: unused(&used),
            pieces,
            special,
            bos: config.bos,
            eos: config.eos.clone(),
        })
    }

    /// Reads the embedded model's `vocab.json`, a list with one string per id: `<0xNN>` for the 256 bytes, `<s>`, words
    /// spelled literally, `<unusedN>` for rows never trained.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] where the list is not that.
    pub fn from_words(path: &str, json: &[u8], config: &Config) -> Result<Self> {
        let fault = |reason| Error::Tokenizer { path: path.into(), reason };
        let list: Vec<String> =
            serde_json::from_slice(json).map_err(|error| fault(format!("not a list of strings: {error}")))?;
        if list.len() != config.vocab {
            return Err(fault(format!(
                "{} entries; config.json says vocab_size {}",
                list.len(),
                config.vocab
            )));
        }
        Self::from_entries(&list, config).map_err(fault)
    }

    /// One token per byte, for a model of random weights: ids 0 to 255, then BOS; rows beyond are never drawn.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] for a vocabulary of fewer than 257.
    pub fn bytes(config: &Config) -> Result<Self> {
        let mut list: Vec<String> = (0..=255u8).map(|byte| format!("<0x{byte:02X}>")).collect();
        list.push(words::BOS.into());
        list.extend((list.len()..config.vocab).map(|id| format!("<unused{id}>")));
        Self::from_entries(&list[..list.len().min(config.vocab)], config)
            .map_err(|reason| Error::Tokenizer { path: "byte tokenizer".into(), reason })
    }

    fn from_entries(list: &[String], config: &Config) -> std::result::Result<Self, String> {
        let words = Words::new(list)?;
        let used: Vec<bool> = list.iter().map(|entry| !words::is_unused(entry)).collect();
        Ok(Self {
            pieces: list.iter().map(|entry| Piece(words::bytes_of(entry))).collect(),
            special: vec![words::BOS_ID],
            unused: unused(&used),
            bos: Some(words::BOS_ID),
            eos: config.eos.clone(),
            scheme: Scheme::Words(words),
        })
    }

    /// Ids of a text that begins a sequence, with BOS where the model wants one and the text does not spell it itself.
    /// A tokenizer whose words carry their leading space gets one before the first word too.
    ///
    /// # Errors
    /// [`Error::Encode`] where the tokenizer fails, or makes an id the model has no row for.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        let ids = match &self.scheme {
            Scheme::Hf { inner, .. } => {
                let mut ids = hf_ids(inner, text, true)?;
                let is_doubled = |bos| ids.starts_with(&[bos, bos]) && text.starts_with(&*self.spelled(bos));
                if self.bos.is_some_and(is_doubled) {
                    ids.remove(0);
                }
                ids
            }
            Scheme::Words(words) => {
                let mut ids = vec![words::BOS_ID];
                if !text.is_empty() && !text.starts_with(' ') {
                    ids.extend(words.encode(&format!(" {text}")));
                } else {
                    ids.extend(words.encode(text));
                }
                ids
            }
        };
        self.checked(ids)
    }

    /// Ids of a conversation in the model's own form ([`ChatTemplate`](super::ChatTemplate)), which spells its special
    /// tokens itself, BOS among them: nothing is added.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub fn encode_rendered(&self, text: &str) -> Result<Vec<u32>> {
        let ids = match &self.scheme {
            Scheme::Hf { inner, .. } => hf_ids(inner, text, false)?,
            Scheme::Words(words) => match text.strip_prefix(words::BOS) {
                Some(rest) => [&[words::BOS_ID], &words.encode(rest)[..]].concat(),
                None => words.encode(text),
            },
        };
        self.checked(ids)
    }

    /// The first word of a text that a word list does not know and would spell letter by letter, which its model makes
    /// nothing of. Other tokenizers know every word.
    pub fn unknown_word<'a>(&self, text: &'a str) -> Option<&'a str> {
        let Scheme::Words(words) = &self.scheme else { return None };
        words.unknown(text)
    }

    /// Ids of a text that goes on where another ended: no BOS, and no space that the text does not have. Where the text
    /// begins with a space, the ids of both parts are those of the whole.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub fn encode_continuation(&self, text: &str) -> Result<Vec<u32>> {
        /// Put before the text to take the tokenizer's own space; it joins no word.
        const STOP: &str = "\n";
        let ids = match &self.scheme {
            Scheme::Hf { inner, prefixes_space: false } => hf_ids(inner, text, false)?,
            Scheme::Hf { inner, .. } => {
                let stop = hf_ids(inner, STOP, false)?;
                let mut ids = hf_ids(inner, &format!("{STOP}{text}"), false)?;
                if ids.starts_with(&stop) { ids.split_off(stop.len()) } else { hf_ids(inner, text, false)? }
            }
            Scheme::Words(words) => words.encode(text),
        };
        self.checked(ids)
    }

    fn checked(&self, ids: Vec<u32>) -> Result<Vec<u32>> {
        match ids.iter().find(|id| **id as usize >= self.pieces.len()) {
            None => Ok(ids),
            Some(id) => Err(Error::Encode(format!(
                "tokenizer.json makes id {id}, the model's vocabulary has {}",
                self.pieces.len()
            ))),
        }
    }

    /// The bytes of one token, its leading space included; a special token's own spelling; nothing for an id that no
    /// token has.
    pub fn piece(&self, id: u32) -> Piece {
        self.pieces.get(id as usize).cloned().unwrap_or_default()
    }

    fn spelled(&self, id: u32) -> String {
        self.piece(id).lossy().into_owned()
    }

    /// The text of a run of tokens: their bytes in a row, special tokens left out, invalid UTF-8 replaced.
    pub fn text(&self, ids: &[u32]) -> String {
        let bytes: Vec<u8> = ids
            .iter()
            .filter(|id| !self.is_special(**id))
            .filter_map(|id| self.pieces.get(*id as usize))
            .flat_map(|piece| piece.0.iter().copied())
            .collect();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Whether a token is a control token, no part of a text.
    pub fn is_special(&self, id: u32) -> bool {
        self.special.binary_search(&id).is_ok()
    }

    /// Rows of the embedding that no token has, ascending: never to be drawn.
    pub fn unused(&self) -> &[u32] {
        &self.unused
    }

    /// Token that begins a sequence.
    pub const fn bos(&self) -> Option<u32> {
        self.bos
    }

    /// Tokens that end one, ascending.
    pub fn eos(&self) -> &[u32] {
        &self.eos
    }

    /// Rows of the model's embedding.
    pub fn vocab_size(&self) -> usize {
        self.pieces.len()
    }
}

/// The parts of a `tokenizer.json` that are read here too.
#[derive(Deserialize)]
struct Parts {
    normalizer: Option<Value>,
    decoder: Option<Value>,
}

/// Whether a normalizer carries SentencePiece's binary table, which the crate indexes without checks.
fn has_precompiled(normalizer: &Value) -> bool {
    let nested = normalizer["normalizers"].as_array();
    normalizer["type"] == "Precompiled"
        || normalizer.get("precompiled_charsmap").is_some()
        || nested.is_some_and(|parts| parts.iter().any(has_precompiled))
}

fn parse(json: &[u8]) -> std::result::Result<tokenizers::Tokenizer, String> {
    caught(|| tokenizers::Tokenizer::from_bytes(json))
}

fn hf_ids(inner: &tokenizers::Tokenizer, text: &str, special: bool) -> Result<Vec<u32>> {
    caught(|| inner.encode_fast(text, special))
        .map(|encoding| encoding.get_ids().to_vec())
        .map_err(|error| Error::Encode(quoted(&error, MOST_REASON_CHARS)))
}

thread_local! {
    /// Whether a panic on this thread would be a file's fault, and become an [`Error`].
    static CAUGHT: Cell<bool> = const { Cell::new(false) };
}

/// Whether a panic on this thread is being turned into an error: a panic hook has nothing to tell then.
pub fn catches_panics() -> bool {
    CAUGHT.get()
}

/// The crate panics on some malformed files where it should refuse them, when it reads them or when it first uses them;
/// either way the file is at fault. It keeps nothing half done: its caches are only written whole.
fn caught<T>(call: impl FnOnce() -> tokenizers::Result<T>) -> std::result::Result<T, String> {
    unwinding(call).map_err(|_| "malformed".to_owned())?.map_err(|error| error.to_string())
}

/// Calls what may panic on malformed files where it should refuse them, and hands the panic back untold.
pub(super) fn unwinding<T>(call: impl FnOnce() -> T) -> std::thread::Result<T> {
    CAUGHT.set(true);
    let outcome = catch_unwind(AssertUnwindSafe(call));
    CAUGHT.set(false);
    outcome
}

fn unused(used: &[bool]) -> Vec<u32> {
    (0u32..).zip(used).filter(|(_, used)| !**used).map(|(id, _)| id).collect()
}

/// How a vocabulary spells bytes, read from the `decoder` of a `tokenizer.json`.
#[derive(Debug, Default, PartialEq)]
struct Spelling {
    /// Byte-level BPE: each char stands for one byte.
    byte_level: bool,
    /// `<0xNN>` stands for a byte.
    byte_fallback: bool,
    /// Texts that stand for others, in order: `▁` for a space.
    replaced: Vec<(String, String)>,
}

impl Spelling {
    fn of(decoder: &Value) -> Self {
        let mut spelling = Self::default();
        spelling.add(decoder);
        spelling
    }

    /// Recursion is bounded: the JSON reader stops at a depth of 128.
    fn add(&mut self, decoder: &Value) {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        match decoder["type"].as_str() {
            Some("Sequence") => {
                decoder["decoders"].as_array().into_iter().flatten().for_each(|part| self.add(part));
            }
            Some("ByteLevel") => self.byte_level = true,
            Some("ByteFallback") => self.byte_fallback = true,
            Some("Metaspace") => self.replaced.push((text(&decoder["replacement"]), " ".into())),
            Some("Replace") => {
                // A regular expression stands for no fixed text; no known tokenizer decodes with one.
                let pattern = text(&decoder["pattern"]["String"]);
                if !pattern.is_empty() {
                    self.replaced.push((pattern, text(&decoder["content"])));
                }
            }
            _ => {}
        }
    }

    fn bytes(&self, token: &str) -> Vec<u8> {
        if self.byte_fallback
            && let Some(byte) = words::byte_of(token)
        {
            return vec![byte];
        }
        let text = self
            .replaced
            .iter()
            .fold(token.to_owned(), |text, (from, to)| text.replace(from.as_str(), to.as_str()));
        if self.byte_level { byte_level(&text) } else { text.into_bytes() }
    }
}

/// GPT-2's alphabet: printable Latin-1 stands for itself, the 68 other bytes for U+0100 onwards, in order. A char outside
/// it stands for its own UTF-8.
fn byte_level(token: &str) -> Vec<u8> {
    let own = |byte: u8| matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
    let mut bytes = Vec::with_capacity(token.len());
    for c in token.chars() {
        let code = c as u32;
        let shifted = code.checked_sub(0x100);
        match (u8::try_from(code), shifted) {
            (Ok(byte), _) if own(byte) => bytes.push(byte),
            (_, Some(n @ 0..68)) => bytes.extend((0..=255).filter(|byte| !own(*byte)).nth(n as usize)),
            _ => bytes.extend(c.encode_utf8(&mut [0; 4]).as_bytes()),
        }
    }
    bytes
}

#[cfg(test)]
mod goldens;
#[cfg(test)]
pub(super) mod tests;
