//! From bytes to a checked header.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use candle_core::quantized::GgmlDType;

use super::{
    Array, Kind, MAGIC, MAX_ALIGNMENT, MAX_DIMENSIONS, MAX_ENTRIES, MAX_HEADER_BYTES, MAX_KEY_BYTES,
    MAX_NAME_BYTES, MAX_TENSORS, MOST_NAME_CHARS, TensorInfo, USUAL_ALIGNMENT, Value,
};
use crate::model::error::quoted;

/// What is wrong, in a few words.
type Read<T> = std::result::Result<T, String>;

/// Reads from the front of a slice; nothing beyond it is ever promised.
pub(super) struct Reader<'a> {
    all: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    pub(super) const fn new(all: &'a [u8]) -> Self {
        Self { all, at: 0 }
    }

    const fn left(&self) -> u64 {
        (self.all.len() - self.at) as u64
    }

    fn take(&mut self, bytes: u64) -> Read<&'a [u8]> {
        if bytes > self.left() {
            return Err(format!(
                "truncated or damaged: {bytes} bytes are claimed at byte {}, {} are left; fetch it again",
                self.at,
                self.left()
            ));
        }
        let start = self.at;
        self.at += bytes as usize;
        Ok(&self.all[start..self.at])
    }

    fn array<const N: usize>(&mut self) -> Read<[u8; N]> {
        let mut out = [0; N];
        out.copy_from_slice(self.take(N as u64)?);
        Ok(out)
    }

    fn u32(&mut self) -> Read<u32> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Read<u64> {
        self.array().map(u64::from_le_bytes)
    }

    /// A length and as many bytes.
    pub(super) fn text(&mut self, most_bytes: u64) -> Read<&'a [u8]> {
        let bytes = self.u64()?;
        if bytes > most_bytes {
            return Err(format!(
                "damaged: a name of {bytes} bytes at byte {}; at most {most_bytes}",
                self.at
            ));
        }
        self.take(bytes)
    }

    fn name(&mut self, most_bytes: u64) -> Read<String> {
        let bytes = self.text(most_bytes)?;
        String::from_utf8(bytes.to_vec())
            .map_err(|_| format!("damaged: a name before byte {} is not UTF-8", self.at))
    }

    fn kind(&mut self) -> Read<Kind> {
        let at = self.at;
        Ok(match self.u32()? {
            0 => Kind::U8,
            1 => Kind::I8,
            2 => Kind::U16,
            3 => Kind::I16,
            4 => Kind::U32,
            5 => Kind::I32,
            6 => Kind::F32,
            7 => Kind::Bool,
            8 => Kind::Text,
            9 => Kind::Array,
            10 => Kind::U64,
            11 => Kind::I64,
            12 => Kind::F64,
            other => return Err(format!("damaged: no type of metadata has the number {other} (byte {at})")),
        })
    }

    /// A value that is neither text nor array.
    pub(super) fn scalar(&mut self, kind: Kind) -> Read<Value> {
        Ok(match kind {
            Kind::U8 => Value::Unsigned(self.array().map(u8::from_le_bytes)?.into()),
            Kind::I8 => Value::Signed(self.array().map(i8::from_le_bytes)?.into()),
            Kind::U16 => Value::Unsigned(self.array().map(u16::from_le_bytes)?.into()),
            Kind::I16 => Value::Signed(self.array().map(i16::from_le_bytes)?.into()),
            Kind::U32 => Value::Unsigned(self.u32()?.into()),
            Kind::I32 => Value::Signed(self.array().map(i32::from_le_bytes)?.into()),
            Kind::F32 => Value::Float(self.array().map(f32::from_le_bytes)?.into()),
            Kind::U64 => Value::Unsigned(self.u64()?),
            Kind::I64 => Value::Signed(self.array().map(i64::from_le_bytes)?),
            Kind::F64 => Value::Float(self.array().map(f64::from_le_bytes)?),
            Kind::Bool => match self.array::<1>()? {
                [0] => Value::Bool(false),
                [1] => Value::Bool(true),
                [other] => {
                    return Err(format!("damaged: {other} is neither true nor false (byte {})", self.at));
                }
            },
            Kind::Text | Kind::Array => return Err(format!("damaged: no number at byte {}", self.at)),
        })
    }

    fn value(&mut self, kind: Kind) -> Read<Value> {
        match kind {
            Kind::Text => {
                // As long as the file has bytes: chat templates go here.
                let text = self.text(u64::MAX)?;
                Ok(Value::Text(String::from_utf8_lossy(text).into_owned()))
            }
            Kind::Array => {
                let kind = self.kind()?;
                let len = self.u64()?;
                let start = self.at;
                match kind.bytes() {
                    Some(bytes) => drop(self.take(len.saturating_mul(bytes))?),
                    None if kind == Kind::Text => {
                        // Each text has a length of eight bytes before it: a count beyond those is refused at once.
                        if len > self.left() / 8 {
                            self.take(len.saturating_mul(8))?;
                        }
                        for _ in 0..len {
                            self.text(u64::MAX)?;
                        }
                    }
                    None => return Err(format!("arrays of arrays are not supported (byte {start})")),
                }
                Ok(Value::Array(Array { kind, len: len as usize, at: start..self.at }))
            }
            _ => self.scalar(kind),
        }
    }
}

