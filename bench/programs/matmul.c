/* Multiplication of matrices of doubles, in the plainest way. */
#include "bench.h"

#define N 300

static double a[N][N], b[N][N], c[N][N];

int main(int argc, char **argv)
{
    long rounds = work_amount(argc, argv, 20);
    uint64_t sum = 0;
    for (int i = 0; i < N; i++)
        for (int j = 0; j < N; j++)
            a[i][j] = (i * 7 + j * 3) % 11 - 5.0, b[i][j] = (i + j * 5) % 13 / 4.0;
    work_begin();
    for (long round = 0; round < rounds; round++) {
        for (int i = 0; i < N; i++)
            for (int j = 0; j < N; j++) {
                double dot = 0;
                for (int k = 0; k < N; k++)
                    dot += a[i][k] * b[k][j];
                c[i][j] = dot;
            }
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
