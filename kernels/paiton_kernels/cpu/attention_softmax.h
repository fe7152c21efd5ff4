/* The softmax of attention, of scores that are binary logarithms, GROUP positions at a time.
 *
 * Weights are relative to a row's reference, which follows its largest score only when that surpasses it by 2^SLACK:
 * sums seldom have to be rescaled, and weights and their sum stay far from overflow. */
#pragma once
#include "attention_tiles.h"
#include "mathf.h"

#define SLACK 8.0f
#define LOG2_E 1.44269504088896340736

typedef uint32_t vu __attribute__((vector_size(LANES * 4)));

/* 2^x, and 0 below -125, for x <= 88. Relative error below 2e-7: x = n + f with |f| <= 1/2, a minimax polynomial for
 * 2^f, and n added to the exponent. */
INLINE vf exp2_vf(vf x)
{
    const vf magic = vf_set1(12582912.0f); /* 1.5 * 2^23: adding it rounds to an integer in the low bits */
    const vf shifted = x + magic, f = x - (shifted - magic);
    vf p = vf_fma(vf_set1(1.3264728e-3f), f, vf_set1(9.6715130e-3f));
    p = vf_fma(p, f, vf_set1(5.5507336e-2f));
    p = vf_fma(p, f, vf_set1(2.4022242e-1f));
    p = vf_fma(p, f, vf_set1(6.9314700e-1f));
    p = vf_fma(p, f, vf_set1(1.0f));
    return (vf)(((vu)p + ((vu)shifted << 23)) & ~(vu)(x < vf_set1(-125.0f)));
}

/* Lane by lane, a where it is larger, else b. */
INLINE vf larger(vf a, vf b)
{
    const vu is_larger = (vu)(a > b);
    return (vf)(((vu)a & is_larger) | ((vu)b & ~is_larger));
}

/* Moves a row's reference up to the largest of `top`, and scales what was summed to it. */
SHARED void follow(vf top, int64_t d, float *reference, float *total, float *sums)
{
    float tree[LANES];
    vf_store(tree, top);
    UNROLL for (int width = LANES / 2; width; width /= 2)
        for (int i = 0; i < width; i++) tree[i] = tree[i] > tree[i + width] ? tree[i] : tree[i + width];
    const vf factor = exp2_vf(vf_set1(*reference - tree[0]));
    *reference = tree[0];
    vf_store(total, vf_mul(vf_load(total), factor));
    for (int64_t i = 0; i < d; i += LANES) vf_store(sums + i, vf_mul(vf_load(sums + i), factor));
}

/* Turns the rows' scores of a group into weights, and adds them up in LANES sums each. What a row does not see gets the
 * weight 0, which leaves every sum as it is. */
SHARED void softmax_rows(float scores[][GROUP], const int32_t *visible, int64_t rows, int64_t d, float *reference,
                         float *total, float *sums)
{
    for (int64_t r = 0; r < rows; r++) {
        float *row = scores[r];
        for (int64_t j = visible[r]; j < GROUP; j++) row[j] = -__builtin_inff();
        vf score[GROUP / LANES];
        UNROLL for (int i = 0; i < GROUP / LANES; i++) score[i] = vf_load(row + i * LANES);
        vf top = score[0];
        UNROLL for (int i = 1; i < GROUP / LANES; i++) top = larger(top, score[i]);
        if (__builtin_reduce_or((vu)(top > vf_set1(reference[r] + SLACK))))
            follow(top, d, reference + r, total + r * LANES, sums + r * d);
        const vf base = vf_set1(reference[r]);
        vf sum = vf_load(total + r * LANES);
        UNROLL for (int i = 0; i < GROUP / LANES; i++) {
            const vf weight = exp2_vf(score[i] - base);
            vf_store(row + i * LANES, weight);
            sum = vf_add(sum, weight);
        }
        vf_store(total + r * LANES, sum);
    }
}

/* The sum of LANES sums, as a tree. */
INLINE float add_lanes(const float *total)
{
    float tree[LANES];
    for (int i = 0; i < LANES; i++) tree[i] = total[i];
    UNROLL for (int width = LANES / 2; width; width /= 2)
        for (int i = 0; i < width; i++) tree[i] += tree[i + width];
    return tree[0];
}

/* Caps scores smoothly: they become softcap * tanh(score / softcap). */
UNUSED SHARED void cap_scores(float scores[][GROUP], int64_t rows, int64_t blocks, float softcap)
{
    for (int64_t r = 0; r < rows; r++)
        for (int64_t j = 0; j < blocks * KV_BLOCK; j++) scores[r][j] = softcap_f32(scores[r][j], softcap);
}
