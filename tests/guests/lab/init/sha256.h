/* SHA-256 of a stream of bytes (FIPS 180-4, sections 5 and 6.2). */
#ifndef SHA256_H
#define SHA256_H

#include <stddef.h>
#include <stdint.h>

#define SHA256_HEX_SIZE 65

struct sha256 {
    uint32_t state[8];
    uint64_t length;
    unsigned char block[64];
};

void sha256_start(struct sha256 *hash);
void sha256_add(struct sha256 *hash, const void *bytes, size_t length);
void sha256_hex(struct sha256 *hash, char hex[SHA256_HEX_SIZE]);

#endif
