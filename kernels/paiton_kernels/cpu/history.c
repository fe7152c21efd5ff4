/* history: the token counts of a slot, from a request's prompt and what it generated so far. Every worker owns a range
 * of the vocabulary and goes through all tokens. */
#include "prelude.h"

INLINE void history(const struct history_args *a, uint32_t worker, uint32_t workers, const struct history_params p)
{
    const int64_t first = split(p.VOCAB, worker, workers), last = split(p.VOCAB, worker + 1, workers);
    const int64_t length = a->history_length[0], prompt = min_i64(a->history_prompt_length[0], length);
    int32_t *counts = a->token_counts + a->history_slot[0] * p.VOCAB;
    for (int64_t i = first; i < last; i++) counts[i] = 0;
    for (int64_t i = prompt; i < length; i++) {
        const int64_t token = a->history_tokens[i];
        if (first <= token && token < last) counts[token]++;
    }
    for (int64_t i = 0; i < prompt; i++) {
        const int64_t token = a->history_tokens[i];
        if (first <= token && token < last) counts[token] |= INT32_MIN;
    }
}
