/* A hash table with open addressing: fill it half, then look up, change, miss. One access of memory to a step, at
 * an address that the last one doesn't tell. */
#include "bench.h"

struct slot {
    uint64_t key, value;
};

static struct slot *find(struct slot *table, uint64_t mask, uint64_t key)
{
    uint64_t at = (key * 0x9e3779b97f4a7c15u) >> 20 & mask;
    while (table[at].key && table[at].key != key)
        at = (at + 1) & mask;
    return &table[at];
}

static int run(int entries_log2_slots, long entries, long lookups)
{
    uint64_t mask = (UINT64_C(1) << entries_log2_slots) - 1, sum = 0;
    struct slot *table = bench_memory((mask + 1) * sizeof *table);
    uint64_t seed = 88172645463325252u;
    work_begin();
    for (long i = 1; i <= entries; i++) {
        struct slot *slot = find(table, mask, (uint64_t)i * 2654435761u);
        slot->key = (uint64_t)i * 2654435761u;
        slot->value = (uint64_t)i;
    }
    for (long i = 0; i < lookups; i++) {
        uint64_t wanted = bench_random(&seed) % (uint64_t)(entries + entries / 8); /* one of nine isn't there */
        struct slot *slot = find(table, mask, wanted * 2654435761u + 2654435761u);
        if (slot->key)
            sum += slot->value++;
        else
            sum ^= wanted;
    }
    work_end(sum);
    return 0;
}
