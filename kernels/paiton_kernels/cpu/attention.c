/* attention: softmax(q k^T) v over the paged cache in one pass, a group of 64 positions at a time.
 *
 * Query rows (token, head) that share a request and a KV head go through the cache together. A row's operations and
 * their order are the same whichever rows accompany it: groups begin at multiples of 64, scores add columns in order,
 * sums add positions in order, and exponentials are added in as many sums as a vector has lanes, then as a tree. */
#include "attention_softmax.h"
#include "team.h"

#define ITEM_ROWS 192
#define ITEMS_EACH 4  /* items that a worker gets at least, if a full tile does not need more rows than that leaves */
#define FEW_TOKENS 32 /* steps of at most this many tokens are shared out by single heads */

/* One worker's private memory. */
struct attention_scratch {
    float *queries;        /* rows x head_dim, times the scale of scores */
    float *sums;           /* rows x head_dim */
    float *keys, *values;  /* a group's tiles, if they are widened */
    float *reference;      /* rows: what weights are relative to */
    float *total;          /* rows x LANES: sums of weights */
    int32_t *visible;      /* rows: positions of the current group that the row attends */
};

INLINE struct attention_scratch carve(void *memory, int64_t rows, int64_t head_dim)
{
    float *p = memory;
    struct attention_scratch s;
    s.queries = p, p += rows * head_dim;
    s.sums = p, p += rows * head_dim;
    s.keys = p, p += GROUP * head_dim;
    s.values = p, p += GROUP * head_dim;
    s.total = p, p += rows * LANES;
    s.reference = p, p += rows;
    s.visible = (int32_t *)p;
    return s;
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

/* The group at position `start`: its tiles, `visible` of its positions widened or where they lie. */
INLINE struct group find_group(const struct attention_args *a, const struct attention_params p,
                               const struct attention_scratch *s, const int32_t *table, int64_t kv_head, int64_t start,
                               int64_t visible, int widened)
{
    const int is_fp8 = p.KV == ATTENTION_KV_FP8;
    const int64_t elements = KV_BLOCK * p.HEAD_DIM, tile_bytes = elements * (is_fp8 ? 1 : 2);
    struct group group = {.widened = widened};
    for (int64_t b = 0; b < GROUP_BLOCKS; b++) {
        const int64_t left = min_i64(visible - b * KV_BLOCK, KV_BLOCK);
        if (left <= 0) {
            group.keys[b] = group.keys[b - 1];
            continue;
        }
        const uint8_t *keys =
            (const uint8_t *)a->kv + table[start / KV_BLOCK + b] * a->kv_block_stride + kv_head * tile_bytes;
        const uint8_t *values = keys + p.KV_HEADS * tile_bytes;
        group.keys[b] = keys, group.values[b] = values;
        if (!widened) continue;
        float *wide_keys = s->keys + b * elements, *wide_values = s->values + b * elements;
        if (is_fp8) {
            widen_fp8(keys, elements, wide_keys);
            widen_fp8(values, left * p.HEAD_DIM, wide_values);
        } else {
            widen_bf16((const uint16_t *)keys, elements, wide_keys);
            widen_bf16((const uint16_t *)values, left * p.HEAD_DIM, wide_values);
        }
        group.keys[b] = wide_keys, group.values[b] = wide_values;
    }
    return group;
}

/* Attention of `tokens` consecutive tokens of one request, for `heads` query heads of one KV head, from `head` on. */
INLINE void attend(const struct attention_args *a, const struct attention_params p, const struct attention_scratch *s,
                   int64_t token, int64_t tokens, int64_t head, int64_t heads)
{
    const int is_fp8 = p.KV == ATTENTION_KV_FP8;
    /* Fewer rows than a tile widen bf16 in registers. */
    const int widened = is_fp8 || tokens * heads >= TILE_TOKENS;
    const int64_t d = p.HEAD_DIM, rows = tokens * heads, kv_head = head / (p.Q_HEADS / p.KV_HEADS);
    const int64_t tile_bytes = KV_BLOCK * d * (is_fp8 ? 1 : 2), last = a->positions[token + tokens - 1];
    const int32_t *table = a->block_tables + a->request_of[token] * a->block_table_stride;
    const float scale = (float)(a->softmax_scale * LOG2_E) * (is_fp8 ? *a->k_scale : 1.0f);
    for (int64_t r = 0; r < rows; r++) {
        const uint16_t *restrict q = a->q + ((token + r / heads) * p.Q_HEADS + head + r % heads) * d;
        float *restrict query = s->queries + r * d, *restrict sum = s->sums + r * d;
        s->reference[r] = -__builtin_inff();
        for (int64_t i = 0; i < LANES; i++) s->total[r * LANES + i] = 0.0f;
        for (int64_t i = 0; i < d; i++) query[i] = bf16_to_f32(q[i]) * scale, sum[i] = 0.0f;
    }
    const int64_t earliest = window_start(a, p, token) / GROUP * GROUP;
    for (int64_t start = earliest, first = 0, end = rows; start <= last; start += GROUP) {
        for (int64_t next = start + GROUP; next < min_i64(start + 2 * GROUP, last + 1); next += KV_BLOCK) {
            const uint8_t *keys =
                (const uint8_t *)a->kv + table[next / KV_BLOCK] * a->kv_block_stride + kv_head * tile_bytes;
            prefetch_tile(keys, tile_bytes);
            prefetch_tile(keys + p.KV_HEADS * tile_bytes, tile_bytes);
        }
        while (a->positions[token + first / heads] < start) first += heads;
        /* Rows whose window starts behind this group wait: a row without any visible position has no softmax. */
        if (p.WINDOW)
            for (end = first; end < rows && window_start(a, p, token + end / heads) < start + GROUP;) end += heads;
        if (first == end) continue;
        for (int64_t r = first; r < end; r++)
            s->visible[r] = (int32_t)min_i64(a->positions[token + r / heads] + 1 - start, GROUP);
        const struct group group = find_group(a, p, s, table, kv_head, start, s->visible[end - 1], widened);
        for (int64_t r = first, taken; r < end; r += taken) {
            _Alignas(64) float scores[TILE_TOKENS][GROUP];
            taken = rows_taken(end - r);
            const int64_t blocks = (s->visible[r + taken - 1] + KV_BLOCK - 1) / KV_BLOCK;
            score_tile(&group, s->queries + r * d, taken, blocks, d, scores);
            if (p.SOFTCAP) cap_scores(scores, taken, blocks, (float)(a->softcap * LOG2_E));
            if (p.WINDOW)
                for (int64_t i = 0; i < taken; i++)
                    for (int64_t j = window_start(a, p, token + (r + i) / heads) - start; j > 0; j--)
                        scores[i][j - 1] = -__builtin_inff();
            softmax_rows(scores, s->visible + r, taken, d, s->reference + r, s->total + r * LANES, s->sums + r * d);
            weigh_tile(&group, s->visible + r, taken, d, scores, s->sums + r * d);
        }
    }
    for (int64_t r = 0; r < rows; r++) {
        uint16_t *restrict out = a->out + ((token + r / heads) * p.Q_HEADS + head + r % heads) * d;
        const float *restrict sum = s->sums + r * d;
        const float factor = (is_fp8 ? *a->v_scale : 1.0f) / add_lanes(s->total + r * LANES);
        for (int64_t i = 0; i < d; i++) out[i] = f32_to_bf16(sum[i] * factor);
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

/* Many tokens: chunks of tokens times KV heads. Later chunks cost more; who has the cheaper share ends up with more. */
INLINE void attend_many(const struct attention_args *a, const struct attention_params p,
                        const struct attention_scratch *s, struct team team)
{
    const int64_t group = p.Q_HEADS / p.KV_HEADS, count = a->counts[0], least = (TILE_TOKENS + group - 1) / group;
    const int64_t fair = count * p.KV_HEADS / (ITEMS_EACH * team.workers);
    const int64_t chunk = max_i64(1, min_i64(max_i64(fair, least), ITEM_ROWS / group));
    const int64_t chunks = (count + chunk - 1) / chunk, items = chunks * p.KV_HEADS;
    for (int64_t item; (item = take_unit(&team, items, 1)) >= 0;) {
        int64_t t = item % chunks * chunk, end = min_i64(t + chunk, count), head = item / chunks * group;
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

INLINE void attention(const struct attention_args *a, struct team team, const struct attention_params p)
{
    const int64_t rows = round_up(max_i64(ITEM_ROWS, p.Q_HEADS / p.KV_HEADS), 4);
    const struct attention_scratch s =
        carve((uint8_t *)a->worker_scratch + team.worker * a->worker_scratch_stride, rows, p.HEAD_DIM);
    if (a->counts[0] <= FEW_TOKENS)
        attend_few(a, p, &s, team.worker, team.workers);
    else
        attend_many(a, p, &s, team);
}
