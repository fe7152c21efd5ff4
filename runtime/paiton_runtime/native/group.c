/* The executor: a team of threads per rank walks the calls of a program; a step is one call from Python. */
#define _GNU_SOURCE
#include "barrier.h"
#include "program.h"

#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>

/* Kernels keep small arrays on the stack; large ones live in worker scratch. */
#define STACK_BYTES (1u << 20)

/* On a line of its own: it counts its launches. */
struct worker {
    _Alignas(64) struct paiton_group *group;
    uint32_t rank;
    uint32_t index; /* in the rank's team */
    uint32_t launches; /* so far, modulo 2^32 */
    pthread_t thread;
};

struct paiton_group {
    uint32_t ranks;
    uint32_t workers; /* per rank */
    uint32_t started; /* threads to join: workers[1 .. started] */
    uint32_t spins;
    int stop;
    const struct paiton_program *const *programs; /* of the current step; published by `epoch` */
    uint32_t program_count;
    struct worker *all; /* [ranks][workers] */
    struct paiton_share *shares; /* [2][ranks][workers], of even and odd launches */
    _Alignas(64) _Atomic uint32_t epoch; /* advanced once a step */
    _Atomic uint32_t sleepers;
    struct paiton_barrier everyone;
    struct paiton_barrier teams[]; /* [ranks] */
};

/* Every worker clears its share of the launch after this one, since all have left the one before this. */
static void run_kernel(struct worker *self, const struct paiton_call *call) {
    struct paiton_group *group = self->group;
    uint32_t all = group->ranks * group->workers, team = self->rank * group->workers, turn = self->launches++ & 1u;
    atomic_store_explicit(&group->shares[(1u - turn) * all + team + self->index].taken, 0, memory_order_relaxed);
    call->kernel(call->args, self->index, group->workers, group->shares + turn * all + team);
}

static void run_calls(struct worker *self, const struct paiton_program *program) {
    struct paiton_group *group = self->group;
    const struct paiton_call *call = program->calls + self->rank * program->launches;
    for (uint64_t i = 0; i < program->launches; i++, call++) {
        if (call->flags & PAITON_GROUP_BARRIER)
            paiton_barrier_wait(&group->everyone);
        else if (call->kernel && i != 0)
            paiton_barrier_wait(&group->teams[self->rank]);
        if (call->kernel) run_kernel(self, call);
    }
}

/* Programs follow each other like launches with a group barrier; the last barrier ends the step for the caller, who
 * may then publish the next one: nothing of this step is read from the group after it. */
static void run_step(struct worker *self) {
    struct paiton_group *group = self->group;
    const struct paiton_program *const *programs = group->programs;
    uint32_t count = group->program_count;
    for (uint32_t i = 0; i < count; i++) {
        run_calls(self, programs[i]);
        paiton_barrier_wait(&group->everyone);
    }
}

static void *worker_main(void *argument) {
    struct worker *self = argument;
    struct paiton_group *group = self->group;
    for (uint32_t epoch = 0;; epoch++) {
        paiton_wait_change(&group->epoch, epoch, &group->sleepers, group->spins);
        if (group->stop) return NULL;
        run_step(self);
    }
}

static int start_worker(struct worker *worker, const int32_t *cpus, uint32_t slot) {
    pthread_attr_t attributes;
    int error = pthread_attr_init(&attributes);
    if (error) return -error;
    error = pthread_attr_setstacksize(&attributes, STACK_BYTES);
    if (!error && cpus && cpus[slot] >= 0) {
        cpu_set_t set;
        CPU_ZERO(&set);
        if (cpus[slot] >= CPU_SETSIZE)
            error = EINVAL;
        else
            CPU_SET((size_t)cpus[slot], &set);
        if (!error) error = pthread_attr_setaffinity_np(&attributes, sizeof set, &set);
    }
    if (!error) error = pthread_create(&worker->thread, &attributes, worker_main, worker);
    pthread_attr_destroy(&attributes);
    return -error;
}

/* Starts every worker but the first, with signals blocked: they belong to the interpreter's thread. */
static int start_all(struct paiton_group *group, const int32_t *cpus) {
    sigset_t all, old;
    sigfillset(&all);
    int error = -pthread_sigmask(SIG_SETMASK, &all, &old);
    if (error) return error;
    for (uint32_t slot = 1; slot < group->ranks * group->workers && !error; slot++) {
        error = start_worker(&group->all[slot], cpus, slot);
        if (!error) group->started = slot;
    }
    int restored = -pthread_sigmask(SIG_SETMASK, &old, NULL);
    return error ? error : restored;
}

int paiton_group_create(uint32_t ranks, uint32_t workers, uint32_t spin_nanoseconds, const int32_t *cpus,
                        struct paiton_group **group) {
    *group = NULL;
    if (ranks == 0 || ranks > PAITON_MAX_RANKS || workers == 0 || workers > PAITON_MAX_WORKERS) return -EINVAL;
    void *memory;
    size_t size = sizeof(struct paiton_group) + ranks * sizeof(struct paiton_barrier);
    if (posix_memalign(&memory, 64, size)) return -ENOMEM;
    struct paiton_group *made = memory;
    made->ranks = ranks;
    made->workers = workers;
    made->started = 0;
    made->spins = spin_nanoseconds ? paiton_spins(spin_nanoseconds) : 0;
    made->stop = 0;
    made->programs = NULL;
    made->program_count = 0;
    atomic_init(&made->epoch, 0);
    atomic_init(&made->sleepers, 0);
    paiton_barrier_init(&made->everyone, ranks * workers, made->spins);
    for (uint32_t rank = 0; rank < ranks; rank++) paiton_barrier_init(&made->teams[rank], workers, made->spins);
    size_t count = (size_t)ranks * workers;
    made->all = aligned_alloc(64, count * sizeof *made->all);
    made->shares = aligned_alloc(64, 2 * count * sizeof *made->shares);
    if (!made->all || !made->shares) {
        free(made->shares);
        free(made->all);
        free(made);
        return -ENOMEM;
    }
    for (size_t i = 0; i < 2 * count; i++) atomic_init(&made->shares[i].taken, 0);
    for (uint32_t slot = 0; slot < ranks * workers; slot++) {
        struct worker *worker = &made->all[slot];
        worker->group = made;
        worker->rank = slot / workers;
        worker->index = slot % workers;
        worker->launches = 0;
    }
    int error = start_all(made, cpus);
    if (error) {
        paiton_group_destroy(made);
        return error;
    }
    *group = made;
    return 0;
}

void paiton_group_destroy(struct paiton_group *group) {
    if (!group) return;
    group->stop = 1; /* published by the advance */
    paiton_advance(&group->epoch, &group->sleepers);
    for (uint32_t slot = 1; slot <= group->started; slot++) pthread_join(group->all[slot].thread, NULL);
    free(group->shares);
    free(group->all);
    free(group);
}

int paiton_step(struct paiton_group *group, const struct paiton_program *const *programs, uint32_t count) {
    for (uint32_t i = 0; i < count; i++)
        if (programs[i]->ranks != group->ranks) return -EINVAL;
    if (count == 0) return 0; /* a step without a barrier at its end would let workers fall behind the epoch */
    group->programs = programs;
    group->program_count = count;
    paiton_advance(&group->epoch, &group->sleepers);
    run_step(&group->all[0]);
    return 0;
}

uint32_t paiton_abi(void) { return PAITON_RUNTIME_ABI; }
