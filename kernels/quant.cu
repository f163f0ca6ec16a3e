// Exact rows into codes, the bytes of `src/quant/codec.rs` (KIVI, arXiv 2402.02750, section 3.2). Back out of codes go
// decode_codes.cu, which reads them as they lie, and gather.cu.
//
// quantise_keys_{int4,int2}: grid (pages, kv_heads), block 64: a thread per 4 channels of a page of 32 slots.
//   Whole pages `first_page ..` of the lanes' exact tables go into `coded` by their tables; holes, and slots behind the
//   lane's count, have no part in a scale and get codes of 0.
// quantise_values_{int8,int4,int2}: grid (ceil(rows / 8), kv_heads), block 256: a warp per row, slots `first ..` `rows` of
//   them. int8: one scale per row, for keys too; int4, int2: per 32 channels. Rows of holes become zeros.
// `exact` [row][head_dim] f32. Lanes of one sequence; head_dim at most 256.
// Registers: at most 64, no spills.
#include "affine.cuh"
#include "cells.cuh"

constexpr int KEY_THREADS = 64;
constexpr int KEY_CHANNELS = 4;
constexpr int VALUE_THREADS = 256;
constexpr int VALUE_WARPS = VALUE_THREADS / 32;

KV_DEVICE bool is_live(const unsigned* positions, const Lane& lane, unsigned slot) {
  return slot < lane.slots && positions[lane.positions + slot] != HOLE;
}

template <class C>
KV_DEVICE void quantise_page(byte* coded, const byte* exact, const unsigned* blocks, const unsigned* positions,
                             const unsigned* lanes, int head_dim, int first_page) {
  constexpr float levels = (1 << C::bits) - 1;
  const Lane lane = lane_at(lanes, blockIdx.y);
  const unsigned page = first_page + blockIdx.x, first_slot = page * KIVI_PAGE;
  const int channel = threadIdx.x * KEY_CHANNELS;
  if (channel >= head_dim) return;
  unsigned live = 0;
  for (int t = 0; t < KIVI_PAGE; ++t) live |= static_cast<unsigned>(is_live(positions, lane, first_slot + t)) << t;
  const size_t exact_row = static_cast<size_t>(blocks[lane.exact + page] + lane.add) * KIVI_PAGE;
  const float4* from = reinterpret_cast<const float4*>(exact + exact_row * F32::row_bytes(head_dim)) + threadIdx.x;
  KV_ALIGNED(from, 16);
  const int row_quads = head_dim / KEY_CHANNELS;
  Extent extents[KEY_CHANNELS];
#pragma unroll
  for (int j = 0; j < KEY_CHANNELS; ++j) extents[j] = no_extent();
  for (int t = 0; t < KIVI_PAGE; ++t) {
    if (!(live >> t & 1u)) continue;
    const float4 x = from[t * row_quads];
    widen(extents[0], x.x);
    widen(extents[1], x.y);
    widen(extents[2], x.z);
    widen(extents[3], x.w);
  }
  Affine affines[KEY_CHANNELS];
#pragma unroll
  for (int j = 0; j < KEY_CHANNELS; ++j) affines[j] = fit(extents[j], levels);

  const unsigned id = blocks[lane.table + page] + lane.add;
  byte* codes = coded + static_cast<size_t>(id) * KIVI_PAGE * C::row_bytes(head_dim);
  for (int t = 0; t < KIVI_PAGE; ++t) {
    unsigned packed = 0;
    if (live >> t & 1u) {
      const float4 x = from[t * row_quads];
      const float xs[KEY_CHANNELS] = {x.x, x.y, x.z, x.w};
#pragma unroll
      for (int j = 0; j < KEY_CHANNELS; ++j) packed |= code_of(affines[j], xs[j], levels) << C::bits * j;
    }
    byte* row = codes + t * C::code_bytes(head_dim);
    if constexpr (C::bits == 4) {
      reinterpret_cast<unsigned short*>(row)[threadIdx.x] = static_cast<unsigned short>(packed);
    } else {
      row[threadIdx.x] = static_cast<byte>(packed);
    }
  }
  unsigned short* scales = reinterpret_cast<unsigned short*>(codes + KIVI_PAGE * C::code_bytes(head_dim));
#pragma unroll
  for (int j = 0; j < KEY_CHANNELS; ++j) {
    scales[channel + j] = static_cast<unsigned short>(affines[j].scale);
    scales[head_dim + channel + j] = static_cast<unsigned short>(affines[j].zero);
  }
}

