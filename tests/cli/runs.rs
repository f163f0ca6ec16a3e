//! Headless runs: the lines, the summary, determinism, the demo's story.

use serde_json::{Map, Value};

use crate::program::{run, short_run};

/// Fields that users and scripts rely on.
const FIELDS: [&str; 14] = [
    "prompt_ids",
    "token_ids",
    "text",
    "steps",
    "device",
    "policy",
    "tokens_per_s",
    "resident_bytes",
    "traffic_bytes",
    "mass_dropped",
    "latency_ns",
    "probe_overhead",
    "dropped_samples",
    "state_hash",
];

#[test]
fn every_line_is_a_step_until_the_summary() {
    let ran = short_run(&[]).ok();
    assert_eq!(ran.err(), "");
    let lines = ran.lines();
    let (last, steps) = lines.split_last().unwrap();
    for (at, line) in steps.iter().enumerate() {
        assert_eq!(line["step"]["step"], at, "{line}");
    }
    let summary = last["summary"].as_object().unwrap();
    for field in FIELDS {
        assert!(summary.contains_key(field), "{field} is missing: {last}");
    }
    assert_eq!(summary["steps"], steps.len());
    assert_eq!(summary["token_ids"].as_array().unwrap().len(), 12);
    assert_eq!((&summary["device"], &summary["policy"]), (&"cpu".into(), &"h2o:budget=16".into()));
    assert!(summary["tokens_per_s"].as_f64().unwrap() > 0.0);
    assert!(summary["resident_bytes"]["device"]["allocated"].as_u64().unwrap() > 0);
    assert_eq!(summary["traffic_bytes"]["host_to_device"], 0);
    for quote in ["time_to_first_token", "per_token", "end_to_end"] {
        let quote = &summary["latency_ns"][quote];
        assert!(
            quote["p50"].as_u64().unwrap() > 0 && quote["p99"].as_u64() >= quote["p50"].as_u64(),
            "{quote}"
        );
    }
    let victims = |part: &Value| part["evictions"].as_array().map_or(0, Vec::len);
    assert!(steps.iter().any(|line| line["step"]["seqs"].as_array().unwrap().iter().any(|p| victims(p) > 0)));
}

#[test]
fn pages_in_codes_say_how_far_off_they_are() {
    assert!(short_run(&[]).summary().get("coding").is_none());
    let prompt = crate::program::PROMPT;
    let args =
        ["run", "--headless", "--json", "--prompt", prompt, "--max-tokens", "12", "--kv-dtype", "int2"];
    let coding = run(args).ok().summary()["coding"].clone();
    assert_eq!(coding["kv_dtype"], "int2");
    for part in ["k", "v"] {
        let error = coding[part]["relative_error"].as_f64().unwrap();
        assert!(error > 0.01 && error < 1.0 && coding[part]["mean_squared_error"].as_f64().unwrap() > 0.0);
    }
    let layers = coding["layers"].as_array().unwrap();
    assert_eq!(layers.len(), 4);
    assert!(layers.iter().all(|layer| layer["worst_k_channels"].as_array().unwrap().len() == 4));
}

#[test]
fn what_was_merged_is_in_the_summary_and_in_the_words() {
    assert!(short_run(&[]).summary().get("merging").is_none());
    let summary = short_run(&["--merge", "d2o"]).ok().summary();
    let merging = &summary["merging"];
    assert_eq!(merging["rule"], "d2o:alpha=0.5");
    let count = |part: &Value, name: &str| part[name].as_u64().unwrap();
    assert!(count(merging, "merged") > 0);
    let drift = merging["k_drift"].as_f64().unwrap();
    assert!(drift > 0.0 && drift < 2.0, "{drift}");
    let layers = merging["layers"].as_array().unwrap();
    assert_eq!(layers.iter().map(|layer| count(layer, "merged")).sum::<u64>(), count(merging, "merged"));
    let all = count(merging, "merged") + count(merging, "apart");
    assert_eq!(all, summary["victims"].as_u64().unwrap());
    let args = ["run", "--headless", "--plain", "--prompt", crate::program::PROMPT, "--max-tokens", "4"];
    let words = run(args.iter().chain(&["--merge", "minicache"])).ok().out();
    assert!(words.contains("merge minicache:t=0.6: ") && words.contains("(modelled)"), "{words}");
}

