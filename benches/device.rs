//! KCache against the full cache on a GPU, and what clocking the phases costs there; `.ci/gpu` runs it, and what it prints
//! are tables for `kernels/RESULTS.md`.
//!
//! The models have the shapes of Llama 2 7B and Llama 3 8B with made-up f16 weights ([`Decoder::repeating`]) and f16 pages;
//! contexts are filled with rows of chance ([`Engine::fill`]), then decoded a token at a time. Either side gets as many
//! sequences as its budget holds: K and V on the device, or K there and V in page-locked memory of the host. Steps that
//! observe nothing take turns with steps that observe events, every 32nd of which is clocked; told are medians with 95 %
//! intervals. Engines follow each other, since two do not fit: the full cache is measured before and after, and a ratio's
//! interval is that of the two medians' ends. All of a run's steps lie in the last block of the context, so that no pool
//! grows.
//!
//! Derived: the bound of a step is what it has to read, weights and pages over the device's bandwidth and pulled rows over
//! the link's, whichever takes longer. Both speeds are those of copies, measured first; a copy's bandwidth counts bytes read
//! and written, and a kernel that only reads may pass it.
//!
//! `KVISTA_BENCH_SHAPES` (`llama2-7b,llama3-8b`), `KVISTA_BENCH_CONTEXTS` (`16384,32768,65536`), `KVISTA_BENCH_N`
//! (`32,64,128`), `KVISTA_BENCH_L` (`0,1`), `KVISTA_BENCH_GIB` (64) and `KVISTA_BENCH_HOST_GIB` (64), `KVISTA_BENCH_BLOCK`
//! (256), `KVISTA_BENCH_STEPS` (32 of either kind per cell), `KVISTA_BENCH_SECONDS` (10, most per cell),
//! `KVISTA_BENCH_CYCLES` (12 of 32 steps for the clock; 0 for none), `KVISTA_BENCH_PULL` (`auto`) and
//! `KVISTA_BENCH_MINUTES` (9: no engine is made after that) choose what is measured. With `KVISTA_BENCH_DRY` nothing is:
//! cells, batches and bounds are printed, at `KVISTA_BENCH_RATES` (`4300,50`, GB/s of device and link). With
//! `KVISTA_BENCH_DEVICE=cpu` and the shape `small` the measurement itself is tried without a GPU.

#[path = "device/derived.rs"]
mod derived;
#[path = "common/median.rs"]
mod median;

use std::env;
use std::error::Error;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kvista::device::driver::Driver;
use kvista::engine::{Engine, Observe, Prompt};
use kvista::event::{Phase, Settings, Step};
use kvista::model::{Config, Decoder, Model, demo};

use derived::{Budget, Needs, Rates, SHAPES, Shape};
use median::median;

type Outcome<T> = Result<T, Box<dyn Error>>;

/// Steps of an engine before the clock counts: those of another N, and the first, which ends the prompt.
const WARM_UP: usize = 4;
/// From one step that is clocked to the next, as the engine has it.
const CYCLE: u64 = 32;
/// Largest block: the clock's run needs room for many steps.
const LARGEST_BLOCK: u64 = 1024;
/// Bytes copied to measure bandwidth.
const COPIED_BYTES: usize = 2 << 30;
const GIB: f64 = (1u64 << 30) as f64;

fn text(name: &str, usual: &str) -> String {
    env::var(name).unwrap_or_else(|_| usual.into())
}

fn numbers<T: std::str::FromStr>(name: &str, usual: &str) -> Outcome<Vec<T>> {
    let all = text(name, usual);
    let parts = all.split(',').map(str::trim).filter(|part| !part.is_empty());
    parts.map(|part| part.parse().map_err(|_| format!("{name}: {part} is no number").into())).collect()
}

fn number<T: std::str::FromStr>(name: &str, usual: &str) -> Outcome<T> {
    numbers(name, usual)?.pop().ok_or_else(|| format!("{name} is empty").into())
}

/// What is asked for.
struct Asked {
    device: String,
    shapes: Vec<Shape>,
    contexts: Vec<u64>,
    n: Vec<u64>,
    exempt: Vec<u64>,
    budget: Budget,
    block_size: u64,
    steps: usize,
    most: Duration,
    cycles: usize,
    pull: String,
    end: Instant,
    dry: bool,
}

