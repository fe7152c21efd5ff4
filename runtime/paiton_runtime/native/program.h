/* What the executor walks: for each rank a flat array of calls with relocated arguments. */
#ifndef PAITON_PROGRAM_H
#define PAITON_PROGRAM_H

#include "paiton_host.h"

struct paiton_call {
    paiton_kernel kernel; /* null where this rank skips the launch */
    const uint8_t *args;
    uint64_t flags;
};

struct paiton_program {
    uint64_t launches; /* per rank */
    uint32_t ranks;
    struct paiton_call *calls; /* [ranks][launches] */
    uint8_t *args;             /* one arena for all ranks */
};

/* Checks a template and counts the unrolled launches of one rank and the bytes of their arguments. */
int paiton_measure(const struct paiton_plan *plan, uint32_t ranks, uint64_t *launches, uint64_t *args_bytes);

/* Fills one field of a launch's arguments; `bases` holds ranks * PAITON_REGIONS addresses. */
void paiton_relocate(uint8_t *args, const struct paiton_relocation *relocation, const uint64_t *bases, uint32_t rank,
                     uint64_t repeat);

#endif
