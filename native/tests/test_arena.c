/* SPDX-License-Identifier: Apache-2.0
 *
 * Keys in an arena: as good as others, many of them, from many threads, wiped when they end.
 */
#include "helpers.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

enum { MANY = 5000, THREADS = 4, TURNS = 400, HELD = 70, LEN = 100, SEALED = LEN + 24 + 16 };

static void seal(const engine *e, const upseal_key *key, uint8_t out[SEALED])
{
    uint8_t *in = bytes(LEN, 5);
    CHECK(upseal_seal_envelope(e->work, key, test_nonce, NULL, 0, NULL, 0, in, LEN, 0, out,
                               SEALED) == UPSEAL_OK);
    free(in);
}

static void same_as_other_keys(void)
{
    uint8_t *material = bytes(96, 7), one[SEALED], other[SEALED];
    upseal_arena *arena = upseal_arena_new();
    CHECK(arena != NULL);
    ENGINES(e) CIPHERS(cipher) {
        upseal_key *plain = upseal_key_new(cipher, material, 32);
        upseal_key *key = upseal_arena_key(arena, cipher, material, 32);
        upseal_key *session = upseal_session_key(arena, cipher, material);
        seal(e, plain, one);
        seal(e, key, other);
        CHECK(memcmp(one, other, SEALED) == 0);
        seal(e, session, other);
        CHECK(memcmp(one, other, SEALED) == 0);
        upseal_key *batch = upseal_batch_key(arena, session);
        upseal_key *second = upseal_key_new(cipher, material + 32, 32);
        seal(e, batch, one);
        seal(e, second, other);
        CHECK(memcmp(one, other, SEALED) == 0);
        CHECK(upseal_batch_key(arena, key) == NULL); /* of no session */
        upseal_key_free(plain);
        upseal_key_free(key);
        upseal_key_free(session);
        upseal_key_free(batch);
        upseal_key_free(second);
    }
    for (size_t len = 0; len <= 96; len++)
        for (unsigned cipher = 0; cipher < 256; cipher++) {
            upseal_key *key = upseal_arena_key(arena, (uint8_t)cipher, material, len);
            CHECK((key != NULL) == ((len == 32 || len == 44) && (cipher == 1 || cipher == 2)));
            upseal_key_free(key);
        }
    CHECK(upseal_session_key(arena, 0, material) == NULL);
    CHECK(upseal_session_key(arena, 3, material) == NULL);
    free(material);
    upseal_arena_free(arena);
    upseal_arena_free(NULL);
}

static void uploads(void)
{
    uint8_t *material = bytes(96, 8), commitment[32], derived[76], zero[32] = {0};
    uint8_t sealed[LEN + 16], expected[LEN + 16], *in = bytes(LEN, 9);
    static const uint8_t info[] = "salt and context";
    upseal_arena *arena = upseal_arena_new();
    upseal_key *session = upseal_session_key(arena, 1, material);
    upseal_key *record = upseal_arena_key(arena, 1, material, 32);
    CHECK(upseal_expand(material + 64, info, sizeof info, derived, sizeof derived) == UPSEAL_OK);
    upseal_key *key = upseal_upload_key(arena, session, info, sizeof info, commitment);
    upseal_key *same = upseal_key_new(1, derived, 44);
    CHECK(key && memcmp(commitment, derived + 44, 32) == 0);
    CHECK(upseal_seal_chunks(engines[0].work, key, 3, 1, in, LEN, sealed, sizeof sealed) ==
          UPSEAL_OK);
    CHECK(upseal_seal_chunks(engines[0].work, same, 3, 1, in, LEN, expected, sizeof expected) ==
          UPSEAL_OK);
    CHECK(memcmp(sealed, expected, sizeof sealed) == 0);
    CHECK(upseal_upload_key(arena, record, info, sizeof info, commitment) == NULL);
    CHECK(memcmp(commitment, zero, 32) == 0);
    upseal_key_free(session);
    upseal_key_free(record);
    upseal_key_free(key);
    upseal_key_free(same);
    upseal_arena_free(arena);
    free(material);
    free(in);
}

/* RFC 5869 has no answers for SHA-512; tests/test_secrets_in_memory.py compares with another. */
static void expansion(void)
{
    const size_t most = 255 * 64;
    uint8_t *secret = bytes(32, 3), *out = dirty(most + 1), *less = dirty(most);
    CHECK(upseal_expand(secret, NULL, 0, out, most) == UPSEAL_OK);
    for (size_t len = 0; len <= 200; len++) {
        memset(less, 0xaa, most);
        CHECK(upseal_expand(secret, NULL, 0, less, len) == UPSEAL_OK);
        CHECK(memcmp(less, out, len) == 0 && all_dirty(less + len, most - len));
    }
    CHECK(upseal_expand(secret, NULL, 0, out, most + 1) == UPSEAL_EARGUMENT);
    CHECK(all_zero(out, most + 1));
    free(secret);
    free(out);
    free(less);
}

