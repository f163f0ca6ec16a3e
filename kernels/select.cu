// Selections: the read set of a query (KCache, arXiv 2404.18057), the attention picture's top K, and who stays under a
// budget (the one selection that the eviction rules share, `src/policy/select.rs`).
//
// Every kernel: block 512. Marks are bits, slot `s` in word `s / 32`, bit `s % 32`; word_stride covers whole tiles of 512
// slots. Lists ascend by slot.
// select_top: grid (heads, sequences). The n largest probabilities of rows [sequence][head][row_stride] among the slots
//   that the query sees; ties go to the earlier slot, NaN is the largest. `own`: 1 adds the query's own slot, the last that
//   it sees. marks [sequence][head][word_stride], counts [sequence][head], chosen [sequence][head][list_stride] or null.
// select_union: grid (kv_heads, sequences). Of a group's marks the union: slots [sequence][kv_head][list_stride], counts
//   [sequence][kv_head], weights [sequence][head][list_stride] (0 where a head did not ask), dropped [sequence][head]:
//   the mass that each head did not ask for.
// select_keep: grid (kv_heads, sequences). Who stays of scores [sequence][kv_head][score_stride]: positions below `sinks`
//   and the `recent` newest whatever their score, sinks first where both do not fit, then the highest; ties go to the later
//   slot, NaN is the lowest. Exactly `budget` stay, or everybody where there are no more. marks of who stays or null,
//   victims and their scores, lost, [sequence][kv_head][list_stride], counts of victims, cutoffs [sequence][kv_head]: the
//   lowest score that stayed of those that competed, NaN where nobody did. A grid of one head decides for the first.
// select_pages: grid (heads, sequences). Of pages of `page` slots the last, and of the others the `n` of largest uppers
//   [sequence][head][page_stride] (bounds.cu; -inf for a page without a live slot); ties go to the earlier page, NaN is the
//   largest (Quest, arXiv 2406.10774). page_marks [sequence][head][page_words], and marks of their slots, for decode's
//   `read`.
// Registers: at most 64, no spills.
#include "select.cuh"

KV_DEVICE bool is_seen(unsigned position, const Lane& lane) { return is_seen(position, lane.query, ALL_POSITIONS); }

// Probabilities are never negative: their bits have their order.
struct Probability {
  const float* row;
  const unsigned* positions;
  Lane lane;
  KV_DEVICE bool operator()(unsigned slot, unsigned& key) const {
    key = static_cast<unsigned>(__float_as_int(row[slot]));
    return is_seen(positions[slot], lane);
  }
};

KV_DEVICE void mark(unsigned* marks, unsigned slot, bool chosen) {
  const unsigned word = __ballot_sync(ALL_LANES, chosen);
  if (threadIdx.x % 32 == 0) marks[slot / 32] = word;
}

extern "C" __global__ void __launch_bounds__(SELECT_THREADS)
    select_top(unsigned* marks, unsigned* counts, unsigned* chosen, const float* rows, const unsigned* positions,
               const unsigned* lanes, int heads, int kv_heads, int row_stride, int word_stride, int list_stride, int n,
               int own) {
  KV_SELECT_SHARED(shared);
  const int head = blockIdx.x;
  const size_t sequence = blockIdx.y, row = sequence * heads + head;
  const Lane lane = lane_at(lanes, static_cast<int>(sequence) * kv_heads + head / (heads / kv_heads));
  const Probability item = {rows + row * row_stride, positions + lane.positions, lane};
  const Cut cut = cut_of(item, lane.slots, n, shared);
  unsigned last = HOLE;
  if (own) {
    // The last slot seen, as the least distance from the end.
    unsigned from_end = HOLE;
    for (unsigned slot = threadIdx.x; slot < lane.slots; slot += SELECT_THREADS) {
      if (is_seen(item.positions[slot], lane)) from_end = lane.slots - 1 - slot;
    }
    from_end = block_reduce<SELECT_WARPS>(from_end, shared.warps, Min{});
    if (from_end != HOLE) last = lane.slots - 1 - from_end;
  }
  unsigned listed = 0;
  each_chosen<false>(item, cut, lane.slots, shared, [&](unsigned slot, bool is_chosen) {
    const bool takes = is_chosen || slot == last;
    mark(marks + row * word_stride, slot, takes);
    const Rank rank = rank_in_block(takes, shared);
    if (takes && chosen != nullptr) chosen[row * list_stride + listed + rank.before] = slot;
    listed += rank.all;
  });
  if (threadIdx.x == 0) counts[row] = listed;
}
KV_EXPORT(select_top)

