/* attention: softmax(q k^T) v over the paged cache, one pass with a running maximum, a group of 64 positions at a time.
 *
 * Query rows (token, head) that share a request and a KV head go through the cache together. A row's operations and
 * their order are the same whichever rows accompany it: groups begin at multiples of 64; scores add even and odd
 * columns apart, each in order; exponentials are added block by block, then as a tree; sums add positions in order. */
#include "kv_layout.h"
#include "mathf.h"

#define ITEM_ROWS 48
#define FEW_TOKENS 32 /* steps of at most this many tokens are shared out by single heads */
#define GROUP_BLOCKS 4
#define GROUP (GROUP_BLOCKS * KV_BLOCK)

/* One worker's private memory. */
struct attention_scratch {
    float *queries;                  /* rows x head_dim, times the softmax scale */
    float *sums;                     /* rows x head_dim */
    float *keys, *values;            /* a group's tiles widened to f32 (KV=FP8): 16 words' low halves, then high ones */
    float *largest, *total;          /* rows: running maximum, and sum of exponentials */
    int32_t *visible;                /* rows: positions of the current group that the row attends */
};

/* What a tile of rows needs on its way through a group: scores, and the factor for what was summed before. */
struct weights {
    float scores[ROW_TILE][GROUP], shrink[ROW_TILE];
};

/* A group's tiles, where they lie. */
struct group {
    const void *keys[GROUP_BLOCKS], *values[GROUP_BLOCKS];
};

