/* SPDX-License-Identifier: Apache-2.0
 *
 * Records of a batch, or of a part of one: sealed, their table, opened.
 */
#include "cases.h"

#include <stdlib.h>
#include <string.h>

static void set_index(uint8_t *aad, uint32_t index)
{
    for (int k = 0; k < 4; k++) aad[1 + k] = (uint8_t)(index >> (24 - 8 * k));
}

/* The call may write the index into bytes 1 to 4 of `aad`, and nothing else. */
static void aad_kept(const record_case *c, const uint8_t before[256])
{
    if (c->h.aad_len == FAR || c->aad_len == 0) return;
    MUST(c->aad[0] == before[0]);
    if (c->aad_len > 5) MUST(memcmp(c->aad + 5, before + 5, c->aad_len - 5) == 0);
    if (c->aad_len < UPSEAL_BATCH_AAD_MIN) MUST(memcmp(c->aad, before, c->aad_len) == 0);
}

static int arguments_right(const record_case *c)
{
    return c->key_right && c->nonce && !(c->h.missing & NO_WORK) &&
           c->aad_len >= UPSEAL_BATCH_AAD_MIN && places_right(c->h.first, c->count) &&
           !(c->h.aad_len == FAR && c->count);
}

static void seal(const record_case *c, const uint8_t given[256])
{
    uint64_t exact = 0;
    int right = sealed_lengths(c, &exact) && arguments_right(c) && !(c->h.missing & NO_TABLE);
    const size_t len = room(c, exact);
    if (len != exact) right = 0;
    uint8_t *expected = malloc(len + 1), table[4 * VALUES_MAX + 1], aad[256], *at = expected;
    uint8_t *padded = malloc(BUFFER);
    MUST(expected && padded);
    memcpy(aad, given, 256);
    for (size_t i = 0; right && i < c->count; i++) {
        const uint8_t *value = c->values + (c->offsets[i] - c->offsets[0]);
        size_t text_len = c->lengths[i];
        if (c->padded) text_len = reference_pad(value, c->lengths[i], padded);
        set_index(aad, c->h.first + (uint32_t)i);
        reference_seal_record(&c->key, c->nonce, c->h.first + (uint32_t)i, aad, c->aad_len,
                              c->padded ? padded : value, text_len, at);
        at += text_len + 16;
        for (int k = 0; k < 4; k++) table[4 * i + (size_t)k] = (uint8_t)((text_len + 16) >> (24 - 8 * k));
    }
    ENGINES(e) {
        uint8_t *out = output(len);
        uint8_t *out_table = c->h.missing & NO_TABLE ? NULL : output(4 * c->count);
        const upseal_status status = upseal_seal_batch(
            c->h.missing & NO_WORK ? NULL : e->work, c->product_key, c->nonce, c->h.first, c->aad,
            c->aad_len, c->values, c->values_len, c->offsets_given, c->count, c->padded, out_table,
            out, len);
        MUST(status == (right ? UPSEAL_OK : UPSEAL_EARGUMENT));
        if (right) {
            MUST(len == 0 || memcmp(out, expected, len) == 0);
            MUST(memcmp(out_table, table, 4 * c->count) == 0);
        } else {
            MUST(all_zero(out, len) && (!out_table || all_zero(out_table, 4 * c->count)));
        }
        aad_kept(c, given);
    }
    free(padded);
    free(expected);
}

/* What opening a blob starts with: these lengths as its table. */
static void check_table(const record_case *c)
{
    uint8_t raw[4 * VALUES_MAX];
    int right = 1;
    for (size_t i = 0; i < c->count; i++) {
        if (c->lengths[i] < (c->padded ? 17 : 16) || c->lengths[i] > UPSEAL_RECORD_MAX + 16)
            right = 0;
        for (int k = 0; k < 4; k++)
            raw[4 * i + (size_t)k] = (uint8_t)(c->lengths[i] >> (24 - 8 * k));
    }
    const uint8_t *table = input(raw, 4 * c->count, c->fenced);
    int64_t *ends = output((c->count + 1) * sizeof *ends);
    const upseal_status status = upseal_batch_offsets(table, c->count, c->padded, ends);
    MUST(status == (right ? UPSEAL_OK : UPSEAL_EFORGED));
    if (!right) MUST(all_zero(ends, (c->count + 1) * sizeof *ends));
    for (size_t i = 0; right && i <= c->count; i++)
        MUST(ends[i] == c->offsets[i] - c->offsets[0]);
}

static void open_all(const record_case *c, const uint8_t given[256])
{
    const size_t ends_len = (c->count + 1) * sizeof(int64_t);
    int64_t ends[VALUES_MAX + 1] = {0};
    size_t need = 0, at = 0;
    int right = arguments_right(c) && c->offsets_right && !(c->h.missing & NO_ENDS), forged = 0;
    for (size_t i = 0; right && i < c->count; i++) {
        if (c->lengths[i] < 16 || c->lengths[i] > UPSEAL_RECORD_MAX + 16) right = 0;
        need += c->lengths[i] - 16;
    }
    const size_t len = room(c, right ? need : 64);
    if (len < need) right = 0;
    uint8_t *expected = malloc(BUFFER), aad[256];
    MUST(expected);
    memcpy(aad, given, 256);
    for (size_t i = 0; right && !forged && i < c->count; i++) {
        set_index(aad, c->h.first + (uint32_t)i);
        int64_t got = -1;
        if (reference_open_record(&c->key, c->nonce, c->h.first + (uint32_t)i, aad, c->aad_len,
                                  c->values + (c->offsets[i] - c->offsets[0]), c->lengths[i] - 16,
                                  expected + at))
            got = c->padded ? reference_unpad(expected + at, c->lengths[i] - 16)
                            : (int64_t)c->lengths[i] - 16;
        forged = got < 0;
        if (!forged) at += (size_t)got;
        ends[i + 1] = (int64_t)at;
    }
    const upseal_status wanted = !right ? UPSEAL_EARGUMENT : forged ? UPSEAL_EFORGED : UPSEAL_OK;
    ENGINES(e) {
        uint8_t *out = output(len);
        int64_t *out_ends = c->h.missing & NO_ENDS ? NULL : output(ends_len);
        const upseal_status status = upseal_open_batch(
            c->h.missing & NO_WORK ? NULL : e->work, c->product_key, c->nonce, c->h.first, c->aad,
            c->aad_len, c->values, c->values_len, c->offsets_given, c->count, c->padded, out, len,
            out_ends);
        MUST(status == wanted);
        if (status == UPSEAL_OK) {
            MUST(memcmp(out_ends, ends, ends_len) == 0);
            MUST(at == 0 || memcmp(out, expected, at) == 0);
            MUST(tail_tells_nothing(out + at, len - at));
        } else {
            MUST(all_zero(out, len) && (!out_ends || all_zero(out_ends, ends_len)));
        }
        aad_kept(c, given);
    }
    free(expected);
}

void run_batch(const uint8_t *data, size_t len)
{
    bytes from = {data, len};
    record_case c = {.values = NULL};
    uint8_t given[256] = {0};
    read_head(&from, &c.h);
    const int opens = c.h.call & 1;
    const size_t too_long = UPSEAL_RECORD_MAX + 1 - (!opens && c.h.flags & PADDED ? 1 : 0);
    read_case(&from, &c, opens ? too_long + 16 : too_long, 0);
    if (c.h.aad_len != FAR && c.aad_len) memcpy(given, c.aad, c.aad_len);
    if (opens && c.offsets_right) check_table(&c);
    (opens ? open_all : seal)(&c, given);
    end_case(&c);
}
