/* SPDX-License-Identifier: Apache-2.0
 *
 * What libFuzzer calls.  TARGET, and MUTATOR if it has one of its own, come from the build.
 */
#include "harness.h"

int LLVMFuzzerInitialize(int *argc, char ***argv);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len);

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    (void)argc;
    (void)argv;
    find_engines();
    return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
    TARGET(data, len);
    release_all();
    return 0;
}

#ifdef MUTATOR
size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t len, size_t max_len, unsigned seed);

size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t len, size_t max_len, unsigned seed)
{
    return MUTATOR(data, len, max_len, seed);
}
#endif
