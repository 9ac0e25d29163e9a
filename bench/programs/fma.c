/* Multiplication of matrices of doubles by AVX2 and FMA, four by eight in registers. */
#include "bench.h"
#include <immintrin.h>

#define N 256

static double a[N][N], b[N][N] __attribute__((aligned(32))), c[N][N] __attribute__((aligned(32)));

__attribute__((target("avx2,fma"), noinline)) static void multiply(void)
{
    for (int i = 0; i < N; i += 4)
        for (int j = 0; j < N; j += 8) {
            __m256d sums[4][2];
            for (int y = 0; y < 4; y++)
                sums[y][0] = sums[y][1] = _mm256_setzero_pd();
            for (int k = 0; k < N; k++) {
                __m256d left = _mm256_load_pd(&b[k][j]), right = _mm256_load_pd(&b[k][j + 4]);
                for (int y = 0; y < 4; y++) {
                    __m256d factor = _mm256_broadcast_sd(&a[i + y][k]);
                    sums[y][0] = _mm256_fmadd_pd(factor, left, sums[y][0]);
                    sums[y][1] = _mm256_fmadd_pd(factor, right, sums[y][1]);
                }
            }
            for (int y = 0; y < 4; y++) {
                _mm256_store_pd(&c[i + y][j], sums[y][0]);
                _mm256_store_pd(&c[i + y][j + 4], sums[y][1]);
            }
        }
}

int main(int argc, char **argv)
{
    long rounds = work_amount(argc, argv, 5);
    uint64_t sum = 0;
    for (int i = 0; i < N; i++)
        for (int j = 0; j < N; j++)
            a[i][j] = (i * 7 + j * 3) % 11 / 3.0, b[i][j] = (i + j * 5) % 13 / 7.0;
    work_begin();
    for (long round = 0; round < rounds; round++) {
        multiply();
        a[round % N][(round * 17) % N] += c[round % N][0] / 1024;
    }
    for (int i = 0; i < N; i++)
        for (int j = 0; j < N; j++) {
            uint64_t bits;
            memcpy(&bits, &c[i][j], 8);
            sum = sum * 31 + bits;
        }
    work_end(sum);
    return 0;
}
