//! Where a decoder's tensors come from: [`Source`], and the one of a safetensors file.
//!
//! The file is mapped and its tensors stay in it, in their own type. Vectors are few and small: they are widened to f32.

use half::{bf16, f16};
use safetensors::tensor::{Dtype, Metadata, TensorInfo};

use super::bytes::{Bytes, Elements};
use super::error::{MOST_REASON_CHARS, quoted};
use super::matrix::Matrix;
pub(super) use super::tensors::visit;
use super::{Config, Error, Result};

/// Longest header read: three times that of a model with a hundred thousand tensors.
const MAX_HEADER_BYTES: u64 = 32 << 20;
/// The file begins with the header's length, a little-endian u64.
const LENGTH_BYTES: u64 = 8;

/// Tensors by the names that Hugging Face gives them, checked against the shapes that a configuration asks for.
pub(super) trait Source {
    /// Checks that a tensor is there, in its shape and a readable type. Nothing is read.
    fn check(&self, name: &str, shape: &[usize]) -> Result<()>;

    /// A tensor of two dimensions.
    fn matrix(&mut self, name: &str, shape: [usize; 2]) -> Result<Matrix>;

    /// A tensor of one dimension.
    fn vector(&mut self, name: &str, len: usize) -> Result<Vec<f32>>;

    /// Type of most weights as the file has them: `f32`, `f16`, `bf16`, `q8_0`.
    fn dtype(&self) -> String;

    /// Bytes of all tensors; 0 where they are made and not read.
    fn bytes(&self) -> u64 {
        0
    }

    /// Bytes of the tensors that cannot be used where they lie.
    fn copied_bytes(&self) -> u64 {
        0
    }
}

/// Checks that a source has every tensor of a configuration.
pub(super) fn check(source: &impl Source, config: &Config) -> Result<()> {
    visit(config, |name, shape| source.check(name, shape))
}

/// A safetensors file whose header was read and agrees with the file's length.
#[derive(Debug)]
pub(super) struct Safetensors {
    path: String,
    bytes: Bytes,
    tensors: Metadata,
    /// Where the first tensor's bytes begin.
    data_start: usize,
}

impl Safetensors {
    /// Reads the header; `path` is only named in errors.
    pub(super) fn open(path: String, bytes: Bytes) -> Result<Self> {
        let fault = |reason| Error::Weights { path: path.clone(), reason };
        let header = header(bytes.as_slice()).map_err(fault)?;
        let tensors: Metadata = serde_json::from_slice(header).map_err(|error| {
            fault(format!("the header is damaged: {}", quoted(&error.to_string(), MOST_REASON_CHARS)))
        })?;
        let data_start = LENGTH_BYTES as usize + header.len();
        // No overflow: the crate summed the tensors' sizes with checks, and they are offsets into one file.
        let promised = data_start.saturating_add(tensors.data_len());
        let found = bytes.as_slice().len();
        if found != promised {
            let how = if found < promised { "truncated" } else { "too long" };
            return Err(fault(format!(
                "{how}: the header describes {promised} bytes, the file has {found}; fetch it again"
            )));
        }
        Ok(Self { path, bytes, tensors, data_start })
    }

