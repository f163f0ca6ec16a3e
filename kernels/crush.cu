// KVCrush (arXiv 2503.00022; `src/policy/crush.rs`, the variant that keeps the head dimension): who is lost of a layer whose
// heads keep the units of the best score and, of the others, those that stand for their like.
//
// A unit is the residents of `group` consecutive positions, which stay or go together; those with a protected resident do
// not compete. Arrays per lane are [sequence][kv_head], those of the first head [sequence]. Everything is in the order in
// which the rule says it, so equal scores give equal bits. In the order of their launches:
// crush_units: grid (kv_heads, sequences), block 512. Of scores [lane][score_stride] the units: first slots, ranks of first
//   residents (one more at the end) and keys of mean scores, [lane][unit_stride + 1] each; unit_of [lane][score_stride] by
//   slot, 0xffffffff in a hole; who stays for the score and what else is known of a lane, facts [lane]. Of the first head
//   rows [sequence][row_stride]: of each position that competes its unit, counted from 1; the caller zeroes it. The share
//   of representatives is an f64 in two words.
// crush_signatures: the same grid. signatures [sequence][unit_stride][words], which the caller zeroes: a bit per position
//   and head, `(position % group) * heads + head`, set in the upper half, rounded down, of the scores that compete in the
//   head; ties go to the later slot. The first bit is the highest of the first 64-bit word, which is two words here, the
//   lower half first. What the first head does not hold counts for nothing.
// crush_anchor: grid (words, sequences), block 256. anchor [sequence][words]: the strict majority of each of `width` columns,
//   or `inverse` of it (a half is in neither).
// crush_distances: grid (ceil(unit_stride / 8), sequences), block 256, a warp per unit. distances [sequence][unit_stride]:
//   bits that differ from the anchor, 0 where a unit does not compete; with the highest bit where it is no candidate.
// crush_picks: grid (ceil(unit_stride / 256), sequences), block 256, a thread per unit. places [sequence][place_stride] by
//   position / group: of the candidates by distance, ties to the earlier, `representatives` evenly spread, counted from 1;
//   the caller zeroes it. Work grows with the square of the candidates.
// crush_verdicts: grid (kv_heads, sequences), block 512. Slots of those that are lost and scores of their units, ascending:
//   of a lane from `begins` on, as far as `places_there` reach, which the lanes take as they come (`taken` begins as 0);
//   and all of them [lane][list_stride], or null. counts; cutoffs, the lowest score that stayed for itself, NaN where none
//   did. What the first head's decision looked like, pictures [sequence][picture_stride]: units, the first and the end of
//   those that compete; the first `shown_words` of the anchor; of the first `shown` units first positions, distances, flags
//   (1 stays for its score, 2 represents, 4 would stay if all places went by score), the first `shown_words` of each
//   signature.
// Registers: at most 64, no spills.
#include "select.cuh"

constexpr int CRUSH_THREADS = 256;
constexpr unsigned NO_CANDIDATE = 0x80000000u;
// No unit.
constexpr unsigned NO_UNIT = 0xffffffffu;

// The best of some units: whose key is above one, and of those equal to it the later ones.
struct Best {
  unsigned key, from;
  KV_DEVICE bool has(unsigned unit, unsigned of_unit) const {
    return of_unit > key || (of_unit == key && unit >= from);
  }
};

// What is known of a lane: 16 words.
struct Facts {
  unsigned live, units;
  unsigned first, end;  // units that compete
  unsigned from, to;    // slots of their residents
  Best important, by_score;
  unsigned representatives;
  unsigned candidates;  // units that compete and do not stay for their score
  unsigned lowest;      // key of those that do, NO_UNIT where there are none
  unsigned unused[3];
};

// Where a bit of a signature lies.
KV_DEVICE int word_of(int bit) { return bit / 64 * 2 + 1 - bit / 32 % 2; }
KV_DEVICE unsigned mask_of(int bit) { return 0x80000000u >> bit % 32; }

// Units that compete, by their keys.
struct Units {
  const unsigned* keys;
  const unsigned* ranks;
  unsigned first;
  KV_DEVICE bool operator()(unsigned unit, unsigned& key) const {
    key = keys[unit];
    return unit >= first;
  }
};
struct Residents {
  static constexpr bool counted = false;
  const unsigned* ranks;
  KV_DEVICE unsigned operator()(unsigned unit) const { return ranks[unit + 1] - ranks[unit]; }
};

