//! Decode speed against candle-transformers' own llama: the same weights, side by side in one process, step by step in
//! turns; and a read set against the full cache of the same engine.
//!
//! The model has the 110M shape (12 layers, 12 heads of 64, vocabulary 32,000, tied), seeded random weights and f32
//! pages; at the shortest context the engine's weights are Q8_0 too, candle's still f32. Before anything is timed, both decode the same prompt and must draw the same tokens. candle then feeds a real
//! context, which its cache can get in no other way; the engine fills its own with rows of chance ([`Engine::fill`]),
//! since what a step costs does not depend on what the rows hold. A pair is one step of each, the order changing from
//! pair to pair; printed is the median of the pairs' ratios with a 95 % interval of it by order statistics.
//!
//! `events` pays for what a live run pays on the engine's thread: the step's record, folding it, handing it to a
//! listener. The share of the bandwidth is the bytes of weights, keys and values that a step has to read, over its time,
//! against what reading 400 MB takes in this process on as many threads, once beside every pair.
//!
//! Threads are `RAYON_NUM_THREADS` for both. `KVISTA_BENCH_CONTEXTS` (`256,2048,8192`; empty for none),
//! `KVISTA_BENCH_READ` (`16384`, the context of the read set; 0 for none) and `KVISTA_BENCH_PAIRS` (40) make it shorter,
//! `KVISTA_BENCH_BLOCK` gives the engine blocks of another size.
//! candle-transformers is built at `opt-level = 1` here; it calls candle-core, which is built at 3, for everything hot.

#[path = "common/median.rs"]
mod median;

use std::fs;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models::llama::{Cache, Llama, LlamaConfig};
use kvista::device::Isa;
use kvista::engine::{Engine, Feed, Item, Observe, Prompt};
use kvista::event::Settings;
use kvista::model::{self, Model};
use kvista::probe::Receiver;
use memmap2::MmapMut;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde_json::json;

use median::median;

const LAYERS: usize = 12;
const HIDDEN: usize = 768;
const INTERMEDIATE: usize = 2048;
const HEADS: usize = 12;
const VOCAB: usize = 32_000;
/// Tokens that are bytes; words that nobody writes follow.
const BYTES: usize = 256;
/// Steps of each side before the clock counts.
const WARM_UP: usize = 4;
/// Tokens that candle is fed at a time.
const CHUNK: usize = 256;

type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

fn number(name: &str, usual: usize) -> usize {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(usual)
}

/// Tensors by name: seeded, of the variance that keeps activations at their scale; norms are one.
fn tensors() -> Vec<(String, Vec<usize>, Vec<f32>)> {
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    let mut tensors = Vec::new();
    let mut matrix = |name: String, outputs: usize, inputs: usize| {
        let limit = (3.0 / inputs as f32).sqrt();
        let values = (0..outputs * inputs).map(|_| rng.random_range(-limit..limit)).collect();
        (name, vec![outputs, inputs], values)
    };
    for layer in 0..LAYERS {
        let name = |part: &str| format!("model.layers.{layer}.{part}.weight");
        for part in ["q", "k", "v", "o"] {
            tensors.push(matrix(name(&format!("self_attn.{part}_proj")), HIDDEN, HIDDEN));
        }
        tensors.push(matrix(name("mlp.gate_proj"), INTERMEDIATE, HIDDEN));
        tensors.push(matrix(name("mlp.up_proj"), INTERMEDIATE, HIDDEN));
        tensors.push(matrix(name("mlp.down_proj"), HIDDEN, INTERMEDIATE));
        for part in ["input_layernorm", "post_attention_layernorm"] {
            tensors.push((name(part), vec![HIDDEN], vec![1.0; HIDDEN]));
        }
    }
    tensors.push(matrix("model.embed_tokens.weight".into(), VOCAB, HIDDEN));
    tensors.push(("model.norm.weight".into(), vec![HIDDEN], vec![1.0; HIDDEN]));
    tensors
}

