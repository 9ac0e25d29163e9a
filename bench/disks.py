"""Disks of machines that are measured: images of each machine's own, fresh, in the host's page cache."""

import struct
import tempfile
from pathlib import Path

from hostel.block.qcow2.create import create

SIZE = 512 << 20
FORMATS = ("raw", "raw", "qcow2")   # /dev/vda has data, the others have none


class Images:
    """``paths``, one for each of FORMATS, until ``close``."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="hostel-bench-", dir="/var/tmp")
        folder = Path(self._folder.name)
        folder.chmod(0o755)
        self.paths = [folder / f"{number}.{kind}" for number, kind in enumerate(FORMATS)]
        for path, kind in zip(self.paths, FORMATS, strict=True):
            if kind == "qcow2":
                create(path, SIZE)
            else:
                with open(path, "wb") as file:
                    file.truncate(SIZE)
        piece = bytearray(1 << 20)
        with open(self.paths[0], "r+b") as file:
            for number in range(SIZE >> 20):
                for at in range(0, len(piece), 4096):
                    struct.pack_into("<Q", piece, at, (number << 20) + at)
                file.write(piece)

    def close(self) -> None:
        self._folder.cleanup()
