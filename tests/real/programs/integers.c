/* Integer arithmetic of every width, by tables of awkward values and by long chains; prints checksums. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const uint64_t awkward[] = {
    0, 1, 2, 3, 5, 7, 8, 15, 16, 31, 32, 33, 63, 64, 65, 127, 128, 129, 255, 256, 32767, 32768, 65535, 65536,
    0x7ffffffe, 0x7fffffff, 0x80000000, 0x80000001, 0xfffffffe, 0xffffffff, 0x100000000, 0x123456789abcdef0,
    0x7ffffffffffffffe, 0x7fffffffffffffff, 0x8000000000000000, 0x8000000000000001, 0xfffffffffffffffe,
    0xffffffffffffffff, 0xaaaaaaaaaaaaaaaa, 0x5555555555555555,
};
#define COUNT (sizeof awkward / sizeof *awkward)

static uint64_t sum = 0xcbf29ce484222325;

static void mix(uint64_t value) { sum = (sum ^ value) * 0x100000001b3; }

#define ARITHMETIC(type, unsigned_type)                                                              \
    static void on_##type(void) {                                                                    \
        for (unsigned i = 0; i < COUNT; i++)                                                         \
            for (unsigned j = 0; j < COUNT; j++) {                                                   \
                volatile type va = (type)awkward[i], vb = (type)awkward[j];                          \
                type a = va, b = vb;                                                                 \
                unsigned_type ua = (unsigned_type)a, ub = (unsigned_type)b;                          \
                unsigned n = (unsigned)(ub % (8 * sizeof a));                                        \
                mix((unsigned_type)(ua + ub)); mix((unsigned_type)(ua - ub));                        \
                mix((unsigned_type)((uint64_t)ua * ub)); mix(a & b); mix(a | b); mix(a ^ b);         \
                mix((unsigned_type)(ua << n)); mix((unsigned_type)(a >> n)); mix(ua >> n);           \
                mix((unsigned_type)(ua << n | (n ? ua >> (8 * sizeof a - n) : 0)));                  \
                mix(a < b); mix(a == b); mix(a > b); mix(ua < ub);                                   \
                if (b && b != (type)-1) { mix(a / b); mix(a % b); }               \
                type r;                                                                              \
                mix(__builtin_add_overflow(a, b, &r)); mix(r);                                       \
                mix(__builtin_sub_overflow(a, b, &r)); mix(r);                                       \
                mix(__builtin_mul_overflow(a, b, &r)); mix(r);                                       \
            }                                                                                        \
        printf(#type " %016llx\n", (unsigned long long)sum);                                         \
    }

ARITHMETIC(int8_t, uint8_t) ARITHMETIC(int16_t, uint16_t) ARITHMETIC(int32_t, uint32_t) ARITHMETIC(int64_t, uint64_t)
ARITHMETIC(uint8_t, uint8_t) ARITHMETIC(uint16_t, uint16_t) ARITHMETIC(uint32_t, uint32_t)
ARITHMETIC(uint64_t, uint64_t)
#ifdef __SIZEOF_INT128__
typedef __int128 int128;
typedef unsigned __int128 uint128;
static void on_128(void) {
    for (unsigned i = 0; i < COUNT; i++)
        for (unsigned j = 0; j < COUNT; j++) {
            uint128 a = (uint128)awkward[i] << 64 | awkward[j], b = (uint128)awkward[j] << 32 | awkward[i];
            uint128 results[] = {a + b, a - b, a * b, b ? a / b : 0, b ? a % b : 0, a << (awkward[j] & 127),
                                 a >> (awkward[i] & 127), (uint128)((int128)a >> (awkward[j] & 127))};
            for (unsigned k = 0; k < sizeof results / sizeof *results; k++) { mix(results[k]); mix(results[k] >> 64); }
        }
    printf("int128 %016llx\n", (unsigned long long)sum);
}
#else
static void on_128(void) {}
#endif

static void bits(void) {
    for (unsigned i = 1; i < COUNT; i++) {
        volatile uint64_t x = awkward[i];
        mix(__builtin_popcountll(x)); mix(__builtin_clzll(x)); mix(__builtin_ctzll(x)); mix(__builtin_bswap64(x));
        mix(__builtin_parityll(x)); mix(__builtin_bswap32((uint32_t)x)); mix(x & (x - 1)); mix(x & -x);
        mix((x >> 7) & 0x3ff); mix(x & ~awkward[COUNT - i]);
    }
    printf("bits %016llx\n", (unsigned long long)sum);
}

static void sieve(void) {
    enum { LIMIT = 2000000 };
    unsigned char *composite = calloc(LIMIT + 1, 1);
    unsigned count = 0;
    for (unsigned i = 2; i <= LIMIT; i++) {
        if (composite[i]) continue;
        count++;
        for (uint64_t j = (uint64_t)i * i; j <= LIMIT; j += i) composite[j] = 1;
    }
    printf("primes %u\n", count);
    free(composite);
}

static void chains(void) {
    uint64_t x = 88172645463325252, y = 1;
    for (int i = 0; i < 5000000; i++) {
        x ^= x << 13; x ^= x >> 7; x ^= x << 17;
        y = y * 6364136223846793005 + (x % 1000003) - (int32_t)x / 7 + (y >> 33) % 13;
        if (y & 4) y ^= x; else y += (int16_t)x * (int8_t)y;
    }
    printf("chain %016llx\n", (unsigned long long)(x ^ y));
}

int main(void) {
    on_int8_t(); on_int16_t(); on_int32_t(); on_int64_t(); on_uint8_t(); on_uint16_t(); on_uint32_t(); on_uint64_t();
    on_128(); bits(); sieve(); chains();
    return 0;
}
