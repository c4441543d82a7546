/* SPDX-License-Identifier: Apache-2.0
 *
 * Makes one call of the C library fail, or all from one on: for LD_PRELOAD, driven by
 * faults_shim.py. Until it is armed, every call passes through.
 *
 * What counts: calls about files below the watched folder (by the path, or by what the descriptor
 * is open on), calls for random bytes, and allocations made with the native core on the stack.
 * Nothing is synced while it is armed: what a sync did is seen when the power is cut, and here it
 * is not.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <execinfo.h>
#include <fcntl.h>
#include <limits.h>
#include <link.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

/* The order is that of faults_shim.KINDS. */
enum kind { OPEN, MAKE, READ, WRITE, SYNC, NAME, GONE, SIZE, MAP, RANDOM, ALLOC, KINDS };

#define SHORT (-1) /* in the place of an error: half of what was asked for */
#define KILL (-2)  /* the process ends here */
#define KILLED 99  /* with this status */
#define DEPTH 48

static char folder[PATH_MAX];
static size_t folder_len;
static atomic_int armed;
static atomic_int broken; /* from one call on */
static int chosen = -1, fault, onward;
static unsigned wide;
static long number;
static atomic_long calls[KINDS];
static atomic_long hits;
typedef struct {
    const char *name;
    uintptr_t from, to;
} code;
static code core = {"/engine/_native", 0, 0}, loader = {"/ld-", 0, 0};
static _Thread_local int inside;

/* -- for the driver ------------------------------------------------------------------------- */

void faults_watch(const char *path)
{
    snprintf(folder, sizeof folder, "%s", path);
    folder_len = strlen(folder);
}

static int find(struct dl_phdr_info *info, size_t size, void *wanted)
{
    code *found = wanted;
    (void)size;
    if (!info->dlpi_name || !strstr(info->dlpi_name, found->name)) return 0;
    for (int i = 0; i < info->dlpi_phnum; i++) {
        const ElfW(Phdr) *part = &info->dlpi_phdr[i];
        if (part->p_type != PT_LOAD || !(part->p_flags & PF_X)) continue;
        found->from = info->dlpi_addr + part->p_vaddr;
        found->to = found->from + part->p_memsz;
    }
    return 1;
}

static int within(const code *what, const void *address)
{
    return (uintptr_t)address >= what->from && (uintptr_t)address < what->to;
}

/* Whether there is a native core, whose allocations can be told. */
int faults_find_core(void)
{
    void *frames[2];
    backtrace(frames, 2); /* loads what it needs now, and not inside of malloc */
    dl_iterate_phdr(find, &core);
    dl_iterate_phdr(find, &loader);
    return core.to != 0;
}

/* Counts; if kind is not -1, its call of that number fails with this errno (or SHORT, KILL). With
 * from_there_on, so do all later ones of the kinds in the mask. */
void faults_arm(int kind, long which, int error, int from_there_on, unsigned mask)
{
    for (int i = 0; i < KINDS; i++) atomic_store(&calls[i], 0);
    atomic_store(&hits, 0);
    atomic_store(&broken, 0);
    chosen = kind, number = which, fault = error, onward = from_there_on, wide = mask;
    atomic_store(&armed, 1);
}

void faults_disarm(void) { atomic_store(&armed, 0); }

/* For what the driver does itself in between. */
void faults_pause(int quiet)
{
    static _Atomic int was;
    if (quiet) atomic_store(&was, atomic_exchange(&armed, 0));
    else atomic_store(&armed, atomic_load(&was));
}

long faults_calls(int kind) { return atomic_load(&calls[kind]); }

long faults_hits(void) { return atomic_load(&hits); }

/* -- what is to fail ------------------------------------------------------------------------ */

/* 0, or what is to happen in the place of this call. */
static int verdict(enum kind kind)
{
    long now = atomic_fetch_add(&calls[kind], 1) + 1;
    if (atomic_load(&broken)) return wide >> kind & 1 ? fault : 0;
    if ((int)kind != chosen || now != number) return 0;
    if (fault == KILL) _exit(KILLED);
    if (onward) atomic_store(&broken, 1);
    return fault;
}

