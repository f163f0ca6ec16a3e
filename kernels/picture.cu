// The attention picture of a decode step: probabilities as cells of a byte (`quantise` in `src/event/attention.rs`), and the
// mass that no cell carries.
//
// Rows are [sequence][head][row_stride] f32. bounds [256]: the smallest value of each cell, ascending; that of cell 0 is 0.
// used_rows: grid (ceil(most slots / 2048), heads, sequences), block 256. Rows become what their head read: 0 but for the
//   slots of a union, slots [sequence][kv_head][list_stride], ascending, counts [sequence][kv_head], where they are
//   weights [sequence][head][list_stride].
// picture_cells: the same grid over values. cells [sequence][head][cell_stride], a byte per value, of rows of one value per
//   `per` slots (1: probabilities; the block size: sums of blocks). lost [sequence][head][ceil(values / 2048)]: the sum of
//   the values in cells of 0, of each range of 2048.
// picture_top: the same grid over slots. cells [sequence][head][list_stride], a byte for each of the slots of list
//   [sequence][head][list_stride], counts [sequence][head], which marks [sequence][head][word_stride] mark; lost as above:
//   what is not marked is in no cell.
// A value that is not a number is in cell 0, and so is its row's mass.
// Registers: at most 64, no spills.
#include "base.cuh"

constexpr int PICTURE_THREADS = 256;
constexpr int PICTURE_WARPS = PICTURE_THREADS / 32;
// Values of a block.
constexpr unsigned RANGE = 2048;

// The last cell whose bound a value reaches.
KV_DEVICE unsigned cell_of(float p, const float* bounds) {
  unsigned cell = 0;
#pragma unroll
  for (unsigned step = 128; step > 0; step /= 2) {
    if (p >= bounds[cell + step]) cell += step;
  }
  return cell;
}

KV_DEVICE void load_bounds(float* shared, const float* bounds) {
  shared[threadIdx.x] = bounds[threadIdx.x];
  __syncthreads();
}

KV_DEVICE Lane lane_of_head(const unsigned* lanes, int heads, int kv_heads) {
  const int head = blockIdx.y, sequence = blockIdx.z;
  return lane_at(lanes, sequence * kv_heads + head / (heads / kv_heads));
}

// The row of this block's head, and the part of its lost mass.
KV_DEVICE size_t row_of_head(int heads) { return static_cast<size_t>(blockIdx.z) * heads + blockIdx.y; }

KV_DEVICE void sum_lost(float* lost, float own, size_t row, float* shared) {
  own = block_reduce<PICTURE_WARPS>(own, shared, Sum{});
  if (threadIdx.x == 0) lost[row * gridDim.x + blockIdx.x] = own;
}

extern "C" __global__ void __launch_bounds__(PICTURE_THREADS)
    used_rows(float* rows, const float* weights, const unsigned* slots, const unsigned* counts, const unsigned* lanes,
              int heads, int kv_heads, int row_stride, int list_stride) {
  const Lane lane = lane_of_head(lanes, heads, kv_heads);
  const size_t row = row_of_head(heads);
  const unsigned first = blockIdx.x * RANGE, end = min(first + RANGE, lane.slots);
  if (first >= lane.slots) return;
  float* own = rows + row * row_stride;
  for (unsigned slot = first + threadIdx.x; slot < end; slot += PICTURE_THREADS) own[slot] = 0.0f;
  __syncthreads();
  const size_t of_lane = static_cast<size_t>(blockIdx.z) * kv_heads + blockIdx.y / (heads / kv_heads);
  const unsigned* union_of = slots + of_lane * list_stride;
  const float* weight_of = weights + row * list_stride;
  for (unsigned i = threadIdx.x; i < counts[of_lane]; i += PICTURE_THREADS) {
    const unsigned slot = union_of[i];
    if (slot >= first && slot < end) own[slot] = weight_of[i];
  }
}
KV_EXPORT(used_rows)

extern "C" __global__ void __launch_bounds__(PICTURE_THREADS)
    picture_cells(byte* cells, float* lost, const float* rows, const float* bounds, const unsigned* lanes, int heads,
                  int kv_heads, int per, int row_stride, int cell_stride) {
  KV_SHARED(float, shared_bounds, 256);
  KV_SHARED(float, shared, PICTURE_WARPS);
  load_bounds(shared_bounds, bounds);
  const Lane lane = lane_of_head(lanes, heads, kv_heads);
  const size_t row = row_of_head(heads);
  const unsigned values = (lane.slots + per - 1) / per;
  const unsigned first = blockIdx.x * RANGE, end = min(first + RANGE, values);
  float own = 0.0f;
  for (unsigned i = first + threadIdx.x; i < end; i += PICTURE_THREADS) {
    const float p = rows[row * row_stride + i];
    const unsigned cell = cell_of(p, shared_bounds);
    cells[row * cell_stride + i] = static_cast<byte>(cell);
    if (cell == 0) own += p;
  }
  sum_lost(lost, own, row, shared);
}
KV_EXPORT(picture_cells)

extern "C" __global__ void __launch_bounds__(PICTURE_THREADS)
    picture_top(byte* cells, float* lost, const float* rows, const unsigned* marks, const unsigned* list,
                const unsigned* counts, const float* bounds, const unsigned* lanes, int heads, int kv_heads,
                int row_stride, int word_stride, int list_stride) {
  KV_SHARED(float, shared_bounds, 256);
  KV_SHARED(float, shared, PICTURE_WARPS);
  load_bounds(shared_bounds, bounds);
  const Lane lane = lane_of_head(lanes, heads, kv_heads);
  const size_t row = row_of_head(heads);
  const unsigned first = blockIdx.x * RANGE, end = min(first + RANGE, lane.slots);
  float own = 0.0f;
  for (unsigned slot = first + threadIdx.x; slot < end; slot += PICTURE_THREADS) {
    const float p = rows[row * row_stride + slot];
    const bool marked = marks[row * word_stride + slot / 32] >> slot % 32 & 1u;
    if (!marked || cell_of(p, shared_bounds) == 0) own += p;
  }
  sum_lost(lost, own, row, shared);
  // The chosen ones are few: the blocks of a row share them out.
  for (unsigned i = blockIdx.x * PICTURE_THREADS + threadIdx.x; i < counts[row]; i += gridDim.x * PICTURE_THREADS) {
    const float p = rows[row * row_stride + list[row * list_stride + i]];
    cells[row * list_stride + i] = static_cast<byte>(cell_of(p, shared_bounds));
  }
}
KV_EXPORT(picture_top)
