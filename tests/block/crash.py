"""A writer whose work can be judged wherever it is cut off.

Its requests follow from a seed, and each leaves its own number in every sector that it touches. So of an image that
was left in the middle one can say, sector by sector, whether what is there may be: what the last flush had, or what a
later request put there. Run as a program, it writes until it is killed: ``python crash.py IMAGE SEED``, and says on
stdout which request it begins and which flush it has done.
"""

import random
import sys

SECTOR = 512


def requests(seed, size, cluster):
    """Endless: (kind, offset, length), whole sectors."""
    chance = random.Random(seed)
    while True:
        kind = chance.choices("wzdf", [10, 3, 3, 2])[0]
        length = chance.choice([SECTOR, 4096, cluster, 3 * cluster, 256 << 10, 1 << 20])
        length = min(length, size)
        offset = chance.randrange((size - length) // SECTOR + 1) * SECTOR
        yield kind, offset, length


def content(number):
    """What request ``number`` writes into each sector."""
    return (number + 1).to_bytes(8, "little") * (SECTOR // 8)


def apply(disk, number, request):
    kind, offset, length = request
    if kind == "w":
        disk.write(offset, content(number) * (length // SECTOR))
    elif kind == "z":
        disk.write_zeroes(offset, length, number % 2 == 0)
    elif kind == "d":
        disk.discard(offset, length)
    else:
        disk.flush()


class Expected:
    """For each sector: which numbers may be found there (0 for zeros)."""

    def __init__(self, size, base=b""):
        self.base = base
        self.may = [{0} if not base else {-1} for _ in range(size // SECTOR)]

    def do(self, number, request, flushed):
        """A request was begun; ``flushed``: and a later flush has ended, so it is surely there."""
        kind, offset, length = request
        if kind == "f":
            return
        for sector in range(offset // SECTOR, (offset + length) // SECTOR):
            new = {"w": {number + 1}, "z": {0}, "d": {0} | self.may[sector]}[kind]
            self.may[sector] = new if flushed else new | self.may[sector]

    def judge(self, data):
        """The first sector that holds what it may not, in words; None where all is well."""
        for sector, may in enumerate(self.may):
            found = data[sector * SECTOR : (sector + 1) * SECTOR]
            value = int.from_bytes(found[:8], "little")
            known = [self.base[sector * SECTOR :][:SECTOR].ljust(SECTOR, b"\0") if n == -1 else
                     (n.to_bytes(8, "little") * (SECTOR // 8)) for n in may]  # fmt: skip
            if found not in known:
                return f"sector {sector} holds {value}, not one of {sorted(may)}"
        return None


def expected(seed, size, cluster, begun, flushed, base=b""):
    """What may be in an image of which requests below ``begun`` were begun, and those below ``flushed`` are safe."""
    state = Expected(size, base)
    for number, request in zip(range(begun), requests(seed, size, cluster), strict=False):
        state.do(number, request, number < flushed)
    return state


def main():
    from hostel.block.disk import open_disk

    path, seed = sys.argv[1], int(sys.argv[2])
    disk = open_disk(path)
    for number, request in enumerate(requests(seed, disk.size, disk.cluster_size)):
        sys.stdout.write(f"{number + 1} ")
        sys.stdout.flush()
        apply(disk, number, request)
        if request[0] == "f":
            sys.stdout.write("f ")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
