/* norm_add: the ranks' partial results, summed in rank order, normalised and added to the residual stream. Many tokens
 * are shared out by rows. With few, every worker sums the whole row, for its norm, and adds its columns: the parts and
 * the result are different memory, so that nobody waits. */
#include "norm.h"

INLINE void norm_add_row(const struct norm_add_args *a, const struct norm_add_params p, int64_t t, int64_t first,
                         int64_t last, float *sum)
{
    const float *const *parts = &a->part0;
    for (int64_t i = 0; i < p.HIDDEN; i++) sum[i] = parts[0][t * p.HIDDEN + i];
    for (int64_t rank = 1; rank < p.RANKS; rank++)
        for (int64_t i = 0; i < p.HIDDEN; i++) sum[i] += parts[rank][t * p.HIDDEN + i];
    normalise(sum, a->norm_weight, p.NORM_OFFSET, a->eps, p.HIDDEN, sum);
    for (int64_t i = first; i < last; i++) a->out[t * p.HIDDEN + i] += sum[i];
}

INLINE void norm_add(const struct norm_add_args *a, uint32_t worker, uint32_t workers, const struct norm_add_params p)
{
    const int64_t count = a->counts[0];
    float *sum = (float *)((uint8_t *)a->worker_scratch + worker * a->worker_scratch_stride);
    if (count < workers) {
        for (int64_t t = 0; t < count; t++)
            norm_add_row(a, p, t, split(p.HIDDEN, worker, workers), split(p.HIDDEN, worker + 1, workers), sum);
        return;
    }
    for (int64_t t = split(count, worker, workers); t < split(count, worker + 1, workers); t++)
        norm_add_row(a, p, t, 0, p.HIDDEN, sum);
}
