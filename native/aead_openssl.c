/* SPDX-License-Identifier: Apache-2.0
 *
 * AES-256-GCM and ChaCha20-Poly1305 by OpenSSL's EVP (3.0 or later).
 *
 * In FIPS mode every fetch says "fips=yes", XAES's subkeys come from the provider's own CMAC, and
 * ChaCha20-Poly1305 has a state that refuses.
 */
#include "aead.h"

#include <openssl/core_names.h>
#include <openssl/crypto.h>
#include <openssl/err.h>
#include <openssl/evp.h>
#include <openssl/params.h>
#include <openssl/provider.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct {
    EVP_CIPHER *aead, *block;             /* fetched once: a fetch costs more than a record */
    EVP_CIPHER_CTX *sealing, *opening, *deriving;
    EVP_MAC *cmac; /* in FIPS mode alone: elsewhere it costs more than the record */
    EVP_MAC_CTX *mac;
} openssl_state;

static int fips_only;

void upseal_fips_only(void) { fips_only = 1; }

const char *upseal_properties(void) { return fips_only ? "fips=yes" : NULL; }

/* Also where the system's configuration has asked OpenSSL for approved algorithms alone. */
static int approved_only(void)
{
    return fips_only || EVP_default_properties_is_fips_enabled(NULL);
}

static void state_free(void *opaque)
{
    openssl_state *s = opaque;
    EVP_CIPHER_CTX_free(s->sealing); /* wipes the key schedule */
    EVP_CIPHER_CTX_free(s->opening);
    EVP_CIPHER_CTX_free(s->deriving);
    EVP_MAC_CTX_free(s->mac);
    EVP_MAC_free(s->cmac);
    EVP_CIPHER_free(s->aead);
    EVP_CIPHER_free(s->block);
    free(s);
}

