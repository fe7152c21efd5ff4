/* What both AVX-512 levels share: vectors of 16 floats, and their reduction. */
#pragma once
#include <immintrin.h>
#include "formats.h"

#define LANES 16
#define DOT_BLOCK 64
#define TREE_ORDER 0, 2, 1, 3, 4, 6, 5, 7, 8, 10, 9, 11, 12, 14, 13, 15
#define TILE_TOKENS 12
#define X_BLOCK_BYTES (1 << 20)
#define X_VECTORS 8
#define PREFETCH(address) _mm_prefetch((const char *)(address), _MM_HINT_T0)

typedef __m512 vf;

INLINE vf vf_zero(void) { return _mm512_setzero_ps(); }
INLINE vf vf_set1(float x) { return _mm512_set1_ps(x); }
INLINE vf vf_load(const float *p) { return _mm512_loadu_ps(p); }
INLINE void vf_store(float *p, vf a) { _mm512_storeu_ps(p, a); }
INLINE vf vf_add(vf a, vf b) { return _mm512_add_ps(a, b); }
INLINE vf vf_mul(vf a, vf b) { return _mm512_mul_ps(a, b); }
INLINE vf vf_fma(vf a, vf b, vf c) { return _mm512_fmadd_ps(a, b, c); }

/* Widens LANES words of two bf16 each: low halves and high halves. */
INLINE void load_pair(const uint16_t *words, vf *low, vf *high)
{
    __m512i w = _mm512_loadu_si512(words);
    *low = _mm512_castsi512_ps(_mm512_slli_epi32(w, 16));
    *high = _mm512_castsi512_ps(_mm512_and_si512(w, _mm512_set1_epi32((int)0xffff0000)));
}

/* Adds the halves of pairs of vectors, four times: out[i] = the sum of acc[i]'s lanes, as one tree. */
INLINE void reduce(const vf acc[LANES], float *out)
{
    __m512 a[8], b[4], c[2];
    for (int i = 0; i < 8; i++)
        a[i] = _mm512_add_ps(_mm512_unpacklo_ps(acc[i], acc[i + 8]), _mm512_unpackhi_ps(acc[i], acc[i + 8]));
    for (int i = 0; i < 4; i++)
        b[i] = _mm512_add_ps(_mm512_unpacklo_ps(a[i], a[i + 4]), _mm512_unpackhi_ps(a[i], a[i + 4]));
    for (int i = 0; i < 2; i++)
        c[i] = _mm512_add_ps(_mm512_shuffle_f32x4(b[i], b[i + 2], 0x88), _mm512_shuffle_f32x4(b[i], b[i + 2], 0xdd));
    __m512 d = _mm512_add_ps(_mm512_shuffle_f32x4(c[0], c[1], 0x88), _mm512_shuffle_f32x4(c[0], c[1], 0xdd));
    const __m512i order = _mm512_setr_epi32(0, 8, 4, 12, 1, 9, 5, 13, 2, 10, 6, 14, 3, 11, 7, 15);
    _mm512_storeu_ps(out, _mm512_permutexvar_ps(order, d));
}

/* Transposes four vectors of four 16-byte groups: group q of to[g] is group g of from[q]. */
INLINE void transpose_groups(const __m512i from[4], __m512i to[4])
{
    const __m512i a = _mm512_shuffle_i32x4(from[0], from[1], 0x88), b = _mm512_shuffle_i32x4(from[2], from[3], 0x88);
    const __m512i c = _mm512_shuffle_i32x4(from[0], from[1], 0xdd), d = _mm512_shuffle_i32x4(from[2], from[3], 0xdd);
    to[0] = _mm512_shuffle_i32x4(a, b, 0x88), to[2] = _mm512_shuffle_i32x4(a, b, 0xdd);
    to[1] = _mm512_shuffle_i32x4(c, d, 0x88), to[3] = _mm512_shuffle_i32x4(c, d, 0xdd);
}

/* Of 16 rows of 64 bytes, four by four: word 2m of each 16-byte group, row by row, then word 2m + 1, in to[4q + m]. */
INLINE void gather_words(const uint8_t *w, int64_t stride, __m512i to[16])
{
    UNROLL for (int q = 0; q < 4; q++) {
        __m512i a[4], b[4];
        UNROLL for (int r = 0; r < 4; r++) a[r] = _mm512_loadu_si512(w + (4 * q + r) * stride);
        UNROLL for (int r = 0; r < 4; r += 2) {
            b[r] = _mm512_unpacklo_epi16(a[r], a[r + 1]);
            b[r + 1] = _mm512_unpackhi_epi16(a[r], a[r + 1]);
        }
        UNROLL for (int half = 0; half < 2; half++) {
            to[4 * q + 2 * half] = _mm512_unpacklo_epi32(b[half], b[2 + half]);
            to[4 * q + 2 * half + 1] = _mm512_unpackhi_epi32(b[half], b[2 + half]);
        }
    }
}

/* Transposes 16 rows of 16 double words. */
INLINE void transpose_double_words(const uint8_t *w, int64_t stride, __m512i to[16])
{
    __m512i columns[4][4];
    UNROLL for (int q = 0; q < 4; q++) {
        __m512i a[4], b[4];
        UNROLL for (int r = 0; r < 4; r++) a[r] = _mm512_loadu_si512(w + (4 * q + r) * stride);
        UNROLL for (int r = 0; r < 4; r += 2) {
            b[r] = _mm512_unpacklo_epi32(a[r], a[r + 1]);
            b[r + 1] = _mm512_unpackhi_epi32(a[r], a[r + 1]);
        }
        UNROLL for (int half = 0; half < 2; half++) {
            columns[2 * half][q] = _mm512_unpacklo_epi64(b[half], b[2 + half]);
            columns[2 * half + 1][q] = _mm512_unpackhi_epi64(b[half], b[2 + half]);
        }
    }
    UNROLL for (int i = 0; i < 4; i++) {
        __m512i groups[4];
        transpose_groups(columns[i], groups);
        UNROLL for (int g = 0; g < 4; g++) to[4 * g + i] = groups[g];
    }
}
