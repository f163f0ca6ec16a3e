//! The whole engine on the emulated device: pages, attention and rotation by the kernels' own source, products with weights
//! by the tensor library. It must say what the processor says, to the letter. So must a GPU, where the tests run on one.

use std::sync::Arc;

use candle_core::Device;
use kvista::engine::backend::Backend;
use kvista::engine::{Engine, EngineError, Observe, Prompt, Said};
use kvista::event::{AttentionMap, Cells, Eviction, LayerCoding, Sampled, ScoreLevel, Settings, Step};
use kvista::model::config::{Activation, Arch};
use kvista::model::{Config, Decoder, Model, demo};
use serde::Deserialize;

use crate::device::{backend, is_real};
use crate::emulated::{self, Emulated};

#[derive(Deserialize)]
pub(crate) struct Golden {
    pub(crate) prompt_text: String,
    greedy_ids: Vec<u32>,
}

pub(crate) fn golden() -> (Arc<Model>, Golden) {
    let golden = serde_json::from_str(include_str!("../../src/model/demo/golden.json")).unwrap();
    (Arc::new(demo::load().unwrap()), golden)
}

/// The beginning of the golden text; longer where rows go into codes once they are old enough.
fn story(settings: &Settings) -> Prompt {
    let chars = if goes_into_codes_later(settings) { 560 } else { 260 };
    Prompt { text: golden().1.prompt_text.chars().take(chars).collect(), ..Prompt::default() }
}

fn goes_into_codes_later(settings: &Settings) -> bool {
    ["int4", "int2"].iter().any(|name| settings.kv_dtype.starts_with(name))
}

pub(crate) fn on_gpu(model: &Arc<Model>, settings: &Settings, prompt: &Prompt, schedule: u32) -> Engine {
    let settings = Settings { device: "cuda:0".into(), ..settings.clone() };
    Engine::on(backend(schedule), Arc::clone(model), &settings, prompt).unwrap()
}

pub(crate) fn steps(mut engine: Engine) -> Vec<Step> {
    let mut steps = Vec::new();
    while let Some(step) = engine.step().unwrap() {
        steps.push(step);
    }
    steps
}

fn drawn(steps: &[Step]) -> Vec<Sampled> {
    steps.iter().flat_map(|step| step.seqs.iter().filter_map(|part| part.sampled.clone())).collect()
}

fn ids(steps: &[Step]) -> Vec<u32> {
    drawn(steps).iter().map(|drawn| drawn.id).collect()
}

#[test]
fn the_demo_model_gives_its_reference_ids() {
    if !emulated::is_there() {
        return;
    }
    let (model, golden) = golden();
    let prompt = Prompt { text: golden.prompt_text.clone(), ..Prompt::default() };
    let settings = Settings { max_tokens: 128, ignore_eos: true, chunk: 64, ..Settings::default() };
    assert_eq!(ids(&steps(on_gpu(&model, &settings, &prompt, 0))), golden.greedy_ids);
}

/// Where the rows of a run on a GPU lie.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Rows {
    /// On the device alone.
    Stay,
    /// On the host too, where somebody reads them.
    OnHostToo,
}

/// Runs a story on both, and compares all that a step tells but times.
pub(crate) fn same(settings: &Settings, rows: Rows, what: &str) {
    same_with(&golden().0, settings, rows, what);
}

fn same_with(model: &Arc<Model>, settings: &Settings, rows: Rows, what: &str) {
    // Where rows come from the host, either queue may be the late one.
    let schedules = if rows == Rows::Stay && !settings.read.is_empty() { 2 } else { 1 };
    for schedule in 0..schedules {
        same_under(schedule, model, settings, rows, what);
    }
}

