/* SPDX-License-Identifier: Apache-2.0
 *
 * Known answers: what a backend must give before it is used.
 */
#include "aead.h"

#include <string.h>

/* One record as an envelope, without prefix, against what is published for it. */
static upseal_status known_record(upseal_work *work, uint8_t cipher, const uint8_t key_bytes[32],
                                  const uint8_t nonce[24], const char *aad, const char *text,
                                  const uint8_t *sealed, size_t sealed_len)
{
    uint8_t out[24 + 64 + UPSEAL_TAG_LEN], opened[64];
    const size_t text_len = strlen(text);
    upseal_status status = UPSEAL_EBACKEND;
    upseal_key *key = upseal_key_new(cipher, key_bytes, UPSEAL_KEY_LEN);

    if (!key) return UPSEAL_EMEMORY;
    if (text_len <= 64 && sealed_len == text_len + UPSEAL_TAG_LEN &&
        upseal_seal_envelope(work, key, nonce, NULL, 0, (const uint8_t *)aad, strlen(aad),
                             (const uint8_t *)text, text_len, 0, out,
                             24 + sealed_len) == UPSEAL_OK &&
        memcmp(out + 24, sealed, sealed_len) == 0) {
        int good, refused;
        good = upseal_open_envelope(work, key, 0, (const uint8_t *)aad, strlen(aad), out,
                                    24 + sealed_len, 0, opened,
                                    sizeof opened) == (int64_t)text_len &&
               memcmp(opened, text, text_len) == 0;
        out[24] ^= 1; /* and a backend that accepts anything is no backend */
        refused = upseal_open_envelope(work, key, 0, (const uint8_t *)aad, strlen(aad), out,
                                       24 + sealed_len, 0, opened,
                                       sizeof opened) == UPSEAL_EFORGED;
        if (good && refused) status = UPSEAL_OK;
    }
    upseal_key_free(key);
    return status;
}

upseal_status upseal_backend_test(size_t index)
{
    /* c2sp.org/XAES-256-GCM, test vectors 1 and 2: both values of L's top bit. */
    static const uint8_t xaes1[28] = {0xce, 0x54, 0x6e, 0xf6, 0x3c, 0x9c, 0xc6, 0x07, 0x65, 0x92,
                                      0x36, 0x09, 0xb3, 0x3a, 0x9a, 0x19, 0x74, 0xe9, 0x6e, 0x52,
                                      0xda, 0xf2, 0xfc, 0xf7, 0x07, 0x5e, 0x22, 0x71};
    static const uint8_t xaes2[28] = {0x98, 0x6e, 0xc1, 0x83, 0x25, 0x93, 0xdf, 0x54, 0x43, 0xa1,
                                      0x79, 0x43, 0x7f, 0xd0, 0x83, 0xbf, 0x3f, 0xdb, 0x41, 0xab,
                                      0xd7, 0x40, 0xa2, 0x1f, 0x71, 0xeb, 0x76, 0x9d};
    /* XChaCha20-Poly1305 of the same inputs as vector 2, by libsodium. */
    static const uint8_t xchacha[28] = {0xcf, 0x0e, 0xea, 0xe1, 0xae, 0xe9, 0xbe, 0x1e, 0xd1, 0x76,
                                        0x1e, 0x70, 0x3c, 0x26, 0x5d, 0x28, 0x1c, 0x52, 0x22, 0xbd,
                                        0x1d, 0x38, 0x90, 0xfa, 0xa5, 0xda, 0xbe, 0x21};
    static const char xaes_nonce[] = "ABCDEFGHIJKLMNOPQRSTUVWX";
    const uint8_t *nonce = (const uint8_t *)xaes_nonce;
    uint8_t key[32];
    upseal_status status;
    upseal_work *work;

    if (!upseal_backend_at(index)) return UPSEAL_EARGUMENT;
    if (!upseal_backend_at(index)->usable()) return UPSEAL_EBACKEND;
    work = upseal_work_new(index);
    if (!work) return UPSEAL_EBACKEND;
    memset(key, 1, sizeof key);
    status = known_record(work, 1, key, nonce, "", "XAES-256-GCM", xaes1, sizeof xaes1);
    memset(key, 3, sizeof key);
    if (status == UPSEAL_OK)
        status = known_record(work, 1, key, nonce, "c2sp.org/XAES-256-GCM", "XAES-256-GCM", xaes2,
                              sizeof xaes2);
    if (status == UPSEAL_OK)
        status = known_record(work, 2, key, nonce, "c2sp.org/XAES-256-GCM", "XAES-256-GCM",
                              xchacha, sizeof xchacha);
    upseal_work_free(work);
    return status;
}
