/* embed: table rows as f32. Workers share the columns, so that one token occupies all of them. */
#include "formats.h"

INLINE void embed(const struct embed_args *a, uint32_t worker, uint32_t workers, const struct embed_params p)
{
    const int64_t first = split(p.HIDDEN, worker, workers), last = split(p.HIDDEN, worker + 1, workers);
    for (int64_t t = 0; t < a->counts[0]; t++) {
        int64_t token = a->token_ids[t];
        if (token < 0) token = a->last_token[-1 - token]; /* what the step before sampled, not known to the host yet */
        int64_t row = token - a->first_token;
        float *out = a->out + t * p.HIDDEN;
        if (row < 0 || row >= p.ROWS) {
            for (int64_t i = first; i < last; i++) out[i] = 0.0f;
            continue;
        }
        const uint16_t *from = (const uint16_t *)((const uint8_t *)a->table + row * p.ROW_STRIDE);
        for (int64_t i = first; i < last; i++) out[i] = bf16_to_f32(from[i]);
        if (p.SCALED)
            for (int64_t i = first; i < last; i++) out[i] *= (float)a->scale;
    }
}
