// Rows pulled together: V of a read set out of mapped pinned host memory (KCache, arXiv 2404.18057; zero-copy reads, one
// launch for all rows instead of a copy each), and a lane's pages into one contiguous matrix for prefill's GEMMs.
//
// gather_rows: grid (ceil(most rows / 8), kv_heads, sequences), block 256: a warp per row.
//   slots [sequence][kv_head][slot_stride], ascending, counts [sequence][kv_head], as select_union leaves both; staged
//   [sequence][kv_head][row_stride rows]. `slab` may be the device address of mapped host memory. row_bytes is a multiple
//   of 4; a multiple of 16 goes 16 bytes at a time, so that a warp asks the link for 512 consecutive bytes.
// gather_rows_kept: the same, but for rows that lie in what was pulled before, which come from there: a cache of rows pulled
//   last (ours). `before` and `before_positions`, ascending, [sequence][kv_head][before_stride], before_counts
//   [sequence][kv_head]; all of them null where there is nothing. Leaves the same of what is staged: staged_positions
//   [sequence][kv_head][row_stride] and staged_counts.
// count_reused: grid (kv_heads, sequences), block 256. How many of the chosen are in `pulled`, the positions that were chosen
//   last, ascending, [owner][kv_head][pulled_stride], pulled_counts [owner][kv_head]; `owners` [sequence] says which of them
//   a sequence is. reused [sequence][kv_head]. The chosen take their place.
// gather_pages_{f32,f16,bf16,int8,int4,int2}_{to_f32,to_f16}: grid (ceil(most slots / 8), kv_heads), block 256.
//   out [kv_head][row_stride][head_dim], rows of holes all 0 so that no leftover reaches a product; `values` says that the
//   slab holds V (int4 and int2 differ). Codes come out as the CPU codec decodes them, bit for bit. Only leading slots up
//   to the lane's count are written. Lanes of one sequence: `lanes` points at its first.
// Registers: at most 64, no spills.
#include "rows.cuh"

constexpr int GATHER_THREADS = 256;
constexpr int GATHER_WARPS = GATHER_THREADS / 32;

template <class Unit>
KV_DEVICE void copy_row(byte* to, const byte* from, size_t bytes) {
  KV_ALIGNED(to, sizeof(Unit));
  KV_ALIGNED(from, sizeof(Unit));
  Unit* out = reinterpret_cast<Unit*>(to);
  const Unit* in = reinterpret_cast<const Unit*>(from);
  for (size_t i = threadIdx.x % 32; i < bytes / sizeof(Unit); i += 32) out[i] = __ldcs(in + i);
}

KV_DEVICE void copy_bytes(byte* to, const byte* from, int bytes) {
  if (bytes % 16 == 0) {
    copy_row<uint4>(to, from, bytes);
  } else {
    copy_row<unsigned>(to, from, bytes);
  }
}

extern "C" __global__ void __launch_bounds__(GATHER_THREADS)
    gather_rows(byte* staged, const byte* slab, const unsigned* slots, const unsigned* counts, const unsigned* blocks,
                const unsigned* lanes, int block_size, int row_bytes, int slot_stride, int row_stride) {
  const unsigned i = blockIdx.x * GATHER_WARPS + threadIdx.x / 32;
  const size_t of_lane = static_cast<size_t>(blockIdx.z) * gridDim.y + blockIdx.y;
  if (i >= counts[of_lane]) return;
  const Lane lane = lane_at(lanes, static_cast<int>(of_lane));
  const unsigned row = row_of(blocks, lane.table, lane.add, slots[of_lane * slot_stride + i], block_size);
  copy_bytes(staged + (of_lane * row_stride + i) * row_bytes, slab + static_cast<size_t>(row) * row_bytes, row_bytes);
}
KV_EXPORT(gather_rows)

