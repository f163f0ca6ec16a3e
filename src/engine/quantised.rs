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
    // The size of a chunk changes nothing: what is written is what is read.
    assert_eq!(run(&model, &text, &settings("int8", 7, 5)).logits, coded.logits);
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
