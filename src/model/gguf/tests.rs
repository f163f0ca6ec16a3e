use proptest::prelude::*;

use super::*;

/// A GGUF file in the making, field by field, so that each can be wrong.
#[derive(Clone)]
pub(crate) struct Draft {
    pub(crate) magic: [u8; 4],
    pub(crate) version: u32,
    /// Key, number of the type, bytes of the value.
    pub(crate) entries: Vec<(String, u32, Vec<u8>)>,
    pub(crate) tensors: Vec<DraftTensor>,
    /// Added to the counts that the header claims: (tensors, entries).
    pub(crate) lies: (u64, u64),
}

#[derive(Clone)]
pub(crate) struct DraftTensor {
    pub(crate) name: String,
    /// As the file has them: innermost first.
    pub(crate) dimensions: Vec<u64>,
    pub(crate) dtype: u32,
    pub(crate) offset: u64,
    pub(crate) bytes: Vec<u8>,
}

pub(crate) fn text(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat()
}

pub(crate) fn texts(texts: &[&str]) -> Vec<u8> {
    let mut bytes = [&8u32.to_le_bytes()[..], &(texts.len() as u64).to_le_bytes()].concat();
    for one in texts {
        bytes.extend(text(one));
    }
    bytes
}

impl Draft {
    /// Two tensors of four f32, and a text.
    fn small() -> Self {
        let tensor = |name: &str, offset| DraftTensor {
            name: name.into(),
            dimensions: vec![2, 2],
            dtype: 0,
            offset,
            bytes: vec![0; 16],
        };
        Self {
            magic: *MAGIC,
            version: 3,
            entries: vec![("general.architecture".into(), 8, text("llama"))],
            tensors: vec![tensor("a", 0), tensor("b", 32)],
            lies: (0, 0),
        }
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut out = self.magic.to_vec();
        out.extend(self.version.to_le_bytes());
        out.extend((self.tensors.len() as u64).wrapping_add(self.lies.0).to_le_bytes());
        out.extend((self.entries.len() as u64).wrapping_add(self.lies.1).to_le_bytes());
        for (key, kind, value) in &self.entries {
            out.extend(text(key));
            out.extend(kind.to_le_bytes());
            out.extend(value);
        }
        for tensor in &self.tensors {
            out.extend(text(&tensor.name));
            out.extend((tensor.dimensions.len() as u32).to_le_bytes());
            for n in &tensor.dimensions {
                out.extend(n.to_le_bytes());
            }
            out.extend(tensor.dtype.to_le_bytes());
            out.extend(tensor.offset.to_le_bytes());
        }
        out.resize(out.len().next_multiple_of(32), 0);
        for tensor in &self.tensors {
            out.extend(&tensor.bytes);
            out.resize(out.len().next_multiple_of(32), 0);
        }
        out
    }

    fn refusal(&self) -> String {
        refusal(&self.bytes())
    }
}

fn refusal(bytes: &[u8]) -> String {
    let error = Header::parse("f.gguf", bytes).unwrap_err().to_string();
    assert!(error.starts_with("f.gguf: ") && !error.contains(char::is_control), "{error:?}");
    error
}

#[test]
fn a_small_file_is_read() {
    let mut draft = Draft::small();
    let numbers = [&5u32.to_le_bytes()[..], &2u64.to_le_bytes(), &7i32.to_le_bytes(), &(-1i32).to_le_bytes()];
    draft.entries.push(("n".into(), 9, numbers.concat()));
    draft.entries.push(("t".into(), 9, texts(&["é", ""])));
    draft.entries.push(("u".into(), 2, 300u16.to_le_bytes().into()));
    draft.entries.push(("f".into(), 6, 0.5f32.to_le_bytes().into()));
    draft.entries.push(("yes".into(), 7, vec![1]));
    let file = draft.bytes();
    let header = Header::parse("f", &file).unwrap();
    assert_eq!(header.text("general.architecture").unwrap(), Some("llama"));
    assert_eq!(header.texts(&file, "t", 2).unwrap().unwrap(), ["é", ""]);
    assert_eq!(header.whole_numbers(&file, "n", 2).unwrap().unwrap(), [7, -1]);
    assert_eq!(header.floats(&file, "n", 2).unwrap().unwrap(), [7.0, -1.0]);
    assert_eq!((header.size("u").unwrap(), header.number("f").unwrap()), (Some(300), Some(0.5)));
    assert_eq!((header.flag("yes").unwrap(), header.flag("no").unwrap()), (Some(true), None));
    let b = &header.tensors()["b"];
    assert_eq!(
        (b.shape.as_slice(), b.dtype, b.at.clone()),
        (&[2, 2][..], GgmlDType::F32, file.len() - 32..file.len() - 16)
    );

    for (error, expected) in [
        (header.size("t").unwrap_err(), "t is an array of 2; a whole number is expected"),
        (header.text("u").unwrap_err(), "u is 300; a text is expected"),
        (header.flag("f").unwrap_err(), "f is 0.5; true or false is expected"),
        (header.texts(&file, "n", 2).unwrap_err(), "n is an array of 2; an array of texts is expected"),
        (header.texts(&file, "t", 1).unwrap_err(), "t has 2 elements; at most 1 are supported"),
        (header.whole_numbers(&file, "t", 2).unwrap_err(), "an array of numbers is expected"),
    ] {
        assert!(error.to_string().contains(expected), "{error}");
    }
}

