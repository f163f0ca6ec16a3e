//! Published configurations: each is taken, and then runs, or refused for the reason that it gives.

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use crate::engine::{Engine, Prompt};
use crate::event::{ScoreLevel, Settings};
use crate::model::{Config, Decoder, Model, Tokenizer};

/// Most bytes of f32 weights that the sweep allocates.
const MOST_BYTES: u64 = 2 << 30;
/// Rows of the embedding that are kept.
const VOCAB: usize = 4096;

const EXPERTS: &str = "a mixture of experts";

/// Parameters as published, and the window of the layers; or the words of the refusal.
type Outcome = Result<(u64, Option<u32>), &'static [&'static str]>;

/// What becomes of each file.
const EXPECTED: [(&str, Outcome); 33] = [
    ("Qwen--Qwen3-0.6B_config.json", Ok((596_049_920, None))),
    ("Qwen--Qwen3-30B-A3B_config.json", Err(&["\"qwen3_moe\"", EXPERTS, "num_experts 128"])),
    ("Qwen--Qwen3-8B_config.json", Ok((8_190_735_360, None))),
    ("codellama-34b-instruct-hf.json", Ok((33_743_970_304, None))),
    (
        "deepseek-ai--DeepSeek-V3_config.json",
        Err(&["\"deepseek_v3\"", "n_routed_experts 256", "multi-head latent attention (kv_lora_rank 512)"]),
    ),
    ("deepseek-v2-lite.json", Err(&["\"deepseek_v2\"", EXPERTS, "latent attention (kv_lora_rank 512)"])),
    (
        "glm-5.2-fp8.json",
        Err(&["\"glm_moe_dsa\"", EXPERTS, "latent attention", "an indexer (index_topk 2048)"]),
    ),
    ("google--gemma-4-26B-A4B_config.json", Err(&["\"gemma4\"", "num_experts 128"])),
    ("llama-2-7b-hf.json", Ok((6_738_415_616, None))),
    ("llama-3.1-70b-instruct.json", Ok((70_553_706_496, None))),
    ("llama-3.1-8b-instruct.json", Ok((8_030_261_248, None))),
    ("llama-4-scout-17b-16e-instruct-fp8-dynamic.json", Err(&["\"llama4\"", "num_local_experts 16"])),
    ("meta-llama--Meta-Llama-3.1-70B_config.json", Ok((70_553_706_496, None))),
    ("meta-llama-3.1-405B-Instruct.json", Err(&["model_type is missing", "supported: llama"])),
    ("meta-llama-3.1-70B-Instruct.json", Err(&["model_type is missing", "supported: llama"])),
    ("meta-llama-3.1-8B-Instruct.json", Ok((8_030_261_248, None))),
    ("meta-llama-3.2-1B-Instruct.json", Ok((1_235_814_400, None))),
    ("meta-llama-3.2-3B-Instruct.json", Ok((3_212_749_824, None))),
    ("mistral-7B-instruct-v0.3.json", Ok((7_248_023_552, None))),
    ("mistral-nemo-instruct-2407.json", Ok((12_247_782_400, None))),
    ("mistralai--Mixtral-8x7B-v0.1_config.json", Err(&["\"mixtral\"", "num_local_experts 8"])),
    ("mixtral-8x7b-v0.1.json", Err(&["\"mixtral\"", "num_local_experts 8"])),
    (
        "nvidia--Nemotron-H-56B-Base-8K_config.json",
        Err(&["\"nemotron_h\"", "state-space models (hybrid_override_pattern, ssm_state_size 256)"]),
    ),
    ("openai--gpt-oss-20b_config.json", Err(&["\"gpt_oss\"", "num_local_experts 32"])),
    ("phi-2-config.json", Err(&["\"phi\"", "layer norms with biases (layer_norm_eps"])),
    ("phi-3-medium-128k-instruct-config.json", Ok((13_960_238_080, Some(131_072)))),
    ("phi-3-medium-4k-instruct-config.json", Ok((13_960_238_080, Some(2047)))),
    ("phi-3-mini-128k-instruct-config.json", Ok((3_821_079_552, Some(262_144)))),
    ("phi-3-mini-4k-instruct-config.json", Ok((3_821_079_552, Some(2047)))),
    ("qwen2.5-7b-instruct.json", Ok((7_615_616_512, None))),
    ("qwen3-14b.json", Ok((14_768_307_200, None))),
    ("qwen3-30b-a3b.json", Err(&["\"qwen3_moe\"", "num_experts 128"])),
    ("yi-34b.json", Ok((34_388_917_248, None))),
];

/// The configuration with so many layers and a small vocabulary.
fn cut(mut config: Config, layers: usize) -> Config {
    config.layers = layers;
    config.vocab = VOCAB;
    config.bos = config.bos.filter(|&id| (id as usize) < VOCAB);
    config.eos.retain(|&id| (id as usize) < VOCAB);
    config.arch.windows.truncate(layers);
    config
}

/// A few tokens through a model of made-up weights, in chunks.
fn run(config: Config) {
    let vocab = config.vocab;
    let tokenizer = Tokenizer::bytes(&config).unwrap();
    let decoder = Decoder::repeating(config, "f32".parse().unwrap()).unwrap();
    let model = Arc::new(Model::new(decoder, tokenizer));
    let settings = Settings {
        chunk: 2,
        max_tokens: 2,
        scores: ScoreLevel::Off,
        ignore_eos: true,
        ..Settings::default()
    };
    let prompt = Prompt { text: "ab".into(), ..Prompt::default() };
    let mut engine = Engine::new(model, &settings, &prompt).unwrap();
    while engine.step().unwrap().is_some() {}
    assert_eq!(engine.witness.logits.len(), 2);
    for logits in &engine.witness.logits {
        assert_eq!(logits.len(), vocab);
        assert!(logits.iter().all(|x| x.is_finite()) && logits.iter().any(|&x| x != logits[0]));
    }
}

#[test]
fn every_published_configuration_runs_or_is_refused_for_its_reason() {
    let Some(data) = std::env::var_os("KVISTA_TEST_DATA") else {
        eprintln!("skipped: KVISTA_TEST_DATA is not set");
        return;
    };
    let folder = Path::new(&data).join("configs");
    let mut names: Vec<String> = std::fs::read_dir(&folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    assert_eq!(names, EXPECTED.map(|(name, _)| name));
    let start = Instant::now();
    for (name, expected) in EXPECTED {
        let parsed = Config::parse(name, &std::fs::read(folder.join(name)).unwrap());
        let (parameters, window) = match (expected, parsed) {
            (Ok(facts), Ok(config)) => {
                assert_eq!((config.parameters(), config.window(config.layers - 1)), facts, "{name}");
                let fits = |layers: &usize| 4 * cut(config.clone(), *layers).parameters() <= MOST_BYTES;
                // The weights that a file must hold, shape by shape: what the decoder asks for at full size.
                assert_eq!(Decoder::elements(&config), config.parameters(), "{name}");
                if let Some(layers) = [2, 1].into_iter().find(fits) {
                    run(cut(config, layers));
                }
                facts
            }
            (Err(words), Err(error)) => {
                let text = error.to_string();
                assert!(text.starts_with(name) && !text.contains('\n'), "{text}");
                assert!(words.iter().all(|word| text.contains(word)), "{text}");
                continue;
            }
            (_, parsed) => panic!("{name}: {parsed:?}"),
        };
        eprintln!("{name}: {parameters} parameters, window {window:?}, after {:?}", start.elapsed());
    }
}
