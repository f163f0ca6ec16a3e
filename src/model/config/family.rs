//! The families: what their configurations leave unsaid, and why others are refused.

use super::fields::{Fields, brief};
use super::{Activation, Arch, Biases};
use crate::model::Result;

/// A family of decoders, by `model_type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::model) enum Family {
    /// Llama 1 to 3, TinyLlama, SmolLM 1 and 2, Yi and all who took the shape over.
    Llama,
    Mistral,
    /// Qwen2 and 2.5.
    Qwen2,
    Qwen3,
    /// Phi-3, 3.5 mini and 4.
    Phi3,
    Gemma,
    Gemma2,
    Gemma3,
}

/// What Hugging Face gives fields that a configuration leaves out; `None` where it must say.
pub(super) struct Usual {
    pub(super) hidden: Option<usize>,
    pub(super) intermediate: Option<usize>,
    pub(super) layers: Option<usize>,
    pub(super) heads: Option<usize>,
    /// As many as query heads, if nothing else is usual.
    pub(super) kv_heads: Option<usize>,
    /// Hidden size by heads, if nothing else is usual.
    pub(super) head_dim: Option<usize>,
    pub(super) vocab: Option<usize>,
    pub(super) context: usize,
    pub(super) theta: f64,
    pub(super) tied: bool,
    pub(super) bos: Option<u32>,
    pub(super) eos: Option<u32>,
}

const PLAIN: Usual = Usual {
    hidden: None,
    intermediate: None,
    layers: None,
    heads: None,
    kv_heads: None,
    head_dim: None,
    vocab: None,
    context: 2048,
    theta: 1e4,
    tied: false,
    bos: None,
    eos: None,
};

const NAMES: [(&str, Family); 9] = [
    ("llama", Family::Llama),
    ("mistral", Family::Mistral),
    ("qwen2", Family::Qwen2),
    ("qwen3", Family::Qwen3),
    ("phi3", Family::Phi3),
    ("gemma", Family::Gemma),
    ("gemma2", Family::Gemma2),
    ("gemma3", Family::Gemma3),
    ("gemma3_text", Family::Gemma3),
];

/// Fields that only models of another build have, and what that is.
const FOREIGN: [(&str, &str); 11] = [
    ("num_local_experts", "a mixture of experts"),
    ("num_experts", "a mixture of experts"),
    ("n_routed_experts", "a mixture of experts"),
    ("kv_lora_rank", "multi-head latent attention"),
    ("index_topk", "sparse attention by an indexer"),
    ("hybrid_override_pattern", "layers of state-space models"),
    ("ssm_state_size", "layers of state-space models"),
    ("mamba_d_state", "layers of state-space models"),
    ("linear_num_key_heads", "layers of linear attention"),
    ("layer_norm_eps", "layer norms with biases"),
    ("layer_norm_epsilon", "layer norms with biases"),
];

impl Family {
    pub(in crate::model) fn named(name: &str) -> Option<Self> {
        NAMES.iter().find(|(known, _)| *known == name).map(|&(_, family)| family)
    }

    /// The family of a configuration; `of` is what it says of the decoder, `whole` the file.
    pub(super) fn of(whole: &Fields<'_>, text: &Fields<'_>) -> Result<(Self, String)> {
        let supported = || {
            let names: Vec<&str> = NAMES.iter().map(|(name, _)| *name).collect();
            format!("supported: {}", names.join(", "))
        };
        let foreign = foreign(text);
        let why = || foreign.as_ref().map_or_else(String::new, |what| format!(": it has {what}"));
        let named = whole.text("model_type").and_then(|name| Some((Self::named(name)?, name)));
        match (named, whole.get("model_type")) {
            (Some((family, name)), _) => match &foreign {
                // Norms are RMS norms in all of them, whatever else the file carries along.
                Some(what) if !what.starts_with("layer norms") => {
                    Err(whole.error(format!("model_type \"{name}\" with {what} is not supported")))
                }
                _ => Ok((family, name.into())),
            },
            (None, Some(other)) => Err(whole.error(format!(
                "model_type {} is not supported{}; {}",
                brief(other),
                why(),
                supported()
            ))),
            (None, None) => Err(whole.error(format!("model_type is missing{}; {}", why(), supported()))),
        }
    }

