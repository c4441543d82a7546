/* SPDX-License-Identifier: Apache-2.0
 *
 * Backends, work spaces, keys, and the few helpers the other files share.
 */
#if defined(__linux__)
#define _DEFAULT_SOURCE 1 /* madvise */
#endif
#include "aead.h"

#include <stdlib.h>
#include <string.h>

#if defined(__aarch64__) && defined(__linux__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif
#if defined(_MSC_VER)
#include <intrin.h>
#endif
#if defined(__linux__)
#include <sys/mman.h>
#include <unistd.h>
#endif

static const upseal_backend *const backends[] = {
#ifdef UPSEAL_WITH_IPPCP
    &upseal_backend_ippcp,
#endif
    &upseal_backend_openssl,
};
#define BACKENDS (sizeof backends / sizeof backends[0])

const upseal_backend *upseal_backend_at(size_t index)
{
    return index < BACKENDS ? backends[index] : NULL;
}

const char *upseal_backend_name(size_t index)
{
    return index < BACKENDS ? backends[index]->name : NULL;
}

const char *upseal_backend_version(size_t index)
{
    return index < BACKENDS ? backends[index]->version() : NULL;
}

int upseal_cpu_has_aes(void)
{
#if (defined(__x86_64__) || defined(__i386__)) && (defined(__GNUC__) || defined(__clang__))
    __builtin_cpu_init();
    return __builtin_cpu_supports("aes") && __builtin_cpu_supports("pclmul");
#elif defined(_MSC_VER) && defined(_M_X64)
    int registers[4];
    __cpuid(registers, 1);
    return (registers[2] >> 25 & 1) && (registers[2] >> 1 & 1);
#elif defined(__aarch64__) && defined(__linux__)
    unsigned long capabilities = getauxval(AT_HWCAP);
    return (capabilities & HWCAP_AES) && (capabilities & HWCAP_PMULL);
#elif defined(__aarch64__) && defined(__APPLE__)
    return 1;
#else
    return 0;
#endif
}

void upseal_wipe(void *data, size_t len)
{
#if defined(__GNUC__) || defined(__clang__)
    if (len) memset(data, 0, len);
    __asm__ __volatile__("" : : "r"(data) : "memory");
#else
    volatile uint8_t *bytes = data;
    while (len--) *bytes++ = 0;
#endif
}

int upseal_equal(const uint8_t *a, const uint8_t *b, size_t len)
{
    uint8_t difference = 0;
    for (size_t i = 0; i < len; i++) difference |= (uint8_t)(a[i] ^ b[i]);
    return (int)(1 & (((uint32_t)difference - 1) >> 8));
}

void upseal_large_pages(void *data, size_t len)
{
#if defined(__linux__) && defined(MADV_HUGEPAGE)
    const uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE);
    const uintptr_t start = ((uintptr_t)data + page - 1) & ~(page - 1);
    const uintptr_t end = ((uintptr_t)data + len) & ~(page - 1);
    if (start < end) (void)madvise((void *)start, end - start, MADV_HUGEPAGE);
#else
    (void)data;
    (void)len;
#endif
}

void upseal_shift_offsets(const int64_t *in, size_t count, int64_t by, int64_t *out)
{
    for (size_t i = 0; i < count; i++) out[i] = in[i] + by;
}

void upseal_widen_offsets(const int32_t *in, size_t count, int64_t *out)
{
    for (size_t i = 0; i < count; i++) out[i] = in[i];
}

void upseal_xaes_blocks(const uint8_t l[16], const uint8_t nonce[24], uint8_t blocks[32])
{
    /* K1 = L << 1, and 0x87 into the last byte if L's top bit was set: by mask, since L is secret. */
    uint8_t k1[16];
    for (size_t i = 0; i < 15; i++) k1[i] = (uint8_t)(l[i] << 1 | l[i + 1] >> 7);
    k1[15] = (uint8_t)(l[15] << 1 ^ (0x87 & -(l[0] >> 7)));
    for (uint8_t counter = 1; counter <= 2; counter++) {
        uint8_t *block = blocks + (size_t)16 * (counter - 1U);
        const uint8_t label[4] = {0, counter, 0x58, 0};
        for (size_t i = 0; i < 4; i++) block[i] = label[i] ^ k1[i];
        for (size_t i = 4; i < 16; i++) block[i] = nonce[i - 4] ^ k1[i];
    }
    upseal_wipe(k1, sizeof k1);
}

upseal_work *upseal_work_new(size_t backend)
{
    if (backend >= BACKENDS) return NULL;
    upseal_work *work = calloc(1, sizeof *work);
    if (!work) return NULL;
    work->aead[0] = backends[backend]->aes;
    work->aead[1] = backends[backend]->chacha;
    for (size_t i = 0; i < 2; i++) {
        work->state[i] = work->aead[i]->state_new();
        if (!work->state[i]) {
            upseal_work_free(work);
            return NULL;
        }
    }
    return work;
}

void upseal_work_free(upseal_work *work)
{
    if (!work) return;
    for (size_t i = 0; i < 2; i++)
        if (work->state[i]) work->aead[i]->state_free(work->state[i]);
    upseal_wipe(work, sizeof *work);
    free(work);
}

void upseal_work_scrub(upseal_work *work)
{
    static const uint8_t zero[UPSEAL_KEY_LEN];
    uint8_t out[UPSEAL_KEY_LEN + UPSEAL_TAG_LEN];
    for (size_t i = 0; i < 2; i++) {
        const upseal_aead *aead = work->aead[i];
        void *state = work->state[i];
        if (!work->keyed[i]) continue;
        /* A key of zeros takes the place of the last one wherever a library keeps what it makes of
         * it; sealing and opening under it do the same for what they make on the way. */
        if (aead->subkey(state, zero, zero, out) == UPSEAL_OK &&
            aead->set_key(state, zero) == UPSEAL_OK &&
            aead->seal(state, zero, NULL, 0, zero, sizeof zero, out) == UPSEAL_OK &&
            aead->open(state, zero, NULL, 0, out, sizeof zero, out) == UPSEAL_OK)
            work->keyed[i] = 0;
    }
}

upseal_key *upseal_key_new(uint8_t cipher, const uint8_t *material, size_t material_len)
{
    if (cipher != UPSEAL_AES_256_GCM && cipher != UPSEAL_CHACHA20_POLY1305) return NULL;
    if (material_len != UPSEAL_KEY_LEN && material_len != UPSEAL_KEY_LEN + UPSEAL_BASE_NONCE_LEN)
        return NULL;
    upseal_key *key = calloc(1, sizeof *key);
    if (!key) return NULL;
    key->cipher = cipher;
    memcpy(key->key, material, UPSEAL_KEY_LEN);
    if (material_len > UPSEAL_KEY_LEN) {
        key->has_base_nonce = 1;
        memcpy(key->base_nonce, material + UPSEAL_KEY_LEN, UPSEAL_BASE_NONCE_LEN);
    }
    return key;
}

void upseal_key_free(upseal_key *key)
{
    if (!key) return;
    if (key->keeper) {
        key->keeper->take_back(key->keeper, key);
        return;
    }
    upseal_wipe(key, sizeof *key);
    free(key);
}
