//! What a model's KV cache weighs, from its `config.json` alone: no weights, no tokenizer, families that the decoder does
//! not run as well. Everything here is derived: bytes = Σ over layers of heads × (key size + value size) × element bytes.

use serde::Serialize;
use serde_json::Value;

use super::config::{Family, Fields, Pattern, windows};
use super::{Config, Error, Result};

/// Layers that keep the same amount per token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct LayerGroup {
    /// Layers of this kind.
    pub layers: u32,
    /// KV heads of each; under MLA one, the latent.
    pub kv_heads: u32,
    /// Numbers of a key (under MLA: latent and rotary part together).
    pub key_size: u32,
    /// Numbers of a value (under MLA none: it is the latent again).
    pub value_size: u32,
    /// Tokens kept at most, where the layer looks at a window.
    pub window: Option<u64>,
}

impl LayerGroup {
    /// Bytes kept per token in all layers of the group; `pair` says what a key and a value of so many numbers weigh.
    pub fn bytes_per_token(&self, pair: impl Fn(u32, u32) -> u64) -> u64 {
        u64::from(self.layers) * u64::from(self.kv_heads) * pair(self.key_size, self.value_size)
    }

    /// Tokens kept of a context.
    pub fn tokens(&self, context: u64) -> u64 {
        self.window.map_or(context, |window| window.min(context))
    }
}

/// How attention keeps keys and values.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Sharing {
    /// Every query head has its own.
    Mha,
    /// Groups of query heads share (arXiv 2305.13245).
    Gqa,
    /// All query heads share one (arXiv 1911.02150).
    Mqa,
    /// One compressed latent and a rotary key per token (arXiv 2405.04434).
    Mla,
}

impl Sharing {
    const fn of(heads: u32, kv_heads: u32) -> Self {
        match kv_heads {
            n if n == heads => Self::Mha,
            1 => Self::Mqa,
            _ => Self::Gqa,
        }
    }

    /// The name in the literature.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Mha => "MHA",
            Self::Gqa => "GQA",
            Self::Mqa => "MQA",
            Self::Mla => "MLA",
        }
    }
}

/// The cache of a model.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Footprint {
    /// `model_type`, or what stands for it.
    pub family: String,
    /// Layers of all kinds.
    pub layers: u32,
    /// Query heads.
    pub heads: u32,
    /// Numbers of a query head.
    pub head_size: u32,
    /// How keys and values are shared.
    pub sharing: Sharing,
    /// Largest context the configuration names.
    pub context: Option<u64>,
    /// What is kept.
    pub groups: Vec<LayerGroup>,
    /// Per layer the tokens it looks at; 0 for all. Empty where no layer has a window.
    pub windows: Vec<u32>,
    /// What a reader should know of the count, one line each.
    pub notes: Vec<String>,
}

/// Ranks of DeepSeek-V2's latent attention, for models that have none of their own (`kv_lora_rank`,
/// `qk_rope_head_dim` of its published configuration).
const LATENT: (u32, u32) = (512, 64);
/// KV heads of models that have no groups of their own.
const GROUPS: u32 = 8;
/// Largest value taken for a count: no real model comes near, and products stay far from overflow.
const MOST: u64 = 1 << 24;

/// Most layers.
const MOST_LAYERS: u32 = 1 << 16;

