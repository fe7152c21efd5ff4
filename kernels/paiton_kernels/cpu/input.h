/* Activations on their way into a linear layer: RMSNorm, rounding, the level's packed layout. */
#pragma once
#include "dots.h"

enum input { INPUT_NORM, INPUT_BF16 };
enum act { ACT_BF16, ACT_FP8_STATIC, ACT_FP8_DYNAMIC };

/* The sum of squares of a row: 16 running sums, then a tree. */
SHARED float sum_of_squares(const float *x, int64_t k)
{
    float sums[16] = {0};
    int64_t i = 0;
    for (; i + 16 <= k; i += 16)
        for (int j = 0; j < 16; j++) sums[j] += x[i + j] * x[i + j];
    for (int j = 0; i + j < k; j++) sums[j] += x[i + j] * x[i + j];
    for (int width = 8; width; width /= 2)
        for (int j = 0; j < width; j++) sums[j] += sums[j + width];
    return sums[0];
}

UNUSED SHARED void normalise(const float *x, const uint16_t *weight, double eps, int64_t k, float *y)
{
    float scale = (float)(1.0 / __builtin_sqrt((double)sum_of_squares(x, k) / (double)k + eps));
    for (int64_t i = 0; i < k; i++) y[i] = x[i] * scale * bf16_to_f32(weight[i]);
}

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

/* Packs a row that is f32, rounding to bf16 (which keeps e4m3 values). */
SHARED void pack_f32(const float *y, int64_t k, uint8_t *to)
{
    const int64_t padded = round_up(k, 64);
    for (int64_t i = 0; i < padded; i += DOT_BLOCK, to += DOT_BLOCK * X_BYTES) {
        uint16_t bits[DOT_BLOCK];
        if (i + DOT_BLOCK <= k)
            for (int j = 0; j < DOT_BLOCK; j++) bits[j] = f32_to_bf16(y[i + j]);
        else
            for (int j = 0; j < DOT_BLOCK; j++) bits[j] = i + j < k ? f32_to_bf16(y[i + j]) : 0;
        block_store(to, block_bf16((const uint8_t *)bits));
    }
}

SHARED void pack_bf16(const uint16_t *x, int64_t k, uint8_t *to)
{
    const int64_t padded = round_up(k, 64);
    for (int64_t i = 0; i < padded; i += DOT_BLOCK, to += DOT_BLOCK * X_BYTES) {
        uint16_t bits[DOT_BLOCK];
        if (i + DOT_BLOCK <= k) {
            block_store(to, block_bf16((const uint8_t *)(x + i)));
            continue;
        }
        for (int j = 0; j < DOT_BLOCK; j++) bits[j] = i + j < k ? x[i + j] : 0;
        block_store(to, block_bf16((const uint8_t *)bits));
    }
}

/* Packs row `row` of x; returns what its products are multiplied by. `scratch` holds k f32. */
INLINE float pack_row(const enum input input, const enum act act, const void *x, int64_t row, int64_t k,
                      const uint16_t *norm_weight, double eps, const float *input_scale, uint8_t *to, float *scratch)
{
    if (input == INPUT_BF16 && act == ACT_BF16) {
        pack_bf16((const uint16_t *)x + row * k, k, to);
        return 1.0f;
    }
    if (input == INPUT_NORM)
        normalise((const float *)x + row * k, norm_weight, eps, k, scratch);
    else
        for (int64_t i = 0; i < k; i++) scratch[i] = bf16_to_f32(((const uint16_t *)x)[row * k + i]);
    float scale = act == ACT_BF16 ? 1.0f : quantise(scratch, k, act, input_scale);
    pack_f32(scratch, k, to);
    return scale;
}
