//! What folding refuses, what it forgets, and what a keyframe may do to it.

use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::event::crush::BitRow;
use crate::event::step::tests::plain_step;
use crate::event::{
    AttentionGroup, AttentionMap, Cells, CodingError, Crush, Eviction, Fed, Finish, HeadRow, LayerCoding,
    LayerReads, LayerTraffic, ModelCard, Origin, Phase, Position, Reason, Sampled, ScoreLevel, Stage,
    TableOps, Tier, attention, evict::recorded_score,
};

/// A run of one layer and one head, blocks of 16: what [`plain_step`] belongs to.
fn run() -> Arc<RunInfo> {
    let model = ModelCard { layers: 1, heads: 1, kv_heads: 1, head_dim: 2, ..ModelCard::default() };
    Arc::new(RunInfo { model, expected: Some(" 42".into()), ..RunInfo::default() })
}

fn folded(steps: impl IntoIterator<Item = Step>) -> State {
    let mut state = State::new(run()).unwrap();
    for step in steps {
        state.fold(&step).unwrap();
    }
    state
}

/// A victim of the only head; `score` against a cutoff of 1.
fn lose(step: &mut Step, positions: &[Position], score: f32) {
    let part = &mut step.seqs[0];
    part.resident[0] -= positions.len() as u32;
    part.evictions.push(Eviction {
        layer: 0,
        head: Some(0),
        reason: Reason::LowScore,
        cutoff: Some(1.0),
        kept: part.resident[0],
        positions: positions.to_vec(),
        scores: positions.iter().map(|_| recorded_score(score)).collect(),
    });
}

/// Ten tokens; 2 and 5 are lost at step 9, which also has a picture of what was resident before.
fn eventful() -> State {
    let mut last = plain_step(9);
    lose(&mut last, &[2, 5], 0.25);
    last.seqs[0].attention = Some(AttentionMap {
        level: ScoreLevel::Full,
        query: 9,
        groups: vec![AttentionGroup {
            layer: 0,
            kv_head: 0,
            positions: vec![(0, 10)],
            rows: vec![HeadRow {
                head: 0,
                dropped: 0.0,
                cells: Cells::Full((0..10).map(|p| if p == 3 { 239 } else { 0 }).collect()),
            }],
        }],
    });
    last.seqs[0].finish = Some(Finish::MaxTokens);
    last.tiers = vec![
        TierUse { live_bytes: 100, unfilled_bytes: 28, ..TierUse::new(Tier::Device) },
        TierUse::new(Tier::Host),
    ];
    last.traffic = vec![LayerTraffic { h2d_bytes: 64, d2h_bytes: 16, rows: 8, ..LayerTraffic::default() }];
    last.tuning = vec![Tuning { name: "budget".into(), from: "10".into(), to: "8".into() }];
    last.probe.ns = 3;
    last.layer_ns[0][Phase::Mlp as usize] = 5;
    folded((0..9).map(plain_step).chain([last]))
}

#[test]
fn steps_out_of_order_are_refused() {
    let mut state = folded((0..3).map(plain_step));
    for got in [0, 2, 4] {
        assert_eq!(state.fold(&plain_step(got)), Err(FoldError::OutOfOrder { got, last: 2 }));
    }
    assert!(State::new(run()).unwrap().fold(&plain_step(1)).is_err());
    state.fold(&plain_step(3)).unwrap();
}

