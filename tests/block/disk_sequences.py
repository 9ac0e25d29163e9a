"""Random sequences of requests on a qcow2 image of random features, against a model in memory and against QEMU.

What hostel and QEMU write into the same image in turn must be what both read, and both must find the image clean.
"""

import os
import random

import qemu

from hostel.base.errors import BlockError
from hostel.block.disk import open_disk
from hostel.block.qcow2.check import check
from hostel.block.qcow2.create import Options, create


class Sequence:
    def __init__(self, seed, folder):
        self.random = random.Random(seed)
        self.folder = folder
        self.path = folder / "image.qcow2"
        self.options = self._options()
        self.size = self._size()
        self.model = bytearray(self.size)
        self._files()
        create(self.path, self.size, Options(**self.options))
        self.disk = open_disk(self.path, direct=self.random.random() < 0.3, allow_backing=True)

    def chance(self, probability):
        return self.random.random() < probability

    def _options(self):
        if self.chance(0.15):
            return {"cluster_size": 1 << self.random.choice([9, 12, 16, 21]), "compat": "0.10"}
        extended = self.chance(0.25)
        bits = self.random.choice([14, 15, 16, 21] if extended else [9, 9, 10, 12, 14, 16, 16, 16, 18, 21])
        return {
            "cluster_size": 1 << bits, "refcount_bits": self.random.choice([1, 2, 4, 8, 16, 32, 64]),
            "lazy_refcounts": self.chance(0.2), "extended_l2": extended,
        }  # fmt: skip

    def _size(self):
        return self.random.randrange(1, min(64 * self.options["cluster_size"], 8 << 20) // 512) * 512

    def _files(self):
        """Perhaps a backing file, shorter or longer than the image, or a file for the data."""
        if self.chance(0.4):
            size = self.random.choice([self.size, self.size // 1024 * 512 + 512, self.size + 12288])
            data = os.urandom(size // 2).ljust(size, b"\0")
            (self.folder / "base.raw").write_bytes(data)
            self.options |= {"backing_file": "base.raw", "backing_fmt": "raw"}
            self.model[:] = data[: self.size].ljust(self.size, b"\0")
        elif "compat" not in self.options and self.chance(0.2):
            data = self.folder / "data"
            data.write_bytes(bytes(self.size))
            self.options |= {"data_file": str(data), "data_file_raw": self.chance(0.5)}

    def place(self):
        offset = self.random.randrange(self.size)
        cluster = self.options["cluster_size"]
        length = min(self.random.choice([1, 512, 4096, cluster, 3 * cluster, 1 << 20]), self.size - offset)
        if self.chance(0.7):
            offset = offset // 512 * 512
            length = min(max(512, length // 512 * 512), self.size - offset)
        return offset, length

    def write(self):
        offset, length = self.place()
        data = os.urandom(length)
        self.disk.write(offset, data)
        self.model[offset : offset + length] = data

    def write_zeroes(self):
        offset, length = self.place()
        self.disk.write_zeroes(offset, length, self.chance(0.5))
        self.model[offset : offset + length] = bytes(length)

    def discard(self):
        offset, length = self.place()
        self.disk.discard(offset, length)
        got = self.disk.read(offset, length)
        assert all(a in (b, 0) for a, b in zip(got, self.model[offset : offset + length], strict=True))
        self.model[offset : offset + length] = got

    def read(self):
        offset, length = self.place()
        assert self.disk.read(offset, length) == self.model[offset : offset + length]

    def flush(self):
        self.disk.flush()

    def reopen(self):
        """QEMU may take a snapshot and write meanwhile."""
        self.disk.close()
        if self.options.get("refcount_bits", 16) > 2 and "data_file" not in self.options and self.chance(0.3):
            qemu.img("snapshot", "-c", f"s{self.random.random()}", self.path)
        if self.chance(0.3):
            (offset, length), pattern = self.place(), self.random.randrange(1, 255)
            qemu.io(self.path, f"write -P {pattern} {offset} {length}")
            self.model[offset : offset + length] = bytes([pattern]) * length
        self.disk = open_disk(self.path, allow_backing=True)

    def resize(self):
        if "data_file" in self.options or self.chance(0.7):
            return
        size = self._size()
        try:
            self.disk.resize(size)
        except BlockError as error:
            assert "snapshots" in str(error)
            return
        self.model[size:] = b""
        self.model.extend(bytes(size - len(self.model)))
        self.size = size

    def play(self):
        actions = [self.write] * 5 + [
            self.write_zeroes, self.discard, self.read, self.flush, self.reopen, self.resize]  # fmt: skip
        for _ in range(self.random.randrange(1, 60)):
            self.random.choice(actions)()
        assert self.disk.read(0, self.size) == self.model
        self.disk.close()
        assert qemu.check(self.path).get("leaks", 0) == 0
        assert qemu.content(self.path, self.folder) == self.model
        self.disk = open_disk(self.path, readonly=True, allow_backing=True)
        found = check(self.disk)
        assert (found.corruptions, found.leaks) == (0, 0), found
        assert self.disk.read(0, self.size) == self.model
        self.disk.close()