    /// Names of all tensors.
    pub(super) fn names(&self) -> Vec<String> {
        self.tensors.offset_keys()
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

impl Source for Safetensors {
    fn check(&self, name: &str, shape: &[usize]) -> Result<()> {
        self.info(name, shape).map(|_| ())
    }

    fn matrix(&mut self, name: &str, shape: [usize; 2]) -> Result<Matrix> {
        let info = self.info(name, &shape)?;
        let range = self.data_start + info.data_offsets.0..self.data_start + info.data_offsets.1;
        Ok(match info.dtype {
            Dtype::F16 => Matrix::f16(Elements::within(&self.bytes, range, f16s), shape),
            Dtype::BF16 => Matrix::bf16(Elements::within(&self.bytes, range, bf16s), shape),
            _ => Matrix::f32(Elements::within(&self.bytes, range, f32s), shape),
        })
    }

    fn vector(&mut self, name: &str, len: usize) -> Result<Vec<f32>> {
        let info = self.info(name, &[len])?;
        let bytes = &self.bytes.as_slice()[self.data_start..][info.data_offsets.0..info.data_offsets.1];
        Ok(match info.dtype {
            Dtype::F16 => f16s(bytes).into_iter().map(f16::to_f32).collect(),
            Dtype::BF16 => bf16s(bytes).into_iter().map(bf16::to_f32).collect(),
            _ => f32s(bytes),
        })
    }

    fn dtype(&self) -> String {
        self.tensors.info(EMBEDDING).map_or_else(String::new, |info| info.dtype.to_string().to_lowercase())
    }

    fn bytes(&self) -> u64 {
        self.tensors.data_len() as u64
    }
}

pub(super) fn f32s(bytes: &[u8]) -> Vec<f32> {
    bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
}

pub(super) fn f16s(bytes: &[u8]) -> Vec<f16> {
    bytes.chunks_exact(2).map(|b| f16::from_le_bytes([b[0], b[1]])).collect()
}

pub(super) fn bf16s(bytes: &[u8]) -> Vec<bf16> {
    bytes.chunks_exact(2).map(|b| bf16::from_le_bytes([b[0], b[1]])).collect()
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

/// Name of the bias of a layer's part.
pub(super) fn bias_name(layer: usize, part: &str) -> String {
    format!("model.layers.{layer}.{part}.bias")
}

/// The header's JSON, or what is wrong with it.
fn header(bytes: &[u8]) -> std::result::Result<&[u8], String> {
    let Some((length, rest)) = bytes.split_first_chunk::<{ LENGTH_BYTES as usize }>() else {
        return Err(format!("truncated: {} bytes are no safetensors file; fetch it again", bytes.len()));
    };
    let length = u64::from_le_bytes(*length);
    if length > MAX_HEADER_BYTES {
        return Err(format!(
            "the header claims {length} bytes; at most {MAX_HEADER_BYTES} are supported: not a safetensors file?"
        ));
    }
    rest.get(..length as usize).ok_or_else(|| {
        format!("truncated: the header claims {length} bytes, the file has {}; fetch it again", bytes.len())
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::model::demo;

    fn demo_config() -> Config {
        Config::parse("config.json", demo::CONFIG).unwrap()
    }

    fn open(bytes: &[u8]) -> std::result::Result<Safetensors, String> {
        Safetensors::open("w".into(), Bytes::Owned(bytes.into())).map_err(|error| error.to_string())
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
            let matrix = open(&file(&header, &bytes)).unwrap().matrix("a", [2, 2]).unwrap();
            let mut out = vec![9.0];
            (0..2).for_each(|row| matrix.row(row, &mut out).unwrap());
            assert_eq!(out[..4], [9.0, 0.0, 1.0, -2.5], "{name}");
            assert_eq!(out[4], if name == "BF16" { 65280.0 } else { 65504.0 });
            assert_eq!(matrix.bytes() as usize, bytes.len());
            let header = header.replace("[2,2]", "[4]");
            assert_eq!(open(&file(&header, &bytes)).unwrap().vector("a", 4).unwrap(), out[1..]);
        }
    }

    #[test]
    fn the_embedded_weights_fit_their_configuration() {
        check(&open(demo::WEIGHTS).unwrap(), &demo_config()).unwrap();
    }

    #[test]
    fn a_wrong_tensor_is_named_with_its_shapes() {
        let weights = open(demo::WEIGHTS).unwrap();
        let fault = |config: &Config| check(&weights, config).unwrap_err().to_string();
        let mut config = demo_config();
        config.layers = 5;
        let text = fault(&config);
        assert!(text.contains("model.layers.4.self_attn.q_proj.weight is missing"), "{text}");
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
        let text = open(&bytes).unwrap().vector("a", 1).unwrap_err().to_string();
        assert!(text.contains("tensor a [1] is of type I64; supported: F32, F16, BF16"), "{text}");
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
                if check(&weights, &config).is_ok() {
                    weights.vector(FINAL_NORM, config.hidden).unwrap();
                }
            }
        }

        #[test]
        fn any_truncation_is_refused(keep in 0usize..demo::WEIGHTS.len()) {
            prop_assert!(open(&demo::WEIGHTS[..keep]).is_err());
        }
    }
}
