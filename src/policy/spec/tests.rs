//! The grammar both ways, and its refusals.

use proptest::prelude::*;

use super::super::{ReadSet, parse_policy, parse_read};
use super::*;

const NAMES: &str = "full, streaming, h2o, tova, random, lm-infinite, scissorhands, snapkv, pyramidkv, keyformer, \
                     fastgen, roco, buzz, nacl, d2o, knorm, keydiff, expected";

fn refused(text: &str) -> String {
    parse_policy(text).expect_err(text).to_string()
}

#[test]
fn what_is_read_prints_canonically() {
    for (given, canonical) in [
        ("full", "full"),
        ("h2o", "h2o:budget=100%"),
        ("h2o:recent=0.5,budget=25%", "h2o:budget=25%"),
        (" h2o : recent = 0.30 , budget = 25.0 % ", "h2o:budget=25%,recent=0.3"),
        ("streaming:budget=512,sinks=4,reposition=true", "streaming:budget=512"),
        ("streaming:budget=512,reposition=false", "streaming:budget=512,reposition=false"),
        ("tova:budget=12.5%,when=chunk", "tova:budget=12.5%,when=chunk"),
        ("h2o:budget=25%+kvcrush:ratio=.25+adakv", "h2o:budget=25%+kvcrush:ratio=0.25+adakv:floor=0.2"),
        (" snapkv + adakv : adakv.floor = 0.5 ", "snapkv:budget=100%+adakv:floor=0.5"),
    ] {
        assert_eq!(parse_policy(given).unwrap().to_string(), canonical);
    }
    for (given, canonical) in [
        ("kcache", "kcache:n=64"),
        ("kcache:n=64,l=1,renorm=false,include_self=true", "kcache:n=64"),
        ("kcache:l=0,n=32,renorm=true", "kcache:n=32,l=0,renorm=true"),
    ] {
        assert_eq!(parse_read(given).unwrap().to_string(), canonical);
    }
}

#[test]
fn refusals_say_what_is_wrong_and_what_to_do() {
    for (given, message) in [
        ("", "no eviction policy named: use one of NAMES"),
        ("h20:budget=25%", "no eviction policy is called 'h20' (did you mean 'h2o'?): use one of NAMES"),
        ("lru", "no eviction policy is called 'lru': use one of NAMES"),
        ("kcache:n=8", "kcache is a read set, not an eviction policy: give it to --read"),
        (
            "h2o:bugdet=25%",
            "h2o has no parameter 'bugdet' (did you mean 'budget'?): use one of budget, recent, when, variant, by",
        ),
        ("full:budget=4", "full has no parameter 'budget': it takes none"),
        ("h2o:25%", "h2o: '25%' is not PARAM=VALUE: write it as in h2o:budget=25%"),
        ("h2o:budget=4,", "h2o: '' is not PARAM=VALUE: write it as in h2o:budget=25%"),
        ("h2o:budget=4,budget=4", "h2o: budget is given twice: give it once"),
        (
            "tova:budget=0",
            "tova: budget cannot be '0': use slots (at least 1) or a share of the prompt (above 0%; 100% keeps everything)",
        ),
        ("h2o:recent=1.5", "h2o: recent cannot be '1.5': use a number from 0 to 1"),
        ("h2o:recent=nan", "h2o: recent cannot be 'nan': use a number from 0 to 1"),
        ("h2o:when=never", "h2o: when cannot be 'never': use prompt or chunk"),
        ("streaming:reposition=yes", "streaming: reposition cannot be 'yes': use true or false"),
        ("h2o+tova", "h2o+tova: both evict, and one cache has one evictor: name one of them"),
        ("h2o:budget=8+h2o", "h2o+h2o: both evict, and one cache has one evictor: name one of them"),
        ("tova+full", "tova+full: full keeps everything and joins no other: name one of them"),
        (
            "adakv",
            "adakv works on what another policy scores: write it behind one, as in h2o:budget=25%+adakv",
        ),
        (
            "streaming:budget=64+adakv",
            "streaming+adakv: it does not rank tokens by a score, which is what a wrapper works on: use h2o or \
             snapkv, for one",
        ),
        (
            "full+kvcrush",
            "full+kvcrush: full keeps everything, there is nothing to wrap: name a policy that evicts",
        ),
        (
            "tova:budget=64+adakv",
            "tova+adakv: adakv shares a layer's budget over its heads, and this rule decides for the whole layer: \
             use by=head where it has it, or leave adakv out",
        ),
        ("h2o+adakv+adakv", "h2o+adakv: the wrapper is named twice: name it once"),
        ("h2o+adakv:flor=1", "adakv has no parameter 'flor' (did you mean 'floor'?): use floor"),
        ("h2o+kvcrush:ratio=2", "kvcrush: ratio cannot be '2': use a number from 0 to 1"),
        ("h2o+adakv+tova", "h2o+tova: both evict, and one cache has one evictor: name one of them"),
        ("h2o+kcache", "kcache is a read set, not an eviction policy: give it to --read"),
    ] {
        assert_eq!(refused(given), message.replace("NAMES", NAMES));
    }
    let read = |text: &str| parse_read(text).expect_err(text).to_string();
    assert_eq!(read("h2o"), "h2o is an eviction policy, not a read set: give it to --policy");
    assert_eq!(read("kcache:n=0"), "kcache: n cannot be '0': use a whole number from 1 to 1048576");
    assert_eq!(read("kcache+kcache"), "kcache+kcache: both choose what is read: name one of them");
    assert_eq!(read("quest:page=0"), "quest: page cannot be '0': use a whole number from 1 to 1024");
}

