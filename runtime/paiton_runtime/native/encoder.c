/* Text to tokens: the encoder file's bounds, and the way of a text through added tokens, patterns and merges. */
#include "encoder.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define MAGIC "PAITONEN"
#define VERSION 1u
#define CHARACTERS 0x110000u
#define PAGE 256u
#define PAGES (CHARACTERS / PAGE)
#define MAX_TOKENS (1u << 24)
#define MAX_MERGES (1u << 24)
#define MAX_ADDED (1u << 16)
#define MAX_PATTERN 4096u /* stages, alternatives, items */
#define MAX_DEPTH 16u     /* stages; items of an alternative */
#define MAX_CLASSES 64u
#define MAX_TEXT (1ull << 30)
#define MAX_INPUT (1ull << 26)

/* What patterns may look at, for each character of a text: the usual ones take less than ten, and one that backtracks
 * without end is left to the tokenizers library. */
#define STEPS_PER_CHARACTER 64u
#define STEPS 4096u

struct header {
    char magic[8];
    uint32_t version, flags, tokens, merges, words, added, pages, stages, alternatives, items;
    uint64_t text;
    uint64_t zero;
};

/* ---- The file ---- */

/* Returns the next section and moves on to the one behind it, at a multiple of 8. */
static const void *section(const uint8_t **at, uint64_t count, uint64_t size) {
    const uint8_t *start = *at;
    *at += (count * size + 7) / 8 * 8;
    return start;
}

static int read_header(struct paiton_encoder *made, const void *data, uint64_t size) {
    struct header header;
    if (size < sizeof header || (uintptr_t)data % 8) return -EINVAL;
    memcpy(&header, data, sizeof header);
    if (memcmp(header.magic, MAGIC, 8) || header.version != VERSION || header.flags & ~(uint32_t)PAITON_WHOLE_WORDS ||
        header.zero || header.tokens == 0 || header.tokens > MAX_TOKENS || header.merges > MAX_MERGES ||
        header.words > header.tokens || header.added > MAX_ADDED || header.pages > PAGES ||
        header.stages > MAX_DEPTH || header.alternatives > MAX_PATTERN || header.items > MAX_PATTERN ||
        header.text > MAX_TEXT)
        return -EINVAL;
    made->flags = header.flags;
    made->tokens = header.tokens;
    made->merge_count = header.merges;
    made->word_count = header.words;
    made->added_count = header.added;
    made->page_count = header.pages;
    made->stage_count = header.stages;
    made->alternative_count = header.alternatives;
    made->item_count = header.items;
    made->text_size = header.text;
    const uint8_t *at = (const uint8_t *)data + sizeof header;
    made->items = section(&at, header.items, sizeof *made->items);
    made->alternatives = section(&at, header.alternatives, sizeof *made->alternatives);
    made->stages = section(&at, header.stages, sizeof *made->stages);
    made->pages = section(&at, PAGES, sizeof *made->pages);
    made->classes = section(&at, (uint64_t)header.pages * PAGE, 1);
    made->bytes = section(&at, 256, sizeof *made->bytes);
    made->text_start = section(&at, header.tokens + 1ull, sizeof *made->text_start);
    made->merge_start = section(&at, header.tokens + 1ull, sizeof *made->merge_start);
    made->merges = section(&at, header.merges, sizeof *made->merges);
    made->words = section(&at, header.words, sizeof *made->words);
    made->added = section(&at, header.added, sizeof *made->added);
    made->text = section(&at, header.text, 1);
    return at == (const uint8_t *)data + size ? 0 : -EINVAL;
}

/* Whether entries of a table rise from 0 to `end`. */
static int rises(const uint32_t *starts, uint32_t count, uint64_t end) {
    if (starts[0] != 0 || starts[count] != end) return 0;
    for (uint32_t i = 0; i < count; i++)
        if (starts[i] > starts[i + 1]) return 0;
    return 1;
}

static int are_inside(const struct paiton_run *runs, uint32_t count, uint32_t entries, uint32_t most) {
    for (uint32_t i = 0; i < count; i++)
        if (runs[i].first > entries || runs[i].count > entries - runs[i].first || runs[i].count > most) return 0;
    return 1;
}

static int are_patterns_sound(const struct paiton_encoder *made) {
    for (uint32_t i = 0; i < made->item_count; i++)
        if (made->items[i].least > made->items[i].most || made->items[i].lookahead > 1) return 0;
    return are_inside(made->stages, made->stage_count, made->alternative_count, MAX_PATTERN) &&
           are_inside(made->alternatives, made->alternative_count, made->item_count, MAX_DEPTH);
}

