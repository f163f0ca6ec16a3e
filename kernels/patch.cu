// Words of a table put in place: what a step adds to positions and block tables that stay on the device.
//
// patch_words: grid ceil(n / 256), block 256: words[places[i]] = values[i]. No place is named twice.
// Registers: at most 16, no spills.
#include "base.cuh"

constexpr int PATCH_THREADS = 256;

extern "C" __global__ void __launch_bounds__(PATCH_THREADS)
    patch_words(unsigned* words, const unsigned* places, const unsigned* values, int n) {
  const int i = blockIdx.x * PATCH_THREADS + threadIdx.x;
  if (i < n) words[places[i]] = values[i];
}
KV_EXPORT(patch_words)
