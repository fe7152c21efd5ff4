/* Host library of the paiton runtime: memory mappings, the weight loader, plan unrolling, and the CPU plan executor.
 *
 * Loaded with ctypes by paiton_runtime/host.py; no Python API, no global state. Every function that can fail returns
 * 0 or a negative errno. Structures that cross the boundary have fixed widths and no padding.
 */
#ifndef PAITON_HOST_H
#define PAITON_HOST_H

#include <stddef.h>
#include <stdint.h>

/* Calling convention, regions, flags and relocation records; equals paiton_artifacts.layout.RUNTIME_ABI. */
#define PAITON_RUNTIME_ABI 3u

#define PAITON_REGIONS 5u /* weights, io, scratch, kv, comm */
#define PAITON_MAX_RANKS 64u
#define PAITON_MAX_WORKERS 1024u /* per rank */

#define PAITON_EXPORT __attribute__((visibility("default")))

/* What is taken of a worker's share of a launch: units from its front in the low half, from its back in the high. */
struct paiton_share {
    _Alignas(64) _Atomic uint64_t taken;
};

/* A kernel: called by every worker of a rank's team with the same packed arguments; it partitions its own work, whether
 * once for all or by counting in `shares`, one for each worker, which begin at zero. */
typedef void (*paiton_kernel)(const void *args, uint32_t worker, uint32_t workers, struct paiton_share *shares);

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

/* What a device needs to know of a launch beside its paiton_launch, whose `kernel` is not looked at: handles of
 * functions differ from rank to rank, and all else of a plan does not. */
struct paiton_device_launch {
    uint32_t grid[3];
    uint32_t threads;
    uint32_t shared_bytes;
    uint32_t argument_first; /* in the array of argument offsets */
    uint32_t argument_count;
    uint32_t function; /* in the array of the rank's functions */
};

struct paiton_device_program; /* a plan, unrolled and relocated for one device */

/* cuLaunchKernel and hipModuleLaunchKernel; cuGraphAddKernelNode_v2 and hipGraphAddKernelNode. */
typedef int (*paiton_launch_kernel)(void *function, uint32_t, uint32_t, uint32_t, uint32_t, uint32_t, uint32_t,
                                    uint32_t shared_bytes, void *stream, void **arguments, void **extra);
typedef int (*paiton_add_kernel)(void **node, void *graph, void *const *before, uint64_t count, const void *node_params);

enum paiton_backend { PAITON_HIP = 0, PAITON_CUDA = 1 };

struct paiton_encoder; /* text to tokens */
struct paiton_program; /* a plan, unrolled and relocated for every rank */
struct paiton_group;   /* the thread teams of all ranks */

PAITON_EXPORT uint32_t paiton_abi(void);

/* Memory. paiton_populate gives up with -ECANCELED soon after somebody sets *stop. */
PAITON_EXPORT int paiton_map_file(int fd, uint64_t size, void **address);
PAITON_EXPORT int paiton_map_anonymous(uint64_t size, void **address);
PAITON_EXPORT int paiton_unmap(void *address, uint64_t size);
PAITON_EXPORT int paiton_populate(int fd, void *address, uint64_t size, uint32_t threads, _Atomic int32_t *stop);

/* Copies from the mapping of a cached file; fails where the kernel does not first bring in the pages of both. */
int paiton_copy_mapped(const void *from, void *to, uint64_t size);

/* Weights. A load reads extents of files into host memory, or through pinned slots to devices. */

#define PAITON_NOT_READY 600 /* hipErrorNotReady, CUDA_ERROR_NOT_READY */

/* Functions of a driver library, which return 0 or its error code. Handles are pointers in both. */
struct paiton_copy_functions {
    uint64_t backend; /* enum paiton_backend */
    union {
        int (*hip)(int ordinal);
        int (*cuda)(void *context);
    } set_device;
    union {
        int (*hip)(void *destination, void *source, size_t size, void *stream);
        int (*cuda)(uint64_t destination, const void *source, size_t size, void *stream);
    } copy; /* asynchronous, to the device */
    int (*record_event)(void *event, void *stream);
    int (*query_event)(void *event);
    int (*synchronise_stream)(void *stream);
};

struct paiton_source {
    int32_t fd;
    int32_t direct_fd; /* the same file opened with O_DIRECT; -1 to read through the page cache */
    uint32_t cached;   /* all of it, so that reading ahead gains nothing */
    uint32_t zero;
};

struct paiton_extent {
    uint64_t offset; /* in the file */
    uint64_t size;
    uint64_t address;      /* where its first byte goes */
    const uint8_t *sha256; /* its digest, to be checked; or null */
    uint32_t file;
    uint32_t zero;
};

/* A destination (host memory, or a device) and the threads that fill it. Host memory needs neither device nor ring. */
struct paiton_lane {
    uint64_t extent_first;
    uint64_t extent_count;   /* more than 0 */
    uint64_t device;         /* context (CUDA) or ordinal (HIP) */
    const uint64_t *streams; /* [readers] */
    const uint64_t *events;  /* [readers][slots] */
    uint8_t *ring;           /* [readers][slots][slot_bytes], pinned */
    uint32_t readers;        /* more than 0 */
    uint32_t zero;
};

