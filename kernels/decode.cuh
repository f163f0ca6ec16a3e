// Decode: one query token per sequence against the pages of its lanes, split over the context by fixed ranges of SPLIT
// slots (split-K decode as in Flash-Decoding, and PagedAttention's v2 kernel, arXiv 2309.06180; here with a sum order
// that never depends on the device, and with every score at hand).
//
// A block of 128 threads takes one (range, KV head, sequence) and up to G query heads of the KV head, so K and V are read
// once for all of them:
//   1 scores: rows of K over the warps, 64 slots each; EPL elements of a row per thread, so that the products of G heads
//     fit registers and a warp has several rows of loads in flight; sums over the threads of a row by halving exchange;
//   2 the range's maximum, e^(score - maximum) and sum per head, in shared memory;
//   3 weighted sum: 8 elements of a row of V per thread.
// `decode_combine` puts the ranges together.
#pragma once

#include "cells.cuh"
#include "values.cuh"

// Threads of a block, and the blocks that should fit a multiprocessor: 128 registers per thread.
constexpr int DECODE_THREADS = 128;

template <class C, int D, int G>
struct Geometry {
  // Elements of a row of K per thread: as many as leave room for the queries of G heads.
  static constexpr int EPL = G == 1 ? 32 : G == 4 ? 16 : 8;
  static constexpr int CHUNKS = EPL / CHUNK;
  // Threads per row, rows of a warp at a time, and how often over before anything is computed.
  static constexpr int TPR = D / EPL;
  static constexpr int ROWS = 32 / TPR;
  static constexpr int IN_FLIGHT = 16 / C::registers / CHUNKS;
  static constexpr int AHEAD = IN_FLIGHT < 1 ? 1 : IN_FLIGHT > 4 ? 4 : IN_FLIGHT;
  static constexpr int UNROLL = AHEAD * ROWS > KIVI_PAGE ? KIVI_PAGE / ROWS : AHEAD;
  static_assert(TPR >= G && TPR <= 32, "a row's threads share its heads out");
};

// Which of G heads a thread's first sum is of, and what it is left with in the end; its sum `g` is of head `first_head ^ g`.
template <int G, int TPR>
KV_DEVICE int first_head(int part) {
  return part / (TPR / G);
}

// Sums of G values over the TPR threads of a row. Each exchange halves the values that a thread still holds, so the last
// threads hold one head each: fewer shuffles than G separate sums. What a thread gives away is always the upper half of
// what it holds, since the order of its heads is its own (`first_head`): nothing has to be selected.
template <int G, int TPR>
KV_DEVICE float sum_heads(float (&s)[G]) {
  int n = G;
#pragma unroll
  for (int mask = TPR / 2; mask > 0; mask /= 2) {
    if (n > 1) {
      n /= 2;
#pragma unroll
      for (int i = 0; i < n; ++i) s[i] += __shfl_xor_sync(ALL_LANES, s[i + n], mask);
    } else {
      s[0] += __shfl_xor_sync(ALL_LANES, s[0], mask);
    }
  }
  return s[0];
}

// Plain products of a chunk of K with the queries.
template <int G, int EPL>
KV_DEVICE void add_products(float (&sum)[G], const float (&query)[G][EPL], const float (&key)[CHUNK], int chunk) {
#pragma unroll
  for (int g = 0; g < G; ++g) {
#pragma unroll
    for (int i = 0; i < CHUNK; ++i) sum[g] = fmaf(query[g][chunk * CHUNK + i], key[i], sum[g]);
  }
}

// The arguments that all decode kernels share.
struct DecodeArgs {
  float* partial;           // [sequence][head][split][head_dim]: sums of e^(s - m) V
  float* max_sum;           // [sequence][head][split][2]: m and the sum of e^(s - m)
  float* scores;            // [sequence][head][score_stride]: scaled products, -inf where nothing is seen; or null
  float* block_sums;        // [sequence][head][block_stride]: sums of e^(s - m) by block of the table; or null
  const unsigned* read;     // marks [sequence][head][read_stride] of the slots that a head reads; null for all
  const float* queries;     // [sequence][head][head_dim]
  const byte* k;            // slab of keys
  const byte* v;            // slab of values; null for scores alone
  const byte* exact_k;      // slabs of pages not in codes (Int4, Int2)
  const byte* exact_v;
  const unsigned* blocks;   // block tables
  const unsigned* positions;
  const unsigned* lanes;
  int heads, kv_heads, head_dim, block_size, splits, score_stride, block_stride, read_stride;
  float scale;
  unsigned window;  // a query sees its own position and those less than so many before it; ALL_POSITIONS for all
  float softcap;    // a score s becomes softcap * tanh(s / softcap) (Gemma 2, arXiv 2408.00118); 0 for none
};

