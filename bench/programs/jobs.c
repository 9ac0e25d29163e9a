/* As `make -j4` loads a machine: forty short processes, four at a time, each of which makes memory, builds and sorts
 * a list there, writes it to a file and reads it back. */
#include "bench.h"
#include <fcntl.h>
#include <sys/wait.h>

#define AT_ONCE 4
#define COUNT 120000

static int compare(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return (x > y) - (x < y);
}

static int job(long number)
{
    char name[32];
    uint64_t seed = 88172645463325252u + (uint64_t)number, sum = 0;
    uint64_t *list = malloc(COUNT * sizeof *list), *again = malloc(COUNT * sizeof *list);
    if (!list || !again)
        return 255;
    for (int i = 0; i < COUNT; i++)
        list[i] = bench_random(&seed);
    qsort(list, COUNT, sizeof *list, compare);
    snprintf(name, sizeof name, "job-%ld", number);
    int file = open(name, O_RDWR | O_CREAT | O_TRUNC, 0600);
    ssize_t size = COUNT * sizeof *list;
    if (file < 0 || write(file, list, (size_t)size) != size || pread(file, again, (size_t)size, 0) != size)
        return 255;
    close(file);
    unlink(name);
    for (int i = 0; i < COUNT; i++)
        sum = (sum ^ again[i]) * 0x100000001b3u;
    return (int)(sum >> 32) & 127;
}

int main(int argc, char **argv)
{
    long jobs = work_amount(argc, argv, 40), begun = 0, running = 0;
    uint64_t sum = 0;
    work_begin();
    while (begun < jobs || running) {
        if (begun < jobs && running < AT_ONCE) {
            pid_t child = fork();
            if (child < 0)
                return 1;
            if (!child)
                _exit(job(begun));
            begun++, running++;
            continue;
        }
        int status;
        if (wait(&status) < 0 || !WIFEXITED(status) || WEXITSTATUS(status) == 255)
            return 1;
        running--;
        sum += (uint64_t)WEXITSTATUS(status) * 65537; /* in whatever order they end */
    }
    work_end(sum);
    return 0;
}
