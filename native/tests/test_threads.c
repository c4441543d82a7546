/* SPDX-License-Identifier: Apache-2.0
 *
 * Keys, inputs and what envelopes have in common, shared by threads; every call of upseal.h, with a
 * work space of the thread's own or one that went from hand to hand.  ThreadSanitizer runs this.
 */
#include "helpers.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

enum {
    THREADS = 4,
    TURNS = 60,
    PREFIX = 5,
    FRONT = PREFIX + UPSEAL_NONCE_LEN,
    AAD = 12,
    UPLOAD = UPSEAL_CHUNK_LEN + 40,
    SEALED_UPLOAD = UPLOAD + 2 * UPSEAL_TAG_LEN
};
static const uint8_t prefix[PREFIX] = "USL!";
static const uint8_t context[AAD] = {1, 0, 0, 0, 0, 0, 0, 0, 3, 'c', 't', 'x'};

/* What one thread made and all others only read. */
typedef struct {
    size_t backend;
    uint8_t cipher;
    int padded;
    upseal_key *records, *chunks;
    upseal_arena *arena;
    upseal_key *session; /* in the arena */
    upseal_front front;
    packed in;
    size_t sealed_len; /* ciphertexts and tags of `in` */
    uint8_t *envelopes, *batch, *table, *upload, *sealed_upload;
    uint8_t commitment[32]; /* of the session's upload */
    int64_t *envelope_ends, *batch_ends;
} shared;

static size_t envelopes_len(const shared *s) { return s->sealed_len + FRONT * s->in.count; }
static size_t offsets_len(const shared *s) { return (s->in.count + 1) * sizeof(int64_t); }
static size_t length(const int64_t *offsets, size_t i) { return (size_t)(offsets[i + 1] - offsets[i]); }

/* ---- the calls, each against what one thread alone got -------------------------------- */

static int seal_envelopes(const shared *s, upseal_work *work)
{
    uint8_t *out = dirty(envelopes_len(s));
    int64_t *ends = exactly(offsets_len(s));
    const int good =
        upseal_seal_envelopes(work, s->records, test_nonce, 0, prefix, PREFIX, context, AAD,
                              s->in.values, s->in.values_len, s->in.offsets, s->in.count, s->padded,
                              out, envelopes_len(s), ends) == UPSEAL_OK &&
        memcmp(out, s->envelopes, envelopes_len(s)) == 0 &&
        memcmp(ends, s->envelope_ends, offsets_len(s)) == 0;
    free(out);
    free(ends);
    return good;
}

static int open_envelopes(const shared *s, upseal_work *work)
{
    uint8_t *out = dirty(s->sealed_len);
    int64_t *ends = exactly(offsets_len(s));
    int8_t *results = exactly(s->in.count);
    const int good =
        upseal_open_envelopes(work, s->records, prefix, PREFIX, context, AAD, s->envelopes,
                              envelopes_len(s), s->envelope_ends, s->in.count, s->padded, out,
                              s->sealed_len, ends, results) == UPSEAL_OK &&
        all_zero(results, s->in.count) && memcmp(ends, s->in.offsets, offsets_len(s)) == 0 &&
        memcmp(out, s->in.values, s->in.values_len) == 0;
    free(out);
    free(ends);
    free(results);
    return good;
}

/* The first of a call goes under the nonce itself, so it is the same as one sealed alone. */
static int one_envelope(const shared *s, upseal_work *work)
{
    const size_t len = length(s->envelope_ends, 0), report_len = length(s->in.offsets, 0);
    uint8_t *out = dirty(len), *again = dirty(len), *report = dirty(len);
    const int good =
        upseal_seal_envelope(work, s->records, test_nonce, prefix, PREFIX, context, AAD,
                             s->in.values, report_len, s->padded, out, len) == UPSEAL_OK &&
        upseal_seal_report(work, &s->front, test_nonce, context, AAD, s->in.values, report_len,
                           again, len) == UPSEAL_OK &&
        memcmp(out, s->envelopes, len) == 0 && memcmp(again, out, len) == 0 &&
        upseal_open_envelope(work, s->records, PREFIX, context, AAD, s->envelopes, len, s->padded,
                             report, len) == (int64_t)report_len &&
        memcmp(report, s->in.values, report_len) == 0;
    free(out);
    free(again);
    free(report);
    return good;
}

