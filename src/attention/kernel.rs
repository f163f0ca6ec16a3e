//! The innermost loops, written so that the compiler turns them into vector code.
//!
//! Nothing here contracts a multiplication and an addition: every machine gives the same bits.

use super::tile::RANGE_SLOTS;

/// Independent accumulators of a reduction: two SSE registers, one AVX register.
const WIDTH: usize = 8;

/// Sum of products. Eight interleaved partial sums, added as a tree, then the rest.
pub(super) fn dot(a: &[f32], b: &[f32]) -> f32 {
    let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<WIDTH>(), b.as_chunks::<WIDTH>());
    let mut sums = [0.0f32; WIDTH];
    for (x, y) in a.iter().zip(b) {
        for i in 0..WIDTH {
            sums[i] += x[i] * y[i];
        }
    }
    let rest: f32 = a_rest.iter().zip(b_rest).map(|(x, y)| x * y).sum();
    tree(sums) + rest
}

/// The sum of the larger of `q * low` and `q * high`, channel by channel. It is taken in the order of [`dot`], and each
/// rounding keeps order, so it is never below the product of `q` with a row between `low` and `high`.
pub(super) fn upper_bound(q: &[f32], low: &[f32], high: &[f32]) -> f32 {
    let larger = |q: f32, low: f32, high: f32| (q * low).max(q * high);
    let (q, q_rest) = q.as_chunks::<WIDTH>();
    let ((low, low_rest), (high, high_rest)) = (low.as_chunks::<WIDTH>(), high.as_chunks::<WIDTH>());
    let mut sums = [0.0f32; WIDTH];
    for ((q, low), high) in q.iter().zip(low).zip(high) {
        for i in 0..WIDTH {
            sums[i] += larger(q[i], low[i], high[i]);
        }
    }
    let rest = q_rest.iter().zip(low_rest).zip(high_rest);
    let rest: f32 = rest.map(|((&q, &low), &high)| larger(q, low, high)).sum();
    tree(sums) + rest
}

/// `acc += weight * row`.
pub(super) fn add_scaled(acc: &mut [f32], weight: f32, row: &[f32]) {
    for (sum, x) in acc.iter_mut().zip(row) {
        *sum += weight * x;
    }
}

/// `acc += part`.
pub(super) fn add(acc: &mut [f32], part: &[f32]) {
    for (sum, x) in acc.iter_mut().zip(part) {
        *sum += x;
    }
}

/// Scores to probabilities in place. A row of nothing but `-inf` becomes all 0: there was nothing to attend to.
pub(super) fn softmax(row: &mut [f32]) {
    let max = max(row);
    if max == f32::NEG_INFINITY {
        row.fill(0.0);
        return;
    }
    for x in row.iter_mut() {
        *x = exp(*x - max);
    }
    let scale = 1.0 / sum(row);
    for x in row.iter_mut() {
        *x *= scale;
    }
}

fn max(row: &[f32]) -> f32 {
    let (chunks, rest) = row.as_chunks::<WIDTH>();
    let mut tops = [f32::NEG_INFINITY; WIDTH];
    let larger = |a: f32, b: f32| if b > a { b } else { a };
    for chunk in chunks {
        for i in 0..WIDTH {
            tops[i] = larger(tops[i], chunk[i]);
        }
    }
    tops.iter().chain(rest).fold(f32::NEG_INFINITY, |a, &b| larger(a, b))
}

fn sum(row: &[f32]) -> f32 {
    row.chunks(RANGE_SLOTS).map(sum_range).fold(0.0, |total, part| total + part)
}

fn sum_range(row: &[f32]) -> f32 {
    // Element i always goes to accumulator i % 8, so that trailing zeros (slots a query does not see) change nothing.
    let (chunks, rest) = row.as_chunks::<WIDTH>();
    let mut sums = [0.0f32; WIDTH];
    for chunk in chunks {
        for i in 0..WIDTH {
            sums[i] += chunk[i];
        }
    }
    for (sum, x) in sums.iter_mut().zip(rest) {
        *sum += x;
    }
    tree(sums)
}

fn tree(s: [f32; WIDTH]) -> f32 {
    ((s[0] + s[4]) + (s[1] + s[5])) + ((s[2] + s[6]) + (s[3] + s[7]))
}

/// Below this the result would be subnormal; it is given as 0.
const EXP_LOWEST: f32 = -87.336_54;
/// 1.5 * 2^23: adding it leaves the nearest integer in the low bits of the mantissa.
const ROUND: f32 = 12_582_912.0;
/// ln 2 in two parts; products of the first with an exponent are exact.
const LN2_HIGH: f32 = 0.693_359_4;
const LN2_LOW: f32 = -2.121_944_4e-4;

/// `e^x` for `x <= 0`, relative error at most 1e-7, exact 1 at 0; 0 below -87.336. NaN stays NaN.
///
/// Branch-free, so that a loop over a row becomes vector code; the standard library's stays a call per element.
#[inline]
fn exp(x: f32) -> f32 {
    let low = x < EXP_LOWEST;
    let x = if low { EXP_LOWEST } else { x };
    let shifted = x * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = (x - n * LN2_HIGH) - n * LN2_LOW;
    // Taylor's coefficients to r^7: on |r| <= ln 2 / 2 the first one left out is below 6e-9.
    let mut p = 1.0 / 5040.0;
    p = p * r + 1.0 / 720.0;
    p = p * r + 1.0 / 120.0;
    p = p * r + 1.0 / 24.0;
    p = p * r + 1.0 / 6.0;
    p = p * r + 0.5;
    let e = 1.0 + (r + r * r * p);
    let power = f32::from_bits((shifted.to_bits() << 23).wrapping_add(1.0f32.to_bits()));
    if low { 0.0 } else { e * power }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_within_its_bound_over_its_whole_range() {
        let lowest = EXP_LOWEST.to_bits();
        for bits in ((-0.0f32).to_bits()..lowest).step_by(9973) {
            let x = f32::from_bits(bits);
            let want = f64::from(x).exp();
            assert!((f64::from(exp(x)) / want - 1.0).abs() <= 1e-7, "e^{x} came out as {}", exp(x));
        }
        assert_eq!((exp(0.0), exp(-0.0), exp(-88.0), exp(f32::NEG_INFINITY)), (1.0, 1.0, 0.0, 0.0));
        assert!(exp(f32::NAN).is_nan());
    }

    #[test]
    fn a_row_with_nothing_to_see_stays_empty_and_unseen_slots_change_no_bit() {
        let mut nothing = [f32::NEG_INFINITY; 5];
        softmax(&mut nothing);
        assert_eq!(nothing, [0.0; 5]);
        let mut seen: Vec<f32> = (0..1030).map(|i| (i as f32 * 0.7).sin() * 3.0).collect();
        let mut longer = seen.clone();
        longer.extend([f32::NEG_INFINITY; 2000]);
        softmax(&mut seen);
        softmax(&mut longer);
        assert_eq!(longer[..1030], seen);
        assert!((seen.iter().sum::<f32>() - 1.0).abs() < 1e-5);
    }

    #[test]
    fn a_product_covers_the_elements_beyond_whole_chunks() {
        let a: Vec<f32> = (1..=19).map(|i| i as f32).collect();
        assert_eq!(dot(&a, &a), (1..=19).map(|i| (i * i) as f32).sum::<f32>());
    }
}
