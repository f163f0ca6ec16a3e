//! Weights in other files than one of safetensors.

use kvista::model;

use super::files::{use_model, use_tokenizer};
use super::{refused, seeds};

/// Rows of the embedding: 256 bytes and four more.
const VOCAB: usize = 260;
const WIDTH: usize = 32;
const KV_WIDTH: usize = 16;

/// A GGUF file: configuration, tokenizer and weights in one.
pub fn gguf(bytes: &[u8]) -> bool {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = folder.path().join("model.gguf");
    std::fs::write(&file, bytes).expect("the temporary folder can be written");
    if let Err(error) = model::gguf_config(&file) {
        refused(&error);
    }
    let taken = use_model(&file);
    taken && model::load(&file).is_ok_and(|model| use_tokenizer(&model.tokenizer))
}

/// A folder with good configuration, tokenizer and two files of weights, and this index of them.
pub fn shards(bytes: &[u8]) -> bool {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let write = |name: &str, bytes: &[u8]| {
        std::fs::write(folder.path().join(name), bytes).expect("the temporary folder can be written");
    };
    write("config.json", seeds::TINY_CONFIG.as_bytes());
    write("tokenizer.json", seeds::BYTE_LEVEL.as_bytes());
    let weights = seeds::weights();
    write("model-1.safetensors", &weights[0]);
    write("model-2.safetensors", &seeds::no_weights());
    write("model.safetensors.index.json", bytes);
    use_model(folder.path())
}

/// A tiny Llama with SentencePiece's vocabulary in f32, and one with bytes' in blocks of eight bits.
pub fn ggufs() -> Vec<Vec<u8>> {
    vec![gguf_file(true), gguf_file(false)]
}

pub fn indices() -> Vec<Vec<u8>> {
    let map: Vec<String> = seeds::tensor_names()
        .iter()
        .map(|name| format!(r#""{name}.weight": "model-1.safetensors""#))
        .collect();
    vec![format!(r#"{{"metadata": {{"total_size": 1}}, "weight_map": {{{}}}}}"#, map.join(", ")).into_bytes()]
}

fn text(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat()
}

fn array(kind: u32, elements: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = [&kind.to_le_bytes()[..], &(elements.len() as u64).to_le_bytes()].concat();
    for element in elements {
        bytes.extend(element);
    }
    bytes
}

fn gguf_file(is_spm: bool) -> Vec<u8> {
    const U32: u32 = 4;
    const F32: u32 = 6;
    const TEXT: u32 = 8;
    const ARRAY: u32 = 9;
    let mut tokens: Vec<String> = (0..=255u8).map(|byte| format!("<0x{byte:02X}>")).collect();
    let extra = if is_spm { ["<s>", "\u{2581}", "a", "\u{2581}a"] } else { ["<s>", "Ġ", "a", "Ġa"] };
    tokens.extend(extra.map(String::from));
    let mut entries = vec![
        ("general.architecture", TEXT, text("llama")),
        ("tokenizer.ggml.model", TEXT, text(if is_spm { "llama" } else { "gpt2" })),
        (
            "tokenizer.ggml.tokens",
            ARRAY,
            array(TEXT, &tokens.iter().map(|token| text(token)).collect::<Vec<_>>()),
        ),
        ("tokenizer.ggml.bos_token_id", U32, 256u32.to_le_bytes().into()),
        ("tokenizer.ggml.eos_token_id", U32, 257u32.to_le_bytes().into()),
        ("llama.attention.layer_norm_rms_epsilon", F32, 1e-5f32.to_le_bytes().into()),
    ];
    for (key, size) in [
        ("llama.embedding_length", WIDTH),
        ("llama.feed_forward_length", WIDTH),
        ("llama.block_count", 1),
        ("llama.attention.head_count", 2),
        ("llama.attention.head_count_kv", 1),
        ("llama.context_length", 64),
    ] {
        entries.push((key, U32, (size as u32).to_le_bytes().into()));
    }
    if is_spm {
        let scores: Vec<Vec<u8>> = (0..VOCAB).map(|id| (-(id as f32)).to_le_bytes().into()).collect();
        let kind = |id| match id {
            0..256 => 6i32,
            256 => 3,
            _ => 1,
        };
        let kinds: Vec<Vec<u8>> = (0..VOCAB).map(|id| kind(id).to_le_bytes().into()).collect();
        entries.push(("tokenizer.ggml.scores", ARRAY, array(F32, &scores)));
        entries.push(("tokenizer.ggml.token_type", ARRAY, array(5, &kinds)));
    } else {
        entries.push(("tokenizer.ggml.merges", ARRAY, array(TEXT, &[text("Ġ a")])));
        entries.push(("tokenizer.ggml.pre", TEXT, text("gpt-2")));
    }
    let tensors = [
        ("token_embd.weight", VOCAB, WIDTH),
        ("output_norm.weight", 1, WIDTH),
        ("blk.0.attn_norm.weight", 1, WIDTH),
        ("blk.0.attn_q.weight", WIDTH, WIDTH),
        ("blk.0.attn_k.weight", KV_WIDTH, WIDTH),
        ("blk.0.attn_v.weight", KV_WIDTH, WIDTH),
        ("blk.0.attn_output.weight", WIDTH, WIDTH),
        ("blk.0.ffn_norm.weight", 1, WIDTH),
        ("blk.0.ffn_gate.weight", WIDTH, WIDTH),
        ("blk.0.ffn_up.weight", WIDTH, WIDTH),
        ("blk.0.ffn_down.weight", WIDTH, WIDTH),
    ];
    let mut file = b"GGUF\x03\0\0\0".to_vec();
    file.extend((tensors.len() as u64).to_le_bytes());
    file.extend((entries.len() as u64).to_le_bytes());
    for (key, kind, value) in entries {
        file.extend(text(key));
        file.extend(kind.to_le_bytes());
        file.extend(value);
    }
    let mut offset = 0u64;
    for (name, rows, width) in tensors {
        let is_vector = name.ends_with("norm.weight");
        file.extend(text(name));
        file.extend(if is_vector { 1u32 } else { 2 }.to_le_bytes());
        file.extend((width as u64).to_le_bytes());
        if !is_vector {
            file.extend((rows as u64).to_le_bytes());
        }
        // Type 8 is Q8_0: a scale of two bytes and 32 codes to a block.
        let (dtype, row_bytes) = if is_spm || is_vector { (0u32, 4 * width) } else { (8, width / 32 * 34) };
        file.extend(dtype.to_le_bytes());
        file.extend(offset.to_le_bytes());
        offset += ((rows * row_bytes) as u64).next_multiple_of(32);
    }
    file.resize(file.len().next_multiple_of(32), 0);
    file.resize(file.len() + offset as usize, 0x3c);
    file
}
