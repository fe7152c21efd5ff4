/* linear: out = epilogue(activations x weight^T + bias). Workers share the weight's rows in units of 16 (of 16 pairs
 * for ROPE, SILU and GELU): few activation rows meet stored weights, more meet panels. */
#include "products.h"
#include "kv_write.h"
#include "team.h"

_Static_assert(UNIT == ROPE_COLUMNS, "a unit of a rotary layer is one call of rotate_pairs");

#define PANEL_TOKENS 512 /* activation rows that meet a panel before the next one is made, at most */

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

INLINE struct matrix linear_matrix(const struct linear_args *a, const struct linear_params p)
{
    return (struct matrix){(enum source)p.WEIGHT, a->weight, p.ROW_STRIDE, p.K, a->scale, p.SCALE_ROWS,
                           a->scale_stride, (enum act)p.ACT};
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
        const struct kv_slot slot = KV_SLOT(a, p, t);
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
                     const float *x_scale)
{
    const struct unit_rows rows = rows_of(p, unit);
    for (int half = 0; half < (is_paired(p) ? 2 : 1); half++) {
        const int64_t row = half ? rows.high : rows.low;
        scale_products(linear_matrix(a, p), row, x_scale, y + half * UNIT);
        for (int i = 0; i < UNIT; i++) {
            float *v = y + half * UNIT + i;
            if (p.BIAS) *v += a->bias[row + i];
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

INLINE void linear_decode(const struct linear_args *a, struct team team, const struct linear_params p)
{
    const int64_t count = a->counts[p.GATHER ? 2 : 0], units = unit_count(p), x_stride = packed_bytes(p.K);
    uint8_t *x = (uint8_t *)a->worker_scratch + team.worker * a->worker_scratch_stride;
    float *row_scratch = (float *)(x + MAX_DECODE * x_stride), *scales = row_scratch + round_up(p.K, 64);
    const struct matrix m = linear_matrix(a, p);
    float y[MAX_DECODE][PAIR];
    int64_t t0 = -MAX_DECODE, batch = 0;
    for (int64_t item; (item = take_unit(&team, units, (count + MAX_DECODE - 1) / MAX_DECODE)) >= 0;) {
        const int64_t unit = item % units;
        if (t0 != item / units * MAX_DECODE) { /* another pass */
            t0 = item / units * MAX_DECODE, batch = min_i64(count - t0, MAX_DECODE);
            for (int64_t t = 0; t < batch; t++)
                pack_row((enum input)p.INPUT, p.NORM_OFFSET, (enum act)p.ACT, PACKED_ROWS, a->x,
                         p.GATHER ? a->rows[t0 + t] : t0 + t, p.K, a->norm_weight, a->eps, a->input_scale,
                         x + t * x_stride, row_scratch, scales + t * row_scale_count(p));
        }
        const struct unit_rows rows = rows_of(p, unit);
        direct_products(m, rows.low, x, scales, batch, y[0], PAIR);
        if (is_paired(p)) direct_products(m, rows.high, x, scales, batch, y[0] + UNIT, PAIR);
        for (int64_t t = 0; t < batch; t++) epilogue(a, p, unit, t0 + t, y[t], scales + t * row_scale_count(p));
    }
}

/* Units that panels are made for at once. */
INLINE int64_t units_of_item(const struct linear_params p) { return is_paired(p) ? 1 : 2; }

/* Activation rows times panels of a pair's rows, or of two units'. `y` has room for `count` times PAIR products. */
INLINE void panel_item(const struct linear_args *a, const struct linear_params p, int64_t item, int64_t t0,
                       int64_t count, uint8_t *panels, float *y)
{
    const struct matrix m = linear_matrix(a, p);
    const int64_t each = units_of_item(p), unit = item * each, last = min_i64(unit + each, unit_count(p)) - 1;
    const uint8_t *x = (const uint8_t *)a->packed + t0 * packed_bytes(p.K);
    const float *scales = a->packed_scale + t0 * row_scale_count(p);
    const struct unit_rows rows = rows_of(p, unit);
    panel_products(m, rows.low, is_paired(p) ? rows.high : rows_of(p, last).low, x, scales, count, panels, y);
    for (int64_t t = 0; t < count; t++) {
        const float *x_scale = scales + t * row_scale_count(p);
        epilogue(a, p, unit, t0 + t, y + t * PAIR, x_scale);
        if (last > unit) epilogue(a, p, last, t0 + t, y + t * PAIR + UNIT, x_scale);
    }
}

INLINE void linear_prefill(const struct linear_args *a, struct team team, const struct linear_params p)
{
    const int64_t count = a->counts[p.GATHER ? 2 : 0], per_item = units_of_item(p);
    const int64_t items = (unit_count(p) + per_item - 1) / per_item;
    /* Rows are taken in blocks of about one size that stay in the second cache while panels pass. */
    const int64_t fit = X_BLOCK_BYTES / packed_bytes(min_i64(p.K, SLICE_COLUMNS)) / TILE_TOKENS * TILE_TOKENS;
    const int64_t most = min_i64(max_i64(fit, TILE_TOKENS), PANEL_TOKENS), blocks = (count + most - 1) / most;
    const int64_t each = blocks ? min_i64(round_up((count + blocks - 1) / blocks, TILE_TOKENS), most) : 1;
    uint8_t *panels = (uint8_t *)a->worker_scratch + team.worker * a->worker_scratch_stride;
    float *y = (float *)(panels + panels_bytes(p.K));
    for (int64_t item; (item = take_unit(&team, items, (count + each - 1) / each)) >= 0;) {
        const int64_t t0 = item / items * each;
        panel_item(a, p, item % items, t0, min_i64(count - t0, each), panels, y);
    }
}

INLINE void linear(const struct linear_args *a, struct team team, const struct linear_params p)
{
    if (p.FORM == LINEAR_FORM_DECODE)
        linear_decode(a, team, p);
    else
        linear_prefill(a, team, p);
}
