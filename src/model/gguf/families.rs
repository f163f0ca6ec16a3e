//! Every family's checkpoint, put into a GGUF file as llama.cpp's converter does it, is the same decoder again.

use std::collections::HashMap;
use std::io::Cursor;

use candle_core::quantized::gguf_file::{self, Value};
use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{Device, Tensor};
use serde_json::{Value as Json, json};

use crate::attention::Scaling;
use crate::model::config::Arch;
use crate::model::decoder::tests::Named;
use crate::model::{Config, Decoder, load, tensors};

const HIDDEN: usize = 24;
const INTERMEDIATE: usize = 40;
const HEADS: usize = 4;
const KV_HEADS: usize = 2;
const HEAD_DIM: usize = 8;
const VOCAB: usize = 30;
const LAYERS: usize = 6;
const THETA: f32 = 5e4;

type Tensors = HashMap<String, (Vec<usize>, Vec<f32>)>;

fn config(family: &str, more: Json) -> Config {
    let mut json = json!({
        "model_type": family, "hidden_size": HIDDEN, "intermediate_size": INTERMEDIATE,
        "num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS,
        "head_dim": HEAD_DIM, "vocab_size": VOCAB, "max_position_embeddings": 128, "rms_norm_eps": 1e-5,
        "rope_theta": THETA, "tie_word_embeddings": true, "bos_token_id": 1, "eos_token_id": 2,
    });
    let Json::Object(more) = more else { panic!("fields are an object") };
    json.as_object_mut().unwrap().extend(more);
    Config::parse(family, json.to_string().as_bytes()).unwrap()
}

fn tensors_of(config: &Config) -> Tensors {
    let mut tensors = Tensors::new();
    tensors::visit(config, |name, shape| {
        let size: usize = shape.iter().product();
        let seed = name.bytes().fold(size, |seed, byte| (seed * 31 + usize::from(byte)) % 9973);
        let elements = (0..size).map(|i| ((i * 7919 + seed) % 997) as f32 / 997.0 - 0.5).collect();
        tensors.insert(name.into(), (shape.to_vec(), elements));
        Ok(())
    })
    .unwrap();
    tensors
}

/// ggml's name of a part, by the family, as the converter's tables have it.
fn ggml_name(name: &str, is_sandwich: bool) -> String {
    let parts = [
        ("model.embed_tokens", "token_embd"),
        ("model.norm", "output_norm"),
        ("lm_head", "output"),
        ("model.layers.", "blk."),
        ("self_attn.qkv_proj", "attn_qkv"),
        ("self_attn.q_proj", "attn_q"),
        ("self_attn.k_proj", "attn_k"),
        ("self_attn.v_proj", "attn_v"),
        ("self_attn.o_proj", "attn_output"),
        ("self_attn.q_norm", "attn_q_norm"),
        ("self_attn.k_norm", "attn_k_norm"),
        ("input_layernorm", "attn_norm"),
        ("pre_feedforward_layernorm", "ffn_norm"),
        ("post_feedforward_layernorm", "post_ffw_norm"),
        ("post_attention_layernorm", if is_sandwich { "post_attention_norm" } else { "ffn_norm" }),
        ("mlp.gate_up_proj", "ffn_up"),
        ("mlp.gate_proj", "ffn_gate"),
        ("mlp.up_proj", "ffn_up"),
        ("mlp.down_proj", "ffn_down"),
    ];
    parts.iter().fold(name.to_owned(), |name, (theirs, ggmls)| name.replace(theirs, ggmls))
}

/// Rows of each head by pairs, as the converter of the Llamas puts them: pair `i` is rows `i` and `i + half`.
fn paired(elements: &[f32], width: usize) -> Vec<f32> {
    let mut out = Vec::new();
    for head in elements.chunks(HEAD_DIM * width) {
        for pair in 0..HEAD_DIM / 2 {
            for row in [pair, pair + HEAD_DIM / 2] {
                out.extend(&head[row * width..(row + 1) * width]);
            }
        }
    }
    out
}

