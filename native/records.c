/* SPDX-License-Identifier: Apache-2.0
 *
 * Sealing and opening many records under one nonce: envelopes and batches.
 */
#include "aead.h"
#include "probes.h"
#include "secrets.h"

#include <string.h>

/* ---- Padme (Nikitin et al., PETS 2019) ------------------------------------------ */

static unsigned bit_length(size_t n)
{
    unsigned bits = 0;
    for (; n; n >>= 1) bits++;
    return bits;
}

/* Padme keeps the top bits of a length, and rounds up to the step that the others make. */
static size_t padme_step(size_t len)
{
    unsigned exponent = bit_length(len) - 1;
    return len < 2 ? 1 : (size_t)1 << (exponent - bit_length(exponent));
}

size_t upseal_padded_len(size_t len)
{
    size_t mask = padme_step(len + 1) - 1;
    return (len + 1 + mask) & ~mask;
}

/* The length of the record in the padded `len` bytes, and in *bad a mask of ones if they are
 * no padding of it.  Only the last step can hold the marker, and all of it is read, whatever
 * it holds: time tells len, which is public, and no more. */
static size_t unpad(const uint8_t *padded, size_t len, uint32_t *bad)
{
    size_t length = 0;
    uint32_t seen = 0, wrong = 0; /* masks */
    *bad = ~(uint32_t)0;
    if (len == 0 || upseal_padded_len(len - 1) != len) return 0;
    for (size_t i = len, end = len - padme_step(len - 1); i-- > end;) {
        uint32_t byte = padded[i];
        uint32_t nonzero = 0 - ((0 - byte) >> 31);
        uint32_t marker = nonzero & ~seen;
        wrong |= marker & (byte ^ 0x80);
        length |= i & (0 - (size_t)(marker & 1));
        seen |= nonzero;
    }
    *bad = ~seen | (0 - ((0 - wrong) >> 31));
    return length & ~(0 - (size_t)(*bad & 1));
}

/* ---- one record -------------------------------------------------------------------- */

typedef struct {
    const upseal_aead *aead;
    void *state;
} cipher_state;

static upseal_status select_cipher(upseal_work *work, const upseal_key *key, cipher_state *use)
{
    if (!work || !key || key->has_base_nonce) return UPSEAL_EARGUMENT;
    use->aead = work->aead[key->cipher - 1];
    use->state = work->state[key->cipher - 1];
    work->keyed[key->cipher - 1] = 1;
    return use->state ? UPSEAL_OK : UPSEAL_EBACKEND;
}

static upseal_status start_subkey(const cipher_state *use, const upseal_key *key,
                                  const uint8_t nonce[24])
{
    uint8_t subkey[32];
    upseal_status status = use->aead->subkey(use->state, key->key, nonce, subkey);
    if (status == UPSEAL_OK) status = use->aead->set_key(use->state, subkey);
    upseal_wipe(subkey, sizeof subkey);
    return status;
}

/* N XOR index, big-endian in the last four bytes. */
static void record_nonce(const uint8_t nonce[24], uint32_t index, uint8_t out[24])
{
    memcpy(out, nonce, 24);
    upseal_write_u32(out + 20, upseal_read_u32(nonce + 20) ^ index);
}

/* The AEAD's 12-byte nonce: XAES takes the last 12 bytes, XChaCha four zeros and the last 8. */
static void aead_nonce(const cipher_state *use, const uint8_t nonce[24], uint8_t iv[12])
{
    memset(iv, 0, 12);
    memcpy(iv + use->aead->salt_len - 12, nonce + use->aead->salt_len, 24 - use->aead->salt_len);
}

static upseal_status seal_record(const cipher_state *use, const uint8_t nonce[24],
                                 const uint8_t *aad, size_t aad_len, const uint8_t *in, size_t len,
                                 int padded, uint8_t *out)
{
    uint8_t iv[12];
    aead_nonce(use, nonce, iv);
    if (!padded) return use->aead->seal(use->state, iv, aad, aad_len, in, len, out);
    size_t total = upseal_padded_len(len);
    if (len) memcpy(out, in, len);
    out[len] = 0x80;
    memset(out + len + 1, 0, total - len - 1);
    return use->aead->seal(use->state, iv, aad, aad_len, out, total, out);
}

