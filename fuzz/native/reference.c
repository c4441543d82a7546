/* SPDX-License-Identifier: Apache-2.0
 *
 * What reference.h says.  AES, GCM and ChaCha20-Poly1305 are OpenSSL's, by a new context each time;
 * the constructions on top are written out from their specifications.
 */
#include "reference.h"

#include <openssl/evp.h>
#include <openssl/hmac.h>
#include <stdlib.h>
#include <string.h>

static void good(int condition)
{
    if (!condition) abort(); /* the reference itself does not fail */
}

/* ---- subkeys ----------------------------------------------------------------------------- */

/* Fetched once and kept: that is slow, and does nothing else. */
static EVP_CIPHER *named(const char *name)
{
    static struct {
        const char *name;
        EVP_CIPHER *cipher;
    } kept[3];
    size_t i = 0;
    while (kept[i].name && strcmp(kept[i].name, name) != 0) i++;
    kept[i].name = name;
    if (!kept[i].cipher) kept[i].cipher = EVP_CIPHER_fetch(NULL, name, NULL);
    good(kept[i].cipher != NULL);
    return kept[i].cipher;
}

static void aes_block(const uint8_t key[32], const uint8_t in[16], uint8_t out[16])
{
    EVP_CIPHER_CTX *c = EVP_CIPHER_CTX_new();
    int n;
    good(c && EVP_EncryptInit_ex2(c, named("AES-256-ECB"), key, NULL, NULL));
    good(EVP_CIPHER_CTX_set_padding(c, 0) && EVP_EncryptUpdate(c, out, &n, in, 16) && n == 16);
    EVP_CIPHER_CTX_free(c);
}

/* c2sp.org/XAES-256-GCM: the number L doubled bit by bit, then two blocks. */
static void xaes(const uint8_t key[32], const uint8_t nonce[12], uint8_t subkey[32])
{
    const uint8_t zero[16] = {0};
    uint8_t l[16], k1[16];
    int carry = 0;
    aes_block(key, zero, l);
    for (int i = 15; i >= 0; i--) {
        k1[i] = (uint8_t)((l[i] * 2 + carry) % 256);
        carry = l[i] >= 128;
    }
    if (carry) k1[15] ^= 0x87;
    for (int half = 0; half < 2; half++) {
        uint8_t block[16] = {0, (uint8_t)(half + 1), 0x58, 0};
        memcpy(block + 4, nonce, 12);
        for (int i = 0; i < 16; i++) block[i] ^= k1[i];
        aes_block(key, block, subkey + 16 * half);
    }
}

static uint32_t rotate(uint32_t x, int bits) { return x << bits | x >> (32 - bits); }

static void quarter(uint32_t x[16], int a, int b, int c, int d)
{
    x[a] += x[b], x[d] = rotate(x[d] ^ x[a], 16);
    x[c] += x[d], x[b] = rotate(x[b] ^ x[c], 12);
    x[a] += x[b], x[d] = rotate(x[d] ^ x[a], 8);
    x[c] += x[d], x[b] = rotate(x[b] ^ x[c], 7);
}

static uint32_t little(const uint8_t in[4])
{
    return in[0] | (uint32_t)in[1] << 8 | (uint32_t)in[2] << 16 | (uint32_t)in[3] << 24;
}

/* draft-irtf-cfrg-xchacha-03, section 2.2. */
static void hchacha20(const uint8_t key[32], const uint8_t nonce[16], uint8_t subkey[32])
{
    uint32_t x[16] = {0x61707865, 0x3320646e, 0x79622d32, 0x6b206574};
    for (int i = 0; i < 8; i++) x[4 + i] = little(key + 4 * i);
    for (int i = 0; i < 4; i++) x[12 + i] = little(nonce + 4 * i);
    for (int round = 0; round < 10; round++) {
        for (int i = 0; i < 4; i++) quarter(x, i, 4 + i, 8 + i, 12 + i);
        for (int i = 0; i < 4; i++)
            quarter(x, i, 4 + (i + 1) % 4, 8 + (i + 2) % 4, 12 + (i + 3) % 4);
    }
    for (int i = 0; i < 8; i++) {
        const uint32_t word = x[i < 4 ? i : 8 + i];
        for (int byte = 0; byte < 4; byte++) subkey[4 * i + byte] = (uint8_t)(word >> 8 * byte);
    }
}

/* ---- AEADs ------------------------------------------------------------------------------------ */

