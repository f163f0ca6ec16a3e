// KVCrush's signatures and distances (arXiv 2503.00022; the variant that keeps the head dimension, `src/policy/crush.rs`).
//
// A unit is `group` consecutive positions; its signature has a bit per position and head, `(position % group) * heads +
// head`, the first one highest in the first of its 64-bit words (two 32-bit words each, the lower half first).
// crush_signatures: grid (ceil(most slots / 256), kv_heads), block 256. Sets bits of signatures [unit][2 * words], which
//   the caller zeroes; marks [kv_head][word_stride] come from select_upper; unit_of [position / group] is a unit's row, or
//   0xffffffff for one that takes no part.
// crush_anchor: grid (ceil(64 * words / 256)), block 256. anchor [2 * words] of `units` rows: 0 the columns' strict
//   majority, 1 its inverse (a half is in neither), 2 odd bits, 3 zeros, 4 ones.
// crush_distances: grid (ceil(units / 8)), block 256: a warp per unit. distances [unit]: bits that differ from the anchor;
//   against an anchor of zeros, a unit's ones.
// Registers: at most 64, no spills.
#include "base.cuh"

constexpr int CRUSH_THREADS = 256;

// Where a bit of a signature lies.
KV_DEVICE int word_of(int bit) { return bit / 64 * 2 + 1 - bit / 32 % 2; }
KV_DEVICE unsigned mask_of(int bit) { return 0x80000000u >> bit % 32; }

extern "C" __global__ void __launch_bounds__(CRUSH_THREADS)
    crush_signatures(unsigned* signatures, const unsigned* marks, const unsigned* unit_of, const unsigned* positions,
                     const unsigned* lanes, int kv_heads, int group, int words, int ids, int word_stride) {
  const int head = blockIdx.y;
  const Lane lane = lane_at(lanes, head);
  const unsigned slot = blockIdx.x * CRUSH_THREADS + threadIdx.x;
  if (slot >= lane.slots) return;
  const unsigned position = positions[lane.positions + slot];
  const bool marked = marks[static_cast<size_t>(head) * word_stride + slot / 32] >> slot % 32 & 1u;
  if (position == HOLE || !marked || position / group >= static_cast<unsigned>(ids)) return;
  const unsigned unit = unit_of[position / group];
  if (unit == NO_ROW) return;
  const int bit = static_cast<int>(position % group) * kv_heads + head;
  // Or-ing bits has one result in any order.
  atomicOr(&signatures[static_cast<size_t>(unit) * 2 * words + word_of(bit)], mask_of(bit));
}
KV_EXPORT(crush_signatures)

extern "C" __global__ void __launch_bounds__(CRUSH_THREADS)
    crush_anchor(unsigned* anchor, const unsigned* signatures, int units, int words, int width, int kind) {
  const int bit = blockIdx.x * CRUSH_THREADS + threadIdx.x;
  bool one = false;
  if (bit < width) {
    if (kind < 2) {
      int ones = 0;
      for (int unit = 0; unit < units; ++unit) {
        ones += (signatures[static_cast<size_t>(unit) * 2 * words + word_of(bit)] & mask_of(bit)) != 0;
      }
      one = kind == 0 ? 2 * ones > units : 2 * ones < units;
    } else {
      one = kind == 2 ? bit % 2 == 1 : kind == 4;
    }
  }
  const unsigned votes = __ballot_sync(ALL_LANES, one);
  if (threadIdx.x % 32 == 0 && bit < 64 * words) anchor[word_of(bit)] = __brev(votes);
}
KV_EXPORT(crush_anchor)

extern "C" __global__ void __launch_bounds__(CRUSH_THREADS)
    crush_distances(unsigned* distances, const unsigned* signatures, const unsigned* anchor, int units, int words) {
  const int unit = blockIdx.x * (CRUSH_THREADS / 32) + threadIdx.x / 32;
  if (unit >= units) return;
  unsigned distance = 0;
  for (int i = threadIdx.x % 32; i < 2 * words; i += 32) {
    distance += __popc(signatures[static_cast<size_t>(unit) * 2 * words + i] ^ anchor[i]);
  }
  distance = warp_sum(distance);
  if (threadIdx.x % 32 == 0) distances[unit] = distance;
}
KV_EXPORT(crush_distances)
