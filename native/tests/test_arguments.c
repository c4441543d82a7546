/* SPDX-License-Identifier: Apache-2.0
 *
 * Wrong arguments: each is refused, and leaves every output zero over its whole length.
 */
#include "helpers.h"

#include <stdlib.h>
#include <string.h>

enum { FRONT = UPSEAL_NONCE_LEN, TAG = UPSEAL_TAG_LEN };

/* A call with its outputs; a test changes what it wants wrong before calling. */
typedef struct {
    engine *e;
    upseal_key *key;
    const uint8_t *nonce;
    uint32_t first;
    size_t aad_len, prefix_len;
    const uint8_t *values;
    size_t values_len;
    const int64_t *offsets;
    size_t count;
    int padded;
    uint8_t *out, *table;
    size_t out_len;
} call;

typedef upseal_status (*caller)(call *c);

static upseal_status seal_envelopes(call *c)
{
    static const uint8_t aad[16], prefix[8];
    return upseal_seal_envelopes(c->e->work, c->key, c->nonce, c->first, prefix, c->prefix_len, aad,
                                 c->aad_len, c->values, c->values_len, c->offsets, c->count,
                                 c->padded, c->out, c->out_len,
                                 (int64_t *)(void *)c->table);
}

static upseal_status seal_batch(call *c)
{
    uint8_t aad[16] = {2};
    return upseal_seal_batch(c->e->work, c->key, c->nonce, c->first, aad, c->aad_len, c->values,
                             c->values_len, c->offsets, c->count, c->padded, c->table, c->out,
                             c->out_len);
}

/* Here `values` are sealed records and `table` holds the offsets of what was opened. */
static upseal_status open_batch(call *c)
{
    uint8_t aad[16] = {2};
    return upseal_open_batch(c->e->work, c->key, c->nonce, c->first, aad, c->aad_len, c->values,
                             c->values_len, c->offsets, c->count, c->padded, c->out, c->out_len,
                             (int64_t *)(void *)c->table);
}

static upseal_status open_envelopes(call *c)
{
    static const uint8_t aad[16];
    int8_t *results = (int8_t *)dirty(c->count);
    upseal_status status = upseal_open_envelopes(
        c->e->work, c->key, NULL, c->prefix_len, aad, c->aad_len, c->values, c->values_len, c->offsets,
        c->count, c->padded, c->out, c->out_len, (int64_t *)(void *)c->table, results);
    for (size_t i = 0; status != UPSEAL_OK && i < c->count; i++) CHECK(results[i] == UPSEAL_EFORGED);
    free(results);
    return status;
}

/* The outputs are made anew, dirty and of exactly the lengths said; all must be zero after. */
static void refused(caller run, call c, size_t table_len)
{
    c.out = dirty(c.out_len);
    c.table = dirty(table_len);
    CHECK(run(&c) == UPSEAL_EARGUMENT);
    CHECK(all_zero(c.out, c.out_len));
    CHECK(all_zero(c.table, table_len));
    free(c.out);
    free(c.table);
}

static void wrong_offsets(caller run, call c, size_t table_len)
{
    static const int64_t tables[][3] = {
        {0, 90, 60},            /* falls */
        {60, 30, 90},           /* falls at once */
        {0, 30, 91},            /* leaves the values */
        {1000, 1030, 1091},
        {0, 91, 90},            /* leaves them and comes back */
        {-1, 30, 60},           /* starts before them */
        {INT64_MIN, 0, 90},     /* a difference beyond int64 */
        {0, INT64_MAX, 90},
        {0, 30, INT64_MAX},
        {0, 30, -1},
        {-1, -1, -1},
    };
    for (size_t i = 0; i < sizeof tables / sizeof tables[0]; i++) {
        c.offsets = tables[i];
        refused(run, c, table_len);
    }
    c.offsets = NULL;
    refused(run, c, table_len);
}

