/* A driver library that runs nothing: enough of libamdhip64 to boot on, to time what the runtime itself takes.
 *
 * Handles are real, device addresses are not. A graph's node gets a copy of its arguments, found as a driver finds
 * them: by as many pointers as the kernel's metadata lists arguments. Those lists come from the file that the
 * environment variable NULL_HIP_KERNELS names, one kernel a line: its symbol, then the size of every argument.
 *
 * Every call is timed, by a clock that is read twice, half of each time outside of what it measures: one reading,
 * measured beforehand, is added. The clock is the processor time of the thread, which nobody else's work can lengthen.
 * Reading it takes longer than adding a node, so that nodes are timed by a quick clock; those during which the thread
 * had to wait are taken to need no time, which makes what is left for the runtime too much, never too little.
 *
 * The preamble includes hip/hip_runtime_api.h, so that a wrong prototype does not compile. */
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define MAX_ARGUMENTS 256
#define DEVICE_MEMORY (192ull << 30)
#define BLOCK_BYTES (256u << 10)
#define INTERRUPTED 20000 /* nanoseconds; a node takes some hundred */

struct tally {
    uint64_t nanoseconds, calls, nodes, argument_bytes;
    struct tally *next;
};

struct kernel {
    char *symbol;
    uint32_t count, bytes;
    uint8_t sizes[MAX_ARGUMENTS];
    struct kernel *next; /* with the same hash */
};

struct node {
    struct node *before;
    const struct kernel *kernel;
    dim3 grid, block;
    uint32_t shared_bytes;
    uint8_t arguments[];
};

/* Nodes live in blocks, which go with their graph. */
struct block {
    struct block *next;
    size_t used;
    _Alignas(16) uint8_t bytes[];
};

struct graph {
    struct block *blocks;
};

static struct kernel *kernels[1024];
static _Atomic(struct tally *) tallies;
static _Thread_local struct tally *own;
static _Atomic uint64_t next_address = 1ull << 44;
static uint64_t first_graph[3];
static _Atomic int graphs;
static uint64_t reading, quick_reading; /* nanoseconds that reading a clock takes */
static int devices = 1;

static uint64_t clock_of(clockid_t clock) {
    struct timespec time;
    clock_gettime(clock, &time);
    return (uint64_t)time.tv_sec * 1000000000u + (uint64_t)time.tv_nsec;
}

static uint64_t now(void) { return clock_of(CLOCK_THREAD_CPUTIME_ID); }

static uint64_t quick_now(void) { return clock_of(CLOCK_MONOTONIC); }

static uint64_t cost_of(uint64_t (*clock)(void)) {
    enum { READINGS = 1000 };
    uint64_t first = clock();
    for (int i = 0; i < READINGS; i++) clock();
    return (clock() - first) / READINGS;
}

static void know_thread(void) {
    if (own) return;
    own = calloc(1, sizeof *own);
    own->next = atomic_load(&tallies);
    while (!atomic_compare_exchange_weak(&tallies, &own->next, own)) {}
}

static uint64_t begin(void) {
    know_thread();
    return now();
}

static void end(const uint64_t *start) {
    own->nanoseconds += now() - *start + reading;
    own->calls++;
}

static uint64_t quick_begin(void) {
    know_thread();
    return quick_now();
}

static void quick_end(const uint64_t *start) {
    uint64_t taken = quick_now() - *start + quick_reading;
    if (taken < INTERRUPTED) own->nanoseconds += taken;
    own->calls++;
}

#define TIMED_QUICKLY __attribute__((cleanup(quick_end))) uint64_t started = quick_begin()
#define TIMED __attribute__((cleanup(end))) uint64_t started = begin()

/* Nanoseconds in this library, calls, kernel nodes, and bytes of their arguments, over all threads so far. */
void null_hip_tally(uint64_t sums[4]) {
    memset(sums, 0, 4 * sizeof *sums);
    for (struct tally *tally = atomic_load(&tallies); tally; tally = tally->next) {
        sums[0] += tally->nanoseconds;
        sums[1] += tally->calls;
        sums[2] += tally->nodes;
        sums[3] += tally->argument_bytes;
    }
}

/* When the first graph became executable: nanoseconds of CLOCK_MONOTONIC, of this process's processor time, and of that
 * inside this library. */
void null_hip_first_graph(uint64_t moments[3]) { memcpy(moments, first_graph, sizeof first_graph); }

/* The machine */

static struct kernel **slot_of(const char *symbol) {
    uint32_t hash = 2166136261u;
    for (; *symbol; symbol++) hash = (hash ^ (uint8_t)*symbol) * 16777619u;
    return &kernels[hash % (sizeof kernels / sizeof *kernels)];
}

