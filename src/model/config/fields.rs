//! Fields of a JSON configuration, each checked as it is read and named in what is refused.

use serde_json::{Map, Value};

use crate::model::error::{MOST_REASON_CHARS, quoted};
use crate::model::{Error, Result};

/// What scales or caps something: outside of these, products leave the range of f32.
const FACTORS: std::ops::RangeInclusive<f64> = 1e-6..=1e9;
const OF_FACTORS: &str = "from 1e-6 to 1e9";

/// An object of a configuration, and the file it came from.
pub(in crate::model) struct Fields<'a> {
    path: &'a str,
    map: Map<String, Value>,
    /// What stands before a field's name in messages: `text_config.`, or nothing.
    within: String,
}

impl<'a> Fields<'a> {
    pub(in crate::model) fn parse(path: &'a str, json: &[u8]) -> Result<Self> {
        let fault = |reason| Error::Config { path: path.into(), reason };
        match serde_json::from_slice(&finite(json)) {
            Ok(Value::Object(map)) => Ok(Self { path, map, within: String::new() }),
            Ok(_) => Err(fault("not a JSON object".into())),
            Err(error) => {
                Err(fault(format!("not valid JSON: {}", quoted(&error.to_string(), MOST_REASON_CHARS))))
            }
        }
    }

    /// The object that a field holds, if it is there and not null.
    pub(in crate::model) fn object(&self, field: &str) -> Result<Option<Self>> {
        match self.get(field) {
            None => Ok(None),
            Some(Value::Object(map)) => Ok(Some(Self {
                path: self.path,
                map: map.clone(),
                within: format!("{}{field}.", self.within),
            })),
            Some(value) => Err(self.error(format!("{field} {} is not an object", brief(value)))),
        }
    }

    pub(in crate::model) fn error(&self, reason: impl AsRef<str>) -> Error {
        Error::Config { path: self.path.into(), reason: format!("{}{}", self.within, reason.as_ref()) }
    }

    /// A field whose value this build cannot use, and what it can.
    pub(super) fn unsupported(&self, field: &str, value: &Value, supported: &str) -> Error {
        self.error(format!("{field} {} is not supported; {supported}", brief(value)))
    }

    /// A field that is there and not null.
    pub(in crate::model) fn get(&self, field: &str) -> Option<&Value> {
        self.map.get(field).filter(|value| !value.is_null())
    }

    /// Whether a field is there, be it null.
    pub(super) fn has(&self, field: &str) -> bool {
        self.map.contains_key(field)
    }

    pub(in crate::model) fn text(&self, field: &str) -> Option<&str> {
        self.get(field).and_then(Value::as_str)
    }

    /// A size between 1 and `most`. Integral floats are taken (some writers produce them).
    pub(in crate::model) fn size(&self, field: &str, default: Option<usize>, most: u64) -> Result<usize> {
        self.optional_size(field, most)?.or(default).ok_or_else(|| self.error(format!("{field} is missing")))
    }

    /// The same where there need be none.
    pub(in crate::model) fn optional_size(&self, field: &str, most: u64) -> Result<Option<usize>> {
        let Some(value) = self.get(field) else { return Ok(None) };
        integer(value)
            .filter(|size| (1..=most).contains(size))
            .map(|size| Some(size as usize))
            .ok_or_else(|| self.error(format!("{field} {} is not an integer from 1 to {most}", brief(value))))
    }

    pub(super) fn number(&self, field: &str, default: f64) -> Result<f64> {
        Ok(self.optional_number(field)?.unwrap_or(default))
    }

    pub(super) fn optional_number(&self, field: &str) -> Result<Option<f64>> {
        self.get(field).map_or(Ok(None), |value| match value.as_f64() {
            Some(number) => Ok(Some(number)),
            None => Err(self.error(format!("{field} {} is not a number", brief(value)))),
        })
    }

