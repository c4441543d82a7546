/* SPDX-License-Identifier: Apache-2.0
 *
 * What the tests of the C core share.  Every buffer is allocated at exactly its length, so
 * that AddressSanitizer sees the first byte read or written past it.
 */
#ifndef UPSEAL_TESTS_HELPERS_H
#define UPSEAL_TESTS_HELPERS_H

#include "upseal.h"

#define CHECK(condition) check(!!(condition), #condition, __FILE__, __LINE__)

/* Counts, and prints the first failures. */
void check(int good, const char *what, const char *file, int line);

typedef struct {
    size_t index;
    const char *name;
    upseal_work *work;
} engine;

/* The backends that can run here, each with a work space. */
extern engine engines[8];
extern size_t engine_count;

typedef struct {
    uint8_t *values;
    size_t values_len;
    int64_t *offsets;
    size_t count;
} packed;

void *exactly(size_t len);                              /* or the program ends */
uint8_t *bytes(size_t len, uint32_t seed);              /* always the same for a seed */
uint8_t *dirty(size_t len);                             /* no byte of it is zero */
int all_zero(const void *data, size_t len);             /* and nothing else */
int all_dirty(const void *data, size_t len);            /* as `dirty` made them */
upseal_key *new_key(uint8_t cipher, size_t material_len); /* always the same */
packed pack(const size_t *sizes, size_t count);
void unpack(packed *records);
size_t sealed_len(const packed *records, int padded); /* ciphertexts and tags */

static const uint8_t test_nonce[24] = "ABCDEFGHIJKLMNOPQRSTUVWX";

/* NOLINTBEGIN(bugprone-macro-parentheses): what is declared cannot stand in them */
#define CIPHERS(cipher) for (uint8_t cipher = 1; cipher <= 2; cipher++)
#define ENGINES(e) for (engine *e = engines; e < engines + engine_count; e++)
/* NOLINTEND(bugprone-macro-parentheses) */

void test_odds_and_ends(void);
void test_vectors(void);
void test_envelopes(void);
void test_batches(void);
void test_padding(void);
void test_chunks(void);
void test_arguments(void);
void test_survivors(void);
void test_threads(void);
void test_arena(void);

#endif
