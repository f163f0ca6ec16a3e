//! The whole engine against models that others ran: stories260k (Hugging Face transformers and llama2.c agree on its
//! outputs) and the embedded demo model's own reference.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use serde::Deserialize;

use super::{Engine, Observe, Prompt};
use crate::event::attention::dequantise;
use crate::event::{Cells, Sampled, SeqStep, Settings};
use crate::model::{self, Model};

#[derive(Deserialize)]
struct Golden {
    prompt: String,
    prompt_ids: Vec<u32>,
    greedy_ids: Vec<u32>,
    steps: Vec<GoldenStep>,
    last_row_attention: Rows,
    empty_prompt: Option<Box<Golden>>,
}

#[derive(Deserialize)]
struct GoldenStep {
    id: u32,
    logit: f32,
    logprob: f32,
    margin: f32,
}

#[derive(Deserialize)]
struct Rows {
    rows: Vec<Vec<Vec<f32>>>,
}

/// The folder of third-party data, or `None` with a word on standard error.
fn data() -> Option<PathBuf> {
    let folder = std::env::var_os("KVISTA_TEST_DATA").map(PathBuf::from);
    if folder.is_none() {
        eprintln!("skipped: KVISTA_TEST_DATA names no folder with stories260k");
    }
    folder
}

fn stories() -> Option<(Arc<Model>, Golden)> {
    let folder = data()?.join("stories260k");
    let golden = serde_json::from_slice(&std::fs::read(folder.join("golden.json")).unwrap()).unwrap();
    Some((Arc::new(model::load(&folder).unwrap()), golden))
}

fn settings(block_size: u32, chunk: u32) -> Settings {
    Settings { block_size, chunk, max_tokens: 256, ignore_eos: true, ..Settings::default() }
}

fn engine(model: &Arc<Model>, settings: &Settings, text: &str) -> Engine {
    let prompt = Prompt { text: text.into(), ..Prompt::default() };
    Engine::new(Arc::clone(model), settings, &prompt).unwrap()
}

/// Steps to the first draw; the engine's witness has seen the rows of the last prompt token then.
fn first_draw(engine: &mut Engine) -> SeqStep {
    loop {
        let step = engine.step().unwrap().unwrap();
        let part = step.seqs.into_iter().next().unwrap();
        if part.sampled.is_some() {
            return part;
        }
    }
}

/// Steps to the end: what is drawn.
fn draws(engine: &mut Engine) -> Vec<Sampled> {
    let mut drawn = Vec::new();
    while let Some(step) = engine.step().unwrap() {
        drawn.extend(step.seqs.into_iter().filter_map(|part| part.sampled));
    }
    drawn
}

fn near(ours: f32, theirs: f32, tolerance: f32, what: &dyn Fn() -> String) {
    assert!((ours - theirs).abs() < tolerance, "{}: {ours} {theirs}", what());
}

/// Exact probabilities, `[layer][head][key]`.
fn check_rows(ours: &[Vec<Vec<f32>>], golden: &[Vec<Vec<f32>>], what: &str) {
    assert_eq!(ours.len(), golden.len());
    for (layer, (ours, golden)) in ours.iter().zip(golden).enumerate() {
        assert_eq!(ours.len(), golden.len());
        for (head, (ours, golden)) in ours.iter().zip(golden).enumerate() {
            assert_eq!(ours.len(), golden.len());
            for (&ours, &theirs) in ours.iter().zip(golden) {
                near(ours, theirs, 1e-4, &|| format!("{what}, layer {layer}, head {head}"));
            }
        }
    }
}

/// The picture: recorded cells keep a probability to 2.2 %, plus the smallest cell.
fn check_picture(part: &SeqStep, golden: &[Vec<Vec<f32>>]) {
    for group in &part.attention.as_ref().unwrap().groups {
        for row in &group.rows {
            let Cells::Full(cells) = &row.cells else { panic!("full rows were asked for") };
            let theirs = &golden[usize::from(group.layer)][usize::from(row.head)];
            assert_eq!(cells.len(), theirs.len());
            for (&q, &p) in cells.iter().zip(theirs) {
                near(dequantise(q), p, 0.022 * p + 2e-5, &|| format!("cell of layer {}", group.layer));
            }
        }
    }
}

#[test]
fn stories260k_gives_the_golden_outputs_for_every_block_size_and_chunk() {
    let Some((model, golden)) = stories() else { return };
    let empty = golden.empty_prompt.as_deref().unwrap();
    for block_size in [1, 8, 16, 128] {
        for chunk in [1, 7, 64] {
            for golden in [&golden, empty] {
                let what = format!("block {block_size}, chunk {chunk}, prompt '{}'", golden.prompt);
                let mut engine = engine(&model, &settings(block_size, chunk), &golden.prompt);
                assert_eq!(engine.prompt, golden.prompt_ids, "{what}");
                let first = first_draw(&mut engine);
                check_rows(&engine.witness.rows, &golden.last_row_attention.rows, &what);
                check_picture(&first, &golden.last_row_attention.rows);
                let mut drawn: Vec<Sampled> = first.sampled.into_iter().collect();
                drawn.extend(draws(&mut engine));
                let ids: Vec<u32> = drawn.iter().map(|s| s.id).collect();
                assert_eq!(ids, golden.greedy_ids, "{what}");
                for (i, (ours, theirs)) in drawn.iter().zip(&golden.steps).enumerate() {
                    let what = || format!("{what}, step {i}");
                    assert_eq!(ours.id, theirs.id, "{}", what());
                    near(engine.witness.logits[i][theirs.id as usize], theirs.logit, 1e-4, &what);
                    near(ours.logprob, theirs.logprob, 1e-4, &what);
                    // A difference of two logits.
                    near(ours.margin, theirs.margin, 2e-4, &what);
                }
            }
        }
    }
}

