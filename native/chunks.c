/* SPDX-License-Identifier: Apache-2.0
 *
 * The chunks of c2sp.org/chunked-encryption ("AEAD usage"): 16 KiB each, the last one
 * always shorter, chunk k under base nonce XOR k, without AAD.
 */
#include "aead.h"
#include "probes.h"

#include <string.h>

static upseal_status start(upseal_work *work, const upseal_key *key, const upseal_aead **aead,
                           void **state)
{
    if (!work || !key || !key->has_base_nonce) return UPSEAL_EARGUMENT;
    *aead = work->aead[key->cipher - 1];
    *state = work->state[key->cipher - 1];
    work->keyed[key->cipher - 1] = 1;
    return *state ? (*aead)->set_key(*state, key->key) : UPSEAL_EBACKEND;
}

static void chunk_nonce(const upseal_key *key, uint64_t index, uint8_t iv[12])
{
    memcpy(iv, key->base_nonce, 12);
    for (int i = 0; i < 8; i++) iv[11 - i] ^= (uint8_t)(index >> (8 * i));
}

/* Chunks first .. first + whole, and one more if `last`, are below the format's limit. */
static int chunks_fit(uint64_t first, uint64_t whole, int last)
{
    const uint64_t count = whole + (last ? 1 : 0);
    return count <= UPSEAL_CHUNKS_MAX && first <= UPSEAL_CHUNKS_MAX - count;
}

upseal_status upseal_seal_chunks(upseal_work *work, const upseal_key *key, uint64_t first,
                                 int last, const uint8_t *in, size_t in_len, uint8_t *out,
                                 size_t out_len)
{
    UPSEAL_PROBE1(seal_chunks__entry, out_len);
    const upseal_aead *aead;
    void *state;
    uint8_t iv[12];
    const size_t whole = in_len / UPSEAL_CHUNK_LEN, rest = in_len % UPSEAL_CHUNK_LEN;
    upseal_status status = start(work, key, &aead, &state);

    if (status != UPSEAL_OK) goto fail;
    status = UPSEAL_EARGUMENT;
    if ((rest && !last) || !chunks_fit(first, whole, last)) goto fail;
    if (out_len < in_len || out_len - in_len != UPSEAL_TAG_LEN * (whole + (last ? 1 : 0))) goto fail;
    status = UPSEAL_OK;
    for (size_t i = 0; i < whole && status == UPSEAL_OK; i++) {
        chunk_nonce(key, first + i, iv);
        status = aead->seal(state, iv, NULL, 0, in + i * UPSEAL_CHUNK_LEN, UPSEAL_CHUNK_LEN,
                            out + i * UPSEAL_SEALED_CHUNK_LEN);
    }
    if (last && status == UPSEAL_OK) {
        chunk_nonce(key, first + whole, iv);
        status = aead->seal(state, iv, NULL, 0, upseal_at(in, (int64_t)(whole * UPSEAL_CHUNK_LEN)),
                            rest, out + whole * UPSEAL_SEALED_CHUNK_LEN);
    }
    upseal_wipe(iv, sizeof iv);
    if (status == UPSEAL_OK) goto done;
fail:
    if (out && out_len) memset(out, 0, out_len);
done:
    UPSEAL_PROBE1(seal_chunks__return, status);
    return status;
}

/* Each chunk by way of `scratch`, or, without it, straight to where it belongs. */
static upseal_status open_chunks(upseal_work *work, const upseal_key *key, uint64_t first, int last,
                                 const uint8_t *in, size_t in_len, uint8_t *out, size_t out_len,
                                 uint8_t *scratch, size_t *opened)
{
    UPSEAL_PROBE1(open_chunks__entry, in_len);
    const upseal_aead *aead;
    void *state;
    uint8_t iv[12];
    const size_t whole = in_len / UPSEAL_SEALED_CHUNK_LEN, rest = in_len % UPSEAL_SEALED_CHUNK_LEN;
    upseal_status status = start(work, key, &aead, &state);

    *opened = 0;
    if (status != UPSEAL_OK) goto fail;
    status = UPSEAL_EARGUMENT;
    if ((rest && !last) || (last && rest < UPSEAL_TAG_LEN) || !chunks_fit(first, whole, last))
        goto fail;
    if (out_len < in_len - UPSEAL_TAG_LEN * (whole + (last ? 1 : 0))) goto fail;
    status = UPSEAL_OK;
    for (size_t i = 0; i < whole + (last ? 1 : 0) && status == UPSEAL_OK; i++) {
        const size_t len = i < whole ? UPSEAL_CHUNK_LEN : rest - UPSEAL_TAG_LEN;
        uint8_t *to = scratch || !len ? work->chunk : out + *opened;
        chunk_nonce(key, first + i, iv);
        status = aead->open(state, iv, NULL, 0, in + i * UPSEAL_SEALED_CHUNK_LEN, len, to);
        if (status != UPSEAL_OK) break;
        if (scratch && len) memcpy(out + *opened, scratch, len);
        *opened += len;
    }
    upseal_wipe(iv, sizeof iv);
    if (scratch) upseal_wipe(scratch, UPSEAL_CHUNK_LEN);
    if (status == UPSEAL_OK) goto done;
    if (status != UPSEAL_EFORGED) *opened = 0;
fail:
    if (out && out_len) upseal_wipe(out + *opened, out_len - *opened);
done:
    UPSEAL_PROBE1(open_chunks__return, status);
    return status;
}

upseal_status upseal_open_chunks(upseal_work *work, const upseal_key *key, uint64_t first,
                                 int last, const uint8_t *in, size_t in_len, uint8_t *out,
                                 size_t out_len, size_t *opened)
{
    return open_chunks(work, key, first, last, in, in_len, out, out_len, work ? work->chunk : NULL,
                       opened);
}

upseal_status upseal_open_chunks_private(upseal_work *work, const upseal_key *key, uint64_t first,
                                         int last, const uint8_t *in, size_t in_len, uint8_t *out,
                                         size_t out_len)
{
    size_t opened;
    const upseal_status status =
        open_chunks(work, key, first, last, in, in_len, out, out_len, NULL, &opened);
    /* From the first bad chunk on it is zero already. */
    if (status != UPSEAL_OK && opened) upseal_wipe(out, opened);
    return status;
}