struct Greatest {
  KV_DEVICE unsigned pair(unsigned a, unsigned b) const { return max(a, b); }
};

// The best units first, until the next one's residents do not fit.
KV_DEVICE Best best_of(const Units& units, unsigned end, unsigned capacity, const SelectShared& shared) {
  const Residents residents = {units.ranks};
  const Reach reach = reach_of(units, residents, end, capacity, shared);
  if (reach.equal == 0) return Best{0, 0};
  unsigned from = NO_UNIT, passed = 0;
  for (unsigned base = 0; base < end; base += SELECT_THREADS) {
    const unsigned unit = base + threadIdx.x;
    unsigned key = 0;
    const bool equal = unit < end && units(unit, key) && key == reach.key;
    const Rank rank = scan_in_block(equal ? residents(unit) : 0u, shared, Sum{});
    // With all that are later.
    if (equal && reach.equal - passed - rank.before <= reach.left) from = min(from, unit);
    passed += rank.all;
  }
  return Best{reach.key, block_reduce<SELECT_WARPS>(from, shared.warps, Min{})};
}

extern "C" __global__ void __launch_bounds__(SELECT_THREADS)
    crush_units(Facts* facts, unsigned* firsts, unsigned* ranks, unsigned* keys, unsigned* unit_of, unsigned* rows,
                const float* scores, const unsigned* positions, const unsigned* lanes, int kv_heads, int score_stride,
                int unit_stride, int row_stride, unsigned group, unsigned budget, unsigned sinks, unsigned recent,
                int ratio_low, int ratio_high) {
  KV_SELECT_SHARED(shared);
  const size_t of_lane = static_cast<size_t>(blockIdx.y) * kv_heads + blockIdx.x;
  const Lane lane = lane_at(lanes, static_cast<int>(of_lane));
  const unsigned* own = positions + lane.positions;
  const float* score = scores + of_lane * score_stride;
  const size_t of_units = of_lane * (unit_stride + 1);
  firsts += of_units;
  ranks += of_units;
  keys += of_units;
  unit_of += of_lane * score_stride;
  const unsigned tid = threadIdx.x;
  const Kept kept = kept_of(own, lane.slots, budget, sinks, recent, shared);

  // A unit begins where the number of the group is another than that of the live slot before.
  unsigned units = 0, residents = 0, last = 0, early = 0, ended = 0;
  for (unsigned base = 0; base < lane.slots; base += SELECT_THREADS) {
    const unsigned slot = base + tid;
    const unsigned position = slot < lane.slots ? own[slot] : HOLE;
    const bool is_live = position != HOLE;
    const unsigned id = is_live ? position / group + 1 : 0u;
    const Rank before = scan_in_block(id, shared, Greatest{});
    const bool begins = is_live && id != max(last, before.before);
    const Rank rank = rank_in_block(is_live, shared), unit = rank_in_block(begins, shared);
    const unsigned at = units + unit.before, resident = residents + rank.before;
    if (begins) {
      firsts[at] = slot;
      ranks[at] = resident;
      early += resident < kept.early;
      ended += resident > 0 && resident <= kept.live - kept.newest;
    }
    if (slot < lane.slots) unit_of[slot] = is_live ? at + begins - 1 : NO_UNIT;
    units += unit.all;
    residents += rank.all;
    last = max(last, before.all);
  }
  if (tid == 0) ranks[units] = kept.live;
  const unsigned first = block_reduce<SELECT_WARPS>(early, shared.warps, Sum{});
  ended = block_reduce<SELECT_WARPS>(ended, shared.warps, Sum{}) + (units > 0 && kept.newest == 0);
  const unsigned end = max(ended, first);
  for (unsigned unit = tid; unit < units; unit += SELECT_THREADS) {
    const unsigned behind = unit + 1 < units ? firsts[unit + 1] : lane.slots;
    float sum = 0.0f;
    for (unsigned slot = firsts[unit]; slot < behind; ++slot) {
      if (own[slot] != HOLE) sum = __fadd_rn(sum, score_of_key(key_of_score(score[slot])));
    }
    keys[unit] = key_of_score(__fdiv_rn(sum, static_cast<float>(ranks[unit + 1] - ranks[unit])));
  }
  for (unsigned slot = tid; blockIdx.x == 0 && slot < lane.slots; slot += SELECT_THREADS) {
    const unsigned unit = unit_of[slot];
    if (unit == NO_UNIT || unit < first || unit >= end) continue;
    rows[static_cast<size_t>(blockIdx.y) * row_stride + own[slot]] = unit + 1;
  }
  const unsigned fixed = kept.live - (ranks[end] - ranks[first]), places = budget - min(fixed, budget);
  const double ratio = __hiloint2double(ratio_high, ratio_low);
  const unsigned representatives = static_cast<unsigned>(__dmul_rn(ratio, static_cast<double>(places))) / group;
  const unsigned for_score = budget - min(representatives * group, budget);
  facts += of_lane;
  if (tid == 0) {
    facts->live = kept.live;
    facts->units = units;
    facts->first = first;
    facts->end = end;
    facts->from = first < units ? firsts[first] : lane.slots;
    facts->to = end < units ? firsts[end] : lane.slots;
    facts->representatives = representatives;
  }
  __syncthreads();

  const Units all = {keys, ranks, first};
  const bool everybody = kept.live <= budget;
  // The first head's picture also tells who would stay if all places went by score.
  Best important = {0, 0};
  for (int all_by_score = blockIdx.x == 0; all_by_score >= 0; --all_by_score) {
    const unsigned capacity = all_by_score ? places : for_score - min(fixed, for_score);
    if (!everybody) important = best_of(all, end, capacity, shared);
    if (all_by_score && tid == 0) facts->by_score = important;
  }
  unsigned stay = 0, lowest = NO_UNIT;
  for (unsigned unit = first + tid; unit < end; unit += SELECT_THREADS) {
    const unsigned key = keys[unit];
    if (!important.has(unit, key)) continue;
    ++stay;
    lowest = min(lowest, key);
  }
  stay = block_reduce<SELECT_WARPS>(stay, shared.warps, Sum{});
  lowest = block_reduce<SELECT_WARPS>(lowest, shared.warps, Min{});
  if (tid == 0) {
    facts->important = important;
    facts->candidates = end - first - stay;
    facts->lowest = lowest;
  }
}
KV_EXPORT(crush_units)

