/* Four threads that fight for a lock, hand a baton round by futexes, and count with locked instructions. What they
 * have counted must come out exactly. */
#include "bench.h"
#include <pthread.h>
#include <stdatomic.h>

#define THREADS 4

static long rounds;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER, baton_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t baton_moved[THREADS];
static pthread_barrier_t barrier;
static uint64_t locked_count, locked_list[64], spun_count;
static _Atomic uint64_t atomic_count, atomic_bits;
static atomic_flag spin = ATOMIC_FLAG_INIT;
static int baton;

static void *torture(void *argument)
{
    int me = (int)(intptr_t)argument;
    for (long i = 0; i < rounds; i++) {
        pthread_mutex_lock(&lock);
        locked_count++;
        locked_list[locked_count % 64] += locked_count; /* goes wrong if two are in here */
        pthread_mutex_unlock(&lock);
        atomic_fetch_add(&atomic_count, (uint64_t)i);
        atomic_fetch_xor(&atomic_bits, (uint64_t)i << (8 * me));
        if (i % 4 == 0) {
            while (atomic_flag_test_and_set(&spin))
                sched_yield();
            spun_count++;
            atomic_flag_clear(&spin);
        }
        if (i % 64 == 0) { /* each in turn */
            pthread_mutex_lock(&baton_lock);
            while (baton % THREADS != me)
                pthread_cond_wait(&baton_moved[me], &baton_lock);
            baton++;
            pthread_cond_signal(&baton_moved[(me + 1) % THREADS]);
            pthread_mutex_unlock(&baton_lock);
        }
        if (i % 1024 == 0)
            pthread_barrier_wait(&barrier);
    }
    return NULL;
}

int main(int argc, char **argv)
{
    pthread_t threads[THREADS];
    uint64_t sum = 0, bits = 0;
    rounds = work_amount(argc, argv, 400000);
    pthread_barrier_init(&barrier, NULL, THREADS);
    for (int i = 0; i < THREADS; i++)
        pthread_cond_init(&baton_moved[i], NULL);
    work_begin();
    for (int i = 0; i < THREADS; i++)
        if (pthread_create(&threads[i], NULL, torture, (void *)(intptr_t)i))
            return 1;
    for (int i = 0; i < THREADS; i++)
        pthread_join(threads[i], NULL);
    for (int i = 0; i < 64; i++)
        sum = sum * 31 + locked_list[i];
    for (long i = 0; i < rounds; i++)
        for (int me = 0; me < THREADS; me++)
            bits ^= (uint64_t)i << (8 * me);
    uint64_t each = (uint64_t)rounds, turns = (each + 63) / 64;
    if (locked_count != THREADS * each || spun_count != THREADS * ((each + 3) / 4) || atomic_bits != bits
        || atomic_count != THREADS * (each * (each - 1) / 2) || (uint64_t)baton != THREADS * turns) {
        fprintf(stderr, "locks: counted wrong\n");
        return 1;
    }
    work_end(sum ^ atomic_count ^ atomic_bits);
    return 0;
}
