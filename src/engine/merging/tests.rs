//! Merges under the whole engine.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::*;
use crate::cache::{HOLE, Pages};
use crate::engine::Prompt;
use crate::event::{Eviction, Position, Reason, SeqStep, Settings, Step};
use crate::model::{self, Model};
use crate::state::State;

/// What is merged was lost in this step, and went into what is resident after it; `resident` knows a lane by its number.
pub(in crate::engine) fn check_merges<'r>(
    part: &SeqStep,
    kv_heads: usize,
    resident: impl Fn(usize) -> &'r BTreeSet<Position>,
) {
    for m in part.merges.iter().filter(|m| m.with.is_none()) {
        let resident = resident(usize::from(m.layer) * kv_heads + usize::from(m.head));
        let of_head = |e: &&Eviction| {
            e.layer == m.layer && e.head.is_none_or(|h| h == m.head) && e.reason != Reason::LayerWindow
        };
        let victims = &part.evictions.iter().find(of_head).unwrap().positions;
        assert_eq!((m.merged + m.apart) as usize, victims.len(), "merged and lost are all victims");
        let merged = (0..victims.len()).filter(|&i| m.is_merged(i) == Some(true)).map(|i| victims[i]);
        assert!(merged.eq(m.arcs.iter().map(|arc| arc.from)));
        assert!(m.arcs.iter().all(|arc| resident.contains(&arc.into)));
    }
}

fn demo() -> (Arc<Model>, String) {
    #[derive(serde::Deserialize)]
    struct Golden {
        prompt_text: String,
    }
    let golden: Golden = serde_json::from_str(include_str!("../../model/demo/golden.json")).unwrap();
    (Arc::new(model::demo::load().unwrap()), golden.prompt_text)
}

fn settings(policy: &str, merge: &str) -> Settings {
    Settings {
        policy: policy.into(),
        merge: merge.into(),
        max_tokens: 12,
        ignore_eos: true,
        ..Settings::default()
    }
}

fn engine(model: &Arc<Model>, text: &str, settings: &Settings) -> Engine {
    let prompt = Prompt { text: text.into(), ..Prompt::default() };
    Engine::new(Arc::clone(model), settings, &prompt).unwrap()
}

fn steps(engine: &mut Engine) -> Vec<Step> {
    std::iter::from_fn(|| engine.step().unwrap()).collect()
}

fn merges(steps: &[Step]) -> impl Iterator<Item = &Merge> {
    steps.iter().flat_map(|step| &step.seqs).flat_map(|part| &part.merges)
}

fn ids(steps: &[Step]) -> Vec<u32> {
    steps.iter().flat_map(|step| &step.seqs).filter_map(|part| part.sampled.as_ref()).map(|s| s.id).collect()
}

/// (position, K row, V row) of the residents of one lane.
type Rows = Vec<(u32, Vec<f32>, Vec<f32>)>;

fn rows(engine: &Engine, layer: Layer, head: Head) -> Rows {
    let lane = engine.cache.table(0, layer).lane(head);
    let (Pages::F32(k), Pages::F32(v)) = engine.cache.pages(0, layer, head) else { panic!("f32 pages") };
    let live = lane.slots.iter().enumerate().filter(|&(_, &p)| p != HOLE);
    live.map(|(slot, &p)| (p, k.row(slot).to_vec(), v.row(slot).to_vec())).collect()
}

/// Steps up to the first that merges, with and without the merge; the rows of the lane before anything else is fed.
fn beside(policy: &str, merge: &str, layer: Layer) -> (Merge, Rows, Rows) {
    let (model, text) = demo();
    let run = |merge: &str| {
        let mut engine = engine(&model, &text, &settings(policy, merge));
        while !engine.is_decoding() {
            let step = engine.step().unwrap().unwrap();
            if engine.is_decoding() {
                return (step, rows(&engine, layer, 1));
            }
        }
        unreachable!("a prompt has a step")
    };
    let ((merging, after), (plain, before)) = (run(merge), run(""));
    // The prompt was attended to before anything was merged: who is lost is the same.
    assert_eq!(merging.seqs[0].evictions, plain.seqs[0].evictions);
    assert!(plain.seqs[0].merges.is_empty());
    let told = merging.seqs[0].merges.iter().find(|m| (m.layer, m.head) == (layer, 1)).unwrap().clone();
    (told, before, after)
}

