//! What rows lose in codes of 8 bits, against the processor's codec: element by element, added up in f64.

use kvista::device::gpu::Gpu;
use kvista::device::launch::{CodingErrors, Heads};
use rand::Rng;

use crate::emulated::is_there;
use crate::host::same_bits;
use crate::launches::On;
use crate::scene::{Cell, pick, seeded, uniform};

/// Squared error and squares.
type Sums = [f64; 2];

/// Of each KV head and channel, `[kv_head][head_dim]`.
fn want(rows: &[f32], kv_heads: usize, head_dim: usize) -> Vec<Sums> {
    let mut sums = vec![[0.0; 2]; kv_heads * head_dim];
    for (i, row) in rows.chunks(head_dim).enumerate() {
        let read = Cell::Int8.encode(false, row, &[true], head_dim).1;
        let sums = &mut sums[i % kv_heads * head_dim..][..head_dim];
        for ((sum, &was), read) in sums.iter_mut().zip(row).zip(read).filter(|((_, was), _)| was.is_finite())
        {
            sum[0] += (f64::from(was) - f64::from(read)).powi(2);
            sum[1] += f64::from(was).powi(2);
        }
    }
    sums
}

fn near(got: &[u8], want: &[Sums], what: &str) {
    let got: Vec<f64> = got.as_chunks::<8>().0.iter().map(|&bytes| f64::from_ne_bytes(bytes)).collect();
    let want = want.as_flattened();
    assert_eq!(got.len(), want.len());
    for (got, want) in got.iter().zip(want) {
        assert!((got - want).abs() <= 1e-12 * want, "{what}: {got} {want}");
    }
}

#[test]
fn errors_are_those_of_the_processors_codec() {
    if !is_there() {
        return;
    }
    for seed in 0..16 {
        let mut rng = seeded(31_000 + seed);
        let kv_heads = rng.random_range(1..4);
        let head_dim = *pick(&mut rng, &[8, 32, 40, 64, 128, 256]);
        // Two steps one after the other.
        let steps: Vec<[Vec<f32>; 2]> = [rng.random_range(1..4), *pick(&mut rng, &[1, 7, 8, 9, 40])]
            .into_iter()
            .map(|tokens: usize| {
                let (scale, offset) = (*pick(&mut rng, &[1e-3f32, 1.0, 2e4]), rng.random_range(-3.0..3.0f32));
                [0, 1].map(|_| {
                    let rows = uniform(&mut rng, tokens * kv_heads * head_dim, 2.0).into_iter();
                    let mut rows: Vec<f32> = rows.map(|x| (x + offset) * scale).collect();
                    // What is no number has a code, and no error.
                    if seed % 4 == 3 {
                        let n = rows.len();
                        rows[rng.random_range(0..n)] = f32::NAN;
                        rows[rng.random_range(0..n)] = f32::INFINITY;
                    }
                    rows
                })
            })
            .collect();
        let heads = Heads { heads: kv_heads, kv_heads, head_dim };
        let (of_steps, channels) = same_bits(|schedule| {
            let on = On::new(schedule);
            let channels = on.bytes(&vec![0; CodingErrors::channels_bytes(heads)]);
            let of_steps: Vec<Vec<u8>> = steps
                .iter()
                .map(|[keys, values]| {
                    let bytes = CodingErrors::sums_bytes(kv_heads);
                    let sums = on.room(bytes);
                    let (tokens, keys, values) =
                        (keys.len() / kv_heads / head_dim, on.floats(keys), on.floats(values));
                    CodingErrors { heads, tokens, keys, values, sums, channels }.launch(&on.gpu).unwrap();
                    on.read(sums, bytes)
                })
                .collect();
            on.gpu.wait().unwrap();
            (of_steps, on.read(channels, CodingErrors::channels_bytes(heads)))
        });
        let mut of_channels = vec![[0.0; 2]; kv_heads * head_dim];
        for (rows, sums) in steps.iter().zip(&of_steps) {
            let [keys, values] = rows.each_ref().map(|rows| want(rows, kv_heads, head_dim));
            let of_heads = [&keys, &values].into_iter().flat_map(|channels| {
                channels.chunks(head_dim).map(|of| {
                    of.iter().fold([0.0; 2], |sum, channel| [sum[0] + channel[0], sum[1] + channel[1]])
                })
            });
            near(sums, &of_heads.collect::<Vec<_>>(), "a step");
            for (sum, own) in of_channels.iter_mut().zip(&keys) {
                *sum = [sum[0] + own[0], sum[1] + own[1]];
            }
        }
        near(&channels, &of_channels, "channels");
    }
}
