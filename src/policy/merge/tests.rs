//! Merging without an engine.

use proptest::prelude::*;

use super::super::accumulate::Accumulators;
use super::super::inputs::When;
use super::*;

/// One KV head as arrays: positions count up from 0.
#[derive(Clone, Debug)]
pub(crate) struct Lane {
    positions: Vec<Position>,
    keys: Vec<f32>,
    values: Vec<f32>,
    lost: Vec<bool>,
    acc: Accumulators,
}

impl Lane {
    pub(crate) fn new(head_dim: usize, keys: Vec<f32>, values: Vec<f32>, lost: &[Position]) -> Self {
        let positions: Vec<Position> = (0..(values.len() / head_dim) as Position).collect();
        let lost = positions.iter().map(|p| lost.contains(p)).collect();
        let acc = Accumulators::new(Needs { sum: true, ..Needs::NONE });
        Self { positions, keys, values, lost, acc }
    }

    pub(crate) fn with_attention(mut self, sums: &[f32]) -> Self {
        self.acc.observe_prefill(&self.positions, sums.len() as u32, sums, &[]);
        self
    }

    fn parting(&self) -> Parting<'_> {
        let head = HeadInputs {
            keys: &self.keys,
            values: &self.values,
            ..HeadInputs::new(&self.positions, &self.acc)
        };
        Parting { head, lost: &self.lost }
    }
}

/// Rows that a head's merges change.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Changed {
    pub(crate) keys: Vec<(usize, Vec<f32>)>,
    pub(crate) values: Vec<(usize, Vec<f32>)>,
}

/// What a spelled rule merges at the first decision, and the rows after it.
pub(crate) fn merged(rule: &str, heads: &[Lane], seed: u64) -> (Vec<HeadMerge>, Vec<Changed>) {
    merged_with(rule, heads, seed, &mut Memory::default())
}

/// The same at a later decision.
pub(crate) fn merged_with(
    rule: &str,
    heads: &[Lane],
    seed: u64,
    memory: &mut Memory,
) -> (Vec<HeadMerge>, Vec<Changed>) {
    let merging = parse_merge(rule).unwrap();
    let MergeRule::Victims(rule) = merging.rule() else { panic!("{rule} merges layers") };
    let tokens = heads[0].positions.len() as u32;
    let moment = Moment {
        when: When::EndOfPrompt,
        layer: 0,
        layers: 1,
        prompt_len: tokens,
        span_len: tokens,
        next_position: tokens,
        block_size: 16,
        step: 0,
        share: None,
        seed,
    };
    let partings: Vec<_> = heads.iter().map(Lane::parting).collect();
    let merges = rule.merge(&moment, &partings, memory);
    let change = |merge: &HeadMerge| {
        let Lane { positions, lost, keys, values, .. } = &heads[usize::from(merge.head)];
        let blend = |rows| blend(rule.entering(), &merge.arcs, positions, lost, rows);
        Changed { keys: if rule.keys() { blend(keys) } else { Vec::new() }, values: blend(values) }
    };
    let changed = merges.iter().map(change).collect();
    (merges, changed)
}

const HEAD_DIM: usize = 3;

fn any_head(tokens: usize) -> impl Strategy<Value = Lane> {
    let rows = || prop::collection::vec(-4.0f32..4.0, tokens * HEAD_DIM);
    let lost = prop::collection::vec(any::<bool>(), tokens);
    let sums = prop::collection::vec(0.0f32..2.0, tokens);
    (rows(), rows(), lost, sums).prop_map(|(keys, values, lost, sums)| {
        let lost: Vec<Position> = (0..).zip(&lost).filter_map(|(p, &lost)| lost.then_some(p)).collect();
        Lane::new(HEAD_DIM, keys, values, &lost).with_attention(&sums)
    })
}

fn heads() -> impl Strategy<Value = Vec<Lane>> {
    (1usize..24).prop_flat_map(|tokens| prop::collection::vec(any_head(tokens), 1..4))
}