fn changed(before: &Rows, after: &Rows) -> (u64, u64) {
    let positions = |rows: &Rows| rows.iter().map(|row| row.0).collect::<Vec<_>>();
    assert_eq!(positions(before), positions(after));
    let pairs = || before.iter().zip(after);
    (pairs().filter(|(a, b)| a.1 != b.1).count() as u64, pairs().filter(|(a, b)| a.2 != b.2).count() as u64)
}

#[test]
fn cam_alters_values_alone() {
    let (told, before, after) = beside("h2o:budget=25%", "cam:m=4", 2);
    assert!(told.merged > 0 && told.apart > 0, "{} {}", told.merged, told.apart);
    assert_eq!(changed(&before, &after), (0, told.v.rows));
    assert_eq!(told.k.rows, 0);
    assert!(told.v.relative().unwrap() > 0.0);
    assert!(told.arcs.iter().all(|arc| arc.from < arc.into));
}

#[test]
fn d2o_alters_keys_and_values_of_the_targets() {
    let (told, before, after) = beside("h2o:budget=25%", "d2o", 2);
    assert!(told.merged > 0 && told.apart > 0, "{} {}", told.merged, told.apart);
    let mut targets: Vec<u32> = told.arcs.iter().map(|arc| arc.into).collect();
    targets.sort_unstable();
    targets.dedup();
    assert_eq!(changed(&before, &after), (targets.len() as u64, targets.len() as u64));
    assert_eq!((told.k.rows, told.v.rows), (targets.len() as u64, targets.len() as u64));
    let altered = before.iter().zip(&after).filter(|(a, b)| a.1 != b.1).map(|(a, _)| a.0);
    assert!(altered.eq(targets));
}

#[test]
fn minicache_turns_rows_and_keeps_their_lengths() {
    let (told, before, after) = beside("full", "minicache", 3);
    let tokens = before.len() as u32;
    assert_eq!((told.with, told.merged + told.apart), (Some(2), tokens));
    assert!(told.apart >= (0.05 * f64::from(tokens)).ceil() as u32);
    assert_eq!(changed(&before, &after), (told.merged.into(), told.merged.into()));
    let length = |row: &[f32]| row.iter().map(|x| x * x).sum::<f32>().sqrt();
    for (a, b) in before.iter().zip(&after) {
        for (was, is) in [(&a.1, &b.1), (&a.2, &b.2)] {
            assert!((length(was) - length(is)).abs() <= 1e-5 * length(was).max(1.0));
        }
    }
    // 32 elements of 4 bytes and two lengths, K and V.
    assert_eq!(told.saved_bytes, u64::from(told.merged) * 2 * (128 - 8));
    let (lower, before, after) = beside("full", "minicache", 2);
    assert_eq!((lower.with, lower.saved_bytes, lower.merged), (Some(3), 0, told.merged));
    assert_eq!(changed(&before, &after).0, u64::from(lower.merged));
}

#[test]
fn the_same_seed_merges_the_same_and_another_does_not() {
    let (model, text) = demo();
    let run = |seed| {
        let mut engine = engine(&model, &text, &Settings { seed, ..settings("h2o:budget=25%", "cam") });
        let mut state = State::new(Arc::clone(engine.info())).unwrap();
        let steps = steps(&mut engine);
        for step in &steps {
            state.fold(step).unwrap();
        }
        let arcs = |m: &Merge| m.arcs.iter().map(|arc| arc.from).collect::<Vec<_>>();
        (merges(&steps).map(arcs).collect::<Vec<_>>(), state)
    };
    let ((one, a), (again, b), (other, c)) = (run(1), run(1), run(2));
    assert_eq!((&one, a.hash), (&again, b.hash));
    assert_ne!(one, other);
    assert_ne!(a.hash, c.hash);
    let sum = a.merging.sum();
    assert_eq!(sum.merged + sum.apart, a.evictions.total_victims());
    let summary = serde_json::to_value(a.summary()).unwrap();
    assert_eq!(summary["merging"]["rule"], "cam:m=32");
    assert_eq!(summary["merging"]["merged"], sum.merged);
    assert_eq!(summary["merging"]["layers"].as_array().unwrap().len(), 4);
}

