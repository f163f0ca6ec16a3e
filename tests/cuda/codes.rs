//! Codes, appending and rotation, against the CPU's codec and rotation: the same bytes.

use kvista::attention::Rope;
use kvista::quant::{Codec, CodedRows, Grouping};
use rand::Rng;

use crate::host::{Arg, Buffer, NULL, kernels, same_bits};
use crate::scene::{Cell, HOLE, Plan, Scene, pick, seeded, uniform};

const PAGE: usize = 32;

/// A scene of exact pages alone: every slot of the exact slabs is to go into codes.
fn exact_scene(cell: Cell, seed: u64) -> Scene {
    let mut rng = seeded(seed);
    let plan = Plan {
        cell,
        sequences: 1,
        kv_heads: rng.random_range(1..3),
        group: 1,
        head_dim: *pick(&mut rng, &[32, 64, 96, 128, 256]),
        block_size: PAGE,
        slots: *pick(&mut rng, &[32, 70, 128]),
        holes: *pick(&mut rng, &[0.0, 0.3, 1.0]),
        fresh: 0,
    };
    let mut scene = Scene::new(plan, &mut rng);
    // Offsets and magnitudes, so that zeros and scales have to round.
    let (scale, offset) = (*pick(&mut rng, &[1e-8f32, 1e-3, 1.0, 2e4]), rng.random_range(-3.0..3.0f32));
    for lane in 0..scene.lanes.len() {
        let lane = &mut scene.lanes[lane];
        let values: Vec<f32> = lane.written_keys.iter().map(|x| (x / 2.0 + offset) * scale / 1.3).collect();
        for slot in (0..lane.slots()).filter(|&slot| lane.positions[slot] != HOLE) {
            for (slab, row) in [(&mut scene.exact_k, &values), (&mut scene.exact_v, &values)] {
                let at = lane.exact_rows[slot] * plan.head_dim * 4;
                let row = &row[slot * plan.head_dim..][..plan.head_dim];
                let bytes: Vec<u8> = row.iter().flat_map(|x| x.to_le_bytes()).collect();
                slab[at..at + bytes.len()].copy_from_slice(&bytes);
            }
        }
        lane.written_keys.clone_from(&values);
        lane.written_values = values;
    }
    scene
}

#[test]
fn keys_go_into_the_codecs_bytes() {
    let Some(kernels) = kernels("quant") else { return };
    for (cell, bits) in [(Cell::Int4, 4), (Cell::Int2, 2)] {
        for seed in 0..12 {
            let scene = exact_scene(cell, 8000 + seed);
            let Plan { head_dim: d, kv_heads, .. } = scene.plan;
            let codec = Codec::new(bits, Grouping::Channel(PAGE), d);
            // The last page may be filled in part.
            let pages = scene.lanes.iter().map(|lane| lane.slots().div_ceil(PAGE)).min().unwrap();
            let first = usize::from(pages > 1 && seed.is_multiple_of(2));
            let coded = same_bits(|schedule| {
                let mut coded = Buffer::poisoned(scene.k.len());
                let mut exact = Buffer::of_bytes(&scene.exact_k);
                let mut tables = Buffer::of_u32(&scene.blocks);
                let mut positions = Buffer::of_u32(&scene.positions);
                let mut lanes = scene.lane_words();
                let args = [
                    coded.arg(),
                    exact.arg(),
                    tables.arg(),
                    positions.arg(),
                    lanes.arg(),
                    d.into(),
                    first.into(),
                ];
                let name = format!("quantise_keys_{}", cell.name());
                kernels.run(&name, [pages - first, kv_heads, 1], 64, &args, schedule);
                coded.bytes()
            });
            let page_bytes = PAGE * codec.row_bytes();
            let mut written = vec![false; coded.len()];
            for lane in &scene.lanes {
                for page in first..pages {
                    let live: Vec<bool> = (page * PAGE..(page + 1) * PAGE)
                        .map(|slot| slot < lane.slots() && lane.positions[slot] != HOLE)
                        .collect();
                    let mut rows = vec![0.0; PAGE * d];
                    let have = (lane.slots() - page * PAGE).min(PAGE) * d;
                    rows[..have].copy_from_slice(&lane.written_keys[page * PAGE * d..][..have]);
                    let mut want = vec![0; page_bytes];
                    codec.encode(&rows, &live, &mut want);
                    let at = lane.rows[page * PAGE] / PAGE * page_bytes;
                    assert!(coded[at..at + page_bytes] == want, "{:?}", scene.plan);
                    written[at..at + page_bytes].fill(true);
                }
            }
            let others = coded.iter().zip(&written).filter(|&(_, &written)| !written);
            assert!(others.map(|(b, _)| *b).all(|b| b == 0xff), "other pages were written");
        }
    }
}