/* in: len + 16 bytes.  *opened is the record's length, without its padding. */
static upseal_status open_record(const cipher_state *use, const uint8_t nonce[24],
                                 const uint8_t *aad, size_t aad_len, const uint8_t *in, size_t len,
                                 int padded, uint8_t *out, size_t *opened)
{
    uint8_t iv[12];
    uint32_t bad = 0;
    upseal_status status;
    aead_nonce(use, nonce, iv);
    *opened = 0;
    status = use->aead->open(use->state, iv, aad, aad_len, in, len, out);
    if (status != UPSEAL_OK) return status;
    *opened = len;
    if (padded) *opened = unpad(out, len, &bad);
    /* The tag was right. Its verdict on the padding, and the length, are what the caller gets. */
    UPSEAL_PUBLIC(&bad, sizeof bad);
    UPSEAL_PUBLIC(opened, sizeof *opened);
    if (bad) {
        upseal_wipe(out, len);
        return UPSEAL_EFORGED;
    }
    return UPSEAL_OK;
}

/* ---- offsets -------------------------------------------------------------------------- */

static int offsets_fit(size_t values_len, const int64_t *offsets, size_t count)
{
    if (!offsets || offsets[0] < 0) return 0;
    for (size_t i = 0; i < count; i++)
        if (offsets[i + 1] < offsets[i]) return 0;
    return (uint64_t)(offsets[count] - offsets[0]) <= values_len;
}

upseal_status upseal_records_measure(size_t values_len, const int64_t *offsets, size_t count,
                                     int padded, uint64_t *sealed_len)
{
    uint64_t total = 0;
    *sealed_len = 0;
    if (!offsets_fit(values_len, offsets, count)) return UPSEAL_EARGUMENT;
    for (size_t i = 0; i < count; i++) {
        uint64_t len = (uint64_t)(offsets[i + 1] - offsets[i]);
        if (len > UPSEAL_RECORD_MAX) return UPSEAL_EARGUMENT;
        if (padded) len = upseal_padded_len((size_t)len);
        if (len > UPSEAL_RECORD_MAX) return UPSEAL_EARGUMENT;
        total += len + UPSEAL_TAG_LEN;
    }
    *sealed_len = total;
    return UPSEAL_OK;
}

static int positions_fit(uint32_t first, size_t count)
{
    return count <= UPSEAL_RECORDS_MAX && first <= UPSEAL_RECORDS_MAX - count;
}

/* ---- envelopes ---------------------------------------------------------------------------- */

upseal_status upseal_seal_envelopes(upseal_work *work, const upseal_key *key,
                                    const uint8_t nonce[24], uint32_t first, const uint8_t *prefix,
                                    size_t prefix_len, const uint8_t *aad, size_t aad_len,
                                    const uint8_t *values, size_t values_len,
                                    const int64_t *offsets, size_t count, int padded, uint8_t *out,
                                    size_t out_len, int64_t *out_offsets)
{
    UPSEAL_PROBE2(seal_envelopes__entry, count, out_len);
    cipher_state use;
    uint64_t sealed_len;
    uint8_t *at = out;
    const size_t front = prefix_len + UPSEAL_NONCE_LEN;
    upseal_status status = select_cipher(work, key, &use);

    if (status != UPSEAL_OK) goto fail;
    status = UPSEAL_EARGUMENT;
    if (!nonce || !out_offsets || !positions_fit(first, count) || prefix_len > UPSEAL_RECORD_MAX)
        goto fail;
    if (upseal_records_measure(values_len, offsets, count, padded, &sealed_len) != UPSEAL_OK)
        goto fail;
    if (out_len != sealed_len + (uint64_t)front * count) goto fail;
    status = start_subkey(&use, key, nonce);
    out_offsets[0] = 0;
    for (size_t i = 0; i < count && status == UPSEAL_OK; i++) {
        const size_t len = (size_t)(offsets[i + 1] - offsets[i]);
        if (prefix_len) memcpy(at, prefix, prefix_len);
        record_nonce(nonce, first + (uint32_t)i, at + prefix_len);
        status = seal_record(&use, at + prefix_len, aad, aad_len,
                             upseal_at(values, offsets[i] - offsets[0]), len, padded, at + front);
        at += front + (padded ? upseal_padded_len(len) : len) + UPSEAL_TAG_LEN;
        out_offsets[i + 1] = at - out;
    }
    if (status == UPSEAL_OK) goto done;
fail:
    if (out && out_len) memset(out, 0, out_len);
    if (out_offsets) memset(out_offsets, 0, (count + 1) * sizeof *out_offsets);
done:
    UPSEAL_PROBE1(seal_envelopes__return, status);
    return status;
}

upseal_status upseal_seal_envelope(upseal_work *work, const upseal_key *key,
                                   const uint8_t nonce[24], const uint8_t *prefix,
                                   size_t prefix_len, const uint8_t *aad, size_t aad_len,
                                   const uint8_t *report, size_t report_len, int padded,
                                   uint8_t *out, size_t out_len)
{
    const int64_t offsets[2] = {0, (int64_t)report_len};
    int64_t sealed[2];
    return upseal_seal_envelopes(work, key, nonce, 0, prefix, prefix_len, aad, aad_len, report,
                                 report_len, offsets, 1, padded, out, out_len, sealed);
}