static int are_classes_sound(const struct paiton_encoder *made) {
    for (uint32_t i = 0; i < PAGES; i++)
        if (made->pages[i] >= made->page_count) return 0;
    for (uint64_t i = 0; i < (uint64_t)made->page_count * PAGE; i++)
        if (made->classes[i] >= MAX_CLASSES && made->classes[i] != PAITON_NO_CLASS) return 0;
    return 1;
}

static int are_tokens_sound(const struct paiton_encoder *made) {
    for (uint32_t i = 0; i < 256; i++)
        if (made->bytes[i] >= made->tokens && made->bytes[i] != PAITON_NO_TOKEN) return 0;
    for (uint32_t i = 0; i < made->merge_count; i++)
        if (made->merges[i].token >= made->tokens) return 0;
    for (uint32_t i = 0; i < made->word_count; i++)
        if (made->words[i] >= made->tokens) return 0;
    for (uint32_t i = 0; i < made->added_count; i++) {
        uint32_t token = made->added[i].token;
        /* An empty one would be found everywhere. */
        if (token >= made->tokens || paiton_token_length(made, token) == 0) return 0;
    }
    return 1;
}

int paiton_encoder_create(const void *data, uint64_t size, struct paiton_encoder **encoder) {
    *encoder = NULL;
    struct paiton_encoder *made = calloc(1, sizeof *made);
    if (!made) return -ENOMEM;
    int error = read_header(made, data, size);
    if (error == 0 && !(rises(made->text_start, made->tokens, made->text_size) &&
                        rises(made->merge_start, made->tokens, made->merge_count) && are_patterns_sound(made) &&
                        are_classes_sound(made) && are_tokens_sound(made)))
        error = -EINVAL;
    if (error) {
        free(made);
        return error;
    }
    *encoder = made;
    return 0;
}

void paiton_encoder_destroy(struct paiton_encoder *encoder) { free(encoder); }

/* ---- A text ---- */

struct encoding {
    const struct paiton_encoder *encoder;
    struct paiton_text text;
    struct paiton_symbols scratch;
    uint32_t *tokens;
    uint64_t count;
};

/* Returns the character at `at` and the bytes that it takes, 0 for what is not UTF-8. */
static uint32_t read_character(const uint8_t *at, uint64_t left, uint32_t *length) {
    uint32_t first = at[0];
    *length = first < 0x80 ? 1 : first < 0xc0 ? 0 : first < 0xe0 ? 2 : first < 0xf0 ? 3 : first < 0xf8 ? 4 : 0;
    if (*length == 1) return first;
    if (*length > left) *length = 0;
    if (*length == 0) return 0;
    uint32_t character = first & (0x7fu >> *length);
    for (uint32_t i = 1; i < *length; i++) {
        if ((at[i] & 0xc0u) != 0x80u) {
            *length = 0;
            return 0;
        }
        character = character << 6 | (at[i] & 0x3fu);
    }
    if (character >= CHARACTERS) *length = 0;
    return character;
}

/* Cuts the text into characters and looks up their classes. */
static int classify(const struct paiton_encoder *encoder, struct paiton_text *text, uint64_t size) {
    uint64_t at = 0;
    while (at < size) {
        uint32_t length, character = read_character(text->bytes + at, size - at, &length);
        if (length == 0) return -EINVAL;
        uint8_t class = encoder->classes[encoder->pages[character / PAGE] * PAGE + character % PAGE];
        if (class == PAITON_NO_CLASS) return -EDOM;
        text->start[text->count] = (uint32_t)at;
        text->classes[text->count++] = class;
        at += length;
    }
    text->start[text->count] = (uint32_t)size;
    return 0;
}

static int add_words(struct encoding *encoding, uint32_t stage, uint32_t at, uint32_t end);

/* Hands a piece to the next stage, or behind the last one turns it into tokens. */
static int add_piece(struct encoding *encoding, uint32_t stage, uint32_t at, uint32_t end) {
    if (at == end) return 0;
    if (stage < encoding->encoder->stage_count) return add_words(encoding, stage, at, end);
    const struct paiton_text *text = &encoding->text;
    int64_t made = paiton_merge_word(encoding->encoder, &encoding->scratch, text->bytes + text->start[at],
                                     text->start[end] - text->start[at], encoding->tokens + encoding->count);
    if (made < 0) return (int)made;
    encoding->count += (uint64_t)made;
    return 0;
}

