/* A library to preload, for tests: it counts the calls of libc that name or change a file below a folder, and at the
 * N-th fails, shortens, delays, or kills the process. It does nothing until `calls_arm` is called; see failing_calls.py.
 *
 * Calls are counted apart for the main thread and for all others, and apart for what reads and what writes: so the N-th
 * is the same call from run to run although the mirror's thread works beside the training.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

/* The kinds of calls, a bit each; failing_calls.py has the same list. */
enum { CREATE = 1, WRITE = 2, FSYNC = 4, RENAME = 8, LINK = 16, UNLINK = 32, MKDIR = 64, TRUNCATE = 128,
       OPEN = 256, READ = 512, LIST = 1024 };
#define READING (OPEN | READ | LIST)
#define TAKES_ROOM (CREATE | WRITE | FSYNC | RENAME | LINK | MKDIR)

/* What a path is, a bit each; the first row that fits counts. */
static const struct { const char *begins, *holds; int class; } CLASSES[] = {
    {"/mlruns/", "/mlflow.db", 1},      /* with its journal; its lock file is of the next row */
    {"/mlruns/runs/", "/run.log", 2},
    {"/mlruns/runs/", "/mirror.json", 4},
    {"/mlruns/runs/", "/.mirror.json", 4},
    {"/mlruns/runs/", "/upload", 4},
    {"/mlruns/runs/", "/pictures", 8},
    {"/mlruns/runs/", "/lock", 64},
    {"/mlruns/runs/", "", 16},
    {"/mlruns/artifacts", "", 32},
    {"/mlruns/sweeps", "", 128},
    {"/mlruns", "", 64},                /* the home itself: marker, locks */
    {"", "", 256},                      /* destinations, temporary folders */
};

enum fault { NONE, ONCE, FROM, HALF, KILL_BEFORE, KILL_AFTER, SLEEP };

static char folder[PATH_MAX];
static size_t length;
static int classes, kinds, thread, reading, number, fault, error, trace = -1;
static _Atomic int armed, counts[2][2], full;

static int class_of(const char *path)
{
    for (unsigned i = 0; i < sizeof CLASSES / sizeof *CLASSES; i++) {
        if (strncmp(path, CLASSES[i].begins, strlen(CLASSES[i].begins)))
            continue;
        if (CLASSES[i].class == 1 && strstr(path, "mlflow.db.lock"))
            continue;
        if (strstr(path, CLASSES[i].holds))
            return CLASSES[i].class;
    }
    return 0;
}

/* The path below the folder, in `buffer`; NULL where it is elsewhere. */
static const char *below(int directory, const char *path, char *buffer)
{
    ssize_t n = 0;
    if (!path || path[0] != '/') {
        if (path && directory == AT_FDCWD) {
            if (!getcwd(buffer, PATH_MAX))
                return NULL;
            n = strlen(buffer);
        } else {
            char link[64];
            snprintf(link, sizeof link, "/proc/self/fd/%d", directory);
            n = readlink(link, buffer, PATH_MAX - 1);
            if (n < 0)
                return NULL;
        }
        buffer[n] = 0;
        if (path)
            snprintf(buffer + n, PATH_MAX - n, "/%s", path);
    } else
        snprintf(buffer, PATH_MAX, "%s", path);
    return strncmp(buffer, folder, length) || (buffer[length] && buffer[length] != '/') ? NULL : buffer + length;
}

static void die(void)
{
    kill(getpid(), SIGKILL);
    for (;;)
        pause();
}

enum answer { GO_ON, FAIL, SHORTEN, THEN_DIE };

/* Whether this call is the one, and what is to become of it. */
static enum answer meet(int kind, int directory, const char *path, long size)
{
    char buffer[PATH_MAX + PATH_MAX];
    int kept = errno;
    const char *found = below(directory, path, buffer);
    errno = kept;
    int class = found ? class_of(found) : 0;
    if (!(class & classes) || !(kind & kinds))
        return GO_ON;
    int other = syscall(SYS_gettid) != getpid(), reads = (kind & READING) != 0;
    int n = ++counts[other][reads];
    int hit = fault && n == number && other == thread && reads == reading;
    if (trace >= 0) {
        char line[PATH_MAX + 100];
        int l = snprintf(line, sizeof line, "%d %d %d %d %d %d %ld %s\n", hit, other, reads, n, class, kind, size, found);
        syscall(SYS_write, trace, line, l);
    }
    if (full && (kind & TAKES_ROOM)) {
        errno = error;
        return FAIL;
    }
    if (!hit)
        return GO_ON;
    if (fault == SLEEP)
        nanosleep(&(struct timespec){.tv_sec = 2}, NULL);
    switch (fault) {
    case FROM:
        full = 1; /* falls through */
    case ONCE: case SLEEP:
        errno = error;
        return FAIL;
    case HALF:
        return SHORTEN;
    case KILL_BEFORE:
        die();
    }
    return THEN_DIE;
}

/* What the tests call, through ctypes, in the process that is to fail. `path` receives a line for each counted call. */
void calls_arm(const char *below_folder, int of_classes, int of_kinds, int in_thread, int reads, int n, int what,
               int with_error, const char *path)
{
    snprintf(folder, sizeof folder, "%s", below_folder);
    length = strlen(folder);
    classes = of_classes, kinds = of_kinds, thread = in_thread, reading = reads;
    number = n, fault = what, error = with_error;
    trace = syscall(SYS_openat, AT_FDCWD, path, O_WRONLY | O_CREAT | O_TRUNC | O_APPEND | O_CLOEXEC, 0644);
    armed = 1;
}