static void many(void)
{
    static upseal_key *keys[MANY];
    uint8_t *material = bytes(32, 1);
    uint64_t used, size, locked, before;
    upseal_arena *arena = upseal_arena_new();
    upseal_arena_measure(arena, &used, &size, &locked);
    CHECK(used == 0 && size == 0 && locked == 0);
    for (size_t i = 0; i < MANY; i++) keys[i] = upseal_arena_key(arena, 1, material, 32);
    upseal_arena_measure(arena, &used, &before, &locked);
    CHECK(used >= MANY * sizeof keys[0] && used <= before && locked <= before);
    for (size_t i = 0; i < MANY; i++) {
        CHECK(keys[i] != NULL && (uintptr_t)keys[i] % 64 == 0);
        for (size_t j = i + 1; j < i + 70 && j < MANY; j++) CHECK(keys[i] != keys[j]);
    }
    /* Its places are taken again, whichever became free. */
    for (size_t turn = 0; turn < 3; turn++) {
        for (size_t i = turn; i < MANY; i += 3) upseal_key_free(keys[i]);
        for (size_t i = turn; i < MANY; i += 3)
            keys[i] = upseal_arena_key(arena, 2, material, 32);
    }
    upseal_arena_measure(arena, &used, &size, &locked);
    CHECK(size == before);
    upseal_arena_relock(arena);
    upseal_arena_measure(arena, &used, &size, &before);
    CHECK(before >= locked && before <= size);
    /* The arena's maker may leave before the keys do. */
    upseal_arena_free(arena);
    uint8_t out[SEALED];
    for (size_t i = 0; i < MANY; i++) {
        if (i % 100 == 0) seal(&engines[0], keys[i], out);
        upseal_key_free(keys[i]);
    }
    free(material);
}

typedef struct {
    upseal_arena *arena;
    const engine *on;
    const uint8_t *expected; /* of each thread's own key */
    uint8_t *material;
    int good;
} job;

static void *run(void *opaque)
{
    job *j = opaque;
    upseal_key *held[HELD] = {NULL};
    upseal_work *work = upseal_work_new(j->on->index);
    uint8_t *in = bytes(LEN, 5), out[SEALED];
    int good = work != NULL;
    for (size_t turn = 0; turn < TURNS && good; turn++) {
        const size_t at = turn * 31 % HELD;
        upseal_key_free(held[at]);
        held[at] = upseal_arena_key(j->arena, 1, j->material, 32);
        good = held[at] &&
               upseal_seal_envelope(work, held[at], test_nonce, NULL, 0, NULL, 0, in, LEN, 0, out,
                                    SEALED) == UPSEAL_OK &&
               memcmp(out, j->expected, SEALED) == 0;
        if (turn % 50 == 0) upseal_work_scrub(work);
        if (turn % 100 == 0) upseal_arena_relock(j->arena);
    }
    for (size_t i = 0; i < HELD; i++) upseal_key_free(held[i]);
    upseal_work_free(work);
    free(in);
    j->good = good;
    return NULL;
}

static void threads(void)
{
    upseal_arena *arena = upseal_arena_new();
    pthread_t running[THREADS];
    job jobs[THREADS];
    uint8_t expected[THREADS][SEALED];
    for (size_t i = 0; i < THREADS; i++) {
        uint8_t *material = bytes(32, (uint32_t)(20 + i));
        upseal_key *key = upseal_key_new(1, material, 32);
        seal(&engines[0], key, expected[i]);
        upseal_key_free(key);
        jobs[i] = (job){arena, &engines[0], expected[i], material, 0};
    }
    for (size_t i = 0; i < THREADS; i++)
        CHECK(pthread_create(&running[i], NULL, run, &jobs[i]) == 0);
    for (size_t i = 0; i < THREADS; i++) {
        CHECK(pthread_join(running[i], NULL) == 0);
        CHECK(jobs[i].good);
        free(jobs[i].material);
    }
    uint64_t used, size, locked;
    upseal_arena_measure(arena, &used, &size, &locked);
    CHECK(used == 0);
    upseal_arena_free(arena);
}

void test_arena(void)
{
    same_as_other_keys();
    uploads();
    expansion();
    many();
    threads();
}
