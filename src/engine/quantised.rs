//! Pages in codes under the whole engine.

use std::sync::Arc;

use super::{Engine, Prompt};
use crate::event::{CodingError, Settings, Step};
use crate::model::{self, Model};

fn demo() -> (Arc<Model>, String) {
    #[derive(serde::Deserialize)]
    struct Golden {
        prompt_text: String,
    }
    let golden: Golden = serde_json::from_str(include_str!("../model/demo/golden.json")).unwrap();
    (Arc::new(model::demo::load().unwrap()), golden.prompt_text)
}

fn settings(kv_dtype: &str, block_size: u32, chunk: u32) -> Settings {
    Settings {
        kv_dtype: kv_dtype.into(),
        block_size,
        chunk,
        max_tokens: 32,
        ignore_eos: true,
        ..Settings::default()
    }
}

struct Ran {
    ids: Vec<u32>,
    logits: Vec<Vec<f32>>,
    steps: Vec<Step>,
}

impl Ran {
    /// Keys and values, all steps and layers.
    fn errors(&self) -> (CodingError, CodingError) {
        let all = self.steps.iter().flat_map(|s| &s.coding);
        all.fold(<_>::default(), |(k, v): (CodingError, CodingError), c| (k.with(&c.k), v.with(&c.v)))
    }

    fn relative(&self) -> (f64, f64) {
        let (k, v) = self.errors();
        (k.relative().unwrap(), v.relative().unwrap())
    }

    fn pulled_bytes(&self) -> u64 {
        self.steps.iter().flat_map(|s| &s.traffic).map(|t| t.h2d_bytes).sum()
    }
}

fn run(model: &Arc<Model>, text: &str, settings: &Settings) -> Ran {
    let prompt = Prompt { text: text.into(), ..Prompt::default() };
    let mut engine = Engine::new(Arc::clone(model), settings, &prompt).unwrap();
    let mut steps = Vec::new();
    while let Some(step) = engine.step().unwrap() {
        steps.push(step);
    }
    let drawn = steps.iter().flat_map(|s| &s.seqs).filter_map(|part| part.sampled.as_ref());
    Ran { ids: drawn.map(|s| s.id).collect(), logits: std::mem::take(&mut engine.witness.logits), steps }
}

