"""Writing an initramfs: a cpio archive in the "newc" form (kernel, early-userspace/buffer-format).

Uncompressed on purpose: the guest's kernel then copies files and runs no decompressor, which a
translator would have to run for it.
"""

import stat
from dataclasses import dataclass, field


@dataclass
class Tree:
    """What the initramfs will hold; parent folders come by themselves."""

    entries: dict[str, tuple[int, bytes, int]] = field(default_factory=dict)  # path → mode, data, device

    def folder(self, path: str, mode: int = 0o755) -> None:
        if path and path not in self.entries:
            self.folder(path.rpartition("/")[0])
            self.entries[path] = (stat.S_IFDIR | mode, b"", 0)

    def file(self, path: str, data: bytes, mode: int = 0o644) -> None:
        self.folder(path.rpartition("/")[0])
        self.entries[path] = (stat.S_IFREG | mode, data, 0)

    def link(self, path: str, target: str) -> None:
        """A symbolic link."""
        self.folder(path.rpartition("/")[0])
        self.entries[path] = (stat.S_IFLNK | 0o777, target.encode(), 0)

    def device(self, path: str, kind: str, major: int, minor: int, mode: int = 0o600) -> None:
        """A device node; ``kind`` is "c" or "b"."""
        self.folder(path.rpartition("/")[0])
        bits = stat.S_IFCHR if kind == "c" else stat.S_IFBLK
        self.entries[path] = (bits | mode, b"", major << 20 | minor)

    def pack(self) -> bytes:
        """The archive; the same tree always makes the same bytes."""
        parts: list[bytes] = []
        for number, (path, (mode, data, device)) in enumerate(self.entries.items(), 1):
            parts += record(number, path, mode, data, device)
        parts += record(0, "TRAILER!!!", 0, b"", 0)
        return b"".join(parts)


def record(number: int, path: str, mode: int, data: bytes, device: int) -> list[bytes]:
    name = path.encode() + b"\0"
    links = 2 if stat.S_ISDIR(mode) else 1
    fields = (number, mode, 0, 0, links, 0, len(data), 0, 0, device >> 20, device & 0xFFFFF, len(name), 0)
    head = b"070701" + b"".join(b"%08x" % value for value in fields) + name
    return [head, b"\0" * (-len(head) % 4), data, b"\0" * (-len(data) % 4)]
