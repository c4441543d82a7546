/* SPDX-License-Identifier: Apache-2.0
 *
 * AES-256-GCM and ChaCha20-Poly1305 by OpenSSL's EVP (3.0 or later).
 */
#include "aead.h"

#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <stdlib.h>
#include <string.h>

typedef struct {
    EVP_CIPHER *aead, *block;             /* fetched once: a fetch costs more than a record */
    EVP_CIPHER_CTX *sealing, *opening, *deriving;
} openssl_state;

static void state_free(void *opaque)
{
    openssl_state *s = opaque;
    EVP_CIPHER_CTX_free(s->sealing); /* wipes the key schedule */
    EVP_CIPHER_CTX_free(s->opening);
    EVP_CIPHER_CTX_free(s->deriving);
    EVP_CIPHER_free(s->aead);
    EVP_CIPHER_free(s->block);
    free(s);
}

static void *state_new(const char *aead, const char *block)
{
    openssl_state *s = calloc(1, sizeof *s);
    if (!s) return NULL;
    s->aead = EVP_CIPHER_fetch(NULL, aead, NULL);
    s->block = EVP_CIPHER_fetch(NULL, block, NULL);
    s->sealing = EVP_CIPHER_CTX_new();
    s->opening = EVP_CIPHER_CTX_new();
    s->deriving = EVP_CIPHER_CTX_new();
    if (!s->aead || !s->block || !s->sealing || !s->opening || !s->deriving ||
        !EVP_EncryptInit_ex2(s->sealing, s->aead, NULL, NULL, NULL) ||
        !EVP_DecryptInit_ex2(s->opening, s->aead, NULL, NULL, NULL) ||
        !EVP_EncryptInit_ex2(s->deriving, s->block, NULL, NULL, NULL) ||
        !EVP_CIPHER_CTX_set_padding(s->deriving, 0)) {
        state_free(s);
        return NULL;
    }
    return s;
}

static void *aes_new(void) { return state_new("AES-256-GCM", "AES-256-ECB"); }
static void *chacha_new(void) { return state_new("ChaCha20-Poly1305", "ChaCha20"); }

static upseal_status set_key(void *opaque, const uint8_t key[32])
{
    openssl_state *s = opaque;
    return EVP_EncryptInit_ex2(s->sealing, NULL, key, NULL, NULL) &&
                   EVP_DecryptInit_ex2(s->opening, NULL, key, NULL, NULL)
               ? UPSEAL_OK
               : UPSEAL_EBACKEND;
}

static upseal_status seal(void *opaque, const uint8_t iv[12], const uint8_t *aad, size_t aad_len,
                          const uint8_t *in, size_t len, uint8_t *out)
{
    openssl_state *s = opaque;
    int n;
    if (upseal_too_long(aad_len, len)) return UPSEAL_EARGUMENT;
    if (!EVP_EncryptInit_ex2(s->sealing, NULL, NULL, iv, NULL) ||
        (aad_len && !EVP_EncryptUpdate(s->sealing, NULL, &n, aad, (int)aad_len)) ||
        (len && !EVP_EncryptUpdate(s->sealing, out, &n, in, (int)len)) ||
        !EVP_EncryptFinal_ex(s->sealing, out + len, &n) ||
        !EVP_CIPHER_CTX_ctrl(s->sealing, EVP_CTRL_AEAD_GET_TAG, UPSEAL_TAG_LEN, out + len)) {
        OPENSSL_cleanse(out, len + UPSEAL_TAG_LEN);
        return UPSEAL_EBACKEND;
    }
    return UPSEAL_OK;
}

static upseal_status open_(void *opaque, const uint8_t iv[12], const uint8_t *aad, size_t aad_len,
                           const uint8_t *in, size_t len, uint8_t *out)
{
    openssl_state *s = opaque;
    uint8_t tag[UPSEAL_TAG_LEN], none;
    int n;
    upseal_status status = UPSEAL_EBACKEND;
    if (upseal_too_long(aad_len, len)) return UPSEAL_EARGUMENT;
    memcpy(tag, in + len, sizeof tag);
    if (EVP_DecryptInit_ex2(s->opening, NULL, NULL, iv, NULL) &&
        EVP_CIPHER_CTX_ctrl(s->opening, EVP_CTRL_AEAD_SET_TAG, UPSEAL_TAG_LEN, tag) &&
        (!aad_len || EVP_DecryptUpdate(s->opening, NULL, &n, aad, (int)aad_len)) &&
        (!len || EVP_DecryptUpdate(s->opening, out, &n, in, (int)len)))
        status = EVP_DecryptFinal_ex(s->opening, &none, &n) == 1 ? UPSEAL_OK : UPSEAL_EFORGED;
    if (status != UPSEAL_OK) OPENSSL_cleanse(out, len);
    return status;
}

