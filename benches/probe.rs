//! What observing costs: three engines on the same tokens, side by side in one process, alternated step by step.
//!
//! `off` observes nothing and throws its steps away. `events` and `rows` pay for everything that a live run pays on the
//! engine's thread: building the step, folding it, handing it to one listener (who empties his ring outside the clock,
//! as his own thread would).
//!
//! Engines are not alike: where the allocator put their pages is worth some percent. So the three take turns: in three
//! rounds each engine steps once in each mode, and a ratio is between steps of the same engine in the same three rounds.
//! The order within a round changes too. Printed is the median ratio to `off`, with a 95 % interval of the median by
//! order statistics, and what of it the observer's own clock finds (quantising rows) and what folding takes.
//!
//! On a machine that is busy with other things, `RAYON_NUM_THREADS=1 KVISTA_BENCH_CLOCK=cpu` counts the processor time of
//! the thread (Linux) in place of the wall's. `KVISTA_BENCH_PAIRS` (402) and `KVISTA_BENCH_CONTEXTS` (`512,2048,4096`) make it shorter.

#[path = "common/median.rs"]
mod median;

use std::sync::Arc;
use std::time::Instant;

use kvista::engine::{Engine, Feed, Item, Observe, Prompt};
use kvista::event::Settings;
use kvista::model::config::Arch;
use kvista::model::{Config, Decoder, Model, Tokenizer, demo};
use kvista::probe::Receiver;

use median::median;

/// Rounds before the clock counts: pages, branch predictors and the pool's threads warm up.
const WARM_UP: usize = 8;
const MODES: [Observe; 3] = [Observe::Off, Observe::Events, Observe::Rows];
/// Every order of three, so that nobody always follows the same neighbour.
const ORDERS: [[usize; 3]; 6] = [[0, 1, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0], [0, 2, 1], [1, 0, 2]];

/// Nanoseconds: the wall's, or those that this thread was running.
#[derive(Clone, Copy)]
enum Clock {
    Wall(Instant),
    Cpu,
}

impl Clock {
    fn new() -> Self {
        match std::env::var("KVISTA_BENCH_CLOCK").as_deref() {
            Ok("cpu") => Self::Cpu,
            _ => Self::Wall(Instant::now()),
        }
    }

    fn now_ns(self) -> f64 {
        match self {
            Self::Wall(start) => start.elapsed().as_nanos() as f64,
            Self::Cpu => {
                // The kernel brings the count up to date when the thread gives way, else at the next tick.
                std::thread::yield_now();
                let told = std::fs::read_to_string("/proc/thread-self/schedstat").expect("Linux tells");
                told.split(' ').next().and_then(|ns| ns.parse().ok()).expect("its first field is a number")
            }
        }
    }
}

/// What a step took, ns.
#[derive(Clone, Copy, Default)]
struct Cost {
    all: f64,
    /// The engine's own reckoning of what observing took.
    observing: f64,
    /// Folding and handing on.
    folding: f64,
}

/// An engine and everyone who has a share in its steps.
struct Runner {
    engine: Engine,
    feed: Feed,
    listener: Receiver<Item>,
    clock: Clock,
}

impl Runner {
    fn new(model: &Arc<Model>, settings: &Settings, prompt: &Prompt) -> Self {
        let engine = Engine::new(Arc::clone(model), settings, prompt).expect("the settings fit the model");
        let mut feed = Feed::default();
        let (_, listener) = feed.listen(4_096);
        feed.begin(engine.info()).expect("the model's shape is within bounds");
        Self { engine, feed, listener, clock: Clock::new() }
    }

    /// One step. If nobody observes it, it is folded after the clock has stopped, so that the next one follows it.
    fn step(&mut self, observe: Observe) -> Cost {
        self.engine.set_observe(observe);
        let start = self.clock.now_ns();
        let step = self.engine.step().expect("the engine goes on").expect("and is not finished");
        let stepped = self.clock.now_ns();
        let observing = step.probe.ns as f64;
        self.feed.step(step).expect("steps follow each other");
        let folding = if observe == Observe::Off { 0.0 } else { self.clock.now_ns() - stepped };
        self.listener.drain().for_each(drop);
        Cost { all: stepped - start + folding, observing, folding }
    }
}

