//! A GGUF file's metadata as a [`Config`]: put into the words of a `config.json`, so that one reader knows the families.

use serde_json::{Map, Value, json};

use super::{Header, TensorInfo};
use crate::model::config::Biases;
use crate::model::error::quoted;
use crate::model::{Config, Result};

/// Architectures, and the `model_type` each is.
const ARCHITECTURES: [&str; 7] = ["llama", "qwen2", "qwen3", "phi3", "gemma", "gemma2", "gemma3"];
/// Spellings of tokens that end a turn: converters name only one or two of those a model has.
const ENDS_OF_TURNS: [&str; 8] = [
    "<|eot_id|>",
    "<|eom_id|>",
    "<|im_end|>",
    "<|end|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<EOT>",
];
/// Kind of a control token.
const CONTROL: i32 = 3;
/// Most tokens of a vocabulary.
const MAX_TOKENS: usize = 1 << 22;
/// Most divisors of a rotation's frequencies.
const MAX_DIVISORS: usize = 1 << 10;

impl Header {
    /// The architecture, if it is one that is known.
    pub(in crate::model) fn architecture(&self) -> Result<&'static str> {
        let Some(name) = self.text("general.architecture")? else {
            return Err(self.fault("general.architecture is missing; this is no model".into()));
        };
        ARCHITECTURES.iter().copied().find(|known| *known == name).ok_or_else(|| {
            self.fault(format!(
                "general.architecture \"{}\" is not supported; supported: {}",
                quoted(name, 40),
                ARCHITECTURES.join(", ")
            ))
        })
    }

    /// The metadata in the words of a `config.json`.
    pub(in crate::model) fn config_json(&self, file: &[u8]) -> Result<Vec<u8>> {
        let architecture = self.architecture()?;
        let splits = self.size("split.count")?.unwrap_or(0);
        if splits > 1 {
            return Err(self.fault(format!(
                "it is one of {splits} parts; join them with llama-gguf-split --merge, and give the whole"
            )));
        }
        let fields = Fields { header: self, file, architecture, out: Map::new() };
        Ok(Value::from(fields.all()?).to_string().into_bytes())
    }

    /// Shape and constants of the model.
    ///
    /// # Errors
    /// [`crate::model::Error::Config`]: an architecture that is not supported, or a value that is none.
    pub(in crate::model) fn config(&self, file: &[u8]) -> Result<Config> {
        let mut config = Config::parse(self.path(), &self.config_json(file)?)?;
        let has = |name: &str| self.tensors().contains_key(name);
        config.arch.biases = Biases {
            qkv: has("blk.0.attn_q.bias") || has("blk.0.attn_qkv.bias"),
            output: has("blk.0.attn_output.bias"),
            mlp: has("blk.0.ffn_down.bias"),
        };
        // Converters add Gemma's distance from 1 to the weights of its norms.
        config.arch.norm_offset = 0.0;
        Ok(config)
    }
}

struct Fields<'a> {
    header: &'a Header,
    file: &'a [u8],
    architecture: &'static str,
    out: Map<String, Value>,
}

