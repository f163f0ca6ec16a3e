//! `model.safetensors` to f32 rows.
//!
//! The file is read, not mapped: a file cut short under a map kills the process, and a decoder that computes in f32
//! copies every weight anyway. Tensors are read one at a time, so that loading needs the f32 weights plus one tensor.

use std::io::{Read, Seek, SeekFrom};

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use safetensors::tensor::{Dtype, Metadata, TensorInfo};

use super::error::{MOST_REASON_CHARS, quoted};
use super::{Config, Error, Result};

/// Longest header read: three times that of a model with a hundred thousand tensors.
const MAX_HEADER_BYTES: u64 = 32 << 20;
/// The file begins with the header's length, a little-endian u64.
const LENGTH_BYTES: u64 = 8;

/// An open weights file whose header was read and agrees with the file's length.
#[derive(Debug)]
pub(super) struct Weights<R> {
    path: String,
    reader: R,
    tensors: Metadata,
    /// Where the first tensor's bytes begin.
    data_start: u64,
}

impl<R: Read + Seek> Weights<R> {
    /// Reads the header; `path` is only named in errors.
    pub(super) fn open(path: String, mut reader: R) -> Result<Self> {
        let header = read_header(&mut reader).map_err(|fault| fault.at(&path))?;
        let tensors: Metadata = serde_json::from_slice(&header.json).map_err(|error| Error::Weights {
            path: path.clone(),
            reason: format!("the header is damaged: {}", quoted(&error.to_string(), MOST_REASON_CHARS)),
        })?;
        let data_start = LENGTH_BYTES + header.json.len() as u64;
        // No overflow: the crate summed the tensors' sizes with checks, and they are offsets into one file.
        let promised = data_start.saturating_add(tensors.data_len() as u64);
        if header.file_bytes != promised {
            let how = if header.file_bytes < promised { "truncated" } else { "too long" };
            let reason = format!(
                "{how}: the header describes {promised} bytes, the file has {}; fetch it again",
                header.file_bytes
            );
            return Err(Error::Weights { path, reason });
        }
        Ok(Self { path, reader, tensors, data_start })
    }

    /// Checks that every tensor of the configuration is there, in its shape and a readable type. Nothing is read.
    pub(super) fn check(&self, config: &Config) -> Result<()> {
        visit(config, |name, shape| self.info(name, shape).map(|_| ()))
    }

    /// Checks that the weights in f32 fit into the memory that is left, where the system says how much that is. A sparse
    /// file can promise terabytes; without this the system would end the process halfway through them.
    pub(super) fn check_memory(&self, config: &Config, available_bytes: Option<u64>) -> Result<()> {
        let needed_bytes = config.parameters() * size_of::<f32>() as u64;
        match available_bytes {
            Some(available_bytes) if needed_bytes > available_bytes => {
                Err(Error::Memory { path: self.path.clone(), needed_bytes, available_bytes })
            }
            _ => Ok(()),
        }
    }

    /// Type of a tensor as its file has it: `f32`, `f16`, `bf16`.
    pub(super) fn dtype(&self, name: &str) -> String {
        self.tensors.info(name).map_or_else(String::new, |info| info.dtype.to_string().to_lowercase())
    }

    /// Appends a tensor's elements, row-major, to `out`.
    pub(super) fn append(&mut self, name: &str, shape: &[usize], out: &mut Vec<f32>) -> Result<()> {
        let info = self.info(name, shape)?;
        let (dtype, (start, end)) = (info.dtype, info.data_offsets);
        let mut bytes = vec![0; end - start];
        self.reader
            .seek(SeekFrom::Start(self.data_start + start as u64))
            .and_then(|_| self.reader.read_exact(&mut bytes))
            .map_err(|source| Error::Read { path: self.path.clone(), source })?;
        widen(dtype, &bytes, out);
        Ok(())
    }

    fn info(&self, name: &str, shape: &[usize]) -> Result<&TensorInfo> {
        let fault = |reason| Error::Weights { path: self.path.clone(), reason };
        let info = self
            .tensors
            .info(name)
            .ok_or_else(|| fault(format!("tensor {name} is missing; config.json asks for {shape:?}")))?;
        if info.shape != shape {
            let found = &info.shape[..info.shape.len().min(8)];
            return Err(fault(format!("tensor {name} has shape {found:?}; config.json asks for {shape:?}")));
        }
        if !matches!(info.dtype, Dtype::F32 | Dtype::F16 | Dtype::BF16) {
            return Err(fault(format!(
                "tensor {name} {shape:?} is of type {}; supported: F32, F16, BF16",
                info.dtype
            )));
        }
        Ok(info)
    }
}

/// Bytes that Linux could give without swapping.
pub(super) fn available_bytes() -> Option<u64> {
    parse_available(&std::fs::read_to_string("/proc/meminfo").ok()?)
}

