/* The weight loader: threads read extents of files straight into place, or through pinned slots to devices.
 *
 * A lane is one destination with its readers. A reader owns its slots and its stream: it fills a slot, starts the copy,
 * and goes on with the next slot, which it reuses once the event of that slot's copy has happened. So reading, hashing
 * and copying overlap, and readers share nothing but their lane's queue.
 */
#define _GNU_SOURCE
#include "paiton_host.h"
#include "sha256.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define DIRECT_ALIGNMENT 4096ull /* of addresses, offsets and sizes; no block device wants more */
#define POLL_NANOSECONDS 20000   /* a slot's copy takes some 100 us */

struct lane {
    const struct paiton_lane *config;
    pthread_mutex_t lock; /* of the next two */
    uint64_t extent;      /* the first that is not handed out completely */
    uint64_t taken;       /* bytes of it */
};

struct reader {
    struct job *job;
    struct lane *lane;
    pthread_t thread;
    uint64_t stream;
    const uint64_t *events; /* [slots] */
    uint8_t *ring;          /* [slots][slot_bytes]; null: the lane is host memory */
    uint32_t slot;          /* to be used next */
    bool *busy;             /* [slots]: its event was recorded and is not known to have happened */
    uint64_t bytes;
    uint64_t direct_bytes;
};

struct job {
    const struct paiton_load *load;
    struct paiton_load_result *result;
    struct lane *lanes;
    struct reader *readers;
    bool *busy;           /* of all readers */
    atomic_bool *refused; /* [files]: the file system refused a direct read */
    uint8_t **maps;       /* [files]: where it is mapped, to be copied to host memory; null: it is read */
    uint64_t *map_bytes;  /* [files] */
    atomic_bool failed;
    pthread_mutex_t lock; /* of what `result` says about the failure */
    int status;
};

/* Bytes that a reader has taken from its lane's queue. */
struct span {
    const struct paiton_extent *extent;
    uint64_t start; /* within the extent */
    uint64_t size;
};

/* The first failure is reported; the others are mostly its consequences. Returns false, for callers to return. */
static bool fail(struct job *job, int status, enum paiton_load_operation operation, int code, uint32_t file,
                 uint64_t offset, const uint8_t *digest) {
    pthread_mutex_lock(&job->lock);
    if (!atomic_load(&job->failed)) {
        job->status = status;
        job->result->operation = operation;
        job->result->code = code;
        job->result->file = file;
        job->result->offset = offset;
        if (digest) memcpy(job->result->sha256, digest, sizeof job->result->sha256);
        atomic_store(&job->failed, true);
    }
    pthread_mutex_unlock(&job->lock);
    return false;
}

static bool fail_driver(struct job *job, enum paiton_load_operation operation, int code, const struct span *span) {
    const struct paiton_extent *extent = span->extent;
    return fail(job, -EIO, operation, code, extent->file, extent->offset + span->start, NULL);
}

/* Hands out a slot's worth, or a whole extent if it has a digest, which must be computed from its start. */
static bool take(struct reader *self, struct span *span) {
    struct lane *lane = self->lane;
    const struct paiton_load *load = self->job->load;
    pthread_mutex_lock(&lane->lock);
    bool left = lane->extent < lane->config->extent_first + lane->config->extent_count;
    if (left) {
        span->extent = &load->extents[lane->extent];
        span->start = lane->taken;
        span->size = span->extent->size - lane->taken;
        if (!span->extent->sha256 && span->size > load->slot_bytes) span->size = load->slot_bytes;
        lane->taken += span->size;
        if (lane->taken == span->extent->size) {
            lane->extent++;
            lane->taken = 0;
        }
    }
    pthread_mutex_unlock(&lane->lock);
    return left;
}

/* A file system may refuse direct reads, or all into memory that a driver mapped in its own way. */
static bool refuses_direct(int error) { return error == EINVAL || error == EOPNOTSUPP || error == EFAULT; }

/* Reads `size` bytes at `offset`, around the page cache where that is wanted and possible. */
static bool read_bytes(struct reader *self, uint32_t file, uint64_t offset, uint8_t *memory, uint64_t size) {
    struct job *job = self->job;
    const struct paiton_source *source = &job->load->files[file];
    bool ahead = !source->cached;
    while (size) {
        bool direct = source->direct_fd >= 0 && size >= DIRECT_ALIGNMENT && !atomic_load(&job->refused[file]) &&
                      (offset | (uintptr_t)memory) % DIRECT_ALIGNMENT == 0;
        uint64_t ask = direct ? size - size % DIRECT_ALIGNMENT : size;
        if (!direct && ahead) {
            /* A read brings pages in by 128 KiB; asking for all of them first keeps a disk busy. Advice may fail. */
            (void)posix_fadvise(source->fd, (off_t)offset, (off_t)size, POSIX_FADV_WILLNEED);
            ahead = false;
        }
        ssize_t got = pread(direct ? source->direct_fd : source->fd, memory, ask, (off_t)offset);
        if (got > 0) {
            if (direct) self->direct_bytes += (uint64_t)got;
            memory += got;
            offset += (uint64_t)got;
            size -= (uint64_t)got;
        } else if (got == 0) {
            return fail(job, -ENODATA, PAITON_LOAD_READ, 0, file, offset, NULL);
        } else if (direct && refuses_direct(errno)) {
            atomic_store(&job->refused[file], true);
        } else if (errno != EINTR) {
            return fail(job, -errno, PAITON_LOAD_READ, errno, file, offset, NULL);
        }
    }
    return true;
}

