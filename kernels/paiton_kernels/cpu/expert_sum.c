/* expert_sum: a token's rows, weighted and added in the order of its choices. */
#include "weighted.h"

INLINE void expert_sum(const struct expert_sum_args *a, uint32_t worker, uint32_t workers,
                       const struct expert_sum_params p)
{
    const int64_t total = a->counts[0] * p.N;
    const int64_t first = split(total, worker, workers), last = split(total, worker + 1, workers);
    for (int64_t t = first / p.N; t * p.N < last; t++) {
        const int64_t from = max_i64(first - t * p.N, 0), to = min_i64(last - t * p.N, p.N);
        weighted_sum(a->product + t * p.TOP_K * p.N + from, p.N, a->probability + t * p.TOP_K, p.TOP_K, to - from,
                     p.MODE == EXPERT_SUM_MODE_ADD, a->out + t * p.N + from);
    }
}
