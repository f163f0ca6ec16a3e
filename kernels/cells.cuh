// Elements of K and V as pages hold them, eight at a time ("a chunk").
//
// Rows of F32, F16 and BF16 are plain. Rows in codes have the layout of `src/quant/codec.rs`:
// - Int8, K and V: the codes, then scale and zero of the row (f16 each);
// - Int4, Int2, V: the codes, the scales of each 32 channels, their zeros;
// - Int4, Int2, K: per page of 32 rows the codes row by row, the channels' scales, the channels' zeros
//   (KIVI, arXiv 2402.02750, section 3). Rows that are not yet in codes lie exact, as F32, in slabs of their own.
// Codes are packed from the low bits up. `head_dim` is a multiple of 8, for Int4 and Int2 of 32, and at most 256.
#pragma once

#include "base.cuh"

constexpr int CHUNK = 8;
constexpr int KIVI_PAGE = 32;
constexpr int KIVI_CHANNELS = 32;

// How K's codes become numbers.
enum class Keys { Plain, RowAffine, PageAffine };

// A whole number below 2^23 as f32: its bits over those of 2^23, which is then taken off. Full rate, where the conversion
// instruction has a quarter of it.
KV_DEVICE float whole(unsigned n) { return __uint_as_float(0x4b000000u | n) - 8388608.0f; }
// The same of a byte of a word, which is put there by one instruction.
KV_DEVICE float whole_byte(unsigned word, int i) {
  return __uint_as_float(__byte_perm(word, 0x4b000000u, 0x7440u + i)) - 8388608.0f;
}

// The same place in every row: what their addresses have in common is worked out once and stays in a register, and the
// address of a row is one instruction then.
struct Column {
  const byte* first;
  unsigned row_bytes;
  KV_DEVICE Column(const byte* at, size_t bytes) : first(at), row_bytes(static_cast<unsigned>(bytes)) { KV_KEEP(first); }
  KV_DEVICE const byte* at(unsigned row) const { return first + static_cast<size_t>(row) * row_bytes; }
};

struct F32 {
  struct Raw {
    uint4 a, b;
  };
  static constexpr Keys keys = Keys::Plain;
  static constexpr int registers = 8;
  static constexpr int chunk_bytes = 32;
  KV_DEVICE static Raw none() { return Raw{make_uint4(0, 0, 0, 0), make_uint4(0, 0, 0, 0)}; }
  KV_DEVICE static size_t row_bytes(int head_dim) { return 4 * static_cast<size_t>(head_dim); }
  KV_DEVICE static Raw load(const byte* row, int chunk, int) {
    return Raw{load16(row + 32 * chunk), load16(row + 32 * chunk + 16)};
  }
  KV_DEVICE static void widen(const Raw& raw, float (&out)[CHUNK]) {
    const unsigned words[CHUNK] = {raw.a.x, raw.a.y, raw.a.z, raw.a.w, raw.b.x, raw.b.y, raw.b.z, raw.b.w};
#pragma unroll
    for (int i = 0; i < CHUNK; ++i) out[i] = __uint_as_float(words[i]);
  }
  using Value = Raw;
  KV_DEVICE static Value no_value() { return none(); }
  using Values = Column;
  KV_DEVICE static Values values(const byte* slab, int chunk, int head_dim) {
    return Values{slab + chunk_bytes * chunk, row_bytes(head_dim)};
  }
  KV_DEVICE static Value load_value(const Values& values, unsigned row) { return load(values.at(row), 0, 0); }
  KV_DEVICE static void widen_value(const Value& raw, float (&out)[CHUNK]) { widen(raw, out); }
};

struct F16 {
  struct Raw {
    uint4 a;
  };
  static constexpr Keys keys = Keys::Plain;
  static constexpr int registers = 4;
  static constexpr int chunk_bytes = 16;
  KV_DEVICE static Raw none() { return Raw{make_uint4(0, 0, 0, 0)}; }
  KV_DEVICE static size_t row_bytes(int head_dim) { return 2 * static_cast<size_t>(head_dim); }
  KV_DEVICE static Raw load(const byte* row, int chunk, int) { return Raw{load16(row + 16 * chunk)}; }
  KV_DEVICE static void widen(const Raw& raw, float (&out)[CHUNK]) {
    const unsigned words[4] = {raw.a.x, raw.a.y, raw.a.z, raw.a.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      out[2 * i] = half_bits(words[i] & 0xffffu);
      out[2 * i + 1] = half_bits(words[i] >> 16);
    }
  }
  using Value = Raw;
  KV_DEVICE static Value no_value() { return none(); }
  using Values = Column;
  KV_DEVICE static Values values(const byte* slab, int chunk, int head_dim) {
    return Values{slab + chunk_bytes * chunk, row_bytes(head_dim)};
  }
  KV_DEVICE static Value load_value(const Values& values, unsigned row) { return load(values.at(row), 0, 0); }
  KV_DEVICE static void widen_value(const Value& raw, float (&out)[CHUNK]) { widen(raw, out); }
};

// The upper half of an f32.
struct BF16 : F16 {
  KV_DEVICE static void widen(const Raw& raw, float (&out)[CHUNK]) {
    const unsigned words[4] = {raw.a.x, raw.a.y, raw.a.z, raw.a.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      out[2 * i] = __uint_as_float(words[i] << 16);
      out[2 * i + 1] = __uint_as_float(words[i] & 0xffff0000u);
    }
  }
  KV_DEVICE static void widen_value(const Value& raw, float (&out)[CHUNK]) { widen(raw, out); }
};

