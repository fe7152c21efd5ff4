/* rope_kv: RMSNorm of every head of q and k, RoPE, and the write of K and V into the cache. Workers share the heads of
 * all tokens. */
#include "kv_write.h"
#include "norm.h"

INLINE void rope_kv_head(const struct rope_kv_args *a, const struct rope_kv_params p, int64_t t, int64_t head,
                         float *normed)
{
    const int64_t d = p.HEAD_DIM, half = d / 2, heads = p.Q_HEADS + 2 * p.KV_HEADS;
    const int is_q = head < p.Q_HEADS, is_v = head >= p.Q_HEADS + p.KV_HEADS, is_fp8 = p.KV == ROPE_KV_KV_FP8;
    const float *x = a->qkv + (t * heads + head) * d, *cosine = a->rope + t * d, *sine = cosine + half;
    const struct kv_slot slot = KV_SLOT(a, p, t);
    if (is_v) {
        for (int64_t i = 0; i < half; i += ROPE_COLUMNS)
            store_pairs(slot, is_fp8, 1, head - p.Q_HEADS - p.KV_HEADS, i, a->v_scale, x + i, x + half + i);
        return;
    }
    normalise(x, is_q ? a->q_norm : a->k_norm, p.NORM_OFFSET, a->eps, d, normed);
    uint16_t *q = a->out + (t * p.Q_HEADS + head) * d;
    for (int64_t i = 0; i < half; i += ROPE_COLUMNS) {
        float low[ROPE_COLUMNS], high[ROPE_COLUMNS];
        rotate_pairs(cosine + i, sine + i, normed + i, normed + half + i, low, high);
        if (is_q) {
            for (int j = 0; j < ROPE_COLUMNS; j++) q[i + j] = f32_to_bf16(low[j]);
            for (int j = 0; j < ROPE_COLUMNS; j++) q[half + i + j] = f32_to_bf16(high[j]);
        } else {
            store_pairs(slot, is_fp8, 0, head - p.Q_HEADS, i, a->k_scale, low, high);
        }
    }
}

INLINE void rope_kv(const struct rope_kv_args *a, uint32_t worker, uint32_t workers, const struct rope_kv_params p)
{
    const int64_t heads = p.Q_HEADS + 2 * p.KV_HEADS, items = a->counts[0] * heads;
    float *normed = (float *)((uint8_t *)a->worker_scratch + worker * a->worker_scratch_stride);
    for (int64_t item = split(items, worker, workers); item < split(items, worker + 1, workers); item++)
        rope_kv_head(a, p, item / heads, item % heads, normed);
}
