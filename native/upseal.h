/* SPDX-License-Identifier: Apache-2.0
 *
 * upseal's C core: bulk sealing and opening under keys that somebody else made.
 * It knows bytes and keys; no Python, no files, no clock, no threads, no
 * randomness, no public keys.  This header is its manual.
 *
 * Conventions
 *   - Order of arguments: work space, key, nonce and positions, associated data,
 *     input, output.  A length stands right after what it measures.
 *   - Every call that can fail returns an upseal_status: 0 is success, and the
 *     result must be looked at.  After a failure every output is zero over its
 *     whole length (a table of results: UPSEAL_EFORGED).
 *   - Inputs and outputs must not overlap.  An input without bytes may be NULL.
 *   - A work space serves one call at a time; any number of them may be in use at
 *     once.  A key is only read, and may be shared by any number of calls.
 *   - Nothing is allocated but where something is made: upseal_work_new, the keys, the arena.
 *   - No branch, index or length depends on a key, or on a plaintext byte whose
 *     tag has not been checked.
 *
 * Constructions (docs/format.md has them byte by byte)
 *   cipher 1, AES-256-GCM:        records by c2sp.org/XAES-256-GCM,
 *                                 chunks by c2sp.org/chunked-encryption (Cobblestone-256)
 *   cipher 2, ChaCha20-Poly1305:  records by XChaCha20-Poly1305
 *                                 (draft-irtf-cfrg-xchacha-03), chunks as above
 */
#ifndef UPSEAL_H
#define UPSEAL_H

#include <stddef.h>
#include <stdint.h>

#if defined(__GNUC__) || defined(__clang__)
#define UPSEAL_MUST_CHECK __attribute__((warn_unused_result))
#else
#define UPSEAL_MUST_CHECK
#endif

#define UPSEAL_KEY_LEN 32
#define UPSEAL_NONCE_LEN 24      /* of a record */
#define UPSEAL_BASE_NONCE_LEN 12 /* of a stream of chunks */
#define UPSEAL_TAG_LEN 16
#define UPSEAL_RECORD_MAX (1u << 24)  /* bytes of plaintext, padding included */
#define UPSEAL_RECORDS_MAX (1u << 20) /* records under one nonce */
#define UPSEAL_CHUNK_LEN 16384
#define UPSEAL_SEALED_CHUNK_LEN 16400
#define UPSEAL_CHUNKS_MAX ((uint64_t)1 << 38)
#define UPSEAL_BATCH_AAD_MIN 9 /* kind 1 | index 4 | count 4 */

typedef enum {
    UPSEAL_OK = 0,
    UPSEAL_OTHER = 1, /* only in results of upseal_open_envelopes */
    UPSEAL_EFORGED = -1, /* a tag, or the padding behind it, is wrong */
    UPSEAL_EARGUMENT = -2,
    UPSEAL_EBACKEND = -3, /* the library underneath refused, or is not usable here */
    UPSEAL_EMEMORY = -4
} upseal_status;

#define UPSEAL_AES_256_GCM 1
#define UPSEAL_CHACHA20_POLY1305 2

/* ---- what this build and this machine have -------------------------------- */

/* Names the backends built in, best first; NULL past the last. */
const char *upseal_backend_name(size_t index);

/* UPSEAL_OK if the backend can run here and gives the published answers for both
 * ciphers (in FIPS mode: for AES alone) and for HKDF; UPSEAL_EARGUMENT if there is none of that index.  Call it once in a process,
 * from one thread, before anything else of that backend: it also makes it ready. */
UPSEAL_MUST_CHECK upseal_status upseal_backend_test(size_t index);

/* Version of the library the backend stands on, for people to read. */
const char *upseal_backend_version(size_t index);

/* 1 if the CPU has instructions for AES and carry-less multiplication. */
int upseal_cpu_has_aes(void);

/* ---- FIPS mode -------------------------------------------------------------- */

