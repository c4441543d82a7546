/* SPDX-License-Identifier: Apache-2.0
 *
 * Tells a sanitizer what libcrypto and ippcp do with our memory.  They are built without it: so
 * AddressSanitizer would miss a length of ours that is too long, MemorySanitizer would take all
 * that they write for uninitialised and never look at what they read, and ThreadSanitizer would
 * see no access of theirs at all.
 *
 * Linked into sanitized builds alone, with -Wl,--wrap for each WRAP below (scripts/sanitizers.sh
 * finds them): the linker then sends our calls here, and nothing of the product is built differently.
 * What a library does with memory of its own is not seen; `scripts/ctest PYTHON memcheck` sees that.
 */
#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <stdint.h>
#include <stdlib.h>
#ifdef UPSEAL_WITH_IPPCP
#include <ippcp.h>
#endif

#if defined(__has_feature)
#define FEATURE(name) __has_feature(name)
#else
#define FEATURE(name) 0
#endif
#if FEATURE(memory_sanitizer)
#include <sanitizer/msan_interface.h>
#define WITH_MSAN 1
/* Called from code that is not instrumented (libippcp.a calls itself), so arguments have no shadow. */
#pragma clang attribute push(__attribute__((no_sanitize("memory"))), apply_to = function)
#elif FEATURE(address_sanitizer) || defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#define WITH_ASAN 1
#else /* a build without any does not link */
#define WITH_TSAN 1
/* NOLINTBEGIN(bugprone-reserved-identifier,cert-dcl37-c,cert-dcl51-cpp): the runtime's names */
void __tsan_read_range(void *start, unsigned long size);
void __tsan_write_range(void *start, unsigned long size);
/* NOLINTEND(bugprone-reserved-identifier,cert-dcl37-c,cert-dcl51-cpp) */
#endif

#ifdef WITH_ASAN
/* Reads the first byte that may not be touched, if there is one: that makes the report. */
static void may_touch(const void *start, size_t size)
{
    const volatile uint8_t *bad = size ? __asan_region_is_poisoned((void *)(uintptr_t)start, size) : NULL;
    if (bad) {
        (void)*bad;
        abort();
    }
}
#endif

static void reads(const void *start, size_t size)
{
    if (!start || !size) return;
#if defined(WITH_MSAN)
    __msan_check_mem_is_initialized(start, size);
#elif defined(WITH_ASAN)
    may_touch(start, size);
#else
    __tsan_read_range((void *)(uintptr_t)start, size);
#endif
}

static void will_write(void *start, size_t size)
{
    if (!start || !size) return;
#if defined(WITH_ASAN)
    may_touch(start, size);
#elif defined(WITH_TSAN)
    __tsan_write_range(start, size);
#endif
}

static void has_written(const void *start, size_t size)
{
#if defined(WITH_MSAN)
    if (start && size) __msan_unpoison(start, size);
#else
    (void)start;
    (void)size;
#endif
}

/* A library's own object: not its length is known to us, but that it serves one thread at a time. */
static void uses(void *state)
{
    will_write(state, 1);
}

static size_t positive(int n)
{
    return n > 0 ? (size_t)n : 0;
}

/* The names are the linker's: __real_f is f, and calls of f come to __wrap_f. */
/* NOLINTBEGIN(bugprone-macro-parentheses,bugprone-reserved-identifier,cert-dcl37-c,cert-dcl51-cpp,misc-use-internal-linkage) */
#define WRAP(result, name, parameters) \
    result __real_##name parameters;   \
    result __wrap_##name parameters;   \
    result __wrap_##name parameters

/* ---- libcrypto ------------------------------------------------------------------------ */

#ifdef WITH_MSAN
/* What libcrypto allocates for itself, it writes to unseen, and then calls strlen and fopen, which
 * MemorySanitizer knows. */
static void *for_libcrypto(size_t size, const char *file, int line)
{
    void *data = malloc(size);
    (void)file;
    (void)line;
    has_written(data, size);
    return data;
}

static void *larger_for_libcrypto(void *data, size_t size, const char *file, int line)
{
    (void)file;
    (void)line;
    data = realloc(data, size);
    has_written(data, size);
    return data;
}

static void from_libcrypto(void *data, const char *file, int line)
{
    (void)file;
    (void)line;
    free(data);
}

__attribute__((constructor)) static void own_memory(void)
{
    if (!CRYPTO_set_mem_functions(for_libcrypto, larger_for_libcrypto, from_libcrypto)) abort();
}
#endif

