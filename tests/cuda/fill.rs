//! Rows made of chance, against the formula that the kernel's header states.

use kvista::device::launch::FillRows;

use crate::emulated::is_there;
use crate::host::same_bits;
use crate::launches::{On, scene};
use crate::scene::{Plan, seeded};

const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

fn mixed(x: u64) -> u64 {
    let x = (x ^ x >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ x >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ x >> 31
}

/// An element of a row.
fn number(seed: u32, lane: usize, slot: usize, element: usize, sigma: f32) -> f32 {
    let of_row = mixed(mixed(u64::from(seed).wrapping_add(GOLDEN)) ^ ((lane as u64) << 32 | slot as u64));
    let hash = mixed(of_row.wrapping_add((element as u64 + 1).wrapping_mul(GOLDEN)));
    let parts: i32 = (0..4).map(|i| (hash >> (16 * i) & 0xffff) as i32).sum();
    let deviation = ((2f64.powi(32) - 1.0) / 3.0).sqrt();
    (parts - 2 * 65_535) as f32 * (f64::from(sigma) / deviation) as f32
}

#[test]
fn rows_of_chance_are_what_the_formula_says() {
    if !is_there() {
        return;
    }
    for seed in 0..12 {
        let mut rng = seeded(23_000 + seed);
        let (scene, cell) = scene(&mut rng);
        let Plan { cell: stored, sequences, kv_heads, head_dim, block_size, .. } = scene.plan;
        let (fill_seed, sigma) = (u32::MAX - seed as u32, 0.25 + seed as f32);
        let slab = same_bits(|schedule| {
            let on = On::new(schedule);
            let fill = FillRows {
                cell,
                head_dim,
                kv_heads,
                sequences,
                block_size,
                slots: scene.most_slots(),
                slab: on.room(scene.k.len()),
                blocks: on.words(&scene.blocks),
                lanes: on.lanes(&scene),
                seed: fill_seed,
                sigma,
            };
            fill.launch(&on.gpu).unwrap();
            on.read(fill.slab, scene.k.len())
        });
        let row_bytes = stored.row_bytes(head_dim);
        let mut want = vec![0xff; slab.len()];
        for (i, lane) in scene.lanes.iter().enumerate() {
            for slot in 0..lane.slots() {
                let row: Vec<f32> =
                    (0..head_dim).map(|element| number(fill_seed, i, slot, element, sigma)).collect();
                let bytes = stored.encode(false, &row, &[true], head_dim).0;
                want[lane.rows[slot] * row_bytes..][..row_bytes].copy_from_slice(&bytes);
            }
        }
        assert!(slab == want, "{:?}", scene.plan);
    }
}

/// Mean, deviation and tails of the formula, and that rows next to each other have nothing in common.
#[test]
fn numbers_of_chance_are_about_normal() {
    let (lanes, slots, elements, sigma) = (4, 256, 64, 2.0f32);
    let rows: Vec<Vec<f64>> = (0..lanes * slots)
        .map(|i| (0..elements).map(|e| f64::from(number(7, i / slots, i % slots, e, sigma))).collect())
        .collect();
    let n = (rows.len() * elements) as f64;
    let all = || rows.iter().flatten();
    let mean = all().sum::<f64>() / n;
    let deviation = (all().map(|x| x * x).sum::<f64>() / n).sqrt();
    assert!(mean.abs() < 0.03 && (deviation / f64::from(sigma) - 1.0).abs() < 0.01, "{mean} {deviation}");
    let beyond = |sigmas: f64| all().filter(|x| x.abs() > sigmas * f64::from(sigma)).count() as f64 / n;
    // 4.6 in a hundred of a normal distribution.
    assert!((beyond(2.0) - 0.046).abs() < 0.006, "{}", beyond(2.0));
    assert!(beyond(3.5) == 0.0);
    let correlation = |pairs: f64, sum: f64| sum / pairs / f64::from(sigma).powi(2);
    let of_rows: f64 =
        rows.windows(2).flat_map(|pair| pair[0].iter().zip(&pair[1])).map(|(a, b)| a * b).sum();
    let of_elements: f64 = rows.iter().flat_map(|row| row.windows(2)).map(|pair| pair[0] * pair[1]).sum();
    assert!(correlation(n, of_rows).abs() < 0.02, "{of_rows}");
    assert!(correlation(n, of_elements).abs() < 0.02, "{of_elements}");
}
