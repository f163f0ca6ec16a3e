//! The schema attached to `/step` describes what is written, and nothing else.

use serde_json::{Value, json};

use super::samples::{crush, step};
use super::writer::STEP_SCHEMA;

/// Checks a value against the part of JSON Schema that the schema uses.
fn check(root: &Value, schema: &Value, value: &Value, at: &str) -> Result<(), String> {
    let fail = |why: &str| Err(format!("{at}: {why}: {value}"));
    let schema = match schema.get("$ref").and_then(Value::as_str) {
        Some(path) => root.pointer(path.trim_start_matches('#')).expect("a definition"),
        None => schema,
    };
    let items = value.as_array().map_or(&[][..], Vec::as_slice);
    for (key, rule) in schema.as_object().expect("a schema is an object") {
        let holds = match key.as_str() {
            "type" => match rule.as_str().unwrap() {
                "object" => value.is_object(),
                "array" => value.is_array(),
                "string" => value.is_string(),
                "boolean" => value.is_boolean(),
                "number" => value.is_number(),
                "integer" => value.is_u64(),
                other => panic!("type {other}"),
            },
            "enum" => rule.as_array().unwrap().contains(value),
            "minimum" => value.as_f64() >= rule.as_f64(),
            "maximum" => value.as_f64() <= rule.as_f64(),
            "minItems" => items.len() as u64 >= rule.as_u64().unwrap(),
            "maxItems" => items.len() as u64 <= rule.as_u64().unwrap(),
            "required" => rule.as_array().unwrap().iter().all(|k| value.get(k.as_str().unwrap()).is_some()),
            "anyOf" => rule.as_array().unwrap().iter().any(|s| check(root, s, value, at).is_ok()),
            "additionalProperties" => {
                let known = schema["properties"].as_object().unwrap();
                value.as_object().is_none_or(|value| value.keys().all(|key| known.contains_key(key)))
            }
            "items" => {
                for (i, item) in items.iter().enumerate() {
                    check(root, rule, item, &format!("{at}[{i}]"))?;
                }
                true
            }
            "properties" => {
                for (name, rule) in rule.as_object().unwrap() {
                    if let Some(item) = value.get(name) {
                        check(root, rule, item, &format!("{at}.{name}"))?;
                    }
                }
                true
            }
            "description" | "title" | "$schema" | "$defs" => true,
            other => panic!("keyword {other}"),
        };
        if !holds {
            return fail(key);
        }
    }
    Ok(())
}

fn checked(value: &Value) -> Result<(), String> {
    let root: Value = serde_json::from_str(STEP_SCHEMA).unwrap();
    check(&root, &root, value, "step")
}

#[test]
fn every_sample_fits() {
    for id in 0..30 {
        checked(&serde_json::to_value(step(id)).unwrap()).unwrap();
    }
}

#[test]
fn every_variant_of_every_enum_fits() {
    use crate::event::merge::tests::sample as merge;
    use crate::event::{Finish, Merge, Origin, Provenance, Stage, TableOps, Tier, TierUse};
    let mut full = step(5);
    full.seqs[0].tables = vec![TableOps {
        layer: 0,
        head: Some(0),
        adopted: vec![1],
        copied: vec![(1, 2)],
        taken: vec![3],
        freed: vec![4],
        compacted: true,
    }];
    full.seqs[0].crush = vec![crush()];
    let pair = Merge { with: Some(1), merged: 3, saved_bytes: 9, ..Merge::default() };
    full.seqs[0].merges = vec![pair, merge()];
    for (i, tier) in [Tier::Device, Tier::Host, Tier::Disk, Tier::Remote].into_iter().enumerate() {
        full.tiers = vec![TierUse::new(tier)];
        full.timing =
            [Provenance::Measured, Provenance::Sampled, Provenance::Derived, Provenance::Modelled][i];
        full.seqs[0].stage = [Stage::Prefill, Stage::Decode][i % 2];
        full.seqs[0].fed[0].origin =
            [Origin::Prompt, Origin::Question, Origin::Generated, Origin::Turn][i % 4];
        checked(&serde_json::to_value(&full).unwrap()).unwrap();
    }
    for finish in
        [Finish::EndToken, Finish::MaxTokens, Finish::ContextFull, Finish::PoolExhausted, Finish::Stopped]
    {
        full.seqs[0].finish = Some(finish);
        checked(&serde_json::to_value(&full).unwrap()).unwrap();
    }
}

#[test]
fn what_is_no_step_does_not() {
    let sample = serde_json::to_value(step(5)).unwrap();
    let refused = |change: &dyn Fn(&mut Value)| {
        let mut bad = sample.clone();
        change(&mut bad);
        assert!(checked(&bad).is_err(), "{bad}");
    };
    refused(&|v| v["step"] = json!(-1));
    refused(&|v| v["surprise"] = json!(1));
    refused(&|v| v["outer_ns"] = json!([1]));
    refused(&|v| v["seqs"][0]["stage"] = json!("sleep"));
    refused(&|v| v["seqs"][0]["fed"][0]["piece"] = json!("text"));
    refused(&|v| {
        v.as_object_mut().unwrap().remove("probe");
    });
}
