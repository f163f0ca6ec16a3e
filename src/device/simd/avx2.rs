//! AVX2 with FMA and F16C: eight floats per register.

use std::arch::x86_64::{
    __m256, _CMP_LT_OQ, _MM_HINT_T0, _mm_add_ps, _mm_add_ss, _mm_cvtsi64_si128, _mm_cvtss_f32,
    _mm_loadu_si128, _mm_movehdup_ps, _mm_movehl_ps, _mm_prefetch, _mm_set1_epi16, _mm256_add_epi32,
    _mm256_add_ps, _mm256_blendv_ps, _mm256_castps_si256, _mm256_castps256_ps128, _mm256_castsi256_ps,
    _mm256_cmp_ps, _mm256_cvtepi8_epi32, _mm256_cvtepi32_ps, _mm256_cvtepu16_epi32, _mm256_cvtph_ps,
    _mm256_div_ps, _mm256_extractf128_ps, _mm256_fmadd_ps, _mm256_loadu_ps, _mm256_max_ps, _mm256_mul_ps,
    _mm256_set1_ps, _mm256_slli_epi32, _mm256_storeu_ps, _mm256_sub_ps,
};

use super::body::part;

type Register = __m256;
const WIDTH: usize = 8;

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn splat(x: f32) -> Register {
    _mm256_set1_ps(x)
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn load(x: &[f32; WIDTH]) -> Register {
    // SAFETY: the array has as many floats as the register; no alignment is asked for.
    unsafe { _mm256_loadu_ps(x.as_ptr()) }
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn load_f16(x: &[f16; WIDTH]) -> Register {
    // SAFETY: eight halves are 16 bytes; no alignment is asked for.
    _mm256_cvtph_ps(unsafe { _mm_loadu_si128(x.as_ptr().cast()) })
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn load_bf16(x: &[bf16; WIDTH]) -> Register {
    // SAFETY: eight halves are 16 bytes; no alignment is asked for.
    let x = unsafe { _mm_loadu_si128(x.as_ptr().cast()) };
    _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(x)))
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "as the other widths have it")]
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn load_i8(x: &[u8; WIDTH]) -> Register {
    let x = _mm_cvtsi64_si128(i64::from_le_bytes(*x));
    _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(x))
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn splat_f16(x: f16) -> Register {
    _mm256_cvtph_ps(_mm_set1_epi16(x.to_bits().cast_signed()))
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn store(x: Register, out: &mut [f32; WIDTH]) {
    // SAFETY: the array has as many floats as the register; no alignment is asked for.
    unsafe { _mm256_storeu_ps(out.as_mut_ptr(), x) }
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn fma(a: Register, b: Register, c: Register) -> Register {
    _mm256_fmadd_ps(a, b, c)
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn add(a: Register, b: Register) -> Register {
    _mm256_add_ps(a, b)
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn sub(a: Register, b: Register) -> Register {
    _mm256_sub_ps(a, b)
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn mul(a: Register, b: Register) -> Register {
    _mm256_mul_ps(a, b)
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn div(a: Register, b: Register) -> Register {
    _mm256_div_ps(a, b)
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn larger(x: Register, top: Register) -> Register {
    _mm256_max_ps(x, top)
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn below(x: Register, limit: Register, then: Register, other: Register) -> Register {
    _mm256_blendv_ps(other, then, _mm256_cmp_ps::<_CMP_LT_OQ>(x, limit))
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn negative(q: Register, then: Register, other: Register) -> Register {
    below(q, splat(0.0), then, other)
}

/// Two to the number in the low bits of the mantissa.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn power(shifted: Register) -> Register {
    let exponent = _mm256_slli_epi32::<23>(_mm256_castps_si256(shifted));
    _mm256_castsi256_ps(_mm256_add_epi32(exponent, _mm256_castps_si256(splat(1.0))))
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn halved(sums: [Register; REGISTERS]) -> f32 {
    let eight = add(add(sums[0], sums[2]), add(sums[1], sums[3]));
    let four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps::<1>(eight));
    let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)))
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
#[allow(unused_unsafe, reason = "safe in later versions of Rust only")]
fn fetch(bytes: &[u8]) {
    let mut at = bytes.as_ptr().cast::<i8>();
    for _ in 0..bytes.len().div_ceil(64) {
        // SAFETY: a hint, which no address makes fault.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(at) };
        at = at.wrapping_add(64);
    }
}

kernels!("avx2,fma,f16c");