// The first of `n` ascending positions that is not below one.
KV_DEVICE unsigned first_from(const unsigned* ascending, unsigned n, unsigned position) {
  unsigned low = 0, high = n;
  while (low < high) {
    const unsigned middle = low + (high - low) / 2;
    if (ascending[middle] < position) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return low;
}

// Four blocks at once: for more of them the compiler would spill.
extern "C" __global__ void __launch_bounds__(GATHER_THREADS, 4)
    gather_rows_kept(byte* staged, unsigned* staged_positions, unsigned* staged_counts, const byte* slab,
                     const unsigned* slots, const unsigned* counts, const unsigned* blocks, const unsigned* positions,
                     const unsigned* lanes, const byte* before, const unsigned* before_positions,
                     const unsigned* before_counts, int block_size, int row_bytes, int slot_stride, int row_stride,
                     int before_stride) {
  const unsigned i = blockIdx.x * GATHER_WARPS + threadIdx.x / 32;
  const size_t of_lane = static_cast<size_t>(blockIdx.z) * gridDim.y + blockIdx.y;
  const unsigned count = counts[of_lane];
  if (blockIdx.x == 0 && threadIdx.x == 0) staged_counts[of_lane] = count;
  if (i >= count) return;
  const Lane lane = lane_at(lanes, static_cast<int>(of_lane));
  const unsigned slot = slots[of_lane * slot_stride + i], position = positions[lane.positions + slot];
  if (threadIdx.x % 32 == 0) staged_positions[of_lane * row_stride + i] = position;
  const byte* from = slab + static_cast<size_t>(row_of(blocks, lane.table, lane.add, slot, block_size)) * row_bytes;
  if (before_counts != nullptr) {
    const unsigned* own = before_positions + of_lane * before_stride;
    const unsigned kept = before_counts[of_lane];
    const unsigned at = first_from(own, kept, position);
    if (at < kept && own[at] == position) from = before + (of_lane * before_stride + at) * row_bytes;
  }
  copy_bytes(staged + (of_lane * row_stride + i) * row_bytes, from, row_bytes);
}
KV_EXPORT(gather_rows_kept)

extern "C" __global__ void __launch_bounds__(GATHER_THREADS)
    count_reused(unsigned* reused, unsigned* pulled, unsigned* pulled_counts, const unsigned* slots,
                 const unsigned* counts, const unsigned* owners, const unsigned* positions, const unsigned* lanes,
                 int slot_stride, int pulled_stride) {
  KV_SHARED(unsigned, sums, GATHER_WARPS);
  const size_t of_lane = static_cast<size_t>(blockIdx.y) * gridDim.x + blockIdx.x;
  const size_t of_owner = static_cast<size_t>(owners[blockIdx.y]) * gridDim.x + blockIdx.x;
  const unsigned* own = positions + lane_at(lanes, static_cast<int>(of_lane)).positions;
  slots += of_lane * slot_stride;
  pulled += of_owner * pulled_stride;
  const unsigned before = pulled_counts[of_owner], count = counts[of_lane];
  unsigned again = 0;
  for (unsigned i = threadIdx.x; i < count; i += GATHER_THREADS) {
    const unsigned position = own[slots[i]], at = first_from(pulled, before, position);
    again += at < before && pulled[at] == position;
  }
  // No thread goes on before all have read.
  again = block_reduce<GATHER_WARPS>(again, sums, Sum{});
  for (unsigned i = threadIdx.x; i < count; i += GATHER_THREADS) pulled[i] = own[slots[i]];
  if (threadIdx.x == 0) {
    reused[of_lane] = again;
    pulled_counts[of_owner] = count;
  }
}
KV_EXPORT(count_reused)

KV_DEVICE void store_chunk(float* row, int chunk, const float (&x)[CHUNK]) {
  float4* to = reinterpret_cast<float4*>(row + chunk * CHUNK);
  KV_ALIGNED(to, 16);
  to[0] = make_float4(x[0], x[1], x[2], x[3]);
  to[1] = make_float4(x[4], x[5], x[6], x[7]);
}
KV_DEVICE void store_chunk(__half* row, int chunk, const float (&x)[CHUNK]) {
  unsigned words[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const unsigned low = __half_as_ushort(__float2half_rn(x[2 * i]));
    words[i] = low | static_cast<unsigned>(__half_as_ushort(__float2half_rn(x[2 * i + 1]))) << 16;
  }
  uint4* to = reinterpret_cast<uint4*>(row + chunk * CHUNK);
  KV_ALIGNED(to, 16);
  *to = make_uint4(words[0], words[1], words[2], words[3]);
}

template <class C, class Out>
KV_DEVICE void gather(Out* out, const byte* slab, const byte* exact, const unsigned* blocks, const unsigned* positions,
                      const unsigned* lanes, int head_dim, int block_size, int row_stride, int values) {
  const unsigned slot = blockIdx.x * GATHER_WARPS + threadIdx.x / 32;
  const size_t kv_head = blockIdx.y;
  const Lane lane = lane_at(lanes, static_cast<int>(kv_head));
  if (slot >= lane.slots) return;
  const bool hole = positions[lane.positions + slot] == HOLE;
  Out* to = out + (kv_head * row_stride + slot) * head_dim;
  for (int chunk = threadIdx.x % 32; chunk < head_dim / CHUNK; chunk += 32) {
    float x[CHUNK];
    if (hole) {
#pragma unroll
      for (int i = 0; i < CHUNK; ++i) x[i] = 0.0f;
    } else {
      slot_chunk<C>(slab, exact, blocks, lane, slot, chunk, head_dim, block_size, values, x);
    }
    store_chunk(to, chunk, x);
  }
}

#define KV_GATHER(name, C, Out)                                                                                     \
  extern "C" __global__ void __launch_bounds__(GATHER_THREADS)                                                      \
      name(Out* out, const byte* slab, const byte* exact, const unsigned* blocks, const unsigned* positions,        \
           const unsigned* lanes, int head_dim, int block_size, int row_stride, int values) {                       \
    gather<C, Out>(out, slab, exact, blocks, positions, lanes, head_dim, block_size, row_stride, values);           \
  }                                                                                                                 \
  KV_EXPORT(name)

#define KV_GATHERS(name, C)               \
  KV_GATHER(name##_to_f32, C, float)      \
  KV_GATHER(name##_to_f16, C, __half)

KV_GATHERS(gather_pages_f32, F32)
KV_GATHERS(gather_pages_f16, F16)
KV_GATHERS(gather_pages_bf16, BF16)
KV_GATHERS(gather_pages_int8, Int8)
KV_GATHERS(gather_pages_int4, Int4)
KV_GATHERS(gather_pages_int2, Int2)
