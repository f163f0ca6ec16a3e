// Accumulators of the eviction rules, from rows of probabilities: the arithmetic of `src/policy/accumulate.rs`, in its
// order, so that equal rows give equal bits.
//
// Kept per position and KV head, [owner][kv_head][position_stride]; null for a kind that is not needed:
//   sum      attention received, over all queries            (H2O, arXiv 2306.14048)
//   squares  its squares                                     (RoCo, arXiv 2402.06262)
//   count    queries that could see the position
//   last     attention received from the newest query        (TOVA, arXiv 2401.06104)
//   window   attention from queries window_from .. window_to  (SnapKV, arXiv 2404.14469)
//   ring     [owner][kv_head][ring_rows][position_stride]: the newest rows, query q in row q % ring_rows
// owners [sequence] says which of them a sequence of the launch is; null: as they come.
//
// accumulate: grid (ceil(most slots / 256), kv_heads, sequences), block 256: a thread per slot, queries in order.
//   rows [sequence][head][query][row_stride] (decode: one query). A row is the mean over the query heads that share the KV
//   head. A lane's `query` is the position of the first query. What a ring row held of positions that the lane does not
//   have any more stays there.
// take_sums: the same grid. Of every slot what its position has: out [sequence][kv_head][kind][out_stride], the kinds that
//   there are (but rings) in the order above; 0 for an evicted token.
// score_slots: grid (ceil(most slots / 256), kv_heads or 1, sequences), block 256. Scores of the rules that go by these
//   alone, scores [sequence][kv_head][score_stride]: the sum where there is no count, the sum per query that could see the
//   position where there is one, what the newest query paid where there is no sum. In a grid of one head the mean over all
//   of them, which hold the same tokens, is the first one's. 0 for an evicted token.
// Registers: at most 64, no spills.
#include "base.cuh"

constexpr int ACCUMULATE_THREADS = 256;

// Which of the kept a lane of the launch is.
KV_DEVICE size_t kept_of(const unsigned* owners, int kv_heads, int kv_head) {
  const size_t owner = owners != nullptr ? owners[blockIdx.z] : blockIdx.z;
  return owner * kv_heads + kv_head;
}

extern "C" __global__ void __launch_bounds__(ACCUMULATE_THREADS)
    accumulate(float* sum, float* squares, unsigned* count, float* last, float* window, float* ring,
               const unsigned* owners, const float* rows, const unsigned* positions, const unsigned* lanes, int heads,
               int kv_heads, int queries, int row_stride, int position_stride, int ring_rows, unsigned window_from,
               unsigned window_to) {
  const int kv_head = blockIdx.y, group = heads / kv_heads;
  const size_t sequence = blockIdx.z, kept = kept_of(owners, kv_heads, kv_head);
  const Lane lane = lane_at(lanes, static_cast<int>(sequence * kv_heads + kv_head));
  const unsigned slot = blockIdx.x * ACCUMULATE_THREADS + threadIdx.x;
  if (slot >= lane.slots) return;
  const unsigned position = positions[lane.positions + slot];
  const unsigned newest = lane.query + queries - 1;
  if (position == HOLE || position > newest) return;
  const size_t at = kept * position_stride + position;
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
      ring[(kept * ring_rows + of_query % ring_rows) * position_stride + position] = mean;
    }
  }
  if (sum != nullptr) sum[at] += of_chunk;
  if (squares != nullptr) squares[at] = squared;
  if (count != nullptr) count[at] += queries - first;
  if (last != nullptr) last[at] = mean;
  if (window != nullptr) window[at] = in_window;
}
KV_EXPORT(accumulate)

extern "C" __global__ void __launch_bounds__(ACCUMULATE_THREADS)
    take_sums(float* out, const float* sum, const float* squares, const float* count, const float* last,
              const float* window, const unsigned* owners, const unsigned* positions, const unsigned* lanes,
              int kv_heads, int position_stride, int out_stride) {
  const int kv_head = blockIdx.y;
  const size_t of_lane = static_cast<size_t>(blockIdx.z) * kv_heads + kv_head;
  const Lane lane = lane_at(lanes, static_cast<int>(of_lane));
  const unsigned slot = blockIdx.x * ACCUMULATE_THREADS + threadIdx.x;
  if (slot >= lane.slots) return;
  const unsigned position = positions[lane.positions + slot];
  const size_t at = kept_of(owners, kv_heads, kv_head) * position_stride + position;
  // Counts pass as the bits that they are.
  const float* kinds[5] = {sum, squares, count, last, window};
  int there = 0;
#pragma unroll
  for (int kind = 0; kind < 5; ++kind) there += kinds[kind] != nullptr;
  float* to = out + of_lane * there * out_stride + slot;
#pragma unroll
  for (int kind = 0; kind < 5; ++kind) {
    if (kinds[kind] == nullptr) continue;
    *to = position == HOLE ? 0.0f : kinds[kind][at];
    to += out_stride;
  }
}
KV_EXPORT(take_sums)

extern "C" __global__ void __launch_bounds__(ACCUMULATE_THREADS)
    score_slots(float* scores, const float* sum, const unsigned* count, const float* last, const unsigned* owners,
                const unsigned* positions, const unsigned* lanes, int kv_heads, int position_stride,
                int score_stride) {
  const int kv_head = blockIdx.y;
  const size_t of_lane = static_cast<size_t>(blockIdx.z) * kv_heads + kv_head;
  const Lane lane = lane_at(lanes, static_cast<int>(of_lane));
  const unsigned slot = blockIdx.x * ACCUMULATE_THREADS + threadIdx.x;
  if (slot >= lane.slots) return;
  const unsigned position = positions[lane.positions + slot];
  const int heads = gridDim.y == 1 ? kv_heads : 1;
  float score = 0.0f;
  for (int head = 0; head < heads && position != HOLE; ++head) {
    const size_t at = kept_of(owners, kv_heads, kv_head + head) * position_stride + position;
    float own;
    if (sum == nullptr) {
      own = last[at];
    } else {
      own = count == nullptr ? sum[at] : __fdiv_rn(sum[at], static_cast<float>(max(count[at], 1u)));
    }
    score = head == 0 ? own : __fadd_rn(score, own);
  }
  scores[of_lane * score_stride + slot] = heads == 1 ? score : __fdiv_rn(score, static_cast<float>(heads));
}
KV_EXPORT(score_slots)