impl Footprint {
    /// Reads `config.json`; `path` is named in errors.
    ///
    /// # Errors
    ///
    /// Not JSON, or a field missing or out of range: the message names it.
    pub fn parse(path: &str, json: &[u8]) -> Result<Self> {
        if let Ok(config) = Config::parse(path, json) {
            return Ok(Self::of(&config));
        }
        let whole = Fields::parse(path, json)?;
        let inner = whole.object("text_config")?;
        let fields = inner.as_ref().unwrap_or(&whole);
        let family = whole.text("model_type").or_else(|| fields.text("model_type")).unwrap_or("unnamed");
        let layers = count(fields, &["num_hidden_layers", "n_layer"])?;
        if layers > MOST_LAYERS {
            return Err(
                fields.error(format!("num_hidden_layers {layers}: at most {MOST_LAYERS} are counted"))
            );
        }
        let heads = count(fields, &["num_attention_heads", "n_head"])?;
        let kv_heads = optional(fields, &["num_key_value_heads", "n_head_kv"])?.unwrap_or(heads);
        let head_size = match optional(fields, &["head_dim"])? {
            Some(size) => size,
            None => count(fields, &["hidden_size", "n_embd"])? / heads,
        };
        if head_size == 0 || kv_heads > heads {
            return Err(fault(
                path,
                format!(
                    "num_key_value_heads is {kv_heads} of {heads} heads of {head_size} numbers: not a model's shape"
                ),
            ));
        }
        let mut footprint = Self {
            family: family.into(),
            layers,
            heads,
            head_size,
            sharing: Sharing::of(heads, kv_heads),
            context: optional(fields, &["max_position_embeddings", "n_positions"])?.map(u64::from),
            groups: Vec::new(),
            windows: Vec::new(),
            notes: Vec::new(),
        };
        footprint.groups = footprint.kept(fields, kv_heads)?;
        Ok(footprint)
    }

    /// The cache of a model that the decoder runs.
    pub fn of(config: &Config) -> Self {
        let (heads, kv_heads, head_size) =
            (config.heads as u32, config.kv_heads as u32, config.head_dim as u32);
        let mut windows: Vec<Option<u64>> =
            (0..config.layers).map(|layer| config.window(layer).map(u64::from)).collect();
        windows.sort_unstable();
        let groups = windows.chunk_by(PartialEq::eq).map(|layers| LayerGroup {
            layers: layers.len() as u32,
            kv_heads,
            key_size: head_size,
            value_size: head_size,
            window: layers[0],
        });
        Self {
            family: config.family.clone(),
            layers: config.layers as u32,
            heads,
            head_size,
            sharing: Sharing::of(heads, kv_heads),
            context: Some(config.context as u64),
            groups: groups.collect(),
            windows: config.arch.windows.clone(),
            notes: Vec::new(),
        }
    }

    fn kept(&mut self, fields: &Fields<'_>, kv_heads: u32) -> Result<Vec<LayerGroup>> {
        let whole = LayerGroup {
            layers: self.layers,
            kv_heads,
            key_size: self.head_size,
            value_size: self.head_size,
            window: None,
        };
        if let (Some(rank), Some(rope)) =
            (optional(fields, &["kv_lora_rank"])?, optional(fields, &["qk_rope_head_dim"])?)
        {
            self.sharing = Sharing::Mla;
            if optional(fields, &["index_head_dim"])?.is_some() {
                self.notes.push("the sparse indexer's own keys (index_head_dim) are not counted".into());
            }
            return Ok(vec![LayerGroup { kv_heads: 1, key_size: rank + rope, value_size: 0, ..whole }]);
        }
        if let Some(pattern) = fields.text("hybrid_override_pattern") {
            let attention = pattern.bytes().filter(|&b| b == b'*').count() as u32;
            self.notes.push(format!(
                "{attention} of {} layers are attention; the others' states do not grow with the context and are not counted",
                self.layers
            ));
            return Ok(vec![LayerGroup { layers: attention.min(self.layers), ..whole }]);
        }
        if let Some(chunk) = optional(fields, &["attention_chunk_size"])? {
            self.notes.push(format!(
                "attention_chunk_size {chunk}: chunked layers keep less; all layers are counted in full, as config.json does not say which"
            ));
        }
        let mut full = whole;
        if let Some(heads) = optional(fields, &["num_global_key_value_heads"])? {
            full.kv_heads = heads;
        }
        if let Some(size) = optional(fields, &["global_head_dim"])? {
            (full.key_size, full.value_size) = (size, size);
        }
        if fields.get("attention_k_eq_v").and_then(Value::as_bool) == Some(true) {
            self.notes.push(
                "attention_k_eq_v: values come from the key projection; both are counted, as a cache after RoPE keeps both"
                    .into(),
            );
        }
        let pattern = Family::named(&self.family).map_or_else(|| Pattern::unknown(fields), Pattern::of);
        self.windows = windows(fields, pattern, self.layers as usize)?;
        let sliding = self.windows.iter().filter(|&&window| window > 0).count() as u32;
        let window = self.windows.iter().copied().find(|&window| window > 0).map(u64::from);
        full.layers = self.layers - sliding;
        let sliding = LayerGroup { layers: sliding, window, ..whole };
        Ok([full, sliding].into_iter().filter(|g| g.layers > 0).collect())
    }

