//! How long a jump in a recording takes: the newest keyframe at or before a step, then the steps behind it folded.
//!
//! The recording is made by the engine and its recorder, with many lanes, a long context and decisions at every token,
//! so that its keyframes grow to about 1 MiB, the largest that a jump has 16 ms for. Printed are the sizes and the 50th
//! and 99th percentile. `KVISTA_BENCH_SEEKS` (300) makes it shorter.

use std::sync::Arc;
use std::time::Instant;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use kvista::engine::{Engine, Feed, Prompt, Recorder};
use kvista::event::{RunInfo, Settings, StepId};
use kvista::model::config::Arch;
use kvista::model::{Config, Decoder, Model, Tokenizer};
use kvista::state::State;
use kvista::trace::Recording;

/// Tokens of the prompt, and generated.
const PROMPT: usize = 1_024;
const GENERATED: usize = 5_000;

/// 128 lanes; the arithmetic itself is kept small.
fn model() -> Arc<Model> {
    let config = Config {
        family: "llama".into(),
        hidden: 16,
        intermediate: 16,
        layers: 16,
        heads: 8,
        kv_heads: 8,
        head_dim: 4,
        vocab: 257,
        context: PROMPT + GENERATED + 2,
        rope_theta: 1e4,
        rms_norm_eps: 1e-5,
        tied: false,
        bos: Some(256),
        eos: Vec::new(),
        arch: Arch::default(),
    };
    let tokenizer = Tokenizer::bytes(&config).expect("257 ids");
    Arc::new(Model::new(Decoder::random(config, 1).expect("a shape that is supported"), tokenizer))
}

/// Runs and records.
fn record(path: &std::path::Path) {
    let settings = Settings {
        policy: "h2o:budget=768".into(),
        max_tokens: GENERATED as u32,
        temperature: 1.0,
        ..Settings::default()
    };
    let text = (2..PROMPT).map(|i| char::from(b'a' + (i * 7 % 26) as u8)).collect();
    let prompt = Prompt { text, ..Prompt::default() };
    let mut engine = Engine::new(model(), &settings, &prompt).expect("the settings fit the model");
    let mut feed = Feed::default();
    let (id, items) = feed.listen(2 * (PROMPT + GENERATED));
    let recorder = Recorder::start(path, items).expect("a temporary file can be written");
    feed.begin(engine.info()).expect("the model's shape is within bounds");
    while let Some(step) = engine.step().expect("the engine goes on") {
        feed.step(step).expect("steps follow each other");
    }
    feed.dismiss(id);
    recorder.finish().expect("the recording is written");
}

/// Nanoseconds: the wall's, or those that this thread was running (see the probe's benchmark).
fn now_ns(start: Instant, cpu: bool) -> f64 {
    if !cpu {
        return start.elapsed().as_nanos() as f64;
    }
    std::thread::yield_now();
    let told = std::fs::read_to_string("/proc/thread-self/schedstat").expect("Linux tells");
    told.split(' ').next().and_then(|ns| ns.parse().ok()).expect("its first field is a number")
}

/// What a jump took, ns.
#[derive(Clone, Copy, Default)]
struct Cost {
    keyframe: f64,
    reading: f64,
    folding: f64,
}

impl Cost {
    fn all(self) -> f64 {
        self.keyframe + self.reading + self.folding
    }
}

/// The state after a step.
fn seek(recording: &Recording, run: &Arc<RunInfo>, step: StepId, now_ns: impl Fn() -> f64) -> (State, Cost) {
    let mut cost = Cost::default();
    let start = now_ns();
    let found = recording.keyframe_at_or_before(step).expect("the recording is sound");
    let (at, bytes) = found.expect("the first step has a keyframe");
    let mut state = State::from_keyframe(Arc::clone(run), &bytes).expect("the keyframe is of this build");
    let loaded = now_ns();
    cost.keyframe = loaded - start;
    let steps: Vec<_> =
        recording.read(at + 1..step + 1).map(|s| s.expect("the recording is sound")).collect();
    let read = now_ns();
    cost.reading = read - loaded;
    for next in &steps {
        state.fold(next).expect("steps follow each other");
    }
    cost.folding = now_ns() - read;
    (state, cost)
}

fn main() {
    let seeks =
        std::env::var("KVISTA_BENCH_SEEKS").ok().and_then(|n| n.parse().ok()).unwrap_or(300usize).max(1);
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("long.mcap");
    record(&path);

    let recording = Recording::open(&path).expect("what was just written opens");
    let (first, last) = recording.bounds().expect("there are steps");
    let keyframes: Vec<StepId> = recording.keyframes().collect();
    let size = |&step: &StepId| {
        let found = recording.keyframe_at_or_before(step).expect("the recording is sound");
        found.map_or(0, |(_, bytes)| bytes.len())
    };
    let mib = |bytes: u64| bytes as f64 / 1_048_576.0;
    let largest = keyframes.iter().map(size).max().unwrap_or(0);
    println!(
        "{} steps, {:.1} MiB, {} keyframes, the largest {:.2} MiB",
        recording.steps(),
        mib(recording.bytes()),
        keyframes.len(),
        mib(largest as u64)
    );

    let run = Arc::new(recording.run().clone());
    let (clock, cpu) = (Instant::now(), std::env::var("KVISTA_BENCH_CLOCK").is_ok_and(|c| c == "cpu"));
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    let mut costs: Vec<Cost> = (0..seeks)
        .map(|_| {
            let step = rng.random_range(first..=last);
            let (state, cost) = seek(&recording, &run, step, || now_ns(clock, cpu));
            assert_eq!(state.step, Some(step));
            cost
        })
        .collect();
    let mut print = |what: &str, of: fn(Cost) -> f64| {
        costs.sort_by(|a, b| of(*a).total_cmp(&of(*b)));
        let at = |share: f64| of(costs[((seeks - 1) as f64 * share).round() as usize]) / 1e6;
        println!("{what}: p50 {:.2} ms, p99 {:.2} ms, longest {:.2} ms", at(0.5), at(0.99), at(1.0));
    };
    print(&format!("{seeks} jumps"), Cost::all);
    print("  keyframe", |c| c.keyframe);
    print("  reading", |c| c.reading);
    print("  folding", |c| c.folding);
}
