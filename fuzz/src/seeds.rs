//! Good inputs. The recordings are of real runs, of a tiny model with random weights.

use std::io::Cursor;
use std::sync::{Arc, LazyLock};

use kvista::app::DEFAULT_CONFIG;
use kvista::engine::{Engine, Prompt};
use kvista::event::{RunInfo, Settings, Step};
use kvista::model::{Config, Decoder, Model, Tokenizer};
use kvista::state::State;
use kvista::trace::Writer;
use kvista::ui::theme::BUILT_IN;

use super::traces;

/// A model of two layers and two KV heads.
pub const TINY_CONFIG: &str = r#"{"model_type": "llama", "hidden_size": 16, "intermediate_size": 24,
 "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 4, "hidden_act": "silu",
 "rms_norm_eps": 1e-05, "rope_theta": 10000.0, "rope_scaling": null, "vocab_size": 260,
 "tie_word_embeddings": true, "max_position_embeddings": 128, "bos_token_id": 256, "eos_token_id": [257, 258]}"#;

/// A byte-level tokenizer: `Ġ` is a space, `Ã©` the two bytes of é.
pub const BYTE_LEVEL: &str = r#"{"version":"1.0","added_tokens":[{"id":6,"content":"<|end|>","special":true,
 "single_word":false,"lstrip":false,"rstrip":false,"normalized":false}],
 "pre_tokenizer":{"type":"ByteLevel","add_prefix_space":false,"trim_offsets":true,"use_regex":true},
 "decoder":{"type":"ByteLevel","add_prefix_space":true,"trim_offsets":true,"use_regex":true},
 "model":{"type":"BPE","vocab":{"a":0,"Ġ":1,"Ã":2,"©":3,"Ã©":4,"Ġa":5},"merges":["Ã ©","Ġ a"]}}"#;

/// In the manner of SentencePiece: bytes as a last resort, `▁` for a space.
const SENTENCE_PIECE: &str = r#"{"version":"1.0","truncation":null,"padding":null,"added_tokens":[{"id":0,
 "content":"<unk>","special":true,"single_word":false,"lstrip":false,"rstrip":false,"normalized":false}],
 "normalizer":{"type":"Sequence","normalizers":[{"type":"Prepend","prepend":"▁"},
 {"type":"Replace","pattern":{"String":" "},"content":"▁"}]},
 "post_processor":{"type":"TemplateProcessing","single":[{"SpecialToken":{"id":"<unk>","type_id":0}},
 {"Sequence":{"id":"A","type_id":0}}],"pair":[{"Sequence":{"id":"A","type_id":0}}],
 "special_tokens":{"<unk>":{"id":"<unk>","ids":[0],"tokens":["<unk>"]}}},
 "decoder":{"type":"Sequence","decoders":[{"type":"Replace","pattern":{"String":"▁"},"content":" "},
 {"type":"ByteFallback"},{"type":"Fuse"},{"type":"Strip","content":" ","start":1,"stop":0}]},
 "model":{"type":"Unigram","unk_id":0,"byte_fallback":true,"vocab":[["<unk>",0.0],["▁",-1.5],["a",-2.0],
 ["<0x0A>",-3.0],["▁the",-2.5],["key",-4.0]]}}"#;

const WORD_LEVEL: &str = r#"{"version":"1.0","normalizer":{"type":"NFKC"},"pre_tokenizer":{"type":"Split",
 "pattern":{"Regex":"\\s+"},"behavior":"Isolated","invert":false},"decoder":{"type":"Metaspace","replacement":"▁",
 "prepend_scheme":"always","split":true},"model":{"type":"WordLevel","vocab":{"[UNK]":0,"a":1,"the":2},
 "unk_token":"[UNK]"}}"#;

/// A recorded run.
struct Sample {
    run: Arc<RunInfo>,
    steps: Vec<Step>,
    keyframes: Vec<Vec<u8>>,
    file: Vec<u8>,
}