fn same_under(schedule: u32, model: &Arc<Model>, settings: &Settings, rows: Rows, what: &str) {
    let prompt = story(settings);
    let settings = Settings { max_tokens: 12, ignore_eos: true, chunk: 48, ..settings.clone() };
    let own = steps(Engine::new(Arc::clone(model), &settings, &prompt).unwrap());
    let gpu = steps(on_gpu(model, &settings, &prompt, schedule));
    assert_eq!(ids(&gpu), ids(&own), "{what}");
    // Whether CaM merges a row is drawn, by a chance that is off by a rounding.
    let bound = if settings.merge.is_empty() { 2e-3 } else { 2e-2 };
    for (gpu, own) in drawn(&gpu).iter().zip(drawn(&own)) {
        assert!((gpu.logprob - own.logprob).abs() < bound, "{what}: {} {}", gpu.logprob, own.logprob);
    }
    for (gpu, own) in gpu.iter().zip(&own) {
        for (gpu, own) in gpu.seqs.iter().zip(&own.seqs) {
            assert_eq!(gpu.tables, own.tables, "{what}");
            assert_eq!(gpu.resident, own.resident, "{what}");
            same_decisions(&gpu.evictions, &own.evictions, what);
            assert_eq!(gpu.crush, own.crush, "{what}");
            assert_eq!(gpu.attention.is_some(), own.attention.is_some(), "{what}");
            if let (Some(gpu), Some(own)) = (&gpu.attention, &own.attention) {
                same_pictures(gpu, own, what);
            }
            assert_eq!(gpu.dropped.len(), own.dropped.len(), "{what}");
            for (gpu, own) in gpu.dropped.iter().zip(&own.dropped) {
                assert!((gpu - own).abs() < 1e-3, "{what}: {gpu} {own}");
            }
        }
        same_coding(&gpu.coding, &own.coding, what);
        assert_eq!(gpu.traffic.len(), own.traffic.len(), "{what}");
        let config = model.decoder.config();
        let tokens: usize = own.seqs.iter().map(|part| part.fed.len()).sum();
        for (gpu, own) in gpu.traffic.iter().zip(&own.traffic) {
            assert_eq!((gpu.layer, gpu.d2h_bytes), (own.layer, own.d2h_bytes), "{what}");
            if rows == Rows::OnHostToo {
                assert_eq!((gpu.h2d_bytes, gpu.asked_rows), (own.h2d_bytes, own.asked_rows), "{what}");
                continue;
            }
            // Values go to their home before they are pulled, the newest too.
            let more = (gpu.rows - own.rows) as usize;
            assert!(more <= tokens * config.kv_heads, "{what}: {more} rows more");
            assert_eq!(gpu.h2d_bytes * own.rows, own.h2d_bytes * gpu.rows, "{what}");
            assert!(gpu.reused_rows >= own.reused_rows, "{what}");
        }
        let pages: Vec<u64> = gpu
            .tiers
            .iter()
            .zip(&own.tiers)
            .map(|(gpu, own)| {
                assert_eq!(
                    (gpu.live_bytes, gpu.stranded_bytes),
                    (own.live_bytes, own.stranded_bytes),
                    "{what}"
                );
                assert_eq!(gpu.unfilled_bytes, own.unfilled_bytes, "{what}");
                gpu.allocated_bytes() - gpu.copies_bytes
            })
            .collect();
        let on_host = if rows == Rows::Stay { 0 } else { pages[0] };
        assert_eq!((gpu.tiers[1].copies_bytes, own.tiers[1].copies_bytes), (on_host, 0), "{what}");
        if rows == Rows::OnHostToo {
            let apart = gpu.tiers[0].copies_bytes - own.tiers[0].copies_bytes;
            assert!(apart == 0 || goes_into_codes_later(&settings), "{what}: {apart} bytes");
        }
    }
}

