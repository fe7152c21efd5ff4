/* Kernels for the executor's tests; they follow the calling convention of the real ones. */
typedef unsigned int u32;
typedef unsigned long long u64;

/* Draws a ticket for this worker: tickets tell in which order launches ran. */
struct ticket_args { u64 *counter; u64 *tickets; u64 index; u64 rank; u64 ranks; };
void ticket(const struct ticket_args *a, u32 worker, u32 workers) {
    u64 slot = (a->index * a->ranks + a->rank) * workers + worker;
    a->tickets[slot] = __atomic_add_fetch(a->counter, 1, __ATOMIC_SEQ_CST);
}

/* Waits a while: makes workers arrive unevenly. */
struct idle_args { u64 rank; u64 turns; };
void idle(const struct idle_args *a, u32 worker, u32 workers) {
    (void)workers;
    for (volatile u64 i = 0; i < a->turns * ((a->rank * 7 + worker * 3) % 5); i++) {}
}

/* Each worker adds its share of n elements, x[i] += 1, without atomics: lost updates show a missing barrier. */
struct increment_args { u64 *x; u64 n; u64 shift; };
void increment(const struct increment_args *a, u32 worker, u32 workers) {
    u64 share = (a->n + workers - 1) / workers;
    u64 first = ((worker + a->shift) % workers) * share; /* another worker's share at every launch */
    for (u64 i = first; i < first + share && i < a->n; i++) a->x[i]++;
}

/* out[0] = own[0] + what the two peers hold, then own[0] = out[0] is left to the next launch. */
struct sum_args { u64 *part0; u64 *part1; u64 *part2; u64 *out; };
void sum(const struct sum_args *a, u32 worker, u32 workers) {
    (void)workers;
    if (worker == 0) *a->out = *a->part0 + *a->part1 + *a->part2;
}
struct copy_args { const u64 *from; u64 *to; u64 plus; };
void copy(const struct copy_args *a, u32 worker, u32 workers) {
    (void)workers;
    if (worker == 0) *a->to = *a->from + a->plus;
}

/* Writes its own arguments where the second one points to. */
struct echo_args { u64 *log; u64 *count; u64 a, b, c; };
void echo(const struct echo_args *a, u32 worker, u32 workers) {
    (void)workers;
    if (worker) return;
    u64 *row = a->log + 5 * *a->count;
    row[0] = (u64)a->log, row[1] = (u64)a->count, row[2] = a->a, row[3] = a->b, row[4] = a->c;
    ++*a->count;
}

/* Part of a sum that depends on the rank and on the sum before; small integers, so that f32 adds them exactly. */
struct part_args { const float *sum; float *part; u64 rank; u64 n; };
void part(const struct part_args *a, u32 worker, u32 workers) {
    for (u64 i = worker; i < a->n; i += workers)
        a->part[i] = (float)(((u64)a->sum[i] * 31 + a->rank * 17 + i) & 0xffff);
}

/* history[i] = history[i] * 31 + sum[i]: whatever went wrong in one of many sums stays visible. */
struct follow_args { const float *sum; u64 *history; u64 n; };
void follow(const struct follow_args *a, u32 worker, u32 workers) {
    for (u64 i = worker; i < a->n; i += workers) a->history[i] = a->history[i] * 31 + (u64)a->sum[i];
}

/* Waits for a time that is another at every call (xorshift64): mostly not at all, sometimes long. */
struct stray_args { u64 *states; u64 rank; };
void stray(const struct stray_args *a, u32 worker, u32 workers) {
    u64 *state = a->states + 8 * worker;
    u64 s = *state ? *state : (a->rank * workers + worker + 1) * 0x9e3779b97f4a7c15;
    s ^= s << 13, s ^= s >> 7, s ^= s << 17;
    *state = s;
    for (volatile u64 i = s & 7 ? 0 : (s >> 8) % 50000; i; i--) {}
}

/* Takes units until none is left, from the front of its own share and then from the back of the others', and counts for
 * each unit how often it was taken; a worker that is late leaves most of its share to the others. */
struct take_args { u64 *counts; u64 units; u64 *moved; };
struct share { _Alignas(64) u64 taken; };
void take(const struct take_args *a, u32 worker, u32 workers, struct share *shares) {
    for (volatile u64 i = worker ? 0 : 20000; i; i--) {}
    for (u32 passed = 0; passed < workers; passed++) {
        u32 owner = (worker + passed) % workers;
        u64 first = a->units * owner / workers, size = a->units * (owner + 1) / workers - first;
        for (;;) {
            u64 one = passed ? 1ull << 32 : 1, old = __atomic_fetch_add(&shares[owner].taken, one, __ATOMIC_RELAXED);
            if ((old & 0xffffffff) + (old >> 32) >= size) break;
            a->counts[first + (passed ? size - 1 - (old >> 32) : old & 0xffffffff)]++;
            if (passed) __atomic_add_fetch(a->moved, 1, __ATOMIC_RELAXED);
        }
    }
}

void nothing(const void *a, u32 worker, u32 workers) { (void)a, (void)worker, (void)workers; }