/* From now on the openssl backend and the derivation ask libcrypto for what a FIPS provider gives
 * ("fips=yes") and for nothing else, and ChaCha20-Poly1305 is refused there with UPSEAL_EBACKEND.
 * For the whole process and for good: call it from one thread, before any upseal_backend_test. The
 * ippcp backend is no FIPS provider, and is the caller's to avoid. */
void upseal_fips_only(void);

/* Writes who does the bulk work in FIPS mode, for people to read: name, version and the provider's
 * name in OpenSSL's configuration. With `self_test` it is made to run its self-tests once more.
 * UPSEAL_EBACKEND, and zeros, if no provider says "fips=yes" of all that is needed (AES-256-GCM,
 * CMAC, AES-256-CBC under it, HMAC and SHA-512), if several do so in parts, or if it is in its error state. */
UPSEAL_MUST_CHECK upseal_status upseal_fips_provider(int self_test, char *out, size_t out_len);

/* ---- work spaces and keys -------------------------------------------------- */

typedef struct upseal_work upseal_work;
typedef struct upseal_key upseal_key;

/* A work space on the backend of that index, which upseal_backend_test has accepted; NULL if it
 * cannot be had. */
upseal_work *upseal_work_new(size_t backend);
void upseal_work_free(upseal_work *work); /* wipes; NULL is allowed */

/* Overwrites what the calls before left of their keys in a work space (key schedules, mostly): for
 * one that nobody uses while a key comes to its end.  Costs next to nothing if there were none. */
void upseal_work_scrub(upseal_work *work);

/* Copies `material`: the key (32 bytes, for records), or the key and the base nonce
 * (44 bytes, for chunks).  NULL if the cipher or the length is none of these. */
upseal_key *upseal_key_new(uint8_t cipher, const uint8_t *material, size_t material_len);
void upseal_key_free(upseal_key *key); /* wipes, wherever it lives; NULL is allowed */

/* ---- where keys live ------------------------------------------------------------
 *
 * An arena has pages of its own for keys, locked into memory as far as the system lets us (they go
 * to no swap) and left out of core dumps.  Any number of threads may make and free keys in one, and
 * so may the child of a fork, without locks.  Where a system has no such pages, its keys are like
 * those of upseal_key_new.
 */

typedef struct upseal_arena upseal_arena;

upseal_arena *upseal_arena_new(void); /* NULL if there is no memory */
/* NULL is allowed.  Keys that are left in it stay good: its memory goes with the last of them. */
void upseal_arena_free(upseal_arena *arena);

/* As upseal_key_new, in an arena. */
upseal_key *upseal_arena_key(
    upseal_arena *arena, uint8_t cipher, const uint8_t *material, size_t material_len);

/* The keys of a session in one, from report_key | batch_key | upload_key: for records it is the
 * first of them, and the calls below find the others.  NULL as above. */
upseal_key *upseal_session_key(upseal_arena *arena, uint8_t cipher, const uint8_t keys[96]);

/* The key of a session's batches, for records. */
upseal_key *upseal_batch_key(upseal_arena *arena, const upseal_key *session);

/* Locks again what can be locked: a child has its parent's keys, but not the locks. */
void upseal_arena_relock(upseal_arena *arena);

/* Bytes that its keys take, that it has, and how many of those are locked. */
void upseal_arena_measure(
    const upseal_arena *arena, uint64_t *used, uint64_t *size, uint64_t *locked);

/* ---- derivation ------------------------------------------------------------------- */

/* HKDF-Expand (RFC 5869) with SHA-512; out_len is at most 16320. */
UPSEAL_MUST_CHECK upseal_status upseal_expand(
    const uint8_t secret[32], const uint8_t *info, size_t info_len, uint8_t *out, size_t out_len);

/* The key of an upload, for chunks, and its commitment: 76 bytes that the upload key of a session
 * is expanded to.  NULL, and a commitment of zeros, if that is no session, or there is no memory. */
upseal_key *upseal_upload_key(
    upseal_arena *arena, const upseal_key *session, const uint8_t *info, size_t info_len,
    uint8_t commitment[32]);

