/* linear: out = epilogue(activations x weight^T + bias). Workers share the weight's rows in units of 16 (of 16 pairs for
 * ROPE, SILU and GELU). */
#include "input.h"
#include "kv_write.h"

_Static_assert(UNIT == ROPE_COLUMNS, "a unit of a rotary layer is one call of rotate_pairs");

#define MAX_DECODE 8
_Static_assert(PANEL_TOKENS <= MAX_DECODE, "products() takes as many rows at once");

/* Where a unit's weight rows are: 16 from `low`, and for paired epilogues 16 from `high`. */
struct unit_rows { int64_t low, high; };

INLINE int is_gated(const struct linear_params p)
{
    return p.EPILOGUE == LINEAR_EPILOGUE_SILU || p.EPILOGUE == LINEAR_EPILOGUE_GELU;
}

INLINE int is_paired(const struct linear_params p) { return p.EPILOGUE == LINEAR_EPILOGUE_ROPE || is_gated(p); }

INLINE int64_t unit_count(const struct linear_params p)
{
    return is_paired(p) ? p.N / (2 * UNIT) : (p.N + UNIT - 1) / UNIT;
}

INLINE struct unit_rows rows_of(const struct linear_params p, int64_t unit)
{
    if (is_gated(p)) return (struct unit_rows){unit * UNIT, p.N / 2 + unit * UNIT};
    if (p.EPILOGUE == LINEAR_EPILOGUE_ROPE) {
        int64_t half = p.HEAD_DIM / 2, per_head = half / UNIT;
        int64_t low = unit / per_head * p.HEAD_DIM + unit % per_head * UNIT;
        return (struct unit_rows){low, low + half};
    }
    /* The last unit of an N that is no multiple of 16 starts early; its first outputs belong to the unit before. */
    return (struct unit_rows){min_i64(unit * UNIT, p.N - UNIT), 0};
}

INLINE void rope_epilogue(const struct linear_args *a, const struct linear_params p, int64_t t, int64_t low_row,
                          const float *low, const float *high)
{
    int64_t head = low_row / p.HEAD_DIM, column = low_row % p.HEAD_DIM, half = p.HEAD_DIM / 2;
    const float *cosine = a->rope + t * p.HEAD_DIM + column, *sine = cosine + half;
    float turned_low[UNIT], turned_high[UNIT];
    const int is_fp8 = p.KV == LINEAR_KV_FP8, is_v = head >= p.Q_HEADS + p.KV_HEADS;
    if (!is_v) rotate_pairs(cosine, sine, low, high, turned_low, turned_high);
    if (head >= p.Q_HEADS) {
        int64_t position = a->positions[t];
        int64_t block = a->block_tables[a->request_of[t] * a->block_table_stride + position / KV_BLOCK];
        const struct kv_slot slot = {(uint8_t *)a->kv + block * a->kv_block_stride, position % KV_BLOCK, p.KV_HEADS,
                                     p.HEAD_DIM};
        if (is_v) store_pairs(slot, is_fp8, 1, head - p.Q_HEADS - p.KV_HEADS, column, a->v_scale, low, high);
        else store_pairs(slot, is_fp8, 0, head - p.Q_HEADS, column, a->k_scale, turned_low, turned_high);
        return;
    }
    uint16_t *q = (uint16_t *)a->out + (t * p.Q_HEADS + head) * p.HEAD_DIM + column;
    for (int i = 0; i < UNIT; i++) q[i] = f32_to_bf16(turned_low[i]);
    for (int i = 0; i < UNIT; i++) q[half + i] = f32_to_bf16(turned_high[i]);
}

