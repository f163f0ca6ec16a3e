//! `config.json`: what is read, what is refused, by field and value.
//!
//! One [`Config`] serves every family: the sizes that all have, and an [`Arch`] of what differs.

mod family;
mod fields;
mod rotation;
#[cfg(test)]
mod tests;
mod windows;

use super::{Error, Result};
use crate::attention::{Scaling, Scoring};
use crate::event::ModelCard;

pub(super) use family::Family;
pub(super) use fields::Fields;
pub(super) use windows::{Pattern, windows};

/// Largest width of any matrix side (residual stream, feed-forward, all heads of a layer together).
const MAX_WIDTH: u64 = 1 << 20;
/// Most decoder layers.
const MAX_LAYERS: u64 = 1 << 12;
/// Most query heads per layer.
const MAX_HEADS: u64 = 1 << 12;
/// Most elements per head.
const MAX_HEAD_DIM: u64 = 1 << 10;
/// Largest vocabulary.
const MAX_VOCAB: u64 = 1 << 22;
/// Longest context.
pub(super) const MAX_CONTEXT: u64 = 1 << 26;
/// Most parameters: anything above is a damaged or hostile file, not a model for one machine.
const MAX_PARAMETERS: u64 = 1 << 40;

/// The shape of a decoder (multi-head, grouped-query or multi-query attention, rotary positions in half-split pairs, RMS
/// norms, a gated feed-forward). All sizes are checked: none is zero, `kv_heads` divides `heads`, `head_dim` is even.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// `model_type`.
    pub family: String,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Width of the feed-forward layer.
    pub intermediate: usize,
    /// Decoder layers.
    pub layers: usize,
    /// Query heads per layer.
    pub heads: usize,
    /// KV heads per layer.
    pub kv_heads: usize,
    /// Elements per head; need not be `hidden / heads`.
    pub head_dim: usize,
    /// Rows of the embedding.
    pub vocab: usize,
    /// Longest sequence the model was made for.
    pub context: usize,
    /// Base of the rotary angles: pair `i` of `d` turning elements turns by `position * rope_theta^(-2i / d)`, and pairs
    /// with element `i + d / 2`.
    pub rope_theta: f64,
    /// Added to the mean square in every norm.
    pub rms_norm_eps: f64,
    /// Whether the head shares the embedding's rows.
    pub tied: bool,
    /// Token that begins a sequence.
    pub bos: Option<u32>,
    /// Tokens that end one, ascending.
    pub eos: Vec<u32>,
    /// What the family does otherwise than the plain decoder.
    pub arch: Arch,
}

/// What differs between families of decoders. [`Arch::default`] is Llama 2.
#[derive(Clone, Debug, PartialEq)]
pub struct Arch {
    /// What is added to projections.
    pub biases: Biases,
    /// Queries and keys of each head pass through a norm before the rotation (Qwen3, Gemma 3).
    pub qk_norm: bool,
    /// The file has Q, K and V in one tensor, and gate and up in one (Phi-3).
    pub fused: bool,
    /// Attention and feed-forward pass through a norm before they are added to the stream (Gemma 2 and 3).
    pub post_norms: bool,
    /// Added to the weights of every norm: 1 for Gemma, whose files hold the distance from 1.
    pub norm_offset: f32,
    /// Of the feed-forward's gate.
    pub activation: Activation,
    /// Factor on embedding rows (Gemma: the root of the width).
    pub embedding_scale: f32,
    /// Factor on queries beside attention's `1 / sqrt(head_dim)` (Gemma 2 and 3 scale by another size than a head's).
    pub query_scale: f32,
    /// Scores go through `cap * tanh(score / cap)` before the softmax (Gemma 2).
    pub score_softcap: Option<f32>,
    /// So do logits (Gemma 2).
    pub logit_softcap: Option<f32>,
    /// Leading elements of a head that turn; `None` for all of them.
    pub rotary_dim: Option<usize>,
    /// How the frequencies of the rotation are bent.
    pub rope_scaling: Scaling,
    /// Base of the rotation in layers with a window, which is bent by nothing (Gemma 3).
    pub local_rope_theta: Option<f64>,
    /// Per layer the positions that a query sees, its own included; 0 where it sees all. Empty where no layer has a
    /// window.
    pub windows: Vec<u32>,
}

