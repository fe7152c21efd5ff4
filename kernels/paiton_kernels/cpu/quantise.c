/* quantise: weights of a checkpoint as a bundle stores them, row by row: value = code * scale, where the scale is the
 * row's largest magnitude over the largest code. Codes of FP8 checkpoints only lose their negative zero. */
#include "formats.h"

#define SMALLEST_SCALE 0x1p-126f /* below, dividing would lose the precision that a scale is there to keep */

INLINE float weight(const void *row, int64_t i, const int source)
{
    if (source == QUANTISE_SOURCE_BF16) return bf16_to_f32(((const uint16_t *)row)[i]);
    if (source == QUANTISE_SOURCE_F16) return f16_to_f32(((const uint16_t *)row)[i]);
    return ((const float *)row)[i];
}

/* The bits of the largest magnitude: those of finite numbers, infinities and NaNs are in this order. */
INLINE uint32_t largest_bits(const void *row, int64_t cols, const int source)
{
    if (source == QUANTISE_SOURCE_F32) {
        uint32_t largest = 0;
        for (int64_t i = 0; i < cols; i++) {
            uint32_t magnitude = ((const uint32_t *)row)[i] & 0x7fffffffu;
            largest = magnitude > largest ? magnitude : largest;
        }
        return largest;
    }
    int16_t largest = 0; /* signed: every level can compare those */
    for (int64_t i = 0; i < cols; i++) {
        int16_t magnitude = (int16_t)(((const uint16_t *)row)[i] & 0x7fffu);
        largest = magnitude > largest ? magnitude : largest;
    }
    return (uint32_t)largest;
}

INLINE uint8_t code_of(float scaled, const int stored)
{
    if (stored == QUANTISE_STORED_FP8) return f32_to_e4m3(scaled);
    return (uint8_t)bits_of(scaled + 0x1.8p23f); /* leaves an integer, ties to even, in the low bits */
}

INLINE int quantise_row(const void *row, int64_t cols, uint8_t *codes, float *scale, const struct quantise_params p)
{
    const int source = (int)p.SOURCE, stored = (int)p.STORED;
    const uint32_t infinity = source == QUANTISE_SOURCE_BF16 ? 0x7f80u : source == QUANTISE_SOURCE_F16 ? 0x7c00u
                                                                                                     : 0x7f800000u;
    const uint32_t bits = largest_bits(row, cols, source);
    if (bits >= infinity) return 0;
    if (stored == QUANTISE_STORED_NONE) return 1;
    const float largest = source == QUANTISE_SOURCE_BF16  ? bf16_to_f32((uint16_t)bits)
                          : source == QUANTISE_SOURCE_F16 ? f16_to_f32((uint16_t)bits)
                                                          : float_of(bits);
    const float wanted = largest / (stored == QUANTISE_STORED_FP8 ? 448.0f : 127.0f);
    const float divisor = largest == 0.0f ? 1.0f : wanted > SMALLEST_SCALE ? wanted : SMALLEST_SCALE;
    *scale = divisor;
    for (int64_t i = 0; i < cols; i++) codes[i] = code_of(weight(row, i, source) / divisor, stored);
    return 1;
}

/* 0x80 becomes 0x00; returns 0 where a code is NaN. */
INLINE int carry_row(const uint8_t *row, int64_t cols, uint8_t *codes)
{
    uint8_t refused = 0;
    for (int64_t i = 0; i < cols; i++) {
        uint8_t magnitude = row[i] & 0x7fu;
        refused |= magnitude == 0x7fu;
        codes[i] = magnitude ? row[i] : 0;
    }
    return !refused;
}

INLINE void quantise(const struct quantise_args *a, uint32_t worker, uint32_t workers, const struct quantise_params p)
{
    const int64_t width = p.SOURCE == QUANTISE_SOURCE_FP8 ? 1 : p.SOURCE == QUANTISE_SOURCE_F32 ? 4 : 2;
    for (int64_t n = split(a->rows, worker, workers); n < split(a->rows, worker + 1, workers); n++) {
        const uint8_t *row = (const uint8_t *)a->x + n * a->cols * width;
        uint8_t *codes = (uint8_t *)a->codes + n * a->cols;
        const int fine = p.SOURCE == QUANTISE_SOURCE_FP8 ? carry_row(row, a->cols, codes)
                                                         : quantise_row(row, a->cols, codes, a->scales + n, p);
        if (!fine) *a->refused = 1;
    }
}
