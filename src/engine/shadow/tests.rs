use std::collections::BTreeMap;
use std::sync::Arc;

use super::super::{Engine, Prompt};
use super::*;
use crate::event::{Head, Layer, Settings};
use crate::model::demo;
use crate::state::{State, StateHash};

const TOKENS: usize = 200;

struct Ran {
    state: State,
    steps: Vec<Step>,
    /// The engine's witness of every step: its rows, `[layer][query head][slot]`.
    rows: Vec<Vec<Vec<Vec<f32>>>>,
    page_bytes: u64,
}

fn prompt() -> Prompt {
    let key = demo::passkey(1, TOKENS, 0.3);
    Prompt { text: key.context, question: key.question, expected: Some(key.key), ..Prompt::default() }
}

fn settings(policy: &str) -> Settings {
    Settings {
        policy: policy.into(),
        compress: "context".into(),
        max_tokens: 12,
        ignore_eos: true,
        shadow: 1,
        ..Settings::default()
    }
}

/// Runs to the end; where `taught`, the run says these tokens.
fn run(settings: &Settings, taught: &[u32]) -> Ran {
    let mut engine = Engine::new(Arc::new(demo::load().unwrap()), settings, &prompt()).unwrap();
    engine.teach(taught);
    let mut state = State::new(Arc::clone(engine.info())).unwrap();
    let (mut steps, mut rows) = (Vec::new(), Vec::new());
    while let Some(step) = engine.step().unwrap() {
        state.fold(&step).unwrap();
        rows.push(engine.witness.rows.clone());
        steps.push(step);
    }
    let page_bytes = engine.shadow.as_ref().map_or(0, |shadow| shadow.twin.page_bytes());
    Ran { state, steps, rows, page_bytes }
}

/// Every victim with the step that lost it.
fn victims(steps: &[Step], kv_heads: Head) -> BTreeMap<(Layer, Head, Position), usize> {
    let mut lost = BTreeMap::new();
    for (i, e) in steps.iter().enumerate().flat_map(|(i, s)| s.seqs[0].evictions.iter().map(move |e| (i, e)))
    {
        let heads = e.head.map_or(0..kv_heads, |head| head..head + 1);
        for (head, &position) in heads.flat_map(|h| e.positions.iter().map(move |p| (h, p))) {
            lost.insert((e.layer, head, position), i);
        }
    }
    lost
}

#[test]
fn a_run_that_loses_nothing_is_its_twin() {
    let ran = run(&settings("full"), &[]);
    let judged: Vec<_> = ran.steps.iter().filter_map(|s| s.seqs[0].shadow.as_ref().unwrap().judged).collect();
    assert_eq!(judged.len(), 12);
    assert!(judged.iter().all(|j| j.agrees && j.kl < 1e-9), "{judged:?}");
    let tally = ran.state.twin.sum().unwrap();
    assert_eq!((tally.agreement(), tally.regret, tally.told), (Some(1.0), 0.0, 0.0));
    assert!((tally.perplexity().unwrap() - tally.twin_perplexity().unwrap()).abs() < 1e-6);
    assert!(tally.ns > 0);
    // Pages are counted as they are; the accounts come on top.
    let card = &ran.state.run.model;
    let slots = ran.page_bytes / u64::from(card.layers * card.kv_heads * 8 * card.head_dim);
    assert_eq!(ran.state.twin.bytes(), ran.page_bytes + slots * u64::from(card.layers * card.kv_heads) * 8);
}

#[test]
fn the_run_is_the_same_with_a_twin_and_without() {
    let hash = |shadow| run(&Settings { shadow, ..settings("h2o:budget=25%") }, &[]).state.hash;
    let alone: StateHash = hash(0);
    assert_eq!([hash(1), hash(3)], [alone, alone]);
    let ran = run(&Settings { shadow: 0, ..settings("h2o:budget=25%") }, &[]);
    assert!(ran.steps.iter().all(|s| s.seqs[0].shadow.is_none()) && ran.state.twin.sum().is_none());
    assert!(ran.state.regret(0, 0, Some(0), 0).is_none());
}

#[test]
fn regret_is_the_sum_of_what_a_full_cache_reads_of_a_victim() {
    // One token a chunk, so that the full run's witness sees every row.
    for policy in ["h2o:budget=25%", "streaming:budget=40", "tova:budget=30"] {
        let evicting = run(&Settings { chunk: 1, ..settings(policy) }, &[]);
        let ids = evicting.state.seqs[0].generated_ids();
        let full = run(&Settings { chunk: 1, shadow: 0, ..settings("full") }, &ids);
        let card = &full.state.run.model;
        let group = (card.heads / card.kv_heads) as usize;
        let lost = victims(&evicting.steps, card.kv_heads as Head);
        assert!(lost.len() > 100, "{policy}");
        let mut total = 0.0;
        for (&(layer, head, position), &step) in &lost {
            let heads = usize::from(head) * group..(usize::from(head) + 1) * group;
            let row = |rows: &Vec<Vec<Vec<f32>>>| {
                let rows = heads.clone().map(|h| f64::from(rows[usize::from(layer)][h][position as usize]));
                rows.sum::<f64>() / group as f64
            };
            let expected: f64 = full.rows[step + 1..].iter().map(row).sum();
            let told = f64::from(evicting.state.regret(0, layer, Some(head), position).unwrap());
            assert!((told - expected).abs() < 1e-5 * expected.max(1.0), "{policy}: {told} {expected}");
            total += expected;
        }
        let tally = evicting.state.twin.sum().unwrap();
        assert!(
            total > 1.0 && (tally.regret - total).abs() < 1e-4 * total,
            "{policy}: {} {total}",
            tally.regret
        );
        assert!((tally.told - tally.regret).abs() < 1e-4 * total, "{policy}: everything was told in the end");
        // A victim of no head is one of them all.
        let (&(layer, _, position), _) = lost.iter().next_back().unwrap();
        let all =
            (0..card.kv_heads as Head).map(|h| evicting.state.regret(0, layer, Some(h), position).unwrap());
        assert_eq!(evicting.state.regret(0, layer, None, position), Some(all.sum()));
    }
}