/* ---- records ---------------------------------------------------------------
 *
 * Records come packed: `values` holds them one behind the other, from the first one's
 * first byte on, and `offsets` has count + 1 entries, never falling: record i is the bytes
 * offsets[i] - offsets[0] .. offsets[i+1] - offsets[0] of `values`.  Record i of a call goes under nonce XOR (first + i), big-endian in the
 * last four bytes: `first` is the place of the call's first record under that nonce.
 * With `padded` not 0, a record r is sealed as r | 80 | 00.. up to the Padme length
 * of len(r) + 1, and opening accepts that alone.
 */

/* Length of a padded record of `len` bytes, before the tag; for lengths below 2^52. */
size_t upseal_padded_len(size_t len);

/* Room that sealing these records takes besides prefixes, nonces and tables: the sum of
 * their (padded) lengths and tags.  UPSEAL_EARGUMENT if offsets fall, leave `values`, or
 * bound a record longer than UPSEAL_RECORD_MAX. */
UPSEAL_MUST_CHECK upseal_status upseal_records_measure(
    size_t values_len, const int64_t *offsets, size_t count, int padded, uint64_t *sealed_len);

/* Seals each record as an envelope of its own: prefix | nonce | ciphertext | tag, one
 * behind the other in `out`, whose length must be exactly theirs; out_offsets (count + 1, from
 * 0) says where each begins.  AAD is `aad`. */
UPSEAL_MUST_CHECK upseal_status upseal_seal_envelopes(
    upseal_work *work, const upseal_key *key, const uint8_t nonce[24], uint32_t first,
    const uint8_t *prefix, size_t prefix_len, const uint8_t *aad, size_t aad_len,
    const uint8_t *values, size_t values_len, const int64_t *offsets, size_t count, int padded,
    uint8_t *out, size_t out_len, int64_t *out_offsets);

/* The same for one record, without a table of offsets. */
UPSEAL_MUST_CHECK upseal_status upseal_seal_envelope(
    upseal_work *work, const upseal_key *key, const uint8_t nonce[24], const uint8_t *prefix,
    size_t prefix_len, const uint8_t *aad, size_t aad_len, const uint8_t *report,
    size_t report_len, int padded, uint8_t *out, size_t out_len);

/* What the envelopes of one session have in common.  The caller keeps it, and the key and the
 * prefix it points to, as long as it is used; it is only read, like a key. */
typedef struct {
    const upseal_key *key;
    const uint8_t *prefix;
    size_t prefix_len;
    int padded;
} upseal_front;

/* The same again, for whoever seals one by one: every argument costs its caller something. */
UPSEAL_MUST_CHECK upseal_status upseal_seal_report(
    upseal_work *work, const upseal_front *front, const uint8_t nonce[24], const uint8_t *aad,
    size_t aad_len, const uint8_t *report, size_t report_len, uint8_t *out, size_t out_len);

/* Opens `count` envelopes.  `out` needs room for what each holds besides prefix, nonce and tag;
 * out_offsets (count + 1, from 0) packs what was opened; and results[i] is UPSEAL_OK, or, with
 * an empty record, UPSEAL_EFORGED (also if too short or too long to be one), or UPSEAL_OTHER if
 * it does not begin with `prefix`: then it is of another session, and nothing was tried. */
UPSEAL_MUST_CHECK upseal_status upseal_open_envelopes(
    upseal_work *work, const upseal_key *key, const uint8_t *prefix, size_t prefix_len,
    const uint8_t *aad, size_t aad_len, const uint8_t *values, size_t values_len,
    const int64_t *offsets, size_t count, int padded, uint8_t *out, size_t out_len,
    int64_t *out_offsets, int8_t *results);

/* The same for one envelope: the report's length (at most out_len), or an upseal_status. */
UPSEAL_MUST_CHECK int64_t upseal_open_envelope(
    upseal_work *work, const upseal_key *key, size_t prefix_len, const uint8_t *aad,
    size_t aad_len, const uint8_t *envelope, size_t envelope_len, int padded, uint8_t *out,
    size_t out_len);

/* Seals records first .. first + count of a batch.  `aad` is kind | 4 bytes | u32 count of
 * the whole batch | context: this call writes each record's index into bytes 1 to 4.
 * `table` takes 4 bytes a record, its sealed length (big-endian); `out` the sealed records,
 * and its length must be exactly theirs. */