impl Sample {
    fn of(settings: Settings, question: &str) -> Self {
        let config = tiny_config();
        let tokenizer = Tokenizer::bytes(&config).expect("the vocabulary has room for bytes");
        let decoder = Decoder::random(config, 1).expect("a good configuration");
        let prompt = Prompt {
            text: "The key is 7.\u{1b}".into(),
            question: question.into(),
            expected: Some("7".into()),
            ..Prompt::default()
        };
        let settings = Settings { max_tokens: 20, ignore_eos: true, block_size: 4, chunk: 6, ..settings };
        let mut engine = Engine::new(Arc::new(Model::new(decoder, tokenizer)), &settings, &prompt)
            .expect("settings that fit the prompt");
        let run = Arc::clone(engine.info());
        let mut state = State::new(Arc::clone(&run)).expect("a small model");
        let mut file = Cursor::new(Vec::new());
        let mut writer = Writer::new("memory", &mut file, &run).expect("memory can be written");
        let (mut steps, mut keyframes) = (Vec::new(), Vec::new());
        while let Some(step) = engine.step().expect("the engine runs") {
            state.fold(&step).expect("a step of this run");
            writer.step(&step).expect("memory can be written");
            if step.step % 6 == 5 {
                let keyframe = state.keyframe();
                writer.keyframe(step.step, state.at_ns, &keyframe).expect("memory can be written");
                let histograms = state.latency.encoded();
                writer.latency(step.step, state.at_ns, &histograms).expect("memory can be written");
                writer.flush().expect("memory can be written");
                keyframes.push(keyframe);
            }
            steps.push(step);
        }
        writer.finish().expect("memory can be written");
        Self { run, steps, keyframes, file: file.into_inner() }
    }
}

fn tiny_config() -> Config {
    Config::parse("config.json", TINY_CONFIG.as_bytes()).expect("a good configuration")
}

static SAMPLES: LazyLock<[Sample; 3]> = LazyLock::new(|| {
    let with = |policy: &str, read: &str| Settings {
        policy: policy.into(),
        read: read.into(),
        ..Settings::default()
    };
    [
        Sample::of(Settings { compact: 0.25, ..with("h2o:budget=8", "kcache:n=4,l=1") }, ""),
        Sample::of(
            Settings {
                batch: 2,
                kv_dtype: "f16".into(),
                compress: "context".into(),
                ..with("tova:budget=10", "")
            },
            " Key?",
        ),
        Sample::of(Settings { batch: 2, blocks: 44, blocks_given: true, ..with("full", "") }, ""),
    ]
});

/// A recording that needs no checking.
pub fn sound() -> &'static [u8] {
    &SAMPLES[0].file
}

/// The run of [`sound`], and of the first of [`keyframes`].
pub fn steps() -> (&'static Arc<RunInfo>, &'static [Step]) {
    (&SAMPLES[0].run, &SAMPLES[0].steps)
}

pub fn recordings() -> Vec<Vec<u8>> {
    SAMPLES.iter().map(|sample| sample.file.clone()).collect()
}

pub fn messages() -> Vec<Vec<u8>> {
    SAMPLES.iter().map(|sample| traces::pack(&sample.file)).collect()
}

/// The payloads of a topic, those of one length once.
fn payloads(topic: &str) -> Vec<Vec<u8>> {
    let mut all: Vec<_> = messages().iter().flat_map(|packed| traces::payloads(packed, topic)).collect();
    all.sort_by_key(Vec::len);
    all.dedup_by_key(|bytes| bytes.len());
    all
}

pub fn evict() -> Vec<Vec<u8>> {
    payloads("/evict")
}

pub fn attention() -> Vec<Vec<u8>> {
    payloads("/attention")
}

pub fn latency() -> Vec<Vec<u8>> {
    payloads("/latency")
}

pub fn keyframes() -> Vec<Vec<u8>> {
    SAMPLES[0].keyframes.clone()
}

fn texts_of(texts: &[&str]) -> Vec<Vec<u8>> {
    texts.iter().map(|text| text.as_bytes().to_vec()).collect()
}

