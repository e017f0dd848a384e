/* The wall clock of a process, set off by as many seconds as the file TMEM_CLOCK says, at any moment.
 *
 * Preloaded. Waits until a time on the wall clock are for the system's own, so their ends are moved back.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdarg.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static volatile const long *off;

__attribute__((constructor)) static void begin(void) {
    const char *path = getenv("TMEM_CLOCK");
    int file = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    if (file < 0) abort();
    void *mapped = mmap(0, sizeof(long), PROT_READ, MAP_SHARED, file, 0);
    if (mapped == MAP_FAILED) abort();
    close(file);
    off = mapped;
}

static long seconds(void) { return off ? *off : 0; }

#define NEXT(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

int clock_gettime(clockid_t clock, struct timespec *now) {
    static __typeof__(&clock_gettime) next;
    if (!next) next = NEXT(clock_gettime);
    int failed = next(clock, now);
    if (!failed && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) now->tv_sec += seconds();
    return failed;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone) {
    struct timespec fine;
    (void)zone;
    clock_gettime(CLOCK_REALTIME, &fine);
    now->tv_sec = fine.tv_sec;
    now->tv_usec = fine.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *now) {
    struct timespec fine;
    clock_gettime(CLOCK_REALTIME, &fine);
    if (now) *now = fine.tv_sec;
    return fine.tv_sec;
}

static struct timespec moved(const struct timespec *end) {
    struct timespec back = *end;
    back.tv_sec -= seconds();
    if (back.tv_sec < 0) back.tv_sec = 0;
    return back;
}

int sem_timedwait(sem_t *restrict semaphore, const struct timespec *restrict end) {
    struct timespec back = moved(end);
    return NEXT(sem_timedwait)(semaphore, &back);
}

/* Of conditions that were made for another clock nothing is known here: an end that is far from the wall clock is theirs. */
int pthread_cond_timedwait(pthread_cond_t *restrict condition, pthread_mutex_t *restrict mutex,
                           const struct timespec *restrict end) {
    static __typeof__(&pthread_cond_timedwait) next;
    if (!next) next = (__typeof__(next))dlvsym(RTLD_NEXT, "pthread_cond_timedwait", "GLIBC_2.3.2");
    struct timespec back = end->tv_sec > 1000000000 ? moved(end) : *end;
    return next(condition, mutex, &back);
}

long syscall(long number, ...) {
    static __typeof__(&syscall) next;
    if (!next) next = NEXT(syscall);
    long of[6];
    va_list given;
    va_start(given, number);
    for (int at = 0; at < 6; at++) of[at] = va_arg(given, long);
    va_end(given);
    struct timespec back;
    if (number == SYS_futex && of[3] && ((int)of[1] & FUTEX_CLOCK_REALTIME)) {
        back = moved((const struct timespec *)of[3]);
        of[3] = (long)&back;
    }
    return next(number, of[0], of[1], of[2], of[3], of[4], of[5]);
}
