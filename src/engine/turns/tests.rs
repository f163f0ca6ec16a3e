use std::collections::BTreeSet;
use std::sync::Arc;

use super::*;
use crate::engine::{Feed, Observe};
use crate::event::{Finish, Origin, Stage, Step};
use crate::model::{ChatTemplate, Config, Decoder, Tokenizer, demo};
use crate::policy::{Kind, registry};
use crate::state::State;

const PROMPT: &str =
    " Once there was a brave boy named Leo. He had a friend named Mia. One day Leo took a red ball.";
const TURN: &str = "Then they played with the ball all day";

fn settings(policy: &str) -> Settings {
    Settings { policy: policy.into(), max_tokens: 6, ignore_eos: true, chunk: 16, ..Settings::default() }
}

fn prompt(text: &str) -> Prompt {
    Prompt { text: text.into(), ..Prompt::default() }
}

fn demo_engine(settings: &Settings, text: &str) -> Engine {
    Engine::new(Arc::new(demo::load().unwrap()), settings, &prompt(text)).unwrap()
}

/// Runs to the end of the answer: its steps, and the state they fold to.
fn run(engine: &mut Engine, feed: &mut Feed) -> Vec<Arc<Step>> {
    let mut steps = Vec::new();
    while let Some(step) = engine.step().unwrap() {
        steps.push(feed.step(step).unwrap());
    }
    steps
}

fn begin(engine: &Engine) -> Feed {
    let mut feed = Feed::default();
    feed.begin(engine.info()).unwrap();
    feed
}

fn state(feed: &Feed) -> &State {
    feed.state().unwrap()
}

fn here(said: &Said) -> usize {
    match *said {
        Said::Here(tokens) => tokens,
        Said::Anew(_) => panic!("the run should have gone on"),
    }
}

fn refused(engine: &mut Engine, text: &str) -> String {
    let why = engine.say(text).err().expect("a refusal");
    assert!(why.is_input());
    let why = why.to_string();
    assert!(!why.contains('\n'), "{why}");
    why
}

/// What is said on the same cache is what a run of its own says that was given everything at once.
#[test]
fn a_turn_goes_on_as_if_all_had_been_one_prompt() {
    let mut engine = demo_engine(&settings("full"), PROMPT);
    let mut feed = begin(&engine);
    run(&mut engine, &mut feed);
    let tokens = here(&engine.say(TURN).unwrap());
    let steps = run(&mut engine, &mut feed);
    let seq = state(&feed).seq(0).unwrap();
    let turns = seq.turns();
    assert_eq!(turns.len(), 2);
    assert_eq!((turns[0].ids().len(), turns[1].ids().len()), (6, 6));
    // The token drawn last is fed first.
    assert_eq!(tokens, 1 + turns[1].given.len());
    assert_eq!(turns[1].start, seq.turn_starts()[1]);
    assert!(steps.iter().any(|s| s.seqs[0].stage == Stage::Prefill));
    assert!(steps.iter().filter(|s| s.seqs[0].stage == Stage::Decode).count() == 5);
    assert_eq!(seq.finish, Some(Finish::MaxTokens));
    assert_eq!(seq.prompt_len(&state(&feed).run) as usize, seq.tokens.len() - 5);
    assert_eq!(seq.answered(), 6);

    let whole = format!("{PROMPT}{} {TURN}", turns[0].text());
    let mut alone = demo_engine(&settings("full"), &whole);
    let mut other = begin(&alone);
    run(&mut alone, &mut other);
    let once = state(&other).seq(0).unwrap();
    let ids = |state: &State| state.seqs[0].tokens.iter().map(|t| t.id).collect::<Vec<_>>();
    assert_eq!(ids(state(&feed)), ids(state(&other)));
    assert_eq!(turns[1].ids(), once.generated_ids());

    let summary = state(&feed).summary();
    assert_eq!(summary.turns.len(), 2);
    assert_eq!(summary.turns[1].text, turns[1].text());
    assert_eq!([&summary.turns[0].token_ids[..], &summary.turns[1].token_ids].concat(), summary.token_ids);
    assert!(state(&other).summary().turns.is_empty());
    // One first token and one end per turn.
    assert_eq!(summary.latency_ns.time_to_first_token.count, 2);
    assert_eq!(summary.latency_ns.per_token.count, 10);
    assert_eq!(summary.latency_ns.end_to_end.count, 2);
}

