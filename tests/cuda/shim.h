// CUDA C++ on the host: what the kernels use of it, run one block after the other with every thread a fibre of its own.
//
// Threads run until they meet: at __syncthreads every thread of the block has to arrive at the same line, at a warp's
// exchange or vote every lane of its mask. A launch fails with a sentence where they cannot meet, where an exchange reads
// a lane that takes no part, or where an address is not aligned; where one lies behind an array or a piece of shared memory,
// the tests end with a line that names the kernel. Shared memory begins as NaN. A warp runs as far ahead of the others as
// barriers let it, and a schedule says in which order warps and lanes run: a missing barrier shows in one order or in its
// reverse.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
};
struct uint2 {
  unsigned x, y;
};
struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

namespace shim {

enum class Meeting { Shuffle, Vote };

struct Thread {
  dim3 index;
  unsigned lane = 0, warp = 0;
};

extern Thread* here;
extern dim3 block_index, block_size, grid_size;

// All return once those concerned have arrived.
void meet_block(int line);
uint32_t meet_warp(Meeting meeting, uint32_t mask, uint32_t value, unsigned source, int line);
// A piece of the block's shared memory, the same for all threads that name the same place.
void* shared(const char* file, int line, const char* name, size_t bytes);
[[noreturn]] void fault(const char* what, int line);

using Entry = void (*)(void** arguments);
struct Register {
  Register(const char* name, Entry entry);
};

template <auto kernel>
struct Call;
template <class... A, void (*kernel)(A...)>
struct Call<kernel> {
  template <size_t... I>
  static void with(void** arguments, std::integer_sequence<size_t, I...>);
  static void entry(void** arguments) { with(arguments, std::make_integer_sequence<size_t, sizeof...(A)>()); }
};
template <class... A, void (*kernel)(A...)>
template <size_t... I>
void Call<kernel>::with(void** arguments, std::integer_sequence<size_t, I...>) {
  kernel(*static_cast<std::remove_cv_t<A>*>(arguments[I])...);
}

}  // namespace shim

#define threadIdx (shim::here->index)
#define blockIdx (shim::block_index)
#define blockDim (shim::block_size)
#define gridDim (shim::grid_size)

