//! Runs in which KVCrush decides: on the device by what is kept there where it can, else here; both as on the processor.

use std::sync::Arc;

use candle_core::Device;
use kvista::device::launch::CrushSizes;
use kvista::engine::backend::Backend;
use kvista::engine::{Engine, Observe, Prompt};
use kvista::event::Settings;

use crate::device::is_real;
use crate::emulated::{self, Emulated};
use crate::engine::{Rows, golden, same};

#[test]
fn representatives_are_the_processors() {
    if !emulated::is_there() {
        return;
    }
    for (policy, batch) in [
        ("h2o:budget=50,recent=0,when=chunk+kvcrush:group=1,ratio=0.5,anchor=random", 3),
        ("h2o:budget=40,variant=kvpress+kvcrush:group=4,anchor=mean", 1),
        ("tova:budget=40,by=head+kvcrush:group=8,anchor=inv-mean", 1),
        ("h2o:budget=40,by=layer+kvcrush:group=4", 1),
        ("h2o:budget=40+kvcrush:group=4,variant=torch", 1),
        ("h2o:budget=40+adakv+kvcrush:group=4", 1),
    ] {
        let settings = Settings { policy: policy.into(), batch, temperature: 0.8, ..Settings::default() };
        same(&settings, Rows::Stay, policy);
    }
}

/// What a step fetches: the answer, and longer lists where more are lost than it has places for.
#[test]
fn no_sums_are_fetched() {
    if !emulated::is_there() || is_real() {
        return;
    }
    let (model, golden) = golden();
    let text: String = golden.prompt_text.chars().take(300).collect();
    let prompt = Prompt { text, ..Prompt::default() };
    let kv_heads = model.decoder.config().kv_heads;
    let (mut decisions, mut longer) = (0, 0);
    for (budget, recent, group, ratio) in [(40, 0.5, 4, 0.25), (50, 0.0, 1, 0.5)] {
        let settings = Settings {
            policy: format!("h2o:budget={budget},recent={recent}+kvcrush:group={group},ratio={ratio}"),
            device: "cuda:0".into(),
            max_tokens: 12,
            ignore_eos: true,
            ..Settings::default()
        };
        let gpu = Emulated::new(0);
        let backend = Backend::gpu(gpu.clone(), Device::Cpu);
        let mut engine = Engine::on(backend, Arc::clone(&model), &settings, &prompt).unwrap();
        engine.set_observe(Observe::Events);
        loop {
            let before = gpu.fetched();
            let Some(step) = engine.step().unwrap() else { break };
            let part = &step.seqs[0];
            let mut words = 0;
            for (layer, resident) in part.resident.chunks(kv_heads).enumerate() {
                let lost = |head: usize| {
                    let own = part.evictions.iter().filter(|e| usize::from(e.layer) == layer);
                    own.filter(|e| e.head == Some(head as u16)).map(|e| e.positions.len()).sum::<usize>()
                };
                let residents = (0..kv_heads).map(|head| resident[head] as usize + lost(head)).max().unwrap();
                let sizes = CrushSizes {
                    kv_heads,
                    sequences: 1,
                    slots: 0,
                    residents,
                    end: part.first as usize + part.fed.len(),
                    budget,
                    group,
                    ratio,
                };
                // Inside the prompt nothing is decided.
                if residents <= budget || part.sampled.is_none() {
                    continue;
                }
                decisions += 1;
                words += sizes.answer();
                if (0..kv_heads).map(lost).sum::<usize>() > sizes.places() {
                    longer += 1;
                    words += sizes.rest();
                }
            }
            assert_eq!(gpu.fetched() - before, 4 * words as u64, "group {group}");
        }
    }
    assert!(decisions > 10 && longer > 0, "{decisions} decisions, {longer} of them with longer lists");
    // Of a model of 32 heads that holds 4,096 tokens, a token later.
    let large = CrushSizes {
        kv_heads: 32,
        sequences: 1,
        slots: 4352,
        residents: 4097,
        end: 20_000,
        budget: 4096,
        group: 16,
        ratio: 0.25,
    };
    assert!(16 * large.answer() < large.kv_heads * large.slots, "{} words", large.answer());
}
