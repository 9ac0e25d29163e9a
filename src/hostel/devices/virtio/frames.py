"""Frames between a pair of a network card's queues and a file descriptor, batch-wise and without the GIL.

The descriptor (a tap with IFF_VNET_HDR, or one end of a SOCK_SEQPACKET pair) gives and takes one frame a call, behind
its 12-byte header. Frames are written from the guest's pages and read into them: only their first 26 bytes (header,
addresses, type) go through memory of ours, where they are checked and can't change any more.

A frame that comes in is read into as many of the guest's receive buffers as 64 KiB need; what isn't needed is given
back to the queue. Behind them stands our own memory (``stage``), so that a frame for which there aren't enough is whole
all the same and waits there. A guest that can't take large segments or unfinished checksums gets its frames through
``stage`` too, cut up by offload.Segments.

Back-pressure: where the descriptor takes no more, the chain goes back to its queue (``FULL``); where the guest has no
room, nothing is read. Frames that make no sense, or that the host's rules forbid, are dropped and counted.
"""

import errno as codes

import cython
from cython.cimports.hostel.base.clock import now_ns
from cython.cimports.hostel.base.token_bucket import TokenBucket
from cython.cimports.hostel.devices.virtio.offload import (
    GSO_ECN,
    GSO_NONE,
    GSO_TCPV4,
    GSO_TCPV6,
    GSO_UDP,
    GSO_UDP_L4,
    HEADER_SIZE,
    NEEDS_CSUM,
    NetHeader,
    Segments,
    finish,
    sound,
)
from cython.cimports.hostel.devices.virtio.queue import BAD_LENGTH, Chain, Queue, gather, iovec, scatter
from cython.cimports.libc.errno import errno
from cython.cimports.libc.stdint import uint8_t, uint16_t, uint32_t, uint64_t
from cython.cimports.libc.stdlib import free, malloc
from cython.cimports.libc.string import memcmp, memcpy, memset

EAGAIN = cython.declare(cython.int, codes.EAGAIN)
EINTR = cython.declare(cython.int, codes.EINTR)
ENOBUFS = cython.declare(cython.int, codes.ENOBUFS)
EPIPE = cython.declare(cython.int, codes.EPIPE)
ECONNRESET = cython.declare(cython.int, codes.ECONNRESET)
ENOTCONN = cython.declare(cython.int, codes.ENOTCONN)
EBADFD = cython.declare(cython.int, codes.EBADFD)
EMSGSIZE = cython.declare(cython.int, codes.EMSGSIZE)

STOPS = (DONE, MORE, FULL, LATE, GONE)
ADDRESSES_MAX = 64   # of MAC_TABLE_SET, as many as in Filter.table
_VERSION = 1


