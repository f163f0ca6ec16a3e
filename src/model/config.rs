//! `config.json` of the Llama family: what is read, what is refused, by field and value.

use serde_json::{Map, Value};

use super::error::{MOST_REASON_CHARS, quoted};
use super::{Error, Result};
use crate::event::ModelCard;

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
const MAX_CONTEXT: u64 = 1 << 26;
/// Most parameters: anything above is a damaged or hostile file, not a model for one machine.
const MAX_PARAMETERS: u64 = 1 << 40;

/// The shape of a decoder of the Llama family (multi-head, grouped-query or multi-query attention, rotary positions in
/// half-split pairs, RMS norms, SwiGLU, no biases). All sizes are checked: none is zero, `kv_heads` divides `heads`,
/// `head_dim` is even.
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
    /// Base of the rotary angles: pair `i` of a head turns by `position * rope_theta^(-2i / head_dim)`, and pairs with
    /// element `i + head_dim / 2`.
    pub rope_theta: f64,
    /// Added to the mean square in every norm.
    pub rms_norm_eps: f64,
    /// Whether the head shares the embedding's rows.
    pub tied: bool,
    /// Token that begins a sequence.
    pub bos: Option<u32>,
    /// Tokens that end one, ascending.
    pub eos: Vec<u32>,
}

impl Config {
    /// Reads a `config.json`; `path` is only named in errors.
    ///
    /// Fields that real files leave out take the values Hugging Face gives them: `num_key_value_heads` = heads,
    /// `head_dim` = hidden / heads, `rope_theta` 10000, `rms_norm_eps` 1e-6, `max_position_embeddings` 2048.
    ///
    /// # Errors
    /// [`Error::Config`], with the field, its value and what is supported.
    pub fn parse(path: &str, json: &[u8]) -> Result<Self> {
        let fields = Fields::parse(path, json)?;
        fields.family()?;
        fields.refuse_unsupported()?;

        let heads = fields.size("num_attention_heads", None, MAX_HEADS)?;
        let hidden = fields.size("hidden_size", None, MAX_WIDTH)?;
        let own_head_dim = hidden.is_multiple_of(heads).then_some(hidden / heads);
        let config = Self {
            family: "llama".into(),
            hidden,
            intermediate: fields.size("intermediate_size", None, MAX_WIDTH)?,
            layers: fields.size("num_hidden_layers", None, MAX_LAYERS)?,
            heads,
            kv_heads: fields.size("num_key_value_heads", Some(heads), MAX_HEADS)?,
            head_dim: fields.size("head_dim", own_head_dim, MAX_HEAD_DIM)?,
            vocab: fields.size("vocab_size", None, MAX_VOCAB)?,
            context: fields.size("max_position_embeddings", Some(2048), MAX_CONTEXT)?,
            rope_theta: fields.rope_theta()?,
            rms_norm_eps: fields.number("rms_norm_eps", 1e-6)?,
            tied: fields.flag("tie_word_embeddings")?,
            bos: fields.ids("bos_token_id")?.first().copied(),
            eos: fields.ids("eos_token_id")?,
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
            parameters: self.parameters(),
            weights,
        }
    }

    /// Number of parameters; a shared embedding counts once.
    pub const fn parameters(&self) -> u64 {
        let [hidden, layers, vocab] = [self.hidden as u64, self.layers as u64, self.vocab as u64];
        let attention = hidden * (self.qkv_width() + self.heads * self.head_dim) as u64;
        let mlp = 3 * hidden * self.intermediate as u64;
        let embeddings = hidden * vocab * if self.tied { 1 } else { 2 };
        layers * (attention + mlp + 2 * hidden) + embeddings + hidden
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
        self.check_ids(path)
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

/// The top-level object of a configuration, and the file it came from.
struct Fields<'a> {
    path: &'a str,
    map: Map<String, Value>,
}

impl<'a> Fields<'a> {
    fn parse(path: &'a str, json: &[u8]) -> Result<Self> {
        let fault = |reason| Error::Config { path: path.into(), reason };
        match serde_json::from_slice(json) {
            Ok(Value::Object(map)) => Ok(Self { path, map }),
            Ok(_) => Err(fault("not a JSON object".into())),
            Err(error) => {
                Err(fault(format!("not valid JSON: {}", quoted(&error.to_string(), MOST_REASON_CHARS))))
            }
        }
    }

