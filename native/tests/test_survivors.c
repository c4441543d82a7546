/* SPDX-License-Identifier: Apache-2.0
 *
 * Checks that no other test of the C core would miss (scripts/mutations).
 */
#include "helpers.h"

#include <stdlib.h>
#include <string.h>

enum { NONCE = UPSEAL_NONCE_LEN, TAG = UPSEAL_TAG_LEN };

/* Each of many envelopes, and of the records of a batch, is sealed under N XOR its place. */
static void test_nonces(engine *e, uint8_t cipher)
{
    enum { COUNT = 300, FIRST = 0x1fe, LEN = 8, EACH = NONCE + LEN + TAG };
    static const uint8_t same[COUNT * LEN];
    upseal_key *key = new_key(cipher, 32);
    int64_t offsets[COUNT + 1], ends[COUNT + 1];
    uint8_t *sealed = dirty(COUNT * EACH), *records = dirty(COUNT * (LEN + TAG));
    uint8_t *table = dirty(4 * COUNT), aad[9] = {2};

    for (size_t i = 0; i <= COUNT; i++) offsets[i] = (int64_t)(i * LEN);
    CHECK(upseal_seal_envelopes(e->work, key, test_nonce, FIRST, NULL, 0, NULL, 0, same, sizeof same,
                                offsets, COUNT, 0, sealed, COUNT * EACH, ends) == UPSEAL_OK);
    CHECK(upseal_seal_batch(e->work, key, test_nonce, FIRST, aad, sizeof aad, same, sizeof same,
                            offsets, COUNT, 0, table, records, COUNT * (LEN + TAG)) == UPSEAL_OK);
    for (size_t i = 0; i < COUNT; i++) {
        uint8_t nonce[NONCE], one[EACH], bound[9] = {2};
        const uint32_t place = FIRST + (uint32_t)i;
        memcpy(nonce, test_nonce, NONCE);
        for (size_t at = 0; at < 4; at++) {
            nonce[20 + at] ^= (uint8_t)(place >> (24 - 8 * at));
            bound[1 + at] = (uint8_t)(place >> (24 - 8 * at));
        }
        CHECK(memcmp(sealed + i * EACH, nonce, NONCE) == 0);
        CHECK(upseal_seal_envelope(e->work, key, nonce, NULL, 0, NULL, 0, same, LEN, 0, one,
                                   sizeof one) == UPSEAL_OK);
        CHECK(memcmp(sealed + i * EACH, one, EACH) == 0);
        CHECK(upseal_seal_envelope(e->work, key, nonce, NULL, 0, bound, sizeof bound, same, LEN, 0,
                                   one, sizeof one) == UPSEAL_OK);
        CHECK(memcmp(records + i * (LEN + TAG), one + NONCE, LEN + TAG) == 0);
    }
    free(sealed);
    free(records);
    free(table);
    upseal_key_free(key);
}

/* Envelopes under nonces of which each byte differs, in one call: each has its own subkey. */
static void test_subkeys(engine *e, uint8_t cipher)
{
    enum { COUNT = NONCE + 1, LEN = 8, EACH = NONCE + LEN + TAG };
    upseal_key *key = new_key(cipher, 32);
    uint8_t *text = bytes(LEN, 9), *sealed = dirty(COUNT * EACH), *out = dirty(COUNT * LEN);
    int64_t offsets[COUNT + 1], ends[COUNT + 1];
    int8_t results[COUNT];

    for (size_t i = 0; i <= COUNT; i++) offsets[i] = (int64_t)(i * EACH);
    for (size_t i = 0; i < COUNT; i++) {
        uint8_t nonce[NONCE];
        memcpy(nonce, test_nonce, NONCE);
        if (i) nonce[i - 1] ^= 1;
        CHECK(upseal_seal_envelope(e->work, key, nonce, NULL, 0, NULL, 0, text, LEN, 0,
                                   sealed + i * EACH, EACH) == UPSEAL_OK);
    }
    CHECK(upseal_open_envelopes(e->work, key, NULL, 0, NULL, 0, sealed, COUNT * EACH, offsets, COUNT,
                                0, out, COUNT * LEN, ends, results) == UPSEAL_OK);
    CHECK(all_zero(results, COUNT) && ends[COUNT] == COUNT * LEN);
    for (size_t i = 0; i < COUNT; i++) CHECK(memcmp(out + i * LEN, text, LEN) == 0);
    free(text);
    free(sealed);
    free(out);
    upseal_key_free(key);
}

