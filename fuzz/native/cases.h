/* SPDX-License-Identifier: Apache-2.0
 *
 * A call about records, as the fuzzer's bytes say it:
 *
 *   head | key 32, if OWN_KEY | u16 length of each value | prefix | aad | values
 *
 * Values are plaintexts for calls that seal, sealed records or envelopes for those that open.
 * Where the bytes end too early a pattern goes on, so that few bytes make long values as well.
 */
#ifndef UPSEAL_FUZZ_CASES_H
#define UPSEAL_FUZZ_CASES_H

#include "harness.h"
#include "reference.h"

enum { VALUES_MAX = 40, LENGTHS_MAX = 80000, FAR = 0xff, TOO_LONG = 0xffff };
enum { BUFFER = 200000 }; /* room for all values of a case, padded */
enum { CIPHER = 1, PADDED = 2, FENCED = 4 };                 /* head.flags */
enum { NO_KEY = 6, OTHER_KEY = 7, KEY_KIND = 7, OWN_KEY = 128 }; /* head.key_kind */
enum { NO_NONCE = 1, NO_ENDS = 2, NO_TABLE = 4, NO_OFFSETS = 8, NO_PREFIX = 16, NO_WORK = 32,
       NO_FRONT = 64 };                                      /* head.missing */

typedef struct __attribute__((packed)) {
    uint8_t call, flags, missing, key_kind;
    uint16_t key_seed;
    uint8_t prefix_len, aad_len; /* FAR: a length far beyond what there is */
    uint8_t count, bend;         /* bend - 1: which offset is `bent` instead, 0 for none */
    int16_t out_more, values_more; /* beyond the right length */
    uint32_t first;
    int64_t base, bent;          /* base: the first offset */
    uint8_t nonce[24];
} head;

typedef struct {
    head h;
    int padded, fenced;
    reference_key key;
    uint8_t material[44];
    upseal_key *product_key; /* NULL: there is none */
    uint8_t *nonce, *prefix, *aad; /* NULL: there is none */
    size_t prefix_len, aad_len;
    int key_right, offsets_right;
    size_t count;
    size_t lengths[VALUES_MAX]; /* what the offsets say, if they are right */
    int64_t offsets[VALUES_MAX + 1], *offsets_given;
    uint8_t *values;
    size_t values_len;
} record_case;

void read_head(bytes *from, head *h);
/* A value of length TOO_LONG gets `too_long` bytes; with `huge_values` they are there to read. */
void read_case(bytes *from, record_case *c, size_t too_long, int huge_values);
void end_case(record_case *c);

/* What sealing takes for one value or for all (without prefixes and nonces), and whether it may be
 * sealed at all. */
int sealed_length(uint64_t len, int padded, uint64_t *sealed);
int sealed_lengths(const record_case *c, uint64_t *sealed);

/* Whether `first` and `count` stay below the format's number of records. */
int places_right(uint64_t first, uint64_t count);

/* `exact` and what the case wants more or less, within what a run can hold. */
size_t room(const record_case *c, uint64_t exact);

#endif
