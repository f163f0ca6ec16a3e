//! `model.safetensors.index.json`: which file of several each tensor is in.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde::Deserialize;
use serde::de::{Error as _, MapAccess, Visitor};

use super::error::{MOST_REASON_CHARS, quoted};
use super::{Error, Result, read};

/// Largest index read; that of a model with a hundred thousand tensors has 10 MB.
const MAX_INDEX_BYTES: u64 = 32 << 20;
/// Most files; the largest models known have a few hundred.
const MAX_FILES: usize = 4096;
/// Longest name of a file.
const MAX_NAME_BYTES: usize = 200;

/// Tensor to file, every file's name a name in the index's own folder.
pub(super) type Map = BTreeMap<String, String>;

#[derive(Deserialize)]
struct Index {
    weight_map: Entries,
}

/// The entries of an object whose keys are there once.
struct Entries(Map);

impl<'de> Deserialize<'de> for Entries {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct Once;
        impl<'de> Visitor<'de> for Once {
            type Value = Entries;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an object of tensors and files")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut from: A) -> std::result::Result<Entries, A::Error> {
                let mut map = Map::new();
                while let Some((tensor, file)) = from.next_entry::<String, String>()? {
                    match map.insert(tensor, file) {
                        None => {}
                        Some(other) => {
                            return Err(A::Error::custom(format!(
                                "a tensor is named twice, once in {other}"
                            )));
                        }
                    }
                }
                Ok(Entries(map))
            }
        }
        deserializer.deserialize_map(Once)
    }
}

/// Reads an index.
///
/// # Errors
/// A file that is not there, [`Error::Weights`] for one that is no index or names files outside its folder.
pub(super) fn index(path: &Path) -> Result<Map> {
    let json = read(path, MAX_INDEX_BYTES)?;
    parse(&json).map_err(|reason| Error::Weights { path: path.display().to_string(), reason })
}

fn parse(json: &[u8]) -> std::result::Result<Map, String> {
    let Index { weight_map: Entries(map) } = serde_json::from_slice(json)
        .map_err(|error| format!("no usable index: {}", quoted(&error.to_string(), MOST_REASON_CHARS)))?;
    let files = names(&map);
    if files.is_empty() || files.len() > MAX_FILES {
        return Err(format!("it names {} files; 1 to {MAX_FILES} are supported", files.len()));
    }
    match files.iter().find(|name| !is_inside(name)) {
        None => Ok(map),
        Some(name) => Err(format!(
            "it names the file \"{}\"; only names ending in .safetensors in its own folder are taken",
            quoted(name, 80)
        )),
    }
}

fn names(map: &Map) -> BTreeSet<&str> {
    map.values().map(String::as_str).collect()
}

/// Whether a name stays in its folder, whatever the folder is.
fn is_inside(name: &str) -> bool {
    name.len() <= MAX_NAME_BYTES
        && !name.starts_with('.')
        && !name.contains(|c: char| matches!(c, '/' | '\\' | ':') || c.is_control())
        && Path::new(name).extension().is_some_and(|extension| extension == "safetensors")
}

/// The files of an index, in order.
///
/// # Errors
/// As [`index`].
pub(super) fn files(path: &Path) -> Result<Vec<String>> {
    Ok(names(&index(path)?).into_iter().map(ToOwned::to_owned).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_files_of_an_index_are_listed_once() {
        let json = br#"{"metadata": {"total_size": 9}, "weight_map": {"b": "m-2.safetensors", "a": "m-1.safetensors", "c": "m-2.safetensors"}}"#;
        let map = parse(json).unwrap();
        assert_eq!(names(&map).into_iter().collect::<Vec<_>>(), ["m-1.safetensors", "m-2.safetensors"]);
        assert_eq!(map["c"], "m-2.safetensors");
    }

    #[test]
    fn names_that_leave_the_folder_are_refused() {
        for name in [
            "../m.safetensors",
            "/m.safetensors",
            "a/m.safetensors",
            "..\\\\m.safetensors",
            "c:m.safetensors",
            ".safetensors",
            "m.bin",
            "",
            "a\\u001b[2J.safetensors",
        ] {
            let json = format!(r#"{{"weight_map": {{"a": "{name}"}}}}"#);
            let reason = parse(json.as_bytes()).unwrap_err();
            assert!(
                reason.contains("it names the file") && !reason.contains(char::is_control),
                "{name}: {reason}"
            );
        }
    }

    #[test]
    fn what_is_no_index_is_refused() {
        for (json, expected) in [
            ("[]", "no usable index"),
            ("{}", "weight_map"),
            (r#"{"weight_map": {}}"#, "it names 0 files"),
            (r#"{"weight_map": {"a": 1}}"#, "no usable index"),
            (r#"{"weight_map": {"a": "b.safetensors", "a": "c.safetensors"}}"#, "named twice"),
        ] {
            let reason = parse(json.as_bytes()).unwrap_err();
            assert!(reason.contains(expected), "{json}: {reason}");
        }
    }
}
