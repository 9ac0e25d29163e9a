"""The raw format: the image is the disk. Also block devices.

What ends in the middle of a sector is a disk that ends with it, as QEMU has it: the rest reads as zeros.
"""

import os
from collections.abc import Iterator, Sequence

from hostel.block import disk
from hostel.block.disk import Disk, Extent
from hostel.block.file import Buffer, File

SECTOR = 512


class Raw(Disk):
    format = "raw"

    def __init__(self, file: File, readonly: bool):
        super().__init__(file, file.size + SECTOR - 1 & -SECTOR, readonly)

    def readv(self, offset: int, buffers: Sequence[Buffer]) -> None:
        self.check_buffers(offset, buffers)
        self.file.readv(offset, buffers)

    def writev(self, offset: int, buffers: Sequence[Buffer]) -> None:
        self.check_buffers(offset, buffers, writing=True)
        self.file.writev(offset, buffers)

    def flush(self) -> None:
        if not self.readonly:
            self.file.sync()

    def discard(self, offset: int, length: int) -> None:
        self.check(offset, length, writing=True)
        self.file.discard(offset, length)

    def write_zeroes(self, offset: int, length: int, may_unmap: bool = True) -> None:
        self.check(offset, length, writing=True)
        self.file.write_zeroes(offset, length, may_unmap)

    def map(self, offset: int, length: int) -> tuple[int, int, int, int]:
        self.check(offset, length)
        return self.file.data_fd, offset, length, disk.BACKING if self.readonly else disk.DATA

    def extents(self, offset: int, length: int) -> Iterator[Extent]:
        self.check(offset, length)
        while length:
            data, run = self.file.data_run(offset, length)
            yield Extent(offset, run, 0, True, not data, data, offset=offset, path=self.path)
            offset += run
            length -= run

    def resize(self, size: int) -> None:
        self.check(0, 0, writing=True)
        self.file.truncate(size)
        self.size = size

    def close(self) -> None:
        if self.file.fd >= 0 and not self.readonly:
            self.flush()
        self.file.close()


def create(path: str | os.PathLike[str], size: int) -> None:
    """A new image of zeros, which takes no space; who makes it in place of another removes that first."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
    try:
        os.ftruncate(fd, size)
    finally:
        os.close(fd)
