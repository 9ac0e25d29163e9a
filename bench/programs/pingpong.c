/* Two processes on one processor that wake each other by two pipes, a byte at a time. */
#define _GNU_SOURCE
#include "bench.h"
#include <sched.h>
#include <sys/wait.h>

int main(int argc, char **argv)
{
    long count = work_amount(argc, argv, 100000);
    uint64_t sum = 0;
    int there[2], back[2];
    cpu_set_t one;
    CPU_ZERO(&one);
    CPU_SET(sched_getcpu(), &one); /* a guest of one vCPU has no choice; nor shall the host have */
    if (sched_setaffinity(0, sizeof one, &one) || pipe(there) || pipe(back))
        return 1;
    work_begin();
    pid_t child = fork();
    if (child < 0)
        return 1;
    if (!child) {
        unsigned char byte;
        close(there[1]), close(back[0]);
        while (read(there[0], &byte, 1) == 1) {
            byte = (unsigned char)(byte * 5 + 1);
            if (write(back[1], &byte, 1) != 1)
                _exit(1);
        }
        _exit(0);
    }
    close(there[0]), close(back[1]);
    unsigned char byte = 1;
    for (long i = 0; i < count; i++) {
        if (write(there[1], &byte, 1) != 1 || read(back[0], &byte, 1) != 1)
            return 1;
        sum = sum * 31 + byte;
    }
    int status;
    close(there[1]);
    if (waitpid(child, &status, 0) != child || status)
        return 1;
    work_end(sum);
    return 0;
}
