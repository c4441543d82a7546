/* SPDX-License-Identifier: Apache-2.0
 *
 * The mutator for cases that open records: what is sealed is opened, changed, and sealed again, so
 * that the tag does not keep the fuzzer from what lies behind it.  It seals by the reference.
 */
#include "cases.h"

#include <stdlib.h>
#include <string.h>

enum { TEXT_MAX = 3000, FRONT_MAX = 254 };

typedef enum { ENVELOPES, ENVELOPE, BATCH } form;

typedef struct {
    uint8_t nonce[24]; /* an envelope's own */
    uint8_t text[TEXT_MAX];
    size_t len;
} value;

static struct {
    form form;
    head h;
    uint8_t own_key[32], prefix[FRONT_MAX], aad[FRONT_MAX];
    reference_key key;
    size_t count;
    value values[VALUES_MAX];
    int damaged[VALUES_MAX]; /* its padding is wrong on purpose */
} now;

static uint32_t dice;

static uint32_t below(uint32_t limit) { return random_below(&dice, limit); }

/* ---- in and out ---------------------------------------------------------------------------- */

static void set_key(void)
{
    uint8_t material[44];
    key_from_seed(now.h.key_seed, material);
    memcpy(now.key.key, now.h.key_kind & OWN_KEY ? now.own_key : material, 32);
    now.key.cipher = now.h.flags & CIPHER ? 2 : 1;
}

static uint32_t set_place(size_t i)
{
    const uint32_t index = now.h.first + (uint32_t)i;
    if (now.form != BATCH) return 0;
    for (int k = 0; k < 4 && now.h.aad_len >= 5; k++)
        now.aad[1 + k] = (uint8_t)(index >> (24 - 8 * k));
    return index;
}

static void load(form which, const uint8_t *data, size_t len)
{
    static uint8_t raw[65536];
    size_t lengths[VALUES_MAX];
    bytes from = {data, len};
    now.form = which;
    memset(now.damaged, 0, sizeof now.damaged);
    read_head(&from, &now.h);
    now.h.call |= 1;
    if (which == ENVELOPE) now.h.count = 1;
    now.count = now.h.count % (VALUES_MAX + 1);
    if (now.h.key_kind & OWN_KEY) take(&from, now.own_key, 32);
    if (below(8)) { /* mostly without what is refused before a tag is looked at */
        now.h.missing &= NO_PREFIX;
        now.h.key_kind &= OWN_KEY;
        now.h.bend = 0;
        now.h.base = 0;
        now.h.values_more = 0;
        if (now.h.out_more < 0) now.h.out_more = 0;
        now.h.first %= UPSEAL_RECORDS_MAX - VALUES_MAX + 1;
        if (which == BATCH && now.h.aad_len < UPSEAL_BATCH_AAD_MIN) now.h.aad_len = 12;
    }
    if (now.h.prefix_len == FAR) now.h.prefix_len = 5;
    if (now.h.aad_len == FAR) now.h.aad_len = 12;
    set_key();
    for (size_t i = 0; i < now.count; i++) lengths[i] = (size_t)take_number(&from, 2);
    take(&from, now.prefix, now.h.prefix_len);
    take(&from, now.aad, now.h.aad_len);
    const size_t front = which == BATCH ? 0 : now.h.prefix_len + 24u;
    for (size_t i = 0; i < now.count; i++) {
        value *v = &now.values[i];
        const uint32_t index = set_place(i);
        take(&from, raw, lengths[i]);
        memcpy(v->nonce, now.h.nonce, 24);
        v->len = 0;
        if (lengths[i] < front + 16) continue;
        if (front) memcpy(v->nonce, raw + now.h.prefix_len, 24);
        v->len = lengths[i] - front - 16 < TEXT_MAX ? lengths[i] - front - 16 : TEXT_MAX;
        if (v->len == TEXT_MAX ||
            !reference_open_record(&now.key, v->nonce, index, now.aad, now.h.aad_len, raw + front,
                                   v->len, v->text))
            memcpy(v->text, raw + front, v->len);
    }
}

