/* SPDX-License-Identifier: Apache-2.0
 *
 * Where keys live: pages of their own, locked and left out of core dumps where that can be had.
 *
 * The pages come in blocks, each as large as all before it, and are divided into slots of one key.
 * A bit says whether a slot is taken, and whoever sets it has the slot.  So nothing waits for
 * anybody: what a thread was doing when another forked costs the child a slot at most.
 */
#if defined(__linux__)
#define _DEFAULT_SOURCE 1 /* madvise, MAP_ANONYMOUS */
#endif
#include "aead.h"

#include <stdlib.h>
#include <string.h>

#if (defined(__unix__) || defined(__APPLE__)) && !defined(__STDC_NO_ATOMICS__)
#include <stdatomic.h>
#include <sys/mman.h>
#include <unistd.h>
#define HAVE_PAGES 1
#if !defined(MAP_ANONYMOUS) && defined(MAP_ANON)
#define MAP_ANONYMOUS MAP_ANON
#endif
#endif

/* AddressSanitizer knows of no key's end but those that the C library is told of. */
#if defined(__has_feature)
#if __has_feature(address_sanitizer)
#define HAVE_ASAN 1
#endif
#elif defined(__SANITIZE_ADDRESS__)
#define HAVE_ASAN 1
#endif
#ifdef HAVE_ASAN
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(at, size) ((void)(at), (void)(size))
#define ASAN_UNPOISON_MEMORY_REGION(at, size) ((void)(at), (void)(size))
#endif

static void fill(upseal_key *key, uint8_t cipher, const uint8_t *material, size_t len)
{
    key->cipher = cipher;
    memcpy(key->key, material, UPSEAL_KEY_LEN);
    if (len == UPSEAL_KEY_LEN + UPSEAL_BASE_NONCE_LEN) {
        key->has_base_nonce = 1;
        memcpy(key->base_nonce, material + UPSEAL_KEY_LEN, UPSEAL_BASE_NONCE_LEN);
    } else if (len == 3 * UPSEAL_KEY_LEN) {
        key->has_others = 1;
        memcpy(key->batch, material + UPSEAL_KEY_LEN, UPSEAL_KEY_LEN);
        memcpy(key->upload, material + (size_t)2 * UPSEAL_KEY_LEN, UPSEAL_KEY_LEN);
    }
}

#ifdef HAVE_PAGES

enum {
    SLOT = 128, /* bytes: two cache lines, and no key shares one with another */
    EACH = 32,  /* slots that one word of bits stands for: 4 KiB */
    BLOCKS = 20 /* more than any memory holds */
};

_Static_assert(sizeof(upseal_key) <= SLOT, "a key fits its slot");

typedef struct {
    uint8_t *slots;
    size_t words;
    atomic_size_t locked; /* bytes, from its beginning on */
    _Atomic uint32_t taken[];
} block;

struct upseal_arena {
    upseal_keeper keeper; /* first: a key knows the arena by it */
    _Atomic(block *) blocks[BLOCKS];
    atomic_size_t users; /* the keys, and whoever made the arena */
    atomic_size_t hint;  /* a word that may have a slot left */
    size_t unit;         /* words of the first block */
};

static size_t block_start(const upseal_arena *arena, size_t index)
{
    return index ? arena->unit << (index - 1) : 0;
}

static size_t block_of(const upseal_arena *arena, size_t word)
{
    size_t index = 0;
    while (index + 1 < BLOCKS && word >= block_start(arena, index + 1)) index++;
    return index;
}

/* As much as the limit allows. */
static void lock(block *pages)
{
    const size_t size = pages->words * EACH * SLOT, page = (size_t)sysconf(_SC_PAGESIZE);
    size_t done = mlock(pages->slots, size) == 0 ? size : 0;
    while (done < size && mlock(pages->slots + done, page) == 0) done += page;
    atomic_store(&pages->locked, done);
}

static void discard(block *pages)
{
    const size_t size = pages->words * EACH * SLOT;
    ASAN_UNPOISON_MEMORY_REGION(pages->slots, size);
    (void)munmap(pages->slots, size);
    free(pages);
}

/* The block of that index, made if there is none. */
static block *block_at(upseal_arena *arena, size_t index, int grow)
{
    block *pages = atomic_load(&arena->blocks[index]), *other = NULL;
    if (pages || !grow) return pages;
    const size_t words = arena->unit << (index ? index - 1 : 0), size = words * EACH * SLOT;
    pages = calloc(1, sizeof *pages + words * sizeof pages->taken[0]);
    if (!pages) return NULL;
    pages->words = words;
    void *at = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (at == MAP_FAILED) {
        free(pages);
        return NULL;
    }
    pages->slots = at;
#if defined(MADV_DONTDUMP)
    (void)madvise(at, size, MADV_DONTDUMP);
#elif defined(MADV_NOCORE)
    (void)madvise(at, size, MADV_NOCORE);
#endif
    ASAN_POISON_MEMORY_REGION(at, size);
    if (!atomic_compare_exchange_strong(&arena->blocks[index], &other, pages)) {
        discard(pages); /* another thread was quicker */
        return other;
    }
    lock(pages);
    return pages;
}

/* Takes a slot of the words from..to of a block, and says which; EACH * words if all are taken. */
static size_t take(block *pages, size_t from, size_t to)
{
    for (size_t word = from; word < to; word++) {
        uint32_t taken = atomic_load_explicit(&pages->taken[word], memory_order_relaxed);
        while (taken != UINT32_MAX) {
            unsigned bit = 0;
            while (taken >> bit & 1) bit++;
            if (atomic_compare_exchange_weak(&pages->taken[word], &taken, taken | 1u << bit))
                return word * EACH + bit;
        }
    }
    return pages->words * EACH;
}