struct paiton_load {
    const struct paiton_source *files;
    const struct paiton_extent *extents;
    const struct paiton_lane *lanes;            /* which cover the extents */
    const struct paiton_copy_functions *driver; /* null: every destination is host memory */
    _Atomic int32_t *stop;                      /* somebody may set it */
    uint64_t extent_count;
    uint64_t slot_bytes; /* largest read, and copy */
    uint32_t file_count;
    uint32_t lane_count;
    uint32_t slots; /* of a reader */
    uint32_t zero;
};

enum paiton_load_operation {
    PAITON_LOAD_START = 0, /* threads and memory; code is an errno */
    PAITON_LOAD_READ = 1,  /* code is an errno, or 0 if the file ends at `offset` */
    PAITON_LOAD_DIGEST = 2,
    PAITON_LOAD_SET_DEVICE = 3, /* from here on, code is the driver's */
    PAITON_LOAD_COPY = 4,
    PAITON_LOAD_RECORD = 5,
    PAITON_LOAD_WAIT = 6,
};

struct paiton_load_result {
    uint64_t bytes;        /* that arrived */
    uint64_t direct_bytes; /* of them, read around the page cache */
    uint64_t offset;       /* in the file, where it failed */
    uint32_t file;
    uint32_t operation; /* that failed */
    int32_t code;
    uint32_t zero;
    uint8_t sha256[32]; /* what was found where a digest differs */
};

/* Returns once everything has arrived, or nothing is in flight any more: -ECANCELED soon after somebody sets *stop,
 * -ENODATA at the end of a file, -EBADMSG for a wrong digest, -EIO for what a driver says, else a negative errno. */
PAITON_EXPORT int paiton_load(const struct paiton_load *load, struct paiton_load_result *result);

/* Samples which pages of a file's first `size` bytes the page cache holds. `portable`: as if there were no
 * cachestat(2). */
PAITON_EXPORT int paiton_resident(int fd, uint64_t size, uint32_t portable, uint64_t *pages, uint64_t *resident);

/* `portable`: without the processor's SHA instructions. `digest` has 32 bytes. */
PAITON_EXPORT void paiton_sha256(const void *data, uint64_t size, uint32_t portable, uint8_t *digest);

/* Code objects, from the descriptor of a memory file that stays open as long as they are loaded. A null result is
 * explained by paiton_code_error, which the same thread calls next. */
PAITON_EXPORT void *paiton_code_open(int fd);
PAITON_EXPORT void *paiton_code_symbol(void *code, const char *name);
PAITON_EXPORT int paiton_code_close(void *code);
PAITON_EXPORT const char *paiton_code_error(void);

/* Encoders, over an encoder file (artifacts/FORMAT.md) at an address that is a multiple of 8 and stays until the encoder
 * is destroyed. -EINVAL: it is malformed. `tokens` has room for one token per byte of the text, which is UTF-8 (else
 * -EINVAL). -EDOM: the file does not cover this text. Several threads may encode at once. */
PAITON_EXPORT int paiton_encoder_create(const void *data, uint64_t size, struct paiton_encoder **encoder);
PAITON_EXPORT void paiton_encoder_destroy(struct paiton_encoder *encoder);
PAITON_EXPORT int paiton_encode(const struct paiton_encoder *encoder, const char *bytes, uint64_t size,
                                uint32_t *tokens, uint64_t *count);

/* Programs. `bases` holds ranks * PAITON_REGIONS addresses, rank-major. */
PAITON_EXPORT int paiton_program_create(const struct paiton_plan *plan, const uint64_t *bases, uint32_t ranks,
                                        struct paiton_program **program);
PAITON_EXPORT void paiton_program_destroy(struct paiton_program *program);
PAITON_EXPORT uint64_t paiton_program_launches(const struct paiton_program *program);

/* A plan for devices, the same for all ranks. */
struct paiton_device_plan {
    struct paiton_plan plan;
    const struct paiton_device_launch *launches; /* parallel to plan.launches */
    const uint32_t *offsets;                     /* of arguments within a launch's args */
    uint64_t offset_count;
    uint64_t function_count;
};

/* Programs of devices. `functions` holds the driver's handles on the rank's device, `bases` ranks * PAITON_REGIONS
 * addresses. Running one returns 0, or the driver's own code with *failed set to the number of the launch that it
 * refused. */
PAITON_EXPORT int paiton_device_program_create(const struct paiton_device_plan *plan, const uint64_t *functions,
                                               const uint64_t *bases, uint32_t ranks, uint32_t rank,
                                               struct paiton_device_program **program);
PAITON_EXPORT void paiton_device_program_destroy(struct paiton_device_program *program);
PAITON_EXPORT uint64_t paiton_device_program_launches(const struct paiton_device_program *program);
PAITON_EXPORT int paiton_device_program_run(const struct paiton_device_program *program, paiton_launch_kernel launch,
                                            void *stream, uint64_t first, uint64_t count, uint64_t *failed);
PAITON_EXPORT int paiton_device_program_add(const struct paiton_device_program *program, uint32_t backend,
                                            paiton_add_kernel add, void *graph, void **last, uint64_t *failed);

/* Groups. Worker 0 of rank 0 is the thread that calls paiton_step; the others are started here. */
PAITON_EXPORT int paiton_group_create(uint32_t ranks, uint32_t workers, uint32_t spin_nanoseconds,
                                      const int32_t *cpus, struct paiton_group **group);
PAITON_EXPORT void paiton_group_destroy(struct paiton_group *group);
PAITON_EXPORT int paiton_step(struct paiton_group *group, const struct paiton_program *const *programs,
                              uint32_t count);

#endif
