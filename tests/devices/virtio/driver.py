"""A well-behaved virtio driver, in Python, for tests of devices: it does what Linux's does, by the card's registers.

    with Bench(Rng()) as bench:                 # memory, PCI bus, event loop, the card
        driver = bench.driver(packed=True)      # negotiates, sets up every queue, DRIVER_OK
        assert driver.request(0, [], [64])[0]   # one chain: readable pieces, sizes of writable ones

A chain's answer is its writable bytes, cut to what the device said it wrote. ``add`` and ``collect`` are for several,
``bench.settle()`` lets the device do what it has to do, ``bench.wait(condition)`` does so until something is true.
"""

import struct
import time
from collections import deque
from collections.abc import Callable

from hostel.base.loop import Loop
from hostel.board.apic import ApicBus, LocalApic
from hostel.board.pci import COMMAND, PciBus, PciFunction
from hostel.bus.space import Space
from hostel.cpu.engine import Vcpu
from hostel.devices.virtio import pci
from hostel.devices.virtio.device import Device
from hostel.devices.virtio.pci import VirtioPci
from hostel.memory.ram import Ram

MEMORY = 64 << 20
HIGH = 1 << 32              # a second slot, above 4 GiB
HIGH_SIZE = 4 << 20
BAR_AT = 0xC0000000
FIRST_VECTOR = 0x30
NEXT, WRITE, INDIRECT = 1, 2, 4
AVAIL, USED = 1 << 7, 1 << 15
_OFFSETS: dict[str, tuple[int, int]] = {}
_at = 0
for _name, _size in pci.COMMON:
    _OFFSETS[_name] = (_at, _size)
    _at += _size


class Bench:
    """A machine that has nothing but memory, an APIC and one card."""

    def __init__(self, device: Device, features: int = pci.FEATURES, memory: int = MEMORY):
        self.ram = Ram()
        self.ram.add(0, memory)
        self.ram.add(HIGH, HIGH_SIZE)
        self.pio, self.mmio = Space("pio"), Space("mmio")
        self.apic_bus = ApicBus()
        self.apic = LocalApic(self.apic_bus, Vcpu(), 0, None)
        self.apic.write(0xF0, 0x1FF)                    # enabled by software
        self.loop = Loop()
        self.bus = PciBus(self.pio, self.mmio, lambda slot, pin: (None, 16))
        self.device = device
        self.card = VirtioPci(device, self.ram, self.apic_bus, self.mmio, self.loop, features)
        self.bus.attach(self.card)
        self.card.set_bar(pci.BAR, BAR_AT)
        self.write_config(COMMAND, 2, 6)
        self.next_page = 0x100000

    def __enter__(self) -> "Bench":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        self.card.close()
        self.loop.close()

    # -- what a processor does

    def read(self, offset: int, size: int) -> int:
        """A register of the BAR."""
        return self.mmio.read_from_python(BAR_AT + offset, size)

    def write(self, offset: int, size: int, value: int) -> None:
        self.mmio.write_from_python(BAR_AT + offset, size, value)

    def get(self, name: str) -> int:
        """A field of the common configuration."""
        offset, size = _OFFSETS[name]
        return self.read(offset, size)

    def set(self, name: str, value: int) -> None:
        offset, size = _OFFSETS[name]
        self.write(offset, size, value)

    def read_config(self, offset: int, size: int) -> int:
        """Of PCI's configuration space."""
        return self.card.read(offset, size)

    def write_config(self, offset: int, size: int, value: int) -> None:
        self.card.write(offset, size, value)

    def device_config(self, offset: int, size: int) -> int:
        """The device's configuration."""
        return self.read(pci.LAYOUT["config"] + offset, size)

    def notify(self, queue: int) -> None:
        self.write(pci.LAYOUT["notify"] + queue * pci.MULTIPLIER, 2, queue)

    def enable_msix(self) -> None:
        """Vector n of the card is the processor's FIRST_VECTOR + n."""
        for n in range(self.card.msix.count):
            at = pci.LAYOUT["msix"] + 16 * n
            self.write(at, 4, 0xFEE00000)
            self.write(at + 4, 4, 0)
            self.write(at + 8, 4, FIRST_VECTOR + n)
            self.write(at + 12, 4, 0)
        self.write_config(capability(self.card, 0x11) + 2, 2, 0x8000)

    def interrupts(self) -> list[int]:
        """The card's vectors that have interrupted since the last call."""
        out = []
        while (vector := self.apic.acknowledge_py()) >= 0:
            self.apic.write(0xB0, 0)
            out.append(vector - FIRST_VECTOR)
        return sorted(out)

    # -- memory

    def allocate(self, size: int, align: int = 16) -> int:
        """Guest-physical memory that nobody else uses."""
        at = (self.next_page + align - 1) & -align
        self.next_page = at + size
        if self.next_page > MEMORY:
            raise MemoryError("the test's guest is full")
        return at

    # -- time

    def settle(self) -> None:
        """Until nothing is left to do at once."""
        for _ in range(3):
            self.loop.call_later(0, self.loop.stop)
            self.loop.run()

    def wait(self, condition: Callable[[], object], seconds: float = 20) -> None:
        """Run the loop until ``condition()``, or fail late."""
        end = time.monotonic() + seconds
        delay = 0.0
        while not condition():
            assert time.monotonic() < end, "it never came true"
            self.loop.call_later(delay, self.loop.stop)
            delay = 0.002
            self.loop.run()

    def driver(self, **options: object) -> "Driver":
        return Driver(self, **options)  # type: ignore[arg-type]