fn file(
    config: &Config,
    architecture: &str,
    entries: &[(&str, Value)],
    extra: &[(&str, Vec<f32>)],
) -> Vec<u8> {
    let is_gemma = architecture.starts_with("gemma");
    let mut all = Vec::new();
    for (name, (shape, mut elements)) in tensors_of(config) {
        if is_gemma && name.ends_with("norm.weight") {
            elements.iter_mut().for_each(|x| *x += 1.0);
        }
        if architecture == "llama" && (name.contains("q_proj") || name.contains("k_proj")) {
            elements = paired(&elements, *shape.get(1).unwrap_or(&1));
        }
        all.push((ggml_name(&name, config.arch.post_norms), shape, elements));
    }
    all.extend(
        extra.iter().map(|(name, elements)| ((*name).to_owned(), vec![elements.len()], elements.clone())),
    );
    let tensors: Vec<(String, QTensor)> = all
        .into_iter()
        .map(|(name, shape, elements)| {
            let tensor = Tensor::from_vec(elements, shape, &Device::Cpu).unwrap();
            (name, QTensor::quantize(&tensor, GgmlDType::F32).unwrap())
        })
        .collect();
    let tokens = (0..VOCAB).map(|id| Value::String(format!("t{id}"))).collect();
    let mut metadata = vec![
        ("general.architecture".to_owned(), Value::String(architecture.into())),
        ("tokenizer.ggml.model".to_owned(), Value::String("gpt2".into())),
        ("tokenizer.ggml.tokens".to_owned(), Value::Array(tokens)),
        ("tokenizer.ggml.bos_token_id".to_owned(), Value::U32(1)),
        ("tokenizer.ggml.eos_token_id".to_owned(), Value::U32(2)),
    ];
    let mut put = |key: &str, value: Value| metadata.push((format!("{architecture}.{key}"), value));
    for (key, size) in [
        ("embedding_length", HIDDEN),
        ("feed_forward_length", INTERMEDIATE),
        ("block_count", LAYERS),
        ("attention.head_count", HEADS),
        ("attention.head_count_kv", KV_HEADS),
        ("attention.key_length", HEAD_DIM),
        ("attention.value_length", HEAD_DIM),
        ("context_length", 128),
    ] {
        put(key, Value::U32(size as u32));
    }
    put("attention.layer_norm_rms_epsilon", Value::F32(1e-5));
    put("rope.freq_base", Value::F32(THETA));
    entries.iter().for_each(|(key, value)| put(key, value.clone()));
    let mut out = Cursor::new(Vec::new());
    let metadata: Vec<(&str, &Value)> = metadata.iter().map(|(key, value)| (key.as_str(), value)).collect();
    let tensors: Vec<(&str, &QTensor)> =
        tensors.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
    gguf_file::write(&mut out, &metadata, &tensors).unwrap();
    out.into_inner()
}

/// What the linear algebra makes of a few rows, all of it.
fn through(decoder: &Decoder) -> Vec<f32> {
    let mut x = decoder.embed(&[3, 17, 29]).unwrap();
    let mut all = x.clone();
    for layer in 0..LAYERS {
        let qkv = decoder.qkv(layer, &x).unwrap();
        x = decoder.mix(layer, x, &qkv.q).unwrap();
        all.extend(qkv.q.iter().chain(&qkv.k).chain(&qkv.v).chain(&x));
    }
    all.extend(decoder.logits(&x).unwrap());
    all
}

fn is_the_same(
    config: &Config,
    architecture: &str,
    entries: &[(&str, Value)],
    extra: &[(&str, Vec<f32>)],
) -> Arch {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.gguf");
    std::fs::write(&path, file(config, architecture, entries, extra)).unwrap();
    let ours = load(&path).unwrap().decoder;
    let card = (String::new(), String::new());
    let theirs = Decoder::load(config.clone(), Named(tensors_of(config)), card, Ok).unwrap();
    let found = ours.config();
    let plain = |config: &Config| Config {
        family: String::new(),
        arch: Arch { norm_offset: 0.0, rope_scaling: Scaling::None, ..config.arch.clone() },
        ..config.clone()
    };
    assert_eq!(plain(found), plain(config), "{architecture}");
    for (i, (a, b)) in through(&ours).iter().zip(through(&theirs)).enumerate() {
        assert!((a - b).abs() <= 1e-4 * b.abs().max(1.0), "{architecture}, number {i}: {a} {b}");
    }
    found.arch.clone()
}

