//! The decoder's linear algebra: embedding, projections, feed-forward, head. Rotation, attention and the cache lie
//! between [`Decoder::qkv`] and [`Decoder::mix`] and belong to the engine.
//!
//! A row is one token: a batch of rows may be a chunk of one sequence or one token each of many. Nothing here looks at
//! another row.

use std::sync::{Arc, Mutex, PoisonError};

use rand::Rng;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;

use super::config::Activation;
use super::matrix::{Linear, Matrix};
use super::on_device::OnDevice;
use super::tensors::{self, Projection};
use super::weights::{self, Source};
use super::{Config, Error, Result};
use crate::device::Isa;
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

/// A decoder on the CPU: weights in the type they came in, activations in f32.
#[derive(Debug)]
pub struct Decoder {
    card: ModelCard,
    config: Config,
    /// `[vocab][hidden]`; `None` where the head holds the same numbers.
    embedding: Option<Matrix>,
    layers: Vec<Layer>,
    /// `[hidden]`.
    final_norm: Vec<f32>,
    /// `[vocab][hidden]`.
    head: Matrix,
    /// The copy of the weights on a device, if there is one.
    placed: Mutex<Option<Arc<OnDevice>>>,
}

/// Projections that share an input are done together.
#[derive(Debug)]
pub(super) struct Layer {
    pub(super) attention_norm: Vec<f32>,
    pub(super) qkv: Linear,
    /// Of each head's queries and keys.
    pub(super) qk_norms: Option<[Vec<f32>; 2]>,
    pub(super) output: Linear,
    /// Of what attention adds to the stream.
    pub(super) output_norm: Option<Vec<f32>>,
    pub(super) mlp_norm: Vec<f32>,
    pub(super) gate_up: Linear,
    pub(super) down: Linear,
    /// Of what the feed-forward adds to the stream.
    pub(super) down_norm: Option<Vec<f32>>,
}

impl Layer {
    /// Bytes of its matrices.
    pub(super) fn bytes(&self) -> u64 {
        let projections = [&self.qkv, &self.output, &self.gate_up, &self.down];
        projections.into_iter().flat_map(Linear::parts).map(Matrix::bytes).sum()
    }
}

impl Decoder {
    /// Takes the weights of a configuration; `change` makes of every matrix what is kept.
    pub(super) fn load(
        config: Config,
        mut source: impl Source,
        (name, path): (String, String),
        change: impl Fn(Matrix) -> Result<Matrix>,
    ) -> Result<Self> {
        weights::check(&source, &config)?;
        let card = config.card(name, path, source.dtype());
        let Config { hidden, head_dim, vocab, .. } = config;
        let (projections, names) = (tensors::projections(&config), tensors::norms(&config));
        let mut layers = Vec::with_capacity(config.layers);
        for layer in 0..config.layers {
            let mut linear = |projection: &Projection| linear(&mut source, layer, projection, &change);
            let [qkv, output, gate_up, down] = projections.each_ref().map(&mut linear);
            let mut norm = |part: &str, len: usize| {
                norm(&mut source, &weights::part_name(layer, part), len, config.arch.norm_offset)
            };
            layers.push(Layer {
                attention_norm: norm(names.attention, hidden)?,
                qkv: qkv?,
                qk_norms: match names.qk {
                    Some([q, k]) => Some([norm(q, head_dim)?, norm(k, head_dim)?]),
                    None => None,
                },
                output: output?,
                output_norm: names.output.map(|name| norm(name, hidden)).transpose()?,
                mlp_norm: norm(names.mlp, hidden)?,
                gate_up: gate_up?,
                down: down?,
                down_norm: names.down.map(|name| norm(name, hidden)).transpose()?,
            });
        }
        let final_norm = norm(&mut source, weights::FINAL_NORM, hidden, config.arch.norm_offset)?;
        let head = if config.tied { weights::EMBEDDING } else { weights::HEAD };
        let head = change(source.matrix(head, [vocab, hidden])?)?;
        let embedding =
            if config.tied { None } else { Some(source.matrix(weights::EMBEDDING, [vocab, hidden])?) };
        Ok(Self { card, config, embedding, layers, final_norm, head, placed: Mutex::new(None) })
    }

