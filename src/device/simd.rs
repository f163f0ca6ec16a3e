//! The innermost loops, for each instruction set that a processor may have.
//!
//! # Same bits
//!
//! Every instruction set gives the bits of the plain loops in `scalar.rs`, because the order of every sum is fixed:
//!
//! - A reduction goes into [`PARTIALS`] interleaved partial sums, element `i` into sum `i % 32`, as fused multiply-adds
//!   from 0 on; a row whose length is no multiple of 32 is read as if zeros followed. Partial sums are then added in
//!   halves: `i` and `i + 16`, `i` and `i + 8`, down to one. Thirty-two are four registers of AVX2, two of AVX-512 or
//!   eight of NEON, enough to hide the latency of an addition.
//! - A sum of weighted rows is taken element by element, one fused multiply-add per row, rows in order.
//! - The exponential is a polynomial of separate multiplications and additions.
//! - Numbers of half width are widened exactly before anything else happens to them.
//!
//! A fused multiply-add rounds once, and rounding keeps order: that is what [`Isa::upper_bound`] rests on.

#![expect(
    unsafe_code,
    reason = "registers are filled from memory, and kernels called for what detection found"
)]

#[macro_use]
mod body;

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "aarch64")]
mod neon;
mod scalar;
#[cfg(test)]
mod tests;

use std::fmt;
use std::sync::LazyLock;

use half::{bf16, f16};

/// Interleaved partial sums of a reduction.
pub const PARTIALS: usize = 32;

/// Below this the exponential would be subnormal; it is given as 0.
const EXP_LOWEST: f32 = -87.336_54;
/// 1.5 * 2^23: adding it leaves the nearest integer in the low bits of the mantissa.
const ROUND: f32 = 12_582_912.0;
/// ln 2 in two parts; products of the first with an exponent are exact.
const LN2_HIGH: f32 = 0.693_359_4;
const LN2_LOW: f32 = -2.121_944_4e-4;
/// Taylor's coefficients from r^7 down to r^2: on |r| <= ln 2 / 2 the first one left out is below 6e-9.
const TAYLOR: [f32; 6] = [1.0 / 5040.0, 1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5];

/// An instruction set that this machine has. There is no other way to one than by asking the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Isa(Kind);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    #[cfg(target_arch = "x86_64")]
    Avx512,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    #[cfg(target_arch = "aarch64")]
    Neon,
    Scalar,
}