/// The same rows over the same positions, cell for cell but for roundings; where the largest alone are shown, one at the
/// edge may be another.
fn same_pictures(gpu: &AttentionMap, own: &AttentionMap, what: &str) {
    assert_eq!((gpu.level, gpu.query, gpu.groups.len()), (own.level, own.query, own.groups.len()), "{what}");
    let near = |gpu: u8, own: u8| assert!(gpu.abs_diff(own) <= 4 || gpu.max(own) < 24, "{what}: {gpu} {own}");
    for (gpu, own) in gpu.groups.iter().zip(&own.groups) {
        assert_eq!(
            (gpu.layer, gpu.kv_head, &gpu.positions),
            (own.layer, own.kv_head, &own.positions),
            "{what}"
        );
        for (gpu, own) in gpu.rows.iter().zip(&own.rows) {
            assert_eq!(gpu.head, own.head, "{what}");
            assert!((gpu.dropped - own.dropped).abs() < 5e-3, "{what}: {} {}", gpu.dropped, own.dropped);
            match (&gpu.cells, &own.cells) {
                (Cells::Full(gpu), Cells::Full(own)) | (Cells::Blocks(gpu), Cells::Blocks(own)) => {
                    assert_eq!(gpu.len(), own.len(), "{what}");
                    gpu.iter().zip(own).for_each(|(&gpu, &own)| near(gpu, own));
                }
                (Cells::Top(gpu), Cells::Top(own)) => {
                    assert!(gpu.len().abs_diff(own.len()) <= 1, "{what}");
                    let same =
                        gpu.iter().filter_map(|(p, gpu)| own.iter().find(|o| o.0 == *p).map(|o| (*gpu, o.1)));
                    let same: Vec<(u8, u8)> = same.collect();
                    assert!(same.len() + 2 > own.len(), "{what}: {gpu:?} {own:?}");
                    for (gpu, own) in same {
                        near(gpu, own);
                    }
                }
                other => panic!("{what}: {other:?}"),
            }
        }
    }
}

/// What rows lost in their codes. Where a rounding differs in what went in, another code or another scale may come out: that
/// changes what a row loses by a part of it, and what many lose by next to nothing.
fn same_coding(gpu: &[LayerCoding], own: &[LayerCoding], what: &str) {
    const MANY_ROWS: u64 = 64;
    assert_eq!(gpu.len(), own.len(), "{what}");
    for (gpu, own) in gpu.iter().zip(own) {
        assert_eq!((gpu.layer, gpu.recoded_rows), (own.layer, own.recoded_rows), "{what}");
        for (gpu, own) in [(&gpu.k, &own.k), (&gpu.v, &own.v)] {
            assert_eq!(gpu.rows, own.rows, "{what}");
            let bound = if own.rows < MANY_ROWS { 0.1 } else { 0.01 };
            let near = |gpu: f64, own: f64, bound: f64| (gpu - own).abs() <= bound * own;
            assert!(near(gpu.squared_error, own.squared_error, bound), "{what}: {gpu:?} {own:?}");
            assert!(near(gpu.squares, own.squares, 1e-3), "{what}: {gpu:?} {own:?}");
        }
        assert_eq!(gpu.k_channels.len(), own.k_channels.len(), "{what}");
        for (gpu, own) in gpu.k_channels.iter().zip(&own.k_channels) {
            assert!(gpu.abs_diff(*own) <= 1, "{what}: {gpu} {own}");
        }
    }
}

/// The same are lost for the same reason; scores are off by roundings.
fn same_decisions(gpu: &[Eviction], own: &[Eviction], what: &str) {
    assert_eq!(gpu.len(), own.len(), "{what}");
    for (gpu, own) in gpu.iter().zip(own) {
        let whole =
            |e: &Eviction| (e.layer, e.head, e.reason, e.kept, e.positions.clone(), e.cutoff.is_some());
        assert_eq!(whole(gpu), whole(own), "{what}");
        let scores =
            |e: &Eviction| -> Vec<f32> { e.scores.iter().map(|s| s.to_f32()).chain(e.cutoff).collect() };
        let (gpu, own) = (scores(gpu), scores(own));
        assert_eq!(gpu.len(), own.len(), "{what}");
        for (gpu, own) in gpu.into_iter().zip(own) {
            // Recorded scores have eight bits.
            assert!(gpu == own || (gpu - own).abs() <= 1e-2 * own.abs() + 1e-4, "{what}: {gpu} {own}");
        }
    }
}

