"""A strict reader of tar streams (POSIX ustar and pax, GNU long names and sparse files), for layers and archives.

It reads forwards only and holds one piece in memory. What tar leaves open, or what readers are known to read
differently, is an error: wrong checksums, sizes that are negative, headers that are longer than any name could be,
and an end that isn't one. Names are bytes, as the file system's are.
"""

from collections.abc import Iterator
from typing import BinaryIO

from hostel.base.errors import ImageError

BLOCK = 512
PAX_LIMIT = 1 << 20  # bytes of one extended header: an inode's attributes have 64 KiB together on most file systems
NAME_LIMIT = 4096  # PATH_MAX
FILE_LIMIT = 1 << 62
TIME_LIMIT = 1 << 33  # seconds; beyond it file systems know no times
SPARSE_LIMIT = 1 << 20  # pieces of one sparse file
_ZEROS = bytes(BLOCK)
REGULAR, LINK, SYMLINK, CHARACTER, BLOCK_DEVICE, FOLDER, FIFO = b"0", b"1", b"2", b"3", b"4", b"5", b"6"
_FILES = frozenset((b"0", b"\0", b"7", b"S"))
_KINDS = frozenset((LINK, SYMLINK, CHARACTER, BLOCK_DEVICE, FOLDER, FIFO))


class TarError(ImageError):
    """A stream that is no tar, or no honest one."""


class Entry:
    """A member: ``size`` is of the file as it will be; ``sparse`` lists (offset, length) of what the stream has of it,
    or is None where it has all."""

    __slots__ = ("name", "kind", "mode", "uid", "gid", "size", "mtime", "link", "xattrs", "sparse", "stored")

    name: bytes
    kind: bytes
    mode: int
    uid: int
    gid: int
    size: int
    mtime: int  # nanoseconds
    link: bytes
    xattrs: dict[bytes, bytes] | None
    sparse: list[tuple[int, int]] | None
    stored: int  # bytes of content in the stream


