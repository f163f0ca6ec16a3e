// Compaction: the survivors of a lane move together, order kept (design: evicting inside a page strands its slot).
//
// compact_rows: grid (kv_heads, 2, sequences), block 256; y = 0 for K and 1 for V, or 1 in y for K alone.
//   kept [sequence][kv_head][kept_stride]: slots, ascending; they move to the slots first [sequence][kv_head] and on, and
//   none moves up. counts [sequence][kv_head]. Row bytes are multiples of 4. Keys of int4 and int2 share their page's
//   scales: they are gathered, and go into codes again (gather.cu, quant.cu).
// Rows go tile by tile: a tile is read whole before it is written, and what it overwrites lies before all later tiles.
// Registers: at most 64, no spills.
#include "base.cuh"

constexpr int COMPACT_THREADS = 256;
// Units that a thread carries at a time.
constexpr int CARRIED = 4;

template <class Unit>
KV_DEVICE void move_together(byte* slab, const unsigned* kept, unsigned count, unsigned first, const unsigned* blocks,
                             const Lane& lane, int block_size, unsigned row_bytes) {
  const unsigned units = row_bytes / sizeof(Unit);
  const size_t all = static_cast<size_t>(count) * units;
  for (size_t base = 0; base < all; base += COMPACT_THREADS * CARRIED) {
    Unit carried[CARRIED];
#pragma unroll
    for (int j = 0; j < CARRIED; ++j) {
      const size_t i = base + j * COMPACT_THREADS + threadIdx.x;
      if (i >= all) continue;
      const unsigned row = row_of(blocks, lane.table, lane.add, kept[i / units], block_size);
      const byte* from = slab + static_cast<size_t>(row) * row_bytes + i % units * sizeof(Unit);
      KV_ALIGNED(from, sizeof(Unit));
      carried[j] = *reinterpret_cast<const Unit*>(from);
    }
    __syncthreads();
#pragma unroll
    for (int j = 0; j < CARRIED; ++j) {
      const size_t i = base + j * COMPACT_THREADS + threadIdx.x;
      if (i >= all) continue;
      const unsigned to_slot = first + static_cast<unsigned>(i / units);
      const unsigned row = row_of(blocks, lane.table, lane.add, to_slot, block_size);
      *reinterpret_cast<Unit*>(slab + static_cast<size_t>(row) * row_bytes + i % units * sizeof(Unit)) = carried[j];
    }
  }
}

extern "C" __global__ void __launch_bounds__(COMPACT_THREADS)
    compact_rows(byte* k, byte* v, const unsigned* kept, const unsigned* counts, const unsigned* first,
                 const unsigned* blocks, const unsigned* lanes, int block_size, int k_row_bytes, int v_row_bytes,
                 int kept_stride) {
  const size_t of_lane = static_cast<size_t>(blockIdx.z) * gridDim.x + blockIdx.x;
  byte* slab = blockIdx.y == 0 ? k : v;
  const unsigned row_bytes = blockIdx.y == 0 ? k_row_bytes : v_row_bytes;
  const Lane lane = lane_at(lanes, static_cast<int>(of_lane));
  const unsigned* own = kept + of_lane * kept_stride;
  if (row_bytes % 16 == 0) {
    move_together<uint4>(slab, own, counts[of_lane], first[of_lane], blocks, lane, block_size, row_bytes);
  } else {
    move_together<unsigned>(slab, own, counts[of_lane], first[of_lane], blocks, lane, block_size, row_bytes);
  }
}
KV_EXPORT(compact_rows)
