/* attention: softmax(q k^T) v over the paged cache, one pass with a running maximum, a block of 16 positions at a time.
 *
 * Query rows (token, head) that share a request and a KV head go through the cache together. A row's operations and
 * their order are the same whichever rows accompany it: scores add even and odd columns apart, each in order; sums add
 * positions in order. */
#include "kv_layout.h"
#include "mathf.h"

#define ITEM_ROWS 32
#define FEW_TOKENS 32 /* steps of at most this many tokens are shared out by single heads */

/* One worker's private memory. */
struct attention_scratch {
    float *queries;                  /* rows x head_dim, times the softmax scale */
    float *sums;                     /* rows x head_dim */
    float *keys, *values;            /* a tile widened to f32 (KV=FP8): 16 words' low halves, then high ones */
    float *scores;                   /* rows x 16 */
    float *largest, *total, *shrink; /* rows: running maximum, sum of exponentials, factor for what was summed before */
    int32_t *visible;                /* rows: positions of the current block that the row attends */
};

INLINE struct attention_scratch carve(void *memory, int64_t rows, int64_t head_dim)
{
    float *p = memory;
    struct attention_scratch s;
    s.queries = p, p += rows * head_dim;
    s.sums = p, p += rows * head_dim;
    s.keys = p, p += KV_BLOCK * head_dim;
    s.values = p, p += KV_BLOCK * head_dim;
    s.scores = p, p += rows * KV_BLOCK;
    s.largest = p, p += rows;
    s.total = p, p += rows;
    s.shrink = p, p += rows;
    s.visible = (int32_t *)p;
    return s;
}

UNUSED SHARED void widen_fp8(const uint8_t *codes, int64_t count, float *to)
{
    for (int64_t i = 0; i < count; i += 32, to += 32)
        for (int j = 0; j < 16; j++) {
            to[j] = e4m3_to_f32(codes[i + 2 * j]);
            to[16 + j] = e4m3_to_f32(codes[i + 2 * j + 1]);
        }
}

/* The two columns (or column halves) of LANES words, `word` being a multiple of LANES. */
INLINE void load_words(const int is_fp8, const void *tile, int64_t word, vf *low, vf *high)
{
    if (is_fp8) {
        const float *at = (const float *)tile + word / 16 * 32 + word % 16;
        *low = vf_load(at), *high = vf_load(at + 16);
    } else {
        load_pair((const uint16_t *)tile + 2 * word, low, high);
    }
}

/* Scores of `rows` query rows against the 16 keys of a tile. */
INLINE void score_rows(const int rows, const int is_fp8, const void *keys, const float *queries, int64_t d,
                       float *scores)
{
    for (int64_t at = 0; at < KV_BLOCK; at += LANES) {
        vf even[ROW_TILE], odd[ROW_TILE];
        UNROLL for (int r = 0; r < rows; r++) even[r] = odd[r] = vf_zero();
        for (int64_t column = 0; column < d; column += 2) {
            vf low, high;
            load_words(is_fp8, keys, column / 2 * KV_BLOCK + at, &low, &high);
            UNROLL for (int r = 0; r < rows; r++) {
                even[r] = vf_fma(vf_set1(queries[r * d + column]), low, even[r]);
                odd[r] = vf_fma(vf_set1(queries[r * d + column + 1]), high, odd[r]);
            }
        }
        UNROLL for (int r = 0; r < rows; r++) vf_store(scores + r * KV_BLOCK + at, vf_add(even[r], odd[r]));
    }
}

/* sums = sums * shrink + weights x values, for `rows` rows that attend `visible` positions of the tile. */
INLINE void weigh_rows(const int rows, const int is_fp8, const void *values, const float *weights, const float *shrink,
                       int64_t visible, int64_t d, float *sums)
{
    for (int64_t word = 0; word < d / 2; word += LANES) {
        const int64_t column = word / 16 * 32 + word % 16;
        vf first[ROW_TILE], second[ROW_TILE];
        UNROLL for (int r = 0; r < rows; r++) {
            first[r] = vf_mul(vf_load(sums + r * d + column), vf_set1(shrink[r]));
            second[r] = vf_mul(vf_load(sums + r * d + column + 16), vf_set1(shrink[r]));
        }
        for (int64_t j = 0; j < visible; j++) {
            vf low, high;
            load_words(is_fp8, values, j * (d / 2) + word, &low, &high);
            UNROLL for (int r = 0; r < rows; r++) {
                vf weight = vf_set1(weights[r * KV_BLOCK + j]);
                first[r] = vf_fma(weight, low, first[r]);
                second[r] = vf_fma(weight, high, second[r]);
            }
        }
        UNROLL for (int r = 0; r < rows; r++) {
            vf_store(sums + r * d + column, first[r]);
            vf_store(sums + r * d + column + 16, second[r]);
        }
    }
}

