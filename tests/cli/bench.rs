//! `kvista bench`: numbers of this machine, so only what they are, not how large.

use crate::program::run;

#[test]
fn a_bench_tells_what_it_measured_at_every_level_of_the_probe() {
    let found = &run(["bench", "--context", "64,80", "--steps", "2", "--threads", "2", "--json"])
        .ok()
        .lines()[0]["bench"];
    assert_eq!(found["model"]["name"], "demo");
    assert_eq!((found["machine"]["threads"].as_u64(), found["kv_dtype"].as_str()), (Some(2), Some("f32")));
    let contexts = found["contexts"].as_array().unwrap();
    assert_eq!(contexts.len(), 2);
    for context in contexts {
        // The demo's prompts end with a sentence, a little before or after what was asked for.
        assert!((40..=100).contains(&context["tokens"].as_u64().unwrap()), "{context}");
        assert!(context["prefill_tokens_per_s"].as_f64().unwrap() > 0.0);
        for level in ["off", "events", "rows"] {
            assert!(context["decode_tokens_per_s"][level].as_f64().unwrap() > 0.0, "{context}");
            assert!(context["step_over_off"][level].as_f64().unwrap() > 0.0, "{context}");
        }
    }
    let text = run(["bench", "--context", "64", "--steps", "1", "--read", "kcache:n=8,l=1"]).ok().out();
    assert!(text.contains("read set kcache:n=8,l=1") && text.contains("tokens/s, measured"), "{text}");
}

#[test]
fn a_batch_is_measured_over_a_context_made_of_chance() {
    let args = [
        "bench",
        "--context",
        "200",
        "--steps",
        "1",
        "--batch",
        "2",
        "--filled",
        "--device",
        "cpu",
        "--json",
    ];
    let found = &run(args).ok().lines()[0]["bench"];
    assert_eq!((&found["batch"], &found["filled"]), (&2.into(), &true.into()));
    assert!(found["contexts"][0]["prefill_tokens_per_s"].is_null(), "nothing was fed");
    assert!(found["contexts"][0]["decode_tokens_per_s"]["off"].as_f64().unwrap() > 0.0);
}

#[test]
fn a_context_that_the_model_does_not_have_is_refused() {
    let ran = run(["bench", "--context", "100000"]);
    assert_eq!(ran.code, Some(2));
    assert!(ran.err().contains("--context 100000") && ran.err().lines().count() == 1, "{}", ran.err());
}