/* Finishes one token's row of a unit: y holds 16 dot products, or 32 for paired epilogues. */
INLINE void epilogue(const struct linear_args *a, const struct linear_params p, int64_t unit, int64_t t, float *y,
                     float act_scale)
{
    const struct unit_rows rows = rows_of(p, unit);
    const float factor = source_factor((enum source)p.WEIGHT);
    for (int half = 0; half < (is_paired(p) ? 2 : 1); half++) {
        const float *scale = a->scale + (half ? rows.high : rows.low);
        for (int i = 0; i < UNIT; i++) {
            float *v = y + half * UNIT + i;
            if (p.WEIGHT != LINEAR_WEIGHT_BF16 && p.SCALES == LINEAR_SCALES_ROW) *v = *v * factor * scale[i];
            *v = *v * act_scale;
            if (p.BIAS) *v += a->bias[(half ? rows.high : rows.low) + i];
            if (p.SOFTCAP) *v = softcap_f32(*v, (float)a->softcap);
        }
    }
    if (p.EPILOGUE == LINEAR_EPILOGUE_ROPE) {
        rope_epilogue(a, p, t, rows.low, y, y + UNIT);
    } else if (is_gated(p)) {
        uint16_t *out = (uint16_t *)a->out + t * a->out_stride + rows.low;
        if (p.EPILOGUE == LINEAR_EPILOGUE_SILU)
            for (int i = 0; i < UNIT; i++) out[i] = f32_to_bf16(silu_f32(y[i]) * y[UNIT + i]);
        else
            for (int i = 0; i < UNIT; i++) out[i] = f32_to_bf16(gelu_f32(y[i]) * y[UNIT + i]);
    } else {
        float *out = (float *)a->out + t * a->out_stride + a->out_col + rows.low;
        for (int64_t i = unit * UNIT - rows.low; i < UNIT; i++)
            out[i] = p.EPILOGUE == LINEAR_EPILOGUE_ADD ? out[i] + y[i] : y[i];
    }
}

/* Scales of one row of activations: one, or one for each block of columns. */
INLINE int64_t row_scale_count(const struct linear_params p) { return scale_count((enum act)p.ACT, p.K); }

/* y[t * 2 * UNIT + i] += the products `part` of the block of columns at `column`, scaled; the first block stores. */
INLINE void add_block(const struct linear_args *a, const struct linear_params p, int64_t row, int64_t column,
                      const float part[][UNIT], const float *x_scale, int64_t count, float *y)
{
    const int64_t block = column / SCALE_COLUMNS, act_block = p.ACT == LINEAR_ACT_FP8_BLOCK ? block : 0;
    const float factor = source_factor((enum source)p.WEIGHT);
    for (int64_t t = 0; t < count; t++) {
        const float act_scale = x_scale[t * row_scale_count(p) + act_block];
        for (int64_t i = 0; i < UNIT; i++) {
            const float scale = a->scale[(row + i) / p.SCALE_ROWS * a->scale_stride + block];
            const float value = part[t][i] * factor * scale * act_scale;
            float *sum = y + t * 2 * UNIT + i;
            *sum = column ? *sum + value : value;
        }
    }
}

/* y[t * 2 * UNIT + i] = the product of weight row `row` + i (of UNIT) and activation row t (of `count`), from a panel if
 * there is one, else from stored weights. With scales of blocks, each block's products are scaled and added in order. */
INLINE void products(const struct linear_args *a, const struct linear_params p, int64_t row, const uint8_t *panel,
                     const uint8_t *x, const float *x_scale, int64_t count, float *y)
{
    const enum source source = (enum source)p.WEIGHT;
    const uint8_t *weight = (const uint8_t *)a->weight + row * p.ROW_STRIDE;
    const int64_t x_stride = packed_bytes(p.K);
    if (p.SCALES == LINEAR_SCALES_ROW) {
        if (panel) panel_unit(panel, x_stride, x, x_stride, count, p.K, y, 2 * UNIT);
        else direct_unit(source, weight, p.ROW_STRIDE, x, x_stride, count, p.K, y, 2 * UNIT);
        return;
    }
    float part[MAX_DECODE][UNIT];
    for (int64_t k = 0; k < p.K; k += SCALE_COLUMNS) {
        const int64_t columns = min_i64(SCALE_COLUMNS, p.K - k), at = k * X_BYTES;
        if (panel) panel_unit(panel + at, x_stride, x + at, x_stride, count, columns, part[0], UNIT);
        else direct_unit(source, weight + k, p.ROW_STRIDE, x + at, x_stride, count, columns, part[0], UNIT);
        add_block(a, p, row, k, part, x_scale, count, y);
    }
}

