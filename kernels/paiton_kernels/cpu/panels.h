/* Products of panels: UNIT weight rows, converted and transposed once, for any number of activation rows.
 *
 * A tile has two vectors of weight rows, one row a lane, and multiplies them with words of activations, broadcast. It
 * goes through the LANES partial sums of each product one after the other and adds them as `reduce` does, without
 * moving anything between lanes; the products have the bits that dots.h gives them.
 *
 * A panel is made of UNIT / LANES groups of LANES rows: for each partial sum its vectors, one after the other. An
 * activation row is made of groups of SCALE_COLUMNS columns: for each partial sum its words (PACKED_COLUMNS). Words are
 * 32 bits wide: an f32, or two bf16. */
#pragma once
#include "dots.h"

/* How activations are packed: in blocks for dots.h, or by partial sums for panels. */
enum packing { PACKED_ROWS, PACKED_COLUMNS };

#define PAIR (2 * UNIT) /* weight rows of two panels */
/* Words of a partial sum in a group of columns. */
#define GROUP_WORDS (SCALE_COLUMNS * X_BYTES / VECTOR_BYTES)
_Static_assert(VECTOR_BYTES == LANES * 4, "a vector is LANES words");

/* Reorders up to SCALE_COLUMNS packed columns, `vectors` vectors, for panels. */
INLINE void store_columns(const uint32_t *words, int64_t vectors, uint8_t *to)
{
    for (int64_t lane = 0; lane < LANES; lane++)
        for (int64_t v = 0; v < vectors; v++) ((uint32_t *)to)[lane * vectors + v] = words[v * LANES + lane];
}

/* One block of LANES weight rows into a slice of `blocks` blocks. */
INLINE void fill_block(enum source source, const uint8_t *w, int64_t stride, int64_t blocks, uint8_t *to)
{
    _Alignas(64) uint8_t t[LANES][DOT_BLOCK * 2];
    if (source == SOURCE_BF16) transpose_words(w, stride, t);
    else transpose_bytes(w, stride, t);
    for (int lane = 0; lane < LANES; lane++, to += blocks * DOT_BLOCK * X_BYTES)
        block_store(to, source == SOURCE_BF16 ? transposed_bf16(t[lane]) : block_of(source, t[lane]));
}

/* Fills the part of a panel that LANES rows and one slice take, and asks for the unit after it. */
INLINE void fill_group(enum source source, const uint8_t *w, int64_t stride, int64_t k, uint8_t *to)
{
    const int64_t width = DOT_BLOCK * source_bytes(source), whole = k / DOT_BLOCK, left = k % DOT_BLOCK;
    for (int64_t b = 0; b < whole; b++) {
        for (int64_t r = 0; r < LANES; r++) PREFETCH(w + (r + UNIT) * stride + b * width);
        fill_block(source, w + b * width, stride, whole + (left > 0), to + b * DOT_BLOCK * X_BYTES);
    }
    if (left) {
        uint8_t tail[LANES][DOT_BLOCK * 2];
        for (int64_t r = 0; r < LANES; r++)
            copy_tail(tail[r], w + r * stride + whole * width, left * source_bytes(source));
        fill_block(source, tail[0], sizeof tail[0], whole + 1, to + whole * DOT_BLOCK * X_BYTES);
    }
}

#define DEFINE_FILL(name, source)                                                                                     \
    UNUSED SHARED void name(const uint8_t *w, int64_t stride, int64_t k, uint8_t *to)                                 \
    {                                                                                                                 \
        fill_group(source, w, stride, k, to);                                                                         \
    }
DEFINE_FILL(fill_fp8, SOURCE_FP8)
DEFINE_FILL(fill_int8, SOURCE_INT8)
DEFINE_FILL(fill_bf16, SOURCE_BF16)

/* Converts k columns, one slice at most, of UNIT weight rows into a panel of UNIT * packed_bytes(k) bytes. */
INLINE void fill_panel(enum source source, const uint8_t *w, int64_t stride, int64_t k, uint8_t *panel)
{
    for (int64_t r = 0; r < UNIT; r += LANES, panel += LANES * round_up(k, DOT_BLOCK) * X_BYTES) {
        if (source == SOURCE_FP8) fill_fp8(w + r * stride, stride, k, panel);
        else if (source == SOURCE_INT8) fill_int8(w + r * stride, stride, k, panel);
        else fill_bf16(w + r * stride, stride, k, panel);
    }
}

/* Adds the products of `words` words of a partial sum. Activation rows are found from every third one's address: more
 * addresses would not fit the registers. */
INLINE void tile_words(const int tokens, const uint8_t *low, const uint8_t *high, const uint8_t *x, int64_t x_stride,
                       int64_t words, vf *acc)
{
    const uint8_t *rows[(TILE_TOKENS + 2) / 3];
    UNROLL for (int t = 0; t < tokens; t += 3) {
        rows[t / 3] = x + t * x_stride;
        FORGET(rows[t / 3]);
    }
    _Pragma("clang loop unroll_count(4)") for (int64_t i = 0; i < words; i++) {
        const element_vector row_low = element_load(low + i * VECTOR_BYTES);
        const element_vector row_high = element_load(high + i * VECTOR_BYTES);
        FORGET(x_stride);
        UNROLL for (int t = 0; t < tokens; t++) {
            const element_vector word = element_broadcast(rows[t / 3] + t % 3 * x_stride + i * 4);
            acc[2 * t] = dot(acc[2 * t], row_low, word);
            acc[2 * t + 1] = dot(acc[2 * t + 1], row_high, word);
        }
    }
}

