/* SPDX-License-Identifier: Apache-2.0
 *
 * Envelopes and batches: published answers, round trips, backends against each other, and
 * every byte changed.
 */
#include "helpers.h"

#include <stdlib.h>
#include <string.h>

enum { PREFIX = 5, FRONT = PREFIX + UPSEAL_NONCE_LEN };
static const uint8_t prefix[PREFIX] = "USL!";
static const uint8_t context[] = "kind and context";

/* 0 to 300, and round the edges where implementations change their step. */
static size_t make_sizes(size_t sizes[512])
{
    static const size_t edges[] = {512, 1024, 4096, 16384, 65536};
    size_t count = 0;
    while (count <= 300) {
        sizes[count] = count;
        count++;
    }
    for (size_t i = 0; i < sizeof edges / sizeof edges[0]; i++)
        for (size_t size = edges[i] - 17; size <= edges[i] + 17; size++) sizes[count++] = size;
    return count;
}

void test_vectors(void)
{
    /* c2sp.org/XAES-256-GCM, "Test vectors"; the same inputs through libsodium's XChaCha20. */
    static const struct {
        uint8_t cipher, key;
        const char *aad;
        uint8_t sealed[28];
    } known[] = {
        {1, 1, "", {0xce, 0x54, 0x6e, 0xf6, 0x3c, 0x9c, 0xc6, 0x07, 0x65, 0x92, 0x36, 0x09, 0xb3, 0x3a,
                    0x9a, 0x19, 0x74, 0xe9, 0x6e, 0x52, 0xda, 0xf2, 0xfc, 0xf7, 0x07, 0x5e, 0x22, 0x71}},
        {1, 3, "c2sp.org/XAES-256-GCM",
         {0x98, 0x6e, 0xc1, 0x83, 0x25, 0x93, 0xdf, 0x54, 0x43, 0xa1, 0x79, 0x43, 0x7f, 0xd0,
          0x83, 0xbf, 0x3f, 0xdb, 0x41, 0xab, 0xd7, 0x40, 0xa2, 0x1f, 0x71, 0xeb, 0x76, 0x9d}},
        {2, 3, "c2sp.org/XAES-256-GCM",
         {0xcf, 0x0e, 0xea, 0xe1, 0xae, 0xe9, 0xbe, 0x1e, 0xd1, 0x76, 0x1e, 0x70, 0x3c, 0x26,
          0x5d, 0x28, 0x1c, 0x52, 0x22, 0xbd, 0x1d, 0x38, 0x90, 0xfa, 0xa5, 0xda, 0xbe, 0x21}},
    };
    ENGINES(e) for (size_t i = 0; i < sizeof known / sizeof known[0]; i++) {
        uint8_t material[32], out[24 + 28], opened[12];
        upseal_key *key;
        memset(material, known[i].key, sizeof material);
        key = upseal_key_new(known[i].cipher, material, sizeof material);
        CHECK(upseal_seal_envelope(e->work, key, test_nonce, NULL, 0,
                                   (const uint8_t *)known[i].aad, strlen(known[i].aad),
                                   (const uint8_t *)"XAES-256-GCM", 12, 0, out,
                                   sizeof out) == UPSEAL_OK);
        CHECK(memcmp(out, test_nonce, 24) == 0);
        CHECK(memcmp(out + 24, known[i].sealed, 28) == 0);
        CHECK(upseal_open_envelope(e->work, key, 0, (const uint8_t *)known[i].aad,
                                   strlen(known[i].aad), out, sizeof out, 0, opened,
                                   sizeof opened) == 12);
        CHECK(memcmp(opened, "XAES-256-GCM", 12) == 0);
        upseal_key_free(key);
    }
}