impl Asked {
    fn read() -> Outcome<Self> {
        let bytes = |name: &str| number::<f64>(name, "64").map(|gib| (gib * GIB) as u64);
        let minutes: f64 = number("KVISTA_BENCH_MINUTES", "9")?;
        let named = text("KVISTA_BENCH_SHAPES", "llama2-7b,llama3-8b");
        let shape = |name: &str| SHAPES.into_iter().find(|shape| shape.name == name);
        let shapes =
            named.split(',').map(|name| shape(name.trim()).ok_or_else(|| format!("no shape {name}")));
        let asked = Self {
            device: text("KVISTA_BENCH_DEVICE", "cuda:0"),
            shapes: shapes.collect::<Result<_, _>>()?,
            contexts: numbers("KVISTA_BENCH_CONTEXTS", "16384,32768,65536")?,
            n: numbers("KVISTA_BENCH_N", "32,64,128")?,
            exempt: numbers("KVISTA_BENCH_L", "0,1")?,
            budget: Budget { device: bytes("KVISTA_BENCH_GIB")?, host: bytes("KVISTA_BENCH_HOST_GIB")? },
            block_size: number("KVISTA_BENCH_BLOCK", "256")?,
            steps: number("KVISTA_BENCH_STEPS", "32")?,
            most: Duration::from_secs_f64(number("KVISTA_BENCH_SECONDS", "10")?),
            cycles: number("KVISTA_BENCH_CYCLES", "12")?,
            pull: text("KVISTA_BENCH_PULL", "auto"),
            end: Instant::now() + Duration::from_secs_f64(60.0 * minutes),
            dry: env::var_os("KVISTA_BENCH_DRY").is_some(),
        };
        let size = asked.block_size.max(1);
        if let Some(odd) = asked.contexts.iter().find(|&&n| n < 2 * size || !n.is_multiple_of(size)) {
            return Err(format!("a context of {odd} tokens is no two or more whole blocks of {size}").into());
        }
        let steps = 1 + asked.n.len().max(1) * (WARM_UP + 2 * asked.steps);
        if steps as u64 >= asked.block_size {
            return Err(format!("{steps} steps do not lie in a block of {}", asked.block_size).into());
        }
        Ok(asked)
    }
}

/// One engine: what it reads, and how many sequences of a context it has.
#[derive(Clone, Copy)]
struct Cell {
    shape: Shape,
    /// Layers that are exempt from KCache; none of the full cache.
    exempt: Option<u64>,
    context: u64,
    batch: u64,
    block_size: u64,
}

impl Cell {
    /// Of a step in the middle of the last block.
    fn needs(&self, link_bytes: u64) -> Needs {
        let context = self.context - self.block_size / 2;
        Needs::new(&self.shape, self.exempt, self.batch, context, link_bytes)
    }

    /// What a step of it reads, as the command line spells it.
    fn read(&self, n: u64) -> String {
        self.exempt.map_or_else(String::new, |l| format!("kcache:n={n},l={l}"))
    }
}

/// Times of steps in ns, by what they observed, and what they told.
#[derive(Default)]
struct Times {
    off: Vec<f64>,
    events: Vec<f64>,
    clocked: Vec<f64>,
    /// Bytes from host to device of every step that told them.
    pulled_bytes: Vec<f64>,
    /// Per phase, the ns of every clocked step.
    phases: Vec<(Phase, Vec<f64>)>,
}

impl Times {
    fn take(&mut self, step: &Step, ns: f64, observe: Observe) {
        if observe == Observe::Off {
            return self.off.push(ns);
        }
        self.pulled_bytes.push(step.traffic.iter().map(|layer| layer.h2d_bytes).sum::<u64>() as f64);
        if step.layer_ns.is_empty() {
            return self.events.push(ns);
        }
        self.clocked.push(ns);
        if self.phases.is_empty() {
            self.phases = Phase::ALL.map(|phase| (phase, Vec::new())).into();
        }
        for (phase, ns) in &mut self.phases {
            ns.push(step.phase_ns(*phase) as f64);
        }
    }

