//! Families of decoders through the whole engine (pages, chunks, windows), against candle's own models and against a
//! reference written down here.

mod oracle;
mod real;
mod reference;

use std::sync::Arc;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::{Value, json};

use self::oracle::Oracle;
use self::reference::{Reference, Tensors, head_dim, plain_turns};
use super::{Engine, Prompt};
use crate::event::{Reason, ScoreLevel, Settings};
use crate::model::{Config, Decoder, Model, Tokenizer};

/// Two parties agree when no logit differs by more than this share of the largest logit. f32 products of this depth differ
/// by some 1e-6 of it when they are summed in another order.
const NEAR: f64 = 2e-5;

/// More than one block, more than one chunk, and within every window of these configurations.
const PROMPT: &str = "A prompt of some forty-odd bytes, no more.";
const GENERATED: usize = 12;

/// The smallest configuration of a family with everything that sets it apart.
fn family(name: &str) -> Value {
    let mut json = json!({
        "model_type": name, "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 3, "num_attention_heads": 6,
        "num_key_value_heads": 2, "vocab_size": 257, "max_position_embeddings": 128, "rms_norm_eps": 1e-5,
        "rope_theta": 1000.0, "hidden_act": "silu", "tie_word_embeddings": false, "bos_token_id": 256,
        "eos_token_id": null,
    });
    let more = match name {
        "mistral" => json!({"sliding_window": 100, "head_dim": 10}),
        "qwen2" => json!({"sliding_window": 100, "use_sliding_window": false, "max_window_layers": 3}),
        "qwen3" => json!({
            "head_dim": 12, "attention_bias": true, "use_sliding_window": false, "sliding_window": null,
            "max_window_layers": 3, "tie_word_embeddings": true,
        }),
        "gemma" => json!({
            "head_dim": 12, "attention_bias": false, "hidden_act": null, "hidden_activation": "gelu_pytorch_tanh",
            "tie_word_embeddings": true,
        }),
        "gemma2" => json!({
            "head_dim": 12, "attention_bias": false, "hidden_activation": "gelu_pytorch_tanh", "query_pre_attn_scalar": 12,
            "attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0, "sliding_window": 100,
            "tie_word_embeddings": true,
        }),
        "gemma3_text" => json!({
            "num_key_value_heads": 1, "head_dim": 12, "attention_bias": false, "hidden_activation": "gelu_pytorch_tanh", "query_pre_attn_scalar": 12,
            "sliding_window": 100, "sliding_window_pattern": 2, "rope_local_base_freq": 100.0,
            "tie_word_embeddings": true,
        }),
        _ => json!({}),
    };
    for (field, value) in more.as_object().unwrap() {
        json[field] = value.clone();
    }
    json
}

fn with(mut json: Value, more: Value) -> Value {
    let Value::Object(more) = more else { panic!("fields are an object") };
    json.as_object_mut().unwrap().extend(more);
    json
}

