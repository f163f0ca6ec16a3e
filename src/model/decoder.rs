//! The decoder's linear algebra: embedding, projections, feed-forward, head. Rotation, attention and the cache lie
//! between [`Decoder::qkv`] and [`Decoder::mix`] and belong to the engine.
//!
//! A row is one token: a batch of rows may be a chunk of one sequence or one token each of many. Nothing here looks at
//! another row.

use std::io::{Read, Seek};

use candle_core::{CpuStorage, Device, Storage, Tensor};
use candle_nn::ops::{rms_norm, swiglu};
use rand::Rng;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use super::weights::{self, Weights};
use super::{Config, Error, Result};
use crate::event::ModelCard;

/// Rows of queries, keys and values before rotation, contiguous, one row per token.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Qkv {
    /// `[n][heads][head_dim]`.
    pub q: Vec<f32>,
    /// `[n][kv_heads][head_dim]`.
    pub k: Vec<f32>,
    /// `[n][kv_heads][head_dim]`.
    pub v: Vec<f32>,
}

/// A Llama-family decoder with f32 weights on the CPU.
#[derive(Debug)]
pub struct Decoder {
    card: ModelCard,
    config: Config,
    /// `[vocab, hidden]`; `None` where the head holds the same numbers.
    embedding: Option<Tensor>,
    layers: Vec<Layer>,
    /// `[hidden]`.
    final_norm: Tensor,
    /// `[hidden, vocab]`.
    head: Tensor,
}

/// Projections are contiguous `[in, out]`, the file's rows transposed: with the few rows of a decode step on the left, a
/// product then streams them once, where views of `[out, in]` rows take up to four times as long. Those that share an
/// input are fused into one.
#[derive(Debug)]
struct Layer {
    attention_norm: Tensor,
    qkv: Tensor,
    output: Tensor,
    mlp_norm: Tensor,
    gate_up: Tensor,
    down: Tensor,
}

impl Decoder {
    /// Reads the weights of a configuration.
    pub(super) fn load<R: Read + Seek>(
        config: Config,
        mut file: Weights<R>,
        name: String,
        source: String,
    ) -> Result<Self> {
        file.check(&config)?;
        let card = config.card(name, source, file.dtype(weights::EMBEDDING));
        Self::assemble(config, card, |name, shape, out| file.append(name, shape, out))
    }

    /// A decoder of the given shape with seeded random weights, for benchmarks and tests: uniform with the variance
    /// that keeps activations at their scale, norms at one.
    ///
    /// # Errors
    /// A configuration that [`Config::parse`] would refuse.
    pub fn random(config: Config, seed: u64) -> Result<Self> {
        config.check("random")?;
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let card = config.card("random".into(), String::new(), "f32".into());
        Self::assemble(config, card, |_, shape, out| {
            match *shape {
                [_, inputs] => {
                    let limit = (3.0 / inputs as f32).sqrt();
                    let size: usize = shape.iter().product();
                    out.extend((0..size).map(|_| rng.random_range(-limit..limit)));
                }
                _ => out.resize(out.len() + shape.iter().product::<usize>(), 1.0),
            }
            Ok(())
        })
    }

    /// Builds the fused weights from a source that appends a tensor's elements to a buffer.
    fn assemble(
        config: Config,
        card: ModelCard,
        mut append: impl FnMut(&str, &[usize], &mut Vec<f32>) -> Result<()>,
    ) -> Result<Self> {
        let Config { hidden, intermediate, heads, kv_heads, head_dim, vocab, .. } = config;
        let (q, kv) = (heads * head_dim, kv_heads * head_dim);
        let mut vector = |name: &str| -> Result<Tensor> {
            let mut out = Vec::with_capacity(hidden);
            append(name, &[hidden], &mut out)?;
            Ok(Tensor::from_vec(out, hidden, &Device::Cpu)?)
        };
        let norms = (0..config.layers)
            .map(|layer| {
                let name = |part| weights::part_name(layer, part);
                Ok((vector(&name("input_layernorm"))?, vector(&name("post_attention_layernorm"))?))
            })
            .collect::<Result<Vec<_>>>()?;
        let final_norm = vector(weights::FINAL_NORM)?;

        // One `[in, out]` matrix of all named parts, side by side.
        let mut part = Vec::new();
        let mut matrix = |parts: &[(String, usize)], inputs: usize| -> Result<Tensor> {
            let outputs: usize = parts.iter().map(|(_, rows)| rows).sum();
            let mut fused = vec![0.0; inputs * outputs];
            let mut first = 0;
            for (name, rows) in parts {
                part.clear();
                append(name, &[*rows, inputs], &mut part)?;
                transpose(&part, inputs, &mut fused[first..], outputs);
                first += rows;
            }
            Ok(Tensor::from_vec(fused, (inputs, outputs), &Device::Cpu)?)
        };
        let mut layers = Vec::with_capacity(config.layers);
        for (layer, (attention_norm, mlp_norm)) in norms.into_iter().enumerate() {
            let part = |name, rows| (weights::part_name(layer, name), rows);
            let qkv =
                [part("self_attn.q_proj", q), part("self_attn.k_proj", kv), part("self_attn.v_proj", kv)];
            let gate_up = [part("mlp.gate_proj", intermediate), part("mlp.up_proj", intermediate)];
            layers.push(Layer {
                attention_norm,
                qkv: matrix(&qkv, hidden)?,
                output: matrix(&[part("self_attn.o_proj", hidden)], q)?,
                mlp_norm,
                gate_up: matrix(&gate_up, hidden)?,
                down: matrix(&[part("mlp.down_proj", hidden)], intermediate)?,
            });
        }
        let head = if config.tied { weights::EMBEDDING } else { weights::HEAD };
        let head = matrix(&[(head.into(), vocab)], hidden)?;
        let embedding = if config.tied {
            None
        } else {
            let mut rows = Vec::with_capacity(vocab * hidden);
            append(weights::EMBEDDING, &[vocab, hidden], &mut rows)?;
            Some(Tensor::from_vec(rows, (vocab, hidden), &Device::Cpu)?)
        };
        Ok(Self { card, config, embedding, layers, final_norm, head })
    }

