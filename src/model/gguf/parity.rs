//! Tiny models of random weights as GGUF, against candle's own models of the same files.

use std::io::{BufReader, Cursor};
use std::ops::ControlFlow;

use candle_core::quantized::gguf_file::{self, Content, Value};
use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{Device, Tensor};
use candle_transformers::models::{quantized_llama, quantized_qwen2, quantized_qwen3};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::model::golden::Reference;
use crate::model::{Precision, load, load_as};

/// Width of the blocks of most types, so that every type has whole ones.
const HIDDEN: usize = 256;
const INTERMEDIATE: usize = 512;
const HEADS: usize = 4;
const KV_HEADS: usize = 2;
const HEAD_DIM: usize = 64;
const VOCAB: usize = 96;
const LAYERS: usize = 2;

/// A file of an architecture with projections of a type; norms and biases are f32.
pub(crate) fn file(architecture: &str, dtype: GgmlDType, is_tied: bool) -> Vec<u8> {
    let mut rng = ChaCha8Rng::seed_from_u64(11);
    let mut random = |shape: &[usize], middle: f32, spread: f32, dtype| {
        let numbers: Vec<f32> =
            (0..shape.iter().product()).map(|_| middle + rng.random_range(-spread..spread)).collect();
        QTensor::quantize(&Tensor::from_vec(numbers, shape, &Device::Cpu).unwrap(), dtype).unwrap()
    };
    let (q, kv) = (HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM);
    let mut tensors = Vec::new();
    let spread = |inputs: usize| (3.0 / inputs as f32).sqrt();
    let mut matrix = |name: String, outputs, inputs| {
        tensors.push((name, random(&[outputs, inputs], 0.0, spread(inputs), dtype)));
    };
    matrix("token_embd.weight".into(), VOCAB, HIDDEN);
    if !is_tied {
        matrix("output.weight".into(), VOCAB, HIDDEN);
    }
    for layer in 0..LAYERS {
        for (part, outputs, inputs) in [
            ("attn_q", q, HIDDEN),
            ("attn_k", kv, HIDDEN),
            ("attn_v", kv, HIDDEN),
            ("attn_output", HIDDEN, q),
            ("ffn_gate", INTERMEDIATE, HIDDEN),
            ("ffn_up", INTERMEDIATE, HIDDEN),
            ("ffn_down", HIDDEN, INTERMEDIATE),
        ] {
            matrix(format!("blk.{layer}.{part}.weight"), outputs, inputs);
        }
    }
    let mut vector = |name: String, len, middle| {
        tensors.push((name, random(&[len], middle, 0.5, GgmlDType::F32)));
    };
    vector("output_norm.weight".into(), HIDDEN, 1.0);
    for layer in 0..LAYERS {
        let mut part = |part: &str, len, middle| vector(format!("blk.{layer}.{part}"), len, middle);
        part("attn_norm.weight", HIDDEN, 1.0);
        part("ffn_norm.weight", HIDDEN, 1.0);
        if architecture == "qwen2" {
            part("attn_q.bias", q, 0.0);
            part("attn_k.bias", kv, 0.0);
            part("attn_v.bias", kv, 0.0);
        }
        if architecture == "qwen3" {
            part("attn_q_norm.weight", HEAD_DIM, 1.0);
            part("attn_k_norm.weight", HEAD_DIM, 1.0);
        }
    }
    let tokens = (0..VOCAB).map(|id| Value::String(format!("t{id}"))).collect();
    let mut entries = vec![
        ("general.architecture".to_owned(), Value::String(architecture.into())),
        // Candle's Qwen3 computes in f16 unless told otherwise.
        ("general.dtype".to_owned(), Value::U32(0)),
        ("tokenizer.ggml.model".to_owned(), Value::String("gpt2".into())),
        ("tokenizer.ggml.pre".to_owned(), Value::String("gpt-2".into())),
        ("tokenizer.ggml.tokens".to_owned(), Value::Array(tokens)),
    ];
    let mut of_architecture = |key: &str, value| entries.push((format!("{architecture}.{key}"), value));
    for (key, size) in [
        ("embedding_length", HIDDEN),
        ("feed_forward_length", INTERMEDIATE),
        ("block_count", LAYERS),
        ("attention.head_count", HEADS),
        ("attention.head_count_kv", KV_HEADS),
        ("attention.key_length", HEAD_DIM),
        ("attention.value_length", HEAD_DIM),
        ("rope.dimension_count", HEAD_DIM),
        ("context_length", 128),
    ] {
        of_architecture(key, Value::U32(size as u32));
    }
    of_architecture("attention.layer_norm_rms_epsilon", Value::F32(1e-5));
    of_architecture("rope.freq_base", Value::F32(5e4));
    let mut out = Cursor::new(Vec::new());
    let entries: Vec<(&str, &Value)> = entries.iter().map(|(key, value)| (key.as_str(), value)).collect();
    let tensors: Vec<(&str, &QTensor)> =
        tensors.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
    gguf_file::write(&mut out, &entries, &tensors).unwrap();
    out.into_inner()
}

/// Logits of the last of the tokens, by candle's model of an architecture.
type Forward = Box<dyn FnMut(&[u32], usize) -> Vec<f32>>;

