"""C for a compiler to chew on: as much of it as is wanted, always the same, and of a kind that people write."""

import random

_HEAD = """\
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct record {
    struct record *next;
    char name[24];
    int64_t values[8];
    double weight;
    unsigned kind : 4, flags : 12;
};
"""

# %(n)d is the function's number, the other numbers are drawn for each.
_FUNCTIONS = ("""
static int64_t sum_%(n)d(const struct record *list, int64_t limit)
{
    int64_t total = %(a)d;
    for (const struct record *r = list; r; r = r->next) {
        if (r->kind == %(k)d || (r->flags & %(b)d))
            continue;
        for (int i = 0; i < 8; i++)
            total += r->values[i] * (i + %(a)d) %% %(c)d;
        if (total > limit)
            return total - (int64_t)(r->weight * %(b)d.5);
    }
    return total;
}
""", """
static const char *name_%(n)d(struct record *r, int kind)
{
    switch (kind) {
    case %(k)d: return "k%(n)d.first";
    case %(k)d + 1: r->flags |= %(b)d; return r->name;
    case %(k)d + 2: snprintf(r->name, sizeof r->name, "%%s-%%d", "n%(n)d", kind + %(a)d); return r->name;
    case %(k)d + 5: return r->next ? name_%(n)d(r->next, kind - 1) : "end";
    case %(k)d + 9: r->kind = %(k)d; break;
    default:
        if (kind < %(a)d)
            return strchr(r->name, '%(l)s');
    }
    return kind & 1 ? "odd" : NULL;
}
""", """
static uint32_t hash_%(n)d(const void *data, size_t size)
{
    const uint8_t *at = data, *end = at + size;
    uint32_t a = %(c)du, b = %(b)du, t;
    while (end - at >= 4) {
        memcpy(&t, at, 4);
        a = (a ^ t) * %(c)du;
        b += a >> %(k)d | a << (32 - %(k)d);
        at += 4;
    }
    while (at < end)
        a = (a << 5) + a + *at++;
    return a ^ b >> %(k)d;
}
""", """
static struct record *sorted_%(n)d(struct record *list)
{
    struct record *out = NULL;
    while (list) {
        struct record *r = list, **place = &out;
        list = r->next;
        while (*place && ((*place)->weight * %(a)d < r->weight || strcmp((*place)->name, r->name) < 0))
            place = &(*place)->next;
        r->next = *place;
        *place = r;
    }
    return out;
}
""", """
static double mix_%(n)d(double *row, int count)
{
    double best = %(a)d.25, last = 0;
    for (int i = 1; i < count - 1; i++) {
        double here = (row[i - 1] + %(b)d * row[i] + row[i + 1]) / %(a)d;
        row[i] = here > best ? best : here - last * 0.%(k)d;
        last = here < 0 ? -here : here;
    }
    return best + last;
}
""")
_CALLS = (
    "total += sum_%d(list, total);", "total += name_%d(list, (int)total) != NULL;",
    "total ^= hash_%d(list, sizeof *list);", "list = sorted_%d(list);", "total += (int64_t)mix_%d(row, 16);",
)


def unit(lines: int, seed: int) -> str:
    """A translation unit of ``lines`` lines or a few more, with one global function that calls all others."""
    choose = random.Random(seed)
    text, calls, number = [_HEAD], [], 0
    while sum(part.count("\n") for part in text) + len(calls) + 8 < lines:
        kind = choose.randrange(len(_FUNCTIONS))
        drawn = {"a": choose.randrange(2, 9), "b": choose.randrange(9, 200), "c": choose.randrange(1000, 99999) | 1}
        drawn |= {"n": number, "k": choose.randrange(1, 9), "l": choose.choice("abcxyz")}
        text.append(_FUNCTIONS[kind] % drawn)
        calls.append("    " + _CALLS[kind] % number)
        number += 1
    body = "\n".join(calls)
    text.append(
        f"\nint64_t unit_{seed}(struct record *list, double *row)\n{{\n    int64_t total = {seed};\n{body}\n"
        "    return total;\n}\n"
    )
    return "".join(text)
