/* SPDX-License-Identifier: Apache-2.0
 *
 * Padded lengths, every malformed padding of short records, and the helpers of the header.
 */
#include "helpers.h"

#include <stdlib.h>
#include <string.h>

static void test_lengths(void)
{
    /* (length, Padme length of length + 1), worked out by hand and by tests/vectors/padme.json. */
    static const size_t table[][2] = {
        {0, 1},         {1, 2},         {7, 8},           {8, 10},          {9, 10},
        {15, 16},       {16, 18},       {31, 32},         {32, 36},         {35, 36},
        {36, 40},       {99, 104},      {255, 256},       {256, 272},       {999, 1024},
        {1023, 1024},   {1024, 1088},   {4095, 4096},     {4096, 4352},     {65535, 65536},
        {65536, 67584}, {1u << 20, 1081344}, {(1u << 24) - 1, 1u << 24}, {1u << 24, 17301504},
    };
    for (size_t i = 0; i < sizeof table / sizeof table[0]; i++)
        CHECK(upseal_padded_len(table[i][0]) == table[i][1]);
    for (size_t len = 0, before = 0; len < 70000; len++) {
        const size_t padded = upseal_padded_len(len);
        CHECK(padded > len && padded >= before && padded <= len + 1 + len / 8);
        before = padded;
    }
}

/* Opens `len` plaintext bytes, sealed as they stand, as a padded record. */
static int64_t opened_as_padded(engine *e, upseal_key *key, const uint8_t *text, size_t len,
                                uint8_t *out)
{
    uint8_t *sealed = dirty(24 + len + UPSEAL_TAG_LEN);
    int64_t opened;
    CHECK(upseal_seal_envelope(e->work, key, test_nonce, NULL, 0, NULL, 0, text, len, 0, sealed,
                               24 + len + UPSEAL_TAG_LEN) == UPSEAL_OK);
    opened = upseal_open_envelope(e->work, key, 0, NULL, 0, sealed, 24 + len + UPSEAL_TAG_LEN, 1,
                                  out, len);
    free(sealed);
    return opened;
}

static void test_markers(engine *e, uint8_t cipher)
{
    static const uint8_t wrong[] = {0x01, 0x40, 0x7f, 0x81, 0xc0, 0xff};
    upseal_key *key = new_key(cipher, 32);
    for (size_t len = 0; len <= 150; len++) {
        uint8_t *text = dirty(len), *out = dirty(len);
        /* The marker at every place: right where padding a record of that length gives len. */
        for (size_t at = 0; at < len; at++) {
            memset(text, 0xaa, at);
            text[at] = 0x80;
            memset(text + at + 1, 0, len - at - 1);
            memset(out, 0xaa, len);
            const int64_t opened = opened_as_padded(e, key, text, len, out);
            if (upseal_padded_len(at) == len) {
                CHECK(opened == (int64_t)at && memcmp(out, text, at) == 0);
            } else {
                CHECK(opened == UPSEAL_EFORGED && all_zero(out, len));
            }
        }
        /* No marker at all, another byte in its place, and something behind it. */
        for (size_t i = 0; len && i <= sizeof wrong; i++) {
            memset(text, 0, len);
            text[len - 1] = i < sizeof wrong ? wrong[i] : 0;
            CHECK(opened_as_padded(e, key, text, len, out) == UPSEAL_EFORGED);
            CHECK(all_zero(out, len));
            if (len < 2 || !text[len - 1]) continue;
            text[len - 2] = 0x80;
            CHECK(opened_as_padded(e, key, text, len, out) == UPSEAL_EFORGED);
            CHECK(all_zero(out, len));
        }
        if (!len) CHECK(opened_as_padded(e, key, text, 0, out) == UPSEAL_EFORGED);
        free(text);
        free(out);
    }
    upseal_key_free(key);
}

void test_padding(void)
{
    test_lengths();
    CIPHERS(cipher) ENGINES(e) test_markers(e, cipher);
}

void test_odds_and_ends(void)
{
    uint8_t *a = bytes(257, 1), *b = bytes(257, 1), material[45] = {0};
    CHECK(upseal_equal(a, b, 0) == 1);
    for (size_t i = 0; i < 257; i++)
        for (unsigned bit = 0; bit < 8; bit++) {
            b[i] ^= (uint8_t)(1u << bit);
            CHECK(upseal_equal(a, b, 257) == 0 && upseal_equal(a, b, i) == 1);
            b[i] ^= (uint8_t)(1u << bit);
        }
    CHECK(upseal_equal(a, b, 257) == 1);
    upseal_wipe(a, 256);
    CHECK(all_zero(a, 256) && a[256] == b[256]);
    upseal_wipe(a, 0);
    upseal_wipe(NULL, 0);
    free(a);
    free(b);

    const int32_t narrow[3] = {0, 5, INT32_MAX};
    int64_t wide[3];
    upseal_widen_offsets(narrow, 3, wide);
    CHECK(wide[0] == 0 && wide[1] == 5 && wide[2] == INT32_MAX);

    for (size_t len = 0; len <= sizeof material; len++)
        for (unsigned cipher = 0; cipher < 256; cipher++) {
            upseal_key *key = upseal_key_new((uint8_t)cipher, material, len);
            CHECK((key != NULL) == ((len == 32 || len == 44) && (cipher == 1 || cipher == 2)));
            upseal_key_free(key);
        }
    upseal_work_free(NULL);
    CHECK(upseal_work_new(8) == NULL && upseal_work_new(SIZE_MAX) == NULL);
    CHECK(upseal_backend_name(8) == NULL && upseal_backend_version(8) == NULL);
    CHECK(upseal_backend_test(8) == UPSEAL_EARGUMENT);
    CHECK(upseal_cpu_has_aes() == 0 || upseal_cpu_has_aes() == 1);
}
