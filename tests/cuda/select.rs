//! Selections, exactly: against sorting, and against the rules' own selection.

use kvista::policy::select::{Protected, select};
use rand::Rng;
use rand_chacha::ChaCha8Rng;

use crate::host::{Buffer, NULL, floats, kernels, same_bits, within};
use crate::scene::{Cell, HOLE, LaneScene, Plan, Scene, pick, seeded};

const THREADS: usize = 512;
const CASES: u64 = 25;

/// A scene in which positions alone matter.
pub(crate) fn bare(rng: &mut ChaCha8Rng, slots: usize) -> Scene {
    let plan = Plan {
        cell: Cell::F32,
        sequences: rng.random_range(1..=4),
        kv_heads: rng.random_range(1..4),
        group: rng.random_range(1..5),
        head_dim: 8,
        block_size: 16,
        slots,
        holes: *pick(rng, &[0.0, 0.2, 0.7]),
        fresh: 1,
    };
    Scene::new(plan, rng)
}

/// Words of a row of marks: whole tiles.
pub(crate) const fn words(slots: usize) -> usize {
    slots.div_ceil(THREADS) * THREADS / 32
}

pub(crate) fn marked(marks: &[u32], slot: usize) -> bool {
    marks[slot / 32] >> (slot % 32) & 1 == 1
}

/// Rows of few different values, so that many are equal; some not numbers.
fn rows(rng: &mut ChaCha8Rng, n: usize, signed: bool) -> Vec<f32> {
    let kinds = *pick(rng, &[3, 40, 100_000]);
    let draw = |rng: &mut ChaCha8Rng| match rng.random_range(0..200) {
        0 => f32::NAN,
        1 => 0.0,
        2 if signed => -0.0,
        _ => {
            let x = rng.random_range(0..kinds) as f32 / kinds as f32;
            if signed && rng.random_bool(0.3) { -x } else { x * x * x }
        }
    };
    (0..n).map(|_| draw(rng)).collect()
}

pub(crate) fn top(row: &[f32], lane: &LaneScene, n: usize, own: bool) -> Vec<u32> {
    let mut order: Vec<usize> = (0..lane.slots()).filter(|&slot| lane.sees(lane.query, slot)).collect();
    let last = order.last().copied();
    order.sort_by_key(|&slot| (std::cmp::Reverse(row[slot].to_bits()), slot));
    order.truncate(n);
    if let Some(last) = last.filter(|last| own && !order.contains(last)) {
        order.push(last);
    }
    order.sort_unstable();
    order.into_iter().map(|slot| slot as u32).collect()
}

#[test]
fn a_read_set_is_the_largest_and_its_union() {
    let Some(kernels) = kernels("select") else { return };
    for seed in 0..CASES {
        let mut rng = seeded(2000 + seed);
        let most = *pick(&mut rng, &[1, 31, 100, 511, 512, 513, 1100]);
        let scene = bare(&mut rng, most);
        let Plan { sequences, kv_heads, group, .. } = scene.plan;
        let (heads, stride, word_stride) = (scene.plan.heads(), most + 3, words(most));
        let n = *pick(&mut rng, &[0, 1, 5, 64, 2000]);
        let own = rng.random_bool(0.5);
        let values = rows(&mut rng, sequences * heads * stride, false);
        let list_stride = most + 1;
        let (marks, counts, lists, union) = same_bits(|schedule| {
            let mut marks = Buffer::room(sequences * heads * word_stride);
            let mut counts = Buffer::room(sequences * heads);
            let mut lists = Buffer::room(sequences * heads * list_stride);
            let mut input = Buffer::of_f32(&values);
            let mut positions = Buffer::of_u32(&scene.positions);
            let mut lanes = scene.lane_words();
            let args = [
                marks.arg(),
                counts.arg(),
                if seed.is_multiple_of(4) { NULL } else { lists.arg() },
                input.arg(),
                positions.arg(),
                lanes.arg(),
                heads.into(),
                kv_heads.into(),
                stride.into(),
                word_stride.into(),
                list_stride.into(),
                n.into(),
                usize::from(own).into(),
            ];
            kernels.run("select_top", [heads, sequences, 1], THREADS, &args, schedule);
            let mut slots = Buffer::room(sequences * kv_heads * list_stride);
            let mut union_counts = Buffer::room(sequences * kv_heads);
            let mut weights = Buffer::room(sequences * heads * list_stride);
            let mut dropped = Buffer::room(sequences * heads);
            let args = [
                slots.arg(),
                union_counts.arg(),
                weights.arg(),
                dropped.arg(),
                marks.arg(),
                input.arg(),
                lanes.arg(),
                heads.into(),
                kv_heads.into(),
                stride.into(),
                word_stride.into(),
                list_stride.into(),
            ];
            kernels.run("select_union", [kv_heads, sequences, 1], THREADS, &args, schedule);
            let union = (slots.u32s(), union_counts.u32s(), weights.u32s(), dropped.u32s());
            (marks.u32s(), counts.u32s(), lists.u32s(), union)
        });
        for (i, lane) in scene.lanes.iter().enumerate() {
            let mut all = vec![false; lane.slots()];
            let choices: Vec<Vec<u32>> = (0..group)
                .map(|g| {
                    let row = i * group + g;
                    let want = top(&values[row * stride..][..lane.slots()], lane, n, own);
                    let got = &marks[row * word_stride..][..word_stride];
                    let got: Vec<u32> =
                        (0..lane.slots()).filter(|&s| marked(got, s)).map(|s| s as u32).collect();
                    assert_eq!(got, want, "{:?}, {n} of a head", scene.plan);
                    assert_eq!(counts[row] as usize, want.len());
                    if !seed.is_multiple_of(4) {
                        assert_eq!(lists[row * list_stride..][..want.len()], want);
                    }
                    for &slot in &want {
                        all[slot as usize] = true;
                    }
                    want
                })
                .collect();
            let want: Vec<u32> = (0..all.len()).filter(|&s| all[s]).map(|s| s as u32).collect();
            let (slots, union_counts, weights, dropped) = &union;
            assert_eq!(union_counts[i] as usize, want.len());
            assert_eq!(slots[i * list_stride..][..want.len()], want);
            for (g, choice) in choices.iter().enumerate() {
                let row = &values[(i * group + g) * stride..][..lane.slots()];
                for (at, slot) in want.iter().enumerate() {
                    let asked = choice.contains(slot);
                    let want = if asked { row[*slot as usize].to_bits() } else { 0 };
                    assert_eq!(weights[(i * group + g) * list_stride + at], want);
                }
                let outside = (0..row.len()).filter(|&s| !choice.contains(&(s as u32)));
                let mass: f64 = outside.map(|s| f64::from(row[s])).sum();
                let want = if mass.is_nan() { 1.0 } else { mass.clamp(0.0, 1.0) };
                within("dropped mass", 1e-5, [(f32::from_bits(dropped[i * group + g]), want, want)]);
            }
        }
    }
}

