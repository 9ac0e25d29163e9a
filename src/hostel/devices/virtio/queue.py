"""Virtqueues (virtio 1.2, 2.6 to 2.8): split and packed rings in the guest's memory, as devices see them.

The driver makes chains of buffers available; the device takes them (``pop``), uses them in any order (``push``) and
tells the driver (``signal``). A chain is a list of buffers that the device may read, then of those it may write, each a
piece of guest memory at a host address, checked once: nothing of it is read from the guest's memory again.

**Notifications.** ``pop`` asks the driver to notify only when it finds the queue empty, and looks again after having
asked; so while a device works its driver is silent, and no wake-up is lost. A device that stops before ``pop`` said
that there is nothing left must come back by itself (when it has room, say). ``signal`` after a batch interrupts only
where the driver asked for it (event index, or flags). Whoever waits for ``notify_fd`` calls ``acknowledge`` first.

**Hostile rings.** Whatever the driver may not do (addresses outside memory, loops, lengths of zero, writable buffers
before readable ones, an index that jumps, a chain made available twice) breaks the device: DEVICE_NEEDS_RESET (2.1.1),
a counter, and ``pop`` gives nothing until the driver resets it. Chains that are in the device's hands by then stay what
they are; ``push`` forgets them.

**Threads.** A queue belongs to one thread at a time: the device's lock (device.py) is held around all but ``ring``.
No mutex, no GIL is taken, but by an interrupt through a pin.

For compiled devices a chain is ``iovec``s, ready for readv(2). For plain Python there is ``Request``, with memoryviews:

    for request in queue:           # until it is empty, or others must have their turn
        request.write(os.urandom(min(request.writable_bytes, 65536)))
        request.push()
    queue.signal()
"""

import os

import cython
from cython.cimports.cpython.bytes import PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cython.cimports.hostel.memory.ram import Ram, Slot
from cython.cimports.libc.stdint import uint8_t, uint16_t, uint32_t, uint64_t
from cython.cimports.libc.string import memcpy

from hostel.base.errors import MachineError
from hostel.base.linux import eventfd

# What a driver did wrong, by BAD_*
REASON_NAMES = (
    "ring outside memory", "avail index jumped", "no such head", "no such next descriptor", "loop",
    "buffer outside memory", "bad length", "readable behind writable", "bad indirect table",
    "chain made available twice", "no memory on the host", "bad request",
)
_VERSION = 1

DESC_NEXT = cython.declare(uint16_t, 1)
DESC_WRITE = cython.declare(uint16_t, 2)
DESC_INDIRECT = cython.declare(uint16_t, 4)
DESC_AVAIL = cython.declare(uint16_t, 1 << 7)
DESC_USED = cython.declare(uint16_t, 1 << 15)
NO_NOTIFY = cython.declare(uint16_t, 1)         # split: used ring's flags
NO_INTERRUPT = cython.declare(uint16_t, 1)      # split: avail ring's flags
EVENT_ENABLE = cython.declare(uint16_t, 0)      # packed: event suppression structures' flags (2.8.10)
EVENT_DISABLE = cython.declare(uint16_t, 1)
EVENT_DESC = cython.declare(uint16_t, 2)
KEEP = cython.declare(uint32_t, 128)            # iovecs that a free chain keeps: a page and a half


@cython.cfunc
@cython.inline
@cython.nogil
@cython.exceptval(check=False)
def _get16(p: cython.pointer(uint8_t)) -> uint16_t:
    """The guest's memory is read once for each look."""
    return cython.cast(cython.pointer(cython.volatile[uint16_t]), p)[0]


@cython.cfunc
@cython.inline
@cython.nogil
@cython.exceptval(check=False)
def _put16(p: cython.pointer(uint8_t), value: uint16_t) -> cython.void:
    cython.cast(cython.pointer(cython.volatile[uint16_t]), p)[0] = value