    /// Where the time of a clocked step goes, in ms.
    fn by_phase(&self) -> String {
        let medians = self.phases.iter().map(|(phase, ns)| (phase, middle(ns).0 / 1e6));
        let told: Vec<String> =
            medians.filter(|(_, ms)| *ms >= 0.005).map(|(phase, ms)| format!("{phase:?} {ms:.2}")).collect();
        if told.is_empty() { "none was clocked".into() } else { told.join(", ") }
    }
}

/// [`median`] of what may be nothing.
fn middle(values: &[f64]) -> (f64, f64, f64) {
    if values.is_empty() { (f64::NAN, f64::NAN, f64::NAN) } else { median(values.to_vec()) }
}

/// An engine with a filled context.
struct Runner {
    engine: Engine,
    /// The step that comes next.
    next: u64,
}

impl Runner {
    /// One whose context fills all but the last block, and one row of that.
    fn filled(model: &Arc<Model>, cell: Cell, n: u64, asked: &Asked) -> Outcome<Self> {
        let Cell { shape, context, batch, block_size, .. } = cell;
        let settings = Settings {
            device: asked.device.clone(),
            read: cell.read(n),
            kv_dtype: "f16".into(),
            block_size: block_size as u32,
            blocks: u32::try_from(shape.blocks(batch, context, block_size))?,
            blocks_given: true,
            batch: batch as u32,
            pull: asked.pull.clone(),
            max_tokens: 1 << 16,
            ignore_eos: true,
            ..Settings::default()
        };
        // What goes before the text is tokens too; each digit is one.
        let tokens = (context - block_size + 2) as usize;
        let before = model.tokenizer.encode("7")?.len() - 1;
        let prompt = Prompt { text: "7".repeat(tokens - before), ..Prompt::default() };
        let mut engine = Engine::new(Arc::clone(model), &settings, &prompt)?;
        assert_eq!(engine.info().prompt_tokens as usize, tokens, "a token for each digit");
        engine.set_observe(Observe::Off);
        engine.fill(context)?;
        Ok(Self { engine, next: 1 })
    }

    /// A step that observes events if it is an even one, so that the clocked ones are among them.
    fn step(&mut self, times: &mut Times) -> Outcome<()> {
        let observe = if self.next.is_multiple_of(2) { Observe::Events } else { Observe::Off };
        self.engine.set_observe(observe);
        let start = Instant::now();
        let step = self.engine.step()?.ok_or("the sequences have ended")?;
        let ns = start.elapsed().as_nanos() as f64;
        if let Some(ended) = step.seqs.iter().find_map(|part| part.finish) {
            return Err(format!("a sequence has ended: {ended:?}").into());
        }
        self.next = step.step + 1;
        times.take(&step, ns, observe);
        Ok(())
    }

    /// Some steps of either kind, as many as are asked for unless they take too long.
    fn measure(&mut self, pairs: usize, most: Duration) -> Outcome<Times> {
        let mut unheard = Times::default();
        for _ in 0..WARM_UP {
            self.step(&mut unheard)?;
        }
        let (mut times, start) = (Times::default(), Instant::now());
        for pair in 0..pairs {
            if pair >= 3 && start.elapsed() > most {
                break;
            }
            self.step(&mut times)?;
            self.step(&mut times)?;
        }
        Ok(times)
    }
}

/// What all cells are compared with: the full cache's step in ms with its interval, and its sequences.
#[derive(Clone, Copy)]
struct Full {
    off: (f64, f64, f64),
    events: f64,
    batch: f64,
}

const HEAD: &str = "| context | sequences | reads | ms per step (95 %) | tokens/s | times full (95 %) | with events: ms, \
                    times full | pulled, MiB | bound, ms | of | share |\n|---|---|---|---|---|---|---|---|---|---|---|";

