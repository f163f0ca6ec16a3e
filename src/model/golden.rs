//! Proof against known outputs, with the plainest attention there is in between: every row kept, no tricks.

use std::path::PathBuf;

use serde_json::Value;

use super::{Config, Decoder, Model, Sampler, demo, load};

/// All keys and values of one layer, `[position][kv_heads][head_dim]`.
#[derive(Default)]
struct Rows {
    k: Vec<f32>,
    v: Vec<f32>,
}

/// A sequence that attends to everything it has seen.
pub(super) struct Reference<'a> {
    decoder: &'a Decoder,
    layers: Vec<Rows>,
    /// Per layer, the last token's probabilities, `[heads][positions]`.
    last_rows: Vec<Vec<f32>>,
    position: usize,
}

impl<'a> Reference<'a> {
    pub(super) fn new(decoder: &'a Decoder) -> Self {
        let layers = (0..decoder.config().layers).map(|_| Rows::default()).collect();
        Self { decoder, layers, last_rows: Vec::new(), position: 0 }
    }

    /// Feeds tokens; logits of the last `wanted` of them.
    pub(super) fn feed(&mut self, ids: &[u32], wanted: usize) -> Vec<f32> {
        let c = self.decoder.config();
        let mut x = self.decoder.embed(ids).unwrap();
        self.last_rows.clear();
        for layer in 0..c.layers {
            let mut qkv = self.decoder.qkv(layer, &x).unwrap();
            rotate(&mut qkv.q, c.heads, self.position, c);
            rotate(&mut qkv.k, c.kv_heads, self.position, c);
            let rows = &mut self.layers[layer];
            rows.k.extend(&qkv.k);
            rows.v.extend(&qkv.v);
            let (attention, last) = attend(&qkv.q, rows, self.position, c);
            self.last_rows.push(last);
            x = self.decoder.mix(layer, x, &attention).unwrap();
        }
        self.position += ids.len();
        self.decoder.logits(&x[(ids.len() - wanted) * c.hidden..]).unwrap()
    }
}

/// Half-split rotary positions: element `i` pairs with `i + head_dim / 2`.
fn rotate(x: &mut [f32], heads: usize, first: usize, c: &Config) {
    let half = c.head_dim / 2;
    for (row, x) in x.chunks_exact_mut(heads * c.head_dim).enumerate() {
        for x in x.chunks_exact_mut(c.head_dim) {
            for i in 0..half {
                let frequency = c.rope_theta.powf(-2.0 * i as f64 / c.head_dim as f64);
                let (sin, cos) = ((first + row) as f64 * frequency).sin_cos();
                let (sin, cos, a, b) = (sin as f32, cos as f32, x[i], x[i + half]);
                (x[i], x[i + half]) = (a * cos - b * sin, b * cos + a * sin);
            }
        }
    }
}

/// Causal attention of the last rows; the output, and the last row's probabilities.
fn attend(q: &[f32], rows: &Rows, first: usize, c: &Config) -> (Vec<f32>, Vec<f32>) {
    let (d, group, kv) = (c.head_dim, c.heads / c.kv_heads, c.kv_heads * c.head_dim);
    let mut out = Vec::with_capacity(q.len());
    let mut last = Vec::new();
    let tokens = q.len() / (c.heads * d);
    for (index, q) in q.chunks_exact(d).enumerate() {
        let (row, head) = (index / c.heads, index % c.heads);
        let at = head / group * d;
        let seen = first + row + 1;
        let dot = |k: &[f32]| q.iter().zip(&k[at..]).map(|(q, k)| q * k).sum::<f32>();
        let scores: Vec<f32> =
            rows.k.chunks_exact(kv).take(seen).map(|k| dot(k) / (d as f32).sqrt()).collect();
        let largest = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let weights: Vec<f32> = scores.iter().map(|s| (s - largest).exp()).collect();
        let sum: f32 = weights.iter().sum();
        let mut mixed = vec![0.0; d];
        for (w, v) in weights.iter().zip(rows.v.chunks_exact(kv)) {
            mixed.iter_mut().zip(&v[at..]).for_each(|(m, v)| *m += w / sum * v);
        }
        out.extend(mixed);
        if row + 1 == tokens {
            last.extend(weights.iter().map(|w| w / sum));
        }
    }
    (out, last)
}

