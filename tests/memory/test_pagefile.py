"""Page files that are damaged, and such that have given pages back."""

import os
import random
import tempfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hostel.base.errors import MemoryError_
from hostel.memory import pagefile
from hostel.memory.digest import digest

PAGE = 4096
PIECE = pagefile.PIECE


def page_file(pages):
    """The file, its content and its digests."""
    file = tempfile.TemporaryFile(buffering=0)
    content = random.Random(pages).randbytes(pages * PAGE)
    file.write(content)
    return file, content, digests_of(content)


def digests_of(content):
    step = PIECE * PAGE
    return b"".join(digest(content[i : i + step]) for i in range(0, len(content), step))


@pytest.mark.parametrize("pages", [0, 1, 255, 256, 257, 2600])
def test_as_it_was(pages):
    file, _, digests = page_file(pages)
    pagefile.check(file.fileno(), pages, digests)
    pagefile.check(file.fileno(), pages, digests, [])
    if pages:
        pagefile.check(file.fileno(), pages, digests, [(pages - 1, 1)])


@pytest.mark.parametrize("pages", [3, 600, 2600])
def test_one_flipped_bit(pages):
    file, content, digests = page_file(pages)
    for at in (0, len(content) // 2, len(content) - 1):
        os.pwrite(file.fileno(), bytes([content[at] ^ 0x10]), at)
        with pytest.raises(MemoryError_, match="damaged") as e:
            pagefile.check(file.fileno(), pages, digests)
        assert "\n" not in str(e.value)
        piece = at // PAGE // PIECE
        with pytest.raises(MemoryError_, match=f"pages {piece * PIECE} to {min(pages, piece * PIECE + PIECE) - 1} "):
            pagefile.check(file.fileno(), pages, digests, [(at // PAGE, 1)])
        others = [(i * PIECE, min(PIECE, pages - i * PIECE)) for i in range(len(digests) // 32) if i != piece]
        pagefile.check(file.fileno(), pages, digests, others)
        os.pwrite(file.fileno(), content[at : at + 1], at)


def test_another_size_and_other_digests():
    file, content, digests = page_file(300)
    for size in (0, 299 * PAGE, 300 * PAGE - 1, 300 * PAGE + 1):
        os.truncate(file.fileno(), size)
        with pytest.raises(MemoryError_, match=f"damaged: it has {size} bytes, not 1228800"):
            pagefile.check(file.fileno(), 300, digests)
    os.truncate(file.fileno(), 0)
    os.pwrite(file.fileno(), content, 0)
    for wrong in (digests[:-1], digests[:-32], digests + bytes(32), b""):
        with pytest.raises(MemoryError_, match="damaged"):
            pagefile.check(file.fileno(), 300, wrong)


@pytest.mark.parametrize("ranges", [[(0, 0)], [(-1, 2)], [(299, 2)], [(0, 1 << 70)], [(5, -1)]])
def test_ranges_that_can_not_be(ranges):
    file, content, digests = page_file(300)
    for what in (
        lambda: pagefile.check(file.fileno(), 300, digests, ranges),
        lambda: pagefile.punched(file.fileno(), 300, digests, ranges),
        lambda: pagefile.punch(file.fileno(), 300, ranges),
    ):
        with pytest.raises(MemoryError_, match="has no pages"):
            what()
    file.seek(0)
    assert file.read() == content


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 1100), st.lists(st.tuples(st.integers(0, 1099), st.integers(1, 500)), max_size=8))
def test_punching(pages, ranges):
    file, content, digests = page_file(pages)
    keep = [(first, min(count, pages - first)) for first, count in ranges if first < pages]
    want = bytearray(len(content))
    for first, count in keep:
        want[first * PAGE : (first + count) * PAGE] = content[first * PAGE : (first + count) * PAGE]
    new = pagefile.punched(file.fileno(), pages, digests, keep)
    pagefile.check(file.fileno(), pages, digests)                 # nothing has been done yet
    for _ in range(2):                                            # again, as after a crash
        pagefile.punch(file.fileno(), pages, keep)
        file.seek(0)
        assert file.read() == want
    assert new == digests_of(bytes(want))
    pagefile.check(file.fileno(), pages, new)


def test_the_space_is_given_back():
    file, _, _ = page_file(1000)
    os.fsync(file.fileno())
    before = os.fstat(file.fileno()).st_blocks
    pagefile.punch(file.fileno(), 1000, [(10, 5)])
    after = os.fstat(file.fileno())
    assert after.st_blocks < before // 4 and after.st_size == 1000 * PAGE


def test_a_file_system_without_holes(monkeypatch):
    def refuse(*args):
        raise OSError(95, "Operation not supported")

    file, content, digests = page_file(700)
    new = pagefile.punched(file.fileno(), 700, digests, [(300, 7)])
    monkeypatch.setattr(pagefile, "syscall", refuse)
    pagefile.punch(file.fileno(), 700, [(300, 7)])
    pagefile.check(file.fileno(), 700, new)


def test_damage_gets_no_new_digest():
    file, content, digests = page_file(700)
    os.pwrite(file.fileno(), b"damage", 5 * PAGE)
    with pytest.raises(MemoryError_, match="pages 0 to 255"):
        pagefile.punched(file.fileno(), 700, digests, [(0, 100)])
    new = pagefile.punched(file.fileno(), 700, digests, [(256, 100)])  # nobody needs that piece
    pagefile.punch(file.fileno(), 700, [(256, 100)])
    pagefile.check(file.fileno(), 700, new)
