// New tokens' rows into their slots, keys rotated on the way (RoFormer, arXiv 2104.09864; pairs half a row apart, as
// `src/attention/rope.rs`, with its roundings), and the queries' rotation.
//
// append_{f32,f16,bf16,int8}: grid (ceil(tokens / 8), kv_heads, 2), block 256: a warp per row, z = 0 for K and 1 for V.
//   keys, values [token][kv_head][head_dim] f32, of one sequence or several: slots [token] in the lanes of sequence
//   sequences [token]. Where the heads' slots differ, each row is a token of its own: kv_heads 1, and `sequences` names
//   lanes. angles [token] index `turns` [index][2 * half]: cosines, then sines; the first 2 * half elements turn. turns
//   null: keys stay as they are. int4 and int2 pages are appended to with append_f32 and `exact` 1: by the lane's table of
//   exact pages.
// rope_rows: grid (ceil(tokens / 8), heads), block 256. rows [token][head][head_dim] in place, of any sequences.
// head_dim at most 256.
// Registers: at most 64, no spills.
#include "store.cuh"

constexpr int APPEND_THREADS = 256;
constexpr int APPEND_WARPS = APPEND_THREADS / 32;

// Element `e` of a row, turned.
KV_DEVICE float turned(const float* row, const float* turns, int half, int e) {
  if (turns == nullptr || e >= 2 * half) return row[e];
  const int pair = e % half;
  const float a = row[pair], b = row[pair + half], cos = turns[pair], sin = turns[half + pair];
  return e < half ? __fsub_rn(__fmul_rn(a, cos), __fmul_rn(b, sin)) : __fadd_rn(__fmul_rn(b, cos), __fmul_rn(a, sin));
}

template <class Store>
KV_DEVICE void append(byte* k, byte* v, const float* keys, const float* values, const float* turns,
                      const unsigned* angles, const unsigned* sequences, const unsigned* slots, const unsigned* blocks,
                      const unsigned* lanes, int tokens, int kv_heads, int head_dim, int half, int block_size,
                      int exact) {
  const int token = blockIdx.x * APPEND_WARPS + threadIdx.x / 32, in_warp = threadIdx.x % 32;
  const int kv_head = blockIdx.y;
  const bool is_key = blockIdx.z == 0;
  if (token >= tokens) return;
  const Lane lane = lane_at(lanes, static_cast<int>(sequences[token]) * kv_heads + kv_head);
  const unsigned row = row_of(blocks, exact ? lane.exact : lane.table, lane.add, slots[token], block_size);
  byte* to = (is_key ? k : v) + row * Store::row_bytes(head_dim);
  const float* from = (is_key ? keys : values) + (static_cast<size_t>(token) * kv_heads + kv_head) * head_dim;
  const float* turn =
      is_key && turns != nullptr ? turns + static_cast<size_t>(angles[token]) * 2 * half : nullptr;
  float x[PER_LANE];
#pragma unroll
  for (int j = 0; j < PER_LANE; ++j) {
    const int e = j * 32 + in_warp;
    x[j] = e < head_dim ? turned(from, turn, half, e) : 0.0f;
  }
  store_row<Store>(to, x, head_dim);
}

#define KV_APPEND(name, Store)                                                                                       \
  extern "C" __global__ void __launch_bounds__(APPEND_THREADS)                                                       \
      name(byte* k, byte* v, const float* keys, const float* values, const float* turns, const unsigned* angles,     \
           const unsigned* sequences, const unsigned* slots, const unsigned* blocks, const unsigned* lanes,          \
           int tokens, int kv_heads, int head_dim, int half, int block_size, int exact) {                            \
    append<Store>(k, v, keys, values, turns, angles, sequences, slots, blocks, lanes, tokens, kv_heads, head_dim,    \
                  half, block_size, exact);                                                                          \
  }                                                                                                                  \
  KV_EXPORT(name)

KV_APPEND(append_f32, StoreF32)
KV_APPEND(append_f16, StoreF16)
KV_APPEND(append_bf16, StoreBF16)
KV_APPEND(append_int8, StoreInt8)

extern "C" __global__ void __launch_bounds__(APPEND_THREADS)
    rope_rows(float* rows, const float* turns, const unsigned* angles, int tokens, int heads, int head_dim, int half) {
  const int token = blockIdx.x * APPEND_WARPS + threadIdx.x / 32, in_warp = threadIdx.x % 32;
  if (token >= tokens) return;
  float* row = rows + (static_cast<size_t>(token) * heads + blockIdx.y) * head_dim;
  const float* turn = turns + static_cast<size_t>(angles[token]) * 2 * half;
  // A thread has both elements of its pairs, so nobody reads what another has turned.
  for (int pair = in_warp; pair < half; pair += 32) {
    const float low = turned(row, turn, half, pair), high = turned(row, turn, half, pair + half);
    row[pair] = low;
    row[pair + half] = high;
  }
}
KV_EXPORT(rope_rows)
