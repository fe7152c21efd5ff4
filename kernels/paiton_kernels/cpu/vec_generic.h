/* Vectors for any x86-64, without intrinsics: the reference. Four floats, which fit an SSE register. */
#pragma once
#include "formats.h"

#define LANES 4
#define DOT_BLOCK 16 /* elements per block, in their natural order */
#define X_BYTES 4    /* bytes per packed element */
#define FP8_FACTOR 1.0f
#define TREE_ORDER 0, 2, 1, 3 /* lanes in the order in which `reduce` pairs them, then the pairs, and so on */
#define TILE_TOKENS 4      /* activation rows of a panel's tile, at most; it has two vectors of weight rows */
#define X_BLOCK_BYTES (256 << 10) /* packed activations that meet a panel while they stay in the second cache */
#define X_VECTORS 4 /* vectors of activations that stay in registers while weight rows pass */
#define PREFETCH(address) __builtin_prefetch(address)

typedef float vf __attribute__((vector_size(16)));
typedef vf element_vector; /* LANES elements of a block */
#define BLOCK_VECTORS 4
typedef struct { element_vector v[BLOCK_VECTORS]; } block;

INLINE vf vf_set1(float x) { return (vf){x, x, x, x}; }
INLINE vf vf_zero(void) { return vf_set1(0.0f); }
INLINE vf vf_load(const float *p) { return (vf){p[0], p[1], p[2], p[3]}; }

INLINE void vf_store(float *p, vf a)
{
    for (int i = 0; i < LANES; i++) p[i] = a[i];
}

INLINE vf vf_add(vf a, vf b) { return a + b; }
INLINE vf vf_mul(vf a, vf b) { return a * b; }
INLINE vf vf_fma(vf a, vf b, vf c) { return a * b + c; } /* rounded twice: baseline x86-64 has no FMA */

/* Widens LANES words of two bf16 each: low halves and high halves. */
INLINE void load_pair(const uint16_t *words, vf *low, vf *high)
{
    for (int i = 0; i < LANES; i++) (*low)[i] = bf16_to_f32(words[2 * i]), (*high)[i] = bf16_to_f32(words[2 * i + 1]);
}

INLINE element_vector element_load(const void *p) { return vf_load(p); }
INLINE void element_store(void *p, element_vector v) { vf_store(p, v); }

INLINE block block_fp8(const uint8_t *w)
{
    float f[DOT_BLOCK];
    for (int i = 0; i < DOT_BLOCK; i++) f[i] = e4m3_to_f32(w[i]);
    return (block){{vf_load(f), vf_load(f + 4), vf_load(f + 8), vf_load(f + 12)}};
}

INLINE block block_int8(const uint8_t *w)
{
    float f[DOT_BLOCK];
    for (int i = 0; i < DOT_BLOCK; i++) f[i] = (float)(int8_t)w[i];
    return (block){{vf_load(f), vf_load(f + 4), vf_load(f + 8), vf_load(f + 12)}};
}

INLINE block block_bf16(const uint8_t *w)
{
    const uint16_t *bits = (const uint16_t *)w;
    float f[DOT_BLOCK];
    for (int i = 0; i < DOT_BLOCK; i++) f[i] = bf16_to_f32(bits[i]);
    return (block){{vf_load(f), vf_load(f + 4), vf_load(f + 8), vf_load(f + 12)}};
}

/* The word at `p` in every lane. */
INLINE element_vector element_broadcast(const void *p) { return vf_set1(*(const float *)p); }

/* Transposes LANES rows of DOT_BLOCK elements of one or two bytes: t[lane] is a block whose vector v holds, row by row,
 * what lane `lane` of vector v of each row's block holds. */
INLINE void transpose_bytes(const uint8_t *w, int64_t stride, uint8_t t[LANES][DOT_BLOCK * 2])
{
    for (int lane = 0; lane < LANES; lane++)
        for (int v = 0; v < BLOCK_VECTORS; v++)
            for (int r = 0; r < LANES; r++) t[lane][v * LANES + r] = w[r * stride + v * LANES + lane];
}

INLINE void transpose_words(const uint8_t *w, int64_t stride, uint8_t t[LANES][DOT_BLOCK * 2])
{
    for (int lane = 0; lane < LANES; lane++)
        for (int v = 0; v < BLOCK_VECTORS; v++)
            for (int r = 0; r < LANES; r++) {
                const uint8_t *from = w + r * stride + (v * LANES + lane) * 2;
                uint8_t *to = &t[lane][(v * LANES + r) * 2];
                to[0] = from[0], to[1] = from[1];
            }
}

INLINE block transposed_bf16(const uint8_t *t) { return block_bf16(t); }

INLINE vf dot(vf acc, element_vector w, element_vector x) { return vf_fma(w, x, acc); }

/* out[i] = the sum of acc[i]'s lanes: (0 + 2) + (1 + 3). */
INLINE void reduce(const vf acc[LANES], float *out)
{
    for (int i = 0; i < LANES; i++) out[i] = (acc[i][0] + acc[i][2]) + (acc[i][1] + acc[i][3]);
}