impl Default for Arch {
    fn default() -> Self {
        Self {
            biases: Biases::default(),
            qk_norm: false,
            fused: false,
            post_norms: false,
            norm_offset: 0.0,
            activation: Activation::Silu,
            embedding_scale: 1.0,
            query_scale: 1.0,
            score_softcap: None,
            logit_softcap: None,
            rotary_dim: None,
            rope_scaling: Scaling::None,
            local_rope_theta: None,
            windows: Vec::new(),
        }
    }
}

/// Which projections add a bias.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Biases {
    /// Q, K and V (Qwen2).
    pub qkv: bool,
    /// The output projection of attention.
    pub output: bool,
    /// All three of the feed-forward.
    pub mlp: bool,
}

/// The function on the feed-forward's gate.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Activation {
    /// `x * sigmoid(x)`.
    #[default]
    Silu,
    /// The Gaussian error linear unit, by its approximation with tanh.
    GeluTanh,
}

impl Config {
    /// Reads a `config.json`; `path` is only named in errors.
    ///
    /// Fields that real files leave out take the values Hugging Face gives them: for Llama `num_key_value_heads` = heads,
    /// `head_dim` = hidden / heads, `rope_theta` 10000, `rms_norm_eps` 1e-6, `max_position_embeddings` 2048.
    ///
    /// # Errors
    /// [`Error::Config`], with the field, its value and what is supported.
    pub fn parse(path: &str, json: &[u8]) -> Result<Self> {
        let whole = Fields::parse(path, json)?;
        let inner = whole.object("text_config")?;
        let fields = inner.as_ref().unwrap_or(&whole);
        let (family, name) = Family::of(&whole, fields)?;
        for fields in [&whole, fields] {
            refuse_quantised(fields)?;
        }
        windows::refuse_other_kinds(fields)?;
        let usual = family.usual();
        let heads = fields.size("num_attention_heads", usual.heads, MAX_HEADS)?;
        let hidden = fields.size("hidden_size", usual.hidden, MAX_WIDTH)?;
        let own_head_dim = hidden.is_multiple_of(heads).then_some(hidden / heads);
        let head_dim = fields.size("head_dim", usual.head_dim.or(own_head_dim), MAX_HEAD_DIM)?;
        let layers = fields.size("num_hidden_layers", usual.layers, MAX_LAYERS)?;
        let context = fields.size("max_position_embeddings", Some(usual.context), MAX_CONTEXT)?;
        let rotation = rotation::Rotation::parse(fields, family, head_dim, context)?;
        let ids = |field| match whole.ids(field)? {
            ids if ids.is_empty() => fields.ids(field),
            ids => Ok(ids),
        };
        let config = Self {
            family: name,
            hidden,
            intermediate: fields.size("intermediate_size", usual.intermediate, MAX_WIDTH)?,
            layers,
            heads,
            kv_heads: fields.size("num_key_value_heads", usual.kv_heads.or(Some(heads)), MAX_HEADS)?,
            head_dim,
            vocab: fields.size("vocab_size", usual.vocab, MAX_VOCAB)?,
            context,
            rope_theta: rotation.theta,
            rms_norm_eps: fields.number("rms_norm_eps", 1e-6)?,
            tied: fields.flag("tie_word_embeddings", whole.flag("tie_word_embeddings", usual.tied)?)?,
            bos: ids("bos_token_id")?.first().copied().or(usual.bos),
            eos: match ids("eos_token_id")? {
                ids if ids.is_empty() => usual.eos.into_iter().collect(),
                ids => ids,
            },
            arch: Arch {
                rotary_dim: (rotation.width != head_dim).then_some(rotation.width),
                rope_scaling: rotation.scaling,
                local_rope_theta: rotation.local_theta,
                windows: windows(fields, Pattern::of(family), layers)?,
                ..family.arch(fields, hidden, head_dim)?
            },
        };
        config.check(path)?;
        Ok(config)
    }

