/* experts: rows times the matrices of the experts that were chosen for them; see experts.py. */
#include "products.h"
#include "team.h"
#include "weighted.h"

/* Entries of a segment: as many as experts.py reserves memory for. */
#define SEGMENT_ROWS 128
/* Rows up to which converting weights on the way is faster than making a panel of them. */
#define DIRECT_ROWS 8
/* What converting a weight costs, in multiplications of it with a row. */
#define CONVERSION_ROWS 10

/* The entries (token * TOP_K + choice) in the order of their experts, cut into segments of one expert each. */
struct segments {
    int32_t *entry;
    int32_t *first;  /* where each segment begins in `entry`; one more ends the last */
    int32_t *expert; /* of each segment */
    int64_t count;
};

/* Packed rows of a segment's entries, or of all. */
struct packed { uint8_t *rows; float *scales; };

/* Gated layers have a row for each token, others for each entry. */
INLINE int reads_tokens(const struct experts_params p)
{
    return p.EPILOGUE == EXPERTS_EPILOGUE_SILU || p.EPILOGUE == EXPERTS_EPILOGUE_GELU;
}

INLINE int64_t bytes_of_lists(int64_t entries, const struct experts_params p)
{
    const int64_t segments = min_i64(p.EXPERTS, entries) + entries / SEGMENT_ROWS + 1;
    return round_up((entries + 2 * segments) * 4, 64);
}

/* A counting sort: entries of one expert stay in order. */
INLINE struct segments sort_entries(const int32_t *chosen, int64_t entries, const struct experts_params p,
                                    int32_t *memory)
{
    const int64_t most = min_i64(p.EXPERTS, entries) + entries / SEGMENT_ROWS + 1;
    struct segments s = {memory, memory + entries, memory + entries + most, 0};
    int32_t next[MAX_EXPERTS] = {0}, first = 0;
    for (int64_t i = 0; i < entries; i++) next[chosen[i]]++;
    for (int32_t e = 0; e < p.EXPERTS; e++) {
        const int32_t rows = next[e];
        for (int32_t at = 0; at < rows; at += SEGMENT_ROWS) s.first[s.count] = first + at, s.expert[s.count++] = e;
        next[e] = first;
        first += rows;
    }
    s.first[s.count] = first;
    for (int64_t i = 0; i < entries; i++) s.entry[next[chosen[i]]++] = (int32_t)i;
    return s;
}

INLINE struct matrix experts_matrix(const struct experts_args *a, const struct experts_params p)
{
    return (struct matrix){(enum source)p.WEIGHT, a->weight, p.ROW_STRIDE, p.K, a->scale, p.SCALE_ROWS,
                           a->scale_stride, (enum act)p.ACT};
}

INLINE int64_t row_scales(const struct experts_params p) { return scale_count((enum act)p.ACT, p.K); }

/* Packs the rows of `count` entries. `scratch` holds K f32. */
INLINE void pack_entries(const struct experts_args *a, const struct experts_params p, const int32_t *entry,
                         int64_t count, enum packing packing, struct packed to, float *scratch)
{
    for (int64_t i = 0; i < count; i++) {
        const int64_t row = reads_tokens(p) ? entry[i] / p.TOP_K : entry[i];
        pack_row((enum input)p.INPUT, p.NORM_OFFSET, (enum act)p.ACT, packing, a->x, row, p.K, a->norm_weight,
                 a->eps, a->input_scale, to.rows + i * packed_bytes(p.K), scratch, to.scales + i * row_scales(p));
    }
}

/* Stores the products of one entry with UNIT weight rows from `low` of its expert, and with as many from `high`. */
INLINE void store_entry(const struct experts_args *a, const struct experts_params p, int64_t entry, int64_t at,
                        const float *y)
{
    if (!reads_tokens(p)) {
        float *out = (float *)a->out + entry * p.N + at;
        for (int i = 0; i < PAIR; i++) out[i] = y[i];
        return;
    }
    uint16_t *out = (uint16_t *)a->out + entry * (p.N / 2) + at;
    if (p.EPILOGUE == EXPERTS_EPILOGUE_SILU)
        for (int i = 0; i < UNIT; i++) out[i] = f32_to_bf16(silu_f32(y[i]) * y[UNIT + i]);
    else
        for (int i = 0; i < UNIT; i++) out[i] = f32_to_bf16(gelu_f32(y[i]) * y[UNIT + i]);
}

/* One piece of a segment: its entries times PAIR weight rows of their expert. */
INLINE void multiply_piece(const struct experts_args *a, const struct experts_params p, const int32_t *entry,
                           int64_t count, int64_t expert, int64_t piece, struct packed x, uint8_t *panels)
{
    const struct matrix m = experts_matrix(a, p);
    const int64_t at = piece * (reads_tokens(p) ? UNIT : PAIR);
    const int64_t low = expert * p.N + at, high = low + (reads_tokens(p) ? p.N / 2 : UNIT);
    float y[SEGMENT_ROWS][PAIR];
    if (count <= DIRECT_ROWS) {
        direct_products(m, low, x.rows, x.scales, count, y[0], PAIR);
        direct_products(m, high, x.rows, x.scales, count, y[0] + UNIT, PAIR);
    } else {
        panel_products(m, low, high, x.rows, x.scales, count, panels, y[0]);
    }
    for (int64_t t = 0; t < count; t++) {
        scale_products(m, low, x.scales + t * row_scales(p), y[t]);
        scale_products(m, high, x.scales + t * row_scales(p), y[t] + UNIT);
        store_entry(a, p, entry[t], at, y[t]);
    }
}