/* All sizes in one call, then each in a call of its own, with every backend. */
static void envelopes_of(uint8_t cipher, int padded)
{
    size_t sizes[512];
    const size_t count = make_sizes(sizes);
    packed in = pack(sizes, count);
    const size_t len = sealed_len(&in, padded) + FRONT * in.count;
    const size_t room = len - (FRONT + UPSEAL_TAG_LEN) * in.count;
    upseal_key *key = new_key(cipher, 32);
    uint8_t *reference = NULL;
    int64_t *ends = exactly((in.count + 1) * sizeof *ends);

    ends[0] = 0;
    for (size_t i = 0; i < in.count; i++)
        ends[i + 1] = ends[i] + FRONT + UPSEAL_TAG_LEN +
                      (int64_t)(padded ? upseal_padded_len(sizes[i]) : sizes[i]);
    CHECK((size_t)ends[in.count] == len);
    ENGINES(e) {
        uint8_t *sealed = dirty(len), *out = dirty(room);
        int64_t *offsets = exactly((in.count + 1) * sizeof *offsets);
        int8_t *results = exactly(in.count);
        CHECK(upseal_seal_envelopes(e->work, key, test_nonce, 3, prefix, PREFIX, context,
                                    sizeof context, in.values, in.values_len, in.offsets, in.count,
                                    padded, sealed, len, offsets) == UPSEAL_OK);
        CHECK(memcmp(offsets, ends, (in.count + 1) * sizeof *offsets) == 0);
        if (!reference) {
            reference = exactly(len);
            memcpy(reference, sealed, len);
        }
        CHECK(memcmp(reference, sealed, len) == 0);
        CHECK(upseal_open_envelopes(e->work, key, prefix, PREFIX, context, sizeof context, sealed,
                                    len, ends, in.count, padded, out, room, offsets,
                                    results) == UPSEAL_OK);
        CHECK(all_zero(results, in.count));
        CHECK(memcmp(offsets, in.offsets, (in.count + 1) * sizeof *offsets) == 0);
        CHECK(memcmp(out, in.values, in.values_len) == 0);
        for (size_t i = 0; i < in.count; i++) {
            const size_t one_len = (size_t)(ends[i + 1] - ends[i]);
            uint8_t *one = dirty(one_len), *report = dirty(one_len - FRONT - UPSEAL_TAG_LEN);
            memcpy(one, sealed + ends[i], FRONT);
            CHECK(memcmp(one, prefix, PREFIX) == 0);
            CHECK(upseal_seal_envelope(e->work, key, sealed + ends[i] + PREFIX, prefix, PREFIX,
                                       context, sizeof context, in.values + in.offsets[i],
                                       sizes[i], padded, one, one_len) == UPSEAL_OK);
            CHECK(memcmp(one, sealed + ends[i], one_len) == 0);
            const upseal_front same = {key, prefix, PREFIX, padded};
            memset(one, 0xee, one_len);
            CHECK(upseal_seal_report(e->work, NULL, sealed + ends[i] + PREFIX, context,
                                     sizeof context, in.values + in.offsets[i], sizes[i], one,
                                     one_len) == UPSEAL_EARGUMENT);
            CHECK(all_zero(one, one_len));
            CHECK(upseal_seal_report(e->work, &same, sealed + ends[i] + PREFIX, context,
                                     sizeof context, in.values + in.offsets[i], sizes[i], one,
                                     one_len) == UPSEAL_OK);
            CHECK(memcmp(one, sealed + ends[i], one_len) == 0);
            CHECK(upseal_open_envelope(e->work, key, PREFIX, context, sizeof context, one, one_len,
                                       padded, report, one_len - FRONT - UPSEAL_TAG_LEN) ==
                  (int64_t)sizes[i]);
            CHECK(memcmp(report, in.values + in.offsets[i], sizes[i]) == 0);
            free(one);
            free(report);
        }
        free(sealed);
        free(out);
        free(offsets);
        free(results);
    }
    free(reference);
    free(ends);
    unpack(&in);
    upseal_key_free(key);
}

