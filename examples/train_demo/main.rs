//! Trains the embedded demo model, from nothing to `model.safetensors`:
//!
//! ```text
//! RAYON_NUM_THREADS=1 RUSTFLAGS="-C target-cpu=native" cargo run --release --example train_demo -- --out runs/demo
//! ```
//!
//! It stops after `--minutes` at the latest and goes on from its checkpoint when called again. `--smoke` trains a
//! smaller one for a few minutes, to see retrieval appear. `src/model/demo/README.md` tells the recipe and what came
//! of it.

mod attention;
mod checkpoint;
mod circuit;
mod data;
mod kernel;
mod net;
mod ops;
mod optimiser;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use candle_core::Tensor;
use candle_core::backprop::GradStore;
use clap::Parser;
use kvista::model::demo::{self, DocumentKind};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use data::Batch;
use net::{Net, Shape};
use optimiser::Optimiser;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// Trains the embedded demo model.
#[derive(Parser)]
struct Args {
    /// Folder of checkpoint and finished model
    #[arg(long)]
    out: PathBuf,
    /// Stops, resumable, after this many minutes
    #[arg(long, default_value_t = 75.0)]
    minutes: f64,
    /// Seed of weights and documents
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Threads, each with its share of a step's sequences
    #[arg(long, default_value_t = 2)]
    threads: usize,
    /// Trains a smaller model for a few minutes
    #[arg(long)]
    smoke: bool,
}

/// A stretch of training at one length.
struct Phase {
    /// Tokens of a sequence.
    len: usize,
    /// Optimiser steps.
    steps: usize,
    /// Tokens of a step.
    tokens: usize,
}

const FULL: &[Phase] = &[
    Phase { len: 128, steps: 200, tokens: 2048 },
    Phase { len: 256, steps: 300, tokens: 4096 },
    Phase { len: 512, steps: 450, tokens: 4096 },
    Phase { len: 1024, steps: 350, tokens: 4096 },
    Phase { len: 2048, steps: 350, tokens: 4096 },
    Phase { len: 4096, steps: 120, tokens: 8192 },
];
const SMOKE: &[Phase] =
    &[Phase { len: 128, steps: 200, tokens: 2048 }, Phase { len: 256, steps: 150, tokens: 4096 }];

/// Steps over which the rates rise, share of all steps after which they fall, and where to.
const WARM_UP: usize = 20;
const HOLD: f64 = 0.48;
const LAST: f64 = 0.02;

/// Steps between two lines of the log, and between two checkpoints.
const LOG_EVERY: usize = 25;
const SAVE_EVERY: usize = 50;

fn main() -> Result<()> {
    let args = Args::parse();
    std::fs::create_dir_all(&args.out)?;
    let phases = if args.smoke { SMOKE } else { FULL };
    let (dim, ff) = if args.smoke { (128, 256) } else { (256, 640) };
    let shape =
        Shape { vocab: demo::VOCAB_SIZE, dim, ff, layers: 4, heads: 8, kv_heads: 4, theta: 1e7, eps: 1e-5 };

    let mut rng = ChaCha8Rng::seed_from_u64(args.seed);
    let net = Net::random(shape, &mut rng)?;
    circuit::build(&net, demo::BOS, &mut rng)?;
    let mut optimiser = Optimiser::new(&net)?;
    let done = checkpoint::resume(&args.out, &net, &mut optimiser)?.unwrap_or(0);
    let all: usize = phases.iter().map(|p| p.steps).sum();
    println!("{shape:?}: {done} of {all} steps done");

    let start = Instant::now();
    let limit = Duration::from_secs_f64(args.minutes.clamp(0.0, 1e6) * 60.0);
    let mut log = Log::default();
    for step in done..all {
        let (phase, first) = phase_of(phases, step);
        let batch = data::batch(args.seed, step, phase.len, phase.tokens);
        let parts = learn(&net, &batch, args.threads.max(1))?;
        let grads: Vec<GradStore> = parts.into_iter().map(|part| log.add(part)).collect();
        log.steps += 1.0;
        optimiser.step(&grads, step, rate(step, all))?;

        let next = step + 1;
        let ends = next == all || next - first == phase.steps;
        if next % LOG_EVERY == 0 || ends {
            println!(
                "step {next} of {all}, length {}, rate {:.3}: {log}, {:.0} s",
                phase.len,
                rate(step, all),
                start.elapsed().as_secs_f64()
            );
            log = Log::default();
        }
        let late = start.elapsed() >= limit;
        if next % SAVE_EVERY == 0 || ends || late {
            checkpoint::save(&args.out, &net, &optimiser, next)?;
        }
        if ends {
            println!("  at length {}: {}", phase.len.min(1024), probes(&net, phase.len.min(1024))?);
        }
        if late && next < all {
            println!("stopped after {:.0} minutes; the same command goes on", args.minutes);
            break;
        }
    }
    checkpoint::export(&args.out, &net)?;
    Ok(())
}