/// A model folder whose tokens are bytes.
fn write_model(folder: &Path, context: usize) -> Outcome<()> {
    let tensors = tensors();
    let views = tensors.iter().map(|(name, shape, values)| {
        let view = TensorView::new(Dtype::F32, shape.clone(), bytemuck::cast_slice(values));
        (name.as_str(), view.expect("as many bytes as the shape has"))
    });
    safetensors::serialize_to_file(views, None, &folder.join("model.safetensors"))?;
    let config = json!({
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": HIDDEN,
        "intermediate_size": INTERMEDIATE, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS,
        "num_key_value_heads": HEADS, "vocab_size": VOCAB, "max_position_embeddings": context, "rope_theta": 10000.0,
        "rms_norm_eps": 1e-5, "tie_word_embeddings": true, "hidden_act": "silu", "bos_token_id": BYTES,
    });
    fs::write(folder.join("config.json"), config.to_string())?;
    let mut words: Vec<String> = (0..BYTES).map(|byte| format!("<0x{byte:02X}>")).collect();
    words.push("<s>".into());
    words.extend((words.len()..VOCAB).map(|id| format!("word{id}")));
    fs::write(folder.join("vocab.json"), json!(words).to_string())?;
    Ok(())
}

/// candle's llama and where its sequence stands.
struct Candle {
    llama: Llama,
    cache: Cache,
    position: usize,
}

impl Candle {
    fn load(folder: &Path) -> Outcome<Self> {
        let config: LlamaConfig = serde_json::from_slice(&fs::read(folder.join("config.json"))?)?;
        let config = config.into_config(false);
        let weights = fs::read(folder.join("model.safetensors"))?;
        let weights = VarBuilder::from_buffered_safetensors(weights, DType::F32, &Device::Cpu)?;
        let cache = Cache::new(true, DType::F32, &config, &Device::Cpu)?;
        Ok(Self { llama: Llama::load(weights, &config)?, cache, position: 0 })
    }

    /// The likeliest next token.
    fn feed(&mut self, ids: &[u32]) -> Outcome<u32> {
        let tokens = Tensor::from_slice(ids, (1, ids.len()), &Device::Cpu)?;
        let logits = self.llama.forward(&tokens, self.position, &mut self.cache)?;
        self.position += ids.len();
        let logits: Vec<f32> = logits.flatten_all()?.to_vec1()?;
        let best = (0..VOCAB).max_by(|&a, &b| logits[a].total_cmp(&logits[b]));
        Ok(best.expect("there are some") as u32)
    }

    fn feed_up_to(&mut self, context: usize) -> Outcome<()> {
        while self.position < context {
            let n = CHUNK.min(context - self.position);
            let ids: Vec<u32> = (0..n).map(|i| ((self.position + i) * 7 % BYTES) as u32).collect();
            self.feed(&ids)?;
        }
        Ok(())
    }

    fn step_ns(&mut self) -> f64 {
        let start = Instant::now();
        self.feed(&[97]).expect("candle goes on");
        start.elapsed().as_nanos() as f64
    }
}

/// An engine and the one who listens to it.
struct Runner {
    engine: Engine,
    feed: Feed,
    listener: Receiver<Item>,
}

impl Runner {
    fn new(model: &Arc<Model>, context: usize, read: &str) -> Outcome<Self> {
        let settings = Settings {
            max_tokens: 1 << 20,
            ignore_eos: true,
            chunk: CHUNK as u32,
            read: read.into(),
            block_size: number("KVISTA_BENCH_BLOCK", Settings::default().block_size as usize) as u32,
            ..Settings::default()
        };
        // BOS and the leading space are tokens too.
        let text: String = (2..context).map(|i| char::from(b'a' + (i * 7 % 26) as u8)).collect();
        let engine = Engine::new(Arc::clone(model), &settings, &Prompt { text, ..Prompt::default() })?;
        let mut feed = Feed::default();
        let (_, listener) = feed.listen(4_096);
        feed.begin(engine.info())?;
        Ok(Self { engine, feed, listener })
    }