/* A changed byte anywhere behind the prefix, a wrong context, and lengths that are too short. */
static void tampered_envelopes(engine *e, uint8_t cipher, int padded)
{
    enum { LEN = 37 };
    const size_t room = padded ? upseal_padded_len(LEN) : LEN;
    const size_t len = FRONT + room + UPSEAL_TAG_LEN;
    upseal_key *key = new_key(cipher, 32);
    uint8_t *in = bytes(LEN, 5), *sealed = dirty(3 * len);
    int64_t ends[4] = {0, (int64_t)len, (int64_t)(2 * len), (int64_t)(3 * len)};
    int64_t offsets[4];
    int8_t results[3];

    for (size_t i = 0; i < 3; i++)
        CHECK(upseal_seal_envelopes(e->work, key, test_nonce, (uint32_t)i, prefix, PREFIX, context,
                                    sizeof context, in, LEN, (const int64_t[]){0, LEN}, 1, padded,
                                    sealed + i * len, len, offsets) == UPSEAL_OK);
    /* Another prefix is another session's: skipped if one is given, not looked at if not. */
    for (size_t at = 0; at < PREFIX; at++) {
        uint8_t *all = dirty(3 * room);
        sealed[len + at] ^= 1;
        CHECK(upseal_open_envelopes(e->work, key, prefix, PREFIX, context, sizeof context, sealed,
                                    3 * len, ends, 3, padded, all, 3 * room, offsets,
                                    results) == UPSEAL_OK);
        CHECK(results[0] == UPSEAL_OK && results[1] == UPSEAL_OTHER && results[2] == UPSEAL_OK);
        CHECK(offsets[1] == LEN && offsets[2] == LEN && offsets[3] == 2 * LEN);
        CHECK(upseal_open_envelopes(e->work, key, NULL, PREFIX, context, sizeof context, sealed,
                                    3 * len, ends, 3, padded, all, 3 * room, offsets,
                                    results) == UPSEAL_OK);
        CHECK(all_zero(results, 3) && offsets[3] == 3 * LEN);
        sealed[len + at] ^= 1;
        free(all);
    }
    for (size_t at = PREFIX; at < len; at++) {
        uint8_t *out = dirty(room), *all = dirty(3 * room);
        sealed[len + at] ^= (uint8_t)(1u << at % 8);
        CHECK(upseal_open_envelope(e->work, key, PREFIX, context, sizeof context, sealed + len, len,
                                   padded, out, room) == UPSEAL_EFORGED);
        CHECK(all_zero(out, room));
        /* Its neighbours open all the same. */
        CHECK(upseal_open_envelopes(e->work, key, prefix, PREFIX, context, sizeof context, sealed,
                                    3 * len, ends, 3, padded, all, 3 * room, offsets,
                                    results) == UPSEAL_OK);
        CHECK(results[0] == UPSEAL_OK && results[1] == UPSEAL_EFORGED && results[2] == UPSEAL_OK);
        CHECK(offsets[1] == LEN && offsets[2] == LEN && offsets[3] == 2 * LEN);
        CHECK(memcmp(all, in, LEN) == 0 && memcmp(all + LEN, in, LEN) == 0);
        /* And where no neighbour comes after it, nothing of it is left. */
        CHECK(upseal_open_envelopes(e->work, key, prefix, PREFIX, context, sizeof context, sealed,
                                    2 * len, ends, 2, padded, all, 3 * room, offsets,
                                    results) == UPSEAL_OK);
        CHECK(results[1] == UPSEAL_EFORGED && offsets[2] == LEN && all_zero(all + LEN, room));
        sealed[len + at] ^= (uint8_t)(1u << at % 8);
        free(out);
        free(all);
    }
    for (size_t at = 0; at < sizeof context; at++) {
        uint8_t other[sizeof context], *out = dirty(room);
        memcpy(other, context, sizeof context);
        other[at] ^= 0x80;
        CHECK(upseal_open_envelope(e->work, key, PREFIX, other, sizeof other, sealed, len, padded,
                                   out, room) == UPSEAL_EFORGED);
        CHECK(all_zero(out, room));
        free(out);
    }
    for (size_t cut = 0; cut < len; cut++) {
        uint8_t *out = dirty(room), *part = exactly(cut);
        if (cut) memcpy(part, sealed, cut);
        CHECK(upseal_open_envelope(e->work, key, PREFIX, context, sizeof context, part, cut, padded,
                                   out, room) == UPSEAL_EFORGED);
        CHECK(all_zero(out, room));
        free(out);
        free(part);
    }
    free(in);
    free(sealed);
    upseal_key_free(key);
}

void test_envelopes(void)
{
    CIPHERS(cipher) for (int padded = 0; padded <= 1; padded++) {
        envelopes_of(cipher, padded);
        ENGINES(e) tampered_envelopes(e, cipher, padded);
    }
}

typedef struct {
    uint8_t *table, *records;
    size_t records_len;
    int64_t *ends;
} batch;

static void batch_aad(uint8_t aad[12], size_t count)
{
    const uint8_t start[12] = {2, 9, 9, 9, 9, 0, 0, (uint8_t)(count >> 8), (uint8_t)count, 'c', 't', 'x'};
    memcpy(aad, start, 12);
}

static batch seal_all(engine *e, const upseal_key *key, const packed *in, int padded)
{
    batch made = {dirty(4 * in->count), NULL, sealed_len(in, padded), NULL};
    uint8_t aad[12];
    made.records = dirty(made.records_len);
    made.ends = exactly((in->count + 1) * sizeof *made.ends);
    batch_aad(aad, in->count);
    CHECK(upseal_seal_batch(e->work, key, test_nonce, 0, aad, sizeof aad, in->values,
                            in->values_len, in->offsets, in->count, padded, made.table,
                            made.records, made.records_len) == UPSEAL_OK);
    CHECK(upseal_batch_offsets(made.table, in->count, padded, made.ends) == UPSEAL_OK);
    CHECK(made.ends[0] == 0 && (size_t)made.ends[in->count] == made.records_len);
    return made;
}

static void free_batch(batch *b)
{
    free(b->table);
    free(b->records);
    free(b->ends);
}

