/* Dot products of weight rows and activation rows, on top of a level's vectors, straight from stored weights.
 *
 * A product is summed in slices of SLICE_COLUMNS columns, whose sums are added in ascending order. Within a slice LANES
 * partial sums take their columns in ascending order, lane by lane, and are then added as one tree, that of `reduce`.
 * So a product's bits depend on its two rows only, never on the tile's form, its neighbours, or whether the weights
 * came from a panel (panels.h).
 *
 * Tiles of many activation rows go through a slice in pieces, which stay in the first cache with all weight rows of a
 * unit. Between pieces, and until they are added up, partial sums wait in memory. */
#pragma once
#include "mathf.h"

/* How weights are stored. */
enum source { SOURCE_FP8, SOURCE_INT8, SOURCE_BF16 };

/* Activation rows that one tile takes, at most. */
#define DIRECT_TOKENS (LANES >= 16 ? 8 : 4)
#define UNIT 16 /* weight rows that a caller hands out at once */
#define SLICE_COLUMNS 2048
#define PIECE_COLUMNS 768 /* at most; DIRECT_TOKENS rows of f32 take half of a first cache of 48 KiB */
/* Columns that share a scale where scales are of blocks; whole blocks of dot products on every level. */
#define SCALE_COLUMNS 128
_Static_assert(SCALE_COLUMNS % DOT_BLOCK == 0, "dot products can start where a scale does");
_Static_assert(PIECE_COLUMNS % DOT_BLOCK == 0, "pieces are whole blocks");
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

INLINE void ask_for(enum source source, const uint8_t *w)
{
    for (int64_t i = 0; i < DOT_BLOCK * source_bytes(source); i += 64) PREFETCH(w + i);
}

/* The products of `blocks` blocks of stored weights, row by row: each block is converted and meets every activation
 * row. */
INLINE void products_by_rows(const enum source source, const int rows, const uint8_t *w, int64_t stride, int64_t blocks,
                             const uint8_t *const *xs, int64_t at, vf *acc)
{
    const int tokens = LANES / rows;
    for (int64_t n = 0; n < blocks; n++, w += DOT_BLOCK * source_bytes(source), at += DOT_BLOCK * X_BYTES)
        UNROLL for (int r = 0; r < rows; r++) {
            ask_for(source, w + (r + UNIT) * stride);
            const block b = block_of(source, w + r * stride);
            if (tokens * BLOCK_VECTORS > X_VECTORS) FORGET(at);
            UNROLL for (int t = 0; t < tokens; t++)
                UNROLL for (int i = 0; i < BLOCK_VECTORS; i++)
                    acc[t * rows + r] = dot(acc[t * rows + r], b.v[i], element_load(xs[t] + at + i * VECTOR_BYTES));
        }
}

#ifdef STAGED
INLINE void stage(enum source source, const uint8_t *w, staged *to)
{
    if (source == SOURCE_FP8) stage_fp8(w, to);
    else stage_int8(w, to);
}

INLINE block staged_block(enum source source, const staged *from)
{
    return source == SOURCE_FP8 ? staged_fp8(from) : staged_int8(from);
}

/* Likewise, vector by vector: each vector of activations is loaded once for all weight rows. Conversion begins a block
 * ahead and stops half-way: of what is ready a processor runs what came first, so the next block's weights would wait
 * for this one's products, and then the products for the weights. */
