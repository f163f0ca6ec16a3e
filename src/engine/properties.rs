//! What holds for every shape, policy and setting: runs of small random models, checked from their steps alone where
//! that is possible.

mod ledger;
mod memory;
mod pages;
mod windows;

use std::collections::{BTreeMap, BTreeSet};
use std::io::Cursor;
use std::sync::Arc;

use proptest::prelude::*;
use proptest::sample::select;

use self::ledger::Ledger;
use super::lanes::rows_bytes;
use super::{Engine, EngineError, Prompt};
use crate::event::{Finish, Layer, ScoreLevel, SeqId, SeqStep, Settings, Stage, Step, Tier};
use crate::model::config::Arch;
use crate::model::{Config, Decoder, Model, Tokenizer};
use crate::policy::ReadRule;
use crate::state::State;
use crate::trace::{Recording, Writer};

/// More slots than any of these runs has tokens.
const PLENTY: u32 = 200;

/// Live-tunable parameters with values to try; those that the run's policy refuses are part of the test.
const TUNES: [(&str, &str); 14] = [
    ("budget", "3"),
    ("budget", "9"),
    ("budget", "40%"),
    ("budget", "100%"),
    ("recent", "0.25"),
    ("sinks", "1"),
    ("n", "2"),
    ("n", "7"),
    ("include_self", "false"),
    ("renorm", "true"),
    ("quest.budget", "3"),
    ("quest.budget", "40"),
    ("quest.min", "0"),
    ("m", "1"),
];

/// Everything that decides a run.
#[derive(Clone, Debug)]
struct Case {
    config: Config,
    weights: u64,
    prompt: Prompt,
    settings: Settings,
    /// (step, index into [`TUNES`]).
    tunes: Vec<(u64, usize)>,
}

impl Case {
    fn model(&self) -> Arc<Model> {
        let decoder = Decoder::random(self.config.clone(), self.weights).unwrap();
        let tokenizer = Tokenizer::bytes(&self.config).unwrap();
        Arc::new(Model::new(decoder, tokenizer))
    }

    fn engine(&self) -> Engine {
        Engine::new(self.model(), &self.settings, &self.prompt).unwrap()
    }

    fn with(&self, change: impl FnOnce(&mut Settings)) -> Self {
        let mut case = self.clone();
        change(&mut case.settings);
        case
    }

    fn policy(&self, policy: &str) -> Self {
        self.with(|s| policy.clone_into(&mut s.policy))
    }

    /// What the model said, all sequences, to the last bit.
    fn said(&self) -> Vec<Said> {
        let mut engine = self.engine();
        let mut said = Vec::new();
        while let Some(step) = engine.step().unwrap() {
            said.extend(step.seqs.iter().filter_map(Said::of));
        }
        said
    }

    /// Runs on, tuning on the way, and shows every step.
    fn run(&self, mut each: impl FnMut(&mut Engine, &Step)) -> Engine {
        let mut engine = self.engine();
        loop {
            for &(at, tune) in &self.tunes {
                if at == engine.step {
                    let (name, value) = TUNES[tune];
                    if let Err(error) = engine.tune(name, value) {
                        assert!(error.is_input(), "{error}");
                    }
                }
            }
            let Some(step) = engine.step().unwrap() else { return engine };
            each(&mut engine, &step);
        }
    }
}

/// One draw.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Said {
    seq: SeqId,
    id: u32,
    logprob_bits: u32,
    margin_bits: u32,
}

impl Said {
    fn of(part: &SeqStep) -> Option<Self> {
        part.sampled.as_ref().map(|s| Self {
            seq: part.seq,
            id: s.id,
            logprob_bits: s.logprob.to_bits(),
            margin_bits: s.margin.to_bits(),
        })
    }
}

fn shapes() -> impl Strategy<Value = Config> {
    (1..=3usize, 1..=4usize, 1..=8usize, 1..=8usize).prop_map(|(layers, group, kv_heads, half)| {
        let kv_heads = kv_heads.min(8 / group);
        shape(layers, group * kv_heads, kv_heads, 2 * half)
    })
}

