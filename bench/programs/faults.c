/* A storm of page faults: map 256 MB, touch each page of it, unmap. */
#include "bench.h"

#define SIZE (256l << 20)
#define PAGE 4096

int main(int argc, char **argv)
{
    long size = work_amount(argc, argv, SIZE) & -PAGE;
    uint64_t sum = 0;
    work_begin();
    for (int round = 0; round < 2; round++) {
        char *at = mmap(NULL, (size_t)size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (at == MAP_FAILED)
            return 1;
        madvise(at, (size_t)size, MADV_NOHUGEPAGE);
        for (long i = 0; i < size; i += PAGE)
            sum += (uint64_t)at[i]++ + 1;
        munmap(at, (size_t)size);
    }
    work_end(sum);
    return 0;
}
