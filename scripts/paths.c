/* SPDX-License-Identifier: Apache-2.0
 *
 * The hot paths of the C core without Python, for scripts/instructions, which counts them, and
 * scripts/costs, which times their pieces.  As a shared library (-DMARKS_ONLY) it gives a Python
 * program the same marks.
 *
 * paths count         under callgrind: one dump for each path
 * paths time BACKEND  nanoseconds of each piece, by turns, the median of the rounds
 */
#define _POSIX_C_SOURCE 200809L
#include <valgrind/callgrind.h>

void mark_start(void) { CALLGRIND_START_INSTRUMENTATION; }
void mark_zero(void) { CALLGRIND_ZERO_STATS; }
void mark_dump(const char *name) { CALLGRIND_DUMP_STATS_AT(name); }

#ifndef MARKS_ONLY
#include "aead.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <time.h>

enum { MANY = 1000, PREFIX = 131, REPORT = 1024, UPLOAD = 1 << 20, ROUNDS = 601 };

static upseal_work *work;
static upseal_key *key, *chunk_key;
static uint8_t prefix[PREFIX], material[44], nonce[24] = {1}, aad[9] = {2};
static uint8_t *in, *sealed, *out, table[4 * MANY];
static int64_t offsets[MANY + 1], ends[MANY + 1], sealed_ends[MANY + 1];
static size_t each;

static void must(int good)
{
    if (!good) abort();
}

static void seal_1k(void)
{
    must(!upseal_seal_envelope(work, key, nonce, prefix, PREFIX, aad, 1, in, REPORT, 0, sealed,
                               PREFIX + 24 + REPORT + 16));
}

static void open_1k(void)
{
    must(upseal_open_envelope(work, key, PREFIX, aad, 1, sealed, PREFIX + 24 + REPORT + 16, 0, out,
                              REPORT) == REPORT);
}

static void records_of(size_t size)
{
    each = size;
    for (size_t i = 0; i <= MANY; i++) {
        offsets[i] = (int64_t)(i * size);
        sealed_ends[i] = (int64_t)(i * (size + 16));
    }
}

static void seal_batch(void)
{
    must(!upseal_seal_batch(work, key, nonce, 0, aad, sizeof aad, in, MANY * each, offsets, MANY, 0,
                            table, sealed, MANY * (each + 16)));
}

static void open_batch(void)
{
    must(!upseal_open_batch(work, key, nonce, 0, aad, sizeof aad, sealed, MANY * (each + 16),
                            sealed_ends, MANY, 0, out, MANY * each, ends));
}

static void seal_chunks(void)
{
    must(!upseal_seal_chunks(work, chunk_key, 0, 0, in, UPLOAD, sealed, UPLOAD + UPLOAD / 1024));
}

static void open_chunks(void)
{
    size_t opened;
    must(!upseal_open_chunks(work, chunk_key, 0, 0, sealed, UPLOAD + UPLOAD / 1024, out, UPLOAD,
                             &opened) && opened == UPLOAD);
}

static void counted(const char *name, void (*path)(void))
{
    path(); /* what happens once is not counted */
    mark_zero();
    path();
    mark_dump(name);
}

static void count(void)
{
    mark_start();
    counted("seal 1 KiB", seal_1k);
    counted("open 1 KiB", open_1k);
    records_of(256);
    counted("seal_batch 1,000 x 256 B", seal_batch);
    counted("open_batch 1,000 x 256 B", open_batch);
    records_of(1024);
    counted("seal_batch 1,000 x 1 KiB", seal_batch);
    counted("open_batch 1,000 x 1 KiB", open_batch);
    counted("seal_chunks 1 MiB", seal_chunks);
    counted("open_chunks 1 MiB", open_chunks);
}

/* ---- times ----------------------------------------------------------------------------- */

static uint8_t subkey[32], iv[12];

