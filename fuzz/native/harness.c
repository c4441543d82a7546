/* SPDX-License-Identifier: Apache-2.0
 *
 * What harness.h says.
 */
#define _DEFAULT_SOURCE 1 /* madvise, MAP_ANONYMOUS */
#include "harness.h"

#include <sanitizer/asan_interface.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

void must_failed(const char *what, const char *file, int line)
{
    fprintf(stderr, "%s:%d: broken: %s\n", file, line, what);
    abort();
}

/* ---- backends -------------------------------------------------------------------------- */

engine engines[8];
size_t engine_count;

void find_engines(void)
{
    for (size_t i = 0; upseal_backend_name(i); i++) {
        const upseal_status status = upseal_backend_test(i);
        fprintf(stderr, "%s (%s): %s\n", upseal_backend_name(i), upseal_backend_version(i),
                status == UPSEAL_OK ? "fuzzed" : "cannot run here");
        MUST(status == UPSEAL_OK || status == UPSEAL_EBACKEND);
        if (status != UPSEAL_OK) continue;
        engines[engine_count].index = i;
        engines[engine_count].name = upseal_backend_name(i);
        engines[engine_count].work = upseal_work_new(i);
        MUST(engines[engine_count].work);
        engine_count++;
    }
    MUST(engine_count > 0);
}

void renew_engines(void)
{
    ENGINES(e) {
        upseal_work_free(e->work);
        e->work = upseal_work_new(e->index);
        MUST(e->work);
    }
}

/* ---- memory ------------------------------------------------------------------------------ */

enum { GUARD = 32, HELD = 128, FENCES = 12, PAGE = 4096, FENCE_ROOM = 256 * PAGE, DIRT = 0xaa };
static const size_t CLAIMED = (size_t)1 << 33, ROOMY = (size_t)80 << 20;

static struct {
    uint8_t *base;
    size_t len;  /* between the guards; only of outputs */
    int guarded;
} held[HELD];
static size_t held_count;
static uint8_t *fences[FENCES];
static size_t fences_used;
static uint8_t *large, *claim;
static size_t large_used;

static uint8_t *map(size_t len, int protection)
{
    void *at = mmap(NULL, len, protection, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    MUST(at != MAP_FAILED);
    return at;
}

static uint8_t *hold(size_t len, size_t inside, int guarded)
{
    uint8_t *base = malloc(len);
    MUST(base && held_count < HELD);
    held[held_count].base = base;
    held[held_count].len = inside;
    held[held_count++].guarded = guarded;
    return base;
}

static uint8_t *fence(size_t len)
{
    MUST(fences_used < FENCES);
    if (!fences[fences_used]) {
        fences[fences_used] = map(FENCE_ROOM + PAGE, PROT_READ | PROT_WRITE);
        MUST(mprotect(fences[fences_used] + FENCE_ROOM, PAGE, PROT_NONE) == 0);
    }
    return fences[fences_used++] + FENCE_ROOM - len;
}

void *input(const void *from, size_t len, int fenced)
{
    /* malloc(0) gives a byte that may be read: the fence gives none. */
    uint8_t *to = (fenced || !len) && len <= FENCE_ROOM && fences_used < FENCES ? fence(len)
                                                                             : hold(len, 0, 0);
    if (len) memcpy(to, from, len);
    return to;
}

void *output(size_t len)
{
    uint8_t *base = hold(len + 2 * GUARD, len, 1);
    memset(base, DIRT, len + 2 * GUARD);
    ASAN_POISON_MEMORY_REGION(base, GUARD);
    ASAN_POISON_MEMORY_REGION(base + GUARD + len, GUARD);
    return base + GUARD;
}

int untouched(const void *data, size_t len)
{
    const uint8_t *at = data;
    for (size_t i = 0; i < len; i++)
        if (at[i] != DIRT) return 0;
    return 1;
}

int intact(const void *out, size_t len)
{
    uint8_t *base = (uint8_t *)(uintptr_t)out - GUARD;
    ASAN_UNPOISON_MEMORY_REGION(base, GUARD);
    ASAN_UNPOISON_MEMORY_REGION(base + GUARD + len, GUARD);
    return untouched(base, GUARD) && untouched(base + GUARD + len, GUARD);
}

int all_zero(const void *data, size_t len)
{
    const uint8_t *at = data;
    return len == 0 || (at[0] == 0 && memcmp(at, at + 1, len - 1) == 0);
}

int tail_tells_nothing(const uint8_t *tail, size_t len)
{
    for (size_t i = 0; i < len; i++)
        if (tail[i] != 0 && tail[i] != 0x80 && tail[i] != DIRT) return 0;
    return 1;
}

void *claimed(void)
{
    if (!claim) {
        claim = map(CLAIMED, PROT_NONE);
        MUST(mprotect(claim, PAGE, PROT_READ | PROT_WRITE) == 0);
    }
    memset(claim, DIRT, PAGE);
    return claim;
}

uint8_t *roomy(size_t len)
{
    if (!large) large = map(ROOMY, PROT_READ | PROT_WRITE);
    MUST(len <= ROOMY && !large_used);
    large_used = len;
    return large;
}

void release_all(void)
{
    for (size_t i = 0; i < held_count; i++) {
        if (held[i].guarded) MUST(intact(held[i].base + GUARD, held[i].len));
        free(held[i].base);
    }
    held_count = fences_used = 0;
    if (large_used) MUST(madvise(large, ROOMY, MADV_DONTNEED) == 0);
    large_used = 0;
}

/* ---- bytes --------------------------------------------------------------------------------- */

static uint32_t xorshift(uint32_t *x)
{
    *x ^= *x << 13;
    *x ^= *x >> 17;
    *x ^= *x << 5;
    return *x;
}

uint32_t random_below(uint32_t *state, uint32_t limit)
{
    if (!*state) *state = 0x9e3779b9;
    return xorshift(state) % limit;
}

void pattern(uint8_t *to, size_t len, uint32_t seed)
{
    uint32_t x = seed * 2654435761u + 1;
    for (size_t i = 0; i < len; i++) to[i] = (uint8_t)(xorshift(&x) >> 8);
}

void key_from_seed(uint16_t seed, uint8_t material[44]) { pattern(material, 44, seed + 77u); }

/* What goes on where the case's bytes have ended: the same 4096 bytes again and again. */
static void go_on(uint8_t *to, size_t len)
{
    static uint8_t made[4096];
    if (!made[0]) {
        pattern(made, sizeof made, 5);
        made[0] |= 1;
    }
    for (size_t at = 0; at < len; at += sizeof made)
        memcpy(to + at, made, len - at < sizeof made ? len - at : sizeof made);
}

void take(bytes *from, void *to, size_t len)
{
    const size_t have = len < from->len ? len : from->len;
    if (to && have) memcpy(to, from->data, have);
    if (to && have < len) go_on((uint8_t *)to + have, len - have);
    if (have) from->data += have;
    from->len -= have;
}

uint64_t take_number(bytes *from, size_t len)
{
    uint8_t raw[8] = {0};
    uint64_t value = 0;
    const size_t have = len < from->len ? len : from->len;
    if (have) memcpy(raw, from->data, have);
    if (have) from->data += have;
    from->len -= have;
    for (size_t i = 8; i-- > 0;) value = value << 8 | raw[i];
    return value;
}
