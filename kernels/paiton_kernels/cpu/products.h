/* Products of the rows of a weight matrix with packed activations, scaled. */
#pragma once
#include "input.h"

/* Activation rows that `direct_products` takes at once. */
#define MAX_DECODE 8

/* A weight matrix, and what the activations that it meets are rounded to. */
struct matrix {
    enum source source;
    const uint8_t *weight;
    int64_t row_stride; /* bytes */
    int64_t k;
    const float *scale;
    int64_t scale_rows; /* of a block; 0: a scale for each row */
    int64_t scale_stride;
    enum act act;
};

/* y[t * y_stride + i] += the products `part` (part_stride apart) of the block of columns at `column`, scaled; the first
 * block stores. */
INLINE void add_block(const struct matrix m, int64_t row, int64_t column, const float *part, int64_t part_stride,
                      const float *x_scale, int64_t count, float *y, int64_t y_stride)
{
    const int64_t block = column / SCALE_COLUMNS, act_block = m.act == ACT_FP8_BLOCK ? block : 0;
    const float factor = source_factor(m.source);
    for (int64_t t = 0; t < count; t++) {
        const float act_scale = x_scale[t * scale_count(m.act, m.k) + act_block];
        for (int64_t i = 0; i < UNIT; i++) {
            const float scale = m.scale[(row + i) / m.scale_rows * m.scale_stride + block];
            const float value = part[t * part_stride + i] * factor * scale * act_scale;
            float *sum = y + t * y_stride + i;
            *sum = column ? *sum + value : value;
        }
    }
}

/* y[t * y_stride + i] = the product of weight row `row` + i (of UNIT) and activation row t (of `count`, PACKED_ROWS),
 * from stored weights. With scales of blocks, each block's products are scaled and added in order. */
INLINE void direct_products(const struct matrix m, int64_t row, const uint8_t *x, const float *x_scale, int64_t count,
                            float *y, int64_t y_stride)
{
    const uint8_t *weight = m.weight + row * m.row_stride;
    const int64_t x_stride = packed_bytes(m.k);
    if (!m.scale_rows) {
        direct_unit(m.source, weight, m.row_stride, x, x_stride, count, m.k, y, y_stride);
        return;
    }
    float part[MAX_DECODE][UNIT];
    for (int64_t k = 0; k < m.k; k += SCALE_COLUMNS) {
        const int64_t columns = min_i64(SCALE_COLUMNS, m.k - k);
        direct_unit(m.source, weight + k, m.row_stride, x + k * X_BYTES, x_stride, count, columns, part[0], UNIT);
        add_block(m, row, k, part[0], UNIT, x_scale, count, y, y_stride);
    }
}

/* Bytes of the panels that `panel_products` makes. */
INLINE int64_t panels_bytes(int64_t k) { return PAIR * packed_bytes(min_i64(k, SLICE_COLUMNS)); }

/* Likewise for UNIT rows from `low` on and UNIT rows from `high` on, y[t * PAIR + UNIT + i], of any number of
 * activation rows (PACKED_COLUMNS), from panels that are made a slice of columns at a time. */
INLINE void panel_products(const struct matrix m, int64_t low, int64_t high, const uint8_t *x, const float *x_scale,
                           int64_t count, uint8_t *panels, float *y)
{
    const int64_t x_stride = packed_bytes(m.k), slice = m.scale_rows ? SCALE_COLUMNS : SLICE_COLUMNS;
    uint8_t *panel_high = panels + UNIT * packed_bytes(min_i64(slice, m.k));
    for (int64_t k = 0; k < m.k; k += slice) {
        const int64_t columns = min_i64(slice, m.k - k), at = k * source_bytes(m.source);
        fill_panel(m.source, m.weight + low * m.row_stride + at, m.row_stride, columns, panels);
        fill_panel(m.source, m.weight + high * m.row_stride + at, m.row_stride, columns, panel_high);
        if (!m.scale_rows) {
            panel_pair(panels, panel_high, x + k * X_BYTES, x_stride, count, columns, k > 0, y, PAIR);
            continue;
        }
        for (int64_t t = 0, batch; t < count; t += batch) {
            const float *scales = x_scale + t * scale_count(m.act, m.k);
            float part[TILE_TOKENS * PAIR];
            batch = min_i64(count - t, TILE_TOKENS);
            panel_pair(panels, panel_high, x + t * x_stride + k * X_BYTES, x_stride, batch, columns, 0, part, PAIR);
            add_block(m, low, k, part, PAIR, scales, batch, y + t * PAIR, PAIR);
            add_block(m, high, k, part + UNIT, PAIR, scales, batch, y + t * PAIR + UNIT, PAIR);
        }
    }
}

/* Applies to UNIT products of an activation row what the functions above left; scales of blocks are in them already. */
INLINE void scale_products(const struct matrix m, int64_t row, const float *x_scale, float *y)
{
    const float factor = source_factor(m.source), act_scale = m.scale_rows ? 1.0f : *x_scale;
    for (int i = 0; i < UNIT; i++) {
        if (m.source != SOURCE_BF16 && !m.scale_rows) y[i] = y[i] * factor * m.scale[row + i];
        y[i] = y[i] * act_scale;
    }
}