    /// Bytes kept per token while no window is full; `pair` says what a key and a value of so many numbers weigh.
    pub fn bytes_per_token(&self, pair: impl Fn(u32, u32) -> u64 + Copy) -> u64 {
        self.groups.iter().map(|g| g.bytes_per_token(pair)).sum()
    }

    /// Bytes kept of a context, windows respected, at a share of its tokens.
    pub fn bytes_at(&self, context: u64, share: f64, pair: impl Fn(u32, u32) -> u64 + Copy) -> u64 {
        let kept = |g: &LayerGroup| (g.tokens(context) as f64 * share).floor() as u64;
        self.groups.iter().map(|g| g.bytes_per_token(pair).saturating_mul(kept(g))).sum()
    }

    /// The same model if all its layers shared keys and values another way. GQA without groups of its own gets 8 KV
    /// heads; MLA without a latent of its own gets DeepSeek-V2's.
    #[must_use]
    pub fn shared_as(&self, sharing: Sharing) -> Self {
        if sharing == self.sharing {
            return self.clone();
        }
        let (kv_heads, key_size, value_size) = match sharing {
            Sharing::Mha => (self.heads, self.head_size, self.head_size),
            Sharing::Gqa => (self.heads.min(GROUPS), self.head_size, self.head_size),
            Sharing::Mqa => (1, self.head_size, self.head_size),
            Sharing::Mla => (1, LATENT.0 + LATENT.1, 0),
        };
        let group = |g: &LayerGroup| LayerGroup { kv_heads, key_size, value_size, ..*g };
        Self { sharing, groups: self.groups.iter().map(group).collect(), ..self.clone() }
    }
}

fn fault(path: &str, reason: String) -> Error {
    Error::Config { path: path.into(), reason }
}

/// The first of these fields that is there and not null.
fn optional(fields: &Fields<'_>, names: &[&str]) -> Result<Option<u32>> {
    let name = names.iter().find(|name| fields.get(name).is_some());
    Ok(name.map_or(Ok(None), |name| fields.optional_size(name, MOST))?.map(|size| size as u32))
}

