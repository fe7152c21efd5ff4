/* Draws a token: temperature, min-p, top-k, top-p. Nothing is sorted: limits come from selection by radix, among the few
 * tokens that can be at or above them. */
#pragma once
#include "sample_keys.h"

#define STRIPES 16

/* How a row is drawn from. */
struct drawing {
    float temperature, top_p, min_p;
    int32_t top_k;
    double uniform; /* in [0, 1) */
};

/* Tokens by id, ascending; in worker scratch. */
struct tokens {
    double *bins;   /* [BINS] */
    float *mass;    /* e^((logit - largest) / temperature); 0: dropped */
    uint32_t *keys;
    int32_t *ids;   /* unless these are all tokens; where the processed logits are, which gathering consumes in order */
    int64_t count;
    int all;
};

/* Philox4x32-10; returns 53 bits of it as a number in [0, 1). */
SHARED double uniform(uint64_t seed, uint64_t draw)
{
    uint32_t x0 = (uint32_t)draw, x1 = (uint32_t)(draw >> 32), x2 = 0, x3 = 0;
    uint32_t k0 = (uint32_t)seed, k1 = (uint32_t)(seed >> 32);
    for (int round = 0; round < 10; round++, k0 += 0x9e3779b9u, k1 += 0xbb67ae85u) {
        uint64_t a = (uint64_t)0xd2511f53u * x0, b = (uint64_t)0xcd9e8d57u * x2;
        x0 = (uint32_t)(b >> 32) ^ x1 ^ k0;
        x1 = (uint32_t)b;
        x2 = (uint32_t)(a >> 32) ^ x3 ^ k1;
        x3 = (uint32_t)a;
    }
    return (double)(((uint64_t)x0 << 32 | x1) >> 11) * 0x1p-53;
}

INLINE float mass_of(float logit, float largest, float temperature, float min_p)
{
    float below = logit == largest ? 0.0f : (logit - largest) / temperature;
    float mass = below == below ? exp_f32(below) : 0.0f;
    return mass >= min_p ? mass : 0.0f;
}

SHARED void take_all(struct tokens *t, const float *logits, int64_t vocab, float largest, const struct drawing *d)
{
    float *mass = t->mass;
    uint32_t *keys = t->keys;
    const float temperature = d->temperature, min_p = d->min_p;
    for (int64_t i = 0; i < vocab; i++) {
        mass[i] = mass_of(logits[i], largest, temperature, min_p);
        keys[i] = unsigned_key(logits[i]);
    }
    t->count = vocab;
    t->all = 1;
}

/* Takes the tokens that may be among the top k. At least k of the largest logits of groups, hence k logits, reach the
 * k-th largest of these. */
SHARED void take_best(struct tokens *t, const float *logits, int64_t vocab, float largest, const struct drawing *d)
{
    const int64_t groups = vocab / STRIPES;
    uint32_t least = (LEAST_KEY ^ 0x80000000u) + 1; /* what is -inf is never drawn */
    if (d->top_k <= groups) {
        uint32_t *best = (uint32_t *)t->mass; /* not in use yet */
        double above;
        for (int64_t i = 0; i < groups; i++) best[i] = unsigned_key(logits[i]);
        for (int64_t j = 1; j < STRIPES; j++)
            for (int64_t i = 0; i < groups; i++) {
                uint32_t key = unsigned_key(logits[j * groups + i]);
                best[i] = key > best[i] ? key : best[i];
            }
        uint32_t limit = threshold(best, (const float *)0, groups, d->top_k, t->bins, &above);
        least = limit > least ? limit : least;
    }
    int64_t count = 0;
    for (int64_t i = 0; i < vocab; i += BLOCK) {
        const int64_t end = min_i64(i + BLOCK, vocab);
        if (((uint32_t)largest_key(logits + i, end - i) ^ 0x80000000u) < least) continue;
        for (int64_t j = i; j < end; j++) {
            uint32_t key = unsigned_key(logits[j]);
            t->keys[count] = key;
            t->ids[count] = (int32_t)j; /* may lie over a logit that was read: count <= j */
            count += key >= least;
        }
    }
    for (int64_t i = 0; i < count; i++)
        t->mass[i] = mass_of(logit_of((int32_t)(t->keys[i] ^ 0x80000000u)), largest, d->temperature, d->min_p);
    t->count = count;
    t->all = 0;
}