#[test]
fn a_twin_says_what_the_policy_cost_and_changes_nothing() {
    let alone = short_run(&[]).summary();
    let ran = short_run(&["--shadow"]).ok();
    let summary = ran.summary();
    assert_eq!(summary["state_hash"], alone["state_hash"]);
    assert!(alone.get("shadow").is_none());
    let shadow = &summary["shadow"];
    assert_eq!((&shadow["judged"], &shadow["provenance"]), (&12.into(), &"derived".into()));
    for figure in ["mean_kl", "regret", "perplexity", "twin_perplexity", "twin_ns", "twin_bytes"] {
        assert!(shadow[figure].as_f64().unwrap() > 0.0, "{figure}: {shadow}");
    }
    let regretted = ran.lines().iter().any(|line| {
        let told = &line["step"]["seqs"][0]["shadow"]["victims"];
        told.as_array().is_some_and(|lanes| !lanes.is_empty())
    });
    assert!(regretted);
    let prompt = crate::program::PROMPT;
    let args = ["run", "--headless", "--json", "--prompt", prompt, "--max-tokens", "12", "--shadow=every:4"];
    let kept = run(args).ok().summary()["shadow"].clone();
    assert_eq!((&kept["judged"], &kept["provenance"]), (&3.into(), &"sampled".into()));
    assert!(kept["mean_kl"].as_f64().unwrap() < 1e-6 && kept["agreement"] == 1.0 && kept["regret"] == 0.0);
}

#[test]
fn a_replay_prints_the_very_same_lines() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("run.mcap");
    let file = file.to_str().unwrap();
    for more in [
        &[][..],
        &["--policy", "full", "--kcache", "n=8,l=1"],
        &["--policy", "h2o:budget=25%", "--read", "quest:budget=64,page=8"],
        &["--policy", "full", "--read", "infllm:local=8,init=0,block=16,topk=1,cache=2"],
        &["--shadow"],
        &["--shadow=every:3", "--batch", "2"],
        &["--batch", "2", "--scores", "top:4"],
        &["--kv-dtype", "int2"],
        &["--kv-dtype", "nuq3:calibrate=48"],
        &["--merge", "cam:m=4"],
        &["--merge", "d2o", "--kv-dtype", "f16", "--batch", "2"],
        &["--policy", "full", "--merge", "minicache", "--kcache", "n=8,l=1"],
    ] {
        // A flag given twice is refused: the policy of the short run gives way.
        let live = if more.contains(&"--policy") {
            let args =
                ["run", "--headless", "--json", "--prompt", crate::program::PROMPT, "--max-tokens", "12"];
            run(args.iter().chain(more).chain(&["--record", file]))
        } else {
            short_run(&[more, &["--record", file]].concat())
        };
        let live = live.ok();
        let replayed = run(["replay", "--headless", "--format", "json", file]).ok();
        assert_eq!(replayed.out(), live.out(), "{more:?}");
        std::fs::remove_file(file).unwrap();
    }
}

#[test]
fn the_same_seed_gives_the_same_state() {
    for more in [&[][..], &["--temperature", "0.8", "--top-p", "0.9", "--seed", "7"]] {
        let [first, second] = [(); 2].map(|()| short_run(more).ok().summary());
        assert_eq!(first["state_hash"], second["state_hash"]);
        assert_eq!(first["token_ids"], second["token_ids"]);
    }
    // As fast as it goes, as the UI spells it.
    let unpaced = short_run(&["--pace", "0"]).ok().summary();
    assert_eq!(unpaced["state_hash"], short_run(&[]).ok().summary()["state_hash"]);
    let other = short_run(&["--temperature", "4", "--seed", "8"]).ok().summary();
    assert_ne!(other["state_hash"], short_run(&[]).ok().summary()["state_hash"]);
}

#[test]
fn block_size_chunk_and_threads_do_not_change_the_answer() {
    let ids = |more: &[&str]| {
        let args = ["run", "--headless", "--json", "--prompt", crate::program::PROMPT, "--max-tokens", "12"];
        run(args.iter().chain(more)).ok().summary()["token_ids"].clone()
    };
    let expected = ids(&[]);
    for more in [
        ["--chunk", "7"],
        ["--chunk", "1"],
        ["--block-size", "1"],
        ["--block-size", "128"],
        ["--threads", "2"],
    ] {
        assert_eq!(ids(&more), expected, "{more:?}");
    }
}

/// The demo's prompt with few generated tokens.
fn demo(more: &[&str]) -> Map<String, Value> {
    let args = ["run", "--headless", "--json", "--max-tokens", "8"];
    run(args.iter().chain(more)).ok().summary()
}

#[test]
fn the_demo_finds_its_key_until_the_cache_loses_it() {
    let full = demo(&[]);
    assert_eq!(full["right"], true, "{full:?}");
    let starved = demo(&["--policy", "h2o:budget=25%"]);
    assert_eq!(starved["right"], false, "{starved:?}");
    assert!(starved["victims"].as_u64().unwrap() > 0);
    assert_eq!(full["prompt_ids"], starved["prompt_ids"]);
}

