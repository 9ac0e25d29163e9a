"""Reading files from an ext4 file system (Documentation/filesystems/ext4), to boot the kernel that a guest keeps there.

The guest owns the file system and may have written anything: every number is checked before it is used, what can be
read is bounded (``LIMIT`` bytes in all, ``SYMLINKS`` links), and what makes no sense is one ``BootError``.

After a crash the newest metadata may be in the journal alone (JBD2), as the file system says by its flag
``needs_recovery``. The journal's committed blocks then take the place of those that they belong to, in memory; nothing
is written.

Not read: files in ext3's block maps, inline data, encrypted or case-folded folders, a journal on another device.
"""

import stat
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from hostel.base.errors import BootError

MAGIC = 0xEF53
ROOT, JOURNAL = 2, 8  # inodes
META_BG, BITS64, RECOVER, JOURNAL_DEV = 0x10, 0x80, 0x4, 0x8
# FILETYPE, RECOVER, META_BG, EXTENTS, 64BIT, MMP, FLEX_BG, EA_INODE, CSUM_SEED, LARGEDIR; single files say the rest
KNOWN = 0x2 | RECOVER | META_BG | 0x40 | BITS64 | 0x100 | 0x200 | 0x400 | 0x2000 | 0x4000 | 0x8000 | 0x10000 | 0x20000
EXTENTS, INLINE, ENCRYPTED = 0x80000, 0x10000000, 0x800  # inode flags
EXTENT_MAGIC = 0xF30A
DEPTH = 5  # of an extent tree (ext4_extents.h, EXT4_MAX_EXTENT_DEPTH)
SYMLINKS = 16
LIMIT = 1 << 30  # bytes read in all
FOLDER = 16 << 20  # bytes of a folder

JBD2_MAGIC = 0xC03B3998
DESCRIPTOR, COMMIT, REVOKE = 1, 2, 5
J_64BIT, J_CSUM_V2, J_CSUM_V3, J_FAST_COMMIT = 2, 8, 0x10, 0x20
ESCAPE, SAME_UUID, LAST_TAG = 1, 2, 8


@dataclass(frozen=True)
class Inode:
    number: int
    mode: int
    size: int
    flags: int
    map: bytes  # i_block


