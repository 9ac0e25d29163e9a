"""Strings of bytes in memory, for the agent's parts: in the subset of Python that `tiny` compiles."""

from hostel.images.tiny import copy, load8


def length(string: int) -> int:
    n = 0
    while load8(string + n):
        n += 1
    return n


def begins(string: int, prefix: int) -> int:
    """Whether ``string`` begins with ``prefix``: what follows it, else 0."""
    while load8(prefix):
        if load8(string) != load8(prefix):
            return 0
        string += 1
        prefix += 1
    return string


def same(string: int, other: int) -> int:
    at = begins(string, other)
    return at and not load8(at)


def found(string: int, wanted: int) -> int:
    while load8(string):
        if begins(string, wanted):
            return 1
        string += 1
    return 0


def number(string: int) -> int:
    n = 0
    while load8(string) >= 48 and load8(string) <= 57:
        n = n * 10 + load8(string) - 48
        string += 1
    return n


def append(to: int, string: int) -> int:
    """Writes ``string`` at ``to`` with its zero; returns where the zero is."""
    n = length(string)
    copy(to, string, n + 1)
    return to + n


def least(a: int, b: int) -> int:
    if a < b:
        return a
    return b