    pub(super) const fn usual(self) -> Usual {
        match self {
            Self::Llama => PLAIN,
            Self::Mistral => Usual { kv_heads: Some(8), context: 131_072, ..PLAIN },
            Self::Qwen2 => Usual { context: 32_768, ..PLAIN },
            Self::Qwen3 => Usual { head_dim: Some(128), context: 32_768, ..PLAIN },
            Self::Phi3 => Usual { context: 4096, ..PLAIN },
            Self::Gemma => Usual { head_dim: Some(256), context: 8192, ..GEMMA },
            Self::Gemma2 => Usual { kv_heads: Some(4), context: 8192, ..GEMMA },
            // Published files of Gemma 3 say little more than what differs from these.
            Self::Gemma3 => Usual {
                hidden: Some(2304),
                intermediate: Some(9216),
                layers: Some(26),
                heads: Some(8),
                kv_heads: Some(4),
                vocab: Some(262_208),
                context: 131_072,
                theta: 1e6,
                ..GEMMA
            },
        }
    }

    /// What the arithmetic of the family does beyond the plain decoder; rotation and windows are read elsewhere.
    pub(super) fn arch(self, fields: &Fields<'_>, hidden: usize, head_dim: usize) -> Result<Arch> {
        let is_gemma = matches!(self, Self::Gemma | Self::Gemma2 | Self::Gemma3);
        let has_attention_bias = self != Self::Phi3 && fields.flag("attention_bias", false)?;
        let biases = Biases {
            qkv: self == Self::Qwen2 || has_attention_bias,
            output: self != Self::Qwen2 && has_attention_bias,
            mlp: self == Self::Llama && fields.flag("mlp_bias", false)?,
        };
        let softcap = |field, usual| match (self, fields.get(field)) {
            (Self::Gemma2, None) if !fields.has(field) => Ok(Some(usual)),
            (Self::Gemma2 | Self::Gemma3, _) => fields.factor(field),
            _ => Ok(None),
        };
        let query_scalar = match self {
            Self::Gemma2 | Self::Gemma3 => Some(fields.factor("query_pre_attn_scalar")?.unwrap_or(256.0)),
            _ => None,
        };
        Ok(Arch {
            biases,
            qk_norm: matches!(self, Self::Qwen3 | Self::Gemma3),
            fused: self == Self::Phi3,
            post_norms: matches!(self, Self::Gemma2 | Self::Gemma3),
            norm_offset: if is_gemma { 1.0 } else { 0.0 },
            activation: self.activation(fields)?,
            embedding_scale: if is_gemma { (hidden as f64).sqrt() as f32 } else { 1.0 },
            query_scale: query_scalar.map_or(1.0, |scalar| (head_dim as f64 / scalar).sqrt() as f32),
            score_softcap: softcap("attn_logit_softcapping", 50.0)?.map(|cap| cap as f32),
            logit_softcap: softcap("final_logit_softcapping", 30.0)?.map(|cap| cap as f32),
            ..Arch::default()
        })
    }

    fn activation(self, fields: &Fields<'_>) -> Result<Activation> {
        // The first Gemma's files say "gelu" in `hidden_act` and mean its approximation.
        let (field, usual) = match self {
            Self::Gemma | Self::Gemma2 | Self::Gemma3 => ("hidden_activation", Activation::GeluTanh),
            _ => ("hidden_act", Activation::Silu),
        };
        match fields.get(field) {
            None => Ok(usual),
            Some(value) => match value.as_str() {
                Some("silu" | "swish") => Ok(Activation::Silu),
                Some("gelu_pytorch_tanh" | "gelu_new") => Ok(Activation::GeluTanh),
                _ => Err(fields.unsupported(
                    field,
                    value,
                    "only \"silu\", \"gelu_pytorch_tanh\" and \"gelu_new\"",
                )),
            },
        }
    }
}

const GEMMA: Usual = Usual { head_dim: Some(256), tied: true, bos: Some(2), eos: Some(1), ..PLAIN };

/// What in a configuration no decoder here does, with the fields that say so.
fn foreign(fields: &Fields<'_>) -> Option<String> {
    let mut found: Vec<(&str, Vec<String>)> = Vec::new();
    for (field, what) in FOREIGN {
        let Some(value) = fields.get(field) else { continue };
        let said = if value.is_number() { format!("{field} {}", brief(value)) } else { field.into() };
        match found.iter_mut().find(|(known, _)| *known == what) {
            Some((_, fields)) => fields.push(said),
            None => found.push((what, vec![said])),
        }
    }
    let told = found.iter().map(|(what, fields)| format!("{what} ({})", fields.join(", ")));
    (!found.is_empty()).then(|| told.collect::<Vec<_>>().join(" and "))
}