/// Every kind of policy, read set and page type that a GPU takes: the tables, who is resident, what was moved and what is
/// said are the processor's.
#[test]
fn every_kind_of_run_is_the_processors() {
    if !emulated::is_there() {
        return;
    }
    let plain = Settings { scores: ScoreLevel::Full, ..Settings::default() };
    for (policy, read, merge, kv_dtype, rows) in [
        ("h2o:budget=40", "", "", "f32", Rows::Stay),
        ("snapkv:budget=40,window=8", "", "", "f16", Rows::Stay),
        ("streaming:budget=32", "", "", "f32", Rows::OnHostToo),
        ("h2o:budget=40+adakv", "", "", "f32", Rows::Stay),
        ("h2o:budget=40+kvcrush", "", "", "f32", Rows::Stay),
        ("full", "kcache:n=12,l=1", "", "f32", Rows::Stay),
        ("full", "kcache:n=12,l=0,renorm=true", "", "f16", Rows::Stay),
        ("h2o:budget=50", "kcache:n=6,l=0,include_self=false", "", "f32", Rows::Stay),
        ("h2o:budget=60", "quest:budget=24,page=4", "", "f16", Rows::OnHostToo),
        ("h2o:budget=60", "quest:budget=24,page=4", "", "int8", Rows::OnHostToo),
        ("h2o:budget=40", "", "cam:m=4", "f32", Rows::OnHostToo),
        ("streaming:budget=32", "", "", "int8", Rows::OnHostToo),
    ] {
        let settings = Settings {
            policy: policy.into(),
            read: read.into(),
            merge: merge.into(),
            kv_dtype: kv_dtype.into(),
            ..plain.clone()
        };
        same(&settings, rows, &format!("{policy} {read} {merge} {kv_dtype}"));
    }
    let batch = Settings { batch: 3, temperature: 0.8, ..plain.clone() };
    same(&batch, Rows::Stay, "a batch with a shared prefix");
    let read = "kcache:n=6,l=1".to_owned();
    for pull in ["gather", "copies"] {
        let halves = Settings { read: read.clone(), pull: pull.into(), ..batch.clone() };
        same(&halves, Rows::Stay, &format!("a batch that reads in halves: {pull}"));
    }
    // The second chunks do not fit before decisions that are asked for out of turn; then the run goes on.
    let small = Settings {
        blocks: 416,
        blocks_given: true,
        batch: 2,
        block_size: 4,
        compact: 0.1,
        policy: "h2o:budget=24".into(),
        ..plain.clone()
    };
    same(&small, Rows::Stay, "a pool that is too small");
    let crowded = Settings { compact: 0.1, block_size: 4, policy: "h2o:budget=24".into(), ..plain };
    same(&crowded, Rows::Stay, "compaction");
    same(&Settings { read, batch: 2, ..crowded }, Rows::Stay, "compaction of values on the host");
}

/// Rows in codes of 8 bits, which are what they are from the time they are written: they stay on the device as exact ones
/// do, and what they lose is measured there. What policies go by is the same for every type of row.
#[test]
fn rows_in_8_bit_codes_stay_on_the_device() {
    if !emulated::is_there() {
        return;
    }
    let plain = Settings { kv_dtype: "int8".into(), scores: ScoreLevel::Full, ..Settings::default() };
    for (policy, read) in [
        ("h2o:budget=40", ""),
        ("full", "kcache:n=12,l=0"),
        ("h2o:budget=50", "kcache:n=6,l=1,renorm=true,include_self=false"),
    ] {
        let settings = Settings { policy: policy.into(), read: read.into(), ..plain.clone() };
        same(&settings, Rows::Stay, &format!("int8 {policy} {read}"));
    }
    // Such pages are not shared, though the prompt is.
    let read = "kcache:n=6,l=1".to_owned();
    let halves = Settings { batch: 3, temperature: 0.8, read: read.clone(), ..plain.clone() };
    same(&halves, Rows::Stay, "int8, a batch that reads in halves");
    let crowded = Settings { compact: 0.1, block_size: 4, policy: "h2o:budget=24".into(), ..plain };
    let parted = Settings { policy: "h2o:budget=24+adakv".into(), ..crowded.clone() };
    same(&parted, Rows::Stay, "int8, compaction of heads that have parted");
    same(&Settings { read, batch: 2, ..crowded }, Rows::Stay, "int8, compaction of values on the host");
}