/// Random weights under the names that the family's checkpoints use, listed here by hand.
fn tensors(json: &Value, seed: u64) -> Tensors {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let size = |field: &str| json[field].as_u64().unwrap() as usize;
    let (family, hidden, inner) =
        (json["model_type"].as_str().unwrap(), size("hidden_size"), size("intermediate_size"));
    let d = head_dim(json);
    let (q, kv) = (size("num_attention_heads") * d, size("num_key_value_heads") * d);
    let has_bias = |field: &str| json.get(field).is_some_and(|flag| *flag == true);
    let (attention_bias, mlp_bias) = (has_bias("attention_bias"), has_bias("mlp_bias"));
    let is_gemma = family.starts_with("gemma");
    let mut list: Vec<(String, Vec<usize>)> =
        vec![("model.embed_tokens.weight".into(), vec![size("vocab_size"), hidden])];
    for layer in 0..size("num_hidden_layers") {
        let mut add = |part: &str, shape: &[usize], bias: bool| {
            let name = format!("model.layers.{layer}.{part}");
            list.push((format!("{name}.weight"), shape.to_vec()));
            if bias {
                list.push((format!("{name}.bias"), shape[..1].to_vec()));
            }
        };
        let qkv_bias = attention_bias || family == "qwen2";
        if family == "phi3" {
            add("self_attn.qkv_proj", &[q + 2 * kv, hidden], false);
            add("mlp.gate_up_proj", &[2 * inner, hidden], false);
        } else {
            add("self_attn.q_proj", &[q, hidden], qkv_bias);
            add("self_attn.k_proj", &[kv, hidden], qkv_bias);
            add("self_attn.v_proj", &[kv, hidden], qkv_bias);
            add("mlp.gate_proj", &[inner, hidden], mlp_bias);
            add("mlp.up_proj", &[inner, hidden], mlp_bias);
        }
        add("self_attn.o_proj", &[hidden, q], attention_bias && family != "qwen2");
        add("mlp.down_proj", &[hidden, inner], mlp_bias);
        add("input_layernorm", &[hidden], false);
        add("post_attention_layernorm", &[hidden], false);
        if matches!(family, "qwen3" | "gemma3_text") {
            add("self_attn.q_norm", &[d], false);
            add("self_attn.k_norm", &[d], false);
        }
        if matches!(family, "gemma2" | "gemma3_text") {
            add("pre_feedforward_layernorm", &[hidden], false);
            add("post_feedforward_layernorm", &[hidden], false);
        }
    }
    list.push(("model.norm.weight".into(), vec![hidden]));
    if json["tie_word_embeddings"] != true {
        list.push(("lm_head.weight".into(), vec![size("vocab_size"), hidden]));
    }
    list.into_iter()
        .map(|(name, shape)| {
            let is_norm = name.ends_with("norm.weight");
            let (middle, spread) = match shape[..] {
                [_, inputs] => (0.0, (3.0 / inputs as f32).sqrt()),
                _ if is_norm && !is_gemma => (1.0, 0.4),
                _ => (0.0, 0.4),
            };
            let elements = shape.iter().product();
            let data = (0..elements).map(|_| middle + rng.random_range(-spread..spread)).collect();
            (name, (shape, data))
        })
        .collect()
}

fn model(json: &Value, tensors: &Tensors) -> Arc<Model> {
    let config = Config::parse("config.json", json.to_string().as_bytes()).unwrap();
    let tokenizer = Tokenizer::bytes(&config).unwrap();
    Arc::new(Model::new(Decoder::of_tensors(config, tensors.clone()).unwrap(), tokenizer))
}

/// A run of the engine: the ids fed, and the logits after the prompt and after each token generated.
struct Heard {
    prompt: usize,
    ids: Vec<u32>,
    logits: Vec<Vec<f32>>,
}

fn hear(model: &Arc<Model>, prompt: &str, chunk: u32, forced: &[u32]) -> Heard {
    let settings = Settings {
        chunk,
        max_tokens: GENERATED as u32,
        block_size: 4,
        scores: ScoreLevel::Off,
        ignore_eos: true,
        ..Settings::default()
    };
    let prompt = Prompt { text: prompt.into(), ..Prompt::default() };
    let mut engine = Engine::new(Arc::clone(model), &settings, &prompt).unwrap();
    engine.witness.forced = forced.iter().copied().collect();
    while engine.step().unwrap().is_some() {}
    Heard {
        prompt: engine.prompt.len(),
        ids: engine.sequences[0].fed.clone(),
        logits: std::mem::take(&mut engine.witness.logits),
    }
}

/// The largest difference as a share of the largest logit.
fn apart(ours: &[Vec<f32>], theirs: &[Vec<f64>]) -> f64 {
    assert_eq!(ours.len(), theirs.len());
    let pairs = || ours.iter().flatten().zip(theirs.iter().flatten());
    let largest = pairs().map(|(_, x)| x.abs()).fold(0.0, f64::max);
    assert!(largest > 0.1, "{largest}: the logits say something");
    pairs().map(|(a, b)| (f64::from(*a) - b).abs()).fold(0.0, f64::max) / largest
}