/* Leaves those of all tokens that have at least this mass. */
INLINE void take_heavy(struct tokens *t, float mass)
{
    int64_t count = 0;
    for (int64_t i = 0; i < t->count; i++) {
        const float own = t->mass[i];
        t->mass[count] = own;
        t->keys[count] = t->keys[i];
        t->ids[count] = (int32_t)i;
        count += own >= mass;
    }
    t->count = count;
    t->all = 0;
}

/* The mass of the tokens that have at least `least` each. */
INLINE double mass_from(const struct tokens *t, float least)
{
    double mass = 0.0;
    float heavy[BLOCK];
    for (int64_t first = 0; first < t->count; first += BLOCK) {
        const int64_t count = min_i64(BLOCK, t->count - first);
        for (int64_t i = 0; i < count; i++) heavy[i] = t->mass[first + i] >= least ? t->mass[first + i] : 0.0f;
        mass += sum_of(heavy, count);
    }
    return mass;
}

/* Drops (mass 0, key 0) all tokens but those above the threshold and, in order of id, as many at it as the target
 * needs; at least one. */
INLINE void keep(struct tokens *t, int by_number, double target)
{
    double reached;
    const uint32_t limit =
        threshold(t->keys, by_number ? (const float *)0 : t->mass, t->count, target, t->bins, &reached);
    int first = 1;
    for (int64_t i = 0; i < t->count; i++) {
        if (t->keys[i] > limit) continue;
        if (t->keys[i] == limit && (first || reached < target)) {
            reached += by_number ? 1.0 : (double)t->mass[i];
            first = 0;
            continue;
        }
        t->mass[i] = 0.0f;
        t->keys[i] = 0;
    }
}

/* The first token at which the running mass exceeds `target`, which is less than the mass of all. */
INLINE int64_t walk(const struct tokens *t, double target)
{
    double reached = 0.0;
    int64_t first = 0, chosen = 0;
    for (; first + BLOCK < t->count; first += BLOCK) { /* sums as in mass_from: some block exceeds the target */
        const double block = sum_of(t->mass + first, BLOCK);
        if (reached + block > target) break;
        reached += block;
    }
    for (int64_t i = first; i < t->count; i++) {
        if (t->mass[i] == 0.0f) continue;
        chosen = i; /* one by one, rounding may leave the target unreached: then the last token stands */
        reached += (double)t->mass[i];
        if (reached > target) break;
    }
    return chosen;
}

/* `values` is memory for the row's processed logits, whether `logits` are these or lie elsewhere. */
SHARED int32_t draw_token(const float *logits, int64_t vocab, float largest, const struct drawing *d, double *bins,
                          float *values)
{
    const int64_t row = round_up(vocab, 16);
    struct tokens t = {bins, values + row, (uint32_t *)(values + 2 * row), (int32_t *)values, 0, 0};
    if (d->top_k > 0 && d->top_k < vocab) {
        take_best(&t, logits, vocab, largest, d);
        if (d->top_k < t.count) keep(&t, 1, d->top_k);
    } else {
        take_all(&t, logits, vocab, largest, d);
    }
    double total = mass_from(&t, 0.0f);
    if (d->top_p < 1.0f) {
        const double target = (double)d->top_p * total;
        if (t.all) {
            float least = 0.125f;
            while (least > 1e-7f && mass_from(&t, least) < target * (1.0 + 1e-9)) least *= 0.125f;
            take_heavy(&t, least > 1e-7f ? least : 0.0f);
        }
        keep(&t, 0, target);
        total = mass_from(&t, 0.0f);
    }
    const int64_t chosen = walk(&t, d->uniform * total);
    return t.all ? (int32_t)chosen : t.ids[chosen];
}
