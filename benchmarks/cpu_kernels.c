/* Loops around kernels, whose workers keep to their own shares here, and the two limits to hold them against: read
 * bandwidth and arithmetic. */
#include <immintrin.h>
#include <stdint.h>

#define EXPORT __attribute__((visibility("default")))

#define MAX_WORKERS 64

struct share { _Alignas(64) uint64_t taken; };

typedef void kernel(const void *args, uint32_t worker, uint32_t workers, struct share *shares);

/* Calls `run` for `count` argument structs of `bytes` bytes, `rounds` times over. */
EXPORT void call_all(kernel *run, const uint8_t *args, uint64_t bytes, uint64_t count, uint64_t rounds, uint32_t worker,
                     uint32_t workers)
{
    struct share shares[MAX_WORKERS];
    if (workers > MAX_WORKERS) __builtin_trap();
    for (uint32_t i = 0; i < workers; i++) shares[i].taken = UINT32_MAX; /* nothing left for others */
    for (uint64_t round = 0; round < rounds; round++)
        for (uint64_t i = 0; i < count; i++) {
            shares[worker].taken = 0;
            run(args + i * bytes, worker, workers, shares);
        }
}

/* Reads `bytes` (a multiple of 512) `rounds` times. */
EXPORT uint64_t read_all(const uint8_t *data, uint64_t bytes, uint64_t rounds)
{
    __m256i sum[8] = {0};
    for (uint64_t round = 0; round < rounds; round++)
        for (uint64_t i = 0; i + 512 <= bytes; i += 512)
            for (int j = 0; j < 8; j++) {
                __m256i a = _mm256_loadu_si256((const __m256i *)(data + i + 64 * j));
                __m256i b = _mm256_loadu_si256((const __m256i *)(data + i + 64 * j + 32));
                sum[j] = _mm256_xor_si256(sum[j], _mm256_xor_si256(a, b));
            }
    for (int j = 1; j < 8; j++) sum[0] = _mm256_xor_si256(sum[0], sum[j]);
    return (uint64_t)_mm256_extract_epi64(sum[0], 0);
}

#define PEAK(name, attribute, vector, zero, step)                                                                     \
    __attribute__((target(attribute))) EXPORT float name(uint64_t rounds)                                             \
    {                                                                                                                 \
        vector a[12], x = zero;                                                                                       \
        __asm__ volatile("" : "+v"(x));                                                                               \
        for (int i = 0; i < 12; i++) a[i] = x;                                                                        \
        for (uint64_t round = 0; round < rounds; round++)                                                             \
            for (int i = 0; i < 12; i++) __asm__ volatile(step : "+v"(a[i]) : "v"(x));                                \
        for (int i = 1; i < 12; i++) a[0] += a[i];                                                                    \
        return a[0][0];                                                                                               \
    }

/* 12 independent chains: 192, 384 and 768 floating-point operations a round. */
PEAK(peak_avx2, "avx2,fma", __m256, _mm256_setzero_ps(), "vfmadd231ps %1, %1, %0")
PEAK(peak_avx512, "avx512f", __m512, _mm512_setzero_ps(), "vfmadd231ps %1, %1, %0")
PEAK(peak_bf16, "avx512f,avx512bf16", __m512, _mm512_setzero_ps(), "vdpbf16ps %1, %1, %0")