fn largest_difference(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

#[test]
fn int8_pages_say_what_exact_pages_say_in_the_demo() {
    let (model, text) = demo();
    let exact = run(&model, &text, &settings("f32", 16, 64));
    let coded = run(&model, &text, &settings("int8", 16, 64));
    // They part where the exact pages were nearly undecided, if anywhere.
    let same = exact.ids.iter().zip(&coded.ids).take_while(|(a, b)| a == b).count();
    assert!(same >= 16, "{:?} {:?}", exact.ids, coded.ids);
    if same < exact.ids.len() {
        let mut logits = exact.logits[same].clone();
        logits.sort_by(|a, b| b.total_cmp(a));
        assert!(logits[0] - logits[1] < 0.5, "token {same}: {} before {}", logits[0], logits[1]);
    }
    let (k, v) = coded.relative();
    eprintln!("int8: keys {k:.5}, values {v:.5}");
    assert!(k < 0.01 && v < 0.01, "{k} {v}");
    for (a, b) in exact.logits.iter().zip(&coded.logits).take(same + 1) {
        let off = largest_difference(a, b);
        assert!(off > 0.0 && off < 1.0, "{off}");
    }
    let bytes = |ran: &Ran| ran.steps.last().unwrap().tiers[0].live_bytes;
    // 32 codes, a scale and a zero for 32 f32.
    assert_eq!(bytes(&coded) * 128, bytes(&exact) * 36);
    // The size of a chunk changes nothing but last bits of the projections, a code here and there among them: what is
    // written is what is read.
    let other = run(&model, &text, &settings("int8", 7, 5));
    let off =
        other.logits.iter().zip(&coded.logits).map(|(a, b)| largest_difference(a, b)).fold(0.0, f32::max);
    assert!(off < 0.01, "{off}");
}

#[test]
fn fewer_bits_are_further_off_and_the_errors_are_told() {
    let (model, text) = demo();
    let mut before = (0.0, 0.0);
    for dtype in ["int8", "int4", "int2"] {
        let ran = run(&model, &text, &settings(dtype, 32, 64));
        assert_eq!(ran.ids.len(), 32);
        let (k, v) = ran.relative();
        eprintln!("{dtype}: keys {k:.4}, values {v:.4}");
        assert!(k > before.0 && v > before.1 && k < 1.0 && v < 1.0, "{dtype}: {k} {v}");
        before = (k, v);
        let told = ran.steps.iter().flat_map(|s| &s.coding).filter(|c| !c.k_channels.is_empty());
        assert!(told.clone().count() >= 4, "a prompt's keys are told by channel in every layer");
        assert!(told.clone().all(|c| c.k_channels.len() == 128));
    }
}

#[test]
fn a_prompt_in_one_chunk_is_attended_to_exactly() {
    let (model, text) = demo();
    let exact = run(&model, &text, &settings("f32", 32, 4096));
    let coded = run(&model, &text, &settings("int2", 32, 4096));
    assert_eq!(coded.logits[0], exact.logits[0]);
    assert_ne!(coded.logits[1], exact.logits[1]);
    // With a window that nothing leaves, all is exact.
    let never = run(&model, &text, &settings("int2:residual=8192", 32, 4096));
    assert_eq!(never.logits, exact.logits);
    assert_eq!(never.errors(), <_>::default());
}

#[test]
fn a_read_set_pulls_codes_and_reads_what_lies_there() {
    let (model, text) = demo();
    let plain = run(&model, &text, &settings("int4", 32, 64));
    let with = |dtype: &str, n: u32| {
        run(&model, &text, &Settings { read: format!("kcache:n={n},l=1"), ..settings(dtype, 32, 64) })
    };
    let all = with("int4", 4096);
    assert_eq!(all.logits, plain.logits);
    let (codes, exact) = (with("int4", 16), with("f32", 16));
    assert!(codes.pulled_bytes() < exact.pulled_bytes());
    for step in all.steps.iter().filter(|s| s.seqs[0].sampled.is_some()).skip(1) {
        for t in &step.traffic {
            // The window of each of four KV heads less the newest row is exact, the rest 20 bytes for 32 elements.
            let exact_rows = 4 * 32;
            assert_eq!(t.h2d_bytes, exact_rows * 128 + (t.rows - exact_rows) * 20, "step {}", step.step);
        }
    }
}

#[test]
fn what_does_not_go_together_is_refused_in_one_line() {
    let (model, text) = demo();
    let refused = |settings: &Settings| {
        let prompt = Prompt { text: text.clone(), ..Prompt::default() };
        let error = Engine::new(Arc::clone(&model), settings, &prompt).err().expect("refused");
        assert!(error.is_input() && !error.to_string().contains('\n'), "{error}");
        error.to_string()
    };
    let cases = [
        (settings("int4", 16, 64), "--block-size 32"),
        (settings("int2:residual=40", 32, 64), "multiple of the group"),
        (settings("int3", 32, 64), "int8, int4 or int2"),
        (settings("nuq4:outliers=0.5", 16, 64), "outliers=0..0.2"),
        (settings("nuq4:residual=32", 16, 64), "residual=32"),
        (
            Settings { policy: "streaming:budget=64,reposition=true".into(), ..settings("int4", 32, 64) },
            "reposition=false",
        ),
    ];
    for (settings, hint) in &cases {
        let error = refused(settings);
        assert!(error.contains(hint), "{error}");
    }
    let kept = Settings { policy: "streaming:budget=64,reposition=true".into(), ..settings("int8", 32, 64) };
    assert_eq!(run(&model, &text, &kept).ids.len(), 32);
}

/// Mean log-likelihood of the ids under logits, per id.
fn log_likelihood(logits: &[Vec<f32>], ids: &[u32]) -> f64 {
    let of = |(row, &id): (&Vec<f32>, &u32)| {
        let top = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let total: f64 = row.iter().map(|&x| f64::from(x - top).exp()).sum();
        f64::from(row[id as usize] - top) - total.ln()
    };
    logits.iter().zip(ids).map(of).sum::<f64>() / ids.len() as f64
}

#[test]
fn fewer_non_uniform_bits_are_less_like_exact_pages() {
    let (model, text) = demo();
    let exact = run(&model, &text, &settings("f32", 16, 64));
    let prompt = Prompt { text: text.clone(), ..Prompt::default() };
    let told = |kv_dtype: &str| {
        let mut engine = Engine::new(Arc::clone(&model), &settings(kv_dtype, 16, 64), &prompt).unwrap();
        engine.witness.forced = exact.ids.iter().copied().collect();
        let mut steps = Vec::new();
        while let Some(step) = engine.step().unwrap() {
            steps.push(step);
        }
        let logits = std::mem::take(&mut engine.witness.logits);
        let ran = Ran { ids: Vec::new(), logits, steps };
        let off = exact.logits.iter().zip(&ran.logits).map(|(a, b)| f64::from(largest_difference(a, b)));
        let off = off.sum::<f64>() / exact.logits.len() as f64;
        (log_likelihood(&ran.logits, &exact.ids), off, ran)
    };
    let (best, none, _) = told("f32");
    assert!(none < 1e-6, "{none}");
    let mut before = (0.0, 0.0, 0.0);
    for dtype in ["nuq4:calibrate=64", "nuq3:calibrate=64", "nuq2:calibrate=64"] {
        let (said, off, ran) = told(dtype);
        let (k, v) = ran.relative();
        eprintln!(
            "{dtype}: keys {k:.4}, values {v:.4}, log-likelihood {said:.4} of {best:.4}, logits off by {off:.3}"
        );
        assert!(k > before.0 && v > before.1 && k < 1.0 && v < 1.0, "{dtype}: {k} {v}");
        assert!(off > before.2, "{dtype}: {off}");
        assert!(dtype.starts_with("nuq2") || best - said < 0.1, "{dtype}: {said} of {best}");
        assert!(ran.steps.iter().flat_map(|s| &s.coding).any(|c| c.k_channels.len() == 128));
        before = (k, v, off);
    }
}

#[test]
fn nothing_is_in_codes_before_the_calibration() {
    let (model, text) = demo();
    let exact = run(&model, &text, &settings("f32", 16, 4096));
    // Keys are rotated at read, by their positions: the same bits.
    let coded = run(&model, &text, &settings("nuq3", 16, 4096));
    assert_eq!(coded.logits[0], exact.logits[0]);
    assert_ne!(coded.logits[1], exact.logits[1]);
    let live = |ran: &Ran| ran.steps.last().unwrap().tiers[0].live_bytes;
    assert!(live(&coded) * 4 < live(&exact), "{} {}", live(&coded), live(&exact));
    // With a whole decoding exact for its first tokens there is nothing left to code.
    let never = run(&model, &text, &settings("nuq3:first=1024,calibrate=65536", 16, 4096));
    assert_eq!(never.logits, exact.logits);
    assert_eq!(never.errors(), <_>::default());
}

#[test]
fn a_read_set_pulls_outliers_with_the_codes() {
    let (model, text) = demo();
    let plain = run(&model, &text, &settings("nuq4", 16, 64));
    let with = |dtype: &str, n: u32| {
        run(&model, &text, &Settings { read: format!("kcache:n={n},l=1"), ..settings(dtype, 16, 64) })
    };
    let all = with("nuq4", 4096);
    assert_eq!(all.logits, plain.logits);
    assert!(with("nuq4", 16).pulled_bytes() < with("f32", 16).pulled_bytes());
    for step in all.steps.iter().filter(|s| s.seqs[0].sampled.is_some()).skip(1) {
        for t in &step.traffic {
            // The first token of each of four KV heads is exact, the rest have 22 bytes for 32 elements and their
            // outliers: about one on each side in 128.
            let dense = 4 * 128 + (t.rows - 4) * 22;
            let outliers = (t.h2d_bytes - dense) as f64 / 4.0 / ((t.rows - 4) * 32) as f64;
            assert!((t.h2d_bytes - dense).is_multiple_of(4), "step {}", step.step);
            assert!((0.01..0.02).contains(&outliers), "step {}: {outliers}", step.step);
        }
    }
}

#[test]
fn policies_are_shown_rotated_keys_whatever_the_pages_hold() {
    let (model, text) = demo();
    // Nothing is in codes when the prompt ends: the choice is that of exact pages, though keys lie before RoPE.
    let never = "nuq4:first=1024,calibrate=65536";
    for policy in ["keydiff:budget=64", "knorm:budget=64", "expected:budget=64", "streaming:budget=64"] {
        let of =
            |dtype: &str| run(&model, &text, &Settings { policy: policy.into(), ..settings(dtype, 16, 64) });
        let (exact, before_rope) = (of("f32"), of(never));
        let victims = |ran: &Ran| {
            let all = ran.steps.iter().flat_map(|s| &s.seqs).flat_map(|part| &part.evictions);
            all.map(|e| (e.layer, e.head, e.positions.clone())).collect::<Vec<_>>()
        };
        assert!(!victims(&exact).is_empty());
        assert_eq!(victims(&before_rope), victims(&exact), "{policy}");
        assert_eq!(before_rope.logits, exact.logits, "{policy}");
        let coded = of("nuq4:calibrate=64");
        assert_eq!(victims(&coded).len(), victims(&exact).len(), "{policy}");
    }
}