#[test]
fn steps_that_contradict_what_came_before_are_refused() {
    let refused = |change: fn(&mut Step)| {
        let mut state = folded((0..15).map(plain_step));
        let mut step = plain_step(15);
        change(&mut step);
        match state.fold(&step) {
            Err(FoldError::Contradiction { step: 15, what }) => what,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(refused(|s| s.seqs[0].first = 14), "sequence 0 feeds position 14 after 15 tokens");
    assert!(refused(|s| s.seqs[0].resident[0] = 15).contains("recorded residency"));
    assert!(refused(|s| s.seqs[0].resident.clear()).contains("recorded residency"));
    assert_eq!(refused(|s| s.seqs[0].seq = 2), "sequence 2 appears before its predecessors");
    assert!(!refused(|s| lose(s, &[40], 0.0)).is_empty(), "a victim that was never there");
    refused(|s| s.seqs[0].tables.push(TableOps { taken: vec![9], ..TableOps::default() }));
    refused(|s| s.seqs[0].tables.push(TableOps { freed: vec![0], ..TableOps::default() }));
    refused(|s| s.seqs[0].tables.push(TableOps { adopted: vec![7], ..TableOps::default() }));
    refused(|s| s.seqs[0].tables.push(TableOps { layer: 1, ..TableOps::default() }));
}

#[test]
fn runs_larger_than_a_state_are_refused() {
    let new = |change: fn(&mut RunInfo)| {
        let mut info = (*run()).clone();
        change(&mut info);
        State::new(Arc::new(info)).map(|_| ())
    };
    assert_eq!(new(|_| ()), Ok(()));
    for change in [
        (|i| i.model.layers = 1_025) as fn(&mut RunInfo),
        |i| i.model.layers = u32::MAX,
        |i| (i.model.kv_heads, i.model.heads) = (70_000, 70_000),
        |i| (i.model.layers, i.model.kv_heads, i.model.heads) = (1_000, 1_000, 1_000),
    ] {
        assert!(matches!(new(change), Err(FoldError::TooLarge { .. })));
    }
    for change in [
        (|i| i.model.kv_heads = 0) as fn(&mut RunInfo),
        |i| (i.model.kv_heads, i.model.heads) = (2, 3),
        |i| i.settings.block_size = 0,
    ] {
        assert!(matches!(new(change), Err(FoldError::Contradiction { .. })));
    }
}

#[test]
fn logs_forget_their_oldest_and_say_how_many() {
    let tuned = |i| {
        let mut step = plain_step(i);
        step.tuning = vec![Tuning { name: "budget".into(), from: i.to_string(), to: (i + 1).to_string() }];
        step
    };
    let state = folded((0..10_000).map(tuned));
    assert_eq!((state.history.len(), state.history.forgotten()), (8_192, 1_808));
    assert_eq!(state.history.get(1_807), None);
    assert_eq!(state.history.get(1_808).map(|s| s.step), Some(1_808));
    assert_eq!(state.history.last().map(|s| s.step), Some(9_999));
    assert_eq!(state.tuning.len(), 4_096);
    assert_eq!(state.tuned("budget"), Some("10000"));
    assert_eq!(state.tuned("n"), None);

    let mut log = EvictionLog::default();
    let decision = |n: u32| Eviction { positions: (0..n).collect(), ..eventful_eviction() };
    for step in 0..20_000 {
        log.push(step, 0, 9, &decision(1));
    }
    assert_eq!((log.iter().len(), log.forgotten()), (16_384, 3_616));
    log.push(20_000, 0, 9, &decision(70_000));
    assert_eq!(log.iter().len(), 1, "the newest stays, however large it is");
    log.push(20_001, 0, 9, &decision(3));
    assert_eq!(log.iter().map(|d| d.step).collect::<Vec<_>>(), [20_001]);
    assert_eq!((log.total_decisions(), log.total_victims()), (20_002, 90_003));
}

fn eventful_eviction() -> Eviction {
    eventful().evictions.iter().next().unwrap().eviction.clone()
}

#[test]
fn a_card_says_where_a_token_is_or_why_it_is_not() {
    let state = eventful();
    let kept = state.token_card(0, 3).unwrap();
    assert_eq!(kept.fates, [HeadFate::Resident { block: 0, slot: 3, v_tier: Tier::Device }]);
    assert_eq!(kept.readers, [Reader { layer: 0, head: 0, p: attention::dequantise(239) }]);
    assert_eq!(kept.held(), 1);
    let lost = state.token_card(0, 2).unwrap();
    let fate = HeadFate::Evicted {
        step: 9,
        reason: Reason::LowScore,
        score: Some(0.25),
        cutoff: Some(1.0),
        rank: Some(2),
        of: 2,
        margin: Some(0.75),
        age: 7,
        merged: None,
    };
    assert_eq!((lost.held(), lost.fates), (0, vec![fate]));
    assert!(lost.readers.is_empty());
    assert_eq!(state.token_card(0, 10), None);
    assert_eq!(state.token_card(1, 0), None);

    let token = &state.seqs[0].tokens[2];
    assert_eq!((token.lost, token.last_lost, token.readers), (1, Some(9), 0));
    let token = &state.seqs[0].tokens[3];
    assert_eq!((token.lost, token.readers, token.mass), (0, 1, attention::dequantise(239)));
    assert!(token.heat > 0.0 && token.heat < token.mass);

    let mut forgetful = state.clone();
    forgetful.evictions = EvictionLog::default();
    assert_eq!(forgetful.token_card(0, 2).unwrap().fates, [HeadFate::Forgotten]);
}

#[test]
fn the_tier_of_v_follows_the_read_set() {
    let mut state = eventful();
    let mut info = (*state.run).clone();
    info.settings.read = "kcache:n=4,l=0".into();
    state.run = Arc::new(info);
    let card = state.token_card(0, 3).unwrap();
    assert_eq!(card.fates, [HeadFate::Resident { block: 0, slot: 3, v_tier: Tier::Host }]);
}

#[test]
fn an_answer_is_right_wrong_or_not_there_yet() {
    let answer = |pieces: &[&str], finish| {
        let mut state = State::new(run()).unwrap();
        for (i, piece) in (0..).zip(pieces) {
            let mut step = plain_step(i);
            let part = &mut step.seqs[0];
            let piece: crate::event::Piece = (*piece).into();
            part.fed[0] = Fed { id: 7, piece: piece.clone(), origin: Origin::Generated };
            part.finish = finish;
            state.fold(&step).unwrap();
        }
        state.seqs[0].answer(" 42")
    };
    assert_eq!(answer(&[" ", "4"], None), None);
    assert_eq!(answer(&[" ", "4", "2", ", he said"], None), Some(true));
    assert_eq!(answer(&["42"], None), Some(true), "the leading space is the tokenizer's affair");
    assert_eq!(answer(&[" 43"], None), Some(false));
    assert_eq!(answer(&[" 4"], Some(Finish::EndToken)), Some(false), "it will not be finished any more");
}

#[test]
fn a_token_that_was_drawn_counts_before_it_is_fed() {
    let mut step = plain_step(0);
    step.seqs[0].fed[0].origin = Origin::Prompt;
    step.seqs[0].stage = Stage::Prefill;
    step.seqs[0].sampled = Some(Sampled { id: 5, piece: " 42".into(), logprob: -0.5, margin: 1.0 });
    let mut state = folded([step]);
    let s = &state.seqs[0];
    assert_eq!((s.generated_ids(), s.generated_text()), (vec![5], " 42".into()));
    assert_eq!(s.answer(" 42"), Some(true));
    let mut next = plain_step(1);
    next.seqs[0].fed[0].id = 5;
    state.fold(&next).unwrap();
    let s = &state.seqs[0];
    assert_eq!((s.generated_ids(), s.pending.is_none()), (vec![5], true));
    assert_eq!(s.tokens[1].logprob, Some(-0.5));
}

#[test]
fn the_summary_adds_up() {
    let summary = eventful().summary();
    assert_eq!((summary.steps, summary.victims, summary.gap_steps), (10, 2, 0));
    assert_eq!(summary.token_ids, [1; 10]);
    assert!(summary.prompt_ids.is_empty() && summary.batch_token_ids.is_empty());
    assert_eq!((summary.finish, summary.right), (Some(Finish::MaxTokens), Some(false)));
    let device = summary.resident_bytes["device"];
    assert_eq!((device.allocated, device.live, device.unfilled), (128, 100, 28));
    assert!(!summary.resident_bytes.contains_key("host"), "an empty host tier is not there");
    assert_eq!((summary.traffic_bytes.host_to_device, summary.traffic_bytes.device_to_host), (64, 16));
    assert_eq!(summary.bytes_per_token, Some(12.8));
    assert_eq!(summary.probe_overhead, 3.0 / 90.0);
    assert_eq!(summary.latency_ns.decode["step"].count, 10);
    assert_eq!(summary.latency_ns.decode["mlp"].count, 1);
    assert!(summary.latency_ns.prefill["step"].count == 0 && !summary.latency_ns.prefill.contains_key("mlp"));
    assert_eq!(summary.latency_ns.end_to_end.count, 1);
    assert_eq!(summary.state_hash.len(), 64);
    let json = serde_json::to_value(&summary).unwrap();
    for key in ["prompt_ids", "token_ids", "text", "mass_dropped", "tokens_per_s", "latency_ns", "state_hash"]
    {
        assert!(json.get(key).is_some(), "{key}");
    }
}

#[test]
fn a_clock_changes_no_hash_and_a_decision_does() {
    let hash = |change: fn(&mut Step)| {
        let mut step = plain_step(1);
        change(&mut step);
        folded([plain_step(0), step]).hash
    };
    let plain = hash(|_| ());
    assert_eq!(plain, hash(|s| (s.start_ns, s.wall_ns, s.probe.ns, s.probe.dropped) = (5, 6, 7, 8)));
    assert_eq!(plain, hash(|s| s.layer_ns[0][3] = 9));
    for change in [
        (|s| s.seqs[0].fed[0].id = 2) as fn(&mut Step),
        |s| lose(s, &[0], 0.5),
        |s| s.tiers = vec![TierUse::new(Tier::Device)],
        |s| s.seqs[0].finish = Some(Finish::Stopped),
        |s| s.tuning = vec![Tuning { name: "n".into(), from: "1".into(), to: "2".into() }],
    ] {
        assert_ne!(plain, hash(change));
    }
}

#[test]
fn a_keyframe_is_the_state_and_of_one_version() {
    let state = eventful();
    let bytes = state.keyframe();
    let mut back = State::from_keyframe(run(), &bytes).unwrap();
    assert_eq!(back, state);
    back.fold(&{
        let mut next = plain_step(10);
        next.seqs[0].resident[0] = 9;
        next
    })
    .unwrap();
    assert!(matches!(State::from_keyframe(run(), &[]), Err(KeyframeError::Damaged(_))));
    let other = [&[2], &bytes[1..]].concat();
    assert!(matches!(State::from_keyframe(run(), &other), Err(KeyframeError::Version(2))));
    for cut in 0..bytes.len() {
        assert!(State::from_keyframe(run(), &bytes[..cut]).is_err(), "cut at {cut}");
    }
    let mut deeper = (*run()).clone();
    deeper.model.layers = 2;
    assert!(matches!(State::from_keyframe(Arc::new(deeper), &bytes), Err(KeyframeError::Shape(_))));
}

#[test]
fn pages_read_add_up_and_travel_behind_a_keyframe() {
    let mut state = eventful();
    assert!(state.summary().reads.is_none());
    for (id, read) in [(10, 3), (11, 2), (12, 0)] {
        let mut next = plain_step(id);
        next.seqs[0].resident[0] = id as u32 - 1;
        let reads = LayerReads { pages: 5, read, ..LayerReads::default() };
        next.reads = if read > 0 { vec![reads] } else { Vec::new() };
        let before = state.hash;
        state.fold(&next).unwrap();
        assert_ne!(state.hash, before);
    }
    assert_eq!((state.reads.sum().pages, state.reads.sum().read, state.reads.last_sum().read), (10, 5, 0));
    assert_eq!(state.summary().reads.map(|r| (r.pages, r.read)), Some((10, 5)));
    let bytes = state.keyframe();
    assert_eq!(State::from_keyframe(run(), &bytes).unwrap(), state);
    survive(&bytes[..bytes.len() - 1]);
    let mut wild = state.clone();
    wild.reads.last.push(LayerReads::default());
    assert!(matches!(State::from_keyframe(run(), &wild.keyframe()), Err(KeyframeError::Shape(_))));
    let mut bad = plain_step(13);
    bad.seqs[0].resident[0] = 12;
    bad.reads = vec![LayerReads { layer: 1, ..LayerReads::default() }];
    assert!(state.fold(&bad).is_err());
}

#[test]
fn errors_of_codes_add_up_and_travel_behind_a_keyframe() {
    let mut state = eventful();
    assert_eq!(state.summary().coding.map(|c| c.layers.len()), None);
    let coded = |rows, squared_error, k_channels| LayerCoding {
        layer: 0,
        k: CodingError { rows, squared_error, squares: 4.0 },
        recoded_rows: 1,
        k_channels,
        ..LayerCoding::default()
    };
    for (id, coding) in [(10, coded(2, 0.5, vec![200, 250])), (11, coded(1, 1.5, Vec::new()))] {
        let mut next = plain_step(id);
        next.seqs[0].resident[0] = id as u32 - 1;
        next.coding = vec![coding];
        state.fold(&next).unwrap();
    }
    let layer = &state.coding.layers[0];
    assert_eq!((layer.k.rows, layer.k.relative(), layer.recoded_rows), (3, Some(0.5), 2));
    assert_eq!(layer.v.relative(), None);
    let worst = layer.worst_channels(1, 2);
    assert_eq!((worst.len(), worst[0].channel, worst[0].relative), (1, 1, attention::dequantise(250)));
    let bytes = state.keyframe();
    assert_eq!(State::from_keyframe(run(), &bytes).unwrap(), state);
    survive(&bytes[..bytes.len() - 1]);
    let mut wild = state.clone();
    wild.coding.layers.push(CodedLayer::default());
    assert!(matches!(State::from_keyframe(run(), &wild.keyframe()), Err(KeyframeError::Shape(_))));
    let mut bad = plain_step(12);
    bad.seqs[0].resident[0] = 11;
    bad.coding = vec![LayerCoding { layer: 1, ..LayerCoding::default() }];
    assert!(state.fold(&bad).is_err());
}

fn crush() -> Crush {
    Crush {
        units: 2,
        bits: 4,
        anchor: BitRow("a".into()),
        first: vec![0, 4],
        fates: "rx".into(),
        signatures: vec![BitRow("f".into()), BitRow("5".into())],
        distances: vec![2, 4],
        by_score: BitRow("4".into()),
        ..Crush::default()
    }
}

/// The step after [`eventful`].
fn eleventh(seen: Vec<Crush>) -> Step {
    let mut next = plain_step(10);
    next.seqs[0].resident[0] = 9;
    next.seqs[0].crush = seen;
    next
}

#[test]
fn signatures_are_the_newest_of_their_layer_and_travel_behind_a_keyframe() {
    let mut state = eventful();
    assert!(!state.crush.has(0));
    state.fold(&eleventh(vec![crush()])).unwrap();
    let mut newer = plain_step(11);
    newer.seqs[0].resident[0] = 10;
    newer.seqs[0].crush = vec![Crush { fates: "xr".into(), ..crush() }];
    let mut later = state.clone();
    later.fold(&newer).unwrap();
    assert_eq!(state.crush.get(0, 0), Some((10, &crush())));
    assert_eq!(later.crush.get(0, 0).map(|(step, seen)| (step, seen.fates.as_str())), Some((11, "xr")));
    assert!(later.crush.has(0) && !later.crush.has(1));
    // A seek starts at a keyframe and folds on: it ends where the whole run ends.
    let mut sought = State::from_keyframe(run(), &state.keyframe()).unwrap();
    assert_eq!(sought, state);
    sought.fold(&newer).unwrap();
    assert_eq!(sought, later);
    // Who stood for whom is decided: it is in the hash.
    let mut other = eventful();
    other.fold(&eleventh(vec![Crush { fates: "xr".into(), ..crush() }])).unwrap();
    assert_ne!(other.hash, state.hash);
    let bytes = state.keyframe();
    (1..bytes.len()).for_each(|cut| survive(&bytes[..cut]));
}

#[test]
fn signatures_that_break_their_rules_are_refused() {
    for bad in [
        Crush { layer: 1, ..crush() },
        Crush { distances: vec![2, 5], ..crush() },
        Crush { fates: "r".into(), ..crush() },
        Crush { first: vec![4, 0], ..crush() },
    ] {
        assert!(matches!(
            eventful().fold(&eleventh(vec![bad.clone()])),
            Err(FoldError::Contradiction { step: 10, .. })
        ));
        // As if an earlier build had let it in.
        let mut state = eventful();
        state.crush = [(0, 9, Arc::new(bad))].into_iter().collect();
        assert!(matches!(State::from_keyframe(run(), &state.keyframe()), Err(KeyframeError::Shape(_))));
    }
    for (seq, step) in [(1, 9), (0, 10)] {
        let mut state = eventful();
        state.crush = [(seq, step, Arc::new(crush()))].into_iter().collect();
        assert!(matches!(State::from_keyframe(run(), &state.keyframe()), Err(KeyframeError::Shape(_))));
    }
}

#[test]
fn pictures_are_forgotten_oldest_first() {
    let mut pictures = CrushPictures::default();
    for step in 0..3_000 {
        let mut part = plain_step(0).seqs.remove(0);
        part.seq = step as u32;
        part.crush = vec![crush()];
        pictures.fold(step, &part, 1).unwrap();
    }
    assert_eq!(pictures.to_wire().len(), 1_024);
    assert!(!pictures.has(3_000 - 1_025) && pictures.has(3_000 - 1_024) && pictures.has(2_999));
}

#[test]
fn compaction_is_counted() {
    let mut state = eventful();
    let mut next = eleventh(Vec::new());
    next.seqs[0].tables.push(TableOps { compacted: true, ..TableOps::default() });
    state.fold(&next).unwrap();
    // Of eleven tokens 2 and 5 were lost: the others behind 2 moved.
    assert_eq!((state.compacted.layers, state.compacted.rows), (1, 7));
    assert_eq!(State::from_keyframe(run(), &state.keyframe()).unwrap(), state);
}

#[test]
fn a_keyframe_whose_counts_would_overflow_is_refused() {
    let refused = |change: fn(&mut State)| {
        let mut state = eventful();
        change(&mut state);
        assert!(matches!(State::from_keyframe(run(), &state.keyframe()), Err(KeyframeError::Shape(_))));
    };
    refused(|s| s.step = Some(u64::MAX));
    refused(|s| s.tiers[0].live_bytes = u64::MAX);
    refused(|s| s.tiers = vec![TierUse::new(Tier::Device); 5]);
    refused(|s| s.traffic.pull_steps = u64::MAX);
    refused(|s| s.latency.decoded.0 = u64::MAX);
    refused(|s| s.gap_steps = u64::MAX);
    refused(|s| s.seqs[0].seq = 1);
    refused(|s| s.seqs[0].sampled_count = u32::MAX);
    refused(|s| s.seqs[0].tokens[0].lost = u32::MAX);
    refused(|s| s.seqs[0].tokens.truncate(5));
    refused(|s| s.seqs[0].resident.clear());
    refused(|s| s.seqs[0].attention.as_mut().unwrap().1.groups[0].positions = vec![(4, u32::MAX)]);
    refused(|s| s.seqs[0].attention.as_mut().unwrap().1.groups[0].layer = 1);
    refused(|s| s.tuning = vec![s.tuning[0].clone(); MAX_TUNING + 1]);
    refused(|s| s.history = History::default());
    refused(|s| s.evictions.push(9, 0, 9, &Eviction { positions: vec![10], ..eventful_eviction() }));
    refused(|s| s.evictions.push(9, 1, 9, &eventful_eviction()));
}

/// Whatever a damaged keyframe turns into, it can be drawn from and folded on without a panic.
fn survive(bytes: &[u8]) {
    let Ok(mut state) = State::from_keyframe(run(), bytes) else { return };
    for seq in 0..state.seqs.len() as u32 {
        for position in 0..12 {
            state.token_card(seq, position);
        }
        if let Some(s) = state.seq(seq) {
            s.answer(" 42");
        }
    }
    state.summary();
    state.evictions.forgotten();
    state.latency.encoded();
    let mut next = plain_step(state.step.map_or(0, |s| s + 1));
    lose(&mut next, &[1], 0.5);
    // It may contradict what the damage made of the state.
    let _ = state.fold(&next);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn damage_to_a_keyframe_never_panics(at in any::<prop::sample::Index>(), bit in 0..8u8, more in 0..4usize) {
        let mut bytes = eventful().keyframe();
        for i in 0..=more {
            let place = (at.index(bytes.len()) + i * 37) % bytes.len();
            bytes[place] ^= 1 << bit;
        }
        survive(&bytes);
    }

    #[test]
    fn random_bytes_are_no_keyframe(mut bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        survive(&bytes);
        bytes.insert(0, 1);
        survive(&bytes);
    }
}
