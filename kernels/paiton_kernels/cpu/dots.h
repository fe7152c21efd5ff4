/* Dot products of weight rows and activation rows, on top of a level's vectors, straight from stored weights.
 *
 * A product is summed in slices of SLICE_COLUMNS columns, whose sums are added in ascending order. Within a slice LANES
 * partial sums take their columns in ascending order, lane by lane, and are then added as one tree, that of `reduce`.
 * So a product's bits depend on its two rows only, never on the tile's form, its neighbours, or whether the weights
 * came from a panel (panels.h). */
#pragma once
#include "mathf.h"

/* How weights are stored. */
enum source { SOURCE_FP8, SOURCE_INT8, SOURCE_BF16 };

/* Activation rows that one tile takes, at most. */
#define DIRECT_TOKENS (LANES >= 16 ? 8 : 4)
#define UNIT 16 /* weight rows that a caller hands out at once */
#define SLICE_COLUMNS 2048
/* Columns that share a scale where scales are of blocks; whole blocks of dot products on every level. */
#define SCALE_COLUMNS 128
_Static_assert(SCALE_COLUMNS % DOT_BLOCK == 0, "dot products can start where a scale does");
_Static_assert(UNIT % LANES == 0, "a unit is whole vectors of rows");

INLINE int64_t source_bytes(enum source source) { return source == SOURCE_BF16 ? 2 : 1; }

INLINE float source_factor(enum source source) { return source == SOURCE_FP8 ? FP8_FACTOR : 1.0f; }

/* Bytes of one packed activation row, or of one row of a panel. */
INLINE int64_t packed_bytes(int64_t k) { return round_up(k, 64) * X_BYTES; }

INLINE block block_of(enum source source, const uint8_t *w)
{
    switch (source) {
    case SOURCE_FP8: return block_fp8(w);
    case SOURCE_INT8: return block_int8(w);
    default: return block_bf16(w);
    }
}

#define VECTOR_BYTES ((int64_t)sizeof(element_vector))
_Static_assert(BLOCK_VECTORS * sizeof(element_vector) == DOT_BLOCK * X_BYTES, "a block is its vectors");

INLINE void block_store(uint8_t *p, block b)
{
    UNROLL for (int i = 0; i < BLOCK_VECTORS; i++) element_store(p + i * VECTOR_BYTES, b.v[i]);
}

/* Keeps the compiler from remembering what it loaded at this offset: it would run out of registers. */
#define FORGET(offset) __asm__("" : "+r"(offset))

/* One block of stored weights: each row is converted once and meets every activation row. */
INLINE void block_stored(const enum source source, const int rows, const uint8_t *w, int64_t stride,
                         const uint8_t *const *xs, int64_t at, vf *acc)
{
    const int tokens = LANES / rows;
    UNROLL for (int r = 0; r < rows; r++) {
        for (int64_t i = 0; i < DOT_BLOCK * source_bytes(source); i += 64) PREFETCH(w + (r + rows) * stride + i);
        const block b = block_of(source, w + r * stride);
        if (tokens * BLOCK_VECTORS > X_VECTORS) FORGET(at);
        UNROLL for (int t = 0; t < tokens; t++)
            UNROLL for (int i = 0; i < BLOCK_VECTORS; i++)
                acc[t * rows + r] = dot(acc[t * rows + r], b.v[i], element_load(xs[t] + at + i * VECTOR_BYTES));
    }
}

/* Copies the last, incomplete block of a row and fills it up with zeros, so that nothing beyond the row is read. */
INLINE void copy_tail(uint8_t *to, const uint8_t *from, int64_t bytes)
{
    for (int64_t i = 0; i < DOT_BLOCK * 2; i++) to[i] = 0;
    for (int64_t i = 0; i < bytes; i++) to[i] = from[i];
}

/* out[t * rows + r] = weight row r times activation row t, for `rows` times LANES / rows products. Activation rows past
 * `last` repeat it. */