static upseal_key *slot_of(upseal_arena *arena, size_t from, int grow)
{
    for (size_t index = block_of(arena, from); index < BLOCKS; index++) {
        block *pages = block_at(arena, index, grow);
        if (!pages) return NULL;
        const size_t start = block_start(arena, index);
        const size_t slot = take(pages, from > start ? from - start : 0, pages->words);
        if (slot == pages->words * EACH) continue;
        uint8_t *at = pages->slots + slot * SLOT;
        ASAN_UNPOISON_MEMORY_REGION(at, SLOT);
        upseal_key *key = (upseal_key *)(void *)at;
        key->slot = (uint32_t)(start * EACH + slot);
        atomic_store_explicit(&arena->hint, start + slot / EACH, memory_order_relaxed);
        return key;
    }
    return NULL;
}

static void leave(upseal_arena *arena)
{
    if (atomic_fetch_sub(&arena->users, 1) != 1) return;
    for (size_t i = 0; i < BLOCKS; i++)
        if (block_at(arena, i, 0)) discard(block_at(arena, i, 0));
    free(arena);
}

static void take_back(upseal_keeper *keeper, upseal_key *key)
{
    upseal_arena *arena = (upseal_arena *)(void *)keeper;
    const size_t slot = key->slot, word = slot / EACH, index = block_of(arena, word);
    block *pages = block_at(arena, index, 0);
    upseal_wipe(key, sizeof *key);
    ASAN_POISON_MEMORY_REGION(key, SLOT);
    atomic_fetch_and(&pages->taken[word - block_start(arena, index)], ~(1u << slot % EACH));
    if (word < atomic_load_explicit(&arena->hint, memory_order_relaxed))
        atomic_store_explicit(&arena->hint, word, memory_order_relaxed);
    leave(arena);
}

upseal_arena *upseal_arena_new(void)
{
    upseal_arena *arena = calloc(1, sizeof *arena);
    const size_t page = (size_t)sysconf(_SC_PAGESIZE), least = 2 * EACH * SLOT;
    if (!arena) return NULL;
    arena->keeper.take_back = take_back;
    arena->unit = (page > least ? page : least) / (EACH * SLOT);
    atomic_init(&arena->users, 1);
    return arena;
}

void upseal_arena_free(upseal_arena *arena)
{
    if (arena) leave(arena);
}

static upseal_key *new_key(upseal_arena *arena, uint8_t cipher, const uint8_t *material, size_t len)
{
    if (cipher != UPSEAL_AES_256_GCM && cipher != UPSEAL_CHACHA20_POLY1305) return NULL;
    upseal_key *key = slot_of(arena, atomic_load_explicit(&arena->hint, memory_order_relaxed), 0);
    if (!key) key = slot_of(arena, 0, 1); /* with those that were freed behind the hint */
    if (!key) return NULL;
    atomic_fetch_add(&arena->users, 1);
    key->keeper = &arena->keeper;
    fill(key, cipher, material, len);
    return key;
}

void upseal_arena_relock(upseal_arena *arena)
{
    for (size_t i = 0; i < BLOCKS; i++)
        if (block_at(arena, i, 0)) lock(block_at(arena, i, 0));
}

void upseal_arena_measure(const upseal_arena *arena, uint64_t *used, uint64_t *size,
                          uint64_t *locked)
{
    *used = SLOT * (uint64_t)(atomic_load(&arena->users) - 1);
    *size = *locked = 0;
    for (size_t i = 0; i < BLOCKS; i++) {
        const block *pages = atomic_load(&arena->blocks[i]);
        if (!pages) continue;
        *size += pages->words * EACH * SLOT;
        *locked += atomic_load(&pages->locked);
    }
}

#else /* keys like all others */

struct upseal_arena {
    uint8_t nothing;
};

upseal_arena *upseal_arena_new(void) { return calloc(1, sizeof(upseal_arena)); }
void upseal_arena_free(upseal_arena *arena) { free(arena); }
void upseal_arena_relock(upseal_arena *arena) { (void)arena; }

static upseal_key *new_key(upseal_arena *arena, uint8_t cipher, const uint8_t *material, size_t len)
{
    upseal_key *key = upseal_key_new(cipher, material, UPSEAL_KEY_LEN);
    (void)arena;
    if (key) fill(key, cipher, material, len);
    return key;
}

void upseal_arena_measure(const upseal_arena *arena, uint64_t *used, uint64_t *size,
                          uint64_t *locked)
{
    (void)arena;
    *used = *size = *locked = 0;
}

#endif

upseal_key *upseal_arena_key(upseal_arena *arena, uint8_t cipher, const uint8_t *material,
                             size_t material_len)
{
    if (material_len != UPSEAL_KEY_LEN && material_len != UPSEAL_KEY_LEN + UPSEAL_BASE_NONCE_LEN)
        return NULL;
    return new_key(arena, cipher, material, material_len);
}

upseal_key *upseal_session_key(upseal_arena *arena, uint8_t cipher, const uint8_t keys[96])
{
    return new_key(arena, cipher, keys, 3 * UPSEAL_KEY_LEN);
}

upseal_key *upseal_batch_key(upseal_arena *arena, const upseal_key *session)
{
    return session->has_others ? new_key(arena, session->cipher, session->batch, UPSEAL_KEY_LEN)
                               : NULL;
}