INLINE struct attention_scratch carve(void *memory, int64_t rows, int64_t head_dim)
{
    float *p = memory;
    struct attention_scratch s;
    s.queries = p, p += rows * head_dim;
    s.sums = p, p += rows * head_dim;
    s.keys = p, p += GROUP * head_dim;
    s.values = p, p += GROUP * head_dim;
    s.largest = p, p += rows;
    s.total = p, p += rows;
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

/* Scores of `rows` query rows, GROUP apart, against the 16 keys of each of `blocks` tiles. */
INLINE void score_rows(const int rows, const int blocks, const int is_fp8, const void *const *keys,
                       const float *queries, int64_t d, float *scores)
{
    for (int64_t at = 0; at < KV_BLOCK; at += LANES) {
        vf even[ROW_TILE * GROUP_BLOCKS], odd[ROW_TILE * GROUP_BLOCKS];
        UNROLL for (int i = 0; i < rows * blocks; i++) even[i] = odd[i] = vf_zero();
        for (int64_t column = 0; column < d; column += 2) {
            vf low[GROUP_BLOCKS], high[GROUP_BLOCKS];
            UNROLL for (int b = 0; b < blocks; b++)
                load_words(is_fp8, keys[b], column / 2 * KV_BLOCK + at, &low[b], &high[b]);
            UNROLL for (int r = 0; r < rows; r++) {
                const vf first = vf_set1(queries[r * d + column]), second = vf_set1(queries[r * d + column + 1]);
                UNROLL for (int b = 0; b < blocks; b++) {
                    even[r * blocks + b] = vf_fma(first, low[b], even[r * blocks + b]);
                    odd[r * blocks + b] = vf_fma(second, high[b], odd[r * blocks + b]);
                }
            }
        }
        UNROLL for (int r = 0; r < rows; r++)
            UNROLL for (int b = 0; b < blocks; b++)
                vf_store(scores + r * GROUP + b * KV_BLOCK + at, vf_add(even[r * blocks + b], odd[r * blocks + b]));
    }
}

/* sums = sums * shrink + weights x values for the positions from `from` to `to` - 1 of a group, for `rows` rows and
 * `words` vectors of words at a time. */
INLINE void weigh_words(const int rows, const int words, const int is_fp8, const void *const *values,
                        const float *weights, const float *shrink, int64_t from, int64_t to, int64_t first_word,
                        int64_t d, float *sums)
{
    vf first[ROW_TILE * 2], second[ROW_TILE * 2];
    UNROLL for (int w = 0; w < words; w++) {
        const int64_t word = first_word + w * LANES, column = word / 16 * 32 + word % 16;
        UNROLL for (int r = 0; r < rows; r++) {
            const vf factor = vf_set1(shrink[r]);
            first[r * words + w] = vf_mul(vf_load(sums + r * d + column), factor);
            second[r * words + w] = vf_mul(vf_load(sums + r * d + column + 16), factor);
        }
    }
    for (int64_t j = from; j < to;) {
        const void *tile = values[j / KV_BLOCK];
        const int64_t end = min_i64(to, round_up(j + 1, KV_BLOCK));
        for (; j < end; j++)
            UNROLL for (int w = 0; w < words; w++) {
                vf low, high;
                load_words(is_fp8, tile, j % KV_BLOCK * (d / 2) + first_word + w * LANES, &low, &high);
                UNROLL for (int r = 0; r < rows; r++) {
                    const vf weight = vf_set1(weights[r * GROUP + j]);
                    first[r * words + w] = vf_fma(weight, low, first[r * words + w]);
                    second[r * words + w] = vf_fma(weight, high, second[r * words + w]);
                }
            }
    }
    UNROLL for (int w = 0; w < words; w++) {
        const int64_t word = first_word + w * LANES, column = word / 16 * 32 + word % 16;
        UNROLL for (int r = 0; r < rows; r++) {
            vf_store(sums + r * d + column, first[r * words + w]);
            vf_store(sums + r * d + column + 16, second[r * words + w]);
        }
    }
}

INLINE void weigh_rows(const int rows, const int is_fp8, const void *const *values, const float *weights,
                       const float *shrink, int64_t from, int64_t to, int64_t d, float *sums)
{
    int64_t word = 0;
    if (rows <= ROW_TILE / 2)
        for (; word + 2 * LANES <= d / 2; word += 2 * LANES)
            weigh_words(rows, 2, is_fp8, values, weights, shrink, from, to, word, d, sums);
    for (; word < d / 2; word += LANES)
        weigh_words(rows, 1, is_fp8, values, weights, shrink, from, to, word, d, sums);
}

/* Calls `body` with a row tile as a constant: the largest that fits `rows`. */
#define WITH_ROWS(rows, body)                                                                                         \
    if ((rows) >= ROW_TILE) { enum { ROWS = ROW_TILE }; body; }                                                       \
    else if ((rows) >= 4) { enum { ROWS = 4 }; body; }                                                                \
    else if ((rows) == 3) { enum { ROWS = 3 }; body; }                                                                \
    else if ((rows) == 2) { enum { ROWS = 2 }; body; }                                                                \
    else { enum { ROWS = 1 }; body; }

/* Rows that WITH_ROWS takes. */
INLINE int64_t rows_taken(int64_t rows) { return rows >= ROW_TILE ? ROW_TILE : min_i64(rows, 4); }

/* Key tiles that fit the registers beside each other, with so many rows. */
#define BLOCKS_FOR(rows) (ROW_TILE / (rows) >= 4 ? 4 : ROW_TILE / (rows) >= 2 ? 2 : 1)

SHARED void score_tile(const int is_fp8, const struct group *group, const float *queries, int64_t rows, int64_t blocks,
                       int64_t d, struct weights *w)
{
#define SCORE(fp8)                                                                                                    \
    WITH_ROWS(rows, {                                                                                                 \
        int64_t b = 0;                                                                                                \
        for (; b + BLOCKS_FOR(ROWS) <= blocks; b += BLOCKS_FOR(ROWS))                                                 \
            score_rows(ROWS, BLOCKS_FOR(ROWS), fp8, group->keys + b, queries, d, w->scores[0] + b * KV_BLOCK);        \
        if (BLOCKS_FOR(ROWS) > 1)                                                                                     \
            for (; b < blocks; b++)                                                                                   \
                score_rows(ROWS, 1, fp8, group->keys + b, queries, d, w->scores[0] + b * KV_BLOCK);                   \
    })
    if (is_fp8) { SCORE(1) }
    else { SCORE(0) }
#undef SCORE
}

/* Rows see ever more positions: all of them take what the first one sees, then the others what is left. */
SHARED void weigh_tile(const int is_fp8, const struct group *group, const int32_t *visible, int64_t rows, int64_t d,
                       struct weights *w, float *sums)
{
    int64_t from = 0;
    for (int64_t r = 0, taken; r < rows;) {
        const int64_t to = visible[r];
        taken = 0;
        for (int64_t i = r; i < rows; i += taken) {
            taken = rows_taken(rows - i);
            float *sum = sums + i * d;
            if (is_fp8) {
                WITH_ROWS(rows - i, weigh_rows(ROWS, 1, group->values, w->scores[i], w->shrink + i, from, to, d, sum))
            } else {
                WITH_ROWS(rows - i, weigh_rows(ROWS, 0, group->values, w->scores[i], w->shrink + i, from, to, d, sum))
            }
        }
        for (; r < rows && visible[r] == to; r++) {}
        for (int64_t i = r; i < rows; i++) w->shrink[i] = 1.0f;
        from = to;
    }
}

/* Turns the rows' scores into exponentials, and keeps their running maximum and sum. Three loops, so that each is a
 * vector operation: over a row, over rows, over a row. */
SHARED void softmax_rows(struct weights *w, const int32_t *visible, int64_t rows, int64_t blocks, float *largest,
                         float *total)
{
    float tree[KV_BLOCK];
    for (int64_t r = 0; r < rows; r++) {
        float *row = w->scores[r];
        for (int64_t j = visible[r]; j < blocks * KV_BLOCK; j++) row[j] = -__builtin_inff();
        for (int j = 0; j < KV_BLOCK; j++) tree[j] = row[j];
        for (int64_t b = 1; b < blocks; b++)
            for (int j = 0; j < KV_BLOCK; j++) {
                const float score = row[b * KV_BLOCK + j];
                tree[j] = tree[j] > score ? tree[j] : score;
            }
        UNROLL for (int width = KV_BLOCK / 2; width; width /= 2)
            for (int j = 0; j < width; j++) tree[j] = tree[j] > tree[j + width] ? tree[j] : tree[j + width];
        w->shrink[r] = tree[0];
    }
    for (int64_t r = 0; r < rows; r++) {
        float now = w->shrink[r] > largest[r] ? w->shrink[r] : largest[r];
        w->shrink[r] = exp_f32(largest[r] - now);
        largest[r] = now;
        total[r] *= w->shrink[r];
    }
    for (int64_t r = 0; r < rows; r++) {
        float *row = w->scores[r];
        for (int j = 0; j < KV_BLOCK; j++) tree[j] = row[j] = exp_f32(row[j] - largest[r]);
        for (int64_t b = 1; b < blocks; b++)
            for (int j = 0; j < KV_BLOCK; j++) {
                row[b * KV_BLOCK + j] = exp_f32(row[b * KV_BLOCK + j] - largest[r]);
                tree[j] += row[b * KV_BLOCK + j];
            }
        UNROLL for (int width = KV_BLOCK / 2; width; width /= 2)
            for (int j = 0; j < width; j++) tree[j] += tree[j + width];
        total[r] += tree[0];
    }
}

/* Caps scores smoothly: they become softcap * tanh(score / softcap). */
UNUSED SHARED void cap_scores(struct weights *w, int64_t rows, int64_t blocks, float softcap)
{
    for (int64_t r = 0; r < rows; r++)
        for (int64_t j = 0; j < blocks * KV_BLOCK; j++) w->scores[r][j] = softcap_f32(w->scores[r][j], softcap);
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

/* The group at position `start`: its tiles, and as many as are visible widened. */
INLINE struct group find_group(const struct attention_args *a, const struct attention_params p,
                               const struct attention_scratch *s, const int32_t *table, int64_t kv_head, int64_t start,
                               int64_t visible)
{
    const int is_fp8 = p.KV == ATTENTION_KV_FP8;
    const int64_t elements = KV_BLOCK * p.HEAD_DIM, tile_bytes = elements * (is_fp8 ? 1 : 2);
    struct group group;
    for (int64_t b = 0; b < GROUP_BLOCKS && b * KV_BLOCK < visible; b++) {
        const uint8_t *keys =
            (const uint8_t *)a->kv + table[start / KV_BLOCK + b] * a->kv_block_stride + kv_head * tile_bytes;
        const uint8_t *values = keys + p.KV_HEADS * tile_bytes;
        group.keys[b] = keys, group.values[b] = values;
        if (!is_fp8) continue;
        widen_fp8(keys, elements, s->keys + b * elements);
        widen_fp8(values, min_i64(visible - b * KV_BLOCK, KV_BLOCK) * p.HEAD_DIM, s->values + b * elements);
        group.keys[b] = s->keys + b * elements, group.values[b] = s->values + b * elements;
    }
    return group;
}

/* Attention of `tokens` consecutive tokens of one request, for `heads` query heads of one KV head, from `head` on. */
INLINE void attend(const struct attention_args *a, const struct attention_params p, const struct attention_scratch *s,
                   int64_t token, int64_t tokens, int64_t head, int64_t heads)
{
    const int is_fp8 = p.KV == ATTENTION_KV_FP8;
    const int64_t d = p.HEAD_DIM, rows = tokens * heads, kv_head = head / (p.Q_HEADS / p.KV_HEADS);
    const int64_t tile_bytes = KV_BLOCK * d * (is_fp8 ? 1 : 2), last = a->positions[token + tokens - 1];
    const int32_t *table = a->block_tables + a->request_of[token] * a->block_table_stride;
    const float scale = (float)a->softmax_scale * (is_fp8 ? *a->k_scale : 1.0f);
    for (int64_t r = 0; r < rows; r++) {
        const uint16_t *q = a->q + ((token + r / heads) * p.Q_HEADS + head + r % heads) * d;
        s->largest[r] = -__builtin_inff();
        s->total[r] = 0.0f;
        for (int64_t i = 0; i < d; i++) s->queries[r * d + i] = bf16_to_f32(q[i]) * scale, s->sums[r * d + i] = 0.0f;
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
        const struct group group = find_group(a, p, s, table, kv_head, start, s->visible[end - 1]);
        for (int64_t r = first, taken; r < end; r += taken) {
            struct weights w;
            taken = rows_taken(end - r);
            const int64_t blocks = (s->visible[r + taken - 1] + KV_BLOCK - 1) / KV_BLOCK;
            score_tile(is_fp8, &group, s->queries + r * d, taken, blocks, d, &w);
            if (p.SOFTCAP) cap_scores(&w, taken, blocks, (float)a->softcap);
            if (p.WINDOW)
                for (int64_t i = 0; i < taken; i++)
                    for (int64_t j = window_start(a, p, token + (r + i) / heads) - start; j > 0; j--)
                        w.scores[i][j - 1] = -__builtin_inff();
            softmax_rows(&w, s->visible + r, taken, blocks, s->largest + r, s->total + r);
            weigh_tile(is_fp8, &group, s->visible + r, taken, d, &w, s->sums + r * d);
        }
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