/// Rows as they are stored, one after the other.
#[derive(Clone, Copy, Debug)]
pub enum Stored<'a> {
    /// Single precision.
    F32(&'a [f32]),
    /// Half precision.
    F16(&'a [f16]),
    /// The upper half of single precision.
    Bf16(&'a [bf16]),
    /// Blocks of 32 bytes under a scale; a row is whole blocks.
    Q8(&'a [Q8Block]),
}

/// Thirty-two signed bytes and what they are multiplied by: llama.cpp's Q8_0, as its files have it. A product of the two
/// is exact in f32.
#[derive(Clone, Copy, Debug)]
#[repr(transparent)]
pub struct Q8Block([u8; 34]);

impl Q8Block {
    /// The blocks in some bytes; what is no whole block at their end is left aside.
    pub fn of(bytes: &[u8]) -> &[Self] {
        let blocks = bytes.as_chunks::<34>().0;
        // SAFETY: a block is such an array and nothing else.
        unsafe { std::slice::from_raw_parts(blocks.as_ptr().cast(), blocks.len()) }
    }

    #[inline]
    const fn scale(&self) -> f16 {
        f16::from_le_bytes([self.0[0], self.0[1]])
    }

    #[inline]
    fn codes(&self) -> &[u8; PARTIALS] {
        self.0.last_chunk().expect("a block is longer than its codes")
    }
}

impl<'a> Stored<'a> {
    /// No rows.
    pub const NONE: Self = Self::F32(&[]);

    /// Number of elements.
    pub const fn len(self) -> usize {
        match self {
            Self::F32(rows) => rows.len(),
            Self::F16(rows) => rows.len(),
            Self::Bf16(rows) => rows.len(),
            Self::Q8(rows) => rows.len() * PARTIALS,
        }
    }

    /// Whether there are none.
    pub const fn is_empty(self) -> bool {
        self.len() == 0
    }

    /// The elements `from..to`, whole blocks where they lie in blocks.
    ///
    /// # Panics
    /// There are fewer.
    #[must_use]
    pub fn cut(self, from: usize, to: usize) -> Self {
        match self {
            Self::F32(rows) => Self::F32(&rows[from..to]),
            Self::F16(rows) => Self::F16(&rows[from..to]),
            Self::Bf16(rows) => Self::Bf16(&rows[from..to]),
            Self::Q8(rows) => Self::Q8(&rows[from / PARTIALS..to / PARTIALS]),
        }
    }

    fn bytes(self) -> &'a [u8] {
        let (start, len) = match self {
            Self::F32(rows) => (rows.as_ptr().cast::<u8>(), size_of_val(rows)),
            Self::F16(rows) => (rows.as_ptr().cast(), size_of_val(rows)),
            Self::Bf16(rows) => (rows.as_ptr().cast(), size_of_val(rows)),
            Self::Q8(rows) => (rows.as_ptr().cast(), size_of_val(rows)),
        };
        // SAFETY: these bytes are the rows, borrowed for as long; floats have no padding.
        unsafe { std::slice::from_raw_parts(start, len) }
    }
}

impl fmt::Display for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.0 {
            #[cfg(target_arch = "x86_64")]
            Kind::Avx512 => "AVX-512",
            #[cfg(target_arch = "x86_64")]
            Kind::Avx2 => "AVX2",
            #[cfg(target_arch = "aarch64")]
            Kind::Neon => "NEON",
            Kind::Scalar => "scalar",
        })
    }
}

