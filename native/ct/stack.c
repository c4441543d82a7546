/* SPDX-License-Identifier: Apache-2.0
 *
 * What is left on the stack of keys: derives, seals and opens on a stack of its own, which is
 * searched after each step for the session secret, its keys, and what was made of them.  Ours and
 * the libraries' frames alike.
 *
 * stack BACKEND    says what it found, and then ends with 9
 */
#define _XOPEN_SOURCE 700 /* makecontext */
#include "aead.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <ucontext.h>

enum { SIZE = 256 << 10, LEN = 40000, PADDED = 1000, WINDOW = 16 };

typedef struct {
    const char *name;
    uint8_t bytes[32];
} secret;

static const uint8_t info[] = "what it is for", nonce[24] = "ABCDEFGHIJKLMNOPQRSTUVWX";
static uint8_t session_secret[32], plain[LEN], sealed[2 * LEN], opened[2 * LEN];
static uint8_t derived[128], upload_derived[76], commitment[32];
static size_t sealed_len;
static upseal_work *work;
static upseal_arena *arena;
static upseal_key *session, *batch, *upload;
static uint8_t cipher;

static void must(int good)
{
    if (!good) abort();
}

/* Each on a clean stack, so that no call writes over what the one before left. */
static void to_expand(void)
{
    must(upseal_expand(session_secret, info, sizeof info, derived, sizeof derived) == UPSEAL_OK);
}

static void to_make_keys(void)
{
    session = upseal_session_key(arena, cipher, derived);
    batch = upseal_batch_key(arena, session);
    must(session && batch);
}

static void to_make_an_upload_key(void)
{
    upload = upseal_upload_key(arena, session, info, sizeof info, commitment);
    must(upload != NULL);
}

static void to_seal(void)
{
    must(upseal_seal_envelope(work, session, nonce, NULL, 0, info, sizeof info, plain, PADDED, 1,
                              sealed, sealed_len) == UPSEAL_OK);
}

static void to_open(void)
{
    must(upseal_open_envelope(work, session, 0, info, sizeof info, sealed, sealed_len, 1, opened,
                              sizeof opened) == PADDED);
}

static void to_refuse(void)
{
    sealed[sealed_len - 1] ^= 1;
    must(upseal_open_envelope(work, session, 0, info, sizeof info, sealed, sealed_len, 1, opened,
                              sizeof opened) == UPSEAL_EFORGED);
}

static void to_derive(void)
{
    const upseal_aead *aead = work->aead[cipher - 1];
    uint8_t *subkey = upload_derived; /* not on the stack */
    must(aead->subkey(work->state[cipher - 1], derived + 32, nonce, subkey) == UPSEAL_OK);
    upseal_wipe(subkey, 32);
}

static void to_seal_chunks(void)
{
    must(upseal_seal_chunks(work, upload, 0, 1, plain, LEN, sealed, LEN + 3 * UPSEAL_TAG_LEN) ==
         UPSEAL_OK);
}

static void to_open_chunks(void)
{
    size_t n;
    must(upseal_open_chunks(work, upload, 0, 1, sealed, LEN + 3 * UPSEAL_TAG_LEN, opened, LEN,
                            &n) == UPSEAL_OK);
}

static void to_end(void)
{
    upseal_key_free(session);
    upseal_key_free(batch);
    upseal_key_free(upload);
    upseal_work_scrub(work);
}

static void (*const steps[])(void) = {
    to_expand, to_make_keys,       to_make_an_upload_key, to_seal,        to_open,
    to_refuse, to_derive, to_seal_chunks,        to_open_chunks, to_end,
};

static void run_on(uint8_t *stack, void (*step)(void))
{
    static ucontext_t here, there;
    memset(stack, 0, SIZE);
    must(!getcontext(&there));
    there.uc_stack.ss_sp = stack;
    there.uc_stack.ss_size = SIZE;
    there.uc_link = &here;
    makecontext(&there, step, 0);
    must(!swapcontext(&here, &there));
}

static int search(const uint8_t *stack, const secret *s)
{
    int found = 0;
    for (size_t half = 0; half < 32; half += WINDOW)
        for (size_t at = 0; at + WINDOW <= SIZE; at++)
            found |= memcmp(stack + at, s->bytes + half, WINDOW) == 0;
    return found;
}

int main(int argc, char **argv)
{
    enum { SECRETS = 7 };
    int found = 0;
    uint8_t *stack = aligned_alloc(4096, SIZE);
    for (size_t i = 0; i < 32; i++) session_secret[i] = (uint8_t)(i * 37 + 11);
    for (size_t i = 0; i < LEN; i++) plain[i] = (uint8_t)(i * 13 >> 2);
    for (size_t b = 0; upseal_backend_name(b); b++) {
        if (argc != 2 || strcmp(upseal_backend_name(b), argv[1]) != 0) continue;
        if (upseal_backend_test(b) != UPSEAL_OK) {
            printf("%s cannot run here\n", argv[1]);
            return 3;
        }
        sealed_len = 24 + upseal_padded_len(PADDED) + UPSEAL_TAG_LEN;
        for (cipher = 1; cipher <= 2; cipher++) {
            secret all[SECRETS] = {{.name = "session secret"}, {.name = "report key"},
                                   {.name = "batch key"},      {.name = "upload key"},
                                   {.name = "chunk key"},      {.name = "subkey of reports"},
                                   {.name = "subkey of batches"}};
            work = upseal_work_new(b);
            arena = upseal_arena_new();
            must(work && arena && stack);
            to_expand();
            must(!upseal_expand(derived + 64, info, sizeof info, upload_derived, 76));
            memcpy(all[0].bytes, session_secret, 32);
            for (size_t i = 0; i < 3; i++) memcpy(all[1 + i].bytes, derived + 32 * i, 32);
            memcpy(all[4].bytes, upload_derived, 32);
            for (size_t i = 0; i < 2; i++)
                must(!work->aead[cipher - 1]->subkey(work->state[cipher - 1], derived + 32 * i,
                                                     nonce, all[5 + i].bytes));
            for (size_t step = 0; step < sizeof steps / sizeof *steps; step++) {
                run_on(stack, steps[step]);
                for (size_t i = 0; i < SECRETS; i++)
                    if (search(stack, &all[i])) {
                        printf("left on the stack: %s, cipher %d, step %zu\n", all[i].name, cipher,
                               step);
                        found = 1;
                    }
            }
            upseal_work_free(work);
            upseal_arena_free(arena);
        }
        free(stack);
        if (!found) printf("%s: nothing is left on the stack\n", argv[1]);
        return found ? 9 : 0;
    }
    printf("no such backend in this build\n");
    return 2;
}
