//! Dense products of many rows, through the `gemm` crate that candle multiplies with too.

use gemm::Parallelism;

/// `out = x * w^T`: rows `x` `[n][inputs]` times a matrix `w` `[outputs][inputs]`. Row `i` of the result begins at
/// `out[i * stride]` and is as long as `w` has rows. On the rayon pool that is current where it is called.
///
/// # Panics
/// Lengths that do not fit each other: a fault of the caller.
pub fn matmul(x: &[f32], w: &[f32], inputs: usize, out: &mut [f32], stride: usize) {
    assert!(inputs > 0 && x.len().is_multiple_of(inputs) && w.len().is_multiple_of(inputs), "whole rows");
    let (rows, outputs) = (x.len() / inputs, w.len() / inputs);
    if rows == 0 || outputs == 0 {
        return;
    }
    assert!(outputs <= stride && out.len() >= (rows - 1) * stride + outputs, "the result has room");
    // SAFETY: all strides are positive and the asserts above keep every element that they reach inside its slice: `x`
    // has `rows * inputs` elements, `w` `outputs * inputs`, and the last element written is
    // `(rows - 1) * stride + outputs - 1`. `out` is borrowed exclusively, so nothing that is read overlaps it.
    #[allow(unsafe_code)]
    unsafe {
        gemm::gemm(
            rows,
            outputs,
            inputs,
            out.as_mut_ptr(),
            1,
            stride as isize,
            false,
            x.as_ptr(),
            1,
            inputs as isize,
            w.as_ptr(),
            inputs as isize,
            1,
            0.0,
            1.0,
            false,
            false,
            false,
            Parallelism::Rayon(0),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_lands_at_its_stride_and_nothing_between_is_touched() {
        for (rows, inputs, outputs, stride) in [(1, 3, 2, 2), (9, 70, 33, 40), (64, 128, 96, 96)] {
            let x: Vec<f32> = (0..rows * inputs).map(|i| ((i * 7) % 11) as f32 - 5.0).collect();
            let w: Vec<f32> = (0..outputs * inputs).map(|i| ((i * 5) % 13) as f32 - 6.0).collect();
            let mut out = vec![f32::NAN; (rows - 1) * stride + outputs];
            matmul(&x, &w, inputs, &mut out, stride);
            for (i, x) in x.chunks(inputs).enumerate() {
                for (o, w) in w.chunks(inputs).enumerate() {
                    let want: f32 = x.iter().zip(w).map(|(a, b)| a * b).sum();
                    assert_eq!(out[i * stride + o], want);
                }
            }
            assert_eq!(out.iter().filter(|x| x.is_nan()).count(), (rows - 1) * (stride - outputs));
        }
    }
}