    /// Takes the end tokens of a `generation_config.json` too: some models stop on more than `config.json` says.
    ///
    /// # Errors
    /// [`Error::Config`], as [`Config::parse`].
    pub fn add_generation(&mut self, path: &str, json: &[u8]) -> Result<()> {
        let fields = Fields::parse(path, json)?;
        self.eos.extend(fields.ids("eos_token_id")?);
        self.eos.sort_unstable();
        self.eos.dedup();
        self.check_ids(path)
    }

    /// Width of the fused Q, K and V projection: `(heads + 2 * kv_heads) * head_dim`.
    pub const fn qkv_width(&self) -> usize {
        (self.heads + 2 * self.kv_heads) * self.head_dim
    }

    /// Positions that a query of a layer sees, its own included; `None` where it sees all.
    pub fn window(&self, layer: usize) -> Option<u32> {
        self.arch.windows.get(layer).copied().filter(|&window| window > 0)
    }

    /// What becomes of a layer's scores before the softmax.
    pub fn scoring(&self, layer: usize) -> Scoring {
        Scoring { window: self.window(layer), softcap: self.arch.score_softcap }
    }

    /// What pictures and byte counts need to know. `weights` is the element type of the weights file.
    pub fn card(&self, name: String, source: String, weights: String) -> ModelCard {
        ModelCard {
            name,
            source,
            weights_asked: String::new(),
            family: self.family.clone(),
            layers: self.layers as u32,
            heads: self.heads as u32,
            kv_heads: self.kv_heads as u32,
            head_dim: self.head_dim as u32,
            hidden: self.hidden as u32,
            vocab: self.vocab as u32,
            context: self.context as u32,
            windows: self.arch.windows.clone(),
            parameters: self.parameters(),
            weights,
        }
    }

    /// Number of parameters; a shared embedding counts once.
    pub const fn parameters(&self) -> u64 {
        let [hidden, layers, vocab] = [self.hidden as u64, self.layers as u64, self.vocab as u64];
        let Arch { biases, qk_norm, post_norms, .. } = &self.arch;
        let (qkv, intermediate) = (self.qkv_width() as u64, self.intermediate as u64);
        let mut attention = hidden * (qkv + (self.heads * self.head_dim) as u64);
        let mut mlp = 3 * hidden * intermediate;
        if biases.qkv {
            attention += qkv;
        }
        if biases.output {
            attention += hidden;
        }
        if biases.mlp {
            mlp += 2 * intermediate + hidden;
        }
        if *qk_norm {
            attention += 2 * self.head_dim as u64;
        }
        let norms = if *post_norms { 4 } else { 2 };
        let embeddings = hidden * vocab * if self.tied { 1 } else { 2 };
        layers * (attention + mlp + norms * hidden) + embeddings + hidden
    }

