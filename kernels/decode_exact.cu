// Decode attention over pages of f32, f16 and bf16. Method: decode.cuh.
//
// decode_{f32,f16,bf16}_{d64,d128,d256}_{g1,g4,g8}: `d` is the largest head_dim (a multiple of 8), `g` the most query
// heads per KV head that a block takes; larger groups are shared out over blocks.
// Grid (ceil(most slots / 256), kv_heads * ceil(group / g), sequences), block 128, no dynamic shared memory.
// Limits: block_size 1 to 1024; block_sums only where block_size divides 256. Slabs are 16-byte aligned.
// Registers: at most 128, no spills.
#include "decode.cuh"

KV_DECODE_SIZES(decode_f32, F32)
KV_DECODE_SIZES(decode_f16, F16)
KV_DECODE_SIZES(decode_bf16, BF16)