static size_t store(uint8_t *data, size_t max_len, size_t *values_at)
{
    const size_t front = now.form == BATCH ? 0 : now.h.prefix_len + 24u;
    size_t len = sizeof now.h + (now.h.key_kind & OWN_KEY ? 32u : 0u) + 2 * now.count +
                 now.h.prefix_len + now.h.aad_len;
    *values_at = len;
    for (size_t i = 0; i < now.count; i++) len += front + now.values[i].len + 16;
    if (len > max_len) return 0;

    uint8_t *at = data;
    now.h.count = (uint8_t)now.count;
    memcpy(at, &now.h, sizeof now.h), at += sizeof now.h;
    if (now.h.key_kind & OWN_KEY) memcpy(at, now.own_key, 32), at += 32;
    for (size_t i = 0; i < now.count; i++) {
        const size_t sealed = front + now.values[i].len + 16;
        *at++ = (uint8_t)sealed;
        *at++ = (uint8_t)(sealed >> 8);
    }
    memcpy(at, now.prefix, now.h.prefix_len), at += now.h.prefix_len;
    memcpy(at, now.aad, now.h.aad_len), at += now.h.aad_len;
    for (size_t i = 0; i < now.count; i++) {
        const value *v = &now.values[i];
        const uint32_t index = set_place(i);
        if (front) memcpy(at, now.prefix, now.h.prefix_len);
        if (front) memcpy(at + now.h.prefix_len, v->nonce, 24);
        reference_seal_record(&now.key, front ? v->nonce : now.h.nonce, index, now.aad,
                              now.h.aad_len, v->text, v->len, at + front);
        at += front + v->len + 16;
    }
    return len;
}

/* ---- changes ---------------------------------------------------------------------------------- */

static void pad(value *v)
{
    static uint8_t padded[2 * TEXT_MAX];
    if (v->len > 2500) v->len = 2500;
    v->len = reference_pad(v->text, v->len, padded);
    memcpy(v->text, padded, v->len);
}

static void spoil_padding(value *v)
{
    size_t end = v->len;
    while (end && v->text[end - 1] == 0) end--;
    switch (below(8)) {
    case 0: if (v->len < TEXT_MAX) v->text[v->len++] = 0; break;
    case 1: if (v->len) v->len--; break;
    case 2: if (end) v->text[end - 1] ^= (uint8_t)(1u << below(8)); break;
    case 3: if (end) v->text[end - 1] = 0; break;
    case 4: if (v->len) v->text[v->len - 1] = (uint8_t)below(256); break;
    case 5: if (v->len) memset(v->text, 0, v->len); break;
    case 6: if (v->len > end) v->text[end + below((uint32_t)(v->len - end))] = 0x80; break;
    default: /* right in itself, and one step longer than it is to be */
        if (v->len < 2000) {
            const size_t longer = (size_t)reference_padme(v->len + 1);
            memset(v->text + v->len, 0, longer - v->len);
            v->len = longer;
        }
    }
}

static void resize(value *v)
{
    static const uint16_t edges[] = {0,  1,  2,  3,  7,   8,   9,   15,  16,  17,   31,   32,  33,
                                     36, 63, 64, 65, 127, 128, 129, 255, 256, 257,  271,  272, 273,
                                     511, 512, 513, 1023, 1024, 1025, 2047, 2048, 2049};
    const size_t len = edges[below(sizeof edges / sizeof edges[0])];
    if (len > v->len) pattern(v->text + v->len, len - v->len, dice);
    v->len = len;
}

static void change_place(void)
{
    static const uint32_t places[] = {0, 1, 255, 256, 65535, (1u << 20) - 1, 1u << 20, UINT32_MAX};
    now.h.first = below(2) ? places[below(8)] : UPSEAL_RECORDS_MAX - (uint32_t)now.count;
}

