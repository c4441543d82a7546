/* SPDX-License-Identifier: Apache-2.0
 *
 * Keys that live in arenas, made, derived, used and freed in whatever order the case says, arenas
 * freed before their keys; and the derivation by itself.
 */
#include "cases.h"

#include <stdlib.h>
#include <string.h>

enum { KEYS = 300, STEPS = 64, EXPANDED_MAX = 255 * 64 };

typedef struct {
    upseal_key *key;
    uint8_t cipher, material[96];
    size_t len; /* 32 and 44: a key; 96: a session */
    int arena;
} alive;

static struct {
    upseal_arena *arenas[2];
    alive keys[KEYS];
    size_t count;
} now;

static void keep(upseal_key *key, int arena, uint8_t cipher, const uint8_t *material, size_t len)
{
    const int right = cipher == 1 || cipher == 2;
    MUST((key != NULL) == right);
    if (!key) return;
    alive *a = &now.keys[now.count++];
    a->key = key;
    a->arena = arena;
    a->cipher = cipher;
    a->len = len;
    memcpy(a->material, material, len);
}

static void make(bytes *from, int arena, int fenced)
{
    const uint8_t cipher = (uint8_t)take_number(from, 1);
    const unsigned sort = (unsigned)take_number(from, 1);
    uint8_t raw[96];
    pattern(raw, sizeof raw, (uint32_t)take_number(from, 2));
    for (unsigned times = 1 + (sort >> 4) * 6; times > 0 && now.count < KEYS; times--, raw[0]++) {
        const size_t len = (sort & 3) == 0 ? 96 : (sort & 3) == 1 ? 44 : (sort & 3) == 2 ? 32 : raw[1];
        if (len == 96) {
            keep(upseal_session_key(now.arenas[arena], cipher, raw), arena, cipher, raw, 96);
        } else if (len == 32 || len == 44) {
            const uint8_t *material = times == 1 ? input(raw, len, fenced) : raw;
            keep(upseal_arena_key(now.arenas[arena], cipher, material, len), arena, cipher, raw,
                 len);
        } else {
            MUST(!upseal_arena_key(now.arenas[arena], cipher, raw, len));
        }
    }
}

static void derive(bytes *from, const alive *session, int arena, int fenced)
{
    uint8_t raw[200], wanted[76] = {0};
    const size_t info_len = (size_t)take_number(from, 1) % sizeof raw;
    take(from, raw, info_len);
    if (session->len == 96) reference_expand(session->material + 64, raw, info_len, wanted, 76);
    uint8_t *commitment = output(32);
    upseal_key *key = upseal_upload_key(now.arenas[arena], session->key,
                                        input(raw, info_len, fenced), info_len, commitment);
    MUST((key != NULL) == (session->len == 96));
    MUST(memcmp(commitment, wanted + 44, 32) == 0); /* zeros, if it is no session */
    if (key) keep(key, arena, session->cipher, wanted, 44);
    key = upseal_batch_key(now.arenas[arena], session->key);
    MUST((key != NULL) == (session->len == 96));
    if (key) keep(key, arena, session->cipher, session->material + 32, 32);
}

static void use(const alive *a)
{
    static const uint8_t nonce[24] = "ABCDEFGHIJKLMNOPQRSTUVWX";
    reference_key same = {.cipher = a->cipher};
    uint8_t wanted[4 + 16], chunk[4 + 16], envelope[24 + 4 + 16];
    const int for_chunks = a->len == 44;
    memcpy(same.key, a->material, 32);
    if (for_chunks) memcpy(same.base_nonce, a->material + 32, 12);
    if (for_chunks)
        reference_seal_chunk(&same, 7, nonce, 4, wanted);
    else
        reference_seal_record(&same, nonce, 0, NULL, 0, nonce, 4, wanted);
    ENGINES(e) {
        MUST(upseal_seal_chunks(e->work, a->key, 7, 1, nonce, 4, chunk, sizeof chunk) ==
             (for_chunks ? UPSEAL_OK : UPSEAL_EARGUMENT));
        MUST(upseal_seal_envelope(e->work, a->key, nonce, NULL, 0, NULL, 0, nonce, 4, 0, envelope,
                                  sizeof envelope) ==
             (for_chunks ? UPSEAL_EARGUMENT : UPSEAL_OK));
        MUST(memcmp(for_chunks ? chunk : envelope + 24, wanted, sizeof wanted) == 0);
    }
}

