/* Plans on devices: unrolled and relocated once at boot, then launched one by one or added to a graph as nodes.
 *
 * The driver library stays Python's business: it hands over the addresses of the two functions that are called for
 * every launch. Both vendors' have the same parameters; only the struct that describes a graph's node differs. */
#include "program.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

struct device_call {
    void *function;
    void **arguments; /* one pointer per argument, as drivers want them */
    uint32_t grid[3];
    uint32_t threads;
    uint32_t shared_bytes;
};

struct paiton_device_program {
    uint64_t launches;
    struct device_call *calls;
    uint8_t *args;
    void **pointers; /* of all calls, one after the other */
};

/* hipKernelNodeParams of HIP 6 and 7. */
struct hip_node {
    uint32_t block[3];
    void **extra;
    void *function;
    uint32_t grid[3];
    void **arguments;
    uint32_t shared_bytes;
};

/* CUDA_KERNEL_NODE_PARAMS_v2 of CUDA 12. */
struct cuda_node {
    void *function;
    uint32_t grid[3];
    uint32_t block[3];
    uint32_t shared_bytes;
    void **arguments;
    void **extra;
    void *kernel;
    void *context;
};

/* Every argument starts inside its launch's args, every function exists; counts the argument pointers once unrolled. */
static int count_pointers(const struct paiton_device_plan *device, const uint64_t *functions, uint64_t *pointers) {
    const struct paiton_plan *plan = &device->plan;
    for (uint64_t i = 0; i < plan->launch_count; i++) {
        const struct paiton_device_launch *launch = &device->launches[i];
        if (launch->argument_first > device->offset_count ||
            launch->argument_count > device->offset_count - launch->argument_first ||
            launch->function >= device->function_count || functions[launch->function] == 0)
            return -EINVAL;
        for (uint32_t a = 0; a < launch->argument_count; a++)
            if (device->offsets[launch->argument_first + a] >= plan->launches[i].args_size) return -EINVAL;
    }
    *pointers = 0;
    for (uint64_t s = 0; s < plan->segment_count; s++) {
        const struct paiton_segment *segment = &plan->segments[s];
        for (uint32_t i = 0; i < segment->launch_count; i++)
            *pointers += (uint64_t)segment->repeat * device->launches[segment->launch_first + i].argument_count;
    }
    return 0;
}

static void unroll(const struct paiton_device_plan *device, const uint64_t *functions, const uint64_t *bases,
                   uint32_t rank, struct paiton_device_program *program) {
    const struct paiton_plan *plan = &device->plan;
    struct device_call *call = program->calls;
    uint8_t *args = program->args;
    void **pointers = program->pointers;
    for (uint64_t s = 0; s < plan->segment_count; s++) {
        const struct paiton_segment *segment = &plan->segments[s];
        for (uint32_t repeat = 0; repeat < segment->repeat; repeat++) {
            for (uint32_t i = 0; i < segment->launch_count; i++) {
                const struct paiton_launch *launch = &plan->launches[segment->launch_first + i];
                const struct paiton_device_launch *own = &device->launches[segment->launch_first + i];
                if ((launch->flags & PAITON_RANK0_ONLY) && rank != 0) continue;
                if (launch->args_size) memcpy(args, plan->args + launch->args_offset, launch->args_size);
                for (uint32_t r = 0; r < launch->relocation_count; r++)
                    paiton_relocate(args, &plan->relocations[launch->relocation_first + r], bases, rank, repeat);
                for (uint32_t a = 0; a < own->argument_count; a++)
                    pointers[a] = args + device->offsets[own->argument_first + a];
                call->function = (void *)(uintptr_t)functions[own->function];
                call->arguments = pointers;
                memcpy(call->grid, own->grid, sizeof call->grid);
                call->threads = own->threads;
                call->shared_bytes = own->shared_bytes;
                pointers += own->argument_count;
                args += launch->args_size;
                call++;
            }
        }
    }
    program->launches = (uint64_t)(call - program->calls);
}

int paiton_device_program_create(const struct paiton_device_plan *plan, const uint64_t *functions,
                                 const uint64_t *bases, uint32_t ranks, uint32_t rank,
                                 struct paiton_device_program **program) {
    *program = NULL;
    if (ranks == 0 || ranks > PAITON_MAX_RANKS || rank >= ranks) return -EINVAL;
    uint64_t count, args_bytes, pointers;
    int error = paiton_measure(&plan->plan, ranks, &count, &args_bytes);
    if (!error) error = count_pointers(plan, functions, &pointers);
    if (error) return error;
    struct paiton_device_program *made = calloc(1, sizeof *made);
    if (!made) return -ENOMEM;
    /* One more element than needed, so that an empty plan is no special case for the allocator. */
    made->calls = malloc((count + 1) * sizeof *made->calls);
    made->args = malloc(args_bytes + 8);
    made->pointers = malloc((pointers + 1) * sizeof *made->pointers);
    if (!made->calls || !made->args || !made->pointers) {
        paiton_device_program_destroy(made);
        return -ENOMEM;
    }
    unroll(plan, functions, bases, rank, made);
    *program = made;
    return 0;
}

void paiton_device_program_destroy(struct paiton_device_program *program) {
    if (!program) return;
    free(program->calls);
    free(program->args);
    free(program->pointers);
    free(program);
}

uint64_t paiton_device_program_launches(const struct paiton_device_program *program) { return program->launches; }

int paiton_device_program_run(const struct paiton_device_program *program, paiton_launch_kernel launch, void *stream,
                              uint64_t first, uint64_t count, uint64_t *failed) {
    if (first > program->launches || count > program->launches - first) return -EINVAL;
    for (uint64_t i = first; i < first + count; i++) {
        const struct device_call *call = &program->calls[i];
        int code = launch(call->function, call->grid[0], call->grid[1], call->grid[2], call->threads, 1, 1,
                          call->shared_bytes, stream, call->arguments, NULL);
        if (code) {
            *failed = i;
            return code;
        }
    }
    return 0;
}

static int add_node(const struct device_call *call, uint32_t backend, paiton_add_kernel add, void *graph, void **node,
                    void *const *before) {
    uint64_t count = *before ? 1 : 0;
    if (backend == PAITON_CUDA) {
        struct cuda_node made = {.function = call->function,
                                 .grid = {call->grid[0], call->grid[1], call->grid[2]},
                                 .block = {call->threads, 1, 1},
                                 .shared_bytes = call->shared_bytes,
                                 .arguments = call->arguments};
        return add(node, graph, count ? before : NULL, count, &made);
    }
    struct hip_node made = {.function = call->function,
                            .grid = {call->grid[0], call->grid[1], call->grid[2]},
                            .block = {call->threads, 1, 1},
                            .shared_bytes = call->shared_bytes,
                            .arguments = call->arguments};
    return add(node, graph, count ? before : NULL, count, &made);
}

int paiton_device_program_add(const struct paiton_device_program *program, uint32_t backend, paiton_add_kernel add,
                              void *graph, void **last, uint64_t *failed) {
    for (uint64_t i = 0; i < program->launches; i++) {
        /* The driver may write the new node before it reads the old one, so they do not share memory. */
        void *before = *last, *node = NULL;
        int code = add_node(&program->calls[i], backend, add, graph, &node, &before);
        if (code) {
            *failed = i;
            return code;
        }
        *last = node;
    }
    return 0;
}
