//! The vectors that the implementations' own tests assert, and each variant by hand.

use super::super::testing::{Layer, kept};
use super::super::{Accumulators, Policy, parse_policy};
use super::*;
use crate::event::Crush;

fn rows(text: &str) -> Signatures {
    let rows: Vec<&str> = text.split(' ').collect();
    let mut signatures = Signatures::new(rows[0].len(), vec![true; rows.len()]);
    for (unit, row) in rows.iter().enumerate() {
        let place = signatures.place(Some(unit));
        row.chars().enumerate().for_each(|(i, c)| signatures.set(place + i, c == '1'));
    }
    signatures
}

fn bits(row: &[bool]) -> String {
    row.iter().map(|&bit| if bit { '1' } else { '0' }).collect()
}

#[test]
fn hamming_distances_to_an_anchor() {
    let signed = Signed::new(rows("1010 0101 1100"), Anchor::Alternating, false, (0, 0));
    assert_eq!(bits(&signed.anchor), "0101");
    assert_eq!(signed.distances, [4, 0, 2]);
    // The vector of OpenVINO GenAI has the anchor 1010, which is the mean of these with it.
    let signed = Signed::new(rows("1010 0101 1100 1010 1010"), Anchor::Mean, false, (0, 0));
    assert_eq!(bits(&signed.anchor), "1010");
    assert_eq!(signed.distances[..3], [0, 4, 2]);
}

#[test]
fn the_mean_anchor_is_the_strict_majority_of_columns() {
    let of = |anchor| bits(&Signed::new(rows("1010 1100 1110 0010 0000"), anchor, false, (0, 0)).anchor);
    assert_eq!(of(Anchor::Mean), "1010");
    assert_eq!(of(Anchor::InverseMean), "0101");
    assert_eq!(of(Anchor::Zeros), "0000");
    assert_eq!(of(Anchor::Ones), "1111");
    // A half is neither.
    let halves = |anchor| bits(&Signed::new(rows("10 01"), anchor, false, (0, 0)).anchor);
    assert_eq!((halves(Anchor::Mean), halves(Anchor::InverseMean)), ("00".into(), "00".into()));
}

#[test]
fn a_random_anchor_comes_from_seed_and_layer() {
    let of = |seed| Signed::new(Signatures::new(64, vec![true]), Anchor::Random, false, seed).anchor;
    assert_eq!(of((1, 0)), of((1, 0)));
    assert_ne!(of((1, 0)), of((2, 0)));
    assert_ne!(of((1, 0)), of((1, 1)));
}

#[test]
fn stepped_picks() {
    assert_eq!(pick_stepped(&[0, 1, 2, 3], 2), [0, 2]);
    assert_eq!(pick_stepped(&[0, 1, 2, 3], 4), [0, 1, 2, 3]);
    assert_eq!(pick_stepped(&[1, 3], 2), [1, 3]);
    assert_eq!(pick_stepped(&[2, 3], 5), [2, 3]);
    assert_eq!(pick_stepped(&[2, 3], 0), [0usize; 0]);
}

#[test]
fn the_nearest_come_first_and_of_equals_the_earlier() {
    let distances = [5, 0, 5, 0];
    assert_eq!(by_distance(&[0, 1, 2, 3], |u| distances[u]), [1, 3, 0, 2]);
    assert_eq!(by_distance(&[3, 2], |u| distances[u]), [3, 2]);
    assert_eq!(by_distance(&[], |u| distances[u]), [0usize; 0]);
}

#[test]
fn spread_picks() {
    let order: Vec<usize> = (10..20).collect();
    assert_eq!(pick_spread(&order, 1), [10]);
    assert_eq!(pick_spread(&order, 3), [10, 14, 19]);
    assert_eq!(pick_spread(&order, 4), [10, 13, 16, 19]);
    assert_eq!(pick_spread(&order, 99), order);
    assert_eq!(pick_spread(&[], 3), [0usize; 0]);
}

#[test]
fn rows_are_recorded_from_their_first_bit_on() {
    let wide = format!("{}1 {}0", "0".repeat(69), "1".repeat(69));
    let signatures = rows(&wide);
    for (unit, row) in wide.split(' ').enumerate() {
        let bits: Vec<bool> = row.chars().map(|c| c == '1').collect();
        assert_eq!(signatures.recorded(unit), BitRow::new(&bits));
    }
}

