/* Vectors for x86-64-v3 (AVX2, FMA, F16C): 8 floats. A block is 32 elements as four vectors in even/odd order, which is
 * what two-byte lanes give for free. */
#pragma once
#include <immintrin.h>
#include "formats.h"

#define LANES 8
#define DOT_BLOCK 32
#define X_BYTES 4
/* e4m3 codes become f16 by a shift, which divides them by 2^8; subnormals included, since vcvtph2ps handles those. */
#define FP8_FACTOR 256.0f
#define TREE_ORDER 0, 1, 2, 3, 4, 5, 6, 7
#define TILE_TOKENS 6
#define X_BLOCK_BYTES (512 << 10)
#define X_VECTORS 0
#define PREFETCH(address) _mm_prefetch((const char *)(address), _MM_HINT_T0)

typedef __m256 vf;
typedef vf element_vector;
#define BLOCK_VECTORS 4
typedef struct { element_vector v[BLOCK_VECTORS]; } block; /* elements 0 2 .. 14, 16 18 .. 30, 1 3 .. 15, 17 19 .. 31 */

INLINE vf vf_zero(void) { return _mm256_setzero_ps(); }
INLINE vf vf_set1(float x) { return _mm256_set1_ps(x); }
INLINE vf vf_load(const float *p) { return _mm256_loadu_ps(p); }
INLINE void vf_store(float *p, vf a) { _mm256_storeu_ps(p, a); }
INLINE vf vf_add(vf a, vf b) { return _mm256_add_ps(a, b); }
INLINE vf vf_mul(vf a, vf b) { return _mm256_mul_ps(a, b); }
INLINE vf vf_fma(vf a, vf b, vf c) { return _mm256_fmadd_ps(a, b, c); }

/* Widens LANES words of two bf16 each: low halves and high halves. */
INLINE void load_pair(const uint16_t *words, vf *low, vf *high)
{
    __m256i w = _mm256_loadu_si256((const __m256i *)words);
    *low = _mm256_castsi256_ps(_mm256_slli_epi32(w, 16));
    *high = _mm256_castsi256_ps(_mm256_and_si256(w, _mm256_set1_epi32((int)0xffff0000)));
}

/* Widens 16 even and 16 odd two-byte elements. They go through memory: a load that widens needs no shuffle, and the
 * shuffle port is what limits decoding. */
#define WIDEN(even, odd, widen)                                                                                       \
    ({                                                                                                                \
        __m256i halves[2] = {even, odd};                                                                              \
        __asm__("" : "+m"(halves));                                                                                   \
        const __m128i *h = (const __m128i *)halves;                                                                   \
        (block){{widen(h[0]), widen(h[1]), widen(h[2]), widen(h[3])}};                                                \
    })

INLINE block block_fp8(const uint8_t *w)
{
    const __m256i mask = _mm256_set1_epi16((short)0xbf80);
    __m256i bytes = _mm256_loadu_si256((const __m256i *)w);
    __m256i even = _mm256_and_si256(_mm256_srai_epi16(_mm256_slli_epi16(bytes, 8), 1), mask);
    __m256i odd = _mm256_and_si256(_mm256_srai_epi16(bytes, 1), mask);
    return WIDEN(even, odd, _mm256_cvtph_ps);
}

INLINE __m256 int16_to_f32(__m128i x) { return _mm256_cvtepi32_ps(_mm256_cvtepi16_epi32(x)); }

INLINE block block_int8(const uint8_t *w)
{
    __m256i bytes = _mm256_loadu_si256((const __m256i *)w);
    __m256i even = _mm256_srai_epi16(_mm256_slli_epi16(bytes, 8), 8), odd = _mm256_srai_epi16(bytes, 8);
    return WIDEN(even, odd, int16_to_f32);
}

INLINE block block_bf16(const uint8_t *w)
{
    const __m256i high = _mm256_set1_epi32((int)0xffff0000);
    __m256i a = _mm256_loadu_si256((const __m256i *)w), b = _mm256_loadu_si256((const __m256i *)(w + 32));
    return (block){{_mm256_castsi256_ps(_mm256_slli_epi32(a, 16)), _mm256_castsi256_ps(_mm256_slli_epi32(b, 16)),
                    _mm256_castsi256_ps(_mm256_and_si256(a, high)), _mm256_castsi256_ps(_mm256_and_si256(b, high))}};
}

