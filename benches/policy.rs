//! What deciding costs, beside a decode step of the same shape in the same run.
//!
//! The shape is that of a 110M-parameter decoder (12 layers, 12 heads of 64), plain and with four query heads per KV head,
//! after a prompt of 4,096 tokens. Every evictor of the registry, AdaKV and the variants of KVCrush decide over made-up
//! attention, so that no model has to run for them:
//!
//! - `prompt`: at the end of the prompt, which is cut to a quarter.
//! - `step`: after each of many decoded tokens, with a quarter of the prompt resident; the mean, because a rule that keeps
//!   units whole decides once in several tokens.
//! - `step 4k`: the same with a budget as large as the prompt.
//!
//! The decode steps to which they are compared run the decoder with random weights: the whole prompt resident for
//! `step 4k`, a quarter of it for `step`. `own` is what wrappers add to H2O, as a share of the decode step. With
//! `KVISTA_BENCH_ENGINE=1` a last column says what one layer's policy phase takes in the engine with a quarter resident:
//! gathering what the rule reads, deciding and evicting.
//!
//! Every number is processor time, but for that column, the median by the wall's clock.
//!
//! Criterion's filter picks rows: `cargo bench --bench policy -- kvcrush`.

#[path = "common/median.rs"]
mod median;

use std::cell::RefCell;
use std::fmt::Write;
use std::hint::black_box;
use std::sync::Arc;
use std::time::Duration;

use criterion::Criterion;
use kvista::engine::{Engine, Observe, Prompt};
use kvista::event::{Phase, Position, Settings};
use kvista::model::config::Arch;
use kvista::model::{Config, Decoder, Model, Tokenizer};
use kvista::policy::registry::of_kind;
use kvista::policy::{
    Accumulators, HeadInputs, Kind, Moment, Policy, QueryMoments, Site, TokenClass, Verdict, When,
    parse_policy,
};
use rustix::time::{ClockId, Timespec, clock_gettime};

use median::median;

const CONTEXT: usize = 4_096;
const LAYERS: usize = 12;
const HEADS: usize = 12;
const HEAD_DIM: usize = 64;
/// Newest queries of the prompt whose rows the accumulators see, for those that need rows: the longest history by default.
const ROWS: usize = 400;
/// Most decode steps per sample: appending and evicting between them is not clocked, and takes longer than deciding.
const STEPS: u64 = 32;
/// Decode steps of the engine that are clocked.
const ENGINE_STEPS: usize = 48;

/// What this thread has computed so far. The wall's clock would count whoever else the machine works for.
fn computed() -> Duration {
    duration(clock_gettime(ClockId::ThreadCPUTime))
}

/// What all threads of this process have computed so far.
fn computed_by_all() -> Duration {
    duration(clock_gettime(ClockId::ProcessCPUTime))
}

fn duration(time: Timespec) -> Duration {
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// Numbers that look random: exponentially distributed, mean 1.
fn draw(n: u64) -> f32 {
    let mut x = n.wrapping_add(0x9e37_79b9_7f4a_7c15).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 31)).wrapping_mul(0x94d0_49bb_1331_11eb);
    -(((x >> 40) as f32 + 0.5) / (1u64 << 24) as f32).ln()
}

/// One (layer, KV head).
#[derive(Clone)]
struct Lane {
    seed: u64,
    positions: Vec<Position>,
    acc: Accumulators,
    keys: Vec<f32>,
    values: Vec<f32>,
}

impl Lane {
    fn new(policy: &Policy, layer: usize, head: usize) -> Self {
        let needs = policy.needs();
        let site = Site {
            seed: 0,
            layer: layer as u16,
            head: head as u16,
            span_len: CONTEXT as u32,
            prompt_len: CONTEXT as u32,
        };
        let seed = (layer * HEADS + head) as u64 * 1_000_003;
        let positions: Vec<Position> = (0..CONTEXT as Position).collect();
        let mut acc = Accumulators::at(needs, site);
        let sums: Vec<f32> = (0..CONTEXT).map(|i| draw(seed + i as u64)).collect();
        acc.observe_prefill(&positions, CONTEXT as u32, &sums, &row(seed, &positions));
        if needs.rows() {
            for query in CONTEXT - ROWS..CONTEXT {
                let seen = &positions[..=query];
                acc.observe_row(query as Position, seen, &row(seed + query as u64, seen));
            }
        }
        let rows = |wanted: bool, salt: u64| {
            let len = if wanted { CONTEXT * HEAD_DIM } else { 0 };
            (0..len).map(|i| draw(seed + salt + i as u64) - 1.0).collect()
        };
        Self { seed, acc, keys: rows(needs.keys, 7), values: rows(needs.values, 13), positions }
    }