/* Calls `body` with the largest row tile that fits `left`, as a constant. */
#define WITH_ROWS(left, taken, body)                                                                                  \
    if ((left) >= ROW_TILE) { enum { ROWS = ROW_TILE }; body; taken = ROWS; }                                         \
    else if ((left) >= 4) { enum { ROWS = 4 }; body; taken = ROWS; }                                                  \
    else if ((left) == 3) { enum { ROWS = 3 }; body; taken = ROWS; }                                                  \
    else if ((left) == 2) { enum { ROWS = 2 }; body; taken = ROWS; }                                                  \
    else { enum { ROWS = 1 }; body; taken = ROWS; }

SHARED void score_tile(const struct attention_scratch *s, const int is_fp8, const void *keys, int64_t first,
                       int64_t rows, int64_t d)
{
    for (int64_t r = first, taken; r < rows; r += taken) {
        const float *queries = s->queries + r * d;
        float *scores = s->scores + r * KV_BLOCK;
        if (is_fp8) {
            WITH_ROWS(rows - r, taken, score_rows(ROWS, 1, s->keys, queries, d, scores))
        } else {
            WITH_ROWS(rows - r, taken, score_rows(ROWS, 0, keys, queries, d, scores))
        }
    }
}

SHARED void weigh_tile(const struct attention_scratch *s, const int is_fp8, const void *values, int64_t first,
                       int64_t rows, int64_t d)
{
    for (int64_t r = first, taken; r < rows; r += taken) {
        const float *weights = s->scores + r * KV_BLOCK, *shrink = s->shrink + r;
        float *sums = s->sums + r * d;
        int64_t visible = s->visible[r], alike = 1;
        while (r + alike < rows && alike < ROW_TILE && s->visible[r + alike] == visible) alike++;
        if (is_fp8) {
            WITH_ROWS(alike, taken, weigh_rows(ROWS, 1, s->values, weights, shrink, visible, d, sums))
        } else {
            WITH_ROWS(alike, taken, weigh_rows(ROWS, 0, values, weights, shrink, visible, d, sums))
        }
    }
}

/* Turns the rows' scores into exponentials, and keeps their running maximum and sum. Three loops, so that each is a
 * vector operation: over a row, over rows, over a row. */
SHARED void softmax_rows(const struct attention_scratch *s, int64_t first, int64_t rows)
{
    float *restrict scores = s->scores, *restrict largest = s->largest, *restrict total = s->total;
    float *restrict shrink = s->shrink, tree[KV_BLOCK];
    for (int64_t r = first; r < rows; r++) {
        float *row = scores + r * KV_BLOCK;
        for (int64_t j = s->visible[r]; j < KV_BLOCK; j++) row[j] = -__builtin_inff();
        for (int j = 0; j < KV_BLOCK; j++) tree[j] = row[j];
        UNROLL for (int width = KV_BLOCK / 2; width; width /= 2)
            for (int j = 0; j < width; j++) tree[j] = tree[j] > tree[j + width] ? tree[j] : tree[j + width];
        shrink[r] = tree[0];
    }
    for (int64_t r = first; r < rows; r++) {
        float now = shrink[r] > largest[r] ? shrink[r] : largest[r];
        shrink[r] = exp_f32(largest[r] - now);
        largest[r] = now;
        total[r] *= shrink[r];
    }
    for (int64_t r = first; r < rows; r++) {
        float *row = scores + r * KV_BLOCK;
        for (int j = 0; j < KV_BLOCK; j++) tree[j] = row[j] = exp_f32(row[j] - largest[r]);
        UNROLL for (int width = KV_BLOCK / 2; width; width /= 2)
            for (int j = 0; j < width; j++) tree[j] += tree[j + width];
        total[r] += tree[0];
    }
}

/* Caps scores smoothly: they become softcap * tanh(score / softcap). */
UNUSED SHARED void cap_scores(const struct attention_scratch *s, int64_t first, int64_t rows, float softcap)
{
    float *scores = s->scores + first * KV_BLOCK;
    for (int64_t i = 0; i < (rows - first) * KV_BLOCK; i++) scores[i] = softcap_f32(scores[i], softcap);
}

/* The first position that a token sees. */
INLINE int64_t window_start(const struct attention_args *a, const struct attention_params p, int64_t token)
{
    return p.WINDOW ? max_i64(a->positions[token] + 1 - a->window, 0) : 0;
}

INLINE void prefetch_tile(const uint8_t *tile, int64_t bytes)
{
    for (int64_t i = 0; i < bytes; i += 64) PREFETCH(tile + i);
}