class Stream:
    """Bytes from pieces, in the sizes that a reader wants them."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self._data = b""
        self._at = 0

    def block(self) -> bytes:
        at = self._at
        data = self._data[at : at + BLOCK]
        if len(data) == BLOCK:
            self._at = at + BLOCK
            return data
        return self.read(BLOCK)

    def ended(self) -> bool:
        """Whether nothing follows."""
        if self._at == len(self._data):
            self._data, self._at = next(self._pieces, b""), 0
        return not self._data

    def read(self, size: int) -> bytes:
        """Exactly so many bytes."""
        at = self._at
        if at + size <= len(self._data):
            self._at = at + size
            return self._data[at : at + size]
        return b"".join(self.some(size))

    def some(self, size: int) -> Iterator[memoryview]:
        """So many bytes in pieces; the views are valid until the next call of anything here."""
        while size:
            have = len(self._data) - self._at
            if not have:
                self._data, self._at = next(self._pieces, b""), 0
                have = len(self._data)
                if not have:
                    raise TarError("a tar stream ends in the middle")
            taken = min(have, size)
            at, self._at = self._at, self._at + taken
            size -= taken
            yield memoryview(self._data)[at : at + taken]

    def skip(self, size: int) -> None:
        for _ in self.some(size):
            pass

    def drain(self) -> None:
        """To the end, so that all of it is hashed. What follows a tar's end is nobody's business."""
        self._data = b""
        for _ in self._pieces:
            pass


class Reader:
    """Iterates over the entries; the content of each is what ``content`` yields, or is skipped."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self.stream = Stream(pieces)
        self._left = 0  # bytes of the current entry's content
        self._padding = 0

    def content(self) -> Iterator[memoryview]:
        return self.part(self._left)

    def part(self, size: int) -> Iterator[memoryview]:
        """The next ``size`` bytes of it, all of which must be taken."""
        self._left -= size
        return self.stream.some(size)

    def whole(self, limit: int) -> bytes:
        """All content of a short entry."""
        if self._left > limit:
            raise TarError(f"a file has {self._left} bytes where {limit} are plenty")
        size, self._left = self._left, 0
        return self.stream.read(size)

    def __iter__(self) -> Iterator[Entry]:
        stream = self.stream
        everywhere: dict[bytes, bytes] = {}
        pax: list[tuple[bytes, bytes]] = []
        long_name = long_link = b""
        while True:
            if self._left or self._padding:
                stream.skip(self._left + self._padding)
                self._left = self._padding = 0
            if stream.ended() and not (pax or long_name or long_link):
                return  # without the zeros of an end, as umoci's layers do; whether it is whole is the digest's to say
            header = stream.block()
            if header == _ZEROS:
                if pax or long_name or long_link:
                    raise TarError("a tar stream ends after an extended header")
                stream.drain()  # a second one should follow (pax, 4.d), and not all writers know
                return
            field = header[148:156]
            if sum(header) - sum(field) + 256 != _number(field):
                raise TarError("a tar header's checksum is wrong")
            kind = header[156:157]
            size = _number(header[124:136])
            if kind in (b"x", b"g", b"L", b"K"):
                if size < 0:
                    raise TarError("a tar's extended header has a negative size")
                limit = PAX_LIMIT if kind in (b"x", b"g") else NAME_LIMIT + 1
                if size > limit:
                    raise TarError(f"a tar's extended header has {size} bytes; {limit} are more than any needs")
                data = stream.read(size)
                stream.skip(-size % BLOCK)
                if kind == b"x":
                    pax = _records(data)
                elif kind == b"g":
                    everywhere.update(_records(data))
                elif kind == b"L":
                    long_name = data.partition(b"\0")[0]
                else:
                    long_link = data.partition(b"\0")[0]
                continue
            entry = self._entry(header, kind, size, long_name, long_link)
            if pax or everywhere:
                self._extend(entry, [*everywhere.items(), *pax])
            long_name, long_link, pax = b"", b"", []
            if not entry.name or b"\0" in entry.name or b"\0" in entry.link:
                raise TarError("a tar entry's name is empty or has a zero byte in it")
            if len(entry.name) > NAME_LIMIT or len(entry.link) > NAME_LIMIT:
                raise TarError(f"a tar entry's name has more than {NAME_LIMIT} bytes")
            if not 0 <= entry.size < FILE_LIMIT or not 0 <= entry.stored < FILE_LIMIT:
                raise TarError(f"a tar entry's size is {entry.size} bytes; no file is so")
            yield entry

    def _entry(self, header: bytes, kind: bytes, size: int, long_name: bytes, long_link: bytes) -> Entry:
        entry = Entry()
        name = header[:100].partition(b"\0")[0]
        if header[257:263] == b"ustar\0" and header[345]:  # GNU has times there
            name = header[345:500].partition(b"\0")[0] + b"/" + name
        entry.name = long_name or name
        entry.link = long_link or header[157:257].partition(b"\0")[0]
        entry.mode = _number(header[100:108]) & 0o7777
        entry.uid = _number(header[108:116])
        entry.gid = _number(header[116:124])
        entry.mtime = _time_of(_number(header[136:148]), 0)
        entry.xattrs = None
        entry.sparse = None
        if kind in _FILES:
            entry.kind = FOLDER if kind == b"\0" and name.endswith(b"/") else REGULAR  # as before ustar
        elif kind in _KINDS:
            entry.kind = kind
            if kind != FOLDER:
                size = 0  # POSIX: no content follows, whatever a link's header says
        else:
            raise TarError(f"a tar entry is of the unknown kind {kind!r}")
        if entry.kind == FOLDER:
            size = 0
        if size < 0:
            raise TarError("a tar entry's size is negative")
        entry.size = entry.stored = self._left = size
        self._padding = -size % BLOCK
        if kind == b"S":
            self._gnu_sparse(entry, header)
        return entry

    def _gnu_sparse(self, entry: Entry, header: bytes) -> None:
        """The old GNU form: four pieces in the header, more in blocks that follow it."""
        found: list[tuple[int, int]] = []
        block, at, count, more = header, 386, 4, header[482]
        while True:
            for place in range(at, at + 24 * count, 24):
                if block[place]:
                    found.append((_number(block[place : place + 12]), _number(block[place + 12 : place + 24])))
            if not more:
                break
            if len(found) > SPARSE_LIMIT:
                raise TarError("a sparse file has too many pieces")
            block = self.stream.block()
            at, count, more = 0, 21, block[504]
        entry.size = _number(header[483:495])
        self._check_sparse(entry, found)

    def _extend(self, entry: Entry, records: list[tuple[bytes, bytes]]) -> None:
        """pax: records that say more, or better, than the header."""
        offsets: list[int] = []
        lengths: list[int] = []
        gnu: dict[bytes, bytes] = {}
        for key, value in records:
            if key == b"path":
                entry.name = value
            elif key == b"linkpath":
                entry.link = value
            elif key == b"size":
                if entry.kind == REGULAR:
                    entry.size = entry.stored = self._left = _decimal(value)
                    self._padding = -self._left % BLOCK
            elif key == b"uid":
                entry.uid = _decimal(value)
            elif key == b"gid":
                entry.gid = _decimal(value)
            elif key == b"mtime":
                entry.mtime = _time(value)
            elif key.startswith(b"SCHILY.xattr."):
                entry.xattrs = entry.xattrs or {}
                entry.xattrs[key[13:]] = value
            elif key == b"GNU.sparse.offset":
                offsets.append(_decimal(value))
            elif key == b"GNU.sparse.numbytes":
                lengths.append(_decimal(value))
            elif key.startswith(b"GNU.sparse."):
                gnu[key[11:]] = value
        if (gnu or offsets) and entry.kind == REGULAR:
            self._pax_sparse(entry, gnu, offsets, lengths)

    def _pax_sparse(self, entry: Entry, gnu: dict[bytes, bytes], offsets: list[int], lengths: list[int]) -> None:
        """GNU's three forms: pairs of records (0.0), one record (0.1), at the begin of the content (1.0)."""
        entry.name = gnu.get(b"name", entry.name)
        size = _decimal(gnu.get(b"realsize") or gnu.get(b"size") or b"-")
        if gnu.get(b"major") == b"1":
            numbers, used = self._numbers()
            self._left -= used
            if self._left < 0:
                raise TarError("a sparse file's map is longer than the file")
            entry.stored = self._left
        else:
            numbers = [_decimal(text) for text in gnu[b"map"].split(b",")] if gnu.get(b"map") else []
            if not numbers and len(offsets) == len(lengths):
                numbers = [number for pair in zip(offsets, lengths, strict=True) for number in pair]
        if len(numbers) % 2:
            raise TarError("a sparse file's map is damaged")
        entry.size = size
        self._check_sparse(entry, list(zip(numbers[::2], numbers[1::2], strict=True)))

    def _numbers(self) -> tuple[list[int], int]:
        """A line a number: how many pieces, then offset and length of each; padded to whole blocks."""
        text, used = b"", 0

        def number() -> int:
            nonlocal text, used
            while b"\n" not in text:
                if used >= self._left or len(text) > BLOCK:
                    raise TarError("a sparse file's map is damaged")
                text += self.stream.block()
                used += BLOCK
            line, _, text = text.partition(b"\n")
            return _decimal(line)

        count = number()
        if count > SPARSE_LIMIT:
            raise TarError("a sparse file has too many pieces")
        return [number() for _ in range(2 * count)], used

    @staticmethod
    def _check_sparse(entry: Entry, found: list[tuple[int, int]]) -> None:
        end = 0
        for offset, length in found:
            if offset < end:
                raise TarError("a sparse file's pieces overlap")
            end = offset + length
        if end > entry.size or sum(length for _, length in found) != entry.stored:
            raise TarError("a sparse file's pieces don't fit its size")
        entry.sparse = found