    fn error(&self, reason: String) -> Error {
        Error::Config { path: self.path.into(), reason }
    }

    /// A field that is there and not null.
    fn get(&self, field: &str) -> Option<&Value> {
        self.map.get(field).filter(|value| !value.is_null())
    }

    fn family(&self) -> Result<()> {
        match self.get("model_type") {
            Some(Value::String(family)) if family == "llama" => Ok(()),
            Some(other) => {
                Err(self.error(format!("model_type {} is not supported; supported: llama", brief(other))))
            }
            None => Err(self.error("model_type is missing; supported: llama".into())),
        }
    }

    /// What changes the arithmetic in a way this decoder does not do.
    fn refuse_unsupported(&self) -> Result<()> {
        for field in ["attention_bias", "mlp_bias"] {
            if self.flag(field)? {
                return Err(self.error(format!("{field} true is not supported; only false")));
            }
        }
        if let Some(act) = self.get("hidden_act").filter(|act| *act != "silu") {
            return Err(self.error(format!("hidden_act {} is not supported; only \"silu\"", brief(act))));
        }
        if let Some(value) = self.get("quantization_config") {
            let method = value.get("quant_method").map_or_else(|| "unnamed".into(), brief);
            return Err(self.error(format!(
                "quantization_config (quant_method {method}) is not supported; use weights in f32, f16 or bf16"
            )));
        }
        for field in ["rope_scaling", "rope_parameters"] {
            let Some(value) = self.get(field) else { continue };
            let kind = value.get("rope_type").or_else(|| value.get("type"));
            if kind.is_none_or(|kind| kind != "default") {
                let kind = kind.map_or_else(|| "unnamed".into(), brief);
                return Err(self.error(format!("{field} of type {kind} is not supported; only null")));
            }
        }
        match self.get("partial_rotary_factor").map(|factor| (factor, factor.as_f64())) {
            None | Some((_, Some(1.0))) => Ok(()),
            Some((value, _)) => {
                Err(self.error(format!("partial_rotary_factor {} is not supported; only 1", brief(value))))
            }
        }
    }

    /// A size between 1 and `most`. Integral floats are taken (some writers produce them).
    fn size(&self, field: &str, default: Option<usize>, most: u64) -> Result<usize> {
        let Some(value) = self.get(field) else {
            return default.ok_or_else(|| self.error(format!("{field} is missing")));
        };
        integer(value)
            .filter(|size| (1..=most).contains(size))
            .map(|size| size as usize)
            .ok_or_else(|| self.error(format!("{field} {} is not an integer from 1 to {most}", brief(value))))
    }

    fn number(&self, field: &str, default: f64) -> Result<f64> {
        self.get(field).map_or(Ok(default), |value| {
            value.as_f64().ok_or_else(|| self.error(format!("{field} {} is not a number", brief(value))))
        })
    }

    fn flag(&self, field: &str) -> Result<bool> {
        match self.get(field) {
            None => Ok(false),
            Some(Value::Bool(flag)) => Ok(*flag),
            Some(value) => Err(self.error(format!("{field} {} is not true or false", brief(value)))),
        }
    }

    /// At the top level, or in `rope_parameters` where newer writers put it.
    fn rope_theta(&self) -> Result<f64> {
        match self.get("rope_parameters").and_then(|rope| rope.get("rope_theta")) {
            Some(value) => value.as_f64().ok_or_else(|| {
                self.error(format!("rope_parameters.rope_theta {} is not a number", brief(value)))
            }),
            None => self.number("rope_theta", 10_000.0),
        }
    }

