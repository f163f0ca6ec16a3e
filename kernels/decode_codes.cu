// Decode attention over pages in codes: int8 (scale and zero per row), int4 and int2 (KIVI, arXiv 2402.02750, section 3:
// K by channel and page, V by token and 32 channels, the newest rows exact in slabs of their own). Method: decode.cuh.
//
// decode_{int8,int4,int2}_{d64,d128,d256}_{g1,g4,g8}: grid and block as in decode_exact.cu.
// Limits: int4 and int2 need block_size 32 and a head_dim that is a multiple of 32; int8 a multiple of 8.
// Registers: at most 128, no spills.
#include "decode.cuh"

KV_DECODE_SIZES(decode_int8, Int8)
KV_DECODE_SIZES(decode_int4, Int4)
KV_DECODE_SIZES(decode_int2, Int2)
