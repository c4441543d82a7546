/* SPDX-License-Identifier: Apache-2.0
 *
 * One envelope in a call: the three functions without a table of offsets.
 */
#include "cases.h"

#include <stdlib.h>
#include <string.h>

static void seal(const record_case *c)
{
    const size_t report_len = c->lengths[0];
    uint64_t exact = 0;
    int right = c->key_right && c->nonce && !(c->h.missing & NO_WORK) &&
                c->prefix_len <= UPSEAL_RECORD_MAX && c->h.aad_len != FAR;
    right = sealed_length(report_len, c->padded, &exact) && right;
    if (c->prefix_len <= UPSEAL_RECORD_MAX) exact += c->prefix_len + 24;
    const size_t len = room(c, exact);
    if (len != exact) right = 0;
    uint8_t *expected = NULL;
    if (right) {
        uint8_t *padded = malloc(BUFFER);
        expected = malloc(len);
        MUST(padded && expected);
        size_t text_len = report_len;
        if (c->padded) text_len = reference_pad(c->values, report_len, padded);
        if (c->prefix_len) memcpy(expected, c->prefix, c->prefix_len);
        memcpy(expected + c->prefix_len, c->nonce, 24);
        reference_seal_record(&c->key, c->nonce, 0, c->aad, c->aad_len,
                              c->padded ? padded : c->values, text_len,
                              expected + c->prefix_len + 24);
        free(padded);
    }
    const upseal_front whole = {c->product_key, c->prefix, c->prefix_len, c->padded};
    const upseal_front *front = c->h.missing & NO_FRONT ? NULL : &whole;
    ENGINES(e) for (int by_front = 0; by_front <= 1; by_front++) {
        upseal_work *work = c->h.missing & NO_WORK ? NULL : e->work;
        const int wanted = right && (front || !by_front);
        uint8_t *out = output(len);
        const upseal_status status =
            by_front ? upseal_seal_report(work, front, c->nonce, c->aad, c->aad_len, c->values,
                                          report_len, out, len)
                     : upseal_seal_envelope(work, c->product_key, c->nonce, c->prefix,
                                            c->prefix_len, c->aad, c->aad_len, c->values,
                                            report_len, c->padded, out, len);
        MUST(status == (wanted ? UPSEAL_OK : UPSEAL_EARGUMENT));
        MUST(wanted ? memcmp(out, expected, len) == 0 : all_zero(out, len));
    }
    free(expected);
}

static void open_one(const record_case *c)
{
    const size_t envelope_len = c->lengths[0], front = c->prefix_len + 24;
    const size_t text_len = envelope_len >= front + 16 ? envelope_len - front - 16 : 0;
    int64_t wanted = UPSEAL_EFORGED;
    uint8_t *text = malloc(BUFFER);
    const size_t len = room(c, text_len <= UPSEAL_RECORD_MAX ? text_len : 0);
    MUST(text);
    if (!c->key_right || c->h.missing & NO_WORK || c->prefix_len > UPSEAL_RECORD_MAX ||
        envelope_len > INT64_MAX) {
        wanted = UPSEAL_EARGUMENT;
    } else if (envelope_len >= front + 16 && text_len <= UPSEAL_RECORD_MAX) {
        if (len < text_len || c->h.aad_len == FAR)
            wanted = UPSEAL_EARGUMENT;
        else if (reference_open_record(&c->key, c->values + c->prefix_len, 0, c->aad, c->aad_len,
                                       c->values + front, text_len, text))
            wanted = c->padded ? reference_unpad(text, text_len) : (int64_t)text_len;
    }
    ENGINES(e) {
        uint8_t *out = output(len);
        const int64_t status = upseal_open_envelope(
            c->h.missing & NO_WORK ? NULL : e->work, c->product_key, c->prefix_len, c->aad,
            c->aad_len, c->values, envelope_len, c->padded, out, len);
        MUST(status == wanted);
        if (status >= 0) {
            MUST((size_t)status <= len && (status == 0 || memcmp(out, text, (size_t)status) == 0));
            MUST(tail_tells_nothing(out + status, len - (size_t)status));
        } else {
            MUST(all_zero(out, len));
        }
    }
    free(text);
}

void run_envelope(const uint8_t *data, size_t len)
{
    static const size_t long_reports[] = {(1u << 24) + 1, INT64_MAX, (size_t)1 << 63, SIZE_MAX};
    bytes from = {data, len};
    record_case c = {.values = NULL};
    read_head(&from, &c.h);
    /* There is one value and no table. */
    c.h.count = 1;
    c.h.missing &= (uint8_t)~NO_OFFSETS;
    c.h.bend = 0;
    c.h.values_more = 0;
    const size_t long_report = long_reports[c.h.base & 3];
    const size_t front = (c.h.prefix_len == FAR ? 0u : c.h.prefix_len) + 24u;
    const int opens = c.h.call & 1;
    read_case(&from, &c, opens && long_report < INT64_MAX ? long_report + front + 16 : long_report,
              0);
    (opens ? open_one : seal)(&c);
    end_case(&c);
}
