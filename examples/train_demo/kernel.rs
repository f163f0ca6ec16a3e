//! The inner loops of attention on rows of 32 numbers, written so that the compiler keeps a block of results in vector
//! registers (build with `-C target-cpu=native`).

use super::attention::HEAD_DIM;

/// Keys of a panel.
pub(crate) const LANES: usize = 32;
/// Queries whose results are kept in registers at once.
const ROWS: usize = 4;
/// Rows of a weighted sum kept in registers at once.
const SUMS: usize = 4;

#[inline]
fn fused(a: f32, b: f32, c: f32) -> f32 {
    if cfg!(target_feature = "fma") { a.mul_add(b, c) } else { a * b + c }
}

/// Keys turned over, 32 at a time: `[key / 32][component][key % 32]`.
pub(crate) struct Panels(Vec<[[f32; LANES]; HEAD_DIM]>);

impl Panels {
    /// Of a number of keys that is a multiple of [`LANES`].
    pub(crate) fn new(keys: &[[f32; HEAD_DIM]]) -> Self {
        let turn = |keys: &[[f32; HEAD_DIM]]| std::array::from_fn(|d| std::array::from_fn(|j| keys[j][d]));
        Self(keys.chunks_exact(LANES).map(turn).collect())
    }
}

/// `out[i][j] = q[i] · key[j]` for the first `width` keys; `q` has a multiple of 4 rows.
pub(crate) fn scores(q: &[[f32; HEAD_DIM]], keys: &Panels, width: usize, out: &mut [f32]) {
    for (panel, j) in keys.0.iter().zip((0..width).step_by(LANES)) {
        for (block, q) in q.chunks_exact(ROWS).enumerate() {
            let mut acc = [[0.0f32; LANES]; ROWS];
            for (d, keys) in panel.iter().enumerate() {
                for (acc, q) in acc.iter_mut().zip(q) {
                    for (a, &k) in acc.iter_mut().zip(keys) {
                        *a = fused(q[d], k, *a);
                    }
                }
            }
            for (r, acc) in acc.iter().enumerate() {
                out[(block * ROWS + r) * width + j..][..LANES].copy_from_slice(acc);
            }
        }
    }
}

/// `out[i] = Σ_j p[i][j] · rows[j]`.
pub(crate) fn weighted_rows(p: &[f32], width: usize, rows: &[[f32; HEAD_DIM]], out: &mut [[f32; HEAD_DIM]]) {
    for (p, out) in p.chunks_exact(SUMS * width).zip(out.chunks_exact_mut(SUMS)) {
        let mut acc = [[0.0f32; HEAD_DIM]; SUMS];
        let mut weights: [&[f32]; SUMS] = [&[]; SUMS];
        for (w, p) in weights.iter_mut().zip(p.chunks_exact(width)) {
            *w = p;
        }
        for (j, row) in rows[..width].iter().enumerate() {
            for (acc, w) in acc.iter_mut().zip(&weights) {
                let w = w[j];
                for (a, &x) in acc.iter_mut().zip(row) {
                    *a = fused(w, x, *a);
                }
            }
        }
        out.copy_from_slice(&acc);
    }
}

/// `out[j] += Σ_i p[i][j] · rows[i]` for the first `width` of `out`.
pub(crate) fn add_outer(p: &[f32], width: usize, rows: &[[f32; HEAD_DIM]], out: &mut [[f32; HEAD_DIM]]) {
    for (block, out) in out[..width].chunks_exact_mut(SUMS).enumerate() {
        let mut acc = [[0.0f32; HEAD_DIM]; SUMS];
        acc.copy_from_slice(out);
        for (row, p) in rows.iter().zip(p.chunks_exact(width)) {
            let weights: &[f32; SUMS] = p[block * SUMS..].first_chunk().expect("width is a multiple");
            for (acc, &w) in acc.iter_mut().zip(weights) {
                for (a, &x) in acc.iter_mut().zip(row) {
                    *a = fused(w, x, *a);
                }
            }
        }
        out.copy_from_slice(&acc);
    }
}

/// `row = softmax(scale · row)`.
pub(crate) fn exp_row(row: &mut [f32], scale: f32) {
    let max = row.iter().fold(f32::NEG_INFINITY, |a, &b| a.max(b));
    for x in row.iter_mut() {
        *x = exp((*x - max) * scale);
    }
    let mut sums = [0.0f32; 16];
    let chunks = row.chunks_exact(16);
    let rest: f32 = chunks.remainder().iter().sum();
    for chunk in chunks {
        for (s, &x) in sums.iter_mut().zip(chunk) {
            *s += x;
        }
    }
    let inverse = 1.0 / (sums.iter().sum::<f32>() + rest);
    for x in row.iter_mut() {
        *x *= inverse;
    }
}

/// e^x for x ≤ 0 within a share of 1e-6 + 1e-7 · |x|, 0 below −87: 2^n times a polynomial on half a binade.
#[inline]
pub(crate) fn exp(x: f32) -> f32 {
    let t = (x * std::f32::consts::LOG2_E).max(-126.0);
    let n = (t + 12_582_912.0) - 12_582_912.0;
    let f = (t - n) * std::f32::consts::LN_2;
    let mut y = 1.0 / 720.0;
    for c in [1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
        y = fused(y, f, c);
    }
    let scale = f32::from_bits(((n as i32 + 127) as u32) << 23);
    if x < -87.0 { 0.0 } else { y * scale }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exponentials_are_close() {
        for i in 0..8000 {
            let x = -(i as f32) * 0.011;
            let want = if x < -87.0 { 0.0 } else { f64::from(x).exp() };
            let share = 1e-6 - 1e-7 * f64::from(x);
            assert!((f64::from(exp(x)) - want).abs() <= share * want, "{x}");
        }
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
    }
}
