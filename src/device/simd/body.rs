//! The kernels, written once: a module per instruction set names its registers and what can be done with them, and
//! [`kernels`] makes the loops of it.
//!
//! A module has `Register`, `WIDTH` (floats in one), and functions that need its features: `splat`, `load`, `load_f16`,
//! `load_bf16`, `load_i8` and `store` of arrays of `WIDTH`, `splat_f16`, `fma(a, b, c)` = `a * b + c`, `add`, `sub`, `mul`, `div`,
//! `larger(x, top)` = `x > top ? x : top`, `below(x, limit, then, other)`, `negative(q, then, other)`,
//! `power(shifted)` (see `exp`), `halved` (the sum of the partial sums) and `fetch` (a hint that an address will be
//! read).

/// Makes a kernel of every loop. The argument is the list of features.
macro_rules! kernels {
    ($features:literal) => {
        use half::{bf16, f16};

        use super::{EXP_LOWEST, LN2_HIGH, LN2_LOW, PARTIALS, Q8Block, ROUND, TAYLOR};

        /// Registers of partial sums.
        const REGISTERS: usize = PARTIALS / WIDTH;
        /// Columns that stay in registers while rows go by.
        const PANEL: usize = 64;

        /// The first elements of a register, zeros after them.
        #[inline]
        #[target_feature(enable = $features)]
        fn load_some(x: &[f32]) -> Register {
            if let Ok(all) = x.try_into() {
                return load(all);
            }
            let mut all = [0.0; WIDTH];
            all[..x.len()].copy_from_slice(x);
            load(&all)
        }

        #[inline]
        #[target_feature(enable = $features)]
        fn load_some_f16(x: &[f16]) -> Register {
            if let Ok(all) = x.try_into() {
                return load_f16(all);
            }
            let mut all = [f16::ZERO; WIDTH];
            all[..x.len()].copy_from_slice(x);
            load_f16(&all)
        }

        #[inline]
        #[target_feature(enable = $features)]
        fn load_some_bf16(x: &[bf16]) -> Register {
            if let Ok(all) = x.try_into() {
                return load_bf16(all);
            }
            let mut all = [bf16::ZERO; WIDTH];
            all[..x.len()].copy_from_slice(x);
            load_bf16(&all)
        }

        /// The elements of a register within a row's last, incomplete chunk; none beyond it.
        fn within<T>(rest: &[T], register: usize) -> &[T] {
            let start = (register * WIDTH).min(rest.len());
            &rest[start..rest.len().min(start + WIDTH)]
        }

        #[target_feature(enable = $features)]
        pub(super) fn upper_bound(q: &[f32], low: &[f32], high: &[f32]) -> f32 {
            let (q, q_rest) = q.as_chunks::<PARTIALS>();
            let ((low, low_rest), (high, high_rest)) =
                (low.as_chunks::<PARTIALS>(), high.as_chunks::<PARTIALS>());
            let mut sums = [splat(0.0); REGISTERS];
            for ((q, low), high) in q.iter().zip(low).zip(high) {
                let (q, low, high) =
                    (q.as_chunks::<WIDTH>().0, low.as_chunks::<WIDTH>().0, high.as_chunks::<WIDTH>().0);
                for i in 0..REGISTERS {
                    let q = load(&q[i]);
                    sums[i] = fma(q, negative(q, load(&low[i]), load(&high[i])), sums[i]);
                }
            }
            if !q_rest.is_empty() {
                for i in 0..REGISTERS {
                    let q = load_some(within(q_rest, i));
                    let (low, high) = (load_some(within(low_rest, i)), load_some(within(high_rest, i)));
                    sums[i] = fma(q, negative(q, low, high), sums[i]);
                }
            }
            halved(sums)
        }

        kernels!(@stored $features, f32, load, load_some, dot, dot_rows_f32, add_rows_f32, add_panel_f32);
        kernels!(@stored $features, f16, load_f16, load_some_f16, dot_f16, dot_rows_f16, add_rows_f16, add_panel_f16);
        kernels!(@stored $features, bf16, load_bf16, load_some_bf16, dot_bf16, dot_rows_bf16, add_rows_bf16, add_panel_bf16);
        kernels!(@widen $features, f16, load_f16, load_some_f16, widen_f16);
        kernels!(@widen $features, bf16, load_bf16, load_some_bf16, widen_bf16);

        #[target_feature(enable = $features)]
        pub(super) fn dot_rows_q8(x: &[f32], rows: &[Q8Block], ahead: &[u8], out: &mut [f32]) {
            let x = x.as_chunks::<PARTIALS>().0;
            let share = ahead.len().div_ceil(out.len().max(1));
            for (i, (out, row)) in out.iter_mut().zip(rows.chunks_exact(x.len())).enumerate() {
                fetch(part(ahead, i, share));
                let mut sums = [splat(0.0); REGISTERS];
                for (x, block) in x.iter().zip(row) {
                    let (scale, codes) = (splat_f16(block.scale()), block.codes().as_chunks::<WIDTH>().0);
                    for (sum, (x, codes)) in sums.iter_mut().zip(x.as_chunks::<WIDTH>().0.iter().zip(codes)) {
                        *sum = fma(load(x), mul(load_i8(codes), scale), *sum);
                    }
                }
                *out = halved(sums);
            }
        }

        #[target_feature(enable = $features)]
        pub(super) fn widen_q8(rows: &[Q8Block], out: &mut [f32]) {
            for (block, out) in rows.iter().zip(out.as_chunks_mut::<PARTIALS>().0) {
                let (scale, codes) = (splat_f16(block.scale()), block.codes().as_chunks::<WIDTH>().0);
                for (out, codes) in out.as_chunks_mut::<WIDTH>().0.iter_mut().zip(codes) {
                    store(mul(load_i8(codes), scale), out);
                }
            }
        }

        /// The first elements of a register to where they belong.
        #[inline]
        #[target_feature(enable = $features)]
        fn store_some(x: Register, out: &mut [f32]) {
            if let Ok(all) = out.try_into() {
                return store(x, all);
            }
            let mut all = [0.0; WIDTH];
            store(x, &mut all);
            out.copy_from_slice(&all[..out.len()]);
        }

        #[target_feature(enable = $features)]
        pub(super) fn max(row: &[f32]) -> f32 {
            let (chunks, rest) = row.as_chunks::<PARTIALS>();
            let mut tops = [splat(f32::NEG_INFINITY); REGISTERS];
            for chunk in chunks {
                for (top, x) in tops.iter_mut().zip(chunk.as_chunks::<WIDTH>().0) {
                    *top = larger(load(x), *top);
                }
            }
            let mut top = tops[0];
            for &other in &tops[1..] {
                top = larger(other, top);
            }
            let mut all = [0.0; WIDTH];
            store(top, &mut all);
            all.iter().chain(rest).fold(f32::NEG_INFINITY, |top, &x| if x > top { x } else { top })
        }

        #[target_feature(enable = $features)]
        pub(super) fn sum(row: &[f32]) -> f32 {
            let (chunks, rest) = row.as_chunks::<PARTIALS>();
            let mut sums = [splat(0.0); REGISTERS];
            for chunk in chunks {
                for (sum, x) in sums.iter_mut().zip(chunk.as_chunks::<WIDTH>().0) {
                    *sum = add(*sum, load(x));
                }
            }
            if !rest.is_empty() {
                for (i, sum) in sums.iter_mut().enumerate() {
                    *sum = add(*sum, load_some(within(rest, i)));
                }
            }
            halved(sums)
        }

        #[target_feature(enable = $features)]
        pub(super) fn exp_and_sum(row: &mut [f32], max: f32) -> f32 {
            let (chunks, rest) = row.as_chunks_mut::<PARTIALS>();
            let (mut sums, max) = ([splat(0.0); REGISTERS], splat(max));
            for chunk in chunks {
                for (sum, x) in sums.iter_mut().zip(chunk.as_chunks_mut::<WIDTH>().0) {
                    let power = exp(sub(load(x), max));
                    store(power, x);
                    *sum = add(*sum, power);
                }
            }
            if !rest.is_empty() {
                for (i, sum) in sums.iter_mut().enumerate() {
                    let start = (i * WIDTH).min(rest.len());
                    let end = rest.len().min(start + WIDTH);
                    store_some(exp(sub(load_some(&rest[start..end]), max)), &mut rest[start..end]);
                    // Those that are not there count as 0, not as powers of 0.
                    *sum = add(*sum, load_some(&rest[start..end]));
                }
            }
            halved(sums)
        }

        #[target_feature(enable = $features)]
        pub(super) fn scale(row: &mut [f32], factor: f32) {
            let (chunks, rest) = row.as_chunks_mut::<WIDTH>();
            let factors = splat(factor);
            for x in chunks {
                store(mul(load(x), factors), x);
            }
            for x in rest {
                *x *= factor;
            }
        }

        #[target_feature(enable = $features)]
        pub(super) fn swiglu(gates: &[f32], up: &[f32], out: &mut [f32]) {
            let (gates, gates_rest) = gates.as_chunks::<WIDTH>();
            let ((up, up_rest), (out, out_rest)) = (up.as_chunks::<WIDTH>(), out.as_chunks_mut::<WIDTH>());
            for ((gate, up), out) in gates.iter().zip(up).zip(out) {
                store(mul(silu(load(gate)), load(up)), out);
            }
            if !out_rest.is_empty() {
                store_some(mul(silu(load_some(gates_rest)), load_some(up_rest)), out_rest);
            }
        }

        /// `x / (1 + e^-x)` by the power of what is not positive, so that none overflows.
        #[inline]
        #[target_feature(enable = $features)]
        fn silu(x: Register) -> Register {
            let (one, zero) = (splat(1.0), splat(0.0));
            let power = exp(below(x, zero, x, sub(zero, x)));
            mul(x, div(below(x, zero, power, one), add(one, power)))
        }

        /// `e^x` for `x <= 0`; the reference has the same steps.
        #[inline]
        #[target_feature(enable = $features)]
        fn exp(x: Register) -> Register {
            let lowest = splat(EXP_LOWEST);
            let bounded = below(x, lowest, lowest, x);
            let shifted = add(mul(bounded, splat(std::f32::consts::LOG2_E)), splat(ROUND));
            let n = sub(shifted, splat(ROUND));
            let r = sub(sub(bounded, mul(n, splat(LN2_HIGH))), mul(n, splat(LN2_LOW)));
            let mut p = splat(TAYLOR[0]);
            for &coefficient in &TAYLOR[1..] {
                p = add(mul(p, r), splat(coefficient));
            }
            let e = add(splat(1.0), add(r, mul(mul(r, r), p)));
            below(x, lowest, splat(0.0), mul(e, power(shifted)))
        }
    };

    // What reads stored rows, for one type of element.
    (@stored $features:literal, $element:ty, $load:ident, $load_some:ident, $dot:ident, $dot_rows:ident, $add_rows:ident, $panel:ident) => {
        #[inline]
        #[target_feature(enable = $features)]
        pub(super) fn $dot(a: &[f32], b: &[$element]) -> f32 {
            let (a, a_rest) = a.as_chunks::<PARTIALS>();
            let (b, b_rest) = b.as_chunks::<PARTIALS>();
            let mut sums = [splat(0.0); REGISTERS];
            for (a, b) in a.iter().zip(b) {
                let (a, b) = (a.as_chunks::<WIDTH>().0, b.as_chunks::<WIDTH>().0);
                for i in 0..REGISTERS {
                    sums[i] = fma(load(&a[i]), $load(&b[i]), sums[i]);
                }
            }
            if !a_rest.is_empty() {
                for i in 0..REGISTERS {
                    sums[i] = fma(load_some(within(a_rest, i)), $load_some(within(b_rest, i)), sums[i]);
                }
            }
            halved(sums)
        }

        #[target_feature(enable = $features)]
        pub(super) fn $dot_rows(x: &[f32], rows: &[$element], ahead: &[u8], out: &mut [f32]) {
            let share = ahead.len().div_ceil(out.len().max(1));
            for (i, (out, row)) in out.iter_mut().zip(rows.chunks_exact(x.len())).enumerate() {
                fetch(part(ahead, i, share));
                *out = $dot(x, row);
            }
        }

        #[target_feature(enable = $features)]
        pub(super) fn $add_rows(sum: &mut [f32], weights: &[f32], rows: &[$element], ahead: &[u8]) {
            // The first panel touches every row; what is ahead is asked for as it goes.
            let (mut column, mut ahead) = (0, ahead);
            while column < sum.len() {
                let left = sum.len() - column;
                // Registers that hide the latency of an addition, as long as there are columns for them.
                column += if left >= PANEL {
                    $panel::<{ PANEL / WIDTH }>(sum, column, weights, rows, ahead)
                } else if left >= PANEL / 2 {
                    $panel::<{ PANEL / 2 / WIDTH }>(sum, column, weights, rows, ahead)
                } else if left >= WIDTH {
                    $panel::<1>(sum, column, weights, rows, ahead)
                } else {
                    let width = sum.len();
                    let part = &mut sum[column..];
                    let mut total = load_some(part);
                    for (&weight, row) in weights.iter().zip(rows.chunks_exact(width)) {
                        total = fma(splat(weight), $load_some(&row[column..]), total);
                    }
                    store_some(total, part);
                    left
                };
                ahead = &[];
            }
        }

        /// Some columns of the sum, in `N` registers while the rows go by; how many columns those are.
        #[inline]
        #[target_feature(enable = $features)]
        fn $panel<const N: usize>(
            sum: &mut [f32],
            column: usize,
            weights: &[f32],
            rows: &[$element],
            ahead: &[u8],
        ) -> usize {
            let (width, share) = (sum.len(), ahead.len().div_ceil(weights.len().max(1)));
            let panel = sum[column..][..N * WIDTH].as_chunks_mut::<WIDTH>().0;
            let mut sums = [splat(0.0); N];
            for (sum, x) in sums.iter_mut().zip(&*panel) {
                *sum = load(x);
            }
            for (i, (&weight, row)) in weights.iter().zip(rows.chunks_exact(width)).enumerate() {
                fetch(part(ahead, i, share));
                let (weight, row) = (splat(weight), row[column..][..N * WIDTH].as_chunks::<WIDTH>().0);
                for (sum, x) in sums.iter_mut().zip(row) {
                    *sum = fma(weight, $load(x), *sum);
                }
            }
            for (sum, x) in sums.into_iter().zip(panel) {
                store(sum, x);
            }
            N * WIDTH
        }
    };

    (@widen $features:literal, $element:ty, $load:ident, $load_some:ident, $widen:ident) => {
        #[target_feature(enable = $features)]
        pub(super) fn $widen(rows: &[$element], out: &mut [f32]) {
            let ((rows, rows_rest), (out, out_rest)) = (rows.as_chunks::<WIDTH>(), out.as_chunks_mut::<WIDTH>());
            for (x, out) in rows.iter().zip(out) {
                store($load(x), out);
            }
            if !rows_rest.is_empty() {
                store_some($load_some(rows_rest), out_rest);
            }
        }
    };
}

/// The `i`-th share of what will be read next.
#[inline]
pub(super) fn part(ahead: &[u8], i: usize, share: usize) -> &[u8] {
    let start = (i * share).min(ahead.len());
    &ahead[start..ahead.len().min(start + share)]
}
