/* A driver library with the functions of HIP that a load uses. Its devices are memory of this process, and each of its
 * streams a thread that takes its time: copies read their source late, in two parts, and streams overtake each other.
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { FAULT = 719, INVALID = 1, NOT_READY = 600 };

struct operation {
    struct operation *next;
    void *destination; /* null: records `event` */
    const void *source;
    size_t size;
    struct event *event;
};

struct stream {
    pthread_t thread;
    pthread_mutex_t lock;
    pthread_cond_t changed;
    struct operation *first, **last;
    int idle, ending, device;
    uint32_t random;
    _Atomic int fault;
};

struct event {
    _Atomic uint64_t recorded, happened;
    struct stream *stream; /* of the last record */
};

/* What tests choose and see. */
_Atomic int slow_held;             /* no operation happens while set */
_Atomic int slow_refuse_copy = -1; /* copies until one is refused; counts down */
_Atomic int slow_break_copy = -1;  /* copies until one crashes on the device; counts down */
_Atomic int slow_refuse_record = -1;
_Atomic int slow_copies, slow_objects, slow_errors;
_Atomic uint64_t slow_pinned, slow_pinned_most;
static _Atomic int pending; /* operations of all streams */
static _Atomic uint32_t seed;
static _Thread_local int current = -1;

static int counted_down(_Atomic int *counter) { return atomic_load(counter) >= 0 && atomic_fetch_sub(counter, 1) == 0; }

static void pause_microseconds(uint32_t microseconds) {
    struct timespec time = {0, (long)microseconds * 1000};
    nanosleep(&time, NULL);
}

static void happen(struct stream *stream, struct operation *operation) {
    while (atomic_load(&slow_held)) pause_microseconds(100);
    if (operation->destination && !atomic_load(&stream->fault)) {
        stream->random = stream->random * 1664525 + 1013904223;
        size_t half = operation->size / 2;
        pause_microseconds(stream->random >> 22); /* up to a millisecond */
        memcpy(operation->destination, operation->source, half);
        pause_microseconds(stream->random >> 22);
        memcpy((char *)operation->destination + half, (const char *)operation->source + half, operation->size - half);
        if (counted_down(&slow_break_copy)) atomic_store(&stream->fault, FAULT);
    } else if (!operation->destination) {
        atomic_fetch_add(&operation->event->happened, 1);
    }
    atomic_fetch_sub(&pending, 1);
}

static void *run(void *argument) {
    struct stream *stream = argument;
    pthread_mutex_lock(&stream->lock);
    for (;;) {
        while (!stream->first && !stream->ending) pthread_cond_wait(&stream->changed, &stream->lock);
        struct operation *operation = stream->first;
        if (!operation) break;
        stream->first = operation->next;
        if (!stream->first) stream->last = &stream->first;
        stream->idle = 0;
        pthread_mutex_unlock(&stream->lock);
        happen(stream, operation);
        free(operation);
        pthread_mutex_lock(&stream->lock);
        stream->idle = !stream->first;
        pthread_cond_broadcast(&stream->changed);
    }
    pthread_mutex_unlock(&stream->lock);
    return NULL;
}

static int append(struct stream *stream, struct operation operation) {
    if (stream->device != current) return INVALID;
    struct operation *made = malloc(sizeof *made);
    *made = operation;
    made->next = NULL;
    atomic_fetch_add(&pending, 1);
    pthread_mutex_lock(&stream->lock);
    *stream->last = made;
    stream->last = &made->next;
    stream->idle = 0;
    pthread_cond_broadcast(&stream->changed);
    pthread_mutex_unlock(&stream->lock);
    return 0;
}

int hipSetDevice(int ordinal) {
    if (ordinal < 0 || ordinal > 7) return 101;
    current = ordinal;
    return 0;
}

int hipStreamCreateWithFlags(struct stream **out, unsigned flags) {
    struct stream *stream = calloc(1, sizeof *stream);
    pthread_mutex_init(&stream->lock, NULL);
    pthread_cond_init(&stream->changed, NULL);
    stream->last = &stream->first;
    stream->idle = 1;
    stream->device = current;
    stream->random = atomic_fetch_add(&seed, 0x9e3779b9) + flags;
    atomic_fetch_add(&slow_objects, 1);
    *out = stream;
    return pthread_create(&stream->thread, NULL, run, stream);
}

int hipStreamSynchronize(struct stream *stream) {
    pthread_mutex_lock(&stream->lock);
    while (!stream->idle) pthread_cond_wait(&stream->changed, &stream->lock);
    pthread_mutex_unlock(&stream->lock);
    return atomic_load(&stream->fault);
}

int hipStreamDestroy(struct stream *stream) {
    pthread_mutex_lock(&stream->lock);
    stream->ending = 1;
    pthread_cond_broadcast(&stream->changed);
    pthread_mutex_unlock(&stream->lock);
    pthread_join(stream->thread, NULL);
    int fault = atomic_load(&stream->fault);
    free(stream);
    atomic_fetch_sub(&slow_objects, 1);
    return fault;
}

int hipEventCreateWithFlags(struct event **out, unsigned flags) {
    (void)flags;
    *out = calloc(1, sizeof **out);
    atomic_fetch_add(&slow_objects, 1);
    return 0;
}

int hipEventDestroy(struct event *event) {
    free(event);
    atomic_fetch_sub(&slow_objects, 1);
    return 0;
}

int hipEventRecord(struct event *event, struct stream *stream) {
    if (counted_down(&slow_refuse_record)) return INVALID;
    atomic_fetch_add(&event->recorded, 1);
    event->stream = stream;
    return append(stream, (struct operation){.event = event});
}

int hipEventQuery(struct event *event) {
    int fault = event->stream ? atomic_load(&event->stream->fault) : 0;
    if (fault) return fault;
    return atomic_load(&event->happened) == atomic_load(&event->recorded) ? 0 : NOT_READY;
}

int hipMemcpyHtoDAsync(void *destination, void *source, size_t size, struct stream *stream) {
    atomic_fetch_add(&slow_copies, 1);
    if (counted_down(&slow_refuse_copy)) return INVALID;
    return append(stream, (struct operation){.destination = destination, .source = source, .size = size});
}

/* Freed memory stays readable but no longer holds what was there, and freeing it under a copy is an error. */
int hipHostMalloc(void **out, size_t size, unsigned flags) {
    (void)flags;
    if (size > (1u << 30)) return 2;
    size_t *memory = aligned_alloc(4096, size + 4096);
    *memory = size;
    *out = (char *)memory + 4096;
    uint64_t now = atomic_fetch_add(&slow_pinned, size) + size;
    if (now > atomic_load(&slow_pinned_most)) atomic_store(&slow_pinned_most, now);
    return 0;
}

int hipHostFree(void *memory) {
    size_t size = *(size_t *)((char *)memory - 4096);
    if (atomic_load(&pending)) atomic_fetch_add(&slow_errors, 1);
    memset(memory, 0xee, size);
    free((char *)memory - 4096);
    atomic_fetch_sub(&slow_pinned, size);
    return 0;
}

const char *hipGetErrorName(int code) { return code == FAULT ? "hipErrorLaunchFailure" : "hipErrorInvalidValue"; }

int slow_unused(void) { return INVALID; }
