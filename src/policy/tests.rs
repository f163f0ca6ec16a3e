//! The first rules by hand and against sorting everything; [`invariants`] is what every rule promises.

use proptest::prelude::*;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

mod invariants;
mod kvpress;

use super::testing::{Layer, kept};
use super::*;
use crate::event::Position;

/// Scores that break careless comparisons, and enough ordinary ones to tie.
const ROW_VALUES: [f32; 12] =
    [0.0, -0.0, 0.25, 0.25, 0.5, 0.125, 1.0, 1e-30, f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 3e38];

/// Accumulators of a head that saw one row over positions 0, 1, 2 …
fn seen(policy: &Policy, row: &[f32]) -> Accumulators {
    let mut acc = Accumulators::new(policy.needs());
    acc.observe_decode(&(0..row.len() as Position).collect::<Vec<_>>(), row);
    acc
}

fn moment(when: When, prompt_len: u32) -> Moment {
    Moment {
        when,
        layer: 0,
        layers: 1,
        prompt_len,
        span_len: prompt_len,
        next_position: prompt_len,
        block_size: 4,
        step: 0,
        share: None,
        seed: 0,
    }
}

/// The verdicts of a layer whose heads saw these rows; positions are 0, 1, 2 …
fn decide(policy: &str, rows: &[&[f32]]) -> Vec<Verdict> {
    let policy = parse_policy(policy).unwrap();
    let accs: Vec<_> = rows.iter().map(|row| seen(&policy, row)).collect();
    let positions: Vec<Position> = (0..rows[0].len() as Position).collect();
    let heads: Vec<_> = accs.iter().map(|acc| HeadInputs::new(&positions, acc)).collect();
    let mut out = Vec::new();
    policy.decide(&moment(When::EndOfPrompt, positions.len() as u32), &heads, &mut out);
    out
}

#[test]
fn a_window_grows_into_the_place_of_sinks_that_are_gone() {
    let policy = parse_policy("streaming:budget=2,sinks=1").unwrap();
    let acc = Accumulators::new(policy.needs());
    let mut out = Vec::new();
    policy.decide(&moment(When::Token, 9), &[HeadInputs::new(&[5, 6, 8], &acc)], &mut out);
    assert_eq!((out.len(), out[0].victims.as_slice(), out[0].kept), (1, &[5][..], 2));
}

#[test]
fn h2o_keeps_the_recent_and_the_heavy_of_each_head() {
    let verdicts = decide(
        "h2o:budget=4,recent=0.5",
        &[&[5.0, 1.0, 4.0, 2.0, 3.0, 0.0], &[0.0, 1.0, 2.0, 3.0, 0.0, 0.0], &[1.0, 1.0, 1.0, 1.0, 9.0, 9.0]],
    );
    let verdict = |head, victims: &[Position], scores: &[f32], cutoff| Verdict {
        head: Some(head),
        reason: Reason::LowScore,
        cutoff: Some(cutoff),
        victims: victims.to_vec(),
        scores: scores.to_vec(),
        kept: 4,
        crush: None,
    };
    assert_eq!(
        verdicts,
        [
            verdict(0, &[1, 3], &[1.0, 2.0], 4.0),
            verdict(1, &[0, 1], &[0.0, 1.0], 2.0),
            verdict(2, &[0, 1], &[1.0, 1.0], 1.0),
        ]
    );
}

#[test]
fn h2o_splits_its_budget_by_rounding() {
    // round(0.3 * 5) = 2 recent, 3 heavy hitters.
    let verdicts = decide("h2o:budget=5,recent=0.3", &[&[9.0, 0.0, 8.0, 7.0, 6.0, 0.0, 0.0]]);
    assert_eq!(verdicts[0].victims, [1, 4]);
}

