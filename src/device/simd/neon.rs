//! NEON: four floats per register.

use std::arch::aarch64::{
    float32x4_t, vadd_f32, vaddq_f32, vaddq_u32, vandq_u32, vbslq_f32, vbslq_u32, vcgeq_u32, vcgtq_f32,
    vcltq_f32, vcreate_s8, vcvtq_f32_s32, vdivq_f32, vdupq_n_f32, vdupq_n_u32, vfmaq_f32, vget_high_f32,
    vget_lane_f32, vget_low_f32, vget_low_s16, vld1_u16, vld1q_f32, vmovl_s8, vmovl_s16, vmovl_u16,
    vmulq_f32, vorrq_u32, vreinterpretq_f32_u32, vreinterpretq_u32_f32, vshll_n_u16, vshlq_n_u32, vst1q_f32,
    vsubq_f32,
};

use super::body::part;

type Register = float32x4_t;
const WIDTH: usize = 4;

#[inline]
#[target_feature(enable = "neon")]
fn splat(x: f32) -> Register {
    vdupq_n_f32(x)
}

#[inline]
#[target_feature(enable = "neon")]
fn load(x: &[f32; WIDTH]) -> Register {
    // SAFETY: the array has as many floats as the register.
    unsafe { vld1q_f32(x.as_ptr()) }
}

/// Widens by shifting the exponent into place and scaling, which is exact for subnormal numbers too; infinities and
/// NaN get the largest exponent.
#[inline]
#[target_feature(enable = "neon")]
fn load_f16(x: &[f16; WIDTH]) -> Register {
    // SAFETY: four halves are 8 bytes, and have the alignment of their bits.
    let bits = vmovl_u16(unsafe { vld1_u16(x.as_ptr().cast()) });
    let sign = vshlq_n_u32::<16>(vandq_u32(bits, vdupq_n_u32(0x8000)));
    let size = vandq_u32(bits, vdupq_n_u32(0x7fff));
    let special = vcgeq_u32(size, vdupq_n_u32(0x7c00));
    let moved = vshlq_n_u32::<13>(size);
    // 2^112: what the exponents' offsets are apart.
    let finite = vmulq_f32(vreinterpretq_f32_u32(moved), vdupq_n_f32(f32::from_bits(239 << 23)));
    let endless = vorrq_u32(moved, vdupq_n_u32(0x7f80_0000));
    let all = vbslq_u32(special, endless, vreinterpretq_u32_f32(finite));
    vreinterpretq_f32_u32(vorrq_u32(all, sign))
}

#[inline]
#[target_feature(enable = "neon")]
fn load_bf16(x: &[bf16; WIDTH]) -> Register {
    // SAFETY: four halves are 8 bytes, and have the alignment of their bits.
    let bits = unsafe { vld1_u16(x.as_ptr().cast()) };
    vreinterpretq_f32_u32(vshll_n_u16::<16>(bits))
}

#[inline]
#[target_feature(enable = "neon")]
fn load_i8(x: &[u8; WIDTH]) -> Register {
    let eight = vcreate_s8(u64::from(u32::from_le_bytes(*x)));
    vcvtq_f32_s32(vmovl_s16(vget_low_s16(vmovl_s8(eight))))
}

#[inline]
#[target_feature(enable = "neon")]
fn splat_f16(x: f16) -> Register {
    load_f16(&[x; WIDTH])
}

#[inline]
#[target_feature(enable = "neon")]
fn store(x: Register, out: &mut [f32; WIDTH]) {
    // SAFETY: the array has as many floats as the register.
    unsafe { vst1q_f32(out.as_mut_ptr(), x) }
}

#[inline]
#[target_feature(enable = "neon")]
fn fma(a: Register, b: Register, c: Register) -> Register {
    vfmaq_f32(c, a, b)
}

#[inline]
#[target_feature(enable = "neon")]
fn add(a: Register, b: Register) -> Register {
    vaddq_f32(a, b)
}

#[inline]
#[target_feature(enable = "neon")]
fn sub(a: Register, b: Register) -> Register {
    vsubq_f32(a, b)
}

#[inline]
#[target_feature(enable = "neon")]
fn mul(a: Register, b: Register) -> Register {
    vmulq_f32(a, b)
}

#[inline]
#[target_feature(enable = "neon")]
fn div(a: Register, b: Register) -> Register {
    vdivq_f32(a, b)
}

#[inline]
#[target_feature(enable = "neon")]
fn larger(x: Register, top: Register) -> Register {
    vbslq_f32(vcgtq_f32(x, top), x, top)
}

#[inline]
#[target_feature(enable = "neon")]
fn below(x: Register, limit: Register, then: Register, other: Register) -> Register {
    vbslq_f32(vcltq_f32(x, limit), then, other)
}

#[inline]
#[target_feature(enable = "neon")]
fn negative(q: Register, then: Register, other: Register) -> Register {
    below(q, splat(0.0), then, other)
}

/// Two to the number in the low bits of the mantissa.
#[inline]
#[target_feature(enable = "neon")]
fn power(shifted: Register) -> Register {
    let exponent = vshlq_n_u32::<23>(vreinterpretq_u32_f32(shifted));
    vreinterpretq_f32_u32(vaddq_u32(exponent, vreinterpretq_u32_f32(splat(1.0))))
}

#[inline]
#[target_feature(enable = "neon")]
fn halved(mut sums: [Register; REGISTERS]) -> f32 {
    let mut half = REGISTERS / 2;
    while half > 0 {
        for i in 0..half {
            sums[i] = add(sums[i], sums[i + half]);
        }
        half /= 2;
    }
    let two = vadd_f32(vget_low_f32(sums[0]), vget_high_f32(sums[0]));
    vget_lane_f32::<0>(two) + vget_lane_f32::<1>(two)
}

/// The processor's own look-ahead has to do: the instruction for it is not in stable Rust.
#[inline]
#[target_feature(enable = "neon")]
fn fetch(_bytes: &[u8]) {}

kernels!("neon");