/// Policies that go by sums of attention, which the device keeps and some of which it decides by; and one that goes by a
/// history.
#[test]
fn policies_decide_as_on_the_processor() {
    if !emulated::is_there() {
        return;
    }
    for (policy, read, kv_dtype) in [
        ("h2o:budget=40,variant=kvpress,when=chunk", "", "f32"),
        ("h2o:budget=40,by=layer,recent=0", "", "f16"),
        ("tova:budget=40", "", "f32"),
        ("tova:budget=40,by=head", "kcache:n=12,l=1", "f32"),
        ("roco:budget=40", "", "f32"),
        ("pyramidkv:budget=40,window=4", "", "f32"),
        ("scissorhands:budget=40", "", "f32"),
    ] {
        let settings = Settings {
            policy: policy.into(),
            read: read.into(),
            kv_dtype: kv_dtype.into(),
            ..Settings::default()
        };
        same(&settings, Rows::Stay, &format!("{policy} {read} {kv_dtype}"));
    }
    for (scores, policy, read) in [
        (ScoreLevel::Blocks, "h2o:budget=40", ""),
        (ScoreLevel::Top(5), "tova:budget=40", ""),
        (ScoreLevel::Top(5), "full", "kcache:n=12,l=1"),
        (ScoreLevel::Blocks, "full", "kcache:n=12,l=1"),
    ] {
        let settings = Settings { scores, policy: policy.into(), read: read.into(), ..Settings::default() };
        same(&settings, Rows::Stay, &format!("{policy} {read} {scores}"));
    }
    let batch =
        Settings { policy: "h2o:budget=40".into(), batch: 3, temperature: 0.8, ..Settings::default() };
    same(&batch, Rows::Stay, "a batch that evicts");
}

/// Of rows that stay on the device nothing is fetched but who is lost, with the score and the cutoff.
#[test]
fn a_decision_is_all_that_is_fetched() {
    if !emulated::is_there() || is_real() {
        return;
    }
    let (model, golden) = golden();
    let text: String = golden.prompt_text.chars().take(300).collect();
    let prompt = Prompt { text, ..Prompt::default() };
    let (layers, kv_heads) = (model.decoder.config().layers, model.decoder.config().kv_heads);
    for (policy, lanes) in
        [("full", 0), ("h2o:budget=40", layers * kv_heads), ("snapkv:budget=40,window=8", 0)]
    {
        let settings = Settings {
            policy: policy.into(),
            device: "cuda:0".into(),
            max_tokens: 4,
            ignore_eos: true,
            ..Settings::default()
        };
        let gpu = Emulated::new(0);
        let backend = Backend::gpu(gpu.clone(), Device::Cpu);
        let mut engine = Engine::on(backend, Arc::clone(&model), &settings, &prompt).unwrap();
        engine.set_observe(Observe::Events);
        while !engine.is_decoding() {
            engine.step().unwrap();
        }
        for _ in 0..3 {
            let before = gpu.fetched();
            let step = engine.step().unwrap().unwrap();
            assert_eq!(
                step.seqs[0].evictions.iter().map(|e| e.positions.len()).sum::<usize>(),
                lanes,
                "{policy}"
            );
            // Victim, score, number and cutoff.
            assert_eq!(gpu.fetched() - before, 16 * lanes as u64, "{policy}");
        }
    }
}