static void read_kernels(const char *path) {
    FILE *file = fopen(path, "r");
    if (!file) return;
    char line[4096];
    while (fgets(line, sizeof line, file)) {
        char *rest, *word = strtok_r(line, " \n", &rest);
        if (!word) continue;
        struct kernel *kernel = calloc(1, sizeof *kernel);
        kernel->symbol = strdup(word);
        while ((word = strtok_r(NULL, " \n", &rest)) && kernel->count < MAX_ARGUMENTS)
            kernel->bytes += kernel->sizes[kernel->count++] = (uint8_t)atoi(word);
        struct kernel **slot = slot_of(kernel->symbol);
        kernel->next = *slot;
        *slot = kernel;
    }
    fclose(file);
}

hipError_t hipInit(unsigned flags) {
    reading = cost_of(now);
    quick_reading = cost_of(quick_now);
    TIMED;
    const char *count = getenv("NULL_HIP_DEVICES"), *path = getenv("NULL_HIP_KERNELS");
    if (count) devices = atoi(count);
    if (path) read_kernels(path);
    return flags ? hipErrorInvalidValue : hipSuccess;
}

hipError_t hipGetDeviceCount(int *count) {
    TIMED;
    *count = devices;
    return hipSuccess;
}

hipError_t hipGetDevicePropertiesR0600(hipDeviceProp_tR0600 *properties, int ordinal) {
    TIMED;
    memset(properties, 0, sizeof *properties);
    strcpy(properties->name, "AMD Instinct MI300X");
    strcpy(properties->gcnArchName, "gfx942:sramecc+:xnack-");
    properties->totalGlobalMem = DEVICE_MEMORY;
    properties->multiProcessorCount = 304;
    properties->warpSize = 64;
    properties->sharedMemPerBlock = 64 << 10;
    return ordinal < devices ? hipSuccess : hipErrorInvalidDevice;
}

hipError_t hipSetDevice(int ordinal) {
    TIMED;
    return ordinal < devices ? hipSuccess : hipErrorInvalidDevice;
}

hipError_t hipRuntimeGetVersion(int *version) {
    TIMED;
    *version = 70200000;
    return hipSuccess;
}

hipError_t hipMemGetInfo(size_t *free_bytes, size_t *total) {
    TIMED;
    *free_bytes = *total = DEVICE_MEMORY;
    return hipSuccess;
}

hipError_t hipDeviceCanAccessPeer(int *can, int ordinal, int peer) {
    TIMED;
    *can = ordinal != peer;
    return hipSuccess;
}

hipError_t hipDeviceEnablePeerAccess(int peer, unsigned flags) {
    TIMED;
    return peer < devices && !flags ? hipSuccess : hipErrorInvalidValue;
}

const char *hipGetErrorName(hipError_t code) { return code ? "hipErrorOfTheNullDriver" : "hipSuccess"; }

/* Streams, memory, modules */

static hipError_t make(void **handle, size_t size) {
    *handle = calloc(1, size);
    return *handle ? hipSuccess : hipErrorOutOfMemory;
}

hipError_t hipStreamCreateWithFlags(hipStream_t *stream, unsigned flags) {
    TIMED;
    return make((void **)stream, 8 + 0 * flags);
}

hipError_t hipStreamDestroy(hipStream_t stream) {
    TIMED;
    free(stream);
    return hipSuccess;
}

hipError_t hipStreamSynchronize(hipStream_t stream) {
    TIMED;
    return stream ? hipSuccess : hipErrorInvalidHandle;
}

hipError_t hipExtMallocWithFlags(void **address, size_t size, unsigned flags) {
    TIMED;
    *address = (void *)(uintptr_t)atomic_fetch_add(&next_address, (size + (4u << 20)) & ~((2ull << 20) - 1));
    return flags == hipDeviceMallocDefault || flags == hipDeviceMallocUncached ? hipSuccess : hipErrorInvalidValue;
}

hipError_t hipFree(void *address) {
    TIMED;
    return address ? hipSuccess : hipErrorInvalidValue;
}

hipError_t hipHostMalloc(void **address, size_t size, unsigned flags) {
    TIMED;
    return make(address, size + 0 * flags);
}

hipError_t hipHostFree(void *address) {
    TIMED;
    free(address);
    return hipSuccess;
}

hipError_t hipMemsetAsync(void *address, int value, size_t size, hipStream_t stream) {
    TIMED;
    return address && stream && (value || size) ? hipSuccess : hipErrorInvalidValue;
}

