//! `kvista bench`: how fast a model is fed and decoded on this machine, and what watching it costs.

use std::io::{self, Write};
use std::sync::Arc;
use std::time::Instant;

use serde_json::{Value, json};

use super::args::BenchArgs;
use super::json::print_facts;
use super::loading::Loading;
use super::setup::{self, ModelSource, failure, usual_block_size};
use super::{Failure, output};
use crate::device::Isa;
use crate::device::memory::free_bytes;
use crate::engine::{Engine, Feed, Item, Observe, Prompt};
use crate::event::Settings;
use crate::model::{Model, demo};
use crate::probe::Receiver;
use crate::ui::text;
use crate::ui::theme::Symbols;

/// Levels of the probe as they are printed, the one that the others are held against first.
const LEVELS: [(&str, Observe); 3] =
    [("off", Observe::Off), ("events", Observe::Events), ("rows", Observe::Rows)];
/// Contexts that are tried where none is named; those that the model has.
const CONTEXTS: [u32; 3] = [256, 1024, 4096];
/// Words of a prompt that any vocabulary has tokens for.
const WORDS: [&str; 8] = ["the", "small", "house", "by", "a", "river", "was", "old"];
/// Items between the engine and whoever listens.
const RING: usize = 4_096;

/// What one context came to.
struct Measured {
    tokens: u32,
    /// Not where the context was filled, nor of a batch, whose sequences share their prompt's pages.
    prefill_tokens_per_s: Option<f64>,
    /// By level, tokens per second of the median step, all sequences together.
    decode_tokens_per_s: [f64; LEVELS.len()],
    /// By level, the median of the ratios of a step to the unobserved one beside it.
    step_over_off: [f64; LEVELS.len()],
}

/// Runs the verb.
pub(super) fn bench(args: &BenchArgs) -> Result<(), Failure> {
    let threads = setup::threads(args.threads)?;
    let source = ModelSource::of(args.model.as_deref());
    let weights = args.weights.as_deref().map(setup::precision).transpose()?;
    let mut loading = Loading::new(&Arc::default());
    let model = source.load(weights, &mut |progress| loading.hear(progress));
    loading.end();
    let model = Arc::new(model.map_err(|error| failure(&error))?);
    let contexts = contexts(args, &model)?;
    let (device, _) = setup::device_of(&args.device)?;
    let card = model.decoder.card();
    let machine = json!({
        "device": device,
        "instructions": Isa::best().to_string(),
        "threads": threads,
        "cores": std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
    });
    let mut found = Vec::new();
    if !args.json {
        let name = text::safe(card.name.as_bytes(), Symbols::Ascii);
        print_line(&format!(
            "{name}: {} layers, {} heads over {} KV heads of {}; {} weights, {} pages{}; {device}, {}, {threads} threads of {} cores",
            card.layers,
            card.heads,
            card.kv_heads,
            card.head_dim,
            card.weights,
            args.kv_dtype,
            args.read.as_ref().map_or(String::new(), |read| format!(", read set {read}")),
            Isa::best(),
            machine["cores"],
        ))?;
        let batch = match args.batch.get() {
            1 => String::new(),
            n => format!(" of {n} sequences together"),
        };
        print_line(&format!(
            "tokens/s{batch}, measured; with the probe, over steps without it in turns with them:"
        ))?;
        print_line("   context   prefill   decode off        events          rows")?;
    }
    for context in contexts {
        let measured = measure(args, &model, &source, &device, context)?;
        if !args.json {
            let [off, events, rows] = measured.decode_tokens_per_s;
            let [_, with_events, with_rows] = measured.step_over_off;
            let prefill = measured.prefill_tokens_per_s.map_or("-".into(), |n| format!("{n:.1}"));
            print_line(&format!(
                "{:>10} {prefill:>9} {off:>12.1} {events:>9.1} {with_events:>5.3} {rows:>7.1} {with_rows:>5.3}",
                measured.tokens
            ))?;
        }
        found.push(facts(&measured));
    }
    if args.json {
        print_facts(&json!({ "bench": {
            "model": card, "machine": machine, "kv_dtype": args.kv_dtype, "read": args.read, "chunk": args.chunk,
            "batch": args.batch, "filled": args.filled,
            "steps": args.steps, "contexts": found,
        }}))?;
    }
    Ok(())
}

fn print_line(line: &str) -> Result<(), Failure> {
    writeln!(io::stdout(), "{line}").map_err(|error| output(&error))
}

fn facts(measured: &Measured) -> Value {
    let by_level = |values: &[f64; LEVELS.len()]| -> Value {
        LEVELS.iter().zip(values).map(|((name, _), value)| ((*name).to_owned(), json!(value))).collect()
    };
    json!({
        "tokens": measured.tokens,
        "prefill_tokens_per_s": measured.prefill_tokens_per_s,
        "decode_tokens_per_s": by_level(&measured.decode_tokens_per_s),
        "step_over_off": by_level(&measured.step_over_off),
    })
}