    /// What pictures and byte counts need to know.
    pub const fn card(&self) -> &ModelCard {
        &self.card
    }

    /// Shape and constants.
    pub const fn config(&self) -> &Config {
        &self.config
    }

    /// Embedding rows, `[n, hidden]`.
    ///
    /// # Errors
    /// [`Error::Id`] for an id outside the vocabulary.
    pub fn embed(&self, ids: &[u32]) -> Result<Tensor> {
        let vocab = self.config.vocab;
        if let Some(&id) = ids.iter().find(|id| **id as usize >= vocab) {
            return Err(Error::Id { id, vocab });
        }
        let ids = Tensor::from_slice(ids, ids.len(), &Device::Cpu)?;
        Ok(match &self.embedding {
            Some(rows) => rows.index_select(&ids, 0)?,
            None => self.head.index_select(&ids, 1)?.t()?.contiguous()?,
        })
    }

    /// Norm and the Q, K and V projections of a layer's input `[n, hidden]`; rotation is left to the caller.
    pub fn qkv(&self, layer: usize, x: &Tensor) -> Result<Qkv> {
        let weights = &self.layers[layer];
        let fused = self.norm(x, &weights.attention_norm)?.matmul(&weights.qkv)?;
        let Config { heads, kv_heads, head_dim, .. } = self.config;
        let (q_width, kv_width) = (heads * head_dim, kv_heads * head_dim);
        let rows = fused.dim(0)?;
        let mut out = Qkv {
            q: Vec::with_capacity(rows * q_width),
            k: Vec::with_capacity(rows * kv_width),
            v: Vec::with_capacity(rows * kv_width),
        };
        with_rows(&fused, |fused| {
            for row in fused.chunks_exact(q_width + 2 * kv_width) {
                let (q, kv) = row.split_at(q_width);
                let (k, v) = kv.split_at(kv_width);
                out.q.extend_from_slice(q);
                out.k.extend_from_slice(k);
                out.v.extend_from_slice(v);
            }
        })?;
        Ok(out)
    }

    /// The rest of a layer: its input `x` `[n, hidden]` plus the output projection of the heads' `attention`
    /// (`[n][heads][head_dim]`), then norm and feed-forward, each added to the residual stream.
    pub fn mix(&self, layer: usize, x: Tensor, attention: &[f32]) -> Result<Tensor> {
        let weights = &self.layers[layer];
        let shape = (x.dim(0)?, self.config.heads * self.config.head_dim);
        let attention = Tensor::from_slice(attention, shape, &Device::Cpu)?;
        let x = (x + attention.matmul(&weights.output)?)?;
        let gate_up = self.norm(&x, &weights.mlp_norm)?.matmul(&weights.gate_up)?;
        let mlp = swiglu(&gate_up)?.matmul(&weights.down)?;
        Ok((x + mlp)?)
    }

    /// Final norm and head of the rows wanted, `[m, hidden]`: logits `[m][vocab]`.
    pub fn logits(&self, x: &Tensor) -> Result<Vec<f32>> {
        let logits = self.norm(x, &self.final_norm)?.matmul(&self.head)?;
        Ok(logits.flatten_all()?.to_vec1()?)
    }