#[test]
fn values_go_into_the_codecs_bytes() {
    let Some(kernels) = kernels("quant") else { return };
    for cell in [Cell::Int8, Cell::Int4, Cell::Int2] {
        for seed in 0..10 {
            // The exact rows of a scene of int4 serve every type.
            let scene = exact_scene(Cell::Int4, 8500 + seed);
            let Plan { head_dim: d, kv_heads, .. } = scene.plan;
            let row_bytes = cell.row_bytes(d);
            let slots = scene.lanes.iter().map(crate::scene::LaneScene::slots).min().unwrap();
            let first = (seed as usize * 7) % slots;
            let coded = same_bits(|schedule| {
                let mut coded = Buffer::poisoned(scene.exact_v.len() / (4 * d) * row_bytes);
                let mut exact = Buffer::of_bytes(&scene.exact_v);
                let mut tables = Buffer::of_u32(&scene.blocks);
                let mut positions = Buffer::of_u32(&scene.positions);
                let mut lanes = scene.lane_words();
                let args = [
                    coded.arg(),
                    exact.arg(),
                    tables.arg(),
                    positions.arg(),
                    lanes.arg(),
                    d.into(),
                    PAGE.into(),
                    first.into(),
                    (slots - first).into(),
                ];
                let name = format!("quantise_values_{}", cell.name());
                kernels.run(&name, [(slots - first).div_ceil(8), kv_heads, 1], 256, &args, schedule);
                coded.bytes()
            });
            for lane in &scene.lanes {
                for slot in first..slots {
                    let live = [lane.positions[slot] != HOLE];
                    let row = &lane.written_values[slot * d..][..d];
                    let (want, _) = cell.encode(false, row, &live, d);
                    let at = lane.rows[slot] * row_bytes;
                    assert!(
                        coded[at..at + row_bytes] == want,
                        "{} {:?} slot {slot}",
                        cell.name(),
                        scene.plan
                    );
                }
            }
        }
    }
}

/// Cosines and sines of a rotation, `[index][2 * half]`, out of the rotation itself: it turns a unit vector to them.
pub(crate) fn turns_of(rope: &Rope, half: usize, indices: usize) -> Vec<f32> {
    let turned = |index| {
        let mut unit = vec![0.0f32; 2 * half];
        unit[..half].fill(1.0);
        rope.apply(&mut unit, index);
        unit
    };
    (0..indices).flat_map(turned).collect()
}

