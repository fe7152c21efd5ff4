/* What every kernel needs: types, attributes, the memory functions that the compiler may call, and work splitting. */
#pragma once
#include <stddef.h>
#include <stdint.h>

#define KERNEL __attribute__((visibility("default")))
#define INLINE static inline __attribute__((always_inline))
/* Shared micro-kernels stay out of line: their body is the same for every variant. */
#define SHARED static __attribute__((noinline))
#define UNUSED __attribute__((unused))
/* For loops over registers: left as loops, their arrays would live in memory. */
#define UNROLL _Pragma("clang loop unroll(full)")

#define KV_BLOCK 16
#define MAX_EXPERTS 256

/* The compiler turns copies and fills into calls of these names, even in freestanding code. String instructions keep
 * it from recognising the loop in them and calling itself. */
__attribute__((visibility("hidden"), used)) void *memcpy(void *restrict to, const void *restrict from, size_t n)
{
    void *d = to;
    __asm__ volatile("rep movsb" : "+D"(d), "+S"(from), "+c"(n) : : "memory");
    return to;
}

__attribute__((visibility("hidden"), used)) void *memset(void *to, int value, size_t n)
{
    void *d = to;
    __asm__ volatile("rep stosb" : "+D"(d), "+c"(n) : "a"(value) : "memory");
    return to;
}

INLINE int64_t min_i64(int64_t a, int64_t b) { return a < b ? a : b; }
INLINE int64_t max_i64(int64_t a, int64_t b) { return a > b ? a : b; }
INLINE int64_t round_up(int64_t value, int64_t unit) { return (value + unit - 1) / unit * unit; }

/* The first of `total` items that belongs to worker `worker`; its last is split(worker + 1) - 1. Shares differ by at
 * most one. */
INLINE int64_t split(int64_t total, uint32_t worker, uint32_t workers) { return total * worker / workers; }
