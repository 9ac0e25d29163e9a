/* memory KIND MEGABYTES: memory full of patterns, each written, read back and inverted, through pages of one KIND: small,
   transparent (huge pages), 2M, 1G (hugetlbfs). Then what kernels do to pages: copy on write, splitting, moving, freeing. */
#define _GNU_SOURCE
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#ifndef MAP_HUGE_SHIFT
#define MAP_HUGE_SHIFT 26
#endif

static uint64_t *words;
static size_t count;

static void fail(const char *what, size_t at) {
    printf("%s: word %zx is %016llx\n", what, at, (unsigned long long)words[at]);
    exit(1);
}

static uint64_t scrambled(uint64_t x) {
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9;
    x = (x ^ x >> 27) * 0x94d049bb133111eb;
    return x ^ x >> 31;
}

static uint64_t pattern(int which, size_t i) {
    switch (which) {
    case 0: return (uint64_t)(uintptr_t)&words[i];
    case 1: return i & 1 ? 0xaaaaaaaaaaaaaaaa : 0x5555555555555555;
    case 2: return (uint64_t)1 << (i & 63);
    case 3: return scrambled(i);
    default: return (i >> 9) * 0x0101010101010101;
    }
}

static void patterns(void) {
    for (int which = 0; which < 5; which++) {
        for (size_t i = 0; i < count; i++) words[i] = pattern(which, i);
        for (size_t i = 0; i < count; i++) { if (words[i] != pattern(which, i)) fail("written", i); words[i] = ~words[i]; }
        for (size_t i = count; i--;) { if (words[i] != ~pattern(which, i)) fail("inverted", i); words[i] ^= ~(uint64_t)0; }
        for (size_t i = 0; i < count; i++) if (words[i] != pattern(which, i)) fail("restored", i);
    }
    memset(words, 0x5a, count * 8);
    for (size_t i = 0; i < count; i++) if (words[i] != 0x5a5a5a5a5a5a5a5a) fail("set", i);
    memmove((char *)words + 3, words, count * 4);
    for (size_t i = 1; i < count / 2; i++) if (words[i] != 0x5a5a5a5a5a5a5a5a) fail("moved", i);
    printf("patterns\n");
}

/* A child that inherits the pages and writes to some of them changes its own only. */
static void copied_on_write(size_t some) {
    int status;
    for (size_t i = 0; i < some; i++) words[i] = pattern(3, i);
    fflush(stdout);
    if (!fork()) {
        for (size_t i = 0; i < some; i += 999) words[i] = 0;
        for (size_t i = 0; i < some; i++) if (words[i] != (i % 999 ? pattern(3, i) : 0)) _exit(1);
        _exit(0);
    }
    for (size_t i = 7; i < some; i += 1999) words[i] = 1;
    wait(&status);
    if (status) { printf("the child's copy is wrong\n"); exit(1); }
    for (size_t i = 0; i < some; i++) if (words[i] != (i % 1999 == 7 ? 1 : pattern(3, i))) fail("parent's", i);
    printf("copied on write\n");
}

/* Small pages out of huge ones: one read-only, one given back, one moved. */
static void split(size_t some) {
    size_t page = 4096 / 8;
    for (size_t i = 0; i < some; i++) words[i] = pattern(0, i);
    for (size_t at = 0; at + 16 * page < some; at += 512 * page) {
        mprotect(&words[at + 3 * page], 4096, PROT_READ);
        madvise(&words[at + 5 * page], 4096, MADV_DONTNEED);
        void *moved = mremap(&words[at + 7 * page], 4096, 4096, MREMAP_MAYMOVE | MREMAP_FIXED, &words[at + 9 * page]);
        if (moved == MAP_FAILED) { printf("mremap failed\n"); exit(1); }
    }
    for (size_t at = 0; at + 16 * page < some; at += 512 * page)
        for (size_t i = at; i < at + 16 * page; i++) {
            size_t which = (i - at) / page;
            if (which == 7) continue; /* nothing is mapped there now */
            uint64_t wanted = which == 5 ? 0 : pattern(0, which == 9 ? i - 2 * page : i);
            if (words[i] != wanted) fail("split", i);
            if (which != 3) words[i] = ~wanted;
        }
    printf("split\n");
}

static unsigned long huge_kilobytes(void) {
    char line[256];
    unsigned long found = 0, value;
    FILE *file = fopen("/proc/self/smaps_rollup", "r");
    while (file && fgets(line, sizeof line, file))
        if (sscanf(line, "AnonHugePages: %lu", &value) == 1 || sscanf(line, "Private_Hugetlb: %lu", &value) == 1)
            found += value;
    if (file) fclose(file);
    return found;
}

int main(int argc, char **argv) {
    if (argc < 3) return 2;
    const char *kind = argv[1];
    size_t size = (size_t)atol(argv[2]) << 20, some = size < (64u << 20) ? size / 8 : (64u << 20) / 8;
    int flags = MAP_PRIVATE | MAP_ANONYMOUS;
    if (!strcmp(kind, "2M")) flags |= MAP_HUGETLB | 21 << MAP_HUGE_SHIFT;
    if (!strcmp(kind, "1G")) flags |= MAP_HUGETLB | 30 << MAP_HUGE_SHIFT;
    char *start = mmap(NULL, size + (2 << 20), PROT_READ | PROT_WRITE, flags, -1, 0);
    if (flags & MAP_HUGETLB) start = start == MAP_FAILED ? mmap(NULL, size, PROT_READ | PROT_WRITE, flags, -1, 0) : start;
    if (start == MAP_FAILED) { perror("mmap"); return 1; }
    if (!(flags & MAP_HUGETLB)) {
        start += -(uintptr_t)start & ((2 << 20) - 1);
        madvise(start, size, !strcmp(kind, "small") ? MADV_NOHUGEPAGE : MADV_HUGEPAGE);
    }
    words = (uint64_t *)start;
    count = size / 8;
    patterns();
    unsigned long huge = huge_kilobytes();
    if (!strcmp(kind, "small") ? huge != 0 : huge < size / 1024 * 9 / 10) {
        printf("%lu KiB are in huge pages\n", huge);
        return 1;
    }
    /* A private huge page of hugetlbfs needs a second one to be copied. */
    if (!(flags & MAP_HUGETLB)) { copied_on_write(some); split(some); }
    return 0;
}
