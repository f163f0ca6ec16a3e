//! Index for index what NVIDIA/kvpress keeps of the embedded model's own keys, queries and attention, in all layers.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::Value;

use super::{Engine, Observe, Prompt};
use crate::cache::HOLE;
use crate::event::{Position, Settings};
use crate::model::demo;
use crate::policy::testing::kvpress::{Agreement, Golden};

#[test]
fn kvpress_keeps_the_same_of_the_demo_model() {
    let golden: Value = serde_json::from_str(include_str!("../model/demo/golden.json")).unwrap();
    let text = golden["prompt_text"].as_str().unwrap();
    let goldens: Vec<Golden> = serde_json::from_str(include_str!("../../tests/kvpress/demo.json")).unwrap();
    let model = Arc::new(demo::load().unwrap());
    let kept = |policy: &str| -> Vec<Vec<Vec<Position>>> {
        let settings = Settings { policy: policy.into(), chunk: 512, max_tokens: 1, ..Settings::default() };
        let prompt = Prompt { text: text.into(), ..Prompt::default() };
        let mut engine = Engine::new(Arc::clone(&model), &settings, &prompt).unwrap();
        engine.set_observe(Observe::Off);
        engine.step().unwrap();
        assert!(engine.is_decoding(), "the prompt goes through in one step");
        let shape = engine.cache.config().shape;
        let lane = |layer, head| {
            let slots = engine.cache.table(0, layer).lane(head).slots;
            slots.iter().copied().filter(|&p| p != HOLE).collect()
        };
        (0..shape.layers).map(|layer| (0..shape.kv_heads).map(|head| lane(layer, head)).collect()).collect()
    };
    let mut agreement = Agreement::default();
    let mut runs = BTreeMap::new();
    for golden in &goldens {
        let Some(policy) = golden.policy() else {
            agreement.refused += 1;
            continue;
        };
        let layers = runs.entry(policy).or_insert_with_key(|policy| kept(policy));
        golden.check(&layers[usize::from(golden.layer)], &mut agreement);
    }
    println!("{agreement:?}");
    assert!(agreement.equal > 20 * agreement.close && agreement.refused < goldens.len() / 4, "{agreement:?}");
}
