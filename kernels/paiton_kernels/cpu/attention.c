/* attention: softmax(q k^T) v over the paged cache, one pass with a running maximum, a block of 16 positions at a time.
 *
 * Query rows (token, head) that share a request and a KV head go through the cache together; a row's operations and
 * their order are the same whichever rows accompany it. */
#include "input.h"

#define ITEM_ROWS 32
#define FEW_TOKENS 32 /* steps of at most this many tokens are shared out by single heads */

/* One worker's private memory. */
struct attention_scratch {
    uint8_t *queries; /* packed, rows x head_dim */
    uint8_t *keys;    /* panel, 16 x head_dim */
    float *values;    /* 16 x head_dim */
    float *sums;      /* rows x head_dim */
    float *scores;    /* rows x 16 */
    float *largest, *total, *shrink; /* rows: running maximum, sum of exponentials, factor for what was summed before */
    int32_t *visible;                /* rows: positions of the current block that the row attends */
};

INLINE struct attention_scratch carve(uint8_t *p, int64_t rows, int64_t head_dim)
{
    const int64_t head = round_up(head_dim, 64);
    struct attention_scratch s;
    s.queries = p, p += rows * packed_bytes(head_dim);
    s.keys = p, p += KV_BLOCK * packed_bytes(head_dim);
    s.values = (float *)p, p += KV_BLOCK * head * 4;
    s.sums = (float *)p, p += rows * head * 4;
    s.scores = (float *)p, p += rows * KV_BLOCK * 4;
    s.largest = (float *)p, p += rows * 4;
    s.total = (float *)p, p += rows * 4;
    s.shrink = (float *)p, p += rows * 4;
    s.visible = (int32_t *)p;
    return s;
}

/* Scores of the rows from `first` on against one K block. */
INLINE void score_block(const struct attention_scratch *s, enum source source, const uint8_t *keys, int64_t first,
                        int64_t rows, int64_t head_dim)
{
    const int64_t x_stride = packed_bytes(head_dim);
    if (rows - first <= 4) {
        direct_unit(source, keys, head_dim * source_bytes(source), s->queries + first * x_stride, x_stride, rows - first,
                    head_dim, s->scores + first * KV_BLOCK, KV_BLOCK);
        return;
    }
    fill_panel(source, keys, head_dim * source_bytes(source), head_dim, s->keys);
    for (int64_t r = first; r < rows; r += PANEL_TOKENS)
        panel_unit(s->keys, s->queries + r * x_stride, x_stride, min_i64(rows - r, PANEL_TOKENS), head_dim,
                   s->scores + r * KV_BLOCK, KV_BLOCK);
}

/* Turns a row's scores into exponentials, and keeps its running maximum and sum. */
INLINE void softmax_row(const struct attention_scratch *s, int64_t r, float scale)
{
    float *score = s->scores + r * KV_BLOCK, sum[KV_BLOCK], largest = s->largest[r];
    for (int j = 0; j < KV_BLOCK; j++) {
        score[j] = j < s->visible[r] ? score[j] * scale : -__builtin_inff();
        largest = score[j] > largest ? score[j] : largest;
    }
    for (int j = 0; j < KV_BLOCK; j++) sum[j] = score[j] = exp_f32(score[j] - largest);
    for (int width = KV_BLOCK / 2; width; width /= 2)
        for (int j = 0; j < width; j++) sum[j] += sum[j + width];
    s->shrink[r] = exp_f32(s->largest[r] - largest);
    s->total[r] = s->total[r] * s->shrink[r] + sum[0];
    s->largest[r] = largest;
}

UNUSED SHARED void load_values(int is_fp8, const uint8_t *from, int64_t count, float *to)
{
    if (is_fp8)
        for (int64_t i = 0; i < count; i++) to[i] = e4m3_to_f32(from[i]);
    else
        for (int64_t i = 0; i < count; i++) to[i] = bf16_to_f32(((const uint16_t *)from)[i]);
}

/* sums = sums * shrink + scores x values, for `rows` rows and `vectors` vectors of columns. */
INLINE void weigh_tile(const int rows, const int vectors, const float *scores, const float *shrink, const float *values,
                       float *sums, int64_t head_dim, int64_t visible)
{
    vf acc[4][4];
    for (int r = 0; r < rows; r++)
        for (int v = 0; v < vectors; v++)
            acc[r][v] = vf_mul(vf_load(sums + r * head_dim + v * LANES), vf_set1(shrink[r]));
    for (int64_t j = 0; j < visible; j++)
        for (int v = 0; v < vectors; v++) {
            vf value = vf_load(values + j * head_dim + v * LANES);
            for (int r = 0; r < rows; r++) acc[r][v] = vf_fma(vf_set1(scores[r * KV_BLOCK + j]), value, acc[r][v]);
        }
    for (int r = 0; r < rows; r++)
        for (int v = 0; v < vectors; v++) vf_store(sums + r * head_dim + v * LANES, acc[r][v]);
}

INLINE void weigh_rows(const int rows, const struct attention_scratch *s, int64_t first, int64_t head_dim)
{
    const float *scores = s->scores + first * KV_BLOCK, *shrink = s->shrink + first;
    float *sums = s->sums + first * head_dim;
    int64_t visible = s->visible[first], column = 0;
    for (; column + PV_VECTORS * LANES <= head_dim; column += PV_VECTORS * LANES)
        weigh_tile(rows, PV_VECTORS, scores, shrink, s->values + column, sums + column, head_dim, visible);
    for (; column < head_dim; column += 2 * LANES)
        weigh_tile(rows, 2, scores, shrink, s->values + column, sums + column, head_dim, visible);
}