INLINE void tile(const enum source source, const int rows, const uint8_t *w, int64_t stride, const uint8_t *x,
                 int64_t x_stride, int64_t last, int64_t k, float *out)
{
    const int tokens = LANES / rows;
    const int64_t bytes = source_bytes(source);
    const uint8_t *xs[LANES];
    uint8_t tail[LANES][DOT_BLOCK * 2];
    vf acc[LANES];
    UNROLL for (int i = 0; i < LANES; i++) acc[i] = vf_zero();
    UNROLL for (int t = 0; t < tokens; t++) xs[t] = x + min_i64(t, last) * x_stride;
    int64_t blocks = k / DOT_BLOCK, left = k % DOT_BLOCK, x_at = 0;
    for (;;) {
        for (int64_t b = 0; b < blocks; b++, x_at += DOT_BLOCK * X_BYTES)
            block_stored(source, rows, w + b * (DOT_BLOCK * bytes), stride, xs, x_at, acc);
        if (!left) break;
        for (int r = 0; r < rows; r++) copy_tail(tail[r], w + r * stride + blocks * DOT_BLOCK * bytes, left * bytes);
        w = tail[0], stride = sizeof tail[0], blocks = 1, left = 0;
    }
    reduce(acc, out);
}

#define DEFINE_TILE(name, source, rows)                                                                               \
    UNUSED SHARED void name(const uint8_t *w, int64_t stride, const uint8_t *x, int64_t x_stride, int64_t last,       \
                            int64_t k, float *out)                                                                    \
    {                                                                                                                 \
        tile(source, rows, w, stride, x, x_stride, last, k, out);                                                     \
    }
#define DEFINE_TILES(name, source)                                                                                    \
    DEFINE_TILE(name##_1, source, LANES)                                                                              \
    DEFINE_TILE(name##_2, source, LANES / 2)                                                                          \
    DEFINE_TILE(name##_4, source, LANES / 4)                                                                          \
    DEFINE_TILE(name##_8, source, LANES / DIRECT_TOKENS)

DEFINE_TILES(tile_fp8, SOURCE_FP8)
DEFINE_TILES(tile_int8, SOURCE_INT8)
DEFINE_TILES(tile_bf16, SOURCE_BF16)

/* The tile of `tokens` (1, 2, 4 or DIRECT_TOKENS) activation rows, straight from stored weights. */
INLINE void direct_tile(enum source source, int64_t tokens, const uint8_t *w, int64_t stride, const uint8_t *x,
                        int64_t x_stride, int64_t last, int64_t k, float *out)
{
#define CHOOSE(name)                                                                                                  \
    if (tokens == 1) name##_1(w, stride, x, x_stride, last, k, out);                                                  \
    else if (tokens == 2) name##_2(w, stride, x, x_stride, last, k, out);                                             \
    else if (tokens == 4) name##_4(w, stride, x, x_stride, last, k, out);                                             \
    else name##_8(w, stride, x, x_stride, last, k, out)
    if (source == SOURCE_FP8) { CHOOSE(tile_fp8); }
    else if (source == SOURCE_INT8) { CHOOSE(tile_int8); }
    else { CHOOSE(tile_bf16); }
#undef CHOOSE
}

/* direct_unit for one slice; `add` adds to y. */
INLINE void direct_slice(enum source source, const uint8_t *w, int64_t stride, const uint8_t *x, int64_t x_stride,
                         int64_t count, int64_t k, const int add, float *y, int64_t y_stride)
{
    float out[LANES];
    for (int64_t t0 = 0, tokens; t0 < count; t0 += tokens) {
        const int64_t left = count - t0;
        tokens = left > 4 ? DIRECT_TOKENS : left > 2 ? 4 : left;
        const int64_t rows = LANES / tokens;
        for (int64_t r0 = 0; r0 < UNIT; r0 += rows) {
            direct_tile(source, tokens, w + r0 * stride, stride, x + t0 * x_stride, x_stride, left - 1, k, out);
            for (int64_t t = 0; t < min_i64(tokens, left); t++)
                for (int64_t r = 0; r < rows; r++) {
                    float *to = y + (t0 + t) * y_stride + r0 + r;
                    *to = add ? *to + out[t * rows + r] : out[t * rows + r];
                }
        }
    }
}

/* y[t * y_stride + r] = weight row r (of UNIT) times activation row t (of `count`, PACKED_ROWS), converting weights on
 * the way. */
INLINE void direct_unit(enum source source, const uint8_t *w, int64_t stride, const uint8_t *x, int64_t x_stride,
                        int64_t count, int64_t k, float *y, int64_t y_stride)
{
    direct_slice(source, w, stride, x, x_stride, count, min_i64(k, SLICE_COLUMNS), 0, y, y_stride);
    for (int64_t at = SLICE_COLUMNS; at < k; at += SLICE_COLUMNS)
        direct_slice(source, w + at * source_bytes(source), stride, x + at * X_BYTES, x_stride, count,
                     min_i64(k - at, SLICE_COLUMNS), 1, y, y_stride);
}
