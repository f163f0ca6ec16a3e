//! `model.safetensors.index.json`: which file of several each tensor is in.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;

use serde::Deserialize;
use serde::de::{Error as _, MapAccess, Visitor};

use super::error::{MOST_REASON_CHARS, quoted};
use super::matrix::Matrix;
use super::weights::{EMBEDDING, Safetensors, Source};
use super::{Error, Result, read};

/// Largest index read; that of a model with a hundred thousand tensors has 10 MB.
const MAX_INDEX_BYTES: u64 = 32 << 20;
/// Most files; the largest models known have a few hundred.
const MAX_FILES: usize = 4096;
/// Most of a tensor's name that a message quotes.
const MOST_NAME_CHARS: usize = 80;
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

/// Tensors in several files.
#[derive(Debug)]
pub(super) struct Sharded {
    path: String,
    files: Vec<Safetensors>,
    /// Tensor to the file it is in.
    homes: HashMap<String, usize>,
}

impl Sharded {
    /// Opens all files of an index, and holds what it says against what they have.
    pub(super) fn open(path: &Path) -> Result<Self> {
        let map = index(path)?;
        let fault = |reason| Error::Weights { path: path.display().to_string(), reason };
        let names: Vec<&str> = names(&map).into_iter().collect();
        let mut files = Vec::with_capacity(names.len());
        let mut homes: HashMap<String, usize> = HashMap::new();
        for (at, name) in names.iter().enumerate() {
            let file = path.with_file_name(name);
            let file = Safetensors::open(file.display().to_string(), super::map(&file)?)?;
            for tensor in file.names() {
                if let Some(other) = homes.insert(tensor.clone(), at) {
                    let tensor = quoted(&tensor, MOST_NAME_CHARS);
                    return Err(fault(format!(
                        "tensor {tensor} is both in {} and in {name}; fetch the model again",
                        names[other]
                    )));
                }
            }
            files.push(file);
        }
        // What a file has beside the index's tensors is as good as not there.
        homes.retain(|tensor, _| map.contains_key(tensor));
        for (tensor, name) in &map {
            let shown = quoted(tensor, MOST_NAME_CHARS);
            match homes.get(tensor) {
                Some(home) if names[*home] == name => {}
                Some(home) => {
                    return Err(fault(format!(
                        "it names {name} for tensor {shown}, which is in {}",
                        names[*home]
                    )));
                }
                None => {
                    return Err(fault(format!(
                        "it names {name} for tensor {shown}, which is not in it; fetch the model again"
                    )));
                }
            }
        }
        Ok(Self { path: path.display().to_string(), files, homes })
    }

    fn file(&self, name: &str, shape: &[usize]) -> Result<usize> {
        self.homes.get(name).copied().ok_or_else(|| Error::Weights {
            path: self.path.clone(),
            reason: format!("tensor {name} is missing; config.json asks for {shape:?}"),
        })
    }
}

impl Source for Sharded {
    fn check(&self, name: &str, shape: &[usize]) -> Result<()> {
        self.files[self.file(name, shape)?].check(name, shape)
    }

    fn matrix(&mut self, name: &str, shape: [usize; 2]) -> Result<Matrix> {
        let file = self.file(name, &shape)?;
        self.files[file].matrix(name, shape)
    }

    fn vector(&mut self, name: &str, len: usize) -> Result<Vec<f32>> {
        let file = self.file(name, &[len])?;
        self.files[file].vector(name, len)
    }

    fn dtype(&self) -> String {
        self.homes.get(EMBEDDING).map_or_else(String::new, |&file| self.files[file].dtype())
    }

    fn bytes(&self) -> u64 {
        self.files.iter().map(Source::bytes).sum()
    }
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

    /// A safetensors file of f32 tensors, each of one element.
    fn shard(names: &[&str]) -> Vec<u8> {
        let entries: Vec<String> = names
            .iter()
            .enumerate()
            .map(|(i, name)| {
                format!(r#""{name}":{{"dtype":"F32","shape":[1],"data_offsets":[{},{}]}}"#, 4 * i, 4 * i + 4)
            })
            .collect();
        let header = format!("{{{}}}", entries.join(","));
        let numbers: Vec<u8> = (0..names.len()).flat_map(|i| (i as f32 + 1.0).to_le_bytes()).collect();
        [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &numbers].concat()
    }

    fn open(index: &str, shards: &[(&str, &[&str])]) -> std::result::Result<Sharded, String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("i.json");
        std::fs::write(&path, index).unwrap();
        for (file, names) in shards {
            std::fs::write(dir.path().join(file), shard(names)).unwrap();
        }
        Sharded::open(&path).map_err(|error| error.to_string())
    }

    #[test]
    fn tensors_come_from_the_file_they_are_in() {
        let index = r#"{"weight_map": {"a": "1.safetensors", "b": "2.safetensors", "c": "2.safetensors"}}"#;
        let shards = [("1.safetensors", &["a"][..]), ("2.safetensors", &["b", "c", "beside"])];
        let mut source = open(index, &shards).unwrap();
        let mut one = |name| source.vector(name, 1).unwrap()[0];
        assert_eq!((one("a"), one("b"), one("c")), (1.0, 1.0, 2.0));
        assert_eq!(source.bytes(), 16);
        for name in ["beside", "d"] {
            let text = source.vector(name, 1).unwrap_err().to_string();
            assert!(text.contains(&format!("i.json: tensor {name} is missing")), "{text}");
        }
        assert!(
            source
                .check("a", &[2])
                .unwrap_err()
                .to_string()
                .contains("1.safetensors: tensor a has shape [1]")
        );
    }

    #[test]
    fn an_index_that_its_files_do_not_bear_out_is_refused() {
        let index = r#"{"weight_map": {"a": "1.safetensors", "b": "2.safetensors"}}"#;
        for (shards, expected) in [
            (vec![("1.safetensors", &["a"][..])], "2.safetensors: no such file"),
            (
                vec![("1.safetensors", &["a"]), ("2.safetensors", &["c"])],
                "names 2.safetensors for tensor b, which is not in it",
            ),
            (
                vec![("1.safetensors", &["a", "b"]), ("2.safetensors", &["b"])],
                "tensor b is both in 1.safetensors and in 2.safetensors",
            ),
            (
                vec![("1.safetensors", &["b"]), ("2.safetensors", &["a"])],
                "names 1.safetensors for tensor a, which is in 2.safetensors",
            ),
        ] {
            let text = open(index, &shards).unwrap_err();
            assert!(text.contains(expected), "{text}");
        }
    }
}