#define KV_QUANTISE_KEYS(name, C)                                                                                     \
  extern "C" __global__ void __launch_bounds__(KEY_THREADS)                                                           \
      name(byte* coded, const byte* exact, const unsigned* blocks, const unsigned* positions, const unsigned* lanes,  \
           int head_dim, int first_page) {                                                                            \
    quantise_page<C>(coded, exact, blocks, positions, lanes, head_dim, first_page);                                   \
  }                                                                                                                   \
  KV_EXPORT(name)

KV_QUANTISE_KEYS(quantise_keys_int4, Int4)
KV_QUANTISE_KEYS(quantise_keys_int2, Int2)

// A chunk's codes, packed from the low bits up.
template <int BITS>
KV_DEVICE void put_codes(byte* row, int chunk, const Affine& affine, const float (&x)[CHUNK]) {
  constexpr float levels = (1 << BITS) - 1;
  unsigned words[2] = {0, 0};
#pragma unroll
  for (int i = 0; i < CHUNK; ++i) words[i * BITS / 32] |= code_of(affine, x[i], levels) << i * BITS % 32;
  byte* to = row + chunk * BITS;
  if constexpr (BITS == 2) {
    *reinterpret_cast<unsigned short*>(to) = static_cast<unsigned short>(words[0]);
  } else {
    KV_ALIGNED(to, 4);
    reinterpret_cast<unsigned*>(to)[0] = words[0];
    if constexpr (BITS == 8) reinterpret_cast<unsigned*>(to)[1] = words[1];
  }
}

template <class C>
KV_DEVICE void quantise_rows(byte* coded, const byte* exact, const unsigned* blocks, const unsigned* positions,
                             const unsigned* lanes, int head_dim, int block_size, int first, int rows) {
  constexpr bool whole_row = C::bits == 8;
  const int i = blockIdx.x * VALUE_WARPS + threadIdx.x / 32, chunk = threadIdx.x % 32;
  if (i >= rows) return;
  const Lane lane = lane_at(lanes, blockIdx.y);
  const unsigned slot = first + i;
  const bool live = is_live(positions, lane, slot), own = chunk < head_dim / CHUNK;
  byte* row = coded + row_of(blocks, lane.table, lane.add, slot, block_size) * C::row_bytes(head_dim);
  float x[CHUNK];
  F32::widen(F32::none(), x);
  Extent extent = no_extent();
  if (live && own) {
    const byte* from = exact + row_of(blocks, lane.exact, lane.add, slot, block_size) * F32::row_bytes(head_dim);
    F32::widen(F32::load(from, chunk, head_dim), x);
#pragma unroll
    for (int j = 0; j < CHUNK; ++j) widen(extent, x[j]);
  }
  // Four threads share a group of 32 channels, or all of them the row.
  constexpr int widest = whole_row ? 16 : 2;
#pragma unroll
  for (int mask = widest; mask > 0; mask /= 2) {
    extent.min = fminf(extent.min, __shfl_xor_sync(ALL_LANES, extent.min, mask));
    extent.max = fmaxf(extent.max, __shfl_xor_sync(ALL_LANES, extent.max, mask));
  }
  if (!own) return;
  const Affine affine = live ? fit(extent, (1 << C::bits) - 1) : Affine{0, 0};
  put_codes<C::bits>(row, chunk, affine, x);
  if constexpr (whole_row) {
    if (chunk == 0) {
      KV_ALIGNED(row + head_dim, 4);
      *reinterpret_cast<unsigned*>(row + head_dim) = affine.scale | affine.zero << 16;
    }
  } else if (chunk % (KIVI_CHANNELS / CHUNK) == 0) {
    const int groups = head_dim / KIVI_CHANNELS, group = chunk * CHUNK / KIVI_CHANNELS;
    unsigned short* scales = reinterpret_cast<unsigned short*>(row + C::code_bytes(head_dim));
    scales[group] = static_cast<unsigned short>(affine.scale);
    scales[groups + group] = static_cast<unsigned short>(affine.zero);
  }
}

#define KV_QUANTISE_VALUES(name, C)                                                                                   \
  extern "C" __global__ void __launch_bounds__(VALUE_THREADS)                                                         \
      name(byte* coded, const byte* exact, const unsigned* blocks, const unsigned* positions, const unsigned* lanes,  \
           int head_dim, int block_size, int first, int rows) {                                                       \
    quantise_rows<C>(coded, exact, blocks, positions, lanes, head_dim, block_size, first, rows);                      \
  }                                                                                                                   \
  KV_EXPORT(name)

KV_QUANTISE_VALUES(quantise_values_int8, Int8)
KV_QUANTISE_VALUES(quantise_values_int4, Int4)
KV_QUANTISE_VALUES(quantise_values_int2, Int2)
