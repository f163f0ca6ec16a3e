// Weighted sums of rows of V: the last stage of decode, and of a read set whose rows are staged.
#pragma once

#include "cells.cuh"

// Where rows of V lie.
struct ValueSource {
  const byte* slab;            // rows in codes, or plain
  const byte* exact;           // rows not in codes, where the cell is one of codes; F32
  const unsigned* rows;        // row per slot of the range, in shared memory; NO_ROW for one that is not read
  const unsigned* exact_rows;  // the same in `exact`
  int head_dim;
};

template <int G>
KV_DEVICE void clear(float (&acc)[G][CHUNK]) {
#pragma unroll
  for (int g = 0; g < G; ++g) {
#pragma unroll
    for (int i = 0; i < CHUNK; ++i) acc[g][i] = 0.0f;
  }
}

KV_DEVICE unsigned max_zero(unsigned a, unsigned less) { return a > less ? a - less : 0; }

template <int G>
KV_DEVICE void add_scaled(float (&acc)[G][CHUNK], const float* weights, const float (&value)[CHUNK]) {
#pragma unroll
  for (int g = 0; g < G; ++g) {
    const float weight = weights[g];
#pragma unroll
    for (int i = 0; i < CHUNK; ++i) acc[g][i] = fmaf(weight, value[i], acc[g][i]);
  }
}

// Adds the rows `from .. to` of the range, `weights` being `[slot][G]`. A warp has 32 * 8 / D rows at a time, and a few
// such steps of loads in flight; a thread keeps 8 channels of all G heads. The first `coded` slots are in codes, where
// the cell is one of codes.
template <class C, int D, int G>
KV_DEVICE void add_values(float (&acc)[G][CHUNK], const float* weights, const ValueSource& source, int from, int to,
                          int coded) {
  constexpr int TPR = D / CHUNK, ROWS = 32 / TPR, AHEAD = 16 / C::registers, MOST = G == 8 ? 4 : 8;
  constexpr int UNROLL = AHEAD > MOST ? MOST : AHEAD;
  constexpr bool mixed = C::keys == Keys::PageAffine;
  const int lane = threadIdx.x % 32, chunk = lane % TPR, own = lane / TPR, head_dim = source.head_dim;
  if (chunk >= head_dim / CHUNK) return;
  const int coded_to = mixed ? min(to, coded) : to;
  const int whole_steps = from + (max(coded_to - from, 0) + ROWS - 1) / ROWS * ROWS;
  const typename C::Values values = C::values(source.slab, chunk, head_dim);
  for (int at = from; at < whole_steps; at += ROWS * UNROLL) {
    typename C::Value raw[UNROLL];
    int slots[UNROLL];
#pragma unroll
    for (int u = 0; u < UNROLL; ++u) {
      const int slot = at + u * ROWS + own;
      const unsigned row = slot < coded_to ? source.rows[slot] : NO_ROW;
      // A row that is not read is one of zeros, with any slot's weight: cheaper than to go around it.
      slots[u] = min(slot, coded_to - 1);
      raw[u] = C::no_value();
      if (row != NO_ROW) raw[u] = C::load_value(values, row);
    }
#pragma unroll
    for (int u = 0; u < UNROLL; ++u) {
      float value[CHUNK];
      C::widen_value(raw[u], value);
      add_scaled(acc, weights + slots[u] * G, value);
    }
  }
  if constexpr (mixed) {
    for (int slot = max(from, coded) + own; slot < to; slot += ROWS) {
      const unsigned row = source.exact_rows[slot];
      if (row == NO_ROW) continue;
      float value[CHUNK];
      F32::widen(F32::load(source.exact + row * F32::row_bytes(head_dim), chunk, head_dim), value);
      add_scaled(acc, weights + slot * G, value);
    }
  }
}

// Sums over the rows of each warp, then over the warps in order, into `sums`: `[G][D]` in shared memory, which nobody
// reads any more. Ends with a barrier.
template <int D, int G, int WARPS>
KV_DEVICE void sum_over_warps(float (&acc)[G][CHUNK], float* sums) {
  constexpr int TPR = D / CHUNK;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
#pragma unroll
  for (int mask = TPR; mask < 32; mask *= 2) {
#pragma unroll
    for (int g = 0; g < G; ++g) {
#pragma unroll
      for (int i = 0; i < CHUNK; ++i) acc[g][i] += __shfl_xor_sync(ALL_LANES, acc[g][i], mask);
    }
  }
#pragma unroll
  for (int w = 0; w < WARPS; ++w) {
    if (warp == w && lane < TPR) {
#pragma unroll
      for (int g = 0; g < G; ++g) {
#pragma unroll
        for (int i = 0; i < CHUNK; ++i) {
          float& sum = sums[g * D + lane * CHUNK + i];
          sum = w == 0 ? acc[g][i] : sum + acc[g][i];
        }
      }
    }
    __syncthreads();
  }
}