// Scores of rows `first .. first + 32` of the range, all of one kind, by one warp. `Cell` is how these rows lie: the
// kernel's own, or F32 for exact ones.
template <class C, class Cell, int D, int G>
KV_DEVICE void score_page(float* weights, const unsigned* rows, const float* queries, const byte* slab,
                          unsigned page_id, int head_dim, int first) {
  using Geo = Geometry<Cell, D, G>;
  const int lane = threadIdx.x % 32, part = lane % Geo::TPR, own = lane / Geo::TPR;
  const int chunks = head_dim / CHUNK, head = first_head<G, Geo::TPR>(part);
  float query[G][Geo::EPL];
  float bias[G];
#pragma unroll
  for (int g = 0; g < G; ++g) bias[g] = 0.0f;
#pragma unroll
  for (int c = 0; c < Geo::CHUNKS; ++c) {
    const int chunk = c * Geo::TPR + part;
    float scales[CHUNK], zeros[CHUNK];
    if constexpr (Cell::keys == Keys::PageAffine) {
      // q . (code * scale + zero) = (q * scale) . code + q . zero, the scales once per page.
      F16::Raw s = F16::none(), z = F16::none();
      if (chunk < chunks) {
        const byte* at = Cell::key_scales(slab, page_id, head_dim);
        s = F16::load(at, chunk, head_dim);
        z = F16::load(at + 2 * head_dim, chunk, head_dim);
      }
      F16::widen(s, scales);
      F16::widen(z, zeros);
    }
#pragma unroll
    for (int g = 0; g < G; ++g) {
#pragma unroll
      for (int i = 0; i < CHUNK; ++i) {
        float q = queries[(head ^ g) * D + chunk * CHUNK + i];
        if constexpr (Cell::keys == Keys::PageAffine) {
          bias[g] = fmaf(q, zeros[i], bias[g]);
          q *= scales[i];
        } else if constexpr (Cell::keys == Keys::RowAffine) {
          bias[g] += q;
        }
        query[g][c * CHUNK + i] = q;
      }
    }
  }
  // A thread's first chunk of each row, counted within the page where rows lie in pages.
  const byte* first_key = slab;
  size_t key_bytes = Cell::row_bytes(head_dim);
  if constexpr (Cell::keys == Keys::PageAffine) {
    first_key = Cell::page_codes(slab, page_id, head_dim);
    key_bytes = Cell::code_bytes(head_dim);
  }
  const Column keys{first_key + part * Cell::chunk_bytes, key_bytes}, affines{slab + head_dim, key_bytes};
  for (int at = 0; at < KIVI_PAGE; at += Geo::ROWS * Geo::UNROLL) {
    typename Cell::Raw raw[Geo::UNROLL][Geo::CHUNKS];
    unsigned affine[Geo::UNROLL];
#pragma unroll
    for (int u = 0; u < Geo::UNROLL; ++u) {
      const int in_page = at + u * Geo::ROWS + own;
      const unsigned row = rows[first + in_page];
      const byte* from = keys.at(Cell::keys == Keys::PageAffine ? static_cast<unsigned>(in_page) : row);
      affine[u] = 0;
      if constexpr (Cell::keys == Keys::RowAffine) {
        if (row != NO_ROW) affine[u] = load4(affines.at(row));
      }
#pragma unroll
      for (int c = 0; c < Geo::CHUNKS; ++c) {
        raw[u][c] = Cell::none();
        if (row != NO_ROW && c * Geo::TPR + part < chunks) raw[u][c] = Cell::load(from, c * Geo::TPR, head_dim);
      }
    }
#pragma unroll
    for (int u = 0; u < Geo::UNROLL; ++u) {
      float sum[G];
#pragma unroll
      for (int g = 0; g < G; ++g) sum[g] = Cell::keys == Keys::PageAffine ? bias[g] : 0.0f;
#pragma unroll
      for (int c = 0; c < Geo::CHUNKS; ++c) {
        float key[CHUNK];
        Cell::widen(raw[u][c], key);
        add_products(sum, query, key, c);
      }
      if constexpr (Cell::keys == Keys::RowAffine) {
        const float scale = half_bits(affine[u] & 0xffffu), zero = half_bits(affine[u] >> 16);
#pragma unroll
        for (int g = 0; g < G; ++g) sum[g] = fmaf(scale, sum[g], zero * bias[g]);
      }
      const float score = sum_heads<G, Geo::TPR>(sum);
      // The upper bits of `part` chose the head, the others hold the same sum.
      if (part % (Geo::TPR / G) == 0) {
        const int slot = first + at + u * Geo::ROWS + own;
        weights[slot * G + head] = rows[slot] == NO_ROW ? minus_infinity() : score;
      }
    }
  }
}