UPSEAL_MUST_CHECK upseal_status upseal_seal_batch(
    upseal_work *work, const upseal_key *key, const uint8_t nonce[24], uint32_t first,
    uint8_t *aad, size_t aad_len, const uint8_t *values, size_t values_len,
    const int64_t *offsets, size_t count, int padded, uint8_t *table, uint8_t *out,
    size_t out_len);

/* Reads a batch's table of `count` sealed lengths into `offsets` (count + 1 entries, from 0).
 * UPSEAL_EFORGED if a length is outside the limits of a record; whether it is one that padding
 * gives, opening finds out. */
UPSEAL_MUST_CHECK upseal_status upseal_batch_offsets(
    const uint8_t *table, size_t count, int padded, int64_t *offsets);

/* Opens records first .. first + count of a batch: the sealed records are packed as above.  All or none: on failure the whole of `out` and
 * `out_offsets` is zero.  `out` needs offsets[count] - offsets[0] - 16 * count bytes. */
UPSEAL_MUST_CHECK upseal_status upseal_open_batch(
    upseal_work *work, const upseal_key *key, const uint8_t nonce[24], uint32_t first,
    uint8_t *aad, size_t aad_len, const uint8_t *records, size_t records_len,
    const int64_t *offsets, size_t count, int padded, uint8_t *out, size_t out_len,
    int64_t *out_offsets);

/* ---- chunks of an upload ------------------------------------------------------
 *
 * Chunk k is sealed under base nonce XOR k, without AAD.  The key is one of 44 bytes.
 */

/* Seals `in` as chunks first, first + 1, ...  Without `last`, in_len is a multiple of
 * UPSEAL_CHUNK_LEN; with it, what is left over (it may be nothing) is the short last
 * chunk.  out_len is exactly the sealed length. */
UPSEAL_MUST_CHECK upseal_status upseal_seal_chunks(
    upseal_work *work, const upseal_key *key, uint64_t first, int last, const uint8_t *in,
    size_t in_len, uint8_t *out, size_t out_len);

/* Opens whole chunks, and with `last` the short one at the end, which must be there.  A chunk is
 * written to `out` only after its tag has been checked, so `out` may be anybody's memory.
 * *opened is how many bytes of `out` hold checked plaintext: on UPSEAL_EFORGED those of
 * the chunks before the first bad one (the rest is zero). */
UPSEAL_MUST_CHECK upseal_status upseal_open_chunks(
    upseal_work *work, const upseal_key *key, uint64_t first, int last, const uint8_t *in,
    size_t in_len, uint8_t *out, size_t out_len, size_t *opened);

/* The same, all or none, without the copy: only for an `out` that nobody else can see before
 * this returns, since a chunk is written there while its tag is still being computed.  On
 * failure the whole of `out` is zero. */
UPSEAL_MUST_CHECK upseal_status upseal_open_chunks_private(
    upseal_work *work, const upseal_key *key, uint64_t first, int last, const uint8_t *in,
    size_t in_len, uint8_t *out, size_t out_len);

/* ---- odds and ends -------------------------------------------------------------- */

/* Overwrites with zeros, whatever the optimiser thinks of it. */
void upseal_wipe(void *data, size_t len);

/* 1 if equal, 0 if not, in time that depends on `len` alone. */
UPSEAL_MUST_CHECK int upseal_equal(const uint8_t *a, const uint8_t *b, size_t len);

/* Asks the system for large pages behind memory that is about to be written for the first time:
 * faulting small ones in can cost more than sealing into them.  Only ever a matter of speed. */
void upseal_large_pages(void *data, size_t len);

/* out[i] = in[i] + by: for offsets of a part that are to be those of the whole. */
void upseal_shift_offsets(const int64_t *in, size_t count, int64_t by, int64_t *out);

/* Arrow's 32-bit offsets as 64-bit ones. */
void upseal_widen_offsets(const int32_t *in, size_t count, int64_t *out);

#endif
