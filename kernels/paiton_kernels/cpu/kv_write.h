/* What becomes of a token's rotary pairs: rotation, and the write of K and V into the paged cache. */
#pragma once
#include "formats.h"
#include "kv_layout.h"

#define ROPE_COLUMNS 16 /* pairs of columns (i, i + HEAD_DIM / 2) that are handled at once */

/* Where one token's K and V lie: its KV block, its place there, and how the block is cut. */
struct kv_slot {
    uint8_t *block;
    int64_t place, kv_heads, head_dim;
};

INLINE struct kv_slot kv_slot(void *kv, int64_t block_stride, int64_t block, int64_t position, int64_t kv_heads,
                              int64_t head_dim)
{
    return (struct kv_slot){(uint8_t *)kv + block * block_stride, position % KV_BLOCK, kv_heads, head_dim};
}

/* The slot of token t. Argument structs of different kernels name the paging alike. */
#define KV_SLOT(a, p, t)                                                                                              \
    kv_slot((a)->kv, (a)->kv_block_stride,                                                                            \
            (a)->block_tables[(a)->request_of[t] * (a)->block_table_stride + (a)->positions[t] / KV_BLOCK],           \
            (a)->positions[t], (p).KV_HEADS, (p).HEAD_DIM)

/* Turns pairs by a row of rope_table's output: head_dim / 2 cosines, then as many sines; `cosine` is at the column. */
INLINE void rotate_pairs(const float *cosine, const float *sine, const float *low, const float *high, float *turned_low,
                         float *turned_high)
{
    for (int i = 0; i < ROPE_COLUMNS; i++) {
        turned_low[i] = low[i] * cosine[i] - high[i] * sine[i];
        turned_high[i] = high[i] * cosine[i] + low[i] * sine[i];
    }
}

/* Stores 16 pairs of K or V elements, the low ones from `column` on; FP8 codes are the values over `scale`. */
INLINE void store_pairs(const struct kv_slot slot, const int is_fp8, const int is_v, int64_t head, int64_t column,
                        const float *scale, const float *low, const float *high)
{
    const int64_t d = slot.head_dim, place = slot.place, upper = d / 2 + column;
    const int64_t tile = ((is_v ? slot.kv_heads : 0) + head) * KV_BLOCK * d;
    uint8_t *codes = slot.block + tile;
    uint16_t *values = (uint16_t *)slot.block + tile;
    for (int64_t i = 0; i < ROPE_COLUMNS; i++) {
        int64_t at = is_v ? v_index(place, column + i, d) : k_index(place, column + i);
        int64_t at_high = is_v ? v_index(place, upper + i, d) : k_index(place, upper + i);
        if (is_fp8) {
            codes[at] = f32_to_e4m3(low[i] / *scale);
            codes[at_high] = f32_to_e4m3(high[i] / *scale);
        } else {
            values[at] = f32_to_bf16(low[i]);
            values[at_high] = f32_to_bf16(high[i]);
        }
    }
}
