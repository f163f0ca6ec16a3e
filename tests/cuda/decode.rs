//! Decode: the ranges' kernel and what puts them together, against attention in f64 over what the pages are read as.

use std::sync::Arc;

use rand::Rng;

use crate::host::{Buffer, Kernels, NULL, floats, kernels, same_bits, within};
use crate::scene::{ALL_POSITIONS, Cell, HOLE, LaneScene, NO_CAP, Plan, SPLIT, Scene, pick, seeded, uniform};
use crate::select::{marked, words};

/// Relative to the sum of magnitudes: f32 arithmetic over up to 256 channels and 530 slots. The reference reads the same
/// pages, so the type of the pages makes no difference beyond its own arithmetic.
const fn bound(cell: Cell) -> f64 {
    match cell {
        Cell::F32 | Cell::F16 | Cell::Bf16 => 1.5e-6,
        Cell::Int8 | Cell::Int4 | Cell::Int2 => 3e-6,
    }
}

/// Cases per page type.
const CASES: u64 = 12;

/// What one launch of everything leaves.
#[derive(Debug, PartialEq)]
struct Outcome {
    out: Vec<u32>,
    rows: Vec<u32>,
    block_sums: Vec<u32>,
    sums_of_rows: Vec<u32>,
}

struct Files {
    decode: Arc<Kernels>,
    combine: Arc<Kernels>,
}

fn files(cell: Cell) -> Option<Files> {
    let decode = match cell {
        Cell::F32 | Cell::F16 | Cell::Bf16 => "decode_exact",
        Cell::Int8 | Cell::Int4 | Cell::Int2 => "decode_codes",
    };
    Some(Files { decode: kernels(decode)?, combine: kernels("combine")? })
}

/// The size and group variants that hold a shape, the smallest or a larger one.
fn variant(plan: Plan, seed: u64) -> (String, usize) {
    let sizes: Vec<usize> = [64, 128, 256].into_iter().filter(|&d| d >= plan.head_dim).collect();
    let groups: Vec<usize> = [1, 4, 8].into_iter().filter(|&g| g >= plan.group.min(8)).collect();
    let size = sizes[if seed.is_multiple_of(3) { sizes.len() - 1 } else { 0 }];
    let group = groups[if seed.is_multiple_of(5) { groups.len() - 1 } else { 0 }];
    (format!("decode_{}_d{size}_g{group}", plan.cell.name()), group)
}

const OUT: usize = 1;
const SCORES: usize = 2;
const BLOCKS: usize = 4;

struct Launch<'a> {
    scene: &'a Scene,
    queries: &'a [f32],
    /// Marks of what each head reads, `[sequence][head]` rows of so many words.
    read: Option<(&'a [u32], usize)>,
    /// OUT, SCORES, BLOCKS.
    wants: usize,
    variant: (String, usize),
}

impl Launch<'_> {
    fn run(&self, files: &Files, schedule: u32) -> Outcome {
        let Plan { sequences, kv_heads, head_dim, block_size, group, .. } = self.scene.plan;
        let heads = self.scene.plan.heads();
        let most = self.scene.most_slots();
        let (splits, stride, blocks) = (most.div_ceil(SPLIT) + 1, most + 5, most.div_ceil(block_size) + 2);
        let rows = sequences * heads;
        let mut partial = Buffer::room(rows * splits * head_dim);
        let mut max_sum = Buffer::room(rows * splits * 2);
        let mut scores = Buffer::room(rows * stride);
        let mut block_sums = Buffer::room(rows * blocks);
        let mut sums_of_rows = Buffer::room(rows * blocks);
        let mut queries = Buffer::of_f32(self.queries);
        let (marks, read_stride) = self.read.unwrap_or((&[], 0));
        let mut read = Buffer::of_u32(marks);
        let (mut k, mut v) = (Buffer::of_bytes(&self.scene.k), Buffer::of_bytes(&self.scene.v));
        let mut exact_k = Buffer::of_bytes(&self.scene.exact_k);
        let mut exact_v = Buffer::of_bytes(&self.scene.exact_v);
        let mut tables = Buffer::of_u32(&self.scene.blocks);
        let mut positions = Buffer::of_u32(&self.scene.positions);
        let mut lanes = self.scene.lane_words();
        let wants = |what: usize| self.wants & what != 0;
        let in_kernel = wants(BLOCKS) && SPLIT.is_multiple_of(block_size);
        let (name, of_block) = &self.variant;
        let scale = (1.0 / (head_dim as f64).sqrt()) as f32;
        let args = [
            partial.arg(),
            max_sum.arg(),
            if wants(SCORES) { scores.arg() } else { NULL },
            if in_kernel { block_sums.arg() } else { NULL },
            if self.read.is_some() { read.arg() } else { NULL },
            queries.arg(),
            k.arg(),
            if wants(OUT) { v.arg() } else { NULL },
            exact_k.arg(),
            exact_v.arg(),
            tables.arg(),
            positions.arg(),
            lanes.arg(),
            heads.into(),
            kv_heads.into(),
            head_dim.into(),
            block_size.into(),
            splits.into(),
            stride.into(),
            blocks.into(),
            read_stride.into(),
            scale.into(),
            ALL_POSITIONS.into(),
            NO_CAP.into(),
        ];
        let grid = [most.div_ceil(SPLIT), kv_heads * group.div_ceil(*of_block), sequences];
        files.decode.run(name, grid, 128, &args, schedule);

        let mut out = Buffer::room(rows * head_dim);
        let mut totals = Buffer::room(rows * 2);
        let args = [
            if wants(OUT) { out.arg() } else { NULL },
            totals.arg(),
            partial.arg(),
            max_sum.arg(),
            lanes.arg(),
            heads.into(),
            kv_heads.into(),
            head_dim.into(),
            splits.into(),
        ];
        files.combine.run("decode_combine", [heads, sequences, 1], 256, &args, schedule);
        if in_kernel {
            let args = [
                block_sums.arg(),
                max_sum.arg(),
                totals.arg(),
                lanes.arg(),
                heads.into(),
                kv_heads.into(),
                block_size.into(),
                splits.into(),
                blocks.into(),
            ];
            let grid = [blocks.div_ceil(256), heads, sequences];
            files.combine.run("decode_block_sums", grid, 256, &args, schedule);
        }
        if wants(SCORES) {
            let args =
                [scores.arg(), totals.arg(), lanes.arg(), heads.into(), kv_heads.into(), stride.into()];
            files.combine.run("decode_rows", [most.div_ceil(256), heads, sequences], 256, &args, schedule);
            let args = [
                sums_of_rows.arg(),
                scores.arg(),
                lanes.arg(),
                heads.into(),
                kv_heads.into(),
                block_size.into(),
                stride.into(),
                blocks.into(),
            ];
            files.combine.run(
                "row_block_sums",
                [blocks.div_ceil(256), heads, sequences],
                256,
                &args,
                schedule,
            );
        }
        Outcome {
            out: out.u32s(),
            rows: scores.u32s(),
            block_sums: if in_kernel { block_sums.u32s() } else { Vec::new() },
            sums_of_rows: sums_of_rows.u32s(),
        }
    }
}

