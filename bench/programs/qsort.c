/* Quicksort of random numbers: branches that nobody can foretell, loads and stores in order. */
#include "bench.h"

#define COUNT (1 << 20)

static void sort(int32_t *low, int32_t *high) /* both inclusive */
{
    while (high - low > 16) {
        int32_t *middle = low + (high - low) / 2, t;
        if (*middle < *low)
            t = *middle, *middle = *low, *low = t;
        if (*high < *low)
            t = *high, *high = *low, *low = t;
        if (*high < *middle)
            t = *high, *high = *middle, *middle = t;
        int32_t pivot = *middle, *i = low, *j = high;
        while (i <= j) {
            while (*i < pivot)
                i++;
            while (*j > pivot)
                j--;
            if (i <= j)
                t = *i, *i++ = *j, *j-- = t;
        }
        if (j - low < high - i) {
            sort(low, j);
            low = i;
        } else {
            sort(i, high);
            high = j;
        }
    }
    for (int32_t *i = low + 1; i <= high; i++) {
        int32_t value = *i, *j = i;
        for (; j > low && j[-1] > value; j--)
            *j = j[-1];
        *j = value;
    }
}

int main(int argc, char **argv)
{
    long rounds = work_amount(argc, argv, 5);
    int32_t *data = bench_memory(COUNT * sizeof *data);
    uint64_t seed = 88172645463325252u, sum = 0;
    work_begin();
    for (long round = 0; round < rounds; round++) {
        for (int i = 0; i < COUNT; i++)
            data[i] = (int32_t)(bench_random(&seed) >> 33);
        sort(data, data + COUNT - 1);
        for (int i = 0; i < COUNT; i += 1021)
            sum = sum * 31 + (uint32_t)data[i];
    }
    work_end(sum);
    return 0;
}