def capability(function: PciFunction, kind: int, virtio: int | None = None) -> int:
    """Where a capability is; of virtio's, the one of that type."""
    at = function.read(0x34, 1)
    while at:
        if function.read(at, 1) == kind and (virtio is None or function.read(at + 3, 1) == virtio):
            return at
        at = function.read(at + 1, 1)
    raise LookupError(f"no capability {kind:#x}")


class Driver:
    """Negotiates and drives. ``features``: which of the device's to take (default: all that it offers)."""

    def __init__(
        self, bench: Bench, packed: bool = False, event_idx: bool = True, indirect: bool = False,
        features: int | None = None, size: int = 0, msix: bool = True, queues: list[int] | None = None,
    ):  # fmt: skip
        self.bench = bench
        bench.set("device_status", 0)
        bench.set("device_status", pci.ACKNOWLEDGE)
        bench.set("device_status", pci.ACKNOWLEDGE | pci.DRIVER)
        offered = self._features("device")
        wanted = offered if features is None else offered & (features | 1 << pci.VERSION_1)
        bits = {pci.RING_PACKED: packed, pci.RING_EVENT_IDX: event_idx, pci.RING_INDIRECT_DESC: indirect}
        for bit, want in bits.items():
            if want and not offered >> bit & 1:
                raise ValueError(f"the device doesn't offer feature {bit}")
            wanted = wanted | 1 << bit if want else wanted & ~(1 << bit)
        wanted |= offered & 1 << pci.RING_RESET
        self.features, self.packed, self.event_idx, self.indirect = wanted, packed, event_idx, indirect
        for select in (0, 1):
            bench.set("driver_feature_select", select)
            bench.set("driver_feature", wanted >> 32 * select & 0xFFFFFFFF)
        bench.set("device_status", 11)
        assert bench.get("device_status") & pci.FEATURES_OK, "the device refused the features"
        if msix:
            bench.enable_msix()
            bench.set("config_msix_vector", 0)
        self.queues: dict[int, Virtqueue] = {}
        for index in range(bench.get("num_queues")) if queues is None else queues:
            self.queues[index] = self.set_up(index, size, msix)
        bench.set("device_status", 15)

    def _features(self, whose: str) -> int:
        value = 0
        for select in (0, 1):
            self.bench.set(f"{whose}_feature_select", select)
            value |= self.bench.get(f"{whose}_feature") << 32 * select
        return value

    def set_up(self, index: int, size: int = 0, msix: bool = True) -> "Virtqueue":
        bench = self.bench
        bench.set("queue_select", index)
        size = min(size or 1024, bench.get("queue_size"))
        bench.set("queue_size", size)
        if msix:
            bench.set("queue_msix_vector", min(index + 1, bench.card.msix.count - 1))
        queue = (Packed if self.packed else Split)(self, index, size)
        for name, value in (("desc", queue.desc), ("driver", queue.driver_area), ("device", queue.device_area)):
            bench.set(f"queue_{name}", value & 0xFFFFFFFF)
            bench.set(f"queue_{name}_high", value >> 32)
        bench.set("queue_enable", 1)
        assert bench.get("queue_enable") == 1
        return queue

    def request(self, queue: int, readable: list[bytes], writable: list[int] | None = None) -> tuple[bytes, int]:
        """One chain there and back: what was written into it, and the length that the device said."""
        q = self.queues[queue]
        token = q.add(readable, writable or [])
        q.kick()
        answers: dict[int, tuple[bytes, int]] = {}
        self.bench.wait(lambda: answers.update(q.collect()) or token in answers)
        return answers[token]

    @property
    def broken(self) -> bool:
        return bool(self.bench.get("device_status") & pci.NEEDS_RESET)

    def reset_queue(self, index: int) -> None:
        """VIRTIO_F_RING_RESET: then ``set_up`` makes it anew."""
        self.bench.set("queue_select", index)
        self.bench.set("queue_reset", 1)
        assert self.bench.get("queue_reset") == 0 and self.bench.get("queue_enable") == 0