    /// A factor, where there is one.
    pub(super) fn factor(&self, field: &str) -> Result<Option<f64>> {
        match (self.optional_number(field)?, self.get(field)) {
            (Some(number), Some(value)) if !FACTORS.contains(&number) => {
                Err(self.error(format!("{field} {} is not a number {OF_FACTORS}", brief(value))))
            }
            (number, _) => Ok(number),
        }
    }

    pub(super) fn flag(&self, field: &str, default: bool) -> Result<bool> {
        match self.get(field) {
            None => Ok(default),
            Some(Value::Bool(flag)) => Ok(*flag),
            Some(value) => Err(self.error(format!("{field} {} is not true or false", brief(value)))),
        }
    }

    /// A list of exactly `len` factors.
    pub(super) fn factors(&self, field: &str, len: usize) -> Result<Vec<f64>> {
        let value = self.get(field).ok_or_else(|| self.error(format!("{field} is missing")))?;
        let numbers: Option<Vec<f64>> = value
            .as_array()
            .filter(|list| list.len() == len)
            .and_then(|list| list.iter().map(|v| v.as_f64().filter(|x| FACTORS.contains(x))).collect());
        numbers.ok_or_else(|| {
            self.error(format!("{field} {} is not a list of {len} numbers {OF_FACTORS}", brief(value)))
        })
    }

    /// One id, a list of them, or none; ascending.
    pub(super) fn ids(&self, field: &str) -> Result<Vec<u32>> {
        let values = match self.get(field) {
            None => &[],
            Some(Value::Array(values)) => values.as_slice(),
            Some(value) => std::slice::from_ref(value),
        };
        let mut ids = values
            .iter()
            .map(|value| {
                integer(value)
                    .and_then(|id| u32::try_from(id).ok())
                    .ok_or_else(|| self.error(format!("{field} {} is not a token id", brief(value))))
            })
            .collect::<Result<Vec<_>>>()?;
        ids.sort_unstable();
        ids.dedup();
        Ok(ids)
    }
}

pub(super) fn integer(value: &Value) -> Option<u64> {
    value
        .as_u64()
        .or_else(|| value.as_f64().filter(|x| x.fract() == 0.0 && (0.0..9e15).contains(x)).map(|x| x as u64))
}

/// A value as a message shows it: a hostile file must not fill the line.
pub(super) fn brief(value: &Value) -> String {
    const MOST_CHARS: usize = 60;
    match value {
        // Only their size: printing a large one costs more than the message is worth.
        Value::Array(values) => format!("[list of {}]", values.len()),
        Value::Object(map) => format!("{{object of {}}}", map.len()),
        scalar => quoted(&scalar.to_string(), MOST_CHARS),
    }
}

/// The text with Python's `Infinity` and `NaN`, which JSON does not have, as `null`.
fn finite(json: &[u8]) -> Vec<u8> {
    const WORDS: [&[u8]; 3] = [b"-Infinity", b"Infinity", b"NaN"];
    let mut out = Vec::with_capacity(json.len());
    let (mut quoted, mut escaped) = (false, false);
    let mut rest = json;
    while let [byte, after @ ..] = rest {
        if let Some(word) = WORDS.iter().find(|word| !quoted && rest.starts_with(word)) {
            out.extend_from_slice(b"null");
            rest = &rest[word.len()..];
            continue;
        }
        quoted ^= *byte == b'"' && !escaped;
        escaped = quoted && *byte == b'\\' && !escaped;
        out.push(*byte);
        rest = after;
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pythons_numbers_are_read_over() {
        let text = br#"{"a\\": "-Infinity\" NaN", "b": [-Infinity, Infinity, NaN], "c": 1}"#;
        let value: Value = serde_json::from_slice(&finite(text)).unwrap();
        assert_eq!(value["a\\"], "-Infinity\" NaN");
        assert_eq!(
            (&value["b"], &value["c"]),
            (&serde_json::json!([null, null, null]), &serde_json::json!(1))
        );
    }
}
