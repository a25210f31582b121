/* A disk that fails: preloaded into every process of a run. Nothing happens until the control file is armed.

   Every call that writes below a folder counts down a number that all processes share; when it has come to 0 the call
   fails with the errno that was asked for, once or from then on. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

struct control {
    atomic_long left;    /* calls until the one that fails */
    atomic_long seen;    /* calls that counted */
    atomic_int error;    /* errno; 0: not armed, only counting */
    atomic_int always;   /* 1: every later call fails, too */
    atomic_int delay;    /* microseconds that every call takes longer */
    char folder[1000];
};
static struct control *control;

__attribute__((constructor)) static void begin(void) {
    const char *path = getenv("CHAOS_DISK");
    if (!path) return;
    int file = open(path, O_RDWR | O_CLOEXEC);
    if (file < 0) return;
    void *found = mmap(0, sizeof *control, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    close(file);
    if (found != MAP_FAILED) control = found;
}

static int fails(const char *path) {
    if (!control || !path || strncmp(path, control->folder, strlen(control->folder))) return 0;
    atomic_fetch_add(&control->seen, 1);
    if (atomic_load(&control->delay)) usleep(atomic_load(&control->delay));
    if (!atomic_load(&control->error)) return 0;
    long left = atomic_fetch_sub(&control->left, 1);
    if (left == 1 || (left < 1 && atomic_load(&control->always))) {
        errno = atomic_load(&control->error);
        return 1;
    }
    return 0;
}

static int fails_at(int file) {
    if (!control) return 0;
    char name[40], path[1200];
    snprintf(name, sizeof name, "/proc/self/fd/%d", file);
    ssize_t size = readlink(name, path, sizeof path - 1);
    if (size < 0) return 0;
    path[size] = 0;
    return fails(path);
}

#define REAL(name) static __typeof__(name) *real; if (!real) real = dlsym(RTLD_NEXT, #name)
#define WRITES(flags) ((flags) & (O_CREAT | O_TRUNC | O_WRONLY | O_RDWR))
#define OPEN(name) \
    int name(const char *path, int flags, ...) { \
        REAL(name); va_list more; va_start(more, flags); mode_t mode = va_arg(more, mode_t); va_end(more); \
        if (WRITES(flags) && fails(path)) return -1; \
        return real(path, flags, mode); }
#define OPENAT(name) \
    int name(int at, const char *path, int flags, ...) { \
        REAL(name); va_list more; va_start(more, flags); mode_t mode = va_arg(more, mode_t); va_end(more); \
        if (WRITES(flags) && fails(path)) return -1; \
        return real(at, path, flags, mode); }
OPEN(open) OPEN(open64) OPENAT(openat) OPENAT(openat64)

ssize_t write(int file, const void *data, size_t size) {
    REAL(write); return fails_at(file) ? -1 : real(file, data, size); }
ssize_t pwrite(int file, const void *data, size_t size, off_t at) {
    REAL(pwrite); return fails_at(file) ? -1 : real(file, data, size, at); }
ssize_t pwrite64(int file, const void *data, size_t size, off64_t at) {
    REAL(pwrite64); return fails_at(file) ? -1 : real(file, data, size, at); }
ssize_t writev(int file, const struct iovec *parts, int count) {
    REAL(writev); return fails_at(file) ? -1 : real(file, parts, count); }
int fsync(int file) { REAL(fsync); return fails_at(file) ? -1 : real(file); }
int fdatasync(int file) { REAL(fdatasync); return fails_at(file) ? -1 : real(file); }
int ftruncate64(int file, off64_t size) { REAL(ftruncate64); return fails_at(file) ? -1 : real(file, size); }
int rename(const char *old, const char *new) { REAL(rename); return fails(new) ? -1 : real(old, new); }
int mkdir(const char *path, mode_t mode) { REAL(mkdir); return fails(path) ? -1 : real(path, mode); }
int unlink(const char *path) {  /* a full disk lets go; one that is read-only does not */
    REAL(unlink); return control && atomic_load(&control->error) == EROFS && fails(path) ? -1 : real(path); }
