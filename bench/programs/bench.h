/* What the programs of this folder share: they print "@WORK" when their data is ready and
 * "@DONE checksum nanoseconds cpu_nanoseconds" after their work, and take how many percent of it to do. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

static uint64_t bench_wall_start, bench_cpu_start;

static inline uint64_t bench_wall(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

/* Processor time in nanoseconds, that of children who have ended included. */
static inline uint64_t bench_cpu(void)
{
    uint64_t total = 0;
    for (int who = RUSAGE_CHILDREN; who <= RUSAGE_SELF; who++) {
        struct rusage usage;
        getrusage(who, &usage);
        total += (uint64_t)(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) * 1000000u;
        total += (uint64_t)(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec);
    }
    return total * 1000;
}

static inline void work_begin(void)
{
    if (write(1, "@WORK\n", 6) != 6)
        exit(1);
    bench_cpu_start = bench_cpu();
    bench_wall_start = bench_wall();
}

static inline void work_end(uint64_t checksum)
{
    uint64_t wall = bench_wall() - bench_wall_start, cpu = bench_cpu() - bench_cpu_start;
    printf("@DONE %016llx %llu %llu\n", (unsigned long long)checksum, (unsigned long long)wall,
           (unsigned long long)cpu);
    if (fflush(stdout))
        exit(1);
}

/* How much to do of `amount`: all of it, or as many percent as the first argument says. */
static inline long work_amount(int argc, char **argv, long amount)
{
    long share = argc > 1 ? amount * atol(argv[1]) / 100 : amount;
    return share > 0 ? share : 1;
}

/* Numbers that look random and are the same everywhere (xorshift64*). */
static inline uint64_t bench_random(uint64_t *state)
{
    uint64_t x = *state;
    x ^= x >> 12;
    x ^= x << 25;
    x ^= x >> 27;
    *state = x;
    return x * 0x2545f4914f6cdd1du;
}

/* Zeroed memory that is all there before the work begins, in huge pages where there are some: the guest's
 * kernel would give them anyway, and the host's only on request. */
static inline void *bench_memory(size_t size)
{
    size_t huge = 2u << 20;
    char *at = mmap(NULL, size + huge, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (at == MAP_FAILED) {
        perror("mmap");
        exit(1);
    }
    at += huge - ((uintptr_t)at & (huge - 1));
    madvise(at, size, MADV_HUGEPAGE);
    memset(at, 1, size);
    memset(at, 0, size);
    return at;
}