hipError_t hipModuleLoadData(hipModule_t *module, const void *image) {
    TIMED;
    return image ? make((void **)module, 8) : hipErrorInvalidImage;
}

hipError_t hipModuleUnload(hipModule_t module) {
    TIMED;
    free(module);
    return hipSuccess;
}

hipError_t hipModuleGetFunction(hipFunction_t *function, hipModule_t module, const char *symbol) {
    TIMED;
    for (struct kernel *kernel = *slot_of(symbol); kernel && module; kernel = kernel->next) {
        if (strcmp(kernel->symbol, symbol) == 0) {
            *function = (hipFunction_t)kernel;
            return hipSuccess;
        }
    }
    return hipErrorNotFound;
}

hipError_t hipModuleOccupancyMaxActiveBlocksPerMultiprocessor(int *blocks, hipFunction_t function, int threads,
                                                              size_t shared_bytes) {
    TIMED;
    *blocks = 1;
    return function && threads > 0 && shared_bytes <= 65536 ? hipSuccess : hipErrorInvalidValue;
}

/* Graphs */

static void *take(struct graph *graph, size_t size) {
    size = (size + 15) & ~(size_t)15;
    if (!graph->blocks || graph->blocks->used + size > BLOCK_BYTES) {
        struct block *block = malloc(sizeof *block + BLOCK_BYTES);
        if (!block) return NULL;
        block->next = graph->blocks;
        block->used = 0;
        graph->blocks = block;
    }
    void *taken = graph->blocks->bytes + graph->blocks->used;
    graph->blocks->used += size;
    return taken;
}

hipError_t hipGraphCreate(hipGraph_t *graph, unsigned flags) {
    TIMED;
    return flags ? hipErrorInvalidValue : make((void **)graph, sizeof(struct graph));
}

hipError_t hipGraphAddKernelNode(hipGraphNode_t *out, hipGraph_t graph, const hipGraphNode_t *before, size_t count,
                                 const hipKernelNodeParams *params) {
    TIMED_QUICKLY;
    const struct kernel *kernel = params->func;
    if (count > 1 || !kernel || params->extra) return hipErrorInvalidValue;
    struct node *node = take((struct graph *)graph, sizeof *node + kernel->bytes);
    if (!node) return hipErrorOutOfMemory;
    *node = (struct node){.before = count ? (struct node *)before[0] : NULL,
                          .kernel = kernel,
                          .grid = params->gridDim,
                          .block = params->blockDim,
                          .shared_bytes = params->sharedMemBytes};
    uint8_t *place = node->arguments;
    for (uint32_t i = 0; i < kernel->count; place += kernel->sizes[i++])
        memcpy(place, params->kernelParams[i], kernel->sizes[i]);
    own->nodes++;
    own->argument_bytes += kernel->bytes;
    *out = (hipGraphNode_t)node;
    return hipSuccess;
}

hipError_t hipGraphAddMemcpyNode1D(hipGraphNode_t *out, hipGraph_t graph, const hipGraphNode_t *before, size_t count,
                                   void *destination, const void *source, size_t size, hipMemcpyKind kind) {
    TIMED;
    struct node *node = take((struct graph *)graph, sizeof *node);
    if (!node) return hipErrorOutOfMemory;
    *node = (struct node){.before = count ? (struct node *)before[0] : NULL};
    *out = (hipGraphNode_t)node;
    return destination && source && size && kind == hipMemcpyHostToDevice ? hipSuccess : hipErrorInvalidValue;
}

hipError_t hipGraphInstantiateWithFlags(hipGraphExec_t *executable, hipGraph_t graph, unsigned long long flags) {
    TIMED;
    if (atomic_fetch_add(&graphs, 1) == 0) {
        uint64_t sums[4];
        null_hip_tally(sums);
        first_graph[0] = clock_of(CLOCK_MONOTONIC);
        first_graph[1] = clock_of(CLOCK_PROCESS_CPUTIME_ID);
        first_graph[2] = sums[0];
    }
    return graph && !flags ? make((void **)executable, 8) : hipErrorInvalidValue;
}

hipError_t hipGraphUpload(hipGraphExec_t executable, hipStream_t stream) {
    TIMED;
    return executable && stream ? hipSuccess : hipErrorInvalidValue;
}

hipError_t hipGraphDestroy(hipGraph_t graph) {
    TIMED;
    for (struct block *block = ((struct graph *)graph)->blocks, *next; block; block = next) {
        next = block->next;
        free(block);
    }
    free(graph);
    return hipSuccess;
}

hipError_t hipGraphExecDestroy(hipGraphExec_t executable) {
    TIMED;
    free(executable);
    return hipSuccess;
}