#[test]
fn who_stays_is_what_the_rules_say() {
    let Some(kernels) = kernels("select") else { return };
    for seed in 0..2 * CASES {
        let mut rng = seeded(3000 + seed);
        let most = *pick(&mut rng, &[1, 40, 511, 513, 1030]);
        let scene = bare(&mut rng, most);
        let Plan { sequences, kv_heads, .. } = scene.plan;
        let (stride, word_stride, list_stride) = (most + 2, words(most), most + 1);
        let scores = rows(&mut rng, scene.lanes.len() * stride, true);
        let budget = *pick(&mut rng, &[1usize, 4, 30, 200, most]);
        let (sinks, recent) = (*pick(&mut rng, &[0usize, 1, 4, 50]), *pick(&mut rng, &[0usize, 1, 8, 100]));
        // One decision may stand for all heads: the first one's.
        let as_one = seed.is_multiple_of(7);
        let (marks, victims, lost, counts, cutoffs) = same_bits(|schedule| {
            let mut marks = Buffer::room(scene.lanes.len() * word_stride);
            let mut victims = Buffer::room(scene.lanes.len() * list_stride);
            let mut lost = Buffer::room(scene.lanes.len() * list_stride);
            let mut counts = Buffer::room(scene.lanes.len());
            let mut cutoffs = Buffer::room(scene.lanes.len());
            let mut input = Buffer::of_f32(&scores);
            let mut positions = Buffer::of_u32(&scene.positions);
            let mut lanes = scene.lane_words();
            let args = [
                if as_one { NULL } else { marks.arg() },
                victims.arg(),
                lost.arg(),
                counts.arg(),
                cutoffs.arg(),
                input.arg(),
                positions.arg(),
                lanes.arg(),
                kv_heads.into(),
                stride.into(),
                word_stride.into(),
                list_stride.into(),
                budget.into(),
                sinks.into(),
                recent.into(),
            ];
            let grid = [if as_one { 1 } else { kv_heads }, sequences, 1];
            kernels.run("select_keep", grid, THREADS, &args, schedule);
            (marks.u32s(), victims.u32s(), lost.u32s(), counts.u32s(), cutoffs.u32s())
        });
        for (i, lane) in scene.lanes.iter().enumerate() {
            if as_one && !i.is_multiple_of(kv_heads) {
                continue;
            }
            let live: Vec<usize> = (0..lane.slots()).filter(|&s| lane.positions[s] != HOLE).collect();
            let positions: Vec<u32> = live.iter().map(|&s| lane.positions[s]).collect();
            let of_live: Vec<f32> = live.iter().map(|&s| scores[i * stride + s]).collect();
            let protected = Protected { sinks: sinks as u32, recent: recent as u32 };
            let want = select(None, &positions, budget as u32, protected, &of_live);
            let gone = want.as_ref().map_or(&[][..], |verdict| &verdict.victims);
            let got: Vec<u32> = victims[i * list_stride..][..counts[i] as usize]
                .iter()
                .map(|&s| lane.positions[s as usize])
                .collect();
            assert_eq!(got, gone, "{:?}, budget {budget}, {sinks} sinks, {recent} recent", scene.plan);
            if let Some(verdict) = want.as_ref().filter(|verdict| verdict.cutoff.is_some()) {
                let got = &floats(&lost)[i * list_stride..][..counts[i] as usize];
                assert_eq!(got, verdict.scores);
            }
            for &slot in live.iter().filter(|_| !as_one) {
                let stays = !gone.contains(&lane.positions[slot]);
                assert_eq!(marked(&marks[i * word_stride..], slot), stays);
            }
            let cutoff = Some(floats(&cutoffs)[i]).filter(|cutoff| !cutoff.is_nan());
            assert_eq!(cutoff, want.and_then(|verdict| verdict.cutoff));
        }
    }
}
