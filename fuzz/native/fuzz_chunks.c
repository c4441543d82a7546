/* SPDX-License-Identifier: Apache-2.0
 *
 * Chunks of an upload.  A case is
 *
 *   head | key 44, if OWN_KEY | what is sealed or opened, as it stands
 *
 * or, with BUILT, since chunks are long and the fuzzer's bytes few: a plaintext is made of a
 * pattern, sealed by the reference, and damaged as the rest of the case says, 6 bytes a time.
 */
#include "cases.h"

#include <stdlib.h>
#include <string.h>

__extension__ typedef __int128 wide;

enum { LAST = 2, BUILT = 8, NEAR_END = 16 }; /* flags, besides CIPHER and FENCED */
enum { CHUNK = 16384, SEALED = 16400, TEXT_MAX = 3 * CHUNK + 100, ROOM = TEXT_MAX + 1000 };

typedef struct __attribute__((packed)) {
    uint8_t call, flags, missing, key_kind;
    uint16_t key_seed;
    int16_t out_more;
    uint64_t first;
    uint32_t text_len;
} chunk_head;

typedef struct {
    chunk_head h;
    reference_key key;
    uint8_t material[44];
    upseal_key *product_key;
    int key_right, last, fenced;
    uint64_t first;
    uint8_t bytes[ROOM];
    size_t len;
} chunk_case;

static void read_chunk_head(bytes *from, chunk_case *c)
{
    memset(&c->h, 0, sizeof c->h);
    take(from, &c->h, from->len < sizeof c->h ? from->len : sizeof c->h);
    key_from_seed(c->h.key_seed, c->material);
    if (c->h.key_kind & OWN_KEY) take(from, c->material, 44);
    c->key.cipher = c->h.flags & CIPHER ? 2 : 1;
    memcpy(c->key.key, c->material, 32);
    memcpy(c->key.base_nonce, c->material + 32, 12);
    c->last = (c->h.flags & LAST) != 0;
    c->fenced = (c->h.flags & FENCED) != 0;
    c->first = c->h.first;
    if (c->h.flags & NEAR_END) c->first = UPSEAL_CHUNKS_MAX - c->h.first % 6;
}

/* ---- building what is opened ------------------------------------------------------------------ */

static size_t built_length(const chunk_case *c)
{
    static const uint32_t edges[] = {0,         1,         CHUNK - 1,     CHUNK,    CHUNK + 1,
                                     2 * CHUNK, 3 * CHUNK, 2 * CHUNK - 1, CHUNK + 40};
    const uint32_t raw = c->h.text_len;
    const size_t len =
        raw >> 31 ? edges[raw % (sizeof edges / sizeof edges[0])] : raw % TEXT_MAX;
    return c->last ? len : len - len % CHUNK;
}

static size_t reference_seal(const reference_key *key, uint64_t first, int last,
                             const uint8_t *text, size_t len, uint8_t *out)
{
    size_t made = 0, i = 0;
    for (; (i + 1) * CHUNK <= len; i++, made += SEALED)
        reference_seal_chunk(key, first + i, text + i * CHUNK, CHUNK, out + made);
    if (!last) return made;
    reference_seal_chunk(key, first + i, text + i * CHUNK, len - i * CHUNK, out + made);
    return made + len - i * CHUNK + 16;
}

static void damage(chunk_case *c, bytes *from)
{
    for (int times = 0; from->len >= 6 && times < 8; times++) {
        const unsigned how = (unsigned)take_number(from, 1) % 8;
        const size_t at = (size_t)take_number(from, 4), chunks = c->len / SEALED;
        const uint8_t value = (uint8_t)take_number(from, 1);
        uint8_t *one = chunks ? c->bytes + at % chunks * SEALED : NULL;
        uint8_t *other = chunks ? c->bytes + value % chunks * SEALED : NULL, kept[SEALED];
        if (how == 0 && c->len) c->bytes[at % c->len] ^= value;
        if (how == 1) c->len -= at % (c->len + 1) % (value & 1 ? ROOM : 64);
        if (how == 2 && c->len + 255 <= ROOM) {
            memset(c->bytes + c->len, (int)(at & 255), value);
            c->len += value;
        }
        if (how == 3 && chunks && one != other) {
            memcpy(kept, one, SEALED);
            memcpy(one, other, SEALED);
            memcpy(other, kept, SEALED);
        }
        if (how == 4 && chunks && one != other) memcpy(one, other, SEALED);
        if (how == 5 && chunks) {
            memmove(one, one + SEALED, (size_t)(c->bytes + c->len - one) - SEALED);
            c->len -= SEALED;
        }
        if (how == 6) c->first += (uint64_t)(int64_t)(int8_t)value;
        if (how == 7) c->last = !c->last;
    }
}

