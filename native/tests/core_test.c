/* SPDX-License-Identifier: Apache-2.0
 *
 * Tests of the C core alone: the shared helpers, and the program that runs everything.
 */
#include "helpers.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static unsigned long passed, failed;
engine engines[8];
size_t engine_count;

void check(int good, const char *what, const char *file, int line)
{
    if (good) {
        passed++;
    } else if (failed++ < 20) {
        printf("%s:%d: failed: %s\n", file, line, what);
    }
}

void *exactly(size_t len)
{
    void *data = malloc(len); /* NOLINT(clang-analyzer-optin.portability.UnixAPI): also 0 bytes */
    if (!data) {
        puts("no memory for a test");
        exit(2);
    }
    return data;
}

uint8_t *bytes(size_t len, uint32_t seed)
{
    uint8_t *data = exactly(len);
    uint32_t x = seed * 2654435761u + 1;
    for (size_t i = 0; i < len; i++) {
        x ^= x << 13;
        x ^= x >> 17;
        x ^= x << 5;
        data[i] = (uint8_t)x;
    }
    return data;
}

uint8_t *dirty(size_t len)
{
    uint8_t *data = exactly(len);
    if (len) memset(data, 0xaa, len);
    return data;
}

static int all(const void *data, size_t len, uint8_t value)
{
    const uint8_t *at = data;
    for (size_t i = 0; i < len; i++)
        if (at[i] != value) return 0;
    return 1;
}

int all_zero(const void *data, size_t len) { return all(data, len, 0); }
int all_dirty(const void *data, size_t len) { return all(data, len, 0xaa); }

upseal_key *new_key(uint8_t cipher, size_t material_len)
{
    uint8_t *material = bytes(material_len, 7);
    upseal_key *key = upseal_key_new(cipher, material, material_len);
    free(material);
    return key;
}

packed pack(const size_t *sizes, size_t count)
{
    packed records = {.count = count};
    records.offsets = exactly((count + 1) * sizeof *records.offsets);
    records.offsets[0] = 0;
    for (size_t i = 0; i < count; i++) {
        records.values_len += sizes[i];
        records.offsets[i + 1] = (int64_t)records.values_len;
    }
    records.values = bytes(records.values_len, 11);
    return records;
}

void unpack(packed *records)
{
    free(records->values);
    free(records->offsets);
}

size_t sealed_len(const packed *records, int padded)
{
    uint64_t len;
    CHECK(upseal_records_measure(records->values_len, records->offsets, records->count, padded,
                                 &len) == UPSEAL_OK);
    return (size_t)len;
}

static void find_engines(void)
{
    for (size_t i = 0; upseal_backend_name(i); i++) {
        upseal_status status = upseal_backend_test(i);
        printf("%s (%s): %s\n", upseal_backend_name(i), upseal_backend_version(i),
               status == UPSEAL_OK ? "tested" : "cannot run here, not tested");
        CHECK(status == UPSEAL_OK || status == UPSEAL_EBACKEND);
        if (status != UPSEAL_OK) continue;
        engines[engine_count].index = i;
        engines[engine_count].name = upseal_backend_name(i);
        engines[engine_count].work = upseal_work_new(i);
        CHECK(engines[engine_count].work != NULL);
        engine_count++;
    }
    CHECK(engine_count > 0);
}

/* For good, and so the last of all: libcrypto works in a FIPS provider from here on, or not at all. */
static void test_fips(void)
{
    uint8_t *out = dirty(200);
    const upseal_status found = upseal_fips_provider(0, (char *)out, 200);
    CHECK(found == UPSEAL_OK || found == UPSEAL_EBACKEND);
    CHECK(found == UPSEAL_OK ? out[0] != 0 : all_zero(out, 200));
    free(out);
    upseal_fips_only();
    for (size_t i = 0; upseal_backend_name(i); i++)
        if (strcmp(upseal_backend_name(i), "openssl") == 0) CHECK(upseal_backend_test(i) == found);
}

static const struct {
    const char *name;
    void (*run)(void);
} tests[] = {
    {"odds-and-ends", test_odds_and_ends}, {"vectors", test_vectors}, {"envelopes", test_envelopes},
    {"batches", test_batches},             {"padding", test_padding}, {"chunks", test_chunks},
    {"arguments", test_arguments},         {"threads", test_threads}, {"arena", test_arena}, {"survivors", test_survivors},
    {"fips", test_fips},
};

/* Runs the tests named, or all of them. */
int main(int argc, char **argv)
{
    int known = 1;
    find_engines();
    for (size_t i = 0; i < sizeof tests / sizeof tests[0]; i++) {
        int wanted = argc == 1;
        for (int a = 1; a < argc; a++) wanted |= strcmp(argv[a], tests[i].name) == 0;
        if (!wanted) continue;
        tests[i].run();
        known++;
    }
    CHECK(argc == 1 || known == argc); /* no test of a name given */
    ENGINES(e) upseal_work_free(e->work);
    printf("%lu passed, %lu failed\n", passed, failed);
    return failed != 0;
}
