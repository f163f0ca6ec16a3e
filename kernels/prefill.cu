// Prefill: softmax over a tile of scores. K and V of a layer are gathered into one matrix each (gather.cu), the products
// are GEMMs (cuBLAS), and between them lies this kernel. The caller cuts the queries so that a tile of scores takes at
// most 256 MiB: heads * queries * slots * 4 bytes.
//
// prefill_softmax: grid (queries, heads), block 256. tile [head][query][row_stride] f32: products become probabilities in
//   place, 0 where a slot is a hole, holds a later position than the query's or one that has left its window, or lies
//   behind the lane's slots up to `columns` (the GEMM's width). window, softcap: as decode.cuh has them. Lanes of one sequence; a lane's `query` is the position of the tile's first query.
// prefill_softmax_f16: the same into `halves` [head][query][row_stride], for a GEMM in f16; the tile keeps f32.
// Registers: at most 64, no spills.
#include "base.cuh"

constexpr int SOFTMAX_THREADS = 256;
constexpr int SOFTMAX_WARPS = SOFTMAX_THREADS / 32;

KV_DEVICE void softmax_row(float* tile, __half* halves, const unsigned* positions, const unsigned* lanes, int heads,
                           int kv_heads, int columns, int row_stride, float scale, unsigned window, float softcap) {
  KV_SHARED(float, reduced, SOFTMAX_WARPS);
  const int query = blockIdx.x, head = blockIdx.y, tid = threadIdx.x;
  const Lane lane = lane_at(lanes, head / (heads / kv_heads));
  const unsigned position = lane.query + query;
  const unsigned* own = positions + lane.positions;
  const size_t start = (static_cast<size_t>(head) * gridDim.x + query) * row_stride;
  float* row = tile + start;
  const int slots = min(static_cast<int>(lane.slots), columns);
  // A thread's own maximum and sum go along in one reading of the row; both are put right where the maximum grows.
  float max = minus_infinity(), sum = 0.0f;
  for (int slot = tid; slot < slots; slot += SOFTMAX_THREADS) {
    if (!is_seen(own[slot], position, window)) continue;
    const float score = capped(row[slot] * scale, softcap);
    if (score > max) {
      sum = sum * exp_from(max, score);
      max = score;
    }
    sum += exp_from(score, max);
  }
  const float all = block_reduce<SOFTMAX_WARPS>(max, reduced, Max{});
  sum = block_reduce<SOFTMAX_WARPS>(sum * exp_from(max, all), reduced, Sum{});
  const float factor = sum > 0.0f ? 1.0f / sum : 0.0f;
  for (int slot = tid; slot < columns; slot += SOFTMAX_THREADS) {
    const unsigned at = slot < slots ? own[slot] : HOLE;
    const bool seen = is_seen(at, position, window);
    const float p = seen ? exp_from(capped(row[slot] * scale, softcap), all) * factor : 0.0f;
    row[slot] = p;
    if (halves != nullptr) halves[start + slot] = __float2half_rn(p);
  }
}

extern "C" __global__ void __launch_bounds__(SOFTMAX_THREADS)
    prefill_softmax(float* tile, const unsigned* positions, const unsigned* lanes, int heads, int kv_heads, int columns,
                    int row_stride, float scale, unsigned window, float softcap) {
  softmax_row(tile, nullptr, positions, lanes, heads, kv_heads, columns, row_stride, scale, window, softcap);
}
KV_EXPORT(prefill_softmax)

extern "C" __global__ void __launch_bounds__(SOFTMAX_THREADS)
    prefill_softmax_f16(float* tile, __half* halves, const unsigned* positions, const unsigned* lanes, int heads,
                        int kv_heads, int columns, int row_stride, float scale, unsigned window, float softcap) {
  softmax_row(tile, halves, positions, lanes, heads, kv_heads, columns, row_stride, scale, window, softcap);
}
KV_EXPORT(prefill_softmax_f16)
