/* How the workers of a launch share its units: each has a share, a run of units of its own, which it takes from the
 * front; who has finished takes from the back of the others' shares. Neighbours on a machine delay single workers, and
 * the others would wait for them at the end of every launch. */
#pragma once
#include <stdatomic.h>
#include "prelude.h"

/* What is taken of a share: units from its front in the low half, from its back in the high half. The runtime hands
 * every launch zeros (paiton_host.h). */
struct share { _Alignas(64) _Atomic uint64_t taken; };
_Static_assert(sizeof(struct share) == 64, "the runtime's records");

/* A worker of a launch, and the share it takes from: its own at first. */
struct team {
    uint32_t worker, workers;
    struct share *shares;
    uint32_t passed; /* shares that have nothing left */
};

/* Returns the next unit for this worker, unit + total * pass, or -1 when all `passes` over `total` units are done. A
 * share goes through its units once for each pass. Units do not depend on each other, so that counting is all that
 * needs to be atomic. */
INLINE int64_t take_unit(struct team *team, int64_t total, int64_t passes)
{
    for (; team->passed < team->workers; team->passed++) {
        const uint32_t owner = (team->worker + team->passed) % team->workers;
        const int64_t first = split(total, owner, team->workers);
        const int64_t size = split(total, owner + 1, team->workers) - first, all = size * passes;
        _Atomic uint64_t *taken = &team->shares[owner].taken;
        uint64_t old = atomic_load_explicit(taken, memory_order_relaxed);
        for (;;) {
            const int64_t front = (int64_t)(old & UINT32_MAX), back = (int64_t)(old >> 32);
            if (front + back >= all) break;
            const int own = owner == team->worker;
            if (!atomic_compare_exchange_weak_explicit(taken, &old, old + (own ? 1 : (uint64_t)1 << 32),
                                                       memory_order_relaxed, memory_order_relaxed))
                continue;
            const int64_t at = own ? front : all - 1 - back;
            return first + at % size + at / size * total;
        }
    }
    return -1;
}