#[test]
fn h2o_without_heavy_hitters_is_a_sliding_window() {
    let row: &[f32] = &[9.0, 8.0, 7.0, 6.0, 5.0, 4.0];
    let mut h2o = decide("h2o:budget=3,recent=1", &[row]);
    h2o[0].head = None;
    assert_eq!(h2o, decide("streaming:budget=3,sinks=0", &[row]));
    assert_eq!(h2o[0].victims, [0, 1, 2]);
}

#[test]
fn h2o_scores_accumulate_and_what_is_lost_stays_lost() {
    let mut policy = parse_policy("h2o:budget=2,recent=0.5").unwrap();
    let mut run = Run::new(&policy, 1, 3);
    run.feed(&[vec![0.0, 1.0, 0.0]]);
    run.act(&policy, When::EndOfPrompt);
    assert_eq!(run.residents[0], [1, 2]);
    // Position 2 draws 3 now; position 1 has 1 + 1.
    run.feed(&[vec![1.0, 3.0, 0.0]]);
    run.act(&policy, When::Token);
    assert_eq!(run.residents[0], [2, 3]);
    policy.set("budget", "100").unwrap();
    run.feed(&[vec![0.0, 0.0, 0.0]]);
    run.act(&policy, When::Token);
    assert_eq!(run.residents[0], [2, 3, 4]);
}

#[test]
fn whole_pages_stay_or_go() {
    let worth = |page: usize| [0.1, 0.3, 0.2][page];
    let layer = Layer::of_last_rows(&[(0..12).map(|i| worth(i / 4)).collect()]).with_block_size(4);
    assert_eq!(kept("h2o:budget=8,recent=0,by=page", &layer), [[4, 5, 6, 7, 8, 9, 10, 11]]);
    // One slot less, and only one page fits.
    assert_eq!(kept("h2o:budget=7,recent=0,by=page", &layer), [[4, 5, 6, 7]]);
    // The newest token keeps its whole page.
    assert_eq!(kept("h2o:budget=4,recent=0.25,by=page", &layer), [[8, 9, 10, 11]]);
}

#[test]
fn query_heads_that_share_a_key_judge_by_their_mean() {
    let layer = Layer::of_matrices(1, 2, &[1.0, 0.0, 0.5, 0.5, 1.0, 0.0, 0.25, 0.75]);
    assert_eq!(kept("h2o:budget=1,recent=0", &layer), [[0]]);
    // Per query that could see it: 1.375 / 2 against 0.625.
    let verdicts = layer.decide(&parse_policy("h2o:budget=1,recent=0,variant=kvpress").unwrap());
    assert_eq!((verdicts[0].cutoff, verdicts[0].scores[0]), (Some(0.6875), 0.625));
    assert_eq!(kept("tova:budget=1,variant=kvpress", &layer), [[1]]);
}

#[test]
fn a_pyramid_narrows_from_layer_to_layer() {
    let rows: Vec<Vec<f32>> = (1..=40).map(|n| vec![1.0 / n as f32; n]).collect();
    let keys: Vec<f32> = (0..40).map(|i| (i as f32 - 30.0).abs()).collect();
    let layer = Layer::of_attention(&[rows]).with_keys(1, &[keys]);
    let slots = |l| kept("pyramidkv:budget=12,window=4,beta=4", &layer.clone().at(l, 4))[0].len();
    assert_eq!([0, 1, 2, 3].map(slots), [18, 14, 10, 6]);
    assert_eq!(kept("knorm:budget=3", &layer), [[29, 30, 31]]);
}

#[test]
fn tova_judges_by_the_mean_over_the_layer_and_spares_nobody() {
    // Means: 0.5, 2, 1.5, 0.25, 1.
    let verdicts = decide("tova:budget=3", &[&[1.0, 0.0, 3.0, 0.5, 2.0], &[0.0, 4.0, 0.0, 0.0, 0.0]]);
    let layer = Verdict {
        head: None,
        reason: Reason::LowScore,
        cutoff: Some(1.0),
        victims: vec![0, 3],
        scores: vec![0.5, 0.25],
        kept: 3,
        crush: None,
    };
    assert_eq!(verdicts, [layer]);
    // The newest token competes too.
    assert_eq!(decide("tova:budget=2", &[&[2.0, 1.0, 0.0]])[0].victims, [2]);
}

