//! Index for index what NVIDIA/kvpress keeps, on random tensors.

use super::super::testing::kvpress::{Agreement, Golden};
use super::super::testing::{Layer, kept};

/// Uniform in [-2, 2), as `tests/kvpress/goldens.py` draws them.
fn numbers(seed: u32, count: usize) -> Vec<f32> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (f64::from(state >> 8) / f64::from(1 << 22) - 2.0) as f32
    };
    (0..count).map(|_| next()).collect()
}

/// `[token][head][size]` to `[head][token][size]`.
fn by_head(x: &[f32], heads: usize, size: usize) -> Vec<Vec<f32>> {
    let head =
        |h: usize| x.chunks_exact(heads * size).flat_map(|row| row[h * size..][..size].to_vec()).collect();
    (0..heads).map(head).collect()
}

fn frequencies(size: usize) -> Vec<f64> {
    (0..size / 2).map(|i| 1e4_f64.powf(-2.0 * i as f64 / size as f64)).collect()
}

fn rotated(x: &[f32], size: usize) -> Vec<f32> {
    let mut out = x.to_vec();
    for (t, row) in out.chunks_exact_mut(size).enumerate() {
        for (i, frequency) in frequencies(size).into_iter().enumerate() {
            let (sin, cos) = (t as f64 * frequency).sin_cos();
            let (a, b) = (f64::from(row[i]), f64::from(row[i + size / 2]));
            row[i] = (a * cos - b * sin) as f32;
            row[i + size / 2] = (b * cos + a * sin) as f32;
        }
    }
    out
}

fn probabilities(queries: &[Vec<f32>], keys: &[Vec<f32>], size: usize, length: usize) -> Vec<f32> {
    let group = queries.len() / keys.len();
    let mut out = Vec::with_capacity(queries.len() * length * length);
    for (h, queries) in queries.iter().enumerate() {
        for (i, q) in queries.chunks_exact(size).enumerate() {
            let dot = |k: &[f32]| q.iter().zip(k).map(|(a, b)| f64::from(a * b)).sum::<f64>();
            let scores: Vec<f64> = keys[h / group]
                .chunks_exact(size)
                .take(i + 1)
                .map(|k| dot(k) / (size as f64).sqrt())
                .collect();
            let most = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let sum: f64 = scores.iter().map(|s| (s - most).exp()).sum();
            out.extend(scores.iter().map(|s| ((s - most).exp() / sum) as f32));
            out.extend(std::iter::repeat_n(0.0, length - i - 1));
        }
    }
    out
}

fn layer(g: &Golden) -> Layer {
    let seed = |of: u32| of + g.shape as u32;
    let queries = by_head(&numbers(seed(100), g.length * g.heads * g.size), g.heads, g.size);
    let keys = by_head(&numbers(seed(200), g.length * g.kv_heads * g.size), g.kv_heads, g.size);
    let values = by_head(&numbers(seed(300), g.length * g.kv_heads * g.size), g.kv_heads, g.size);
    let turned = |x: &[Vec<f32>]| x.iter().map(|x| rotated(x, g.size)).collect::<Vec<_>>();
    let keys = turned(&keys);
    let attention = probabilities(&turned(&queries), &keys, g.size, g.length);
    Layer::of_matrices(g.kv_heads, g.length, &attention)
        .with_keys(g.size, &keys)
        .with_values(&values)
        .with_queries(&queries, frequencies(g.size))
        .at(g.layer, 4)
}

#[test]
fn kvpress_keeps_the_same_of_random_tensors() {
    let goldens: Vec<Golden> =
        serde_json::from_str(include_str!("../../../tests/kvpress/random.json")).unwrap();
    let mut agreement = Agreement::default();
    for golden in &goldens {
        match golden.policy() {
            Some(policy) => golden.check(&kept(&policy, &layer(golden)), &mut agreement),
            None => agreement.refused += 1,
        }
    }
    println!("{agreement:?}");
    assert!(agreement.equal > 20 * agreement.close && agreement.refused < goldens.len() / 4, "{agreement:?}");
}