    /// One whose context is filled, and warm.
    fn filled(model: &Arc<Model>, context: usize, read: &str) -> Outcome<Self> {
        let mut runner = Self::new(model, context, read)?;
        runner.engine.set_observe(Observe::Events);
        let filled = runner.engine.fill(context as u64)?;
        runner.feed.step(filled)?;
        for _ in 0..WARM_UP {
            runner.step_ns(Observe::Events);
        }
        Ok(runner)
    }

    fn step_ns(&mut self, observe: Observe) -> f64 {
        self.engine.set_observe(observe);
        let start = Instant::now();
        let step = self.engine.step().expect("the engine goes on").expect("and is not finished");
        let stepped = start.elapsed();
        self.feed.step(step).expect("steps follow each other");
        let folded = start.elapsed();
        self.listener.drain().for_each(drop);
        (if observe == Observe::Off { stepped } else { folded }).as_nanos() as f64
    }
}

/// Whether both draw the same tokens from the same prompt.
fn agree(model: &Arc<Model>, folder: &Path) -> Outcome<()> {
    let mut runner = Runner::new(model, 64, "")?;
    let (mut fed, mut drawn) = (Vec::new(), Vec::new());
    while drawn.len() < 8 {
        let step = runner.engine.step()?.expect("it goes on");
        fed.extend(step.seqs[0].fed.iter().map(|token| token.id));
        drawn.extend(step.seqs[0].sampled.as_ref().map(|sampled| sampled.id));
    }
    let mut candle = Candle::load(folder)?;
    let mut next = candle.feed(&fed[..64])?;
    for &ours in &drawn {
        assert_eq!(ours, next, "the two models differ: {drawn:?}");
        next = candle.feed(&[next])?;
    }
    println!("same weights: both draw {drawn:?} after the same 64 tokens");
    Ok(())
}

/// Numbers so many that no cache of a core holds them, where reading is fastest: on cache lines, in large pages.
struct Reading(MmapMut);

impl Reading {
    fn new() -> Outcome<Self> {
        let mut memory = MmapMut::map_anon(400_000_000)?;
        #[cfg(target_os = "linux")]
        let _ = memory.advise(memmap2::Advice::HugePage);
        bytemuck::cast_slice_mut(&mut memory).fill(1.0f32);
        Ok(Self(memory))
    }

    /// Bytes per second, of one reading by all threads.
    fn rate(&self) -> f64 {
        let start = Instant::now();
        let numbers: &[f32] = bytemuck::cast_slice(&self.0);
        let sum: f32 = numbers.par_chunks(1 << 16).map(|part| Isa::best().sum(part)).sum();
        assert!(sum > 0.0);
        self.0.len() as f64 / start.elapsed().as_secs_f64()
    }
}

/// The engine with weights of a type, of so many bits each, against candle with f32 weights.
fn against_candle(
    (model, weights, bits): (&Arc<Model>, &str, f64),
    reading: &Reading,
    candle: &mut Candle,
    context: usize,
    pairs: usize,
) -> Outcome<()> {
    candle.feed_up_to(context)?;
    let mut ours = Runner::filled(model, context, "")?;
    for _ in 0..WARM_UP {
        candle.step_ns();
    }
    let (mut theirs, mut events, mut off, mut rates) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for pair in 0..pairs {
        let theirs_first = pair % 2 == 0;
        if theirs_first {
            theirs.push(candle.step_ns());
        }
        for turn in 0..2 {
            if (turn + pair / 2) % 2 == 0 {
                events.push(ours.step_ns(Observe::Events));
            } else {
                off.push(ours.step_ns(Observe::Off));
            }
        }
        rates.push(reading.rate());
        if !theirs_first {
            theirs.push(candle.step_ns());
        }
    }
    let (ratio, low, high) = median(theirs.iter().zip(&events).map(|(a, b)| a / b).collect());
    let overhead = median(events.iter().zip(&off).map(|(a, b)| a / b).collect()).0;
    let read = (LAYERS * (4 * HIDDEN + 3 * INTERMEDIATE) * HIDDEN + VOCAB * HIDDEN) as f64 * bits / 8.0;
    let rows = 2 * LAYERS * HIDDEN * 4 * context;
    let bytes = read + rows as f64;
    let share = median(events.iter().zip(&rates).map(|(ns, rate)| bytes / (ns / 1e9) / rate).collect()).0;
    let (theirs, events, rate) = (median(theirs).0, median(events).0, median(rates).0);
    println!(
        "{context:>6} tokens, {weights} weights: candle {:.2}, kvista {:.2} tokens/s with events: {ratio:.2} times (95 % interval {low:.2} \
         to {high:.2}); events {overhead:.3} of off; {:.1} of {:.1} GB/s read ({:.0} %); {pairs} pairs",
        1e9 / theirs,
        1e9 / events,
        bytes / events,
        rate / 1e9,
        1e2 * share,
    );
    Ok(())
}

