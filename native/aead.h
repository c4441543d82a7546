/* SPDX-License-Identifier: Apache-2.0
 *
 * What a backend gives: two AEADs, each behind the same few calls.  A state belongs
 * to one work space; set_key comes before seal and open.
 */
#ifndef UPSEAL_AEAD_H
#define UPSEAL_AEAD_H

#include "upseal.h"

typedef struct {
    /* Leading bytes of a record's nonce that choose its subkey: XAES 12, XChaCha 16. */
    size_t salt_len;
    void *(*state_new)(void);
    void (*state_free)(void *state); /* wipes */
    /* The subkey of XAES-256-GCM or XChaCha20-Poly1305 for a record's 24-byte nonce. */
    upseal_status (*subkey)(void *state, const uint8_t key[32], const uint8_t nonce[24],
                            uint8_t subkey[32]);
    upseal_status (*set_key)(void *state, const uint8_t key[32]);
    /* out: len + 16 bytes; in == out is allowed. */
    upseal_status (*seal)(void *state, const uint8_t iv[12], const uint8_t *aad, size_t aad_len,
                          const uint8_t *in, size_t len, uint8_t *out);
    /* in: len + 16 bytes; out (len) is zero after UPSEAL_EFORGED. */
    upseal_status (*open)(void *state, const uint8_t iv[12], const uint8_t *aad, size_t aad_len,
                          const uint8_t *in, size_t len, uint8_t *out);
} upseal_aead;

typedef struct {
    const char *name;
    int (*usable)(void); /* also makes the library ready: once, in upseal_backend_test */
    const char *(*version)(void);
    int (*approved_only)(void); /* 1: ChaCha20-Poly1305 is refused. NULL: never */
    const upseal_aead *aes;
    const upseal_aead *chacha;
} upseal_backend;

extern const upseal_backend upseal_backend_openssl;
extern const upseal_aead upseal_aes_openssl;
extern const upseal_aead upseal_chacha_openssl;
#ifdef UPSEAL_WITH_IPPCP
extern const upseal_backend upseal_backend_ippcp;
#endif

/* What libcrypto is asked for: "fips=yes", or NULL for what its configuration says. */
const char *upseal_properties(void);

const upseal_backend *upseal_backend_at(size_t index); /* NULL past the last */

struct upseal_work {
    const upseal_aead *aead[2]; /* by cipher - 1 */
    void *state[2];
    uint8_t keyed[2]; /* a key has been set in that state since it was last scrubbed */
    uint8_t chunk[UPSEAL_CHUNK_LEN]; /* where a chunk waits for its tag to be checked */
};

/* Who has given a key its memory. */
typedef struct upseal_keeper {
    void (*take_back)(struct upseal_keeper *keeper, upseal_key *key); /* wipes */
} upseal_keeper;

struct upseal_key {
    upseal_keeper *keeper; /* NULL: the C library */
    uint32_t slot;         /* the keeper's number for it */
    uint8_t cipher;
    uint8_t has_base_nonce;
    uint8_t has_others; /* of a session */
    uint8_t key[UPSEAL_KEY_LEN];
    uint8_t base_nonce[UPSEAL_BASE_NONCE_LEN];
    uint8_t batch[UPSEAL_KEY_LEN];
    uint8_t upload[UPSEAL_KEY_LEN];
};

/* base + offset. Inputs without bytes may be NULL, and in C11 not even 0 may be added to that. */
static inline const uint8_t *upseal_at(const uint8_t *base, int64_t offset)
{
    return offset ? base + offset : base;
}

/* Big-endian, as on the wire. */
static inline void upseal_write_u32(uint8_t out[4], uint32_t value)
{
    for (int i = 0; i < 4; i++) out[i] = (uint8_t)(value >> (24 - 8 * i));
}

static inline uint32_t upseal_read_u32(const uint8_t in[4])
{
    return (uint32_t)in[0] << 24 | (uint32_t)in[1] << 16 | (uint32_t)in[2] << 8 | in[3];
}

/* Both libraries take lengths as int: what is longer must not get there. */
static inline int upseal_too_long(size_t aad_len, size_t len)
{
    return aad_len > 0x7fffffff || len > UPSEAL_RECORD_MAX;
}

/* XAES-256-GCM's two blocks to encrypt, from L = AES(K, 0): (M1 ^ K1) | (M2 ^ K1). */
void upseal_xaes_blocks(const uint8_t l[16], const uint8_t nonce[24], uint8_t blocks[32]);

#endif
