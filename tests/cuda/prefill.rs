//! The softmax of a tile of scores, against f64.

use half::f16;

use crate::host::{Arg, Buffer, floats, kernels, same_bits, within};
use crate::scene::{ALL_POSITIONS, Cell, NO_CAP, Plan, Scene, pick, seeded, uniform};

/// Of a probability whose score is at most 8 in magnitude; in half precision its rounding comes on top.
const BOUND: f64 = 4e-6;
const HALF_BOUND: f64 = 6e-4;

#[test]
fn a_tile_becomes_probabilities() {
    let Some(kernels) = kernels("prefill") else { return };
    let mut worst = 0.0f64;
    for seed in 0..20 {
        let mut rng = seeded(6000 + seed);
        let queries = *pick(&mut rng, &[1, 3, 17]);
        let plan = Plan {
            cell: Cell::F32,
            sequences: 1,
            kv_heads: 2,
            group: *pick(&mut rng, &[1, 3]),
            head_dim: 8,
            block_size: 16,
            slots: *pick(&mut rng, &[17, 255, 400]),
            holes: *pick(&mut rng, &[0.0, 0.3, 1.0]),
            fresh: *pick(&mut rng, &[1, 17]),
        };
        let scene = Scene::new(plan, &mut rng);
        let (heads, most) = (plan.heads(), scene.most_slots());
        // A matrix is as wide as the longest lane and more; some lanes stop before.
        let columns = most + 3;
        let stride = columns + 2;
        let scores = uniform(&mut rng, heads * queries * stride, 8.0);
        let scale = 0.7f32;
        let with_halves = seed.is_multiple_of(2);
        let (tile, halves) = same_bits(|schedule| {
            let mut tile = Buffer::of_f32(&scores);
            let mut halves = Buffer::poisoned(2 * scores.len());
            let mut positions = Buffer::of_u32(&scene.positions);
            let mut lanes = scene.lane_words();
            let mut args = vec![tile.arg()];
            if with_halves {
                args.push(halves.arg());
            }
            args.extend([positions.arg(), lanes.arg()]);
            args.extend([heads, plan.kv_heads, columns, stride].map(Arg::from));
            args.extend([Arg::from(scale), ALL_POSITIONS.into(), NO_CAP.into()]);
            let name = if with_halves { "prefill_softmax_f16" } else { "prefill_softmax" };
            kernels.run(name, [queries, heads, 1], 256, &args, schedule);
            (tile.u32s(), halves.bytes())
        });
        let tile = floats(&tile);
        for row in 0..heads * queries {
            let (lane, query) = (scene.lane_of(0, row / queries / plan.group), row % queries);
            let scores = &scores[row * stride..][..stride];
            let seen = |slot: usize| slot < lane.slots() && lane.sees(lane.query + query as u32, slot);
            let of = |slot: usize| f64::from(scores[slot]) * f64::from(scale);
            let max = (0..columns).filter(|&s| seen(s)).map(of).fold(f64::NEG_INFINITY, f64::max);
            let total: f64 = (0..columns).filter(|&s| seen(s)).map(|s| (of(s) - max).exp()).sum();
            let want = |slot: usize| if seen(slot) { (of(slot) - max).exp() / total } else { 0.0 };
            let cases = (0..columns).map(|s| (tile[row * stride + s], want(s), want(s).max(1e-9)));
            worst = worst.max(within("probabilities", BOUND, cases));
            assert_eq!(tile[row * stride + columns..(row + 1) * stride], scores[columns..]);
            if with_halves {
                let half = |s: usize| {
                    let at = 2 * (row * stride + s);
                    f16::from_le_bytes([halves[at], halves[at + 1]]).to_f32()
                };
                let cases = (0..columns).map(|s| (half(s), want(s), want(s).max(1e-4)));
                within("probabilities in half precision", HALF_BOUND, cases);
            }
        }
    }
    println!("prefill: worst error {worst:.1e}, bound {BOUND:.1e}");
}