fn rules() -> impl Strategy<Value = String> {
    prop_oneof![
        (1u32..9).prop_map(|m| format!("cam:m={m}")),
        (0.0f64..=1.0, 0.0f64..=1.0).prop_map(|(alpha, beta)| format!("d2o:alpha={alpha},beta={beta}")),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn arcs_lead_from_victims_to_what_stays(heads in heads(), rule in rules(), seed in any::<u64>()) {
        let (merges, changed) = merged(&rule, &heads, seed);
        prop_assert_eq!(&merges, &merged(&rule, &heads, seed).0);
        prop_assert_eq!(merges.len(), heads.iter().filter(|head| head.lost.contains(&true)).count());
        prop_assert!(merges.is_sorted_by(|a, b| a.head < b.head));
        for (merge, changed) in merges.iter().zip(&changed) {
            let head = &heads[usize::from(merge.head)];
            prop_assert!(merge.arcs.is_sorted_by(|a, b| a.from < b.from));
            for arc in &merge.arcs {
                prop_assert!(head.lost[arc.from as usize] && !head.lost[arc.into as usize]);
                prop_assert!(arc.weight > 0.0 && arc.weight <= 1.0, "{:?}", arc);
                let behind = head.lost[arc.into as usize..].iter().filter(|&&lost| !lost).count();
                prop_assert!(arc.targets >= 1 && arc.targets as usize <= behind);
            }
            let kept = |&(i, _): &(usize, Vec<f32>)| !head.lost[i];
            prop_assert!(changed.keys.iter().chain(&changed.values).all(kept));
            prop_assert_eq!(changed.values.is_empty(), merge.arcs.is_empty());
        }
    }

    #[test]
    fn cam_adds_as_much_as_it_takes(head in any_head(20), m in 1u32..9, seed in any::<u64>()) {
        let (merges, changed) = merged(&format!("cam:m={m}"), std::slice::from_ref(&head), seed);
        let mut change = [0.0f64; HEAD_DIM];
        for (i, row) in changed.iter().flat_map(|changed| &changed.values) {
            for (d, x) in row.iter().enumerate() {
                change[d] += f64::from(x - head.values[i * HEAD_DIM + d]);
            }
        }
        for arc in merges.iter().flat_map(|merge| &merge.arcs) {
            for (d, sum) in change.iter_mut().enumerate() {
                *sum -= f64::from(head.values[arc.from as usize * HEAD_DIM + d]);
            }
        }
        prop_assert!(change.iter().all(|left| left.abs() < 1e-3), "{:?}", change);
    }

    #[test]
    fn minicache_keeps_lengths(rows in prop::collection::vec(-4.0f32..4.0, 8), t in 0.0f64..=1.0) {
        let rule = MiniCache { t, retain: 0.05, from: 0.5 };
        let (lower, upper) = rows.split_at(4);
        if let Some(shared) = rule.share(lower, upper) {
            let length = |row: &[f32]| row.iter().map(|x| x * x).sum::<f32>().sqrt();
            for (was, is) in [lower, upper].into_iter().zip(&shared) {
                prop_assert!((length(was) - length(is)).abs() < 1e-4, "{:?} {:?}", was, is);
            }
            let [a, b] = &shared;
            let dot: f32 = a.iter().zip(b).map(|(x, y)| x * y).sum();
            prop_assert!((dot - length(a) * length(b)).abs() < 1e-3, "one direction");
        }
    }
}

#[test]
fn a_rule_is_spelled_and_tuned_like_any_other() {
    let mut cam = parse_merge("cam:m=16").unwrap();
    assert_eq!((cam.to_string().as_str(), cam.entry().title), ("cam:m=16", "CaM"));
    assert!(cam.set("m", "8").unwrap().unwrap().live);
    assert_eq!(cam.to_string(), "cam:m=8");
    assert_eq!(parse_merge("minicache").unwrap().to_string(), "minicache:t=0.6");
    assert!(!parse_merge("minicache").unwrap().set("t", "0.5").unwrap().unwrap().live);
    assert_eq!(parse_merge("d2o").unwrap().to_string(), "d2o:alpha=0.5");
}

#[test]
fn what_is_no_merge_is_refused_in_one_line() {
    for (text, says) in [
        ("", "no merge rule named: use one of cam, d2o, minicache"),
        ("can", "no merge rule is called 'can' (did you mean 'cam'?)"),
        ("h2o", "h2o is an eviction policy, not a merge rule: give it to --policy"),
        ("cam:m=0", "cam: m cannot be '0': use a whole number from 1 to 1024"),
        ("cam+d2o", "both merge: name one of them"),
        ("cam+adakv", "adakv is an eviction policy"),
    ] {
        let error = parse_merge(text).unwrap_err().to_string();
        assert!(error.contains(says) && !error.contains('\n'), "{text}: {error}");
    }
    let error = super::super::parse_policy("cam").unwrap_err().to_string();
    assert!(error.contains("cam is a merge rule, not an eviction policy: give it to --merge"), "{error}");
}
