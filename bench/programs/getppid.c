/* A million of the cheapest system call. */
#include "bench.h"
#include <sys/syscall.h>

int main(int argc, char **argv)
{
    long count = work_amount(argc, argv, 1000000), same = 0;
    pid_t parent = getppid();
    work_begin();
    for (long i = 0; i < count; i++)
        same += syscall(SYS_getppid) == parent;
    work_end((uint64_t)same);
    return 0;
}
