/* Register tiles of attention: scores of query rows, and V weighted by them.
 *
 * K and V are read in the order of kv_layout.h, as bf16 where they lie, or widened to f32 once for many rows (16 words'
 * low halves, then high ones: a column's 16 positions, or 32 columns in order). A full tile is TILE_TOKENS rows and two
 * vectors of positions or columns, as in panels.h; fewer rows take four. Either way a score adds its columns in order
 * and a sum its positions in order, each by one chain of multiply-adds. */
#pragma once
#include "dots.h"
#include "kv_layout.h"

#define GROUP_BLOCKS 4
#define GROUP (GROUP_BLOCKS * KV_BLOCK)

/* A group's tiles: blocks of 16 positions. Behind the last visible block, that block again. */
struct group {
    int widened;
    const void *keys[GROUP_BLOCKS], *values[GROUP_BLOCKS];
};

/* Calls `body` with a row tile as a constant: the largest that fits `rows`. */
#define WITH_ROWS(rows, body)                                                                                         \
    if ((rows) >= TILE_TOKENS) { enum { ROWS = TILE_TOKENS }; body; }                                                 \
    else WITH_FEW_ROWS(rows, body)
#define WITH_FEW_ROWS(rows, body)                                                                                     \
    if (TILE_TOKENS > 8 && (rows) >= 8) { enum { ROWS = TILE_TOKENS > 8 ? 8 : 1 }; body; }                            \
    else if (TILE_TOKENS > 4 && (rows) >= 4) { enum { ROWS = TILE_TOKENS > 4 ? 4 : 1 }; body; }                       \
    else if ((rows) == 3) { enum { ROWS = 3 }; body; }                                                                \
    else if ((rows) == 2) { enum { ROWS = 2 }; body; }                                                                \
    else { enum { ROWS = 1 }; body; }

/* Rows that WITH_ROWS takes. */
INLINE int64_t rows_taken(int64_t rows)
{
    return rows >= TILE_TOKENS ? TILE_TOKENS : rows >= 8 ? 8 : min_i64(rows, 4);
}

/* Vectors beside each other that fit the registers, with so many rows. */
#define VECTORS_FOR(rows) ((rows) * 2 <= TILE_TOKENS ? 4 : 2)

UNUSED SHARED void widen_fp8(const uint8_t *codes, int64_t count, float *to)
{
    for (int64_t i = 0; i < count; i += 32, to += 32)
        for (int j = 0; j < 16; j++) {
            to[j] = e4m3_to_f32(codes[i + 2 * j]);
            to[16 + j] = e4m3_to_f32(codes[i + 2 * j + 1]);
        }
}

UNUSED SHARED void widen_bf16(const uint16_t *elements, int64_t count, float *to)
{
    for (int64_t i = 0; i < count; i += 32, to += 32)
        UNROLL for (int j = 0; j < 16; j += LANES) {
            vf low, high;
            load_pair(elements + i + 2 * j, &low, &high);
            vf_store(to + j, low), vf_store(to + 16 + j, high);
        }
}

/* The column of a word's low half in a row of V; that of its high half is 16 further. */
INLINE int64_t low_column(int64_t word) { return (word & ~15) * 2 + (word & 15); }

/* LANES words of a row of V. */
INLINE void load_values(const int widened, const uint8_t *row, int64_t word, vf *low, vf *high)
{
    if (widened) {
        const float *at = (const float *)row + low_column(word);
        *low = vf_load(at), *high = vf_load(at + 16);
    } else {
        load_pair((const uint16_t *)row + 2 * word, low, high);
    }
}

/* Scores of `rows` query rows, GROUP apart, against the 16 keys of each of `blocks` tiles. */
INLINE void score_rows(const int rows, const int blocks, const int widened, const void *const *keys,
                       const float *queries, int64_t d, float *scores)
{
    enum { ADDRESSES = (TILE_TOKENS + 2) / 3 }; /* as in panels.h: more would not fit the registers */
    const int columns = widened ? 1 : 2;
    for (int64_t at = 0; at < KV_BLOCK; at += LANES) {
        const float *from[ADDRESSES];
        vf sums[2 * TILE_TOKENS];
        int64_t stride = d;
        UNROLL for (int i = 0; i < rows * blocks; i++) sums[i] = vf_zero();
        UNROLL for (int r = 0; r < rows; r += 3) {
            from[r / 3] = queries + r * d;
            FORGET(from[r / 3]);
        }
        for (int64_t column = 0; column < d; column += columns) {
            vf key[2][GROUP_BLOCKS];
            UNROLL for (int b = 0; b < blocks; b++)
                if (widened) key[0][b] = vf_load((const float *)keys[b] + column * KV_BLOCK + at);
                else load_pair((const uint16_t *)keys[b] + column * KV_BLOCK + 2 * at, &key[0][b], &key[1][b]);
            FORGET(stride);
            UNROLL for (int i = 0; i < columns; i++)
                UNROLL for (int r = 0; r < rows; r++) {
                    const vf query = vf_set1(from[r / 3][r % 3 * stride + column + i]);
                    UNROLL for (int b = 0; b < blocks; b++)
                        sums[r * blocks + b] = vf_fma(query, key[i][b], sums[r * blocks + b]);
                }
        }
        UNROLL for (int r = 0; r < rows; r++)
            UNROLL for (int b = 0; b < blocks; b++)
                vf_store(scores + r * GROUP + b * KV_BLOCK + at, sums[r * blocks + b]);
    }
}

