//! Files of a run: a checkpoint to go on from, and the finished model in the layout that `kvista run --model` reads.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use serde_json::json;

use super::attention::HEAD_DIM;
use super::net::{Net, Shape};
use super::optimiser::Optimiser;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

const FILE: &str = "checkpoint.safetensors";
/// Steps done, as one number in the checkpoint.
const STEPS: &str = "steps";

/// Writes the checkpoint; an older one stays whole until the new one is.
pub(crate) fn save(folder: &Path, net: &Net, optimiser: &Optimiser, steps: usize) -> Result<()> {
    let mut tensors: HashMap<String, Tensor> = optimiser.moments();
    for (name, var) in net.parameters() {
        tensors.insert(name, var.as_tensor().clone());
    }
    tensors.insert(STEPS.into(), Tensor::new(&[steps as u32], &Device::Cpu)?);
    let unfinished = folder.join("checkpoint.unfinished");
    candle_core::safetensors::save(&tensors, &unfinished)?;
    fs::rename(unfinished, folder.join(FILE))?;
    Ok(())
}

/// Takes up the checkpoint in this folder: the steps done, or `None` where there is none.
pub(crate) fn resume(folder: &Path, net: &Net, optimiser: &mut Optimiser) -> Result<Option<usize>> {
    let file = folder.join(FILE);
    if !file.exists() {
        return Ok(None);
    }
    let tensors = candle_core::safetensors::load(file, &Device::Cpu)?;
    net.set(&tensors)?;
    optimiser.restore(&tensors)?;
    let steps = tensors.get(STEPS).ok_or("the checkpoint does not say its steps")?;
    Ok(Some(steps.to_vec1::<u32>()?[0] as usize))
}

/// Writes `config.json`, `vocab.json` and `model.safetensors` (f16).
pub(crate) fn export(folder: &Path, net: &Net) -> Result<()> {
    let mut tensors = HashMap::new();
    for (name, var) in net.parameters() {
        tensors.insert(name, var.to_dtype(DType::F16)?);
    }
    candle_core::safetensors::save(&tensors, folder.join("model.safetensors"))?;
    fs::write(folder.join("config.json"), serde_json::to_string_pretty(&config(net.shape))?)?;
    fs::write(folder.join("vocab.json"), kvista::model::demo::VOCAB)?;
    Ok(())
}

fn config(shape: Shape) -> serde_json::Value {
    json!({
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": shape.dim,
        "intermediate_size": shape.ff,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": HEAD_DIM,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "rope_theta": shape.theta,
        "rope_scaling": null,
        "attention_bias": false,
        "mlp_bias": false,
        "vocab_size": shape.vocab,
        "tie_word_embeddings": true,
        "max_position_embeddings": 4096,
        "bos_token_id": kvista::model::demo::BOS,
        "eos_token_id": null,
        "torch_dtype": "float16",
    })
}