extern "C" __global__ void __launch_bounds__(SELECT_THREADS)
    select_union(unsigned* slots, unsigned* counts, float* weights, float* dropped, const unsigned* marks,
                 const float* rows, const unsigned* lanes, int heads, int kv_heads, int row_stride, int word_stride,
                 int list_stride) {
  KV_SELECT_SHARED(shared);
  KV_SHARED(float, sums, SELECT_WARPS);
  const int kv_head = blockIdx.x, group = heads / kv_heads;
  const size_t of_lane = static_cast<size_t>(blockIdx.y) * kv_heads + kv_head;
  const size_t first_head = of_lane * group;
  const Lane lane = lane_at(lanes, static_cast<int>(of_lane));
  unsigned listed = 0;
  for (unsigned first = 0; first < lane.slots; first += SELECT_THREADS * AHEAD) {
    unsigned any[AHEAD];
#pragma unroll
    for (unsigned j = 0; j < AHEAD; ++j) {
      const unsigned base = first + j * SELECT_THREADS;
      any[j] = 0;
      if (base >= lane.slots) continue;
      for (int g = 0; g < group; ++g) any[j] |= marks[(first_head + g) * word_stride + (base + threadIdx.x) / 32];
    }
#pragma unroll
    for (unsigned j = 0; j < AHEAD; ++j) {
      const unsigned base = first + j * SELECT_THREADS;
      if (base >= lane.slots) break;
      const unsigned slot = base + threadIdx.x, word = slot / 32, bit = 1u << slot % 32;
      const bool takes = any[j] & bit;
      const Rank rank = rank_in_block(takes, shared);
      if (takes) {
        const unsigned at = listed + rank.before;
        slots[of_lane * list_stride + at] = slot;
        for (int g = 0; g < group; ++g) {
          const bool asked = marks[(first_head + g) * word_stride + word] & bit;
          weights[(first_head + g) * list_stride + at] = asked ? rows[(first_head + g) * row_stride + slot] : 0.0f;
        }
      }
      listed += rank.all;
    }
  }
  if (threadIdx.x == 0) counts[of_lane] = listed;
  for (int g = 0; g < group; ++g) {
    const float* row = rows + (first_head + g) * row_stride;
    const unsigned* own = marks + (first_head + g) * word_stride;
    float outside = 0.0f;
    for (unsigned first = threadIdx.x; first < lane.slots; first += SELECT_THREADS * AHEAD) {
      float left[AHEAD];
#pragma unroll
      for (unsigned j = 0; j < AHEAD; ++j) {
        const unsigned slot = first + j * SELECT_THREADS;
        const bool there = slot < lane.slots;
        const float p = there ? row[slot] : 0.0f;
        const unsigned word = there ? own[slot / 32] : 0;
        left[j] = word >> slot % 32 & 1u ? 0.0f : p;
      }
#pragma unroll
      for (unsigned j = 0; j < AHEAD; ++j) outside += left[j];
    }
    outside = block_reduce<SELECT_WARPS>(outside, sums, Sum{});
    // Rounding may carry it a little over 1; a row without numbers drops everything.
    if (threadIdx.x == 0) dropped[first_head + g] = isnan(outside) ? 1.0f : fminf(fmaxf(outside, 0.0f), 1.0f);
  }
}
KV_EXPORT(select_union)

