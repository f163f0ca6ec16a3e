// Contexts made of chance, so that a measurement begins at many tokens without a prompt that is fed first.
//
// fill_rows_{f32,f16,int8}: grid (ceil(most slots / 8), kv_heads, sequences), block 256: a warp per row. Every slot of
//   lanes [sequence][kv_head], holes too, gets a row of `slab`: numbers that are about normal, `step` times a whole number.
//   That is the sum of the four 16-bit parts, less its mean, of a hash of (seed, lane, slot, element), so its standard
//   deviation is sqrt((2^32 - 1) / 3) and nothing is beyond 3.5 times that. It does not depend on block tables, grid or
//   device, and has the same bits on the processor. K and V, and layers, differ by their seeds. int8 is stored as
//   append_int8 does it. head_dim at most 256.
// Hash: SplitMix64 (Steele, Lea and Flood, OOPSLA 2014), a generator of its own for each row.
// Registers: at most 64, no spills.
#include "store.cuh"

constexpr int FILL_THREADS = 256;
constexpr int FILL_WARPS = FILL_THREADS / 32;
constexpr uint64_t GOLDEN = 0x9e3779b97f4a7c15ull;
// Four times the mean of 16 bits.
constexpr int MEAN = 2 * 65535;

KV_DEVICE uint64_t mixed(uint64_t x) {
  x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9ull;
  x = (x ^ x >> 27) * 0x94d049bb133111ebull;
  return x ^ x >> 31;
}

template <class Store>
KV_DEVICE void fill_rows(byte* slab, const unsigned* blocks, const unsigned* lanes, unsigned seed, float step,
                         int head_dim, int block_size) {
  const unsigned slot = blockIdx.x * FILL_WARPS + threadIdx.x / 32;
  const unsigned of_lane = blockIdx.z * gridDim.y + blockIdx.y;
  const Lane lane = lane_at(lanes, static_cast<int>(of_lane));
  if (slot >= lane.slots) return;
  const uint64_t of_row = mixed(mixed(seed + GOLDEN) ^ (static_cast<uint64_t>(of_lane) << 32 | slot));
  float x[PER_LANE];
#pragma unroll
  for (int j = 0; j < PER_LANE; ++j) {
    const uint64_t hash = mixed(of_row + (j * 32 + threadIdx.x % 32 + 1) * GOLDEN);
    const unsigned low = static_cast<unsigned>(hash), high = static_cast<unsigned>(hash >> 32);
    const unsigned parts = (low & 0xffffu) + (low >> 16) + (high & 0xffffu) + (high >> 16);
    x[j] = __fmul_rn(static_cast<float>(static_cast<int>(parts) - MEAN), step);
  }
  const unsigned row = row_of(blocks, lane.table, lane.add, slot, block_size);
  store_row<Store>(slab + row * Store::row_bytes(head_dim), x, head_dim);
}

#define KV_FILL(name, Store)                                                                                         \
  extern "C" __global__ void __launch_bounds__(FILL_THREADS)                                                         \
      name(byte* slab, const unsigned* blocks, const unsigned* lanes, unsigned seed, float step, int head_dim,       \
           int block_size) {                                                                                         \
    fill_rows<Store>(slab, blocks, lanes, seed, step, head_dim, block_size);                                         \
  }                                                                                                                  \
  KV_EXPORT(name)

KV_FILL(fill_rows_f32, StoreF32)
KV_FILL(fill_rows_f16, StoreF16)
KV_FILL(fill_rows_int8, StoreInt8)
