//! GGUF: one file with metadata, vocabulary and weights (the specification is ggml's `docs/gguf.md`).
//!
//! The header is read by a reader of its own, over the mapped file: every count, length, dimension and offset is held
//! against the bytes that are there before anything is allocated for it. Arrays stay where they are and are decoded when
//! asked for, so a header costs memory by its names alone.

mod config;
#[cfg(test)]
mod families;
#[cfg(test)]
mod parity;
mod read;
mod source;

use std::collections::BTreeMap;
use std::ops::Range;

use candle_core::quantized::GgmlDType;

use super::error::quoted;
use super::{Error, Result};

use read::Reader;
pub(super) use source::Gguf;

/// `GGUF` in the order of the bytes.
const MAGIC: &[u8; 4] = b"GGUF";
/// Most metadata entries; real files have about fifty.
const MAX_ENTRIES: u64 = 1 << 16;
/// Most tensors; the largest models known have a few thousand.
const MAX_TENSORS: u64 = 1 << 17;
/// Longest key of the metadata, as the specification has it.
const MAX_KEY_BYTES: u64 = (1 << 16) - 1;
/// Longest name of a tensor; the specification says 64.
const MAX_NAME_BYTES: u64 = 256;
/// Most dimensions of a tensor.
const MAX_DIMENSIONS: u32 = 4;
/// Where `general.alignment` is not given.
const USUAL_ALIGNMENT: u64 = 32;
/// Largest alignment taken; larger ones only hide data.
const MAX_ALIGNMENT: u64 = 1 << 20;
/// Longest header; the largest known, with a vocabulary of 262,144 and its merges, has 16 MiB.
const MAX_HEADER_BYTES: usize = 64 << 20;
/// Most of a name that a message quotes.
const MOST_NAME_CHARS: usize = 80;

/// A value of the metadata. Numbers keep their kind, not their width.
#[derive(Clone, Debug, PartialEq)]
enum Value {
    Unsigned(u64),
    Signed(i64),
    Float(f64),
    Bool(bool),
    Text(String),
    Array(Array),
}

/// An array that lies in the header.
#[derive(Clone, Debug, PartialEq)]
struct Array {
    kind: Kind,
    len: usize,
    /// The elements' bytes, from the start of the file.
    at: Range<usize>,
}

/// Type of a value, by the specification's number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    U8,
    I8,
    U16,
    I16,
    U32,
    I32,
    F32,
    Bool,
    Text,
    Array,
    U64,
    I64,
    F64,
}

/// Where a tensor lies, and what of.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct TensorInfo {
    /// Outermost first: `[outputs, inputs]` of a matrix, the reverse of the file's order.
    pub(super) shape: Vec<usize>,
    pub(super) dtype: GgmlDType,
    /// From the start of the file; inside it, and shared with no other tensor.
    pub(super) at: Range<usize>,
}

/// The header of a GGUF file, checked against the file's bytes.
#[derive(Debug)]
pub(super) struct Header {
    path: String,
    entries: BTreeMap<String, Value>,
    tensors: BTreeMap<String, TensorInfo>,
}

impl Header {
    /// Reads the header of a whole file; `path` is only named in errors.
    ///
    /// # Errors
    /// [`Error::Weights`]: not a GGUF file, one of another version or byte order, damaged, or cut short.
    pub(super) fn parse(path: &str, file: &[u8]) -> Result<Self> {
        let header = read::header(file).map_err(|reason| Error::Weights { path: path.into(), reason })?;
        let (entries, tensors) = header;
        Ok(Self { path: path.into(), entries, tensors })
    }

    /// The file's name, as errors show it.
    pub(super) fn path(&self) -> &str {
        &self.path
    }

    /// The tensors by name.
    pub(super) const fn tensors(&self) -> &BTreeMap<String, TensorInfo> {
        &self.tensors
    }

    fn fault(&self, reason: String) -> Error {
        Error::Config { path: self.path.clone(), reason }
    }

    fn wrong(&self, key: &str, what: &str) -> Error {
        let shown = self.entries.get(key).map_or_else(|| "missing".into(), brief);
        self.fault(format!("{key} is {shown}; {what} is expected"))
    }

    /// A text; an error where it is of another type.
    pub(super) fn text(&self, key: &str) -> Result<Option<&str>> {
        match self.entries.get(key) {
            None => Ok(None),
            Some(Value::Text(text)) => Ok(Some(text)),
            Some(_) => Err(self.wrong(key, "a text")),
        }
    }

