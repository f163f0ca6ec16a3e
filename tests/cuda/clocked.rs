//! What a run on a device tells of itself: how long copies took and were waited for, and which rows it draws whole.

use std::sync::Arc;

use kvista::engine::{Engine, Prompt};
use kvista::event::{Cells, LayerTraffic, Phase, Provenance, ScoreLevel, Settings, Stage, Step};

use crate::device::is_real;
use crate::emulated;
use crate::engine::{golden, on_gpu, steps};

fn prompt(characters: usize) -> Prompt {
    Prompt { text: golden().1.prompt_text.chars().take(characters).collect(), ..Prompt::default() }
}

/// Copies are clocked in the steps that the device is clocked in, of the prompt and of the answer; the share of them that was
/// waited for is that of the link's time in every step until the next.
#[test]
fn copies_are_clocked_and_what_is_waited_for_is_their_measured_share() {
    if !emulated::is_there() {
        return;
    }
    let settings = Settings {
        read: "kcache:n=6,l=1".into(),
        pull: "gather".into(),
        // Slow enough that a share of its time can be told to one in a thousand.
        link_gbps: 0.01,
        batch: 2,
        chunk: 32,
        max_tokens: 4,
        ignore_eos: true,
        temperature: 0.7,
        ..Settings::default()
    };
    for schedule in 0..2 {
        let steps = steps(on_gpu(&golden().0, &settings, &prompt(260), schedule));
        let clocked = |step: &&Step| !step.layer_ns.is_empty();
        let stages: Vec<Stage> = steps.iter().filter(clocked).map(Step::stage).collect();
        assert_eq!(stages, [Stage::Prefill, Stage::Decode], "the first step of either");
        assert!(steps.iter().filter(|step| step.stage() == Stage::Prefill).count() > 2);
        let mut shares = [0.0; 4];
        for step in &steps {
            assert_eq!(step.timing, Provenance::Sampled);
            for t in &step.traffic {
                let LayerTraffic { layer, h2d_bytes, d2h_bytes, copy_ns, link_ns, stall_ns, .. } = *t;
                let layer = usize::from(layer);
                let what = format!("schedule {schedule}, step {}, layer {layer}", step.step);
                assert!(h2d_bytes > 0 && d2h_bytes > 0, "{what}: rows go and come");
                assert_eq!(link_ns, ((h2d_bytes + d2h_bytes) as f64 / 0.01).round() as u64, "{what}");
                assert!(stall_ns <= link_ns, "{what}");
                let share = stall_ns as f64 / link_ns as f64;
                if let Some(phases) = step.layer_ns.get(layer) {
                    assert!(copy_ns > 0, "{what}");
                    shares[layer] = share;
                    // The wait that the queue of copies was late for lies in the phase of pulling.
                    let waited_ns = phases[Phase::VPull as usize];
                    assert!(is_real() || schedule > 0 || waited_ns >= copy_ns, "{what}: {waited_ns} ns");
                } else {
                    assert_eq!(copy_ns, 0, "{what}: nobody clocked it");
                    assert!((share - shares[layer]).abs() < 1e-3, "{what}: {share} of {}", shares[layer]);
                }
            }
            let host_layers: Vec<u16> = step.traffic.iter().map(|t| t.layer).collect();
            assert_eq!(host_layers, [1, 2, 3]);
            if is_real() || step.layer_ns.is_empty() {
                continue;
            }
            // The queue of copies is late, and all of it is waited for; or the other one is, and it has come long before. A
            // test may be interrupted between two marks, but hardly in every layer.
            let least = shares[1..].iter().copied().fold(1.0, f64::min);
            assert!(if schedule == 0 { least == 1.0 } else { least < 0.5 }, "{schedule}: {shares:?}");
        }
    }
}

/// Full rows of a device are thinned from a rate on, and say so; those of a processor never are.
#[test]
fn full_rows_of_a_device_are_thinned_where_they_are_too_many() {
    if !emulated::is_there() {
        return;
    }
    let (model, _) = golden();
    let settings = Settings {
        scores: ScoreLevel::Full,
        chunk: 32,
        max_tokens: 3,
        ignore_eos: true,
        ..Settings::default()
    };
    let prompt = prompt(260);
    let on_cpu = || Engine::new(Arc::clone(&model), &settings, &prompt).unwrap();
    let levels = |mut engine: Engine, most: Option<u64>| -> Vec<ScoreLevel> {
        if let Some(most) = most {
            engine.thin_rows_above(most);
        }
        let told = steps(engine).into_iter().map(|step| {
            let map = step.seqs[0].attention.as_ref().expect("a picture");
            for row in map.groups.iter().flat_map(|group| &group.rows) {
                match (&row.cells, map.level) {
                    (Cells::Full(cells), ScoreLevel::Full) => assert!(!cells.is_empty()),
                    (Cells::Top(cells), ScoreLevel::Top(64)) => assert!((1..=64).contains(&cells.len())),
                    (cells, level) => panic!("{cells:?} at {level:?}"),
                }
            }
            map.level
        });
        told.collect()
    };
    let thinned = levels(on_gpu(&model, &settings, &prompt, 0), Some(0));
    assert_eq!(thinned[0], ScoreLevel::Full, "how many they are is known after the first");
    assert!(
        thinned.len() > 3 && thinned[1..].iter().all(|&level| level == ScoreLevel::Top(64)),
        "{thinned:?}"
    );
    assert!(levels(on_cpu(), Some(0)).iter().all(|&level| level == ScoreLevel::Full));
    if !is_real() {
        // An emulation is slow.
        let whole = levels(on_gpu(&model, &settings, &prompt, 0), None);
        assert!(whole.iter().all(|&level| level == ScoreLevel::Full), "{whole:?}");
    }
}