extern "C" __global__ void __launch_bounds__(SELECT_THREADS)
    crush_signatures(unsigned* signatures, const unsigned* rows, const Facts* facts, const float* scores,
                     const unsigned* positions, const unsigned* lanes, int kv_heads, int score_stride, int unit_stride,
                     int row_stride, int words, unsigned group) {
  KV_SELECT_SHARED(shared);
  const int head = blockIdx.x;
  const size_t sequence = blockIdx.y, of_lane = sequence * kv_heads + head;
  const Lane lane = lane_at(lanes, static_cast<int>(of_lane));
  const unsigned first = facts[of_lane].first, end = facts[of_lane].end;
  const unsigned from = facts[of_lane].from, to = first < end ? facts[of_lane].to : from;
  const Score item = {scores + of_lane * score_stride, positions + lane.positions, from, to};
  unsigned competing = 0;
  for (unsigned slot = from + threadIdx.x; slot < to; slot += SELECT_THREADS) competing += item.positions[slot] != HOLE;
  competing = block_reduce<SELECT_WARPS>(competing, shared.warps, Sum{});
  const Cut cut = cut_of(item, to, competing / 2, shared);
  each_chosen<true>(item, cut, to, shared, [&](unsigned slot, bool chosen) {
    if (!chosen) return;
    const unsigned position = item.positions[slot];
    if (position >= static_cast<unsigned>(row_stride)) return;
    const unsigned row = rows[sequence * row_stride + position];
    if (row == 0) return;
    const int bit = static_cast<int>(position % group) * kv_heads + head;
    // Or-ing bits has one result in any order.
    atomicOr(&signatures[(sequence * unit_stride + row - 1) * words + word_of(bit)], mask_of(bit));
  });
}
KV_EXPORT(crush_signatures)

