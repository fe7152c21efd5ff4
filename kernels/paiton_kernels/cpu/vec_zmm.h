/* What both AVX-512 levels share: vectors of 16 floats, and their reduction. */
#pragma once
#include <immintrin.h>
#include "formats.h"

#define LANES 16
#define DOT_BLOCK 64
#define PANEL_ROWS 4
#define X_VECTORS 8
#define ROW_TILE 8
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