def _number(field: bytes) -> int:
    """Octal digits, or GNU's base 256 where the first bit is set."""
    if field[0] & 0x80:
        value = int.from_bytes(field, "big")
        if field[0] & 0x40:
            return value - (1 << 8 * len(field))  # negative: a time before 1970
        return value & ~(0x80 << 8 * (len(field) - 1))
    text = field.strip(b" \0")
    try:
        return int(text, 8) if text else 0
    except ValueError:
        raise TarError("a tar header has a number that is none") from None


def _decimal(text: bytes) -> int:
    if not text.isdigit() or len(text) > 20:
        raise TarError(f"a tar's extended header has {text[:40]!r} where a number belongs")
    return int(text)


def _time(text: bytes) -> int:
    """Decimal seconds in nanoseconds."""
    whole, _, rest = text.removeprefix(b"-").partition(b".")
    seconds, fraction = _decimal(whole or b"0"), _decimal(rest[:9].ljust(9, b"0"))
    return _time_of(-seconds, -fraction) if text.startswith(b"-") else _time_of(seconds, fraction)


def _time_of(seconds: int, nanoseconds: int) -> int:
    return max(-TIME_LIMIT, min(seconds, TIME_LIMIT)) * 1_000_000_000 + nanoseconds


def _records(data: bytes) -> list[tuple[bytes, bytes]]:
    """``LENGTH KEY=VALUE\\n`` each, the length in decimal and of all of it."""
    found = []
    at = 0
    while at < len(data):
        space = data.find(b" ", at, at + 20)
        if space < 0:
            raise TarError("a tar's extended header is damaged")
        end = at + _decimal(data[at:space])
        key, equals, value = data[space + 1 : end - 1].partition(b"=")
        if end <= space or end > len(data) or data[end - 1] != 10 or not equals:
            raise TarError("a tar's extended header is damaged")
        found.append((key, value))
        at = end
    return found


def entries(file: BinaryIO) -> Reader:
    """Of a file or stream, packed or not."""
    from hostel.images.oci.compression import pieces

    return Reader(iter(pieces(file)))
