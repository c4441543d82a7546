/* SPDX-License-Identifier: Apache-2.0
 *
 * A second opinion by the clock, as dudect has it (Reparaz, Balasch and Verbauwhede, DATE 2017):
 * two classes of inputs, by turns at random; what the slowest take is left out at several
 * thresholds (interrupts are slow); and Welch's t says whether the two classes differ.  |t| over 10
 * is a leak, below 4.5 there is none to see.  A neighbour on the machine can blur it, so nothing is
 * decided by what it says of the core: only that it sees the leaky functions leak.
 *
 * timing [MEASUREMENTS]    of each function; prints one line for each
 */
#define _POSIX_C_SOURCE 200809L
#include "../records.c" /* NOLINT(bugprone-suspicious-include): for unpad, which is its own */

#include "leaky.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#if defined(__x86_64__)
#include <x86intrin.h>
#endif

enum { LEN = 4096, STEP = 256, TAG = UPSEAL_TAG_LEN, CROPS = 20, TURNS = 16, AHEAD = 32 };

/* One measurement: `secret` is what the classes differ in. */
typedef struct {
    const char *name;
    void (*prepare)(uint8_t *secret, int class);
    size_t len;
    void (*run)(const uint8_t *secret);
} subject;

static volatile uint64_t sink; /* keeps the optimiser from dropping what is measured */
static uint8_t expected[TAG];
static const upseal_aead *aead;
static void *state;
static uint64_t seed = 0x9e3779b97f4a7c15u;

static uint64_t draw(void)
{
    seed ^= seed << 13;
    seed ^= seed >> 7;
    seed ^= seed << 17;
    return seed;
}

static uint64_t now(void)
{
#if defined(__x86_64__)
    _mm_lfence();
    uint64_t ticks = __rdtsc();
    _mm_lfence();
    return ticks;
#else
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
#endif
}

/* The marker right at the end, or somewhere in the last step. */
static void prepare_padded(uint8_t *secret, int class)
{
    memset(secret, 0, LEN);
    secret[LEN - 1 - (class ? draw() % STEP : 0)] = 0x80;
}

/* Wrong in the tag's first byte, or in its last. */
static void prepare_tag(uint8_t *secret, int class)
{
    memcpy(secret, expected, TAG);
    secret[class ? TAG - 1 : 0] ^= 0x55;
}

/* A key of its own each time, or always the same. */
static void prepare_key(uint8_t *secret, int class)
{
    for (size_t i = 0; i < UPSEAL_KEY_LEN; i++) secret[i] = class ? (uint8_t)(draw() >> 9) : 0x5a;
}

static void run_unpad(const uint8_t *secret)
{
    uint32_t bad;
    sink += unpad(secret, LEN, &bad) + bad;
}
static void run_leaky_unpad(const uint8_t *secret) { sink += leaky_unpad(secret, LEN); }

static void run_equal(const uint8_t *secret)
{
    for (int i = 0; i < TURNS; i++) sink += (uint64_t)upseal_equal(secret, expected, TAG);
}
static void run_leaky_equal(const uint8_t *secret)
{
    for (int i = 0; i < TURNS; i++) {
        __asm__ __volatile__("" : : : "memory"); /* each time anew */
        sink += (uint64_t)leaky_equal(secret, expected, TAG);
    }
}

static void run_subkey(const uint8_t *secret)
{
    static const uint8_t nonce[24] = "ABCDEFGHIJKLMNOPQRSTUVWX";
    uint8_t out[32];
    if (aead->subkey(state, secret, nonce, out) != UPSEAL_OK) abort();
    sink += out[0];
}

static int ascending(const void *a, const void *b)
{
    const uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return (x > y) - (x < y);
}

/* Welch's t of the measurements up to `most` ticks. */
static double welch(const uint64_t *ticks, const uint8_t *classes, size_t count, uint64_t most)
{
    double n[2] = {0}, mean[2] = {0}, squares[2] = {0};
    for (size_t i = 0; i < count; i++) {
        if (ticks[i] > most) continue;
        const int c = classes[i];
        const double difference = (double)ticks[i] - mean[c];
        n[c] += 1;
        mean[c] += difference / n[c];
        squares[c] += difference * ((double)ticks[i] - mean[c]);
    }
    if (n[0] < 1000 || n[1] < 1000) return 0;
    const double noise = squares[0] / (n[0] * (n[0] - 1)) + squares[1] / (n[1] * (n[1] - 1));
    return noise > 0 ? (mean[0] - mean[1]) / sqrt(noise) : 0;
}

static void measure(const subject *s, size_t count)
{
    uint64_t *ticks = malloc(count * sizeof *ticks), *sorted = malloc(count * sizeof *sorted);
    uint8_t *classes = malloc(count), *secrets = malloc(AHEAD * LEN);
    double worst = 0;
    if (!ticks || !sorted || !classes || !secrets) abort();
    for (size_t i = 0; i < count; i++) {
        /* Some at a time, so that what it takes to make them is over when they are measured. */
        for (size_t j = i; i % AHEAD == 0 && j < count && j < i + AHEAD; j++) {
            classes[j] = (uint8_t)(draw() >> 20 & 1);
            s->prepare(secrets + j % AHEAD * LEN, classes[j]);
        }
        const uint8_t *secret = secrets + i % AHEAD * LEN;
        for (size_t at = 0; at < s->len; at += 64) sink += secret[at]; /* as warm for both */
        const uint64_t start = now();
        s->run(secret);
        ticks[i] = now() - start;
    }
    memcpy(sorted, ticks, count * sizeof *ticks);
    qsort(sorted, count, sizeof *sorted, ascending);
    for (size_t crop = 0; crop <= CROPS; crop++) {
        /* dudect's thresholds: dense where most measurements are. */
        const double share = crop ? 1 - pow(0.5, 10.0 * (double)crop / CROPS) : 1;
        const uint64_t most = sorted[(size_t)((double)(count - 1) * share)];
        const double t = fabs(welch(ticks, classes, count, most));
        if (t > worst) worst = t;
    }
    printf("%-28s |t| %9.2f  of %zu, median %llu ticks\n", s->name, worst, count,
           (unsigned long long)sorted[count / 2]);
    free(ticks);
    free(sorted);
    free(classes);
    free(secrets);
}

int main(int argc, char **argv)
{
    static const subject subjects[] = {
        {"unpad", prepare_padded, LEN, run_unpad},
        {"tag comparison", prepare_tag, TAG, run_equal},
        {"leaky unpad", prepare_padded, LEN, run_leaky_unpad},
        {"leaky tag comparison", prepare_tag, TAG, run_leaky_equal},
    };
    const size_t count = argc > 1 ? (size_t)strtoul(argv[1], NULL, 10) : 200000;
    for (size_t i = 0; i < TAG; i++) expected[i] = (uint8_t)draw();
    for (size_t i = 0; i < sizeof subjects / sizeof *subjects; i++) measure(&subjects[i], count);
    for (size_t i = 0; upseal_backend_name(i); i++) {
        if (!upseal_backend_at(i)->usable()) continue;
        upseal_work *work = upseal_work_new(i);
        if (!work) abort();
        for (int c = 0; c < 2; c++) {
            char name[64];
            const subject s = {name, prepare_key, UPSEAL_KEY_LEN, run_subkey};
            aead = work->aead[c];
            state = work->state[c];
            (void)snprintf(name, sizeof name, "%s subkey, %s", c ? "XChaCha20" : "XAES-256",
                     upseal_backend_name(i));
            measure(&s, count);
        }
        upseal_work_free(work);
    }
    return 0;
}
