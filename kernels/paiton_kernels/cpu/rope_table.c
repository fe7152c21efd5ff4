/* rope_table: cos and sin of position x frequency. Workers share the columns: one token occupies all of them. */
#include "mathf.h"

INLINE void rope_table(const struct rope_table_args *a, uint32_t worker, uint32_t workers,
                       const struct rope_table_params p)
{
    const int64_t half = p.HEAD_DIM / 2, first = split(half, worker, workers), last = split(half, worker + 1, workers);
    for (int64_t t = 0; t < a->counts[0]; t++) {
        float position = (float)a->positions[t], *out = a->out + t * p.HEAD_DIM;
        for (int64_t i = first; i < last; i++) {
            double sine, cosine;
            sincos_f64((double)(position * a->inv_freq[i]), &sine, &cosine);
            out[i] = (float)cosine;
            out[half + i] = (float)sine;
        }
    }
}
