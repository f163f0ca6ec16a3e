//! What can go wrong with a model: bad input (the files), or the arithmetic itself.

use thiserror::Error as ThisError;

/// Why a model could not be loaded or run. Each message is one line: where, what, what would be right.
#[derive(Debug, ThisError)]
#[non_exhaustive]
pub enum Error {
    /// The model path does not exist.
    #[error(
        "{path}: no such folder or file; give a folder with config.json, model.safetensors and tokenizer.json, a .gguf file, \
         or a name on the hub: ORG/NAME"
    )]
    NoModel {
        /// As given.
        path: String,
    },
    /// The model path is a file of another kind.
    #[error(
        "{path}: not a folder; give the folder that holds config.json, model.safetensors and tokenizer.json, or a .gguf file"
    )]
    NotAModel {
        /// As given.
        path: String,
    },
    /// A part of the model is not there, or is not a regular file.
    #[error("{path}: no such file; a model needs config.json, model.safetensors and tokenizer.json")]
    NoFile {
        /// The missing file.
        path: String,
    },
    /// A model could not be fetched.
    #[error("{name}: {reason}")]
    Hub {
        /// The model's name on the hub.
        name: String,
        /// Why, and what to do.
        reason: String,
    },
    /// Loading was ended by the one who watched it.
    #[error("loading was stopped; what was fetched stays, and the next run goes on from there")]
    Stopped,
    /// The operating system could not read a file.
    #[error("{path}: {source}")]
    Read {
        /// Which file.
        path: String,
        /// What it said.
        source: std::io::Error,
    },
    /// A file is longer than any real one of its kind.
    #[error("{path}: longer than {limit_bytes} bytes, which no such file should be")]
    TooLong {
        /// Which file.
        path: String,
        /// The limit.
        limit_bytes: u64,
    },
    /// A configuration is malformed, or asks for something this build does not do.
    #[error("{path}: {reason}")]
    Config {
        /// Which file.
        path: String,
        /// Field, value, and what is supported.
        reason: String,
    },
    /// The weights file is damaged, or does not fit the configuration.
    #[error("{path}: {reason}")]
    Weights {
        /// Which file.
        path: String,
        /// Tensor, what was found, what was expected.
        reason: String,
    },
    /// The weights would not fit into memory.
    #[error(
        "{path}: its weights need {:.1} GB of memory, {:.1} GB is free; choose a smaller model, or a smaller type with --weights",
        *.needed_bytes as f64 / 1e9, *.free_bytes as f64 / 1e9
    )]
    Memory {
        /// Which file.
        path: String,
        /// Bytes that have to be in memory, and cannot stay in the file.
        needed_bytes: u64,
        /// What the operating system could still give.
        free_bytes: u64,
    },
    /// The tokenizer cannot be built.
    #[error("{path}: {reason}")]
    Tokenizer {
        /// Which file.
        path: String,
        /// Why.
        reason: String,
    },
    /// A conversation cannot be put into the model's own form; the whole line.
    #[error("{0}")]
    Chat(String),
    /// A text cannot be turned into ids.
    #[error("the text cannot be encoded: {0}")]
    Encode(String),
    /// An id that the model has no row for.
    #[error("token id {id} is outside the model's vocabulary of {vocab}")]
    Id {
        /// The id.
        id: u32,
        /// Rows in the embedding.
        vocab: usize,
    },
    /// No token can be drawn: no logit is a finite number.
    #[error("no token can be drawn: none of the {0} logits is finite; the weights may be damaged")]
    NoFiniteLogit(usize),
    /// The tensor library failed: a fault of this program or of a device, not of the input.
    #[error("tensor arithmetic failed: {}", quoted(&.0.to_string(), MOST_REASON_CHARS))]
    Tensor(#[from] candle_core::Error),
}

/// A text from a file as a message may show it: one line, no control characters, at most `most_chars` of it.
pub(super) fn quoted(text: &str, most_chars: usize) -> String {
    let mut chars = text.chars().map(|c| if c.is_control() { ' ' } else { c });
    let mut line: String = chars.by_ref().take(most_chars).collect();
    if chars.next().is_some() {
        line.push('…');
    }
    line
}

/// Most of another library's message that is passed on: it may quote the file.
pub(super) const MOST_REASON_CHARS: usize = 200;

impl Error {
    /// Whether the input is at fault (exit code 2), rather than this program (3).
    pub const fn is_bad_input(&self) -> bool {
        !matches!(self, Self::Tensor(_))
    }

    /// Whether a device had no room for what it was given.
    pub fn is_out_of_memory(&self) -> bool {
        matches!(self, Self::Tensor(error) if error.to_string().to_lowercase().replace('_', " ").contains("out of memory"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_device_is_told_from_a_fault() {
        let tensor = |text: &str| Error::Tensor(candle_core::Error::Msg(text.into()));
        let full = tensor("DriverError(CUDA_ERROR_OUT_OF_MEMORY, \"out of memory\")\n   0: a backtrace");
        assert!(full.is_out_of_memory() && !full.to_string().contains('\n'), "{full}");
        assert!(!tensor("shape mismatch").is_out_of_memory());
    }

    #[test]
    fn what_a_file_says_stays_on_its_line() {
        assert_eq!(quoted("a\n\u{1b}[2J\u{9b}b", 20), "a  [2J b");
        assert_eq!(quoted("äbc", 2), "äb…");
        assert_eq!(quoted("äbc", 3), "äbc");
    }
}
