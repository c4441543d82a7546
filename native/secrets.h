/* SPDX-License-Identifier: Apache-2.0
 *
 * What is secret and what is not, for tools that follow secrets through the code: to valgrind's
 * memcheck and clang's MemorySanitizer a secret is memory that nobody has written to, and they
 * complain of each branch and each address that depends on it.  Only in native/ct, which is built
 * with -DUPSEAL_FOLLOW_SECRETS; elsewhere all of this is nothing.
 *
 * UPSEAL_PUBLIC in the core says: from here on this is no secret.  Each place says why.
 */
#ifndef UPSEAL_SECRETS_H
#define UPSEAL_SECRETS_H

#if !defined(UPSEAL_FOLLOW_SECRETS)
#define UPSEAL_SECRET(at, len) ((void)0)
#define UPSEAL_PUBLIC(at, len) ((void)0)
#define UPSEAL_SECRETS_FOLLOWED 0
#else

#if defined(__has_feature)
#if __has_feature(memory_sanitizer)
#include <sanitizer/msan_interface.h>
#define UPSEAL_SECRET(at, len) __msan_allocated_memory((at), (len))
#define UPSEAL_PUBLIC(at, len) __msan_unpoison((at), (len))
#define UPSEAL_SECRETS_FOLLOWED 1
#endif
#endif

#ifndef UPSEAL_SECRET
#include <valgrind/memcheck.h>
#define UPSEAL_SECRET(at, len) ((void)VALGRIND_MAKE_MEM_UNDEFINED((at), (len)))
#define UPSEAL_PUBLIC(at, len) ((void)VALGRIND_MAKE_MEM_DEFINED((at), (len)))
/* Not RUNNING_ON_VALGRIND: its other tools follow nothing. */
#define UPSEAL_SECRETS_FOLLOWED (VALGRIND_MAKE_MEM_DEFINED(0, 0) != 0)
#endif

#endif
#endif
