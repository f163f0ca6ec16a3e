//! Rows that only move: staged for a read set, and together in compaction. The bytes stay what they were.

use rand::Rng;

use crate::host::{Buffer, kernels, same_bits};
use crate::scene::{Cell, HOLE, LaneScene, Plan, Scene, pick, seeded};

fn scene(seed: u64, slots: usize) -> Scene {
    let mut rng = seeded(seed);
    let cell = *pick(&mut rng, &[Cell::F32, Cell::F16, Cell::Int8]);
    let plan = Plan { sequences: rng.random_range(1..=4), slots, ..Plan::chance(&mut rng, cell) };
    Scene::new(plan, &mut rng)
}

#[test]
fn chosen_rows_are_staged() {
    let Some(kernels) = kernels("gather") else { return };
    for seed in 0..12 {
        let scene = scene(100 + seed, 90);
        let mut rng = seeded(seed);
        let Plan { cell, sequences, kv_heads, head_dim, block_size, .. } = scene.plan;
        let row_bytes = cell.row_bytes(head_dim);
        let chosen: Vec<Vec<usize>> = scene
            .lanes
            .iter()
            .map(|lane| {
                (0..lane.slots()).filter(|&s| lane.positions[s] != HOLE && rng.random_bool(0.4)).collect()
            })
            .collect();
        let stride = chosen.iter().map(Vec::len).max().unwrap() + 1;
        let mut slots = vec![u32::MAX; scene.lanes.len() * stride];
        for (h, chosen) in chosen.iter().enumerate() {
            for (i, &slot) in chosen.iter().enumerate() {
                slots[h * stride + i] = slot as u32;
            }
        }
        let staged = same_bits(|schedule| {
            let mut staged = Buffer::poisoned(scene.lanes.len() * stride * row_bytes);
            let mut slab = Buffer::of_bytes(&scene.v);
            let mut slots = Buffer::of_u32(&slots);
            let mut counts = Buffer::of_u32(&chosen.iter().map(|c| c.len() as u32).collect::<Vec<_>>());
            let mut tables = Buffer::of_u32(&scene.blocks);
            let mut lanes = scene.lane_words();
            let args = [
                staged.arg(),
                slab.arg(),
                slots.arg(),
                counts.arg(),
                tables.arg(),
                lanes.arg(),
                block_size.into(),
                row_bytes.into(),
                stride.into(),
                stride.into(),
            ];
            let grid = [stride.div_ceil(8), kv_heads, sequences];
            kernels.run("gather_rows", grid, 256, &args, schedule);
            staged.bytes()
        });
        for (h, chosen) in chosen.iter().enumerate() {
            for (i, &slot) in chosen.iter().enumerate() {
                let (at, row) = ((h * stride + i) * row_bytes, scene.lanes[h].rows[slot] * row_bytes);
                assert_eq!(staged[at..at + row_bytes], scene.v[row..row + row_bytes]);
            }
            let rest = &staged[(h * stride + chosen.len()) * row_bytes..(h + 1) * stride * row_bytes];
            assert!(rest.iter().all(|&b| b == 0xff));
        }
    }
}

#[test]
fn survivors_move_together() {
    let Some(kernels) = kernels("compact") else { return };
    for seed in 0..12 {
        // More than a tile of rows, so that tiles follow each other.
        let scene = scene(200 + seed, *pick(&mut seeded(seed), &[40, 200, 500]));
        let Plan { cell, sequences, kv_heads, head_dim, block_size, .. } = scene.plan;
        let row_bytes = cell.row_bytes(head_dim);
        let first: Vec<usize> = scene
            .lanes
            .iter()
            .map(|lane| {
                let hole = lane.positions.iter().position(|&p| p == HOLE).unwrap_or(lane.slots());
                hole - hole % block_size
            })
            .collect();
        let kept: Vec<Vec<usize>> = scene
            .lanes
            .iter()
            .zip(&first)
            .map(|(lane, &first)| (first..lane.slots()).filter(|&s| lane.positions[s] != HOLE).collect())
            .collect();
        let stride = scene.most_slots();
        let mut slots = vec![u32::MAX; scene.lanes.len() * stride];
        for (h, kept) in kept.iter().enumerate() {
            for (i, &slot) in kept.iter().enumerate() {
                slots[h * stride + i] = slot as u32;
            }
        }
        let (k, v) = same_bits(|schedule| {
            let (mut k, mut v) = (Buffer::of_bytes(&scene.k), Buffer::of_bytes(&scene.v));
            let mut slots = Buffer::of_u32(&slots);
            let mut counts = Buffer::of_u32(&kept.iter().map(|c| c.len() as u32).collect::<Vec<_>>());
            let mut first = Buffer::of_u32(&first.iter().map(|&s| s as u32).collect::<Vec<_>>());
            let mut tables = Buffer::of_u32(&scene.blocks);
            let mut lanes = scene.lane_words();
            let args = [
                k.arg(),
                v.arg(),
                slots.arg(),
                counts.arg(),
                first.arg(),
                tables.arg(),
                lanes.arg(),
                block_size.into(),
                row_bytes.into(),
                row_bytes.into(),
                stride.into(),
            ];
            kernels.run("compact_rows", [kv_heads, 2, sequences], 256, &args, schedule);
            (k.bytes(), v.bytes())
        });
        let row_of = |slab: &[u8], row: usize| slab[row * row_bytes..(row + 1) * row_bytes].to_vec();
        for (h, lane) in scene.lanes.iter().enumerate() {
            let moved = |before: &[u8], after: &[u8], lane: &LaneScene| {
                for (i, &slot) in kept[h].iter().enumerate() {
                    assert_eq!(row_of(after, lane.rows[first[h] + i]), row_of(before, lane.rows[slot]));
                }
                for slot in (0..first[h]).chain(first[h] + kept[h].len()..lane.slots()) {
                    assert_eq!(
                        row_of(after, lane.rows[slot]),
                        row_of(before, lane.rows[slot]),
                        "not moved to"
                    );
                }
            };
            moved(&scene.k, &k, lane);
            moved(&scene.v, &v, lane);
        }
    }
}
