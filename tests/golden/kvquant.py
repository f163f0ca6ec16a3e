"""Writes kvquant.json: KVQuant (arXiv 2401.18079) on one layer of two KV heads, by the letter of its rules, in numpy.

A prompt of 70 tokens in one piece, then 30 decoded tokens; head size 16; the first two tokens exact, 5 % outliers,
calibrated on the first 60 tokens without weights. Per number of bits the file has both codebooks, what every ninth key
and value is read as, how many outliers there are, and one query's attention over all of them, keys rotated at read by
their positions. Numbers that the cache holds as f32 are computed as f32 here; thresholds and outliers are f16.

    python3 tests/golden/kvquant.py > tests/golden/kvquant.json
"""

import json
import math

import numpy as np

D, HEADS, PROMPT, TOKENS, FIRST, CALIBRATE, SHARE = 16, 2, 70, 100, 2, 60, 0.05
# Rows that are written down; the attention is over all of them.
EVERY = 9
THETA = 10_000.0
f32, f16 = np.float32, np.float16


def values(seed):
    """100 tokens of 2 heads of 16; some channels are large, as keys have them, and off the middle."""
    rows, state = [], seed
    for _ in range(TOKENS):
        row = []
        for channel in range(HEADS * D):
            state = (state * 1103515245 + 12345) % 2**31
            x = (state >> 8) % 2001 - 1000
            x = x * abs(x) // 1000 + (700 if channel % 5 == seed % 5 else 0)
            row.append(x * (9 if channel % 11 == seed % 11 else 1))
        rows.append(row)
    return np.array(rows)


def percentile(column, at):
    """np.percentile of float64, then f16."""
    return f16(np.percentile(column.astype(np.float64), at * 100, method="linear"))


def thresholds(column):
    lower, upper = percentile(column, SHARE / 2), percentile(column, 1 - SHARE / 2)
    return f32(lower), f32(upper)


def is_outlier(x, lower, upper):
    return (f32(f16(x)) < lower) | (f32(f16(x)) > upper)


def normalised(x, lower, upper):
    middle, half = f32((lower + upper) / f32(2)), f32((upper - lower) / f32(2))
    return np.clip((x - middle) / half, f32(-1), f32(1))


def k_means(data, points):
    data = np.sort(data.astype(np.float64))
    n = len(data)
    centres = data[[(2 * i + 1) * n // (2 * points) for i in range(points)]]
    before = None
    for _ in range(50):
        # Halfway belongs to the lower centre.
        sides = np.searchsorted((centres[1:] + centres[:-1]) / 2, data, side="left")
        if before is not None and (sides == before).all():
            break
        for i in range(points):
            if (sides == i).any():
                centres[i] = data[sides == i].mean()
        before = sides
    return centres.astype(f32)


def read_as(x, lower, upper, codebook):
    """What a row is read as; thresholds are one pair, or one per channel."""
    middle, half = (lower + upper) / f32(2), (upper - lower) / f32(2)
    place = normalised(x, lower, upper)
    nearest = codebook[np.abs(place[:, None].astype(np.float64) - codebook[None, :]).argmin(axis=1)]
    outliers = is_outlier(x, lower, upper)
    return np.where(outliers, f16(x).astype(f32), nearest * half + middle), int(outliers.sum())


def turned(row, position):
    """RoPE in the half-split pairing."""
    half = D // 2
    angle = position * THETA ** (-2.0 * np.arange(half) / D)
    a, b = row[:half].astype(np.float64), row[half:].astype(np.float64)
    cos, sin = np.cos(angle), np.sin(angle)
    return np.concatenate([a * cos - b * sin, b * cos + a * sin])


def run(k, v, query, bits):
    # Keys: per channel, over the tokens of the span. Values: per token, over the channels of all heads.
    k_limits = [thresholds(k[FIRST:CALIBRATE, c]) for c in range(HEADS * D)]
    v_limits = [thresholds(v[t]) for t in range(TOKENS)]
    inside_k, inside_v = [], []
    for t in range(FIRST, CALIBRATE):
        for c in range(HEADS * D):
            for x, limits, inside in ((k[t, c], k_limits[c], inside_k), (v[t, c], v_limits[t], inside_v)):
                if not is_outlier(x, *limits):
                    inside.append(normalised(x, *limits))
    books = [k_means(np.array(inside), 2**bits) for inside in (inside_k, inside_v)]
    lower, upper = (np.array(side, dtype=f32) for side in zip(*k_limits))
    k_read, v_read, outliers = k.copy(), v.copy(), [0, 0]
    for t in range(FIRST, TOKENS):
        k_read[t], n = read_as(k[t], lower, upper, books[0])
        outliers[0] += n
        v_read[t], n = read_as(v[t], *v_limits[t], books[1])
        outliers[1] += n
    out = []
    for h in range(HEADS):
        head = slice(h * D, (h + 1) * D)
        q = turned(query[head], TOKENS - 1)
        scores = np.array([q @ turned(k_read[t, head], t) for t in range(TOKENS)]) / math.sqrt(D)
        weights = np.exp(scores - scores.max())
        out.append((weights @ v_read[:, head].astype(np.float64) / weights.sum()).tolist())
    listed = lambda rows: [[float(x) for x in row] for row in rows]
    return {
        "codebooks": listed(books),
        "outliers": outliers,
        "k": listed(k_read[::EVERY]),
        "v": listed(v_read[::EVERY]),
        "out": out,
    }


def main():
    k_ints, v_ints = values(7), values(3)
    k, v = (f32(ints) / f32(1024) for ints in (k_ints, v_ints))
    query = np.array([((i * 37) % 19 - 9) / 8 for i in range(HEADS * D)], dtype=f32)
    runs = {str(bits): run(k, v, query, bits) for bits in (4, 3, 2)}
    golden = {
        "k_times_1024": k_ints.tolist(),
        "v_times_1024": v_ints.tolist(),
        "query": query.tolist(),
        "runs": runs,
    }
    print(json.dumps(golden, separators=(",", ":")))


main()