/// What is kept of attention goes on from turn to turn, and a window is the newest turn's.
#[test]
fn turns_go_on_from_what_the_device_keeps() {
    if !emulated::is_there() {
        return;
    }
    let (model, golden) = golden();
    let text: String = golden.prompt_text.chars().take(200).collect();
    let prompt = Prompt { text, ..Prompt::default() };
    for policy in ["h2o:budget=40", "snapkv:budget=40,window=6"] {
        let settings = Settings {
            policy: policy.into(),
            max_tokens: 5,
            chunk: 48,
            ignore_eos: true,
            ..Settings::default()
        };
        let run = |mut engine: Engine| {
            let mut steps = Vec::new();
            for turn in ["", " Then they went to the park and played with the dog", " The end"] {
                if !turn.is_empty() {
                    assert!(matches!(engine.say(turn).unwrap(), Said::Here(_)));
                }
                while let Some(step) = engine.step().unwrap() {
                    steps.push(step);
                }
            }
            steps
        };
        let own = run(Engine::new(Arc::clone(&model), &settings, &prompt).unwrap());
        let gpu = run(on_gpu(&model, &settings, &prompt, 0));
        assert_eq!(ids(&gpu), ids(&own), "{policy}");
        assert_eq!(ids(&gpu).len(), 15);
        assert_eq!(gpu.len(), own.len());
        for (gpu, own) in gpu.iter().zip(&own) {
            same_decisions(&gpu.seqs[0].evictions, &own.seqs[0].evictions, policy);
        }
    }
}

/// What other families have beside: windows in some layers, capped scores, norms of queries and keys, another activation, a
/// part of each head that turns.
#[test]
fn other_families_run_as_on_the_processor() {
    if !emulated::is_there() {
        return;
    }
    let demo = demo::load().unwrap();
    let arch = Arch {
        qk_norm: true,
        post_norms: true,
        norm_offset: 1.0,
        activation: Activation::GeluTanh,
        query_scale: 0.8,
        score_softcap: Some(3.0),
        logit_softcap: Some(20.0),
        rotary_dim: Some(16),
        windows: vec![20, 0, 7],
        ..Arch::default()
    };
    let config = Config { layers: 3, heads: 6, kv_heads: 2, arch, ..demo.decoder.config().clone() };
    let decoder = Decoder::random(config, 3).unwrap();
    let model = Arc::new(Model::new(decoder, demo.tokenizer));
    same_with(&model, &Settings::default(), Rows::Stay, "windows and caps");
    let settings = Settings { policy: "h2o:budget=30".into(), kv_dtype: "f16".into(), ..Settings::default() };
    same_with(&model, &settings, Rows::Stay, "windows, caps and a budget");
}

#[test]
fn a_run_does_not_depend_on_being_watched() {
    if !emulated::is_there() {
        return;
    }
    let (model, _) = golden();
    let prompt = Prompt { text: " One day".into(), ..Prompt::default() };
    let settings = Settings { max_tokens: 12, policy: "h2o:budget=16".into(), ..Settings::default() };
    let run = |observe| {
        let mut engine = on_gpu(&model, &settings, &prompt, 0);
        engine.set_observe(observe);
        ids(&steps(engine))
    };
    let rows = run(Observe::Rows);
    assert_eq!(rows.len(), 12);
    assert_eq!(rows, run(Observe::Off));
}

