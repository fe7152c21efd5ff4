/* Logits after biases, penalties and mask, in this order. */
#pragma once
#include "mathf.h"

#define MAX_BIASES 300
#define MASK_BITS 32
#define NOT_ALLOWED (-__builtin_inff())

INLINE int penalised(const struct sample_args *a, int64_t r)
{
    return a->repetition_penalty[r] != 1.0f || a->presence_penalty[r] != 0.0f || a->frequency_penalty[r] != 0.0f;
}

INLINE int processed(const struct sample_args *a, int64_t r)
{
    return a->bias_count[r] > 0 || a->mask_row[r] >= 0 || penalised(a, r);
}

INLINE void add_biases(const struct sample_args *a, int64_t r, float *values, int64_t vocab)
{
    const int64_t count = min_i64(a->bias_count[r], MAX_BIASES);
    for (int64_t i = r * MAX_BIASES; i < r * MAX_BIASES + count; i++) {
        const int32_t token = a->bias_tokens[i];
        if (token >= 0 && token < vocab) values[token] += a->bias_values[i]; /* inf - inf is NaN, hence -inf */
    }
}

INLINE void penalise(const struct sample_args *a, int64_t r, float *values, int64_t vocab)
{
    const int32_t *history = a->token_counts + a->slot_of[r] * vocab;
    const float repetition = a->repetition_penalty[r], inverse = 1.0f / repetition;
    const float presence = a->presence_penalty[r], frequency = a->frequency_penalty[r];
    for (int64_t i = 0; i < vocab; i++) {
        const int32_t generated = history[i] & INT32_MAX;
        float value = values[i];
        value = history[i] ? value * (value > 0.0f ? inverse : repetition) : value;
        value -= frequency * (float)generated;
        values[i] = generated ? value - presence : value;
    }
}

INLINE void apply_mask(const int32_t *mask, float *values, int64_t vocab)
{
    for (int64_t first = 0; first < vocab; first += MASK_BITS) {
        const uint32_t allowed = (uint32_t)mask[first / MASK_BITS];
        const int64_t count = min_i64(MASK_BITS, vocab - first);
        if (allowed == UINT32_MAX) continue;
        for (int64_t i = 0; i < count; i++) values[first + i] = allowed >> i & 1u ? values[first + i] : NOT_ALLOWED;
    }
}

SHARED void process(const struct sample_args *a, int64_t r, float *values, int64_t vocab)
{
    const float *logits = a->logits + r * a->logits_stride;
    for (int64_t i = 0; i < vocab; i++) values[i] = logits[i];
    add_biases(a, r, values, vocab);
    if (penalised(a, r)) penalise(a, r, values, vocab);
    if (a->mask_row[r] >= 0) apply_mask(a->mask + a->mask_row[r] * round_up(vocab, MASK_BITS) / MASK_BITS, values, vocab);
}