#[test]
fn an_anchor_bit_per_unit_counts_what_differs_from_it() {
    let signed = Signed::new(rows("1100 1110 0001"), Anchor::Alternating, true, (0, 0));
    assert_eq!((bits(&signed.anchor).as_str(), signed.distances), ("010", vec![2, 1, 1]));
    let signed = Signed::new(rows("1100 1110 0001"), Anchor::Mean, true, (0, 0));
    assert_eq!((bits(&signed.anchor).as_str(), signed.distances), ("010", vec![2, 1, 1]));
}

/// One head of 16 tokens in units of 4: worth 1, 4, 2, 3 (per token), each unit with another pattern inside.
fn layer() -> Layer {
    let row = vec![
        0.4, 0.0, 0.4, 0.2, // worth 0.25: unit 0
        1.0, 1.0, 1.0, 1.0, // unit 1
        0.9, 0.9, 0.1, 0.1, // 0.5: unit 2
        0.8, 0.8, 0.8, 0.8, // unit 3
    ];
    Layer::of_last_rows(&[row])
}

fn picture(text: &str, layer: &Layer) -> Crush {
    let policy: Policy = parse_policy(text).unwrap();
    let verdict = layer.decide(&policy).into_iter().next().unwrap();
    *verdict.crush.unwrap()
}

#[test]
fn openvino_by_hand() {
    let text = "h2o:budget=8,recent=0+kvcrush:ratio=0.5,variant=openvino,group=4,anchor=ones";
    // One important unit (1), one representative of 0, 2 and 3. Half of all tokens have a bit: the four of unit 1, two
    // of unit 2 and the later two of unit 3.
    let seen = picture(text, &layer());
    let rows: Vec<_> = seen.signatures.iter().map(|row| row.0.as_str()).collect();
    assert_eq!((rows, seen.anchor.0.as_str()), (vec!["0", "f", "c", "3"], "f"));
    assert_eq!(seen.distances, [4, 0, 2, 2]);
    assert_eq!(seen.fates, "xirx");
    // By score alone units 1 and 3 stay.
    assert_eq!((seen.by_score.0.as_str(), seen.head), ("5", None));
    assert!(seen.is_sound());
    assert_eq!(kept(text, &layer()), [[4, 5, 6, 7, 8, 9, 10, 11]]);
}

#[test]
fn torch_by_hand() {
    let text = "h2o:budget=12,recent=0+kvcrush:ratio=0.7,variant=torch,group=4,anchor=zeros";
    // Eight tokens for representatives. Of units 0, 2 and 3 the upper six tokens have a bit: all of 3 and two of 2.
    let seen = picture(text, &layer());
    assert_eq!(seen.distances, [0, 0, 2, 4]);
    assert_eq!(seen.anchor.0, "0");
    assert!(seen.anchor_per_unit && seen.signatures[1].0.is_empty());
    // Descending: 3, 2, 0; the first and the last of these.
    assert_eq!(seen.fates, "rixr");
    assert_eq!(kept(text, &layer())[0].len(), 12);
}

#[test]
fn vllm_by_hand() {
    let other = vec![0.5, 0.5, 0.5, 0.5, 0.1, 0.1, 0.1, 0.1, 0.9, 0.9, 0.9, 0.9, 0.2, 0.2, 0.2, 0.2];
    let first = vec![0.4, 0.0, 0.4, 0.2, 1.0, 1.0, 1.0, 1.0, 0.9, 0.9, 0.1, 0.1, 0.8, 0.8, 0.8, 0.8];
    let layer = Layer::of_last_rows(&[first, other]);
    let text = "h2o:budget=8,recent=0+kvcrush:ratio=0.5,variant=vllm,group=4,anchor=zeros";
    let seen = picture(text, &layer);
    // Head 0 has bits in units 1, 2 (two) and 3 (the later two), head 1 in units 0 and 2.
    assert_eq!(seen.bits, 8);
    assert_eq!(seen.distances, [4, 4, 6, 2]);
    assert_eq!(seen.signatures[0].0, "55");
    // Head 0 keeps unit 1, head 1 unit 2; of 0, 2 and 3 the nearest to the anchor is 3, for both.
    assert_eq!(seen.fates, "xixr");
    assert_eq!(kept(text, &layer), [[4, 5, 6, 7, 12, 13, 14, 15], [8, 9, 10, 11, 12, 13, 14, 15]]);
}

