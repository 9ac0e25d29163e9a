/* memcpy and memset by AVX2, of blocks from 256 bytes to a megabyte. */
#include "bench.h"
#include <immintrin.h>

#define SIZE (1 << 20)

__attribute__((target("avx2"), noinline)) static void copy(uint8_t *to, const uint8_t *from, size_t size)
{
    for (size_t i = 0; i < size; i += 64) {
        __m256i a = _mm256_loadu_si256((const __m256i *)(from + i));
        __m256i b = _mm256_loadu_si256((const __m256i *)(from + i + 32));
        _mm256_storeu_si256((__m256i *)(to + i), a);
        _mm256_storeu_si256((__m256i *)(to + i + 32), b);
    }
}

__attribute__((target("avx2"), noinline)) static void set(uint8_t *to, uint8_t value, size_t size)
{
    __m256i all = _mm256_set1_epi8((char)value);
    for (size_t i = 0; i < size; i += 64) {
        _mm256_storeu_si256((__m256i *)(to + i), all);
        _mm256_storeu_si256((__m256i *)(to + i + 32), all);
    }
}

int main(int argc, char **argv)
{
    long rounds = work_amount(argc, argv, 500);
    uint8_t *from = bench_memory(SIZE + 64), *to = bench_memory(SIZE + 64);
    uint64_t sum = 0;
    for (int i = 0; i < SIZE + 64; i++)
        from[i] = (uint8_t)(i * 7 + (i >> 8));
    work_begin();
    for (long round = 0; round < rounds; round++)
        for (size_t size = 256; size <= SIZE; size *= 16) {
            for (size_t at = 0; at + size <= SIZE; at += size) {
                copy(to + at, from + at + (size_t)(round & 31), size); /* mostly unaligned, as in life */
                set(from + at, (uint8_t)(to[at] + 1), size / 2);
            }
            sum = sum * 31 + to[(size_t)round * 4099 % SIZE];
        }
    work_end(sum);
    return 0;
}
