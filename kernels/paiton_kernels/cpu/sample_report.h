/* Log-probabilities and ranks, of the logits as they came. */
#pragma once
#include "sample_keys.h"

#define MAX_TOP_LOGPROBS 20

/* What a row reports is relative to its largest logit; `log_sum` is ln of the sum of e^(logit - largest). */
INLINE float log_probability(float logit, float largest, double log_sum)
{
    return (float)((logit == largest ? 0.0 : (double)logit - (double)largest) - log_sum); /* no NaN from inf - inf */
}

INLINE double sum_of_exponentials(const float *logits, int64_t vocab, float largest)
{
    float powers[BLOCK];
    double sum = 0.0;
    for (int64_t first = 0; first < vocab; first += BLOCK) {
        const int64_t count = min_i64(BLOCK, vocab - first);
        for (int64_t i = 0; i < count; i++) {
            const float logit = logit_of(ordered(logits[first + i]));
            powers[i] = exp_f32(logit == largest ? 0.0f : logit - largest);
        }
        sum += sum_of(powers, count);
    }
    return sum;
}

INLINE int32_t rank_of(const float *logits, int64_t vocab, float logit)
{
    int32_t larger = 0;
    for (int64_t i = 0; i < vocab; i++) larger += logits[i] > logit;
    return 1 + larger;
}

/* The tokens with the largest logits, best first, ties by lower id. Blocks without a larger one than the worst found so
 * far are passed over. */
INLINE void best_tokens(const float *logits, int64_t vocab, int64_t wanted, int32_t *tokens, int32_t *keys)
{
    int64_t found = 0;
    for (int64_t i = 0; i < vocab; i += BLOCK) {
        const int64_t end = min_i64(i + BLOCK, vocab);
        if (found == wanted && largest_key(logits + i, end - i) <= keys[wanted - 1]) continue;
        for (int64_t j = i; j < end; j++) {
            const int32_t key = ordered(logits[j]);
            if (found == wanted && key <= keys[wanted - 1]) continue;
            int64_t place = found < wanted ? found++ : wanted - 1;
            for (; place > 0 && keys[place - 1] < key; place--)
                keys[place] = keys[place - 1], tokens[place] = tokens[place - 1];
            keys[place] = key, tokens[place] = (int32_t)j;
        }
    }
}

SHARED void report(const struct sample_args *a, int64_t r, int32_t token, int64_t vocab)
{
    const float *logits = a->logits + r * a->logits_stride;
    const float largest = logit_of(ordered(logits[most_probable(logits, vocab)]));
    const double log_sum = log_f64(sum_of_exponentials(logits, vocab, largest));
    const float logit = logit_of(ordered(logits[token]));
    a->sampled_logprob[r] = log_probability(logit, largest, log_sum);
    a->sampled_rank[r] = rank_of(logits, vocab, logit);
    const int64_t wanted = min_i64(min_i64(a->top_logprobs[r], MAX_TOP_LOGPROBS), vocab);
    int32_t keys[MAX_TOP_LOGPROBS], *tokens = a->top_tokens + r * MAX_TOP_LOGPROBS;
    if (wanted == 0) return;
    best_tokens(logits, vocab, wanted, tokens, keys);
    for (int64_t i = 0; i < wanted; i++)
        a->top_values[r * MAX_TOP_LOGPROBS + i] = log_probability(logit_of(keys[i]), largest, log_sum);
}