static int aead(int seal, uint8_t cipher, const uint8_t key[32], const uint8_t iv[12],
                const uint8_t *aad, size_t aad_len, const uint8_t *in, size_t len, uint8_t *out)
{
    EVP_CIPHER_CTX *c = EVP_CIPHER_CTX_new();
    uint8_t tag[16], spare[32];
    int n, right = 1;
    good(c && EVP_CipherInit_ex2(c, named(cipher == 1 ? "AES-256-GCM" : "ChaCha20-Poly1305"), key,
                                 iv, seal, NULL));
    if (!seal) {
        memcpy(tag, in + len, 16);
        good(EVP_CIPHER_CTX_ctrl(c, EVP_CTRL_AEAD_SET_TAG, 16, tag));
    }
    if (aad_len) good(EVP_CipherUpdate(c, NULL, &n, aad, (int)aad_len));
    if (len) good(EVP_CipherUpdate(c, out, &n, in, (int)len) && n == (int)len);
    right = EVP_CipherFinal_ex(c, spare, &n) == 1;
    if (seal) good(right && EVP_CIPHER_CTX_ctrl(c, EVP_CTRL_AEAD_GET_TAG, 16, out + len));
    EVP_CIPHER_CTX_free(c);
    return right;
}

static int record(int seal, const reference_key *key, const uint8_t nonce[24], uint32_t index,
                  const uint8_t *aad, size_t aad_len, const uint8_t *in, size_t len, uint8_t *out)
{
    uint8_t n[24], subkey[32], iv[12] = {0};
    memcpy(n, nonce, 24);
    for (int i = 0; i < 4; i++) n[20 + i] ^= (uint8_t)(index >> (24 - 8 * i));
    if (key->cipher == 1) {
        xaes(key->key, n, subkey);
        memcpy(iv, n + 12, 12);
    } else {
        hchacha20(key->key, n, subkey);
        memcpy(iv + 4, n + 16, 8);
    }
    return aead(seal, key->cipher, subkey, iv, aad, aad_len, in, len, out);
}

void reference_seal_record(const reference_key *key, const uint8_t nonce[24], uint32_t index,
                           const uint8_t *aad, size_t aad_len, const uint8_t *in, size_t len,
                           uint8_t *out)
{
    good(record(1, key, nonce, index, aad, aad_len, in, len, out));
}

int reference_open_record(const reference_key *key, const uint8_t nonce[24], uint32_t index,
                          const uint8_t *aad, size_t aad_len, const uint8_t *in, size_t len,
                          uint8_t *out)
{
    return record(0, key, nonce, index, aad, aad_len, in, len, out);
}

static int chunk(int seal, const reference_key *key, uint64_t index, const uint8_t *in, size_t len,
                 uint8_t *out)
{
    uint8_t iv[12];
    memcpy(iv, key->base_nonce, 12);
    for (int i = 11; index; i--, index >>= 8) iv[i] ^= (uint8_t)index;
    return aead(seal, key->cipher, key->key, iv, NULL, 0, in, len, out);
}

void reference_seal_chunk(const reference_key *key, uint64_t index, const uint8_t *in, size_t len,
                          uint8_t *out)
{
    good(chunk(1, key, index, in, len, out));
}

int reference_open_chunk(const reference_key *key, uint64_t index, const uint8_t *in, size_t len,
                         uint8_t *out)
{
    return chunk(0, key, index, in, len, out);
}

/* ---- derivation ----------------------------------------------------------------------------- */

void reference_expand(const uint8_t secret[32], const uint8_t *info, size_t info_len, uint8_t *out,
                      size_t out_len)
{
    uint8_t text[64 + 1000 + 1], block[64];
    size_t before = 0;
    good(info_len <= 1000);
    for (uint8_t number = 1; out_len; number++) {
        unsigned n = 0;
        if (info_len) memcpy(text + before, info, info_len);
        text[before + info_len] = number;
        good(HMAC(EVP_sha512(), secret, 32, text, before + info_len + 1, block, &n) && n == 64);
        memcpy(text, block, 64);
        before = 64;
        const size_t part = out_len < 64 ? out_len : 64;
        memcpy(out, block, part);
        out += part;
        out_len -= part;
    }
}

/* ---- padding -------------------------------------------------------------------------------- */

uint64_t reference_padme(uint64_t len)
{
    uint64_t e = 0, s = 0, step = 1;
    if (len < 2) return len;
    for (uint64_t rest = len; rest > 1; rest /= 2) e++;
    for (uint64_t rest = e; rest > 0; rest /= 2) s++;
    for (uint64_t z = e - s; z > 0; z--) step *= 2;
    return (len / step + (len % step != 0)) * step;
}

size_t reference_pad(const uint8_t *report, size_t len, uint8_t *out)
{
    const size_t padded = (size_t)reference_padme(len + 1);
    memset(out, 0, padded);
    if (len) memcpy(out, report, len);
    out[len] = 0x80;
    return padded;
}

int64_t reference_unpad(const uint8_t *padded, size_t len)
{
    size_t end = len;
    while (end > 0 && padded[end - 1] == 0) end--;
    if (end == 0 || padded[end - 1] != 0x80 || reference_padme(end) != len) return -1;
    return (int64_t)end - 1;
}