INLINE element_vector element_load(const void *p) { return vf_load(p); }
INLINE void element_store(void *p, element_vector v) { vf_store(p, v); }
INLINE element_vector element_broadcast(const void *p) { return _mm256_broadcast_ss((const float *)p); }

INLINE void transpose_bytes(const uint8_t *w, int64_t stride, uint8_t t[LANES][DOT_BLOCK * 2])
{
    __m256i a[8], b[8], c[8];
    UNROLL for (int r = 0; r < 8; r++) a[r] = _mm256_loadu_si256((const __m256i *)(w + r * stride));
    UNROLL for (int r = 0; r < 8; r += 2) {
        b[r] = _mm256_unpacklo_epi16(a[r], a[r + 1]);
        b[r + 1] = _mm256_unpackhi_epi16(a[r], a[r + 1]);
    }
    UNROLL for (int r = 0; r < 8; r += 4)
        UNROLL for (int half = 0; half < 2; half++) {
            c[r + 2 * half] = _mm256_unpacklo_epi32(b[r + half], b[r + 2 + half]);
            c[r + 2 * half + 1] = _mm256_unpackhi_epi32(b[r + half], b[r + 2 + half]);
        }
    UNROLL for (int i = 0; i < 4; i++) {
        _mm256_storeu_si256((__m256i *)t[2 * i], _mm256_unpacklo_epi64(c[i], c[4 + i]));
        _mm256_storeu_si256((__m256i *)t[2 * i + 1], _mm256_unpackhi_epi64(c[i], c[4 + i]));
    }
}

INLINE void transpose_words(const uint8_t *w, int64_t stride, uint8_t t[LANES][DOT_BLOCK * 2])
{
    UNROLL for (int half = 0; half < 2; half++) {
        __m256i a[8], b[8], c[8];
        UNROLL for (int r = 0; r < 8; r++) a[r] = _mm256_loadu_si256((const __m256i *)(w + r * stride) + half);
        UNROLL for (int r = 0; r < 8; r += 2) {
            b[r] = _mm256_unpacklo_epi32(a[r], a[r + 1]);
            b[r + 1] = _mm256_unpackhi_epi32(a[r], a[r + 1]);
        }
        UNROLL for (int r = 0; r < 8; r += 4)
            UNROLL for (int i = 0; i < 2; i++) {
                c[r + 2 * i] = _mm256_unpacklo_epi64(b[r + i], b[r + 2 + i]);
                c[r + 2 * i + 1] = _mm256_unpackhi_epi64(b[r + i], b[r + 2 + i]);
            }
        UNROLL for (int i = 0; i < 4; i++) {
            _mm256_storeu_si256((__m256i *)t[i] + half, _mm256_permute2x128_si256(c[i], c[4 + i], 0x20));
            _mm256_storeu_si256((__m256i *)t[4 + i] + half, _mm256_permute2x128_si256(c[i], c[4 + i], 0x31));
        }
    }
}

INLINE block transposed_bf16(const uint8_t *t) { return block_bf16(t); }

INLINE vf dot(vf acc, element_vector w, element_vector x) { return _mm256_fmadd_ps(w, x, acc); }

/* out[i] = the sum of acc[i]'s lanes: pairs, then pairs of pairs, then the two halves. */
INLINE void reduce(const vf acc[LANES], float *out)
{
    __m256 a = _mm256_hadd_ps(_mm256_hadd_ps(acc[0], acc[1]), _mm256_hadd_ps(acc[2], acc[3]));
    __m256 b = _mm256_hadd_ps(_mm256_hadd_ps(acc[4], acc[5]), _mm256_hadd_ps(acc[6], acc[7]));
    vf_store(out, _mm256_add_ps(_mm256_permute2f128_ps(a, b, 0x20), _mm256_permute2f128_ps(a, b, 0x31)));
}