/// Every rule goes on over turns: budgets hold, steps fold, and the same run gives the same state again.
#[test]
fn every_rule_goes_on_over_turns() {
    let mut all: Vec<Settings> = registry::of_kind(Kind::Evict)
        .map(|entry| match entry.name {
            "full" => settings("full"),
            "snapkv" | "pyramidkv" | "nacl" => settings(&format!("{}:budget=24,window=8", entry.name)),
            name => settings(&format!("{name}:budget=24")),
        })
        .collect();
    all.push(settings("h2o:budget=24+adakv"));
    for (policy, read) in [
        ("full", "kcache:n=4,l=1"),
        ("h2o:budget=24", "quest:budget=16,page=4"),
        ("full", "infllm:local=16,init=0,block=16,topk=1,cache=2"),
    ] {
        all.push(Settings { read: read.into(), ..settings(policy) });
    }
    for (policy, kv_dtype, block_size) in
        [("full", "int4", 32), ("h2o:budget=24", "nuq4", 16), ("full", "f16", 16)]
    {
        all.push(Settings { kv_dtype: kv_dtype.into(), block_size, ..settings(policy) });
    }
    for (policy, merge) in [("h2o:budget=24", "cam:m=4"), ("h2o:budget=24", "d2o"), ("full", "minicache")] {
        all.push(Settings { merge: merge.into(), ..settings(policy) });
    }
    all.push(Settings { shadow: 2, ..settings("h2o:budget=24") });
    let mut decided_at_the_end = BTreeSet::new();
    for settings in all {
        let hash = |note: &mut BTreeSet<String>| {
            let mut engine = demo_engine(&settings, PROMPT);
            let mut feed = begin(&engine);
            run(&mut engine, &mut feed);
            for text in [TURN, "Mia was happy. Leo was happy too"] {
                here(&engine.say(text).unwrap());
                for step in run(&mut engine, &mut feed) {
                    let part = &step.seqs[0];
                    if part.stage == Stage::Prefill && part.sampled.is_some() && !part.evictions.is_empty() {
                        note.insert(settings.policy.clone());
                    }
                }
            }
            let state = state(&feed);
            assert_eq!(state.seqs[0].turns().len(), 3, "{}", settings.policy);
            state.hash
        };
        let first = hash(&mut decided_at_the_end);
        assert_eq!(first, hash(&mut BTreeSet::new()), "{settings:?}");
    }
    for rule in ["snapkv", "h2o", "tova", "pyramidkv"] {
        assert!(decided_at_the_end.iter().any(|policy| policy.starts_with(rule)), "{decided_at_the_end:?}");
    }
}

/// A share of the prompt is a share of everything up to the newest answer.
#[test]
fn a_share_grows_with_the_conversation() {
    let mut engine = demo_engine(&settings("h2o:budget=50%"), PROMPT);
    let mut feed = begin(&engine);
    let mut budgets = Vec::new();
    run(&mut engine, &mut feed);
    for text in [None, Some(TURN), Some(TURN)] {
        if let Some(text) = text {
            here(&engine.say(text).unwrap());
            run(&mut engine, &mut feed);
        }
        let seq = state(&feed).seq(0).unwrap();
        let budget = seq.prompt_len(&state(&feed).run).div_ceil(2);
        let most = seq.resident.iter().copied().max().unwrap();
        assert!(most <= budget + 1 && most + 8 > budget, "{most} of {budget}");
        budgets.push(budget);
    }
    assert!(budgets.is_sorted_by(|a, b| a < b), "{budgets:?}");
}

#[test]
fn what_cannot_be_said_changes_nothing() {
    let mut engine = demo_engine(&Settings { max_tokens: 2, ..settings("full") }, PROMPT);
    assert!(refused(&mut engine, TURN).contains("prompt is not fed"));
    let mut feed = begin(&engine);
    run(&mut engine, &mut feed);
    assert!(refused(&mut engine, " \n").contains("empty turn"));
    assert_eq!(refused(&mut engine, "Leo met a wizard"), "the model does not know the word 'met'");
    let long = "the ball ".repeat(4_000);
    assert!(refused(&mut engine, &long).contains("of the context of 4096 are left"));
    assert!(engine.is_finished());
    here(&engine.say(TURN).unwrap());
    assert!(!engine.is_finished() && !engine.is_decoding());
    // An answer under way is cut short; what was drawn of it is fed.
    while !engine.is_decoding() {
        feed.step(engine.step().unwrap().unwrap()).unwrap();
    }
    here(&engine.say(TURN).unwrap());
    run(&mut engine, &mut feed);
    let turns = state(&feed).seqs[0].turns();
    assert_eq!(turns.iter().map(|turn| turn.ids().len()).collect::<Vec<_>>(), [2, 1, 2]);

    let batch = Settings { batch: 2, ..settings("full") };
    let mut engine = demo_engine(&batch, PROMPT);
    while engine.step().unwrap().is_some() {}
    assert!(refused(&mut engine, TURN).contains("for one sequence, this run has 2"));
}

/// A model of random weights that speaks bytes; `.` ends what it says.
fn speaker(template: &str) -> Arc<Model> {
    let config = Config {
        eos: vec![u32::from(b'.')],
        ..Config::parse(
            "config.json",
            br#"{"model_type": "llama", "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
                "num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": 257, "rms_norm_eps": 1e-5,
                "rope_theta": 10000.0, "max_position_embeddings": 256, "tie_word_embeddings": true,
                "bos_token_id": 256, "eos_token_id": 46}"#,
        )
        .unwrap()
    };
    let tokenizer = Tokenizer::bytes(&config).unwrap();
    let chat = ChatTemplate::of_metadata("t", template, &tokenizer);
    let decoder = Decoder::random(config, 1).unwrap();
    Arc::new(Model { chat, ..Model::new(decoder, tokenizer) })
}