INLINE void weigh_block(const struct attention_scratch *s, int64_t first, int64_t rows, int64_t head_dim)
{
    int64_t r = first;
    /* Rows attend ever more positions, so four rows see the whole block if the first of them does. */
    while (r < rows) {
        if (r + 4 <= rows && s->visible[r] == KV_BLOCK)
            weigh_rows(4, s, r, head_dim), r += 4;
        else
            weigh_rows(1, s, r, head_dim), r += 1;
    }
}

/* Attention of `tokens` consecutive tokens of one request, for `heads` query heads from `head` on, all of one KV head. */
INLINE void attend(const struct attention_args *a, const struct attention_params p, const struct attention_scratch *s,
                   int64_t token, int64_t tokens, int64_t head, int64_t heads)
{
    const enum source source = p.KV == ATTENTION_KV_FP8 ? SOURCE_FP8 : SOURCE_BF16;
    const int is_fp8 = source == SOURCE_FP8;
    const int64_t d = p.HEAD_DIM, rows = tokens * heads, kv_head = head / (p.Q_HEADS / p.KV_HEADS);
    const int64_t tile_bytes = KV_BLOCK * d * source_bytes(source);
    const int32_t *table = a->block_tables + a->request_of[token] * a->block_table_stride;
    const float scale = (float)a->softmax_scale * source_factor(source) * (is_fp8 ? *a->k_scale : 1.0f);
    for (int64_t r = 0; r < rows; r++) {
        pack_bf16(a->q + ((token + r / heads) * p.Q_HEADS + head + r % heads) * d, d, s->queries + r * packed_bytes(d));
        s->largest[r] = -__builtin_inff();
        s->total[r] = 0.0f;
        for (int64_t i = 0; i < d; i++) s->sums[r * d + i] = 0.0f;
    }
    for (int64_t start = 0, first = 0; start <= a->positions[token + tokens - 1]; start += KV_BLOCK) {
        const uint8_t *keys = (const uint8_t *)a->kv + table[start / KV_BLOCK] * a->kv_block_stride + kv_head * tile_bytes;
        while (a->positions[token + first / heads] < start) first += heads;
        score_block(s, source, keys, first, rows, d);
        for (int64_t r = first; r < rows; r++) {
            s->visible[r] = (int32_t)min_i64(a->positions[token + r / heads] + 1 - start, KV_BLOCK);
            softmax_row(s, r, scale);
        }
        load_values(is_fp8, keys + p.KV_HEADS * tile_bytes, s->visible[rows - 1] * d, s->values);
        weigh_block(s, first, rows, d);
    }
    for (int64_t r = 0; r < rows; r++) {
        uint16_t *out = a->out + ((token + r / heads) * p.Q_HEADS + head + r % heads) * d;
        float factor = (is_fp8 ? *a->v_scale : 1.0f) / s->total[r];
        for (int64_t i = 0; i < d; i++) out[i] = f32_to_bf16(s->sums[r * d + i] * factor);
    }
}

/* Few tokens: heads in a row, cut where each worker has its share of the positions to read. */
INLINE void attend_few(const struct attention_args *a, const struct attention_params p, const struct attention_scratch *s,
                       uint32_t worker, uint32_t workers)
{
    const int64_t group = p.Q_HEADS / p.KV_HEADS;
    int64_t cost = 0, before = 0;
    for (int64_t t = 0; t < a->counts[0]; t++) cost += (a->positions[t] + KV_BLOCK) * p.Q_HEADS;
    const int64_t from = split(cost, worker, workers), to = split(cost, worker + 1, workers);
    for (int64_t t = 0; t < a->counts[0]; t++) {
        int64_t each = a->positions[t] + KV_BLOCK;
        /* A head is the worker's if its first unit of cost is. */
        int64_t head = min_i64(max_i64((from - before + each - 1) / each, 0), p.Q_HEADS);
        int64_t end = min_i64(max_i64((to - before + each - 1) / each, 0), p.Q_HEADS);
        while (head < end) {
            int64_t heads = min_i64(end, (head / group + 1) * group) - head;
            attend(a, p, s, t, 1, head, heads);
            head += heads;
        }
        before += each * p.Q_HEADS;
    }
}

/* Many tokens: chunks of tokens times KV heads, dealt to the workers like cards, since later chunks cost more. */
INLINE void attend_many(const struct attention_args *a, const struct attention_params p,
                        const struct attention_scratch *s, uint32_t worker, uint32_t workers)
{
    const int64_t group = p.Q_HEADS / p.KV_HEADS, chunk = max_i64(1, ITEM_ROWS / group), count = a->counts[0];
    const int64_t items = (count + chunk - 1) / chunk * p.KV_HEADS;
    for (int64_t item = worker; item < items; item += workers) {
        int64_t t = item / p.KV_HEADS * chunk, end = min_i64(t + chunk, count), head = item % p.KV_HEADS * group;
        while (t < end) {
            int64_t n = 1;
            while (t + n < end && a->request_of[t + n] == a->request_of[t] && a->positions[t + n] > a->positions[t + n - 1])
                n++;
            attend(a, p, s, t, n, head, group);
            t += n;
        }
    }
}

INLINE void attention(const struct attention_args *a, uint32_t worker, uint32_t workers, const struct attention_params p)
{
    const int64_t rows = round_up(max_i64(ITEM_ROWS, p.Q_HEADS / p.KV_HEADS), 4);
    const struct attention_scratch s =
        carve((uint8_t *)a->worker_scratch + worker * a->worker_scratch_stride, rows, p.HEAD_DIM);
    if (a->counts[0] <= FEW_TOKENS)
        attend_few(a, p, &s, worker, workers);
    else
        attend_many(a, p, &s, worker, workers);
}