#[test]
fn tova_forgets_earlier_queries() {
    let policy = parse_policy("tova:budget=2").unwrap();
    let mut run = Run::new(&policy, 1, 2);
    run.feed(&[vec![9.0, 0.0]]);
    run.act(&policy, When::EndOfPrompt);
    run.feed(&[vec![0.0, 1.0, 1.0]]);
    run.act(&policy, When::Token);
    assert_eq!(run.residents[0], [1, 2]);
}

#[test]
fn streaming_keeps_sinks_and_window_without_scores() {
    let layer = Verdict {
        head: None,
        reason: Reason::OutsideWindow,
        cutoff: None,
        victims: vec![2, 3, 4, 5],
        scores: vec![],
        kept: 6,
        crush: None,
    };
    assert_eq!(decide("streaming:budget=6,sinks=2", &[&[0.0; 10], &[0.0; 10]]), [layer]);
}

#[test]
fn streaming_asks_for_a_window_beside_its_sinks() {
    let policy = parse_policy("streaming:budget=25%").unwrap();
    assert!(policy.check(20).is_ok());
    assert_eq!(
        policy.check(12).unwrap_err().to_string(),
        "streaming: budget=25% is 3 slots for a prompt of 12 tokens, but sinks=4 must leave room for others: use at \
         least 5 slots, or lower sinks"
    );
    assert!(parse_policy("streaming:budget=4").unwrap().check(1000).is_err());
    assert!(parse_policy("streaming").unwrap().check(1).is_ok());
}

#[test]
fn a_recorded_decision_keeps_its_order() {
    // As f16 both numbers round up to 0.333496; a cutoff left as it is would lie below its victim.
    let verdict = Verdict {
        head: Some(1),
        reason: Reason::LowScore,
        cutoff: Some(0.333_41),
        victims: vec![3, 5],
        scores: vec![0.333_4, f32::NEG_INFINITY],
        kept: 2,
        crush: None,
    };
    let eviction = verdict.recorded(7);
    assert_eq!((eviction.layer, eviction.head, eviction.kept), (7, Some(1), 2));
    assert_eq!(eviction.positions, [3, 5]);
    assert_eq!(eviction.margin(0), Some(0.0));
    assert!(eviction.margin(1).unwrap().is_finite());
}

#[test]
fn keys_are_stored_before_rope_only_to_be_rotated_anew() {
    let rope = |text| parse_policy(text).unwrap().rope();
    assert_eq!(rope("streaming"), Rope::Pre);
    assert_eq!(rope("streaming:reposition=false"), Rope::Post);
    assert_eq!([rope("full"), rope("h2o"), rope("tova")], [Rope::Post; 3]);
}

#[test]
fn policies_act_when_they_say() {
    for (text, acts) in [
        ("full", [false, false, false]),
        ("streaming", [true, true, true]),
        ("streaming:when=prompt", [false, true, true]),
        ("h2o", [false, true, true]),
        ("h2o:when=chunk", [true, true, true]),
        ("tova", [false, true, true]),
    ] {
        let policy = parse_policy(text).unwrap();
        assert_eq!(
            [When::Chunk, When::EndOfPrompt, When::Token].map(|when| policy.acts(when)),
            acts,
            "{text}"
        );
    }
    let policy = parse_policy("h2o:budget=1").unwrap();
    let acc = seen(&policy, &[1.0, 2.0, 3.0]);
    let mut out = Vec::new();
    policy.decide(&moment(When::Chunk, 3), &[HeadInputs::new(&[0, 1, 2], &acc)], &mut out);
    assert_eq!(out, []);
}