#[test]
fn stories260k_out_of_a_gguf_file_gives_the_golden_outputs() {
    let Some((_, golden)) = stories() else { return };
    let file = data().unwrap().join("stories260k/stories260K-f32.gguf");
    let model = Arc::new(model::load(&file).unwrap());
    for golden in [&golden, golden.empty_prompt.as_deref().unwrap()] {
        let mut engine = engine(&model, &settings(16, 64), &golden.prompt);
        assert_eq!(engine.prompt, golden.prompt_ids);
        let drawn = draws(&mut engine);
        assert_eq!(drawn.iter().map(|s| s.id).collect::<Vec<_>>(), golden.greedy_ids);
        for (i, (ours, theirs)) in drawn.iter().zip(&golden.steps).enumerate() {
            near(ours.logprob, theirs.logprob, 1e-4, &|| format!("step {i}"));
        }
    }
}

/// Runs on the golden ids, whatever is drawn: the logits of every draw.
fn teacher_forced(model: &Arc<Model>, kv_dtype: &str, text: &str, ids: &[u32]) -> Vec<Vec<f32>> {
    let settings = Settings { kv_dtype: kv_dtype.into(), max_tokens: ids.len() as u32, ..settings(16, 64) };
    let mut engine = engine(model, &settings, text);
    engine.witness.forced = ids.iter().copied().collect();
    draws(&mut engine);
    assert!(engine.sequences[0].fed.ends_with(&ids[..ids.len() - 1]), "the golden ids were fed");
    std::mem::take(&mut engine.witness.logits)
}

/// f16 pages against f32 pages on the same ids: logits within 0.05, the same choice wherever it is not that close.
fn check_f16(model: &Arc<Model>, text: &str, ids: &[u32]) {
    const CLOSE: f32 = 0.05;
    let top = |logits: &[f32]| {
        let mut order: Vec<usize> = (0..logits.len()).collect();
        order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]));
        (order[0], logits[order[0]] - logits[order[1]])
    };
    let (f32s, f16s) = (teacher_forced(model, "f32", text, ids), teacher_forced(model, "f16", text, ids));
    assert_eq!((f32s.len(), f16s.len()), (ids.len(), ids.len()));
    let mut differs = false;
    for (i, (exact, rounded)) in f32s.iter().zip(&f16s).enumerate() {
        for (&a, &b) in exact.iter().zip(rounded) {
            near(b, a, CLOSE, &|| format!("'{text}', step {i}"));
            differs |= a != b;
        }
        let ((id, margin), (chosen, _)) = (top(exact), top(rounded));
        assert!(chosen == id || margin <= CLOSE, "'{text}', step {i}: {chosen}, not {id} by {margin}");
    }
    assert!(differs, "f16 pages round");
}

#[test]
fn stories260k_keeps_its_logits_with_f16_pages() {
    let Some((model, golden)) = stories() else { return };
    let empty = golden.empty_prompt.as_deref().unwrap();
    for golden in [&golden, empty] {
        check_f16(&model, &golden.prompt, &golden.greedy_ids);
    }
}

#[derive(Deserialize)]
struct Demo {
    prompt_text: String,
    prompt_ids: Vec<u32>,
    greedy_ids: Vec<u32>,
    last_logits_top10: Vec<(usize, f32)>,
    /// Of some layers.
    last_row_attention: BTreeMap<usize, Vec<Vec<f32>>>,
}

fn demo() -> (Arc<Model>, Demo) {
    let golden = serde_json::from_str(include_str!("../model/demo/golden.json")).unwrap();
    (Arc::new(model::demo::load().unwrap()), golden)
}

#[test]
fn the_demo_model_gives_its_reference_outputs() {
    let (model, golden) = demo();
    for (block_size, chunk) in [(1, 64), (8, 64), (16, 7), (128, 1)] {
        let what = format!("block {block_size}, chunk {chunk}");
        let settings = Settings { max_tokens: 128, ..settings(block_size, chunk) };
        let mut engine = engine(&model, &settings, &golden.prompt_text);
        assert_eq!(engine.prompt, golden.prompt_ids);
        let first = first_draw(&mut engine);
        for (&layer, golden) in &golden.last_row_attention {
            check_rows(&engine.witness.rows[layer..=layer], std::slice::from_ref(golden), &what);
        }
        for &(id, logit) in &golden.last_logits_top10 {
            near(engine.witness.logits[0][id], logit, 1e-4, &|| format!("{what}, logit {id}"));
        }
        let mut ids: Vec<u32> = first.sampled.iter().map(|s| s.id).collect();
        ids.extend(draws(&mut engine).iter().map(|s| s.id));
        assert_eq!(ids, golden.greedy_ids, "{what}");
    }
}

#[test]
fn the_demo_model_keeps_its_logits_with_f16_pages() {
    let (model, golden) = demo();
    check_f16(&model, &golden.prompt_text, &golden.greedy_ids);
}

#[test]
fn observing_changes_no_token() {
    let model = Arc::new(model::demo::load().unwrap());
    let prompt = Prompt { text: " One day".into(), ..Prompt::default() };
    let settings = Settings { max_tokens: 40, policy: "h2o:budget=20".into(), ..Settings::default() };
    let ids = |observe| {
        let mut engine = Engine::new(Arc::clone(&model), &settings, &prompt).unwrap();
        engine.set_observe(observe);
        draws(&mut engine).into_iter().map(|s| s.id).collect::<Vec<_>>()
    };
    let rows = ids(Observe::Rows);
    assert_eq!(rows.len(), 40);
    assert_eq!(rows, ids(Observe::Events));
    assert_eq!(rows, ids(Observe::Off));
}
