/* SPDX-License-Identifier: Apache-2.0
 *
 * Everything of ours that touches secrets, with the secrets marked (secrets.h): session secrets,
 * keys, and plaintext.  Under memcheck or MemorySanitizer a branch or an address that depends on
 * one of them is an error.  Sealed bytes are public once they are made, and so are lengths.
 *
 * follow BACKEND    by name; it need not have passed its test, since valgrind's CPU has no VAES
 * follow leaky-...  code that must be found out: equal, unpad, table, double
 */
#include "aead.h"
#include "leaky.h"
#include "secrets.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { PREFIX = 40, FRONT = PREFIX + UPSEAL_NONCE_LEN, MOST = 5000, COUNT = 4 };

static const uint8_t prefix[PREFIX] = "what stands before the nonce", context[] = "kind, context";
static const uint8_t nonce[24] = "ABCDEFGHIJKLMNOPQRSTUVWX";
static const size_t sizes[] = {0, 1, 15, 16, 17, 33, 100, 255, 256, 257, 1000, 4096, MOST};
static unsigned long checked;

static void must(int good, const char *what)
{
    checked++;
    if (good) return;
    printf("not as it must be: %s\n", what);
    exit(2);
}
#define MUST(condition) must((condition), #condition)

static uint8_t *secret_bytes(size_t len, unsigned seed)
{
    uint8_t *data = calloc(1, len + 1);
    MUST(data != NULL);
    for (size_t i = 0; i < len; i++) data[i] = (uint8_t)(i * 7 + (size_t)seed * 31 + 1);
    UPSEAL_SECRET(data, len);
    return data;
}

/* Compares what was opened, without telling the tool that it may be looked at elsewhere. */
static int same(const uint8_t *a, const uint8_t *b, size_t len)
{
    uint8_t differ = 0;
    for (size_t i = 0; i < len; i++) differ |= (uint8_t)(a[i] ^ b[i]);
    UPSEAL_PUBLIC(&differ, 1);
    return differ == 0;
}

static void one_record(upseal_work *work, const upseal_key *key, size_t len, int padded)
{
    const size_t held = padded ? upseal_padded_len(len) : len;
    const size_t sealed_len = FRONT + held + UPSEAL_TAG_LEN;
    uint8_t *report = secret_bytes(len, 3), *sealed = calloc(1, sealed_len);
    uint8_t *opened = calloc(1, held + 1);
    MUST(sealed && opened);
    MUST(!upseal_seal_envelope(work, key, nonce, prefix, PREFIX, context, sizeof context, report,
                               len, padded, sealed, sealed_len));
    UPSEAL_PUBLIC(sealed, sealed_len);
    MUST(upseal_open_envelope(work, key, PREFIX, context, sizeof context, sealed, sealed_len,
                              padded, opened, held) == (int64_t)len);
    MUST(same(opened, report, len));
    /* A report of the other kind: its tag is right, and its padding mostly is not. */
    if (!padded && len)
        (void)!upseal_open_envelope(work, key, PREFIX, context, sizeof context, sealed, sealed_len,
                                    1, opened, held);
    for (size_t at = sealed_len - UPSEAL_TAG_LEN; at < sealed_len; at += UPSEAL_TAG_LEN - 1) {
        sealed[at] ^= 0x80; /* the tag's first byte, then its last */
        MUST(upseal_open_envelope(work, key, PREFIX, context, sizeof context, sealed, sealed_len,
                                  padded, opened, held) == UPSEAL_EFORGED);
        sealed[at] ^= 0x80;
    }
    free(report);
    free(sealed);
    free(opened);
}

static void batch(upseal_work *work, const upseal_key *key, int padded)
{
    static const int64_t offsets[COUNT + 1] = {0, 0, 100, 1100, MOST};
    int64_t ends[COUNT + 1], opened_ends[COUNT + 1];
    uint8_t aad[9] = {2, 0, 0, 0, 0, 0, 0, 0, COUNT}, table[4 * COUNT];
    uint64_t sealed_len;
    uint8_t *reports = secret_bytes(MOST, 4);
    MUST(!upseal_records_measure(MOST, offsets, COUNT, padded, &sealed_len));
    const size_t held = (size_t)sealed_len - COUNT * UPSEAL_TAG_LEN;
    uint8_t *sealed = calloc(1, (size_t)sealed_len), *opened = calloc(1, held);
    MUST(sealed && opened);
    MUST(!upseal_seal_batch(work, key, nonce, 0, aad, sizeof aad, reports, MOST, offsets, COUNT,
                            padded, table, sealed, (size_t)sealed_len));
    UPSEAL_PUBLIC(sealed, (size_t)sealed_len);
    MUST(!upseal_batch_offsets(table, COUNT, padded, ends));
    MUST(!upseal_open_batch(work, key, nonce, 0, aad, sizeof aad, sealed, (size_t)sealed_len, ends,
                            COUNT, padded, opened, held, opened_ends));
    MUST(opened_ends[COUNT] == MOST && same(opened, reports, MOST));
    sealed[sealed_len - 1] ^= 1;
    MUST(upseal_open_batch(work, key, nonce, 0, aad, sizeof aad, sealed, (size_t)sealed_len, ends,
                           COUNT, padded, opened, held, opened_ends) == UPSEAL_EFORGED);
    free(reports);
    free(sealed);
    free(opened);
}