upseal_status upseal_seal_report(upseal_work *work, const upseal_front *front,
                                 const uint8_t nonce[24], const uint8_t *aad, size_t aad_len,
                                 const uint8_t *report, size_t report_len, uint8_t *out,
                                 size_t out_len)
{
    static const upseal_front nothing; /* without a key: refused below, and the output cleared */
    if (!front) front = &nothing;
    return upseal_seal_envelope(work, front->key, nonce, front->prefix, front->prefix_len, aad,
                                aad_len, report, report_len, front->padded, out, out_len);
}

upseal_status upseal_open_envelopes(upseal_work *work, const upseal_key *key,
                                    const uint8_t *prefix, size_t prefix_len, const uint8_t *aad,
                                    size_t aad_len, const uint8_t *values, size_t values_len,
                                    const int64_t *offsets, size_t count, int padded, uint8_t *out,
                                    size_t out_len, int64_t *out_offsets, int8_t *results)
{
    UPSEAL_PROBE2(open_envelopes__entry, count, values_len);
    cipher_state use;
    const uint8_t *subkey_of = NULL; /* the nonce whose subkey is set */
    size_t unopened = 0;
    const size_t front = prefix_len + UPSEAL_NONCE_LEN;
    upseal_status status = select_cipher(work, key, &use);

    if (status != UPSEAL_OK) goto fail;
    status = UPSEAL_EARGUMENT;
    if (prefix_len > UPSEAL_RECORD_MAX || !out_offsets || !results) goto fail;
    if (!offsets_fit(values_len, offsets, count)) goto fail;
    out_offsets[0] = 0;
    for (size_t i = 0; i < count; i++) {
        const uint8_t *envelope = upseal_at(values, offsets[i] - offsets[0]);
        const size_t len = (size_t)(offsets[i + 1] - offsets[i]);
        size_t opened = 0;
        if (len < prefix_len ||
            (prefix && prefix_len && memcmp(envelope, prefix, prefix_len) != 0)) {
            results[i] = UPSEAL_OTHER;
        } else if (len < front + UPSEAL_TAG_LEN ||
                   len - front - UPSEAL_TAG_LEN > UPSEAL_RECORD_MAX) {
            results[i] = UPSEAL_EFORGED;
        } else {
            const uint8_t *nonce = envelope + prefix_len;
            status = UPSEAL_EARGUMENT;
            if (out_len - (size_t)out_offsets[i] < len - front - UPSEAL_TAG_LEN) goto fail;
            if (!subkey_of || memcmp(nonce, subkey_of, use.aead->salt_len) != 0) {
                status = start_subkey(&use, key, nonce);
                if (status != UPSEAL_OK) goto fail;
                subkey_of = nonce;
            }
            status = open_record(&use, nonce, aad, aad_len, envelope + front,
                                 len - front - UPSEAL_TAG_LEN, padded, out + out_offsets[i],
                                 &opened);
            if (status != UPSEAL_OK && status != UPSEAL_EFORGED) goto fail;
            results[i] = (int8_t)status;
        }
        unopened += results[i] != UPSEAL_OK;
        out_offsets[i + 1] = out_offsets[i] + (int64_t)opened;
    }
    status = UPSEAL_OK; /* of the call: each envelope has its own in results */
    goto done;
fail:
    if (out && out_len) upseal_wipe(out, out_len);
    if (out_offsets) memset(out_offsets, 0, (count + 1) * sizeof *out_offsets);
    if (results) memset(results, UPSEAL_EFORGED, count);
done:
    UPSEAL_PROBE2(open_envelopes__return, status, unopened);
    return status;
}

int64_t upseal_open_envelope(upseal_work *work, const upseal_key *key, size_t prefix_len,
                             const uint8_t *aad, size_t aad_len, const uint8_t *envelope,
                             size_t envelope_len, int padded, uint8_t *out, size_t out_len)
{
    const int64_t offsets[2] = {0, (int64_t)envelope_len};
    int64_t opened[2];
    int8_t result;
    upseal_status status = upseal_open_envelopes(work, key, NULL, prefix_len, aad, aad_len,
                                                 envelope, envelope_len, offsets, 1, padded, out,
                                                 out_len, opened, &result);
    if (status == UPSEAL_OK && result != UPSEAL_OK) status = UPSEAL_EFORGED;
    if (status == UPSEAL_OK) return opened[1];
    if (out && out_len) upseal_wipe(out, out_len); /* also what a forged envelope had no use for */
    return status;
}

/* ---- batches -------------------------------------------------------------------------------- */

