/* SPDX-License-Identifier: Apache-2.0
 *
 * What the core must never be: the same answers, in time that depends on the secret.  Both methods
 * of this folder have to find these out, or they find nothing.
 */
#ifndef UPSEAL_CT_LEAKY_H
#define UPSEAL_CT_LEAKY_H

#include <stddef.h>
#include <stdint.h>

/* Stops at the first difference. */
static inline int leaky_equal(const uint8_t *a, const uint8_t *b, size_t len)
{
    for (size_t i = 0; i < len; i++)
        if (a[i] != b[i]) return 0;
    return 1;
}

/* Looks for the marker from the end, and stops there. */
static inline size_t leaky_unpad(const uint8_t *padded, size_t len)
{
    while (len && !padded[len - 1]) len--;
    return len && padded[len - 1] == 0x80 ? len - 1 : 0;
}

/* An index made of a secret: what a table of an AES in C is. */
static inline uint8_t leaky_table(const uint8_t table[256], const uint8_t *key, size_t len)
{
    uint8_t state = 0;
    for (size_t i = 0; i < len; i++) state = table[state ^ key[i]];
    return state;
}

/* L << 1 with an if where there must be a mask. */
static inline void leaky_double(const uint8_t l[16], uint8_t k1[16])
{
    for (size_t i = 0; i < 15; i++) k1[i] = (uint8_t)(l[i] << 1 | l[i + 1] >> 7);
    k1[15] = (uint8_t)(l[15] << 1);
    if (l[0] & 0x80) {
        volatile uint8_t *last = &k1[15]; /* or the compiler makes a mask of it */
        *last ^= 0x87;
    }
}

#endif
