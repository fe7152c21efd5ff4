/* exp in f32, ln in f64, and sin/cos in f64 for large angles. Plain arithmetic without contraction: the same bits everywhere. */
#pragma once
#include "formats.h"

/* e^x for x <= 88; below -87 the result is 0. Error below 1 ulp: x = n ln2 + r, |r| <= ln2/2, a polynomial of degree
 * 6 for e^r (Cephes expf's coefficients), and n added to the exponent. */
INLINE float exp_f32(float x)
{
    float clamped = x < -87.0f ? -87.0f : x > 88.0f ? 88.0f : x;
    const float magic = 12582912.0f; /* 1.5 * 2^23: adding it rounds to an integer in the low bits */
    float shifted = clamped * 1.44269504088896341f + magic;
    float n = shifted - magic;
    float r = clamped - n * 0.693359375f;
    r = r - n * -2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * (r * r) + r + 1.0f;
    float scaled = float_of(bits_of(p) + (bits_of(shifted) << 23));
    return x < -87.0f ? 0.0f : scaled;
}

INLINE float silu_f32(float x) { return x / (1.0f + exp_f32(-x)); }

/* The tanh form of GELU, x/2 (1 + tanh u) with u = sqrt(2/pi) (x + 0.044715 x^3), which is x / (1 + e^(-2u)). */
INLINE float gelu_f32(float x)
{
    float u = 0.79788456080286535588f * (x + 0.044715f * x * x * x);
    return x / (1.0f + exp_f32(-2.0f * u));
}

/* cap * tanh(x / cap), to about 1e-7 of cap: tanh y = (1 - e^(-2y)) / (1 + e^(-2y)), taken of |y|. */
INLINE float softcap_f32(float x, float cap)
{
    float magnitude = float_of(bits_of(x) & 0x7fffffffu);
    float e = exp_f32(-2.0f * (magnitude / cap));
    return float_of(bits_of(cap * ((1.0f - e) / (1.0f + e))) | (bits_of(x) & 0x80000000u));
}

/* ln x for normal x > 0, error below 1e-14 of max(1, |ln x|): x = 2^n m with m within a factor of sqrt(2) of 1, and
 * ln m = 2 artanh(s), s = (m - 1) / (m + 1), |s| < 0.1716, by its series to s^17. */
INLINE double log_f64(double x)
{
    const uint64_t root_half = 0x3fe6a09e667f3bcdull; /* bits of sqrt(1/2) */
    uint64_t bits = __builtin_bit_cast(uint64_t, x);
    int64_t n = (int64_t)(bits - root_half) >> 52;
    double m = __builtin_bit_cast(double, bits - ((uint64_t)n << 52));
    double s = (m - 1.0) / (m + 1.0), z = s * s, sum = 0.0;
    for (int k = 17; k > 0; k -= 2) sum = sum * z + 1.0 / k;
    return (double)n * 0.69314718055994530942 + 2.0 * s * sum;
}

/* sin and cos of x, |x| < 2^20, accurate to well below half an ulp of f32. Cody and Waite reduction by pi/2 in two
 * parts (the first has 33 bits, so that n times it is exact), then Taylor series on |r| <= pi/4 to degree 13 and 14. */
INLINE void sincos_f64(double x, double *sine, double *cosine)
{
    const double magic = 6755399441055744.0; /* 1.5 * 2^52 */
    double n = (x * 0.63661977236758134308 + magic) - magic;
    double r = (x - n * 1.57079632673412561417e+00) - n * 6.07710050650619224932e-11;
    int64_t quadrant = (int64_t)n;
    double z = r * r;
    double s = 1.0 / 6227020800.0;
    s = s * z - 1.0 / 39916800.0;
    s = s * z + 1.0 / 362880.0;
    s = s * z - 1.0 / 5040.0;
    s = s * z + 1.0 / 120.0;
    s = s * z - 1.0 / 6.0;
    s = r + r * z * s;
    double c = -1.0 / 87178291200.0;
    c = c * z + 1.0 / 479001600.0;
    c = c * z - 1.0 / 3628800.0;
    c = c * z + 1.0 / 40320.0;
    c = c * z - 1.0 / 720.0;
    c = c * z + 1.0 / 24.0;
    c = 1.0 - 0.5 * z + z * z * c;
    double first = quadrant & 1 ? c : s, second = quadrant & 1 ? s : c;
    *sine = quadrant & 2 ? -first : first;
    *cosine = (quadrant + 1) & 2 ? -second : second;
}
