/* SPDX-License-Identifier: Apache-2.0
 *
 * AES-256-GCM by Intel Cryptography Primitives, on x86-64 with VAES (AVX2 or AVX-512, Intel
 * or AMD); ChaCha20-Poly1305 stays OpenSSL's.
 */
#include "aead.h"
#include "secrets.h"

#include <ippcp.h>
#include <stdlib.h>
#include <string.h>

typedef struct {
    IppsAES_GCMState *gcm;
    IppsAESSpec *block;
    int gcm_len, block_len;
} ippcp_state;

static int usable(void)
{
    Ipp64u enabled;
    if (ippcpInit() != ippStsNoErr) return 0;
    enabled = ippcpGetEnabledCpuFeatures();
    return (enabled & ippCPUID_AVX512VAES && enabled & ippCPUID_AVX512VCLMUL) ||
           (enabled & ippCPUID_AVX2VAES && enabled & ippCPUID_AVX2VCLMUL);
}

static const char *version(void)
{
    return cryptoGetLibVersion()->strVersion;
}

static void state_free(void *opaque)
{
    ippcp_state *s = opaque;
    if (s->gcm) upseal_wipe(s->gcm, (size_t)s->gcm_len);
    if (s->block) upseal_wipe(s->block, (size_t)s->block_len);
    free(s->gcm);
    free(s->block);
    free(s);
}

static void *state_new(void)
{
    static const uint8_t zero[32];
    int gcm_len, block_len;
    if (ippsAES_GCMGetSize(&gcm_len) != ippStsNoErr || ippsAESGetSize(&block_len) != ippStsNoErr)
        return NULL;
    ippcp_state *s = calloc(1, sizeof *s);
    if (!s) return NULL;
    s->gcm_len = gcm_len;
    s->block_len = block_len;
    s->gcm = calloc(1, (size_t)s->gcm_len);
    s->block = calloc(1, (size_t)s->block_len);
    if (!s->gcm || !s->block || ippsAES_GCMInit(zero, 32, s->gcm, s->gcm_len) != ippStsNoErr ||
        ippsAESInit(zero, 32, s->block, s->block_len) != ippStsNoErr) {
        state_free(s);
        return NULL;
    }
    return s;
}

/* One AES block: CBC of one block with a zero IV is the block cipher itself. */
static int encrypt_block(const ippcp_state *s, const uint8_t in[16], uint8_t out[16])
{
    static const uint8_t zero[16];
    return ippsAESEncryptCBC(in, out, 16, s->block, zero) == ippStsNoErr;
}

static upseal_status subkey(void *opaque, const uint8_t key[32], const uint8_t nonce[24],
                            uint8_t out[32])
{
    static const uint8_t zero[16];
    ippcp_state *s = opaque;
    uint8_t l[16], blocks[32];
    int good = ippsAESSetKey(key, 32, s->block) == ippStsNoErr && encrypt_block(s, zero, l);
    if (good) {
        upseal_xaes_blocks(l, nonce, blocks);
        good = encrypt_block(s, blocks, out) && encrypt_block(s, blocks + 16, out + 16);
        upseal_wipe(blocks, sizeof blocks);
    }
    upseal_wipe(l, sizeof l);
    return good ? UPSEAL_OK : UPSEAL_EBACKEND;
}

static upseal_status set_key(void *opaque, const uint8_t key[32])
{
    ippcp_state *s = opaque;
    return ippsAES_GCMInit(key, 32, s->gcm, s->gcm_len) == ippStsNoErr ? UPSEAL_OK
                                                                      : UPSEAL_EBACKEND;
}

/* What the CPU fetches ahead by itself ends at each page, and AES-GCM by VAES is as fast as
 * memory: asked for this early, what lies outside the caches is there in time. */
enum { STEP = 2048, AHEAD = 4096 };

/* One pass over the data.  The address may lie behind it (where the next chunk is, mostly): to
 * prefetch is no access, and faults nowhere. */
static int pass(IppStatus (*gcm)(const Ipp8u *, Ipp8u *, int, IppsAES_GCMState *),
                const uint8_t *in, uint8_t *out, size_t len, IppsAES_GCMState *state)
{
    if (len < UPSEAL_CHUNK_LEN) return !len || gcm(in, out, (int)len, state) == ippStsNoErr;
    for (size_t at = 0; at < len;) {
        const size_t n = len - at < STEP ? len - at : STEP;
        const uintptr_t next = (uintptr_t)(in + at) + AHEAD;
        for (size_t line = 0; line < STEP; line += 64)
            __builtin_prefetch((const void *)(next + line), 0, 2);
        if (gcm(in + at, out + at, (int)n, state) != ippStsNoErr) return 0;
        at += n;
    }
    return 1;
}

static upseal_status seal(void *opaque, const uint8_t iv[12], const uint8_t *aad, size_t aad_len,
                          const uint8_t *in, size_t len, uint8_t *out)
{
    ippcp_state *s = opaque;
    if (upseal_too_long(aad_len, len)) return UPSEAL_EARGUMENT;
    if (ippsAES_GCMStart(iv, 12, aad, (int)aad_len, s->gcm) != ippStsNoErr ||
        !pass(ippsAES_GCMEncrypt, in, out, len, s->gcm) ||
        ippsAES_GCMGetTag(out + len, UPSEAL_TAG_LEN, s->gcm) != ippStsNoErr) {
        upseal_wipe(out, len + UPSEAL_TAG_LEN);
        return UPSEAL_EBACKEND;
    }
    return UPSEAL_OK;
}

static upseal_status open_(void *opaque, const uint8_t iv[12], const uint8_t *aad, size_t aad_len,
                           const uint8_t *in, size_t len, uint8_t *out)
{
    ippcp_state *s = opaque;
    uint8_t tag[UPSEAL_TAG_LEN];
    upseal_status status = UPSEAL_EBACKEND;
    if (upseal_too_long(aad_len, len)) return UPSEAL_EARGUMENT;
    if (ippsAES_GCMStart(iv, 12, aad, (int)aad_len, s->gcm) == ippStsNoErr &&
        pass(ippsAES_GCMDecrypt, in, out, len, s->gcm) &&
        ippsAES_GCMGetTag(tag, UPSEAL_TAG_LEN, s->gcm) == ippStsNoErr) {
        int good = upseal_equal(tag, in + len, UPSEAL_TAG_LEN);
        UPSEAL_PUBLIC(&good, sizeof good); /* the verdict is what the caller gets */
        status = good ? UPSEAL_OK : UPSEAL_EFORGED;
    }
    upseal_wipe(tag, sizeof tag); /* the tag of a forgery is what its maker wants to know */
    if (status != UPSEAL_OK) upseal_wipe(out, len);
    return status;
}

static const upseal_aead aes_ippcp = {
    .salt_len = 12,
    .state_new = state_new,
    .state_free = state_free,
    .subkey = subkey,
    .set_key = set_key,
    .seal = seal,
    .open = open_,
};

const upseal_backend upseal_backend_ippcp = {
    .name = "ippcp",
    .usable = usable,
    .version = version,
    .aes = &aes_ippcp,
    .chacha = &upseal_chacha_openssl,
};