@cython.cclass
class Filter:
    """Which frames a card takes (5.1.6.5.1 to 5.1.6.5.3), and which source addresses it may send."""

    def __init__(self, mac: bytes, spoof: bool = False):
        i: cython.int
        for i in range(6):
            self.mac[i] = self.own[i] = mac[i]
        self.spoof = spoof
        self.reset()

    def reset(self):
        """As at power-on."""
        i: cython.int
        for i in range(6):
            self.mac[i] = self.own[i]
        self.promiscuous = self.all_multicast = self.all_unicast = False
        self.no_multicast = self.no_unicast = self.no_broadcast = False
        self.multicast_overflow = self.unicast_overflow = False
        self.unicasts = self.multicasts = 0
        self.vlan = False
        memset(cython.address(self.vlans[0]), 0, 512)

    def give(self, mac: bytes):
        """Another address is the card's own from now on; the driver has yet to take it."""
        for i in range(6):
            self.own[i] = mac[i]

    def get_mac(self) -> bytes:
        return bytes([self.mac[i] for i in range(6)])

    def set_mac(self, mac: bytes) -> bool:
        """The driver's wish; False where the host's rules forbid it."""
        if len(mac) != 6 or mac[0] & 1 or not self.spoof and mac != bytes([self.own[i] for i in range(6)]):
            return False
        for i in range(6):
            self.mac[i] = mac[i]
        return True

    def set_table(self, unicasts: list, multicasts: list):
        """What MAC_TABLE_SET gives. Where there are too many, all of that kind pass: more than is wished may come."""
        self.unicast_overflow = len(unicasts) > ADDRESSES_MAX // 2
        self.multicast_overflow = len(multicasts) > ADDRESSES_MAX // 2
        kept: list = [] if self.unicast_overflow else unicasts
        self.unicasts = len(kept)
        if not self.multicast_overflow:
            kept = kept + multicasts
        self.multicasts = len(kept) - self.unicasts
        for n, address in enumerate(kept):
            for i in range(6):
                self.table[n][i] = address[i]

    def set_vlan(self, number: cython.int, on: cython.bint):
        if 0 <= number < 4096:
            if on:
                self.vlans[number >> 3] |= 1 << (number & 7)
            else:
                self.vlans[number >> 3] &= ~(1 << (number & 7))

    def wants(self, frame):
        """``frame``: at least addresses and type, and a tag where the type says so."""
        i: cython.int
        if self.vlan and frame[12] == 0x81 and frame[13] == 0:
            number: cython.int = (frame[14] & 15) << 8 | frame[15]
            if not self.vlans[number >> 3] & 1 << (number & 7):
                return False
        if self.promiscuous:
            return True
        if frame[0] & 1:
            for i in range(6):
                if frame[i] != 0xFF:
                    break
            else:
                return not self.no_broadcast
            if self.no_multicast:
                return False
            if self.all_multicast or self.multicast_overflow:
                return True
            for i in range(self.unicasts, self.unicasts + self.multicasts):
                if memcmp(frame, cython.address(self.table[i][0]), 6) == 0:
                    return True
            return False
        if self.no_unicast:
            return False
        if self.all_unicast or self.unicast_overflow or memcmp(frame, cython.address(self.mac[0]), 6) == 0:
            return True
        for i in range(self.unicasts):
            if memcmp(frame, cython.address(self.table[i][0]), 6) == 0:
                return True
        return False

    def wants_py(self, frame: bytes) -> bool:
        """``wants``, for tests."""
        data: bytes = frame.ljust(18, b"\0")
        at: cython.p_char = data
        return self.wants(cython.cast(cython.pointer(uint8_t), at))

    def save(self) -> dict:
        table = [bytes([self.table[n][i] for i in range(6)]) for n in range(self.unicasts + self.multicasts)]
        names = (
            "promiscuous", "all_multicast", "all_unicast", "no_multicast", "no_unicast", "no_broadcast",
            "multicast_overflow", "unicast_overflow", "vlan",
        )  # fmt: skip
        return {
            "version": _VERSION, "mac": self.get_mac(), "unicasts": table[: self.unicasts],
            "multicasts": table[self.unicasts :], "vlans": bytes([self.vlans[i] for i in range(512)]),
            "flags": {name: bool(getattr(self, name)) for name in names},
        }  # fmt: skip

    def load(self, state: dict):
        if state["version"] != _VERSION:
            raise ValueError(f"virtio-net filter: state version {state['version']} is not {_VERSION}")
        self.reset()
        for i in range(6):
            self.mac[i] = state["mac"][i]
        self.set_table(state["unicasts"], state["multicasts"])
        for name in state["flags"]:
            if name == "vlan":
                self.vlan = state["flags"][name]
            elif name == "promiscuous":
                self.promiscuous = state["flags"][name]
            elif name == "all_multicast":
                self.all_multicast = state["flags"][name]
            elif name == "all_unicast":
                self.all_unicast = state["flags"][name]
            elif name == "no_multicast":
                self.no_multicast = state["flags"][name]
            elif name == "no_unicast":
                self.no_unicast = state["flags"][name]
            elif name == "no_broadcast":
                self.no_broadcast = state["flags"][name]
            elif name == "multicast_overflow":
                self.multicast_overflow = state["flags"][name]
            elif name == "unicast_overflow":
                self.unicast_overflow = state["flags"][name]
        for i in range(512):
            self.vlans[i] = state["vlans"][i]


