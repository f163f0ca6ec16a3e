"""Writes kivi.json: KIVI (arXiv 2402.02750) on one KV head, by the letter of its rules, in plain Python.

One prompt of 70 tokens in one piece, then 30 decoded tokens; head size 32, group 32, residual 32. After each step the
file has how many keys and values are in codes, and at the end what every ninth key and value is read as, and one query's
attention over all of them. Numbers that the cache holds as f32 are rounded to f32 here after every operation; scales and
zeros are f16, the zero rounded down and the scale up.

    python3 tests/golden/kivi.py > tests/golden/kivi.json
"""

import json
import math
import struct

D, GROUP, RESIDUAL, PROMPT, TOKENS = 32, 32, 32, 70, 100
# Rows that are written down; the attention is over all of them.
EVERY = 9


def f32(x):
    return struct.unpack("f", struct.pack("f", x))[0]


def half(bits):
    return struct.unpack("<e", struct.pack("<H", bits))[0]


HALVES = sorted({half(b) for b in range(0x10000) if b & 0x7C00 != 0x7C00})


def half_down(x):
    return max(h for h in HALVES if h <= x)


def half_up(x):
    return min(h for h in HALVES if h >= x)


def quantised(group, bits):
    """What a group is read as."""
    levels = 2**bits - 1
    zero = half_down(min(group))
    scale = half_up(f32(f32(max(group) - zero) / levels))
    read = []
    for x in group:
        code = 0
        if scale > 0:
            # Half away from zero, as round() in C and Rust has it; nothing here is below zero.
            code = min(levels, math.floor(f32(f32(x - zero) / scale) + 0.5))
        read.append(f32(f32(code * scale) + zero))
    return read


def values(seed):
    """100 rows of 32; some channels are large, as keys have them."""
    rows = []
    state = seed
    for _ in range(TOKENS):
        row = []
        for channel in range(D):
            state = (state * 1103515245 + 12345) % 2**31
            x = (state >> 8) % 4001 - 2000
            row.append(x * (25 if channel % 11 == seed % 11 else 1))
        rows.append(row)
    return rows


def run(k_ints, v_ints, query, bits):
    k, v = [], []
    k_coded = v_coded = 0
    coded = []
    for t in range(TOKENS):
        k.append([f32(x / 1024) for x in k_ints[t]])
        v.append([f32(x / 1024) for x in v_ints[t]])
        if t + 1 < PROMPT:
            continue
        # The keys' residual grows to RESIDUAL tokens, then all of them are quantised, group by group.
        while len(k) - k_coded >= RESIDUAL:
            for start in range(k_coded, k_coded + RESIDUAL, GROUP):
                for channel in range(D):
                    column = quantised([k[start + i][channel] for i in range(GROUP)], bits)
                    for i in range(GROUP):
                        k[start + i][channel] = column[i]
            k_coded += RESIDUAL
        # The values' residual is the last RESIDUAL tokens.
        while len(v) - v_coded > RESIDUAL:
            row = v[v_coded]
            v[v_coded] = [x for g in range(0, D, GROUP) for x in quantised(row[g : g + GROUP], bits)]
            v_coded += 1
        coded.append([k_coded, v_coded])
    scores = [sum(q * x for q, x in zip(query, row)) / math.sqrt(D) for row in k]
    top = max(scores)
    weights = [math.exp(s - top) for s in scores]
    out = [sum(w * row[c] for w, row in zip(weights, v)) / sum(weights) for c in range(D)]
    return {"coded": coded, "k": k[::EVERY], "v": v[::EVERY], "out": out}


def main():
    k, v = values(7), values(3)
    query = [f32(((i * 37) % 19 - 9) / 64) for i in range(D)]
    runs = {str(bits): run(k, v, query, bits) for bits in (4, 2)}
    golden = {"k_times_1024": k, "v_times_1024": v, "query": query, "runs": runs}
    text = json.dumps(golden, separators=(",", ":"))
    print(text)


main()