    /// A decoder of the given shape with seeded random weights, for benchmarks and tests: uniform with the variance
    /// that keeps activations at their scale, norms at one.
    ///
    /// # Errors
    /// A configuration that [`Config::parse`] would refuse.
    pub fn random(config: Config, seed: u64) -> Result<Self> {
        config.check("random")?;
        let weights = Random { rng: ChaCha8Rng::seed_from_u64(seed), norm: 1.0 - config.arch.norm_offset };
        Self::load(config, weights, ("random".into(), String::new()), Ok)
    }

    /// Elements of all tensors that a configuration asks for.
    #[cfg(test)]
    pub(crate) fn elements(config: &Config) -> u64 {
        let mut sum = 0;
        let all = weights::visit(config, |_, shape| {
            sum += shape.iter().product::<usize>() as u64;
            Ok(())
        });
        all.map_or(0, |()| sum)
    }

    /// A decoder of tensors by name: shape, and elements row after row.
    #[cfg(test)]
    pub(crate) fn of_tensors(
        config: Config,
        tensors: std::collections::HashMap<String, (Vec<usize>, Vec<f32>)>,
    ) -> Result<Self> {
        Self::load(config, tests::Named(tensors), ("named".into(), String::new()), Ok)
    }

    /// What pictures and byte counts need to know.
    pub const fn card(&self) -> &ModelCard {
        &self.card
    }

    /// Puts down which type the weights were asked to be put into.
    pub(super) fn note_weights(&mut self, weights: Option<super::Precision>) {
        self.card.weights_asked = weights.map(|weights| weights.to_string()).unwrap_or_default();
    }

    /// Shape and constants.
    pub const fn config(&self) -> &Config {
        &self.config
    }

    /// Embedding rows, `[n][hidden]`.
    ///
    /// # Errors
    /// [`Error::Id`] for an id outside the vocabulary.
    pub fn embed(&self, ids: &[u32]) -> Result<Vec<f32>> {
        let vocab = self.config.vocab;
        if let Some(&id) = ids.iter().find(|id| **id as usize >= vocab) {
            return Err(Error::Id { id, vocab });
        }
        let table = self.embedding.as_ref().unwrap_or(&self.head);
        let mut rows = Vec::with_capacity(ids.len() * self.config.hidden);
        ids.iter().try_for_each(|&id| table.row(id as usize, &mut rows))?;
        scale(&mut rows, self.config.arch.embedding_scale);
        Ok(rows)
    }

    /// Norm and the Q, K and V projections of a layer's input `[n][hidden]`; rotation is left to the caller.
    ///
    /// # Errors
    /// Faults of the tensor library, here and below.
    pub fn qkv(&self, layer: usize, x: &[f32]) -> Result<Qkv> {
        let weights = &self.layers[layer];
        Ok(self.split_qkv(layer, &weights.qkv.product(&self.norm(x, &weights.attention_norm))?))
    }

    /// What the projections of a layer made, rows of queries, keys and values side by side, as such.
    pub(super) fn split_qkv(&self, layer: usize, fused: &[f32]) -> Qkv {
        let weights = &self.layers[layer];
        let Config { heads, kv_heads, head_dim, .. } = self.config;
        let (q_width, kv_width) = (heads * head_dim, kv_heads * head_dim);
        let rows = fused.len() / (q_width + 2 * kv_width);
        let mut out = Qkv {
            q: Vec::with_capacity(rows * q_width),
            k: Vec::with_capacity(rows * kv_width),
            v: Vec::with_capacity(rows * kv_width),
        };
        for row in fused.chunks_exact(q_width + 2 * kv_width) {
            let (q, kv) = row.split_at(q_width);
            let (k, v) = kv.split_at(kv_width);
            out.q.extend_from_slice(q);
            out.k.extend_from_slice(k);
            out.v.extend_from_slice(v);
        }
        if let Some([q, k]) = &weights.qk_norms {
            (out.q, out.k) = (self.norm(&out.q, q), self.norm(&out.k, k));
        }
        scale(&mut out.q, self.config.arch.query_scale);
        out
    }

    /// Layers, norm of the last stream `[hidden]`, and head.
    pub(super) fn parts(&self) -> (&[Layer], &[f32], &Matrix) {
        (&self.layers, &self.final_norm, &self.head)
    }