/// Appends to a scene of empty pages and reads them back.
#[test]
fn new_rows_land_rotated_in_their_slots() {
    let Some(kernels) = kernels("append") else { return };
    for cell in [Cell::F32, Cell::F16, Cell::Bf16, Cell::Int8, Cell::Int4] {
        for seed in 0..8 {
            let mut rng = seeded(9000 + seed);
            let mut plan = Plan::chance(&mut rng, cell);
            plan.holes = 0.0;
            let scene = Scene::new(plan, &mut rng);
            let Plan { sequences, kv_heads, head_dim: d, block_size, .. } = plan;
            let exact = cell == Cell::Int4;
            let stored = if exact { Cell::F32 } else { cell };
            let half = *pick(&mut rng, &[d / 2, d / 4]);
            let rope = (!seed.is_multiple_of(4)).then(|| {
                let frequency = |i: usize| 10_000f64.powf(-(i as f64) / half as f64);
                Rope::with_frequencies((0..half).map(frequency).collect(), 64)
            });
            // Of each sequence a slot that all its heads have.
            let tokens: Vec<(usize, usize, usize)> = (0..sequences)
                .flat_map(|s| {
                    let slots = (0..kv_heads).map(|h| scene.lane_of(s, h).slots()).min().unwrap();
                    (0..slots.min(11)).map(move |slot| (s, slots - 1 - slot, slot * 3 % 64))
                })
                .collect();
            let keys = uniform(&mut rng, tokens.len() * kv_heads * d, 3.0);
            let values = uniform(&mut rng, tokens.len() * kv_heads * d, 3.0);
            let turns = rope.as_ref().map_or_else(|| vec![f32::NAN; 1], |rope| turns_of(rope, half, 64));
            let row_bytes = stored.row_bytes(d);
            let rows = scene.blocks.len().max(scene.k.len() / cell.row_bytes(d));
            let (k, v) = same_bits(|schedule| {
                let (mut k, mut v) = (Buffer::poisoned(rows * row_bytes), Buffer::poisoned(rows * row_bytes));
                let (mut key_rows, mut value_rows) = (Buffer::of_f32(&keys), Buffer::of_f32(&values));
                let column = |of: fn(&(usize, usize, usize)) -> usize| {
                    Buffer::of_u32(&tokens.iter().map(|token| of(token) as u32).collect::<Vec<_>>())
                };
                let (mut of, mut slots, mut angles) = (column(|t| t.0), column(|t| t.1), column(|t| t.2));
                let mut turns = Buffer::of_f32(&turns);
                let mut tables = Buffer::of_u32(&scene.blocks);
                let mut lanes = scene.lane_words();
                let args = [
                    k.arg(),
                    v.arg(),
                    key_rows.arg(),
                    value_rows.arg(),
                    if rope.is_some() { turns.arg() } else { NULL },
                    angles.arg(),
                    of.arg(),
                    slots.arg(),
                    tables.arg(),
                    lanes.arg(),
                    tokens.len().into(),
                    kv_heads.into(),
                    d.into(),
                    half.into(),
                    block_size.into(),
                    usize::from(exact).into(),
                ];
                let name = format!("append_{}", stored.name());
                kernels.run(&name, [tokens.len().div_ceil(8), kv_heads, 2], 256, &args, schedule);
                (k.bytes(), v.bytes())
            });
            for (t, &(sequence, slot, angle)) in tokens.iter().enumerate() {
                for head in 0..kv_heads {
                    let lane = scene.lane_of(sequence, head);
                    let row = if exact { lane.exact_rows[slot] } else { lane.rows[slot] } * row_bytes;
                    let at = (t * kv_heads + head) * d;
                    let mut key = keys[at..at + d].to_vec();
                    if let Some(rope) = &rope {
                        rope.apply(&mut key, angle);
                    }
                    let bytes = |values: &[f32]| stored.encode(false, values, &[true], d).0;
                    assert!(k[row..row + row_bytes] == bytes(&key), "{} {plan:?}", cell.name());
                    assert!(
                        v[row..row + row_bytes] == bytes(&values[at..at + d]),
                        "{} {plan:?}",
                        cell.name()
                    );
                }
            }
        }
    }
}

#[test]
fn queries_are_rotated_as_on_the_processor() {
    let Some(kernels) = kernels("append") else { return };
    for (heads, d, half) in [(3, 64, 32), (1, 80, 20), (5, 256, 128), (2, 96, 48)] {
        let mut rng = seeded(heads as u64);
        let tokens = 9;
        let rows = uniform(&mut rng, tokens * heads * d, 2.0);
        let rope = Rope::with_frequencies((0..half).map(|i| 0.9f64.powi(i as i32)).collect(), 32);
        let turns = turns_of(&rope, half, 32);
        let angles: Vec<u32> = (0..tokens as u32).map(|t| t * 5 % 32).collect();
        let got = same_bits(|schedule| {
            let (mut rows, mut turns) = (Buffer::of_f32(&rows), Buffer::of_f32(&turns));
            let mut angles = Buffer::of_u32(&angles);
            let mut args = vec![rows.arg(), turns.arg(), angles.arg()];
            args.extend([tokens, heads, d, half].map(Arg::from));
            kernels.run("rope_rows", [tokens.div_ceil(8), heads, 1], 256, &args, schedule);
            rows.u32s()
        });
        let mut want = rows;
        for (row, chunk) in want.chunks_exact_mut(d).enumerate() {
            rope.apply(chunk, angles[row / heads] as usize);
        }
        assert!(got == want.iter().map(|x| x.to_bits()).collect::<Vec<_>>(), "{heads} {d} {half}");
    }
}