#[test]
fn merges_go_on_with_what_is_generated_and_work_on_every_page_that_can() {
    let (model, text) = demo();
    for dtype in ["f32", "f16", "int8"] {
        for merge in ["cam", "d2o", "minicache"] {
            for read in ["", "kcache:n=8,l=1"] {
                let s = Settings {
                    kv_dtype: dtype.into(),
                    read: read.into(),
                    ..settings("streaming:budget=64,reposition=false", merge)
                };
                let steps = steps(&mut engine(&model, &text, &s));
                assert_eq!(ids(&steps).len(), 12);
                let decoding: Vec<Step> =
                    steps.iter().filter(|s| s.seqs[0].fed.len() == 1).cloned().collect();
                assert_eq!(merges(&decoding).count() > 0, merge != "minicache", "{dtype} {merge} {read}");
                assert!(merges(&steps).any(|m| m.merged > 0), "{dtype} {merge} {read}");
            }
        }
    }
}

#[test]
fn sequences_of_a_batch_merge_for_themselves() {
    let (model, text) = demo();
    let alone = ids(&steps(&mut engine(&model, &text, &settings("knorm:budget=64", "d2o"))));
    let both = Settings { batch: 2, ..settings("knorm:budget=64", "d2o") };
    let steps = steps(&mut engine(&model, &text, &both));
    let shared = steps.iter().flat_map(|s| &s.seqs).flat_map(|part| &part.tables);
    assert!(shared.clone().all(|ops| ops.adopted.is_empty()), "rows that are altered are not shared");
    let first: Vec<u32> = steps
        .iter()
        .flat_map(|step| step.seqs.iter().filter(|part| part.seq == 1))
        .filter_map(|part| part.sampled.as_ref().map(|s| s.id))
        .collect();
    assert_eq!(first, alone);
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
    let coded = Settings { kv_dtype: "int4".into(), block_size: 32, ..settings("h2o:budget=25%", "d2o") };
    for (settings, says) in [
        (settings("full", "cam"), "policy 'full' keeps everything"),
        (settings("full", "d2o"), "--policy h2o:budget=25%"),
        (settings("full", "minicache:from=0.9"), "of the 4 layers"),
        (coded, "int4 pages share scales"),
        (settings("h2o:budget=25%", "kcache"), "kcache is a read set, not a merge rule: give it to --read"),
    ] {
        let error = refused(&settings);
        assert!(error.contains(says), "{error}");
    }
}

#[test]
fn a_tuned_number_is_in_force_at_the_next_decision() {
    let (model, text) = demo();
    let mut engine = engine(&model, &text, &settings("streaming:budget=64,reposition=false", "cam:m=8"));
    while !engine.is_decoding() {
        engine.step().unwrap();
    }
    assert_eq!(engine.tune("m", "2").unwrap().unwrap().to, "2");
    assert_eq!(engine.tune("m", "2").unwrap(), None);
    assert!(engine.tune("m", "0").unwrap_err().is_input());
    let steps = steps(&mut engine);
    let targets: Vec<u32> = merges(&steps).flat_map(|m| &m.arcs).map(|arc| arc.targets).collect();
    assert!(!targets.is_empty() && targets.iter().all(|&n| n == 2), "{targets:?}");
}

#[test]
fn the_papers_d2o_is_an_evictor_and_a_merge() {
    let (model, text) = demo();
    let mut engine = engine(&model, &text, &settings("d2o:budget=20%", "d2o"));
    let steps = steps(&mut engine);
    let shares = engine.sequences[0].shares.clone();
    assert!(
        (shares.iter().sum::<f32>() - 4.0).abs() < 1e-4 && shares.iter().any(|&s| s != 1.0),
        "{shares:?}"
    );
    let last = steps.last().unwrap();
    let fed = engine.sequences[0].fed.len() as u32;
    let slots = engine.policy.bound(&engine.brought(0).moment(2, When::Token), 4).unwrap().per_head;
    let mean = 0.2 * engine.prompt.len() as f32;
    assert!((slots as f32 - shares[2] * mean).abs() <= 1.0 + 0.5 * shares[2], "{slots} {shares:?}");
    for (layer, residents) in last.seqs[0].resident.chunks_exact(4).enumerate() {
        let want = if layer == 2 { slots } else { fed };
        assert!(residents.iter().all(|&n| n == want), "layer {layer}: {residents:?}, {want} slots");
    }
    assert!(merges(&steps).all(|m| m.layer == 2));
    assert!(merges(&steps).any(|m| m.merged > 0));
    // The threshold of the first decision is in force in all heads alike, and moves on.
    let thresholds: Vec<_> = merges(&steps).map(|m| m.threshold.unwrap()).collect();
    assert!(thresholds.chunks_exact(4).all(|heads| heads.iter().all(|t| *t == heads[0])));
    assert_ne!(thresholds.first(), thresholds.last());
}
