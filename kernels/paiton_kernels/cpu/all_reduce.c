/* all_reduce: adds the ranks' partial results in rank order. Every rank computes the whole sum for itself, so that one
 * barrier before it suffices. */
#include "formats.h"

INLINE void all_reduce(const struct all_reduce_args *a, uint32_t worker, uint32_t workers,
                       const struct all_reduce_params p)
{
    const int64_t total = a->counts[0] * p.HIDDEN;
    const float *const *parts = &a->part0;
    for (int64_t i = split(total, worker, workers); i < split(total, worker + 1, workers); i++) {
        float sum = parts[0][i];
        for (int64_t rank = 1; rank < p.RANKS; rank++) sum += parts[rank][i];
        a->out[i] = p.MODE == ALL_REDUCE_MODE_ADD ? a->out[i] + sum : sum;
    }
}