fn parse_available(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// Names and shapes of all tensors of a configuration, in the order of the forward pass.
pub(super) fn visit(config: &Config, mut tensor: impl FnMut(&str, &[usize]) -> Result<()>) -> Result<()> {
    let Config { hidden, intermediate, heads, kv_heads, head_dim, vocab, .. } = *config;
    let (q, kv) = (heads * head_dim, kv_heads * head_dim);
    tensor(EMBEDDING, &[vocab, hidden])?;
    for layer in 0..config.layers {
        for (part, shape) in [
            ("input_layernorm", &[hidden][..]),
            ("self_attn.q_proj", &[q, hidden]),
            ("self_attn.k_proj", &[kv, hidden]),
            ("self_attn.v_proj", &[kv, hidden]),
            ("self_attn.o_proj", &[hidden, q]),
            ("post_attention_layernorm", &[hidden]),
            ("mlp.gate_proj", &[intermediate, hidden]),
            ("mlp.up_proj", &[intermediate, hidden]),
            ("mlp.down_proj", &[hidden, intermediate]),
        ] {
            tensor(&part_name(layer, part), shape)?;
        }
    }
    tensor(FINAL_NORM, &[hidden])?;
    if config.tied { Ok(()) } else { tensor(HEAD, &[vocab, hidden]) }
}

/// The embedding's name.
pub(super) const EMBEDDING: &str = "model.embed_tokens.weight";
/// The final norm's name.
pub(super) const FINAL_NORM: &str = "model.norm.weight";
/// The language-model head's name.
pub(super) const HEAD: &str = "lm_head.weight";

/// Name of a layer's part.
pub(super) fn part_name(layer: usize, part: &str) -> String {
    format!("model.layers.{layer}.{part}.weight")
}

struct Header {
    json: Vec<u8>,
    file_bytes: u64,
}

enum Fault {
    Io(std::io::Error),
    Header(String),
}

impl Fault {
    fn at(self, path: &str) -> Error {
        match self {
            Self::Io(source) => Error::Read { path: path.into(), source },
            Self::Header(reason) => Error::Weights { path: path.into(), reason },
        }
    }
}

fn read_header(reader: &mut (impl Read + Seek)) -> std::result::Result<Header, Fault> {
    let file_bytes = reader.seek(SeekFrom::End(0)).map_err(Fault::Io)?;
    reader.rewind().map_err(Fault::Io)?;
    if file_bytes < LENGTH_BYTES {
        return Err(Fault::Header(format!(
            "truncated: {file_bytes} bytes are no safetensors file; fetch it again"
        )));
    }
    let mut length = [0; LENGTH_BYTES as usize];
    reader.read_exact(&mut length).map_err(Fault::Io)?;
    let length = u64::from_le_bytes(length);
    if length > MAX_HEADER_BYTES {
        return Err(Fault::Header(format!(
            "the header claims {length} bytes; at most {MAX_HEADER_BYTES} are supported: not a safetensors file?"
        )));
    }
    if length > file_bytes - LENGTH_BYTES {
        return Err(Fault::Header(format!(
            "truncated: the header claims {length} bytes, the file has {file_bytes}; fetch it again"
        )));
    }
    let mut json = vec![0; length as usize];
    reader.read_exact(&mut json).map_err(Fault::Io)?;
    Ok(Header { json, file_bytes })
}

/// Little-endian bytes of a supported type to f32. `bytes` holds whole elements: the header's sizes were checked.
fn widen(dtype: Dtype, bytes: &[u8], out: &mut Vec<f32>) {
    /// Elements converted at once, so that a tensor needs no second copy at its own width.
    const RUN: usize = 4096;
    let start = out.len();
    match dtype {
        Dtype::F16 => {
            out.resize(start + bytes.len() / 2, 0.0);
            let mut run = [f16::ZERO; RUN];
            for (bytes, out) in bytes.chunks(2 * RUN).zip(out[start..].chunks_mut(RUN)) {
                let run = &mut run[..out.len()];
                for (x, b) in run.iter_mut().zip(bytes.chunks_exact(2)) {
                    *x = f16::from_le_bytes([b[0], b[1]]);
                }
                run.convert_to_f32_slice(out);
            }
        }
        Dtype::BF16 => {
            out.extend(bytes.chunks_exact(2).map(|b| bf16::from_le_bytes([b[0], b[1]]).to_f32()));
        }
        _ => out.extend(bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]))),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use proptest::prelude::*;

    use super::*;
    use crate::model::demo;

    fn demo_config() -> Config {
        Config::parse("config.json", demo::CONFIG).unwrap()
    }

    fn open(bytes: &[u8]) -> std::result::Result<Weights<Cursor<&[u8]>>, String> {
        Weights::open("w".into(), Cursor::new(bytes)).map_err(|error| error.to_string())
    }

    fn file(header: &str, data: &[u8]) -> Vec<u8> {
        [&(header.len() as u64).to_le_bytes(), header.as_bytes(), data].concat()
    }

    #[test]
    fn all_three_types_widen_exactly() {
        let numbers = [0.0f32, 1.0, -2.5, 65504.0];
        for (name, bytes) in [
            ("F32", numbers.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<_>>()),
            ("F16", numbers.iter().flat_map(|x| f16::from_f32(*x).to_le_bytes()).collect()),
            (
                "BF16",
                [0.0f32, 1.0, -2.5, 65280.0].iter().flat_map(|x| bf16::from_f32(*x).to_le_bytes()).collect(),
            ),
        ] {
            let header =
                format!(r#"{{"a":{{"dtype":"{name}","shape":[2,2],"data_offsets":[0,{}]}}}}"#, bytes.len());
            let mut out = vec![9.0];
            open(&file(&header, &bytes)).unwrap().append("a", &[2, 2], &mut out).unwrap();
            assert_eq!(out[..4], [9.0, 0.0, 1.0, -2.5], "{name}");
            assert_eq!(out[4], if name == "BF16" { 65280.0 } else { 65504.0 });
        }
    }

    #[test]
    fn long_f16_tensors_widen_in_runs_without_a_seam() {
        let numbers: Vec<f32> = (0..10_000).map(|i| (i % 2048) as f32).collect();
        let bytes: Vec<u8> = numbers.iter().flat_map(|x| f16::from_f32(*x).to_le_bytes()).collect();
        let mut out = Vec::new();
        widen(Dtype::F16, &bytes, &mut out);
        assert_eq!(out, numbers);
    }

    #[test]
    fn the_embedded_weights_fit_their_configuration() {
        open(demo::WEIGHTS).unwrap().check(&demo_config()).unwrap();
    }

    #[test]
    fn a_wrong_tensor_is_named_with_its_shapes() {
        let weights = open(demo::WEIGHTS).unwrap();
        let fault = |config: &Config| weights.check(config).unwrap_err().to_string();
        let mut config = demo_config();
        config.layers = 5;
        let text = fault(&config);
        assert!(text.contains("model.layers.4.input_layernorm.weight is missing"), "{text}");
        let mut config = demo_config();
        config.kv_heads = 2;
        let text = fault(&config);
        assert!(
            text.contains("k_proj.weight has shape [128, 256]; config.json asks for [64, 256]"),
            "{text}"
        );
        let mut config = demo_config();
        config.tied = false;
        assert!(fault(&config).contains("lm_head.weight is missing"));

        let bytes = file(r#"{"a":{"dtype":"I64","shape":[1],"data_offsets":[0,8]}}"#, &[0; 8]);
        let text = open(&bytes).unwrap().append("a", &[1], &mut Vec::new()).unwrap_err().to_string();
        assert!(text.contains("tensor a [1] is of type I64; supported: F32, F16, BF16"), "{text}");
    }

    #[test]
    fn weights_that_do_not_fit_into_memory_are_refused() {
        let weights = open(demo::WEIGHTS).unwrap();
        let config = demo_config();
        let check = |available| weights.check_memory(&config, available);
        check(None).unwrap();
        check(Some(4 * 2_910_464)).unwrap();
        let text = check(Some(11_000_000)).unwrap_err().to_string();
        assert_eq!(text, "w: needs 0.0 GB of memory as f32, 0.0 GB is available; choose a smaller model");
        assert_eq!(parse_available("MemTotal: 9 kB\nMemAvailable:   21 kB\n"), Some(21 * 1024));
        assert_eq!(parse_available("MemTotal: 9 kB\nMemAvailable: many kB"), None);
    }

    #[test]
    fn damage_is_told_from_truncation() {
        let fault = |bytes: &[u8]| open(bytes).unwrap_err();
        assert!(fault(&[]).contains("truncated"));
        assert!(
            fault(&demo::WEIGHTS[..demo::WEIGHTS.len() - 1])
                .contains("truncated: the header describes 5824944")
        );
        assert!(fault(&demo::WEIGHTS[..100]).contains("truncated: the header claims"));
        assert!(fault(&u64::MAX.to_le_bytes()).contains("not a safetensors file?"));
        assert!(fault(&[demo::WEIGHTS, b"x"].concat()).contains("too long"));
        assert!(fault(&file("[]", &[])).contains("header is damaged"));
        let name = r#"{"a\n\u001b[2J":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}"#;
        assert!(!fault(&file(name, &[0; 8])).contains(char::is_control));
        let huge = r#"{"a":{"dtype":"F32","shape":[4294967296,4294967296,2],"data_offsets":[0,4]}}"#;
        assert!(fault(&file(huge, &[0; 4])).contains("header is damaged"));
    }

    proptest! {
        #[test]
        fn any_bytes_are_refused_or_read(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = open(&bytes);
            let _ = open(&file(&String::from_utf8_lossy(&bytes), &[]));
        }

        #[test]
        fn a_flipped_header_byte_is_refused_or_read_without_a_panic(at in 0usize..4000, flip in 1u8..) {
            let mut bytes = demo::WEIGHTS.to_vec();
            bytes[at] ^= flip;
            if let Ok(mut weights) = open(&bytes) {
                let config = demo_config();
                if weights.check(&config).is_ok() {
                    weights.append(FINAL_NORM, &[config.hidden], &mut Vec::new()).unwrap();
                }
            }
        }

        #[test]
        fn any_truncation_is_refused(keep in 0usize..demo::WEIGHTS.len()) {
            prop_assert!(open(&demo::WEIGHTS[..keep]).is_err());
        }
    }
}
