/* Mappings of blobs and arenas, and the threads that bring a blob's pages in. */
#define _GNU_SOURCE
#include "paiton_host.h"

#include <emmintrin.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/mman.h>

#ifndef MADV_POPULATE_READ
#define MADV_POPULATE_READ 22 /* Linux 5.14 */
#define MADV_POPULATE_WRITE 23
#endif

#define SLICE_BYTES (4ull << 20)
#define PAGE_BYTES 4096ull
#define LINE_BYTES 64ull
#define STREAMS 4ull /* pages that a copy writes in turn: one after the other takes a quarter longer */
#define MAX_READERS 64u

int paiton_map_file(int fd, uint64_t size, void **address) {
    *address = mmap(NULL, size, PROT_READ, MAP_SHARED, fd, 0);
    return *address == MAP_FAILED ? -errno : 0;
}

/* Pages are zero and cost nothing until touched. */
int paiton_map_anonymous(uint64_t size, void **address) {
    *address = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    return *address == MAP_FAILED ? -errno : 0;
}

int paiton_unmap(void *address, uint64_t size) { return munmap(address, size) ? -errno : 0; }

struct populate {
    int fd;
    uint8_t *base;
    uint64_t size;
    _Atomic uint64_t next; /* first byte that nobody has taken */
    _Atomic int error;
    _Atomic int32_t *stop;
};

/* Reads a byte of every page. Only for kernels without MADV_POPULATE_READ: a file that shrinks meanwhile is fatal. */
static void touch(const volatile uint8_t *start, uint64_t size) {
    for (uint64_t i = 0; i < size; i += PAGE_BYTES) (void)start[i];
}

static void *populate_slices(void *argument) {
    struct populate *job = argument;
    for (;;) {
        uint64_t start = atomic_fetch_add(&job->next, SLICE_BYTES);
        if (start >= job->size || atomic_load(&job->error)) return NULL;
        if (atomic_load(job->stop)) {
            atomic_store(&job->error, ECANCELED);
            return NULL;
        }
        uint64_t size = job->size - start < SLICE_BYTES ? job->size - start : SLICE_BYTES;
        /* Faults read ahead by 128 KiB only; asking for the slice first keeps a cold disk busy. Advice may fail. */
        (void)posix_fadvise(job->fd, (off_t)start, (off_t)size, POSIX_FADV_WILLNEED);
        if (madvise(job->base + start, size, MADV_POPULATE_READ) == 0) continue;
        if (errno == EINVAL)
            touch(job->base + start, size);
        else
            atomic_store(&job->error, errno);
    }
}

/* Faults a file mapping in with `threads` threads, the caller included. Fewer threads than asked for is no error. */
int paiton_populate(int fd, void *address, uint64_t size, uint32_t threads, _Atomic int32_t *stop) {
    struct populate job = {.fd = fd, .base = address, .size = size, .stop = stop};
    pthread_t readers[MAX_READERS];
    uint32_t started = 0;
    sigset_t all, old;
    sigfillset(&all);
    int error = pthread_sigmask(SIG_SETMASK, &all, &old);
    if (error) return -error;
    while (started + 1 < threads && started < MAX_READERS &&
           pthread_create(&readers[started], NULL, populate_slices, &job) == 0)
        started++;
    error = pthread_sigmask(SIG_SETMASK, &old, NULL);
    populate_slices(&job);
    for (uint32_t i = 0; i < started; i++) pthread_join(readers[i], NULL);
    int failed = atomic_load(&job.error);
    return failed ? -failed : -error;
}

static void copy_line(uint8_t *to, const uint8_t *from) {
    const __m128i *source = (const __m128i *)from;
    __m128i *target = (__m128i *)to;
    __m128i a = _mm_loadu_si128(source), b = _mm_loadu_si128(source + 1);
    __m128i c = _mm_loadu_si128(source + 2), d = _mm_loadu_si128(source + 3);
    _mm_stream_si128(target, a);
    _mm_stream_si128(target + 1, b);
    _mm_stream_si128(target + 2, c);
    _mm_stream_si128(target + 3, d);
}

/* Copies past the caches, which are too small for weights: so the memory that is written need not be read first. */
static void stream(uint8_t *to, const uint8_t *from, uint64_t size) {
    uint64_t head = -(uintptr_t)to % LINE_BYTES;
    if (head > size) head = size;
    memcpy(to, from, head);
    to += head, from += head, size -= head;
    for (; size >= STREAMS * PAGE_BYTES; size -= STREAMS * PAGE_BYTES) {
        for (uint64_t line = 0; line < PAGE_BYTES; line += LINE_BYTES)
            for (uint64_t page = 0; page < STREAMS; page++)
                copy_line(to + page * PAGE_BYTES + line, from + page * PAGE_BYTES + line);
        to += STREAMS * PAGE_BYTES, from += STREAMS * PAGE_BYTES;
    }
    _mm_sfence();
    memcpy(to, from, size);
}

/* Brings in the pages that hold bytes; returns 0 where the kernel says that all of them are there. */
static int bring_in(const uint8_t *bytes, uint64_t size, int advice) {
    uint8_t *page = (uint8_t *)(uintptr_t)bytes - (uintptr_t)bytes % PAGE_BYTES;
    return madvise(page, (size_t)(bytes + size - page), advice) ? -errno : 0;
}

/* Copies bytes of a file's mapping, which takes two thirds of the time of reading them. Whoever makes the file shorter
 * meanwhile ends this process, as he would end one that runs on a mapped blob. */
int paiton_copy_mapped(const void *from, void *to, uint64_t size) {
    int error = bring_in(from, size, MADV_POPULATE_READ);
    if (!error) error = bring_in(to, size, MADV_POPULATE_WRITE);
    if (!error) stream(to, from, size);
    return error;
}
