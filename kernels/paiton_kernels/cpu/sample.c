/* sample: the next token of each logits row; rows are shared out between workers. Selection is by radix on the ordered
 * bits of the logits, three passes of at most 11 bits, so that no row is ever sorted. */
#include "mathf.h"

#define BINS 2048

/* A float's bits as an integer that orders the same way; -0 equals +0, and NaN comes last of all. */
INLINE int32_t ordered(float x)
{
    int32_t b = (int32_t)bits_of(x + 0.0f);
    int32_t key = b ^ (int32_t)((uint32_t)(b >> 31) >> 1);
    return x == x ? key : INT32_MIN;
}

SHARED int32_t most_probable(const float *logits, int64_t vocab)
{
    int32_t largest = INT32_MIN, i = 0;
    for (int64_t j = 0; j < vocab; j++) {
        int32_t key = ordered(logits[j]);
        largest = key > largest ? key : largest;
    }
    while (ordered(logits[i]) != largest) i++;
    return i;
}

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

/* The key at which the weights of all larger keys and of its own first reach `target`; `above` gets the weight of the
 * larger ones. With `mass` null every token weighs 1. */
INLINE uint32_t threshold(const uint32_t *keys, const float *mass, int64_t vocab, double target, double *bins,
                          double *above)
{
    uint32_t prefix = 0;
    double reached = 0.0;
    for (int pass = 0; pass < 3; pass++) {
        const int shift = pass == 0 ? 21 : pass == 1 ? 10 : 0, width = pass == 2 ? 10 : 11;
        for (int i = 0; i < BINS; i++) bins[i] = 0.0;
        for (int64_t i = 0; i < vocab; i++)
            if (pass == 0 || keys[i] >> (shift + width) == prefix)
                bins[keys[i] >> shift & ((1u << width) - 1)] += mass ? (double)mass[i] : 1.0;
        int chosen = -1;
        double before = reached;
        for (int bin = (1 << width) - 1; bin >= 0; bin--) {
            if (bins[bin] == 0.0) continue;
            chosen = bin, reached = before;
            if (before + bins[bin] >= target) break;
            before += bins[bin]; /* rounding may leave the target unreached: then the last bin stands */
        }
        prefix = prefix << width | (uint32_t)chosen;
    }
    *above = reached;
    return prefix;
}

/* Drops (mass 0, least key) all tokens but those above the threshold and, in order of id, as many at it as the target
 * needs; at least one. */
INLINE void keep(uint32_t *keys, float *mass, int count, int64_t vocab, double target, double *bins)
{
    double reached;
    const uint32_t limit = threshold(keys, count ? (const float *)0 : mass, vocab, target, bins, &reached);
    int first = 1;
    for (int64_t i = 0; i < vocab; i++) {
        if (keys[i] > limit) continue;
        if (keys[i] == limit && (first || reached < target)) {
            reached += count ? 1.0 : (double)mass[i];
            first = 0;
            continue;
        }
        mass[i] = 0.0f;
        keys[i] = 0;
    }
}

INLINE double total_mass(const float *mass, int64_t vocab)
{
    double total = 0.0;
    for (int64_t i = 0; i < vocab; i++) total += (double)mass[i];
    return total;
}

SHARED int32_t draw_token(const float *logits, int64_t vocab, float temperature, int32_t top_k, float top_p, double u,
                          uint8_t *scratch)
{
    double *bins = (double *)scratch;
    float *mass = (float *)(bins + BINS);
    uint32_t *keys = (uint32_t *)(mass + round_up(vocab, 16));
    const float largest = logits[most_probable(logits, vocab)];
    for (int64_t i = 0; i < vocab; i++) {
        float below = logits[i] == largest ? 0.0f : (logits[i] - largest) / temperature;
        mass[i] = below == below ? exp_f32(below) : 0.0f;
        keys[i] = (uint32_t)ordered(logits[i]) ^ 0x80000000u;
    }
    if (top_k > 0 && top_k < vocab) keep(keys, mass, 1, vocab, top_k, bins);
    if (top_p < 1.0f) keep(keys, mass, 0, vocab, (double)top_p * total_mass(mass, vocab), bins);
    const double target = u * total_mass(mass, vocab);
    double reached = 0.0;
    int32_t chosen = 0;
    for (int64_t i = 0; i < vocab; i++) {
        if (mass[i] == 0.0f) continue;
        chosen = (int32_t)i;
        reached += (double)mass[i];
        if (reached > target) break;
    }
    return chosen;
}

INLINE void sample(const struct sample_args *a, uint32_t worker, uint32_t workers, const struct sample_params p)
{
    uint8_t *scratch = (uint8_t *)a->worker_scratch + worker * a->worker_scratch_stride;
    for (int64_t r = worker; r < a->counts[2]; r += workers) {
        const float *logits = a->logits + r * a->logits_stride;
        a->sampled[r] = a->temperature[r] > 0.0f
                            ? draw_token(logits, p.VOCAB, a->temperature[r], a->top_k[r], a->top_p[r],
                                         uniform(a->seed[r], a->draw[r]), scratch)
                            : most_probable(logits, p.VOCAB);
    }
}
