/* route: the largest scores of every token, and the softmax of all scores at those. */
#include "mathf.h"

/* The untaken expert with the largest score, of equal ones the first. Some expert comes out even of NaNs. */
INLINE int64_t best_of(const float *score, const uint8_t *taken, int64_t experts)
{
    int64_t best = -1;
    for (int64_t e = 0; e < experts; e++)
        if (!taken[e] && (best < 0 || score[e] > score[best])) best = e;
    return best;
}

INLINE void route(const struct route_args *a, uint32_t worker, uint32_t workers, const struct route_params p)
{
    const int64_t count = a->counts[0];
    for (int64_t t = split(count, worker, workers); t < split(count, worker + 1, workers); t++) {
        const float *score = a->scores + t * p.EXPERTS;
        int32_t *chosen = a->chosen + t * p.TOP_K;
        float *probability = a->probability + t * p.TOP_K;
        uint8_t taken[MAX_EXPERTS] = {0};
        double sum = 0.0;
        for (int64_t j = 0; j < p.TOP_K; j++) {
            const int64_t expert = best_of(score, taken, p.EXPERTS);
            taken[expert] = 1;
            chosen[j] = (int32_t)expert;
            probability[j] = exp_f32(score[expert] - score[chosen[0]]);
            if (p.NORMALISE) sum += (double)probability[j];
        }
        if (!p.NORMALISE)
            for (int64_t e = 0; e < p.EXPERTS; e++) sum += (double)exp_f32(score[e] - score[chosen[0]]);
        for (int64_t j = 0; j < p.TOP_K; j++) probability[j] = (float)((double)probability[j] / sum);
    }
}