@cython.cfunc
@cython.inline
@cython.nogil
@cython.exceptval(check=False)
def _descriptor(p: cython.pointer(uint8_t)) -> Descriptor:
    d: Descriptor
    d.address = cython.cast(cython.pointer(cython.volatile[uint64_t]), p)[0]
    d.length = cython.cast(cython.pointer(cython.volatile[uint32_t]), p + 8)[0]
    d.flags = cython.cast(cython.pointer(cython.volatile[uint16_t]), p + 12)[0]
    d.next = cython.cast(cython.pointer(cython.volatile[uint16_t]), p + 14)[0]
    return d


@cython.cclass
class Transport:
    """What carries a device's registers and interrupts. This one only counts, for tests."""

    def __cinit__(self):
        i: cython.int
        self.status = 0
        self.running = 0
        for i in range(REASONS):
            self.broken[i] = 0

    def interrupt(self, queue):
        pass

    def config_interrupt(self):
        pass

    def fail(self, reason):
        self.running = 0
        self.broken[reason] += 1
        # 2.1.2: a configuration change notification follows if the driver was there
        if not atomic_or(cython.address(self.status), STATUS_NEEDS_RESET) & STATUS_NEEDS_RESET:
            if self.status & STATUS_DRIVER_OK:
                self.config_interrupt()

    def fail_py(self, reason: cython.int = BAD_REQUEST):
        """The driver did what it must not: the device needs a reset."""
        self.fail(reason)

    def get_status(self) -> int:
        """The device status field."""
        return self.status

    def set_status(self, status: uint32_t):
        self.status = status

    def set_running(self, running: cython.bint):
        """Whether queues may be used."""
        self.running = running

    def is_running(self) -> bool:
        return self.running != 0

    def broken_by(self) -> dict:
        """How often the driver broke the device, by reason."""
        return {REASON_NAMES[i]: self.broken[i] for i in range(REASONS) if self.broken[i]}


@cython.cclass
class Bell:
    def rung(self, queue):
        queue.wake()