#[test]
fn every_family_survives_the_conversion() {
    is_the_same(&config("llama", json!({})), "llama", &[], &[]);
    is_the_same(&config("llama", json!({"tie_word_embeddings": false})), "llama", &[], &[]);
    let biased = config("llama", json!({"attention_bias": true, "mlp_bias": true}));
    is_the_same(&biased, "llama", &[], &[]);
    is_the_same(&config("qwen2", json!({})), "qwen2", &[], &[]);
    is_the_same(&config("qwen3", json!({})), "qwen3", &[], &[]);
    let window = |size| ("attention.sliding_window", Value::U32(size));
    let phi3 = config("phi3", json!({"sliding_window": 20, "partial_rotary_factor": 0.75}));
    is_the_same(&phi3, "phi3", &[window(20), ("rope.dimension_count", Value::U32(6))], &[]);
    is_the_same(&config("gemma", json!({})), "gemma", &[], &[]);
    let gemma2 = json!({
        "sliding_window": 16, "query_pre_attn_scalar": HEAD_DIM, "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0,
    });
    let caps = [
        window(16),
        ("attn_logit_softcapping", Value::F32(50.0)),
        ("final_logit_softcapping", Value::F32(30.0)),
    ];
    is_the_same(&config("gemma2", gemma2), "gemma2", &caps, &[]);
    let gemma3 = json!({
        "sliding_window": 16, "query_pre_attn_scalar": HEAD_DIM,
        "rope_scaling": {"rope_type": "linear", "factor": 8.0},
    });
    let entries = [
        window(16),
        ("rope.scaling.type", Value::String("linear".into())),
        ("rope.scaling.factor", Value::F32(8.0)),
    ];
    let arch = is_the_same(&config("gemma3_text", gemma3), "gemma3", &entries, &[]);
    assert_eq!(arch.rope_scaling, Scaling::Linear { factor: 8.0 });
}

/// Llama 3.1's bent frequencies come as divisors in a tensor, Phi-3's as two tensors.
#[test]
fn divisors_of_frequencies_come_from_tensors() {
    let divisors = vec![1.0f32, 2.0, 4.0, 8.0];
    let arch =
        is_the_same(&config("llama", json!({})), "llama", &[], &[("rope_freqs.weight", divisors.clone())]);
    let bent = arch.rope_scaling.frequencies(HEAD_DIM, f64::from(THETA), 100);
    let plain = Scaling::None.frequencies(HEAD_DIM, f64::from(THETA), 100);
    for ((bent, plain), divisor) in bent.iter().zip(plain).zip(divisors) {
        assert!((bent * f64::from(divisor) / plain - 1.0).abs() < 1e-12);
    }
    assert_eq!(arch.rope_scaling.amplitude(), 1.0);

    let original = ("rope.scaling.original_context_length", Value::U32(32));
    let (short, long) = (vec![1.0f32, 1.0, 1.5, 2.0], vec![1.0f32, 3.0, 5.0, 7.0]);
    let tensors = [("rope_factors_short.weight", short), ("rope_factors_long.weight", long)];
    let entries = [original, ("rope.scaling.attn_factor", Value::F32(1.25))];
    let arch = is_the_same(&config("phi3", json!({"sliding_window": null})), "phi3", &entries, &tensors);
    let Scaling::LongRope { short, long, original, amplitude } = arch.rope_scaling else {
        panic!("divisors are LongRoPE's")
    };
    assert_eq!((short, long), (vec![1.0, 1.0, 1.5, 2.0], vec![1.0, 3.0, 5.0, 7.0]));
    assert_eq!((original, amplitude), (32.0, 1.25));
}