#define KV_SHARED(type, name, count) \
  type* const name = static_cast<type*>(shim::shared(__FILE__, __LINE__, #name, sizeof(type) * (count)))
#define KV_EXPORT(name) static const shim::Register registered_##name(#name, shim::Call<name>::entry);
#define KV_ALIGNED(address, bytes) \
  do { \
    if (reinterpret_cast<uintptr_t>(address) % (bytes) != 0) shim::fault("an address is not aligned", __LINE__); \
  } while (0)

#define KV_KEEP(address)

inline void __syncthreads(int line = __builtin_LINE()) { shim::meet_block(line); }

template <class T>
T shim_exchange(uint32_t mask, T value, unsigned source, int line) {
  static_assert(sizeof(T) == 4, "exchanges are of 32 bits");
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  bits = shim::meet_warp(shim::Meeting::Shuffle, mask, bits, source, line);
  std::memcpy(&value, &bits, 4);
  return value;
}
template <class T>
T __shfl_sync(uint32_t mask, T value, int source, int line = __builtin_LINE()) {
  return shim_exchange(mask, value, source & 31, line);
}
template <class T>
T __shfl_xor_sync(uint32_t mask, T value, int by, int line = __builtin_LINE()) {
  return shim_exchange(mask, value, shim::here->lane ^ by, line);
}
template <class T>
T __shfl_up_sync(uint32_t mask, T value, unsigned by, int line = __builtin_LINE()) {
  const unsigned lane = shim::here->lane;
  return shim_exchange(mask, value, lane >= by ? lane - by : lane, line);
}
inline unsigned __ballot_sync(uint32_t mask, bool vote, int line = __builtin_LINE()) {
  return shim::meet_warp(shim::Meeting::Vote, mask, vote, 0, line);
}

// Fibres run one at a time: an update is not interrupted.
inline unsigned atomicAdd(unsigned* at, unsigned by) {
  const unsigned was = *at;
  *at += by;
  return was;
}
inline unsigned atomicOr(unsigned* at, unsigned bits) {
  const unsigned was = *at;
  *at |= bits;
  return was;
}

template <class T>
T __ldcs(const T* from) {
  KV_ALIGNED(from, sizeof(T) > 4 ? sizeof(T) : alignof(T));
  return *from;
}

template <class T>
T min(T a, T b) {
  return b < a ? b : a;
}
template <class T>
T max(T a, T b) {
  return a < b ? b : a;
}
using std::isnan;

inline float __uint_as_float(unsigned bits) {
  float x;
  std::memcpy(&x, &bits, 4);
  return x;
}
inline float __int_as_float(int bits) { return __uint_as_float(static_cast<unsigned>(bits)); }
inline int __float_as_int(float x) {
  int bits;
  std::memcpy(&bits, &x, 4);
  return bits;
}
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline unsigned __byte_perm(unsigned low, unsigned high, unsigned which) {
  const uint64_t bytes = static_cast<uint64_t>(high) << 32 | low;
  unsigned picked = 0;
  for (int i = 0; i < 4; ++i) picked |= static_cast<unsigned>(bytes >> 8 * (which >> 4 * i & 7) & 255) << 8 * i;
  return picked;
}
inline double __dmul_rn(double a, double b) { return a * b; }
inline double __hiloint2double(int high, int low) {
  const uint64_t bits = static_cast<uint64_t>(static_cast<uint32_t>(high)) << 32 | static_cast<uint32_t>(low);
  double x;
  std::memcpy(&x, &bits, 8);
  return x;
}
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __ffs(unsigned x) { return __builtin_ffs(static_cast<int>(x)); }
inline unsigned __brev(unsigned x) {
  unsigned reversed = 0;
  for (int i = 0; i < 32; ++i) reversed |= (x >> i & 1u) << (31 - i);
  return reversed;
}

struct __half {
  uint16_t bits;
};
struct __nv_bfloat16 {
  uint16_t bits;
};

inline __half __ushort_as_half(unsigned short bits) { return {bits}; }
inline unsigned short __half_as_ushort(__half x) { return x.bits; }

inline float __half2float(__half half) {
  const int exponent = half.bits >> 10 & 31, mantissa = half.bits & 1023;
  float magnitude;
  if (exponent == 31) {
    magnitude = mantissa ? NAN : INFINITY;
  } else if (exponent == 0) {
    magnitude = std::ldexp(static_cast<float>(mantissa), -24);
  } else {
    magnitude = std::ldexp(static_cast<float>(1024 + mantissa), exponent - 25);
  }
  return half.bits & 0x8000 ? -magnitude : magnitude;
}

// To the nearest, ties to even: in units of the last place of the value's binade.
inline __half __float2half_rn(float x) {
  const uint16_t sign = std::signbit(x) ? 0x8000 : 0;
  const float magnitude = std::fabs(x);
  if (std::isnan(x)) return {0x7fff};
  if (magnitude >= 65520.0f) return {static_cast<uint16_t>(sign | 0x7c00)};
  if (magnitude < std::ldexp(1.0f, -14)) {
    return {static_cast<uint16_t>(sign | static_cast<uint16_t>(std::nearbyint(std::ldexp(magnitude, 24))))};
  }
  int exponent;
  std::frexp(magnitude, &exponent);
  // 1024 to 2048; rounding up to 2048 carries into the exponent as it should.
  const int mantissa = static_cast<int>(std::nearbyint(std::ldexp(magnitude, 11 - exponent)));
  return {static_cast<uint16_t>(sign | ((exponent + 14 - 1) * 1024 + mantissa))};
}

inline __nv_bfloat16 __float2bfloat16_rn(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  if (std::isnan(x)) return {0x7fff};
  return {static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
}
