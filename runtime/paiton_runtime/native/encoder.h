/* A byte-level BPE encoder over a bundle's encoder file; artifacts/FORMAT.md, "Encoder", has its layout. */
#ifndef PAITON_ENCODER_H
#define PAITON_ENCODER_H

#include "paiton_host.h"

#define PAITON_NO_TOKEN UINT32_MAX
#define PAITON_NO_CLASS 255u /* of characters that the file does not cover */

/* One step of a pattern: as many characters of the classes in `set` as possible, `least` to `most` of them; or, as a
 * lookahead, none of them where the step is. */
struct paiton_item {
    uint64_t set;
    uint32_t least;
    uint32_t most;
    uint32_t lookahead;
    uint32_t zero;
};

struct paiton_run { /* entries of the next table */
    uint32_t first;
    uint32_t count;
};

struct paiton_merge {
    uint32_t right;
    uint32_t rank;
    uint32_t token;
};

struct paiton_added {
    uint32_t token;
    uint32_t flags;
};

enum paiton_added_flag {
    PAITON_SPECIAL = 1,
    PAITON_SECOND_PASS = 2, /* found in what the others leave */
};

enum paiton_encoder_flag { PAITON_WHOLE_WORDS = 1 }; /* a word that is a token is not merged from bytes */

/* Points into the file, which outlives it. All of it has been bounded by paiton_encoder_create. */
struct paiton_encoder {
    const struct paiton_item *items;
    const struct paiton_run *alternatives; /* of items */
    const struct paiton_run *stages;       /* of alternatives */
    const uint16_t *pages;                 /* of the classes of 256 characters, by character / 256 */
    const uint8_t *classes;
    const uint32_t *bytes;      /* token of each byte, or PAITON_NO_TOKEN */
    const uint32_t *text_start; /* of each token, and the end of the last */
    const uint32_t *merge_start;
    const struct paiton_merge *merges; /* by left token, then by right one */
    const uint32_t *words;             /* tokens by their text */
    const struct paiton_added *added;  /* likewise */
    const uint8_t *text;
    uint32_t flags, tokens, merge_count, word_count, added_count, page_count, stage_count, alternative_count,
        item_count;
    uint64_t text_size;
};

static inline uint32_t paiton_token_length(const struct paiton_encoder *encoder, uint32_t token) {
    return encoder->text_start[token + 1] - encoder->text_start[token];
}

/* A text, as characters. */
struct paiton_text {
    const uint8_t *bytes;
    uint32_t *start;  /* of each character, and the end of the last */
    uint8_t *classes; /* of each character */
    uint32_t count;
    uint64_t steps; /* that patterns may still take */
};

/* Returns the end of what a stage's pattern matches at `at`, or `at` where it does not; `end` ends the piece. */
uint32_t paiton_match(const struct paiton_encoder *encoder, struct paiton_text *text, uint32_t stage, uint32_t at,
                      uint32_t end);

/* What merging needs; grown to the longest word. */
struct paiton_symbols {
    struct paiton_symbol *symbols;
    struct paiton_candidate *heap;
    uint32_t capacity;
};

/* Writes the tokens of a word of `size` bytes, at least one; returns how many, or a negative errno: -EDOM, a byte has
 * no token. */
int64_t paiton_merge_word(const struct paiton_encoder *encoder, struct paiton_symbols *scratch, const uint8_t *word,
                          uint32_t size, uint32_t *tokens);

#endif