/// Probabilities over the slots of a lane that are read, 0 where nothing is seen.
fn probabilities(lane: &LaneScene, query: &[f32], position: u32, read: impl Fn(usize) -> bool) -> Vec<f64> {
    let d = query.len();
    let dot = |slot: usize| -> f64 {
        let key = &lane.keys[slot * d..][..d];
        query.iter().zip(key).map(|(&q, &k)| f64::from(q) * f64::from(k)).sum::<f64>() / (d as f64).sqrt()
    };
    let scores: Vec<f64> = (0..lane.slots())
        .map(|slot| if lane.sees(position, slot) && read(slot) { dot(slot) } else { f64::NEG_INFINITY })
        .collect();
    let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let weights: Vec<f64> =
        scores.iter().map(|&s| if s == f64::NEG_INFINITY { 0.0 } else { (s - max).exp() }).collect();
    let total: f64 = weights.iter().sum();
    weights.iter().map(|w| if total > 0.0 { w / total } else { 0.0 }).collect()
}

/// Weighted sum of the values, and of their magnitudes.
fn weighted(lane: &LaneScene, weights: &[f64], d: usize, channel: usize) -> (f64, f64) {
    let used = weights.iter().enumerate().filter(|&(slot, &w)| w > 0.0 && lane.positions[slot] != HOLE);
    used.fold((0.0, 0.0), |(sum, magnitude), (slot, w)| {
        let x = w * f64::from(lane.values[slot * d + channel]);
        (sum + x, magnitude + x.abs())
    })
}

fn check(launch: &Launch<'_>, outcome: &Outcome) -> f64 {
    let Launch { scene, queries, .. } = launch;
    let Plan { cell, group, head_dim: d, block_size, .. } = scene.plan;
    let (heads, most) = (scene.plan.heads(), scene.most_slots());
    let (stride, blocks) = (most + 5, most.div_ceil(block_size) + 2);
    let (out, rows) = (floats(&outcome.out), floats(&outcome.rows));
    let mut worst = 0.0f64;
    for row in 0..scene.plan.sequences * heads {
        let lane = scene.lane_of(row / heads, row % heads / group);
        let read = |slot| launch.read.is_none_or(|(marks, stride)| marked(&marks[row * stride..], slot));
        let p = probabilities(lane, &queries[row * d..][..d], lane.query, read);
        let sums = (0..d).map(|c| (c, weighted(lane, &p, d, c)));
        let of_out = sums.map(|(c, (sum, magnitude))| (out[row * d + c], sum, magnitude));
        worst = worst.max(within("output", bound(cell), of_out));
        // A probability is off by what its score is off, which is small beside the largest score.
        let of_row = p.iter().enumerate().map(|(slot, &p)| (rows[row * stride + slot], p, p.max(1e-6)));
        within("probabilities", 1e-5, of_row);
        let untouched = &outcome.rows[row * stride + lane.slots()..(row + 1) * stride];
        assert!(untouched.iter().all(|&x| x == u32::MAX), "probabilities behind the last slot");
        let of_block: Vec<f64> = p.chunks(block_size).map(|block| block.iter().sum()).collect();
        for sums in [&outcome.block_sums, &outcome.sums_of_rows].into_iter().filter(|sums| !sums.is_empty()) {
            let sums = floats(&sums[row * blocks..][..of_block.len()]);
            within(
                "block sums",
                1e-5,
                sums.iter().zip(&of_block).map(|(&got, &want)| (got, want, want.max(1e-6))),
            );
        }
    }
    worst
}

