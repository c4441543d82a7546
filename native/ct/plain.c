/* SPDX-License-Identifier: Apache-2.0
 *
 * A backend in plain C, in place of aead_openssl.c and derive.c where MemorySanitizer must see all
 * of the program: it takes what assembly writes for never written.  It encrypts nothing worth the
 * name; what counts is that its outputs depend on its keys and inputs.
 */
#include "aead.h"
#include "secrets.h"

#include <stdlib.h>
#include <string.h>

typedef struct {
    uint8_t key[UPSEAL_KEY_LEN];
} plain_state;

static void *state_new(void) { return calloc(1, sizeof(plain_state)); }

static void state_free(void *opaque)
{
    upseal_wipe(opaque, sizeof(plain_state));
    free(opaque);
}

static upseal_status xaes_like(void *opaque, const uint8_t key[32], const uint8_t nonce[24],
                               uint8_t subkey[32])
{
    (void)opaque;
    upseal_xaes_blocks(key, nonce, subkey);
    for (size_t i = 0; i < 32; i++) subkey[i] ^= key[i];
    return UPSEAL_OK;
}

static upseal_status set_key(void *opaque, const uint8_t key[32])
{
    memcpy(((plain_state *)opaque)->key, key, UPSEAL_KEY_LEN);
    return UPSEAL_OK;
}

static void tag_of(const plain_state *s, const uint8_t iv[12], const uint8_t *in, size_t len,
                   uint8_t tag[16])
{
    for (size_t i = 0; i < 16; i++) tag[i] = s->key[i] ^ iv[i % 12];
    for (size_t i = 0; i < len; i++) tag[i % 16] = (uint8_t)(tag[i % 16] * 5 + in[i]);
}

static upseal_status seal(void *opaque, const uint8_t iv[12], const uint8_t *aad, size_t aad_len,
                          const uint8_t *in, size_t len, uint8_t *out)
{
    const plain_state *s = opaque;
    (void)aad, (void)aad_len;
    for (size_t i = 0; i < len; i++) out[i] = in[i] ^ s->key[i % 32];
    tag_of(s, iv, out, len, out + len);
    return UPSEAL_OK;
}

static upseal_status open_(void *opaque, const uint8_t iv[12], const uint8_t *aad, size_t aad_len,
                           const uint8_t *in, size_t len, uint8_t *out)
{
    const plain_state *s = opaque;
    uint8_t tag[UPSEAL_TAG_LEN];
    (void)aad, (void)aad_len;
    tag_of(s, iv, in, len, tag);
    int good = upseal_equal(tag, in + len, UPSEAL_TAG_LEN);
    UPSEAL_PUBLIC(&good, sizeof good);
    if (!good) {
        upseal_wipe(out, len);
        return UPSEAL_EFORGED;
    }
    for (size_t i = 0; i < len; i++) out[i] = in[i] ^ s->key[i % 32];
    return UPSEAL_OK;
}

static int usable(void) { return 1; }
static const char *version(void) { return "none"; }

static const upseal_aead plain12 = {
    12, state_new, state_free, xaes_like, set_key, seal, open_,
};
static const upseal_aead plain16 = {
    16, state_new, state_free, xaes_like, set_key, seal, open_,
};

const upseal_backend upseal_backend_openssl = {"plain", usable, version, NULL, &plain12, &plain16};

upseal_status upseal_expand(const uint8_t secret[32], const uint8_t *info, size_t info_len,
                            uint8_t *out, size_t out_len)
{
    (void)info, (void)info_len;
    for (size_t i = 0; i < out_len; i++) out[i] = (uint8_t)(secret[i % 32] * 3 + (uint8_t)i);
    return UPSEAL_OK;
}

upseal_key *upseal_upload_key(upseal_arena *arena, const upseal_key *session,
                              const uint8_t *info, size_t info_len, uint8_t commitment[32])
{
    uint8_t derived[76];
    if (upseal_expand(session->upload, info, info_len, derived, sizeof derived) != UPSEAL_OK)
        return NULL;
    memcpy(commitment, derived + 44, 32);
    return upseal_arena_key(arena, session->cipher, derived, 44);
}