template <class C, int D, int G>
KV_DEVICE void decode_split(const DecodeArgs& a) {
  constexpr bool paged_codes = C::keys == Keys::PageAffine;
  constexpr int WARPS = DECODE_THREADS / 32;
  constexpr int SLOTS_PER_WARP = SPLIT / WARPS;
  KV_SHARED(float, queries, G * D);
  KV_SHARED(float, weights, SPLIT * G);
  KV_SHARED(unsigned, rows, SPLIT);
  KV_SHARED(unsigned, exact_rows, paged_codes ? SPLIT : 1);
  KV_SHARED(float, reduced, WARPS * G);

  const int group = a.heads / a.kv_heads, parts = (group + G - 1) / G;
  const int kv_head = blockIdx.y / parts, first_of_group = blockIdx.y % parts * G;
  const int heads = min(G, group - first_of_group);
  const size_t sequence = blockIdx.z;
  const size_t first_head = sequence * a.heads + kv_head * group + first_of_group;
  const Lane lane = lane_at(a.lanes, static_cast<int>(sequence) * a.kv_heads + kv_head);
  const unsigned base = blockIdx.x * SPLIT;
  if (base >= lane.slots) return;
  const int count = static_cast<int>(min(static_cast<unsigned>(SPLIT), lane.slots - base));
  const int tid = threadIdx.x, warp = tid / 32;

  for (int i = tid; i < SPLIT; i += DECODE_THREADS) {
    const unsigned slot = base + i;
    const unsigned position = i < count ? a.positions[lane.positions + slot] : HOLE;
    bool seen = is_seen(position, lane.query, a.window);
    if (a.read != nullptr && seen) {
      unsigned any = 0;
      for (int g = 0; g < heads; ++g) any |= a.read[(first_head + g) * a.read_stride + slot / 32];
      seen = any >> slot % 32 & 1u;
    }
    rows[i] = seen ? row_of(a.blocks, lane.table, lane.add, slot, a.block_size) : NO_ROW;
    if constexpr (paged_codes) {
      const bool exact = seen && slot >= min(lane.k_coded, lane.v_coded);
      exact_rows[i] = exact ? row_of(a.blocks, lane.exact, lane.add, slot, a.block_size) : NO_ROW;
    }
  }
  for (int i = tid; i < G * D; i += DECODE_THREADS) {
    const int g = i / D, e = i % D;
    const bool there = g < heads && e < a.head_dim;
    queries[i] = there ? a.queries[(first_head + g) * a.head_dim + e] * a.scale : 0.0f;
  }
  __syncthreads();

  for (int first = warp * SLOTS_PER_WARP; first < (warp + 1) * SLOTS_PER_WARP && first < count; first += KIVI_PAGE) {
    if constexpr (paged_codes) {
      if (base + first < lane.k_coded) {
        const unsigned page = a.blocks[lane.table + (base + first) / KIVI_PAGE] + lane.add;
        score_page<C, C, D, G>(weights, rows, queries, a.k, page, a.head_dim, first);
      } else {
        score_page<C, F32, D, G>(weights, exact_rows, queries, a.exact_k, 0, a.head_dim, first);
      }
    } else {
      score_page<C, C, D, G>(weights, rows, queries, a.k, 0, a.head_dim, first);
    }
  }
  __syncthreads();

  if (a.softcap > 0.0f) {
    for (int i = tid; i < G * count; i += DECODE_THREADS) weights[i] = capped(weights[i], a.softcap);
    __syncthreads();
  }
  if (a.read != nullptr) {
    for (int i = tid; i < heads * count; i += DECODE_THREADS) {
      const int g = i / count, slot = i % count;
      const unsigned word = a.read[(first_head + g) * a.read_stride + (base + slot) / 32];
      if (!(word >> slot % 32 & 1u)) weights[slot * G + g] = minus_infinity();
    }
    __syncthreads();
  }
  if (a.scores != nullptr) {
    for (int i = tid; i < heads * count; i += DECODE_THREADS) {
      const int g = i / count, slot = i % count;
      a.scores[(first_head + g) * a.score_stride + base + slot] = weights[slot * G + g];
    }
  }
  // Threads of one head are G apart, so that a warp reads shared memory in a row.
  const int g = tid % G;
  float max = minus_infinity();
  for (int slot = tid / G; slot < count; slot += DECODE_THREADS / G) max = fmaxf(max, weights[slot * G + g]);
#pragma unroll
  for (int mask = 16; mask >= G; mask /= 2) max = fmaxf(max, __shfl_xor_sync(ALL_LANES, max, mask));
  if (tid % 32 < G) reduced[warp * G + g] = max;
  __syncthreads();
  max = reduced[g];
#pragma unroll
  for (int w = 1; w < WARPS; ++w) max = fmaxf(max, reduced[w * G + g]);
  float sum = 0.0f;
  for (int slot = tid / G; slot < count; slot += DECODE_THREADS / G) {
    const float weight = exp_from(weights[slot * G + g], max);
    weights[slot * G + g] = weight;
    sum += weight;
  }
#pragma unroll
  for (int mask = 16; mask >= G; mask /= 2) sum += __shfl_xor_sync(ALL_LANES, sum, mask);
  __syncthreads();
  if (tid % 32 < G) reduced[warp * G + g] = sum;
  __syncthreads();
  if (tid < heads) {
    sum = reduced[tid];
#pragma unroll
    for (int w = 1; w < WARPS; ++w) sum += reduced[w * G + tid];
    float* to = a.max_sum + ((first_head + tid) * a.splits + blockIdx.x) * 2;
    to[0] = max;
    to[1] = sum;
  }
  if (a.block_sums != nullptr) {
    // Some threads share a block of the table, so that no warp is long behind the others, which go on to V.
    constexpr int MOST = G == 1 ? 16 : 4;
    const int size = a.block_size, share = min(size, MOST), own = (count + size - 1) / size, all = heads * own * share;
    for (int first = 0; first < all; first += DECODE_THREADS) {
      const int i = first + tid, part = i % share, block = i / share % own, head = i / share / own;
      float of_block = 0.0f;
      if (i < all) {
        for (int slot = block * size + part; slot < min((block + 1) * size, count); slot += share) {
          of_block += weights[slot * G + head];
        }
      }
      for (int mask = share / 2; mask > 0; mask /= 2) of_block += __shfl_xor_sync(ALL_LANES, of_block, mask);
      if (i < all && part == 0) {
        a.block_sums[(first_head + head) * a.block_stride + base / size + block] = of_block;
      }
    }
  }
  if (a.v == nullptr) return;

  float acc[G][CHUNK];
  clear(acc);
  const ValueSource source = {a.v, a.exact_v, rows, exact_rows, a.head_dim};
  const int coded = static_cast<int>(min(max_zero(lane.v_coded, base), static_cast<unsigned>(SPLIT)));
  const int to = min((warp + 1) * SLOTS_PER_WARP, count);
  add_values<C, D, G>(acc, weights, source, warp * SLOTS_PER_WARP, to, coded);
  sum_over_warps<D, G, WARPS>(acc, queries);
  for (int i = tid; i < heads * a.head_dim; i += DECODE_THREADS) {
    const int head = i / a.head_dim, e = i % a.head_dim;
    a.partial[((first_head + head) * a.splits + blockIdx.x) * a.head_dim + e] = queries[head * D + e];
  }
}

