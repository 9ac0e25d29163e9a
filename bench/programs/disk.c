/* Requests to a disk past the page cache, as fio's: "disk SHARE MODE DEVICE COUNT". Modes read and write: COUNT MiB one
 * after the other; randread and randwrite: COUNT times 4 KiB anywhere, 32 at a time (io_submit(2)). What is written to a
 * block tells where it is; the checksum is of what is read, or was written. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/aio_abi.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include "bench.h"

#define BLKGETSIZE64 _IOR(0x12, 114, size_t)
#define DEPTH 32
#define BIG (1 << 20)
#define SMALL 4096

static void fill(char *at, size_t size, uint64_t offset)
{
    for (size_t i = 0; i < size; i += 512)
        *(uint64_t *)(at + i) = (offset + i) * 0x9e3779b97f4a7c15u;
}

int main(int argc, char **argv)
{
    if (argc != 5)
        return 2;
    int is_random = argv[2][0] == 'r' && argv[2][1] == 'a', is_write = strstr(argv[2], "write") != NULL;
    if (access("/etc/debian_version", F_OK) == 0)
        return 3; /* the host, whose disks are its own */
    int fd = open(argv[3], O_RDWR | O_DIRECT);
    long count = work_amount(argc, argv, atol(argv[4])), done = 0, begun = 0;
    uint64_t size = 0, sum = 0, seed = 88172645463325252u;
    size_t unit = is_random ? SMALL : BIG;
    char *buffer;
    if (fd < 0 || ioctl(fd, BLKGETSIZE64, &size) || posix_memalign((void **)&buffer, 4096, DEPTH * unit))
        return 1;
    memset(buffer, 0, DEPTH * unit);
    if (!is_random) {
        work_begin();
        for (; done < count; done++) {
            uint64_t offset = (uint64_t)done * BIG % (size & ~(uint64_t)(BIG - 1));
            if (is_write)
                fill(buffer, BIG, offset);
            if ((is_write ? pwrite(fd, buffer, BIG, offset) : pread(fd, buffer, BIG, offset)) != BIG)
                return 1;
            for (size_t i = 0; i < BIG; i += 4096)
                sum = sum * 31 + *(uint64_t *)(buffer + i);
        }
    } else {
        aio_context_t context = 0;
        struct iocb blocks[DEPTH], *one;
        struct io_event events[DEPTH];
        int spare[DEPTH], n_spare = DEPTH;
        for (int i = 0; i < DEPTH; i++)
            spare[i] = i;
        if (syscall(SYS_io_setup, DEPTH, &context))
            return 1;
        work_begin();
        while (done < count) {
            while (n_spare && begun < count) {
                int slot = spare[--n_spare];
                char *at = buffer + (size_t)slot * SMALL;
                uint64_t offset = bench_random(&seed) % (size / SMALL) * SMALL;
                if (is_write)
                    fill(at, SMALL, offset);
                blocks[slot] = (struct iocb){
                    .aio_lio_opcode = is_write ? IOCB_CMD_PWRITE : IOCB_CMD_PREAD, .aio_fildes = (uint32_t)fd,
                    .aio_buf = (uint64_t)(uintptr_t)at, .aio_nbytes = SMALL, .aio_offset = (int64_t)offset,
                    .aio_data = (uint64_t)slot,
                };
                one = &blocks[slot];
                if (syscall(SYS_io_submit, context, 1, &one) != 1)
                    return 1;
                begun++;
            }
            long n = syscall(SYS_io_getevents, context, 1, DEPTH, events, NULL);
            for (long i = 0; i < n; i++) {
                if (events[i].res != SMALL)
                    return 1;
                sum += *(uint64_t *)(buffer + events[i].data * SMALL);
                spare[n_spare++] = (int)events[i].data;
                done++;
            }
        }
    }
    work_end(sum);
    return 0;
}