static void expand(bytes *from, int fenced)
{
    uint8_t secret[32], raw[300], *wanted = malloc(EXPANDED_MAX);
    const size_t info_len = (size_t)take_number(from, 2) % sizeof raw;
    size_t len = (size_t)take_number(from, 2);
    if (len > EXPANDED_MAX + 70) len %= 300;
    take(from, secret, 32);
    take(from, raw, info_len);
    uint8_t *out = output(len);
    const int right = len <= EXPANDED_MAX;
    MUST(wanted);
    MUST(upseal_expand(input(secret, 32, fenced), input(raw, info_len, fenced), info_len, out,
                       len) == (right ? UPSEAL_OK : UPSEAL_EARGUMENT));
    if (right) reference_expand(secret, raw, info_len, wanted, len);
    MUST(right ? memcmp(out, wanted, len) == 0 : all_zero(out, len));
    free(wanted);
}

static void drop(size_t i)
{
    upseal_key_free(now.keys[i].key);
    now.keys[i] = now.keys[--now.count];
}

static void measure(int arena)
{
    uint64_t used, size, locked, keys = 0;
    for (size_t i = 0; i < now.count; i++) keys += now.keys[i].arena == arena;
    upseal_arena_measure(now.arenas[arena], &used, &size, &locked);
    MUST(used <= size && locked <= size && (used == 0 || keys));
    MUST(size == 0 || keys == 0 || (used >= 96 * keys && used % keys == 0));
}

static void step(bytes *from)
{
    const unsigned how = (unsigned)take_number(from, 1);
    const int arena = how >> 4 & 1, fenced = how >> 5 & 1;
    const size_t which = now.count ? (size_t)take_number(from, 2) % now.count : 0;
    switch (how & 7) {
    case 0:
    case 1: make(from, arena, fenced); break;
    case 2: if (now.count && now.count + 2 <= KEYS) derive(from, &now.keys[which], arena, fenced); break;
    case 3: if (now.count) use(&now.keys[which]); break;
    case 4: if (now.count) drop(which); break;
    case 5: expand(from, fenced); break;
    case 6:
        measure(arena);
        if (fenced) upseal_arena_relock(now.arenas[arena]);
        ENGINES(e) upseal_work_scrub(e->work);
        break;
    default: /* its keys stay good; a new one takes its place, so that `measure` knows its keys */
        upseal_arena_free(now.arenas[arena]);
        now.arenas[arena] = upseal_arena_new();
        MUST(now.arenas[arena]);
        for (size_t i = 0; i < now.count; i++)
            if (now.keys[i].arena == arena) now.keys[i].arena = -1;
    }
}

void run_arena(const uint8_t *data, size_t len)
{
    bytes from = {data, len};
    now.count = 0;
    for (int i = 0; i < 2; i++) MUST((now.arenas[i] = upseal_arena_new()) != NULL);
    for (int steps = 0; from.len && steps < STEPS; steps++) {
        step(&from);
        release_all();
    }
    for (size_t i = 0; i < now.count; i += 1 + now.count / 12) use(&now.keys[i]);
    const int first = (int)(len & 1);
    if (first)
        for (int i = 0; i < 2; i++) upseal_arena_free(now.arenas[i]);
    while (now.count) drop(now.count / 2);
    for (int i = 0; i < 2 && !first; i++) {
        measure(i);
        upseal_arena_free(now.arenas[i]);
    }
}