/* Attention of `tokens` consecutive tokens of one request, for `heads` query heads of one KV head, from `head` on. */
INLINE void attend(const struct attention_args *a, const struct attention_params p, const struct attention_scratch *s,
                   int64_t token, int64_t tokens, int64_t head, int64_t heads)
{
    const int is_fp8 = p.KV == ATTENTION_KV_FP8;
    const int64_t d = p.HEAD_DIM, rows = tokens * heads, kv_head = head / (p.Q_HEADS / p.KV_HEADS);
    const int64_t tile_bytes = KV_BLOCK * d * (is_fp8 ? 1 : 2), last = a->positions[token + tokens - 1];
    const int32_t *table = a->block_tables + a->request_of[token] * a->block_table_stride;
    const uint8_t *cache = (const uint8_t *)a->kv + kv_head * tile_bytes;
    const float scale = (float)a->softmax_scale * (is_fp8 ? *a->k_scale : 1.0f);
    for (int64_t r = 0; r < rows; r++) {
        const uint16_t *q = a->q + ((token + r / heads) * p.Q_HEADS + head + r % heads) * d;
        s->largest[r] = -__builtin_inff();
        s->total[r] = 0.0f;
        for (int64_t i = 0; i < d; i++) s->queries[r * d + i] = bf16_to_f32(q[i]) * scale, s->sums[r * d + i] = 0.0f;
    }
    const int64_t earliest = window_start(a, p, token) / KV_BLOCK * KV_BLOCK;
    for (int64_t start = earliest, first = 0, end = rows; start <= last; start += KV_BLOCK) {
        const uint8_t *keys = cache + table[start / KV_BLOCK] * a->kv_block_stride;
        const uint8_t *values = keys + p.KV_HEADS * tile_bytes;
        if (start + KV_BLOCK <= last) {
            const uint8_t *next = cache + table[start / KV_BLOCK + 1] * a->kv_block_stride;
            prefetch_tile(next, tile_bytes);
            prefetch_tile(next + p.KV_HEADS * tile_bytes, tile_bytes);
        }
        while (a->positions[token + first / heads] < start) first += heads;
        /* Rows whose window starts behind this block wait: a row without any visible position has no softmax. */
        if (p.WINDOW)
            for (end = first; end < rows && window_start(a, p, token + end / heads) < start + KV_BLOCK;) end += heads;
        for (int64_t r = first; r < end; r++)
            s->visible[r] = (int32_t)min_i64(a->positions[token + r / heads] + 1 - start, KV_BLOCK);
        if (is_fp8) {
            widen_fp8(keys, KV_BLOCK * d, s->keys);
            widen_fp8(values, s->visible[end - 1] * d, s->values);
        }
        score_tile(s, is_fp8, keys, first, end, d);
        if (p.SOFTCAP) cap_scores(s, first, end, (float)a->softcap);
        if (p.WINDOW)
            for (int64_t r = first; r < end; r++)
                for (int64_t j = window_start(a, p, token + r / heads) - start; j > 0; j--)
                    s->scores[r * KV_BLOCK + j - 1] = -__builtin_inff();
        softmax_rows(s, first, end);
        weigh_tile(s, is_fp8, values, first, end, d);
    }
    for (int64_t r = 0; r < rows; r++) {
        uint16_t *out = a->out + ((token + r / heads) * p.Q_HEADS + head + r % heads) * d;
        float factor = (is_fp8 ? *a->v_scale : 1.0f) / s->total[r];
        for (int64_t i = 0; i < d; i++) out[i] = f32_to_bf16(s->sums[r * d + i] * factor);
    }
}

/* Few tokens: heads in a row, cut where each worker has its share of the positions to read. */
INLINE void attend_few(const struct attention_args *a, const struct attention_params p,
                       const struct attention_scratch *s, uint32_t worker, uint32_t workers)
{
    const int64_t group = p.Q_HEADS / p.KV_HEADS;
    int64_t cost = 0, before = 0;
    for (int64_t t = 0; t < a->counts[0]; t++)
        cost += (a->positions[t] - window_start(a, p, t) + KV_BLOCK) * p.Q_HEADS;
    const int64_t from = split(cost, worker, workers), to = split(cost, worker + 1, workers);
    for (int64_t t = 0; t < a->counts[0]; t++) {
        const int64_t each = a->positions[t] - window_start(a, p, t) + KV_BLOCK;
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
            while (t + n < end && a->request_of[t + n] == a->request_of[t] &&
                   a->positions[t + n] > a->positions[t + n - 1])
                n++;
            attend(a, p, s, t, n, head, group);
            t += n;
        }
    }
}

INLINE void attention(const struct attention_args *a, uint32_t worker, uint32_t workers,
                      const struct attention_params p)
{
    const int64_t rows = round_up(max_i64(ITEM_ROWS, p.Q_HEADS / p.KV_HEADS), 4);
    const struct attention_scratch s =
        carve((uint8_t *)a->worker_scratch + worker * a->worker_scratch_stride, rows, p.HEAD_DIM);
    if (a->counts[0] <= FEW_TOKENS)
        attend_few(a, p, &s, worker, workers);
    else
        attend_many(a, p, &s, worker, workers);
}