/// The contexts asked for, or the usual ones that leave room for the steps.
fn contexts(args: &BenchArgs, model: &Model) -> Result<Vec<u32>, Failure> {
    let steps = (args.steps.get().saturating_mul(LEVELS.len() as u32)).saturating_add(1);
    let card = model.decoder.card();
    let most = card.context.saturating_sub(steps);
    if let Some(long) = args.context.iter().map(|n| n.get()).find(|&n| n > most) {
        return Err(Failure::Input(format!(
            "--context {long}: with {steps} steps after it the context of model '{}', {}, holds at most {most}",
            card.name, card.context
        )));
    }
    if !args.context.is_empty() {
        return Ok(args.context.iter().map(|n| n.get()).collect());
    }
    let usual: Vec<u32> = CONTEXTS.into_iter().filter(|&n| n <= most).collect();
    if usual.is_empty() {
        return Err(Failure::Input(format!(
            "the context of model '{}', {}, is short: give --context and fewer --steps",
            card.name, card.context
        )));
    }
    Ok(usual)
}

/// A prompt of about so many tokens: how many it has is counted.
fn prompt(model: &Model, source: &ModelSource, tokens: u32) -> Result<Prompt, Failure> {
    let tokens = tokens as usize;
    if *source == ModelSource::Demo {
        let (least, most) = demo::TOKEN_LIMITS;
        let text = demo::passkey(0, tokens.clamp(least, most), demo::DEPTH).context;
        return Ok(Prompt { text, ..Prompt::default() });
    }
    let text = |words: usize| {
        let words: Vec<&str> = WORDS.iter().copied().cycle().take(words).collect();
        words.join(" ")
    };
    let len = |words| model.tokenizer.encode(&text(words)).map(|ids| ids.len()).map_err(Failure::input);
    // The most words that are no more tokens than asked for; no tokenizer makes less than a token of eight words.
    let (mut low, mut high) = (0, tokens * 8);
    while low + 1 < high {
        let middle = low + (high - low) / 2;
        if len(middle)? <= tokens { low = middle } else { high = middle }
    }
    Ok(Prompt { text: text(low.max(1)), ..Prompt::default() })
}

/// The engine and the one who listens to it, as in a run.
struct Watched {
    engine: Engine,
    feed: Feed,
    listener: Receiver<Item>,
}

impl Watched {
    /// One step at a level, and what it took: with folding and handing on where it is observed.
    fn step_ns(&mut self, observe: Observe) -> Result<f64, Failure> {
        self.engine.set_observe(observe);
        let start = Instant::now();
        let step = self.engine.step().map_err(|error| failure(&error))?;
        let stepped = start.elapsed();
        let step = step.ok_or_else(|| Failure::Fault("the run ended before its last step".into()))?;
        self.feed.step(step).map_err(Failure::fault)?;
        let folded = start.elapsed();
        self.listener.drain().for_each(drop);
        Ok((if observe == Observe::Off { stepped } else { folded }).as_nanos() as f64)
    }
}

fn measure(
    args: &BenchArgs,
    model: &Arc<Model>,
    source: &ModelSource,
    device: &str,
    context: u32,
) -> Result<Measured, Failure> {
    let steps = args.steps.get() as usize;
    let settings = Settings {
        device: device.into(),
        batch: args.batch.get(),
        max_tokens: u32::MAX,
        ignore_eos: true,
        chunk: args.chunk.get(),
        kv_dtype: args.kv_dtype.clone(),
        block_size: usual_block_size(&args.kv_dtype),
        read: args.read.clone().unwrap_or_default(),
        ..Settings::default()
    };
    let prompt = prompt(model, source, context)?;
    let engine = Engine::new(Arc::clone(model), &settings, &prompt).map_err(|error| failure(&error))?;
    if let Some(free_bytes) = free_bytes() {
        engine.check_memory(free_bytes).map_err(|error| failure(&error))?;
    }
    let mut feed = Feed::default();
    let (_, listener) = feed.listen(RING);
    feed.begin(engine.info()).map_err(Failure::fault)?;
    let mut watched = Watched { engine, feed, listener };
    let tokens = watched.engine.info().prompt_tokens;

    if args.filled {
        let filled = watched.engine.fill(u64::from(context)).map_err(|error| failure(&error))?;
        watched.feed.step(filled).map_err(Failure::fault)?;
    }
    let mut prefill_ns = 0.0;
    while !watched.engine.is_decoding() {
        prefill_ns += watched.step_ns(Observe::Off)?;
    }
    let mut taken = [const { Vec::new() }; LEVELS.len()];
    // The first round warms up. Each later one has every level once, beginning with another each time.
    for round in 0..=steps {
        for turn in 0..LEVELS.len() {
            let level = (round + turn) % LEVELS.len();
            let ns = watched.step_ns(LEVELS[level].1)?;
            if round > 0 {
                taken[level].push(ns);
            }
        }
    }
    let sequences = f64::from(args.batch.get());
    let was_fed = !args.filled && args.batch.get() == 1;
    let ratios = |level: usize| taken[level].iter().zip(&taken[0]).map(|(with, off)| with / off).collect();
    Ok(Measured {
        tokens,
        prefill_tokens_per_s: was_fed.then(|| f64::from(tokens) / (prefill_ns / 1e9)),
        decode_tokens_per_s: std::array::from_fn(|level| sequences * 1e9 / median(taken[level].clone())),
        step_over_off: std::array::from_fn(|level| median(ratios(level))),
    })
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
