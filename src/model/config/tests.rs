//! What is taken and what is refused.

use proptest::prelude::*;
use serde_json::{Value, json};

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
        (
            "model_type",
            json!("mpt"),
            "\"mpt\" is not supported; supported: llama, mistral, qwen2, qwen3, phi3, gemma",
        ),
        ("model_type", Value::Null, "missing"),
        ("num_experts", json!(8), "\"llama\" with a mixture of experts (num_experts 8) is not supported"),
        ("attention_bias", json!("yes"), "not true or false"),
        ("mlp_bias", json!(1), "not true or false"),
        ("hidden_act", json!("gelu"), "\"gelu\""),
        (
            "rope_scaling",
            json!({"rope_type": "proportional"}),
            ".rope_type \"proportional\" is not supported; only",
        ),
        ("rope_scaling", json!({"rope_type": "dynamic", "factor": 2}), "change as a sequence grows"),
        ("rope_scaling", json!({"factor": 2}), "unnamed"),
        ("rope_scaling", json!({"type": "linear"}), ".factor is missing"),
        (
            "rope_scaling",
            json!({"type": "linear", "factor": 0}),
            ".factor 0 is not a number from 1e-6 to 1e9",
        ),
        (
            "rope_scaling",
            json!({"type": "yarn", "factor": 4, "beta_fast": "x"}),
            ".beta_fast \"x\" is not a number",
        ),
        ("rope_scaling", json!(3), "3 is not an object"),
        (
            "rope_scaling",
            json!({"type": "llama3", "factor": 8, "low_freq_factor": 4, "high_freq_factor": 4}),
            "low_freq_factor 4 is not below",
        ),
        (
            "rope_scaling",
            json!({"type": "su", "short_factor": [1, 1], "original_max_position_embeddings": 64}),
            ".short_factor [list of 2] is not a list of 16 numbers",
        ),
        ("quantization_config", json!({"quant_method": "fp8"}), "\"fp8\""),
        ("partial_rotary_factor", json!(0.03), "would turn 0 elements"),
        ("partial_rotary_factor", json!(2), "would turn 64 elements"),
        ("partial_rotary_factor", json!(0.6), "would turn 19 elements"),
        ("layer_types", json!(["full_attention", "linear_attention"]), "\"linear_attention\""),
        ("hidden_size", json!(0), "0 is not an integer from 1"),
        ("hidden_size", json!(-4), "-4"),
        ("hidden_size", json!(1.5), "1.5"),
        ("hidden_size", json!("256"), "\"256\""),
        ("vocab_size", json!(u64::MAX), "18446744073709551615"),
        ("num_hidden_layers", json!(1_000_000), "1000000"),
        ("num_key_value_heads", json!(3), "does not divide"),
        ("head_dim", json!(31), "head_dim"),
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

/// A configuration of another family over the sizes of the embedded one.
fn of(family: &str, more: &Value) -> Config {
    let mut value = base();
    value["model_type"] = json!(family);
    for (field, more) in more.as_object().unwrap() {
        value[field] = more.clone();
    }
    parse(&value).unwrap()
}

#[test]
fn families_differ_in_what_hugging_face_has_them_differ() {
    let mistral = of("mistral", &json!({"sliding_window": 16}));
    assert_eq!((mistral.window(0), mistral.window(3)), (Some(16), Some(16)));
    assert!(of("mistral", &json!({"sliding_window": null})).arch.windows.is_empty());
    assert_eq!(of("llama", &json!({"sliding_window": 16})).arch, Arch::default());

    let qwen2 =
        of("qwen2", &json!({"sliding_window": 16, "use_sliding_window": true, "max_window_layers": 2}));
    assert_eq!(qwen2.arch.biases, Biases { qkv: true, ..Biases::default() });
    assert_eq!(qwen2.arch.windows, [0, 0, 16, 16]);
    assert!(of("qwen2", &json!({"sliding_window": 16, "use_sliding_window": false})).arch.windows.is_empty());
    let qwen3 = of("qwen3", &json!({}));
    assert!(qwen3.arch.qk_norm && qwen3.arch.biases == Biases::default());

    let phi = of(
        "phi3",
        &json!({
            "partial_rotary_factor": 0.75, "sliding_window": 100, "original_max_position_embeddings": 128,
            "max_position_embeddings": 1024,
            "rope_scaling": {"type": "longrope", "short_factor": vec![1.0; 12], "long_factor": vec![2.0; 12]},
        }),
    );
    assert_eq!((phi.arch.fused, phi.arch.rotary_dim, phi.window(1)), (true, Some(24), Some(100)));
    let amplitude = (1.0 + 8f64.ln() / 128f64.ln()).sqrt();
    assert!((phi.arch.rope_scaling.amplitude() - amplitude).abs() < 1e-12);
    let lengths = [128, 129].map(|longest| phi.ropes(longest).of(0).frequencies()[0]);
    assert_eq!(lengths, [1.0, 0.5]);

    let gemma = of("gemma", &json!({"hidden_act": "gelu"}));
    assert_eq!((gemma.arch.activation, gemma.arch.norm_offset), (Activation::GeluTanh, 1.0));
    assert_eq!((gemma.arch.embedding_scale, gemma.arch.post_norms), (16.0, false));

    let gemma2 = of("gemma2", &json!({"query_pre_attn_scalar": 128}));
    assert_eq!((gemma2.arch.score_softcap, gemma2.arch.logit_softcap), (Some(50.0), Some(30.0)));
    assert_eq!(
        (gemma2.arch.windows.as_slice(), gemma2.arch.query_scale),
        ([4096, 0, 4096, 0].as_slice(), 0.5)
    );
    assert_eq!(of("gemma2", &json!({"attn_logit_softcapping": null})).arch.score_softcap, None);

    let gemma3 = of(
        "gemma3_text",
        &json!({
            "sliding_window": 8, "sliding_window_pattern": 3, "rope_scaling": {"rope_type": "linear", "factor": 8},
        }),
    );
    assert_eq!(gemma3.arch.windows, [8, 8, 0, 8]);
    assert_eq!((gemma3.arch.local_rope_theta, gemma3.rope_theta), (Some(1e4), 1e7));
    let ropes = gemma3.ropes(100);
    assert_eq!((ropes.of(0).frequencies()[0], ropes.of(2).frequencies()[0]), (1.0, 0.125));
}

