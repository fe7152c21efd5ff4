/* Unrolls a plan template for every rank. Plans are bounded in Python first; what is checked again here is what would
 * otherwise read or write outside the arrays that were handed over. */
#include "program.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

/* Upper bound on the arguments of one program: far above any real plan, far below an overflow. */
#define MAX_ARENA_BYTES (1ull << 32)
#define MAX_LAUNCHES (1ull << 24)

static int check_launch(const struct paiton_plan *plan, const struct paiton_launch *launch, uint32_t ranks) {
    if (launch->args_size % 8 != 0 || launch->args_offset > plan->args_size ||
        launch->args_size > plan->args_size - launch->args_offset ||
        launch->relocation_first > plan->relocation_count ||
        launch->relocation_count > plan->relocation_count - launch->relocation_first)
        return -EINVAL;
    for (uint32_t i = 0; i < launch->relocation_count; i++) {
        const struct paiton_relocation *relocation = &plan->relocations[launch->relocation_first + i];
        if (relocation->arg_offset % 8 != 0 || relocation->arg_offset + 8u > launch->args_size ||
            relocation->kind > PAITON_RANK || relocation->region >= PAITON_REGIONS ||
            (relocation->kind == PAITON_PEER && relocation->rank >= ranks))
            return -EINVAL;
    }
    return 0;
}

int paiton_measure(const struct paiton_plan *plan, uint32_t ranks, uint64_t *launches, uint64_t *args_bytes) {
    for (uint64_t i = 0; i < plan->launch_count; i++) {
        int error = check_launch(plan, &plan->launches[i], ranks);
        if (error) return error;
    }
    *launches = 0;
    *args_bytes = 0;
    for (uint64_t s = 0; s < plan->segment_count; s++) {
        const struct paiton_segment *segment = &plan->segments[s];
        if (segment->launch_first > plan->launch_count ||
            segment->launch_count > plan->launch_count - segment->launch_first)
            return -EINVAL;
        uint64_t bytes = 0;
        for (uint32_t i = 0; i < segment->launch_count; i++)
            bytes += plan->launches[segment->launch_first + i].args_size;
        *launches += (uint64_t)segment->repeat * segment->launch_count;
        if (*launches > MAX_LAUNCHES || (bytes != 0 && segment->repeat > MAX_ARENA_BYTES / bytes)) return -E2BIG;
        *args_bytes += bytes * segment->repeat;
        if (*args_bytes > MAX_ARENA_BYTES / ranks) return -E2BIG;
    }
    return 0;
}

void paiton_relocate(uint8_t *args, const struct paiton_relocation *relocation, const uint64_t *bases, uint32_t rank,
                      uint64_t repeat) {
    uint64_t value;
    if (relocation->kind == PAITON_RANK) {
        value = rank * (uint64_t)relocation->offset;
    } else {
        uint32_t owner = relocation->kind == PAITON_PEER ? relocation->rank : rank;
        value = bases[owner * PAITON_REGIONS + relocation->region] + (uint64_t)relocation->offset +
                repeat * relocation->stride;
    }
    memcpy(args + relocation->arg_offset, &value, sizeof value);
}

/* Fills one rank's calls; returns the end of the arguments it wrote. */
static uint8_t *unroll(const struct paiton_plan *plan, const uint64_t *bases, uint32_t rank, struct paiton_call *call,
                       uint8_t *args) {
    for (uint64_t s = 0; s < plan->segment_count; s++) {
        const struct paiton_segment *segment = &plan->segments[s];
        for (uint32_t repeat = 0; repeat < segment->repeat; repeat++) {
            for (uint32_t i = 0; i < segment->launch_count; i++) {
                const struct paiton_launch *launch = &plan->launches[segment->launch_first + i];
                int skipped = (launch->flags & PAITON_RANK0_ONLY) && rank != 0;
                if (launch->args_size) memcpy(args, plan->args + launch->args_offset, launch->args_size);
                for (uint32_t r = 0; r < launch->relocation_count; r++)
                    paiton_relocate(args, &plan->relocations[launch->relocation_first + r], bases, rank, repeat);
                call->kernel = skipped ? NULL : (paiton_kernel)(uintptr_t)launch->kernel;
                call->args = args;
                call->flags = launch->flags;
                args += launch->args_size;
                call++;
            }
        }
    }
    return args;
}

int paiton_program_create(const struct paiton_plan *plan, const uint64_t *bases, uint32_t ranks,
                          struct paiton_program **program) {
    *program = NULL;
    if (ranks == 0 || ranks > PAITON_MAX_RANKS) return -EINVAL;
    uint64_t launches, args_bytes;
    int error = paiton_measure(plan, ranks, &launches, &args_bytes);
    if (error) return error;
    for (uint64_t i = 0; i < plan->launch_count; i++)
        if (plan->launches[i].kernel == 0) return -EINVAL;
    struct paiton_program *made = calloc(1, sizeof *made);
    if (!made) return -ENOMEM;
    made->launches = launches;
    made->ranks = ranks;
    /* One more element than needed, so that an empty plan is no special case for the allocator. */
    made->calls = calloc(launches * ranks + 1, sizeof *made->calls);
    made->args = malloc(args_bytes * ranks + 8);
    if (!made->calls || !made->args) {
        paiton_program_destroy(made);
        return -ENOMEM;
    }
    uint8_t *args = made->args;
    for (uint32_t rank = 0; rank < ranks; rank++)
        args = unroll(plan, bases, rank, made->calls + rank * launches, args);
    *program = made;
    return 0;
}

void paiton_program_destroy(struct paiton_program *program) {
    if (!program) return;
    free(program->calls);
    free(program->args);
    free(program);
}

uint64_t paiton_program_launches(const struct paiton_program *program) { return program->launches; }
