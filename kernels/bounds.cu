// Extents of the keys of pages, channel by channel, and the largest score that a key within them can have (Quest, arXiv
// 2406.10774, section 3.2; `src/attention/bounds.rs`). A page is `page` consecutive slots of a lane, not a block.
//
// page_bounds_{f32,f16,bf16,int8,int4,int2}: grid (ceil(pages / 8), kv_heads, sequences), block 256: a warp per page,
//   pages `first_page ..`. bounds [sequence][kv_head][page_stride][2][head_dim]: smallest and largest of the live keys as
//   attention reads them; +inf and -inf where a page has none.
// page_uppers: grid (ceil(pages / 8), kv_heads, sequences), block 256: a warp per page, all heads of the group.
//   uppers [sequence][head][page_stride] = sum over channels of max(q min, q max); -inf for a page without a live key.
// Registers: at most 64, no spills.
#include "rows.cuh"

constexpr int BOUNDS_THREADS = 256;
constexpr int BOUNDS_WARPS = BOUNDS_THREADS / 32;

template <class C>
KV_DEVICE void bound_pages(float* bounds, const byte* slab, const byte* exact, const unsigned* blocks,
                           const unsigned* positions, const unsigned* lanes, int kv_heads, int head_dim,
                           int block_size, int page, int first_page, int page_stride) {
  const size_t of_lane = static_cast<size_t>(blockIdx.z) * kv_heads + blockIdx.y;
  const Lane lane = lane_at(lanes, static_cast<int>(of_lane));
  const unsigned at = first_page + blockIdx.x * BOUNDS_WARPS + threadIdx.x / 32, chunk = threadIdx.x % 32;
  const unsigned first = at * page, end = min(first + page, lane.slots);
  if (first >= lane.slots || chunk >= static_cast<unsigned>(head_dim / CHUNK)) return;
  Extent extents[CHUNK];
#pragma unroll
  for (int i = 0; i < CHUNK; ++i) extents[i] = no_extent();
  for (unsigned slot = first; slot < end; ++slot) {
    if (positions[lane.positions + slot] == HOLE) continue;
    float key[CHUNK];
    slot_chunk<C>(slab, exact, blocks, lane, slot, chunk, head_dim, block_size, false, key);
#pragma unroll
    for (int i = 0; i < CHUNK; ++i) widen(extents[i], key[i]);
  }
  float* to = bounds + (of_lane * page_stride + at) * 2 * head_dim + chunk * CHUNK;
#pragma unroll
  for (int i = 0; i < CHUNK; ++i) {
    to[i] = extents[i].min;
    to[head_dim + i] = extents[i].max;
  }
}

#define KV_PAGE_BOUNDS(name, C)                                                                                     \
  extern "C" __global__ void __launch_bounds__(BOUNDS_THREADS)                                                      \
      name(float* bounds, const byte* slab, const byte* exact, const unsigned* blocks, const unsigned* positions,   \
           const unsigned* lanes, int kv_heads, int head_dim, int block_size, int page, int first_page,             \
           int page_stride) {                                                                                       \
    bound_pages<C>(bounds, slab, exact, blocks, positions, lanes, kv_heads, head_dim, block_size, page, first_page, \
                   page_stride);                                                                                    \
  }                                                                                                                 \
  KV_EXPORT(name)

KV_PAGE_BOUNDS(page_bounds_f32, F32)
KV_PAGE_BOUNDS(page_bounds_f16, F16)
KV_PAGE_BOUNDS(page_bounds_bf16, BF16)
KV_PAGE_BOUNDS(page_bounds_int8, Int8)
KV_PAGE_BOUNDS(page_bounds_int4, Int4)
KV_PAGE_BOUNDS(page_bounds_int2, Int2)

extern "C" __global__ void __launch_bounds__(BOUNDS_THREADS)
    page_uppers(float* uppers, const float* bounds, const float* queries, const unsigned* lanes, int heads,
                int kv_heads, int head_dim, int page, int page_stride) {
  const int group = heads / kv_heads, in_warp = threadIdx.x % 32;
  const size_t of_lane = static_cast<size_t>(blockIdx.z) * kv_heads + blockIdx.y;
  const Lane lane = lane_at(lanes, static_cast<int>(of_lane));
  const unsigned at = blockIdx.x * BOUNDS_WARPS + threadIdx.x / 32;
  if (at * page >= lane.slots) return;
  const float* least = bounds + (of_lane * page_stride + at) * 2 * head_dim;
  const float* most = least + head_dim;
  const bool empty = least[0] > most[0];
  for (int g = 0; g < group; ++g) {
    const size_t head = of_lane * group + g;
    float upper = 0.0f;
    for (int e = in_warp; e < head_dim; e += 32) {
      const float q = queries[head * head_dim + e];
      upper += fmaxf(q * least[e], q * most[e]);
    }
    upper = warp_sum(upper);
    if (in_warp == 0) uppers[head * page_stride + at] = empty ? minus_infinity() : upper;
  }
}
KV_EXPORT(page_uppers)