#[test]
fn a_hostile_spelling_stays_one_short_line() {
    let message = refused(&format!("\x1b[2J\n{}", "x".repeat(1 << 20)));
    assert!(!message.chars().any(char::is_control) && message.len() < 300, "{message}");
    let many = refused(&"h2o:budget=1+".repeat(10_000));
    assert!(many.starts_with("h2o+h2o: "), "{many}");
}

#[test]
fn changes_say_from_to_and_whether_they_are_live() {
    let mut policy = parse_policy("streaming:budget=25%").unwrap();
    let change = policy.set("budget", "64").unwrap().unwrap();
    let tuning = Tuning { name: "budget".into(), from: "25%".into(), to: "64".into() };
    assert_eq!(change, Change { tuning, live: true });
    assert_eq!(policy.slots(1000), Some(64));
    assert_eq!(policy.set("budget", "64").unwrap(), None);
    assert!(!policy.set("reposition", "false").unwrap().unwrap().live);
    let before = policy.clone();
    assert!(policy.set("budget", "0").is_err() && policy.set("bugdet", "1").is_err());
    assert_eq!(policy, before);

    let mut wrapped = parse_policy("h2o:budget=25%+adakv").unwrap();
    let change = wrapped.set("adakv.floor", "0.5").unwrap().unwrap();
    let tuning = Tuning { name: "adakv.floor".into(), from: "0.2".into(), to: "0.5".into() };
    assert_eq!(change, Change { tuning, live: true });
    assert_eq!(wrapped.spec().get("adakv.floor"), Some(Value::Real(0.5)));
    let before = wrapped.clone();
    let message = wrapped.set("by", "page").unwrap_err().to_string();
    assert!(message.starts_with("h2o+adakv: adakv shares"), "{message}");
    assert_eq!(wrapped, before);
    assert!(wrapped.set("floor", "1").is_err());

    let mut read: ReadSet = "kcache".parse().unwrap();
    assert!(read.set("n", "8").unwrap().unwrap().live);
    assert!(!read.set("l", "0").unwrap().unwrap().live);
    let ReadRule::Kcache(kcache) = read.rule() else { panic!("{read}") };
    assert_eq!((kcache.n, kcache.exempt_layers), (8, 0));
}

/// A value of the kind, as a person could reach it.
fn value(kind: ParamKind) -> BoxedStrategy<Value> {
    match kind {
        ParamKind::Int { min, max } => (min..=max).prop_map(Value::Int).boxed(),
        ParamKind::Real { min, max } => (min..=max).prop_map(Value::Real).boxed(),
        ParamKind::Bool => any::<bool>().prop_map(Value::Bool).boxed(),
        ParamKind::Budget => prop_oneof![
            (1u32..).prop_map(|slots| Value::Budget(Budget::Slots(slots))),
            (1e-6f32..=100.0).prop_map(|percent| Value::Budget(Budget::Percent(percent))),
        ]
        .boxed(),
        ParamKind::Choice(words) => prop::sample::select(words).prop_map(Value::Choice).boxed(),
    }
}

fn any_part(entry: &'static Entry) -> impl Strategy<Value = Part> {
    let values: Vec<_> = entry.params.iter().map(|param| value(param.kind)).collect();
    values.prop_map(move |values| Part { entry, values })
}

/// Any rule with any of the wrappers that fit it.
fn any_spec() -> impl Strategy<Value = Spec> {
    let alone: Vec<_> = registry::REGISTRY.iter().filter(|entry| !entry.is_wrapper()).collect();
    let wrappers: Vec<_> = registry::wrappers().map(|entry| (any_part(entry), any::<bool>())).collect();
    (prop::sample::select(alone).prop_flat_map(any_part), wrappers).prop_map(|(base, wrappers)| {
        let mut spec = Spec { parts: vec![base] };
        for (wrapper, wanted) in wrappers {
            spec.parts.push(wrapper);
            if !wanted || spec.check_composition().is_err() {
                spec.parts.pop();
            }
        }
        spec
    })
}

proptest! {
    #[test]
    fn every_spec_reads_back_as_it_prints(spec in any_spec()) {
        let text = spec.to_string();
        let back = Spec::parse(spec.entry().kind(), &text).unwrap();
        prop_assert_eq!(back.to_string(), text);
        prop_assert_eq!(back, spec);
    }

    #[test]
    fn any_text_is_read_or_refused_in_one_line(text in "(h2o|tova|full|kcache|adakv|kvcrush|[a-z0-9]{0,6})[:+,=%.a-z0-9\\PC]{0,40}") {
        if let Err(error) = parse_policy(&text) {
            let message = error.to_string();
            prop_assert!(!message.is_empty() && !message.chars().any(char::is_control), "{}", message);
        }
    }

    #[test]
    fn nudging_never_leaves_the_range(spec in any_spec(), by in -1000i32..1000, coarse: bool) {
        for (param, value) in spec.params() {
            let moved = param.nudge(value, by, coarse);
            prop_assert_eq!(param.kind.parse(&moved.to_string()), Some(moved), "{}", param.name);
        }
    }
}