@cython.cclass
class Queue:
    """One virtqueue of at most ``max_size`` entries; the transport makes it."""

    def __cinit__(self, transport: Transport, ram: Ram, index: cython.int, max_size: cython.int):
        if not 1 <= max_size <= MAX_SIZE or max_size & (max_size - 1):
            raise ValueError(f"a queue of {max_size} entries can't be")
        self.notify_fd = -1
        self.transport = transport
        self.ram = ram
        self.views = ram.slot_views()
        self.index = index
        self.max_size = max_size
        self.budget = -1
        self.chains = cython.cast(cython.pointer(Chain), calloc(max_size, cython.sizeof(Chain)))
        self.spare = cython.cast(cython.pointer(uint16_t), calloc(max_size, 2))
        self.again = cython.cast(cython.pointer(uint16_t), calloc(max_size, 2))
        if not (self.chains and self.spare and self.again):
            raise MemoryError()
        self.notify_fd = eventfd.make()
        self.reset()

    def __dealloc__(self):
        i: cython.int
        if self.chains:
            for i in range(self.max_size):
                free(self.chains[i].iov)
        free(self.chains)
        free(self.spare)
        free(self.again)

    def close(self):
        """Close the eventfd."""
        if self.notify_fd >= 0:
            os.close(self.notify_fd)
        self.notify_fd = -1

    # -- the transport's side

    def enable(
        self, size: cython.int, descriptors: uint64_t, driver: uint64_t, device: uint64_t,
        packed: cython.bint, event_idx: cython.bint, indirect: cython.bint,
    ) -> bool:
        """Use rings at these guest-physical addresses. False, and the device is broken, where there can't be any."""
        driver_size: uint64_t = 4 if packed else 6 + 2 * size
        device_size: uint64_t = 4 if packed else 6 + 8 * size
        alignment: uint64_t = 4 if packed else 2
        self.reset()
        self.size = size
        self.descriptors, self.driver, self.device = descriptors, driver, device
        self.packed, self.event_idx, self.indirect = packed, event_idx, indirect
        self.desc_area = self.ram.host(descriptors, 16 * cython.cast(uint64_t, max(size, 0)))
        self.driver_area = self.ram.host(driver, driver_size)
        self.device_area = self.ram.host(device, device_size)
        bad: cython.bint = not 1 <= size <= self.max_size or (not packed and size & (size - 1)) != 0
        bad |= not (self.desc_area and self.driver_area and self.device_area)
        # 2.6, 2.8: alignment
        bad |= (descriptors & 15) != 0 or (driver & (alignment - 1)) != 0 or (device & 3) != 0
        if bad or self.ram.find(descriptors).readonly or self.ram.find(device).readonly:
            self.fail(BAD_RING)
            return False
        self.avail_wrap = self.used_wrap = True
        self.enabled = True
        return True

    def reset(self):
        """Forget rings and chains; what the device may have written to counts as written."""
        i: cython.int
        with cython.nogil:
            for i in range(self.max_size):
                if self.chains[i].busy:
                    self.touched(cython.address(self.chains[i]), self.chains[i].in_bytes)
                    self.chains[i].busy = False
        for i in range(self.max_size):
            self.spare[i] = self.max_size - 1 - i
        self.spare_count = self.max_size
        self.again_count = 0
        self.generation += 1
        self.enabled = False
        self.size = self.max_size
        self.descriptors = self.driver = self.device = 0
        self.desc_area = self.driver_area = self.device_area = cython.NULL
        self.next_avail = self.next_used = self.signalled = 0
        self.avail_wrap = self.used_wrap = True
        self.unsignalled = 0
        self.listening = False
        self.in_flight = 0
        self.slots_in_flight = 0
        self.budget = -1

    def ring(self):
        if self.bell is None:
            self.wake()
        else:
            self.kicks += 1
            self.bell.rung(self)

    def wake(self):
        # Whoever acknowledges clears `notified` before he looks at the ring: what was made available before this
        # exchange found a 1 is seen by him.
        if exchange(cython.address(self.notified), 1) == 0:
            self.kicks += 1
            eventfd_write(self.notify_fd, 1)

    def ring_py(self):
        """Have the device look at the queue."""
        self.wake()

    def acknowledge(self):
        value: uint64_t = 0
        eventfd_read(self.notify_fd, cython.address(value))
        self.notified = 0
        fence()

    def acknowledge_py(self):
        """``notify_fd`` was readable; call it before looking at the queue."""
        self.acknowledge()

    def fail(self, reason):
        self.transport.fail(reason)

    # -- taking chains

    def available(self):
        flags: uint16_t
        if self.packed:
            flags = _get16(self.desc_area + 16 * self.next_avail + 14)
            return ((flags & DESC_AVAIL) != 0) == self.avail_wrap and ((flags & DESC_USED) != 0) != self.avail_wrap
        return _get16(self.driver_area + 2) != self.next_avail

    def listen(self):
        """Have the driver notify of the next chain."""
        self.listening = True
        if self.packed:
            if self.event_idx:
                _put16(self.device_area, self.next_avail | (cython.cast(uint16_t, self.avail_wrap) << 15))
                _put16(self.device_area + 2, EVENT_DESC)
            else:
                _put16(self.device_area + 2, EVENT_ENABLE)
            self.ram.written(self.device_area, 4)
        elif self.event_idx:
            _put16(self.device_area + 4 + 8 * self.size, self.next_avail)
            self.ram.written(self.device_area + 4 + 8 * self.size, 2)
        else:
            _put16(self.device_area, 0)
            self.ram.written(self.device_area, 2)
        fence()

    def ignore(self):
        self.listening = False
        if self.packed:
            _put16(self.device_area + 2, EVENT_DISABLE)
        elif not self.event_idx:  # else the index that it notifies at lies behind it
            _put16(self.device_area, NO_NOTIFY)

    def pop(self):
        chain: cython.pointer(Chain)
        if not self.enabled or not self.transport.running:
            return cython.NULL
        if self.budget == 0:
            self.ring()
            return cython.NULL
        if self.again_count:
            self.again_count -= 1
            chain = cython.address(self.chains[self.again[self.again_count]])
        else:
            if not self.available():
                if self.listening:
                    return cython.NULL
                self.listen()
                if not self.available():
                    return cython.NULL
            if self.listening:
                self.ignore()
            fence_at(2)
            chain = self.pop_packed() if self.packed else self.pop_split()
            if chain == cython.NULL:
                return cython.NULL
        self.in_flight += 1
        if self.budget > 0:
            self.budget -= 1
        return chain

    def unpop(self, chain):
        self.in_flight -= 1
        self.again[self.again_count] = chain.number
        self.again_count += 1

    def new_chain(self, number):
        chain: cython.pointer(Chain) = cython.address(self.chains[number])
        chain.number = number
        chain.out_count = chain.in_count = 0
        chain.out_bytes = chain.in_bytes = 0
        chain.tag = cython.NULL
        chain.slots = 0
        return chain

    def add(self, chain, address, length, writable):
        """Append a buffer, if it is one."""
        n: uint32_t = chain.out_count + chain.in_count
        slot: cython.pointer(Slot) = self.ram.find(address)
        iov: cython.pointer(iovec)
        if length == 0:
            self.fail(BAD_LENGTH)
            return False
        if slot == cython.NULL or length > slot.size - (address - slot.gpa) or (writable and slot.readonly):
            self.fail(BAD_ADDRESS)
            return False
        if chain.in_count and not writable:  # 2.7.4.2
            self.fail(BAD_ORDER)
            return False
        if n == MAX_SIZE:
            self.fail(BAD_LOOP)
            return False
        if n == chain.capacity:
            iov = cython.cast(
                cython.pointer(iovec), realloc(chain.iov, (n + n + 8) * cython.sizeof(iovec))
            )
            if iov == cython.NULL:
                self.fail(NO_MEMORY)
                return False
            chain.iov = iov
            chain.capacity = n + n + 8
        chain.iov[n].iov_base = slot.host + (address - slot.gpa)
        chain.iov[n].iov_len = length
        if writable:
            chain.in_count += 1
            chain.in_bytes += length
        else:
            chain.out_count += 1
            chain.out_bytes += length
        if chain.out_bytes + chain.in_bytes >> 32:  # 2.7.4.2 allows 2 ** 32, which an answer's length couldn't hold
            self.fail(BAD_LENGTH)
            return False
        return True

    def table(self, address, length):
        """An indirect table, or NULL."""
        host: cython.pointer(uint8_t)
        if not self.indirect or length == 0 or length & 15:
            self.fail(BAD_INDIRECT)
            return cython.NULL
        host = self.ram.host(address, length)
        if host == cython.NULL:
            self.fail(BAD_ADDRESS)
        return host

    def take(self, chain):
        chain.busy = True
        chain.order = self.popped
        self.popped += 1
        self.bytes_out += chain.out_bytes
        return chain

    def pop_split(self):
        head: uint16_t
        chain: cython.pointer(Chain)
        if cython.cast(uint16_t, _get16(self.driver_area + 2) - self.next_avail) > self.size:
            self.fail(BAD_AVAIL_INDEX)
            return cython.NULL
        head = _get16(self.driver_area + 4 + 2 * (self.next_avail & (self.size - 1)))
        if head >= self.size:
            self.fail(BAD_HEAD)
            return cython.NULL
        if self.chains[head].busy:
            self.fail(BAD_REUSE)
            return cython.NULL
        chain = self.new_chain(head)
        chain.id = head
        if not self.walk_split(chain, head):
            return cython.NULL
        self.next_avail += 1
        return self.take(chain)

    def walk_split(self, chain, index):
        table: cython.pointer(uint8_t) = self.desc_area
        count: uint32_t = self.size
        steps: uint32_t = 0
        inside: cython.bint = False
        d: Descriptor
        while True:
            d = _descriptor(table + 16 * cython.cast(uint64_t, index))
            if d.flags & DESC_INDIRECT:  # 2.7.5.3
                if inside or d.flags & DESC_NEXT:
                    self.fail(BAD_INDIRECT)
                    return False
                table = self.table(d.address, d.length)
                if table == cython.NULL:
                    return False
                count = d.length >> 4
                steps = index = 0
                inside = True
                continue
            if not self.add(chain, d.address, d.length, (d.flags & DESC_WRITE) != 0):
                return False
            if not d.flags & DESC_NEXT:
                return True
            steps += 1
            index = d.next
            if index >= count:
                self.fail(BAD_NEXT)
                return False
            if steps >= count:
                self.fail(BAD_LOOP)
                return False

    def pop_packed(self):
        chain: cython.pointer(Chain)
        if self.spare_count == 0:
            self.fail(BAD_REUSE)
            return cython.NULL
        chain = self.new_chain(self.spare[self.spare_count - 1])
        if not self.walk_packed(chain):
            return cython.NULL
        self.spare_count -= 1
        self.slots_in_flight += chain.slots
        self.next_avail += chain.slots
        if self.next_avail >= self.size:
            self.next_avail -= cython.cast(uint16_t, self.size)
            self.avail_wrap = not self.avail_wrap
        return self.take(chain)

    def walk_packed(self, chain):
        place: uint32_t = self.next_avail
        i: uint32_t
        table: cython.pointer(uint8_t)
        d: Descriptor
        inner: Descriptor
        while True:
            d = _descriptor(self.desc_area + 16 * cython.cast(uint64_t, place))
            chain.id = d.flags
            chain.slots += 1
            if chain.slots + self.slots_in_flight > cython.cast(uint32_t, self.size):
                self.fail(BAD_LOOP if d.next & DESC_NEXT else BAD_REUSE)
                return False
            if d.next & DESC_INDIRECT:  # 2.8.7
                if d.next & DESC_NEXT:
                    self.fail(BAD_INDIRECT)
                    return False
                table = self.table(d.address, d.length)
                if table == cython.NULL:
                    return False
                for i in range(d.length >> 4):
                    inner = _descriptor(table + 16 * cython.cast(uint64_t, i))
                    if inner.next & DESC_INDIRECT:
                        self.fail(BAD_INDIRECT)
                        return False
                    if not self.add(chain, inner.address, inner.length, (inner.next & DESC_WRITE) != 0):
                        return False
                return True
            if not self.add(chain, d.address, d.length, (d.next & DESC_WRITE) != 0):
                return False
            if not d.next & DESC_NEXT:
                return True
            place += 1
            if place == cython.cast(uint32_t, self.size):
                place = 0

    # -- giving them back

    def touched(self, chain, written):
        i: uint32_t
        n: uint64_t
        for i in range(chain.out_count, chain.out_count + chain.in_count):
            if written == 0:
                return
            n = min(written, chain.iov[i].iov_len)
            self.ram.written(chain.iov[i].iov_base, n)
            written -= n

    def release(self, chain):
        chain.busy = False
        self.in_flight -= 1
        if self.packed:
            self.spare[self.spare_count] = chain.number
            self.spare_count += 1
            self.slots_in_flight -= chain.slots
        if chain.capacity > KEEP:  # 16 MiB of them in a queue full of long chains
            free(chain.iov)
            chain.iov = cython.NULL
            chain.capacity = 0

    def push(self, chain, written):
        p: cython.pointer(uint8_t)
        flags: uint16_t
        written = min(written, chain.in_bytes)
        self.touched(chain, written)
        if self.enabled and self.transport.running:
            if self.packed:
                p = self.desc_area + 16 * cython.cast(uint64_t, self.next_used)
                cython.cast(cython.pointer(uint32_t), p + 8)[0] = cython.cast(uint32_t, written)
                cython.cast(cython.pointer(uint16_t), p + 12)[0] = chain.id
                flags = (DESC_AVAIL | DESC_USED) if self.used_wrap else 0
                if written:
                    flags |= DESC_WRITE
                if self.holding and self.held == cython.NULL:
                    self.held, self.held_flags = p, flags
                else:
                    fence_at(3)
                    _put16(p + 14, flags)
                self.ram.written(p, 16)
                self.next_used += chain.slots
                if self.next_used >= self.size:
                    self.next_used -= cython.cast(uint16_t, self.size)
                    self.used_wrap = not self.used_wrap
                self.unsignalled += chain.slots
            else:
                p = self.device_area + 4 + 8 * (self.next_used & (self.size - 1))
                cython.cast(cython.pointer(uint32_t), p)[0] = chain.id
                cython.cast(cython.pointer(uint32_t), p)[1] = cython.cast(uint32_t, written)
                self.ram.written(p, 8)
                self.next_used += 1
                if not self.holding:
                    self.show_used()
            self.requests += 1
            self.bytes_in += written
        self.release(chain)

    def show_used(self):
        """Split: the driver sees what was pushed."""
        fence_at(3)
        _put16(self.device_area + 2, self.next_used)
        self.ram.written(self.device_area, 4)

    def hold(self):
        self.holding = True
        self.held = cython.NULL

    def publish(self):
        self.holding = False
        if not self.enabled or not self.transport.running:
            return
        if not self.packed:
            self.show_used()
        elif self.held != cython.NULL:
            fence_at(3)
            _put16(self.held + 14, self.held_flags)

    def wants_interrupt(self):
        event: uint16_t
        flags: uint16_t
        place: uint32_t
        distance: uint32_t
        used: cython.bint
        if self.packed:
            used = self.unsignalled != 0
            distance = self.unsignalled
            self.unsignalled = 0
            flags = _get16(self.driver_area + 2)
            if not used or flags == EVENT_DISABLE:
                return False
            if flags != EVENT_DESC or not self.event_idx:
                return True
            # places in two rounds of the ring, the one with wrap counter 1 first
            event = _get16(self.driver_area)
            place = (event & 0x7FFF) + (0 if event >> 15 else self.size)
            if (event & 0x7FFF) >= self.size:
                return True
            place = self.next_used + (0 if self.used_wrap else self.size) + 2 * self.size - place
            place %= 2 * self.size
            return 1 <= place <= distance  # the event lies among what was used since the last time
        used = self.next_used != self.signalled
        place = cython.cast(uint16_t, self.next_used - self.signalled)
        self.signalled = self.next_used
        if not used:
            return False
        if not self.event_idx:
            return not _get16(self.driver_area) & NO_INTERRUPT
        event = _get16(self.driver_area + 4 + 2 * self.size)
        return cython.cast(uint16_t, self.next_used - event - 1) < place

    def signal(self):
        if not self.enabled or not self.transport.running:
            return
        fence()
        if self.wants_interrupt():
            self.interrupts += 1
            self.transport.interrupt(self.index)

    # -- for devices in plain Python

    def __iter__(self):
        return self

    def __next__(self):
        chain: cython.pointer(Chain)
        with cython.nogil:
            chain = self.pop()
        if chain == cython.NULL:
            raise StopIteration
        return _request(self, chain)

    def signal_py(self):
        """Interrupt the driver, if it wants to know of what was pushed."""
        with cython.nogil:
            self.signal()

    def fail_py(self, reason: cython.int = BAD_REQUEST):
        """The driver did what it must not: the device needs a reset."""
        with cython.nogil:
            self.fail(reason)

    def statistics(self) -> dict:
        """Requests used, the driver's notifications, interrupts, bytes read from the guest and written to it."""
        return {
            "size": self.size,
            "requests": self.requests,
            "in_flight": self.in_flight + self.again_count,
            "kicks": self.kicks,
            "interrupts": self.interrupts,
            "bytes_out": self.bytes_out,
            "bytes_in": self.bytes_in,
        }

    def save(self) -> dict:
        """Where the rings are and how far the device is; chains in its hands are as they were taken."""
        chains = []
        i: cython.int
        k: cython.int
        for i in range(self.max_size):
            c: cython.pointer(Chain) = cython.address(self.chains[i])
            if self.enabled and c.busy:
                buffers = []
                for k in range(c.out_count + c.in_count):
                    buffers.append((_guest_address(self, c.iov[k].iov_base), c.iov[k].iov_len))
                chains.append((c.order, c.id, c.slots, buffers[: c.out_count], buffers[c.out_count :]))
        return {
            "version": _VERSION,
            "size": self.size,
            "enabled": bool(self.enabled),
            "packed": bool(self.packed),
            "event_idx": bool(self.event_idx),
            "indirect": bool(self.indirect),
            "areas": [self.descriptors, self.driver, self.device],
            "next_avail": self.next_avail | self.avail_wrap << 16,
            "next_used": self.next_used | self.used_wrap << 16,
            "signalled": self.signalled,
            "unsignalled": self.unsignalled,
            "chains": [entry[1:] for entry in sorted(chains)],
        }

    def load(self, state: dict):
        """Restore what ``save`` gave. Chains that were in the device's hands come out of ``pop`` again, in order."""
        if state["version"] != _VERSION:
            raise ValueError(f"virtqueue: state version {state['version']} is not {_VERSION}")
        self.reset()
        if state["size"] > self.max_size:
            raise MachineError(f"the saved queue has {state['size']} entries, this one {self.max_size}")
        self.size = state["size"]
        if not state["enabled"]:
            self.descriptors, self.driver, self.device = state["areas"]
            return
        if not self.enable(
            state["size"], *state["areas"], packed=state["packed"], event_idx=state["event_idx"],
            indirect=state["indirect"],
        ):
            raise MachineError("the saved queue isn't in this machine's memory")
        self.next_avail, self.avail_wrap = state["next_avail"] & 0xFFFF, state["next_avail"] >> 16
        self.next_used, self.used_wrap = state["next_used"] & 0xFFFF, state["next_used"] >> 16
        self.signalled, self.unsignalled = state["signalled"], state["unsignalled"]
        for id_, slots, readable, writable in reversed(state["chains"]):
            number = id_
            if self.packed:
                self.spare_count -= 1
                number = self.spare[self.spare_count]
            chain: cython.pointer(Chain) = self.new_chain(number)
            for address, length in readable:
                self.add(chain, address, length, False)
            for address, length in writable:
                self.add(chain, address, length, True)
            chain.id = id_
            chain.slots = slots
            chain.busy = True
            self.slots_in_flight += slots
            self.again[self.again_count] = chain.number
            self.again_count += 1


