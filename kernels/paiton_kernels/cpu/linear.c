/* linear: out = epilogue(activations x weight^T). Workers share the weight's rows in units of 16 (of 16 pairs for ROPE
 * and SILU). */
#include "input.h"
#include "kv_layout.h"

#define MAX_DECODE 8

/* Where a unit's weight rows are: 16 from `low`, and for paired epilogues 16 from `high`. */
struct unit_rows { int64_t low, high; };

INLINE int is_paired(const struct linear_params p)
{
    return p.EPILOGUE == LINEAR_EPILOGUE_ROPE || p.EPILOGUE == LINEAR_EPILOGUE_SILU;
}

INLINE int64_t unit_count(const struct linear_params p)
{
    return is_paired(p) ? p.N / (2 * UNIT) : (p.N + UNIT - 1) / UNIT;
}

INLINE struct unit_rows rows_of(const struct linear_params p, int64_t unit)
{
    if (p.EPILOGUE == LINEAR_EPILOGUE_SILU) return (struct unit_rows){unit * UNIT, p.N / 2 + unit * UNIT};
    if (p.EPILOGUE == LINEAR_EPILOGUE_ROPE) {
        int64_t half = p.HEAD_DIM / 2, per_head = half / UNIT;
        int64_t low = unit / per_head * p.HEAD_DIM + unit % per_head * UNIT;
        return (struct unit_rows){low, low + half};
    }
    /* The last unit of an N that is no multiple of 16 starts early; its first outputs belong to the unit before. */
    return (struct unit_rows){min_i64(unit * UNIT, p.N - UNIT), 0};
}

/* Stores a K or V element pair (columns i and i + D/2) of a token in the cache. */
INLINE void store_kv(const struct linear_args *a, const struct linear_params p, int64_t t, int64_t head, int is_v,
                     int64_t column, const float *low, const float *high)
{
    int64_t position = a->positions[t], half = p.HEAD_DIM / 2;
    int64_t kv_block = a->block_tables[a->request_of[t] * a->block_table_stride + position / KV_BLOCK];
    int64_t tile = ((is_v ? p.KV_HEADS : 0) + head) * KV_BLOCK * p.HEAD_DIM, place = position % KV_BLOCK;
    uint8_t *block_base = (uint8_t *)a->kv + kv_block * a->kv_block_stride;
    uint8_t *codes = block_base + tile;
    uint16_t *values = (uint16_t *)block_base + tile;
    for (int64_t i = 0; i < UNIT; i++) {
        int64_t at = is_v ? v_index(place, column + i, p.HEAD_DIM) : k_index(place, column + i);
        int64_t at_high = is_v ? v_index(place, half + column + i, p.HEAD_DIM) : k_index(place, half + column + i);
        if (p.KV == LINEAR_KV_FP8) {
            float scale = is_v ? *a->v_scale : *a->k_scale;
            codes[at] = f32_to_e4m3(low[i] / scale);
            codes[at_high] = f32_to_e4m3(high[i] / scale);
        } else {
            values[at] = f32_to_bf16(low[i]);
            values[at_high] = f32_to_bf16(high[i]);
        }
    }
}

INLINE void rope_epilogue(const struct linear_args *a, const struct linear_params p, int64_t t, int64_t low_row,
                          const float *low, const float *high)
{
    int64_t head = low_row / p.HEAD_DIM, column = low_row % p.HEAD_DIM, half = p.HEAD_DIM / 2;
    const float *cosine = a->rope + t * p.HEAD_DIM + column, *sine = cosine + half;
    float turned_low[UNIT], turned_high[UNIT];
    if (head >= p.Q_HEADS + p.KV_HEADS) {
        store_kv(a, p, t, head - p.Q_HEADS - p.KV_HEADS, 1, column, low, high);
        return;
    }
    for (int i = 0; i < UNIT; i++) {
        turned_low[i] = low[i] * cosine[i] - high[i] * sine[i];
        turned_high[i] = high[i] * cosine[i] + low[i] * sine[i];
    }
    if (head >= p.Q_HEADS) {
        store_kv(a, p, t, head - p.Q_HEADS, 0, column, turned_low, turned_high);
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
            if (p.WEIGHT != LINEAR_WEIGHT_BF16) *v = *v * factor * scale[i];
            *v = *v * act_scale;
        }
    }
    if (p.EPILOGUE == LINEAR_EPILOGUE_ROPE) {
        rope_epilogue(a, p, t, rows.low, y, y + UNIT);
    } else if (p.EPILOGUE == LINEAR_EPILOGUE_SILU) {
        uint16_t *out = (uint16_t *)a->out + t * a->out_stride + rows.low;
        for (int i = 0; i < UNIT; i++) out[i] = f32_to_bf16(y[i] / (1.0f + exp_f32(-y[i])) * y[UNIT + i]);
    } else {
        float *out = (float *)a->out + t * a->out_stride + a->out_col + rows.low;
        for (int64_t i = unit * UNIT - rows.low; i < UNIT; i++)
            out[i] = p.EPILOGUE == LINEAR_EPILOGUE_ADD ? out[i] + y[i] : y[i];
    }
}

INLINE void linear_decode(const struct linear_args *a, uint32_t worker, uint32_t workers, const struct linear_params p)
{
    const int64_t count = a->counts[p.GATHER ? 2 : 0], units = unit_count(p), x_stride = packed_bytes(p.K);
    const enum source source = (enum source)p.WEIGHT;
    const uint8_t *weight = a->weight;
    uint8_t *x = (uint8_t *)a->worker_scratch + worker * a->worker_scratch_stride;
    float *row_scratch = (float *)(x + MAX_DECODE * x_stride);
    float scale[MAX_DECODE], y[MAX_DECODE][2 * UNIT];
    for (int64_t t0 = 0; t0 < count; t0 += MAX_DECODE) {
        int64_t batch = min_i64(count - t0, MAX_DECODE);
        for (int64_t t = 0; t < batch; t++)
            scale[t] = pack_row((enum input)p.INPUT, (enum act)p.ACT, a->x, p.GATHER ? a->rows[t0 + t] : t0 + t, p.K,
                                a->norm_weight, a->eps, a->input_scale, x + t * x_stride, row_scratch);
        for (int64_t unit = split(units, worker, workers); unit < split(units, worker + 1, workers); unit++) {
            struct unit_rows rows = rows_of(p, unit);
            const uint8_t *low = weight + rows.low * p.ROW_STRIDE, *high = weight + rows.high * p.ROW_STRIDE;
            direct_unit(source, low, p.ROW_STRIDE, x, x_stride, batch, p.K, y[0], 2 * UNIT);
            if (is_paired(p)) direct_unit(source, high, p.ROW_STRIDE, x, x_stride, batch, p.K, y[0] + UNIT, 2 * UNIT);
            for (int64_t t = 0; t < batch; t++) epilogue(a, p, unit, t0 + t, y[t], scale[t]);
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
            panel_unit(low, x + t0 * x_stride, x_stride, batch, p.K, y[0], 2 * UNIT);
            if (is_paired(p)) panel_unit(high, x + t0 * x_stride, x_stride, batch, p.K, y[0] + UNIT, 2 * UNIT);
            for (int64_t t = 0; t < batch; t++) epilogue(a, p, unit, t0 + t, y[t], a->packed_scale[t0 + t]);
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
