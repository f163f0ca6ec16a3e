//! Sums over staged rows, against f64.

use rand::Rng;

use crate::host::{Buffer, floats, kernels, same_bits, within};
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
            let (kv_heads, group) = (rng.random_range(1..3), *pick(&mut rng, &[1usize, 3, 8, 9]));
            let d = *pick(
                &mut rng,
                if cell.is_kivi() { &[32, 96, 128, 256][..] } else { &[8, 64, 80, 128, 192, 256] },
            );
            let heads = kv_heads * group;
            let most = *pick(&mut rng, &[1usize, 40, 257, 600]);
            let counts: Vec<usize> = (0..kv_heads).map(|h| if h == 1 { most / 2 } else { most }).collect();
            let (row_stride, weight_stride, splits) = (most + 1, most + 4, most.div_ceil(SPLIT) + 1);
            let row_bytes = cell.row_bytes(d);
            let mut staged = vec![0xff; kv_heads * row_stride * row_bytes];
            let mut read = vec![f32::NAN; kv_heads * row_stride * d];
            for (h, &count) in counts.iter().enumerate() {
                for i in 0..count {
                    let row = h * row_stride + i;
                    let (bytes, values) = cell.encode(false, &uniform(&mut rng, d, 2.0), &[true], d);
                    staged[row * row_bytes..][..row_bytes].copy_from_slice(&bytes);
                    read[row * d..][..d].copy_from_slice(&values);
                }
            }
            let mut weights = vec![f32::NAN; heads * weight_stride];
            for head in 0..heads {
                for weight in &mut weights[head * weight_stride..][..counts[head / group]] {
                    *weight = if rng.random_bool(0.3) { 0.0 } else { rng.random_range(0.0..1.0) };
                }
            }
            let size = if d > 128 || seed.is_multiple_of(3) { 256 } else { 128 };
            let out = same_bits(|schedule| {
                let mut out = Buffer::room(heads * d);
                let mut partial = Buffer::room(heads * splits * d);
                let mut staged = Buffer::of_bytes(&staged);
                let mut weights = Buffer::of_f32(&weights);
                let mut counts = Buffer::of_u32(&counts.iter().map(|&n| n as u32).collect::<Vec<_>>());
                let sizes = [heads, kv_heads, d, splits];
                let mut args = vec![partial.arg(), staged.arg(), weights.arg(), counts.arg()];
                args.extend(
                    [heads, kv_heads, d, splits, row_stride, weight_stride].map(crate::host::Arg::from),
                );
                let grid = [most.div_ceil(SPLIT), kv_heads * group.div_ceil(8), 1];
                kernels.run(&format!("weighted_{}_d{size}", cell.name()), grid, 128, &args, schedule);
                let mut args = vec![out.arg(), partial.arg(), counts.arg()];
                args.extend(sizes.map(crate::host::Arg::from));
                kernels.run("weighted_combine", [heads, 1, 1], 256, &args, schedule);
                floats(&out.u32s())
            });
            for head in 0..heads {
                let (h, count) = (head / group, counts[head / group]);
                let term = |i: usize, c: usize| {
                    f64::from(weights[head * weight_stride + i])
                        * f64::from(read[(h * row_stride + i) * d + c])
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
