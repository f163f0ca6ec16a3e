//! The network being trained: a small Llama (RMSNorm before each part, rotary attention with shared KV heads, SwiGLU,
//! tied embeddings) on the library's autograd, with parameters named as in Hugging Face checkpoints.

use std::collections::HashMap;
use std::sync::Arc;

use candle_core::{DType, Device, Result, Tensor, Var};
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, StandardNormal};

use super::attention::{CausalAttention, HEAD_DIM, Mask, Rotation};
use super::ops::{RmsNorm, SwiGlu};

/// Sizes of a network.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Shape {
    pub(crate) vocab: usize,
    pub(crate) dim: usize,
    pub(crate) ff: usize,
    pub(crate) layers: usize,
    pub(crate) heads: usize,
    pub(crate) kv_heads: usize,
    pub(crate) theta: f64,
    pub(crate) eps: f32,
}

impl Shape {
    /// Query heads that share a KV head.
    pub(crate) fn group(&self) -> usize {
        self.heads / self.kv_heads
    }
}

/// Weights `[out, in]` of a layer.
pub(crate) struct Layer {
    pub(crate) attention_norm: Var,
    pub(crate) q: Var,
    pub(crate) k: Var,
    pub(crate) v: Var,
    pub(crate) o: Var,
    pub(crate) mlp_norm: Var,
    pub(crate) gate: Var,
    pub(crate) up: Var,
    pub(crate) down: Var,
}

/// All parameters.
pub(crate) struct Net {
    pub(crate) shape: Shape,
    pub(crate) embedding: Var,
    pub(crate) layers: Vec<Layer>,
    pub(crate) norm: Var,
}

/// Where the tokens of a batch stand and what they may look at.
pub(crate) struct Places {
    pub(crate) len: usize,
    pub(crate) positions: Vec<u32>,
    pub(crate) mask: Mask,
}

impl Net {
    /// Random weights: matrices of deviation 0.7 / √in (what writes to the residual stream less by √(2 layers)),
    /// embeddings of 0.02.
    pub(crate) fn random(shape: Shape, rng: &mut ChaCha8Rng) -> Result<Self> {
        let (attention, kv) = (shape.heads * HEAD_DIM, shape.kv_heads * HEAD_DIM);
        let mut matrix = |rows: usize, cols: usize, deviation: f64| {
            let x: Vec<f32> = (0..rows * cols)
                .map(|_| {
                    let z: f64 = StandardNormal.sample(rng);
                    (z * deviation) as f32
                })
                .collect();
            Var::from_vec(x, (rows, cols), &Device::Cpu)
        };
        let ones = |n: usize| Var::ones(n, DType::F32, &Device::Cpu);
        let inner = |fan_in: usize| 0.7 / (fan_in as f64).sqrt();
        let outer = |fan_in: usize| inner(fan_in) / ((2 * shape.layers) as f64).sqrt();
        let (dim, ff) = (shape.dim, shape.ff);
        let embedding = matrix(shape.vocab, dim, 0.02)?;
        let layers = (0..shape.layers)
            .map(|_| {
                Ok(Layer {
                    attention_norm: ones(dim)?,
                    q: matrix(attention, dim, inner(dim))?,
                    k: matrix(kv, dim, inner(dim))?,
                    v: matrix(kv, dim, inner(dim))?,
                    o: matrix(dim, attention, outer(attention))?,
                    mlp_norm: ones(dim)?,
                    gate: matrix(ff, dim, inner(dim))?,
                    up: matrix(ff, dim, inner(dim))?,
                    down: matrix(dim, ff, outer(ff))?,
                })
            })
            .collect::<Result<_>>()?;
        Ok(Self { shape, embedding, layers, norm: ones(dim)? })
    }

    /// Every parameter with its name, in a fixed order.
    pub(crate) fn parameters(&self) -> Vec<(String, &Var)> {
        let mut all = vec![("model.embed_tokens.weight".to_owned(), &self.embedding)];
        for (i, layer) in self.layers.iter().enumerate() {
            for (name, var) in [
                ("input_layernorm", &layer.attention_norm),
                ("self_attn.q_proj", &layer.q),
                ("self_attn.k_proj", &layer.k),
                ("self_attn.v_proj", &layer.v),
                ("self_attn.o_proj", &layer.o),
                ("post_attention_layernorm", &layer.mlp_norm),
                ("mlp.gate_proj", &layer.gate),
                ("mlp.up_proj", &layer.up),
                ("mlp.down_proj", &layer.down),
            ] {
                all.push((format!("model.layers.{i}.{name}.weight"), var));
            }
        }
        all.push(("model.norm.weight".to_owned(), &self.norm));
        all
    }

    /// Takes all parameters from `tensors`.
    pub(crate) fn set(&self, tensors: &HashMap<String, Tensor>) -> Result<()> {
        for (name, var) in self.parameters() {
            let tensor =
                tensors.get(&name).ok_or_else(|| candle_core::Error::msg(format!("no tensor {name}")))?;
            var.set(tensor)?;
        }
        Ok(())
    }

    /// Logits `[rows, vocab]` of sequences laid one after the other.
    pub(crate) fn forward(&self, ids: &[u32], places: &Places) -> Result<Tensor> {
        let shape = self.shape;
        let attention = CausalAttention {
            heads: shape.heads,
            kv_heads: shape.kv_heads,
            len: places.len,
            mask: places.mask,
            rotation: Arc::new(Rotation::new(&places.positions, shape.theta)),
        };
        let norm = |x: &Tensor, w: &Var| x.apply_op2(w, RmsNorm { eps: shape.eps });
        let mut x = self.embedding.index_select(&Tensor::from_slice(ids, ids.len(), &Device::Cpu)?, 0)?;
        for layer in &self.layers {
            let h = norm(&x, &layer.attention_norm)?;
            let (q, k, v) = (h.matmul(&layer.q.t()?)?, h.matmul(&layer.k.t()?)?, h.matmul(&layer.v.t()?)?);
            let mixed = q.apply_op3(&k, &v, attention.clone())?;
            x = (x + mixed.matmul(&layer.o.t()?)?)?;
            let h = norm(&x, &layer.mlp_norm)?;
            let gated = h.matmul(&layer.gate.t()?)?.apply_op2(&h.matmul(&layer.up.t()?)?, SwiGlu)?;
            x = (x + gated.matmul(&layer.down.t()?)?)?;
        }
        norm(&x, &self.norm)?.matmul(&self.embedding.t()?)
    }
}