fn oracle(architecture: &str, file: &[u8]) -> Forward {
    let mut reader = BufReader::new(Cursor::new(file.to_vec()));
    let content = Content::read(&mut reader).unwrap();
    let device = Device::Cpu;
    let tensor = |ids: &[u32]| Tensor::new(ids, &Device::Cpu).unwrap().unsqueeze(0).unwrap();
    let numbers = |logits: Tensor| logits.flatten_all().unwrap().to_vec1().unwrap();
    match architecture {
        "llama" => {
            let mut model = quantized_llama::ModelWeights::from_gguf(content, &mut reader, &device).unwrap();
            Box::new(move |ids, at| numbers(model.forward(&tensor(ids), at).unwrap()))
        }
        "qwen2" => {
            let mut model = quantized_qwen2::ModelWeights::from_gguf(content, &mut reader, &device).unwrap();
            Box::new(move |ids, at| numbers(model.forward(&tensor(ids), at).unwrap()))
        }
        _ => {
            let mut model = quantized_qwen3::ModelWeights::from_gguf(content, &mut reader, &device).unwrap();
            Box::new(move |ids, at| numbers(model.forward(&tensor(ids), at).unwrap()))
        }
    }
}

/// Largest difference of logits, over their largest size.
fn apart(ours: &[f32], theirs: &[f32]) -> f32 {
    assert_eq!(ours.len(), theirs.len());
    let largest = theirs.iter().fold(0.0f32, |most, x| most.max(x.abs()));
    ours.iter().zip(theirs).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max) / largest
}

/// Prefill in one piece, then decode. In f32 and f16 only the order of sums differs. With blocks, activations go into codes
/// of eight bits too, and a code more or less is half a percent: then the bound is what that does to candle's own logits,
/// measured against exact products of the same weights.
#[test]
fn quantised_models_give_candles_logits() {
    let dir = tempfile::tempdir().unwrap();
    let ids: Vec<u32> = (0..24).map(|i| i * 37 % VOCAB as u32).collect();
    for (architecture, is_tied) in [("llama", false), ("qwen2", true), ("qwen3", true)] {
        for dtype in [
            GgmlDType::F32,
            GgmlDType::F16,
            GgmlDType::Q8_0,
            GgmlDType::Q4_0,
            GgmlDType::Q5_1,
            GgmlDType::Q4K,
            GgmlDType::Q6K,
        ] {
            let bytes = file(architecture, dtype, is_tied);
            let path = dir.path().join("m.gguf");
            std::fs::write(&path, &bytes).unwrap();
            let wide: Precision = "f32".parse().unwrap();
            let exact = load_as(&path, "m", Some(wide), &mut |_| ControlFlow::Continue(())).unwrap();
            let model = load(&path).unwrap();
            assert_eq!(model.decoder.config().tied, is_tied);
            let mut theirs = oracle(architecture, &bytes);
            let (mut ours, mut exact) = (Reference::new(&model.decoder), Reference::new(&exact.decoder));
            let (mut worst, mut noise) = (0.0f32, 0.0f32);
            let steps = [&ids[..], &[5], &[77], &[30]];
            let mut at = 0;
            for step in steps {
                let theirs = theirs(step, at);
                worst = worst.max(apart(&ours.feed(step, 1), &theirs));
                noise = noise.max(apart(&exact.feed(step, 1), &theirs));
                at += step.len();
            }
            println!("{architecture} {dtype:?}: {worst:.2e}, exact products {noise:.2e}");
            let bound = if dtype.block_size() == 1 { 1e-4 } else { 0.06 };
            assert!(worst < bound && noise < bound, "{architecture} {dtype:?}: {worst} {noise}");
        }
    }
}

/// Weights put into blocks as they are read compute as the file of the same blocks does.
#[test]
fn weights_are_quantised_as_they_are_read() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.gguf");
    std::fs::write(&path, file("llama", GgmlDType::F32, true)).unwrap();
    let ids: Vec<u32> = (0..20).map(|i| i * 11 % VOCAB as u32).collect();
    let exact = load(&path).unwrap();
    let exact = Reference::new(&exact.decoder).feed(&ids, 1);
    for (name, bound) in [("q8_0", 0.06), ("q4_k", 0.5), ("f16", 5e-3), ("bf16", 0.05)] {
        let weights: Precision = name.parse().unwrap();
        let mut told = Vec::new();
        let model = load_as(&path, "m", Some(weights), &mut |progress| {
            told.push((progress.done_bytes, progress.total_bytes));
            ControlFlow::Continue(())
        })
        .unwrap();
        let card = model.decoder.card();
        assert_eq!((card.weights.as_str(), card.weights_asked.as_str()), (name, name));
        let worst = apart(&Reference::new(&model.decoder).feed(&ids, 1), &exact);
        println!("{name}: {worst:.2e}");
        assert!(worst > 1e-6 && worst < bound, "{name}: {worst}");
        let last = *told.last().unwrap();
        assert!(told.len() > LAYERS * 9 && last.0 == last.1 && told.is_sorted(), "{told:?}");
    }
    let stopped = load_as(&path, "m", None, &mut |_| ControlFlow::Break(()));
    assert!(matches!(stopped, Err(crate::model::Error::Stopped)));
}
