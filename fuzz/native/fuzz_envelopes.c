/* SPDX-License-Identifier: Apache-2.0
 *
 * Many envelopes in one call: sealed as the reference seals them, opened as it opens them.
 */
#include "cases.h"

#include <stdlib.h>
#include <string.h>

/* ---- sealing ------------------------------------------------------------------------------ */

/* Envelopes as docs/format.md wants them, and where each begins. */
static uint8_t *expected_envelopes(const record_case *c, size_t len, int64_t *ends)
{
    uint8_t *all = malloc(len + 1), *padded = malloc(BUFFER), *at = all;
    MUST(all && padded);
    ends[0] = 0;
    for (size_t i = 0; i < c->count; i++) {
        const uint8_t *value = c->values + (c->offsets[i] - c->offsets[0]);
        const uint32_t index = c->h.first + (uint32_t)i;
        size_t text_len = c->lengths[i];
        if (c->padded) text_len = reference_pad(value, c->lengths[i], padded);
        if (c->prefix_len) memcpy(at, c->prefix, c->prefix_len);
        at += c->prefix_len;
        memcpy(at, c->nonce, 24);
        for (int k = 0; k < 4; k++) at[20 + k] ^= (uint8_t)(index >> (24 - 8 * k));
        at += 24;
        reference_seal_record(&c->key, c->nonce, index, c->aad, c->aad_len,
                              c->padded ? padded : value, text_len, at);
        at += text_len + 16;
        ends[i + 1] = at - all;
    }
    MUST((size_t)(at - all) == len);
    free(padded);
    return all;
}

static void seal(record_case *c)
{
    uint64_t exact = 0;
    int right = c->key_right && c->nonce && !(c->h.missing & (NO_ENDS | NO_WORK)) &&
                places_right(c->h.first, c->count) && c->prefix_len <= UPSEAL_RECORD_MAX;
    right = sealed_lengths(c, &exact) && right;
    if (c->prefix_len <= UPSEAL_RECORD_MAX) exact += (c->prefix_len + 24) * c->count;
    const size_t len = room(c, exact);
    if (len != exact || (c->h.aad_len == FAR && c->count)) right = 0;
    int64_t ends[VALUES_MAX + 1];
    uint8_t *expected = right ? expected_envelopes(c, len, ends) : NULL;

    ENGINES(e) {
        uint8_t *out = output(len);
        int64_t *out_ends =
            c->h.missing & NO_ENDS ? NULL : output((c->count + 1) * sizeof *out_ends);
        const upseal_status status = upseal_seal_envelopes(
            c->h.missing & NO_WORK ? NULL : e->work, c->product_key, c->nonce, c->h.first,
            c->prefix, c->prefix_len, c->aad, c->aad_len, c->values, c->values_len,
            c->offsets_given, c->count, c->padded, out, len, out_ends);
        MUST(status == (right ? UPSEAL_OK : UPSEAL_EARGUMENT));
        if (right) {
            MUST(len == 0 || memcmp(out, expected, len) == 0);
            MUST(memcmp(out_ends, ends, (c->count + 1) * sizeof *ends) == 0);
        } else {
            MUST(all_zero(out, len));
            MUST(!out_ends || all_zero(out_ends, (c->count + 1) * sizeof *out_ends));
        }
    }
    free(expected);
}

/* ---- opening ------------------------------------------------------------------------------- */

typedef struct {
    int8_t results[VALUES_MAX];
    int64_t ends[VALUES_MAX + 1];
    uint8_t *out;
    size_t need; /* room that is enough */
    int tried;   /* a tag was looked at */
} opened;

