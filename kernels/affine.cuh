// Scale and zero of a group of codes: the arithmetic of `src/quant/group.rs`, bit for bit.
//
// The zero is the minimum rounded down to f16 and the scale the step rounded up, so that the codes reach from the minimum
// to the maximum (asymmetric groups as in KIVI, arXiv 2402.02750, section 3.2).
#pragma once

#include "base.cuh"

constexpr float LARGEST_HALF = 65504.0f;

struct Affine {
  unsigned scale;  // bits of f16
  unsigned zero;
};

// Smallest and largest of some values; what is no number does not count, and none at all leave it inside out.
struct Extent {
  float min, max;
};

KV_DEVICE Extent no_extent() { return Extent{-minus_infinity(), minus_infinity()}; }

// `fminf` and `fmaxf` give the number where the other is none.
KV_DEVICE void widen(Extent& extent, float x) {
  extent.min = fminf(extent.min, x);
  extent.max = fmaxf(extent.max, x);
}

KV_DEVICE float clamped(float x) { return fminf(fmaxf(x, -LARGEST_HALF), LARGEST_HALF); }

// The largest f16 not above `x`, which is within f16's range.
KV_DEVICE unsigned half_at_most(float x) {
  const unsigned near = __half_as_ushort(__float2half_rn(x));
  if (half_bits(near) <= x) return near;
  if ((near & 0x7fffu) == 0) return 0x8001u;
  return near & 0x8000u ? near + 1 : near - 1;
}

// The smallest f16 not below `x`, for `x` from 0 on.
KV_DEVICE unsigned half_at_least(float x) {
  const unsigned near = __half_as_ushort(__float2half_rn(x));
  return half_bits(near) >= x ? near : near + 1;
}

KV_DEVICE Affine fit(Extent extent, float levels) {
  if (extent.min > extent.max) return Affine{0, 0};
  Affine affine;
  affine.zero = half_at_most(clamped(extent.min));
  affine.scale = half_at_least(__fdiv_rn(__fsub_rn(clamped(extent.max), half_bits(affine.zero)), levels));
  return affine;
}

KV_DEVICE unsigned code_of(Affine affine, float x, float levels) {
  const float scale = half_bits(affine.scale);
  if (scale == 0.0f || isnan(x)) return 0;
  const float steps = roundf(__fdiv_rn(__fsub_rn(x, half_bits(affine.zero)), scale));
  return static_cast<unsigned>(fminf(fmaxf(steps, 0.0f), levels));
}

// What a code is read as, with the two roundings of the CPU codec.
KV_DEVICE float value_of(float code, float scale, float zero) { return __fadd_rn(__fmul_rn(code, scale), zero); }