#[test]
fn what_is_wrong_is_said() {
    let small = Draft::small();
    let with = |change: &dyn Fn(&mut Draft)| {
        let mut draft = small.clone();
        change(&mut draft);
        draft.refusal()
    };
    for (refusal, expected) in [
        (with(&|d| d.magic = *b"GGML"), "not a GGUF file"),
        (refusal(b"GGUF"), "not a GGUF file"),
        (with(&|d| d.version = 1), "GGUF version 1 is not supported; only 2 and 3"),
        (with(&|d| d.version = 3 << 24), "big-endian"),
        (with(&|d| d.lies.0 = u64::MAX - 5), "tensors; at most"),
        (with(&|d| d.lies.1 = 1 << 40), "metadata entries; at most"),
        (with(&|d| d.lies.1 = 1), "damaged"),
        (with(&|d| d.entries[0].1 = 13), "no type of metadata has the number 13"),
        (
            with(&|d| d.entries[0].2 = u64::MAX.to_le_bytes().into()),
            "general.architecture: truncated or damaged",
        ),
        (with(&|d| d.entries.push(d.entries[0].clone())), "general.architecture is there twice"),
        (with(&|d| d.entries.push(("x".into(), 7, vec![2]))), "2 is neither true nor false"),
        (
            with(&|d| d.entries.push(("x".into(), 9, [9, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0].into()))),
            "arrays of arrays",
        ),
        (
            with(&|d| {
                d.entries.push(("x".into(), 9, [&8u32.to_le_bytes()[..], &u64::MAX.to_le_bytes()].concat()));
            }),
            "truncated or damaged",
        ),
        (
            with(&|d| {
                d.entries.push((
                    "x".into(),
                    9,
                    [&10u32.to_le_bytes()[..], &(1u64 << 61).to_le_bytes()].concat(),
                ));
            }),
            "truncated or damaged",
        ),
        (
            with(&|d| d.entries.push(("general.alignment".into(), 4, 24u32.to_le_bytes().into()))),
            "general.alignment is 24; a power of two",
        ),
        (with(&|d| d.tensors[1].name = "a".into()), "tensor a is there twice"),
        (with(&|d| d.tensors[1].name = "x".repeat(257)), "a name of 257 bytes"),
        (with(&|d| d.tensors[1].dimensions = vec![]), "tensor b has 0 dimensions"),
        (with(&|d| d.tensors[1].dimensions = vec![1; 5]), "tensor b has 5 dimensions"),
        (with(&|d| d.tensors[1].dimensions = vec![u64::MAX, 2]), "no tensor can have the shape"),
        (with(&|d| d.tensors[1].dimensions = vec![1 << 62, 1]), "no tensor can have the shape"),
        (with(&|d| d.tensors[1].dimensions = vec![0, 2]), "no tensor can have the shape"),
        (with(&|d| d.tensors[1].dimensions = vec![1 << 20, 1 << 20]), "truncated: tensor b ends at byte"),
        (with(&|d| d.tensors[1].dtype = 8), "tensor b: rows of 2 are no whole blocks of 32"),
        (with(&|d| d.tensors[1].dtype = 16), "tensor b is of ggml type 16, which is not supported"),
        (with(&|d| d.tensors[1].offset = 16), "tensor b begins at 16, no multiple of 32"),
        (with(&|d| d.tensors[1].offset = 0), "the tensors a and b overlap"),
        (with(&|d| d.tensors[1].offset = u64::MAX - 31), "outside any file"),
        (with(&|d| d.tensors[1].offset = 1 << 40), "truncated: tensor b ends at byte"),
        (
            with(&|d| (d.tensors[1].name, d.tensors[1].offset) = ("\u{1b}[2J".into(), 8)),
            "tensor  [2J begins at 8",
        ),
    ] {
        assert!(refusal.contains(expected), "{refusal} instead of {expected}");
    }
}

#[test]
fn the_stories_files_are_read() {
    let Some(data) = std::env::var_os("KVISTA_TEST_DATA") else {
        eprintln!("skipped: KVISTA_TEST_DATA is not set");
        return;
    };
    for (name, dtype) in
        [("stories260K-f32.gguf", GgmlDType::F32), ("stories260K-q8_0.gguf", GgmlDType::Q8_0)]
    {
        let file = std::fs::read(std::path::Path::new(&data).join("stories260k").join(name)).unwrap();
        let header = Header::parse(name, &file).unwrap();
        assert_eq!(header.size("llama.embedding_length").unwrap(), Some(64));
        assert_eq!(header.texts(&file, "tokenizer.ggml.tokens", 512).unwrap().unwrap().len(), 512);
        let q = &header.tensors()["blk.3.attn_k.weight"];
        assert_eq!((q.shape.as_slice(), q.dtype), (&[32, 64][..], dtype));
        for keep in [file.len() - 1, file.len() / 2, 5000, 40, 24] {
            refusal(&file[..keep]);
        }
    }
}

proptest! {
    #[test]
    fn any_bytes_are_refused_or_read(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let mut file = Draft::small().bytes();
        file.splice(8.., bytes);
        let _ = Header::parse("f", &file);
    }

    #[test]
    fn a_changed_byte_is_refused_or_read(at in 0usize..256, value: u8) {
        let mut file = Draft::small().bytes();
        let at = at.min(file.len() - 1);
        file[at] = value;
        if let Ok(header) = Header::parse("f", &file) {
            prop_assert!(header.tensors().values().all(|tensor| tensor.at.end <= file.len()));
        }
    }

    #[test]
    fn any_truncation_is_refused(keep in 0usize..200) {
        let file = Draft::small().bytes();
        // The last tensor ends 16 bytes before the file does.
        if keep < file.len() - 16 {
            prop_assert!(Header::parse("f", &file[..keep]).is_err());
        }
    }
}