#[test]
fn a_text_model_within_a_multimodal_one_is_read() {
    // What google/gemma-3-4b-it says, but for its vision tower.
    let config = parse(&json!({
        "model_type": "gemma3", "eos_token_id": [1, 106],
        "text_config": {
            "hidden_size": 2560, "intermediate_size": 10240, "model_type": "gemma3_text", "num_hidden_layers": 34,
            "rope_scaling": {"factor": 8.0, "rope_type": "linear"}, "sliding_window": 1024,
        },
    }))
    .unwrap();
    assert_eq!((config.heads, config.kv_heads, config.head_dim, config.vocab), (8, 4, 256, 262_208));
    assert_eq!((config.tied, config.eos.as_slice(), config.context), (true, [1, 106].as_slice(), 131_072));
    assert_eq!(config.arch.windows.iter().filter(|&&w| w == 0).count(), 5);
    // Counted by hand.
    assert_eq!(config.parameters(), 3_880_263_168);
    let text = parse(&json!({"model_type": "gemma3", "text_config": {"hidden_size": "x"}})).unwrap_err();
    assert!(text.starts_with("config.json: text_config.hidden_size \"x\""), "{text}");
}

#[test]
fn rotations_are_read_where_newer_writers_put_them() {
    let gemma = of(
        "gemma3_text",
        &json!({"rope_parameters": {
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
            "sliding_attention": {"rope_type": "default", "rope_theta": 2e4},
        }}),
    );
    assert_eq!((gemma.rope_theta, gemma.arch.local_rope_theta), (1e6, Some(2e4)));
    assert_eq!(gemma.arch.rope_scaling, Scaling::Linear { factor: 8.0 });
    let llama = of(
        "llama",
        &json!({"rope_parameters": {
            "rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        }}),
    );
    let scaling = Scaling::Llama3 { factor: 8.0, low: 1.0, high: 4.0, original: 8192.0 };
    assert_eq!((llama.rope_theta, llama.arch.rope_scaling), (5e5, scaling));
    let yarn = of(
        "qwen2",
        &json!({"rope_scaling": {
            "type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768,
        }}),
    );
    assert!((yarn.arch.rope_scaling.amplitude() - (0.1 * 4f64.ln() + 1.0)).abs() < 1e-12);
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

proptest! {
    #[test]
    fn any_bytes_are_taken_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = Config::parse("config.json", &bytes);
    }

    #[test]
    fn any_number_in_any_field_is_taken_or_refused(
        family in prop::sample::select(vec!["llama", "mistral", "qwen2", "qwen3", "phi3", "gemma", "gemma2", "gemma3"]),
        field in 0usize..32, number in any::<f64>(), integer in any::<i64>(),
    ) {
        let mut value = base();
        value["model_type"] = json!(family);
        value["use_sliding_window"] = json!(true);
        for (more, usual) in [
            ("sliding_window", 16), ("sliding_window_pattern", 2), ("max_window_layers", 1), ("query_pre_attn_scalar", 32),
            ("attn_logit_softcapping", 50), ("final_logit_softcapping", 30), ("partial_rotary_factor", 1),
            ("rope_local_base_freq", 10_000),
        ] {
            value[more] = json!(usual);
        }
        let fields: Vec<String> = value.as_object().unwrap().keys().cloned().collect();
        let name = &fields[field % fields.len()];
        for replacement in [json!(number), json!(integer), json!([integer]), json!(integer as u8)] {
            value[name] = replacement;
            if let Ok(config) = parse(&value) {
                prop_assert!(config.parameters() <= MAX_PARAMETERS);
                prop_assert!(config.heads.is_multiple_of(config.kv_heads));
                let ropes = config.ropes(config.context);
                for layer in 0..config.layers {
                    prop_assert!(ropes.of(layer).frequencies().iter().all(|f| f.is_finite()));
                    prop_assert!(config.window(layer) != Some(0));
                }
            }
        }
    }

    #[test]
    fn any_scaling_is_taken_or_refused(
        kind in prop::sample::select(vec!["linear", "llama3", "yarn", "longrope", "su", "dynamic", "default"]),
        field in 0usize..8, number in any::<f64>(), small in 0u8..4,
    ) {
        let mut value = base();
        let mut scaling = json!({
            "rope_type": kind, "factor": 8, "low_freq_factor": 1, "high_freq_factor": 4, "attention_factor": 1,
            "original_max_position_embeddings": 64, "short_factor": vec![1.0; 16], "long_factor": vec![1.0; 16],
            "beta_fast": 32, "beta_slow": 1,
        });
        let fields: Vec<String> = scaling.as_object().unwrap().keys().cloned().collect();
        for replacement in [json!(number), json!(small), json!(vec![number; 16])] {
            scaling[&fields[field]] = replacement;
            value["rope_scaling"] = scaling.clone();
            if let Ok(config) = parse(&value) {
                prop_assert!(config.ropes(100).of(0).frequencies().iter().all(|f| !f.is_nan()));
            }
        }
    }
}