#[test]
fn kcache_sends_values_of_all_but_the_first_layers_to_the_host() {
    let ReadRule::Kcache(kcache) = parse_read("kcache:n=32,l=2").unwrap().rule() else { panic!() };
    assert_eq!([0, 1, 2, 3].map(|layer| kcache.values_on_host(layer)), [false, false, true, true]);
    assert_eq!([0, 1, 2, 3].map(|layer| kcache.is_exempt(layer)), [true, true, false, false]);
}

/// One layer of a sequence: what an engine keeps for a policy, and nothing else.
struct Run {
    residents: Vec<Vec<Position>>,
    accs: Vec<Accumulators>,
    next: Position,
    prompt_len: u32,
}

impl Run {
    fn new(policy: &Policy, kv_heads: usize, prompt_len: u32) -> Self {
        Self {
            residents: vec![Vec::new(); kv_heads],
            accs: vec![Accumulators::new(policy.needs()); kv_heads],
            next: 0,
            prompt_len,
        }
    }

    /// Appends as many tokens as the first row is longer than the first head's residents, then shows each head its row.
    fn feed(&mut self, rows: &[Vec<f32>]) {
        let fed = (rows[0].len() - self.residents[0].len()) as u32;
        for ((residents, acc), row) in self.residents.iter_mut().zip(&mut self.accs).zip(rows) {
            residents.extend(self.next..self.next + fed);
            acc.observe_prefill(residents, fed, row, row);
        }
        self.next += fed;
    }

    fn decide(&self, policy: &Policy, when: When) -> Vec<Verdict> {
        let heads: Vec<_> = self
            .residents
            .iter()
            .zip(&self.accs)
            .map(|(positions, acc)| HeadInputs::new(positions, acc))
            .collect();
        let mut out = Vec::new();
        policy.decide(
            &Moment { next_position: self.next, ..moment(when, self.prompt_len) },
            &heads,
            &mut out,
        );
        out
    }

    fn act(&mut self, policy: &Policy, when: When) -> Vec<Verdict> {
        let verdicts = self.decide(policy, when);
        for verdict in &verdicts {
            for head in self.covered(verdict) {
                self.residents[head].retain(|p| verdict.victims.binary_search(p).is_err());
            }
        }
        verdicts
    }

    fn covered(&self, verdict: &Verdict) -> std::ops::Range<usize> {
        verdict.head.map_or(0..self.residents.len(), |head| usize::from(head)..usize::from(head) + 1)
    }

    /// The score a source would give, in the order the selection promises.
    fn score(&self, policy: &Policy, head: usize, position: Position) -> f32 {
        let score = match policy.entry().name {
            "h2o" => self.accs[head].sum(position),
            "tova" => {
                self.accs.iter().map(|acc| acc.last_row(position)).sum::<f32>() / self.accs.len() as f32
            }
            _ => 0.0,
        };
        if score.is_nan() { f32::NEG_INFINITY } else { score }
    }

    /// How many of the oldest and newest residents the rule protects under a budget of `slots`.
    fn protected(policy: &Policy, slots: usize) -> (usize, usize) {
        let spec = policy.spec();
        match policy.entry().name {
            "h2o" => (0, (spec.parts()[0].real("recent") * slots as f64).round() as usize),
            "streaming" => {
                let sinks = (spec.parts()[0].int("sinks") as usize).min(slots);
                (sinks, slots - sinks)
            }
            _ => (0, 0),
        }
    }

    /// Residents of a head after a decision, by sorting everything.
    fn expected(&self, policy: &Policy, head: usize, slots: usize) -> Vec<Position> {
        let residents = &self.residents[head];
        if residents.len() <= slots {
            return residents.clone();
        }
        let (sinks, recent) = Self::protected(policy, slots);
        let newest = residents.len() - recent;
        let mut middle = residents[sinks..newest].to_vec();
        middle.sort_by(|&a, &b| {
            let score = |p| self.score(policy, head, p);
            score(b).partial_cmp(&score(a)).expect("no NaN").then(b.cmp(&a))
        });
        middle.truncate(slots - sinks - recent);
        let mut kept = [&residents[..sinks], &middle, &residents[newest..]].concat();
        kept.sort_unstable();
        kept
    }
}