    /// A token is generated, and its query has looked at the residents.
    fn append(&mut self, position: Position) {
        self.positions.push(position);
        for rows in [&mut self.keys, &mut self.values] {
            if !rows.is_empty() {
                rows.extend((0..HEAD_DIM).map(|i| draw(u64::from(position) + i as u64) - 1.0));
            }
        }
        let row = row(self.seed + u64::from(position), &self.positions);
        self.acc.observe_decode(&self.positions, &row);
    }

    fn evict(&mut self, victims: &[Position]) {
        let keep: Vec<bool> = self.positions.iter().map(|p| victims.binary_search(p).is_err()).collect();
        for rows in [&mut self.keys, &mut self.values] {
            let mut element = 0;
            rows.retain(|_| {
                element += 1;
                keep[(element - 1) / HEAD_DIM]
            });
        }
        let mut kept = keep.iter();
        self.positions.retain(|_| *kept.next().expect("one per position"));
    }
}

/// A row of attention: it sums to about one.
fn row(seed: u64, positions: &[Position]) -> Vec<f32> {
    positions.iter().map(|&p| draw(seed.wrapping_mul(31) + u64::from(p)) / positions.len() as f32).collect()
}

/// A sequence as a policy sees it.
struct Bed {
    policy: Policy,
    /// Layer by layer, head by head.
    lanes: Vec<Vec<Lane>>,
    /// Of one layer, by query head.
    queries: Vec<QueryMoments>,
    classes: Vec<TokenClass>,
    frequencies: Vec<f64>,
    fed: Position,
}

impl Bed {
    fn new(policy: &str, kv_heads: usize) -> Self {
        let policy = parse_policy(policy).expect("a policy of the registry");
        let needs = policy.needs();
        let moments = |head: usize| {
            let mut moments = QueryMoments::default();
            for token in 0..256 {
                let query: Vec<f32> =
                    (0..HEAD_DIM).map(|i| draw((head * 991 + token * 64 + i) as u64) - 1.0).collect();
                moments.observe(&query);
            }
            moments
        };
        Self {
            lanes: (0..LAYERS).map(|l| (0..kv_heads).map(|h| Lane::new(&policy, l, h)).collect()).collect(),
            queries: needs.queries.map_or_else(Vec::new, |_| (0..HEADS).map(moments).collect()),
            classes: if needs.classes { vec![TokenClass::Plain; CONTEXT] } else { Vec::new() },
            frequencies: (0..HEAD_DIM / 2).map(|i| 1e4f64.powf(-2.0 * i as f64 / HEAD_DIM as f64)).collect(),
            fed: CONTEXT as Position,
            policy,
        }
    }

    /// Decides in one layer: who is lost.
    fn decide(&self, layer: usize, when: When) -> Vec<Verdict> {
        let lanes = &self.lanes[layer];
        let group = self.queries.len() / lanes.len();
        let heads: Vec<_> = lanes
            .iter()
            .enumerate()
            .map(|(h, lane)| HeadInputs {
                keys: &lane.keys,
                values: &lane.values,
                classes: &self.classes,
                queries: &self.queries[h * group..][..group],
                frequencies: &self.frequencies,
                ..HeadInputs::new(&lane.positions, &lane.acc)
            })
            .collect();
        let moment = Moment {
            share: None,
            when,
            layer: layer as u16,
            layers: LAYERS as u16,
            prompt_len: CONTEXT as u32,
            span_len: CONTEXT as u32,
            next_position: self.fed,
            block_size: 16,
            step: u64::from(self.fed),
            seed: 0,
        };
        let mut out = Vec::new();
        self.policy.decide(&moment, &heads, &mut out);
        out
    }

    fn evict(&mut self, layer: usize, verdicts: &[Verdict]) {
        for verdict in verdicts {
            let lanes = &mut self.lanes[layer];
            match verdict.head {
                Some(head) => lanes[usize::from(head)].evict(&verdict.victims),
                None => lanes.iter_mut().for_each(|lane| lane.evict(&verdict.victims)),
            }
        }
    }