/// The smallest model of bytes with so many layers and heads.
fn shape(layers: usize, heads: usize, kv_heads: usize, head_dim: usize) -> Config {
    Config {
        family: "llama".into(),
        hidden: 16,
        intermediate: 24,
        layers,
        heads,
        kv_heads,
        head_dim,
        vocab: 257,
        context: 128,
        rope_theta: 1e4,
        rms_norm_eps: 1e-5,
        tied: false,
        bos: Some(256),
        eos: Vec::new(),
        arch: Arch::default(),
    }
}

fn whens() -> impl Strategy<Value = &'static str> {
    select(vec!["prompt", "chunk"])
}

fn evictors() -> impl Strategy<Value = String> {
    let budget =
        || prop_oneof![(1..=40u32).prop_map(|n| n.to_string()), (5..=90u32).prop_map(|p| format!("{p}%"))];
    prop_oneof![
        (budget(), 0..=4u32, whens())
            .prop_map(|(b, r, w)| format!("h2o:budget={b},recent={},when={w}", f64::from(r) / 4.0)),
        (budget(), whens()).prop_map(|(b, w)| format!("tova:budget={b},when={w}")),
        (1..=30u32, 0..=4u32, any::<bool>(), whens()).prop_map(|(window, sinks, reposition, w)| {
            let budget = sinks + window;
            format!("streaming:budget={budget},sinks={sinks},reposition={reposition},when={w}")
        }),
        (12..=40u32, others()).prop_map(|(b, rule)| rule.replace("budget", &format!("budget={b}"))),
    ]
}

/// Every other rule, and compositions; `budget` stands for one of at least 12 slots.
fn others() -> impl Strategy<Value = &'static str> {
    select(vec![
        "h2o:budget,by=layer",
        "h2o:budget,by=page",
        "h2o:budget,variant=kvpress,when=chunk",
        "tova:budget,variant=kvpress,by=head",
        "random:budget",
        "random:budget,by=page",
        "lm-infinite:budget",
        "scissorhands:budget,recent=3,history=7",
        "snapkv:budget,window=4,kernel=3",
        "pyramidkv:budget,window=4,beta=4",
        "pyramidkv:budget,window=4,variant=kvpress,by=page",
        "keyformer:budget,when=chunk",
        "fastgen:budget",
        "roco:budget,newest=2",
        "buzz:budget",
        "nacl:budget,window=3",
        "knorm:budget,decode=true",
        "keydiff:budget,by=layer",
        "expected:budget,future=9",
        "d2o:budget",
        "h2o:budget+adakv",
        "knorm:budget,decode=true+adakv:floor=0",
        "snapkv:budget,window=4+kvcrush:group=4",
        "h2o:budget+kvcrush:group=1,variant=openvino",
        "keyformer:budget+kvcrush:group=2,variant=torch+adakv",
    ])
}

fn reads() -> impl Strategy<Value = String> {
    prop_oneof![2 => kcaches(), 1 => pages::quests()]
}

fn kcaches() -> impl Strategy<Value = String> {
    (1..=40u32, 0..=3u32, any::<bool>(), any::<bool>())
        .prop_map(|(n, l, renorm, own)| format!("kcache:n={n},l={l},renorm={renorm},include_self={own}"))
}

fn prompts() -> impl Strategy<Value = (Prompt, &'static str)> {
    ("[ -~]{1,44}", prop_oneof![Just(String::new()), "[ -~]{1,16}".prop_map(String::from)], any::<bool>())
        .prop_map(|(text, question, context)| {
            let compress = if !question.is_empty() && context { "context" } else { "prompt" };
            (Prompt { text, question, ..Prompt::default() }, compress)
        })
}

fn levels() -> impl Strategy<Value = ScoreLevel> {
    prop_oneof![
        Just(ScoreLevel::Off),
        Just(ScoreLevel::Blocks),
        (1..6u32).prop_map(ScoreLevel::Top),
        Just(ScoreLevel::Full)
    ]
}