#[test]
fn a_read_set_of_everything_changes_nothing_but_the_traffic() {
    let full = demo(&[]);
    let read = demo(&["--kcache", "n=700,l=1"]);
    assert_eq!(read["token_ids"], full["token_ids"]);
    assert!(read["traffic_bytes"]["host_to_device"].as_u64().unwrap() > 0, "{read:?}");
    assert!(read["mass_dropped"].as_f64().unwrap() < 1e-3, "{read:?}");
}

#[test]
fn quest_reads_less_and_says_how_much() {
    let full = demo(&[]);
    assert!(full.get("reads").is_none());
    let all = demo(&["--read", "quest:budget=4096,dense=0"]);
    assert_eq!(all["token_ids"], full["token_ids"]);
    let bytes = |run: &Map<String, Value>, what: &str| run["reads"][what].as_u64().unwrap();
    assert_eq!(bytes(&all, "read_bytes"), bytes(&all, "dense_bytes"));
    assert_eq!(all["mass_dropped"], 0.0);
    let some = demo(&["--read", "quest:budget=128,page=8,dense=1"]);
    assert_eq!(some["right"], true, "{some:?}");
    assert!(bytes(&some, "read_bytes") * 2 < bytes(&some, "dense_bytes"), "{some:?}");
    assert!(bytes(&some, "top_read") <= bytes(&some, "top") && bytes(&some, "top") > 0);
    assert!(some["mass_dropped"].as_f64().unwrap() > 0.0);
    // Without pictures nobody scores what is not read, and nothing else changes.
    let blind = demo(&["--read", "quest:budget=128,page=8,dense=1", "--scores", "off"]);
    assert_eq!((&blind["mass_dropped"], bytes(&blind, "top")), (&Value::Null, 0));
    assert_eq!(blind["token_ids"], some["token_ids"]);
    assert_eq!(blind["state_hash"], some["state_hash"]);
}

#[test]
fn infllm_moves_blocks_to_the_host_and_back() {
    let full = demo(&[]);
    let all = demo(&["--read", "infllm:local=4096,init=0"]);
    assert_eq!(all["token_ids"], full["token_ids"]);
    assert_eq!((&all["traffic_bytes"]["host_to_device"], &all["mass_dropped"]), (&0.into(), &0.0.into()));
    let some = demo(&["--read", "infllm:local=128,init=16,block=32,topk=4,cache=6"]);
    let bytes = |tier: &str, what: &str| some["resident_bytes"][tier][what].as_u64().unwrap();
    assert!(bytes("host", "live") > 0 && bytes("device", "copies") > 0, "{some:?}");
    assert_eq!(bytes("host", "live"), some["traffic_bytes"]["device_to_host"].as_u64().unwrap());
    assert!(some["traffic_bytes"]["host_to_device"].as_u64().unwrap() > 0);
    let reads = |what: &str| some["reads"][what].as_u64().unwrap();
    assert!(reads("read") < reads("pages") && reads("loaded") < reads("read"), "{some:?}");
    assert!(some["mass_dropped"].as_f64().unwrap() > 0.0);
}

#[test]
fn plain_and_text_say_the_same_in_words() {
    let args = ["run", "--headless", "--prompt", crate::program::PROMPT, "--max-tokens", "12"];
    let text = run(args).ok();
    let summary = run(args.iter().chain(&["--json"])).ok().summary();
    assert_eq!(text.out(), format!("{}\n", summary["text"].as_str().unwrap()));
    assert!(
        text.err().contains(&format!("state {}", summary["state_hash"].as_str().unwrap())),
        "{}",
        text.err()
    );
    let plain = run(args.iter().chain(&["--plain"])).ok().out();
    let steps = plain.lines().filter(|line| line.starts_with("step ")).count();
    assert_eq!(summary["steps"], steps, "{plain}");
    assert!(plain.contains("device cpu ("), "why it runs there is said: {plain}");
}

#[test]
fn an_evaluation_counts_and_says_so_in_both_forms() {
    let args = ["eval", "passkey", "--lengths", "256", "--depths", "0.8", "--n", "2"];
    let text = run(args).ok();
    assert!(text.out().contains("passkey: share of five-digit keys"), "{}", text.out());
    assert_eq!(text.err(), "passkey, 256 tokens, depth 0.8: 2 done\n");
    let json: Value = serde_json::from_str(&run(args.iter().chain(&["--json"])).ok().out()).unwrap();
    let cell = &json["table"]["rows"][0]["cells"][0];
    assert_eq!((cell["n"].as_u64(), cell["hits"].as_u64()), (Some(2), Some(2)), "{json}");
    assert!(text.out().contains("2/2"), "{}", text.out());
}
