/* sample: the next token of each logits row; rows are shared out between workers. What a row does not ask for costs it
 * nothing: a greedy one is read once. */
#include "sample_draw.h"
#include "sample_process.h"
#include "sample_report.h"

#define MAX_STOP_TOKENS 8

INLINE int32_t choose(const struct sample_args *a, int64_t r, int64_t vocab, uint8_t *scratch)
{
    double *bins = (double *)scratch;
    float *values = (float *)(bins + BINS);
    const float *logits = a->logits + r * a->logits_stride;
    if (processed(a, r)) {
        process(a, r, values, vocab);
        logits = values;
    }
    const int32_t best = most_probable(logits, vocab);
    const float largest = logit_of(ordered(logits[best]));
    if (!(a->temperature[r] > 0.0f) || largest == NOT_ALLOWED) return best; /* token 0 if nothing is allowed */
    const struct drawing d = {a->temperature[r], a->top_p[r], a->min_p[r] < 1.0f ? a->min_p[r] : 1.0f, a->top_k[r],
                              uniform(a->seed[r], a->draw[r])};
    return draw_token(logits, vocab, largest, &d, bins, values);
}

/* Makes the token the request's last one, counts it, and decides whether the request ends with it. */
INLINE void advance(const struct sample_args *a, int64_t r, int32_t token, int64_t vocab)
{
    const int64_t slot = a->slot_of[r];
    const int64_t position = a->positions[a->logit_rows[r]];
    int ended = position + 1 >= a->max_position[r];
    for (int i = 0; i < MAX_STOP_TOKENS; i++) ended |= a->stop_tokens[r * MAX_STOP_TOKENS + i] == token;
    a->last_token[slot] = token;
    a->token_counts[slot * vocab + token]++;
    a->finished[slot] = ended;
}

INLINE void sample(const struct sample_args *a, uint32_t worker, uint32_t workers, const struct sample_params p)
{
    uint8_t *scratch = (uint8_t *)a->worker_scratch + worker * a->worker_scratch_stride;
    for (int64_t r = worker; r < a->counts[2]; r += workers) {
        const int32_t token = choose(a, r, p.VOCAB, scratch);
        a->sampled[r] = token;
        if (a->top_logprobs[r] >= 0) report(a, r, token, p.VOCAB);
        advance(a, r, token, p.VOCAB);
    }
}