/// Alternates the three engines; per pair the cost of each mode.
fn pairs(model: &Arc<Model>, settings: &Settings, prompt: &Prompt, pairs: usize) -> Vec<[Cost; 3]> {
    let mut runners = [(); 3].map(|()| Runner::new(model, settings, prompt));
    for runner in &mut runners {
        while !runner.engine.is_decoding() {
            runner.step(Observe::Rows);
        }
    }
    for (round, runner) in (0..WARM_UP).flat_map(|round| (0..3).map(move |i| (round, i))) {
        runners[runner].step(MODES[round % 3]);
    }
    let mut times = Vec::with_capacity(pairs);
    for turn in 0..pairs / 3 {
        let mut of_engine = [[Cost::default(); 3]; 3];
        for round in 0..3 {
            for &i in &ORDERS[(3 * turn + round) % ORDERS.len()] {
                // Which of the three rounds an engine is unobserved in changes with the turns.
                let mode = (i + round + turn) % 3;
                of_engine[i][mode] = runners[i].step(MODES[mode]);
            }
        }
        times.extend(of_engine);
    }
    times
}

fn report(what: &str, pairs: &[[Cost; 3]]) {
    let (off, _, _) = median(pairs.iter().map(|t| t[0].all).collect());
    println!("{what}: step {:.3} ms without a probe, {} pairs", off / 1e6, pairs.len());
    for (i, name) in [(1, "events"), (2, "rows")] {
        let (ratio, low, high) = median(pairs.iter().map(|t| t[i].all / t[0].all).collect());
        let part = |of: fn(&Cost) -> f64| median(pairs.iter().map(|t| of(&t[i]) / t[i].all).collect()).0;
        let (observing, folding) = (part(|c| c.observing), part(|c| c.folding));
        println!(
            "  {name:<6} {ratio:.4} of it (95 % interval {low:.4} to {high:.4}); {:.2} % observing, {:.2} % folding",
            1e2 * observing,
            1e2 * folding
        );
    }
}

/// The 110M shape. The vocabulary is small so that the head, which no probe sees into, adds little: 85M weights of
/// layers and 0.8M of embedding and head.
fn shape_110m(context: usize) -> Config {
    Config {
        family: "llama".into(),
        hidden: 768,
        intermediate: 2048,
        layers: 12,
        heads: 12,
        kv_heads: 12,
        head_dim: 64,
        vocab: 512,
        context,
        rope_theta: 1e4,
        rms_norm_eps: 1e-5,
        tied: false,
        bos: Some(256),
        eos: Vec::new(),
        arch: Arch::default(),
    }
}

fn number(name: &str) -> Option<usize> {
    std::env::var(name).ok()?.parse().ok()
}

fn main() {
    let count = number("KVISTA_BENCH_PAIRS").unwrap_or(402).max(3);
    let contexts = std::env::var("KVISTA_BENCH_CONTEXTS").unwrap_or_else(|_| "512,2048,4096".into());
    let contexts: Vec<usize> = contexts.split(',').filter_map(|n| n.trim().parse().ok()).collect();
    let settings = |max_tokens: usize| Settings {
        max_tokens: (max_tokens + 2) as u32,
        ignore_eos: true,
        chunk: 512,
        ..Settings::default()
    };

    let model = Arc::new(demo::load().expect("the embedded model loads"));
    let passkey = demo::passkey(0, demo::TOKENS, demo::DEPTH);
    let prompt = Prompt { text: passkey.context, question: passkey.question, ..Prompt::default() };
    report("demo, 600 tokens", &pairs(&model, &settings(WARM_UP + count), &prompt, count));

    if let Some(longest) = contexts.iter().max() {
        let config = shape_110m(longest + WARM_UP + count + 2);
        let tokenizer = Tokenizer::bytes(&config).expect("257 ids and more");
        let decoder = Decoder::random(config, 1).expect("a shape that is supported");
        let model = Arc::new(Model::new(decoder, tokenizer));
        for &context in &contexts {
            // BOS and the leading space are tokens too.
            let text: String = (2..context).map(|i| char::from(b'a' + (i * 7 % 26) as u8)).collect();
            let prompt = Prompt { text, ..Prompt::default() };
            let pairs = pairs(&model, &settings(WARM_UP + count), &prompt, count);
            report(&format!("110M shape, {context} tokens"), &pairs);
        }
    }
}
