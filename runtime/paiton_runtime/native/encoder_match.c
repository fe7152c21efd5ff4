/* The patterns that cut a text into words: alternatives, the first that matches counts; greedy, with backtracking. */
#include "encoder.h"

#define FAILED UINT32_MAX

static int is_in(const struct paiton_text *text, uint32_t at, uint64_t set) {
    return (int)(set >> text->classes[at] & 1);
}

static uint32_t match_items(const struct paiton_item *items, uint32_t count, struct paiton_text *text, uint32_t at,
                            uint32_t end) {
    if (count == 0) return at;
    if (items->lookahead)
        return at < end && is_in(text, at, items->set) ? FAILED : match_items(items + 1, count - 1, text, at, end);
    uint32_t taken = 0;
    while (taken < items->most && taken < end - at && is_in(text, at + taken, items->set)) taken++;
    if (text->steps < taken) {
        text->steps = 0;
        return FAILED;
    }
    text->steps -= taken;
    for (;;) {
        if (taken < items->least || text->steps == 0) return FAILED;
        text->steps--;
        uint32_t matched = match_items(items + 1, count - 1, text, at + taken, end);
        if (matched != FAILED || taken == 0) return matched;
        taken--;
    }
}

uint32_t paiton_match(const struct paiton_encoder *encoder, struct paiton_text *text, uint32_t stage, uint32_t at,
                      uint32_t end) {
    const struct paiton_run *pattern = &encoder->stages[stage];
    for (uint32_t i = 0; i < pattern->count; i++) {
        const struct paiton_run *alternative = &encoder->alternatives[pattern->first + i];
        uint32_t matched = match_items(encoder->items + alternative->first, alternative->count, text, at, end);
        if (matched != FAILED && matched != at) return matched;
    }
    return at;
}