/* sums += weights x values for the positions from `from` to `to` - 1 of a group, for `rows` rows and `words` vectors of
 * words at a time. */
INLINE void weigh_words(const int rows, const int words, const int widened, const void *const *values,
                        const float *weights, int64_t from, int64_t to, int64_t word, int64_t d, float *sums)
{
    const int64_t row_bytes = d * (widened ? 4 : 2);
    vf low_sums[TILE_TOKENS], high_sums[TILE_TOKENS];
    UNROLL for (int w = 0; w < words; w++)
        UNROLL for (int r = 0; r < rows; r++) {
            const float *at = sums + r * d + low_column(word + w * LANES);
            low_sums[r * words + w] = vf_load(at);
            high_sums[r * words + w] = vf_load(at + 16);
        }
    for (int64_t j = from; j < to;) {
        const int64_t end = min_i64(to, (j & -KV_BLOCK) + KV_BLOCK);
        const uint8_t *row = (const uint8_t *)values[j / KV_BLOCK] + (j & (KV_BLOCK - 1)) * row_bytes;
        for (; j < end; j++, row += row_bytes)
            UNROLL for (int w = 0; w < words; w++) {
                vf low, high;
                load_values(widened, row, word + w * LANES, &low, &high);
                UNROLL for (int r = 0; r < rows; r++) {
                    const vf weight = vf_set1(weights[r * GROUP + j]);
                    low_sums[r * words + w] = vf_fma(weight, low, low_sums[r * words + w]);
                    high_sums[r * words + w] = vf_fma(weight, high, high_sums[r * words + w]);
                }
            }
    }
    UNROLL for (int w = 0; w < words; w++)
        UNROLL for (int r = 0; r < rows; r++) {
            float *at = sums + r * d + low_column(word + w * LANES);
            vf_store(at, low_sums[r * words + w]);
            vf_store(at + 16, high_sums[r * words + w]);
        }
}

INLINE void weigh_rows(const int rows, const int widened, const void *const *values, const float *weights,
                       int64_t from, int64_t to, int64_t d, float *sums)
{
    enum { BOTH = 2 * LANES };
    int64_t word = 0;
    if (VECTORS_FOR(rows) == 4)
        for (; word + BOTH <= d / 2; word += BOTH)
            weigh_words(rows, VECTORS_FOR(rows) / 2, widened, values, weights, from, to, word, d, sums);
    for (; word < d / 2; word += LANES) weigh_words(rows, 1, widened, values, weights, from, to, word, d, sums);
}

/* Scores of `rows` rows against `blocks` blocks of a group, and maybe against repetitions of the last one. */
SHARED void score_tile(const struct group *group, const float *queries, int64_t rows, int64_t blocks, int64_t d,
                       float scores[][GROUP])
{
#define SCORE(widened)                                                                                                \
    {                                                                                                                 \
        for (int64_t b = 0; b < blocks; b += VECTORS_FOR(ROWS))                                                       \
            score_rows(ROWS, VECTORS_FOR(ROWS), widened, group->keys + b, queries, d, scores[0] + b * KV_BLOCK);      \
    }
    if (group->widened) { WITH_ROWS(rows, SCORE(1)) }
    else { WITH_FEW_ROWS(rows, SCORE(0)) }
#undef SCORE
}

/* Adds weighted values to the sums of `rows` rows. Rows see ever more positions: all of them take what the first one
 * sees, then the others what is left. */
SHARED void weigh_tile(const struct group *group, const int32_t *visible, int64_t rows, int64_t d,
                       float weights[][GROUP], float *sums)
{
    int64_t from = 0;
    for (int64_t r = 0, taken; r < rows;) {
        const int64_t to = visible[r];
        for (int64_t i = r; i < rows; i += taken) {
            float *sum = sums + i * d;
            taken = rows_taken(rows - i);
            if (group->widened) {
                WITH_ROWS(taken, weigh_rows(ROWS, 1, group->values, weights[i], from, to, d, sum))
            } else {
                WITH_FEW_ROWS(taken, weigh_rows(ROWS, 0, group->values, weights[i], from, to, d, sum))
            }
        }
        while (r < rows && visible[r] == to) r++;
        from = to;
    }
}