/// The line of a cell's table.
fn line(cell: Cell, reads: &str, times: &Times, full: Option<Full>, rates: Rates) -> (String, Full) {
    let ms = |values: &[f64]| {
        let (middle, low, high) = middle(values);
        (middle / 1e6, low / 1e6, high / 1e6)
    };
    let events: Vec<f64> = times.events.iter().chain(&times.clocked).copied().collect();
    let own = Full { off: ms(&times.off), events: ms(&events).0, batch: cell.batch as f64 };
    let pulled = if cell.exempt.is_some() { middle(&times.pulled_bytes).0 } else { 0.0 };
    let (bound, by_link) = cell.needs(pulled as u64).bound(rates);
    let full = full.unwrap_or(own);
    let more = own.batch / full.batch;
    let (middle, low, high) = own.off;
    let line = format!(
        "| {} | {} | {reads} | {middle:.2} ({low:.2} to {high:.2}) | {:.0} | {:.2} ({:.2} to {:.2}) | {:.2}, {:.2} | {:.0} | \
         {bound:.2} | {} | {:.0} % |",
        cell.context,
        cell.batch,
        1e3 * own.batch / middle,
        more * full.off.0 / middle,
        more * full.off.1 / high,
        more * full.off.2 / low,
        own.events,
        more * full.events / own.events,
        pulled / f64::from(1 << 20),
        if by_link { "link" } else { "device" },
        1e2 * bound / middle,
    );
    (line, own)
}

/// Whether there is time for another engine.
fn goes_on(asked: &Asked) -> bool {
    let is_time = Instant::now() < asked.end;
    if !is_time {
        println!("| left out: the time is up (KVISTA_BENCH_MINUTES) |");
    }
    is_time
}

/// The number of the GPU that is asked for.
fn ordinal(device: &str) -> usize {
    device.strip_prefix("cuda:").and_then(|n| n.parse().ok()).unwrap_or(0)
}

/// The device is done with what an engine gave back; where it fails, the next engine tells.
#[cfg(feature = "cuda")]
fn settle(asked: &Asked) {
    use kvista::device::cuda::Cuda;
    use kvista::device::gpu::Gpu;
    if asked.device != "cpu"
        && let Ok(cuda) = Cuda::open(ordinal(&asked.device))
    {
        let _ = cuda.wait();
    }
}

#[cfg(not(feature = "cuda"))]
const fn settle(_: &Asked) {}

/// One engine measured with every N; a line for each. What fails is told in the table, and the rest goes on.
fn cells(model: &Arc<Model>, cell: Cell, full: Option<Full>, rates: Rates, asked: &Asked) -> Option<Full> {
    if cell.batch == 0 {
        println!("| {} | 0 | {} | does not fit |", cell.context, cell.read(0));
        return None;
    }
    if !goes_on(asked) {
        return None;
    }
    let all = if cell.exempt.is_some() { &asked.n[..] } else { &[0][..] };
    let run = || -> Outcome<Option<Full>> {
        let start = Instant::now();
        let (mut runner, mut own) =
            (Runner::filled(model, cell, all.first().copied().unwrap_or(1), asked)?, None);
        eprintln!("{} tokens x {}: ready after {:.1?}", cell.context, cell.batch, start.elapsed());
        // The first step ends the prompt: of KCache it pulls every row.
        runner.step(&mut Times::default())?;
        for &n in all {
            if cell.exempt.is_some() {
                runner.engine.tune("n", &n.to_string())?;
            }
            let times = runner.measure(asked.steps, asked.most)?;
            let again = if full.is_some() { "full, again" } else { "full" };
            let reads = cell.exempt.map_or_else(|| again.into(), |l| format!("N = {n}, L = {l}"));
            let (line, told) = line(cell, &reads, &times, full, rates);
            println!("{line}");
            eprintln!("  {reads}: ms of a clocked step: {}", times.by_phase());
            own = Some(told);
        }
        Ok(own)
    };
    let own = run();
    settle(asked);
    own.unwrap_or_else(|error| {
        println!("| {} | {} | {} | failed: {error} |", cell.context, cell.batch, cell.read(0));
        None
    })
}

/// KCache against the full cache, each with its budget, then with as many sequences as the full cache has.
fn compare(model: &Arc<Model>, shape: Shape, rates: Rates, asked: &Asked) {
    let block_size = asked.block_size;
    println!("\n{HEAD}");
    let mut fulls = Vec::new();
    for &context in &asked.contexts {
        let of = |exempt| {
            let batch = asked.budget.batch(&shape, exempt, context);
            Cell { shape, exempt, context, batch, block_size }
        };
        let full = cells(model, of(None), None, rates, asked);
        for &l in &asked.exempt {
            cells(model, of(Some(l)), full, rates, asked);
        }
        if full.is_some() {
            cells(model, of(None), full, rates, asked);
        }
        fulls.push((context, full));
    }
    println!("\nAt equal batch:\n\n{HEAD}");
    for (context, full) in fulls {
        if let (Some(full), Some(&l)) = (full, asked.exempt.last()) {
            let cell = Cell { shape, exempt: Some(l), context, batch: full.batch as u64, block_size };
            cells(model, cell, Some(full), rates, asked);
        }
    }
}