fn read_set(model: &Arc<Model>, context: usize, pairs: usize) -> Outcome<()> {
    let read = "kcache:n=64,l=1";
    let (mut full, mut top) = (Runner::filled(model, context, "")?, Runner::filled(model, context, read)?);
    let (mut all, mut some) = (Vec::new(), Vec::new());
    for pair in 0..pairs {
        if pair % 2 == 0 {
            all.push(full.step_ns(Observe::Events));
        }
        some.push(top.step_ns(Observe::Events));
        if pair % 2 == 1 {
            all.push(full.step_ns(Observe::Events));
        }
    }
    let (ratio, low, high) = median(all.iter().zip(&some).map(|(a, b)| a / b).collect());
    println!(
        "{context:>6} tokens: full cache {:.2}, {read} {:.2} tokens/s with events: {ratio:.2} times (95 % interval \
         {low:.2} to {high:.2}); {pairs} pairs",
        1e9 / median(all).0,
        1e9 / median(some).0
    );
    Ok(())
}

fn main() -> Outcome<()> {
    let pairs = number("KVISTA_BENCH_PAIRS", 40).max(2);
    let contexts = std::env::var("KVISTA_BENCH_CONTEXTS").unwrap_or_else(|_| "256,2048,8192".into());
    let mut contexts: Vec<usize> = contexts.split(',').filter_map(|n| n.trim().parse().ok()).collect();
    contexts.sort_unstable();
    let read_context = number("KVISTA_BENCH_READ", 16_384);
    let longest = contexts.last().copied().unwrap_or(0).max(read_context) + 4 * (pairs + WARM_UP) + 64;

    let folder = tempfile::tempdir()?;
    write_model(folder.path(), longest)?;
    let model = Arc::new(model::load(folder.path())?);
    println!(
        "110M shape: {LAYERS} layers, {HEADS} heads of {}, vocabulary {VOCAB}; f32 weights and pages; {}, {} threads of {} \
         cores",
        HIDDEN / HEADS,
        Isa::best(),
        rayon::current_num_threads(),
        std::thread::available_parallelism()?,
    );
    agree(&model, folder.path())?;
    let mut candle = Candle::load(folder.path())?;
    let reading = Reading::new()?;
    let shortest = contexts.first().copied().unwrap_or(0);
    for context in contexts {
        against_candle((&model, "f32", 32.0), &reading, &mut candle, context, pairs)?;
        if context == shortest {
            let mut unheard = |_: &model::Progress<'_>| ControlFlow::Continue(());
            let q8 = model::load_as(folder.path(), "", Some("q8_0".parse()?), &mut unheard)?;
            let context = candle.position;
            against_candle((&Arc::new(q8), "q8_0", 8.5), &reading, &mut candle, context, pairs)?;
        }
    }
    drop(candle);
    if read_context > 0 {
        read_set(&model, read_context, pairs)?;
    }
    Ok(())
}