// Two blocks at once: for more of them the compiler would spill.
extern "C" __global__ void __launch_bounds__(SELECT_THREADS, 2)
    select_keep(unsigned* marks, unsigned* victims, float* lost, unsigned* counts, float* cutoffs, const float* scores,
                const unsigned* positions, const unsigned* lanes, int kv_heads, int score_stride, int word_stride,
                int list_stride, unsigned budget, unsigned sinks, unsigned recent) {
  KV_SELECT_SHARED(shared);
  KV_SHARED(unsigned, bounds, 2);
  const size_t of_lane = static_cast<size_t>(blockIdx.y) * kv_heads + blockIdx.x;
  const Lane lane = lane_at(lanes, static_cast<int>(of_lane));
  const unsigned* own = positions + lane.positions;
  const unsigned tid = threadIdx.x;

  const Kept kept = kept_of(own, lane.slots, budget, sinks, recent, shared);
  const unsigned live = kept.live, early = kept.early, newest = kept.newest;
  // Slots of the first and behind the last competitor: live slots ascend by position, so ranks are a range of them.
  if (tid == 0) {
    bounds[0] = lane.slots;
    bounds[1] = lane.slots;
  }
  unsigned ranked = 0;
  for (unsigned base = 0; base < lane.slots; base += SELECT_THREADS) {
    const unsigned slot = base + tid;
    const bool is_live = slot < lane.slots && own[slot] != HOLE;
    const Rank rank = rank_in_block(is_live, shared);
    if (is_live && ranked + rank.before == early) bounds[0] = slot;
    if (is_live && ranked + rank.before == live - newest) bounds[1] = slot;
    ranked += rank.all;
  }
  __syncthreads();
  const bool everybody = live <= budget;
  const Score item = {scores + of_lane * score_stride, own, min(bounds[0], bounds[1]), bounds[1]};
  const unsigned places = everybody ? 0 : budget - early - newest;
  const Cut cut = cut_of(item, lane.slots, places, shared);
  unsigned listed = 0, lowest = 0xffffffffu;
  each_chosen<true>(item, cut, lane.slots, shared, [&](unsigned slot, bool is_chosen) {
    const bool is_live = slot < lane.slots && own[slot] != HOLE;
    const bool competes = is_live && slot >= item.from && slot < item.to;
    const bool stays = is_live && (everybody || !competes || is_chosen);
    if (marks != nullptr) mark(marks + of_lane * word_stride, slot, stays);
    if (is_chosen) lowest = min(lowest, key_of_score(item.row[slot]));
    const bool goes = is_live && !stays;
    const Rank rank = rank_in_block(goes, shared);
    if (goes) {
      const size_t at = of_lane * list_stride + listed + rank.before;
      victims[at] = slot;
      lost[at] = score_of_key(key_of_score(item.row[slot]));
    }
    listed += rank.all;
  });
  lowest = block_reduce<SELECT_WARPS>(lowest, shared.warps, Min{});
  if (tid == 0) {
    counts[of_lane] = listed;
    cutoffs[of_lane] = places == 0 ? __int_as_float(0x7fc00000) : score_of_key(lowest);
  }
}
KV_EXPORT(select_keep)

// Pages but the last.
struct Upper {
  const float* row;
  unsigned last;
  KV_DEVICE bool operator()(unsigned page, unsigned& key) const {
    const float upper = row[page];
    key = isnan(upper) ? key_of_score(-minus_infinity()) : key_of_score(upper);
    return page < last && upper != minus_infinity();
  }
};

extern "C" __global__ void __launch_bounds__(SELECT_THREADS)
    select_pages(unsigned* marks, unsigned* page_marks, const float* uppers, const unsigned* lanes, int heads,
                 int kv_heads, int page, int page_stride, int page_words, int word_stride, int n) {
  KV_SELECT_SHARED(shared);
  const int head = blockIdx.x;
  const size_t sequence = blockIdx.y, row = sequence * heads + head;
  const Lane lane = lane_at(lanes, static_cast<int>(sequence) * kv_heads + head / (heads / kv_heads));
  if (lane.slots == 0) return;
  const unsigned pages = (lane.slots + page - 1) / page;
  const Upper item = {uppers + row * page_stride, pages - 1};
  unsigned* own = page_marks + row * page_words;
  const Cut cut = cut_of(item, pages, n, shared);
  each_chosen<false>(item, cut, pages, shared,
                     [&](unsigned at, bool chosen) { mark(own, at, chosen || at == item.last); });
  __syncthreads();
  for (unsigned base = 0; base < lane.slots; base += SELECT_THREADS) {
    const unsigned slot = base + threadIdx.x, of_slot = slot / page;
    mark(marks + row * word_stride, slot, slot < lane.slots && own[of_slot / 32] >> of_slot % 32 & 1u);
  }
}
KV_EXPORT(select_pages)
