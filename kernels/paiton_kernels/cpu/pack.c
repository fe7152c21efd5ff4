/* pack: the activations of a step, row by row, for the prefill form of linear. */
#include "input.h"

INLINE void pack(const struct pack_args *a, uint32_t worker, uint32_t workers, const struct pack_params p)
{
    const int64_t count = a->counts[p.GATHER ? 2 : 0], row_bytes = packed_bytes(p.K);
    float *scratch = (float *)((uint8_t *)a->worker_scratch + worker * a->worker_scratch_stride);
    for (int64_t t = split(count, worker, workers); t < split(count, worker + 1, workers); t++) {
        int64_t row = p.GATHER ? a->rows[t] : t;
        pack_row((enum input)p.INPUT, p.NORM_OFFSET, (enum act)p.ACT, PACKED_COLUMNS, a->x, row, p.K,
                 a->norm_weight, a->eps, a->input_scale, (uint8_t *)a->packed + t * row_bytes, scratch,
                 a->packed_scale + t * scale_count((enum act)p.ACT, p.K));
    }
}