/// A policy with random parameters, and the shape it runs on.
#[derive(Clone, Debug)]
struct Shape {
    policy: Policy,
    kv_heads: usize,
    group: usize,
    chunks: Vec<u32>,
    tokens: u32,
    seed: u64,
}

fn any_policy() -> impl Strategy<Value = Policy> {
    let budget =
        prop_oneof![(1u32..80).prop_map(|n| n.to_string()), (1u32..=100).prop_map(|p| format!("{p}%"))];
    let when = prop_oneof![Just("prompt"), Just("chunk")];
    (0..4usize, budget, when, 0.0..=1.0, 0u32..12).prop_map(|(rule, budget, when, recent, sinks)| {
        let text = match rule {
            0 => "full".into(),
            1 => format!("streaming:budget={budget},when={when},sinks={sinks}"),
            2 => format!("h2o:budget={budget},when={when},recent={recent}"),
            _ => format!("tova:budget={budget},when={when}"),
        };
        parse_policy(&text).unwrap()
    })
}

fn any_shape() -> impl Strategy<Value = Shape> {
    let heads = (1..=8usize).prop_flat_map(|group| (1..=64 / group, Just(group)));
    let chunks = prop::collection::vec(1u32..24, 1..5);
    (any_policy(), heads, chunks, 0u32..8, any::<u64>()).prop_map(
        |(policy, (kv_heads, group), chunks, tokens, seed)| Shape {
            policy,
            kv_heads,
            group,
            chunks,
            tokens,
            seed,
        },
    )
}

impl Shape {
    fn prompt_len(&self) -> u32 {
        self.chunks.iter().sum()
    }

    /// The chunks of the prompt and the generated tokens, as (tokens fed, moment).
    fn feeds(&self) -> Vec<(u32, When)> {
        let mut feeds: Vec<_> = self.chunks.iter().map(|&fed| (fed, When::Chunk)).collect();
        feeds.last_mut().expect("a prompt has a chunk").1 = When::EndOfPrompt;
        feeds.extend((0..self.tokens).map(|_| (1, When::Token)));
        feeds
    }

    /// One row per KV head, each the mean over its group of query heads.
    fn rows(&self, run: &Run, fed: u32, rng: &mut ChaCha8Rng) -> Vec<Vec<f32>> {
        let mut mean = || {
            let sum: f32 = (0..self.group).map(|_| ROW_VALUES[rng.random_range(0..ROW_VALUES.len())]).sum();
            sum / self.group as f32
        };
        let mut row = |residents: &Vec<_>| (0..residents.len() + fed as usize).map(|_| mean()).collect();
        run.residents.iter().map(&mut row).collect()
    }
}