    /// The checks that need more than one field; `path` is only named in errors. No product here can overflow once the
    /// sizes are bounded, so those made by hand are bounded first.
    pub(super) fn check(&self, path: &str) -> Result<()> {
        let Self { heads, kv_heads, head_dim, .. } = *self;
        let fault = |reason| Err(Error::Config { path: path.into(), reason });
        for (field, size, most) in [
            ("hidden_size", self.hidden, MAX_WIDTH),
            ("intermediate_size", self.intermediate, MAX_WIDTH),
            ("num_hidden_layers", self.layers, MAX_LAYERS),
            ("num_attention_heads", heads, MAX_HEADS),
            ("num_key_value_heads", kv_heads, MAX_HEADS),
            ("head_dim", head_dim, MAX_HEAD_DIM),
            ("vocab_size", self.vocab, MAX_VOCAB),
            ("max_position_embeddings", self.context, MAX_CONTEXT),
        ] {
            if !(1..=most).contains(&(size as u64)) {
                return fault(format!("{field} would be {size}; supported: 1 to {most}"));
            }
        }
        if !heads.is_multiple_of(kv_heads) {
            return fault(format!(
                "num_key_value_heads {kv_heads} does not divide num_attention_heads {heads}"
            ));
        }
        if !head_dim.is_multiple_of(2) {
            return fault(format!("head_dim {head_dim} is odd; rotary positions need pairs"));
        }
        if (heads * head_dim) as u64 > MAX_WIDTH {
            return fault(format!(
                "{heads} heads of head_dim {head_dim} are wider than the supported {MAX_WIDTH}"
            ));
        }
        let parameters = self.parameters();
        if parameters > MAX_PARAMETERS {
            return fault(format!(
                "its sizes make {parameters} parameters; at most {MAX_PARAMETERS} are supported"
            ));
        }
        if !(self.rms_norm_eps > 0.0 && self.rms_norm_eps < 1.0) {
            return fault(format!("rms_norm_eps {} is not between 0 and 1", self.rms_norm_eps));
        }
        if !(self.rope_theta >= 1.0 && self.rope_theta.is_finite()) {
            return fault(format!("rope_theta {} is not a number of at least 1", self.rope_theta));
        }
        self.check_arch().map_err(|reason| Error::Config { path: path.into(), reason })?;
        self.check_ids(path)
    }

    fn check_arch(&self) -> std::result::Result<(), String> {
        let Self { head_dim, layers, ref arch, .. } = *self;
        let width = arch.rotary_dim.unwrap_or(head_dim);
        if width == 0 || width > head_dim || !width.is_multiple_of(2) {
            return Err(format!(
                "{width} turning elements of head_dim {head_dim}; rotary positions need pairs"
            ));
        }
        let is_yarn = matches!(arch.rope_scaling, Scaling::Yarn { .. });
        if is_yarn && self.rope_theta <= 1.0 {
            return Err(format!("rope_theta {} is not above 1, which \"yarn\" needs", self.rope_theta));
        }
        if let Scaling::LongRope { short, long, .. } = &arch.rope_scaling
            && [short, long].iter().any(|divisors| divisors.len() != width / 2)
        {
            return Err(format!("\"longrope\" needs {} divisors, short and long", width / 2));
        }
        if let Some(theta) = arch.local_rope_theta.filter(|theta| !(*theta >= 1.0 && theta.is_finite())) {
            return Err(format!("the rotary base {theta} of its windows is not a number of at least 1"));
        }
        if !arch.windows.is_empty() && arch.windows.len() != layers {
            return Err(format!("{} windows for {layers} layers", arch.windows.len()));
        }
        let caps = arch.score_softcap.iter().chain(&arch.logit_softcap);
        if let Some(factor) = caps
            .chain([&arch.query_scale, &arch.embedding_scale])
            .find(|factor| !(**factor > 0.0 && factor.is_finite()))
        {
            return Err(format!("{factor} as a scale or a cap is not a number above 0"));
        }
        Ok(())
    }

    fn check_ids(&self, path: &str) -> Result<()> {
        let bos = self.bos.iter().map(|id| ("bos_token_id", *id));
        let eos = self.eos.iter().map(|id| ("eos_token_id", *id));
        match bos.chain(eos).find(|(_, id)| *id as usize >= self.vocab) {
            None => Ok(()),
            Some((field, id)) => Err(Error::Config {
                path: path.into(),
                reason: format!("{field} {id} is outside the vocabulary of {}", self.vocab),
            }),
        }
    }
}

/// Weights in another type than plain numbers.
fn refuse_quantised(fields: &Fields<'_>) -> Result<()> {
    let Some(value) = fields.get("quantization_config") else { return Ok(()) };
    let method = value.get("quant_method").map_or_else(|| "unnamed".into(), fields::brief);
    Err(fields.error(format!(
        "quantization_config (quant_method {method}) is not supported; use weights in f32, f16 or bf16"
    )))
}
