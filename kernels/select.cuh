// The n largest of a row of keys, by radix selection: four passes over the row's bytes from the highest down, each a
// histogram of 256 in shared memory, then one pass that marks what is above the key found and, of those equal to it, as
// many as have a place. Counts are whole numbers, so atomics leave no trace of their order.
#pragma once

#include "base.cuh"

constexpr int SELECT_THREADS = 512;
constexpr int SELECT_WARPS = SELECT_THREADS / 32;

// Slots that a thread reads at once, so that it waits for memory once for all of them: one block has a whole row.
constexpr unsigned AHEAD = 8;

// What the passes share.
struct SelectShared {
  unsigned* histogram;  // 256
  unsigned* warps;      // SELECT_WARPS
  unsigned* found;      // 3
};

#define KV_SELECT_SHARED(shared)                 \
  KV_SHARED(unsigned, shared##_histogram, 256);  \
  KV_SHARED(unsigned, shared##_warps, SELECT_WARPS); \
  KV_SHARED(unsigned, shared##_found, 4);        \
  const SelectShared shared = {shared##_histogram, shared##_warps, shared##_found}

// The items above `key`, and `ties` of the `equal` ones that have it.
struct Cut {
  unsigned key, ties, equal;
};

// A thread's slots of N tiles: with what each competes, and bits of those that do.
template <unsigned N>
struct Read {
  unsigned keys[N], competes;
};

template <unsigned N, class Item>
KV_DEVICE Read<N> read_ahead(const Item& item, unsigned first, unsigned slots) {
  Read<N> read;
  read.competes = 0;
#pragma unroll
  for (unsigned j = 0; j < N; ++j) {
    const unsigned slot = first + j * SELECT_THREADS + threadIdx.x;
    // The last slot in place of one behind it: what is read depends on nothing, and all of it is under way at once.
    const bool competes = item(min(slot, slots - 1), read.keys[j]);
    read.competes |= static_cast<unsigned>(competes && slot < slots) << j;
  }
  return read;
}

// `item(slot, key)` says whether a slot competes and with what. All threads of the block take part.
template <class Item>
KV_DEVICE Cut cut_of(const Item& item, unsigned slots, unsigned n, const SelectShared& shared) {
  const int tid = threadIdx.x, lane = tid % 32;
  if (n == 0) return Cut{0xffffffffu, 0, 0};
  unsigned prefix = 0, left = n, equal = 0;
  for (int shift = 24; shift >= 0; shift -= 8) {
    for (int i = tid; i < 256; i += SELECT_THREADS) shared.histogram[i] = 0;
    __syncthreads();
    for (unsigned start = 0; start < slots; start += SELECT_THREADS * AHEAD) {
      const Read<AHEAD> read = read_ahead<AHEAD>(item, start, slots);
#pragma unroll
      for (unsigned j = 0; j < AHEAD; ++j) {
        const unsigned key = read.keys[j];
        const bool counts = read.competes >> j & 1u && (shift == 24 || key >> (shift + 8) == prefix);
        const unsigned digit = key >> shift & 255u;
        // Probabilities share their upper bytes: what agrees with the first of a warp is counted at once.
        const unsigned active = __ballot_sync(ALL_LANES, counts);
        if (active == 0) continue;
        const int first = __ffs(active) - 1;
        const unsigned common = __shfl_sync(ALL_LANES, digit, first);
        const unsigned same = __ballot_sync(ALL_LANES, counts && digit == common);
        if (lane == first) atomicAdd(&shared.histogram[common], static_cast<unsigned>(__popc(same)));
        if (counts && digit != common) atomicAdd(&shared.histogram[digit], 1u);
      }
    }
    __syncthreads();
    if (tid < 32) {
      // Lane i has the digits 255 - 8 i down to 248 - 8 i.
      unsigned own = 0;
      for (int j = 0; j < 8; ++j) own += shared.histogram[255 - 8 * lane - j];
      unsigned upto = own;
#pragma unroll
      for (int by = 1; by < 32; by *= 2) {
        const unsigned before = __shfl_up_sync(ALL_LANES, upto, by);
        if (lane >= by) upto += before;
      }
      unsigned above = upto - own;
      if (lane == 31 && upto < left) shared.found[2] = 0;
      if (above < left && left <= upto) {
        for (int j = 0; j < 8; ++j) {
          const unsigned digit = 255 - 8 * lane - j, here = shared.histogram[digit];
          if (left <= above + here) {
            shared.found[0] = digit;
            shared.found[1] = left - above;
            shared.found[2] = here;
            break;
          }
          above += here;
        }
      }
    }
    __syncthreads();
    equal = shared.found[2];
    // Fewer compete than there are places: everything is chosen.
    if (equal == 0) return Cut{0, 0xffffffffu, 0};
    prefix = prefix << 8 | shared.found[0];
    left = shared.found[1];
  }
  return Cut{prefix, left, equal};
}

// How many threads before this one say yes, and how many in all.
struct Rank {
  unsigned before, all;
};

KV_DEVICE Rank rank_in_block(bool yes, const SelectShared& shared) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const unsigned votes = __ballot_sync(ALL_LANES, yes);
  __syncthreads();
  if (lane == 0) shared.warps[warp] = __popc(votes);
  __syncthreads();
  unsigned before = __popc(votes & ((1u << lane) - 1)), all = 0;
#pragma unroll
  for (int w = 0; w < SELECT_WARPS; ++w) {
    if (w < warp) before += shared.warps[w];
    all += shared.warps[w];
  }
  return Rank{before, all};
}

// Calls `emit(slot, chosen)` in every thread for every slot of whole tiles, in ascending tiles; `slot` may lie behind the
// last one, never chosen. Of equal keys the earlier slots have the places, or the later ones.
template <bool LATER, class Item, class Emit>
KV_DEVICE void each_chosen(const Item& item, const Cut& cut, unsigned slots, const SelectShared& shared, Emit emit) {
  // What is emitted takes registers too.
  constexpr unsigned TILES = AHEAD / 2;
  unsigned equals = 0;
  for (unsigned start = 0; start < slots; start += SELECT_THREADS * TILES) {
    const Read<TILES> read = read_ahead<TILES>(item, start, slots);
#pragma unroll
    for (unsigned j = 0; j < TILES; ++j) {
      const unsigned base = start + j * SELECT_THREADS, key = read.keys[j];
      if (base >= slots) break;
      const bool competes = read.competes >> j & 1u, equal = competes && key == cut.key;
      const Rank rank = rank_in_block(equal, shared);
      const unsigned place = equals + rank.before;
      const bool has_place = cut.equal == 0 || (LATER ? place >= cut.equal - cut.ties : place < cut.ties);
      emit(base + threadIdx.x, competes && (key > cut.key || (equal && cut.ties > 0 && has_place)));
      equals += rank.all;
    }
  }
}

// Scores as unsigned numbers of the same order; NaN as minus infinity, zeros equal (`policy::select`).
KV_DEVICE unsigned key_of_score(float score) {
  const float comparable = isnan(score) ? minus_infinity() : score + 0.0f;
  const unsigned bits = static_cast<unsigned>(__float_as_int(comparable));
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}
KV_DEVICE float score_of_key(unsigned key) {
  return __int_as_float(static_cast<int>(key & 0x80000000u ? key & 0x7fffffffu : ~key));
}