    /// One id, a list of them, or none; ascending.
    fn ids(&self, field: &str) -> Result<Vec<u32>> {
        let values = match self.get(field) {
            None => &[],
            Some(Value::Array(values)) => values.as_slice(),
            Some(value) => std::slice::from_ref(value),
        };
        let mut ids = values
            .iter()
            .map(|value| {
                integer(value)
                    .and_then(|id| u32::try_from(id).ok())
                    .ok_or_else(|| self.error(format!("{field} {} is not a token id", brief(value))))
            })
            .collect::<Result<Vec<_>>>()?;
        ids.sort_unstable();
        ids.dedup();
        Ok(ids)
    }
}

fn integer(value: &Value) -> Option<u64> {
    value
        .as_u64()
        .or_else(|| value.as_f64().filter(|x| x.fract() == 0.0 && (0.0..9e15).contains(x)).map(|x| x as u64))
}

/// A value as a message shows it: a hostile file must not fill the line.
fn brief(value: &Value) -> String {
    const MOST_CHARS: usize = 60;
    match value {
        // Only their size: printing a large one costs more than the message is worth.
        Value::Array(values) => format!("[list of {}]", values.len()),
        Value::Object(map) => format!("{{object of {}}}", map.len()),
        scalar => quoted(&scalar.to_string(), MOST_CHARS),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::model::demo;

    fn base() -> Value {
        serde_json::from_slice(demo::CONFIG).unwrap()
    }

    fn parse(value: &Value) -> std::result::Result<Config, String> {
        Config::parse("config.json", value.to_string().as_bytes()).map_err(|error| error.to_string())
    }

    fn refusal(field: &str, value: Value) -> String {
        let mut config = base();
        config[field] = value;
        let text = parse(&config).unwrap_err();
        assert!(!text.contains('\n') && text.starts_with("config.json: "), "{text}");
        text
    }

    #[test]
    fn the_embedded_configuration_says_what_the_model_is() {
        let config = parse(&base()).unwrap();
        assert_eq!(config.parameters(), 2_910_464);
        assert_eq!((config.heads, config.kv_heads, config.head_dim), (8, 4, 32));
        assert_eq!((config.bos, config.eos.as_slice()), (Some(256), [].as_slice()));
    }

    #[test]
    fn fields_left_out_take_their_usual_values() {
        let mut value = base();
        for field in ["num_key_value_heads", "head_dim", "rope_theta", "rms_norm_eps", "bos_token_id"] {
            value.as_object_mut().unwrap().remove(field);
        }
        let config = parse(&value).unwrap();
        assert_eq!((config.kv_heads, config.head_dim), (8, 32));
        assert_eq!((config.rope_theta, config.rms_norm_eps, config.bos), (1e4, 1e-6, None));
        value["rope_parameters"] = json!({"rope_type": "default", "rope_theta": 500_000.0});
        assert_eq!(parse(&value).unwrap().rope_theta, 5e5);
    }

    #[test]
    fn refusals_name_field_and_value() {
        for (field, value, words) in [
            ("model_type", json!("qwen3"), "\"qwen3\" is not supported; supported: llama"),
            ("model_type", Value::Null, "missing"),
            ("attention_bias", json!(true), "only false"),
            ("mlp_bias", json!(1), "not true or false"),
            ("hidden_act", json!("gelu"), "\"gelu\""),
            ("rope_scaling", json!({"rope_type": "llama3"}), "\"llama3\" is not supported; only null"),
            ("rope_scaling", json!({"type": "yarn"}), "\"yarn\""),
            ("rope_scaling", json!(3), "unnamed"),
            ("quantization_config", json!({"quant_method": "fp8"}), "\"fp8\""),
            ("partial_rotary_factor", json!(0.5), "0.5"),
            ("hidden_size", json!(0), "0 is not an integer from 1"),
            ("hidden_size", json!(-4), "-4"),
            ("hidden_size", json!(1.5), "1.5"),
            ("hidden_size", json!("256"), "\"256\""),
            ("vocab_size", json!(u64::MAX), "18446744073709551615"),
            ("num_hidden_layers", json!(1_000_000), "1000000"),
            ("num_key_value_heads", json!(3), "does not divide"),
            ("head_dim", json!(31), "odd"),
            ("rms_norm_eps", json!(0), "rms_norm_eps 0"),
            ("rope_theta", json!(-1), "rope_theta -1"),
            ("rope_theta", json!("big"), "\"big\""),
            ("bos_token_id", json!(608), "608 is outside the vocabulary of 608"),
            ("eos_token_id", json!([2, "x"]), "\"x\""),
            ("eos_token_id", json!(-1), "-1"),
        ] {
            let text = refusal(field, value);
            assert!(text.contains(field) && text.contains(words), "{field}: {text}");
        }
    }

    #[test]
    fn absurd_products_are_refused_although_each_side_is_allowed() {
        let mut value = base();
        for (field, size) in
            [("hidden_size", 1 << 20), ("intermediate_size", 1 << 20), ("num_hidden_layers", 4096)]
        {
            value[field] = json!(size);
        }
        assert!(parse(&value).unwrap_err().contains("parameters"), "{value}");
        let mut value = base();
        value["num_attention_heads"] = json!(4096);
        value["head_dim"] = json!(1024);
        assert!(parse(&value).unwrap_err().contains("wider"), "{value}");
    }

    #[test]
    fn a_hostile_value_does_not_fill_the_line() {
        let text = refusal("model_type", json!("x".repeat(100_000)));
        assert!(text.len() < 200, "{}", text.len());
        assert!(refusal("hidden_size", json!(vec![0; 100_000])).len() < 200);
    }

    #[test]
    fn generation_ends_are_added() {
        let mut config = parse(&base()).unwrap();
        config.add_generation("g", br#"{"eos_token_id": [2, 1, 2]}"#).unwrap();
        config.add_generation("g", br#"{"eos_token_id": null}"#).unwrap();
        config.add_generation("g", br#"{"eos_token_id": 7}"#).unwrap();
        assert_eq!(config.eos, [1, 2, 7]);
        let text = config.add_generation("g", br#"{"eos_token_id": 608}"#).unwrap_err().to_string();
        assert!(text.starts_with("g: eos_token_id 608"), "{text}");
    }

    #[test]
    fn real_configurations_are_taken_or_refused_by_name() {
        let Some(data) = std::env::var_os("KVISTA_TEST_DATA") else {
            eprintln!("skipped: KVISTA_TEST_DATA is not set");
            return;
        };
        let mut taken = Vec::new();
        for entry in std::fs::read_dir(std::path::Path::new(&data).join("configs")).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            match Config::parse(&name, &std::fs::read(&path).unwrap()) {
                Ok(config) => taken.push((name, config)),
                Err(error) => {
                    let text = error.to_string();
                    let named = ["model_type", "rope_scaling", "not valid JSON"]
                        .iter()
                        .any(|field| text.contains(field));
                    assert!(text.starts_with(&name) && named, "{text}");
                }
            }
        }
        taken.sort_by(|a, b| a.0.cmp(&b.0));
        let shapes: Vec<_> = taken
            .iter()
            .map(|(name, c)| (name.as_str(), c.layers, c.heads, c.kv_heads, c.parameters()))
            .collect();
        assert_eq!(
            shapes,
            [
                ("codellama-34b-instruct-hf.json", 48, 64, 8, 33_743_970_304),
                ("llama-2-7b-hf.json", 32, 32, 32, 6_738_415_616),
                ("llama-3.1-8b-instruct.json", 32, 32, 8, 8_030_261_248),
                ("yi-34b.json", 60, 56, 8, 34_388_917_248),
            ]
        );
    }

    proptest! {
        #[test]
        fn any_bytes_are_taken_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = Config::parse("config.json", &bytes);
        }

        #[test]
        fn any_number_in_any_field_is_taken_or_refused(field in 0usize..19, number in any::<f64>(), integer in any::<i64>()) {
            let mut value = base();
            let name = value.as_object().unwrap().keys().nth(field).unwrap().clone();
            for replacement in [json!(number), json!(integer), json!([integer]), json!(integer as u8)] {
                value[&name] = replacement;
                if let Ok(config) = parse(&value) {
                    prop_assert!(config.parameters() <= MAX_PARAMETERS);
                    prop_assert!(config.heads.is_multiple_of(config.kv_heads));
                }
            }
        }
    }
}