fn count(fields: &Fields<'_>, names: &[&str]) -> Result<u32> {
    optional(fields, names)?.ok_or_else(|| {
        fields.error(format!("{} is missing: is it a language model's config.json?", names[0]))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape(layers: u32, heads: u32, kv_heads: u32, hidden: u32) -> Footprint {
        let json = format!(
            r#"{{"model_type": "llama", "num_hidden_layers": {layers}, "num_attention_heads": {heads},
                "num_key_value_heads": {kv_heads}, "hidden_size": {hidden}, "max_position_embeddings": 4096}}"#
        );
        Footprint::parse("config.json", json.as_bytes()).unwrap()
    }

    fn half(key: u32, value: u32) -> u64 {
        2 * u64::from(key + value)
    }

    #[test]
    fn llama_2_7b_keeps_half_a_mebibyte_per_token() {
        let f = shape(32, 32, 32, 4096);
        assert_eq!((f.sharing, f.bytes_per_token(half)), (Sharing::Mha, 512 << 10));
        assert_eq!(8 * f.bytes_at(32 << 10, 1.0, half), 128 << 30);
        assert_eq!(f.shared_as(Sharing::Gqa).bytes_per_token(half), 128 << 10);
        assert_eq!(f.bytes_at(1000, 0.25, half), 250 * (512 << 10));
    }

    #[test]
    fn llama_2_70b_keeps_320_kibibytes() {
        let f = shape(80, 64, 8, 8192);
        assert_eq!((f.sharing, f.bytes_per_token(half)), (Sharing::Gqa, 320 << 10));
        assert_eq!(f.shared_as(Sharing::Mha).bytes_per_token(half), 2560 << 10);
        assert_eq!(f.shared_as(Sharing::Mqa).bytes_per_token(half), 40 << 10);
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (json, part) in [
            ("[]", "not a JSON object"),
            ("{", "not valid JSON"),
            ("{}", "num_hidden_layers"),
            (r#"{"num_hidden_layers": 0}"#, "num_hidden_layers 0"),
            (r#"{"num_hidden_layers": 2, "num_attention_heads": 99999999999}"#, "num_attention_heads"),
            (
                r#"{"num_hidden_layers": 2, "num_attention_heads": 8, "hidden_size": 4}"#,
                "not a model's shape",
            ),
        ] {
            let error = Footprint::parse("c.json", json.as_bytes()).unwrap_err().to_string();
            assert!(error.contains(part) && error.contains("c.json") && !error.contains('\n'), "{error}");
        }
    }

    /// Bytes per token at f16 of published configurations, by hand from their fields.
    #[test]
    fn real_configurations_come_out_as_counted_by_hand() {
        let Some(data) = std::env::var_os("KVISTA_TEST_DATA") else {
            println!("skipped: KVISTA_TEST_DATA names no folder");
            return;
        };
        let folder = std::path::Path::new(&data).join("configs");
        let at = |name: &str| {
            let bytes = std::fs::read(folder.join(name)).unwrap();
            Footprint::parse(name, &bytes).unwrap()
        };
        for (name, sharing, f16) in [
            ("llama-2-7b-hf.json", Sharing::Mha, 2 * 32 * 32 * 128 * 2),
            ("llama-3.1-8b-instruct.json", Sharing::Gqa, 2 * 32 * 8 * 128 * 2),
            ("llama-3.1-70b-instruct.json", Sharing::Gqa, 2 * 80 * 8 * 128 * 2),
            ("meta-llama-3.1-405B-Instruct.json", Sharing::Gqa, 2 * 126 * 8 * 128 * 2),
            ("Qwen--Qwen3-0.6B_config.json", Sharing::Gqa, 2 * 28 * 8 * 128 * 2),
            ("qwen2.5-7b-instruct.json", Sharing::Gqa, 2 * 28 * 4 * 128 * 2),
            ("phi-2-config.json", Sharing::Mha, 2 * 32 * 32 * 80 * 2),
            ("mistral-nemo-instruct-2407.json", Sharing::Gqa, 2 * 40 * 8 * 128 * 2),
            ("deepseek-ai--DeepSeek-V3_config.json", Sharing::Mla, 61 * 576 * 2),
            ("deepseek-v2-lite.json", Sharing::Mla, 27 * 576 * 2),
            ("nvidia--Nemotron-H-56B-Base-8K_config.json", Sharing::Gqa, 2 * 10 * 8 * 128 * 2),
            ("google--gemma-4-26B-A4B_config.json", Sharing::Gqa, (25 * 8 * 256 + 5 * 2 * 512) * 2 * 2),
        ] {
            let f = at(name);
            assert_eq!((f.sharing, f.bytes_per_token(half)), (sharing, f16), "{name}");
        }
        let oss = at("openai--gpt-oss-20b_config.json");
        assert_eq!(oss.bytes_at(1024, 1.0, half), (12 * 1024 + 12 * 128) * 8 * 64 * 2 * 2);
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.display().to_string();
            let footprint = Footprint::parse(&name, &std::fs::read(&path).unwrap()).unwrap();
            assert!(footprint.bytes_per_token(half) > 0, "{name}");
        }
    }
}