static void change_values(void)
{
    const size_t i = now.count ? below((uint32_t)now.count) : 0;
    const size_t k = now.count ? below((uint32_t)now.count) : 0;
    const uint32_t how = below(3);
    if (now.form == ENVELOPE) return;
    if (how == 0 && now.count < VALUES_MAX) {
        if (!now.count) memset(&now.values[0], 0, sizeof now.values[0]);
        now.values[now.count] = now.values[i];
        now.damaged[now.count++] = 0;
    } else if (how == 1 && now.count) {
        now.values[i] = now.values[--now.count];
    } else if (how == 2 && now.count) {
        const value kept = now.values[i];
        now.values[i] = now.values[k];
        now.values[k] = kept;
    }
}

static void change(void)
{
    const size_t i = now.count ? below((uint32_t)now.count) : 0;
    value *v = &now.values[i];
    switch (below(12)) {
    case 0:
    case 1:
        if (now.count) v->len = LLVMFuzzerMutate(v->text, v->len, TEXT_MAX);
        break;
    case 2:
    case 3:
        now.h.flags |= PADDED;
        if (!now.count) break;
        if (reference_unpad(v->text, v->len) < 0) pad(v);
        spoil_padding(v);
        now.damaged[i] = 1;
        break;
    case 4: if (now.count) resize(v); break;
    case 5: change_values(); break;
    case 6:
        now.h.aad_len = (uint8_t)LLVMFuzzerMutate(now.aad, now.h.aad_len, FRONT_MAX);
        break;
    case 7:
        if (now.form != BATCH)
            now.h.prefix_len =
                (uint8_t)LLVMFuzzerMutate(now.prefix, now.h.prefix_len, FRONT_MAX);
        break;
    case 8: /* with the last bytes alone changed the subkey stays */
        v->nonce[below(2) ? below(24) : 23] ^= (uint8_t)(1u << below(8));
        if (now.form == BATCH) memcpy(now.h.nonce, v->nonce, 24);
        break;
    case 9: change_place(); break;
    case 10:
        now.h.flags ^= (uint8_t)(1u << below(3));
        if (below(2)) now.h.key_seed = (uint16_t)below(65536);
        set_key();
        break;
    default: now.h.out_more = (int16_t)(below(2) ? 0 : (int)below(40) - 20);
    }
}

static size_t mutate(form which, uint8_t *data, size_t len, size_t max_len, unsigned seed)
{
    size_t values_at;
    dice = seed;
    if (len < sizeof now.h || below(4) == 0) return LLVMFuzzerMutate(data, len, max_len);
    load(which, data, len);
    for (uint32_t times = 1 + below(3); times > 0; times--) change();
    if (now.h.flags & PADDED && below(4))
        for (size_t i = 0; i < now.count; i++)
            if (!now.damaged[i] && reference_unpad(now.values[i].text, now.values[i].len) < 0)
                pad(&now.values[i]);
    const size_t made = store(data, max_len, &values_at);
    if (!made) return LLVMFuzzerMutate(data, len, max_len);
    switch (below(6)) { /* and what the tag must notice, or the bounds */
    case 0:
        if (made > values_at)
            data[values_at + below((uint32_t)(made - values_at))] ^= (uint8_t)(1u << below(8));
        break;
    case 1: data[below((uint32_t)made)] ^= (uint8_t)(1u << below(8)); break;
    default: break;
    }
    return made;
}

size_t mutate_envelopes(uint8_t *data, size_t len, size_t max_len, unsigned seed)
{
    return mutate(ENVELOPES, data, len, max_len, seed);
}

size_t mutate_envelope(uint8_t *data, size_t len, size_t max_len, unsigned seed)
{
    return mutate(ENVELOPE, data, len, max_len, seed);
}

size_t mutate_batch(uint8_t *data, size_t len, size_t max_len, unsigned seed)
{
    return mutate(BATCH, data, len, max_len, seed);
}