static void init(EVP_CIPHER_CTX *ctx, const EVP_CIPHER *cipher, const uint8_t *key, const uint8_t *iv)
{
    uses(ctx);
    if (!cipher) cipher = EVP_CIPHER_CTX_get0_cipher(ctx);
    if (!cipher) return;
    reads(key, positive(EVP_CIPHER_get_key_length(cipher)));
    reads(iv, positive(EVP_CIPHER_get_iv_length(cipher)));
}

WRAP(int, EVP_EncryptInit_ex2,
     (EVP_CIPHER_CTX * ctx, const EVP_CIPHER *cipher, const uint8_t *key, const uint8_t *iv,
      const OSSL_PARAM params[]))
{
    init(ctx, cipher, key, iv);
    return __real_EVP_EncryptInit_ex2(ctx, cipher, key, iv, params);
}

WRAP(int, EVP_DecryptInit_ex2,
     (EVP_CIPHER_CTX * ctx, const EVP_CIPHER *cipher, const uint8_t *key, const uint8_t *iv,
      const OSSL_PARAM params[]))
{
    init(ctx, cipher, key, iv);
    return __real_EVP_DecryptInit_ex2(ctx, cipher, key, iv, params);
}

/* All our ciphers give as many bytes as they get; without `out` it is associated data. */
WRAP(int, EVP_EncryptUpdate,
     (EVP_CIPHER_CTX * ctx, uint8_t *out, int *done, const uint8_t *in, int len))
{
    uses(ctx);
    reads(in, positive(len));
    will_write(out, positive(len));
    will_write(done, sizeof *done);
    const int good = __real_EVP_EncryptUpdate(ctx, out, done, in, len);
    has_written(done, sizeof *done);
    has_written(out, good ? positive(*done) : 0);
    return good;
}

WRAP(int, EVP_DecryptUpdate,
     (EVP_CIPHER_CTX * ctx, uint8_t *out, int *done, const uint8_t *in, int len))
{
    uses(ctx);
    reads(in, positive(len));
    will_write(out, positive(len));
    will_write(done, sizeof *done);
    const int good = __real_EVP_DecryptUpdate(ctx, out, done, in, len);
    has_written(done, sizeof *done);
    has_written(out, good ? positive(*done) : 0);
    return good;
}

/* Of a stream there is nothing left to write at the end. */
WRAP(int, EVP_EncryptFinal_ex, (EVP_CIPHER_CTX * ctx, uint8_t *out, int *done))
{
    uses(ctx);
    will_write(done, sizeof *done);
    const int good = __real_EVP_EncryptFinal_ex(ctx, out, done);
    has_written(done, sizeof *done);
    return good;
}

WRAP(int, EVP_DecryptFinal_ex, (EVP_CIPHER_CTX * ctx, uint8_t *out, int *done))
{
    uses(ctx);
    will_write(done, sizeof *done);
    const int good = __real_EVP_DecryptFinal_ex(ctx, out, done);
    has_written(done, sizeof *done);
    return good;
}

WRAP(int, EVP_CIPHER_CTX_ctrl, (EVP_CIPHER_CTX * ctx, int type, int len, void *data))
{
    uses(ctx);
    if (type == EVP_CTRL_AEAD_SET_TAG) reads(data, positive(len));
    if (type == EVP_CTRL_AEAD_GET_TAG) will_write(data, positive(len));
    const int good = __real_EVP_CIPHER_CTX_ctrl(ctx, type, len, data);
    if (type == EVP_CTRL_AEAD_GET_TAG && good > 0) has_written(data, positive(len));
    return good;
}

WRAP(int, EVP_MAC_init,
     (EVP_MAC_CTX * ctx, const uint8_t *key, size_t key_len, const OSSL_PARAM params[]))
{
    uses(ctx);
    reads(key, key_len);
    return __real_EVP_MAC_init(ctx, key, key_len, params);
}

WRAP(int, EVP_MAC_update, (EVP_MAC_CTX * ctx, const uint8_t *data, size_t len))
{
    uses(ctx);
    reads(data, len);
    return __real_EVP_MAC_update(ctx, data, len);
}

WRAP(int, EVP_MAC_final, (EVP_MAC_CTX * ctx, uint8_t *out, size_t *len, size_t size))
{
    uses(ctx);
    will_write(len, sizeof *len);
    will_write(out, EVP_MAC_CTX_get_mac_size(ctx));
    const int good = __real_EVP_MAC_final(ctx, out, len, size);
    has_written(len, sizeof *len);
    has_written(out, good ? *len : 0);
    return good;
}

WRAP(void, OPENSSL_cleanse, (void *data, size_t len))
{
    will_write(data, len);
    __real_OPENSSL_cleanse(data, len);
    has_written(data, len);
}

