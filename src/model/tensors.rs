//! The tensors of a decoder: which there are, by the names that Hugging Face gives them, and their shapes.

use super::{Config, Result};

/// The embedding's rows, and the head's where it shares them.
pub(super) const EMBEDDING: &str = "model.embed_tokens.weight";
/// The norm before the head.
pub(super) const FINAL_NORM: &str = "model.norm.weight";
/// The head, where it has rows of its own.
pub(super) const HEAD: &str = "lm_head.weight";

/// What stands before every name in a file that holds more than the decoder is put in place of this.
pub(super) const MODEL: &str = "model.";

/// The name of a part of a layer.
pub(super) fn part_name(layer: usize, part: &str) -> String {
    format!("model.layers.{layer}.{part}.weight")
}

/// The name of its bias.
pub(super) fn bias_name(layer: usize, part: &str) -> String {
    format!("model.layers.{layer}.{part}.bias")
}

/// Matrices of a layer that share their input.
pub(super) struct Projection {
    /// Names, and rows of each.
    pub(super) parts: Vec<(&'static str, usize)>,
    /// Elements of a row.
    pub(super) inputs: usize,
    /// Whether every part has a bias.
    pub(super) has_bias: bool,
}

/// The projections of a layer: queries, keys and values; attention's output; the feed-forward's gate and up; its down.
pub(super) fn projections(config: &Config) -> [Projection; 4] {
    let Config { hidden, intermediate, heads, kv_heads, head_dim, ref arch, .. } = *config;
    let (q, kv) = (heads * head_dim, kv_heads * head_dim);
    let (qkv, gate_up) = if arch.fused {
        (vec![("self_attn.qkv_proj", q + 2 * kv)], vec![("mlp.gate_up_proj", 2 * intermediate)])
    } else {
        (
            vec![("self_attn.q_proj", q), ("self_attn.k_proj", kv), ("self_attn.v_proj", kv)],
            vec![("mlp.gate_proj", intermediate), ("mlp.up_proj", intermediate)],
        )
    };
    let projection = |parts, inputs, has_bias| Projection { parts, inputs, has_bias };
    [
        projection(qkv, hidden, arch.biases.qkv),
        projection(vec![("self_attn.o_proj", hidden)], q, arch.biases.output),
        projection(gate_up, hidden, arch.biases.mlp),
        projection(vec![("mlp.down_proj", hidden)], intermediate, arch.biases.mlp),
    ]
}

/// The norms of a layer, and their lengths.
pub(super) struct Norms {
    /// Before attention.
    pub(super) attention: &'static str,
    /// Of each head's queries and keys.
    pub(super) qk: Option<[&'static str; 2]>,
    /// Of what attention adds to the stream.
    pub(super) output: Option<&'static str>,
    /// Before the feed-forward.
    pub(super) mlp: &'static str,
    /// Of what the feed-forward adds to the stream.
    pub(super) down: Option<&'static str>,
}

/// Names of a layer's norms. The one name that files of every family have stands before the feed-forward in some and after
/// attention in others.
pub(super) fn norms(config: &Config) -> Norms {
    const AFTER_ATTENTION: &str = "post_attention_layernorm";
    let is_sandwich = config.arch.post_norms;
    Norms {
        attention: "input_layernorm",
        qk: config.arch.qk_norm.then_some(["self_attn.q_norm", "self_attn.k_norm"]),
        output: is_sandwich.then_some(AFTER_ATTENTION),
        mlp: if is_sandwich { "pre_feedforward_layernorm" } else { AFTER_ATTENTION },
        down: is_sandwich.then_some("post_feedforward_layernorm"),
    }
}

/// Names and shapes of all tensors.
pub(super) fn visit(config: &Config, mut tensor: impl FnMut(&str, &[usize]) -> Result<()>) -> Result<()> {
    let Config { hidden, head_dim, vocab, .. } = *config;
    let (projections, norms) = (projections(config), norms(config));
    tensor(EMBEDDING, &[vocab, hidden])?;
    for layer in 0..config.layers {
        for Projection { parts, inputs, has_bias } in &projections {
            for &(part, outputs) in parts {
                tensor(&part_name(layer, part), &[outputs, *inputs])?;
                if *has_bias {
                    tensor(&bias_name(layer, part), &[outputs])?;
                }
            }
        }
        for norm in norms.qk.iter().flatten() {
            tensor(&part_name(layer, norm), &[head_dim])?;
        }
        for norm in [norms.attention, norms.mlp].into_iter().chain(norms.output).chain(norms.down) {
            tensor(&part_name(layer, norm), &[hidden])?;
        }
    }
    tensor(FINAL_NORM, &[hidden])?;
    if config.tied { Ok(()) } else { tensor(HEAD, &[vocab, hidden]) }
}
