/* Control flow: recursion, tables of functions, computed gotos, setjmp, signals that return to faulting instructions,
   variable arguments, big frames, sorting through callbacks, an interpreter, threads with atomics. */
#define _GNU_SOURCE
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

static unsigned ackermann(unsigned m, unsigned n) {
    return !m ? n + 1 : !n ? ackermann(m - 1, 1) : ackermann(m - 1, ackermann(m, n - 1));
}

static long add(long a, long b) { return a + b; }
static long sub(long a, long b) { return a - b; }
static long times(long a, long b) { return a * 3 + b; }
static long xor(long a, long b) { return a ^ b; }
static long (*const functions[])(long, long) = {add, sub, times, xor};

static int descending(const void *a, const void *b) {
    int x = *(const int *)a, y = *(const int *)b;
    return (x < y) - (x > y);
}

static long total(int n, ...) {
    va_list list;
    long sum = 0;
    va_start(list, n);
    for (int i = 0; i < n; i++) sum += i % 3 == 0 ? va_arg(list, int) : i % 3 == 1 ? (long)va_arg(list, double) : va_arg(list, long);
    va_end(list);
    return sum;
}

/* opcodes: 0 push the next byte, 1 add, 2 subtract, 3 duplicate, 4 swap, 5 again from the start, 6 stop */
static long interpret(const unsigned char *code, long n) {
    static void *const labels[] = {&&push, &&plus, &&minus, &&dup, &&swap, &&loop, &&stop};
    long stack[64], *top = stack, temporary;
    const unsigned char *at = code;
    *top = n;
    long turns = 200000;
    goto *labels[*at++];
push: *++top = *at++; goto *labels[*at++];
plus: top[-1] += *top; top--; goto *labels[*at++];
minus: top[-1] -= *top; top--; goto *labels[*at++];
dup: top[1] = top[0]; top++; goto *labels[*at++];
swap: temporary = top[0]; top[0] = top[-1]; top[-1] = temporary; goto *labels[*at++];
loop: if (--turns) { at = code; } goto *labels[*at++];
stop: return *top & 0xffffffff;
}

static sigjmp_buf back;
static volatile sig_atomic_t faults, counted;
static char *page;
static void leave(int number) { faults += number == SIGSEGV || number == SIGFPE || number == SIGILL; siglongjmp(back, number); }
static void repair(int number, siginfo_t *info, void *context) {
    (void)context;
    counted += number == SIGSEGV && (char *)info->si_addr >= page && (char *)info->si_addr < page + 65536;
    mprotect((char *)((uintptr_t)info->si_addr & ~4095ul), 4096, PROT_READ | PROT_WRITE);
}

static void signals(void) {
    signal(SIGSEGV, leave); signal(SIGFPE, leave); signal(SIGILL, leave);
    volatile int zero = 0, result = 0;
    for (volatile int i = 0; i < 300; i++) {
        if (!sigsetjmp(back, 1)) *(volatile int *)(uintptr_t)(i * 8) = 1;
        if (!sigsetjmp(back, 1)) result = 7 / zero;
        if (!sigsetjmp(back, 1)) __asm__ volatile("ud2");
    }
    struct sigaction action = {.sa_sigaction = repair, .sa_flags = SA_SIGINFO};
    sigaction(SIGSEGV, &action, NULL);
    page = mmap(NULL, 65536, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    memset(page + 5, 0x5a, 65500);
    long sum = 0;
    for (int i = 0; i < 65536; i++) sum += page[i];
    printf("signals %d %d %ld %d\n", (int)faults, (int)counted, sum, result);
}

static atomic_ulong flipped;
static atomic_long shared, ticket, serving;
static long plain;
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static long guarded;
static void *work(void *argument) {
    for (int i = 0; i < 50000; i++) {
        atomic_fetch_add(&shared, (long)(intptr_t)argument);
        unsigned long expected = atomic_load(&flipped);
        while (!atomic_compare_exchange_weak(&flipped, &expected, expected * 3 + 1)) {}
        if (i % 50 == 0) {
            long mine = atomic_fetch_add(&ticket, 1);
            while (atomic_load(&serving) != mine) sched_yield();
            plain++;
            atomic_store(&serving, mine + 1);
        }
        pthread_mutex_lock(&mutex); guarded++; pthread_mutex_unlock(&mutex);
    }
    return argument;
}

int main(void) {
    printf("ackermann %u\n", ackermann(2, 500) + ackermann(3, 7));
    long x = 1;
    for (int i = 0; i < 2000000; i++) x = functions[(x >> 5 ^ i) & 3](x, i) & 0xffffffffl;
    printf("functions %ld\n", x);
    static int numbers[100000];
    for (unsigned i = 0, s = 7; i < 100000; i++) numbers[i] = (int)((s = s * 1103515245 + 12345) >> 8);
    qsort(numbers, 100000, sizeof *numbers, descending);
    unsigned order = 0;
    for (int i = 0; i < 100000; i++) order = order * 31 + (unsigned)numbers[i];
    printf("sorted %u\n", order);
    printf("total %ld\n", total(9, 1, 2.5, 3l, 4, 5.5, 6l, -7, -8.5, -9l));
    static const unsigned char code[] = {3, 1, 0, 5, 4, 3, 0, 3, 1, 4, 2, 2, 5, 6};
    printf("interpreted %ld\n", interpret(code, 12345));
    jmp_buf env;
    volatile int rounds = 0;
    setjmp(env);
    if (++rounds < 100000) longjmp(env, rounds);
    printf("jumps %d\n", rounds);
    signals();
    pthread_t threads[4];
    for (intptr_t i = 0; i < 4; i++) pthread_create(&threads[i], NULL, work, (void *)(i + 1));
    for (int i = 0; i < 4; i++) pthread_join(threads[i], NULL);
    printf("threads %ld %lu %ld %ld\n", (long)shared, (unsigned long)flipped, plain, guarded);
    int status, sum = 0;
    fflush(stdout);
    for (int i = 0; i < 50; i++) {
        pid_t child = fork();
        if (!child) _exit(i);
        waitpid(child, &status, 0);
        sum += WEXITSTATUS(status);
    }
    printf("children %d\n", sum);
    return 0;
}