/// Prefill whole and in chunks, then decode, against candle's model of the family.
fn agrees_with_candle(json: &Value) {
    let tensors = tensors(json, 5);
    let model = model(json, &tensors);
    let whole = hear(&model, PROMPT, 64, &[]);
    let generated = &whole.ids[whole.prompt..];
    let mut oracle = Oracle::new(json, &tensors);
    let mut theirs = vec![oracle.forward(&whole.ids[..whole.prompt], 0)];
    for (i, &id) in generated.iter().enumerate() {
        theirs.push(oracle.forward(&[id], whole.prompt + i));
    }
    let family = &json["model_type"];
    let far = apart(&whole.logits, &theirs);
    eprintln!("{family}: {far:e} apart");
    assert!(far < NEAR, "{family}: {far}");
    for chunk in [1, 5, 16] {
        let cut = hear(&model, PROMPT, chunk, generated);
        let far = apart(&cut.logits, &theirs);
        assert!(far < NEAR, "{family} in chunks of {chunk}: {far}");
    }
}

/// The same against the reference, over a text longer than `change`'s windows.
fn agrees_with_reference(json: &Value, prompt: &str, change: impl FnOnce(&mut Reference<'_>)) {
    let tensors = tensors(json, 6);
    let model = model(json, &tensors);
    let mut reference = Reference::new(json, &tensors);
    change(&mut reference);
    let whole = hear(&model, prompt, 64, &[]);
    let theirs = reference.logits(&whole.ids);
    let theirs = &theirs[whole.prompt - 1..];
    let family = &json["model_type"];
    let far = apart(&whole.logits, theirs);
    eprintln!("{family}: {far:e} apart");
    assert!(far < NEAR, "{family}: {far}");
    for chunk in [1, 7, 16] {
        let cut = hear(&model, prompt, chunk, &whole.ids[whole.prompt..]);
        let far = apart(&cut.logits, theirs);
        assert!(far < NEAR, "{family} in chunks of {chunk}: {far}");
    }
}

#[test]
fn every_family_agrees_with_candle() {
    for name in ["llama", "mistral", "qwen2", "qwen3", "phi3", "gemma", "gemma2", "gemma3_text"] {
        agrees_with_candle(&family(name));
    }
}

#[test]
fn bent_rotations_agree_with_candle() {
    // Short enough a first context that pairs stay, are divided, and lie between.
    let llama3 = json!({"rope_scaling": {
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    }});
    agrees_with_candle(&with(family("llama"), llama3));
    // candle changes from the short divisors to the long ones within a sequence.
    let longrope = json!({
        "partial_rotary_factor": 0.75, "original_max_position_embeddings": 100,
        "rope_scaling": {
            "type": "longrope", "short_factor": [1.0, 1.5, 3.0], "long_factor": [2.0, 3.0, 9.0], "attention_factor": 1.0,
        },
    });
    agrees_with_candle(&with(family("phi3"), longrope));
}

#[test]
fn every_family_agrees_with_the_reference() {
    let bias = json!({"attention_bias": true, "mlp_bias": true, "head_dim": 10});
    agrees_with_reference(&with(family("llama"), bias), PROMPT, |_| {});
    // Scores are scaled by another size than a head's, which candle's models do not read.
    agrees_with_reference(&with(family("gemma2"), json!({"query_pre_attn_scalar": 20})), PROMPT, |_| {});
    agrees_with_reference(
        &with(family("gemma3_text"), json!({"query_pre_attn_scalar": 20})),
        PROMPT,
        |reference| {
            reference.turns = local_and_global(reference.turns.len(), |layer| layer % 2 == 1);
        },
    );
}

/// Angles of Gemma 3's layers, those that see everything named.
fn local_and_global(layers: usize, is_global: impl Fn(usize) -> bool) -> Vec<Vec<f64>> {
    let turns = |theta| plain_turns(theta, 12);
    (0..layers).map(|layer| if is_global(layer) { turns(1000.0) } else { turns(100.0) }).collect()
}

#[test]
fn longropes_long_divisors_and_amplitude_agree_with_the_reference() {
    let json = with(
        family("phi3"),
        json!({
            "original_max_position_embeddings": 32,
            "rope_scaling": {
                "type": "su", "short_factor": [1.0, 1.5, 3.0, 4.0], "long_factor": [2.0, 3.0, 9.0, 16.0],
            },
        }),
    );
    agrees_with_reference(&json, PROMPT, |reference| {
        for turns in &mut reference.turns {
            turns.iter_mut().zip([2.0, 3.0, 9.0, 16.0]).for_each(|(turn, divisor)| *turn /= divisor);
        }
        reference.amplitude = (1.0 + 4f64.ln() / 32f64.ln()).sqrt();
    });
}

/// Windows from one position to nearly all of the text, chunks shorter and longer than they: what a chunk masks and what
/// later steps no longer hold.
#[test]
fn windows_agree_with_the_reference() {
    let long = PROMPT.repeat(2);
    for window in [1, 2, 3, 9, 16, 33, 80] {
        let json = with(family("mistral"), json!({"sliding_window": window}));
        agrees_with_reference(&json, &long, |reference| reference.windows.fill(window));
    }
    let gemma2 = with(family("gemma2"), json!({"sliding_window": 11}));
    agrees_with_reference(&gemma2, &long, |reference| reference.windows = vec![11, usize::MAX, 11]);
    let gemma3 = with(
        family("gemma3_text"),
        json!({"sliding_window": 7, "sliding_window_pattern": 3, "num_key_value_heads": 3}),
    );
    agrees_with_reference(&gemma3, &long, |reference| {
        reference.windows = vec![7, 7, usize::MAX];
        reference.turns = local_and_global(3, |layer| layer == 2);
    });
    let qwen2 = with(
        family("qwen2"),
        json!({"sliding_window": 5, "use_sliding_window": true, "max_window_layers": 1}),
    );
    agrees_with_reference(&qwen2, &long, |reference| reference.windows = vec![usize::MAX, 5, 5]);
}

/// What leaves a window is lost: slots go free, and the record says why.
#[test]
fn a_window_frees_what_left_it() {
    let json = with(family("gemma3_text"), json!({"sliding_window": 10, "sliding_window_pattern": 2}));
    let model = model(&json, &tensors(&json, 7));
    let settings =
        Settings { chunk: 16, max_tokens: 30, block_size: 4, ignore_eos: true, ..Settings::default() };
    let prompt = Prompt { text: PROMPT.into(), ..Prompt::default() };
    let mut engine = Engine::new(model, &settings, &prompt).unwrap();
    let (mut lost, mut freed) = ([0usize; 3], [0usize; 3]);
    let mut last = None;
    while let Some(step) = engine.step().unwrap() {
        let part = &step.seqs[0];
        for e in &part.evictions {
            assert_eq!((e.reason, e.head), (Reason::LayerWindow, None));
            lost[usize::from(e.layer)] += e.positions.len();
        }
        for ops in &part.tables {
            freed[usize::from(ops.layer)] += ops.freed.len();
        }
        last = Some(step);
    }
    let last = last.unwrap();
    let fed = engine.sequences[0].fed.len();
    // Before the next query comes, it would be the tenth.
    assert_eq!(lost, [fed - 9, 0, fed - 9]);
    assert_eq!(last.seqs[0].resident, [9, fed as u32, 9]);
    assert_eq!(freed, [(fed - 9) / 4, 0, (fed - 9) / 4]);
    assert_eq!(engine.info().model.windows, [10, 0, 10]);
}
