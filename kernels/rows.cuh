// Rows of K and V a chunk at a time, as the CPU codec reads them, bit for bit.
#pragma once

#include "affine.cuh"
#include "cells.cuh"

// Codes to numbers with the roundings of the CPU codec.
KV_DEVICE void decode_codes(float (&x)[CHUNK], const float (&scale)[CHUNK], const float (&zero)[CHUNK]) {
#pragma unroll
  for (int i = 0; i < CHUNK; ++i) x[i] = value_of(x[i], scale[i], zero[i]);
}

// Eight channels of a row with a scale and a zero: a value, or a key of Int8.
template <class C>
KV_DEVICE void value_chunk(const byte* slab, unsigned row, int chunk, int head_dim, float (&out)[CHUNK]) {
  const typename C::Value value = C::load_value(C::values(slab, chunk, head_dim), row);
  if constexpr (C::keys == Keys::Plain) {
    C::widen_value(value, out);
  } else {
    C::widen(value.codes, out);
#pragma unroll
    for (int i = 0; i < CHUNK; ++i) out[i] = value_of(out[i], half_bits(value.scale()), half_bits(value.zero()));
  }
}

// Eight channels of a key.
template <class C>
KV_DEVICE void key_chunk(const byte* slab, unsigned row, int chunk, int head_dim, float (&out)[CHUNK]) {
  if constexpr (C::keys != Keys::PageAffine) {
    value_chunk<C>(slab, row, chunk, head_dim, out);
  } else {
    const byte* scales = C::key_scales(slab, row / KIVI_PAGE, head_dim);
    float scale[CHUNK], zero[CHUNK];
    F16::widen(F16::load(scales, chunk, head_dim), scale);
    F16::widen(F16::load(scales + 2 * head_dim, chunk, head_dim), zero);
    C::widen(C::load(C::key_codes(slab, row, head_dim), chunk, head_dim), out);
    decode_codes(out, scale, zero);
  }
}

// Eight channels of a live slot's key or value, wherever it lies.
template <class C>
KV_DEVICE void slot_chunk(const byte* slab, const byte* exact, const unsigned* blocks, const Lane& lane, unsigned slot,
                          int chunk, int head_dim, int block_size, bool values, float (&out)[CHUNK]) {
  const bool coded = C::keys != Keys::PageAffine || slot < (values ? lane.v_coded : lane.k_coded);
  const unsigned row = row_of(blocks, coded ? lane.table : lane.exact, lane.add, slot, block_size);
  if (!coded) {
    F32::widen(F32::load(exact + row * F32::row_bytes(head_dim), chunk, head_dim), out);
  } else if (values) {
    value_chunk<C>(slab, row, chunk, head_dim, out);
  } else {
    key_chunk<C>(slab, row, chunk, head_dim, out);
  }
}