impl Fields<'_> {
    fn key(&self, key: &str) -> String {
        format!("{}.{key}", self.architecture)
    }

    fn size(&self, key: &str) -> Result<Option<u64>> {
        self.header.size(&self.key(key))
    }

    /// Numbers are f32 in these files: 1e-5 is to be 1e-5, not its nearest f32.
    fn number(&self, key: &str) -> Result<Option<f64>> {
        let number = self.header.number(&self.key(key))?;
        Ok(number.map(|x| {
            let narrow = x as f32;
            let shortest = narrow.to_string().parse();
            if f64::from(narrow) == x { shortest.unwrap_or(x) } else { x }
        }))
    }

    fn put(&mut self, field: &str, value: impl Into<Value>) {
        self.out.insert(field.into(), value.into());
    }

    /// A tensor that every model has.
    fn tensor(&self, name: &str) -> Result<&TensorInfo> {
        let tensor = self.header.tensors().get(name);
        tensor.ok_or_else(|| {
            self.header.fault(format!("tensor {name} is missing; a file with only a vocabulary?"))
        })
    }

    fn all(mut self) -> Result<Map<String, Value>> {
        self.put("model_type", self.architecture);
        if self.size("expert_count")?.is_some_and(|experts| experts > 0) {
            return Err(self.header.fault("a mixture of experts is not supported".into()));
        }
        for (field, key) in [
            ("hidden_size", "embedding_length"),
            ("intermediate_size", "feed_forward_length"),
            ("num_hidden_layers", "block_count"),
            ("num_attention_heads", "attention.head_count"),
            ("num_key_value_heads", "attention.head_count_kv"),
            ("head_dim", "attention.key_length"),
            ("max_position_embeddings", "context_length"),
        ] {
            let optional = matches!(field, "num_key_value_heads" | "head_dim");
            match self.size(key)? {
                Some(size) => self.put(field, size),
                None if optional => {}
                None => return Err(self.header.fault(format!("{} is missing", self.key(key)))),
            }
        }
        let (head_dim, heads) = (self.size("attention.key_length")?, self.size("attention.head_count")?);
        let hidden = self.size("embedding_length")?.unwrap_or(0);
        let own_head_dim = heads.filter(|heads| *heads > 0).map_or(0, |heads| hidden / heads);
        let head_dim = head_dim.unwrap_or(own_head_dim);
        if let Some(v) = self.size("attention.value_length")?.filter(|v| *v != head_dim) {
            return Err(self.header.fault(format!(
                "{} is {v}, keys have {head_dim}; heads of two sizes are not supported",
                self.key("attention.value_length")
            )));
        }
        // Families differ in what they leave out; these files never leave it out.
        self.put("head_dim", head_dim);
        let vocab = self.tensor("token_embd.weight")?.shape[0];
        self.put("vocab_size", vocab);
        self.put("tie_word_embeddings", !self.header.tensors().contains_key("output.weight"));
        if let Some(eps) = self.number("attention.layer_norm_rms_epsilon")? {
            self.put("rms_norm_eps", eps);
        }
        self.rotation(head_dim)?;
        self.attention(head_dim, own_head_dim)?;
        self.ends()?;
        Ok(self.out)
    }

    fn rotation(&mut self, head_dim: u64) -> Result<()> {
        self.put("rope_theta", self.number("rope.freq_base")?.unwrap_or(1e4));
        if let Some(theta) = self.number("rope.freq_base_swa")? {
            self.put("rope_local_base_freq", theta);
        }
        let width = self.size("rope.dimension_count")?.filter(|width| *width > 0 && *width <= head_dim);
        if let Some(width) = width.filter(|width| *width != head_dim) {
            self.put("partial_rotary_factor", width as f64 / head_dim as f64);
        }
        let original = self.size("rope.scaling.original_context_length")?;
        let context = self.size("context_length")?.unwrap_or(0);
        let original = original.unwrap_or(context);
        let factors = |name| self.divisors(name, width.unwrap_or(head_dim));
        let (all, short, long) = (
            factors("rope_freqs.weight")?,
            factors("rope_factors_short.weight")?,
            factors("rope_factors_long.weight")?,
        );
        let kind = self.header.text(&self.key("rope.scaling.type"))?;
        let factor = self.number("rope.scaling.factor")?;
        let scaling = match (all, short.zip(long), kind) {
            (Some(divisors), _, _) => json!({
                "rope_type": "longrope", "short_factor": divisors, "long_factor": divisors,
                "original_max_position_embeddings": original, "attention_factor": 1.0,
            }),
            (_, Some((short, long)), _) => {
                let mut scaling = json!({
                    "rope_type": "longrope", "short_factor": short, "long_factor": long,
                    "original_max_position_embeddings": original,
                });
                if let Some(factor) = self.number("rope.scaling.attn_factor")? {
                    scaling["attention_factor"] = factor.into();
                }
                scaling
            }
            (_, _, None | Some("none")) => return Ok(()),
            (_, _, Some(kind)) => json!({
                "rope_type": quoted(kind, 40), "factor": factor, "original_max_position_embeddings": original,
            }),
        };
        self.put("rope_scaling", scaling);
        Ok(())
    }

    /// One divisor per pair, out of a tensor.
    fn divisors(&self, name: &str, width: u64) -> Result<Option<Vec<f32>>> {
        let Some(info) = self.header.tensors().get(name) else { return Ok(None) };
        let pairs = (width / 2) as usize;
        if info.shape != [pairs] || pairs > MAX_DIVISORS {
            return Err(self
                .header
                .fault(format!("tensor {name} has shape {:?}; [{pairs}] is expected", info.shape)));
        }
        self.header.vector(self.file, info).map(Some)
    }

    fn attention(&mut self, head_dim: u64, own_head_dim: u64) -> Result<()> {
        let layers = self.size("block_count")?;
        match self.architecture {
            "phi3" | "gemma2" | "gemma3" => {
                if let Some(window) = self.size("attention.sliding_window")?.filter(|window| *window > 0) {
                    self.put("sliding_window", window);
                }
            }
            _ => {}
        }
        if matches!(self.architecture, "gemma2" | "gemma3") {
            // The 27B models scale by the width per head, which their heads do not have.
            let largest = matches!((self.architecture, layers), ("gemma2", Some(46)) | ("gemma3", Some(62)));
            self.put("query_pre_attn_scalar", if largest { own_head_dim } else { head_dim });
        }
        for field in ["attn_logit_softcapping", "final_logit_softcapping"] {
            if let Some(cap) = self.number(field)? {
                self.put(field, cap);
            }
        }
        Ok(())
    }

    /// BOS and all tokens that end a text or a turn.
    fn ends(&mut self) -> Result<()> {
        let is_spm = self.header.text("tokenizer.ggml.model")? == Some("llama");
        // llama.cpp's own, where a file with SentencePiece's vocabulary says nothing.
        let usual = |id| is_spm.then_some(id);
        if let Some(bos) = self.header.size("tokenizer.ggml.bos_token_id")?.or(usual(1)) {
            self.put("bos_token_id", bos);
        }
        let mut eos: Vec<u64> = Vec::new();
        eos.extend(self.header.size("tokenizer.ggml.eos_token_id")?.or(usual(2)));
        for key in ["tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id"] {
            eos.extend(self.header.size(key)?);
        }
        let tokens = self.header.texts(self.file, "tokenizer.ggml.tokens", MAX_TOKENS)?.unwrap_or_default();
        let kinds = self.header.whole_numbers(self.file, "tokenizer.ggml.token_type", MAX_TOKENS)?;
        let kinds = kinds.unwrap_or_default();
        eos.extend((0u64..).zip(tokens.iter().zip(&kinds)).filter_map(|(id, (token, kind))| {
            (*kind == CONTROL && ENDS_OF_TURNS.contains(&token.as_str())).then_some(id)
        }));
        if !eos.is_empty() {
            self.put("eos_token_id", eos);
        }
        Ok(())
    }
}