# ---------------------------------------------------------------- chains


@cython.cfunc
def _request(queue: Queue, chain: cython.pointer(Chain)) -> Request:
    r: Request = Request.__new__(Request)
    r.queue = queue
    r.chain = chain
    r.generation = queue.generation
    r.readable_bytes = chain.out_bytes
    r.writable_bytes = chain.in_bytes
    return r


def gather(chain, offset, buffer, size):
    i: uint32_t
    n: uint64_t
    done: uint64_t = 0
    to: cython.pointer(uint8_t) = cython.cast(cython.pointer(uint8_t), buffer)
    for i in range(chain.out_count):
        if done == size:
            break
        n = chain.iov[i].iov_len
        if offset >= n:
            offset -= n
            continue
        n = min(n - offset, size - done)
        memcpy(to + done, cython.cast(cython.pointer(uint8_t), chain.iov[i].iov_base) + offset, n)
        done += n
        offset = 0
    return done


def scatter(chain, offset, buffer, size):
    i: uint32_t
    n: uint64_t
    done: uint64_t = 0
    source: cython.pointer(uint8_t) = cython.cast(cython.pointer(uint8_t), buffer)
    for i in range(chain.out_count, chain.out_count + chain.in_count):
        if done == size:
            break
        n = chain.iov[i].iov_len
        if offset >= n:
            offset -= n
            continue
        n = min(n - offset, size - done)
        memcpy(cython.cast(cython.pointer(uint8_t), chain.iov[i].iov_base) + offset, source + done, n)
        done += n
        offset = 0
    return done


