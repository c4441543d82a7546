/* SPDX-License-Identifier: Apache-2.0
 *
 * Keys, work spaces and the small helpers of the header.
 */
#include "cases.h"

#include <stdlib.h>
#include <string.h>

/* A key made of `material` seals as the reference does with it, and is no key of the other sort. */
static void use_key(upseal_key *key, uint8_t cipher, const uint8_t *material, size_t material_len)
{
    reference_key same = {.cipher = cipher};
    uint8_t nonce[24], sealed[3 + 16], *in = input("abc", 3, 0);
    pattern(nonce, 24, material[0]);
    memcpy(same.key, material, 32);
    if (material_len == 44) memcpy(same.base_nonce, material + 32, 12);
    ENGINES(e) {
        uint8_t *record = output(24 + 3 + 16), *chunk = output(3 + 16);
        const upseal_status as_record = upseal_seal_envelope(
            e->work, key, nonce, NULL, 0, NULL, 0, in, 3, 0, record, 24 + 3 + 16);
        const upseal_status as_chunk =
            upseal_seal_chunks(e->work, key, 5, 1, in, 3, chunk, 3 + 16);
        MUST(as_record == (material_len == 32 ? UPSEAL_OK : UPSEAL_EARGUMENT));
        MUST(as_chunk == (material_len == 44 ? UPSEAL_OK : UPSEAL_EARGUMENT));
        if (material_len == 32) {
            reference_seal_record(&same, nonce, 0, NULL, 0, in, 3, sealed);
            MUST(memcmp(record + 24, sealed, sizeof sealed) == 0 && all_zero(chunk, 19));
        } else {
            reference_seal_chunk(&same, 5, in, 3, sealed);
            MUST(memcmp(chunk, sealed, sizeof sealed) == 0 && all_zero(record, 43));
        }
    }
}

static void make_key(bytes *from, int fenced)
{
    const uint8_t cipher = (uint8_t)take_number(from, 1);
    const size_t len = from->len < 100 ? from->len : 100;
    const uint8_t *material = input(from->data, len, fenced);
    upseal_key *key = upseal_key_new(cipher, material, len);
    MUST((key != NULL) == ((cipher == 1 || cipher == 2) && (len == 32 || len == 44)));
    if (key) use_key(key, cipher, material, len);
    upseal_key_free(key);
}

static void make_work(bytes *from)
{
    const size_t index = (size_t)take_number(from, 8);
    const char *name = upseal_backend_name(index);
    MUST((name != NULL) == (upseal_backend_version(index) != NULL));
    if (name) return; /* find_engines has made one of it */
    MUST(!upseal_work_new(index) && upseal_backend_test(index) == UPSEAL_EARGUMENT);
}

static void compare(bytes *from, int fenced)
{
    const size_t len = from->len / 2;
    const uint8_t *a = input(from->data, len, fenced);
    const uint8_t *b = input(from->len ? from->data + len : NULL, len, fenced);
    MUST(upseal_equal(a, b, len) == (len == 0 || memcmp(a, b, len) == 0));
    MUST(upseal_equal(a, a, len) == 1);
}

static void wipe(bytes *from)
{
    const size_t len = from->len;
    uint8_t *out = output(len);
    const size_t part = (size_t)take_number(from, 2) % (len + 1);
    upseal_large_pages(out, len);
    MUST(untouched(out, len));
    upseal_wipe(out, part);
    MUST(all_zero(out, part) && untouched(out + part, len - part));
}

static void offsets(bytes *from, int fenced)
{
    /* Sums beyond int64 are the caller's to avoid: these are offsets of what is in memory. */
    const int64_t by = (int64_t)(take_number(from, 8) >> 2) * (fenced ? -1 : 1);
    int64_t wide[32], *shifted;
    int32_t narrow[32];
    size_t count = 0;
    for (; count < 32 && from->len >= 8; count++) {
        const uint64_t raw = take_number(from, 8);
        memcpy(&narrow[count], &raw, 4);
        wide[count] = (int64_t)(raw >> 2);
    }
    shifted = output(count * sizeof *shifted);
    upseal_shift_offsets(input(wide, count * sizeof *wide, fenced), count, by, shifted);
    for (size_t i = 0; i < count; i++) MUST(shifted[i] - by == wide[i]);
    shifted = output(count * sizeof *shifted);
    upseal_widen_offsets(input(narrow, count * sizeof *narrow, fenced), count, shifted);
    for (size_t i = 0; i < count; i++) MUST(shifted[i] == narrow[i]);
}

void run_keys(const uint8_t *data, size_t len)
{
    bytes from = {data, len};
    const unsigned how = (unsigned)take_number(&from, 1);
    const int fenced = how >> 3 & 1;
    if ((how & 7) <= 3) make_key(&from, fenced);
    if ((how & 7) == 4) make_work(&from);
    if ((how & 7) == 5) compare(&from, fenced);
    if ((how & 7) == 6) wipe(&from);
    if ((how & 7) == 7) offsets(&from, fenced);
    MUST(upseal_cpu_has_aes() == 0 || upseal_cpu_has_aes() == 1);
}
