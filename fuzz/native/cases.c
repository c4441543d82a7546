/* SPDX-License-Identifier: Apache-2.0
 *
 * What cases.h says.  The bounds are written down again here, in numbers that cannot overflow.
 */
#include "cases.h"

#include <stdlib.h>
#include <string.h>

__extension__ typedef __int128 wide;

enum { ROOM_MAX = 300000 };

void read_head(bytes *from, head *h)
{
    memset(h, 0, sizeof *h);
    const size_t have = from->len < sizeof *h ? from->len : sizeof *h;
    take(from, h, have);
}

static size_t far_length(const head *h, int prefix)
{
    static const size_t prefixes[] = {(1u << 24), (1u << 24) + 1, SIZE_MAX - 23, SIZE_MAX};
    static const size_t aads[] = {(size_t)1 << 31, ((size_t)1 << 32) + 9, SIZE_MAX - 8, SIZE_MAX};
    return (prefix ? prefixes : aads)[h->base & 3];
}

static void read_key(bytes *from, record_case *c)
{
    const unsigned kind = c->h.key_kind & KEY_KIND;
    key_from_seed(c->h.key_seed, c->material);
    if (c->h.key_kind & OWN_KEY) take(from, c->material, 32);
    c->key.cipher = c->h.flags & CIPHER ? 2 : 1;
    memcpy(c->key.key, c->material, 32);
    c->key_right = kind != NO_KEY && kind != OTHER_KEY;
    if (kind == NO_KEY) return;
    c->product_key = upseal_key_new(c->key.cipher, c->material, kind == OTHER_KEY ? 44 : 32);
    MUST(c->product_key);
}

/* All offsets in order and within the values: section by section of what upseal.h promises. */
static int offsets_fit(const record_case *c)
{
    if (!c->offsets_given || c->offsets[0] < 0) return 0;
    for (size_t i = 0; i < c->count; i++)
        if (c->offsets[i + 1] < c->offsets[i]) return 0;
    return (wide)c->offsets[c->count] - c->offsets[0] <= (wide)c->values_len;
}

void read_case(bytes *from, record_case *c, size_t too_long, int huge_values)
{
    const head *h = &c->h;
    uint8_t front[256];
    size_t sum = 0, huge = 0;

    c->padded = (h->flags & PADDED) != 0;
    c->fenced = (h->flags & FENCED) != 0;
    c->count = h->count % (VALUES_MAX + 1);
    read_key(from, c);
    for (size_t i = 0; i < c->count; i++) {
        size_t len = (size_t)take_number(from, 2);
        const int wanted = len == TOO_LONG && huge < 3 && !h->bend && h->prefix_len != FAR;
        huge += (size_t)wanted;
        if (!wanted && sum + len > LENGTHS_MAX) len %= 512;
        if (!wanted) sum += len;
        c->lengths[i] = wanted ? too_long : len;
    }
    if (!(h->missing & NO_NONCE)) c->nonce = input(h->nonce, 24, c->fenced);
    if (h->prefix_len == FAR) {
        c->prefix = claimed();
        c->prefix_len = far_length(h, 1);
    } else {
        take(from, front, h->prefix_len);
        c->prefix = input(front, h->prefix_len, c->fenced);
        c->prefix_len = h->prefix_len;
    }
    if (h->aad_len == FAR) {
        c->aad = claimed();
        c->aad_len = far_length(h, 0);
    } else {
        take(from, front, h->aad_len);
        c->aad = input(front, h->aad_len, c->fenced);
        c->aad_len = h->aad_len;
    }

    uint64_t end = (uint64_t)h->base;
    for (size_t i = 0; i <= c->count; i++) {
        c->offsets[i] = (int64_t)end;
        if (i < c->count) end += c->lengths[i];
    }
    if (h->bend && h->bend <= c->count + 1) c->offsets[h->bend - 1] = h->bent;
    if (!(h->missing & NO_OFFSETS))
        c->offsets_given = input(c->offsets, (c->count + 1) * sizeof *c->offsets, c->fenced);
    const int64_t claim = (int64_t)(end - (uint64_t)h->base) + h->values_more;
    c->values_len = claim < 0 ? 0 : (size_t)claim;
    c->offsets_right = offsets_fit(c);

    if (huge && !huge_values) { /* then it is refused, and not a byte of it may be read */
        c->values = (uint8_t *)claimed() + 4096;
    } else if (huge && c->offsets_right) {
        c->values = roomy((size_t)(c->offsets[c->count] - c->offsets[0]));
    } else if (!huge) {
        const size_t need =
            c->offsets_right ? (size_t)(c->offsets[c->count] - c->offsets[0]) : sum;
        uint8_t *all = malloc(need + 1);
        MUST(all);
        take(from, all, need);
        c->values = input(all, need, c->fenced);
        free(all);
    }
    if (!c->offsets_right) return;
    for (size_t i = 0; i < c->count; i++)
        c->lengths[i] = (size_t)(c->offsets[i + 1] - c->offsets[i]);
    for (size_t i = 0; huge && huge_values && i < c->count; i++)
        take(from, c->values + (c->offsets[i] - c->offsets[0]),
             c->lengths[i] < 4096 ? c->lengths[i] : 4096);
}

void end_case(record_case *c)
{
    upseal_key_free(c->product_key);
}

int sealed_length(uint64_t len, int padded, uint64_t *sealed)
{
    if (len > UPSEAL_RECORD_MAX) return 0;
    if (padded) len = reference_padme(len + 1);
    *sealed = len + 16;
    return len <= UPSEAL_RECORD_MAX;
}

int sealed_lengths(const record_case *c, uint64_t *sealed)
{
    *sealed = 0;
    if (!c->offsets_right) return 0;
    for (size_t i = 0; i < c->count; i++) {
        uint64_t one;
        if (!sealed_length(c->lengths[i], c->padded, &one)) return 0;
        *sealed += one;
    }
    return 1;
}

int places_right(uint64_t first, uint64_t count) { return first + count <= UPSEAL_RECORDS_MAX; }

size_t room(const record_case *c, uint64_t exact)
{
    const wide len = (wide)exact + c->h.out_more;
    return len < 0 ? 0 : len > ROOM_MAX ? ROOM_MAX : (size_t)len;
}