/// Greedy ids, and what the sampler said of each.
fn greedy(model: &Model, prompt: &[u32], tokens: usize, chunk: usize) -> Vec<super::Drawn> {
    let mut sequence = Reference::new(&model.decoder);
    let mut sampler = Sampler::new(0, 0.0, 1.0, model.tokenizer.unused());
    let mut logits = Vec::new();
    for ids in prompt.chunks(chunk) {
        logits = sequence.feed(ids, 1);
    }
    let mut drawn = Vec::new();
    for _ in 0..tokens {
        let next = sampler.draw(&logits).unwrap();
        drawn.push(next);
        logits = sequence.feed(&[next.id], 1);
    }
    drawn
}

fn ids(value: &Value) -> Vec<u32> {
    serde_json::from_value(value.clone()).unwrap()
}

fn stories() -> Option<(Model, Value)> {
    let Some(data) = std::env::var_os("KVISTA_TEST_DATA") else {
        eprintln!("skipped: KVISTA_TEST_DATA is not set");
        return None;
    };
    let folder = PathBuf::from(data).join("stories260k");
    let golden = std::fs::read(folder.join("golden.json")).unwrap();
    Some((load(&folder).unwrap(), serde_json::from_slice(&golden).unwrap()))
}

#[test]
fn the_demo_says_what_it_is_known_to_say() {
    let golden: Value = serde_json::from_slice(include_bytes!("demo/golden.json")).unwrap();
    let model = demo::load().unwrap();
    let prompt = model.tokenizer.encode(golden["prompt_text"].as_str().unwrap()).unwrap();
    assert_eq!(prompt, ids(&golden["prompt_ids"]));

    let mut sequence = Reference::new(&model.decoder);
    let logits = sequence.feed(&prompt, 1);
    for (id, logit) in
        serde_json::from_value::<Vec<(usize, f32)>>(golden["last_logits_top10"].clone()).unwrap()
    {
        assert!((logits[id] - logit).abs() < 1e-4, "logit {id}: {} instead of {logit}", logits[id]);
    }
    for layer in [0, 1] {
        let rows: Vec<Vec<f32>> =
            serde_json::from_value(golden["last_row_attention"][layer.to_string()].clone()).unwrap();
        let worst = rows
            .concat()
            .iter()
            .zip(&sequence.last_rows[layer])
            .map(|(a, b)| (a - b).abs())
            .fold(0.0, f32::max);
        assert!(worst < 1e-4, "layer {layer}: {worst}");
    }

    let expected = ids(&golden["greedy_ids"]);
    let drawn: Vec<u32> = greedy(&model, &prompt, expected.len(), 64).iter().map(|d| d.id).collect();
    assert_eq!(drawn, expected);
    assert_eq!(model.tokenizer.text(&drawn), golden["greedy_text"].as_str().unwrap());
}

#[test]
fn the_demo_knows_the_key_of_its_own_prompts() {
    let model = demo::load().unwrap();
    for (seed, tokens, depth) in [
        (0, demo::TOKENS, demo::DEPTH),
        (1, demo::TOKENS, demo::DEPTH),
        (2, 500, 0.05),
        (3, 700, 0.3),
        (4, 300, 0.95),
    ] {
        let prompt = demo::passkey(seed, tokens, depth);
        let mut ids = model.tokenizer.encode(&prompt.context).unwrap();
        ids.extend(model.tokenizer.encode_continuation(&prompt.question).unwrap());
        let drawn: Vec<u32> = greedy(&model, &ids, 6, 64).iter().map(|d| d.id).collect();
        assert_eq!(model.tokenizer.text(&drawn), prompt.key, "seed {seed}");
    }
}