@cython.cclass
class Request:
    """A chain in the device's hands. It is void once the queue was reset: then it has no buffers, and ``push`` does
    nothing."""

    def _live(self) -> bool:
        return self.chain != cython.NULL and self.generation == self.queue.generation

    @property
    def readable(self) -> list:
        """Memoryviews of what the device may read."""
        if not self._live():
            return []
        return [view.toreadonly() for view in _views(self.queue, self.chain, 0, self.chain.out_count)]

    @property
    def writable(self) -> list:
        """Memoryviews of what it may write; ``push`` must be told how much of them was."""
        if not self._live():
            return []
        return _views(self.queue, self.chain, self.chain.out_count, self.chain.in_count)

    def writable_ranges(self) -> list:
        """Where it may write: (guest-physical address, bytes)."""
        out = []
        i: uint32_t
        if self._live():
            for i in range(self.chain.out_count, self.chain.out_count + self.chain.in_count):
                out.append((_guest_address(self.queue, self.chain.iov[i].iov_base), self.chain.iov[i].iov_len))
        return out

    def read(self, size: uint64_t = 0xFFFFFFFF, offset: uint64_t = 0) -> bytes:
        """A copy of the readable bytes from ``offset`` on, at most ``size``."""
        if not self._live() or offset >= self.readable_bytes:
            return b""
        n: uint64_t = min(size, self.readable_bytes - offset)
        out: bytes = PyBytes_FromStringAndSize(cython.NULL, n)
        gather(self.chain, offset, PyBytes_AS_STRING(out), n)
        return out

    def write(self, data) -> int:
        """Store ``data`` behind what was stored before; how much fitted."""
        view: cython.const[cython.uchar][::1] = data
        n: uint64_t = view.shape[0]
        if not self._live() or n == 0:
            return 0
        n = scatter(self.chain, self.filled, cython.address(view[0]), n)
        self.filled += n
        return n

    def push(self, written=None):
        """Used: ``written`` bytes, from the first writable one on (default: what ``write`` stored)."""
        n: uint64_t = self.filled if written is None else written
        if self._live():
            chain: cython.pointer(Chain) = self.chain
            queue: Queue = self.queue
            self.chain = cython.NULL
            with cython.nogil:
                queue.push(chain, n)

    def give_back(self):
        """Not now: the queue's next chain will be this one."""
        if self._live():
            self.queue.unpop(self.chain)
            self.chain = cython.NULL


@cython.cfunc
def _guest_address(queue: Queue, host: cython.p_void) -> uint64_t:
    slot: cython.pointer(Slot) = queue.ram.find_host(host)
    return cython.cast(uint64_t, host) - cython.cast(uint64_t, slot.host) + slot.gpa


@cython.cfunc
def _views(queue: Queue, chain: cython.pointer(Chain), first: uint32_t, count: uint32_t) -> list:
    i: uint32_t
    k: cython.int
    at: uint64_t
    out = []
    for i in range(first, first + count):
        for k in range(queue.ram.count):
            at = cython.cast(uint64_t, chain.iov[i].iov_base) - cython.cast(uint64_t, queue.ram.slots[k].host)
            if at < queue.ram.slots[k].size:
                out.append(queue.views[k][at : at + chain.iov[i].iov_len])
                break
    return out
