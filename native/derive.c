/* SPDX-License-Identifier: Apache-2.0
 *
 * HKDF-Expand (RFC 5869, 2.3) with SHA-512, by OpenSSL's HMAC: its own HKDF takes no info of any
 * length in all of its releases.  What it leaves behind is wiped, which nobody promises in Python.
 */
#include "aead.h"

#include <openssl/core_names.h>
#include <openssl/evp.h>
#include <openssl/params.h>
#include <string.h>

enum { HASH = 64 };

static int expand(EVP_MAC_CTX *mac, const uint8_t secret[32], const uint8_t *info,
                  size_t info_len, uint8_t *out, size_t out_len)
{
    char name[] = "SHA512";
    OSSL_PARAM digest[3] = {OSSL_PARAM_construct_utf8_string(OSSL_MAC_PARAM_DIGEST, name, 0),
                            OSSL_PARAM_construct_end(), OSSL_PARAM_construct_end()};
    uint8_t block[HASH] = {0}, number = 0;
    size_t n = 0;
    int good = 1;
    char approved[] = "fips=yes";
    if (upseal_properties())
        digest[1] = OSSL_PARAM_construct_utf8_string(OSSL_MAC_PARAM_PROPERTIES, approved, 0);
    for (size_t at = 0; at < out_len && good; at += HASH) {
        number++;
        good = EVP_MAC_init(mac, secret, UPSEAL_KEY_LEN, digest) &&
               (number == 1 || EVP_MAC_update(mac, block, HASH)) &&
               (!info_len || EVP_MAC_update(mac, info, info_len)) &&
               EVP_MAC_update(mac, &number, 1) && EVP_MAC_final(mac, block, &n, HASH) && n == HASH;
        if (good) memcpy(out + at, block, out_len - at < HASH ? out_len - at : HASH);
    }
    upseal_wipe(block, sizeof block);
    return good;
}

upseal_status upseal_expand(const uint8_t secret[32], const uint8_t *info, size_t info_len,
                            uint8_t *out, size_t out_len)
{
    upseal_status status = UPSEAL_EARGUMENT;
    if (out_len <= 255 * HASH) {
        EVP_MAC *hmac = EVP_MAC_fetch(NULL, "HMAC", upseal_properties());
        EVP_MAC_CTX *mac = hmac ? EVP_MAC_CTX_new(hmac) : NULL;
        status = mac && expand(mac, secret, info, info_len, out, out_len) ? UPSEAL_OK
                                                                          : UPSEAL_EBACKEND;
        EVP_MAC_CTX_free(mac); /* wipes */
        EVP_MAC_free(hmac);
    }
    if (status != UPSEAL_OK && out && out_len) upseal_wipe(out, out_len);
    return status;
}

upseal_key *upseal_upload_key(upseal_arena *arena, const upseal_key *session,
                              const uint8_t *info, size_t info_len, uint8_t commitment[32])
{
    enum { KEY = UPSEAL_KEY_LEN + UPSEAL_BASE_NONCE_LEN };
    uint8_t derived[KEY + 32];
    upseal_key *key = NULL;
    memset(commitment, 0, 32);
    if (session->has_others && upseal_expand(session->upload, info, info_len, derived,
                                             sizeof derived) == UPSEAL_OK) {
        key = upseal_arena_key(arena, session->cipher, derived, KEY);
        if (key) memcpy(commitment, derived + KEY, 32);
        upseal_wipe(derived, sizeof derived);
    }
    return key;
}
