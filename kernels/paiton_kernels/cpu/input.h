/* Activations on their way into a linear layer: RMSNorm, rounding, the level's packed layout. */
#pragma once
#include "panels.h"
#include "norm.h"

enum input { INPUT_NORM, INPUT_BF16 };
enum act { ACT_BF16, ACT_FP8_STATIC, ACT_FP8_DYNAMIC, ACT_FP8_BLOCK };

/* Divides by the scale and rounds to e4m3 in place; returns the scale. */
UNUSED SHARED float quantise(float *y, int64_t k, enum act act, const float *input_scale)
{
    float scale = 1.0f;
    if (act == ACT_FP8_STATIC) {
        scale = *input_scale;
    } else {
        int32_t largest = 0; /* magnitudes order like their bits */
        for (int64_t i = 0; i < k; i++) {
            int32_t magnitude = (int32_t)(bits_of(y[i]) & 0x7fffffffu);
            largest = magnitude > largest ? magnitude : largest;
        }
        if (largest) scale = float_of((uint32_t)largest) / 448.0f;
    }
    for (int64_t i = 0; i < k; i++) y[i] = round_e4m3(y[i] / scale);
    return scale;
}

/* Packs a row: up to SCALE_COLUMNS columns at a time, which `load` gives as blocks of bf16 bits. */
#define PACK(load)                                                                                                    \
    const int64_t padded = round_up(k, DOT_BLOCK);                                                                    \
    uint32_t words[SCALE_COLUMNS * X_BYTES / 4];                                                                      \
    for (int64_t first = 0; first < padded; first += SCALE_COLUMNS, to += SCALE_COLUMNS * X_BYTES) {                  \
        const int64_t end = min_i64(first + SCALE_COLUMNS, padded);                                                   \
        uint8_t *at = packing == PACKED_ROWS ? to : (uint8_t *)words;                                                 \
        for (int64_t i = first; i < end; i += DOT_BLOCK, at += DOT_BLOCK * X_BYTES) {                                 \
            uint16_t bits[DOT_BLOCK];                                                                                 \
            if (i + DOT_BLOCK <= k)                                                                                   \
                for (int j = 0; j < DOT_BLOCK; j++) bits[j] = load(i + j);                                            \
            else                                                                                                      \
                for (int j = 0; j < DOT_BLOCK; j++) bits[j] = i + j < k ? load(i + j) : 0;                            \
            block_store(at, block_bf16((const uint8_t *)bits));                                                       \
        }                                                                                                             \
        if (packing == PACKED_COLUMNS) store_columns(words, (end - first) * X_BYTES / VECTOR_BYTES, to);              \
    }

/* A row that is f32 is rounded to bf16, which keeps e4m3 values. */
SHARED void pack_f32(const float *y, int64_t k, enum packing packing, uint8_t *to)
{
#define LOAD(i) f32_to_bf16(y[i])
    PACK(LOAD)
#undef LOAD
}

SHARED void pack_bf16(const uint16_t *x, int64_t k, enum packing packing, uint8_t *to)
{
#define LOAD(i) x[i]
    PACK(LOAD)
#undef LOAD
}
#undef PACK

/* Scales that a packed row has: what its products, or those of each block of columns, are multiplied by. */
INLINE int64_t scale_count(enum act act, int64_t k)
{
    return act == ACT_FP8_BLOCK ? (k + SCALE_COLUMNS - 1) / SCALE_COLUMNS : 1;
}

/* Packs row `row` of x and stores its scales. `scratch` holds k f32. */
INLINE void pack_row(const enum input input, const int norm_offset, const enum act act, enum packing packing,
                     const void *x, int64_t row, int64_t k, const uint16_t *norm_weight, double eps,
                     const float *input_scale, uint8_t *to, float *scratch, float *scales)
{
    scales[0] = 1.0f;
    if (input == INPUT_BF16 && act == ACT_BF16) {
        pack_bf16((const uint16_t *)x + row * k, k, packing, to);
        return;
    }
    if (input == INPUT_NORM)
        normalise((const float *)x + row * k, norm_weight, norm_offset, eps, k, scratch);
    else
        for (int64_t i = 0; i < k; i++) scratch[i] = bf16_to_f32(((const uint16_t *)x)[row * k + i]);
    if (act == ACT_FP8_BLOCK)
        for (int64_t i = 0; i < k; i += SCALE_COLUMNS)
            scales[i / SCALE_COLUMNS] = quantise(scratch + i, min_i64(k - i, SCALE_COLUMNS), ACT_FP8_DYNAMIC, 0);
    else if (act != ACT_BF16)
        scales[0] = quantise(scratch, k, act, input_scale);
    pack_f32(scratch, k, packing, to);
}