/* A forgery, and a call that is refused, are nobody else's business. */
static int bad_envelopes(const shared *s, upseal_work *work)
{
    const size_t len = length(s->envelope_ends, 0);
    uint8_t *forged = exactly(len), *out = dirty(len);
    memcpy(forged, s->envelopes, len);
    forged[len - 1] ^= 1;
    const int good = upseal_open_envelope(work, s->records, PREFIX, context, AAD, forged, len,
                                          s->padded, out, len) == UPSEAL_EFORGED &&
                     all_zero(out, len) &&
                     upseal_seal_envelope(work, s->chunks, test_nonce, prefix, PREFIX, context, AAD,
                                          s->in.values, 0, 0, out, len) == UPSEAL_EARGUMENT;
    free(forged);
    free(out);
    return good;
}

static int seal_batch(const shared *s, upseal_work *work)
{
    uint8_t *out = dirty(s->sealed_len), *table = dirty(4 * s->in.count), aad[AAD];
    memcpy(aad, context, AAD);
    const int good = upseal_seal_batch(work, s->records, test_nonce, 0, aad, AAD, s->in.values,
                                       s->in.values_len, s->in.offsets, s->in.count, s->padded,
                                       table, out, s->sealed_len) == UPSEAL_OK &&
                     memcmp(out, s->batch, s->sealed_len) == 0 &&
                     memcmp(table, s->table, 4 * s->in.count) == 0;
    free(out);
    free(table);
    return good;
}

static int open_batch(const shared *s, upseal_work *work)
{
    uint8_t *out = dirty(s->sealed_len), aad[AAD];
    int64_t *ends = exactly(offsets_len(s)), *opened = exactly(offsets_len(s));
    memcpy(aad, context, AAD);
    const int good =
        upseal_batch_offsets(s->table, s->in.count, s->padded, ends) == UPSEAL_OK &&
        memcmp(ends, s->batch_ends, offsets_len(s)) == 0 &&
        upseal_open_batch(work, s->records, test_nonce, 0, aad, AAD, s->batch, s->sealed_len, ends,
                          s->in.count, s->padded, out, s->sealed_len, opened) == UPSEAL_OK &&
        memcmp(opened, s->in.offsets, offsets_len(s)) == 0 &&
        memcmp(out, s->in.values, s->in.values_len) == 0;
    free(out);
    free(ends);
    free(opened);
    return good;
}

static int seal_chunks(const shared *s, upseal_work *work)
{
    uint8_t *out = dirty(SEALED_UPLOAD);
    const int good = upseal_seal_chunks(work, s->chunks, 7, 1, s->upload, UPLOAD, out,
                                        SEALED_UPLOAD) == UPSEAL_OK &&
                     memcmp(out, s->sealed_upload, SEALED_UPLOAD) == 0;
    free(out);
    return good;
}

static int open_chunks(const shared *s, upseal_work *work)
{
    uint8_t *out = dirty(UPLOAD), *private = dirty(UPLOAD);
    size_t opened = 0;
    const int good = upseal_open_chunks(work, s->chunks, 7, 1, s->sealed_upload, SEALED_UPLOAD, out,
                                        UPLOAD, &opened) == UPSEAL_OK &&
                     opened == UPLOAD && memcmp(out, s->upload, UPLOAD) == 0 &&
                     upseal_open_chunks_private(work, s->chunks, 7, 1, s->sealed_upload,
                                                SEALED_UPLOAD, private, UPLOAD) == UPSEAL_OK &&
                     memcmp(private, s->upload, UPLOAD) == 0;
    free(out);
    free(private);
    return good;
}

/* Keys come and go while others are in use. */
static int own_keys(const shared *s, upseal_work *work)
{
    const size_t len = length(s->envelope_ends, 0);
    uint8_t *out = dirty(len);
    upseal_key *key = new_key(s->cipher, 32);
    const int good = key &&
                     upseal_seal_envelope(work, key, test_nonce, prefix, PREFIX, context, AAD,
                                          s->in.values, length(s->in.offsets, 0), s->padded, out,
                                          len) == UPSEAL_OK &&
                     memcmp(out, s->envelopes, len) == 0;
    upseal_key_free(key);
    free(out);
    return good;
}

