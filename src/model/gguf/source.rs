//! A GGUF file's tensors by the names and in the layout of Hugging Face's checkpoints.

use std::borrow::Cow;
use std::ops::Range;

use candle_core::Device;
use candle_core::quantized::{GgmlDType, QStorage, QTensor};
use half::{bf16, f16};

use super::{Header, TensorInfo};
use crate::model::bytes::{Bytes, Elements};
use crate::model::error::quoted;
use crate::model::matrix::Matrix;
use crate::model::weights::{Source, bf16s, f16s, f32s};
use crate::model::{Config, Error, Result};

/// Names of a layer's parts: Hugging Face's, and ggml's.
const PARTS: [(&str, &str); 15] = [
    ("input_layernorm", "attn_norm"),
    ("self_attn.q_proj", "attn_q"),
    ("self_attn.k_proj", "attn_k"),
    ("self_attn.v_proj", "attn_v"),
    ("self_attn.qkv_proj", "attn_qkv"),
    ("self_attn.o_proj", "attn_output"),
    ("self_attn.q_norm", "attn_q_norm"),
    ("self_attn.k_norm", "attn_k_norm"),
    ("mlp.gate_proj", "ffn_gate"),
    ("mlp.up_proj", "ffn_up"),
    ("mlp.gate_up_proj", "ffn_up"),
    ("mlp.down_proj", "ffn_down"),
    ("pre_feedforward_layernorm", "ffn_norm"),
    ("post_feedforward_layernorm", "post_ffw_norm"),
    // Only where there is a norm before the feed-forward of its own; else it is that norm.
    ("post_attention_layernorm", "post_attention_norm"),
];

/// A GGUF file as a source of tensors.
#[derive(Debug)]
pub(in crate::model) struct Gguf {
    header: Header,
    bytes: Bytes,
    /// Rows of a head, where the file has the rows of Q and K in pairs that lie side by side.
    paired: Option<usize>,
    /// Whether attention's output has a norm of its own.
    post_norms: bool,
}

impl Gguf {
    /// Takes a file whose header was read.
    pub(in crate::model) fn new(header: Header, bytes: Bytes, config: &Config) -> Result<Self> {
        // llama.cpp rotates pairs of neighbours in this architecture, and its converter reorders rows to fit; all others
        // keep the order of the checkpoint.
        let paired = (header.architecture()? == "llama").then_some(config.head_dim);
        let post_norms = header.tensors().contains_key("blk.0.post_ffw_norm.weight");
        Ok(Self { header, bytes, paired, post_norms })
    }

    /// ggml's name of a tensor.
    fn name(&self, name: &str) -> Option<String> {
        Some(match name {
            "model.embed_tokens.weight" => "token_embd.weight".into(),
            "model.norm.weight" => "output_norm.weight".into(),
            "lm_head.weight" => "output.weight".into(),
            _ => {
                let (layer, part) = name.strip_prefix("model.layers.")?.split_once('.')?;
                let (part, kind) = part.rsplit_once('.')?;
                let part = if part == "post_attention_layernorm" && !self.post_norms {
                    "ffn_norm"
                } else {
                    PARTS.iter().find(|(theirs, _)| *theirs == part)?.1
                };
                format!("blk.{layer}.{part}.{kind}")
            }
        })
    }

    fn fault(&self, reason: String) -> Error {
        Error::Weights { path: self.header.path().into(), reason }
    }

    fn info(&self, name: &str, shape: &[usize]) -> Result<&TensorInfo> {
        let own = self.name(name);
        let shown = own.as_deref().unwrap_or(name);
        let info = own.as_ref().and_then(|own| self.header.tensors().get(own)).ok_or_else(|| {
            self.fault(format!("tensor {shown} is missing; its metadata ask for {shape:?}"))
        })?;
        if info.shape != shape {
            return Err(self.fault(format!(
                "tensor {shown} has shape {:?}; its metadata ask for {shape:?}",
                info.shape
            )));
        }
        Ok(info)
    }

    /// Rows of a head, where this tensor's rows are in pairs.
    fn head_rows(&self, name: &str) -> Option<usize> {
        let is_turned = name.contains(".self_attn.q_proj.") || name.contains(".self_attn.k_proj.");
        self.paired.filter(|_| is_turned)
    }
}

