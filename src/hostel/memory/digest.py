"""Checksums of pages.

They find what was torn, cut or changed by accident; who writes files of ours on purpose writes their checksums as well.
So the pages are summed up by xxHash's 64-bit rounds, five times as fast as SHA-256, and that is taken of the sums.
"""

from hashlib import sha256

import cython
from cython.cimports.libc.stdint import uint64_t

PAGE = 4096

PRIME_1 = cython.declare(uint64_t, 0x9E3779B185EBCA87)
PRIME_2 = cython.declare(uint64_t, 0xC2B2AE3D27D4EB4F)
PRIME_3 = cython.declare(uint64_t, 0x165667B19E3779F9)


def page_hash(word, seed):
    # in four lanes that the processor works on at once
    i: cython.int
    a: uint64_t = seed + PRIME_1 + PRIME_2
    b: uint64_t = seed + PRIME_2
    c: uint64_t = seed
    d: uint64_t = seed - PRIME_1
    for i in range(0, 512, 4):
        a = _round(a, word[i])
        b = _round(b, word[i + 1])
        c = _round(c, word[i + 2])
        d = _round(d, word[i + 3])
    a = (a << 1 | a >> 63) + (b << 7 | b >> 57) + (c << 12 | c >> 52) + (d << 18 | d >> 46)
    a = (a ^ (a >> 33)) * PRIME_2
    a = (a ^ (a >> 29)) * PRIME_3
    return a ^ (a >> 32)


@cython.cfunc
@cython.inline
@cython.nogil
@cython.exceptval(check=False)
def _round(lane: uint64_t, word: uint64_t) -> uint64_t:
    lane += word * PRIME_2
    return (lane << 31 | lane >> 33) * PRIME_1


def digest(data) -> bytes:
    """32 bytes that stand for ``data``, a buffer of whole pages."""
    view: cython.const[cython.uchar][::1] = data
    pages: cython.Py_ssize_t = len(view) // PAGE
    sums = bytearray(8 * max(pages, 1))
    out: cython.uchar[::1] = sums
    to: cython.pointer(uint64_t) = cython.cast(cython.pointer(uint64_t), cython.address(out[0]))
    word: cython.pointer(cython.const[uint64_t])
    i: cython.Py_ssize_t
    if pages:
        word = cython.cast(cython.pointer(cython.const[uint64_t]), cython.address(view[0]))
        with cython.nogil:
            for i in range(pages):
                to[i] = page_hash(word + 512 * i, 0)
    return sha256(sums).digest()