    /// The copy of the weights on a device; made when it is first asked for, and kept.
    ///
    /// # Errors
    /// There is no room for it, or the device fails.
    pub fn on_device(&self, device: &candle_core::Device) -> Result<Arc<OnDevice>> {
        let mut placed = self.placed.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(placed) = placed.as_ref().filter(|placed| placed.device().same_device(device)) {
            return Ok(Arc::clone(placed));
        }
        // The other one is given up first: both may not fit.
        *placed = None;
        Ok(Arc::clone(placed.insert(Arc::new(OnDevice::place(self, device)?))))
    }

    /// The rest of a layer: its input `x` `[n][hidden]` plus the output projection of the heads' `attention`
    /// (`[n][heads][head_dim]`), then norm and feed-forward, each added to the residual stream.
    pub fn mix(&self, layer: usize, mut x: Vec<f32>, attention: &[f32]) -> Result<Vec<f32>> {
        let weights = &self.layers[layer];
        self.add(&mut x, weights.output.product(attention)?, weights.output_norm.as_deref());
        let gate_up = weights.gate_up.product(&self.norm(&x, &weights.mlp_norm))?;
        let inner = gated(&gate_up, self.config.intermediate, self.config.arch.activation);
        self.add(&mut x, weights.down.product(&inner)?, weights.down_norm.as_deref());
        Ok(x)
    }

    /// Adds what a part of a layer made to the stream, through a norm if it has one.
    fn add(&self, x: &mut [f32], mut made: Vec<f32>, norm: Option<&[f32]>) {
        if let Some(norm) = norm {
            made = self.norm(&made, norm);
        }
        x.iter_mut().zip(&made).for_each(|(x, made)| *x += made);
    }

    /// Final norm and head of the rows wanted, `[m][hidden]`: logits `[m][vocab]`.
    pub fn logits(&self, x: &[f32]) -> Result<Vec<f32>> {
        let normed = self.norm(x, &self.final_norm);
        let mut logits = vec![0.0; x.len() / self.config.hidden * self.config.vocab];
        self.head.product(&normed, &mut logits, self.config.vocab)?;
        self.cap(&mut logits);
        Ok(logits)
    }

    /// Bounds logits as the family does.
    pub(super) fn cap(&self, logits: &mut [f32]) {
        if let Some(cap) = self.config.arch.logit_softcap {
            for logit in logits {
                *logit = cap * (*logit / cap).tanh();
            }
        }
    }

    /// Rows over the root of their mean square, times the weight (RMS norm, arXiv 1910.07467).
    fn norm(&self, x: &[f32], weight: &[f32]) -> Vec<f32> {
        let mut out = Vec::with_capacity(x.len());
        for row in x.chunks_exact(weight.len()) {
            let squares: f64 = row.iter().map(|&x| f64::from(x) * f64::from(x)).sum();
            let scale = (1.0 / (squares / row.len() as f64 + self.config.rms_norm_eps).sqrt()) as f32;
            out.extend(row.iter().zip(weight).map(|(x, weight)| x * scale * weight));
        }
        out
    }
}

/// The weights of a projection, parts side by side; `change` makes of every matrix what is kept.
fn linear(
    source: &mut impl Source,
    layer: usize,
    Projection { parts, inputs, has_bias }: &Projection,
    change: impl Fn(Matrix) -> Result<Matrix>,
) -> Result<Linear> {
    let (mut matrices, mut bias) = (Vec::with_capacity(parts.len()), Vec::new());
    for &(part, outputs) in parts {
        matrices.push(change(source.matrix(&weights::part_name(layer, part), [outputs, *inputs])?)?);
        if *has_bias {
            bias.extend(source.vector(&weights::bias_name(layer, part), outputs)?);
        }
    }
    Ok(Linear::new(matrices, bias))
}

/// The weights of a norm, with what the family adds to them.
fn norm(source: &mut impl Source, name: &str, len: usize, offset: f32) -> Result<Vec<f32>> {
    let mut weights = source.vector(name, len)?;
    if offset != 0.0 {
        for weight in &mut weights {
            *weight += offset;
        }
    }
    Ok(weights)
}