/* Each of libc's functions below asks `meet`, then does what the real one does. */
#define CALL(failure, type, name, kind, directory, path, size, ...)                                                    \
    static type (*real)() = NULL;                                                                                      \
    if (!real)                                                                                                         \
        real = (type(*)())dlsym(RTLD_NEXT, #name);                                                                     \
    enum answer answer = armed ? meet(kind, directory, path, size) : GO_ON;                                            \
    if (answer == FAIL)                                                                                                \
        return failure;                                                                                                \
    type result = real(__VA_ARGS__);                                                                                   \
    if (answer == THEN_DIE)                                                                                            \
        die();                                                                                                         \
    return result

#define ANSWERS(name, kind, directory, path, ...) CALL(-1, int, name, kind, directory, path, 0, __VA_ARGS__)
#define WRITES(name, descriptor, size, ...) CALL(-1, ssize_t, name, WRITE, descriptor, NULL, size, __VA_ARGS__)

/* open has its mode only where it may make a file. */
#define MODE(flags)                                                                                                    \
    mode_t mode = 0;                                                                                                   \
    if (flags & (O_CREAT | O_TMPFILE)) {                                                                               \
        va_list more;                                                                                                  \
        va_start(more, flags);                                                                                         \
        mode = va_arg(more, mode_t);                                                                                   \
        va_end(more);                                                                                                  \
    }
#define OPENS(flags) (flags & (O_WRONLY | O_RDWR | O_CREAT) ? CREATE : OPEN)

int open(const char *p, int flags, ...) { MODE(flags); ANSWERS(open, OPENS(flags), AT_FDCWD, p, p, flags, mode); }
int open64(const char *p, int flags, ...) { MODE(flags); ANSWERS(open64, OPENS(flags), AT_FDCWD, p, p, flags, mode); }
int openat(int d, const char *p, int flags, ...) { MODE(flags); ANSWERS(openat, OPENS(flags), d, p, d, p, flags, mode); }
int openat64(int d, const char *p, int flags, ...)
{
    MODE(flags);
    ANSWERS(openat64, OPENS(flags), d, p, d, p, flags, mode);
}
DIR *opendir(const char *p) { CALL(NULL, DIR *, opendir, LIST, AT_FDCWD, p, 0, p); }
DIR *fdopendir(int d) { CALL(NULL, DIR *, fdopendir, LIST, d, NULL, 0, d); }

ssize_t read(int d, void *data, size_t n) { CALL(-1, ssize_t, read, READ, d, NULL, n, d, data, n); }
ssize_t pread(int d, void *data, size_t n, off_t at) { CALL(-1, ssize_t, pread, READ, d, NULL, n, d, data, n, at); }
ssize_t pread64(int d, void *data, size_t n, off64_t at) { CALL(-1, ssize_t, pread64, READ, d, NULL, n, d, data, n, at); }

#define HALF_OF(n) (answer == SHORTEN ? ((n) + 1) / 2 : (n))
ssize_t write(int d, const void *data, size_t n) { WRITES(write, d, n, d, data, HALF_OF(n)); }
ssize_t pwrite(int d, const void *data, size_t n, off_t at) { WRITES(pwrite, d, n, d, data, HALF_OF(n), at); }
ssize_t pwrite64(int d, const void *data, size_t n, off64_t at) { WRITES(pwrite64, d, n, d, data, HALF_OF(n), at); }
ssize_t writev(int d, const struct iovec *parts, int n) { WRITES(writev, d, n, d, parts, HALF_OF(n)); }
ssize_t sendfile(int d, int from, off_t *at, size_t n) { WRITES(sendfile, d, n, d, from, at, HALF_OF(n)); }
ssize_t sendfile64(int d, int from, off64_t *at, size_t n) { WRITES(sendfile64, d, n, d, from, at, HALF_OF(n)); }
ssize_t copy_file_range(int from, off64_t *there, int d, off64_t *here, size_t n, unsigned flags)
{
    WRITES(copy_file_range, d, n, from, there, d, here, HALF_OF(n), flags);
}

int fsync(int d) { ANSWERS(fsync, FSYNC, d, NULL, d); }
int fdatasync(int d) { ANSWERS(fdatasync, FSYNC, d, NULL, d); }
int rename(const char *from, const char *to) { ANSWERS(rename, RENAME, AT_FDCWD, to, from, to); }
int renameat(int f, const char *from, int t, const char *to) { ANSWERS(renameat, RENAME, t, to, f, from, t, to); }
int link(const char *from, const char *to) { ANSWERS(link, LINK, AT_FDCWD, to, from, to); }
int linkat(int f, const char *from, int t, const char *to, int flags)
{
    ANSWERS(linkat, LINK, t, to, f, from, t, to, flags);
}
int unlink(const char *p) { ANSWERS(unlink, UNLINK, AT_FDCWD, p, p); }
int unlinkat(int d, const char *p, int flags) { ANSWERS(unlinkat, UNLINK, d, p, d, p, flags); }
int rmdir(const char *p) { ANSWERS(rmdir, UNLINK, AT_FDCWD, p, p); }
int mkdir(const char *p, mode_t mode) { ANSWERS(mkdir, MKDIR, AT_FDCWD, p, p, mode); }
int mkdirat(int d, const char *p, mode_t mode) { ANSWERS(mkdirat, MKDIR, d, p, d, p, mode); }
int truncate(const char *p, off_t n) { ANSWERS(truncate, TRUNCATE, AT_FDCWD, p, p, n); }
int truncate64(const char *p, off64_t n) { ANSWERS(truncate64, TRUNCATE, AT_FDCWD, p, p, n); }
int ftruncate(int d, off_t n) { ANSWERS(ftruncate, TRUNCATE, d, NULL, d, n); }
int ftruncate64(int d, off64_t n) { ANSWERS(ftruncate64, TRUNCATE, d, NULL, d, n); }