const TEMPLATE: &str =
    "{% for m in messages %}{{ '<' ~ m.role[0] ~ '>' ~ m.content | trim ~ '.' }}{% endfor %}<a>";

fn chat() -> Settings {
    Settings { chat: true, max_tokens: 8, chunk: 16, ..Settings::default() }
}

fn text_of(feed: &Feed) -> String {
    let bytes = state(feed).seqs[0].tokens.iter().flat_map(|t| t.piece.0.clone()).collect();
    String::from_utf8(bytes).unwrap()
}

#[test]
fn only_what_is_new_of_a_conversation_is_fed() {
    let mut engine = Engine::new(speaker(TEMPLATE), &chat(), &prompt("Hi")).unwrap();
    let mut feed = begin(&engine);
    engine.teach(b" ok.".map(u32::from).as_slice());
    run(&mut engine, &mut feed);
    assert_eq!(text_of(&feed), "<u>Hi.<a> ok");
    assert_eq!(state(&feed).seqs[0].finish, Some(Finish::EndToken));

    // The end token was drawn and the template spells it: it is fed once, and it is the model's.
    assert_eq!(here(&engine.say("More").unwrap()), ".<u>More.<a>".len());
    engine.teach(b"12345678".map(u32::from).as_slice());
    let steps = run(&mut engine, &mut feed);
    let fed = &steps[0].seqs[0].fed;
    assert_eq!((fed[0].origin, fed[1].origin), (Origin::Generated, Origin::Turn));
    assert_eq!(text_of(&feed), "<u>Hi.<a> ok.<u>More.<a>1234567");
    assert_eq!(state(&feed).seqs[0].finish, Some(Finish::MaxTokens));

    // Cut off by the limit: the token drawn last is fed, and the template ends what the model did not.
    here(&engine.say("End").unwrap());
    engine.teach(b".".map(u32::from).as_slice());
    run(&mut engine, &mut feed);
    assert_eq!(text_of(&feed), "<u>Hi.<a> ok.<u>More.<a>12345678.<u>End.<a>");
    let summary = state(&feed).summary();
    let texts: Vec<&str> = summary.turns.iter().map(|turn| turn.text.as_str()).collect();
    assert_eq!(texts, [" ok.", "12345678", "."]);
    assert_eq!(state(&feed).run.command(), "kvista run --chat --prompt Hi --chunk 16 --max-tokens 8");
}

/// A template that drops what was thought leaves nothing to go on from.
#[test]
fn a_template_that_rewrites_begins_anew() {
    let template =
        "{% for m in messages %}{{ '<' ~ m.role[0] ~ '>' ~ m.content.split('|')[-1] ~ '.' }}{% endfor %}<a>";
    let mut engine = Engine::new(speaker(template), &chat(), &prompt("Hi")).unwrap();
    engine.teach(b"hm|ok.".map(u32::from).as_slice());
    while engine.step().unwrap().is_some() {}
    let Said::Anew(mut anew) = engine.say("More").unwrap() else { panic!("nothing of the kind was fed") };
    assert!(engine.is_finished(), "the old run is over");
    let mut feed = begin(&anew);
    anew.teach(b"yes.".map(u32::from).as_slice());
    run(&mut anew, &mut feed);
    assert_eq!(text_of(&feed), "<u>Hi.<a>ok.<u>More.<a>yes");
    assert_eq!(anew.info().prompt, "<u>Hi.<a>ok.<u>More.<a>");
    assert!(!anew.info().settings.chat, "its prompt is the model's own form already");
    // Nothing was thought this time.
    here(&anew.say("End").unwrap());
}

#[test]
fn a_conversation_that_cannot_be_is_refused() {
    let refused = |model: Arc<Model>, settings: &Settings, prompt: &Prompt| {
        let why = Engine::new(model, settings, prompt).err().expect("a refusal");
        assert!(why.is_input());
        why.to_string()
    };
    let demo = || Arc::new(demo::load().unwrap());
    assert!(refused(demo(), &chat(), &prompt("Hi")).contains("model 'demo' has no chat template"));
    let batch = Settings { batch: 2, ..chat() };
    assert!(refused(speaker(TEMPLATE), &batch, &prompt("Hi")).contains("one sequence"));
    let asked = Prompt { question: " Who?".into(), ..prompt("Hi") };
    assert!(refused(speaker(TEMPLATE), &chat(), &asked).contains("--prompt alone"));
    let strict = "{{ raise_exception('no system prompt') }}";
    assert!(refused(speaker(strict), &chat(), &prompt("Hi")).contains("the template says: no system prompt"));

    // A template may refuse a later turn, and the run stays as it was.
    let short =
        "{% if messages | length > 1 %}{{ raise_exception('enough') }}{% endif %}{{ messages[0].content }}";
    let mut engine = Engine::new(speaker(short), &chat(), &prompt("Hi")).unwrap();
    engine.set_observe(Observe::Off);
    while engine.step().unwrap().is_some() {}
    assert!(self::refused(&mut engine, "More").contains("the template says: enough"));
    assert!(engine.is_finished());
}
