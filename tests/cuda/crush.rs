//! KVCrush's signatures, anchors and distances: those of the rule's own decision.

use kvista::event::Crush;
use kvista::event::crush::BitRow;
use kvista::policy::{Accumulators, HeadInputs, Moment, Policy, When, parse_policy};
use rand::Rng;

use crate::host::{Buffer, kernels, same_bits};
use crate::scene::{HOLE, LaneScene, seeded};
use crate::select::{bare, words};

/// What the rule sees of a layer whose accumulated attention is `sums`, `[kv_head][slot]`.
fn rule(text: &str, lanes: &[LaneScene], sums: &[Vec<f32>]) -> Option<Crush> {
    let policy: Policy = parse_policy(text).unwrap();
    let positions: Vec<Vec<u32>> =
        lanes.iter().map(|lane| lane.positions.iter().copied().filter(|&p| p != HOLE).collect()).collect();
    let accumulators: Vec<Accumulators> = lanes
        .iter()
        .zip(sums)
        .zip(&positions)
        .map(|((lane, sums), positions)| {
            let live = (0..lane.slots()).filter(|&s| lane.positions[s] != HOLE);
            let row: Vec<f32> = live.map(|s| sums[s]).collect();
            let mut acc = Accumulators::new(policy.needs());
            acc.observe_prefill(positions, 1, &row, &row);
            acc
        })
        .collect();
    let heads: Vec<HeadInputs<'_>> =
        positions.iter().zip(&accumulators).map(|(positions, acc)| HeadInputs::new(positions, acc)).collect();
    let next = positions.iter().flatten().max()? + 1;
    let moment = Moment {
        when: When::EndOfPrompt,
        layer: 0,
        layers: 1,
        prompt_len: next,
        span_len: next,
        next_position: next,
        block_size: 16,
        step: 0,
        share: None,
        seed: 0,
    };
    let mut verdicts = Vec::new();
    policy.decide(&moment, &heads, &mut verdicts);
    verdicts.into_iter().find_map(|verdict| verdict.crush).map(|crush| *crush)
}

/// A row of 64-bit words as it is recorded.
fn recorded(words: &[u32], bits: usize) -> BitRow {
    let bit = |i: usize| words[i / 64 * 2 + 1 - i / 32 % 2] >> (31 - i % 32) & 1 == 1;
    BitRow::new(&(0..bits).map(bit).collect::<Vec<_>>())
}

#[test]
fn signatures_and_distances_are_those_of_the_rule() {
    let (Some(select), Some(crush)) = (kernels("select"), kernels("crush")) else { return };
    let mut seen = 0;
    for seed in 0..40 {
        let mut rng = seeded(11_000 + seed);
        let mut scene = bare(&mut rng, 300);
        if scene.plan.sequences > 1
            || scene.lanes.iter().any(|lane| lane.positions != scene.lanes[0].positions)
        {
            scene.lanes.truncate(1);
            scene.plan.kv_heads = 1;
        }
        let (heads, lanes_words) = (scene.plan.kv_heads, scene.lane_words());
        let group = *crate::scene::pick(&mut rng, &[1usize, 4, 8, 13]);
        let live = scene.lanes[0].positions.iter().filter(|&&p| p != HOLE).count();
        let stride = scene.most_slots();
        let sums: Vec<Vec<f32>> = (0..heads)
            .map(|_| (0..stride).map(|_| rng.random_range(0..50) as f32 / 50.0).collect())
            .collect();
        for (kind, anchor) in ["mean", "inv-mean", "alternating", "zeros", "ones"].into_iter().enumerate() {
            let budget = (live / 2).max(1);
            let text = format!(
                "h2o:budget={budget},recent=0+kvcrush:ratio=0.5,variant=vllm,group={group},anchor={anchor}"
            );
            let Some(want) = rule(&text, &scene.lanes, &sums) else { continue };
            seen += 1;
            // Units that compete have a signature; their tokens are a range of slots.
            let competing: Vec<usize> =
                (0..want.first.len()).filter(|&u| !want.signatures[u].is_empty()).collect();
            if want.units as usize > want.first.len() || competing.is_empty() {
                continue;
            }
            let positions = &scene.lanes[0].positions;
            let slot_of = |unit: usize| positions.iter().position(|&p| p == want.first[unit]).unwrap();
            let from = slot_of(competing[0]);
            let to = competing
                .last()
                .filter(|&&u| u + 1 < want.first.len())
                .map_or(positions.len(), |&u| slot_of(u + 1));
            let ids = positions.iter().filter(|&&p| p != HOLE).max().unwrap() / group as u32 + 1;
            let mut unit_of = vec![u32::MAX; ids as usize];
            for (row, &unit) in competing.iter().enumerate() {
                unit_of[want.first[unit] as usize / group] = row as u32;
            }
            let width = group * heads;
            let row_words = width.div_ceil(64);
            let (signatures, anchor_bits, distances) = same_bits(|schedule| {
                let word_stride = words(stride);
                let mut marks = Buffer::room(heads * word_stride);
                let mut scores = Buffer::of_f32(&sums.concat());
                let mut bounds = [from, to].map(|slot| Buffer::of_u32(&vec![slot as u32; heads]));
                let mut positions = Buffer::of_u32(&scene.positions);
                let mut lanes = lanes_words.clone();
                let [from, to] = &mut bounds;
                let args = [
                    marks.arg(),
                    scores.arg(),
                    from.arg(),
                    to.arg(),
                    positions.arg(),
                    lanes.arg(),
                    heads.into(),
                    stride.into(),
                    word_stride.into(),
                ];
                select.run("select_upper", [heads, 1, 1], 512, &args, schedule);
                let mut signatures = Buffer::zeros(competing.len() * 2 * row_words);
                let mut units = Buffer::of_u32(&unit_of);
                let args = [
                    signatures.arg(),
                    marks.arg(),
                    units.arg(),
                    positions.arg(),
                    lanes.arg(),
                    heads.into(),
                    group.into(),
                    row_words.into(),
                    unit_of.len().into(),
                    word_stride.into(),
                ];
                crush.run("crush_signatures", [stride.div_ceil(256), heads, 1], 256, &args, schedule);
                let mut anchor = Buffer::room(2 * row_words);
                let args = [
                    anchor.arg(),
                    signatures.arg(),
                    competing.len().into(),
                    row_words.into(),
                    width.into(),
                    kind.into(),
                ];
                crush.run("crush_anchor", [(64 * row_words).div_ceil(256), 1, 1], 256, &args, schedule);
                let mut distances = Buffer::room(competing.len());
                let args = [
                    distances.arg(),
                    signatures.arg(),
                    anchor.arg(),
                    competing.len().into(),
                    row_words.into(),
                ];
                crush.run("crush_distances", [competing.len().div_ceil(8), 1, 1], 256, &args, schedule);
                (signatures.u32s(), anchor.u32s(), distances.u32s())
            });
            assert_eq!(want.bits as usize, width);
            assert_eq!(recorded(&anchor_bits, width), want.anchor, "{text}");
            for (row, &unit) in competing.iter().enumerate() {
                let words = &signatures[row * 2 * row_words..][..2 * row_words];
                assert_eq!(recorded(words, width), want.signatures[unit], "{text}, unit {unit}");
                assert_eq!(distances[row], want.distances[unit], "{text}, unit {unit}");
            }
        }
    }
    assert!(seen > 50, "{seen} decisions");
}
