//! The reference: what every instruction set must give, bit for bit, in plain loops.

use half::{bf16, f16};

use super::{EXP_LOWEST, LN2_HIGH, LN2_LOW, PARTIALS, Q8Block, ROUND, TAYLOR};

/// An element as it is stored.
trait Element: Copy {
    fn widened(self) -> f32;
}

impl Element for f32 {
    fn widened(self) -> f32 {
        self
    }
}

impl Element for f16 {
    fn widened(self) -> f32 {
        self.to_f32()
    }
}

impl Element for bf16 {
    fn widened(self) -> f32 {
        self.to_f32()
    }
}

/// Interleaved partial sums of `n` products; past the last one zeros follow.
fn products(n: usize, factors: impl Fn(usize) -> (f32, f32)) -> f32 {
    let mut partials = [0.0f32; PARTIALS];
    for i in 0..n.next_multiple_of(PARTIALS) {
        let (a, b) = if i < n { factors(i) } else { (0.0, 0.0) };
        partials[i % PARTIALS] = a.mul_add(b, partials[i % PARTIALS]);
    }
    halved(partials)
}

/// Adds partial sums in halves.
fn halved(mut partials: [f32; PARTIALS]) -> f32 {
    let mut half = PARTIALS / 2;
    while half > 0 {
        for i in 0..half {
            partials[i] += partials[i + half];
        }
        half /= 2;
    }
    partials[0]
}

fn dot_stored<T: Element>(a: &[f32], b: &[T]) -> f32 {
    products(a.len(), |i| (a[i], b[i].widened()))
}

fn dot_rows<T: Element>(x: &[f32], rows: &[T], out: &mut [f32]) {
    for (out, row) in out.iter_mut().zip(rows.chunks_exact(x.len())) {
        *out = dot_stored(x, row);
    }
}

fn add_rows<T: Element>(sum: &mut [f32], weights: &[f32], rows: &[T]) {
    for (&weight, row) in weights.iter().zip(rows.chunks_exact(sum.len())) {
        for (sum, x) in sum.iter_mut().zip(row) {
            *sum = weight.mul_add(x.widened(), *sum);
        }
    }
}

fn widen<T: Element>(rows: &[T], out: &mut [f32]) {
    out.iter_mut().zip(rows).for_each(|(out, x)| *out = x.widened());
}

pub(super) fn dot(a: &[f32], b: &[f32]) -> f32 {
    dot_stored(a, b)
}

pub(super) fn upper_bound(q: &[f32], low: &[f32], high: &[f32]) -> f32 {
    products(q.len(), |i| (q[i], if q[i] < 0.0 { low[i] } else { high[i] }))
}

pub(super) fn dot_rows_f32(x: &[f32], rows: &[f32], _ahead: &[u8], out: &mut [f32]) {
    dot_rows(x, rows, out);
}

pub(super) fn dot_rows_f16(x: &[f32], rows: &[f16], _ahead: &[u8], out: &mut [f32]) {
    dot_rows(x, rows, out);
}

pub(super) fn dot_rows_bf16(x: &[f32], rows: &[bf16], _ahead: &[u8], out: &mut [f32]) {
    dot_rows(x, rows, out);
}

pub(super) fn add_rows_f32(sum: &mut [f32], weights: &[f32], rows: &[f32], _ahead: &[u8]) {
    add_rows(sum, weights, rows);
}

pub(super) fn add_rows_f16(sum: &mut [f32], weights: &[f32], rows: &[f16], _ahead: &[u8]) {
    add_rows(sum, weights, rows);
}

pub(super) fn add_rows_bf16(sum: &mut [f32], weights: &[f32], rows: &[bf16], _ahead: &[u8]) {
    add_rows(sum, weights, rows);
}

pub(super) fn max(row: &[f32]) -> f32 {
    row.iter().fold(f32::NEG_INFINITY, |top, &x| if x > top { x } else { top })
}

pub(super) fn sum(row: &[f32]) -> f32 {
    let mut partials = [0.0f32; PARTIALS];
    for i in 0..row.len().next_multiple_of(PARTIALS) {
        partials[i % PARTIALS] += row.get(i).copied().unwrap_or(0.0);
    }
    halved(partials)
}

pub(super) fn exp_and_sum(row: &mut [f32], max: f32) -> f32 {
    for x in row.iter_mut() {
        *x = exp(*x - max);
    }
    sum(row)
}

pub(super) fn scale(row: &mut [f32], factor: f32) {
    for x in row {
        *x *= factor;
    }
}

pub(super) fn swiglu(gates: &[f32], up: &[f32], out: &mut [f32]) {
    for ((&gate, up), out) in gates.iter().zip(up).zip(out) {
        let power = exp(if gate < 0.0 { gate } else { 0.0 - gate });
        *out = gate * ((if gate < 0.0 { power } else { 1.0 }) / (1.0 + power)) * up;
    }
}

pub(super) fn dot_rows_q8(x: &[f32], rows: &[Q8Block], _ahead: &[u8], out: &mut [f32]) {
    let mut wide = vec![0.0; x.len()];
    for (out, row) in out.iter_mut().zip(rows.chunks_exact(x.len() / PARTIALS)) {
        widen_q8(row, &mut wide);
        *out = dot(x, &wide);
    }
}

pub(super) fn widen_q8(rows: &[Q8Block], out: &mut [f32]) {
    for (block, out) in rows.iter().zip(out.chunks_exact_mut(PARTIALS)) {
        let scale = block.scale().to_f32();
        for (out, &code) in out.iter_mut().zip(block.codes()) {
            *out = f32::from(code.cast_signed()) * scale;
        }
    }
}

pub(super) fn widen_f16(rows: &[f16], out: &mut [f32]) {
    widen(rows, out);
}

pub(super) fn widen_bf16(rows: &[bf16], out: &mut [f32]) {
    widen(rows, out);
}

/// `e^x` for `x <= 0`.
pub(super) fn exp(x: f32) -> f32 {
    let low = x < EXP_LOWEST;
    let x = if low { EXP_LOWEST } else { x };
    let shifted = x * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = (x - n * LN2_HIGH) - n * LN2_LOW;
    let mut p = TAYLOR[0];
    for coefficient in &TAYLOR[1..] {
        p = p * r + coefficient;
    }
    let e = 1.0 + (r + r * r * p);
    let power = f32::from_bits((shifted.to_bits() << 23).wrapping_add(1.0f32.to_bits()));
    if low { 0.0 } else { e * power }
}