upseal_status upseal_seal_batch(upseal_work *work, const upseal_key *key, const uint8_t nonce[24],
                                uint32_t first, uint8_t *aad, size_t aad_len,
                                const uint8_t *values, size_t values_len, const int64_t *offsets,
                                size_t count, int padded, uint8_t *table, uint8_t *out,
                                size_t out_len)
{
    UPSEAL_PROBE2(seal_batch__entry, count, out_len);
    cipher_state use;
    uint64_t sealed_len;
    uint8_t *at = out;
    upseal_status status = select_cipher(work, key, &use);

    if (status != UPSEAL_OK) goto fail;
    status = UPSEAL_EARGUMENT;
    if (!nonce || !table || aad_len < UPSEAL_BATCH_AAD_MIN || !positions_fit(first, count))
        goto fail;
    if (upseal_records_measure(values_len, offsets, count, padded, &sealed_len) != UPSEAL_OK ||
        out_len != sealed_len)
        goto fail;
    status = start_subkey(&use, key, nonce);
    for (size_t i = 0; i < count && status == UPSEAL_OK; i++) {
        const size_t len = (size_t)(offsets[i + 1] - offsets[i]);
        const size_t sealed = (padded ? upseal_padded_len(len) : len) + UPSEAL_TAG_LEN;
        uint8_t n[24];
        record_nonce(nonce, first + (uint32_t)i, n);
        upseal_write_u32(aad + 1, first + (uint32_t)i);
        upseal_write_u32(table + 4 * i, (uint32_t)sealed);
        status = seal_record(&use, n, aad, aad_len, upseal_at(values, offsets[i] - offsets[0]), len,
                             padded, at);
        at += sealed;
    }
    if (status == UPSEAL_OK) goto done;
fail:
    if (table) memset(table, 0, 4 * count);
    if (out && out_len) memset(out, 0, out_len);
done:
    UPSEAL_PROBE1(seal_batch__return, status);
    return status;
}

upseal_status upseal_batch_offsets(const uint8_t *table, size_t count, int padded,
                                   int64_t *offsets)
{
    offsets[0] = 0;
    for (size_t i = 0; i < count; i++) {
        const uint32_t sealed = upseal_read_u32(table + 4 * i);
        if (sealed < UPSEAL_TAG_LEN + (padded ? 1u : 0u) ||
            sealed > UPSEAL_RECORD_MAX + UPSEAL_TAG_LEN) {
            memset(offsets, 0, (count + 1) * sizeof *offsets);
            return UPSEAL_EFORGED;
        }
        offsets[i + 1] = offsets[i] + sealed;
    }
    return UPSEAL_OK;
}

upseal_status upseal_open_batch(upseal_work *work, const upseal_key *key, const uint8_t nonce[24],
                                uint32_t first, uint8_t *aad, size_t aad_len,
                                const uint8_t *records, size_t records_len, const int64_t *offsets,
                                size_t count, int padded, uint8_t *out, size_t out_len,
                                int64_t *out_offsets)
{
    UPSEAL_PROBE2(open_batch__entry, count, records_len);
    cipher_state use;
    upseal_status status = select_cipher(work, key, &use);

    if (status != UPSEAL_OK) goto fail;
    status = UPSEAL_EARGUMENT;
    if (!nonce || aad_len < UPSEAL_BATCH_AAD_MIN || !positions_fit(first, count)) goto fail;
    if (!out_offsets || !offsets_fit(records_len, offsets, count)) goto fail;
    for (size_t i = 0; i < count; i++)
        if (offsets[i + 1] - offsets[i] < UPSEAL_TAG_LEN ||
            offsets[i + 1] - offsets[i] > UPSEAL_RECORD_MAX + UPSEAL_TAG_LEN)
            goto fail;
    if (out_len < (uint64_t)(offsets[count] - offsets[0]) - UPSEAL_TAG_LEN * (uint64_t)count)
        goto fail;
    status = start_subkey(&use, key, nonce);
    out_offsets[0] = 0;
    for (size_t i = 0; i < count && status == UPSEAL_OK; i++) {
        uint8_t n[24];
        size_t opened;
        record_nonce(nonce, first + (uint32_t)i, n);
        upseal_write_u32(aad + 1, first + (uint32_t)i);
        status = open_record(&use, n, aad, aad_len, upseal_at(records, offsets[i] - offsets[0]),
                             (size_t)(offsets[i + 1] - offsets[i]) - UPSEAL_TAG_LEN, padded,
                             out + out_offsets[i], &opened);
        out_offsets[i + 1] = out_offsets[i] + (int64_t)opened;
    }
    if (status == UPSEAL_OK) goto done;
fail:
    if (out && out_len) upseal_wipe(out, out_len);
    if (out_offsets) memset(out_offsets, 0, (count + 1) * sizeof *out_offsets);
done:
    UPSEAL_PROBE1(open_batch__return, status);
    return status;
}