#[test]
fn decode_is_attention() {
    for cell in Cell::ALL {
        let Some(files) = files(cell) else { return };
        let mut worst = 0.0f64;
        for seed in 0..CASES {
            let mut rng = seeded(1000 + seed);
            let plan = Plan::chance(&mut rng, cell);
            let scene = Scene::new(plan, &mut rng);
            let queries = uniform(&mut rng, plan.sequences * plan.heads() * plan.head_dim, 2.0);
            let variant = variant(plan, seed);
            // Every third case reads a part of the slots, each head another.
            let read_stride = words(scene.most_slots());
            let marks: Vec<u32> =
                (0..plan.sequences * plan.heads() * read_stride).map(|_| rng.random()).collect();
            let read = seed.is_multiple_of(3).then_some((&*marks, read_stride));
            let launch =
                |wants| Launch { scene: &scene, queries: &queries, read, wants, variant: variant.clone() };
            let all = same_bits(|schedule| launch(OUT | SCORES | BLOCKS).run(&files, schedule));
            worst = worst.max(check(&launch(OUT | SCORES | BLOCKS), &all));
            // What is asked for changes nothing of the rest.
            assert!(launch(OUT).run(&files, 0).out == all.out, "{plan:?}");
            assert!(launch(SCORES).run(&files, 0).rows == all.rows, "{plan:?}");
        }
        println!("{}: worst error {worst:.1e}, bound {:.1e}", cell.name(), bound(cell));
    }
}

#[test]
fn every_kernel_of_the_files_is_reached() {
    for cell in Cell::ALL {
        let Some(files) = files(cell) else { return };
        for size in [64, 128, 256] {
            for of_block in [1, 4, 8] {
                let mut rng = seeded(size as u64 + of_block as u64);
                let plan = Plan {
                    cell,
                    sequences: 1,
                    kv_heads: 2,
                    group: *pick(&mut rng, &[of_block, of_block.max(3) - 1, of_block + 1]),
                    head_dim: size,
                    block_size: 32,
                    slots: 290,
                    holes: 0.2,
                    fresh: 1,
                };
                let scene = Scene::new(plan, &mut rng);
                let queries = uniform(&mut rng, plan.heads() * size, 2.0);
                let name = format!("decode_{}_d{size}_g{of_block}", cell.name());
                let (variant, wants) = ((name, of_block), OUT | SCORES | BLOCKS);
                let launch = Launch { scene: &scene, queries: &queries, read: None, wants, variant };
                check(&launch, &launch.run(&files, 0));
            }
        }
    }
}

/// A lane of holes alone, and queries so large that all but one probability vanish.
#[test]
fn nothing_to_see_and_nothing_but_one() {
    let Some(files) = files(Cell::F16) else { return };
    let mut rng = seeded(7);
    let plan = Plan {
        cell: Cell::F16,
        sequences: 1,
        kv_heads: 1,
        group: 2,
        head_dim: 64,
        block_size: 16,
        slots: 600,
        holes: 1.0,
        fresh: 0,
    };
    let scene = Scene::new(plan, &mut rng);
    let queries = uniform(&mut rng, 2 * 64, 2.0);
    let variant = ("decode_f16_d64_g4".to_owned(), 4);
    let launch =
        Launch { scene: &scene, queries: &queries, read: None, wants: OUT | SCORES | BLOCKS, variant };
    let nothing = same_bits(|schedule| launch.run(&files, schedule));
    assert!(floats(&nothing.out).iter().all(|&x| x == 0.0));
    check(&launch, &nothing);
    // Scores of some hundred: their own rounding is what is left of the error.
    let scene = Scene::new(Plan { holes: 0.0, fresh: 1, ..plan }, &mut rng);
    let loud: Vec<f32> = queries.iter().map(|q| q * 30.0).collect();
    let p = probabilities(&scene.lanes[0], &loud[..64], scene.lanes[0].query, |_| true);
    assert!(p.iter().any(|&p| p > 0.5), "{p:?}");
    let loud = Launch { scene: &scene, queries: &loud, ..launch };
    let out = floats(&same_bits(|schedule| loud.run(&files, schedule)).out);
    let sums = (0..64).map(|c| (out[c], weighted(&scene.lanes[0], &p, 64, c)));
    within("output", 1e-4, sums.map(|(got, (sum, magnitude))| (got, sum, magnitude)));
}
