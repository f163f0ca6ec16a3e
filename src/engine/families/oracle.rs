//! candle's own models, fed the same weights. They read the same configuration, each with its own parser.
//!
//! What they get wrong is kept away from, and held against the reference instead: windows are longer than every sequence
//! (their masks are one position too long, hold within a chunk only and nowhere in decode), and so is the context. Gemma 3
//! has one KV head here (its cache refuses several rows of more), Gemma 2 and 3 scale scores by their heads' size (no other
//! is read), and LongRoPE's divisors are handed over inverted (candle multiplies by them, and scales nothing).

use std::collections::HashMap;

use candle_core::{DType, Device, Result, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models::{gemma, gemma2, gemma3, llama, mistral, phi3, qwen2, qwen3};
use serde_json::Value;

use super::reference::Tensors;

type Forward = Box<dyn FnMut(&Tensor, usize) -> Result<Tensor>>;

pub(super) struct Oracle(Forward);

impl Oracle {
    pub(super) fn new(json: &Value, tensors: &Tensors) -> Self {
        let tensor = |(name, (shape, data)): (&String, &(Vec<usize>, Vec<f32>))| {
            (name.clone(), Tensor::from_slice(data, shape.as_slice(), &Device::Cpu).unwrap())
        };
        let map: HashMap<String, Tensor> = tensors.iter().map(tensor).collect();
        let weights = VarBuilder::from_tensors(map, DType::F32, &Device::Cpu);
        let config = json.clone();
        Self(match json["model_type"].as_str().unwrap() {
            "llama" => {
                let config: llama::LlamaConfig = serde_json::from_value(config).unwrap();
                let config = config.into_config(false);
                let model = llama::Llama::load(weights, &config).unwrap();
                let mut cache = llama::Cache::new(true, DType::F32, &config, &Device::Cpu).unwrap();
                Box::new(move |ids, at| model.forward(ids, at, &mut cache))
            }
            "mistral" => {
                let config = with_default(config, "use_flash_attn");
                let config: mistral::Config = serde_json::from_value(config).unwrap();
                let mut model = mistral::Model::new(&config, weights).unwrap();
                Box::new(move |ids, at| model.forward(ids, at))
            }
            "qwen2" => {
                let config: qwen2::Config = serde_json::from_value(config).unwrap();
                let mut model = qwen2::ModelForCausalLM::new(&config, weights).unwrap();
                Box::new(move |ids, at| model.forward(ids, at))
            }
            "qwen3" => {
                let config: qwen3::Config = serde_json::from_value(config).unwrap();
                let mut model = qwen3::ModelForCausalLM::new(&config, weights).unwrap();
                Box::new(move |ids, at| model.forward(ids, at))
            }
            "phi3" => {
                let config: phi3::Config = serde_json::from_value(with_inverted_divisors(config)).unwrap();
                let mut model = phi3::Model::new(&config, weights).unwrap();
                Box::new(move |ids, at| model.forward(ids, at))
            }
            "gemma" => {
                let config: gemma::Config = serde_json::from_value(config).unwrap();
                let mut model = gemma::Model::new(false, &config, weights).unwrap();
                Box::new(move |ids, at| model.forward(ids, at))
            }
            "gemma2" => {
                let config: gemma2::Config = serde_json::from_value(config).unwrap();
                let mut model = gemma2::Model::new(false, &config, weights).unwrap();
                Box::new(move |ids, at| model.forward(ids, at))
            }
            "gemma3_text" => {
                let config: gemma3::Config = serde_json::from_value(config).unwrap();
                let mut model = gemma3::Model::new(false, &config, weights).unwrap();
                Box::new(move |ids, at| model.forward(ids, at))
            }
            other => panic!("no oracle for {other}"),
        })
    }

    /// Logits after the last of these ids, the first of which stands at a position.
    pub(super) fn forward(&mut self, ids: &[u32], at: usize) -> Vec<f64> {
        let ids = Tensor::new(ids, &Device::Cpu).unwrap().unsqueeze(0).unwrap();
        let logits: Vec<f32> = (self.0)(&ids, at).unwrap().flatten_all().unwrap().to_vec1().unwrap();
        logits.into_iter().map(f64::from).collect()
    }
}

/// A switch that candle wants said, off.
fn with_default(mut json: Value, field: &str) -> Value {
    json[field] = Value::Bool(false);
    json
}

fn with_inverted_divisors(mut json: Value) -> Value {
    for field in ["short_factor", "long_factor"] {
        for divisor in json
            .pointer_mut(&format!("/rope_scaling/{field}"))
            .and_then(Value::as_array_mut)
            .into_iter()
            .flatten()
        {
            *divisor = (1.0 / divisor.as_f64().unwrap()).into();
        }
    }
    json
}