static void wrong_keys(caller run, call c, size_t table_len)
{
    CIPHERS(cipher) {
        upseal_key *chunks = new_key(cipher, 44);
        c.key = chunks;
        refused(run, c, table_len);
        upseal_key_free(chunks);
    }
    c.key = NULL;
    refused(run, c, table_len);
}

static void wrong_places(caller run, call c, size_t table_len)
{
    static const uint32_t firsts[] = {(1u << 20) - 1, 1u << 20, 1u << 31, UINT32_MAX};
    for (size_t i = 0; i < sizeof firsts / sizeof firsts[0]; i++) {
        c.first = firsts[i];
        refused(run, c, table_len);
    }
}

static void test_records(engine *e, uint8_t cipher)
{
    static const int64_t offsets[3] = {0, 40, 90}, short_record[3] = {0, TAG - 1, 90};
    upseal_key *key = new_key(cipher, 32);
    uint8_t *values = bytes(90, 1);
    call good = {.e = e, .key = key, .nonce = test_nonce, .aad_len = 12, .values = values,
                 .values_len = 90, .offsets = offsets, .count = 2};
    call c;

    /* Sealing: the lengths of out must be exactly right. */
    for (int padded = 0; padded <= 1; padded++) {
        good.padded = padded;
        const size_t total = (padded ? upseal_padded_len(40) + upseal_padded_len(50) : 90) + 2 * TAG;
        for (size_t wrong = 0; wrong <= total + 2 * FRONT + 2; wrong++) {
            c = good;
            c.out_len = wrong;
            if (wrong != total + 2 * FRONT) refused(seal_envelopes, c, 3 * sizeof(int64_t));
            if (wrong != total) refused(seal_batch, c, 8);
        }
        c = good;
        c.out_len = total + 2 * FRONT;
        wrong_offsets(seal_envelopes, c, 3 * sizeof(int64_t));
        wrong_keys(seal_envelopes, c, 3 * sizeof(int64_t));
        wrong_places(seal_envelopes, c, 3 * sizeof(int64_t));
        c.nonce = NULL;
        refused(seal_envelopes, c, 3 * sizeof(int64_t));
        c = good;
        c.out_len = total;
        wrong_offsets(seal_batch, c, 8);
        wrong_keys(seal_batch, c, 8);
        wrong_places(seal_batch, c, 8);
        for (c.aad_len = 0; c.aad_len < UPSEAL_BATCH_AAD_MIN; c.aad_len++) refused(seal_batch, c, 8);
        c.aad_len = 12;
        c.nonce = NULL;
        refused(seal_batch, c, 8);
    }

    /* Opening a batch: two sealed records of 40 and 50 bytes. */
    good.padded = 0;
    good.out_len = 90 - 2 * TAG;
    for (c = good, c.out_len = 0; c.out_len < 90 - 2 * TAG; c.out_len++)
        refused(open_batch, c, 3 * sizeof(int64_t));
    wrong_offsets(open_batch, good, 3 * sizeof(int64_t));
    wrong_keys(open_batch, good, 3 * sizeof(int64_t));
    wrong_places(open_batch, good, 3 * sizeof(int64_t));
    for (c = good, c.aad_len = 0; c.aad_len < UPSEAL_BATCH_AAD_MIN; c.aad_len++)
        refused(open_batch, c, 3 * sizeof(int64_t));
    c = good;
    c.offsets = short_record;
    refused(open_batch, c, 3 * sizeof(int64_t));
    c = good;
    c.nonce = NULL;
    refused(open_batch, c, 3 * sizeof(int64_t));

    /* Opening envelopes: too little room, wrong offsets. */
    good.out_len = 90 - 2 * (FRONT + TAG);
    for (c = good, c.out_len = 0; c.out_len < 50 - FRONT - TAG; c.out_len++)
        refused(open_envelopes, c, 3 * sizeof(int64_t));
    wrong_offsets(open_envelopes, good, 3 * sizeof(int64_t));
    wrong_keys(open_envelopes, good, 3 * sizeof(int64_t));

    upseal_key_free(key);
    free(values);
}