fn scale(rows: &mut [f32], by: f32) {
    if by != 1.0 {
        for x in rows {
            *x *= by;
        }
    }
}

/// `act(gate) * up` of rows `[gate][up]`, each `width` wide (SwiGLU, arXiv 2002.05202, or GeGLU).
fn gated(gate_up: &[f32], width: usize, activation: Activation) -> Vec<f32> {
    /// Elements of a prompt's chunk that are worth more than one thread.
    const MANY: usize = 1 << 16;
    let mut out = vec![0.0; gate_up.len() / 2];
    let gate = |(row, out): (&[f32], &mut [f32])| {
        let (gates, up) = row.split_at(width);
        match activation {
            Activation::Silu => Isa::best().swiglu(gates, up, out),
            Activation::GeluTanh => {
                let gated = gates.iter().zip(up).map(|(&gate, up)| gelu(gate) * up);
                out.iter_mut().zip(gated).for_each(|(out, x)| *out = x);
            }
        }
    };
    if gate_up.len() < MANY {
        gate_up.chunks_exact(2 * width).zip(out.chunks_exact_mut(width)).for_each(gate);
    } else {
        gate_up.par_chunks_exact(2 * width).zip(out.par_chunks_exact_mut(width)).for_each(gate);
    }
    out
}

/// The approximation with tanh (arXiv 1606.08415).
fn gelu(x: f32) -> f32 {
    const ROOT_OF_TWO_BY_PI: f32 = 0.797_884_6;
    0.5 * x * (1.0 + (ROOT_OF_TWO_BY_PI * (x + 0.044_715 * x * x * x)).tanh())
}

/// Weights out of a seed.
struct Random {
    rng: ChaCha8Rng,
    /// Elements of norms.
    norm: f32,
}

impl Source for Random {
    fn check(&self, _: &str, _: &[usize]) -> Result<()> {
        Ok(())
    }

    fn matrix(&mut self, _: &str, shape @ [outputs, inputs]: [usize; 2]) -> Result<Matrix> {
        let limit = (3.0 / inputs as f32).sqrt();
        let elements: Vec<f32> =
            (0..outputs * inputs).map(|_| self.rng.random_range(-limit..limit)).collect();
        Ok(Matrix::f32(elements.into(), shape))
    }

    fn vector(&mut self, name: &str, len: usize) -> Result<Vec<f32>> {
        if name.rsplit('.').next() == Some("bias") {
            return Ok((0..len).map(|_| self.rng.random_range(-0.1..0.1)).collect());
        }
        Ok(vec![self.norm; len])
    }

    fn dtype(&self) -> String {
        "f32".into()
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::collections::HashMap;

    use super::*;
    use crate::model::config::Arch;

    /// Tensors in memory, with nothing beside those that are asked for.
    pub(in crate::model) struct Named(pub(in crate::model) HashMap<String, (Vec<usize>, Vec<f32>)>);

    impl Source for Named {
        fn check(&self, name: &str, shape: &[usize]) -> Result<()> {
            let fault = |reason| Error::Weights { path: "named".into(), reason };
            match self.0.get(name) {
                Some((own, _)) if own == shape => Ok(()),
                Some((own, _)) => Err(fault(format!("{name} is {own:?}"))),
                None => Err(fault(format!("no {name}"))),
            }
        }

        fn matrix(&mut self, name: &str, shape: [usize; 2]) -> Result<Matrix> {
            let (own, elements) = &self.0[name];
            assert_eq!(own.as_slice(), shape, "{name}");
            Ok(Matrix::f32(elements.clone().into(), shape))
        }

        fn vector(&mut self, name: &str, len: usize) -> Result<Vec<f32>> {
            let (own, elements) = &self.0[name];
            assert_eq!(own.as_slice(), [len], "{name}");
            Ok(elements.clone())
        }

        fn dtype(&self) -> String {
            "f32".into()
        }

        fn bytes(&self) -> u64 {
            0
        }
    }

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
            arch: Arch::default(),
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
        assert_eq!(x.len(), 20);
        let bad = Config { kv_heads: 2, ..odd_config() };
        assert!(Decoder::random(bad, 0).unwrap_err().is_bad_input());
        assert!(Decoder::random(Config { layers: 0, ..odd_config() }, 0).is_err());
    }
}