INLINE void products_by_vectors(const enum source source, const int rows, const uint8_t *w, int64_t stride,
                                int64_t blocks, const uint8_t *const *xs, int64_t at, vf *acc)
{
    const int tokens = LANES / rows;
    const int64_t width = DOT_BLOCK * source_bytes(source);
    staged half_way[2][LANES];
    if (blocks)
        UNROLL for (int r = 0; r < rows; r++) stage(source, w + r * stride, &half_way[0][r]);
    for (int64_t n = 0; n < blocks; n++, w += width, at += DOT_BLOCK * X_BYTES) {
        block b[LANES];
        UNROLL for (int r = 0; r < rows; r++) {
            ask_for(source, w + (r + UNIT) * stride);
            if (n + 1 < blocks) stage(source, w + r * stride + width, &half_way[(n + 1) % 2][r]);
        }
        UNROLL for (int r = 0; r < rows; r++) b[r] = staged_block(source, &half_way[n % 2][r]);
        UNROLL for (int i = 0; i < BLOCK_VECTORS; i++)
            UNROLL for (int t = 0; t < tokens; t++) {
                const element_vector x = element_load(xs[t] + at + i * VECTOR_BYTES);
                UNROLL for (int r = 0; r < rows; r++) acc[t * rows + r] = dot(acc[t * rows + r], b[r].v[i], x);
            }
    }
}
#endif

INLINE void block_products(const enum source source, const int rows, const uint8_t *w, int64_t stride, int64_t blocks,
                           const uint8_t *const *xs, int64_t at, vf *acc)
{
#ifdef STAGED
    if (source != SOURCE_BF16 && LANES / rows * BLOCK_VECTORS > X_VECTORS) {
        products_by_vectors(source, rows, w, stride, blocks, xs, at, acc);
        return;
    }
#endif
    products_by_rows(source, rows, w, stride, blocks, xs, at, acc);
}

/* Copies the last, incomplete block of a row and fills it up with zeros, so that nothing beyond the row is read. */
INLINE void copy_tail(uint8_t *to, const uint8_t *from, int64_t bytes)
{
    for (int64_t i = 0; i < DOT_BLOCK * 2; i++) to[i] = 0;
    for (int64_t i = 0; i < bytes; i++) to[i] = from[i];
}

/* Tiles of one or two activation rows, which go through a slice in one piece, add their partial sums up themselves. */
INLINE int reduces_at_once(const int rows) { return LANES / rows <= 2; }

/* sums[t * rows + r] (+)= the LANES partial sums of weight row r times activation row t, for `rows` times LANES / rows
 * products of k columns; `begins` stores. Activation rows past `last` repeat it. */
INLINE void tile(const enum source source, const int rows, const uint8_t *w, int64_t stride, const uint8_t *x,
                 int64_t x_stride, int64_t last, int64_t k, int begins, vf *sums)
{
    const int tokens = LANES / rows;
    const int64_t bytes = source_bytes(source), blocks = k / DOT_BLOCK, left = k % DOT_BLOCK;
    const uint8_t *xs[LANES];
    vf acc[LANES];
    UNROLL for (int i = 0; i < LANES; i++) acc[i] = vf_zero();
    if (!begins)
        UNROLL for (int i = 0; i < LANES; i++) acc[i] = sums[i];
    UNROLL for (int t = 0; t < tokens; t++) xs[t] = x + min_i64(t, last) * x_stride;
    block_products(source, rows, w, stride, blocks, xs, 0, acc);
    if (left) {
        uint8_t tail[LANES][DOT_BLOCK * 2];
        for (int r = 0; r < rows; r++) copy_tail(tail[r], w + r * stride + blocks * DOT_BLOCK * bytes, left * bytes);
        block_products(source, rows, tail[0], sizeof tail[0], 1, xs, blocks * DOT_BLOCK * X_BYTES, acc);
    }
    if (reduces_at_once(rows)) reduce(acc, (float *)sums);
    else UNROLL for (int i = 0; i < LANES; i++) sums[i] = acc[i];
}