/* Many at a time in one arena, so that its blocks are made, filled and left in a crowd. */
static int arena_keys(const shared *s, upseal_work *work)
{
    enum { MANY = 40 };
    const size_t len = length(s->envelope_ends, 0), report_len = length(s->in.offsets, 0);
    upseal_key *keys[MANY];
    uint8_t *out = dirty(len), *material = bytes(96, 7), commitment[32];
    uint64_t used = 0, size = 0, locked = 0;
    int good = 1;
    for (size_t i = 0; i < MANY; i++) {
        keys[i] = i % 4 == 0   ? upseal_arena_key(s->arena, s->cipher, material, 32)
                  : i % 4 == 1 ? upseal_session_key(s->arena, s->cipher, material)
                  : i % 4 == 2 ? upseal_batch_key(s->arena, s->session)
                               : upseal_upload_key(s->arena, s->session, context, AAD, commitment);
        good = good && keys[i];
        if (i % 4 == 3) good = good && memcmp(commitment, s->commitment, sizeof commitment) == 0;
    }
    upseal_arena_relock(s->arena);
    upseal_arena_measure(s->arena, &used, &size, &locked);
    /* The first two have the key that `records` is of as well. */
    for (size_t i = 0; i < 2 && good; i++)
        good = upseal_seal_envelope(work, keys[i], test_nonce, prefix, PREFIX, context, AAD,
                                    s->in.values, report_len, s->padded, out, len) == UPSEAL_OK &&
               memcmp(out, s->envelopes, len) == 0;
    good = good && upseal_open_envelope(work, s->session, PREFIX, context, AAD, s->envelopes, len,
                                        s->padded, out, len) == (int64_t)report_len;
    for (size_t i = 0; i < MANY; i++) upseal_key_free(keys[i]);
    upseal_work_scrub(work);
    free(out);
    free(material);
    return good;
}

/* An arena of the thread's own, left before the last of its keys. */
static int own_arena(const shared *s, upseal_work *work)
{
    uint8_t *material = bytes(44, 7), *out = dirty(UPLOAD + 2 * UPSEAL_TAG_LEN), expanded[100];
    upseal_arena *arena = upseal_arena_new();
    upseal_key *key = arena ? upseal_arena_key(arena, s->cipher, material, 44) : NULL;
    upseal_arena_free(arena);
    const int good = key &&
                     upseal_seal_chunks(work, key, 7, 1, s->upload, UPLOAD, out, SEALED_UPLOAD) ==
                         UPSEAL_OK &&
                     memcmp(out, s->sealed_upload, SEALED_UPLOAD) == 0 &&
                     upseal_expand(material, context, AAD, expanded, sizeof expanded) == UPSEAL_OK;
    upseal_key_free(key);
    free(material);
    free(out);
    return good;
}

static int odds_and_ends(const shared *s, upseal_work *work)
{
    const size_t size = (size_t)1 << 16;
    const int32_t narrow[2] = {0, 5};
    int64_t wide[2], *shifted = exactly(offsets_len(s));
    uint8_t *copy = exactly(UPLOAD), *large = exactly(size);
    uint64_t len = 0;
    (void)work;
    memcpy(copy, s->upload, UPLOAD);
    upseal_large_pages(large, size);
    upseal_shift_offsets(s->in.offsets, s->in.count + 1, 9, shifted);
    upseal_widen_offsets(narrow, 2, wide);
    int good = upseal_equal(copy, s->upload, UPLOAD) && wide[1] == 5 &&
               shifted[s->in.count] == s->in.offsets[s->in.count] + 9 &&
               upseal_records_measure(s->in.values_len, s->in.offsets, s->in.count, s->padded,
                                      &len) == UPSEAL_OK &&
               len == s->sealed_len && upseal_padded_len(8) == 10 &&
               upseal_backend_name(s->backend) && upseal_backend_version(s->backend) &&
               (upseal_cpu_has_aes() | 1) == 1;
    upseal_wipe(copy, UPLOAD);
    good = good && all_zero(copy, UPLOAD);
    free(copy);
    free(large);
    free(shifted);
    return good;
}

static int (*const steps[])(const shared *, upseal_work *) = {
    seal_envelopes, open_envelopes, one_envelope, bad_envelopes, seal_batch,
    open_batch,     seal_chunks,    open_chunks,  own_keys,      odds_and_ends,
    arena_keys,     own_arena,
};
enum { STEPS = sizeof steps / sizeof steps[0] };

/* ---- threads -------------------------------------------------------------------------- */

/* Work spaces that nobody uses just now, as the Python engine keeps them. */
typedef struct {
    pthread_mutex_t lock;
    upseal_work *idle[THREADS];
    size_t count;
} pool;

typedef struct {
    const shared *s;
    pool *idle;
    size_t number;
    int good;
} job;

