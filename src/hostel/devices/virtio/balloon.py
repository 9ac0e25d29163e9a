"""Memory balloon (virtio 1.2, 5.5): the guest gives pages back, which the host then hasn't to have.

``set_target`` says how much memory the guest may keep; its driver takes pages from its own use (inflates) and names
them here, and they go back to the host at once. It deflates by itself when it is out of memory (DEFLATE_ON_OOM). With
free page reporting it also names what it has no use for at the moment, unasked; such a page is zero when it comes back.

Limit: free page hints (for migration) aren't offered.
"""

import array
import struct
import time
from collections.abc import Iterable
from typing import Any

from hostel.devices.virtio.device import Device
from hostel.devices.virtio.queue import Queue, Request

PAGE = 4096                  # of the balloon, whatever the guest's pages are (5.5.6)
STATS_VQ, DEFLATE_ON_OOM, REPORTING = 1, 2, 5  # features
INFLATE, DEFLATE, STATISTICS = 0, 1, 2          # queues
LARGEST = 1 << 16            # bytes of a request that are looked at: Linux's are of 1 KiB
# Tags of the statistics (5.5.6.3)
TAGS = (
    "swap_in", "swap_out", "major_faults", "minor_faults", "free", "total", "available", "disk_caches",
    "hugetlb_allocations", "hugetlb_failures",
)


class Balloon(Device):
    name = "balloon"
    id = 5
    queue_sizes = (128, 128, 64, 64, 64)
    features = 1 << STATS_VQ | 1 << DEFLATE_ON_OOM | 1 << REPORTING

    def __init__(self, spec: Any = None, backend: None = None):
        super().__init__(spec, backend)
        self.config = bytearray(16)      # num_pages, actual, and two that aren't used
        self.guest: dict[str, int] = {}  # what it last said of itself
        self.guest_time = 0.0
        self.inflated = self.deflated = self.reported = self.refused = 0  # bytes; the last: of no memory
        self._asked: Request | None = None  # the statistics' buffer, while nobody wants to know them

    # -- the host's end

    def set_target(self, size: int) -> None:
        """Leave the guest ``size`` bytes of its memory; it obeys as fast as it can."""
        with self.lock:
            pages = max(self.carrier.ram.size - size, 0) // PAGE
            struct.pack_into("<I", self.config, 0, pages)
            self.config_changed()

    def target(self) -> int:
        """How many bytes the guest should have."""
        return int(self.carrier.ram.size) - int.from_bytes(self.config[:4], "little") * PAGE

    def actual(self) -> int:
        """How many it says that it has."""
        return max(int(self.carrier.ram.size) - int.from_bytes(self.config[4:8], "little") * PAGE, 0)

    def ask(self) -> bool:
        """Have the guest renew its statistics, soon; False where its driver can't, or hasn't answered the last time."""
        with self.lock:
            if self._asked is None:
                return False
            request, self._asked = self._asked, None
            request.push()
            self.queues[STATISTICS].signal_py()
            return True

    # -- the driver

    def _reporting(self) -> int:
        # 5.5.2 numbers the queues as if all were there; Linux before 6.14 leaves out those that it doesn't use.
        return max((n for n in (3, 4) if self.queues[n].enabled), default=4)

    def notified(self, queue: Queue) -> None:
        if queue.index == STATISTICS and self.has(STATS_VQ):
            self._take_statistics(queue)
            return
        reports = self.has(REPORTING) and queue.index == self._reporting()
        for request in queue:
            if reports:
                for address, length in request.writable_ranges():
                    self.reported += self._discard(address, length)
            elif queue.index == INFLATE:
                self.inflated += self._give_back(request.read(LARGEST))
            elif queue.index == DEFLATE:
                self.deflated += min(request.readable_bytes, LARGEST) // 4 * PAGE
            request.push()
        queue.signal_py()

    def _give_back(self, data: bytes) -> int:
        numbers = array.array("I")
        numbers.frombytes(data[: len(data) & ~3])
        return sum(self._discard(first * PAGE, count * PAGE) for first, count in runs(numbers))

    def _discard(self, address: int, length: int) -> int:
        start = (address + PAGE - 1) // PAGE * PAGE
        end = (address + length) // PAGE * PAGE
        if start >= end:
            return 0
        if not self.carrier.ram.discard(start, end - start):
            self.refused += end - start
            return 0
        return end - start

    def _take_statistics(self, queue: Queue) -> None:
        for request in queue:
            data = request.read(10 * 64)
            for tag, value in struct.iter_unpack("<HQ", data[: len(data) // 10 * 10]):
                if tag < len(TAGS):
                    self.guest[TAGS[tag]] = value
            if data:
                self.guest_time = time.time()
            if self._asked is not None:  # one is what a driver has
                self._asked.push()
            self._asked = request

    def write_config(self, offset: int, size: int, value: int) -> None:
        if offset == 4 and size == 4:
            struct.pack_into("<I", self.config, 4, value)

    def reset(self) -> None:
        self._asked = None
        self.guest = {}
        struct.pack_into("<I", self.config, 4, 0)

    # -- the machine

    def statistics(self) -> dict[str, Any]:
        return {
            "target": self.target(),
            "actual": self.actual(),
            "inflated": self.inflated,
            "deflated": self.deflated,
            "reported": self.reported,
            "refused": self.refused,
            "guest": dict(self.guest),
            "guest_time": self.guest_time,
        }

    def save(self) -> dict[str, Any]:
        return {"version": 1, "config": bytes(self.config), "guest": dict(self.guest), "guest_time": self.guest_time}

    def load(self, state: dict[str, Any]) -> None:
        super().load(state)
        self.config[:] = state["config"]
        self.guest, self.guest_time = dict(state["guest"]), state["guest_time"]


def runs(numbers: Iterable[int]) -> list[tuple[int, int]]:
    """The numbers as (first, count) of consecutive ones."""
    out: list[tuple[int, int]] = []
    for number in sorted(set(numbers)):
        if out and out[-1][0] + out[-1][1] == number:
            out[-1] = (out[-1][0], out[-1][1] + 1)
        else:
            out.append((number, 1))
    return out