#define KV_DECODE(name, C, D, G)                                                                                      \
  extern "C" __global__ void __launch_bounds__(DECODE_THREADS, 4)                                                     \
      name(float* partial, float* max_sum, float* scores, float* block_sums, const unsigned* read,                    \
           const float* queries, const byte* k,                                                                       \
           const byte* v, const byte* exact_k, const byte* exact_v, const unsigned* blocks, const unsigned* positions, \
           const unsigned* lanes, int heads, int kv_heads, int head_dim, int block_size, int splits,                  \
           int score_stride, int block_stride, int read_stride, float scale, unsigned window, float softcap) {        \
    decode_split<C, D, G>(DecodeArgs{partial, max_sum, scores, block_sums, read, queries, k, v, exact_k, exact_v, blocks, \
                                     positions, lanes, heads, kv_heads, head_dim, block_size, splits, score_stride,   \
                                     block_stride, read_stride, scale, window, softcap});                             \
  }                                                                                                                   \
  KV_EXPORT(name)

#define KV_DECODE_GROUPS(name, C, D) \
  KV_DECODE(name##_g1, C, D, 1)      \
  KV_DECODE(name##_g4, C, D, 4)      \
  KV_DECODE(name##_g8, C, D, 8)

#define KV_DECODE_SIZES(name, C)         \
  KV_DECODE_GROUPS(name##_d64, C, 64)    \
  KV_DECODE_GROUPS(name##_d128, C, 128)  \
  KV_DECODE_GROUPS(name##_d256, C, 256)
