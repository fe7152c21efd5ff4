/* SHA-256 for the loader. In C because readers must not wait for the interpreter lock: see loader.py. */
#include "sha256.h"
#include "paiton_host.h"

#include <cpuid.h>
#include <immintrin.h>
#include <string.h>

#define ROUNDS 64

static const uint32_t INITIAL[8] = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
                                    0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};

static const uint32_t K[ROUNDS] = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
    0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
    0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
    0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
    0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
    0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
    0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
    0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2};

static uint32_t rotate(uint32_t x, int bits) { return x >> bits | x << (32 - bits); }

static uint32_t load_big_endian(const uint8_t *bytes) {
    uint32_t word;
    memcpy(&word, bytes, sizeof word);
    return __builtin_bswap32(word);
}

static void portable_blocks(uint32_t state[8], const uint8_t *data, size_t blocks) {
    for (; blocks; blocks--, data += PAITON_SHA256_BLOCK) {
        uint32_t w[ROUNDS];
        for (int i = 0; i < 16; i++) w[i] = load_big_endian(data + 4 * i);
        for (int i = 16; i < ROUNDS; i++) {
            uint32_t low = rotate(w[i - 15], 7) ^ rotate(w[i - 15], 18) ^ w[i - 15] >> 3;
            uint32_t high = rotate(w[i - 2], 17) ^ rotate(w[i - 2], 19) ^ w[i - 2] >> 10;
            w[i] = w[i - 16] + low + w[i - 7] + high;
        }
        uint32_t a = state[0], b = state[1], c = state[2], d = state[3];
        uint32_t e = state[4], f = state[5], g = state[6], h = state[7];
        for (int i = 0; i < ROUNDS; i++) {
            uint32_t choice = (e & f) ^ (~e & g), majority = (a & b) ^ (a & c) ^ (b & c);
            uint32_t first = h + (rotate(e, 6) ^ rotate(e, 11) ^ rotate(e, 25)) + choice + K[i] + w[i];
            uint32_t second = (rotate(a, 2) ^ rotate(a, 13) ^ rotate(a, 22)) + majority;
            h = g, g = f, f = e, e = d + first;
            d = c, c = b, b = a, a = first + second;
        }
        state[0] += a, state[1] += b, state[2] += c, state[3] += d;
        state[4] += e, state[5] += f, state[6] += g, state[7] += h;
    }
}

/* The instructions want the state as (f, e, b, a) and (h, g, d, c), lowest lane first, and do two rounds each. */
__attribute__((target("sha,sse4.1"))) static void sha_blocks(uint32_t state[8], const uint8_t *data, size_t blocks) {
    const __m128i big_endian = _mm_set_epi64x(0x0c0d0e0f08090a0b, 0x0405060700010203);
    __m128i abcd = _mm_shuffle_epi32(_mm_loadu_si128((const __m128i *)state), 0xb1);
    __m128i efgh = _mm_shuffle_epi32(_mm_loadu_si128((const __m128i *)state + 1), 0x1b);
    __m128i feba = _mm_alignr_epi8(abcd, efgh, 8), hgdc = _mm_blend_epi16(efgh, abcd, 0xf0);
    for (; blocks; blocks--, data += PAITON_SHA256_BLOCK) {
        const __m128i feba_before = feba, hgdc_before = hgdc;
        __m128i w[4]; /* the schedule's last 16 words, as a ring */
        for (int i = 0; i < 4; i++)
            w[i] = _mm_shuffle_epi8(_mm_loadu_si128((const __m128i *)data + i), big_endian);
#pragma clang loop unroll(full) /* so that the ring is registers */
        for (int i = 0; i < ROUNDS / 4; i++) {
            __m128i sum = _mm_add_epi32(w[i % 4], _mm_loadu_si128((const __m128i *)K + i));
            hgdc = _mm_sha256rnds2_epu32(hgdc, feba, sum);
            feba = _mm_sha256rnds2_epu32(feba, hgdc, _mm_shuffle_epi32(sum, 0x0e));
            if (i >= ROUNDS / 4 - 4) continue;
            __m128i low = _mm_sha256msg1_epu32(w[i % 4], w[(i + 1) % 4]);
            __m128i middle = _mm_alignr_epi8(w[(i + 3) % 4], w[(i + 2) % 4], 4);
            w[i % 4] = _mm_sha256msg2_epu32(_mm_add_epi32(low, middle), w[(i + 3) % 4]);
        }
        feba = _mm_add_epi32(feba, feba_before);
        hgdc = _mm_add_epi32(hgdc, hgdc_before);
    }
    __m128i abef = _mm_shuffle_epi32(feba, 0x1b), dchg = _mm_shuffle_epi32(hgdc, 0xb1);
    _mm_storeu_si128((__m128i *)state, _mm_blend_epi16(abef, dchg, 0xf0));
    _mm_storeu_si128((__m128i *)state + 1, _mm_alignr_epi8(dchg, abef, 8));
}

static int has_sha_instructions(void) {
    unsigned a, b, c, d, b7, c7;
    if (!__get_cpuid(1, &a, &b, &c, &d) || !__get_cpuid_count(7, 0, &a, &b7, &c7, &d)) return 0;
    return (c & bit_SSE4_1) && (b7 & bit_SHA);
}

/* `portable`: do without the instructions, so that a machine that has them can test both ways. */
void paiton_sha256_begin(struct paiton_sha256 *hash, int portable) {
    hash->blocks = portable || !has_sha_instructions() ? portable_blocks : sha_blocks;
    hash->bytes = 0;
    memcpy(hash->state, INITIAL, sizeof INITIAL);
}

void paiton_sha256_update(struct paiton_sha256 *hash, const uint8_t *data, uint64_t size) {
    uint64_t held = hash->bytes % PAITON_SHA256_BLOCK;
    hash->bytes += size;
    if (held) {
        uint64_t missing = PAITON_SHA256_BLOCK - held, taken = size < missing ? size : missing;
        memcpy(hash->rest + held, data, taken);
        if (taken < missing) return;
        hash->blocks(hash->state, hash->rest, 1);
        data += taken;
        size -= taken;
    }
    hash->blocks(hash->state, data, size / PAITON_SHA256_BLOCK);
    uint64_t rest = size % PAITON_SHA256_BLOCK;
    memcpy(hash->rest, data + size - rest, rest);
}

void paiton_sha256_end(struct paiton_sha256 *hash, uint8_t digest[PAITON_SHA256_BYTES]) {
    static const uint8_t padding[PAITON_SHA256_BLOCK] = {0x80};
    uint64_t bits = __builtin_bswap64(hash->bytes * 8);
    /* One bit, zeros, and 64 bits of length fill up the last block. */
    paiton_sha256_update(hash, padding, 1 + (2 * PAITON_SHA256_BLOCK - 9 - hash->bytes % PAITON_SHA256_BLOCK) %
                                                PAITON_SHA256_BLOCK);
    paiton_sha256_update(hash, (const uint8_t *)&bits, sizeof bits);
    for (int i = 0; i < 8; i++) {
        uint32_t word = __builtin_bswap32(hash->state[i]);
        memcpy(digest + 4 * i, &word, sizeof word);
    }
}

void paiton_sha256(const void *data, uint64_t size, uint32_t portable, uint8_t *digest) {
    struct paiton_sha256 hash;
    paiton_sha256_begin(&hash, portable != 0);
    paiton_sha256_update(&hash, data, size);
    paiton_sha256_end(&hash, digest);
}