/// Rows that are exact at first and go into codes later, where the prompt is longer than the exact window.
#[test]
fn rows_that_go_into_codes_later_are_followed() {
    if !emulated::is_there() {
        return;
    }
    let plain =
        Settings { kv_dtype: "int4".into(), block_size: 32, scores: ScoreLevel::Full, ..Settings::default() };
    for (kv_dtype, policy, read, compact) in [
        ("int4", "full", "", 0.5),
        ("int2", "full", "", 0.5),
        ("int4:residual=64", "full", "", 0.5),
        // Nothing ever goes into codes.
        ("int2:residual=512", "full", "", 0.5),
        ("int4", "h2o:budget=80", "", 0.1),
        ("int2", "h2o:budget=80+adakv", "", 0.1),
        ("int4", "snapkv:budget=48,window=8", "", 0.1),
        ("int4", "keydiff:budget=60", "", 0.5),
        ("int2:residual=64", "streaming:budget=90,reposition=false", "", 0.1),
        ("int4", "h2o:budget=70", "quest:budget=24,page=4", 0.3),
    ] {
        let settings = Settings {
            kv_dtype: kv_dtype.into(),
            policy: policy.into(),
            read: read.into(),
            compact,
            ..plain.clone()
        };
        same(&settings, Rows::OnHostToo, &format!("{kv_dtype} {policy} {read}"));
    }
    // The text is long enough for rows to go into codes, and for rows in codes to move.
    let settings = Settings { policy: "h2o:budget=80".into(), compact: 0.1, ..plain.clone() };
    let settings = Settings { max_tokens: 12, ignore_eos: true, chunk: 48, ..settings };
    let told = steps(on_gpu(&golden().0, &settings, &story(&settings), 0));
    let coded =
        |rows: fn(&LayerCoding) -> u64| told.iter().flat_map(|step| &step.coding).map(rows).sum::<u64>();
    assert!(coded(|c| c.k.rows) > 0 && coded(|c| c.v.rows) > 0 && coded(|c| c.recoded_rows) > 0);
    // A page that is partly in codes lies in two; of a lane these are the newest.
    let config = golden().0.decoder.config().clone();
    let page = |row_bytes: u64| 32 * 2 * row_bytes;
    let (codes, exact) = (page(20), page(4 * config.head_dim as u64));
    let lanes = (config.layers * config.kv_heads) as u64;
    let last = &told.last().unwrap().tiers[0];
    assert!((1..=lanes * 3 * (codes + exact)).contains(&last.copies_bytes), "{last:?}");
    let batch =
        Settings { batch: 3, temperature: 0.8, policy: "h2o:budget=80".into(), compact: 0.1, ..plain };
    same(&batch, Rows::OnHostToo, "a batch in codes of 4 bits");
}

/// Rows that stay on the device for the next step change nothing but what crosses the link.
#[test]
fn rows_that_are_kept_are_not_pulled_again() {
    if !emulated::is_there() {
        return;
    }
    let (model, golden) = golden();
    let text: String = golden.prompt_text.chars().take(300).collect();
    let prompt = Prompt { text, ..Prompt::default() };
    // Evictions and compactions move slots: rows are found by their positions.
    for (policy, batch, kv_dtype, late) in [
        ("full", 3, "f32", 0),
        ("full", 3, "f32", 1),
        ("h2o:budget=60", 1, "f32", 1),
        ("h2o:budget=60", 1, "int8", 0),
    ] {
        let settings = Settings {
            kv_dtype: kv_dtype.into(),
            read: "kcache:n=6,l=1".into(),
            policy: policy.into(),
            compact: 0.2,
            batch,
            pull: "gather".into(),
            max_tokens: 10,
            ignore_eos: true,
            temperature: 0.7,
            ..Settings::default()
        };
        let run = |keep_pulled| {
            let settings = Settings { keep_pulled, ..settings.clone() };
            steps(on_gpu(&model, &settings, &prompt, late))
        };
        let (anew, kept) = (run(false), run(true));
        assert_eq!(drawn(&anew), drawn(&kept), "{policy}");
        let mut saved = 0;
        for (anew, kept) in anew.iter().zip(&kept) {
            for (anew, kept) in anew.traffic.iter().zip(&kept.traffic) {
                assert_eq!((anew.rows, anew.reused_rows), (kept.rows, kept.reused_rows), "{policy}");
                assert_eq!(anew.h2d_bytes % anew.rows.max(1), 0);
                let row_bytes = anew.h2d_bytes / anew.rows.max(1);
                let bytes = anew.h2d_bytes - kept.h2d_bytes;
                assert!(bytes == 0 || bytes == kept.reused_rows * row_bytes, "{policy}: {bytes} bytes");
                saved += bytes;
            }
        }
        assert!(saved > 0, "{policy}: what a step chooses, the next chooses again in part");
    }
    for (settings, says) in [
        (Settings { read: "kcache:n=6".into(), keep_pulled: true, ..Settings::default() }, "--device cuda"),
        (Settings { pull: "by hand".into(), ..Settings::default() }, "gather, copies or auto"),
    ] {
        let error = Engine::new(Arc::clone(&model), &settings, &prompt).err().expect("a refusal");
        let error = (error.is_input(), error.to_string());
        assert!(error.0 && error.1.contains(says) && !error.1.contains('\n'), "{}", error.1);
    }
}