/* Records of 2^24 bytes are the longest, and one record under a nonce comes after 2^20 - 1. */
static void test_limits(engine *e, uint8_t cipher)
{
    const size_t longest = UPSEAL_RECORD_MAX;
    upseal_key *key = new_key(cipher, 32);
    uint8_t *values = bytes(longest + 1, 1), *out = dirty(longest + 1 + TAG), *opened, table[4];
    int64_t offsets[2] = {0, (int64_t)longest}, ends[2];
    uint8_t aad[9] = {2};
    uint64_t len;

    CHECK(upseal_seal_batch(e->work, key, test_nonce, UPSEAL_RECORDS_MAX - 1, aad, 9, values,
                            longest, offsets, 1, 0, table, out, longest + TAG) == UPSEAL_OK);
    CHECK(memcmp(aad + 1, "\x00\x0f\xff\xff", 4) == 0);
    CHECK(upseal_batch_offsets(table, 1, 0, ends) == UPSEAL_OK && ends[1] == (int64_t)longest + TAG);
    opened = dirty(longest);
    CHECK(upseal_open_batch(e->work, key, test_nonce, UPSEAL_RECORDS_MAX - 1, aad, 9, out,
                            longest + TAG, ends, 1, 0, opened, longest, offsets) == UPSEAL_OK);
    CHECK(offsets[1] == (int64_t)longest && memcmp(opened, values, longest) == 0);

    offsets[1] = (int64_t)longest + 1;
    CHECK(upseal_records_measure(longest + 1, offsets, 1, 0, &len) == UPSEAL_EARGUMENT && len == 0);
    CHECK(upseal_seal_batch(e->work, key, test_nonce, 0, aad, 9, values, longest + 1, offsets, 1, 0,
                            table, out, longest + 1 + TAG) == UPSEAL_EARGUMENT);
    CHECK(all_zero(out, longest + 1 + TAG) && all_zero(table, 4));
    ends[1] = (int64_t)longest + 1 + TAG;
    memset(opened, 0xaa, longest);
    CHECK(upseal_open_batch(e->work, key, test_nonce, 0, aad, 9, out, longest + 1 + TAG, ends, 1, 0,
                            opened, longest, offsets) == UPSEAL_EARGUMENT);
    CHECK(all_zero(opened, longest) && all_zero(offsets, sizeof offsets));
    /* Padded, the longest is one byte shorter: the marker needs room. */
    offsets[1] = (int64_t)longest;
    CHECK(upseal_records_measure(longest, offsets, 1, 1, &len) == UPSEAL_EARGUMENT);
    offsets[1] = (int64_t)longest - 1;
    CHECK(upseal_records_measure(longest, offsets, 1, 1, &len) == UPSEAL_OK);
    CHECK(len == longest + TAG);
    free(values);
    free(out);
    free(opened);
    upseal_key_free(key);
}

static void test_tables(void)
{
    static const struct {
        uint8_t sealed[4];
        int padded;
        upseal_status status;
    } cases[] = {
        {{0, 0, 0, 16}, 0, UPSEAL_OK},      {{0, 0, 0, 15}, 0, UPSEAL_EFORGED},
        {{0, 0, 0, 0}, 0, UPSEAL_EFORGED},  {{0, 0, 0, 16}, 1, UPSEAL_EFORGED},
        {{0, 0, 0, 17}, 1, UPSEAL_OK},      {{1, 0, 0, 16}, 0, UPSEAL_OK},
        {{1, 0, 0, 17}, 0, UPSEAL_EFORGED}, {{255, 255, 255, 255}, 0, UPSEAL_EFORGED},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        uint8_t table[8] = {0, 0, 0, 99};
        uint8_t *offsets = dirty(3 * sizeof(int64_t));
        memcpy(table + 4, cases[i].sealed, 4);
        CHECK(upseal_batch_offsets(table, 2, cases[i].padded, (int64_t *)(void *)offsets) ==
              cases[i].status);
        CHECK(all_zero(offsets, 3 * sizeof(int64_t)) == (cases[i].status != UPSEAL_OK));
        free(offsets);
    }
}

