/* Conversions between storage formats and f32, element by element and free of branches, so that the compiler
 * vectorises loops over them. They give the same bits on every level. */
#pragma once
#include "prelude.h"

INLINE uint32_t bits_of(float x) { return __builtin_bit_cast(uint32_t, x); }
INLINE float float_of(uint32_t x) { return __builtin_bit_cast(float, x); }

INLINE float bf16_to_f32(uint16_t x) { return float_of((uint32_t)x << 16); }

/* Of finite values. The exponent is put right by a product, which is exact, subnormals included. */
INLINE float f16_to_f32(uint16_t x)
{
    float magnitude = float_of((uint32_t)(x & 0x7fffu) << 13) * 0x1p112f;
    return float_of(bits_of(magnitude) | (uint32_t)(x & 0x8000u) << 16);
}

/* Round to nearest even; NaN stays NaN. */
INLINE uint16_t f32_to_bf16(float x)
{
    uint32_t b = bits_of(x);
    uint32_t rounded = (b + 0x7fffu + (b >> 16 & 1u)) >> 16;
    uint32_t nan = b >> 16 | 0x40u;
    return (uint16_t)((b & 0x7fffffffu) > 0x7f800000u ? nan : rounded);
}

INLINE float e4m3_to_f32(uint8_t code)
{
    uint32_t magnitude = code & 0x7fu;
    float normal = float_of((magnitude << 20) + (120u << 23));
    float subnormal = (float)(int32_t)magnitude * 0x1p-9f;
    uint32_t value = bits_of(magnitude < 8 ? subnormal : normal);
    return float_of(value | (uint32_t)(code & 0x80u) << 24);
}

/* Clamps to +-448 and rounds to the nearest e4m3 value, ties to even. */
INLINE float round_e4m3(float x)
{
    uint32_t sign = bits_of(x) & 0x80000000u;
    float magnitude = float_of(bits_of(x) & 0x7fffffffu);
    magnitude = magnitude > 448.0f ? 448.0f : magnitude;
    uint32_t b = bits_of(magnitude);
    float normal = float_of((b + 0x7ffffu + (b >> 20 & 1u)) & 0xfff00000u);
    /* Below 2^-6 values are multiples of 2^-9: adding 1.5 * 2^14 leaves exactly that precision. */
    float subnormal = (magnitude + 24576.0f) - 24576.0f;
    return float_of(bits_of(magnitude < 0x1p-6f ? subnormal : normal) | sign);
}

/* The code of a value; -0 becomes +0, since 0x80 is not a code that every target reads as zero. */
INLINE uint8_t f32_to_e4m3(float x)
{
    float rounded = round_e4m3(x);
    uint32_t b = bits_of(rounded) & 0x7fffffffu;
    float magnitude = float_of(b);
    uint32_t normal = (b >> 20) - (120u << 3);
    uint32_t subnormal = (uint32_t)(int32_t)(magnitude * 512.0f);
    uint32_t code = magnitude < 0x1p-6f ? subnormal : normal;
    uint32_t sign = code ? bits_of(rounded) >> 24 & 0x80u : 0u;
    return (uint8_t)(code | sign);
}
