/* Measures the steps of an event loop: what its thread does between two looks at what has happened.

   A library that is loaded before all others (LD_PRELOAD) into a node of the benchmarks. libuv, so uvloop too, waits
   with epoll_pwait; the node's own core looks at its sockets with epoll_wait inside of a step, which is not touched.
   The thread that waits first is the one that counts. What is found stands in a file that bench/steps.py reads. */

#include <fcntl.h>
#include <signal.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define LONG_NS 10000000u /* twice the time after which the node's walk over its connections pauses */
#define KERNEL_SIGSET_SIZE 8

struct steps {
    uint64_t asked; /* the reader counts this up to have all the rest begin anew ... */
    uint64_t done;  /* ... and when it has, this is the same */
    uint64_t count;
    uint64_t longest_cpu, long_cpu;   /* of this thread, in ns; how many were longer than LONG_NS */
    uint64_t longest_wall, long_wall; /* the same by the clock: others may have had the core meanwhile */
};

static volatile struct steps *steps;
static int taken;           /* some thread counts */
static __thread int counts; /* this one does */
static __thread uint64_t cpu_start, wall_start; /* of the step; 0 before the first */

static uint64_t clock_ns(clockid_t clock) {
    struct timespec t;
    clock_gettime(clock, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static void measure(uint64_t cpu, uint64_t wall) {
    if (steps->done != steps->asked) { /* a part of this step was before that */
        steps->count = steps->longest_cpu = steps->long_cpu = steps->longest_wall = steps->long_wall = 0;
        steps->done = steps->asked;
        return;
    }
    steps->count++;
    if (cpu > steps->longest_cpu) steps->longest_cpu = cpu;
    if (wall > steps->longest_wall) steps->longest_wall = wall;
    steps->long_cpu += cpu > LONG_NS;
    steps->long_wall += wall > LONG_NS;
}

__attribute__((constructor)) static void begin(void) {
    const char *path = getenv("BENCH_STEPS");
    int file = path == NULL ? -1 : open(path, O_RDWR | O_CLOEXEC);
    if (file < 0) return;
    void *memory = mmap(NULL, sizeof *steps, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    if (memory != MAP_FAILED) steps = memory;
    close(file);
}

/* Straight to the kernel: so nothing has to be looked up behind this one's back. */
int epoll_pwait(int epoll, struct epoll_event *events, int room, int timeout, const sigset_t *mask) {
    if (steps != NULL && !counts && !__atomic_exchange_n(&taken, 1, __ATOMIC_RELAXED)) counts = 1;
    if (counts && wall_start) {
        uint64_t cpu = clock_ns(CLOCK_THREAD_CPUTIME_ID) - cpu_start;
        measure(cpu, clock_ns(CLOCK_MONOTONIC) - wall_start);
    }
    int got = (int)syscall(SYS_epoll_pwait, epoll, events, room, timeout, mask, KERNEL_SIGSET_SIZE);
    if (counts) {
        wall_start = clock_ns(CLOCK_MONOTONIC);
        cpu_start = clock_ns(CLOCK_THREAD_CPUTIME_ID);
    }
    return got;
}
