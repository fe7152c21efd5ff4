/* Keys of logits: integers that order as logits do, and selection by them; sums. NaN counts as -inf, -0 as +0. */
#pragma once
#include "mathf.h"

#define BINS 2048
#define LEAST_KEY 0x807fffffu /* of -inf, as a signed number */
#define BLOCK 256 /* tokens that are looked at together */
#define SUMS 8

INLINE int32_t ordered(float x)
{
    int32_t b = (int32_t)bits_of(x + 0.0f);
    int32_t key = b ^ (int32_t)((uint32_t)(b >> 31) >> 1);
    return x == x ? key : (int32_t)LEAST_KEY;
}

/* The logit of a key. */
INLINE float logit_of(int32_t key) { return float_of((uint32_t)key ^ (uint32_t)(key >> 31) >> 1); }

/* Keys as unsigned numbers, for selection by radix; 0 is the key of no logit. */
INLINE uint32_t unsigned_key(float x) { return (uint32_t)ordered(x) ^ 0x80000000u; }

INLINE int32_t largest_key(const float *logits, int64_t count)
{
    int32_t largest = INT32_MIN;
    for (int64_t i = 0; i < count; i++) {
        int32_t key = ordered(logits[i]);
        largest = key > largest ? key : largest;
    }
    return largest;
}

/* The first token with the largest logit. Whole blocks are searched for the largest, the block with it for the token. */
SHARED int32_t most_probable(const float *logits, int64_t vocab)
{
    int32_t largest = INT32_MIN;
    int64_t found = 0;
    for (int64_t i = 0; i < vocab; i += BLOCK) {
        int32_t key = i + BLOCK <= vocab ? largest_key(logits + i, BLOCK) : largest_key(logits + i, vocab - i);
        if (key > largest) largest = key, found = i;
    }
    while (ordered(logits[found]) != largest) found++;
    return (int32_t)found;
}

/* The sum of f32 values, in an order that does not depend on the level. */
INLINE double sum_of(const float *values, int64_t count)
{
    double sums[SUMS] = {0.0}, sum = 0.0;
    int64_t i = 0;
    for (; i + SUMS <= count; i += SUMS) {
        UNROLL
        for (int j = 0; j < SUMS; j++) sums[j] += (double)values[i + j];
    }
    for (; i < count; i++) sums[i % SUMS] += (double)values[i];
    for (int j = 0; j < SUMS; j++) sum += sums[j];
    return sum;
}

/* The key at which the weights of all larger keys and of its own first reach `target`; `above` gets the weight of the
 * larger ones. With `mass` null every token weighs 1. Three passes of at most 11 bits. */
INLINE uint32_t threshold(const uint32_t *keys, const float *mass, int64_t count, double target, double *bins,
                          double *above)
{
    uint32_t prefix = 0;
    double reached = 0.0;
    for (int pass = 0; pass < 3; pass++) {
        const int shift = pass == 0 ? 21 : pass == 1 ? 10 : 0, width = pass == 2 ? 10 : 11;
        for (int i = 0; i < BINS; i++) bins[i] = 0.0;
        for (int64_t i = 0; i < count; i++)
            if (pass == 0 || keys[i] >> (shift + width) == prefix)
                bins[keys[i] >> shift & ((1u << width) - 1)] += mass ? (double)mass[i] : 1.0;
        int chosen = -1;
        double before = reached;
        for (int bin = (1 << width) - 1; bin >= 0; bin--) {
            if (bins[bin] == 0.0) continue;
            chosen = bin, reached = before;
            if (before + bins[bin] >= target) break;
            before += bins[bin]; /* rounding may leave the target unreached: then the last bin stands */
        }
        prefix = prefix << width | (uint32_t)chosen;
    }
    *above = reached;
    return prefix;
}