class Virtqueue:
    """A ring and its buffers. ``add`` returns a token, ``collect`` what was used: {token: (bytes, length)}."""

    def __init__(self, driver: Driver, index: int, size: int):
        self.driver, self.bench, self.index, self.size = driver, driver.bench, index, size
        self.ram = self.bench.ram
        allocate = self.bench.allocate
        self.desc = allocate(16 * size)
        self.driver_area = allocate(6 + 2 * size, 4)
        self.device_area = allocate(6 + 8 * size, 4)
        self.kicks = 0
        self.tokens = 0
        self.free = size                                # descriptors
        self._pool: dict[int, list[int]] = {}           # buffers that came back, by size
        self.view = self.ram.view(0, MEMORY)

    # -- buffers

    def _buffer(self, size: int) -> int:
        pool = self._pool.get(size)
        return pool.pop() if pool else self.bench.allocate(size, 1 if size % 16 else 16)

    def _buffers(self, readable: list[bytes], writable: list[int]) -> list[tuple[int, int, int]]:
        """(address, length, WRITE or 0) of each piece."""
        out = []
        for data in readable:
            at = self._buffer(len(data))
            self.view[at : at + len(data)] = data
            out.append((at, len(data), 0))
        for length in writable:
            at = self._buffer(length)
            out.append((at, length, WRITE))
        return out

    def _table(self, buffers: list[tuple[int, int, int]]) -> tuple[int, int, int]:
        """Put the buffers into an indirect table: its descriptor."""
        at = self._buffer(16 * len(buffers))
        for i, (address, length, flags) in enumerate(buffers):
            more = NEXT if i + 1 < len(buffers) else 0
            if self.driver.packed:
                entry = struct.pack("<QIHH", address, length, 0, flags)
            else:
                entry = struct.pack("<QIHH", address, length, flags | more, i + 1 if more else 0)
            self.view[at + 16 * i : at + 16 * i + 16] = entry
        return at, 16 * len(buffers), INDIRECT

    def _answer(self, buffers: list[tuple[int, int, int]], written: int) -> tuple[bytes, int]:
        data = b"".join(bytes(self.view[at : at + n]) for at, n, flags in buffers if flags & WRITE)
        for at, n, _ in buffers:
            self._pool.setdefault(n, []).append(at)
        return data[:written], written

    def get16(self, at: int) -> int:
        return struct.unpack_from("<H", self.view, at)[0]

    def put16(self, at: int, value: int) -> None:
        struct.pack_into("<H", self.view, at, value & 0xFFFF)

    def kick(self) -> bool:
        """Notify the device, if it wants to be; whether it was."""
        if wanted := self.wants_kick():
            self.kicks += 1
            self.bench.notify(self.index)
        return wanted

    def add(self, readable: list[bytes], writable: list[int]) -> int:
        raise NotImplementedError

    def collect(self) -> dict[int, tuple[bytes, int]]:
        raise NotImplementedError

    def wants_kick(self) -> bool:
        raise NotImplementedError


