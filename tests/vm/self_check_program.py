"""A guest's program that checks itself, in the subset of Python that images/tiny compiles: ``PROGRAM NUMBER PROGRESS
[DISK]`` counts rounds for ever. Each round it looks whether its memory holds what it wrote in the last one, whether its
clocks went on, and now and then whether its sector of the disk (number NUMBER, of 4 KiB) holds what it wrote there
last, and whether a timer took as long as it should. PROGRESS gets the number of the round, 8 bytes. What is wrong is
its exit status. Nothing here ever runs under Python."""

from hostel.images.tiny import buffer, load8, load64, store64, syscall

OPEN, NANOSLEEP, PREAD, PWRITE, CLOCK_GETTIME = 2, 35, 17, 18, 228
RDWR, CREATE, DIRECT, DSYNC = 2, 0x40, 0x4000, 0x1000
REALTIME, MONOTONIC, BOOTTIME = 0, 1, 7
PAGES = 64

MEMORY = buffer(65 * 4096)
SECTOR = buffer(2 * 4096)
TIME = buffer(16)
COUNT = buffer(8)


def aligned(address: int) -> int:
    return (address + 4095) // 4096 * 4096


def expected(page: int, word: int, turn: int) -> int:
    return turn * 0x9E3779B97F4A7C + page * 0x100000001B3 + word


def write_memory(turn: int) -> int:
    page = 0
    while page < PAGES:
        word = 0
        while word < 512:
            store64(aligned(MEMORY) + page * 4096 + word * 8, expected(page, word, turn))
            word += 16
        page += 1
    return 0


def is_right(turn: int) -> int:
    page = 0
    while page < PAGES:
        word = 0
        while word < 512:
            if load64(aligned(MEMORY) + page * 4096 + word * 8) != expected(page, word, turn):
                return 0
            word += 16
        page += 1
    return 1


def now(clock: int) -> int:
    syscall(CLOCK_GETTIME, clock, TIME)
    return load64(TIME) * 1000000000 + load64(TIME + 8)


def main(stack: int) -> int:
    number = load8(load64(stack + 16)) - 48
    progress = syscall(OPEN, load64(stack + 24), RDWR | CREATE, 0o600)
    if progress < 0:
        return 10
    disk = -1
    if load64(stack) > 3:
        disk = syscall(OPEN, load64(stack + 32), RDWR | DIRECT | DSYNC, 0)
        if disk < 0:
            return 11
    sector = aligned(SECTOR)
    monotonic = now(MONOTONIC)
    boottime = now(BOOTTIME)
    realtime = now(REALTIME)
    turn = 0
    on_disk = 0
    write_memory(turn)
    while 1:
        if not is_right(turn):
            return 20
        turn += 1
        write_memory(turn)
        time = now(MONOTONIC)
        if time < monotonic:
            return 21
        monotonic = time
        time = now(BOOTTIME)
        if time < boottime:
            return 22
        boottime = time
        time = now(REALTIME)
        if time < realtime:
            return 23
        realtime = time
        if turn % 8 == 0:
            store64(TIME, 0)
            store64(TIME + 8, 1000000)
            syscall(NANOSLEEP, TIME, 0)
            if now(MONOTONIC) - monotonic < 900000:  # vCPUs' clocks may be some microseconds apart
                return 24
            if disk >= 0:
                if syscall(PREAD, disk, sector, 4096, number * 4096) != 4096:
                    return 25
                if load64(sector) != on_disk:
                    return 26
                on_disk = turn
                store64(sector, turn)
                if syscall(PWRITE, disk, sector, 4096, number * 4096) != 4096:
                    return 27
        store64(COUNT, turn)
        syscall(PWRITE, progress, COUNT, 8, 0)
    return 0
