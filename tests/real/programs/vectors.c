/* Loops for the vectorizer, over every element type, length and misalignment, and GCC's own vector types. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static uint64_t sum = 0xcbf29ce484222325;

static void mix(uint64_t value) { sum = (sum ^ value) * 0x100000001b3; }
static void mix_bytes(const void *data, size_t n) { for (size_t i = 0; i < n; i++) mix(((const uint8_t *)data)[i]); }

static uint64_t state = 1;
static uint32_t next(void) { state = state * 6364136223846793005 + 1442695040888963407; return state >> 33; }

#define LOOPS(type)                                                                                              \
    __attribute__((noinline)) static void loops_##type(type *restrict d, const type *a, const type *b, int n) {  \
        for (int i = 0; i < n; i++) d[i] = a[i] + b[i] * 3;                                                      \
        for (int i = 0; i < n; i++) d[i] += a[i] > b[i] ? a[i] - b[i] : b[i] - a[i];                             \
        for (int i = 0; i < n; i++) d[i] = d[i] < 100 ? d[i] : (type)(d[i] / 2);                                 \
        type total = 0, most = a[0];                                                                             \
        for (int i = 0; i < n; i++) { total += d[i]; if (a[i] > most) most = a[i]; }                             \
        for (int i = 0; i + 1 < n; i += 2) { type t = d[i]; d[i] = d[i + 1]; d[i + 1] = t; }                     \
        mix((uint64_t)(int64_t)total); mix((uint64_t)(int64_t)most);                                             \
    }                                                                                                            \
    static void on_##type(void) {                                                                                \
        static type a[300], b[300], d[300];                                                                      \
        for (int shift = 0; shift < 5; shift++)                                                                  \
            for (int n = 1; n < 260; n += 1 + n / 9) {                                                           \
                for (int i = 0; i < 300; i++) { a[i] = (type)(next() % 113); b[i] = (type)(next() % 97); }       \
                memset(d, 0, sizeof d);                                                                          \
                loops_##type(d + shift, a + 1, b + 2 * shift, n);                                                \
                mix_bytes(d, sizeof d);                                                                          \
            }                                                                                                    \
        printf(#type " %016llx\n", (unsigned long long)sum);                                                     \
    }

LOOPS(int8_t) LOOPS(uint8_t) LOOPS(int16_t) LOOPS(uint16_t) LOOPS(int32_t) LOOPS(uint32_t) LOOPS(int64_t)
LOOPS(uint64_t) LOOPS(float) LOOPS(double)

typedef int32_t v8si __attribute__((vector_size(32)));
typedef float v8sf __attribute__((vector_size(32)));
typedef double v4df __attribute__((vector_size(32)));
typedef uint8_t v16qi __attribute__((vector_size(16)));

static void types(void) {
    v8si x = {1, -2, 3, -4, 5, -6, 7, -8}, y = {9, 8, 7, 6, 5, 4, 3, 2};
    v8sf f = {0.5f, 1.5f, -2.5f, 3.25f, 4, 5, 6, 7};
    v4df g = {1, 2, 3, 4};
    v16qi q = {0}, p = {15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0};
    for (int i = 0; i < 20000; i++) {
        x = x * y + (x >> 3); y ^= x << 1; x = __builtin_shuffle(x, (v8si){3, 2, 1, 0, 7, 6, 5, 4});
        y += x > y;
        f = f * 0.999f + __builtin_convertvector(x & 15, v8sf);
        g = g * 0.75 + 1.0 / (g + 2.0);
        q += p; p = __builtin_shuffle(p, q & 15); q ^= (q > p);
    }
    mix_bytes(&x, sizeof x); mix_bytes(&y, sizeof y); mix_bytes(&f, sizeof f); mix_bytes(&g, sizeof g);
    mix_bytes(&q, sizeof q); mix_bytes(&p, sizeof p);
    printf("types %016llx\n", (unsigned long long)sum);
}

static void strings(void) {
    static char from[5000], to[5000];
    for (int i = 0; i < 4999; i++) from[i] = (char)('a' + next() % 26);
    for (int n = 0; n < 4200; n += 1 + n / 5)
        for (int shift = 0; shift < 40; shift += 3) {
            memcpy(to + shift, from, n); memmove(to + shift + 1, to + shift, n); memset(to + n, shift, 33);
            mix(memcmp(to, from, n) > 0); mix(strlen(from + shift)); mix((uint64_t)(strchr(from + shift, 'q') - from));
            mix(memchr(from, 'z', n) ? (uint64_t)((char *)memchr(from, 'z', n) - from) : 9999);
            char *found = strstr(from + shift, "ab");
            mix(found ? (uint64_t)(found - from) : 9999);
            mix_bytes(to, 60);
        }
    mix_bytes(to, sizeof to);
    printf("strings %016llx\n", (unsigned long long)sum);
}

int main(void) {
    on_int8_t(); on_uint8_t(); on_int16_t(); on_uint16_t(); on_int32_t(); on_uint32_t(); on_int64_t(); on_uint64_t();
    on_float(); on_double();
    types(); strings();
    return 0;
}