static int set_device(const struct paiton_load *load, uint64_t device) {
    const struct paiton_copy_functions *driver = load->driver;
    return driver->backend == PAITON_CUDA ? driver->set_device.cuda((void *)(uintptr_t)device)
                                          : driver->set_device.hip((int)device);
}

static int start_copy(const struct paiton_load *load, uint64_t address, uint8_t *memory, uint64_t size,
                      uint64_t stream) {
    const struct paiton_copy_functions *driver = load->driver;
    void *handle = (void *)(uintptr_t)stream;
    return driver->backend == PAITON_CUDA ? driver->copy.cuda(address, memory, size, handle)
                                          : driver->copy.hip((void *)(uintptr_t)address, memory, size, handle);
}

static bool unwanted(struct job *job) {
    if (atomic_load(&job->failed)) return true;
    if (!atomic_load(job->load->stop)) return false;
    fail(job, -ECANCELED, PAITON_LOAD_START, 0, 0, 0, NULL);
    return true;
}

/* Returns the memory of the next slot once its last copy has left it; null if there is no point in going on. */
static uint8_t *free_slot(struct reader *self, const struct span *span) {
    const struct paiton_copy_functions *driver = self->job->load->driver;
    const struct timespec pause = {0, POLL_NANOSECONDS};
    void *event = (void *)(uintptr_t)self->events[self->slot];
    /* Asking and sleeping, where the driver's own wait would spin, could not be stopped, and may hold its locks. */
    while (self->busy[self->slot]) {
        int code = driver->query_event(event);
        if (code == 0) {
            self->busy[self->slot] = false;
        } else if (code != PAITON_NOT_READY) {
            fail_driver(self->job, PAITON_LOAD_WAIT, code, span);
            return NULL;
        } else if (unwanted(self->job)) {
            return NULL;
        } else {
            nanosleep(&pause, NULL);
        }
    }
    return self->ring + self->slot * self->job->load->slot_bytes;
}

/* Starts the copy of a filled slot, and goes on to the next. */
static bool send_slot(struct reader *self, const struct span *span, uint64_t address, uint64_t size) {
    const struct paiton_load *load = self->job->load;
    uint8_t *memory = self->ring + self->slot * load->slot_bytes;
    int code = start_copy(load, address, memory, size, self->stream);
    if (code) return fail_driver(self->job, PAITON_LOAD_COPY, code, span);
    code = load->driver->record_event((void *)(uintptr_t)self->events[self->slot], (void *)(uintptr_t)self->stream);
    if (code) return fail_driver(self->job, PAITON_LOAD_RECORD, code, span);
    self->busy[self->slot] = true;
    self->slot = (self->slot + 1) % load->slots;
    return true;
}

static bool load_span(struct reader *self, const struct span *span) {
    const struct paiton_load *load = self->job->load;
    const struct paiton_extent *extent = span->extent;
    struct paiton_sha256 hash;
    if (extent->sha256) paiton_sha256_begin(&hash, 0);
    for (uint64_t done = 0; done < span->size;) {
        uint64_t at = span->start + done, rest = span->size - done;
        uint64_t size = rest < load->slot_bytes ? rest : load->slot_bytes;
        if (unwanted(self->job)) return false;
        struct span piece = {extent, at, size};
        uint8_t *memory = self->ring ? free_slot(self, &piece) : (uint8_t *)(uintptr_t)(extent->address + at);
        if (!memory) return false;
        const uint8_t *map = self->job->maps[extent->file];
        if ((!map || paiton_copy_mapped(map + extent->offset + at, memory, size)) &&
            !read_bytes(self, extent->file, extent->offset + at, memory, size))
            return false;
        if (extent->sha256) paiton_sha256_update(&hash, memory, size);
        if (self->ring && !send_slot(self, &piece, extent->address + at, size)) return false;
        self->bytes += size;
        done += size;
    }
    if (!extent->sha256) return true;
    uint8_t digest[PAITON_SHA256_BYTES];
    paiton_sha256_end(&hash, digest);
    return memcmp(digest, extent->sha256, sizeof digest) == 0 ||
           fail(self->job, -EBADMSG, PAITON_LOAD_DIGEST, 0, extent->file, extent->offset, digest);
}

static void *reader_main(void *argument) {
    struct reader *self = argument;
    const struct paiton_load *load = self->job->load;
    struct span span = {&load->extents[self->lane->config->extent_first], 0, 0};
    if (self->ring) {
        int code = set_device(load, self->lane->config->device);
        if (code) {
            fail_driver(self->job, PAITON_LOAD_SET_DEVICE, code, &span);
            return NULL;
        }
    }
    while (!unwanted(self->job) && take(self, &span) && load_span(self, &span)) continue;
    if (self->ring) {
        /* Whatever happened, no copy may still read the ring, which the caller frees next. */
        int code = load->driver->synchronise_stream((void *)(uintptr_t)self->stream);
        if (code) fail_driver(self->job, PAITON_LOAD_WAIT, code, &span);
    }
    return NULL;
}