static void read_content(chunk_case *c, bytes *from)
{
    if (!(c->h.flags & BUILT)) {
        c->len = from->len < ROOM ? from->len : ROOM;
        take(from, c->bytes, c->len);
        return;
    }
    uint8_t *text = malloc(ROOM);
    MUST(text);
    c->len = built_length(c);
    pattern(text, c->len, c->h.text_len);
    if (c->h.call % 3 == 0)
        memcpy(c->bytes, text, c->len);
    else
        c->len = reference_seal(&c->key, c->first, c->last, text, c->len, c->bytes);
    free(text);
    damage(c, from);
}

/* ---- the calls ----------------------------------------------------------------------------------- */

static size_t room_for(const chunk_case *c, size_t exact)
{
    const int64_t len = (int64_t)exact + c->h.out_more;
    return len < 0 ? 0 : (size_t)len;
}

static int places_fit(const chunk_case *c, size_t chunks)
{
    return (wide)c->first + chunks <= (wide)UPSEAL_CHUNKS_MAX;
}

static void seal(const chunk_case *c, const uint8_t *in)
{
    const size_t whole = c->len / CHUNK, chunks = whole + (c->last ? 1 : 0);
    const size_t exact = c->len + 16 * chunks, len = room_for(c, exact);
    const int right = c->key_right && !(c->h.missing & NO_WORK) &&
                      (c->last || c->len % CHUNK == 0) && places_fit(c, chunks) && len == exact;
    uint8_t *expected = malloc(exact + 1);
    MUST(expected);
    if (right) MUST(reference_seal(&c->key, c->first, c->last, in, c->len, expected) == exact);
    ENGINES(e) {
        uint8_t *out = output(len);
        MUST(upseal_seal_chunks(c->h.missing & NO_WORK ? NULL : e->work, c->product_key, c->first,
                                c->last, in, c->len, out,
                                len) == (right ? UPSEAL_OK : UPSEAL_EARGUMENT));
        MUST(right ? len == 0 || memcmp(out, expected, len) == 0 : all_zero(out, len));
    }
    free(expected);
}

static void open_(const chunk_case *c, const uint8_t *in)
{
    const size_t whole = c->len / SEALED, rest = c->len % SEALED, chunks = whole + (c->last ? 1 : 0);
    int right = c->key_right && !(c->h.missing & NO_WORK) && places_fit(c, chunks);
    right = right && (c->last ? rest >= 16 : rest == 0);
    const size_t need = right ? c->len - 16 * chunks : c->len, len = room_for(c, need);
    if (len < need) right = 0;
    uint8_t *text = malloc(c->len + 1);
    size_t got = 0;
    int forged = 0;
    MUST(text);
    for (size_t i = 0; right && !forged && i < chunks; i++) {
        const size_t one = i < whole ? CHUNK : rest - 16;
        forged = !reference_open_chunk(&c->key, c->first + i, in + i * SEALED, one, text + got);
        if (!forged) got += one;
    }
    const upseal_status wanted = !right ? UPSEAL_EARGUMENT : forged ? UPSEAL_EFORGED : UPSEAL_OK;
    ENGINES(e) for (int private = 0; private <= 1; private++) {
        upseal_work *work = c->h.missing & NO_WORK ? NULL : e->work;
        uint8_t *out = output(len);
        size_t *opened = output(sizeof *opened);
        const upseal_status status =
            private ? upseal_open_chunks_private(work, c->product_key, c->first, c->last, in,
                                                 c->len, out, len)
                    : upseal_open_chunks(work, c->product_key, c->first, c->last, in, c->len, out,
                                         len, opened);
        const size_t kept = private && status != UPSEAL_OK ? 0 : got;
        MUST(status == wanted);
        MUST(private || *opened == got);
        MUST(kept == 0 || memcmp(out, text, kept) == 0);
        if (status == UPSEAL_OK)
            MUST(untouched(out + kept, len - kept));
        else
            MUST(all_zero(out + kept, len - kept));
    }
    free(text);
}

