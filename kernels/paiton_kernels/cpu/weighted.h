/* The sum over a token's experts. */
#pragma once
#include "prelude.h"

/* out[i] (+)= the sum over j of weight[j] * rows[j * stride + i], in the order of j. */
INLINE void weighted_sum(const float *rows, int64_t stride, const float *weight, int64_t top_k, int64_t columns,
                         const int add, float *out)
{
    for (int64_t i = 0; i < columns; i++) {
        float sum = weight[0] * rows[i];
        for (int64_t j = 1; j < top_k; j++) sum += weight[j] * rows[j * stride + i];
        out[i] = add ? out[i] + sum : sum;
    }
}