/// Gathering a lane into a matrix is the way out of codes: the codec's own bits.
#[test]
fn gathered_pages_are_what_the_codec_reads() {
    let Some(kernels) = kernels("gather") else { return };
    for cell in Cell::ALL {
        for seed in 0..8 {
            let mut rng = seeded(9500 + seed);
            let plan =
                Plan { sequences: 1, slots: *pick(&mut rng, &[9, 70, 130]), ..Plan::chance(&mut rng, cell) };
            let scene = Scene::new(plan, &mut rng);
            let Plan { kv_heads, head_dim: d, block_size, .. } = plan;
            let most = scene.most_slots();
            let stride = most + 2;
            for (values, to_half) in [(false, false), (true, false), (false, true), (true, true)] {
                let size = if to_half { 2 } else { 4 };
                let out = same_bits(|schedule| {
                    let mut out = Buffer::poisoned(kv_heads * stride * d * size);
                    let mut slab = Buffer::of_bytes(if values { &scene.v } else { &scene.k });
                    let mut exact = Buffer::of_bytes(if values { &scene.exact_v } else { &scene.exact_k });
                    let mut tables = Buffer::of_u32(&scene.blocks);
                    let mut positions = Buffer::of_u32(&scene.positions);
                    let mut lanes = scene.lane_words();
                    let args = [
                        out.arg(),
                        slab.arg(),
                        exact.arg(),
                        tables.arg(),
                        positions.arg(),
                        lanes.arg(),
                        d.into(),
                        block_size.into(),
                        stride.into(),
                        usize::from(values).into(),
                    ];
                    let name =
                        format!("gather_pages_{}_to_{}", cell.name(), if to_half { "f16" } else { "f32" });
                    kernels.run(&name, [most.div_ceil(8), kv_heads, 1], 256, &args, schedule);
                    out.bytes()
                });
                for (h, lane) in scene.lanes.iter().enumerate() {
                    let read = if values { &lane.values } else { &lane.keys };
                    for slot in 0..stride {
                        let at = (h * stride + slot) * d * size;
                        let got = &out[at..at + d * size];
                        let row: Vec<f32> = match lane.positions.get(slot) {
                            None => {
                                assert!(got.iter().all(|&b| b == 0xff), "written behind the last slot");
                                continue;
                            }
                            Some(&HOLE) => vec![0.0; d],
                            Some(_) => read[slot * d..][..d].to_vec(),
                        };
                        let want =
                            if to_half { Cell::F16 } else { Cell::F32 }.encode(false, &row, &[true], d).0;
                        assert!(got == want, "{} {plan:?} slot {slot}", cell.name());
                    }
                }
            }
        }
    }
}

/// The layout's other way: what the codec writes, it reads with scales that the kernels find where it put them.
#[test]
fn a_page_of_codes_has_its_scales_behind_its_codes() {
    let codec = Codec::new(4, Grouping::Channel(PAGE), 64);
    let rows: Vec<f32> = (0..PAGE * 64).map(|i| (i % 64) as f32 + (i / 64) as f32 / 31.0).collect();
    let mut coded = vec![0; PAGE * codec.row_bytes()];
    codec.encode(&rows, &[true; PAGE], &mut coded);
    let zeros = &coded[PAGE * 32 + 2 * 64..];
    assert_eq!(half::f16::from_le_bytes([zeros[2 * 5], zeros[2 * 5 + 1]]).to_f32(), 5.0);
    let mut read = vec![0.0; rows.len()];
    CodedRows::new(codec, &coded, &[]).decode(&mut read);
    assert!(rows.iter().zip(&read).all(|(x, y)| (x - y).abs() < 0.05));
}