@cython.cclass
class Pair:
    """One receive and one transmit queue, and the descriptor behind them. ``set_offloads`` before use."""

    def __cinit__(self):
        self.stage = cython.NULL
        self.fd = -1

    def __init__(self, rx: Queue, tx: Queue, fd: cython.int, filter: Filter, mtu: cython.int, rate: int, burst: int):
        self.rx, self.tx, self.fd, self.filter = rx, tx, fd, filter
        self.largest = mtu + 18
        self.out_rate = TokenBucket(rate, burst) if rate else None
        self.in_rate = TokenBucket(rate, burst) if rate else None
        self.segments = Segments()
        # What is read, what is cut from it, what is sent from too many pieces
        self.stage = cython.cast(cython.pointer(uint8_t), malloc(3 * STAGE_SIZE))
        if self.stage == cython.NULL:
            raise MemoryError()

    def __dealloc__(self):
        free(self.stage)

    def reset(self):
        """Forget what is on its way; the queues are reset by now."""
        self.staged = 0
        self.piece_size = 0
        self.cutting = False
        self.chains = 0

    def set_other_end(self, ufo: bool, uso: bool):
        """Whether large datagrams may come from the descriptor."""
        self.may_ufo, self.may_uso = ufo, uso

    def set_offloads(self, host: dict, guest: dict, mergeable: bool):
        """What the driver leaves to us (``host``) and takes from us (``guest``): csum, tso4, tso6, ecn, ufo, uso."""
        self.mergeable = mergeable
        self.csum, self.tso4, self.tso6 = host["csum"], host["tso4"], host["tso6"]
        self.ecn, self.ufo, self.uso = host["ecn"], host["ufo"], host["uso"]
        self.set_guest_offloads(guest)

    def set_guest_offloads(self, guest: dict):
        self.guest_csum, self.guest_tso4, self.guest_tso6 = guest["csum"], guest["tso4"], guest["tso6"]
        self.guest_ecn, self.guest_ufo = guest["ecn"], guest["ufo"]
        self.guest_uso4, self.guest_uso6 = guest["uso4"], guest["uso6"]

    def statistics(self) -> dict:
        names = (
            "tx_frames", "tx_bytes", "rx_frames", "rx_bytes", "malformed", "spoofed", "too_long", "refused",
            "filtered", "no_room", "unsound", "segmented",
        )  # fmt: skip
        return {name: getattr(self, name) for name in names}

    # -- from the guest

    def transmit(self, budget: cython.int) -> int:
        """Send up to ``budget`` frames; why it stopped. ``MORE`` has the queue notify again."""
        result: cython.int
        with cython.nogil:
            result = self.transmit_some(budget)
            self.tx.signal()
        return result

    def transmit_some(self, budget):
        chain: cython.pointer(Chain)
        size: uint64_t
        skip: uint64_t
        i: cython.int
        count: cython.int
        sent: cython.Py_ssize_t
        while budget:
            if self.out_rate is not None:
                self.wait_ns = self.out_rate.wait_ns(1, now_ns())
                if self.wait_ns:
                    return LATE
            chain = self.tx.pop()
            if chain == cython.NULL:
                return DONE
            budget -= 1
            size = chain.out_bytes
            if chain.in_count or size < HEAD or size > STAGE_SIZE:
                self.malformed += 1
                self.tx.push(chain, 0)
                continue
            gather(chain, 0, cython.address(self.head[0]), HEAD)
            if not self.check_out(cython.cast(uint32_t, size) - HEADER_SIZE):
                self.tx.push(chain, 0)
                continue
            self.iov[0].iov_base = cython.address(self.head[0])
            self.iov[0].iov_len = HEAD
            count = 1
            if chain.out_count > MAX_IOV:
                gather(chain, HEAD, self.stage + 2 * STAGE_SIZE, size - HEAD)
                self.iov[1].iov_base = self.stage + 2 * STAGE_SIZE
                self.iov[1].iov_len = size - HEAD
                count = 2
            else:
                skip = HEAD
                for i in range(chain.out_count):
                    if skip >= chain.iov[i].iov_len:
                        skip -= chain.iov[i].iov_len
                        continue
                    self.iov[count].iov_base = cython.cast(cython.pointer(uint8_t), chain.iov[i].iov_base) + skip
                    self.iov[count].iov_len = chain.iov[i].iov_len - skip
                    skip = 0
                    count += 1
            sent = writev(self.fd, cython.address(self.iov[0]), count)
            if sent < 0:
                if errno == EAGAIN or errno == ENOBUFS or errno == EINTR:
                    self.tx.unpop(chain)
                    return FULL
                if errno == EPIPE or errno == ECONNRESET or errno == ENOTCONN or errno == EBADFD:
                    self.tx.unpop(chain)
                    return GONE
                self.refused += 1  # a tap that is down, or knows better
            else:
                self.tx_frames += 1
                self.tx_bytes += size - HEADER_SIZE
                if self.out_rate is not None:
                    self.out_rate.spend(size - HEADER_SIZE)
            self.tx.push(chain, 0)
        return MORE

    def check_out(self, size):
        """Whether a frame of ``size`` bytes may leave; its header becomes what is true and nothing more."""
        header: cython.pointer(NetHeader) = cython.cast(cython.pointer(NetHeader), cython.address(self.head[0]))
        kind: cython.int = header.gso_type & ~GSO_ECN & 0xFF
        allowed: cython.bint = True
        header.flags &= NEEDS_CSUM
        header.num_buffers = 0
        if kind == GSO_NONE:
            header.gso_size = 0
            header.hdr_len = 0
        if not header.flags:
            header.csum_start = 0
            header.csum_offset = 0
        if header.flags and not self.csum:
            allowed = False
        elif kind == GSO_TCPV4:
            allowed = self.tso4
        elif kind == GSO_TCPV6:
            allowed = self.tso6
        elif kind == GSO_UDP:
            allowed = self.ufo
        elif kind == GSO_UDP_L4:
            allowed = self.uso
        if header.gso_type & GSO_ECN and not self.ecn:
            allowed = False
        if not allowed or not sound(header, size):
            self.malformed += 1
            return False
        if kind == GSO_NONE and size > self.largest:
            self.too_long += 1
            return False
        if not self.filter.spoof and memcmp(
            cython.address(self.head[HEADER_SIZE + 6]), cython.address(self.filter.own[0]), 6
        ):
            self.spoofed += 1
            return False
        return True

    # -- to the guest

    def receive(self, budget: cython.int) -> int:
        """Take up to ``budget`` frames; why it stopped."""
        result: cython.int
        with cython.nogil:
            result = self.receive_some(budget)
            self.give_back()
            self.rx.signal()
        return result

    def receive_some(self, budget):
        result: cython.int
        everything: cython.bint
        # Whatever the other end may send, the guest takes as it is.
        everything = self.guest_csum and self.guest_tso4 and self.guest_tso6 and self.guest_ecn
        everything = everything and (self.guest_ufo or not self.may_ufo)
        everything = everything and (self.guest_uso4 and self.guest_uso6 or not self.may_uso)
        while budget:
            if self.staged:
                result = self.deliver()
                if result != MORE:
                    return result
                budget -= 1
                continue
            if self.in_rate is not None:
                self.wait_ns = self.in_rate.wait_ns(1, now_ns())
                if self.wait_ns:
                    return LATE
            self.gather_room(STAGE_SIZE)
            if not self.chains:
                return FULL
            if self.window[0].in_bytes < HEADER_SIZE:
                self.rx.fail(BAD_LENGTH)  # 5.1.6.3.1: a buffer holds the header at least
                return DONE
            if everything and self.window[0].in_bytes >= 2 * HEAD and self.window[0].in_count <= MAX_IOV:
                result = self.read_direct()
            else:
                result = self.read_staged()
            if result != MORE:
                return result
            budget -= 1
        return MORE

    def gather_room(self, enough):
        """Chains into the window, until they have ``enough`` bytes; only one where they can't be merged."""
        chain: cython.pointer(Chain)
        while self.chains < WINDOW and self.room < enough and (self.mergeable or not self.chains):
            chain = self.rx.pop()
            if chain == cython.NULL:
                return
            if chain.out_count:
                self.malformed += 1
                self.rx.push(chain, 0)
                continue
            self.window[self.chains] = chain
            self.chains += 1
            self.room += chain.in_bytes

    def give_back(self):
        """What wasn't needed: the next pop() returns it, in the same order."""
        while self.chains:
            self.chains -= 1
            self.rx.unpop(self.window[self.chains])
        self.room = 0

    def use(self, size):
        """``size`` bytes are in the window's first chains: push these. How many they were is in their header."""
        n: cython.int = 0
        i: cython.int
        part: uint64_t
        rest: uint64_t = size
        used: uint16_t
        while rest > 0:
            part = self.window[n].in_bytes
            n += 1
            if part >= rest:
                break
            rest -= part
        used = n
        scatter(self.window[0], HEADER_SIZE - 2, cython.address(used), 2)
        rest = size
        self.rx.hold()  # the driver must see all of a frame's buffers at once (5.1.6.4.1)
        for i in range(n):
            part = self.window[i].in_bytes
            part = part if part < rest else rest
            self.rx.push(self.window[i], part)
            rest -= part
            self.room -= self.window[i].in_bytes
        self.rx.publish()
        self.chains -= n
        for i in range(self.chains):
            self.window[i] = self.window[i + n]
        return n

    def read_direct(self):
        """One frame into the guest's pages."""
        count: cython.int = 1
        i: cython.int
        k: cython.int
        room: uint64_t = 0
        skip: uint64_t = HEAD
        size: cython.Py_ssize_t
        self.iov[0].iov_base = cython.address(self.head[0])
        self.iov[0].iov_len = HEAD
        for i in range(self.chains):
            if count + cython.cast(cython.int, self.window[i].in_count) > MAX_IOV + 1:
                break
            room += self.window[i].in_bytes
            for k in range(self.window[i].in_count):
                self.iov[count] = self.window[i].iov[self.window[i].out_count + k]
                if skip:  # the first chain has more than that
                    if self.iov[count].iov_len <= skip:
                        skip -= self.iov[count].iov_len
                        continue
                    self.iov[count].iov_base = cython.cast(cython.pointer(uint8_t), self.iov[count].iov_base) + skip
                    self.iov[count].iov_len -= skip
                    skip = 0
                count += 1
        if room < STAGE_SIZE:
            self.iov[count].iov_base = self.stage + room
            self.iov[count].iov_len = STAGE_SIZE - room
            count += 1
        size = readv(self.fd, cython.address(self.iov[0]), count)
        if size <= 0:
            return DONE if size < 0 and (errno == EAGAIN or errno == EINTR) else GONE
        if size < HEAD:
            self.unsound += 1
            return MORE
        if self.in_rate is not None:
            self.in_rate.spend(size - HEADER_SIZE)
        header: cython.pointer(NetHeader) = cython.cast(cython.pointer(NetHeader), cython.address(self.head[0]))
        if not sound(header, cython.cast(uint32_t, size) - HEADER_SIZE):
            self.unsound += 1
            return MORE
        tag: uint32_t = 0
        if size >= HEAD + 4:
            gather_in(self.window[0], HEAD, cython.address(tag), 4)
        frame: uint8_t[20]
        memcpy(cython.address(frame[0]), cython.address(self.head[HEADER_SIZE]), 14)
        memcpy(cython.address(frame[14]), cython.address(tag), 4)
        if not self.filter.wants(cython.address(frame[0])):
            self.filtered += 1
            return MORE
        if cython.cast(uint64_t, size) > room:
            # Not enough buffers, or none large enough: it waits, whole.
            gather_window(cython.address(self.window[0]), self.chains, self.stage, room)
            memcpy(self.stage, cython.address(self.head[0]), HEAD)
            self.staged = size
            self.prepare()
            return MORE
        scatter(self.window[0], 0, cython.address(self.head[0]), HEAD)
        self.use(size)
        self.direct += 1
        self.rx_frames += 1
        self.rx_bytes += size - HEADER_SIZE
        return MORE

    def read_staged(self):
        """One frame into memory of ours."""
        size: cython.Py_ssize_t
        self.iov[0].iov_base = self.stage
        self.iov[0].iov_len = STAGE_SIZE
        size = readv(self.fd, cython.address(self.iov[0]), 1)
        if size <= 0:
            return DONE if size < 0 and (errno == EAGAIN or errno == EINTR) else GONE
        if self.in_rate is not None:
            self.in_rate.spend(size)
        header: cython.pointer(NetHeader) = cython.cast(cython.pointer(NetHeader), self.stage)
        if size < HEAD or not sound(header, cython.cast(uint32_t, size) - HEADER_SIZE):
            self.unsound += 1
            return MORE
        if size < HEAD + 4:
            memset(self.stage + size, 0, HEAD + 4 - size)
        if not self.filter.wants(self.stage + HEADER_SIZE):
            self.filtered += 1
            return MORE
        self.staged = size
        self.prepare()
        return MORE

    def takes(self, header):
        """Whether the guest takes a frame with this header as it is, but for its checksum."""
        kind: cython.int = header.gso_type & ~GSO_ECN & 0xFF
        if header.gso_type & GSO_ECN and not self.guest_ecn:
            return False
        if kind == GSO_TCPV4:
            return self.guest_tso4
        if kind == GSO_TCPV6:
            return self.guest_tso6
        if kind == GSO_UDP:
            return self.guest_ufo
        if kind == GSO_UDP_L4:
            return self.guest_uso4 and self.guest_uso6
        return True

    def prepare(self):
        """Make of the staged frame what the guest takes. False: nothing, it is dropped."""
        header: cython.pointer(NetHeader) = cython.cast(cython.pointer(NetHeader), self.stage)
        size: uint32_t = self.staged - HEADER_SIZE
        self.cutting = False
        self.piece, self.piece_size = self.stage, self.staged
        if not self.takes(header):
            if not self.segments.start(self.stage + HEADER_SIZE, size, header):
                self.unsound += 1
                self.staged = 0
                return False
            self.cutting = True
            self.segmented += 1
            return self.next_piece()
        if not self.guest_csum and not finish(self.stage + HEADER_SIZE, size, header):
            self.unsound += 1
            self.staged = 0
            return False
        if not self.guest_csum:
            header.flags = 0
        return True

    def next_piece(self):
        """The next segment of the staged frame; False behind the last."""
        if self.cutting:
            self.piece = self.stage + STAGE_SIZE
            memset(self.piece, 0, HEADER_SIZE)
            self.piece_size = self.segments.next(self.piece + HEADER_SIZE)
            if self.piece_size:
                self.piece_size += HEADER_SIZE
                return True
        self.staged = 0
        self.cutting = False
        return False

    def deliver(self):
        """The staged frame, or its next segment, into the guest's buffers."""
        i: cython.int
        at: uint64_t = 0
        part: uint64_t
        self.gather_room(self.piece_size)
        if self.room < self.piece_size:
            if self.chains == self.rx.size or self.chains == WINDOW or not self.mergeable and self.chains:
                self.no_room += 1  # and never will there be
                self.staged = 0
                self.cutting = False
                return MORE
            return FULL
        i = 0
        while at < self.piece_size:
            part = self.window[i].in_bytes
            if part > self.piece_size - at:
                part = self.piece_size - at
            scatter(self.window[i], 0, self.piece + at, part)
            at += part
            i += 1
        self.use(self.piece_size)
        self.rx_frames += 1
        self.rx_bytes += self.piece_size - HEADER_SIZE
        self.next_piece()
        return MORE

    # -- saved state; the queues are saved by the transport, with nothing in flight

    def save(self) -> dict:
        """A frame that waits for buffers is part of it; what was cut from it already is not sent again."""
        waits: bytes = b""
        if self.staged and not self.cutting:
            waits = cython.cast(cython.p_char, self.stage)[: self.staged]
        return {
            "version": _VERSION, "waits": waits,
            "out_rate": self.out_rate.save() if self.out_rate is not None else None,
            "in_rate": self.in_rate.save() if self.in_rate is not None else None,
        }

    def load(self, state: dict):
        if state["version"] != _VERSION or len(state["waits"]) > STAGE_SIZE:
            raise ValueError(f"virtio-net queues: state version {state['version']} is not {_VERSION}")
        self.reset()
        data: cython.p_char = state["waits"]
        memcpy(self.stage, data, len(state["waits"]))
        self.staged = len(state["waits"])
        if self.staged:
            self.prepare()
        if self.out_rate is not None and state["out_rate"]:
            self.out_rate.load(state["out_rate"])
        if self.in_rate is not None and state["in_rate"]:
            self.in_rate.load(state["in_rate"])


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def gather_in(
    chain: cython.pointer(Chain), offset: uint64_t, buffer: cython.p_void, size: uint64_t
) -> uint64_t:
    """As queue.gather, from the buffers that the guest is to read."""
    at: cython.pointer(uint8_t) = cython.cast(cython.pointer(uint8_t), buffer)
    done: uint64_t = 0
    part: uint64_t
    i: cython.int
    for i in range(chain.in_count):
        piece: iovec = chain.iov[chain.out_count + i]
        if offset >= piece.iov_len:
            offset -= piece.iov_len
            continue
        part = piece.iov_len - offset
        if part > size - done:
            part = size - done
        memcpy(at + done, cython.cast(cython.pointer(uint8_t), piece.iov_base) + offset, part)
        done += part
        offset = 0
        if done == size:
            break
    return done


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def gather_window(
    window: cython.pointer(cython.pointer(Chain)), count: cython.int, buffer: cython.pointer(uint8_t), size: uint64_t
) -> cython.void:
    """The first ``size`` bytes of several chains."""
    i: cython.int = 0
    part: uint64_t
    while size and i < count:
        part = gather_in(window[i], 0, buffer, size)
        buffer += part
        size -= part
        i += 1