static upseal_status xaes_subkey(void *opaque, const uint8_t key[32], const uint8_t nonce[24],
                                 uint8_t subkey[32])
{
    static const uint8_t zero[16];
    openssl_state *s = opaque;
    uint8_t l[16], blocks[32];
    int n;
    int good = EVP_EncryptInit_ex2(s->deriving, NULL, key, NULL, NULL) &&
               EVP_EncryptUpdate(s->deriving, l, &n, zero, 16) && n == 16;
    if (good) {
        upseal_xaes_blocks(l, nonce, blocks);
        good = EVP_EncryptUpdate(s->deriving, subkey, &n, blocks, 32) && n == 32;
        upseal_wipe(blocks, sizeof blocks);
    }
    upseal_wipe(l, sizeof l);
    return good ? UPSEAL_OK : UPSEAL_EBACKEND;
}

static uint32_t read_le32(const uint8_t in[4])
{
    return (uint32_t)in[3] << 24 | (uint32_t)in[2] << 16 | (uint32_t)in[1] << 8 | in[0];
}

/* HChaCha20 (draft-irtf-cfrg-xchacha-03, 2.2) out of ChaCha20 itself: the block function adds
 * its input state at the end, HChaCha20 does not, and the words it gives out are those whose
 * input (the constants and the nonce) is public.  So: one block of key stream, less those. */
static upseal_status hchacha_subkey(void *opaque, const uint8_t key[32], const uint8_t nonce[24],
                                    uint8_t subkey[32])
{
    static const uint8_t constants[16] = {'e', 'x', 'p', 'a', 'n', 'd', ' ', '3',
                                          '2', '-', 'b', 'y', 't', 'e', ' ', 'k'};
    static const uint8_t zero[64];
    openssl_state *s = opaque;
    uint8_t stream[64];
    int n;
    /* OpenSSL's ChaCha20 takes words 12 to 15, counter and nonce, as its 16-byte IV. */
    if (!EVP_EncryptInit_ex2(s->deriving, NULL, key, nonce, NULL) ||
        !EVP_EncryptUpdate(s->deriving, stream, &n, zero, sizeof stream) || n != sizeof stream) {
        upseal_wipe(stream, sizeof stream);
        return UPSEAL_EBACKEND;
    }
    for (size_t word = 0; word < 8; word++) {
        const size_t from = word < 4 ? 4 * word : 48 + 4 * (word - 4);
        const uint8_t *input = word < 4 ? constants + 4 * word : nonce + 4 * (word - 4);
        const uint32_t value = read_le32(stream + from) - read_le32(input);
        for (size_t i = 0; i < 4; i++) subkey[4 * word + i] = (uint8_t)(value >> (8 * i));
    }
    upseal_wipe(stream, sizeof stream);
    return UPSEAL_OK;
}

const upseal_aead upseal_aes_openssl = {
    .salt_len = 12,
    .state_new = aes_new,
    .state_free = state_free,
    .subkey = xaes_subkey,
    .set_key = set_key,
    .seal = seal,
    .open = open_,
};

const upseal_aead upseal_chacha_openssl = {
    .salt_len = 16,
    .state_new = chacha_new,
    .state_free = state_free,
    .subkey = hchacha_subkey,
    .set_key = set_key,
    .seal = seal,
    .open = open_,
};

static int usable(void) { return 1; }
static const char *version(void) { return OpenSSL_version(OPENSSL_VERSION); }

const upseal_backend upseal_backend_openssl = {
    .name = "openssl",
    .usable = usable,
    .version = version,
    .aes = &upseal_aes_openssl,
    .chacha = &upseal_chacha_openssl,
};