/* What the epilogue still multiplies by: scales of blocks are in the products already. */
INLINE float epilogue_scale(const struct linear_params p, const float *x_scale, int64_t t)
{
    return p.SCALES == LINEAR_SCALES_BLOCK ? 1.0f : x_scale[t];
}

INLINE void linear_decode(const struct linear_args *a, uint32_t worker, uint32_t workers, const struct linear_params p)
{
    const int64_t count = a->counts[p.GATHER ? 2 : 0], units = unit_count(p), x_stride = packed_bytes(p.K);
    uint8_t *x = (uint8_t *)a->worker_scratch + worker * a->worker_scratch_stride;
    float *row_scratch = (float *)(x + MAX_DECODE * x_stride), *scales = row_scratch + round_up(p.K, 64);
    float y[MAX_DECODE][2 * UNIT];
    for (int64_t t0 = 0; t0 < count; t0 += MAX_DECODE) {
        int64_t batch = min_i64(count - t0, MAX_DECODE);
        for (int64_t t = 0; t < batch; t++)
            pack_row((enum input)p.INPUT, p.NORM_OFFSET, (enum act)p.ACT, a->x, p.GATHER ? a->rows[t0 + t] : t0 + t,
                     p.K, a->norm_weight, a->eps, a->input_scale, x + t * x_stride, row_scratch,
                     scales + t * row_scale_count(p));
        for (int64_t unit = split(units, worker, workers); unit < split(units, worker + 1, workers); unit++) {
            struct unit_rows rows = rows_of(p, unit);
            products(a, p, rows.low, 0, x, scales, batch, y[0]);
            if (is_paired(p)) products(a, p, rows.high, 0, x, scales, batch, y[0] + UNIT);
            for (int64_t t = 0; t < batch; t++) epilogue(a, p, unit, t0 + t, y[t], epilogue_scale(p, scales, t));
        }
    }
}

INLINE void linear_prefill(const struct linear_args *a, uint32_t worker, uint32_t workers, const struct linear_params p)
{
    const int64_t count = a->counts[p.GATHER ? 2 : 0], units = unit_count(p), x_stride = packed_bytes(p.K);
    const uint8_t *weight = a->weight, *x = a->packed;
    uint8_t *low = (uint8_t *)a->worker_scratch + worker * a->worker_scratch_stride, *high = low + UNIT * x_stride;
    float y[PANEL_TOKENS][2 * UNIT];
    for (int64_t unit = split(units, worker, workers); unit < split(units, worker + 1, workers); unit++) {
        struct unit_rows rows = rows_of(p, unit);
        fill_panel((enum source)p.WEIGHT, weight + rows.low * p.ROW_STRIDE, p.ROW_STRIDE, p.K, low);
        if (is_paired(p)) fill_panel((enum source)p.WEIGHT, weight + rows.high * p.ROW_STRIDE, p.ROW_STRIDE, p.K, high);
        for (int64_t t0 = 0; t0 < count; t0 += PANEL_TOKENS) {
            int64_t batch = min_i64(count - t0, PANEL_TOKENS);
            const float *scales = a->packed_scale + t0 * row_scale_count(p);
            products(a, p, rows.low, low, x + t0 * x_stride, scales, batch, y[0]);
            if (is_paired(p)) products(a, p, rows.high, high, x + t0 * x_stride, scales, batch, y[0] + UNIT);
            for (int64_t t = 0; t < batch; t++) epilogue(a, p, unit, t0 + t, y[t], epilogue_scale(p, scales, t));
        }
    }
}

INLINE void linear(const struct linear_args *a, uint32_t worker, uint32_t workers, const struct linear_params p)
{
    if (p.FORM == LINEAR_FORM_DECODE)
        linear_decode(a, worker, workers, p);
    else
        linear_prefill(a, worker, workers, p);
}