static void nothing(void) { __asm__ __volatile__("" ::: "memory"); }
static void random_24(void) { must(getrandom(out, 24, 0) == 24); }
static void derive(void) { must(!work->aead[0]->subkey(work->state[0], material, nonce, subkey)); }
static void set_key(void) { must(!work->aead[0]->set_key(work->state[0], subkey)); }
static void gcm_0(void) { must(!work->aead[0]->seal(work->state[0], iv, aad, 1, in, 0, sealed)); }
static void gcm_1k(void)
{
    must(!work->aead[0]->seal(work->state[0], iv, aad, 1, in, REPORT, sealed));
}
static void move_1k(void)
{
    memcpy(out, in, REPORT);
    __asm__ __volatile__("" ::: "memory");
}

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec * 1e9 + (double)t.tv_nsec;
}

static int ascending(const void *a, const void *b)
{
    return (*(const double *)a > *(const double *)b) - (*(const double *)a < *(const double *)b);
}

static void times(void)
{
    static const struct {
        const char *name;
        void (*path)(void);
        int repeats, parts;
    } pieces[] = {
        {"call and loop", nothing, 2000, 1},
        {"getrandom, 24 bytes", random_24, 100, 1},
        {"subkey: key schedule and three blocks", derive, 200, 1},
        {"GCM key: schedule and powers of H", set_key, 200, 1},
        {"GCM of nothing: nonce, AAD, tag", gcm_0, 300, 1},
        {"GCM of 1 KiB, with these", gcm_1k, 200, 1},
        {"memcpy of 1 KiB", move_1k, 1000, 1},
        {"seal_envelope, 1 KiB", seal_1k, 100, 1},
        {"open_envelope, 1 KiB", open_1k, 100, 1},
        {"seal_batch, a record of 1,000 x 1 KiB", seal_batch, 1, MANY},
        {"open_batch, a record of 1,000 x 1 KiB", open_batch, 1, MANY},
        {"seal_chunks, a chunk of 1 MiB", seal_chunks, 1, UPLOAD / UPSEAL_CHUNK_LEN},
        {"open_chunks, a chunk of 1 MiB", open_chunks, 1, UPLOAD / UPSEAL_CHUNK_LEN},
    };
    enum { PIECES = sizeof pieces / sizeof pieces[0] };
    static double taken[PIECES][ROUNDS];
    records_of(1024);
    seal_batch();
    for (int round = 0; round < ROUNDS; round++)
        for (size_t p = 0; p < PIECES; p++) {
            if (pieces[p].path == open_1k) seal_1k();
            if (pieces[p].path == open_batch) seal_batch();
            if (pieces[p].path == open_chunks) seal_chunks();
            const double start = now();
            for (int i = 0; i < pieces[p].repeats; i++) pieces[p].path();
            taken[p][round] = (now() - start) / pieces[p].repeats / pieces[p].parts;
        }
    for (size_t p = 0; p < PIECES; p++) {
        qsort(taken[p], ROUNDS, sizeof taken[p][0], ascending);
        printf("%s\t%.1f\t%.1f\t%.1f\n", pieces[p].name, taken[p][ROUNDS / 2], taken[p][ROUNDS / 10],
               taken[p][ROUNDS * 9 / 10]);
    }
}

int main(int argc, char **argv)
{
    const char *wanted = argc > 2 ? argv[2] : "openssl";
    size_t backend = 0;
    while (upseal_backend_name(backend) && strcmp(upseal_backend_name(backend), wanted) != 0)
        backend++;
    must(argc > 1 && upseal_backend_name(backend) && (work = upseal_work_new(backend)));
    must((key = upseal_key_new(UPSEAL_AES_256_GCM, material, 32)) != NULL);
    must((chunk_key = upseal_key_new(UPSEAL_AES_256_GCM, material, 44)) != NULL);
    must((in = calloc(1, 2 * UPLOAD)) && (sealed = calloc(1, 2 * UPLOAD)) &&
         (out = calloc(1, 2 * UPLOAD)));
    if (strcmp(argv[1], "count") == 0)
        count();
    else
        times();
    return 0;
}
#endif