/* Cuts a piece at every match of a stage's pattern; what lies between matches is a piece too. */
static int add_words(struct encoding *encoding, uint32_t stage, uint32_t at, uint32_t end) {
    uint32_t rest = at;
    int error = 0;
    while (at < end && error == 0) {
        uint32_t matched = paiton_match(encoding->encoder, &encoding->text, stage, at, end);
        if (matched == at) {
            at++;
            continue;
        }
        error = add_piece(encoding, stage + 1, rest, at);
        if (error == 0) error = add_piece(encoding, stage + 1, at, matched);
        rest = at = matched;
    }
    if (encoding->text.steps == 0) return -EDOM;
    return error ? error : add_piece(encoding, stage + 1, rest, end);
}

/* Returns the first of the added tokens from `low` to `high` whose byte `i` is not below `byte`; all of them have one. */
static uint32_t first_from(const struct paiton_encoder *encoder, uint32_t low, uint32_t high, uint32_t i,
                           uint32_t byte) {
    while (low < high) {
        uint32_t middle = low + (high - low) / 2, token = encoder->added[middle].token;
        /* In a file that is not sorted, one may be shorter. */
        if (i < paiton_token_length(encoder, token) && encoder->text[encoder->text_start[token] + i] < byte)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

/* Returns the longest added token with which the text goes on, or null. They are sorted by their text, so those with
 * the same beginning lie beside one another: each further byte narrows the range. */
static const struct paiton_added *find_added(const struct paiton_encoder *encoder, const uint8_t *at, uint32_t left,
                                             uint32_t pass) {
    const struct paiton_added *found = NULL;
    uint32_t low = 0, high = encoder->added_count;
    for (uint32_t i = 0; i <= left; i++) {
        for (; low < high && paiton_token_length(encoder, encoder->added[low].token) == i; low++)
            if ((encoder->added[low].flags & PAITON_SECOND_PASS) == pass) found = &encoder->added[low];
        if (low == high || i == left) break;
        low = first_from(encoder, low, high, i, at[i]);
        high = first_from(encoder, low, high, i, at[i] + 1u);
    }
    return found;
}

/* Cuts a piece at the added tokens of one pass. */
static int add_pass(struct encoding *encoding, uint32_t pass, uint32_t at, uint32_t end) {
    const struct paiton_encoder *encoder = encoding->encoder;
    const struct paiton_text *text = &encoding->text;
    uint32_t rest = at;
    int error = 0;
    while (at < end && error == 0) {
        const uint8_t *bytes = text->bytes + text->start[at];
        const struct paiton_added *added = find_added(encoder, bytes, text->start[end] - text->start[at], pass);
        if (!added) {
            at++;
            continue;
        }
        error = pass ? add_piece(encoding, 0, rest, at) : add_pass(encoding, PAITON_SECOND_PASS, rest, at);
        if (error) break;
        encoding->tokens[encoding->count++] = added->token;
        uint32_t behind = text->start[at] + paiton_token_length(encoder, added->token);
        while (at < end && text->start[at] < behind) at++;
        rest = at;
    }
    if (error) return error;
    return pass ? add_piece(encoding, 0, rest, end) : add_pass(encoding, PAITON_SECOND_PASS, rest, end);
}

int paiton_encode(const struct paiton_encoder *encoder, const char *bytes, uint64_t size, uint32_t *tokens,
                  uint64_t *count) {
    *count = 0;
    if (size == 0) return 0;
    if (size > MAX_INPUT) return -EDOM;
    struct encoding encoding = {.encoder = encoder, .tokens = tokens};
    encoding.text.bytes = (const uint8_t *)bytes;
    encoding.text.steps = STEPS + STEPS_PER_CHARACTER * size;
    encoding.text.start = malloc((size + 1) * sizeof *encoding.text.start);
    encoding.text.classes = malloc(size);
    int error = encoding.text.start && encoding.text.classes ? 0 : -ENOMEM;
    if (error == 0) error = classify(encoder, &encoding.text, size);
    if (error == 0) error = add_pass(&encoding, 0, 0, encoding.text.count);
    *count = encoding.count;
    free(encoding.text.start);
    free(encoding.text.classes);
    free(encoding.scratch.symbols);
    free(encoding.scratch.heap);
    return error;
}