template <class Cell, class Value>
KV_DEVICE void widen_affine(const Value& value, float (&out)[CHUNK]) {
  const float scale = half_bits(value.scale()), zero = half_bits(value.zero());
  Cell::widen(value.codes, out);
#pragma unroll
  for (int i = 0; i < CHUNK; ++i) out[i] = fmaf(out[i], scale, zero);
}

struct Int8 {
  using Raw = uint2;
  static constexpr Keys keys = Keys::RowAffine;
  static constexpr int registers = 2;
  static constexpr int chunk_bytes = 8;
  static constexpr int bits = 8;
  KV_DEVICE static Raw none() { return make_uint2(0, 0); }
  KV_DEVICE static size_t row_bytes(int head_dim) { return static_cast<size_t>(head_dim) + 4; }
  // Rows are an odd number of words long.
  KV_DEVICE static Raw load(const byte* row, int chunk, int) {
    return make_uint2(load4(row + 8 * chunk), load4(row + 8 * chunk + 4));
  }
  KV_DEVICE static void widen(const Raw& raw, float (&out)[CHUNK]) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      out[i] = whole_byte(raw.x, i);
      out[4 + i] = whole_byte(raw.y, i);
    }
  }
  // A chunk's codes, and the row's scale and zero as they lie: bits of f16.
  struct Value {
    Raw codes;
    unsigned affine;
    KV_DEVICE unsigned scale() const { return affine & 0xffffu; }
    KV_DEVICE unsigned zero() const { return affine >> 16; }
  };
  KV_DEVICE static Value no_value() { return Value{none(), 0}; }
  struct Values {
    Column codes, affine;
  };
  KV_DEVICE static Values values(const byte* slab, int chunk, int head_dim) {
    return Values{{slab + chunk_bytes * chunk, row_bytes(head_dim)}, {slab + head_dim, row_bytes(head_dim)}};
  }
  KV_DEVICE static Value load_value(const Values& values, unsigned row) {
    return Value{load(values.codes.at(row), 0, 0), load4(values.affine.at(row))};
  }
  KV_DEVICE static void widen_value(const Value& value, float (&out)[CHUNK]) { widen_affine<Int8>(value, out); }
};

template <int BITS>
struct Kivi {
  using Raw = unsigned;
  static constexpr Keys keys = Keys::PageAffine;
  static constexpr int registers = 1;
  static constexpr int chunk_bytes = BITS;
  static constexpr int bits = BITS;
  KV_DEVICE static Raw none() { return 0; }
  KV_DEVICE static int code_bytes(int head_dim) { return head_dim * BITS / 8; }
  KV_DEVICE static size_t row_bytes(int head_dim) {
    return static_cast<size_t>(code_bytes(head_dim)) + head_dim / KIVI_CHANNELS * 4;
  }
  // Codes of a chunk; of a key's row or a value's.
  KV_DEVICE static Raw load(const byte* row, int chunk, int) {
    return BITS == 4 ? load4(row + 4 * chunk) : load2(row + 2 * chunk);
  }
  KV_DEVICE static void widen(Raw raw, float (&out)[CHUNK]) {
#pragma unroll
    for (int i = 0; i < CHUNK; ++i) out[i] = whole(raw >> BITS * i & ((1u << BITS) - 1));
  }
  // Where the codes of a page of keys begin, row by row.
  KV_DEVICE static const byte* page_codes(const byte* slab, unsigned page, int head_dim) {
    return slab + static_cast<size_t>(page) * KIVI_PAGE * row_bytes(head_dim);
  }
  // Where a key's codes begin in its page.
  KV_DEVICE static const byte* key_codes(const byte* slab, unsigned row, int head_dim) {
    return page_codes(slab, row / KIVI_PAGE, head_dim) + row % KIVI_PAGE * code_bytes(head_dim);
  }
  // Where a page's scales begin; the zeros are `2 * head_dim` bytes behind.
  KV_DEVICE static const byte* key_scales(const byte* slab, unsigned page, int head_dim) {
    return page_codes(slab, page, head_dim) + KIVI_PAGE * code_bytes(head_dim);
  }
  // A chunk's codes, and scale and zero of the channels that it is among: bits of f16.
  struct Value {
    Raw codes;
    unsigned of_scale, of_zero;
    KV_DEVICE unsigned scale() const { return of_scale; }
    KV_DEVICE unsigned zero() const { return of_zero; }
  };
  KV_DEVICE static Value no_value() { return Value{0, 0, 0}; }
  struct Values {
    Column rows;
    int codes, scale, zero;  // bytes into a row
  };
  KV_DEVICE static Values values(const byte* slab, int chunk, int head_dim) {
    const int scale = code_bytes(head_dim) + chunk * CHUNK / KIVI_CHANNELS * 2;
    return Values{{slab, row_bytes(head_dim)}, chunk_bytes * chunk, scale, scale + head_dim / KIVI_CHANNELS * 2};
  }
  KV_DEVICE static Value load_value(const Values& values, unsigned row) {
    const byte* at = values.rows.at(row);
    return Value{load(at + values.codes, 0, 0), load2(at + values.scale), load2(at + values.zero)};
  }
  KV_DEVICE static void widen_value(const Value& value, float (&out)[CHUNK]) { widen_affine<Kivi>(value, out); }
};

using Int4 = Kivi<4>;
using Int2 = Kivi<2>;
