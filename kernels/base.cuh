// What every kernel shares: constants, the lane that a thread block works on, loads, warp and block reductions.
//
// Shapes. Queries and outputs are f32, `[sequence][head][head_dim]`; query head `i` reads KV head `i / group`. Pages are
// `[slot][head_dim]`, K and V in slabs apart, the page of block `id` at `id * block_size` rows.
//
// Same bits: no float is ever added atomically, every sum has an order that neither the grid nor the device changes.
#pragma once

#include <stddef.h>
#include <stdint.h>

#ifdef KV_HOST
#include "shim.h"
#else
#include <cuda_bf16.h>
#include <cuda_fp16.h>
// A block's own memory, an array of `count`.
#define KV_SHARED(type, name, count) __shared__ __align__(16) type name[count]
// Names a kernel to whoever loads it by name; nvcc needs no help there.
#define KV_EXPORT(name)
// Says what an address must be a multiple of; checked where the kernels run on the host.
#define KV_ALIGNED(address, bytes)
// Keeps an address in a register, where the compiler would work it out again at each use.
#define KV_KEEP(address) asm("" : "+l"(address))
#endif

#define KV_DEVICE __device__ __forceinline__

typedef unsigned char byte;

// Stands in a lane's positions for an evicted token (`attention::HOLE`).
constexpr unsigned HOLE = 0xffffffffu;
// A row that is not read.
constexpr unsigned NO_ROW = 0xffffffffu;
// Slots per partial result. A constant, so that no device and no batch changes the order of a sum.
constexpr int SPLIT = 256;
constexpr unsigned ALL_LANES = 0xffffffffu;

// One (sequence, KV head): eight words in the array `lanes`, `[sequence][kv_head]`, which begins at 16 bytes. While a
// layer's heads are one gang, its lanes share table and positions and `add` is the KV head; after they part each has its own
// and `add` is 0.
struct Lane {
  unsigned table;      // its first entry in `blocks`
  unsigned positions;  // its first entry in `positions`
  unsigned slots;      // filled slots
  unsigned add;        // to be added to each block id
  unsigned k_coded;    // leading slots whose keys are in codes, whole pages; pages of codes that are filled later
  unsigned v_coded;    // the same of values, any number
  unsigned query;      // position of the (first) query, which sees positions up to its own
  unsigned exact;      // first entry in `blocks` of the table of exact pages, for slots not in codes
};

KV_DEVICE Lane lane_at(const unsigned* lanes, int index) {
  const uint4* words = reinterpret_cast<const uint4*>(lanes) + 2 * static_cast<size_t>(index);
  KV_ALIGNED(words, 16);
  const uint4 a = words[0], b = words[1];
  return Lane{a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w};
}

// The row of a slot in a slab, by the table that begins at `table`.
KV_DEVICE unsigned row_of(const unsigned* blocks, unsigned table, unsigned add, unsigned slot, int block_size) {
  return (blocks[table + slot / block_size] + add) * block_size + slot % block_size;
}

// 16, 4 and 2 bytes that are read once: they are not kept in the L1 cache.
KV_DEVICE uint4 load16(const byte* from) {
  KV_ALIGNED(from, 16);
  return __ldcs(reinterpret_cast<const uint4*>(from));
}
KV_DEVICE unsigned load4(const byte* from) {
  KV_ALIGNED(from, 4);
  return __ldcs(reinterpret_cast<const unsigned*>(from));
}
KV_DEVICE unsigned load2(const byte* from) {
  KV_ALIGNED(from, 2);
  return __ldcs(reinterpret_cast<const unsigned short*>(from));
}

KV_DEVICE float half_bits(unsigned bits) { return __half2float(__ushort_as_half(static_cast<unsigned short>(bits))); }

KV_DEVICE float minus_infinity() { return __int_as_float(static_cast<int>(0xff800000u)); }

KV_DEVICE float warp_max(float x) {
#pragma unroll
  for (int mask = 16; mask > 0; mask /= 2) x = fmaxf(x, __shfl_xor_sync(ALL_LANES, x, mask));
  return x;
}
KV_DEVICE float warp_min(float x) {
#pragma unroll
  for (int mask = 16; mask > 0; mask /= 2) x = fminf(x, __shfl_xor_sync(ALL_LANES, x, mask));
  return x;
}
KV_DEVICE float warp_sum(float x) {
#pragma unroll
  for (int mask = 16; mask > 0; mask /= 2) x += __shfl_xor_sync(ALL_LANES, x, mask);
  return x;
}
KV_DEVICE unsigned warp_sum(unsigned x) {
#pragma unroll
  for (int mask = 16; mask > 0; mask /= 2) x += __shfl_xor_sync(ALL_LANES, x, mask);
  return x;
}
KV_DEVICE unsigned warp_min(unsigned x) {
#pragma unroll
  for (int mask = 16; mask > 0; mask /= 2) x = min(x, __shfl_xor_sync(ALL_LANES, x, mask));
  return x;
}

// Over a block of `WARPS` warps, the same result in every thread. `shared` has `WARPS` cells and may be used again at once.
template <int WARPS, class T, class Reduce>
KV_DEVICE T block_reduce(T x, T* shared, Reduce reduce) {
  const int warp = threadIdx.x / 32;
  x = reduce.warp(x);
  __syncthreads();
  if (threadIdx.x % 32 == 0) shared[warp] = x;
  __syncthreads();
  T all = shared[0];
#pragma unroll
  for (int w = 1; w < WARPS; ++w) all = reduce.pair(all, shared[w]);
  return all;
}

struct Sum {
  template <class T> KV_DEVICE T warp(T x) const { return warp_sum(x); }
  template <class T> KV_DEVICE T pair(T a, T b) const { return a + b; }
};
struct Max {
  KV_DEVICE float warp(float x) const { return warp_max(x); }
  KV_DEVICE float pair(float a, float b) const { return fmaxf(a, b); }
};
struct Min {
  KV_DEVICE unsigned warp(unsigned x) const { return warp_min(x); }
  KV_DEVICE unsigned pair(unsigned a, unsigned b) const { return min(a, b); }
};

// The window of a layer that has none.
constexpr unsigned ALL_POSITIONS = 0xffffffffu;

// Whether a query sees a position: its own, and those less than `window` before it.
KV_DEVICE bool is_seen(unsigned position, unsigned query, unsigned window) {
  return position != HOLE && position <= query && query - position < window;
}
// A score as the layer bends it, with a cap or without (0); where nothing is seen nothing is.
KV_DEVICE float capped(float score, float cap) {
  return cap > 0.0f && score > minus_infinity() ? cap * tanhf(score / cap) : score;
}

// `e^(x - max)` where there is anything at all.
KV_DEVICE float exp_from(float x, float max) { return max == minus_infinity() ? 0.0f : expf(x - max); }