    fn norm(&self, x: &Tensor, weight: &Tensor) -> Result<Tensor> {
        Ok(rms_norm(&x.contiguous()?, weight, self.config.rms_norm_eps as f32)?)
    }
}

/// Writes `[out, in]` rows into columns of a row-major matrix `width` wide, whose first column `to` begins at.
fn transpose(rows: &[f32], inputs: usize, to: &mut [f32], width: usize) {
    /// Side of a tile that stays in the first-level cache, rows and columns alike.
    const TILE: usize = 32;
    for (band, rows) in rows.chunks(TILE * inputs).enumerate() {
        for left in (0..inputs).step_by(TILE) {
            let right = (left + TILE).min(inputs);
            for (row, values) in rows.chunks_exact(inputs).enumerate() {
                let column = band * TILE + row;
                for (input, value) in (left..right).zip(&values[left..right]) {
                    to[input * width + column] = *value;
                }
            }
        }
    }
}

/// Reads a fresh contiguous f32 result in place, without the copy that `to_vec1` makes.
fn with_rows(tensor: &Tensor, read: impl FnOnce(&[f32])) -> Result<()> {
    let (storage, layout) = tensor.storage_and_layout();
    match (&*storage, layout.contiguous_offsets()) {
        (Storage::Cpu(CpuStorage::F32(data)), Some((start, end))) => {
            read(&data[start..end]);
            Ok(())
        }
        _ => Err(candle_core::Error::Msg("a projection is not contiguous f32 on the CPU".into()).into()),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Three query heads, one KV head, a head size that is not hidden / heads, an untied head.
    pub(crate) fn odd_config() -> Config {
        Config {
            family: "llama".into(),
            hidden: 20,
            intermediate: 28,
            layers: 2,
            heads: 3,
            kv_heads: 1,
            head_dim: 6,
            vocab: 300,
            context: 64,
            rope_theta: 1e4,
            rms_norm_eps: 1e-5,
            tied: false,
            bos: Some(256),
            eos: vec![],
            arch: crate::model::config::Arch::default(),
        }
    }

    #[test]
    fn rows_do_not_see_each_other() {
        let decoder = Decoder::random(odd_config(), 7).unwrap();
        let forward = |ids: &[u32]| {
            let x = decoder.embed(ids).unwrap();
            let qkv = decoder.qkv(1, &x).unwrap();
            let x = decoder.mix(0, x, &qkv.q).unwrap();
            (qkv, decoder.logits(&x).unwrap())
        };
        let (many, many_logits) = forward(&[5, 299, 0]);
        assert_eq!((many.q.len(), many.k.len(), many.v.len()), (3 * 18, 3 * 6, 3 * 6));
        assert_eq!(many_logits.len(), 3 * 300);
        let (one, one_logits) = forward(&[299]);
        let close = |a: &[f32], b: &[f32]| a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-5);
        assert!(
            close(&one.q, &many.q[18..36]) && close(&one.k, &many.k[6..12]) && close(&one.v, &many.v[6..12])
        );
        assert!(close(&one_logits, &many_logits[300..600]));
    }

    #[test]
    fn a_transposed_part_lands_in_its_columns() {
        let (outputs, inputs, width, first) = (40, 70, 100, 13);
        let rows: Vec<f32> = (0..outputs * inputs).map(|i| i as f32).collect();
        let mut to = vec![-1.0; inputs * width];
        transpose(&rows, inputs, &mut to[first..], width);
        for input in 0..inputs {
            for column in 0..width {
                let output = column.wrapping_sub(first);
                let expected = if output < outputs { rows[output * inputs + input] } else { -1.0 };
                assert_eq!(to[input * width + column], expected);
            }
        }
    }

    #[test]
    fn the_seed_makes_the_weights() {
        let logits = |seed| {
            let decoder = Decoder::random(odd_config(), seed).unwrap();
            decoder.logits(&decoder.embed(&[1]).unwrap()).unwrap()
        };
        assert_eq!(logits(1), logits(1));
        assert_ne!(logits(1), logits(2));
    }

    #[test]
    fn faults_are_errors_not_panics() {
        let decoder = Decoder::random(odd_config(), 7).unwrap();
        let text = decoder.embed(&[3, 300]).unwrap_err().to_string();
        assert_eq!(text, "token id 300 is outside the model's vocabulary of 300");
        let x = decoder.embed(&[3]).unwrap();
        assert!(matches!(decoder.mix(0, x, &[0.0; 17]), Err(Error::Tensor(_))));
        let bad = Config { kv_heads: 2, ..odd_config() };
        assert!(Decoder::random(bad, 0).unwrap_err().is_bad_input());
        assert!(Decoder::random(Config { layers: 0, ..odd_config() }, 0).is_err());
    }
}
