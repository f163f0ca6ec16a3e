// Rows pulled together: V of a read set out of mapped pinned host memory (KCache, arXiv 2404.18057; zero-copy reads, one
// launch for all rows instead of a copy each), and a lane's pages into one contiguous matrix for prefill's GEMMs.
//
// gather_rows: grid (ceil(most rows / 8), kv_heads), block 256: a warp per row.
//   slots [kv_head][slot_stride], ascending, counts [kv_head]; staged [kv_head][row_stride rows]. `slab` may be the device
//   address of mapped host memory. row_bytes is a multiple of 4; a multiple of 16 goes 16 bytes at a time, so that a warp
//   asks the link for 512 consecutive bytes.
// gather_pages_{f32,f16,bf16,int8,int4,int2}_{to_f32,to_f16}: grid (ceil(most slots / 8), kv_heads), block 256.
//   out [kv_head][row_stride][head_dim], rows of holes all 0 so that no leftover reaches a product; `values` says that the
//   slab holds V (int4 and int2 differ). Codes come out as the CPU codec decodes them, bit for bit. Only leading slots up to the lane's count are written.
// Lanes of one sequence: `lanes` points at its first.
// Registers: at most 64, no spills.
#include "affine.cuh"
#include "cells.cuh"

constexpr int GATHER_THREADS = 256;
constexpr int GATHER_WARPS = GATHER_THREADS / 32;

template <class Unit>
KV_DEVICE void copy_row(byte* to, const byte* from, size_t bytes) {
  KV_ALIGNED(to, sizeof(Unit));
  KV_ALIGNED(from, sizeof(Unit));
  Unit* out = reinterpret_cast<Unit*>(to);
  const Unit* in = reinterpret_cast<const Unit*>(from);
  for (size_t i = threadIdx.x % 32; i < bytes / sizeof(Unit); i += 32) out[i] = __ldcs(in + i);
}

extern "C" __global__ void __launch_bounds__(GATHER_THREADS)
    gather_rows(byte* staged, const byte* slab, const unsigned* slots, const unsigned* counts, const unsigned* blocks,
                const unsigned* lanes, int block_size, int row_bytes, int slot_stride, int row_stride) {
  const unsigned i = blockIdx.x * GATHER_WARPS + threadIdx.x / 32;
  const size_t kv_head = blockIdx.y;
  if (i >= counts[kv_head]) return;
  const Lane lane = lane_at(lanes, static_cast<int>(kv_head));
  const unsigned row = row_of(blocks, lane.table, lane.add, slots[kv_head * slot_stride + i], block_size);
  byte* to = staged + (kv_head * row_stride + i) * row_bytes;
  const byte* from = slab + static_cast<size_t>(row) * row_bytes;
  if (row_bytes % 16 == 0) {
    copy_row<uint4>(to, from, row_bytes);
  } else {
    copy_row<unsigned>(to, from, row_bytes);
  }
}
KV_EXPORT(gather_rows)

// Codes to numbers with the roundings of the CPU codec.
KV_DEVICE void decode_codes(float (&x)[CHUNK], const float (&scale)[CHUNK], const float (&zero)[CHUNK]) {
#pragma unroll
  for (int i = 0; i < CHUNK; ++i) x[i] = value_of(x[i], scale[i], zero[i]);
}

// Eight channels of a row with a scale and a zero: a value, or a key of Int8.
template <class C>
KV_DEVICE void value_chunk(const byte* slab, unsigned row, int chunk, int head_dim, float (&out)[CHUNK]) {
  const typename C::Value value = C::load_value(slab + row * C::row_bytes(head_dim), chunk, head_dim);
  if constexpr (C::keys == Keys::Plain) {
    C::widen_value(value, out);
  } else {
    C::widen(value.codes, out);
#pragma unroll
    for (int i = 0; i < CHUNK; ++i) out[i] = value_of(out[i], half_bits(value.scale), half_bits(value.zero));
  }
}

