/* SPDX-License-Identifier: Apache-2.0
 *
 * What the fuzz targets of the C core share: backends, memory that tells who leaves it, and the
 * reading of a case out of the fuzzer's bytes.
 */
#ifndef UPSEAL_FUZZ_HARNESS_H
#define UPSEAL_FUZZ_HARNESS_H

#include "upseal.h"

/* A broken promise ends the program, and the fuzzer keeps the bytes that led there. */
#define MUST(condition) ((condition) ? (void)0 : must_failed(#condition, __FILE__, __LINE__))
_Noreturn void must_failed(const char *what, const char *file, int line);

/* ---- targets ------------------------------------------------------------------------ */

/* Each reads a case and checks everything about it.  Nothing is kept from one to the next but the
 * work spaces, as in a long-lived process; run_sequence starts with new ones. */
void run_envelopes(const uint8_t *data, size_t len);
void run_envelope(const uint8_t *data, size_t len);
void run_batch(const uint8_t *data, size_t len);
void run_chunks(const uint8_t *data, size_t len);
void run_padding(const uint8_t *data, size_t len);
void run_keys(const uint8_t *data, size_t len);
void run_arena(const uint8_t *data, size_t len);
void run_sequence(const uint8_t *data, size_t len);

/* Custom mutators: as LLVMFuzzerCustomMutator.  They change what lies behind the tag, and seal. */
size_t mutate_envelopes(uint8_t *data, size_t len, size_t max_len, unsigned seed);
size_t mutate_envelope(uint8_t *data, size_t len, size_t max_len, unsigned seed);
size_t mutate_batch(uint8_t *data, size_t len, size_t max_len, unsigned seed);
size_t mutate_chunks(uint8_t *data, size_t len, size_t max_len, unsigned seed);
size_t mutate_sequence(uint8_t *data, size_t len, size_t max_len, unsigned seed);
size_t LLVMFuzzerMutate(uint8_t *data, size_t len, size_t max_len);

/* ---- backends -------------------------------------------------------------------------- */

typedef struct {
    size_t index;
    const char *name;
    upseal_work *work;
} engine;

extern engine engines[8]; /* those that can run here */
extern size_t engine_count;
#define ENGINES(e) for (engine *e = engines; e < engines + engine_count; e++)

void find_engines(void);
void renew_engines(void); /* new work spaces for all */

/* ---- memory ------------------------------------------------------------------------------ */

/* A copy of exactly `len` bytes, writable.  Fenced, it ends at a page that nobody may touch: that
 * stops also code without sanitizers, as the libraries are.  Otherwise the sanitizer watches. */
void *input(const void *from, size_t len, int fenced);

/* `len` bytes, none of them zero, between bytes that `intact` looks at. */
void *output(size_t len);
int intact(const void *out, size_t len); /* nothing round it was written; ends the run if not */

int all_zero(const void *data, size_t len);
int untouched(const void *data, size_t len); /* as `output` made them */
/* Behind what was opened there may be nothing but padding, zeros and what was there before. */
int tail_tells_nothing(const uint8_t *tail, size_t len);

/* Where a length claims far more than there is: one page to write to, and 8 GiB that nobody may
 * touch. */
void *claimed(void);

/* Zeroed room of up to 80 MiB, of which only what is written takes memory. */
uint8_t *roomy(size_t len);

void release_all(void); /* what a case has taken */

/* ---- bytes --------------------------------------------------------------------------------- */

typedef struct {
    const uint8_t *data;
    size_t len;
} bytes;

/* The next `len` bytes, or as many as there are and then a pattern; `to` may be NULL. */
void take(bytes *from, void *to, size_t len);
uint64_t take_number(bytes *from, size_t len); /* little-endian */

/* The same 44 bytes for a seed, those of different seeds unlike each other. */
void key_from_seed(uint16_t seed, uint8_t material[44]);
void pattern(uint8_t *to, size_t len, uint32_t seed);
uint32_t random_below(uint32_t *state, uint32_t limit); /* xorshift; limit > 0 */

#endif