#[test]
fn without_a_ratio_only_the_score_decides() {
    let text = "h2o:budget=8,recent=0+kvcrush:ratio=0,group=1";
    assert_eq!(kept(text, &layer()), kept("h2o:budget=8,recent=0", &layer()));
}

#[test]
fn the_protected_stay_and_say_so() {
    let text = "h2o:budget=12,recent=0.34+kvcrush:ratio=0.5,group=4,variant=openvino,anchor=zeros";
    let seen = picture(text, &layer());
    assert!(seen.fates.ends_with('n'), "{}", seen.fates);
    assert!(kept(text, &layer())[0].ends_with(&[12, 13, 14, 15]));
}

#[test]
fn compositions_with_every_scorer_and_with_adakv() {
    let rows: Vec<Vec<f32>> =
        (1..=64usize).map(|n| (0..n).map(|t| ((t * 7 + n * 3) % 11) as f32 / 60.0).collect()).collect();
    let layer = Layer::of_attention(&[
        rows.clone(),
        rows.into_iter().map(|r| r.into_iter().rev().collect()).collect(),
    ]);
    for scorer in ["h2o", "snapkv", "pyramidkv", "tova", "keyformer"] {
        let window = if scorer.ends_with("kv") { ",window=4" } else { "" };
        for crush in ["", ",variant=openvino", ",variant=torch"] {
            for group in [1, 4, 16] {
                let text = format!("{scorer}:budget=32{window}+kvcrush:ratio=0.25,group={group}{crush}");
                let policy = parse_policy(&text).unwrap();
                let bound = policy.bound(&layer.moment(), 2).unwrap();
                for kept in kept(&text, &layer) {
                    assert!(kept.len() as u32 <= bound.per_head, "{text}: {} {bound:?}", kept.len());
                }
            }
        }
    }
    let both = kept("h2o:budget=32+kvcrush:group=4+adakv", &layer);
    assert_eq!(both, kept("h2o:budget=32+adakv+kvcrush:group=4", &layer));
}

/// The picks are the first head's. Under AdaKV another may have places for fewer of them.
#[test]
fn a_head_of_a_smaller_share_keeps_fewer_of_the_first_heads_picks() {
    let policy: Policy =
        parse_policy("h2o:budget=2,recent=0+adakv:floor=0+kvcrush:ratio=0.5,anchor=mean,group=1").unwrap();
    // Nearly everything is paid to the first head's tokens, so six of the layer's ten slots are its.
    let held: [(&[Position], &[f32]); 5] = [
        (&[0, 1, 2, 3, 4, 5, 6], &[0.0, 0.9, 0.8, 0.9, 0.8, 0.9, 0.8]),
        (&[0, 2, 4, 6], &[0.1, 0.2, 0.5, 0.2]),
        (&[1, 3, 5, 6], &[0.1, 0.5, 0.2, 0.2]),
        (&[6], &[0.3]),
        (&[2, 3, 4, 5, 6], &[0.1, 0.1, 0.1, 0.5, 0.2]),
    ];
    let accs = held.map(|(positions, row)| {
        let mut acc = Accumulators::new(policy.needs());
        acc.observe_decode(positions, row);
        acc
    });
    let heads: Vec<_> =
        held.iter().zip(&accs).map(|(&(positions, _), acc)| HeadInputs::new(positions, acc)).collect();
    let moment = Layer::of_last_rows(&[vec![0.0; 7]]).moment();
    let mut out = Vec::new();
    policy.decide(&moment, &heads, &mut out);

    let lost: usize = out.iter().map(|verdict| verdict.victims.len()).sum();
    let residents: usize = held.iter().map(|(positions, _)| positions.len()).sum();
    assert_eq!(policy.bound(&moment, 5).unwrap().per_layer, 10);
    assert!(residents - lost <= 10, "{} stay: {out:?}", residents - lost);
    // The first head does have representatives, or there would be nothing to hand down.
    assert!(out[0].crush.as_ref().unwrap().fates.contains('r'));
}
