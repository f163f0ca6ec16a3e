// The n largest of a row of keys, or as many of the largest as a capacity holds, by radix selection: four passes over the
// row's bytes from the highest down, each a histogram of 256 in shared memory, then one pass that marks what is above the
// key found and, of those equal to it, as many as have a place. Counts and weights are whole numbers, so atomics leave no
// trace of their order.
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

// The highest key of which those that have it and those above weigh more than a capacity: what those above leave of it, and
// what those that have it weigh. `equal` 0: all of them together weigh no more.
struct Reach {
  unsigned key, left, equal;
};

// The weight of items that are counted.
struct One {
  static constexpr bool counted = true;
  KV_DEVICE unsigned operator()(unsigned) const { return 1; }
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

// `item(slot, key)` says whether a slot competes and with what, `weigh(slot)` how much it is. All threads of the block take
// part.
template <class Item, class Weigh>
KV_DEVICE Reach reach_of(const Item& item, const Weigh& weigh, unsigned slots, unsigned capacity,
                         const SelectShared& shared) {
  const int tid = threadIdx.x, lane = tid % 32;
  unsigned prefix = 0, left = capacity, equal = 0;
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
        // Probabilities share their upper bytes: what agrees with the first of a warp is added at once.
        const unsigned active = __ballot_sync(ALL_LANES, counts);
        if (active == 0) continue;
        const int first = __ffs(active) - 1;
        const unsigned common = __shfl_sync(ALL_LANES, digit, first);
        const bool agrees = counts && digit == common;
        unsigned weight = counts ? weigh(start + j * SELECT_THREADS + tid) : 0, same;
        if constexpr (Weigh::counted) {
          same = static_cast<unsigned>(__popc(__ballot_sync(ALL_LANES, agrees)));
        } else {
          same = warp_sum(agrees ? weight : 0u);
        }
        if (lane == first) atomicAdd(&shared.histogram[common], same);
        if (counts && !agrees) atomicAdd(&shared.histogram[digit], weight);
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
      if (lane == 31 && upto <= left) shared.found[2] = 0;
      if (above <= left && left < upto) {
        for (int j = 0; j < 8; ++j) {
          const unsigned digit = 255 - 8 * lane - j, here = shared.histogram[digit];
          if (left < above + here) {
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
    if (equal == 0) return Reach{0, 0, 0};
    prefix = prefix << 8 | shared.found[0];
    left = shared.found[1];
  }
  return Reach{prefix, left, equal};
}

// The items above `key`, and `ties` of the `equal` ones that have it.
struct Cut {
  unsigned key, ties, equal;
};

// The `n` largest.
template <class Item>
KV_DEVICE Cut cut_of(const Item& item, unsigned slots, unsigned n, const SelectShared& shared) {
  if (n == 0) return Cut{0xffffffffu, 0, 0};
  const Reach reach = reach_of(item, One{}, slots, n - 1, shared);
  // Fewer compete than there are places: everything is chosen.
  if (reach.equal == 0) return Cut{0, 0xffffffffu, 0};
  return Cut{reach.key, reach.left + 1, reach.equal};
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

// Numbers of the threads before this one in one, and those of all, 0 where there are none.
template <class Pair>
KV_DEVICE Rank scan_in_block(unsigned x, const SelectShared& shared, Pair pair) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  unsigned upto = x;
#pragma unroll
  for (int by = 1; by < 32; by *= 2) {
    const unsigned other = __shfl_up_sync(ALL_LANES, upto, by);
    if (lane >= by) upto = pair.pair(other, upto);
  }
  unsigned before = __shfl_up_sync(ALL_LANES, upto, 1), all = 0;
  if (lane == 0) before = 0;
  __syncthreads();
  if (lane == 31) shared.warps[warp] = upto;
  __syncthreads();
#pragma unroll
  for (int w = 0; w < SELECT_WARPS; ++w) {
    if (w < warp) before = pair.pair(before, shared.warps[w]);
    all = pair.pair(all, shared.warps[w]);
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

// Who is kept whatever the score: the `early` first of the `live` slots, and the `newest` (`policy::select::Protected`).
struct Kept {
  unsigned live, early, newest;
};

KV_DEVICE Kept kept_of(const unsigned* positions, unsigned slots, unsigned budget, unsigned sinks, unsigned recent,
                       const SelectShared& shared) {
  unsigned live = 0, early = 0;
  for (unsigned slot = threadIdx.x; slot < slots; slot += SELECT_THREADS) {
    const unsigned position = positions[slot];
    live += position != HOLE;
    early += position < sinks;
  }
  live = block_reduce<SELECT_WARPS>(live, shared.warps, Sum{});
  early = min(block_reduce<SELECT_WARPS>(early, shared.warps, Sum{}), budget);
  return Kept{live, early, min(min(recent, budget - early), live - early)};
}

// Scores of live slots `from .. to`.
struct Score {
  const float* row;
  const unsigned* positions;
  unsigned from, to;
  KV_DEVICE bool operator()(unsigned slot, unsigned& key) const {
    key = key_of_score(row[slot]);
    return slot >= from && slot < to && positions[slot] != HOLE;
  }
};