    /// The end of the prompt, in all layers.
    fn prompt(&mut self) {
        for layer in 0..LAYERS {
            let verdicts = self.decide(layer, When::EndOfPrompt);
            self.evict(layer, &verdicts);
        }
    }

    /// One token, in all layers: what deciding took.
    fn step(&mut self) -> Duration {
        let position = self.fed;
        self.fed += 1;
        if !self.classes.is_empty() {
            self.classes.push(TokenClass::Plain);
        }
        self.lanes.iter_mut().flatten().for_each(|lane| lane.append(position));
        let start = computed();
        let verdicts: Vec<_> = (0..LAYERS).map(|layer| self.decide(layer, When::Token)).collect();
        let took = computed().saturating_sub(start);
        for (layer, verdicts) in verdicts.iter().enumerate() {
            self.evict(layer, verdicts);
        }
        took
    }
}

/// The decoder with random weights, at the end of its prompt.
fn engine(layers: usize, kv_heads: usize, policy: &str) -> Engine {
    let config = Config {
        family: "llama".into(),
        hidden: HEADS * HEAD_DIM,
        intermediate: 2_048,
        layers,
        heads: HEADS,
        kv_heads,
        head_dim: HEAD_DIM,
        vocab: 512,
        context: CONTEXT + 2 * ENGINE_STEPS,
        rope_theta: 1e4,
        rms_norm_eps: 1e-5,
        tied: false,
        bos: Some(256),
        eos: Vec::new(),
        arch: Arch::default(),
    };
    let tokenizer = Tokenizer::bytes(&config).expect("257 ids and more");
    let decoder = Decoder::random(config, 1).expect("a shape that is supported");
    let settings = Settings {
        policy: policy.into(),
        max_tokens: 2 * ENGINE_STEPS as u32,
        ignore_eos: true,
        chunk: 512,
        ..Settings::default()
    };
    // BOS and the leading space are tokens too.
    let text: String = (2..CONTEXT).map(|i| char::from(b'a' + (i * 7 % 26) as u8)).collect();
    let prompt = Prompt { text, ..Prompt::default() };
    let mut engine = Engine::new(Arc::new(Model::new(decoder, tokenizer)), &settings, &prompt)
        .expect("they fit the model");
    engine.set_observe(Observe::Events);
    while !engine.is_decoding() {
        engine.step().expect("the engine goes on");
    }
    engine
}

/// The mean of the decode steps in microseconds: what all threads compute in a step, and its policy phase per layer.
fn decode(layers: usize, kv_heads: usize, policy: &str) -> (f64, f64) {
    let mut engine = engine(layers, kv_heads, policy);
    let mut deciding = Vec::new();
    let start = computed_by_all();
    for _ in 0..ENGINE_STEPS {
        let step = engine.step().expect("the engine goes on").expect("and is not finished");
        deciding.push(step.outer_ns[Phase::Policy as usize] as f64 / 1e3 / layers as f64);
    }
    let step = computed_by_all().saturating_sub(start).as_nanos() as f64 / 1e3 / ENGINE_STEPS as f64;
    (step, median(deciding).0)
}

/// What is clocked, spelled with `{}` for the budget.
fn rules() -> Vec<String> {
    let mut rules: Vec<String> = of_kind(Kind::Evict)
        .filter(|entry| entry.name != "full")
        .map(|entry| {
            let decodes = entry.params.iter().any(|param| param.name == "decode");
            format!("{}:budget={{}}{}", entry.name, if decodes { ",decode=true" } else { "" })
        })
        .collect();
    rules.push("h2o:budget={}+adakv".into());
    for variant in ["vllm", "openvino", "torch"] {
        for group in [1, 16] {
            rules.push(format!("h2o:budget={{}}+kvcrush:variant={variant},group={group}"));
        }
    }
    rules.push("h2o:budget={}+kvcrush:variant=vllm,group=1,anchor=mean".into());
    rules.push("h2o:budget={}+adakv+kvcrush:variant=vllm,group=16".into());
    rules
}

/// The rule as it is named in a row.
fn label(rule: &str) -> String {
    rule.replace(":budget={},", ":").replace(":budget={}", "")
}