/// A case under the full cache, one sequence, greedy.
fn cases() -> impl Strategy<Value = Case> {
    let settings = (
        1..=16u32,
        1..=32u32,
        select(vec!["f32", "f16", "int8"]),
        1..=28u32,
        levels(),
        select(vec![0.1, 0.4, 1.0]),
    );
    (shapes(), any::<u64>(), prompts(), settings).prop_map(|(config, weights, (prompt, compress), s)| Case {
        config,
        weights,
        prompt,
        settings: Settings {
            block_size: s.0,
            chunk: s.1,
            kv_dtype: s.2.into(),
            max_tokens: s.3,
            scores: s.4,
            compact: s.5,
            compress: compress.into(),
            ignore_eos: true,
            ..Settings::default()
        },
        tunes: Vec::new(),
    })
}

/// Any policy, read set, batch, sampler, and tuning on the way.
fn wild_cases() -> impl Strategy<Value = Case> {
    let policy = prop_oneof![1 => Just("full".to_owned()), 4 => evictors()];
    let read = prop_oneof![2 => Just(String::new()), 1 => reads()];
    let sampler = (1..=3u32, select(vec![0.0, 0.8]), any::<u64>(), select(vec![0, 0, 1, 3]));
    let tunes = prop::collection::vec((0..24u64, 0..TUNES.len()), 0..5);
    let kivi = vec!["int2", "int4", "int4:residual=64"];
    let nuq = vec!["nuq4", "nuq3:outliers=0,first=0,calibrate=32", "nuq2:outliers=0.1,first=3,calibrate=37"];
    let codes = prop_oneof![3 => Just(None), 1 => select([kivi, nuq].concat()).prop_map(Some)];
    let merge = prop_oneof![3 => Just(""), 1 => select(vec!["cam:m=3", "d2o", "minicache:from=0"])];
    (cases(), policy, read, sampler, tunes, codes, merge).prop_map(
        |(case, policy, read, (batch, temperature, seed, shadow), tunes, codes, merge)| {
            let pairs = merge.starts_with("minicache");
            let merges = codes.is_none() && if pairs { case.config.layers > 1 } else { policy != "full" };
            let mut case = case.with(|s| {
                (s.policy, s.read) = (policy, read);
                s.merge = if merges { merge.into() } else { String::new() };
                (s.batch, s.temperature, s.seed, s.shadow) = (batch, temperature, seed, shadow);
            });
            if let Some(dtype) = codes {
                case.config.head_dim = 32;
                let s = &mut case.settings;
                s.kv_dtype = dtype.into();
                if dtype.starts_with("int") {
                    s.block_size = 32;
                    // These keep keys after RoPE; pages that group them take no others.
                    s.policy = s
                        .policy
                        .replace("reposition=true", "reposition=false")
                        .replace("lm-infinite", "tova");
                } else if s.read.starts_with("quest") {
                    s.read = String::new();
                }
            }
            // Quest takes keys as they lie, and refuses policies that rotate them at read.
            if case.settings.read.starts_with("quest") && pages::keeps_keys_unrotated(&case.settings.policy) {
                case.settings.policy = "full".into();
                case.settings.merge.clear();
            }
            Case { tunes, ..case }
        },
    )
}

