/* router: rows are normalised, rounded to bf16 and multiplied with the router's weights. With fewer tokens than workers,
 * all pack every token's row and share the experts in units of 16; else they share the tokens. */
#include "products.h"

/* The weights, or a copy that is filled up to UNIT rows of which the last do not matter. */
INLINE const uint8_t *whole_unit(const uint8_t *weight, const struct router_params p, uint8_t *copy)
{
    if (p.EXPERTS >= UNIT) return weight;
    const int64_t held = (p.EXPERTS - 1) * p.ROW_STRIDE + p.K * 2; /* the padding of the last row may not be there */
    for (int64_t i = 0; i < UNIT * p.ROW_STRIDE; i++) copy[i] = i < held ? weight[i] : 0;
    return copy;
}

INLINE void router(const struct router_args *a, uint32_t worker, uint32_t workers, const struct router_params p)
{
    const int64_t count = a->counts[0], x_stride = packed_bytes(p.K), units = (p.EXPERTS + UNIT - 1) / UNIT;
    const int by_tokens = count >= workers;
    const int64_t first = by_tokens ? split(count, worker, workers) : 0;
    const int64_t last = by_tokens ? split(count, worker + 1, workers) : count;
    const int64_t first_unit = by_tokens ? 0 : split(units, worker, workers);
    const int64_t last_unit = by_tokens ? units : split(units, worker + 1, workers);
    uint8_t *x = (uint8_t *)a->worker_scratch + worker * a->worker_scratch_stride;
    float *row = (float *)(x + MAX_DECODE * x_stride), one, y[MAX_DECODE][UNIT];
    const uint8_t *weight = whole_unit(a->weight, p, (uint8_t *)(row + round_up(p.K, 64)));
    for (int64_t t0 = first; t0 < last; t0 += MAX_DECODE) {
        const int64_t batch = min_i64(last - t0, MAX_DECODE);
        for (int64_t t = 0; t < batch; t++) {
            pack_row(INPUT_NORM, p.NORM_OFFSET, ACT_BF16, PACKED_ROWS, a->x, t0 + t, p.K, a->norm_weight,
                     a->eps, 0, x + t * x_stride, row, &one);
            if (!by_tokens && (t0 + t) % workers != worker) continue;
            for (int64_t i = 0; i < p.K; i++) a->normed[(t0 + t) * p.K + i] = f32_to_bf16(row[i]);
        }
        for (int64_t unit = first_unit; unit < last_unit; unit++) {
            /* The last unit starts early, as in linear. */
            const int64_t low = max_i64(0, min_i64(unit * UNIT, p.EXPERTS - UNIT));
            direct_unit(SOURCE_BF16, weight + low * p.ROW_STRIDE, p.ROW_STRIDE, x, x_stride, batch, p.K, y[0], UNIT);
            for (int64_t t = 0; t < batch; t++)
                for (int64_t i = unit * UNIT - low; i < UNIT && low + i < p.EXPERTS; i++)
                    a->scores[(t0 + t) * p.EXPERTS + low + i] = y[t][i];
        }
    }
}