class Ext4:
    """The file system that ``read(offset, size)`` has from its byte 0 on."""

    def __init__(self, read: Callable[[int, int], bytes]):
        self._read = read
        self._budget = LIMIT
        self._journal: dict[int, tuple[int, bool]] = {}  # block → where its newest content is, and whether escaped
        head = self._take(1024, 1024)
        if len(head) < 1024 or struct.unpack_from("<H", head, 0x38)[0] != MAGIC:
            raise BootError("no ext4 file system")
        self.incompatible = _u32(head, 0x60)
        if self.incompatible & ~KNOWN or self.incompatible & JOURNAL_DEV:
            raise BootError(f"an ext4 file system with features that hostel can't read ({self.incompatible:#x})")
        log = _u32(head, 0x18)
        if log > 6:
            raise self._nonsense("its block size")
        self.block_size = 1024 << log
        self.uuid = head[0x68:0x78].hex()
        self.first_block = _u32(head, 0x14)
        self.blocks = _u32(head, 4) | (_u32(head, 0x150) << 32 if self.incompatible & BITS64 else 0)
        self.inodes = _u32(head, 0)
        self.blocks_per_group, self.inodes_per_group = _u32(head, 0x20), _u32(head, 0x28)
        self.inode_size = struct.unpack_from("<H", head, 0x58)[0] if _u32(head, 0x4C) else 128
        self.desc_size = struct.unpack_from("<H", head, 0xFE)[0] if self.incompatible & BITS64 else 32
        self.first_meta_bg = _u32(head, 0x104)
        if (
            not self.blocks_per_group or not self.inodes_per_group or not 32 <= self.desc_size <= 1024
            or not 128 <= self.inode_size <= self.block_size or self.inode_size & (self.inode_size - 1)
        ):  # fmt: skip
            raise self._nonsense("its superblock")
        if self.incompatible & RECOVER:
            if _u32(head, 0xE0) != JOURNAL:
                raise BootError("an ext4 file system that wasn't unmounted and has its journal elsewhere")
            self._journal = _replay(self, self._inode(JOURNAL))

    # -- what a boot needs

    def file(self, path: str, longest: int) -> bytes:
        """A file's content. ``BootError``: there is none, it is longer, or it can't be read."""
        inode = self._find(path)
        if not stat.S_ISREG(inode.mode):
            raise BootError(f"{path} is no file")
        if inode.size > longest:
            raise BootError(f"{path} has {inode.size} bytes; at most {longest} are read")
        return self._content(inode)

    def names(self, path: str) -> list[str]:
        """What a folder holds, but names that aren't UTF-8."""
        inode = self._find(path)
        if not stat.S_ISDIR(inode.mode):
            raise BootError(f"{path} is no folder")
        return [name for raw, _ in self._entries(inode) if (name := raw.decode(errors="replace")).isprintable()]

    def exists(self, path: str) -> bool:
        try:
            self._find(path)
            return True
        except BootError:
            return False

    # -- paths

    def _find(self, path: str) -> Inode:
        """The inode of a path below the root, symbolic links followed."""
        todo = [part for part in path.split("/") if part][::-1]
        way = [self._inode(ROOT)]
        links = 0
        while todo:
            part = todo.pop()
            if part == ".":
                continue
            if part == "..":
                way = way[:-1] or way
                continue
            if not stat.S_ISDIR(way[-1].mode):
                raise BootError(f"there is no {path} in it")
            number = next((number for raw, number in self._entries(way[-1]) if raw == part.encode()), 0)
            if not number:
                raise BootError(f"there is no {path} in it")
            inode = self._inode(number)
            if stat.S_ISLNK(inode.mode):
                links += 1
                target = self._target(inode)
                if links > SYMLINKS:
                    raise BootError(f"{path}: too many symbolic links")
                if target.startswith("/"):
                    way = way[:1]
                todo += [piece for piece in target.split("/") if piece][::-1]
            else:
                way.append(inode)
        return way[-1]

    def _target(self, inode: Inode) -> str:
        if inode.size > 4096:
            raise self._nonsense("a symbolic link")
        if inode.size < 60 and not inode.flags & EXTENTS:
            return inode.map[: inode.size].decode(errors="replace")
        return self._content(inode).decode(errors="replace")

    def _entries(self, folder: Inode) -> Iterator[tuple[bytes, int]]:
        """Names and inodes. A hashed folder's inner nodes look like empty entries (ext4, "Hash Tree Directories")."""
        if folder.size > FOLDER:
            raise self._nonsense("a folder's size")
        data = self._content(folder)
        for start in range(0, len(data), self.block_size):
            at, end = start, min(start + self.block_size, len(data))
            while at + 8 <= end:
                number, length, name_length = struct.unpack_from("<IHB", data, at)
                if length < 8 or at + length > end or name_length > length - 8:
                    raise self._nonsense("a folder")
                if number and name_length:
                    yield data[at + 8 : at + 8 + name_length], number
                at += length

    # -- inodes and their blocks

    def _inode(self, number: int) -> Inode:
        if not 0 < number <= self.inodes:
            raise self._nonsense("an inode's number")
        group, index = divmod(number - 1, self.inodes_per_group)
        descriptor = self._descriptor(group)
        table = _u32(descriptor, 8) | (_u32(descriptor, 0x28) << 32 if self.desc_size >= 64 else 0)
        offset = index * self.inode_size
        block = self._blocks(table + offset // self.block_size, 1)
        raw = block[offset % self.block_size :][:128]
        return Inode(
            number, struct.unpack_from("<H", raw)[0], _u32(raw, 4) | _u32(raw, 0x6C) << 32, _u32(raw, 0x20), raw[40:100]
        )

    def _descriptor(self, group: int) -> bytes:
        per_block = self.block_size // self.desc_size
        at, index = divmod(group, per_block)
        block = self.first_block + 1 + at
        if self.incompatible & META_BG and at >= self.first_meta_bg:
            first = at * per_block  # the group that holds its own meta group's descriptors
            block = self.first_block + first * self.blocks_per_group + _has_superblock(first)
        return self._blocks(block, 1)[index * self.desc_size :][: self.desc_size]

    def _content(self, inode: Inode) -> bytes:
        if inode.flags & (INLINE | ENCRYPTED) or not inode.flags & EXTENTS:
            raise BootError(f"inode {inode.number} of the file system is stored in a way that hostel can't read")
        if inode.size > self._budget:
            raise self._nonsense("a file's size")
        data = bytearray(inode.size)
        end = 0
        for first, count, start in self._extents(inode.map, 0):
            at = first * self.block_size
            if first < end:
                raise self._nonsense("a file's extents")
            if at >= inode.size:
                break
            end = first + count
            count = min(count, -(-(inode.size - at) // self.block_size))
            if start:
                data[at : at + count * self.block_size] = self._blocks(start, count)[: inode.size - at]
        return bytes(data)

    def _extents(self, node: bytes, level: int) -> Iterator[tuple[int, int, int]]:
        """A file's pieces: its block, how many, and where they are; 0 for what is allocated and not written."""
        magic, entries, _, depth = struct.unpack_from("<HHHH", node)
        if magic != EXTENT_MAGIC or entries * 12 + 12 > len(node) or depth + level > DEPTH:
            raise self._nonsense("a file's extents")
        for at in range(12, 12 + entries * 12, 12):
            if depth:
                low, high = struct.unpack_from("<IH", node, at + 4)
                child = self._blocks(low | high << 32, 1)
                if struct.unpack_from("<H", child, 6)[0] != depth - 1:
                    raise self._nonsense("a file's extents")
                yield from self._extents(child, level + 1)
            else:
                first, count, high, low = struct.unpack_from("<IHHI", node, at)
                written = count <= 32768
                yield first, count if written else count - 32768, low | high << 32 if written else 0

    def _blocks(self, first: int, count: int) -> bytes:
        """Blocks as the journal left them."""
        if not 0 <= first <= self.blocks - count:
            raise self._nonsense("a block's number")
        data = self._take(first * self.block_size, count * self.block_size)
        if not self._journal:
            return data
        parts = bytearray(data)
        for block in range(first, first + count):
            newer = self._journal.get(block)
            if newer:
                content = bytearray(self._take(newer[0] * self.block_size, self.block_size))
                if newer[1]:
                    content[:4] = struct.pack(">I", JBD2_MAGIC)
                at = (block - first) * self.block_size
                parts[at : at + self.block_size] = content
        return bytes(parts)

    def _take(self, offset: int, size: int) -> bytes:
        self._budget -= size
        if self._budget < 0:
            raise self._nonsense("how much there is to read")
        data = self._read(offset, size)
        if len(data) != size:
            raise BootError("the file system is larger than the disk that it is on")
        return data

    @staticmethod
    def _nonsense(what: str) -> BootError:
        return BootError(f"the disk's file system is damaged: {what} makes no sense")


def _replay(fs: Ext4, inode: Inode) -> dict[int, tuple[int, bool]]:
    """Where the journal has newer blocks: (Documentation/filesystems/ext4/journal.rst)."""
    if not inode.flags & EXTENTS:
        raise BootError("an ext4 file system that wasn't unmounted, with a journal that hostel can't read")
    where: list[int] = []
    for first, count, start in fs._extents(inode.map, 0):
        if first != len(where) or len(where) + count > LIMIT // fs.block_size:
            raise fs._nonsense("its journal")
        where += range(start, start + count)
    head = fs._blocks(where[0], 1) if where else b""
    if len(head) < 1024 or struct.unpack_from(">I", head)[0] != JBD2_MAGIC:
        raise fs._nonsense("its journal")
    size, length, first, sequence, start = struct.unpack_from(">IIIII", head, 12)
    features = struct.unpack_from(">I", head, 40)[0]
    if features & J_FAST_COMMIT:
        length -= struct.unpack_from(">I", head, 0x54)[0] or 256
    if size != fs.block_size or length > len(where) or not 0 < first < length:
        raise fs._nonsense("its journal")
    if not start:
        return {}
    if not first <= start < length:
        raise fs._nonsense("its journal")
    tag_size = 16 if features & J_CSUM_V3 else 8 + (4 if features & J_64BIT else 0) + (2 if features & J_CSUM_V2 else 0)

    def after(at: int, steps: int = 1) -> int:
        at += steps
        return at if at < length else first + (at - length) % (length - first)

    written: list[tuple[int, int, int, bool]] = []  # sequence, block, place in the journal, escaped
    pending: list[tuple[int, int, int, bool]] = []
    revoked: dict[int, int] = {}
    pending_revokes: list[int] = []
    at, seen = start, 0
    while seen < length:
        data = fs._blocks(where[at], 1)
        magic, kind, number = struct.unpack_from(">III", data)
        if magic != JBD2_MAGIC or number != sequence:
            break  # the last transaction was never committed
        at, seen = after(at), seen + 1
        if kind == DESCRIPTOR:
            for block, flags in _tags(data, tag_size, features):
                pending.append((sequence, block, where[at], bool(flags & ESCAPE)))
                at, seen = after(at), seen + 1
        elif kind == REVOKE:
            pending_revokes += _revokes(data, features)
        elif kind == COMMIT:
            written += pending
            revoked.update(dict.fromkeys(pending_revokes, sequence))
            pending, pending_revokes = [], []
            sequence = sequence + 1 & 0xFFFFFFFF
        else:
            break
    return {block: (place, escaped) for number, block, place, escaped in written if number > revoked.get(block, -1)}


def _tags(data: bytes, size: int, features: int) -> Iterator[tuple[int, int]]:
    """The blocks that follow a descriptor block, and their flags."""
    at = 12
    while at + size <= len(data):
        if features & J_CSUM_V3:
            block, flags, high = struct.unpack_from(">III", data, at)
        else:
            block, _, flags = struct.unpack_from(">IHH", data, at)
            high = struct.unpack_from(">I", data, at + 8)[0] if features & J_64BIT else 0
        yield block | (high << 32 if features & J_64BIT else 0), flags
        if flags & LAST_TAG:
            return
        at += size + (0 if flags & SAME_UUID else 16)


def _revokes(data: bytes, features: int) -> list[int]:
    end = min(struct.unpack_from(">I", data, 12)[0], len(data))
    form = ">Q" if features & J_64BIT else ">I"
    size = struct.calcsize(form)
    return [struct.unpack_from(form, data, at)[0] for at in range(16, end - size + 1, size)]


def _has_superblock(group: int) -> bool:
    """Whether a group begins with a copy of the superblock (sparse_super): 0, 1 and powers of 3, 5 and 7."""
    if group <= 1:
        return True
    for base in (3, 5, 7):
        power = base
        while power < group:
            power *= base
        if power == group:
            return True
    return False


def _u32(data: bytes, at: int) -> int:
    return int(struct.unpack_from("<I", data, at)[0])