/// A context that the device makes itself is decoded as a fed one is, by all sequences of a batch.
#[test]
fn a_filled_context_is_decoded() {
    if !emulated::is_there() {
        return;
    }
    let (model, golden) = golden();
    let text: String = golden.prompt_text.chars().take(260).collect();
    let prompt = Prompt { text, ..Prompt::default() };
    for (read, kv_dtype) in [("", "f16"), ("kcache:n=8,l=1", "f16"), ("", "int8"), ("kcache:n=8,l=1", "int8")]
    {
        let settings = Settings {
            read: read.into(),
            batch: 3,
            max_tokens: 3,
            ignore_eos: true,
            kv_dtype: kv_dtype.into(),
            ..Settings::default()
        };
        let run = || {
            let mut engine = on_gpu(&model, &settings, &prompt, 0);
            let tokens = engine.info().prompt_tokens;
            let filled = engine.fill(7).unwrap();
            assert!(filled.seqs.iter().all(|part| part.fed.len() as u32 == tokens - 1));
            let steps = steps(engine);
            let residents = steps[0].seqs.iter().flat_map(|part| &part.resident);
            assert!(residents.copied().all(|n| n == tokens), "{read}");
            // The first step is fed the last token of the prompt.
            let pulled: u64 = steps[1].traffic.iter().map(|t| t.rows).sum();
            // Eight rows and the newest per head, in the layers that are not exempt.
            let config = model.decoder.config();
            let lanes = (3 * (config.layers - 1) * config.kv_heads) as u64;
            let group = (config.heads / config.kv_heads) as u64;
            if read.is_empty() {
                assert_eq!(pulled, 0);
            } else {
                assert!((8 * lanes..=(8 * group + 1) * lanes).contains(&pulled), "{pulled} rows");
            }
            drawn(&steps)
        };
        let first = run();
        assert_eq!(first.len(), 9);
        assert_eq!(first, run(), "{read}: the same seed makes the same rows");
    }
}

#[test]
fn a_lost_device_ends_the_run_with_one_line() {
    if !emulated::is_there() || is_real() {
        return;
    }
    let (model, golden) = golden();
    let prompt = Prompt { text: golden.prompt_text, ..Prompt::default() };
    let settings = Settings { device: "cuda:0".into(), max_tokens: 4, chunk: 48, ..Settings::default() };
    for lives in [0, 20, 80, 150] {
        let backend = Backend::gpu(Emulated::mortal(lives), Device::Cpu);
        let mut engine = Engine::on(backend, Arc::clone(&model), &settings, &prompt).unwrap();
        let error = loop {
            match engine.step() {
                Ok(Some(_)) => {}
                Ok(None) => panic!("{lives} launches are not enough for this run"),
                Err(error) => break error,
            }
        };
        assert!(matches!(error, EngineError::Device(_)) && !error.is_input(), "{error}");
        assert!(error.to_string().contains("the device is lost") && !error.to_string().contains('\n'));
    }
}

#[test]
fn what_no_kernel_does_is_refused_before_the_run() {
    let (model, _) = golden();
    let prompt = Prompt { text: " One day".into(), ..Prompt::default() };
    for (settings, says) in [
        (Settings { kv_dtype: "nuq4".into(), ..Settings::default() }, "pages of nuq4"),
        (
            Settings { read: "infllm:local=16,init=0,block=16,topk=1,cache=2".into(), ..Settings::default() },
            "beyond a window",
        ),
        (
            Settings {
                kv_dtype: "int4".into(),
                block_size: 32,
                read: "kcache:n=6".into(),
                ..Settings::default()
            },
            "no kernel adds up codes and exact ones",
        ),
    ] {
        let settings = Settings { device: "cuda".into(), ..settings };
        let backend = Backend::gpu(Emulated::new(0), Device::Cpu);
        let error = Engine::on(backend, Arc::clone(&model), &settings, &prompt).err().expect("a refusal");
        assert!(error.is_input(), "{error}");
        let error = error.to_string();
        assert!(error.contains(says) && !error.contains('\n'), "{error}");
    }
}
