"""Page files: what memory images keep their pages in (memory/image).

A page file holds pages of 4 KiB, one behind another, and nothing else. There is a digest (memory/digest) of each piece
of ``PIECE`` pages, so that ``check`` needn't read what nobody uses any more, and ``punch`` may give that back.

Limits: none but the file system's.
"""

import mmap
import os
from collections.abc import Iterable
from errno import EOPNOTSUPP

from hostel.base.errors import MemoryError_
from hostel.base.linux.syscall import syscall
from hostel.memory.digest import digest

PAGE = 4096
PIECE = 256                       # pages under one digest, and written at once: 1 MiB
_DIGEST = 32                      # bytes
_FALLOCATE = 285
_PUNCH_HOLE, _KEEP_SIZE = 2, 1

Ranges = Iterable[tuple[int, int]]   # (first page, count)


def check(fd: int, pages: int, digests: bytes, needed: Ranges | None = None) -> None:
    """Whether the page file ``fd`` is as it was written: its size, and the pieces that hold ``needed`` pages, else all.

    Raises MemoryError_ where it isn't."""
    size = os.fstat(fd).st_size
    if size != pages * PAGE or len(digests) != (pages + PIECE - 1) // PIECE * _DIGEST:
        raise MemoryError_(f"the memory image is damaged: it has {size} bytes, not {pages * PAGE}")
    pieces = sorted({
        piece
        for first, count in merged([(0, pages)] if needed is None and pages else needed or (), pages)
        for piece in range(first // PIECE, (first + count - 1) // PIECE + 1)
    })
    if not pieces:
        return
    with mmap.mmap(fd, size, mmap.MAP_SHARED, mmap.PROT_READ) as content, memoryview(content) as view:
        for piece in pieces:
            first, last = piece * PIECE, min((piece + 1) * PIECE, pages)
            with view[first * PAGE : last * PAGE] as part:
                found = digest(part)
            if found != digests[piece * _DIGEST : (piece + 1) * _DIGEST]:
                raise MemoryError_(
                    f"the memory image is damaged: something in its pages {first} to {last - 1} isn't what was written"
                )


def punched(fd: int, pages: int, digests: bytes, keep: Ranges) -> bytes:
    """What the digests are once ``punch`` has taken everything but ``keep``; nothing is changed by this.

    So they can be stored first: ``punch`` can be done again if something comes between. Raises MemoryError_ where a
    piece of which something is kept is damaged already."""
    kept = merged(keep, pages)
    partly: dict[int, list[tuple[int, int]]] = {}
    for first, count in kept:
        for piece in range(first // PIECE, (first + count - 1) // PIECE + 1):
            begin = piece * PIECE
            partly.setdefault(piece, []).append((max(first, begin) - begin, min(first + count - begin, PIECE)))
    check(fd, pages, digests, kept)
    out = bytearray()
    buffer = bytearray(PIECE * PAGE)
    for piece in range(len(digests) // _DIGEST):
        length = min(PIECE, pages - piece * PIECE)
        here = partly.get(piece, [])
        if here == [(0, length)]:
            out += digests[piece * _DIGEST : (piece + 1) * _DIGEST]
            continue
        left = bytearray(length * PAGE)
        if here:
            content = _read_piece(fd, piece, pages, buffer)
            for begin, end in here:
                left[begin * PAGE : end * PAGE] = content[begin * PAGE : end * PAGE]
        out += digest(left)
    return bytes(out)


def punch(fd: int, pages: int, keep: Ranges) -> None:
    """Give the space of all pages but ``keep`` back to the file system: they are zero afterwards. Raises OSError."""
    at = 0
    for first, count in [*merged(keep, pages), (pages, 0)]:
        if at < first:
            try:
                syscall(_FALLOCATE, fd, _PUNCH_HOLE | _KEEP_SIZE, at * PAGE, (first - at) * PAGE)
            except OSError as e:
                if e.errno != EOPNOTSUPP:
                    raise
                # No holes in this file system: zeros all the same, because the digests say so.
                for page in range(at, first, PIECE):
                    os.pwrite(fd, bytes(min(PIECE, first - page) * PAGE), page * PAGE)
        at = first + count


def merged(ranges: Ranges, pages: int) -> list[tuple[int, int]]:
    """In order, apart, as long as can be. Raises MemoryError_ where one isn't among ``pages``."""
    out: list[tuple[int, int]] = []
    begin = end = 0
    for first, count in sorted(ranges):
        if first < 0 or count <= 0 or first + count > pages:
            raise MemoryError_(f"the memory image has no pages {first} to {first + count - 1}")
        if first > end and begin < end:
            out.append((begin, end - begin))
        if first > end or begin == end:
            begin = first
        end = max(end, first + count)
    return [*out, (begin, end - begin)] if begin < end else out


def _read_piece(fd: int, piece: int, pages: int, buffer: bytearray) -> memoryview:
    begin = piece * PIECE * PAGE
    view = memoryview(buffer)[: min(PIECE, pages - piece * PIECE) * PAGE]
    done = 0
    while done < len(view):
        n = os.preadv(fd, [view[done:]], begin + done)
        if not n:
            raise MemoryError_("the memory image is damaged: it has become shorter")
        done += n
    return view