static void *state_new(const char *aead, const char *block)
{
    openssl_state *s = calloc(1, sizeof *s);
    if (!s) return NULL;
    s->aead = EVP_CIPHER_fetch(NULL, aead, upseal_properties());
    s->block = EVP_CIPHER_fetch(NULL, block, upseal_properties());
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

static void *aes_new(void)
{
    openssl_state *s = state_new("AES-256-GCM", "AES-256-ECB");
    if (s && fips_only) {
        s->cmac = EVP_MAC_fetch(NULL, "CMAC", upseal_properties());
        s->mac = s->cmac ? EVP_MAC_CTX_new(s->cmac) : NULL;
        if (!s->mac) {
            state_free(s);
            return NULL;
        }
    }
    return s;
}

static void *chacha_new(void)
{
    void *made;
    ERR_set_mark(); /* left in this thread's queue, it would fail the next TLS read of Python's ssl */
    made = state_new("ChaCha20-Poly1305", "ChaCha20");
    ERR_pop_to_mark();
    /* No FIPS provider has it: AES must work all the same. set_key and subkey refuse. */
    return made || !approved_only() ? made : calloc(1, sizeof(openssl_state));
}

static upseal_status set_key(void *opaque, const uint8_t key[32])
{
    openssl_state *s = opaque;
    return s->sealing && EVP_EncryptInit_ex2(s->sealing, NULL, key, NULL, NULL) &&
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

/* The subkey as XAES-256-GCM defines it: NIST SP 800-108r1, 4.1, on CMAC-AES256, i of 16 bits, label
 * "X", the nonce's front as context, no L. */
static upseal_status cmac_subkey(openssl_state *s, const uint8_t key[32], const uint8_t nonce[24],
                                 uint8_t subkey[32])
{
    char cipher[] = "AES-256-CBC", properties[] = "fips=yes";
    OSSL_PARAM how[3] = {OSSL_PARAM_construct_utf8_string(OSSL_MAC_PARAM_CIPHER, cipher, 0),
                         OSSL_PARAM_construct_utf8_string(OSSL_MAC_PARAM_PROPERTIES, properties, 0),
                         OSSL_PARAM_construct_end()};
    uint8_t block[16] = {0, 0, 'X', 0};
    size_t n = 0;
    int good = 1;
    memcpy(block + 4, nonce, 12);
    for (uint8_t i = 1; i <= 2 && good; i++) {
        block[1] = i;
        good = EVP_MAC_init(s->mac, key, UPSEAL_KEY_LEN, how) &&
               EVP_MAC_update(s->mac, block, sizeof block) &&
               EVP_MAC_final(s->mac, subkey + (size_t)16 * (i - 1U), &n, 16) && n == 16;
    }
    return good ? UPSEAL_OK : UPSEAL_EBACKEND;
}

static upseal_status xaes_subkey(void *opaque, const uint8_t key[32], const uint8_t nonce[24],
                                 uint8_t subkey[32])
{
    static const uint8_t zero[16];
    openssl_state *s = opaque;
    uint8_t l[16], blocks[32];
    int n;
    if (s->mac) return cmac_subkey(s, key, nonce, subkey);
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
    if (!s->deriving || !EVP_EncryptInit_ex2(s->deriving, NULL, key, nonce, NULL) ||
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
    .approved_only = approved_only,
    .aes = &upseal_aes_openssl,
    .chacha = &upseal_chacha_openssl,
};

/* ---- who does it --------------------------------------------------------------------- */

/* The provider of all that is used, or NULL: none, or not one alone, or it is in its error state. */
static const OSSL_PROVIDER *one_provider(const OSSL_PROVIDER *const *givers, size_t count)
{
    int status = 0;
    OSSL_PARAM asked[2] = {OSSL_PARAM_construct_int(OSSL_PROV_PARAM_STATUS, &status),
                           OSSL_PARAM_construct_end()};
    for (size_t i = 0; i < count; i++)
        if (!givers[i] || givers[i] != givers[0]) return NULL;
    return OSSL_PROVIDER_get_params(givers[0], asked) && status == 1 ? givers[0] : NULL;
}

static int describe(const OSSL_PROVIDER *provider, char *out, size_t out_len)
{
    const char *name = NULL, *release = NULL;
    OSSL_PARAM asked[3] = {
        OSSL_PARAM_construct_utf8_ptr(OSSL_PROV_PARAM_NAME, (char **)(uintptr_t)&name, 0),
        OSSL_PARAM_construct_utf8_ptr(OSSL_PROV_PARAM_VERSION, (char **)(uintptr_t)&release, 0),
        OSSL_PARAM_construct_end()};
    if (!OSSL_PROVIDER_get_params(provider, asked)) return 0;
    return snprintf(out, out_len, "%s %s (provider %s)", name ? name : "unnamed",
                    release ? release : "of no version", OSSL_PROVIDER_get0_name(provider)) > 0;
}

upseal_status upseal_fips_provider(int self_test, char *out, size_t out_len)
{
    ERR_set_mark();
    EVP_CIPHER *gcm = EVP_CIPHER_fetch(NULL, "AES-256-GCM", "fips=yes");
    EVP_CIPHER *cbc = EVP_CIPHER_fetch(NULL, "AES-256-CBC", "fips=yes");
    EVP_MAC *cmac = EVP_MAC_fetch(NULL, "CMAC", "fips=yes");
    EVP_MAC *hmac = EVP_MAC_fetch(NULL, "HMAC", "fips=yes");
    EVP_MD *hash = EVP_MD_fetch(NULL, "SHA512", "fips=yes");
    const OSSL_PROVIDER *givers[5] = {
        gcm ? EVP_CIPHER_get0_provider(gcm) : NULL, cbc ? EVP_CIPHER_get0_provider(cbc) : NULL,
        cmac ? EVP_MAC_get0_provider(cmac) : NULL, hmac ? EVP_MAC_get0_provider(hmac) : NULL,
        hash ? EVP_MD_get0_provider(hash) : NULL};
    const OSSL_PROVIDER *provider = one_provider(givers, 5);
    const int good = provider && describe(provider, out, out_len) &&
                     (!self_test || OSSL_PROVIDER_self_test(provider));
    EVP_CIPHER_free(gcm);
    EVP_CIPHER_free(cbc);
    EVP_MAC_free(cmac);
    EVP_MAC_free(hmac);
    EVP_MD_free(hash);
    ERR_pop_to_mark(); /* that there is none is an answer, and no error to leave behind */
    if (!good && out_len) memset(out, 0, out_len);
    return good ? UPSEAL_OK : UPSEAL_EBACKEND;
}
