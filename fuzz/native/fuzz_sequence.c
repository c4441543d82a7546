/* SPDX-License-Identifier: Apache-2.0
 *
 * Calls of every kind one after the other in the same new work spaces: what one leaves behind, a
 * failed one above all, must not show in the next.  A case is, again and again,
 *
 *   u8 which | u16 length | that target's case
 */
#include "harness.h"

#include <string.h>

enum { WHICH = 7, CALLS = 12, CASE_MAX = 8192 };

void run_sequence(const uint8_t *data, size_t len)
{
    static void (*const targets[WHICH])(const uint8_t *, size_t) = {
        run_envelopes, run_envelope, run_batch, run_chunks, run_padding, run_keys, run_arena,
    };
    bytes from = {data, len};
    renew_engines();
    for (int calls = 0; from.len && calls < CALLS; calls++) {
        const size_t which = (size_t)take_number(&from, 1) % WHICH;
        const size_t wanted = (size_t)take_number(&from, 2);
        const size_t own = wanted < from.len ? wanted : from.len;
        targets[which](from.data, own);
        release_all();
        take(&from, NULL, own);
    }
}

/* ---- the mutator --------------------------------------------------------------------------- */

typedef struct {
    uint8_t which, text[CASE_MAX];
    size_t len;
} call;

/* Another key for a case about records or chunks: its own, behind the head, or key_seed's. */
static void change_key(call *c, uint32_t *random)
{
    static const size_t heads[WHICH] = {58, 58, 58, 20};
    if (c->which > 3 || c->len < heads[c->which] + 32) return;
    const size_t at = c->text[3] & 128 ? heads[c->which] + random_below(random, 32)
                                       : 4 + random_below(random, 2);
    c->text[at] ^= (uint8_t)(1 + random_below(random, 255));
}

static size_t change_call(call *c, uint32_t *random)
{
    static size_t (*const mutators[WHICH])(uint8_t *, size_t, size_t, unsigned) = {
        mutate_envelopes, mutate_envelope, mutate_batch, mutate_chunks,
    };
    const unsigned seed = random_below(random, 1u << 31);
    if (mutators[c->which]) return mutators[c->which](c->text, c->len, CASE_MAX, seed);
    return LLVMFuzzerMutate(c->text, c->len, CASE_MAX);
}

/* Calls doubled, under another key as well, swapped, left out, or changed as their targets do. */
size_t mutate_sequence(uint8_t *data, size_t len, size_t max_len, unsigned seed)
{
    static call calls[CALLS];
    uint32_t random = seed;
    bytes from = {data, len};
    size_t count = 0, made = 0;
    for (; from.len && count < CALLS; count++) {
        call *c = &calls[count];
        c->which = (uint8_t)(take_number(&from, 1) % WHICH);
        c->len = (size_t)take_number(&from, 2);
        if (c->len > from.len) c->len = from.len;
        if (c->len > CASE_MAX) c->len = CASE_MAX;
        take(&from, c->text, c->len);
    }
    if (!count || random_below(&random, 8) == 0) return LLVMFuzzerMutate(data, len, max_len);
    const size_t i = random_below(&random, (uint32_t)count);
    const size_t k = random_below(&random, (uint32_t)count);
    const uint32_t how = random_below(&random, 8);
    if (how <= 2 && count < CALLS) {
        memmove(&calls[i + 1], &calls[i], (count - i) * sizeof calls[0]);
        count++;
        if (how > 0) change_key(&calls[i + 1], &random);
    } else if (how == 3 && i != k) {
        const call kept = calls[i];
        calls[i] = calls[k];
        calls[k] = kept;
    } else if (how == 4 && count > 1) {
        calls[i] = calls[--count];
    } else {
        calls[i].len = change_call(&calls[i], &random);
    }
    for (size_t n = 0; n < count && made + 3 + calls[n].len <= max_len; n++) {
        data[made++] = calls[n].which;
        data[made++] = (uint8_t)calls[n].len;
        data[made++] = (uint8_t)(calls[n].len >> 8);
        if (calls[n].len) memcpy(data + made, calls[n].text, calls[n].len);
        made += calls[n].len;
    }
    return made ? made : LLVMFuzzerMutate(data, len, max_len);
}
