/* 300 times fork, exec of `busybox true` ($BUSYBOX), exit and wait. */
#include "bench.h"
#include <sys/wait.h>

int main(int argc, char **argv)
{
    long count = work_amount(argc, argv, 300), good = 0;
    const char *busybox = getenv("BUSYBOX");
    if (!busybox)
        return 2;
    work_begin();
    for (long i = 0; i < count; i++) {
        int status;
        pid_t child = fork();
        if (child < 0)
            return 1;
        if (!child) {
            execl(busybox, "busybox", "true", (char *)NULL);
            _exit(127);
        }
        good += waitpid(child, &status, 0) == child && status == 0;
    }
    work_end((uint64_t)good);
    return good == count ? 0 : 1;
}