extern "C" __global__ void __launch_bounds__(CRUSH_THREADS)
    crush_anchor(unsigned* anchor, const unsigned* signatures, const Facts* facts, int kv_heads, int unit_stride,
                 int words, int width, int inverse) {
  KV_SHARED(unsigned, of_warps, CRUSH_THREADS);
  const int word = blockIdx.x, tid = threadIdx.x, lane = tid % 32;
  const size_t sequence = blockIdx.y;
  const unsigned first = facts[sequence * kv_heads].first, end = facts[sequence * kv_heads].end;
  // Lane i counts the ones of bit i of the word.
  unsigned ones = 0;
  for (unsigned base = first; base < end; base += CRUSH_THREADS) {
    const unsigned unit = base + tid;
    const unsigned bits = unit < end ? signatures[(sequence * unit_stride + unit) * words + word] : 0u;
    for (int bit = 0; bit < 32; ++bit) {
      const unsigned votes = __ballot_sync(ALL_LANES, bits >> bit & 1u);
      if (lane == bit) ones += static_cast<unsigned>(__popc(votes));
    }
  }
  of_warps[tid] = ones;
  __syncthreads();
  if (tid >= 32) return;
  for (int warp = 1; warp < CRUSH_THREADS / 32; ++warp) ones += of_warps[32 * warp + lane];
  const bool is_bit = (word ^ 1) * 32 + 31 - lane < width;
  const bool one = inverse ? 2 * ones < end - first : 2 * ones > end - first;
  const unsigned votes = __ballot_sync(ALL_LANES, is_bit && one);
  if (lane == 0) anchor[sequence * words + word] = votes;
}
KV_EXPORT(crush_anchor)

extern "C" __global__ void __launch_bounds__(CRUSH_THREADS)
    crush_distances(unsigned* distances, const unsigned* signatures, const unsigned* anchor, const Facts* facts,
                    const unsigned* keys, int kv_heads, int unit_stride, int words) {
  const unsigned unit = blockIdx.x * (CRUSH_THREADS / 32) + threadIdx.x / 32;
  const size_t sequence = blockIdx.y, of_lane = sequence * kv_heads;
  const Facts& of = facts[of_lane];
  if (unit >= of.units) return;
  const bool competes = unit >= of.first && unit < of.end;
  unsigned distance = 0;
  for (int i = threadIdx.x % 32; competes && i < words; i += 32) {
    distance += static_cast<unsigned>(
        __popc(signatures[(sequence * unit_stride + unit) * words + i] ^ anchor[sequence * words + i]));
  }
  distance = warp_sum(distance);
  if (threadIdx.x % 32 > 0) return;
  const bool stays = !competes || of.important.has(unit, keys[of_lane * (unit_stride + 1) + unit]);
  distances[sequence * unit_stride + unit] = stays ? distance | NO_CANDIDATE : distance;
}
KV_EXPORT(crush_distances)

extern "C" __global__ void __launch_bounds__(CRUSH_THREADS)
    crush_picks(unsigned* places, const unsigned* distances, const unsigned* firsts, const Facts* facts,
                const unsigned* positions, const unsigned* lanes, int kv_heads, int unit_stride, int place_stride,
                unsigned group) {
  KV_SHARED(unsigned, others, CRUSH_THREADS);
  const size_t sequence = blockIdx.y, of_lane = sequence * kv_heads;
  const unsigned tid = threadIdx.x, first = facts[of_lane].first, end = facts[of_lane].end;
  const unsigned n = facts[of_lane].candidates, m = min(n, facts[of_lane].representatives);
  // The same for all threads of the block.
  if (m == 0 || blockIdx.x * CRUSH_THREADS >= end) return;
  const unsigned unit = blockIdx.x * CRUSH_THREADS + tid;
  const unsigned* of = distances + sequence * unit_stride;
  const unsigned own = unit >= first && unit < end ? of[unit] : NO_CANDIDATE;
  unsigned long long rank = 0;
  for (unsigned base = first; base < end; base += CRUSH_THREADS) {
    __syncthreads();
    others[tid] = base + tid < end ? of[base + tid] : NO_CANDIDATE;
    __syncthreads();
    unsigned nearer = 0;
    for (unsigned i = 0; i < CRUSH_THREADS; ++i) {
      nearer += others[i] < own || (others[i] == own && base + i < unit);
    }
    rank += nearer;
  }
  if (own & NO_CANDIDATE) return;
  // Whose place is `rank`: the whole parts of `linspace(0, n - 1, m)`.
  unsigned long long pick = 0;
  if (m > 1) pick = (rank * (m - 1) + n - 2) / (n - 1);
  if (pick * (n - 1) / max(m - 1, 1u) != rank) return;
  const Lane lane = lane_at(lanes, static_cast<int>(of_lane));
  const unsigned id = positions[lane.positions + firsts[of_lane * (unit_stride + 1) + unit]] / group;
  if (id >= static_cast<unsigned>(place_stride)) return;
  places[sequence * place_stride + id] = static_cast<unsigned>(pick) + 1;
}
KV_EXPORT(crush_picks)