proptest! {
    #[test]
    fn every_rule_keeps_its_promises(shape in any_shape()) {
        let Shape { policy, .. } = &shape;
        let mut rng = ChaCha8Rng::seed_from_u64(shape.seed);
        let mut run = Run::new(policy, shape.kv_heads, shape.prompt_len());
        for (fed, when) in shape.feeds() {
            let rows = shape.rows(&run, fed, &mut rng);
            run.feed(&rows);
            let slots = policy.slots(run.prompt_len).map_or(usize::MAX, |slots| slots as usize);
            let verdicts = run.decide(policy, when);
            // Compared as text: infinities are equal to themselves, and so would a NaN be if there were one.
            prop_assert_eq!(format!("{verdicts:?}"), format!("{:?}", run.decide(policy, when)));
            if !policy.acts(when) || run.residents.iter().all(|residents| residents.len() <= slots) {
                prop_assert!(verdicts.is_empty());
                continue;
            }
            for verdict in &verdicts {
                for head in run.covered(verdict) {
                    let residents = &run.residents[head];
                    prop_assert!(!verdict.victims.is_empty());
                    prop_assert!(verdict.victims.windows(2).all(|pair| pair[0] < pair[1]));
                    prop_assert!(verdict.victims.iter().all(|p| residents.binary_search(p).is_ok()));
                    prop_assert_eq!(residents.len() - verdict.victims.len(), verdict.kept as usize);
                    prop_assert_eq!(verdict.cutoff.is_some(), !verdict.scores.is_empty());
                    if let Some(cutoff) = verdict.cutoff {
                        prop_assert_eq!(verdict.scores.len(), verdict.victims.len());
                        prop_assert!(verdict.scores.iter().all(|&score| score <= cutoff));
                        let (sinks, recent) = Run::protected(policy, slots);
                        let lowest = residents[sinks..residents.len() - recent]
                            .iter()
                            .filter(|p| verdict.victims.binary_search(p).is_err())
                            .map(|&p| run.score(policy, head, p))
                            .fold(f32::INFINITY, f32::min);
                        prop_assert_eq!(cutoff, lowest);
                    }
                }
            }
            let expected: Vec<_> =
                (0..shape.kv_heads).map(|head| run.expected(policy, head, slots)).collect();
            run.act(policy, when);
            prop_assert_eq!(&run.residents, &expected);
            prop_assert!(run.residents.iter().all(|residents| residents.len() <= slots));
        }
    }

    #[test]
    fn a_whole_budget_is_the_full_cache(shape in any_shape()) {
        let mut policy = shape.policy.clone();
        let mut rng = ChaCha8Rng::seed_from_u64(shape.seed);
        if policy != Policy::default() {
            policy.set("budget", "100%").unwrap();
        }
        let mut run = Run::new(&policy, shape.kv_heads, shape.prompt_len());
        for (fed, when) in shape.feeds() {
            let rows = shape.rows(&run, fed, &mut rng);
            run.feed(&rows);
            prop_assert_eq!(run.act(&policy, when), []);
        }
    }

    #[test]
    fn streaming_keeps_the_same_set_chunk_by_chunk(
        chunks in prop::collection::vec(1u32..24, 1..6), budget in 1u32..64, sinks in 0u32..8,
    ) {
        let kept = |when: &str| {
            let text = format!("streaming:budget={budget},sinks={sinks},when={when}");
            let policy = parse_policy(&text).unwrap();
            let mut run = Run::new(&policy, 1, chunks.iter().sum());
            for (i, &fed) in chunks.iter().enumerate() {
                let row = vec![0.0; run.residents[0].len() + fed as usize];
                run.feed(&[row]);
                run.act(&policy, if i + 1 == chunks.len() { When::EndOfPrompt } else { When::Chunk });
            }
            run.residents
        };
        prop_assert_eq!(kept("chunk"), kept("prompt"));
    }

    #[test]
    fn a_lower_budget_takes_effect_at_the_next_decision(
        tokens in 8u32..64, high in 8u32..64, low in 1u32..8, rule in prop::sample::select(vec!["h2o", "tova", "streaming"]),
    ) {
        let mut policy = parse_policy(&format!("{rule}:budget={high}")).unwrap();
        let mut run = Run::new(&policy, 2, tokens);
        run.feed(&vec![vec![0.5; tokens as usize]; 2]);
        run.act(&policy, When::EndOfPrompt);
        prop_assert_eq!(run.residents[0].len() as u32, high.min(tokens));
        policy.set("budget", &low.to_string()).unwrap();
        let row = vec![0.5; run.residents[0].len() + 1];
        run.feed(&[row.clone(), row]);
        run.act(&policy, When::Token);
        prop_assert!(run.residents.iter().all(|residents| residents.len() as u32 == low));
    }
}