impl Kind {
    /// Bytes of a value; `None` where they vary.
    const fn bytes(self) -> Option<u64> {
        match self {
            Self::U8 | Self::I8 | Self::Bool => Some(1),
            Self::U16 | Self::I16 => Some(2),
            Self::U32 | Self::I32 | Self::F32 => Some(4),
            Self::U64 | Self::I64 | Self::F64 => Some(8),
            Self::Text | Self::Array => None,
        }
    }
}

/// The element types that can be computed with, by ggml's number.
fn dtype(number: u32) -> Option<GgmlDType> {
    Some(match number {
        0 => GgmlDType::F32,
        1 => GgmlDType::F16,
        2 => GgmlDType::Q4_0,
        3 => GgmlDType::Q4_1,
        6 => GgmlDType::Q5_0,
        7 => GgmlDType::Q5_1,
        8 => GgmlDType::Q8_0,
        9 => GgmlDType::Q8_1,
        10 => GgmlDType::Q2K,
        11 => GgmlDType::Q3K,
        12 => GgmlDType::Q4K,
        13 => GgmlDType::Q5K,
        14 => GgmlDType::Q6K,
        15 => GgmlDType::Q8K,
        30 => GgmlDType::BF16,
        _ => return None,
    })
}

type Parts = (BTreeMap<String, Value>, BTreeMap<String, TensorInfo>);

pub(super) fn header(file: &[u8]) -> Read<Parts> {
    let mut bytes = Reader::new(&file[..file.len().min(MAX_HEADER_BYTES)]);
    if file.len() < 24 || &bytes.array()? != MAGIC {
        return Err("not a GGUF file: it does not begin with GGUF and a header".into());
    }
    match bytes.u32()? {
        2 | 3 => {}
        version if (1..16).contains(&version.swap_bytes()) => {
            return Err("a big-endian GGUF file; only little-endian ones are supported".into());
        }
        version => return Err(format!("GGUF version {version} is not supported; only 2 and 3")),
    }
    let tensors = bytes.u64()?;
    let entries = bytes.u64()?;
    for (what, count, most) in [("tensors", tensors, MAX_TENSORS), ("metadata entries", entries, MAX_ENTRIES)]
    {
        if count > most {
            return Err(format!("damaged: it claims {count} {what}; at most {most} are supported"));
        }
    }
    let entries = read_entries(&mut bytes, entries)?;
    let alignment = alignment(&entries)?;
    let tensors = read_tensors(&mut bytes, tensors)?;
    let data_start = (bytes.at as u64).next_multiple_of(alignment);
    let tensors = place(tensors, data_start, alignment, file.len() as u64)?;
    Ok((entries, tensors))
}

fn read_entries(bytes: &mut Reader<'_>, count: u64) -> Read<BTreeMap<String, Value>> {
    let mut entries = BTreeMap::new();
    for _ in 0..count {
        let key = bytes.name(MAX_KEY_BYTES)?;
        let kind = bytes.kind()?;
        let value =
            bytes.value(kind).map_err(|reason| format!("{}: {reason}", quoted(&key, MOST_NAME_CHARS)))?;
        match entries.entry(key) {
            Entry::Vacant(place) => drop(place.insert(value)),
            Entry::Occupied(place) => {
                return Err(format!("damaged: {} is there twice", quoted(place.key(), MOST_NAME_CHARS)));
            }
        }
    }
    Ok(entries)
}

