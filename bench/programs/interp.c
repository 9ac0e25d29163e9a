/* A bytecode interpreter: one indirect jump for each instruction of a program that sieves primes. */
#include "bench.h"

enum op { PUSH, LOAD, STORE, GET, SET, ADD, SUB, MUL, LESS, JUMP, JUMP_IF_ZERO, DUP, DROP, HALT };

#define LIMIT 20000

static int64_t memory[LIMIT + 1];

/* variables: 0 i, 1 j, 2 count; memory is the sieve */
static const int32_t code[] = {
    /*  0 */ PUSH, 2, STORE, 0,                          /* i = 2 */
    /*  4 */ LOAD, 0, PUSH, LIMIT, LESS, JUMP_IF_ZERO, 54, /* while (i < LIMIT) */
    /* 11 */ LOAD, 0, GET, JUMP_IF_ZERO, 19,             /* if (memory[i]) goto 47 */
    /* 16 */ JUMP, 47, DROP,
    /* 19 */ LOAD, 2, PUSH, 1, ADD, STORE, 2,            /* count++ */
    /* 26 */ LOAD, 0, DUP, ADD, STORE, 1,                /* j = i + i */
    /* 32 */ LOAD, 1, PUSH, LIMIT, LESS, JUMP_IF_ZERO, 47, /* while (j < LIMIT) */
    /* 39 */ LOAD, 1, PUSH, 1, SET, JUMP, 56, HALT,      /* memory[j] = 1 */
    /* 47 */ LOAD, 0, PUSH, 1, ADD, STORE, 0,            /* i++ */
    /* 54 */ JUMP, 65,                                   /* to the test, or the end */
    /* 56 */ LOAD, 1, LOAD, 0, ADD, STORE, 1,            /* j += i */
    /* 63 */ JUMP, 32,
    /* 65 */ LOAD, 0, PUSH, LIMIT, LESS, JUMP_IF_ZERO, 74,
    /* 72 */ JUMP, 4,
    /* 74 */ LOAD, 2, HALT,
};

static int64_t interpret(uint64_t *executed)
{
    int64_t stack[16], variables[4] = {0}, *top = stack;
    const int32_t *pc = code;
    uint64_t count = 0;
    for (;;) {
        count++;
        switch ((enum op)*pc++) {
        case PUSH: *top++ = *pc++; break;
        case LOAD: *top++ = variables[*pc++]; break;
        case STORE: variables[*pc++] = *--top; break;
        case GET: top[-1] = memory[top[-1]]; break;
        case SET: top -= 2, memory[top[0]] = top[1]; break;
        case ADD: top--, top[-1] += top[0]; break;
        case SUB: top--, top[-1] -= top[0]; break;
        case MUL: top--, top[-1] *= top[0]; break;
        case LESS: top--, top[-1] = top[-1] < top[0]; break;
        case JUMP: pc = code + *pc; break;
        case JUMP_IF_ZERO: pc = *--top ? pc + 1 : code + *pc; break;
        case DUP: *top = top[-1], top++; break;
        case DROP: top--; break;
        case HALT: *executed += count; return top[-1];
        }
    }
}

int main(int argc, char **argv)
{
    long rounds = work_amount(argc, argv, 250);
    uint64_t sum = 0, executed = 0;
    work_begin();
    for (long round = 0; round < rounds; round++) {
        memset(memory, 0, sizeof memory);
        sum = sum * 31 + (uint64_t)interpret(&executed);
    }
    work_end(sum ^ executed);
    return 0;
}