// Eight channels of a key.
template <class C>
KV_DEVICE void key_chunk(const byte* slab, unsigned row, int chunk, int head_dim, float (&out)[CHUNK]) {
  if constexpr (C::keys != Keys::PageAffine) {
    value_chunk<C>(slab, row, chunk, head_dim, out);
  } else {
    const byte* scales = C::key_scales(slab, row / KIVI_PAGE, head_dim);
    float scale[CHUNK], zero[CHUNK];
    F16::widen(F16::load(scales, chunk, head_dim), scale);
    F16::widen(F16::load(scales + 2 * head_dim, chunk, head_dim), zero);
    C::widen(C::load(C::key_codes(slab, row, head_dim), chunk, head_dim), out);
    decode_codes(out, scale, zero);
  }
}

KV_DEVICE void store_chunk(float* row, int chunk, const float (&x)[CHUNK]) {
  float4* to = reinterpret_cast<float4*>(row + chunk * CHUNK);
  KV_ALIGNED(to, 16);
  to[0] = make_float4(x[0], x[1], x[2], x[3]);
  to[1] = make_float4(x[4], x[5], x[6], x[7]);
}
KV_DEVICE void store_chunk(__half* row, int chunk, const float (&x)[CHUNK]) {
  unsigned words[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const unsigned low = __half_as_ushort(__float2half_rn(x[2 * i]));
    words[i] = low | static_cast<unsigned>(__half_as_ushort(__float2half_rn(x[2 * i + 1]))) << 16;
  }
  uint4* to = reinterpret_cast<uint4*>(row + chunk * CHUNK);
  KV_ALIGNED(to, 16);
  *to = make_uint4(words[0], words[1], words[2], words[3]);
}

template <class C, class Out>
KV_DEVICE void gather(Out* out, const byte* slab, const byte* exact, const unsigned* blocks, const unsigned* positions,
                      const unsigned* lanes, int head_dim, int block_size, int row_stride, int values) {
  const unsigned slot = blockIdx.x * GATHER_WARPS + threadIdx.x / 32;
  const size_t kv_head = blockIdx.y;
  const Lane lane = lane_at(lanes, static_cast<int>(kv_head));
  if (slot >= lane.slots) return;
  const bool hole = positions[lane.positions + slot] == HOLE;
  const bool coded = C::keys != Keys::PageAffine || slot < (values ? lane.v_coded : lane.k_coded);
  const unsigned row = hole ? 0 : row_of(blocks, coded ? lane.table : lane.exact, lane.add, slot, block_size);
  Out* to = out + (kv_head * row_stride + slot) * head_dim;
  for (int chunk = threadIdx.x % 32; chunk < head_dim / CHUNK; chunk += 32) {
    float x[CHUNK];
    if (hole) {
#pragma unroll
      for (int i = 0; i < CHUNK; ++i) x[i] = 0.0f;
    } else if (!coded) {
      F32::widen(F32::load(exact + row * F32::row_bytes(head_dim), chunk, head_dim), x);
    } else if (values) {
      value_chunk<C>(slab, row, chunk, head_dim, x);
    } else {
      key_chunk<C>(slab, row, chunk, head_dim, x);
    }
    store_chunk(to, chunk, x);
  }
}

#define KV_GATHER(name, C, Out)                                                                                     \
  extern "C" __global__ void __launch_bounds__(GATHER_THREADS)                                                      \
      name(Out* out, const byte* slab, const byte* exact, const unsigned* blocks, const unsigned* positions,        \
           const unsigned* lanes, int head_dim, int block_size, int row_stride, int values) {                       \
    gather<C, Out>(out, slab, exact, blocks, positions, lanes, head_dim, block_size, row_stride, values);           \
  }                                                                                                                 \
  KV_EXPORT(name)

#define KV_GATHERS(name, C)               \
  KV_GATHER(name##_to_f32, C, float)      \
  KV_GATHER(name##_to_f16, C, __half)

KV_GATHERS(gather_pages_f32, F32)
KV_GATHERS(gather_pages_f16, F16)
KV_GATHERS(gather_pages_bf16, BF16)
KV_GATHERS(gather_pages_int8, Int8)
KV_GATHERS(gather_pages_int4, Int4)
KV_GATHERS(gather_pages_int2, Int2)