static void chunks_refused(engine *e, const upseal_key *key, uint64_t first, int last,
                           size_t in_len, size_t out_len)
{
    uint8_t *in = bytes(in_len, 2), *out = dirty(out_len);
    size_t opened = 99;
    CHECK(upseal_seal_chunks(e->work, key, first, last, in, in_len, out, out_len) ==
          UPSEAL_EARGUMENT);
    CHECK(all_zero(out, out_len));
    free(out);
    out = dirty(in_len);
    /* The same shape the other way round. */
    free(in);
    in = bytes(out_len, 2);
    CHECK(upseal_open_chunks(e->work, key, first, last, in, out_len, out, in_len, &opened) ==
          UPSEAL_EARGUMENT);
    CHECK(opened == 0 && all_zero(out, in_len));
    free(out);
    out = dirty(in_len);
    CHECK(upseal_open_chunks_private(e->work, key, first, last, in, out_len, out, in_len) ==
          UPSEAL_EARGUMENT);
    CHECK(all_zero(out, in_len));
    free(in);
    free(out);
}

static void test_chunk_arguments(engine *e, uint8_t cipher)
{
    const uint64_t limit = UPSEAL_CHUNKS_MAX;
    const size_t chunk = UPSEAL_CHUNK_LEN, sealed = UPSEAL_SEALED_CHUNK_LEN;
    upseal_key *key = new_key(cipher, 44), *records = new_key(cipher, 32);
    uint8_t out[TAG + 1], one = 0;
    size_t opened;

    chunks_refused(e, records, 0, 1, 40, 40 + TAG);
    chunks_refused(e, NULL, 0, 1, 40, 40 + TAG);
    chunks_refused(e, key, limit, 1, 40, 40 + TAG);
    chunks_refused(e, key, limit, 0, chunk, sealed);
    chunks_refused(e, key, limit - 1, 1, chunk + 40, sealed + 40 + TAG);
    chunks_refused(e, key, limit - 1, 0, 2 * chunk, 2 * sealed);
    chunks_refused(e, key, UINT64_MAX, 1, 40, 40 + TAG);
    chunks_refused(e, key, UINT64_MAX, 0, chunk, sealed);
    chunks_refused(e, key, 0, 0, 40, 40 + TAG);             /* a short chunk that is not last */
    chunks_refused(e, key, 0, 0, chunk + 1, sealed + 1 + TAG);
    chunks_refused(e, key, 0, 0, 40, 40);
    chunks_refused(e, key, 0, 0, chunk + 1, sealed + 1);

    /* Sealing wants exactly the length, opening at least the plaintext's. */
    uint8_t *in = bytes(chunk + 40, 1), *room = dirty(sealed + 60);
    for (size_t len = sealed + 40; len <= sealed + 60; len++) {
        upseal_status status;
        memset(room, 0xaa, sealed + 60);
        status = upseal_seal_chunks(e->work, key, 0, 1, in, chunk + 40, room, len);
        CHECK(status == (len == sealed + 40 + TAG ? UPSEAL_OK : UPSEAL_EARGUMENT));
        CHECK(status == UPSEAL_OK || all_zero(room, len));
        CHECK(all_dirty(room + len, sealed + 60 - len));
    }
    CHECK(upseal_seal_chunks(e->work, key, 0, 1, in, 0, out, TAG) == UPSEAL_OK);
    CHECK(upseal_seal_chunks(e->work, key, 0, 1, NULL, 0, out, TAG) == UPSEAL_OK);
    CHECK(upseal_open_chunks(e->work, key, 0, 1, out, TAG, &one, 0, &opened) == UPSEAL_OK);
    CHECK(upseal_open_chunks(e->work, key, 0, 1, out, TAG - 1, &one, 1, &opened) ==
          UPSEAL_EARGUMENT);
    CHECK(upseal_open_chunks(e->work, key, 0, 1, out, 0, &one, 1, &opened) == UPSEAL_EARGUMENT);
    CHECK(upseal_open_chunks(e->work, key, 0, 1, out, TAG + 1, &one, 0, &opened) ==
          UPSEAL_EARGUMENT);
    CHECK(upseal_open_chunks_private(e->work, key, 0, 1, out, TAG, NULL, 0) == UPSEAL_OK);
    CHECK(upseal_open_chunks_private(e->work, key, 0, 1, out, TAG + 1, &one, 0) ==
          UPSEAL_EARGUMENT);
    CHECK(upseal_open_chunks_private(NULL, key, 0, 1, out, TAG, &one, 1) == UPSEAL_EARGUMENT);
    CHECK(upseal_seal_chunks(NULL, key, 0, 1, in, 1, out, TAG + 1) == UPSEAL_EARGUMENT);
    CHECK(all_zero(out, TAG + 1));
    free(in);
    free(room);
    upseal_key_free(key);
    upseal_key_free(records);
}