/* ---- ippcp ---------------------------------------------------------------------------- */

#ifdef UPSEAL_WITH_IPPCP

/* What ippcpInit sets and every other call reads: upseal.h promises that they never meet. */
static char dispatch;

WRAP(IppStatus, ippcpInit, (void))
{
    will_write(&dispatch, sizeof dispatch);
    return __real_ippcpInit();
}

WRAP(IppStatus, ippsAESGetSize, (int *size))
{
    reads(&dispatch, sizeof dispatch);
    will_write(size, sizeof *size);
    const IppStatus status = __real_ippsAESGetSize(size);
    has_written(size, sizeof *size);
    return status;
}

WRAP(IppStatus, ippsAES_GCMGetSize, (int *size))
{
    reads(&dispatch, sizeof dispatch);
    will_write(size, sizeof *size);
    const IppStatus status = __real_ippsAES_GCMGetSize(size);
    has_written(size, sizeof *size);
    return status;
}

WRAP(IppStatus, ippsAESInit, (const Ipp8u *key, int key_len, IppsAESSpec *state, int state_len))
{
    reads(&dispatch, sizeof dispatch);
    reads(key, positive(key_len));
    will_write(state, positive(state_len));
    return __real_ippsAESInit(key, key_len, state, state_len);
}

WRAP(IppStatus, ippsAESSetKey, (const Ipp8u *key, int key_len, IppsAESSpec *state))
{
    reads(&dispatch, sizeof dispatch);
    reads(key, positive(key_len));
    uses(state);
    return __real_ippsAESSetKey(key, key_len, state);
}

WRAP(IppStatus, ippsAESEncryptCBC,
     (const Ipp8u *in, Ipp8u *out, int len, const IppsAESSpec *state, const Ipp8u *iv))
{
    reads(&dispatch, sizeof dispatch);
    reads(in, positive(len));
    reads(iv, 16);
    reads(state, 1);
    will_write(out, positive(len));
    const IppStatus status = __real_ippsAESEncryptCBC(in, out, len, state, iv);
    if (status == ippStsNoErr) has_written(out, positive(len));
    return status;
}

WRAP(IppStatus, ippsAES_GCMInit,
     (const Ipp8u *key, int key_len, IppsAES_GCMState *state, int state_len))
{
    reads(&dispatch, sizeof dispatch);
    reads(key, positive(key_len));
    will_write(state, positive(state_len));
    return __real_ippsAES_GCMInit(key, key_len, state, state_len);
}

WRAP(IppStatus, ippsAES_GCMStart,
     (const Ipp8u *iv, int iv_len, const Ipp8u *aad, int aad_len, IppsAES_GCMState *state))
{
    reads(&dispatch, sizeof dispatch);
    reads(iv, positive(iv_len));
    reads(aad, positive(aad_len));
    uses(state);
    return __real_ippsAES_GCMStart(iv, iv_len, aad, aad_len, state);
}

WRAP(IppStatus, ippsAES_GCMEncrypt,
     (const Ipp8u *in, Ipp8u *out, int len, IppsAES_GCMState *state))
{
    reads(&dispatch, sizeof dispatch);
    reads(in, positive(len));
    uses(state);
    will_write(out, positive(len));
    const IppStatus status = __real_ippsAES_GCMEncrypt(in, out, len, state);
    if (status == ippStsNoErr) has_written(out, positive(len));
    return status;
}

WRAP(IppStatus, ippsAES_GCMDecrypt,
     (const Ipp8u *in, Ipp8u *out, int len, IppsAES_GCMState *state))
{
    reads(&dispatch, sizeof dispatch);
    reads(in, positive(len));
    uses(state);
    will_write(out, positive(len));
    const IppStatus status = __real_ippsAES_GCMDecrypt(in, out, len, state);
    if (status == ippStsNoErr) has_written(out, positive(len));
    return status;
}

WRAP(IppStatus, ippsAES_GCMGetTag, (Ipp8u * tag, int tag_len, const IppsAES_GCMState *state))
{
    reads(&dispatch, sizeof dispatch);
    reads(state, 1);
    will_write(tag, positive(tag_len));
    const IppStatus status = __real_ippsAES_GCMGetTag(tag, tag_len, state);
    if (status == ippStsNoErr) has_written(tag, positive(tag_len));
    return status;
}

#endif

/* NOLINTEND(bugprone-macro-parentheses,bugprone-reserved-identifier,cert-dcl37-c,cert-dcl51-cpp,misc-use-internal-linkage) */

#ifdef WITH_MSAN
#pragma clang attribute pop
#endif