/* How many of `pieces` that cost `cost` each, after `before`, begin before `limit`. */
INLINE int64_t pieces_before(int64_t limit, int64_t before, int64_t cost, int64_t pieces)
{
    return min_i64(pieces, (max_i64(limit - before, 0) + cost - 1) / cost);
}

INLINE void multiply_segments(const struct experts_args *a, uint32_t worker, uint32_t workers,
                              const struct experts_params p)
{
    const int64_t entries = a->counts[0] * p.TOP_K, pieces = p.N / PAIR, x_stride = packed_bytes(p.K);
    uint8_t *panels = (uint8_t *)a->worker_scratch + worker * a->worker_scratch_stride;
    float *scratch = (float *)(panels + panels_bytes(p.K));
    int32_t *lists = (int32_t *)(scratch + round_up(p.K, 64));
    const struct segments s = sort_entries(a->chosen, entries, p, lists);
    struct packed x = {(uint8_t *)lists + bytes_of_lists(entries, p), 0};
    const int64_t total = pieces * (entries + s.count * CONVERSION_ROWS);
    const int64_t from = split(total, worker, workers), to = split(total, worker + 1, workers);
    for (int64_t i = 0, before = 0; i < s.count; i++) {
        const int32_t *entry = s.entry + s.first[i];
        const int64_t count = s.first[i + 1] - s.first[i], cost = count + CONVERSION_ROWS;
        const int64_t first = pieces_before(from, before, cost, pieces), last = pieces_before(to, before, cost, pieces);
        before += pieces * cost;
        if (first >= last) continue;
        x.scales = (float *)(x.rows + count * x_stride);
        pack_entries(a, p, entry, count, count <= DIRECT_ROWS ? PACKED_ROWS : PACKED_COLUMNS, x, scratch);
        for (int64_t piece = first; piece < last; piece++)
            multiply_piece(a, p, entry, count, s.expert[i], piece, x, panels);
    }
}

/* With few entries, all packed by every worker: it has all products for its outputs, and adds them up by token. */
INLINE void multiply_and_sum(const struct experts_args *a, struct team team, const struct experts_params p)
{
    const int64_t tokens = a->counts[0], entries = tokens * p.TOP_K, units = p.N / UNIT, x_stride = packed_bytes(p.K);
    const struct matrix m = experts_matrix(a, p);
    float *scratch = (float *)((uint8_t *)a->worker_scratch + team.worker * a->worker_scratch_stride);
    int32_t *lists = (int32_t *)(scratch + round_up(p.K, 64));
    const struct segments s = sort_entries(a->chosen, entries, p, lists);
    float *sums = (float *)((uint8_t *)lists + bytes_of_lists(entries, p));
    struct packed x = {(uint8_t *)(sums + entries * UNIT), 0};
    x.scales = (float *)(x.rows + entries * x_stride);
    pack_entries(a, p, s.entry, entries, PACKED_ROWS, x, scratch);
    for (int64_t unit; (unit = take_unit(&team, units, 1)) >= 0;) {
        for (int64_t i = 0; i < s.count; i++)
            for (int64_t t0 = s.first[i]; t0 < s.first[i + 1]; t0 += MAX_DECODE) {
                const int64_t row = s.expert[i] * p.N + unit * UNIT, batch = min_i64(s.first[i + 1] - t0, MAX_DECODE);
                const float *scales = x.scales + t0 * row_scales(p);
                float y[MAX_DECODE][UNIT];
                direct_products(m, row, x.rows + t0 * x_stride, scales, batch, y[0], UNIT);
                for (int64_t t = 0; t < batch; t++) {
                    scale_products(m, row, scales + t * row_scales(p), y[t]);
                    for (int j = 0; j < UNIT; j++) sums[s.entry[t0 + t] * UNIT + j] = y[t][j];
                }
            }
        for (int64_t t = 0; t < tokens; t++)
            weighted_sum(sums + t * p.TOP_K * UNIT, UNIT, a->probability + t * p.TOP_K, p.TOP_K, UNIT,
                         p.EPILOGUE == EXPERTS_EPILOGUE_ADD, (float *)a->out + t * p.N + unit * UNIT);
    }
}

INLINE void experts(const struct experts_args *a, struct team team, const struct experts_params p)
{
    if (p.EPILOGUE == EXPERTS_EPILOGUE_STORE || p.EPILOGUE == EXPERTS_EPILOGUE_ADD)
        multiply_and_sum(a, team, p);
    else
        multiply_segments(a, team.worker, team.workers, p);
}