fn phase_of(phases: &[Phase], step: usize) -> (&Phase, usize) {
    let mut first = 0;
    for phase in phases {
        if step < first + phase.steps {
            return (phase, first);
        }
        first += phase.steps;
    }
    unreachable!("step {step} lies beyond the last phase")
}

/// The learning rates' factor: up, level, down.
fn rate(step: usize, all: usize) -> f64 {
    let done = step as f64 / all as f64;
    let up = ((step + 1) as f64 / WARM_UP as f64).min(1.0);
    up * ((1.0 - done) / (1.0 - HOLD)).clamp(LAST, 1.0)
}

/// What one thread learned from its part of a batch.
struct Part {
    grads: GradStore,
    /// Its part of the batch's loss.
    loss: f32,
    /// Of the answers.
    outcomes: Vec<ops::Outcome>,
    tokens: usize,
}

/// Gradients of a batch, a thread for each part: the library's own threads wait for each other after every operation.
fn learn(net: &Net, batch: &Batch, threads: usize) -> Result<Vec<Part>> {
    let total = batch.weight();
    let parts = batch.split(threads);
    let learned: Vec<candle_core::Result<Part>> = std::thread::scope(|scope| {
        let part = |part: Batch| -> candle_core::Result<Part> {
            let logits = net.forward(&part.ids, &part.places)?;
            let outcomes = answers(&logits, &part)?;
            let tokens = part.ids.len();
            let loss = logits.apply_op1(ops::Loss { targets: part.targets, weights: part.weights, total })?;
            Ok(Part { grads: loss.backward()?, loss: loss.to_scalar()?, outcomes, tokens })
        };
        let threads: Vec<_> = parts.into_iter().map(|p| scope.spawn(move || part(p))).collect();
        threads.into_iter().map(|t| t.join().expect("a forward and its gradients do not panic")).collect()
    });
    Ok(learned.into_iter().collect::<candle_core::Result<_>>()?)
}

/// Outcomes of the answers in a batch.
fn answers(logits: &Tensor, batch: &Batch) -> candle_core::Result<Vec<ops::Outcome>> {
    let all = ops::outcomes(logits, &batch.targets)?;
    Ok(all.into_iter().zip(&batch.answers).filter(|(_, answer)| **answer).map(|(o, _)| o).collect())
}

/// Means since the last line.
#[derive(Default)]
struct Log {
    steps: f64,
    tokens: usize,
    loss: f64,
    answers: Vec<ops::Outcome>,
}

impl Log {
    fn add(&mut self, part: Part) -> GradStore {
        self.tokens += part.tokens;
        self.loss += f64::from(part.loss);
        self.answers.extend(part.outcomes);
        part.grads
    }
}

fn right(answers: &[ops::Outcome]) -> f64 {
    answers.iter().filter(|o| o.right).count() as f64 / answers.len().max(1) as f64
}

impl std::fmt::Display for Log {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let nats = self.answers.iter().map(|o| f64::from(o.nll)).sum::<f64>();
        write!(
            f,
            "loss {:.3}, answers {:.3} right, {:.3} nats, {} tokens",
            self.loss / self.steps,
            right(&self.answers),
            nats / self.answers.len().max(1) as f64,
            self.tokens
        )
    }
}

/// Answers right of each kind of document, and the loss of stories.
fn probes(net: &Net, len: usize) -> Result<String> {
    let mut out = Vec::new();
    for kind in [
        DocumentKind::Pass,
        DocumentKind::Facts,
        DocumentKind::Lists,
        DocumentKind::Table,
        DocumentKind::Repeated,
        DocumentKind::Votes,
    ] {
        let batch = data::probe(kind, len, 4);
        let answers = answers(&net.forward(&batch.ids, &batch.places)?, &batch)?;
        out.push(format!("{kind:?} {:.3}", right(&answers)));
    }
    let sees = |mask| -> Result<f64> {
        let mut batch = data::probe(DocumentKind::Story, len, 4);
        batch.places.mask = mask;
        let outcomes = ops::outcomes(&net.forward(&batch.ids, &batch.places)?, &batch.targets)?;
        let late = |i: usize| i % len >= len / 2;
        let nll = outcomes.iter().enumerate().filter(|(i, _)| late(*i)).map(|(_, o)| f64::from(o.nll));
        Ok(nll.sum::<f64>() / (outcomes.len() / 2) as f64)
    };
    out.push(format!("Story {:.3} nats", sees(attention::Mask::Causal)?));
    for sinks in [4, 0] {
        let mask = attention::Mask::Window { window: 64 - sinks, sinks };
        out.push(format!("window {} with {sinks} sinks {:.3}", 64 - sinks, sees(mask)?));
    }
    Ok(out.join(", "))
}
