/* SHA-256 (FIPS 180-4), with the processor's SHA instructions where it has them. */
#ifndef PAITON_SHA256_H
#define PAITON_SHA256_H

#include <stddef.h>
#include <stdint.h>

#define PAITON_SHA256_BYTES 32u
#define PAITON_SHA256_BLOCK 64u

typedef void (*paiton_sha256_blocks)(uint32_t state[8], const uint8_t *data, size_t blocks);

struct paiton_sha256 {
    paiton_sha256_blocks blocks;
    uint32_t state[8];
    uint64_t bytes;                    /* hashed so far */
    uint8_t rest[PAITON_SHA256_BLOCK]; /* the first bytes % 64 of a block that is not complete */
};

void paiton_sha256_begin(struct paiton_sha256 *hash, int portable);
void paiton_sha256_update(struct paiton_sha256 *hash, const uint8_t *data, uint64_t size);
void paiton_sha256_end(struct paiton_sha256 *hash, uint8_t digest[PAITON_SHA256_BYTES]);

#endif