static int failed(int error)
{
    atomic_fetch_add(&hits, 1);
    errno = error;
    return -1;
}

static int below(const char *path)
{
    return folder_len && !strncmp(path, folder, folder_len) &&
           (path[folder_len] == '/' || !path[folder_len]);
}

static int watched_at(int directory, const char *path)
{
    char of[64], whole[PATH_MAX];
    if (!atomic_load(&armed) || !path) return 0;
    if (path[0] == '/') return below(path);
    if (directory == AT_FDCWD) return 0; /* the scenarios name whole paths */
    snprintf(of, sizeof of, "/proc/self/fd/%d", directory);
    ssize_t n = readlink(of, whole, sizeof whole - 1);
    return n > 0 && (whole[n] = 0, below(whole));
}

static int watched(const char *path) { return watched_at(AT_FDCWD, path); }

static int watched_fd(int file)
{
    char of[64], whole[PATH_MAX];
    if (!atomic_load(&armed) || file < 0) return 0;
    int kept = errno;
    snprintf(of, sizeof of, "/proc/self/fd/%d", file);
    ssize_t n = readlink(of, whole, sizeof whole - 1);
    errno = kept;
    return n > 0 && (whole[n] = 0, below(whole));
}

/* The next library's function of this name. */
#define REAL(type, name, ...)                                          \
    static type (*real)(__VA_ARGS__);                                  \
    if (!real) *(void **)&real = dlsym(RTLD_NEXT, name)

/* -- opening --------------------------------------------------------------------------------- */

static enum kind opening(int directory, const char *path, int flags)
{
    return flags & O_CREAT && faccessat(directory, path, F_OK, 0) ? MAKE : OPEN;
}

