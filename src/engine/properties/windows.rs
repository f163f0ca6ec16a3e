//! Windows of layers: what left one is lost, nothing else changes.

use std::sync::Arc;

use proptest::prelude::*;

use super::{Case, PLENTY, Said, cases, evictors};
use crate::engine::{Engine, Prompt, Trunk};
use crate::event::{Reason, Settings, Step};

/// The same case over layers that look at windows; 0 for one that sees all.
fn with_windows(mut case: Case, windows: &[u32]) -> Case {
    case.config.arch.windows = windows[..case.config.layers].to_vec();
    case
}

/// Cases of every kind, one in two over layers with windows.
pub(super) fn wild_cases() -> impl Strategy<Value = Case> {
    let windows = prop_oneof![Just([0; 3]), prop::array::uniform3(0..24u32)];
    (super::wild_cases(), windows).prop_map(|(case, windows)| match windows {
        [0, 0, 0] => case,
        windows => with_windows(case, &windows),
    })
}

/// Every window lost what lay outside of it and nothing that lay inside, and says so.
pub(super) fn check(engine: &Engine, step: &Step) {
    let config = engine.model.decoder.config();
    for part in &step.seqs {
        let next = part.first + part.fed.len() as u32;
        for (lane, &resident) in part.resident.iter().enumerate() {
            let window = config.window(lane / config.kv_heads);
            assert!(
                window.is_none_or(|window| resident < window),
                "{resident} of {window:?} before the next query"
            );
        }
        for e in part.evictions.iter().filter(|e| e.reason == Reason::LayerWindow) {
            let window = config.window(usize::from(e.layer)).expect("the layer has a window");
            assert!(e.cutoff.is_none() && e.scores.is_empty() && !e.positions.is_empty());
            assert!(
                e.positions.iter().all(|p| p + window <= next),
                "{:?} under {window} before {next}",
                e.positions
            );
        }
        if part.finish.is_none() {
            let left = |(e, window): (&crate::event::Eviction, u32)| {
                e.positions.iter().any(|p| p + window <= next) && e.reason != Reason::LayerWindow
            };
            let windowed =
                part.evictions.iter().filter_map(|e| Some((e, config.window(usize::from(e.layer))?)));
            assert!(!windowed.into_iter().any(left), "what left its window is lost for that reason");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_window_as_long_as_the_context_is_none_to_the_bit(case in cases(), policy in evictors()) {
        for case in [case.clone(), case.policy(&policy)] {
            let wide = with_windows(case.clone(), &[PLENTY; 3]);
            prop_assert_eq!(wide.said(), case.said());
        }
    }

    /// What a chunk masks and what later steps no longer hold is the same, however the prompt is cut.
    #[test]
    fn chunks_of_any_size_say_the_same(case in cases(), windows in prop::array::uniform3(0..24u32), chunk in 1..60u32) {
        let case = with_windows(case, &windows).with(|s| s.kv_dtype = "f32".into());
        let logits = |case: &Case, forced: &[u32]| {
            let mut engine = case.engine();
            engine.witness.forced = forced.iter().copied().collect();
            while let Some(step) = engine.step().unwrap() {
                check(&engine, &step);
            }
            (engine.witness.logits, engine.sequences[0].fed[engine.prompt.len()..].to_vec())
        };
        let (whole, said) = logits(&case.with(|s| s.chunk = 64), &[]);
        let (cut, _) = logits(&case.with(|s| s.chunk = chunk), &said);
        prop_assert_eq!(whole.len(), cut.len());
        for (a, b) in whole.iter().flatten().zip(cut.iter().flatten()) {
            prop_assert!((a - b).abs() < 1e-4, "{} {}", a, b);
        }
    }

    #[test]
    fn a_full_cache_twin_sees_what_the_run_sees(case in cases(), windows in prop::array::uniform3(0..24u32)) {
        let case = with_windows(case, &windows).with(|s| (s.kv_dtype, s.shadow) = ("f32".into(), 1));
        case.run(|_, step| {
            for shadow in step.seqs.iter().filter_map(|part| part.shadow.as_ref()) {
                assert_eq!(shadow.regret, 0.0, "nothing that left a window would have been read");
                assert!(shadow.victims.is_empty());
                if let Some(judged) = &shadow.judged {
                    assert!(judged.kl < 1e-6, "{judged:?}");
                }
            }
        });
    }

    #[test]
    fn windows_go_with_every_policy(case in wild_cases()) {
        case.run(|engine, step| check(engine, step));
    }
}

/// What left a window in the trunk is lost to its branches as it is to a run of their own.
#[test]
fn a_branch_stands_where_a_run_of_its_own_does() {
    let prompt =
        Prompt { text: "a text of more tokens than any of the windows is long".into(), ..Prompt::default() };
    for policy in
        ["h2o:budget=9", "streaming:budget=20,sinks=2,reposition=false", "snapkv:budget=12,window=4"]
    {
        let settings = Settings {
            policy: policy.into(),
            chunk: 4096,
            block_size: 4,
            max_tokens: 8,
            ignore_eos: true,
            ..Settings::default()
        };
        let case = Case {
            config: super::shape(3, 4, 2, 8),
            weights: 4,
            prompt: prompt.clone(),
            settings,
            tunes: Vec::new(),
        };
        let case = with_windows(case, &[0, 7, 16]);
        let model = case.model();
        let ending = |mut engine: Engine| {
            let mut steps = Vec::new();
            while let Some(step) = engine.step().unwrap() {
                let part = &step.seqs[0];
                if part.fed.len() == 1 {
                    let drawn = part.sampled.as_ref().map(|s| (s.id, s.logprob.to_bits()));
                    steps.push((drawn, part.resident.clone(), part.evictions.clone()));
                }
            }
            steps
        };
        let trunk = Trunk::new(Arc::clone(&model), &[&case.settings], &case.prompt, &[]).unwrap();
        let branch = ending(trunk.branch(&case.settings).unwrap().0);
        assert_eq!(branch.len(), 7);
        assert_eq!(branch, ending(Engine::new(model, &case.settings, &case.prompt).unwrap()), "{policy}");
    }
}

/// InfLLM remembers what is far away, and in a layer with a window nothing is.
#[test]
fn a_memory_serves_the_layers_without_a_window() {
    let settings = Settings {
        read: "infllm:local=16,init=0,block=16,topk=1,cache=2".into(),
        max_tokens: 20,
        chunk: 16,
        ignore_eos: true,
        ..Settings::default()
    };
    let prompt = Prompt {
        text: "a text that is long enough for blocks of its own to form".into(),
        ..Prompt::default()
    };
    let case = Case { config: super::shape(2, 4, 2, 8), weights: 3, prompt, settings, tunes: Vec::new() };
    let case = with_windows(case, &[0, 12]);
    let (mut read, mut said) = (Vec::new(), 0);
    case.run(|engine, step| {
        check(engine, step);
        super::check_tiers(engine, step);
        read.extend(step.reads.iter().map(|reads| reads.layer));
        said += step.seqs.iter().filter_map(Said::of).count();
    });
    assert_eq!(said, 20);
    assert!(!read.is_empty() && read.iter().all(|&layer| layer == 0), "{read:?}");
}