/// Calls a kernel in the version of an instruction set.
macro_rules! call {
    ($isa:expr, $kernel:ident($($argument:expr),*)) => {
        match $isa.0 {
            // SAFETY: an `Isa` of this kind exists only on a machine that was found to have its features.
            #[cfg(target_arch = "x86_64")]
            Kind::Avx512 => unsafe { avx512::$kernel($($argument),*) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            Kind::Avx2 => unsafe { avx2::$kernel($($argument),*) },
            // SAFETY: as above.
            #[cfg(target_arch = "aarch64")]
            Kind::Neon => unsafe { neon::$kernel($($argument),*) },
            Kind::Scalar => scalar::$kernel($($argument),*),
        }
    };
}

impl Isa {
    /// The plain loops: the reference that the others are held against.
    pub const SCALAR: Self = Self(Kind::Scalar);

    /// The best that this machine has.
    #[inline]
    pub fn best() -> Self {
        static BEST: LazyLock<Isa> = LazyLock::new(|| Isa::all()[0]);
        *BEST
    }

    /// All that this machine has, the best first.
    pub fn all() -> Vec<Self> {
        let mut all = Vec::new();
        #[cfg(target_arch = "x86_64")]
        {
            let avx2 = is_x86_feature_detected!("avx2")
                && is_x86_feature_detected!("fma")
                && is_x86_feature_detected!("f16c");
            if avx2 && is_x86_feature_detected!("avx512f") {
                all.push(Self(Kind::Avx512));
            }
            if avx2 {
                all.push(Self(Kind::Avx2));
            }
        }
        #[cfg(target_arch = "aarch64")]
        if std::arch::is_aarch64_feature_detected!("neon") {
            all.push(Self(Kind::Neon));
        }
        all.push(Self::SCALAR);
        all
    }

    /// Sum of products.
    ///
    /// # Panics
    /// The rows differ in length; so with every kernel here whose arguments do not fit together.
    #[inline]
    pub fn dot(self, a: &[f32], b: &[f32]) -> f32 {
        assert_eq!(a.len(), b.len(), "rows of one length");
        call!(self, dot(a, b))
    }

    /// The sum of the products of `q` with the larger of `low` and `high` for each sign of it, in the order of
    /// [`dot`](Self::dot). Each rounding keeps order, so it is never below the product of `q` with a row between the two.
    #[inline]
    pub fn upper_bound(self, q: &[f32], low: &[f32], high: &[f32]) -> f32 {
        assert!(q.len() == low.len() && q.len() == high.len(), "rows of one length");
        call!(self, upper_bound(q, low, high))
    }

    /// The products of `x` with consecutive rows of its length, one each: `out[i] = x . rows[i]`, with the bits of
    /// [`dot`](Self::dot). `ahead` is what will be read next, fetched meanwhile; it may be empty.
    #[inline]
    pub fn dot_rows(self, x: &[f32], rows: Stored<'_>, ahead: Stored<'_>, out: &mut [f32]) {
        assert_eq!(rows.len(), x.len() * out.len(), "one result per row");
        if x.is_empty() {
            return out.fill(0.0);
        }
        let ahead = ahead.bytes();
        match rows {
            Stored::F32(rows) => call!(self, dot_rows_f32(x, rows, ahead, out)),
            Stored::F16(rows) => call!(self, dot_rows_f16(x, rows, ahead, out)),
            Stored::Bf16(rows) => call!(self, dot_rows_bf16(x, rows, ahead, out)),
            Stored::Q8(rows) => {
                assert!(x.len().is_multiple_of(PARTIALS), "rows are whole blocks");
                call!(self, dot_rows_q8(x, rows, ahead, out));
            }
        }
    }

    /// `sum += weights[i] * rows[i]`, row after row; `ahead` as in [`dot_rows`](Self::dot_rows).
    #[inline]
    pub fn add_rows(self, sum: &mut [f32], weights: &[f32], rows: Stored<'_>, ahead: Stored<'_>) {
        assert_eq!(rows.len(), sum.len() * weights.len(), "one weight per row");
        if sum.is_empty() {
            return;
        }
        let ahead = ahead.bytes();
        match rows {
            Stored::F32(rows) => call!(self, add_rows_f32(sum, weights, rows, ahead)),
            Stored::F16(rows) => call!(self, add_rows_f16(sum, weights, rows, ahead)),
            Stored::Bf16(rows) => call!(self, add_rows_bf16(sum, weights, rows, ahead)),
            Stored::Q8(_) => {
                let mut wide = vec![0.0; rows.len()];
                self.widen(rows, &mut wide);
                call!(self, add_rows_f32(sum, weights, &wide, ahead));
            }
        }
    }

    /// The largest value of a row, NaN left aside; `-inf` of an empty one.
    #[inline]
    pub fn max(self, row: &[f32]) -> f32 {
        call!(self, max(row))
    }

    /// The sum of a row.
    #[inline]
    pub fn sum(self, row: &[f32]) -> f32 {
        call!(self, sum(row))
    }

    /// Makes each `x` of a row `e^(x - max)` and gives their sum. `max` is at least every `x`. The relative error of a
    /// power is at most 1e-7, it is 1 at `max`, and 0 where it would be subnormal. NaN stays NaN.
    #[inline]
    pub fn exp_and_sum(self, row: &mut [f32], max: f32) -> f32 {
        call!(self, exp_and_sum(row, max))
    }

    /// Multiplies a row by a factor.
    #[inline]
    pub fn scale(self, row: &mut [f32], factor: f32) {
        call!(self, scale(row, factor));
    }

    /// `gates[i] / (1 + e^-gates[i]) * up[i]` (SwiGLU, arXiv 2002.05202).
    #[inline]
    pub fn swiglu(self, gates: &[f32], up: &[f32], out: &mut [f32]) {
        assert!(gates.len() == up.len() && gates.len() == out.len(), "rows of one length");
        call!(self, swiglu(gates, up, out));
    }

    /// Rows as f32.
    #[inline]
    pub fn widen(self, rows: Stored<'_>, out: &mut [f32]) {
        assert_eq!(rows.len(), out.len(), "as many as there are");
        match rows {
            Stored::F32(rows) => out.copy_from_slice(rows),
            Stored::F16(rows) => call!(self, widen_f16(rows, out)),
            Stored::Bf16(rows) => call!(self, widen_bf16(rows, out)),
            Stored::Q8(rows) => call!(self, widen_q8(rows, out)),
        }
    }
}
