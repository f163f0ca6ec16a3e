// Accumulators of the eviction rules, from rows of probabilities: the arithmetic of `src/policy/accumulate.rs`, in its
// order, so that equal rows give equal bits.
//
// accumulate: grid (ceil(most slots / 256), kv_heads, sequences), block 256: a thread per slot, queries in order.
//   rows [sequence][head][query][row_stride] (decode: one query). Kept per position and KV head,
//   [sequence][kv_head][position_stride]; null for a kind that is not needed:
//   sum      attention received, over all queries            (H2O, arXiv 2306.14048)
//   squares  its squares                                     (RoCo, arXiv 2402.06262)
//   count    queries that could see the position
//   last     attention received from the newest query        (TOVA, arXiv 2401.06104)
//   window   attention from queries window_from .. window_to  (SnapKV, arXiv 2404.14469)
//   ring     [sequence][kv_head][ring_rows][position_stride]: the newest rows, query q in row q % ring_rows
// A row is the mean over the query heads that share the KV head. A lane's `query` is the position of the first query.
// What a ring row held of positions that the lane does not have any more stays there.
// Registers: at most 64, no spills.
#include "base.cuh"

constexpr int ACCUMULATE_THREADS = 256;

extern "C" __global__ void __launch_bounds__(ACCUMULATE_THREADS)
    accumulate(float* sum, float* squares, unsigned* count, float* last, float* window, float* ring, const float* rows,
               const unsigned* positions, const unsigned* lanes, int heads, int kv_heads, int queries, int row_stride,
               int position_stride, int ring_rows, unsigned window_from, unsigned window_to) {
  const int kv_head = blockIdx.y, group = heads / kv_heads;
  const size_t sequence = blockIdx.z, of_lane = sequence * kv_heads + kv_head;
  const Lane lane = lane_at(lanes, static_cast<int>(of_lane));
  const unsigned slot = blockIdx.x * ACCUMULATE_THREADS + threadIdx.x;
  if (slot >= lane.slots) return;
  const unsigned position = positions[lane.positions + slot];
  const unsigned newest = lane.query + queries - 1;
  if (position == HOLE || position > newest) return;
  const size_t at = of_lane * position_stride + position;
  const int first = position > lane.query ? static_cast<int>(position - lane.query) : 0;
  const float weight = 1.0f / group;
  float of_chunk = 0.0f, mean = 0.0f;
  float squared = squares != nullptr ? squares[at] : 0.0f;
  float in_window = window != nullptr ? window[at] : 0.0f;
  for (int query = first; query < queries; ++query) {
    float total = 0.0f;
    for (int g = 0; g < group; ++g) {
      const size_t head = sequence * heads + kv_head * group + g;
      total += rows[(head * queries + query) * row_stride + slot];
    }
    mean = __fmul_rn(total, weight);
    of_chunk += mean;
    squared = __fadd_rn(squared, __fmul_rn(mean, mean));
    const unsigned of_query = lane.query + query;
    if (of_query >= window_from && of_query < window_to) in_window += mean;
    if (ring != nullptr) {
      ring[(of_lane * ring_rows + of_query % ring_rows) * position_stride + position] = mean;
    }
  }
  if (sum != nullptr) sum[at] += of_chunk;
  if (squares != nullptr) squares[at] = squared;
  if (count != nullptr) count[at] += queries - first;
  if (last != nullptr) last[at] = mean;
  if (window != nullptr) window[at] = in_window;
}
KV_EXPORT(accumulate)