/// Rows in the order of Hugging Face's: of each head first the first of all pairs, then the second.
fn unpaired(bytes: &[u8], row_bytes: usize, head_rows: usize) -> Vec<u8> {
    let mut out = Vec::with_capacity(bytes.len());
    for head in bytes.chunks(row_bytes * head_rows) {
        for half in 0..2 {
            for row in head.chunks(row_bytes).skip(half).step_by(2) {
                out.extend_from_slice(row);
            }
        }
    }
    out
}

impl Header {
    /// A tensor of one dimension as f32.
    pub(super) fn vector(&self, file: &[u8], info: &TensorInfo) -> Result<Vec<f32>> {
        let bytes = &file[info.at.clone()];
        match info.dtype {
            GgmlDType::F32 => Ok(f32s(bytes)),
            GgmlDType::F16 => Ok(f16s(bytes).into_iter().map(f16::to_f32).collect()),
            GgmlDType::BF16 => Ok(bf16s(bytes).into_iter().map(bf16::to_f32).collect()),
            other => Err(Error::Weights {
                path: self.path.clone(),
                reason: format!("a vector is of type {other:?}; supported: F32, F16, BF16"),
            }),
        }
    }
}

impl Source for Gguf {
    fn check(&self, name: &str, shape: &[usize]) -> Result<()> {
        let info = self.info(name, shape)?;
        if shape.len() == 1 && info.dtype.block_size() > 1 {
            let shown = quoted(name, 80);
            return Err(self
                .fault(format!("tensor {shown} is of type {:?}; vectors are F32, F16 or BF16", info.dtype)));
        }
        Ok(())
    }

    fn matrix(&mut self, name: &str, shape: [usize; 2]) -> Result<Matrix> {
        let TensorInfo { dtype, at, .. } = self.info(name, &shape)?.clone();
        let (bytes, at): (Bytes, Range<usize>) = match self.head_rows(name) {
            None => (self.bytes.clone(), at),
            Some(rows) => {
                let row_bytes = at.len() / shape[0];
                let ordered = unpaired(&self.bytes.as_slice()[at], row_bytes, rows);
                let len = ordered.len();
                (Bytes::Owned(ordered.into()), 0..len)
            }
        };
        Ok(match dtype {
            GgmlDType::F32 => Matrix::f32(Elements::within(&bytes, at, f32s), shape),
            GgmlDType::F16 => Matrix::f16(Elements::within(&bytes, at, f16s), shape),
            GgmlDType::BF16 => Matrix::bf16(Elements::within(&bytes, at, bf16s), shape),
            _ => {
                // Blocks begin with a scale of two or four bytes; a copy begins where any of them may.
                let slice = &bytes.as_slice()[at];
                let is_aligned = (slice.as_ptr() as usize).is_multiple_of(8);
                let data = if is_aligned { Cow::Borrowed(slice) } else { Cow::Owned(slice.to_vec()) };
                Matrix::quantised(QTensor::new(
                    QStorage::from_data(data, &Device::Cpu, dtype)?,
                    shape.to_vec(),
                )?)?
            }
        })
    }

    fn vector(&mut self, name: &str, len: usize) -> Result<Vec<f32>> {
        let info = self.info(name, &[len])?;
        let vector = self.header.vector(self.bytes.as_slice(), info)?;
        Ok(match self.head_rows(name) {
            None => vector,
            Some(rows) => {
                let halves = |head: &[f32]| {
                    let (first, second) = (head.iter().step_by(2), head.iter().skip(1).step_by(2));
                    first.chain(second).copied().collect::<Vec<_>>()
                };
                vector.chunks(rows).flat_map(halves).collect()
            }
        })
    }

    fn dtype(&self) -> String {
        // The type of most bytes; embeddings and norms are often of another one.
        let mut bytes = std::collections::BTreeMap::new();
        for info in self.header.tensors().values() {
            *bytes.entry(format!("{:?}", info.dtype)).or_insert(0) += info.at.len();
        }
        bytes.into_iter().max_by_key(|(_, bytes)| *bytes).map_or_else(String::new, |(name, _)| spelled(&name))
    }

    fn bytes(&self) -> u64 {
        self.header.tensors().values().map(|info| info.at.len() as u64).sum()
    }

    fn copied_bytes(&self) -> u64 {
        let blocks = self.header.tensors().values().filter(|info| info.dtype.block_size() > 1);
        blocks.map(|info| info.at.len() as u64).sum()
    }
}

/// `Q4K` as people spell it: `q4_k`.
fn spelled(name: &str) -> String {
    let name = name.to_lowercase();
    match name.strip_suffix('k') {
        Some(bits) => format!("{bits}_k"),
        None => name,
    }
}
