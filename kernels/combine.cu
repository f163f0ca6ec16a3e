// Puts the ranges of a decode step together (Flash-Decoding's second pass; online softmax, arXiv 1805.02867), and turns
// raw scores into probabilities, block sums or nothing, as the observer asked.
//
// decode_combine: grid (heads, sequences), block 256. head_dim a multiple of 4, at most 256.
//   out [sequence][head][head_dim] (or null after scores alone), totals [sequence][head][2]: the maximum and the sum.
// decode_rows: grid (ceil(most slots / 256), heads, sequences), block 256.
//   scores [sequence][head][score_stride] become probabilities in place; 0 where nothing is seen.
// decode_block_sums: grid (ceil(most blocks / 256), heads, sequences), block 256.
//   The decode kernel's block sums become sums of probabilities in place; block_size divides 256.
// row_block_sums: the same, from probabilities; any block_size. Grid as decode_block_sums.
// A head that sees nothing has output, probabilities and sums of 0.
// Registers: at most 64, no spills.
#include "base.cuh"

constexpr int COMBINE_THREADS = 256;
constexpr int COMBINE_WARPS = COMBINE_THREADS / 32;
// Quads of channels per thread: 256 channels over a warp.
constexpr int QUADS = 2;

KV_DEVICE int splits_of(const Lane& lane) { return static_cast<int>((lane.slots + SPLIT - 1) / SPLIT); }

// The factor that carries a range's sums to the whole row's.
KV_DEVICE float range_weight(float max_of_range, float max, float sum) {
  return sum > 0.0f ? exp_from(max_of_range, max) / sum : 0.0f;
}

extern "C" __global__ void __launch_bounds__(COMBINE_THREADS)
    decode_combine(float* out, float* totals, const float* partial, const float* max_sum, const unsigned* lanes,
                   int heads, int kv_heads, int head_dim, int splits) {
  KV_SHARED(float, reduced, COMBINE_WARPS);
  KV_SHARED(float4, sums, COMBINE_WARPS * 32 * QUADS);
  const int head = blockIdx.x, sequence = blockIdx.y, tid = threadIdx.x, warp = tid / 32, in_warp = tid % 32;
  const Lane lane = lane_at(lanes, sequence * kv_heads + head / (heads / kv_heads));
  const int own_splits = splits_of(lane);
  const size_t row = static_cast<size_t>(sequence) * heads + head;
  const float2* ranges = reinterpret_cast<const float2*>(max_sum) + row * splits;
  KV_ALIGNED(ranges, 8);

  float max = minus_infinity();
  for (int i = tid; i < own_splits; i += COMBINE_THREADS) max = fmaxf(max, ranges[i].x);
  max = block_reduce<COMBINE_WARPS>(max, reduced, Max{});
  float sum = 0.0f;
  for (int i = tid; i < own_splits; i += COMBINE_THREADS) sum += ranges[i].y * exp_from(ranges[i].x, max);
  sum = block_reduce<COMBINE_WARPS>(sum, reduced, Sum{});
  if (tid == 0) {
    totals[2 * row] = max;
    totals[2 * row + 1] = sum;
  }
  if (out == nullptr) return;

  // Each warp takes every eighth range in order; then the warps' sums are added in order.
  const int quads = head_dim / 4;
  float4 acc[QUADS];
#pragma unroll
  for (int j = 0; j < QUADS; ++j) acc[j] = make_float4(0, 0, 0, 0);
  for (int i = warp; i < own_splits; i += COMBINE_WARPS) {
    const float weight = range_weight(ranges[i].x, max, sum);
    const float4* from = reinterpret_cast<const float4*>(partial + (row * splits + i) * head_dim);
    KV_ALIGNED(from, 16);
#pragma unroll
    for (int j = 0; j < QUADS; ++j) {
      const int quad = j * 32 + in_warp;
      if (quad >= quads) continue;
      const float4 x = from[quad];
      acc[j].x = fmaf(weight, x.x, acc[j].x);
      acc[j].y = fmaf(weight, x.y, acc[j].y);
      acc[j].z = fmaf(weight, x.z, acc[j].z);
      acc[j].w = fmaf(weight, x.w, acc[j].w);
    }
  }
#pragma unroll
  for (int j = 0; j < QUADS; ++j) sums[warp * 32 * QUADS + j * 32 + in_warp] = acc[j];
  __syncthreads();
  if (tid < quads) {
    float4 all = sums[tid];
#pragma unroll
    for (int w = 1; w < COMBINE_WARPS; ++w) {
      const float4 x = sums[w * 32 * QUADS + tid];
      all.x += x.x;
      all.y += x.y;
      all.z += x.z;
      all.w += x.w;
    }
    KV_ALIGNED(out + row * head_dim, 16);
    reinterpret_cast<float4*>(out + row * head_dim)[tid] = all;
  }
}
KV_EXPORT(decode_combine)

extern "C" __global__ void __launch_bounds__(COMBINE_THREADS)
    decode_rows(float* scores, const float* totals, const unsigned* lanes, int heads, int kv_heads,
                int score_stride) {
  const int head = blockIdx.y, sequence = blockIdx.z;
  const Lane lane = lane_at(lanes, sequence * kv_heads + head / (heads / kv_heads));
  const unsigned slot = blockIdx.x * COMBINE_THREADS + threadIdx.x;
  if (slot >= lane.slots) return;
  const size_t row = static_cast<size_t>(sequence) * heads + head;
  float& score = scores[row * score_stride + slot];
  score = range_weight(score, totals[2 * row], totals[2 * row + 1]);
}
KV_EXPORT(decode_rows)

extern "C" __global__ void __launch_bounds__(COMBINE_THREADS)
    decode_block_sums(float* block_sums, const float* max_sum, const float* totals, const unsigned* lanes, int heads,
                      int kv_heads, int block_size, int splits, int block_stride) {
  const int head = blockIdx.y, sequence = blockIdx.z;
  const Lane lane = lane_at(lanes, sequence * kv_heads + head / (heads / kv_heads));
  const unsigned block = blockIdx.x * COMBINE_THREADS + threadIdx.x;
  if (block >= (lane.slots + block_size - 1) / block_size) return;
  const size_t row = static_cast<size_t>(sequence) * heads + head;
  const float max_of_range = max_sum[(row * splits + block / (SPLIT / block_size)) * 2];
  float& sum = block_sums[row * block_stride + block];
  sum *= range_weight(max_of_range, totals[2 * row], totals[2 * row + 1]);
}
KV_EXPORT(decode_block_sums)

extern "C" __global__ void __launch_bounds__(COMBINE_THREADS)
    row_block_sums(float* block_sums, const float* rows, const unsigned* lanes, int heads, int kv_heads,
                   int block_size, int row_stride, int block_stride) {
  const int head = blockIdx.y, sequence = blockIdx.z;
  const Lane lane = lane_at(lanes, sequence * kv_heads + head / (heads / kv_heads));
  const unsigned block = blockIdx.x * COMBINE_THREADS + threadIdx.x;
  if (block >= (lane.slots + block_size - 1) / block_size) return;
  const size_t row = static_cast<size_t>(sequence) * heads + head;
  float sum = 0.0f;
  for (unsigned slot = block * block_size; slot < min((block + 1) * block_size, lane.slots); ++slot) {
    sum += rows[row * row_stride + slot];
  }
  block_sums[row * block_stride + block] = sum;
}
KV_EXPORT(row_block_sums)
