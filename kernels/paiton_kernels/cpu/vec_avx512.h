/* AVX-512 without BF16: a block is 64 elements as four vectors of f32, in the even/odd order that two-byte lanes give
 * for free. */
#pragma once
#include "vec_zmm.h"

/* e4m3 codes become f16 by a shift, which divides them by 2^8; subnormals included, since vcvtph2ps handles those. */
#define FP8_FACTOR 256.0f
#define X_BYTES 4
#define BLOCK_VECTORS 4

typedef vf element_vector;
/* Elements 0 2 .. 30, 32 34 .. 62, 1 3 .. 31, 33 35 .. 63. */
typedef struct { element_vector v[BLOCK_VECTORS]; } block;

INLINE element_vector element_load(const void *p) { return vf_load(p); }
INLINE void element_store(void *p, element_vector v) { vf_store(p, v); }
INLINE element_vector element_broadcast(const void *p) { return vf_set1(*(const float *)p); }
INLINE vf dot(vf acc, element_vector w, element_vector x) { return vf_fma(w, x, acc); }

/* 64 one-byte weights on their way to f32: 32 even and 32 odd ones of two bytes. They go through memory, since a load
 * that widens needs no shuffle, and the shuffle port is what limits decoding. */
#define STAGED
typedef struct { __m512i even, odd; } staged;

INLINE void stage_fp8(const uint8_t *w, staged *to)
{
    const __m512i mask = _mm512_set1_epi16((short)0xbf80), bytes = _mm512_loadu_si512(w);
    to->even = _mm512_and_si512(_mm512_srai_epi16(_mm512_slli_epi16(bytes, 8), 1), mask);
    to->odd = _mm512_and_si512(_mm512_srai_epi16(bytes, 1), mask);
    __asm__("" : "+m"(*to));
}

INLINE void stage_int8(const uint8_t *w, staged *to)
{
    const __m512i bytes = _mm512_loadu_si512(w);
    to->even = _mm512_srai_epi16(_mm512_slli_epi16(bytes, 8), 8);
    to->odd = _mm512_srai_epi16(bytes, 8);
    __asm__("" : "+m"(*to));
}

INLINE __m512 int16_to_f32(__m256i x) { return _mm512_cvtepi32_ps(_mm512_cvtepi16_epi32(x)); }

#define WIDEN(from, widen)                                                                                            \
    ({                                                                                                                \
        const __m256i *h = (const __m256i *)(from);                                                                   \
        (block){{widen(h[0]), widen(h[1]), widen(h[2]), widen(h[3])}};                                                \
    })

INLINE block staged_fp8(const staged *from) { return WIDEN(from, _mm512_cvtph_ps); }
INLINE block staged_int8(const staged *from) { return WIDEN(from, int16_to_f32); }

INLINE block block_fp8(const uint8_t *w)
{
    staged half_way;
    stage_fp8(w, &half_way);
    return staged_fp8(&half_way);
}

INLINE block block_int8(const uint8_t *w)
{
    staged half_way;
    stage_int8(w, &half_way);
    return staged_int8(&half_way);
}

INLINE block block_bf16(const uint8_t *w)
{
    block b;
    load_pair((const uint16_t *)w, &b.v[0], &b.v[2]);
    load_pair((const uint16_t *)w + 32, &b.v[1], &b.v[3]);
    return b;
}

INLINE void transpose_bytes(const uint8_t *w, int64_t stride, uint8_t t[LANES][DOT_BLOCK * 2])
{
    const __m512i even = _mm512_setr_epi64(0, 1, 8, 9, 4, 5, 12, 13);
    const __m512i odd = _mm512_setr_epi64(2, 3, 10, 11, 6, 7, 14, 15);
    __m512i words[16];
    gather_words(w, stride, words);
    UNROLL for (int m = 0; m < 4; m++)
        UNROLL for (int i = 0; i < 2; i++) {
            const __m512i upper = i ? _mm512_unpackhi_epi64(words[m], words[4 + m])
                                    : _mm512_unpacklo_epi64(words[m], words[4 + m]);
            const __m512i lower = i ? _mm512_unpackhi_epi64(words[8 + m], words[12 + m])
                                    : _mm512_unpacklo_epi64(words[8 + m], words[12 + m]);
            _mm512_storeu_si512(t[2 * m + i], _mm512_permutex2var_epi64(upper, even, lower));
            _mm512_storeu_si512(t[8 + 2 * m + i], _mm512_permutex2var_epi64(upper, odd, lower));
        }
}

INLINE void transpose_words(const uint8_t *w, int64_t stride, uint8_t t[LANES][DOT_BLOCK * 2])
{
    UNROLL for (int half = 0; half < 2; half++) {
        __m512i columns[16];
        transpose_double_words(w + half * 64, stride, columns);
        UNROLL for (int lane = 0; lane < 16; lane++) _mm512_storeu_si512(t[lane] + half * 64, columns[lane]);
    }
}

INLINE block transposed_bf16(const uint8_t *t) { return block_bf16(t); }
