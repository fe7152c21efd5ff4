/* Host library of the paiton runtime: memory mappings, plan unrolling, and the CPU plan executor.
 *
 * Loaded with ctypes by paiton_runtime/host.py; no Python API, no global state. Every function that can fail returns
 * 0 or a negative errno. Structures that cross the boundary have fixed widths and no padding.
 */
#ifndef PAITON_HOST_H
#define PAITON_HOST_H

#include <stdint.h>

/* Calling convention, regions, flags and relocation records; equals paiton_artifacts.layout.RUNTIME_ABI. */
#define PAITON_RUNTIME_ABI 2u

#define PAITON_REGIONS 5u /* weights, io, scratch, kv, comm */
#define PAITON_MAX_RANKS 64u
#define PAITON_MAX_WORKERS 1024u /* per rank */

#define PAITON_EXPORT __attribute__((visibility("default")))

/* A kernel: called by every worker of a rank's team with the same packed arguments; it partitions its own work. */
typedef void (*paiton_kernel)(const void *args, uint32_t worker, uint32_t workers);

enum paiton_launch_flag {
    PAITON_GROUP_BARRIER = 1, /* all workers of all ranks meet before this launch */
    PAITON_RANK0_ONLY = 2,    /* the other ranks skip it */
};

enum paiton_relocation_kind {
    PAITON_LOCAL = 0, /* base[own rank][region] + offset + i * stride */
    PAITON_PEER = 1,  /* base[rank][region] + offset + i * stride */
    PAITON_RANK = 2,  /* own rank * offset, an integer */
};

/* The record of a plan file, little-endian. */
struct paiton_relocation {
    uint16_t arg_offset;
    uint8_t kind;
    uint8_t region;
    uint8_t access;
    uint8_t zero;
    uint16_t rank;
    int64_t offset;
    uint64_t stride;
    uint64_t size;
    uint64_t reserved;
};

struct paiton_launch {
    uint64_t kernel; /* address of a paiton_kernel */
    uint32_t flags;
    uint32_t args_offset; /* in paiton_plan.args */
    uint32_t args_size;   /* a multiple of 8 */
    uint32_t relocation_first;
    uint32_t relocation_count;
    uint32_t zero;
};

struct paiton_segment {
    uint32_t repeat;
    uint32_t launch_first;
    uint32_t launch_count;
    uint32_t zero;
};

/* A plan template. The caller has bounded every relocation (paiton_artifacts.plan.check_plan). */
struct paiton_plan {
    const struct paiton_segment *segments;
    const struct paiton_launch *launches;
    const struct paiton_relocation *relocations;
    const uint8_t *args;
    uint64_t segment_count;
    uint64_t launch_count;
    uint64_t relocation_count;
    uint64_t args_size;
};

struct paiton_program; /* a plan, unrolled and relocated for every rank */
struct paiton_group;   /* the thread teams of all ranks */

PAITON_EXPORT uint32_t paiton_abi(void);

/* Memory. paiton_populate gives up with -ECANCELED soon after somebody sets *stop. */
PAITON_EXPORT int paiton_map_file(int fd, uint64_t size, void **address);
PAITON_EXPORT int paiton_map_anonymous(uint64_t size, void **address);
PAITON_EXPORT int paiton_unmap(void *address, uint64_t size);
PAITON_EXPORT int paiton_populate(int fd, void *address, uint64_t size, uint32_t threads, _Atomic int32_t *stop);

/* Code objects, from the descriptor of a memory file that stays open as long as they are loaded. A null result is
 * explained by paiton_code_error, which the same thread calls next. */
PAITON_EXPORT void *paiton_code_open(int fd);
PAITON_EXPORT void *paiton_code_symbol(void *code, const char *name);
PAITON_EXPORT int paiton_code_close(void *code);
PAITON_EXPORT const char *paiton_code_error(void);

/* Programs. `bases` holds ranks * PAITON_REGIONS addresses, rank-major. */
PAITON_EXPORT int paiton_program_create(const struct paiton_plan *plan, const uint64_t *bases, uint32_t ranks,
                                        struct paiton_program **program);
PAITON_EXPORT void paiton_program_destroy(struct paiton_program *program);
PAITON_EXPORT uint64_t paiton_program_launches(const struct paiton_program *program);

/* Groups. Worker 0 of rank 0 is the thread that calls paiton_step; the others are started here. */
PAITON_EXPORT int paiton_group_create(uint32_t ranks, uint32_t workers, uint32_t spin_nanoseconds,
                                      const int32_t *cpus, struct paiton_group **group);
PAITON_EXPORT void paiton_group_destroy(struct paiton_group *group);
PAITON_EXPORT int paiton_step(struct paiton_group *group, const struct paiton_program *const *programs,
                              uint32_t count);

#endif
