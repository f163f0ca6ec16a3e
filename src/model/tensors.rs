//! The tensors of a decoder: which there are, by the names that Hugging Face gives them, and their shapes.

use super::matrix::Matrix;
use super::weights::{EMBEDDING, FINAL_NORM, HEAD, Source, bias_name, part_name};
use super::{Config, Result};

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

/// What stands before a decoder's names, and before them in files that hold more than one.
const MODEL: &str = "model.";
const PLACES: [&str; 3] = [MODEL, "language_model.model.", "model.language_model."];

/// A source whose file may hold a decoder beside other parts, as those of models with eyes do.
pub(super) struct Placed<S> {
    source: S,
    /// Stands in the file for [`MODEL`].
    place: &'static str,
}

impl<S: Source> Placed<S> {
    /// Looks for the embedding.
    pub(super) fn new(source: S, config: &Config) -> Self {
        let has = |place: &&str| {
            let name = format!("{place}{}", &EMBEDDING[MODEL.len()..]);
            source.check(&name, &[config.vocab, config.hidden]).is_ok()
        };
        let place = PLACES.into_iter().find(has).unwrap_or(MODEL);
        Self { source, place }
    }

    fn name(&self, name: &str) -> String {
        name.strip_prefix(MODEL).map_or_else(|| name.into(), |rest| format!("{}{rest}", self.place))
    }
}

impl<S: Source> Source for Placed<S> {
    fn check(&self, name: &str, shape: &[usize]) -> Result<()> {
        self.source.check(&self.name(name), shape)
    }

    fn matrix(&mut self, name: &str, shape: [usize; 2]) -> Result<Matrix> {
        self.source.matrix(&self.name(name), shape)
    }

    fn vector(&mut self, name: &str, len: usize) -> Result<Vec<f32>> {
        self.source.vector(&self.name(name), len)
    }

    fn dtype(&self) -> String {
        self.source.dtype()
    }

    fn bytes(&self) -> u64 {
        self.source.bytes()
    }

    fn copied_bytes(&self) -> u64 {
        self.source.copied_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::super::decoder::tests::{Named, odd_config};
    use super::*;
    use crate::model::Decoder;

    #[test]
    fn a_decoder_is_found_beside_other_parts() {
        let config = Config { tied: true, ..odd_config() };
        let logits = |place: &str| {
            let mut tensors = std::collections::HashMap::new();
            visit(&config, |name, shape| {
                let size: usize = shape.iter().product();
                let seed = name.len() + size;
                let elements = (0..size).map(|i| ((i * seed) % 13) as f32 / 7.0 - 0.8).collect();
                tensors.insert(name.replacen(MODEL, place, 1), (shape.to_vec(), elements));
                Ok(())
            })
            .unwrap();
            tensors.insert("vision_tower.weight".into(), (vec![1], vec![0.0]));
            let decoder = Decoder::load(
                config.clone(),
                Placed::new(Named(tensors), &config),
                (String::new(), String::new()),
                Ok,
            );
            let decoder = decoder.unwrap();
            decoder.logits(&decoder.embed(&[7]).unwrap()).unwrap()
        };
        let [plain, outer, inner] = PLACES.map(logits);
        assert!(plain == outer && plain == inner);
    }
}