static void expect_opened(const record_case *c, opened *x)
{
    size_t total = 0, at = 0;
    for (size_t i = 0; i < c->count; i++)
        if (c->lengths[i] <= UPSEAL_RECORD_MAX) total += c->lengths[i];
    x->out = malloc(total + 1);
    MUST(x->out);
    x->ends[0] = 0;
    for (size_t i = 0; i < c->count; i++) {
        const uint8_t *value = c->values + (c->offsets[i] - c->offsets[0]);
        const size_t len = c->lengths[i], front = c->prefix_len + 24;
        int64_t got = -1;
        x->results[i] = UPSEAL_EFORGED;
        if (len < c->prefix_len ||
            (!(c->h.missing & NO_PREFIX) && c->prefix_len &&
             memcmp(value, c->prefix, c->prefix_len) != 0)) {
            x->results[i] = UPSEAL_OTHER;
        } else if (len >= front + 16 && len - front - 16 <= UPSEAL_RECORD_MAX) {
            const size_t text_len = len - front - 16;
            x->need += text_len;
            x->tried = 1;
            if (c->h.aad_len != FAR &&
                reference_open_record(&c->key, value + c->prefix_len, 0, c->aad, c->aad_len,
                                      value + front, text_len, x->out + at))
                got = c->padded ? reference_unpad(x->out + at, text_len) : (int64_t)text_len;
        }
        if (got >= 0) {
            x->results[i] = UPSEAL_OK;
            at += (size_t)got;
        }
        x->ends[i + 1] = (int64_t)at;
    }
}

static void open_all(record_case *c)
{
    opened x = {.need = 0};
    const size_t ends_len = (c->count + 1) * sizeof(int64_t);
    int right = c->key_right && c->offsets_right && !(c->h.missing & (NO_ENDS | NO_TABLE | NO_WORK));
    right = right && c->prefix_len <= UPSEAL_RECORD_MAX;
    if (right) expect_opened(c, &x);
    if (c->h.aad_len == FAR && x.tried) right = 0;
    const size_t len = room(c, x.need);
    upseal_status first_status = UPSEAL_OK;

    ENGINES(e) {
        uint8_t *out = output(len);
        int64_t *ends = c->h.missing & NO_ENDS ? NULL : output(ends_len);
        int8_t *results = c->h.missing & NO_TABLE ? NULL : output(c->count);
        const upseal_status status = upseal_open_envelopes(
            c->h.missing & NO_WORK ? NULL : e->work, c->product_key,
            c->h.missing & NO_PREFIX ? NULL : c->prefix, c->prefix_len, c->aad, c->aad_len,
            c->values, c->values_len, c->offsets_given, c->count, c->padded, out, len, ends,
            results);
        if (e == engines) first_status = status;
        MUST(status == first_status);
        /* With less room than enough it may be refused: what is forged needs none in the end. */
        MUST(status == UPSEAL_EARGUMENT || (right && status == UPSEAL_OK));
        MUST(status == UPSEAL_OK || !right || len < x.need);
        if (status == UPSEAL_OK) {
            const size_t got = (size_t)x.ends[c->count];
            MUST(memcmp(ends, x.ends, ends_len) == 0);
            MUST(c->count == 0 || memcmp(results, x.results, c->count) == 0);
            MUST(got <= len && (got == 0 || memcmp(out, x.out, got) == 0));
            MUST(tail_tells_nothing(out + got, len - got));
        } else {
            MUST(all_zero(out, len));
            MUST(!ends || all_zero(ends, ends_len));
            for (size_t i = 0; results && i < c->count; i++) MUST(results[i] == UPSEAL_EFORGED);
        }
    }
    free(x.out);
}

void run_envelopes(const uint8_t *data, size_t len)
{
    bytes from = {data, len};
    record_case c = {.values = NULL};
    read_head(&from, &c.h);
    if (c.h.call & 1) {
        const size_t front = (c.h.prefix_len == FAR ? 0u : c.h.prefix_len) + 24u;
        read_case(&from, &c, front + 16 + UPSEAL_RECORD_MAX + 1, 1);
        open_all(&c);
    } else {
        read_case(&from, &c, UPSEAL_RECORD_MAX + 1 - (c.h.flags & PADDED ? 1 : 0), 0);
        seal(&c);
    }
    end_case(&c);
}