class Split(Virtqueue):
    def __init__(self, driver: Driver, index: int, size: int):
        super().__init__(driver, index, size)
        self.avail = self.last_used = self.kicked = 0
        self._free = deque(range(size))
        self._chains: dict[int, tuple[int, list[tuple[int, int, int]], list[int], tuple[int, int, int] | None]] = {}

    def add(self, readable: list[bytes], writable: list[int]) -> int:
        buffers = self._buffers(readable, writable)
        table = self._table(buffers) if self.driver.indirect and len(buffers) > 1 else None
        ring = [table] if table else buffers
        if len(ring) > len(self._free):
            raise BufferError("the queue is full")
        indices = [self._free.popleft() for _ in ring]
        for i, (address, length, flags) in enumerate(ring):
            follows = i + 1 < len(ring)
            struct.pack_into(
                "<QIHH", self.view, self.desc + 16 * indices[i], address, length,
                flags | (NEXT if follows else 0), indices[i + 1] if follows else 0,
            )
        self.tokens += 1
        self._chains[indices[0]] = (self.tokens, buffers, indices, table)
        self.put16(self.driver_area + 4 + 2 * (self.avail % self.size), indices[0])
        self.avail = self.avail + 1 & 0xFFFF
        self.put16(self.driver_area + 2, self.avail)
        self.free = len(self._free)
        return self.tokens

    def wants_kick(self) -> bool:
        old, self.kicked = self.kicked, self.avail
        if self.driver.event_idx:
            event = self.get16(self.device_area + 4 + 8 * self.size)
            return (self.avail - event - 1) & 0xFFFF < (self.avail - old) & 0xFFFF
        return not self.get16(self.device_area) & 1

    def collect(self) -> dict[int, tuple[bytes, int]]:
        out = {}
        while self.last_used != self.get16(self.device_area + 2):
            at = self.device_area + 4 + 8 * (self.last_used % self.size)
            head, written = struct.unpack_from("<II", self.view, at)
            token, buffers, indices, table = self._chains.pop(head)
            self._free.extend(indices)
            out[token] = self._answer(buffers, written)
            if table:
                self._pool.setdefault(table[1], []).append(table[0])
            self.last_used = self.last_used + 1 & 0xFFFF
        self.interrupt_me()
        self.free = len(self._free)
        return out

    def interrupt_me(self, after: int = 0) -> None:
        """Ask for an interrupt behind the next used buffer (with event index: behind ``after`` other descriptors)."""
        self.put16(self.driver_area, 0)
        self.put16(self.driver_area + 4 + 2 * self.size, self.last_used + after)

    def be_quiet(self) -> None:
        """No interrupts, please."""
        self.put16(self.driver_area, 1)
        self.put16(self.driver_area + 4 + 2 * self.size, self.last_used - 1)


class Packed(Virtqueue):
    def __init__(self, driver: Driver, index: int, size: int):
        super().__init__(driver, index, size)
        self.next = self.used = 0
        self.wrap = self.used_wrap = True
        self.kicked = 0                                 # descriptors added since the last kick
        self._ids = deque(range(size))
        self._chains: dict[int, tuple[int, list[tuple[int, int, int]], int, tuple[int, int, int] | None]] = {}

    def add(self, readable: list[bytes], writable: list[int]) -> int:
        buffers = self._buffers(readable, writable)
        table = self._table(buffers) if self.driver.indirect and len(buffers) > 1 else None
        ring = [table] if table else buffers
        if len(ring) > self.free:
            raise BufferError("the queue is full")
        ident = self._ids.popleft()
        first = None
        for i, (address, length, flags) in enumerate(ring):
            flags |= (NEXT if i + 1 < len(ring) else 0) | (AVAIL if self.wrap else USED)
            at = self.desc + 16 * self.next
            struct.pack_into("<QIH", self.view, at, address, length, ident)
            if first is None:
                first = (at + 14, flags)  # the head's flags last: then all of it is available
            else:
                self.put16(at + 14, flags)
            self.next += 1
            if self.next == self.size:
                self.next, self.wrap = 0, not self.wrap
        assert first
        self.put16(*first)
        self.free -= len(ring)
        self.kicked += len(ring)
        self.tokens += 1
        self._chains[ident] = (self.tokens, buffers, len(ring), table)
        return self.tokens

    def wants_kick(self) -> bool:
        added, self.kicked = self.kicked, 0
        flags = self.get16(self.device_area + 2)
        if flags == 2 and self.driver.event_idx:
            event = self.get16(self.device_area)
            place = (event & 0x7FFF) + (0 if event >> 15 else self.size)
            here = self.next + (0 if self.wrap else self.size)
            return 1 <= (here - place) % (2 * self.size) <= added
        return flags != 1

    def collect(self) -> dict[int, tuple[bytes, int]]:
        out = {}
        while True:
            at = self.desc + 16 * self.used
            flags = self.get16(at + 14)
            if bool(flags & USED) != self.used_wrap or bool(flags & AVAIL) != self.used_wrap:
                break
            written, ident = struct.unpack_from("<8xIH", self.view, at)
            token, buffers, count, table = self._chains.pop(ident)
            out[token] = self._answer(buffers, written)
            if table:
                self._pool.setdefault(table[1], []).append(table[0])
            self._ids.append(ident)
            self.free += count
            self.used += count
            if self.used >= self.size:
                self.used, self.used_wrap = self.used - self.size, not self.used_wrap
        self.interrupt_me()
        return out

    def interrupt_me(self, after: int = 0) -> None:
        if self.driver.event_idx:
            place, wrap = self.used + after, self.used_wrap
            if place >= self.size:
                place, wrap = place - self.size, not wrap
            self.put16(self.driver_area, place | wrap << 15)
            self.put16(self.driver_area + 2, 2)
        else:
            self.put16(self.driver_area + 2, 0)

    def be_quiet(self) -> None:
        self.put16(self.driver_area + 2, 1)
