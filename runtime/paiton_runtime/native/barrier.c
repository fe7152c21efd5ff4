#define _GNU_SOURCE
#include "barrier.h"

#include <limits.h>
#include <linux/futex.h>
#include <sched.h>
#include <stddef.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

/* The kernel takes the futex word as a plain 32-bit integer. */
_Static_assert(sizeof(_Atomic uint32_t) == sizeof(uint32_t), "atomics must be lock-free words");

/* How often a waiter that has spun in vain offers its processor to the others before it sleeps: about 20 us where nobody
 * wants it, which covers the unevenness of a launch. Where two threads of a team share a processor, because there are
 * too few or because the scheduler put them there, yielding is what makes barriers bearable: 1 us each, instead of the
 * whole spin or of two switches through a futex (50 us). */
#define YIELDS 64u

static void pause_once(void) { __builtin_ia32_pause(); }

static uint64_t now_nanoseconds(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (uint64_t)time.tv_sec * 1000000000u + (uint64_t)time.tv_nsec;
}

uint32_t paiton_spins(uint32_t nanoseconds) {
    enum { SAMPLE = 256 };
    uint64_t best = UINT64_MAX; /* the least disturbed of three samples */
    for (int attempt = 0; attempt < 3; attempt++) {
        uint64_t start = now_nanoseconds();
        for (int i = 0; i < SAMPLE; i++) pause_once();
        uint64_t elapsed = now_nanoseconds() - start;
        if (elapsed < best) best = elapsed;
    }
    return (uint32_t)((uint64_t)nanoseconds * SAMPLE / (best ? best : 1));
}

void paiton_barrier_init(struct paiton_barrier *barrier, uint32_t parties, uint32_t spins) {
    atomic_init(&barrier->arrived, 0);
    atomic_init(&barrier->generation, 0);
    atomic_init(&barrier->sleepers, 0);
    barrier->parties = parties;
    barrier->spins = spins;
}

void paiton_wait_change(_Atomic uint32_t *word, uint32_t old, _Atomic uint32_t *sleepers, uint32_t spins) {
    for (uint32_t i = 0; i < spins; i++) {
        if (atomic_load_explicit(word, memory_order_acquire) != old) return;
        pause_once();
    }
    for (uint32_t i = 0; i < YIELDS; i++) {
        if (atomic_load_explicit(word, memory_order_acquire) != old) return;
        sched_yield();
    }
    /* Sequentially consistent against paiton_advance: either it sees this sleeper, or the kernel, which compares the
     * word before it sleeps, sees the new value. */
    atomic_fetch_add(sleepers, 1);
    while (atomic_load(word) == old) {
        syscall(SYS_futex, (uint32_t *)word, FUTEX_WAIT_PRIVATE, old, NULL, NULL, 0);
    }
    atomic_fetch_sub(sleepers, 1);
}

void paiton_advance(_Atomic uint32_t *word, _Atomic uint32_t *sleepers) {
    atomic_fetch_add(word, 1);
    if (atomic_load(sleepers) != 0) {
        syscall(SYS_futex, (uint32_t *)word, FUTEX_WAKE_PRIVATE, INT_MAX, NULL, NULL, 0);
    }
}

void paiton_barrier_wait(struct paiton_barrier *barrier) {
    if (barrier->parties == 1) return;
    /* Read before arriving: the last arrival may advance it at once. */
    uint32_t generation = atomic_load_explicit(&barrier->generation, memory_order_relaxed);
    if (atomic_fetch_add(&barrier->arrived, 1) + 1 == barrier->parties) {
        atomic_store_explicit(&barrier->arrived, 0, memory_order_relaxed); /* published by the advance */
        paiton_advance(&barrier->generation, &barrier->sleepers);
    } else {
        paiton_wait_change(&barrier->generation, generation, &barrier->sleepers, barrier->spins);
    }
}
