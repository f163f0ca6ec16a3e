// How far rows are off once they are in codes of 8 bits, measured as they are written.
//
// coding_errors: grid (kv_heads, 2), block 256; y = 0 for K and 1 for V. A warp per row, rows in turn.
//   keys, values [token][kv_head][head_dim] f32, as append_int8 gets them. Each is coded and read back with the arithmetic of
//   append_int8 and gather_pages_int8, so what is measured is what lies in the pages, wherever those are.
//   sums [2][kv_head][2] f64: the squared error of these tokens, and their squares. channels [kv_head][head_dim][2]: the same
//   of K, channel by channel, to which that of these tokens is added. What is not finite does not count.
//   head_dim at most 256.
// Registers: at most 64, no spills.
#include "store.cuh"

constexpr int ERRORS_THREADS = 256;
constexpr int ERRORS_WARPS = ERRORS_THREADS / 32;
constexpr float LARGEST_FLOAT = 3.402823466e38f;

extern "C" __global__ void __launch_bounds__(ERRORS_THREADS)
    coding_errors(double* sums, double* channels, const float* keys, const float* values, int tokens, int kv_heads,
                  int head_dim) {
  KV_SHARED(double, shared, ERRORS_WARPS * PER_LANE * 32 * 2);
  const int kv_head = blockIdx.x, part = blockIdx.y, tid = threadIdx.x, warp = tid / 32, in_warp = tid % 32;
  const float* from = (part == 0 ? keys : values) + static_cast<size_t>(kv_head) * head_dim;
  double errors[PER_LANE], squares[PER_LANE];
#pragma unroll
  for (int j = 0; j < PER_LANE; ++j) errors[j] = squares[j] = 0.0;
  for (int token = warp; token < tokens; token += ERRORS_WARPS) {
    const float* row = from + static_cast<size_t>(token) * kv_heads * head_dim;
    float x[PER_LANE];
#pragma unroll
    for (int j = 0; j < PER_LANE; ++j) {
      const int e = j * 32 + in_warp;
      x[j] = e < head_dim ? row[e] : 0.0f;
    }
    const Affine affine = affine_of_row(x, head_dim);
    const float scale = half_bits(affine.scale), zero = half_bits(affine.zero);
#pragma unroll
    for (int j = 0; j < PER_LANE; ++j) {
      if (j * 32 + in_warp >= head_dim || !(fabsf(x[j]) <= LARGEST_FLOAT)) continue;
      const float read = value_of(static_cast<float>(code_of(affine, x[j], ROW_LEVELS)), scale, zero);
      const double was = x[j], error = was - read;
      errors[j] += error * error;
      squares[j] += was * was;
    }
  }
#pragma unroll
  for (int j = 0; j < PER_LANE; ++j) {
    const int e = j * 32 + in_warp;
    if (e >= head_dim) continue;
    shared[2 * (warp * head_dim + e)] = errors[j];
    shared[2 * (warp * head_dim + e) + 1] = squares[j];
  }
  __syncthreads();
  // From here on a thread has a channel.
  double error = 0.0, square = 0.0;
  if (tid < head_dim) {
    for (int w = 0; w < ERRORS_WARPS; ++w) {
      error += shared[2 * (w * head_dim + tid)];
      square += shared[2 * (w * head_dim + tid) + 1];
    }
    if (part == 0) {
      double* own = channels + 2 * (static_cast<size_t>(kv_head) * head_dim + tid);
      own[0] += error;
      own[1] += square;
    }
  }
  __syncthreads();
  shared[2 * tid] = error;
  shared[2 * tid + 1] = square;
  for (int width = ERRORS_THREADS / 2; width > 0; width /= 2) {
    __syncthreads();
    if (tid >= width) continue;
    shared[2 * tid] += shared[2 * (tid + width)];
    shared[2 * tid + 1] += shared[2 * (tid + width) + 1];
  }
  if (tid == 0) {
    double* own = sums + 2 * (static_cast<size_t>(part) * kv_heads + kv_head);
    own[0] = shared[0];
    own[1] = shared[1];
  }
}
KV_EXPORT(coding_errors)