/// What clocking costs: steps that observe nothing in turns with steps that do, one of 32 clocked.
fn clock(model: &Arc<Model>, shape: Shape, asked: &Asked) {
    println!(
        "\n| context | sequences | reads | ms, nothing observed (95 %) | ms, events | ms, clocked | clocked / not | events, \
         one in {CYCLE} clocked / nothing |\n|---|---|---|---|---|---|---|---|"
    );
    let Some(&context) = asked.contexts.first() else { return };
    let halves = |size: &u64| context.is_multiple_of(*size) && 2 * size <= context;
    let sizes = std::iter::successors(Some(LARGEST_BLOCK), |size| Some(size / 2).filter(|&size| size > 0));
    let Some(block_size) = sizes.into_iter().find(halves) else { return };
    let batch = asked.budget.batch(&shape, None, context);
    for (batch, exempt) in [(batch, None), (batch, Some(1)), (1, None), (1, Some(1))] {
        if batch == 0 || !goes_on(asked) {
            continue;
        }
        let cell = Cell { shape, exempt, context, batch, block_size };
        let run = || -> Outcome<Times> {
            let mut runner = Runner::filled(model, cell, 64, asked)?;
            runner.step(&mut Times::default())?;
            let room = (block_size as usize).saturating_sub(2 * WARM_UP) / 2;
            let times = runner.measure((asked.cycles * CYCLE as usize / 2).min(room), asked.most * 3)?;
            drop(runner);
            settle(asked);
            Ok(times)
        };
        let reads = exempt.map_or_else(|| "full".into(), |_| cell.read(64));
        match run() {
            Err(error) => println!("| {context} | {batch} | {reads} | failed: {error} |"),
            Ok(times) => {
                let (off, low, high) = middle(&times.off);
                let (events, clocked) = (middle(&times.events).0, middle(&times.clocked).0);
                let of_cycle = ((CYCLE - 1) as f64 * events + clocked) / CYCLE as f64;
                println!(
                    "| {context} | {batch} | {reads} | {:.3} ({:.3} to {:.3}) | {:.3} | {:.3} ({} steps) | {:.4} | {:.4} |",
                    off / 1e6,
                    low / 1e6,
                    high / 1e6,
                    events / 1e6,
                    clocked / 1e6,
                    times.clocked.len(),
                    clocked / events,
                    of_cycle / off
                );
            }
        }
    }
}

/// Cells, batches and bounds at given speeds.
fn dry(shape: Shape, rates: Rates, asked: &Asked) {
    println!(
        "\n| context | reads | sequences | equal batch | blocks | device, GiB | host, GiB | pulled at most, MiB | bound, ms \
         | of | tokens/s | times full | at equal batch |\n|---|---|---|---|---|---|---|---|---|---|---|---|---|"
    );
    for &context in &asked.contexts {
        let of = |exempt: Option<u64>, n: u64, batch: u64| {
            let cell = Cell { shape, exempt, context, batch, block_size: asked.block_size };
            let pulled = exempt.map_or(0, |l| shape.pulled_bytes(l, n, batch, context));
            let (ms, by_link) = cell.needs(pulled).bound(rates);
            (1e3 * batch as f64 / ms, ms, by_link, pulled)
        };
        let most = |exempt| asked.budget.batch(&shape, exempt, context);
        let full = most(None);
        let reads = asked.exempt.iter().flat_map(|&l| asked.n.iter().map(move |&n| (Some(l), n)));
        for (exempt, n) in std::iter::once((None, 0)).chain(reads) {
            let batch = most(exempt);
            let (rate, ms, by_link, pulled) = of(exempt, n, batch);
            println!(
                "| {context} | {} | {batch} | {full} | {} | {:.1} | {:.1} | {:.0} | {ms:.2} | {} | {rate:.0} | {:.2} | {:.2} |",
                exempt.map_or_else(|| "full".into(), |l| format!("N = {n}, L = {l}")),
                shape.blocks(batch, context, asked.block_size),
                (batch * context * shape.device_bytes(exempt)) as f64 / GIB,
                (batch * context * shape.host_bytes(exempt)) as f64 / GIB,
                pulled as f64 / f64::from(1 << 20),
                if by_link { "link" } else { "device" },
                rate / of(None, 0, full).0,
                of(exempt, n, full).0 / of(None, 0, full).0,
            );
        }
    }
}

