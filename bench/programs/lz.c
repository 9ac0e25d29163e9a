/* LZ decompression in the manner of LZ4: short copies, bytes that decide where to go. */
#include "bench.h"

#define SIZE (4 << 20)
#define MIN_MATCH 4

static uint8_t plain[SIZE], packed[SIZE * 2], unpacked[SIZE + 64];
static uint32_t heads[1 << 16];

static uint8_t *put_length(uint8_t *out, size_t length)
{
    for (; length >= 255; length -= 255)
        *out++ = 255;
    *out++ = (uint8_t)length;
    return out;
}

/* A token (literals' count, match's length less 4: 15 means more bytes follow), literals, two bytes of distance. */
static uint8_t *sequence(uint8_t *out, const uint8_t *literals, size_t count, size_t length, size_t distance)
{
    size_t more = length - MIN_MATCH;
    *out++ = (uint8_t)((count < 15 ? count : 15) << 4 | (more < 15 ? more : 15));
    if (count >= 15)
        out = put_length(out, count - 15);
    memcpy(out, literals, count);
    out += count;
    *out++ = (uint8_t)distance;
    *out++ = (uint8_t)(distance >> 8);
    return more >= 15 ? put_length(out, more - 15) : out;
}

static size_t compress(const uint8_t *in, size_t size)
{
    uint8_t *out = packed;
    size_t at = 1, literals = 0;
    while (at + 8 < size) {
        uint32_t word, there;
        memcpy(&word, in + at, 4);
        uint32_t *head = &heads[word * 2654435761u >> 16];
        size_t candidate = *head;
        *head = (uint32_t)at;
        memcpy(&there, in + candidate, 4);
        if (there != word || at - candidate > 65535 || candidate >= at) {
            at++;
            continue;
        }
        size_t length = MIN_MATCH;
        while (at + length + 8 < size && in[candidate + length] == in[at + length])
            length++;
        out = sequence(out, in + literals, at - literals, length, at - candidate);
        at += length;
        literals = at;
    }
    return (size_t)(sequence(out, in + literals, size - literals, MIN_MATCH, 0) - packed);
}

static size_t decompress(const uint8_t *in, const uint8_t *end)
{
    uint8_t *out = unpacked;
    while (in < end) {
        unsigned token = *in++, more;
        size_t count = token >> 4, length = (token & 15) + MIN_MATCH;
        if (count == 15)
            do
                count += more = *in++;
            while (more == 255);
        for (size_t i = 0; i < count; i++)
            out[i] = in[i];
        out += count, in += count;
        size_t distance = in[0] | (size_t)in[1] << 8;
        in += 2;
        if (!distance)
            break;
        if (length == 15 + MIN_MATCH)
            do
                length += more = *in++;
            while (more == 255);
        const uint8_t *from = out - distance;
        if (distance >= 8) {
            uint8_t *stop = out + length;
            for (; out < stop; out += 8, from += 8)
                memcpy(out, from, 8);
            out = stop;
        } else {
            while (length--)
                *out++ = *from++;
        }
    }
    return (size_t)(out - unpacked);
}

int main(int argc, char **argv)
{
    static const char *const words[] = {
        "the ", "quick ", "brown ", "fox ", "jumps ", "over ", "lazy ", "dog ", "return ", "struct ", "page ",
        "table ", "of ", "a ", "block ", "translated ", "instruction ", "\n", "0x", "== ", "static ", "int ", "cache ",
    };
    long rounds = work_amount(argc, argv, 100);
    uint64_t seed = 88172645463325252u, sum = 0;
    for (size_t at = 0; at < SIZE - 32;) {
        uint64_t random = bench_random(&seed) >> 16;
        if (random % 16 == 0) { /* a number among the words */
            plain[at++] = (uint8_t)('0' + (random >> 8) % 10);
            plain[at++] = (uint8_t)(random >> 16);
            continue;
        }
        const char *word = words[(random >> 4) % (sizeof words / sizeof *words)];
        memcpy(plain + at, word, strlen(word));
        at += strlen(word);
    }
    size_t size = compress(plain, SIZE);
    work_begin();
    for (long round = 0; round < rounds; round++) {
        size_t got = decompress(packed, packed + size);
        sum = sum * 31 + got;
    }
    for (size_t i = 0; i < SIZE; i += 8) {
        uint64_t word;
        memcpy(&word, unpacked + i, 8);
        sum = (sum ^ word) * 0x100000001b3u;
    }
    work_end(memcmp(plain, unpacked, SIZE) ? 0 : sum + size);
    return 0;
}
