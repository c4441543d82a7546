/* SPDX-License-Identifier: Apache-2.0
 *
 * Static probes (USDT) for perf, bpftrace and SystemTap, where the build finds <sys/sdt.h>: one nop
 * each until somebody attaches, and a note in the file that says where it is.  docs/performance.md
 * lists them.
 *
 * A probe carries numbers that the wire shows as well: how many records, how many sealed bytes,
 * and a status.  Never a pointer to data or keys, and never the length of a record before padding.
 */
#ifndef UPSEAL_PROBES_H
#define UPSEAL_PROBES_H

#if defined(__linux__) && defined(__has_include) && !defined(UPSEAL_NO_PROBES)
#if __has_include(<sys/sdt.h>)
#include <sys/sdt.h>
#define UPSEAL_PROBE1(name, a) STAP_PROBE1(upseal, name, a)
#define UPSEAL_PROBE2(name, a, b) STAP_PROBE2(upseal, name, a, b)
#endif
#endif

#ifndef UPSEAL_PROBE1
#define UPSEAL_PROBE1(name, a) ((void)(a))
#define UPSEAL_PROBE2(name, a, b) ((void)(a), (void)(b))
#endif

#endif