#[test]
fn losing_the_key_shows_as_divergence_and_regret() {
    let ran = run(&settings("h2o:budget=25%"), &[]);
    let tally = ran.state.twin.sum().unwrap();
    assert!(tally.mean_kl().unwrap() > 0.01 && tally.regret > 0.0, "{tally:?}");
    assert!(
        tally.perplexity().unwrap() < tally.twin_perplexity().unwrap(),
        "the twin would say other things"
    );
}

#[test]
fn every_third_draw_is_judged_as_it_is_when_all_are_and_regret_is_whole() {
    for policy in ["h2o:budget=25%", "tova:budget=30"] {
        let all = run(&settings(policy), &[]);
        let some = run(&Settings { shadow: 3, ..settings(policy) }, &[]);
        let judged = |ran: &Ran| {
            let draws = ran.steps.iter().filter(|s| s.seqs[0].sampled.is_some());
            draws.map(|s| s.seqs[0].shadow.as_ref().unwrap().judged).collect::<Vec<_>>()
        };
        for (i, (some, all)) in judged(&some).into_iter().zip(judged(&all)).enumerate() {
            let Some(some) = some else {
                assert_ne!(i % 3, 0);
                continue;
            };
            let all = all.unwrap();
            assert!(
                i % 3 == 0 && some.agrees == all.agrees && (some.kl - all.kl).abs() < 1e-4,
                "{some:?} {all:?}"
            );
        }
        let regret = |ran: &Ran| ran.state.twin.sum().unwrap().regret;
        assert!((regret(&some) - regret(&all)).abs() < 1e-4 * regret(&all));
    }
}

#[test]
fn read_sets_and_codes_cost_divergence_and_no_regret() {
    let read = Settings { read: "kcache:n=4,l=0".into(), ..settings("full") };
    let coded = Settings { kv_dtype: "int2".into(), block_size: 32, ..settings("full") };
    for settings in [read, coded] {
        let tally = run(&settings, &[]).state.twin.sum().unwrap();
        assert!(tally.mean_kl().unwrap() > 1e-4 && tally.regret == 0.0, "{tally:?}");
    }
}

#[test]
fn every_sequence_of_a_batch_has_its_own_twin() {
    let batch = Settings { batch: 2, temperature: 1.0, ..settings("streaming:budget=40") };
    let ran = run(&batch, &[]);
    let [a, b] = &ran.state.twin.seqs[..] else { panic!("two sequences") };
    assert_eq!((a.tally.judged, b.tally.judged), (12, 12));
    assert!(a.tally.regret > 0.0 && b.tally.regret > 0.0 && a.tally.kl != b.tally.kl);
}

#[test]
fn the_state_at_any_step_is_the_one_a_keyframe_keeps() {
    let ran = run(&settings("tova:budget=30"), &[]);
    let run = Arc::clone(&ran.state.run);
    let mut state = State::new(Arc::clone(&run)).unwrap();
    for step in &ran.steps {
        state.fold(step).unwrap();
        state = State::from_keyframe(Arc::clone(&run), &state.keyframe()).unwrap();
    }
    assert_eq!(state, ran.state);
    assert!(state.twin.seqs[0].tally.told > 0.0);
}

#[test]
fn a_twin_that_does_not_fit_is_refused_with_the_arithmetic() {
    let engine =
        |settings: &Settings| Engine::new(Arc::new(demo::load().unwrap()), settings, &prompt()).unwrap();
    engine(&Settings { shadow: 0, ..settings("full") }).check_memory(0).unwrap();
    let asked = engine(&settings("full"));
    let card = asked.info().model.clone();
    let slots = (asked.info().prompt_tokens + 12).next_multiple_of(16);
    let bytes = u64::from(card.layers * card.kv_heads * (2 * card.head_dim * 4 + 8) * slots);
    asked.check_memory(bytes).unwrap();
    let why = asked.check_memory(bytes - 1).unwrap_err().to_string();
    for part in [
        format!(
            "{} layers x {} KV heads x (2 x {} x 4 B + 8 B) x {slots} slots",
            card.layers, card.kv_heads, card.head_dim
        ),
        format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20)),
        "--max-tokens".into(),
    ] {
        assert!(why.contains(&part), "{why} lacks {part}");
    }
    let two = engine(&Settings { batch: 2, ..settings("full") });
    assert!(two.check_memory(bytes).unwrap_err().to_string().contains("x 2 sequences"));
}
