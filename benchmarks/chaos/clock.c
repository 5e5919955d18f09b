/* Moves the clock of a process: LD_PRELOAD this, with the seconds to add in CHAOS_CLOCK, and in
   CHAOS_CLOCK_AFTER how many seconds after the start of the process they apply. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <sys/time.h>
#include <time.h>

static int (*real_clock_gettime)(clockid_t, struct timespec *);
static double began = -1;

static long moved_by(void) {
    const char *by = getenv("CHAOS_CLOCK"), *after = getenv("CHAOS_CLOCK_AFTER");
    struct timespec now;
    real_clock_gettime(CLOCK_MONOTONIC, &now);
    double seconds = now.tv_sec + now.tv_nsec * 1e-9;
    if (began < 0)
        began = seconds;
    return by && seconds - began >= (after ? atof(after) : 0) ? atol(by) : 0;
}

int clock_gettime(clockid_t clock, struct timespec *found) {
    if (!real_clock_gettime)
        real_clock_gettime = dlsym(RTLD_NEXT, "clock_gettime");
    int code = real_clock_gettime(clock, found);
    if (code == 0 && clock == CLOCK_REALTIME)
        found->tv_sec += moved_by();
    return code;
}

int gettimeofday(struct timeval *restrict found, void *restrict zone) {
    struct timespec now;
    (void)zone;
    int code = clock_gettime(CLOCK_REALTIME, &now);
    found->tv_sec = now.tv_sec;
    found->tv_usec = now.tv_nsec / 1000;
    return code;
}

time_t time(time_t *found) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (found)
        *found = now.tv_sec;
    return now.tv_sec;
}