#[test]
fn stories260k_says_what_it_is_known_to_say() {
    let Some((model, golden)) = stories() else { return };
    assert_eq!(model.tokenizer.eos(), [1, 2]);
    for golden in [&golden, &golden["empty_prompt"]] {
        let prompt = model.tokenizer.encode(golden["prompt"].as_str().unwrap()).unwrap();
        assert_eq!(prompt, ids(&golden["prompt_ids"]));
        let drawn = greedy(&model, &prompt, 256, 5);
        let tokens: Vec<u32> = drawn.iter().map(|d| d.id).collect();
        assert_eq!(tokens, ids(&golden["greedy_ids"]));
        for (d, step) in drawn.iter().zip(golden["steps"].as_array().unwrap()) {
            let near = |x: f32, field: &str| (f64::from(x) - step[field].as_f64().unwrap()).abs() < 1e-4;
            assert!(near(d.logprob, "logprob") && near(d.margin, "margin"), "{d:?} instead of {step}");
        }
        let text = model.tokenizer.text(&[prompt, tokens].concat());
        assert_eq!(text.trim_start_matches(' '), golden["text"].as_str().unwrap().trim_start_matches(' '));
    }
}

/// Losses of the tokens of a window, which is a document of its own.
fn losses(model: &Model, window: &[u32]) -> Vec<f64> {
    let logits = Reference::new(&model.decoder).feed(window, window.len());
    let loss = |(row, id): (&[f32], &u32)| {
        let sum: f64 = row.iter().map(|x| f64::from(*x).exp()).sum();
        sum.ln() - f64::from(row[*id as usize])
    };
    logits.chunks(model.decoder.config().vocab).zip(&window[1..]).map(loss).collect()
}

fn mean(losses: &[f64]) -> f64 {
    losses.iter().sum::<f64>() / losses.len() as f64
}

fn nll_ids(model: &Model, golden: &Value) -> Vec<u32> {
    let data = PathBuf::from(std::env::var_os("KVISTA_TEST_DATA").unwrap());
    let text = std::fs::read_to_string(data.join("text/tinystories-nll-20k.txt")).unwrap();
    let ids = model.tokenizer.encode(&text).unwrap();
    assert_eq!(ids.len() as u64, golden["nll"]["total_tokens_with_bos"].as_u64().unwrap());
    ids
}

#[test]
fn stories260k_loses_what_it_is_known_to_lose() {
    let Some((model, golden)) = stories() else { return };
    let ids = nll_ids(&model, &golden);
    let expected = golden["nll"]["per_window_mean_nll"].as_array().unwrap();
    // Three of the twenty windows are proof enough and take a second.
    for (window, expected) in ids.chunks(512).zip(expected).take(3) {
        let mean = mean(&losses(&model, window));
        assert!((mean - expected.as_f64().unwrap()).abs() < 1e-4, "{mean} instead of {expected}");
    }
}

/// Eight bits a weight: the perplexity of the whole text within one percent.
#[test]
fn stories260k_in_eight_bits_loses_little_more() {
    let Some((_, golden)) = stories() else { return };
    let data = PathBuf::from(std::env::var_os("KVISTA_TEST_DATA").unwrap());
    let model = load(&data.join("stories260k/stories260K-q8_0.gguf")).unwrap();
    let card = model.decoder.card();
    assert_eq!((card.weights.as_str(), card.name.as_str()), ("q8_0", "stories260K-q8_0.gguf"));
    let ids = nll_ids(&model, &golden);
    let losses: Vec<f64> = ids.chunks(512).flat_map(|window| losses(&model, window)).collect();
    assert_eq!(losses.len() as u64, golden["nll"]["scored_tokens"].as_u64().unwrap());
    let ratio = (mean(&losses) - golden["nll"]["mean_nll"].as_f64().unwrap()).exp();
    println!("mean loss {:.5}, perplexity times {ratio:.5}", mean(&losses));
    assert!((ratio - 1.0).abs() < 0.01, "perplexity times {ratio}");
}

#[test]
fn a_random_model_runs_in_any_chunks() {
    let config = super::decoder::tests::odd_config();
    let decoder = Decoder::random(config, 3).unwrap();
    let ids: Vec<u32> = (0..40).map(|i| i * 7 % 300).collect();
    let whole = Reference::new(&decoder).feed(&ids, 1);
    let mut sequence = Reference::new(&decoder);
    let mut parts = Vec::new();
    for chunk in ids.chunks(7) {
        parts = sequence.feed(chunk, 1);
    }
    let worst = whole.iter().zip(&parts).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(worst < 1e-4, "{worst}");
}