    /// A whole number of at least zero, of any width.
    pub(super) fn size(&self, key: &str) -> Result<Option<u64>> {
        match self.entries.get(key) {
            None => Ok(None),
            Some(Value::Unsigned(number)) => Ok(Some(*number)),
            Some(Value::Signed(number)) => {
                u64::try_from(*number).map(Some).map_err(|_| self.wrong(key, "a number of at least 0"))
            }
            Some(_) => Err(self.wrong(key, "a whole number")),
        }
    }

    /// A number, whole or not.
    pub(super) fn number(&self, key: &str) -> Result<Option<f64>> {
        match self.entries.get(key) {
            None => Ok(None),
            Some(Value::Unsigned(number)) => Ok(Some(*number as f64)),
            Some(Value::Signed(number)) => Ok(Some(*number as f64)),
            Some(Value::Float(number)) => Ok(Some(*number)),
            Some(_) => Err(self.wrong(key, "a number")),
        }
    }

    /// True or false.
    pub(super) fn flag(&self, key: &str) -> Result<Option<bool>> {
        match self.entries.get(key) {
            None => Ok(None),
            Some(Value::Bool(flag)) => Ok(Some(*flag)),
            Some(_) => Err(self.wrong(key, "true or false")),
        }
    }

    fn array(&self, key: &str, most: usize) -> Result<Option<&Array>> {
        match self.entries.get(key) {
            None => Ok(None),
            Some(Value::Array(array)) if array.len <= most => Ok(Some(array)),
            Some(Value::Array(array)) => {
                Err(self.fault(format!("{key} has {} elements; at most {most} are supported", array.len)))
            }
            Some(_) => Err(self.wrong(key, "an array")),
        }
    }

    /// An array of at most `most` texts; bytes that are no UTF-8 are replaced.
    pub(super) fn texts(&self, file: &[u8], key: &str, most: usize) -> Result<Option<Vec<String>>> {
        let Some(array) = self.array(key, most)? else { return Ok(None) };
        if array.kind != Kind::Text {
            return Err(self.wrong(key, "an array of texts"));
        }
        let mut reader = Reader::new(&file[array.at.clone()]);
        let texts = (0..array.len)
            .map(|_| reader.text(u64::MAX).map(|text| String::from_utf8_lossy(text).into_owned()));
        texts.collect::<std::result::Result<_, _>>().map(Some).map_err(|reason| self.fault(reason))
    }

    /// An array of at most `most` whole numbers that fit into 32 bits with their sign.
    pub(super) fn whole_numbers(&self, file: &[u8], key: &str, most: usize) -> Result<Option<Vec<i32>>> {
        self.numbers(file, key, most, |value| match value {
            Value::Unsigned(number) => i32::try_from(number).ok(),
            Value::Signed(number) => i32::try_from(number).ok(),
            Value::Bool(flag) => Some(i32::from(flag)),
            _ => None,
        })
    }

    /// An array of at most `most` numbers.
    pub(super) fn floats(&self, file: &[u8], key: &str, most: usize) -> Result<Option<Vec<f32>>> {
        self.numbers(file, key, most, |value| match value {
            Value::Unsigned(number) => Some(number as f32),
            Value::Signed(number) => Some(number as f32),
            Value::Float(number) => Some(number as f32),
            _ => None,
        })
    }

    fn numbers<T>(
        &self,
        file: &[u8],
        key: &str,
        most: usize,
        take: impl Fn(Value) -> Option<T>,
    ) -> Result<Option<Vec<T>>> {
        let Some(array) = self.array(key, most)? else { return Ok(None) };
        let mut reader = Reader::new(&file[array.at.clone()]);
        let numbers = (0..array.len).map(|_| reader.scalar(array.kind).ok().and_then(&take));
        numbers.collect::<Option<Vec<T>>>().map(Some).ok_or_else(|| self.wrong(key, "an array of numbers"))
    }
}

/// A value as a message may show it.
fn brief(value: &Value) -> String {
    match value {
        Value::Unsigned(number) => number.to_string(),
        Value::Signed(number) => number.to_string(),
        Value::Float(number) => number.to_string(),
        Value::Bool(flag) => flag.to_string(),
        Value::Text(text) => format!("\"{}\"", quoted(text, MOST_NAME_CHARS)),
        Value::Array(array) => format!("an array of {}", array.len),
    }
}

#[cfg(test)]
pub(super) mod tests;