pub fn model_configs() -> Vec<Vec<u8>> {
    texts_of(&[
        TINY_CONFIG,
        r#"{"model_type":"llama","hidden_size":64,"intermediate_size":172,"num_hidden_layers":5,
 "num_attention_heads":8,"vocab_size":512,"rope_parameters":{"rope_type":"default","rope_theta":5e5},
 "attention_bias":false,"eos_token_id":2}"#,
        r#"{"model_type":"qwen2","hidden_size":16,"intermediate_size":24,"num_hidden_layers":4,"num_attention_heads":4,
 "num_key_value_heads":2,"vocab_size":260,"use_sliding_window":true,"sliding_window":8,"max_window_layers":2,
 "rope_scaling":{"type":"yarn","factor":4.0,"original_max_position_embeddings":64}}"#,
        r#"{"model_type":"phi3","hidden_size":16,"intermediate_size":24,"num_hidden_layers":2,"num_attention_heads":2,
 "vocab_size":260,"sliding_window":2047,"partial_rotary_factor":0.5,"original_max_position_embeddings":64,
 "rope_scaling":{"type":"su","short_factor":[1.0,1.5],"long_factor":[2.0,4.0]}}"#,
        r#"{"model_type":"llama","hidden_size":16,"intermediate_size":24,"num_hidden_layers":2,"num_attention_heads":2,
 "vocab_size":260,"mlp_bias":true,"rope_scaling":{"rope_type":"llama3","factor":8.0,"low_freq_factor":1.0,
 "high_freq_factor":4.0,"original_max_position_embeddings":64}}"#,
        r#"{"model_type":"gemma2","hidden_size":16,"intermediate_size":24,"num_hidden_layers":4,
 "num_attention_heads":2,"num_key_value_heads":2,"head_dim":8,"vocab_size":260,"query_pre_attn_scalar":16,
 "attn_logit_softcapping":50.0,"layer_types":["sliding_attention","full_attention","full_attention","sliding_attention"],"sliding_window":4}"#,
        r#"{"model_type":"gemma3","text_config":{"hidden_size":16,"intermediate_size":24,"num_hidden_layers":7,
 "sliding_window":8,"rope_parameters":{"full_attention":{"rope_type":"linear","factor":8.0,"rope_theta":1e6},
 "sliding_attention":{"rope_type":"default","rope_theta":1e4}}},"eos_token_id":[1,106]}"#,
    ])
}

/// Every tensor of [`TINY_CONFIG`], in each of the three types.
pub fn weights() -> Vec<Vec<u8>> {
    [("F32", 4), ("F16", 2), ("BF16", 2)].map(|(dtype, size)| safetensors(dtype, size)).to_vec()
}

/// A file of weights without any.
pub fn no_weights() -> Vec<u8> {
    b"\x02\0\0\0\0\0\0\0{}".to_vec()
}

/// Names of the tensors of [`TINY_CONFIG`], what they end in left out.
pub fn tensor_names() -> Vec<String> {
    tensors().into_iter().map(|(name, _)| name).collect()
}

fn tensors() -> Vec<(String, Vec<usize>)> {
    let c = tiny_config();
    let (q, kv) = (c.heads * c.head_dim, c.kv_heads * c.head_dim);
    let mut tensors = vec![
        ("model.embed_tokens".to_owned(), vec![c.vocab, c.hidden]),
        ("model.norm".to_owned(), vec![c.hidden]),
    ];
    for layer in 0..c.layers {
        for (part, shape) in [
            ("input_layernorm", vec![c.hidden]),
            ("self_attn.q_proj", vec![q, c.hidden]),
            ("self_attn.k_proj", vec![kv, c.hidden]),
            ("self_attn.v_proj", vec![kv, c.hidden]),
            ("self_attn.o_proj", vec![c.hidden, q]),
            ("post_attention_layernorm", vec![c.hidden]),
            ("mlp.gate_proj", vec![c.intermediate, c.hidden]),
            ("mlp.up_proj", vec![c.intermediate, c.hidden]),
            ("mlp.down_proj", vec![c.hidden, c.intermediate]),
        ] {
            tensors.push((format!("model.layers.{layer}.{part}"), shape));
        }
    }
    tensors
}