#define OPENING(name)                                                                      \
    int name(const char *path, int flags, ...)                                             \
    {                                                                                      \
        REAL(int, #name, const char *, int, ...);                                          \
        va_list more;                                                                      \
        va_start(more, flags);                                                             \
        mode_t mode = flags & O_CREAT || (flags & O_TMPFILE) == O_TMPFILE                  \
                          ? va_arg(more, mode_t) : 0;                                      \
        va_end(more);                                                                      \
        if (watched(path)) {                                                               \
            int error = verdict(opening(AT_FDCWD, path, flags));                           \
            if (error > 0) return failed(error);                                           \
        }                                                                                  \
        return real(path, flags, mode);                                                    \
    }
OPENING(open)
OPENING(open64)

#define OPENING_AT(name)                                                                   \
    int name(int directory, const char *path, int flags, ...)                              \
    {                                                                                      \
        REAL(int, #name, int, const char *, int, ...);                                     \
        va_list more;                                                                      \
        va_start(more, flags);                                                             \
        mode_t mode = flags & O_CREAT || (flags & O_TMPFILE) == O_TMPFILE                  \
                          ? va_arg(more, mode_t) : 0;                                      \
        va_end(more);                                                                      \
        if (watched_at(directory, path)) {                                                 \
            int error = verdict(opening(directory, path, flags));                          \
            if (error > 0) return failed(error);                                           \
        }                                                                                  \
        return real(directory, path, flags, mode);                                         \
    }
OPENING_AT(openat)
OPENING_AT(openat64)

#define CREATING(name)                                                                     \
    int name(const char *path, mode_t mode)                                                \
    {                                                                                      \
        REAL(int, #name, const char *, mode_t);                                            \
        if (watched(path)) {                                                               \
            int error = verdict(opening(AT_FDCWD, path, O_CREAT));                         \
            if (error > 0) return failed(error);                                           \
        }                                                                                  \
        return real(path, mode);                                                           \
    }
CREATING(creat)
CREATING(creat64)

int mkdir(const char *path, mode_t mode)
{
    REAL(int, "mkdir", const char *, mode_t);
    if (watched(path)) {
        int error = verdict(MAKE);
        if (error > 0) return failed(error);
    }
    return real(path, mode);
}

int mkdirat(int directory, const char *path, mode_t mode)
{
    REAL(int, "mkdirat", int, const char *, mode_t);
    if (watched_at(directory, path)) {
        int error = verdict(MAKE);
        if (error > 0) return failed(error);
    }
    return real(directory, path, mode);
}

int link(const char *from, const char *to)
{
    REAL(int, "link", const char *, const char *);
    if (watched(to)) {
        int error = verdict(MAKE);
        if (error > 0) return failed(error);
    }
    return real(from, to);
}

int linkat(int from_directory, const char *from, int directory, const char *to, int flags)
{
    REAL(int, "linkat", int, const char *, int, const char *, int);
    if (watched_at(directory, to)) {
        int error = verdict(MAKE);
        if (error > 0) return failed(error);
    }
    return real(from_directory, from, directory, to, flags);
}

/* -- reading and writing --------------------------------------------------------------------- */

/* What a call of so many bytes may move: all, half, or nothing (-1, with errno set). */
static ssize_t allowed(enum kind kind, int file, size_t size)
{
    if (!watched_fd(file)) return (ssize_t)size;
    int error = verdict(kind);
    if (error > 0) return failed(error);
    if (error == SHORT && size > 1) {
        atomic_fetch_add(&hits, 1);
        return (ssize_t)(size / 2);
    }
    return (ssize_t)size;
}

ssize_t read(int file, void *data, size_t size)
{
    REAL(ssize_t, "read", int, void *, size_t);
    ssize_t now = allowed(READ, file, size);
    return now < 0 ? now : real(file, data, (size_t)now);
}

ssize_t write(int file, const void *data, size_t size)
{
    REAL(ssize_t, "write", int, const void *, size_t);
    ssize_t now = allowed(WRITE, file, size);
    return now < 0 ? now : real(file, data, (size_t)now);
}

#define AT_OFFSET(name, kind, quality, offset_type)                                        \
    ssize_t name(int file, quality void *data, size_t size, offset_type offset)            \
    {                                                                                      \
        REAL(ssize_t, #name, int, quality void *, size_t, offset_type);                    \
        ssize_t now = allowed(kind, file, size);                                           \
        return now < 0 ? now : real(file, data, (size_t)now, offset);                      \
    }
#define NOTHING
AT_OFFSET(pread, READ, NOTHING, off_t)
AT_OFFSET(pread64, READ, NOTHING, off64_t)
AT_OFFSET(pwrite, WRITE, const, off_t)
AT_OFFSET(pwrite64, WRITE, const, off64_t)

/* Of several buffers, a short call moves half of the first that has anything. */
static int shortened(enum kind kind, int file, const struct iovec *parts, int count,
                     struct iovec *one)
{
    size_t total = 0;
    int first = -1;
    for (int i = 0; i < count; i++) {
        total += parts[i].iov_len;
        if (first < 0 && parts[i].iov_len) first = i;
    }
    ssize_t now = allowed(kind, file, total);
    if (now < 0) return -1;
    if ((size_t)now == total || first < 0) return 0;
    *one = parts[first];
    if (one->iov_len > 1) one->iov_len /= 2;
    return 1;
}

#define VECTOR(name, kind)                                                                 \
    ssize_t name(int file, const struct iovec *parts, int count)                           \
    {                                                                                      \
        REAL(ssize_t, #name, int, const struct iovec *, int);                              \
        struct iovec one;                                                                  \
        int less = shortened(kind, file, parts, count, &one);                              \
        return less < 0 ? -1 : less ? real(file, &one, 1) : real(file, parts, count);      \
    }
VECTOR(readv, READ)
VECTOR(writev, WRITE)

#define VECTOR_AT(name, kind, offset_type)                                                 \
    ssize_t name(int file, const struct iovec *parts, int count, offset_type offset)       \
    {                                                                                      \
        REAL(ssize_t, #name, int, const struct iovec *, int, offset_type);                 \
        struct iovec one;                                                                  \
        int less = shortened(kind, file, parts, count, &one);                              \
        return less < 0 ? -1                                                               \
               : less ? real(file, &one, 1, offset) : real(file, parts, count, offset);    \
    }
VECTOR_AT(preadv, READ, off_t)
VECTOR_AT(preadv64, READ, off64_t)
VECTOR_AT(pwritev, WRITE, off_t)
VECTOR_AT(pwritev64, WRITE, off64_t)

#define VECTOR_AT2(name, kind, offset_type)                                                \
    ssize_t name(int file, const struct iovec *parts, int count, offset_type offset, int how) \
    {                                                                                      \
        REAL(ssize_t, #name, int, const struct iovec *, int, offset_type, int);            \
        struct iovec one;                                                                  \
        int less = shortened(kind, file, parts, count, &one);                              \
        return less < 0 ? -1                                                               \
               : less ? real(file, &one, 1, offset, how)                                   \
                      : real(file, parts, count, offset, how);                             \
    }
VECTOR_AT2(preadv2, READ, off_t)
VECTOR_AT2(preadv64v2, READ, off64_t)
VECTOR_AT2(pwritev2, WRITE, off_t)
VECTOR_AT2(pwritev64v2, WRITE, off64_t)

/* -- the rest about files -------------------------------------------------------------------- */

#define SYNCING(name)                                                                      \
    int name(int file)                                                                     \
    {                                                                                      \
        REAL(int, #name, int);                                                             \
        if (!watched_fd(file)) return real(file);                                          \
        int error = verdict(SYNC);                                                         \
        return error > 0 ? failed(error) : 0;                                              \
    }
SYNCING(fsync)
SYNCING(fdatasync)

int sync_file_range(int file, off64_t offset, off64_t count, unsigned flags)
{
    REAL(int, "sync_file_range", int, off64_t, off64_t, unsigned);
    if (!watched_fd(file)) return real(file, offset, count, flags);
    int error = verdict(SYNC);
    return error > 0 ? failed(error) : 0;
}

int rename(const char *from, const char *to)
{
    REAL(int, "rename", const char *, const char *);
    if (watched(to)) {
        int error = verdict(NAME);
        if (error > 0) return failed(error);
    }
    return real(from, to);
}

int renameat(int from_directory, const char *from, int directory, const char *to)
{
    REAL(int, "renameat", int, const char *, int, const char *);
    if (watched_at(directory, to)) {
        int error = verdict(NAME);
        if (error > 0) return failed(error);
    }
    return real(from_directory, from, directory, to);
}

#define GOING(name)                                                                        \
    int name(const char *path)                                                             \
    {                                                                                      \
        REAL(int, #name, const char *);                                                    \
        if (watched(path)) {                                                               \
            int error = verdict(GONE);                                                     \
            if (error > 0) return failed(error);                                           \
        }                                                                                  \
        return real(path);                                                                 \
    }
GOING(unlink)
GOING(rmdir)

int unlinkat(int directory, const char *path, int flags)
{
    REAL(int, "unlinkat", int, const char *, int);
    if (watched_at(directory, path)) {
        int error = verdict(GONE);
        if (error > 0) return failed(error);
    }
    return real(directory, path, flags);
}

#define RESIZING(name, offset_type)                                                        \
    int name(int file, offset_type size)                                                   \
    {                                                                                      \
        REAL(int, #name, int, offset_type);                                                \
        if (watched_fd(file)) {                                                            \
            int error = verdict(SIZE);                                                     \
            if (error > 0) return failed(error);                                           \
        }                                                                                  \
        return real(file, size);                                                           \
    }
RESIZING(ftruncate, off_t)
RESIZING(ftruncate64, off64_t)

#define RESERVING(name, offset_type)                                                       \
    int name(int file, offset_type offset, offset_type size)                               \
    {                                                                                      \
        REAL(int, #name, int, offset_type, offset_type);                                   \
        if (watched_fd(file)) {                                                            \
            int error = verdict(SIZE);                                                     \
            if (error > 0) return failed(error), error; /* it sets no errno */             \
        }                                                                                  \
        return real(file, offset, size);                                                   \
    }
RESERVING(posix_fallocate, off_t)
RESERVING(posix_fallocate64, off64_t)

int fallocate(int file, int mode, off_t offset, off_t size)
{
    REAL(int, "fallocate", int, int, off_t, off_t);
    if (watched_fd(file)) {
        int error = verdict(SIZE);
        if (error > 0) return failed(error);
    }
    return real(file, mode, offset, size);
}

static int no_memory(void); /* what the native core maps for itself is an allocation as well */

#define MAPPING(name, offset_type)                                                         \
    void *name(void *at, size_t size, int how, int flags, int file, offset_type offset)    \
    {                                                                                      \
        REAL(void *, #name, void *, size_t, int, int, int, offset_type);                   \
        if (!(flags & MAP_ANONYMOUS) && watched_fd(file)) {                                \
            int error = verdict(MAP);                                                      \
            if (error > 0) return failed(error), MAP_FAILED;                               \
        }                                                                                  \
        if (flags & MAP_ANONYMOUS && no_memory()) return MAP_FAILED;                       \
        return real(at, size, how, flags, file, offset);                                   \
    }
MAPPING(mmap, off_t)
MAPPING(mmap64, off64_t)

/* -- random bytes ---------------------------------------------------------------------------- */

static ssize_t random_bytes(void *data, size_t size, unsigned flags)
{
    if (atomic_load(&armed)) {
        int error = verdict(RANDOM);
        if (error > 0) return failed(error);
        if (error == SHORT && size > 1) {
            atomic_fetch_add(&hits, 1);
            size /= 2;
        }
    }
    REAL(long, "syscall", long, ...);
    return real(SYS_getrandom, data, size, flags);
}

ssize_t getrandom(void *data, size_t size, unsigned flags)
{
    return random_bytes(data, size, flags);
}

int getentropy(void *data, size_t size)
{
    uint8_t *at = data;
    if (size > 256) return failed(EIO);
    while (size) {
        ssize_t got = random_bytes(at, size, 0);
        if (got < 0 && errno == EINTR) continue;
        if (got < 0) return -1;
        at += got, size -= (size_t)got;
    }
    return 0;
}

long syscall(long which, ...)
{
    REAL(long, "syscall", long, ...);
    long given[6];
    va_list more;
    va_start(more, which);
    for (int i = 0; i < 6; i++) given[i] = va_arg(more, long);
    va_end(more);
    if (which == SYS_getrandom)
        return random_bytes((void *)given[0], (size_t)given[1], (unsigned)given[2]);
    return real(which, given[0], given[1], given[2], given[3], given[4], given[5]);
}

/* -- memory ---------------------------------------------------------------------------------- */

extern void *__libc_malloc(size_t), *__libc_calloc(size_t, size_t), *__libc_realloc(void *, size_t),
    *__libc_memalign(size_t, size_t);

/* Whether this allocation is one of the native core's, and to fail. What the loader asks for by
 * itself (thread-local data, when they are first used) is not: without it, it ends the process. */
static int no_memory(void)
{
    if (!atomic_load(&armed) || chosen != ALLOC || !core.to || inside) return 0;
    void *frames[DEPTH];
    inside = 1;
    int count = backtrace(frames, DEPTH), found = 0;
    inside = 0;
    for (int i = 0; i < count && !found; i++) {
        if (within(&loader, frames[i])) return 0;
        found = within(&core, frames[i]);
    }
    return found && verdict(ALLOC) > 0 && failed(ENOMEM);
}

void *malloc(size_t size) { return no_memory() ? NULL : __libc_malloc(size); }

void *calloc(size_t count, size_t size)
{
    return no_memory() ? NULL : __libc_calloc(count, size);
}

void *realloc(void *old, size_t size) { return no_memory() ? NULL : __libc_realloc(old, size); }

void *memalign(size_t align, size_t size)
{
    return no_memory() ? NULL : __libc_memalign(align, size);
}

void *aligned_alloc(size_t align, size_t size) { return memalign(align, size); }

int posix_memalign(void **out, size_t align, size_t size)
{
    void *made = memalign(align, size);
    if (!made) return ENOMEM;
    *out = made;
    return 0;
}