/* A record whose tag is right and whose padding is not, the last of two: nothing of it is left. */
static void test_wrong_padding(engine *e, uint8_t cipher)
{
    enum { LEN = 8, EACH = NONCE + LEN + TAG };
    static const uint8_t good[LEN] = {'g', 'o', 'o', 'd', '1', '2', '3', 0x80},
                         bad[LEN] = {'s', 'e', 'c', 'r', 'e', 't', '!', '!'};
    static const int64_t offsets[3] = {0, EACH, 2 * EACH};
    upseal_key *key = new_key(cipher, 32);
    uint8_t sealed[2 * EACH], *out = dirty(2 * LEN);
    int64_t ends[3];
    int8_t results[2];

    CHECK(upseal_seal_envelope(e->work, key, test_nonce, NULL, 0, NULL, 0, good, LEN, 0, sealed,
                               EACH) == UPSEAL_OK);
    CHECK(upseal_seal_envelope(e->work, key, test_nonce, NULL, 0, NULL, 0, bad, LEN, 0, sealed + EACH,
                               EACH) == UPSEAL_OK);
    CHECK(upseal_open_envelopes(e->work, key, NULL, 0, NULL, 0, sealed, sizeof sealed, offsets, 2, 1,
                                out, 2 * LEN, ends, results) == UPSEAL_OK);
    CHECK(results[0] == UPSEAL_OK && results[1] == UPSEAL_EFORGED && ends[1] == 7 && ends[2] == 7);
    CHECK(memcmp(out, good, 7) == 0 && all_zero(out + 7, LEN));
    free(out);
    upseal_key_free(key);
}

/* What is too long for a library is refused before a byte of it is read. */
static void test_too_long(engine *e, uint8_t cipher)
{
    const size_t len = NONCE + (size_t)UPSEAL_RECORD_MAX + 1 + TAG;
    upseal_key *key = new_key(cipher, 32);
    uint8_t *sealed = exactly(len), *out = dirty(len - NONCE - TAG), one = 0;
    uint8_t envelope[NONCE + 1 + TAG];

    memset(sealed, 0, len);
    CHECK(upseal_open_envelope(e->work, key, 0, NULL, 0, sealed, len, 0, out, len - NONCE - TAG) ==
          UPSEAL_EFORGED);
    CHECK(all_zero(out, len - NONCE - TAG));
    memset(envelope, 0xaa, sizeof envelope);
    CHECK(upseal_seal_envelope(e->work, key, test_nonce, NULL, 0, &one, (size_t)INT32_MAX + 1, &one, 1,
                               0, envelope, sizeof envelope) == UPSEAL_EARGUMENT);
    CHECK(all_zero(envelope, sizeof envelope));
    CHECK(upseal_open_envelope(e->work, key, 0, &one, (size_t)INT32_MAX + 1, envelope,
                               sizeof envelope, 0, &one, 1) == UPSEAL_EARGUMENT);
    free(sealed);
    free(out);
    upseal_key_free(key);
}

void test_survivors(void)
{
    size_t backends = 0;
    while (upseal_backend_name(backends)) backends++;
    CHECK(upseal_work_new(backends) == NULL);
    CIPHERS(cipher) ENGINES(e) {
        test_nonces(e, cipher);
        test_subkeys(e, cipher);
        test_wrong_padding(e, cipher);
        test_too_long(e, cipher);
    }
}
