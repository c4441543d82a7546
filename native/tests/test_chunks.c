/* SPDX-License-Identifier: Apache-2.0
 *
 * Chunks of uploads: round trips in every split, places near the limit, changed bytes.
 */
#include "aead.h" /* to look into a work space */
#include "helpers.h"

#include <stdlib.h>
#include <string.h>

enum { CHUNK = UPSEAL_CHUNK_LEN, SEALED = UPSEAL_SEALED_CHUNK_LEN };

static size_t sealed_size(size_t len) { return len + UPSEAL_TAG_LEN * (len / CHUNK + 1); }

/* The whole in one call, then whole chunks first and the rest after: the same bytes. */
static void round_trip(uint8_t cipher, size_t len)
{
    const size_t total = sealed_size(len), whole = len / CHUNK;
    upseal_key *key = new_key(cipher, 44);
    uint8_t *in = bytes(len, 3), *reference = NULL;

    ENGINES(e) {
        uint8_t *sealed = dirty(total), *split = dirty(total), *out = dirty(len);
        size_t opened = 99, before;
        CHECK(upseal_seal_chunks(e->work, key, 0, 1, in, len, sealed, total) == UPSEAL_OK);
        CHECK(upseal_seal_chunks(e->work, key, 0, 0, in, whole * CHUNK, split, whole * SEALED) ==
              UPSEAL_OK);
        CHECK(upseal_seal_chunks(e->work, key, whole, 1, in + whole * CHUNK, len % CHUNK,
                                 split + whole * SEALED, total - whole * SEALED) == UPSEAL_OK);
        CHECK(memcmp(sealed, split, total) == 0);
        if (!reference) {
            reference = exactly(total);
            memcpy(reference, sealed, total);
        }
        CHECK(memcmp(reference, sealed, total) == 0);
        CHECK(upseal_open_chunks(e->work, key, 0, 1, sealed, total, out, len, &opened) ==
              UPSEAL_OK);
        CHECK(opened == len && memcmp(out, in, len) == 0);
        if (len) memset(out, 0xaa, len);
        CHECK(upseal_open_chunks(e->work, key, 0, 0, sealed, whole * SEALED, out, len, &before) ==
              UPSEAL_OK);
        CHECK(upseal_open_chunks(e->work, key, whole, 1, sealed + whole * SEALED,
                                 total - whole * SEALED, out + before, len - before,
                                 &opened) == UPSEAL_OK);
        CHECK(before == whole * CHUNK && opened == len % CHUNK && memcmp(out, in, len) == 0);
        if (len) memset(out, 0xaa, len);
        CHECK(upseal_open_chunks_private(e->work, key, 0, 1, sealed, total, out, len) == UPSEAL_OK);
        CHECK(memcmp(out, in, len) == 0);
        free(sealed);
        free(split);
        free(out);
    }
    free(in);
    free(reference);
    upseal_key_free(key);
}

/* Two whole chunks and a short one. What comes before the first bad chunk is given, no more; and
 * of private memory nothing. */
static void tampered(engine *e, uint8_t cipher)
{
    enum { LEN = 2 * CHUNK + 40 };
    const size_t total = sealed_size(LEN);
    upseal_key *key = new_key(cipher, 44);
    uint8_t *in = bytes(LEN, 3), *sealed = dirty(total);
    size_t opened;

    CHECK(upseal_seal_chunks(e->work, key, 5, 1, in, LEN, sealed, total) == UPSEAL_OK);
    for (size_t at = 0; at < total; at += at % SEALED < 32 || at % SEALED > SEALED - 40 ? 1 : 389) {
        uint8_t *out = dirty(LEN);
        const size_t good = at / SEALED * CHUNK;
        sealed[at] ^= 0x10;
        memset(e->work->chunk, 0xaa, CHUNK);
        CHECK(upseal_open_chunks(e->work, key, 5, 1, sealed, total, out, LEN, &opened) ==
              UPSEAL_EFORGED);
        CHECK(all_zero(e->work->chunk, CHUNK)); /* went by way of it, and nothing is left there */
        CHECK(opened == good && memcmp(out, in, good) == 0);
        CHECK(all_zero(out + good, LEN - good));
        memset(out, 0xaa, LEN);
        CHECK(upseal_open_chunks_private(e->work, key, 5, 1, sealed, total, out, LEN) ==
              UPSEAL_EFORGED);
        CHECK(all_zero(out, LEN));
        sealed[at] ^= 0x10;
        free(out);
    }
    /* Cut between chunks, taken for another place, or swapped. */
    uint8_t *out = dirty(LEN);
    CHECK(upseal_open_chunks(e->work, key, 5, 1, sealed, total - 1, out, LEN, &opened) ==
          UPSEAL_EFORGED);
    CHECK(opened == 2 * CHUNK && all_zero(out + opened, LEN - opened));
    memset(out, 0xaa, LEN);
    CHECK(upseal_open_chunks(e->work, key, 4, 1, sealed, total, out, LEN, &opened) ==
          UPSEAL_EFORGED);
    CHECK(opened == 0 && all_zero(out, LEN));
    memset(out, 0xaa, LEN);
    CHECK(upseal_open_chunks(e->work, key, 5, 0, sealed + SEALED, SEALED, out, LEN, &opened) ==
          UPSEAL_EFORGED);
    CHECK(opened == 0 && all_zero(out, LEN));
    free(out);
    free(in);
    free(sealed);
    upseal_key_free(key);
}

/* Chunk k counts up to 2^38 - 1, and each k has its own nonce. */
static void test_places(engine *e, uint8_t cipher)
{
    static const uint64_t places[] = {0,          1,           255,         256,
                                      UINT32_MAX, 1ull << 32,  (1ull << 38) - 2, (1ull << 38) - 1};
    enum { PLACES = sizeof places / sizeof places[0], LEN = 40 };
    upseal_key *key = new_key(cipher, 44);
    uint8_t in[LEN] = {0}, sealed[PLACES][LEN + UPSEAL_TAG_LEN];
    for (size_t i = 0; i < PLACES; i++) {
        uint8_t out[LEN];
        size_t opened;
        CHECK(upseal_seal_chunks(e->work, key, places[i], 1, in, LEN, sealed[i],
                                 sizeof sealed[i]) == UPSEAL_OK);
        for (size_t j = 0; j < i; j++) CHECK(memcmp(sealed[i], sealed[j], LEN) != 0);
        CHECK(upseal_open_chunks(e->work, key, places[i], 1, sealed[i], sizeof sealed[i], out, LEN,
                                 &opened) == UPSEAL_OK);
        CHECK(opened == LEN && memcmp(in, out, LEN) == 0);
    }
    upseal_key_free(key);
}

void test_chunks(void)
{
    static const size_t edges[] = {CHUNK, 2 * CHUNK, 5 * CHUNK};
    CIPHERS(cipher) {
        for (size_t len = 0; len <= 300; len++) round_trip(cipher, len);
        for (size_t i = 0; i < sizeof edges / sizeof edges[0]; i++)
            for (size_t len = edges[i] - 17; len <= edges[i] + 17; len++) round_trip(cipher, len);
        ENGINES(e) {
            tampered(e, cipher);
            test_places(e, cipher);
        }
    }
}
