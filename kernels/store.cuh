// Rows of f32 into pages as they are stored, a warp per row, bit for bit as the processor stores them. int4 and int2 are
// stored as f32 first (quant.cu).
#pragma once

#include "affine.cuh"
#include "cells.cuh"

// Elements of a row that a thread has, 32 apart: rows are at most 256 long.
constexpr int PER_LANE = 8;

struct StoreF32 {
  static constexpr bool affine = false;
  KV_DEVICE static size_t row_bytes(int head_dim) { return F32::row_bytes(head_dim); }
  KV_DEVICE static void put(byte* row, int e, float x) { reinterpret_cast<float*>(row)[e] = x; }
};
struct StoreF16 {
  static constexpr bool affine = false;
  KV_DEVICE static size_t row_bytes(int head_dim) { return F16::row_bytes(head_dim); }
  KV_DEVICE static void put(byte* row, int e, float x) { reinterpret_cast<__half*>(row)[e] = __float2half_rn(x); }
};
struct StoreBF16 {
  static constexpr bool affine = false;
  KV_DEVICE static size_t row_bytes(int head_dim) { return BF16::row_bytes(head_dim); }
  KV_DEVICE static void put(byte* row, int e, float x) {
    reinterpret_cast<__nv_bfloat16*>(row)[e] = __float2bfloat16_rn(x);
  }
};
struct StoreInt8 {
  static constexpr bool affine = true;
  KV_DEVICE static size_t row_bytes(int head_dim) { return Int8::row_bytes(head_dim); }
};

// Codes of a row whose elements share scale and zero: 0 to this.
constexpr float ROW_LEVELS = 255.0f;

// Scale and zero of a row; each thread of the warp has the elements `j * 32 + threadIdx.x % 32`.
KV_DEVICE Affine affine_of_row(const float (&x)[PER_LANE], int head_dim) {
  Extent extent = no_extent();
#pragma unroll
  for (int j = 0; j < PER_LANE; ++j) {
    if (j * 32 + static_cast<int>(threadIdx.x % 32) < head_dim) widen(extent, x[j]);
  }
  return fit(Extent{warp_min(extent.min), warp_max(extent.max)}, ROW_LEVELS);
}

// Writes a row, whose elements the threads have so too.
template <class Store>
KV_DEVICE void store_row(byte* to, const float (&x)[PER_LANE], int head_dim) {
  const int in_warp = threadIdx.x % 32;
  if constexpr (Store::affine) {
    const Affine affine = affine_of_row(x, head_dim);
#pragma unroll
    for (int j = 0; j < PER_LANE; ++j) {
      const int e = j * 32 + in_warp;
      if (e < head_dim) to[e] = static_cast<byte>(code_of(affine, x[j], ROW_LEVELS));
    }
    if (in_warp == 0) {
      KV_ALIGNED(to + head_dim, 4);
      *reinterpret_cast<unsigned*>(to + head_dim) = affine.scale | affine.zero << 16;
    }
  } else {
#pragma unroll
    for (int j = 0; j < PER_LANE; ++j) {
      const int e = j * 32 + in_warp;
      if (e < head_dim) Store::put(to, e, x[j]);
    }
  }
}