/// What a program prints, in one line.
fn said(program: &str, args: &[&str]) -> Option<String> {
    let output = Command::new(program).args(args).output().ok().filter(|output| output.status.success())?;
    Some(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// Bandwidths: measured on the GPU that is asked for, else as given. Prints what was measured, where and when.
fn rates(asked: &Asked) -> Outcome<Rates> {
    let commit = env::var("KVISTA_COMMIT").ok().or_else(|| said("git", &["rev-parse", "--short", "HEAD"]));
    let date = said("date", &["-u", "+%Y-%m-%d %H:%M UTC"]);
    let [date, commit] = [date, commit].map(Option::unwrap_or_default);
    if asked.dry || asked.device == "cpu" {
        let [device, link] = numbers::<f64>("KVISTA_BENCH_RATES", "4300,50")?[..] else {
            return Err("KVISTA_BENCH_RATES: two numbers, GB/s of device and link".into());
        };
        println!(
            "{date}, commit {commit}. Device {device:.0} GB/s, link {link:.1} GB/s (given, not measured)."
        );
        return Ok(Rates { device: device * 1e9, link: link * 1e9 });
    }
    let driver = Driver::open()?;
    let gpus = driver.gpus()?;
    let gpu = gpus.get(ordinal(&asked.device)).ok_or("there is no such GPU")?;
    let memory = driver.measure(gpu, COPIED_BYTES)?;
    let (major, minor) = driver.cuda_version()?;
    println!(
        "{}, CUDA {major}.{minor} of the driver, {date}, commit {commit}. Copies of {} MiB (measured): within the device \
         {:.0} GB/s read and written, page-locked host to device {:.1} GB/s, device to host {:.1} GB/s. {:.1} of {:.1} GiB \
         free.",
        gpu.name,
        COPIED_BYTES >> 20,
        memory.d2d_bytes_per_s / 1e9,
        memory.h2d_bytes_per_s / 1e9,
        memory.d2h_bytes_per_s / 1e9,
        memory.free_bytes as f64 / GIB,
        memory.total_bytes as f64 / GIB,
    );
    Ok(Rates { device: memory.d2d_bytes_per_s, link: memory.h2d_bytes_per_s })
}

fn main() -> Outcome<()> {
    let asked = Asked::read()?;
    if !asked.dry && asked.device != "cpu" && !cfg!(feature = "cuda") {
        println!(
            "nothing measured: this build has no CUDA (--features cuda; .ci/gpu); KVISTA_BENCH_DRY=1 tells what would be"
        );
        return Ok(());
    }
    let rates = rates(&asked)?;
    println!(
        "Budget: {:.1} GiB on the device, {:.1} GiB of page-locked memory on the host; f16 weights and pages, blocks of {}. \
         Times and pulled bytes are measured, bounds derived.",
        asked.budget.device as f64 / GIB,
        asked.budget.host as f64 / GIB,
        asked.block_size
    );
    for &shape in &asked.shapes {
        println!("\n{}: {:.2} GiB of weights a step", shape.name, shape.weight_bytes() as f64 / GIB);
        if asked.dry {
            dry(shape, rates, &asked);
            continue;
        }
        if !goes_on(&asked) {
            break;
        }
        let start = Instant::now();
        let config = Config::parse(shape.name, shape.config().to_string().as_bytes())?;
        let decoder = Decoder::repeating(config, "f16".parse()?)?;
        // Ids beyond its words have no text, which nobody asks for.
        let model = Arc::new(Model::new(decoder, demo::load()?.tokenizer));
        eprintln!("{}: weights made in {:.1?}", shape.name, start.elapsed());
        compare(&model, shape, rates, &asked);
        // One shape tells what clocking costs.
        if asked.cycles > 0 && shape == asked.shapes[0] {
            clock(&model, shape, &asked);
        }
    }
    Ok(())
}