/* Maps the files that the page cache holds, if they go to host memory: then copying takes less than reading. */
static void map_cached(struct job *job) {
    const struct paiton_load *load = job->load;
    if (load->driver) return;
    for (uint64_t i = 0; i < load->extent_count; i++) {
        const struct paiton_extent *extent = &load->extents[i];
        uint64_t end = extent->offset + extent->size;
        const struct paiton_source *source = &load->files[extent->file];
        if (source->cached && source->direct_fd < 0 && end > job->map_bytes[extent->file])
            job->map_bytes[extent->file] = end;
    }
    for (uint32_t file = 0; file < load->file_count; file++) {
        void *map = NULL;
        if (job->map_bytes[file] && !paiton_map_file(load->files[file].fd, job->map_bytes[file], &map))
            job->maps[file] = map;
    }
}

static void unmap(struct job *job) {
    for (uint32_t file = 0; job->maps && file < job->load->file_count; file++)
        if (job->maps[file]) paiton_unmap(job->maps[file], job->map_bytes[file]);
}

static bool prepare(struct job *job, uint32_t readers) {
    const struct paiton_load *load = job->load;
    job->lanes = calloc(load->lane_count, sizeof *job->lanes);
    job->readers = calloc(readers, sizeof *job->readers);
    job->busy = calloc((size_t)readers * load->slots, sizeof *job->busy);
    job->refused = calloc(load->file_count, sizeof *job->refused);
    job->maps = calloc(load->file_count, sizeof *job->maps);
    job->map_bytes = calloc(load->file_count, sizeof *job->map_bytes);
    if (!job->lanes || !job->readers || !job->busy || !job->refused || !job->maps || !job->map_bytes) return false;
    map_cached(job);
    struct reader *reader = job->readers;
    bool *busy = job->busy;
    for (uint32_t i = 0; i < load->lane_count; i++) {
        struct lane *lane = &job->lanes[i];
        const struct paiton_lane *config = lane->config = &load->lanes[i];
        lane->extent = config->extent_first;
        pthread_mutex_init(&lane->lock, NULL);
        for (uint64_t n = 0; n < config->readers; n++, reader++, busy += load->slots) {
            reader->job = job;
            reader->lane = lane;
            reader->busy = busy;
            if (!load->driver) continue;
            reader->stream = config->streams[n];
            reader->events = config->events + n * load->slots;
            reader->ring = config->ring + n * load->slots * load->slot_bytes;
        }
    }
    return true;
}

/* Starts the readers with signals blocked: they belong to the interpreter's thread. Returns how many started. */
static uint32_t start(struct job *job, uint32_t readers) {
    uint32_t started = 0;
    sigset_t all, old;
    sigfillset(&all);
    int error = pthread_sigmask(SIG_SETMASK, &all, &old);
    if (!error) {
        while (!error && started < readers) {
            struct reader *reader = &job->readers[started];
            error = pthread_create(&reader->thread, NULL, reader_main, reader);
            if (!error) started++;
        }
        int restored = pthread_sigmask(SIG_SETMASK, &old, NULL);
        error = error ? error : restored;
    }
    if (error) fail(job, -error, PAITON_LOAD_START, error, 0, 0, NULL);
    return started;
}

static int finish(struct job *job, uint32_t started) {
    uint64_t wanted = 0;
    for (uint64_t i = 0; i < job->load->extent_count; i++) wanted += job->load->extents[i].size;
    for (uint32_t i = 0; i < started; i++) {
        pthread_join(job->readers[i].thread, NULL);
        job->result->bytes += job->readers[i].bytes;
        job->result->direct_bytes += job->readers[i].direct_bytes;
    }
    /* Every reader has ended: an extent that no lane lists would go unnoticed otherwise. */
    return job->status == 0 && job->result->bytes != wanted ? -EINVAL : job->status;
}

int paiton_load(const struct paiton_load *load, struct paiton_load_result *result) {
    struct job job = {.load = load, .result = result};
    uint32_t readers = 0;
    memset(result, 0, sizeof *result);
    if (!load->slot_bytes || !load->slots) return -EINVAL;
    for (uint32_t i = 0; i < load->lane_count; i++) readers += load->lanes[i].readers;
    pthread_mutex_init(&job.lock, NULL);
    int status = -ENOMEM;
    if (prepare(&job, readers)) {
        status = finish(&job, start(&job, readers));
        for (uint32_t i = 0; i < load->lane_count; i++) pthread_mutex_destroy(&job.lanes[i].lock);
    }
    pthread_mutex_destroy(&job.lock);
    unmap(&job);
    free(job.map_bytes);
    free(job.maps);
    free(job.refused);
    free(job.busy);
    free(job.readers);
    free(job.lanes);
    return status;
}