fn alignment(entries: &BTreeMap<String, Value>) -> Read<u64> {
    match entries.get("general.alignment") {
        None => Ok(USUAL_ALIGNMENT),
        Some(Value::Unsigned(n)) if n.is_power_of_two() && (8..=MAX_ALIGNMENT).contains(n) => Ok(*n),
        Some(value) => Err(format!(
            "general.alignment is {}; a power of two from 8 to {MAX_ALIGNMENT} is expected",
            super::brief(value)
        )),
    }
}

/// A tensor as the file has it, its place not yet checked.
struct Claim {
    name: String,
    shape: Vec<usize>,
    dtype: GgmlDType,
    offset: u64,
    bytes: u64,
}

fn read_tensors(bytes: &mut Reader<'_>, count: u64) -> Read<Vec<Claim>> {
    let mut claims = Vec::new();
    for _ in 0..count {
        let name = bytes.name(MAX_NAME_BYTES)?;
        let shown = || format!("tensor {}", quoted(&name, MOST_NAME_CHARS));
        let dimensions = bytes.u32()?;
        if !(1..=MAX_DIMENSIONS).contains(&dimensions) {
            return Err(format!(
                "{} has {dimensions} dimensions; 1 to {MAX_DIMENSIONS} are supported",
                shown()
            ));
        }
        let mut shape = Vec::with_capacity(dimensions as usize);
        for _ in 0..dimensions {
            shape.push(bytes.u64()?);
        }
        let number = bytes.u32()?;
        let Some(dtype) = dtype(number) else {
            return Err(format!(
                "{} is of ggml type {number}, which is not supported; use f32, f16, bf16, Q4_0 to Q8_1 or Q2_K to Q8_K",
                shown()
            ));
        };
        let offset = bytes.u64()?;
        let elements = shape.iter().try_fold(1u64, |product, &n| product.checked_mul(n));
        let block = dtype.block_size() as u64;
        if shape[0] % block != 0 {
            return Err(format!("{}: rows of {} are no whole blocks of {block}", shown(), shape[0]));
        }
        let size = elements
            .filter(|elements| *elements > 0)
            .and_then(|elements| (elements / block).checked_mul(dtype.type_size() as u64))
            .filter(|size| isize::try_from(*size).is_ok())
            .ok_or_else(|| format!("{}: no tensor can have the shape {shape:?}", shown()))?;
        let shape = shape.iter().rev().map(|&n| n as usize).collect();
        claims.push(Claim { name, shape, dtype, offset, bytes: size });
    }
    Ok(claims)
}

/// Holds every claim against the file and against the others.
fn place(
    mut claims: Vec<Claim>,
    data_start: u64,
    alignment: u64,
    file_bytes: u64,
) -> Read<BTreeMap<String, TensorInfo>> {
    claims.sort_by_key(|claim| claim.offset);
    let (mut tensors, mut end, mut before) = (BTreeMap::new(), 0, String::new());
    for Claim { name, shape, dtype, offset, bytes } in claims {
        let shown = quoted(&name, MOST_NAME_CHARS);
        if offset % alignment != 0 {
            return Err(format!("damaged: tensor {shown} begins at {offset}, no multiple of {alignment}"));
        }
        if offset < end {
            return Err(format!("damaged: the tensors {before} and {shown} overlap"));
        }
        let start = data_start.checked_add(offset);
        let Some((start, stop)) = start.and_then(|start| Some((start, start.checked_add(bytes)?))) else {
            return Err(format!("damaged: tensor {shown} begins at {offset}, outside any file"));
        };
        if stop > file_bytes {
            return Err(format!(
                "truncated: tensor {shown} ends at byte {stop}, the file has {file_bytes}; fetch it again"
            ));
        }
        (end, before) = (offset + bytes, shown);
        let info = TensorInfo { shape, dtype, at: start as usize..stop as usize };
        if tensors.insert(name, info).is_some() {
            return Err(format!("damaged: tensor {before} is there twice"));
        }
    }
    Ok(tensors)
}
