/* SPDX-License-Identifier: Apache-2.0
 *
 * Padded lengths, the measuring of records, tables of batches, and every byte string that a right
 * tag may hide where padding is expected.
 */
#include "cases.h"

#include <stdlib.h>
#include <string.h>

__extension__ typedef __int128 wide;

static void padded_length(bytes *from)
{
    const size_t len = (size_t)take_number(from, 8);
    const size_t padded = upseal_padded_len(len);
    if (len < SIZE_MAX / 4) MUST(padded == reference_padme((uint64_t)len + 1) && padded > len);
}

/* Offsets as they come, 8 bytes each. */
static void measure(bytes *from, int padded, int fenced)
{
    const size_t values_len = (size_t)take_number(from, 8);
    int64_t raw[64];
    size_t count = 0;
    while (count < 63 && from->len >= 8) raw[count++] = (int64_t)take_number(from, 8);
    if (!count) return;
    count--;
    const int64_t *offsets = input(raw, (count + 1) * sizeof *raw, fenced);
    int right = raw[0] >= 0;
    uint64_t wanted = 0, *got = output(sizeof *got);
    for (size_t i = 0; i < count; i++) {
        const wide len = (wide)raw[i + 1] - raw[i];
        uint64_t sealed = 0;
        if (len < 0 || len > UPSEAL_RECORD_MAX) right = 0;
        if (right) right = sealed_length((uint64_t)len, padded, &sealed);
        wanted += sealed;
    }
    if ((wide)raw[count] - raw[0] > (wide)values_len) right = 0;
    MUST(upseal_records_measure(values_len, offsets, count, padded, got) ==
         (right ? UPSEAL_OK : UPSEAL_EARGUMENT));
    MUST(*got == (right ? wanted : 0));
}

static void table(bytes *from, int padded, int fenced)
{
    const size_t count = from->len / 4 < 500 ? from->len / 4 : 500;
    const uint8_t *raw = input(from->data, 4 * count, fenced);
    int64_t *ends = output((count + 1) * sizeof *ends), end = 0;
    int right = 1;
    for (size_t i = 0; i < count; i++) {
        const uint8_t *b = raw + 4 * i;
        const uint32_t len = ((b[0] * 256u + b[1]) * 256u + b[2]) * 256u + b[3];
        if (len < 16u + (padded ? 1 : 0) || len > 16777232u) right = 0;
    }
    MUST(upseal_batch_offsets(raw, count, padded, ends) == (right ? UPSEAL_OK : UPSEAL_EFORGED));
    if (!right) MUST(all_zero(ends, (count + 1) * sizeof *ends));
    for (size_t i = 0; right && i <= count; i++) {
        MUST(ends[i] == end);
        if (i < count) end += ((raw[4 * i] * 256 + raw[4 * i + 1]) * 256 + raw[4 * i + 2]) * 256 +
                              raw[4 * i + 3];
    }
}

/* A plaintext as it comes, sealed with a right tag, opened as a padded record by every door. */
static void behind_the_tag(bytes *from, uint8_t cipher, int fenced)
{
    static const uint8_t context[9] = {0x82, 0, 0, 0, 0, 0, 0, 0, 1};
    reference_key key = {.cipher = cipher};
    uint8_t material[44], text[8192], nonce[24], sealed[24 + 8192 + 16];
    key_from_seed((uint16_t)take_number(from, 2), material);
    memcpy(key.key, material, 32);
    /* Zeros behind what is there, in a number of their own: rare otherwise, and the point of it. */
    size_t zeros = (size_t)take_number(from, 2) % 4096;
    const size_t bytes_len = from->len < 4096 ? from->len : 4096, len = bytes_len + zeros;
    memset(text, 0, sizeof text);
    take(from, text, bytes_len);
    pattern(nonce, 24, (uint32_t)len);
    memcpy(sealed, nonce, 24);
    reference_seal_record(&key, nonce, 0, context, sizeof context, text, len, sealed + 24);
    const int64_t wanted = reference_unpad(text, len);
    const uint8_t *envelope = input(sealed, 24 + len + 16, fenced);
    uint8_t *aad = input(context, sizeof context, fenced);
    upseal_key *product_key = upseal_key_new(cipher, material, 32);
    MUST(product_key);

    ENGINES(e) {
        uint8_t *out = output(len);
        int64_t status = upseal_open_envelope(e->work, product_key, 0, aad, sizeof context,
                                              envelope, 24 + len + 16, 1, out, len);
        MUST(status == (wanted < 0 ? UPSEAL_EFORGED : wanted));
        if (wanted < 0)
            MUST(all_zero(out, len));
        else
            MUST(memcmp(out, text, (size_t)wanted) == 0);

        const int64_t offsets[2] = {0, (int64_t)len + 16};
        int64_t *ends = output(sizeof offsets);
        out = output(len);
        status = upseal_open_batch(e->work, product_key, nonce, 0, aad, sizeof context,
                                   envelope + 24, len + 16, offsets, 1, 1, out, len, ends);
        MUST(status == (wanted < 0 ? UPSEAL_EFORGED : UPSEAL_OK));
        MUST(ends[0] == 0 && ends[1] == (wanted < 0 ? 0 : wanted));
        if (wanted < 0)
            MUST(all_zero(out, len));
        else
            MUST(memcmp(out, text, (size_t)wanted) == 0);
    }
    upseal_key_free(product_key);
}

void run_padding(const uint8_t *data, size_t len)
{
    bytes from = {data, len};
    const unsigned how = (unsigned)take_number(&from, 1);
    const int padded = how >> 2 & 1, fenced = how >> 3 & 1;
    if ((how & 3) == 0) padded_length(&from);
    if ((how & 3) == 1) measure(&from, padded, fenced);
    if ((how & 3) == 2) table(&from, padded, fenced);
    if ((how & 3) == 3) behind_the_tag(&from, padded ? 2 : 1, fenced);
}
