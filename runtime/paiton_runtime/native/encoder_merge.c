/* Byte-pair merging: of all adjacent pairs the one of the lowest rank first, the leftmost where several have it.
 *
 * A pair that a merge has changed stays in the heap and is told apart when it comes up: it is merged all the same where
 * what lies there now gives the same token. So does the tokenizers library, whose results these are to be. */
#include "encoder.h"

#include <errno.h>
#include <stdlib.h>

#define NONE UINT32_MAX

struct paiton_symbol {
    uint32_t token; /* PAITON_NO_TOKEN: merged into the one before */
    uint32_t before;
    uint32_t after;
};

struct paiton_candidate {
    uint32_t rank;
    uint32_t at; /* the pair's left symbol */
    uint32_t token;
};

static const struct paiton_merge *find_merge(const struct paiton_encoder *encoder, uint32_t left, uint32_t right) {
    uint32_t low = encoder->merge_start[left], high = encoder->merge_start[left + 1];
    while (low < high) {
        uint32_t middle = low + (high - low) / 2;
        const struct paiton_merge *merge = &encoder->merges[middle];
        if (merge->right == right) return merge;
        if (merge->right < right)
            low = middle + 1;
        else
            high = middle;
    }
    return NULL;
}

static int precedes(const struct paiton_candidate *a, const struct paiton_candidate *b) {
    return a->rank != b->rank ? a->rank < b->rank : a->at < b->at;
}

static void push(struct paiton_candidate *heap, uint32_t *count, struct paiton_candidate added) {
    uint32_t at = (*count)++;
    while (at > 0 && precedes(&added, &heap[(at - 1) / 2])) {
        heap[at] = heap[(at - 1) / 2];
        at = (at - 1) / 2;
    }
    heap[at] = added;
}

static struct paiton_candidate pop(struct paiton_candidate *heap, uint32_t *count) {
    struct paiton_candidate first = heap[0], last = heap[--*count];
    uint32_t at = 0;
    for (;;) {
        uint32_t child = 2 * at + 1;
        if (child >= *count) break;
        if (child + 1 < *count && precedes(&heap[child + 1], &heap[child])) child++;
        if (!precedes(&heap[child], &last)) break;
        heap[at] = heap[child];
        at = child;
    }
    heap[at] = last;
    return first;
}

static int compare_text(const struct paiton_encoder *encoder, uint32_t token, const uint8_t *word, uint32_t size) {
    const uint8_t *text = encoder->text + encoder->text_start[token];
    uint32_t length = paiton_token_length(encoder, token);
    for (uint32_t i = 0; i < length && i < size; i++)
        if (text[i] != word[i]) return text[i] < word[i] ? -1 : 1;
    return length < size ? -1 : length > size;
}

static uint32_t find_word(const struct paiton_encoder *encoder, const uint8_t *word, uint32_t size) {
    uint32_t low = 0, high = encoder->word_count;
    while (low < high) {
        uint32_t middle = low + (high - low) / 2;
        int order = compare_text(encoder, encoder->words[middle], word, size);
        if (order == 0) return encoder->words[middle];
        if (order < 0)
            low = middle + 1;
        else
            high = middle;
    }
    return PAITON_NO_TOKEN;
}

static int reserve(struct paiton_symbols *scratch, uint32_t size) {
    if (size <= scratch->capacity) return 0;
    /* Each of the size - 1 pairs, and two more after each of as many merges. */
    struct paiton_symbol *symbols = realloc(scratch->symbols, (uint64_t)size * sizeof *symbols);
    if (symbols) scratch->symbols = symbols;
    struct paiton_candidate *heap = symbols ? realloc(scratch->heap, 3ull * size * sizeof *heap) : NULL;
    if (!heap) return -ENOMEM;
    scratch->heap = heap;
    scratch->capacity = size;
    return 0;
}

static void consider(const struct paiton_encoder *encoder, const struct paiton_symbols *scratch, uint32_t *count,
                     uint32_t left, uint32_t right) {
    const struct paiton_merge *merge =
        find_merge(encoder, scratch->symbols[left].token, scratch->symbols[right].token);
    if (merge) push(scratch->heap, count, (struct paiton_candidate){merge->rank, left, merge->token});
}

static void merge_all(const struct paiton_encoder *encoder, const struct paiton_symbols *scratch, uint32_t size) {
    struct paiton_symbol *symbols = scratch->symbols;
    uint32_t count = 0;
    for (uint32_t i = 0; i + 1 < size; i++) consider(encoder, scratch, &count, i, i + 1);
    while (count) {
        struct paiton_candidate best = pop(scratch->heap, &count);
        struct paiton_symbol *left = &symbols[best.at];
        if (left->token == PAITON_NO_TOKEN || left->after == NONE) continue;
        struct paiton_symbol *right = &symbols[left->after];
        const struct paiton_merge *merge = find_merge(encoder, left->token, right->token);
        if (!merge || merge->token != best.token) continue;
        left->token = best.token;
        left->after = right->after;
        right->token = PAITON_NO_TOKEN;
        if (left->after != NONE) symbols[left->after].before = best.at;
        if (left->before != NONE) consider(encoder, scratch, &count, left->before, best.at);
        if (left->after != NONE) consider(encoder, scratch, &count, best.at, left->after);
    }
}

int64_t paiton_merge_word(const struct paiton_encoder *encoder, struct paiton_symbols *scratch, const uint8_t *word,
                          uint32_t size, uint32_t *tokens) {
    if (encoder->flags & PAITON_WHOLE_WORDS) {
        tokens[0] = find_word(encoder, word, size);
        if (tokens[0] != PAITON_NO_TOKEN) return 1;
    }
    int error = reserve(scratch, size);
    if (error) return error;
    for (uint32_t i = 0; i < size; i++) {
        uint32_t token = encoder->bytes[word[i]];
        if (token == PAITON_NO_TOKEN) return -EDOM;
        scratch->symbols[i] = (struct paiton_symbol){token, i ? i - 1 : NONE, i + 1 < size ? i + 1 : NONE};
    }
    merge_all(encoder, scratch, size);
    int64_t made = 0;
    for (uint32_t i = 0; i != NONE; i = scratch->symbols[i].after) tokens[made++] = scratch->symbols[i].token;
    return made;
}
