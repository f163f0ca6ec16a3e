//! What a read set reads again: counted on the device, so that a step fetches sums and no list of rows.

use std::sync::Arc;

use candle_core::Device;
use kvista::engine::backend::Backend;
use kvista::engine::{Engine, Observe, Prompt};
use kvista::event::{ScoreLevel, Settings, Step};

use crate::device::is_real;
use crate::emulated::{self, Emulated};
use crate::engine::{golden, on_gpu};

fn settings() -> Settings {
    Settings {
        read: "kcache:n=2,l=1".into(),
        batch: 2,
        max_tokens: 8,
        ignore_eos: true,
        temperature: 0.7,
        scores: ScoreLevel::Off,
        ..Settings::default()
    }
}

/// More rows are asked for while it runs: what was read before stays known.
#[test]
fn what_was_read_stays_known_where_more_is_asked_for() {
    if !emulated::is_there() {
        return;
    }
    let (model, golden) = golden();
    let prompt = Prompt { text: golden.prompt_text.chars().take(260).collect(), ..Prompt::default() };
    let run = |mut engine: Engine| {
        let mut steps: Vec<Step> = Vec::new();
        while let Some(step) = engine.step().unwrap() {
            steps.push(step);
            if steps.iter().filter(|step| step.seqs[0].sampled.is_some()).count() == 4 {
                engine.tune("n", "24").unwrap();
            }
        }
        steps
    };
    let gpu = run(on_gpu(&model, &settings(), &prompt, 1));
    let own = run(Engine::new(Arc::clone(&model), &settings(), &prompt).unwrap());
    let config = model.decoder.config();
    let mut most = 0;
    for (gpu, own) in gpu.iter().zip(&own) {
        for (gpu, own) in gpu.traffic.iter().zip(&own.traffic) {
            // The row of the query before is not pulled by that on a processor, and may be read again.
            let more = gpu.reused_rows - own.reused_rows;
            assert!(more <= 2 * config.kv_heads as u64, "{gpu:?} {own:?}");
            most = most.max(own.reused_rows);
        }
    }
    // Two rows per query head of two, and then more: of the first none is forgotten.
    assert!(most > 2 * 2 * 2 * config.kv_heads as u64, "{most}");
}

#[test]
fn no_list_of_rows_is_fetched() {
    if !emulated::is_there() || is_real() {
        return;
    }
    let (model, golden) = golden();
    let prompt = Prompt { text: golden.prompt_text.chars().take(260).collect(), ..Prompt::default() };
    let gpu = Emulated::new(0);
    let settings = Settings { device: "cuda:0".into(), pull: "gather".into(), ..settings() };
    let mut engine =
        Engine::on(Backend::gpu(gpu.clone(), Device::Cpu), Arc::clone(&model), &settings, &prompt).unwrap();
    engine.set_observe(Observe::Events);
    let config = model.decoder.config();
    // Counts and what was reused per KV head, what was asked for and dropped per query head; in every layer.
    let words_of_each = config.layers * 2 * (config.heads + config.kv_heads);
    let mut decoded = 0;
    loop {
        let before = gpu.fetched();
        let Some(step) = engine.step().unwrap() else { break };
        if step.seqs.iter().all(|part| part.fed.len() == 1) {
            let words = words_of_each * step.seqs.len();
            assert_eq!(gpu.fetched() - before, 4 * words as u64, "step {}", step.step);
            decoded += 1;
        }
    }
    assert!(decoded > 4);
}