static void chunks(upseal_work *work, const upseal_key *key)
{
    enum { LEN = 2 * UPSEAL_CHUNK_LEN + 77, SEALED = LEN + 3 * UPSEAL_TAG_LEN };
    uint8_t *plain = secret_bytes(LEN, 5), *sealed = calloc(1, SEALED), *opened = calloc(1, LEN);
    size_t n;
    MUST(sealed && opened);
    MUST(!upseal_seal_chunks(work, key, 7, 1, plain, LEN, sealed, SEALED));
    UPSEAL_PUBLIC(sealed, SEALED);
    MUST(!upseal_open_chunks(work, key, 7, 1, sealed, SEALED, opened, LEN, &n));
    MUST(n == LEN && same(opened, plain, LEN));
    MUST(!upseal_open_chunks_private(work, key, 7, 1, sealed, SEALED, opened, LEN));
    MUST(same(opened, plain, LEN));
    sealed[SEALED - 1] ^= 1;
    MUST(upseal_open_chunks(work, key, 7, 1, sealed, SEALED, opened, LEN, &n) == UPSEAL_EFORGED);
    MUST(upseal_open_chunks_private(work, key, 7, 1, sealed, SEALED, opened, LEN) ==
         UPSEAL_EFORGED);
    free(plain);
    free(sealed);
    free(opened);
}

static void records(upseal_work *work, const upseal_key *key)
{
    for (int padded = 0; padded <= 1; padded++) {
        for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
            one_record(work, key, sizes[i], padded);
        batch(work, key, padded);
    }
}

/* From a session secret to its keys and an upload's, as the engine does it, and all under them. */
static void session(upseal_work *work, uint8_t cipher)
{
    uint8_t *secret = secret_bytes(32, cipher), derived[128], commitment[32];
    upseal_arena *arena = upseal_arena_new();
    MUST(arena != NULL);
    MUST(!upseal_expand(secret, context, sizeof context, derived, sizeof derived));
    upseal_key *reports = upseal_session_key(arena, cipher, derived);
    MUST(reports != NULL);
    upseal_wipe(derived, sizeof derived);
    upseal_key *batches = upseal_batch_key(arena, reports);
    upseal_key *upload = upseal_upload_key(arena, reports, context, sizeof context, commitment);
    MUST(batches && upload);
    records(work, reports);
    records(work, batches);
    chunks(work, upload);
    upseal_work_scrub(work);
    upseal_arena_relock(arena);
    upseal_key_free(reports);
    upseal_key_free(batches);
    upseal_key_free(upload);
    upseal_arena_free(arena);
    upseal_wipe(secret, 32);
    free(secret);
}

/* Keys as they come, and both values of the bit that XAES-256-GCM's doubling turns on. */
static void keys(upseal_work *work, uint8_t cipher)
{
    for (unsigned seed = 0; seed < 8; seed++) {
        uint8_t *material = secret_bytes(44, seed);
        upseal_key *record = upseal_key_new(cipher, material, 32);
        upseal_key *chunk = upseal_key_new(cipher, material, 44);
        MUST(record && chunk);
        one_record(work, record, 100, (int)seed & 1);
        chunks(work, chunk);
        upseal_key_free(record);
        upseal_key_free(chunk);
        free(material);
    }
}

static void comparison(void)
{
    uint8_t *a = secret_bytes(32, 1), *b = secret_bytes(32, 1);
    for (size_t i = 0; i <= 32; i++) {
        if (i < 32) b[i] ^= 1;
        int equal = upseal_equal(a, b, 32);
        UPSEAL_PUBLIC(&equal, sizeof equal);
        MUST(equal == (i == 32));
        if (i < 32) b[i] ^= 1;
    }
    free(a);
    free(b);
}

/* The result does not count, only that the tool objects: it ends the program, or says so at its
 * end. */
static int leaky(const char *which)
{
    uint8_t *secret = secret_bytes(256, 1), *other = secret_bytes(256, 1), table[256], k1[16];
    volatile size_t result = 0; /* or all of it is optimised away */
    for (size_t i = 0; i < 256; i++) table[i] = (uint8_t)(i * 5 + 1);
    if (!strcmp(which, "leaky-equal")) {
        result = (size_t)leaky_equal(secret, other, 16);
    } else if (!strcmp(which, "leaky-unpad")) {
        result = leaky_unpad(secret, 256);
    } else if (!strcmp(which, "leaky-table")) {
        result = leaky_table(table, secret, 32);
    } else if (!strcmp(which, "leaky-double")) {
        leaky_double(secret, k1);
        result = k1[15];
    } else {
        return 2;
    }
    (void)result;
    free(secret);
    free(other);
    return 0;
}

int main(int argc, char **argv)
{
    if (argc != 2) return 2;
    if (!UPSEAL_SECRETS_FOLLOWED) {
        puts("nobody follows the secrets: run it under valgrind, or build it for MemorySanitizer");
        return 3;
    }
    if (!strncmp(argv[1], "leaky-", 6)) return leaky(argv[1]);
    for (size_t i = 0; upseal_backend_name(i); i++) {
        if (strcmp(upseal_backend_name(i), argv[1]) != 0) continue;
        (void)upseal_backend_at(i)->usable(); /* makes the library ready */
        upseal_work *work = upseal_work_new(i);
        MUST(work != NULL);
        comparison();
        for (uint8_t cipher = 1; cipher <= 2; cipher++) {
            keys(work, cipher);
            session(work, cipher);
        }
        upseal_work_free(work);
        printf("%s: %lu steps, all as they must be\n", argv[1], checked);
        return 0;
    }
    printf("no backend %s in this build\n", argv[1]);
    return 2;
}