void run_chunks(const uint8_t *data, size_t len)
{
    bytes from = {data, len};
    chunk_case *c = calloc(1, sizeof *c);
    MUST(c);
    read_chunk_head(&from, c);
    const unsigned kind = c->h.key_kind & KEY_KIND;
    c->key_right = kind != NO_KEY && kind != OTHER_KEY;
    if (kind != NO_KEY) {
        c->product_key = upseal_key_new(c->key.cipher, c->material, c->key_right ? 44 : 32);
        MUST(c->product_key);
    }
    read_content(c, &from);
    const uint8_t *in = input(c->bytes, c->len, c->fenced);
    (c->h.call % 3 == 0 ? seal : open_)(c, in);
    upseal_key_free(c->product_key);
    free(c);
}

/* ---- the mutator --------------------------------------------------------------------------------- */

/* Of a case that is not BUILT: opens its chunks, changes the plaintext, seals it again. */
size_t mutate_chunks(uint8_t *data, size_t len, size_t max_len, unsigned seed)
{
    static chunk_case c;
    static uint8_t text[ROOM], sealed[ROOM];
    uint32_t random = seed;
    bytes from = {data, len};
    if (len < sizeof c.h || random_below(&random, 3) == 0) return LLVMFuzzerMutate(data, len, max_len);
    read_chunk_head(&from, &c);
    const size_t front = len - from.len;
    if (c.h.flags & BUILT || front + 16 > max_len) return LLVMFuzzerMutate(data, len, max_len);
    size_t text_len = 0;
    c.len = from.len < ROOM ? from.len : ROOM;
    for (size_t at = 0, i = 0; at + 16 <= c.len; at += SEALED, i++) {
        const size_t one = c.len - at < SEALED ? c.len - at - 16 : CHUNK;
        if (!reference_open_chunk(&c.key, c.first + i, from.data + at, one, text + text_len))
            memcpy(text + text_len, from.data + at, one);
        text_len += one;
    }
    size_t room = max_len - front - 16;
    room -= room / SEALED * 16;
    if (room > TEXT_MAX) room = TEXT_MAX;
    if (text_len > room) text_len = room;
    if (random_below(&random, 4) == 0) {
        const size_t whole = text_len - text_len % CHUNK;
        c.last = !c.last;
        if (!c.last) text_len = whole;
    } else if (random_below(&random, 3) == 0) {
        c.h.first = c.first = random_below(&random, 2) ? UPSEAL_CHUNKS_MAX - random_below(&random, 4)
                                                       : random_below(&random, 1u << 31);
        c.h.flags &= (uint8_t)~NEAR_END;
    } else if (room) {
        text_len = LLVMFuzzerMutate(text, text_len, room);
    }
    if (!c.last) text_len -= text_len % CHUNK;
    c.h.flags = (uint8_t)((c.h.flags & ~LAST) | (c.last ? LAST : 0));
    if (c.h.call % 3 == 0) c.h.call = 1;
    const size_t made = reference_seal(&c.key, c.first, c.last, text, text_len, sealed);
    if (front + made > max_len) return LLVMFuzzerMutate(data, len, max_len);
    memcpy(data, &c.h, sizeof c.h);
    memcpy(data + front, sealed, made);
    if (made && random_below(&random, 4) == 0)
        data[front + random_below(&random, (uint32_t)made)] ^= 1 << random_below(&random, 8);
    return front + made;
}