/* Whole batches, and the same in two calls, on every backend. */
static void batches_of(uint8_t cipher, int padded)
{
    size_t sizes[512];
    const size_t count = make_sizes(sizes);
    packed in = pack(sizes, count);
    upseal_key *key = new_key(cipher, 32);
    batch reference = {NULL, NULL, 0, NULL};

    ENGINES(e) {
        batch b = seal_all(e, key, &in, padded);
        const size_t room = b.records_len - UPSEAL_TAG_LEN * in.count, half = in.count / 2;
        uint8_t *out = dirty(room), aad[12];
        int64_t *offsets = exactly((in.count + 1) * sizeof *offsets);
        if (!reference.table) reference = seal_all(e, key, &in, padded);
        CHECK(memcmp(reference.table, b.table, 4 * in.count) == 0);
        CHECK(memcmp(reference.records, b.records, b.records_len) == 0);
        batch_aad(aad, in.count);
        CHECK(upseal_open_batch(e->work, key, test_nonce, 0, aad, sizeof aad, b.records,
                                b.records_len, b.ends, in.count, padded, out, room,
                                offsets) == UPSEAL_OK);
        CHECK(memcmp(offsets, in.offsets, (in.count + 1) * sizeof *offsets) == 0);
        CHECK(memcmp(out, in.values, in.values_len) == 0);
        free(out);
        /* The second half alone, opened and sealed, is that of the whole. */
        const size_t part = (size_t)(b.ends[in.count] - b.ends[half]);
        const size_t part_room = part - UPSEAL_TAG_LEN * (in.count - half);
        uint8_t *again = dirty(part), *table = dirty(4 * (in.count - half));
        out = dirty(part_room);
        CHECK(upseal_open_batch(e->work, key, test_nonce, (uint32_t)half, aad, sizeof aad,
                                b.records + b.ends[half], part, b.ends + half, in.count - half,
                                padded, out, part_room, offsets) == UPSEAL_OK);
        CHECK(memcmp(out, in.values + in.offsets[half], (size_t)offsets[in.count - half]) == 0);
        CHECK(upseal_seal_batch(e->work, key, test_nonce, (uint32_t)half, aad, sizeof aad,
                                in.values + in.offsets[half],
                                in.values_len - (size_t)in.offsets[half], in.offsets + half,
                                in.count - half, padded, table, again, part) == UPSEAL_OK);
        CHECK(memcmp(again, b.records + b.ends[half], part) == 0);
        CHECK(memcmp(table, b.table + 4 * half, 4 * (in.count - half)) == 0);
        free(out);
        free(again);
        free(table);
        free(offsets);
        free_batch(&b);
    }
    free_batch(&reference);
    unpack(&in);
    upseal_key_free(key);
}

/* One wrong byte anywhere gives no byte of any record. */
static void tampered_batches(engine *e, uint8_t cipher, int padded)
{
    packed in = pack((const size_t[]){20, 0, 33, 64}, 4);
    upseal_key *key = new_key(cipher, 32);
    batch b = seal_all(e, key, &in, padded);
    const size_t room = b.records_len - 4 * UPSEAL_TAG_LEN;

    for (size_t at = 0; at <= b.records_len + 24 + 12; at++) {
        uint8_t nonce[24], aad[12], *out = dirty(room), *offsets = dirty(5 * sizeof(int64_t));
        upseal_status status;
        memcpy(nonce, test_nonce, sizeof nonce);
        batch_aad(aad, 4);
        if (at < b.records_len)
            b.records[at] ^= 1;
        else if (at < b.records_len + 24)
            nonce[at - b.records_len] ^= 1;
        else if (at < b.records_len + 36)
            aad[at - b.records_len - 24] ^= 1;
        status = upseal_open_batch(e->work, key, nonce, 0, aad, sizeof aad, b.records,
                                   b.records_len, b.ends, 4, padded, out, room,
                                   (int64_t *)(void *)offsets);
        if (at < b.records_len) b.records[at] ^= 1;
        /* Bytes 1 to 4 of the AAD are written by the call; the last turn changes nothing. */
        if (at == b.records_len + 36 || (at > b.records_len + 24 && at <= b.records_len + 28)) {
            CHECK(status == UPSEAL_OK);
        } else {
            CHECK(status == UPSEAL_EFORGED);
            CHECK(all_zero(out, room) && all_zero(offsets, 5 * sizeof(int64_t)));
        }
        free(out);
        free(offsets);
    }
    free_batch(&b);
    unpack(&in);
    upseal_key_free(key);
}

void test_batches(void)
{
    CIPHERS(cipher) for (int padded = 0; padded <= 1; padded++) {
        batches_of(cipher, padded);
        ENGINES(e) tampered_batches(e, cipher, padded);
    }
}