fn safetensors(dtype: &str, element_bytes: usize) -> Vec<u8> {
    let mut end = 0;
    let entries: Vec<String> = tensors()
        .iter()
        .map(|(name, shape)| {
            let begin = end;
            end += shape.iter().product::<usize>() * element_bytes;
            format!(
                r#""{name}.weight":{{"dtype":"{dtype}","shape":{shape:?},"data_offsets":[{begin},{end}]}}"#
            )
        })
        .collect();
    let header = format!("{{{}}}", entries.join(","));
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header.as_bytes());
    file.resize(file.len() + end, 0x3c);
    file
}

pub fn tokenizers() -> Vec<Vec<u8>> {
    texts_of(&[BYTE_LEVEL, SENTENCE_PIECE, WORD_LEVEL])
}

pub fn word_lists() -> Vec<Vec<u8>> {
    let mut list: Vec<String> = (0..=255u8).map(|byte| format!("<0x{byte:02X}>")).collect();
    list.extend(["<s>", " the", " key", "ing", " Mia", "<unused261>"].map(String::from));
    vec![serde_json::to_vec(&list).expect("strings are JSON")]
}

pub fn themes() -> Vec<Vec<u8>> {
    let mut all = texts_of(&BUILT_IN.map(|(_, text)| text));
    all.extend(texts_of(&[
        "inherits = \"dark\"\n[palette]\nmine = \"#ff8000\"\n[roles]\ntext = { fg = \"mine\" }\n",
    ]));
    all
}

pub fn configs() -> Vec<Vec<u8>> {
    let uncommented: Vec<&str> =
        DEFAULT_CONFIG.lines().map(|line| line.strip_prefix("# = ").unwrap_or(line)).collect();
    let spelled = uncommented.join("\n");
    texts_of(&[
        DEFAULT_CONFIG,
        &spelled,
        "theme = \"light\"\npace = 4\nfps = 20\n[keys]\n\"Ctrl-x\" = \"app.quit-now\"\nq = \"\"\n",
    ])
}

pub fn policies() -> Vec<Vec<u8>> {
    texts_of(&[
        "full",
        "h2o:budget=25%,recent=0.5\nbudget 64\nrecent .25",
        "streaming:budget=512,sinks=4,reposition=false\nsinks 0",
        "tova:budget=12.5%,when=chunk\nbudget 100%",
    ])
}

pub fn read_sets() -> Vec<Vec<u8>> {
    texts_of(&[
        "kcache",
        "kcache:n=64,l=1,renorm=true,include_self=false\nn 1\nl 0",
        "quest:budget=64,page=8,dense=1,min=0\nquest.budget 1\nquest.min 3",
        "infllm:local=64,init=16,block=16,topk=2,repr=1,cache=4\ntopk 3\ncache 1",
    ])
}

pub fn filters() -> Vec<Vec<u8>> {
    texts_of(&[
        "kind=evict layer=1 score<0.1 age>20 token~key",
        "token~\"a b\" step!=3 rank>=1e3 \"layer=1\"",
    ])
}

pub fn chords() -> Vec<Vec<u8>> {
    texts_of(&["Ctrl-d", "Shift-Left", "g 3", "F12", "Alt-- Space PgUp é"])
}

pub fn score_levels() -> Vec<Vec<u8>> {
    texts_of(&["off", "blocks", "top:16", "full"])
}

pub fn texts() -> Vec<Vec<u8>> {
    texts_of(&[
        " Mia liked 42 cats. The pass key is 12345.",
        "\u{1b}[31mred\u{9b}2J\r\n\t\u{0}",
        "e\u{301}te\u{301} 日本 👩\u{200d}🚀 ❤\u{fe0f} \u{202e}abc \u{e0001} नमस्ते",
    ])
}
