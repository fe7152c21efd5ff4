/* A barrier that spins for a bounded time, yields a few times, and then sleeps on a futex: ranks x threads may exceed
 * the processors. */
#ifndef PAITON_BARRIER_H
#define PAITON_BARRIER_H

#include <stdatomic.h>
#include <stdint.h>

/* Arrivals and the generation are on lines of their own: waiters poll the generation while others still arrive. */
struct paiton_barrier {
    _Alignas(64) _Atomic uint32_t arrived;
    uint32_t parties;
    uint32_t spins;
    _Alignas(64) _Atomic uint32_t generation;
    _Atomic uint32_t sleepers;
};

/* How many polls fit into `nanoseconds` on this machine (the length of a pause varies tenfold between processors). */
uint32_t paiton_spins(uint32_t nanoseconds);

void paiton_barrier_init(struct paiton_barrier *barrier, uint32_t parties, uint32_t spins);

/* Blocks until all parties have called it; what they wrote before is then visible to all of them. */
void paiton_barrier_wait(struct paiton_barrier *barrier);

/* Blocks until *word differs from `old`. A sleeper announces itself in *sleepers. */
void paiton_wait_change(_Atomic uint32_t *word, uint32_t old, _Atomic uint32_t *sleepers, uint32_t spins);

/* Increments *word and wakes whoever sleeps on it. */
void paiton_advance(_Atomic uint32_t *word, _Atomic uint32_t *sleepers);

#endif
