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

#endif
