/* RMSNorm of a row of f32, with one order of summation whatever the row is part of. */
#pragma once
#include "formats.h"

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

UNUSED SHARED void normalise_plain(const float *x, const uint16_t *weight, double eps, int64_t k, float *y)
{
    float scale = (float)(1.0 / __builtin_sqrt((double)sum_of_squares(x, k) / (double)k + eps));
    for (int64_t i = 0; i < k; i++) y[i] = x[i] * scale * bf16_to_f32(weight[i]);
}

/* The norm whose weights are stored less 1, added here in f32: bf16 could not hold the sums. */
UNUSED SHARED void normalise_offset(const float *x, const uint16_t *weight, double eps, int64_t k, float *y)
{
    float scale = (float)(1.0 / __builtin_sqrt((double)sum_of_squares(x, k) / (double)k + eps));
    for (int64_t i = 0; i < k; i++) y[i] = x[i] * scale * (1.0f + bf16_to_f32(weight[i]));
}

/* RMSNorm of a row of k elements; `offset` tells the second form. */
INLINE void normalise(const float *x, const uint16_t *weight, const int offset, double eps, int64_t k, float *y)
{
    if (offset) normalise_offset(x, weight, eps, k, y);
    else normalise_plain(x, weight, eps, k, y);
}