/* y[t * y_stride + i] = row i of `a`, and of `b` from i = LANES on, times activation row t (of `tokens`), for one slice
 * of k columns; `add` adds to y. */
INLINE void panel_tile(const int tokens, const uint8_t *a, const uint8_t *b, const uint8_t *x, int64_t x_stride,
                       int64_t k, int add, float *y, int64_t y_stride)
{
    enum { DEPTH = LANES == 16 ? 4 : LANES == 8 ? 3 : 2 };
    static const uint8_t order[LANES] = {TREE_ORDER};
    const int64_t vectors = round_up(k, DOT_BLOCK) * X_BYTES / VECTOR_BYTES, left = vectors % GROUP_WORDS;
    vf sums[DEPTH][2 * TILE_TOKENS];
    for (int done = 0; done < LANES; done++) {
        const int64_t lane = order[done];
        const uint8_t *low = a + lane * vectors * VECTOR_BYTES, *high = b + lane * vectors * VECTOR_BYTES;
        vf acc[2 * TILE_TOKENS];
        UNROLL for (int i = 0; i < 2 * tokens; i++) acc[i] = vf_zero();
        const uint8_t *at = x + lane * GROUP_WORDS * 4;
        for (int64_t group = vectors / GROUP_WORDS; group; group--) {
            tile_words(tokens, low, high, at, x_stride, GROUP_WORDS, acc);
            low += GROUP_WORDS * VECTOR_BYTES, high += GROUP_WORDS * VECTOR_BYTES, at += GROUP_WORDS * VECTOR_BYTES;
        }
        if (left) tile_words(tokens, low, high, at - lane * (GROUP_WORDS - left) * 4, x_stride, left, acc);
        /* Like a binary counter: equal powers of two of partial sums are added. */
        int top = __builtin_popcount((unsigned)done);
        for (unsigned carry = (unsigned)done; carry & 1u; carry >>= 1) {
            top--;
            UNROLL for (int i = 0; i < 2 * tokens; i++) acc[i] = vf_add(sums[top][i], acc[i]);
        }
        UNROLL for (int i = 0; i < 2 * tokens; i++) sums[top][i] = acc[i];
    }
    UNROLL for (int t = 0; t < tokens; t++, y += y_stride)
        UNROLL for (int half = 0; half < 2; half++) {
            const vf sum = sums[0][2 * t + half];
            vf_store(y + half * LANES, add ? vf_add(vf_load(y + half * LANES), sum) : sum);
        }
}

#define DEFINE_PANEL_TILE(tokens)                                                                                     \
    UNUSED SHARED void panel_tile_##tokens(const uint8_t *a, const uint8_t *b, const uint8_t *x, int64_t x_stride,    \
                                           int64_t k, int add, float *y, int64_t y_stride)                            \
    {                                                                                                                 \
        panel_tile(tokens, a, b, x, x_stride, k, add, y, y_stride);                                                   \
    }
#define FOR_EACH_TILE(what)                                                                                           \
    what(1) what(2) what(3) what(4) what(5) what(6) what(7) what(8) what(9) what(10) what(11) what(12)
_Static_assert(TILE_TOKENS <= 12, "every tile is defined");
FOR_EACH_TILE(DEFINE_PANEL_TILE)

SHARED void panel_tiles(const uint8_t *a, const uint8_t *b, const uint8_t *x, int64_t x_stride, int64_t count,
                        int64_t k, int add, float *y, int64_t y_stride)
{
    const uint32_t tiles = (uint32_t)((count + TILE_TOKENS - 1) / TILE_TOKENS);
    for (uint32_t tile = 0; tile < tiles; tile++) {
        const int64_t t = split(count, tile, tiles), tokens = split(count, tile + 1, tiles) - t;
        const uint8_t *at = x + t * x_stride;
        float *to = y + t * y_stride;
#define CASE(n)                                                                                                       \
    case n:                                                                                                           \
        if (n <= TILE_TOKENS) panel_tile_##n(a, b, at, x_stride, k, add, to, y_stride);                               \
        break;
        switch (tokens) { FOR_EACH_TILE(CASE) }
#undef CASE
    }
}

/* y[t * y_stride + i] = row i of panel `low`, and of `high` from i = UNIT on, times activation row t (of `count`,
 * PACKED_COLUMNS), for k columns, one slice at most; `add` adds to y. */
INLINE void panel_pair(const uint8_t *low, const uint8_t *high, const uint8_t *x, int64_t x_stride, int64_t count,
                       int64_t k, int add, float *y, int64_t y_stride)
{
    const int64_t group_bytes = LANES * round_up(k, DOT_BLOCK) * X_BYTES;
    const uint8_t *groups[PAIR / LANES];
    for (int i = 0; i < UNIT / LANES; i++) {
        groups[i] = low + i * group_bytes;
        groups[UNIT / LANES + i] = high + i * group_bytes;
    }
    for (int i = 0; i < PAIR / LANES; i += 2)
        panel_tiles(groups[i], groups[i + 1], x, x_stride, count, k, add, y + i * LANES, y_stride);
}
