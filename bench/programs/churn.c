/* Fresh code for ever: routines of 8 instructions, written anew and called, as a JIT compiler's. */
#include "bench.h"

#define PLACES 4096
#define SIZE 64

int main(int argc, char **argv)
{
    long count = work_amount(argc, argv, 400000);
    uint64_t sum = 0;
    int everything = PROT_READ | PROT_WRITE | PROT_EXEC;
    unsigned char *code = mmap(NULL, PLACES * SIZE, everything, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (code == MAP_FAILED)
        return 1;
    work_begin();
    for (long i = 0; i < count; i++) {
        unsigned char *at = code + i * 7919 % PLACES * SIZE;
        unsigned char *p = at;
        *p++ = 0xb8; /* mov eax, i */
        memcpy(p, &(uint32_t){(uint32_t)i}, 4), p += 4;
        for (int k = 0; k < 6; k++) { /* add, xor or imul eax, k */
            static const unsigned char forms[3][2] = {{0x83, 0xc0}, {0x83, 0xf0}, {0x6b, 0xc0}};
            memcpy(p, forms[(i + k) % 3], 2);
            p[2] = (unsigned char)(k * 3 + i % 5 + 1);
            p += 3;
        }
        *p = 0xc3;
        sum = sum * 31 + ((uint32_t(*)(void))(void *)at)();
    }
    work_end(sum);
    return 0;
}