/// What one layer's decision takes, by moment.
fn clock(criterion: &mut Criterion, kv_heads: usize, rule: &str) -> Row {
    let clocked = RefCell::new([Vec::new(), Vec::new(), Vec::new()]);
    let note = |column: usize, took: Duration, times: u64, layers: usize| {
        let us = took.as_nanos() as f64 / 1e3 / (times * layers as u64) as f64;
        clocked.borrow_mut()[column].push(us);
    };
    let name = |column: &str| format!("{kv_heads} KV heads/{} {column}", label(rule));
    let mut bed = None;
    criterion.bench_function(&name("prompt"), |b| {
        let bed = bed.get_or_insert_with(|| Bed::new(&rule.replace("{}", "25%"), kv_heads));
        b.iter_custom(|iterations| {
            let times = iterations.min(LAYERS as u64);
            let start = computed();
            (0..times as usize).for_each(|l| drop(black_box(bed.decide(l, When::EndOfPrompt))));
            let took = computed().saturating_sub(start);
            note(0, took, times, 1);
            took.mul_f64(iterations as f64 / times as f64)
        });
    });
    for (column, moment, budget) in [(1, "step", "25%"), (2, "step 4k", "4096")] {
        let mut bed = None;
        criterion.bench_function(&name(moment), |b| {
            let bed = bed.get_or_insert_with(|| {
                let mut bed = Bed::new(&rule.replace("{}", budget), kv_heads);
                bed.prompt();
                bed
            });
            b.iter_custom(|iterations| {
                let times = iterations.min(STEPS);
                let took: Duration = (0..times).map(|_| bed.step()).sum();
                note(column, took, times, LAYERS);
                took.mul_f64(iterations as f64 / times as f64)
            });
        });
    }
    clocked.into_inner().map(|us| if us.is_empty() { None } else { Some(median(us).0) })
}

/// Microseconds per layer: end of prompt, step, step at 4k. `None` where the filter left it out.
type Row = [Option<f64>; 3];

fn main() {
    let mut criterion = Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(100))
        .measurement_time(Duration::from_millis(300))
        .configure_from_args();
    for kv_heads in [HEADS, HEADS / 4] {
        let rows: Vec<(String, Row)> = rules()
            .into_iter()
            .map(|rule| {
                let row = clock(&mut criterion, kv_heads, &rule);
                (rule, row)
            })
            .filter(|(_, row)| row.iter().all(Option::is_some))
            .collect();
        if !rows.is_empty() {
            print!("{}", report(kv_heads, &rows));
        }
    }
    criterion.final_summary();
}

/// The table of one shape, with the decode steps clocked for it.
fn report(kv_heads: usize, rows: &[(String, Row)]) -> String {
    let quarter = decode(LAYERS, kv_heads, "streaming:budget=25%,reposition=false,when=prompt").0;
    let whole = decode(LAYERS, kv_heads, "full").0;
    let h2o = rows.iter().find(|(rule, _)| label(rule) == "h2o").map(|(_, row)| *row);
    let mut out = format!(
        "\n{LAYERS} layers, {HEADS} heads, {kv_heads} KV heads; a decode step computes for {:.1} ms with {CONTEXT} residents, {:.1} ms with \
         {}\nmicroseconds per layer, then of all layers as a share of the decode step\n\n{:44}{:>9}{:>9}{:>8}{:>8}{:>9}{:>8}{:>8}{:>9}\n",
        whole / 1e3,
        quarter / 1e3,
        CONTEXT / 4,
        "",
        "prompt",
        "step",
        "",
        "own",
        "step 4k",
        "",
        "own",
        "engine",
    );
    for (rule, row) in rows {
        let [prompt, step, step_4k] = row.map(|us| us.expect("such rows were left out"));
        let share = |us: f64, of: f64| 1e2 * us * LAYERS as f64 / of;
        let own = |column: usize, us: f64, of: f64| match h2o {
            Some(h2o) if rule.contains('+') => {
                format!("{:>7.3}%", share(us - h2o[column].expect("such rows were left out"), of))
            }
            _ => format!("{:>8}", ""),
        };
        let engine = match std::env::var("KVISTA_BENCH_ENGINE") {
            Ok(_) => format!("{:>9.1}", decode(1, kv_heads, &rule.replace("{}", "25%")).1),
            Err(_) => String::new(),
        };
        writeln!(
            out,
            "{:44}{prompt:>9.1}{step:>9.2}{:>7.3}%{}{step_4k:>9.2}{:>7.3}%{}{engine}",
            label(rule),
            share(step, quarter),
            own(1, step, quarter),
            share(step_4k, whole),
            own(2, step_4k, whole),
        )
        .expect("a string takes everything");
    }
    out
}