/// Bytes by tier against what the arenas hold and what the tables say, shared rows counted once.
fn check_tiers(engine: &Engine, step: &Step) {
    let cache = &engine.cache;
    let config = cache.config();
    let held = cache.held_bytes();
    let (mut live, mut stranded) = ([0u64; 2], [0u64; 2]);
    let mut rows = BTreeSet::new();
    for seq in 0..engine.sequences.len() as SeqId {
        for layer in 0..config.shape.layers {
            let v_tier = usize::from(config.v_on_host(layer));
            let memory = engine.read.as_ref().and_then(|read| read.rule().memory());
            let table = cache.table(seq, layer);
            for head in 0..table.heads() {
                let lane = table.lane(head);
                let (keys, values) = cache.pages(seq, layer, head);
                for (slot, &p) in lane.slots.iter().enumerate() {
                    let width = lane.block_size as usize;
                    let row = (lane.block(slot / width), slot % width);
                    let bytes = |pages| rows_bytes(pages, std::iter::once(slot));
                    let (k_bytes, v_bytes) = (bytes(&keys), bytes(&values));
                    let far = memory.is_some_and(|m| m.on_host(p, lane.slots.len() as u32));
                    let (k_tier, v_tier) = if far { (1, 1) } else { (0, v_tier) };
                    if p == crate::cache::HOLE {
                        stranded[k_tier] += k_bytes;
                        stranded[v_tier] += v_bytes;
                    } else if rows.insert(row) {
                        live[k_tier] += k_bytes;
                        live[v_tier] += v_bytes;
                    }
                }
            }
        }
    }
    assert_eq!(step.tiers.len(), 2);
    for (i, tier) in step.tiers.iter().enumerate() {
        assert_eq!(tier.tier, [Tier::Device, Tier::Host][i]);
        assert_eq!(tier.live_bytes, live[i], "{:?}", tier.tier);
        if engine.sequences.len() == 1 {
            assert_eq!(tier.stranded_bytes, stranded[i], "{:?}", tier.tier);
        }
        assert_eq!(tier.allocated_bytes() - tier.copies_bytes, held[i], "{:?}", tier.tier);
    }
    assert_eq!(step.tiers[0].copies_bytes, engine.staged_bytes);
    assert_eq!(step.tiers[1].copies_bytes, 0);
    assert!(engine.read.is_some() || engine.staged_bytes == 0);
}

/// Rows, bytes and mass of a read set.
fn check_traffic(engine: &Engine, step: &Step, evicts: bool) {
    let Some(read) = &engine.read else {
        assert!(step.traffic.is_empty() && step.seqs.iter().all(|s| s.dropped.is_empty()));
        return;
    };
    let kcache = match read.rule() {
        ReadRule::Kcache(kcache) => kcache,
        ReadRule::Quest(quest) => return pages::check(engine, step, quest, evicts),
        ReadRule::Infllm(infllm) => return memory::check(engine, step, infllm),
    };
    assert!(step.reads.is_empty());
    let config = engine.model.decoder.config();
    let dtype = engine.cache.config().dtype;
    let written_bytes = dtype.written_row_bytes(config.head_dim) as u64;
    let in_codes = matches!(dtype, crate::cache::KvDtype::Nuq(_));
    // A key and a value alike, but for the two f16 that only values have where thresholds come with the token.
    let settled_bytes = match dtype.token_bytes(config.head_dim, config.head_dim) / 2 {
        _ if in_codes => config.head_dim as u64 / 4,
        bytes => bytes,
    };
    // Codes, thresholds and count, and every element an outlier.
    let most_bytes = if in_codes { 5 * config.head_dim as u64 + 6 } else { written_bytes };
    let group = (config.heads / config.kv_heads) as u64;
    let adopted: usize =
        step.seqs.iter().map(|s| s.tables.iter().map(|t| t.adopted.len()).max().unwrap_or(0)).sum::<usize>()
            * engine.cache.config().block_size as usize;
    let computed = step.seqs.iter().map(|s| s.fed.len()).sum::<usize>() - adopted;
    let moved: BTreeMap<Layer, _> = step.traffic.iter().map(|t| (t.layer, t)).collect();
    for layer in 0..config.layers as Layer {
        if kcache.is_exempt(layer) {
            assert!(!moved.contains_key(&layer), "an exempt layer moves nothing");
            continue;
        }
        let Some(t) = moved.get(&layer) else {
            assert_eq!(computed, 0, "every token's V is pushed");
            continue;
        };
        let pushed = (computed * config.kv_heads) as u64;
        assert!((pushed * settled_bytes..=pushed * most_bytes).contains(&t.d2h_bytes));
        assert!(in_codes || t.d2h_bytes == pushed * written_bytes);
        assert!((t.rows * settled_bytes..=t.rows * most_bytes).contains(&t.h2d_bytes));
        assert!(t.reused_rows <= t.rows && t.rows <= t.asked_rows);
        assert_eq!(t.stall_ns, t.link_ns);
        if step.seqs.iter().all(|s| s.stage == Stage::Decode) {
            let most = step.seqs.len() as u64 * config.kv_heads as u64 * group * u64::from(kcache.n);
            assert!(t.rows <= most, "{} rows, at most {most}", t.rows);
        }
    }
    for part in step.seqs.iter().filter(|s| s.stage == Stage::Decode && !s.fed.is_empty()) {
        assert_eq!(part.dropped.len(), config.layers * config.kv_heads);
        for (l, &mass) in part.dropped.iter().enumerate() {
            assert!((0.0..=1.0).contains(&mass), "{mass}");
            let exempt = kcache.is_exempt((l / config.kv_heads) as Layer);
            let reads_all = !evicts && u64::from(kcache.n) > u64::from(part.first);
            assert!(!(exempt || reads_all) || mass == 0.0, "{mass} of a lane that is read whole");
        }
    }
}

