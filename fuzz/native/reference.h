/* SPDX-License-Identifier: Apache-2.0
 *
 * docs/format.md once more, as plainly as it can be said, and sharing no code with native/ (but
 * OpenSSL's ciphers): what every backend is compared with.  Speed and constant time are none of its
 * business.
 */
#ifndef UPSEAL_FUZZ_REFERENCE_H
#define UPSEAL_FUZZ_REFERENCE_H

#include <stddef.h>
#include <stdint.h>

typedef struct {
    uint8_t cipher; /* 1 or 2 */
    uint8_t key[32];
    uint8_t base_nonce[12]; /* of chunks */
} reference_key;

/* Section 6, with the nonce of section 8: N XOR index.  out: len + 16 bytes. */
void reference_seal_record(const reference_key *key, const uint8_t nonce[24], uint32_t index,
                           const uint8_t *aad, size_t aad_len, const uint8_t *in, size_t len,
                           uint8_t *out);
/* in: len + 16 bytes.  1 if the tag is right; otherwise `out` is not to be looked at. */
int reference_open_record(const reference_key *key, const uint8_t nonce[24], uint32_t index,
                          const uint8_t *aad, size_t aad_len, const uint8_t *in, size_t len,
                          uint8_t *out);

/* Section 9. */
void reference_seal_chunk(const reference_key *key, uint64_t index, const uint8_t *in, size_t len,
                          uint8_t *out);
int reference_open_chunk(const reference_key *key, uint64_t index, const uint8_t *in, size_t len,
                         uint8_t *out);

/* HKDF-Expand-SHA-512 (RFC 5869), for sections 5 and 9; info_len is at most 1000. */
void reference_expand(const uint8_t secret[32], const uint8_t *info, size_t info_len, uint8_t *out,
                      size_t out_len);

/* Section 10. */
uint64_t reference_padme(uint64_t len);
size_t reference_pad(const uint8_t *report, size_t len, uint8_t *out); /* the padded length */
int64_t reference_unpad(const uint8_t *padded, size_t len); /* the report's length, or -1 */

#endif
