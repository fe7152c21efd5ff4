/* How much of a file the page cache holds. */
#define _GNU_SOURCE
#include "paiton_host.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#ifndef SYS_cachestat
#define SYS_cachestat 451 /* Linux 6.5 */
#endif

/* Looking at every page of a large file takes as long as a boot may; evenly spread windows tell as much. */
#define WINDOW_BYTES (1ull << 20)
#define WINDOWS 128ull

struct range {
    uint64_t offset;
    uint64_t size;
};

struct cache_statistics { /* all in pages */
    uint64_t cached;
    uint64_t dirty;
    uint64_t writeback;
    uint64_t evicted;
    uint64_t recently_evicted;
};

/* Returns pages in the cache, or a negative errno. */
static int64_t ask_cachestat(int fd, const struct range *window) {
    struct cache_statistics found;
    return syscall(SYS_cachestat, fd, window, &found, 0u) ? -errno : (int64_t)found.cached;
}

/* The same from a mapping that lives for the question only: older kernels. They call every page of a file cached that
 * the caller could not write. */
static int64_t ask_mincore(int fd, const struct range *window, uint64_t page) {
    unsigned char present[WINDOW_BYTES / 4096];
    void *mapping = mmap(NULL, window->size, PROT_READ, MAP_SHARED, fd, (off_t)window->offset);
    if (mapping == MAP_FAILED) return -errno;
    int64_t answer = mincore(mapping, window->size, present) ? -errno : 0;
    uint64_t pages = (window->size + page - 1) / page;
    for (uint64_t i = 0; answer >= 0 && i < pages; i++) answer += present[i] & 1;
    munmap(mapping, window->size);
    return answer;
}

int paiton_resident(int fd, uint64_t size, uint32_t portable, uint64_t *pages, uint64_t *resident) {
    const uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE);
    uint64_t windows = (size + WINDOW_BYTES - 1) / WINDOW_BYTES, taken = windows < WINDOWS ? windows : WINDOWS;
    *pages = *resident = 0;
    for (uint64_t i = 0; i < taken; i++) {
        uint64_t offset = i * windows / taken * WINDOW_BYTES;
        struct range window = {offset, size - offset < WINDOW_BYTES ? size - offset : WINDOW_BYTES};
        int64_t found = portable ? -ENOSYS : ask_cachestat(fd, &window);
        /* ENOSYS: an older kernel, or a sandbox. EPERM: a file that the caller could not write. */
        if (found < 0) found = ask_mincore(fd, &window, page);
        if (found < 0) return (int)found;
        *pages += (window.size + page - 1) / page;
        *resident += (uint64_t)found;
    }
    return 0;
}
