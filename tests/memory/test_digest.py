"""Page digests against a model in plain Python, and that a change anywhere shows."""

import random
import struct
from hashlib import sha256

import pytest

from hostel.memory.digest import PAGE, digest

MASK = (1 << 64) - 1
P1, P2, P3 = 0x9E3779B185EBCA87, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9


def rotated(value, by):
    return (value << by | value >> 64 - by) & MASK


def page_sum(page):
    lanes = [P1 + P2 & MASK, P2, 0, -P1 & MASK]
    for n, (word,) in enumerate(struct.iter_unpack("<Q", page)):
        lanes[n % 4] = rotated(lanes[n % 4] + word * P2 & MASK, 31) * P1 & MASK
    out = sum(rotated(lane, by) for lane, by in zip(lanes, (1, 7, 12, 18), strict=True)) & MASK
    out = (out ^ out >> 33) * P2 & MASK
    out = (out ^ out >> 29) * P3 & MASK
    return out ^ out >> 32


@pytest.mark.parametrize("pages", [1, 2, 7])
def test_as_the_model_says(pages):
    data = random.Random(pages).randbytes(pages * PAGE)
    sums = b"".join(struct.pack("<Q", page_sum(data[at : at + PAGE])) for at in range(0, len(data), PAGE))
    assert digest(data) == sha256(sums).digest()


def test_a_flipped_bit_and_swapped_pages_show():
    generator = random.Random(1)
    data = bytearray(generator.randbytes(4 * PAGE))
    before = digest(data)
    for _ in range(200):
        bit = generator.randrange(len(data) * 8)
        data[bit >> 3] ^= 1 << (bit & 7)
        assert digest(data) != before
        data[bit >> 3] ^= 1 << (bit & 7)
    assert digest(data) == before
    assert digest(data[PAGE : 2 * PAGE] + data[:PAGE] + data[2 * PAGE :]) != before
