/* Many small calls: recursion, functions too small to be worth one, calls through pointers. */
#include "bench.h"

#define NOINLINE __attribute__((noinline, noclone))

static NOINLINE uint64_t fib(uint64_t n)
{
    return n < 2 ? n : fib(n - 1) + fib(n - 2);
}

static NOINLINE uint64_t add(uint64_t a, uint64_t b) { return a + b; }
static NOINLINE uint64_t mix(uint64_t a, uint64_t b) { return (a ^ b) * 31; }
static NOINLINE uint64_t turn(uint64_t a, uint64_t b) { return a << 7 | (a >> 57 ^ b); }
static NOINLINE uint64_t both(uint64_t a, uint64_t b) { return add(a, mix(b, a)); }

static uint64_t (*const functions[4])(uint64_t, uint64_t) = {add, mix, turn, both};

struct node {
    struct node *left, *right;
    uint64_t value;
};

static NOINLINE uint64_t total(const struct node *node)
{
    return node ? node->value + total(node->left) + total(node->right) : 0;
}

static struct node nodes[1023];

int main(int argc, char **argv)
{
    long rounds = work_amount(argc, argv, 40);
    uint64_t sum = 0;
    for (int i = 0; i < 1023; i++) {
        struct node *left = 2 * i + 1 < 1023 ? &nodes[2 * i + 1] : NULL;
        struct node *right = 2 * i + 2 < 1023 ? &nodes[2 * i + 2] : NULL;
        nodes[i] = (struct node){left, right, (uint64_t)i};
    }
    work_begin();
    for (long round = 0; round < rounds; round++) {
        sum += fib(27);
        for (uint64_t i = 0; i < 2000000; i++)
            sum = functions[(i ^ i >> 3) & 3](sum, i);
        for (int i = 0; i < 1000; i++)
            sum += total(nodes);
    }
    work_end(sum);
    return 0;
}