/// What others share is copied before it moves, for which a full pool has no block.
#[test]
fn what_a_full_pool_cannot_compact_stays_as_it_is() {
    for (text, budget) in [("!AA", 22), ("a beginning of some length", 12)] {
        for blocks in 9..90 {
            let settings = Settings {
                policy: format!("streaming:budget={budget},sinks=3,when=prompt"),
                block_size: 4,
                blocks,
                blocks_given: true,
                chunk: 1,
                max_tokens: 24,
                ignore_eos: true,
                batch: 3,
                compact: 0.1,
                ..Settings::default()
            };
            let prompt = Prompt { text: text.into(), ..Prompt::default() };
            let case = Case { config: shape(1, 6, 3, 2), weights: 0, prompt, settings, tunes: Vec::new() };
            let Ok(mut engine) = Engine::new(case.model(), &case.settings, &case.prompt) else { continue };
            let mut ledger = Ledger::default();
            while let Some(step) = engine.step().unwrap() {
                ledger.enter(&engine, &step);
                check_tiers(&engine, &step);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_policy_with_room_for_everything_is_the_full_cache_to_the_bit(
        case in cases(), when in whens(), other in others(),
    ) {
        let full = case.policy("full").said();
        let mut names = vec![
            format!("h2o:budget={PLENTY},when={when}"),
            format!("tova:budget={PLENTY},when={when}"),
            format!("streaming:budget={PLENTY},reposition=false,when={when}"),
        ];
        // Keys kept before RoPE are rounded before they are rotated: with f16 pages that is another rounding.
        if case.settings.kv_dtype == "f32" {
            names.push(format!("streaming:budget={PLENTY},when={when}"));
        }
        // FastGen's mix loses what it does not name, and LM-Infinite keeps keys before RoPE.
        if !other.starts_with("fastgen") && !other.starts_with("lm-infinite") {
            names.push(other.replace("budget", &format!("budget={PLENTY}")));
        }
        for policy in &names {
            prop_assert_eq!(&case.policy(policy).said(), &full, "{}", policy);
        }
    }

    #[test]
    fn f16_keys_rotated_after_rounding_stay_near_those_rounded_after_rotation(case in cases()) {
        let case = case.with(|s| s.kv_dtype = "f16".into());
        let mut full = case.engine();
        while full.step().unwrap().is_some() {}
        let sequence = &full.sequences[0];
        let ids = sequence.fed[full.prompt.len()..].iter().copied().chain(sequence.pending).collect();
        let mut repositioned = case.policy(&format!("streaming:budget={PLENTY}")).engine();
        repositioned.witness.forced = ids;
        while repositioned.step().unwrap().is_some() {}
        prop_assert_eq!(full.witness.logits.len(), repositioned.witness.logits.len());
        for (a, b) in full.witness.logits.iter().zip(&repositioned.witness.logits) {
            for (a, b) in a.iter().zip(b) {
                prop_assert!((a - b).abs() < 0.05, "{} {}", a, b);
            }
        }
    }

    #[test]
    fn the_score_level_changes_nothing_that_is_said(case in cases(), policy in evictors(), read in reads()) {
        for case in [case.clone(), case.policy(&policy), case.with(|s| s.read = read)] {
            let off = case.with(|s| s.scores = ScoreLevel::Off).said();
            for level in [ScoreLevel::Blocks, ScoreLevel::Top(3), ScoreLevel::Full] {
                prop_assert_eq!(&case.with(|s| s.scores = level).said(), &off);
            }
        }
    }

    #[test]
    fn a_read_set_with_room_for_everything_is_the_full_cache_to_the_bit(case in cases(), own in any::<bool>()) {
        let full = case.said();
        for l in 0..=case.config.layers {
            let read = format!("kcache:n={PLENTY},l={l},include_self={own}");
            prop_assert_eq!(&case.with(|s| s.read.clone_from(&read)).said(), &full, "{}", read);
        }
        for page in [1, 3, 16, 300] {
            let read = format!("quest:budget={PLENTY},page={page},dense=0,min={}", u32::from(own));
            prop_assert_eq!(&case.with(|s| s.read.clone_from(&read)).said(), &full, "{}", read);
        }
    }

    #[test]
    fn every_row_and_byte_is_accounted_for(case in windows::wild_cases()) {
        let mut ledger = Ledger::default();
        let mut evicted = false;
        let engine = case.run(|engine, step| {
            evicted |= step.victims() > 0;
            ledger.enter(engine, step);
            check_tiers(engine, step);
            check_traffic(engine, step, evicted);
        });
        for s in &engine.sequences {
            prop_assert_eq!(s.finish, Some(Finish::MaxTokens));
            prop_assert_eq!(s.fed.len() + 1, engine.prompt.len() + case.settings.max_tokens as usize);
        }
    }

    #[test]
    fn what_is_folded_live_is_what_is_folded_from_the_file(case in windows::wild_cases(), every in 2..9u64) {
        let mut live: Option<State> = None;
        let mut states = Vec::new();
        let mut file = Cursor::new(Vec::new());
        let mut writer: Option<Writer<&mut Cursor<Vec<u8>>>> = None;
        let info = Arc::clone(case.engine().info());
        let mut slot = Some(&mut file);
        case.run(|engine, step| {
            let writer = writer.get_or_insert_with(|| {
                Writer::new("memory", slot.take().unwrap(), engine.info()).unwrap()
            });
            let live = live.get_or_insert_with(|| State::new(Arc::clone(engine.info())).unwrap());
            live.fold(step).unwrap();
            writer.step(step).unwrap();
            if step.step % every == 0 {
                writer.keyframe(step.step, live.at_ns, &live.keyframe()).unwrap();
            }
            states.push((step.clone(), live.clone()));
        });
        writer.unwrap().finish().unwrap();

        let recording = Recording::from_bytes("memory", file.into_inner()).unwrap();
        prop_assert!(recording.complete());
        prop_assert_eq!(recording.run().settings.clone(), info.settings.clone());
        let run = Arc::new(recording.run().clone());
        let mut replayed = State::new(Arc::clone(&run)).unwrap();
        let mut resumed: Option<State> = None;
        for (step, (sent, live)) in recording.read(0..u64::MAX).zip(&states) {
            let step = step.unwrap();
            prop_assert_eq!(&step, sent);
            replayed.fold(&step).unwrap();
            prop_assert_eq!(replayed.hash, live.hash);
            prop_assert!(replayed == *live, "step {}", step.step);
            if let Some(resumed) = &mut resumed {
                resumed.fold(&step).unwrap();
                prop_assert!(resumed == live, "step {} from a keyframe", step.step);
            }
            if step.step % every == 0 {
                let (at, bytes) = recording.keyframe_at_or_before(step.step).unwrap().unwrap();
                prop_assert_eq!(at, step.step);
                let state = State::from_keyframe(Arc::clone(&run), &bytes).unwrap();
                prop_assert!(state == *live, "keyframe of step {}", step.step);
                if step.step % (2 * every) == 0 {
                    resumed = Some(state);
                }
            }
        }
        prop_assert_eq!(replayed.step, states.last().map(|(step, _)| step.step));

        let mut again = State::new(info).unwrap();
        let mut hashes = states.iter().map(|(_, state)| state.hash);
        case.run(|_, step| {
            again.fold(step).unwrap();
            assert_eq!(Some(again.hash), hashes.next(), "the same seed and tuning, step {}", step.step);
        });
        prop_assert_eq!(hashes.next(), None);
    }

    #[test]
    fn a_pool_that_is_too_small_is_an_end_not_a_fault(case in windows::wild_cases(), blocks in 1..60u32) {
        let case = case.with(|s| (s.blocks, s.blocks_given) = (blocks, true));
        let mut engine = match Engine::new(case.model(), &case.settings, &case.prompt) {
            Ok(engine) => engine,
            Err(error) => {
                prop_assert!(matches!(error, EngineError::Cache(_)), "{}", error);
                return Ok(());
            }
        };
        let mut state = State::new(Arc::clone(engine.info())).unwrap();
        let mut ledger = Ledger::default();
        while let Some(step) = engine.step().unwrap() {
            state.fold(&step).unwrap();
            ledger.enter(&engine, &step);
            check_tiers(&engine, &step);
            prop_assert!(step.step < 4 * 96, "it comes to an end");
        }
        for s in &state.seqs {
            prop_assert!(matches!(s.finish, Some(Finish::PoolExhausted | Finish::MaxTokens)));
            let whole = engine.prompt.len() + case.settings.max_tokens as usize - 1;
            prop_assert_eq!(s.finish == Some(Finish::MaxTokens), s.tokens.len() == whole);
        }
    }

    #[test]
    fn sequences_that_share_a_prefix_say_what_one_alone_says(case in cases(), batch in 2..=3u32, read in reads()) {
        // Products of more rows round in another order; where two tokens are that near, either may be drawn. Codes make
        // a whole step of such a difference where it falls on an edge between two.
        let coded = case.settings.kv_dtype == "int8";
        let near = if coded { 0.05 } else { 1e-3 };
        let alone = case.said();
        let case = case.with(|s| s.batch = batch);
        let together = case.said();
        for seq in 0..batch {
            let said: Vec<_> = together.iter().filter(|s| s.seq == seq).collect();
            prop_assert_eq!(said.len(), alone.len());
            for (a, b) in alone.iter().zip(said) {
                if f32::from_bits(a.margin_bits) < near {
                    break;
                }
                prop_assert_eq!(a.id, b.id);
            }
        }
        // The first shares whole blocks of what is compressed, all but the last token of it; none where they are codes.
        let engine = case.engine();
        let width = case.settings.block_size as usize;
        let shared = if coded { 0 } else { (engine.prompt.len() - 1).min(engine.context_len) / width };
        for case in [case.clone(), case.with(|s| s.read = read)] {
            let mut adopted = vec![0; batch as usize];
            case.run(|engine, step| {
                check_tiers(engine, step);
                for part in &step.seqs {
                    adopted[part.seq as usize] += part.tables.first().map_or(0, |t| t.adopted.len());
                }
            });
            prop_assert_eq!(adopted[0], 0);
            prop_assert!(adopted[1..].iter().all(|&n| n == shared), "{:?} of {}", adopted, shared);
        }
    }
}

#[test]
fn seeds_tell_sequences_of_a_batch_apart() {
    let case = Case {
        config: shape(2, 4, 2, 8),
        weights: 1,
        prompt: Prompt { text: "one prompt for all three of them".into(), ..Prompt::default() },
        settings: Settings { batch: 3, temperature: 1.0, max_tokens: 24, ..Settings::default() },
        tunes: Vec::new(),
    };
    let ids = |said: &[Said], seq| said.iter().filter(|s| s.seq == seq).map(|s| s.id).collect::<Vec<_>>();
    let said = case.said();
    assert_eq!(said, case.said());
    assert_ne!(ids(&said, 0), ids(&said, 1));
    assert_ne!(ids(&said, 1), ids(&said, 2));
    let other = case.with(|s| s.seed = 7).said();
    assert_ne!(ids(&said, 0), ids(&other, 0));
}