static upseal_work *take(pool *idle, size_t backend)
{
    upseal_work *work = NULL;
    pthread_mutex_lock(&idle->lock);
    if (idle->count) work = idle->idle[--idle->count];
    pthread_mutex_unlock(&idle->lock);
    return work ? work : upseal_work_new(backend);
}

static void give_back(pool *idle, upseal_work *work)
{
    pthread_mutex_lock(&idle->lock);
    idle->idle[idle->count++] = work;
    pthread_mutex_unlock(&idle->lock);
}

/* Each thread begins at another step, so that different calls meet. */
static void *run(void *opaque)
{
    job *j = opaque;
    int good = 1;
    for (size_t turn = 0; turn < TURNS; turn++) {
        const int own = turn % 5 == 0; /* these come and go while other threads seal */
        upseal_work *work = own ? upseal_work_new(j->s->backend) : take(j->idle, j->s->backend);
        if (!work) return NULL;
        good = good && steps[(turn + j->number * 5) % STEPS](j->s, work);
        if (own)
            upseal_work_free(work);
        else
            give_back(j->idle, work);
    }
    j->good = good;
    return NULL;
}

static shared make(engine *e, uint8_t cipher, int padded)
{
    static const size_t sizes[] = {37, 0, 700};
    uint8_t aad[AAD], *material = bytes(96, 7);
    shared s = {.backend = e->index, .cipher = cipher, .padded = padded};
    s.records = new_key(cipher, 32);
    s.chunks = new_key(cipher, 44);
    s.arena = upseal_arena_new();
    CHECK(s.arena != NULL);
    s.session = upseal_session_key(s.arena, cipher, material);
    CHECK(s.session != NULL);
    upseal_key_free(upseal_upload_key(s.arena, s.session, context, AAD, s.commitment));
    free(material);
    s.front = (upseal_front){s.records, prefix, PREFIX, padded};
    s.in = pack(sizes, sizeof sizes / sizeof sizes[0]);
    s.sealed_len = sealed_len(&s.in, padded);
    s.envelopes = dirty(envelopes_len(&s));
    s.envelope_ends = exactly(offsets_len(&s));
    s.batch = dirty(s.sealed_len);
    s.batch_ends = exactly(offsets_len(&s));
    s.table = dirty(4 * s.in.count);
    s.upload = bytes(UPLOAD, 4);
    s.sealed_upload = dirty(SEALED_UPLOAD);
    memcpy(aad, context, AAD);
    CHECK(upseal_seal_envelopes(e->work, s.records, test_nonce, 0, prefix, PREFIX, context, AAD,
                                s.in.values, s.in.values_len, s.in.offsets, s.in.count, padded,
                                s.envelopes, envelopes_len(&s), s.envelope_ends) == UPSEAL_OK);
    CHECK(upseal_seal_batch(e->work, s.records, test_nonce, 0, aad, AAD, s.in.values,
                            s.in.values_len, s.in.offsets, s.in.count, padded, s.table, s.batch,
                            s.sealed_len) == UPSEAL_OK);
    CHECK(upseal_batch_offsets(s.table, s.in.count, padded, s.batch_ends) == UPSEAL_OK);
    CHECK(upseal_seal_chunks(e->work, s.chunks, 7, 1, s.upload, UPLOAD, s.sealed_upload,
                             SEALED_UPLOAD) == UPSEAL_OK);
    return s;
}

static void discard(shared *s)
{
    upseal_key_free(s->records);
    upseal_key_free(s->chunks);
    upseal_key_free(s->session);
    upseal_arena_free(s->arena);
    unpack(&s->in);
    free(s->envelopes);
    free(s->envelope_ends);
    free(s->batch);
    free(s->batch_ends);
    free(s->table);
    free(s->upload);
    free(s->sealed_upload);
}

void test_threads(void)
{
    ENGINES(e) CIPHERS(cipher) for (int padded = 0; padded <= 1; padded++) {
        shared s = make(e, cipher, padded);
        pool idle = {.lock = PTHREAD_MUTEX_INITIALIZER};
        pthread_t threads[THREADS];
        job jobs[THREADS];
        for (size_t i = 0; i < THREADS; i++) {
            jobs[i] = (job){&s, &idle, i, 0};
            CHECK(pthread_create(&threads[i], NULL, run, &jobs[i]) == 0);
        }
        for (size_t i = 0; i < THREADS; i++) {
            CHECK(pthread_join(threads[i], NULL) == 0);
            CHECK(jobs[i].good);
        }
        while (idle.count) upseal_work_free(idle.idle[--idle.count]);
        discard(&s);
    }
}