/* Empty records may come without any bytes to point at. */
static void test_nothing(engine *e, uint8_t cipher)
{
    static const int64_t offsets[3] = {0, 0, 0};
    upseal_key *key = new_key(cipher, 32);
    uint8_t sealed[2 * (FRONT + TAG)], table[8], aad[9] = {2}, none;
    int64_t ends[3] = {0, FRONT + TAG, 2 * (FRONT + TAG)}, opened[3];
    int8_t results[2];

    CHECK(upseal_seal_envelopes(e->work, key, test_nonce, 0, NULL, 0, NULL, 0, NULL, 0, offsets, 2, 0,
                                sealed, sizeof sealed, opened) == UPSEAL_OK);
    CHECK(upseal_open_envelopes(e->work, key, NULL, 0, NULL, 0, sealed, sizeof sealed, ends, 2, 0, &none, 0,
                                opened, results) == UPSEAL_OK);
    CHECK(all_zero(results, 2) && all_zero(opened, sizeof opened));
    CHECK(upseal_seal_batch(e->work, key, test_nonce, 0, aad, 9, NULL, 0, offsets, 2, 0, table, sealed,
                            2 * TAG) == UPSEAL_OK);
    CHECK(upseal_batch_offsets(table, 2, 0, ends) == UPSEAL_OK);
    CHECK(upseal_open_batch(e->work, key, test_nonce, 0, aad, 9, sealed, 2 * TAG, ends, 2, 0, &none, 0,
                            opened) == UPSEAL_OK);
    CHECK(upseal_seal_envelopes(e->work, key, test_nonce, 0, NULL, 0, NULL, 0, NULL, 0, offsets, 0, 0,
                                NULL, 0, opened) == UPSEAL_OK);
    /* Envelopes of no bytes are of another session. */
    CHECK(upseal_open_envelopes(e->work, key, aad, sizeof aad, NULL, 0, NULL, 0, offsets, 2, 0, &none,
                                0, opened, results) == UPSEAL_OK);
    CHECK(results[0] == UPSEAL_OTHER && results[1] == UPSEAL_OTHER && all_zero(opened, sizeof opened));
    CHECK(upseal_open_envelopes(e->work, key, aad, 0, NULL, 0, NULL, 0, offsets, 2, 0, &none, 0,
                                opened, results) == UPSEAL_OK);
    CHECK(results[0] == UPSEAL_EFORGED && results[1] == UPSEAL_EFORGED);
    upseal_large_pages(NULL, 0);
    upseal_key_free(key);
}

void test_arguments(void)
{
    test_tables();
    CIPHERS(cipher) ENGINES(e) {
        test_records(e, cipher);
        test_limits(e, cipher);
        test_chunk_arguments(e, cipher);
        test_nothing(e, cipher);
    }
}
