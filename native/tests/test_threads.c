/* SPDX-License-Identifier: Apache-2.0
 *
 * One key, many threads, a work space for each: what a process with worker threads does.
 */
#include "helpers.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

enum { THREADS = 4, TURNS = 60, LEN = 1000, SEALED = 24 + LEN + UPSEAL_TAG_LEN };

typedef struct {
    size_t backend;
    const upseal_key *records, *chunks;
    const uint8_t *in, *envelope, *sealed_chunk;
    int good;
} job;

/* Work spaces come and go while other threads seal. */
static void *run(void *opaque)
{
    job *j = opaque;
    for (int turn = 0; turn < TURNS; turn++) {
        uint8_t out[SEALED], opened[LEN];
        size_t opened_len;
        upseal_work *work = upseal_work_new(j->backend);
        if (!work) return NULL;
        if (upseal_seal_envelope(work, j->records, test_nonce, NULL, 0, NULL, 0, j->in, LEN, 0, out,
                                 SEALED) != UPSEAL_OK ||
            memcmp(out, j->envelope, SEALED) != 0)
            break;
        if (upseal_open_envelope(work, j->records, 0, NULL, 0, out, SEALED, 0, opened, LEN) != LEN ||
            memcmp(opened, j->in, LEN) != 0)
            break;
        if (upseal_seal_chunks(work, j->chunks, 1, 1, j->in, LEN, out, LEN + UPSEAL_TAG_LEN) !=
                UPSEAL_OK ||
            memcmp(out, j->sealed_chunk, LEN + UPSEAL_TAG_LEN) != 0)
            break;
        if (upseal_open_chunks(work, j->chunks, 1, 1, out, LEN + UPSEAL_TAG_LEN, opened, LEN,
                               &opened_len) != UPSEAL_OK ||
            opened_len != LEN)
            break;
        if (turn % 8 == 0 && upseal_backend_test(j->backend) != UPSEAL_OK) break;
        upseal_work_free(work);
        if (turn == TURNS - 1) j->good = 1;
    }
    return NULL;
}

void test_threads(void)
{
    uint8_t *in = bytes(LEN, 4);
    ENGINES(e) CIPHERS(cipher) {
        uint8_t envelope[SEALED], sealed_chunk[LEN + UPSEAL_TAG_LEN];
        upseal_key *records = new_key(cipher, 32), *chunks = new_key(cipher, 44);
        pthread_t threads[THREADS];
        job jobs[THREADS];
        CHECK(upseal_seal_envelope(e->work, records, test_nonce, NULL, 0, NULL, 0, in, LEN, 0,
                                   envelope, SEALED) == UPSEAL_OK);
        CHECK(upseal_seal_chunks(e->work, chunks, 1, 1, in, LEN, sealed_chunk,
                                 sizeof sealed_chunk) == UPSEAL_OK);
        for (size_t i = 0; i < THREADS; i++) {
            jobs[i] = (job){e->index, records, chunks, in, envelope, sealed_chunk, 0};
            CHECK(pthread_create(&threads[i], NULL, run, &jobs[i]) == 0);
        }
        for (size_t i = 0; i < THREADS; i++) {
            CHECK(pthread_join(threads[i], NULL) == 0);
            CHECK(jobs[i].good);
        }
        upseal_key_free(records);
        upseal_key_free(chunks);
    }
    free(in);
}