#define DEFINE_TILE(name, source, rows)                                                                               \
    UNUSED SHARED void name(const uint8_t *w, int64_t stride, const uint8_t *x, int64_t x_stride, int64_t last,       \
                            int64_t k, int begins, vf *sums)                                                          \
    {                                                                                                                 \
        tile(source, rows, w, stride, x, x_stride, last, k, begins, sums);                                            \
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
                        int64_t x_stride, int64_t last, int64_t k, int begins, vf *sums)
{
#define CHOOSE(name)                                                                                                  \
    if (tokens == 1) name##_1(w, stride, x, x_stride, last, k, begins, sums);                                         \
    else if (tokens == 2) name##_2(w, stride, x, x_stride, last, k, begins, sums);                                    \
    else if (tokens == 4) name##_4(w, stride, x, x_stride, last, k, begins, sums);                                    \
    else name##_8(w, stride, x, x_stride, last, k, begins, sums)
    if (source == SOURCE_FP8) { CHOOSE(tile_fp8); }
    else if (source == SOURCE_INT8) { CHOOSE(tile_int8); }
    else { CHOOSE(tile_bf16); }
#undef CHOOSE
}

/* y[t * y_stride + r] (+)= the sums of the partial sums that the tiles of UNIT weight rows left, each of `rows`, for
 * `count` activation rows. In a pass of its own reductions overlap; one after each tile would make the next wait. */
INLINE void finish(const int rows, const vf *sums, int64_t count, int add, float *y, int64_t y_stride)
{
    float out[UNIT][LANES];
    for (int i = 0; i < UNIT / rows; i++) {
        if (reduces_at_once(rows)) vf_store(out[i], sums[i * LANES]);
        else reduce(sums + i * LANES, out[i]);
    }
    for (int64_t t = 0; t < count; t++, y += y_stride)
        UNROLL for (int i = 0; i < UNIT; i++) {
            const float sum = out[i / rows][t * rows + i % rows];
            y[i] = add ? y[i] + sum : sum;
        }
}

#define DEFINE_FINISH(name, rows)                                                                                     \
    UNUSED SHARED void name(const vf *sums, int64_t count, int add, float *y, int64_t y_stride)                       \
    {                                                                                                                 \
        finish(rows, sums, count, add, y, y_stride);                                                                  \
    }
DEFINE_FINISH(finish_1, LANES)
DEFINE_FINISH(finish_2, LANES / 2)
DEFINE_FINISH(finish_4, LANES / 4)
DEFINE_FINISH(finish_8, LANES / DIRECT_TOKENS)

INLINE void finish_tiles(int64_t tokens, const vf *sums, int64_t count, int add, float *y, int64_t y_stride)
{
    if (tokens == 1) finish_1(sums, count, add, y, y_stride);
    else if (tokens == 2) finish_2(sums, count, add, y, y_stride);
    else if (tokens == 4) finish_4(sums, count, add, y, y_stride);
    else finish_8(sums, count, add, y, y_stride);
}

/* direct_unit for one slice; `add` adds to y. */
INLINE void direct_slice(enum source source, const uint8_t *w, int64_t stride, const uint8_t *x, int64_t x_stride,
                         int64_t count, int64_t k, const int add, float *y, int64_t y_stride)
{
    vf sums[UNIT * DIRECT_TOKENS];
    for (int64_t t0 = 0, tokens; t0 < count; t0 += tokens) {
        const int64_t left = count - t0;
        tokens = left > 4 ? DIRECT_TOKENS : left > 2 ? 4 : left;
        const int64_t rows = LANES / tokens, pieces = left > 4 ? (k + PIECE_COLUMNS - 1) / PIECE_COLUMNS : 1;
        const int64_t each = round_up((k + pieces - 1) / pieces, DOT_BLOCK);
        for (int64_t at = 0; at < k; at += each)
            for (int64_t r = 0; r < UNIT; r += rows)
                direct_tile(source, tokens, w + r * stride + at * source_bytes(source), stride,
                            x + t0 * x_stride + at * X_BYTES, x_stride, left - 1, min_i64(k - at, each), at == 0,
                            sums + r * tokens);
        finish_tiles(tokens, sums, min_i64(tokens, left), add, y + t0 * y_stride, y_stride);
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