extern "C" __global__ void __launch_bounds__(SELECT_THREADS)
    crush_verdicts(unsigned* victims, float* lost, unsigned* counts, float* cutoffs, unsigned* begins,
                   unsigned* pictures, unsigned* taken, unsigned* all_victims, float* all_lost, const Facts* facts, const unsigned* firsts, const unsigned* keys, const unsigned* unit_of,
                   const unsigned* places, const unsigned* distances, const unsigned* signatures,
                   const unsigned* anchor, const unsigned* positions, const unsigned* lanes, int kv_heads,
                   int score_stride, int unit_stride, int place_stride, int words, int list_stride, int places_there,
                   int picture_stride, int shown, int shown_words, unsigned group) {
  KV_SELECT_SHARED(shared);
  const size_t sequence = blockIdx.y, of_lane = sequence * kv_heads + blockIdx.x;
  const Lane lane = lane_at(lanes, static_cast<int>(of_lane));
  const unsigned* own = positions + lane.positions;
  const unsigned tid = threadIdx.x;
  const Facts& of = facts[of_lane];
  const unsigned first = of.first, end = of.end, representatives = of.representatives;
  const Best important = of.important;
  firsts += of_lane * (unit_stride + 1);
  keys += of_lane * (unit_stride + 1);
  unit_of += of_lane * score_stride;
  places += sequence * place_stride;
  // Its place among the picks, which are the first head's; 0 for a unit that is none.
  const auto place_of = [&](unsigned position) {
    const unsigned id = position / group;
    return id < static_cast<unsigned>(place_stride) ? places[id] : 0u;
  };

  const auto goes_at = [&](unsigned slot) {
    if (slot >= lane.slots) return false;
    const unsigned unit = unit_of[slot];
    if (unit == NO_UNIT || unit < first || unit >= end || important.has(unit, keys[unit])) return false;
    const unsigned place = place_of(own[slot]);
    return place == 0 || place > representatives;
  };

  KV_SHARED(unsigned, place, 1);
  unsigned count = 0;
  for (unsigned slot = tid; slot < lane.slots; slot += SELECT_THREADS) count += goes_at(slot);
  count = block_reduce<SELECT_WARPS>(count, shared.warps, Sum{});
  if (tid == 0) {
    place[0] = atomicAdd(taken, count);
    counts[of_lane] = count;
    begins[of_lane] = place[0];
    cutoffs[of_lane] = of.lowest == NO_UNIT ? __int_as_float(0x7fc00000) : score_of_key(of.lowest);
  }
  // Ranking begins with a barrier: then all know the place.
  unsigned listed = 0;
  for (unsigned base = 0; listed < count; base += SELECT_THREADS) {
    const unsigned slot = base + tid;
    const bool goes = goes_at(slot);
    const Rank rank = rank_in_block(goes, shared);
    const unsigned at = listed + rank.before;
    if (goes) {
      const float score = score_of_key(keys[unit_of[slot]]);
      if (all_victims != nullptr) {
        all_victims[of_lane * list_stride + at] = slot;
        all_lost[of_lane * list_stride + at] = score;
      }
      if (at + place[0] < static_cast<unsigned>(places_there)) {
        victims[at + place[0]] = slot;
        lost[at + place[0]] = score;
      }
    }
    listed += rank.all;
  }
  if (blockIdx.x > 0) return;

  unsigned* picture = pictures + sequence * picture_stride;
  if (tid == 0) {
    picture[0] = of.units;
    picture[1] = first;
    picture[2] = end;
  }
  picture += 3;
  for (int word = tid; word < shown_words; word += SELECT_THREADS) picture[word] = anchor[sequence * words + word];
  picture += shown_words;
  signatures += sequence * unit_stride * words;
  const unsigned units = min(of.units, static_cast<unsigned>(shown));
  for (unsigned unit = tid; unit < units; unit += SELECT_THREADS) {
    const unsigned position = own[firsts[unit]], key = keys[unit];
    const bool competes = unit >= first && unit < end;
    picture[unit] = position;
    picture[shown + unit] = distances[sequence * unit_stride + unit] & ~NO_CANDIDATE;
    picture[2 * shown + unit] = (competes && important.has(unit, key)) | (competes && place_of(position) > 0) << 1 |
                                (!competes || of.by_score.has(unit, key)) << 2;
  }
  for (unsigned i = tid; i < units * shown_words; i += SELECT_THREADS) {
    picture[3 * shown + i] = signatures[static_cast<size_t>(i / shown_words) * words + i % shown_words];
  }
}
KV_EXPORT(crush_verdicts)
