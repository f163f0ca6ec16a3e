//! Sums over staged rows, against f64.

use rand::Rng;

use crate::host::{Buffer, NULL, floats, kernels, same_bits, within};
use crate::scene::{Cell, SPLIT, pick, seeded, uniform};

/// Relative to the sum of magnitudes.
const BOUND: f64 = 1.5e-6;

#[test]
fn staged_rows_are_summed() {
    let Some(kernels) = kernels("weighted") else { return };
    for cell in Cell::ALL {
        let mut worst = 0.0f64;
        for seed in 0..6 {
            let mut rng = seeded(7000 + seed);
            let sequences = rng.random_range(1..=4);
            let (kv_heads, group) = (rng.random_range(1..3), *pick(&mut rng, &[1usize, 3, 8, 9]));
            let d = *pick(
                &mut rng,
                if cell.is_kivi() { &[32, 96, 128, 256][..] } else { &[8, 64, 80, 128, 192, 256] },
            );
            let (heads, lanes) = (kv_heads * group, sequences * kv_heads);
            let rows = sequences * heads;
            let most = *pick(&mut rng, &[1usize, 40, 257, 600]);
            let counts: Vec<usize> =
                (0..lanes).map(|i| if i == 0 { most } else { rng.random_range(0..=most) }).collect();
            let (row_stride, weight_stride, splits) = (most + 1, most + 4, most.div_ceil(SPLIT) + 1);
            let row_bytes = cell.row_bytes(d);
            let mut staged = vec![0xff; lanes * row_stride * row_bytes];
            let mut read = vec![f32::NAN; lanes * row_stride * d];
            for (h, &count) in counts.iter().enumerate() {
                for i in 0..count {
                    let row = h * row_stride + i;
                    let (bytes, values) = cell.encode(false, &uniform(&mut rng, d, 2.0), &[true], d);
                    staged[row * row_bytes..][..row_bytes].copy_from_slice(&bytes);
                    read[row * d..][..d].copy_from_slice(&values);
                }
            }
            let mut weights = vec![f32::NAN; rows * weight_stride];
            for head in 0..rows {
                for weight in &mut weights[head * weight_stride..][..counts[head / group]] {
                    *weight = if rng.random_bool(0.3) { 0.0 } else { rng.random_range(0.0..1.0) };
                }
            }
            // What is divided by: nothing, or what is left of the mass, where there is any.
            let dropped: Vec<f32> = (0..rows).map(|_| *pick(&mut rng, &[0.0, 0.25, 0.9, 1.0])).collect();
            let renorm = seed.is_multiple_of(2);
            let size = if d > 128 || seed.is_multiple_of(3) { 256 } else { 128 };
            let out = same_bits(|schedule| {
                let mut out = Buffer::room(rows * d);
                let mut partial = Buffer::room(rows * splits * d);
                let mut staged = Buffer::of_bytes(&staged);
                let mut weights = Buffer::of_f32(&weights);
                let mut counts = Buffer::of_u32(&counts.iter().map(|&n| n as u32).collect::<Vec<_>>());
                let mut dropped = Buffer::of_f32(&dropped);
                let sizes = [heads, kv_heads, d, splits];
                let mut args = vec![partial.arg(), staged.arg(), weights.arg(), counts.arg()];
                args.extend(
                    [heads, kv_heads, d, splits, row_stride, weight_stride].map(crate::host::Arg::from),
                );
                let grid = [most.div_ceil(SPLIT), kv_heads * group.div_ceil(8), sequences];
                kernels.run(&format!("weighted_{}_d{size}", cell.name()), grid, 128, &args, schedule);
                let mut args = vec![out.arg(), partial.arg(), counts.arg()];
                args.push(if renorm { dropped.arg() } else { NULL });
                args.extend(sizes.map(crate::host::Arg::from));
                kernels.run("weighted_combine", [heads, sequences, 1], 256, &args, schedule);
                floats(&out.u32s())
            });
            for head in 0..rows {
                let (h, count) = (head / group, counts[head / group]);
                let mass = 1.0 - f64::from(dropped[head]);
                let by = if renorm && mass > 0.0 { mass } else { 1.0 };
                let term = |i: usize, c: usize| {
                    f64::from(weights[head * weight_stride + i])
                        * f64::from(read[(h * row_stride + i) * d + c])
                        / by
                };
                let cases = (0..d).map(|c| {
                    let terms = (0..count).map(|i| term(i, c));
                    (out[head * d + c], terms.clone().sum(), terms.map(f64::abs).sum())
                });
                worst = worst.max(within("weighted sum", BOUND, cases));
            }
        }
        println!("weighted, {}: worst error {worst:.1e}, bound {BOUND:.1e}", cell.name());
    }
}
