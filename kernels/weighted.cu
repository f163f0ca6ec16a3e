// Weighted sum over staged rows of V: the last stage of a read set (KCache, arXiv 2404.18057). Every query head uses the
// rows that it asked for.
//
// weighted_{f32,f16,bf16,int8,int4,int2}_{d128,d256}: grid (ceil(most rows / 256), kv_heads * ceil(group / 8), sequences),
//   block 128. rows [sequence][kv_head][row_stride rows] as gather.cu staged them, counts [sequence][kv_head], weights
//   [sequence][head][weight_stride] (0 where a head did not ask), all as select_union leaves them; partial
//   [sequence][head][split][head_dim]. Staged rows of int4 and int2 are all in codes.
// weighted_combine: grid (heads, sequences), block 256. Adds a head's ranges in order: out [sequence][head][head_dim].
//   dropped [sequence][head]: the mass that the head did not ask for; what is left of 1 divides the output where there is
//   any. Null: the weights are not scaled up for what was left out.
// Registers: at most 128, no spills.
#include "values.cuh"

constexpr int WEIGHTED_THREADS = 128;
constexpr int WEIGHTED_HEADS = 8;

template <class C, int D>
KV_DEVICE void weighted(float* partial, const byte* staged, const float* weights, const unsigned* counts, int heads,
                        int kv_heads, int head_dim, int splits, int row_stride, int weight_stride) {
  constexpr int G = WEIGHTED_HEADS, WARPS = WEIGHTED_THREADS / 32, ROWS_PER_WARP = SPLIT / WARPS;
  KV_SHARED(float, shared_weights, SPLIT * G);
  KV_SHARED(unsigned, rows, SPLIT);
  KV_SHARED(float, sums, G * D);
  const int group = heads / kv_heads, parts = (group + G - 1) / G;
  const int kv_head = blockIdx.y / parts, first_of_group = blockIdx.y % parts * G;
  const int own_heads = min(G, group - first_of_group);
  const size_t of_lane = static_cast<size_t>(blockIdx.z) * kv_heads + kv_head;
  const size_t first_head = of_lane * group + first_of_group;
  const int base = blockIdx.x * SPLIT, all = static_cast<int>(counts[of_lane]);
  const int count = min(SPLIT, all - base), tid = threadIdx.x, warp = tid / 32;
  if (count <= 0) return;
  for (int i = tid; i < SPLIT; i += WEIGHTED_THREADS) rows[i] = i < count ? base + i : NO_ROW;
  for (int g = 0; g < G; ++g) {
    for (int i = tid; i < count; i += WEIGHTED_THREADS) {
      const size_t at = (first_head + g) * weight_stride + base + i;
      shared_weights[i * G + g] = g < own_heads ? weights[at] : 0.0f;
    }
  }
  __syncthreads();
  float acc[G][CHUNK];
  clear(acc);
  const byte* from = staged + of_lane * row_stride * C::row_bytes(head_dim);
  const ValueSource source = {from, nullptr, rows, rows, head_dim};
  const int to = min((warp + 1) * ROWS_PER_WARP, count);
  add_values<C, D, G>(acc, shared_weights, source, warp * ROWS_PER_WARP, to, SPLIT);
  sum_over_warps<D, G, WARPS>(acc, sums);
  for (int i = tid; i < own_heads * head_dim; i += WEIGHTED_THREADS) {
    const int g = i / head_dim, e = i % head_dim;
    partial[((first_head + g) * splits + blockIdx.x) * head_dim + e] = sums[g * D + e];
  }
}

#define KV_WEIGHTED(name, C, D)                                                                                       \
  extern "C" __global__ void __launch_bounds__(WEIGHTED_THREADS, 4)                                                   \
      name(float* partial, const byte* staged, const float* weights, const unsigned* counts, int heads, int kv_heads, \
           int head_dim, int splits, int row_stride, int weight_stride) {                                             \
    weighted<C, D>(partial, staged, weights, counts, heads, kv_heads, head_dim, splits, row_stride, weight_stride);   \
  }                                                                                                                   \
  KV_EXPORT(name)

#define KV_WEIGHTED_SIZES(name, C) \
  KV_WEIGHTED(name##_d128, C, 128) \
  KV_WEIGHTED(name##_d256, C, 256)

KV_WEIGHTED_SIZES(weighted_f32, F32)
KV_WEIGHTED_SIZES(weighted_f16, F16)
KV_WEIGHTED_SIZES(weighted_bf16, BF16)
KV_WEIGHTED_SIZES(weighted_int8, Int8)
KV_WEIGHTED_SIZES(weighted_int4, Int4)
KV_WEIGHTED_SIZES(weighted_int2, Int2)

extern "C" __global__ void __launch_bounds__(256)
    weighted_combine(float* out, const float* partial, const unsigned* counts, const float* dropped, int heads,
                     int kv_heads, int head_dim, int splits) {
  const int head = blockIdx.x;
  const size_t sequence = blockIdx.y, row = sequence * heads + head;
  const int own = static_cast<int>((counts[sequence * kv_heads + head / (heads / kv_heads)] + SPLIT - 1) / SPLIT);
  const float mass = dropped == nullptr ? 0.0f : __fsub_rn(1.0f, dropped[row]);
  for (int e = threadIdx.x; e < head_dim; e += 256) {
    float sum = 0.0f;
    for (int i = 0; i < own; ++i) sum += partial[(row * splits + i) * head_dim + e];
    out[row * head_dim + e] = mass > 0.0f ? __fdiv_rn(sum, mass) : sum;
  }
}
KV_EXPORT(weighted_combine)
