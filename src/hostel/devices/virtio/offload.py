"""What a frame's ``virtio_net_hdr`` leaves to its receiver, done for one who can't: checksums, and cutting large
segments up (virtio 1.2, 5.1.6; TCP by RFC 9293, IP fragments by RFC 791 and 8200).

A header's fields come from a guest or a peer: ``sound`` says whether they make sense for a frame of that length
before anything relies on them. What they describe (``csum_start``, headers, options) is bounded again where it is
read, since the frame itself isn't looked at by ``sound``.
"""

import cython
from cython.cimports.libc.stdint import uint8_t, uint16_t, uint32_t, uint64_t
from cython.cimports.libc.string import memcpy

ETHERNET = cython.declare(uint32_t, 14)
# Ethernet with a tag, IPv6 with some extension headers or IPv4 with options, TCP with options
MAX_HEAD = cython.declare(uint32_t, 256)


@cython.cfunc
@cython.nogil
@cython.inline
@cython.exceptval(check=False)
def get16(at: cython.pointer(uint8_t)) -> uint32_t:
    """A field in network order."""
    return cython.cast(uint32_t, at[0]) << 8 | at[1]


@cython.cfunc
@cython.nogil
@cython.inline
@cython.exceptval(check=False)
def put16(at: cython.pointer(uint8_t), value: uint32_t) -> cython.void:
    at[0] = value >> 8 & 0xFF
    at[1] = value & 0xFF


@cython.cfunc
@cython.nogil
@cython.inline
@cython.exceptval(check=False)
def get32(at: cython.pointer(uint8_t)) -> uint32_t:
    return get16(at) << 16 | get16(at + 2)


@cython.cfunc
@cython.nogil
@cython.inline
@cython.exceptval(check=False)
def put32(at: cython.pointer(uint8_t), value: uint32_t) -> cython.void:
    put16(at, value >> 16)
    put16(at + 2, value & 0xFFFF)


def checksum(data, length, start):
    """The ones' complement sum of 16-bit words (RFC 1071), folded, not inverted; ``start`` is added."""
    total: uint64_t = start
    word: uint16_t
    wide: uint64_t
    # Sums of host-order words are the network's with their bytes swapped (RFC 1071, 2 (B)).
    swapped: uint64_t = 0
    i: uint32_t = 0
    while i + 8 <= length:
        memcpy(cython.address(wide), data + i, 8)
        swapped += cython.cast(uint32_t, wide) + (wide >> 32)
        i += 8
    while i + 2 <= length:
        memcpy(cython.address(word), data + i, 2)
        swapped += word
        i += 2
    if i < length:
        swapped += data[i]
    while swapped >> 16:
        swapped = (swapped & 0xFFFF) + (swapped >> 16)
    total += (swapped & 0xFF) << 8 | swapped >> 8
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return cython.cast(uint32_t, total)


def sound(header, length):
    """Whether the header's fields can be true of a frame of ``length`` bytes."""
    kind: cython.int = header.gso_type & ~GSO_ECN & 0xFF
    if header.flags & NEEDS_CSUM:
        if header.csum_start < ETHERNET or cython.cast(uint32_t, header.csum_start) + header.csum_offset + 2 > length:
            return False
    if kind == GSO_NONE:
        return header.gso_type == 0
    if kind != GSO_TCPV4 and kind != GSO_TCPV6 and kind != GSO_UDP and kind != GSO_UDP_L4:
        return False
    if header.gso_type & GSO_ECN and kind != GSO_TCPV4 and kind != GSO_TCPV6:
        return False
    # Large frames leave their checksum to the receiver (5.1.6.2), and have a payload to cut.
    return header.flags & NEEDS_CSUM != 0 and header.gso_size != 0 and header.hdr_len <= length


def finish(frame, length, header):
    """Compute the checksum that ``NEEDS_CSUM`` left open; the field holds the pseudo-header's sum."""
    if header.flags & NEEDS_CSUM:
        if cython.cast(uint32_t, header.csum_start) + header.csum_offset + 2 > length:
            return False
        total: uint32_t = checksum(frame + header.csum_start, length - header.csum_start, 0) ^ 0xFFFF
        # A UDP checksum of 0 means that there is none (RFC 768); all ones is the same number.
        put16(frame + header.csum_start + header.csum_offset, total if total else 0xFFFF)
        header.flags = header.flags & ~NEEDS_CSUM | DATA_VALID
    return True


@cython.cclass
class Segments:
    """One large frame, cut up: ``start``, then ``next`` until it gives 0. ``frame`` must stay for so long."""

    def start(self, frame, length, header):
        """Whether the frame is what its header says and can be cut."""
        kind: cython.int = header.gso_type & ~GSO_ECN & 0xFF
        at: uint32_t = 12
        self.frame = frame
        self.length = length
        self.header = header[0]
        self.count = 0
        if not sound(header, length) or kind == GSO_NONE:
            return False
        while at + 6 < length and (get16(frame + at) == 0x8100 or get16(frame + at) == 0x88A8):
            at += 4
        self.network = at + 2
        if self.network + 40 > length or header.csum_start < self.network + 20:
            return False
        self.version = frame[self.network] >> 4
        if self.version == 4:
            if get16(frame + at) != 0x0800 or kind == GSO_TCPV6:
                return False
            if self.network + (frame[self.network] & 15) * 4 != header.csum_start:
                return False
        elif self.version == 6:
            if get16(frame + at) != 0x86DD or kind == GSO_TCPV4 or header.csum_start < self.network + 40:
                return False
        else:
            return False
        if kind == GSO_TCPV4 or kind == GSO_TCPV6:
            if header.csum_offset != 16 or cython.cast(uint32_t, header.csum_start) + 20 > length:
                return False
            if frame[header.csum_start + 12] >> 4 < 5:
                return False
            self.head = header.csum_start + (frame[header.csum_start + 12] >> 4) * 4
        else:
            if header.csum_offset != 6:
                return False
            # A fragment repeats the IP header only, a segment the UDP header too.
            self.head = header.csum_start if kind == GSO_UDP else header.csum_start + 8
        if self.head > MAX_HEAD or self.head >= length or cython.cast(uint32_t, header.csum_start) + 8 > length:
            return False
        if kind == GSO_UDP:
            if self.version == 6 and (frame[self.network + 6] != 17 or header.csum_start != self.network + 40):
                return False  # extension headers that may not be repeated
            if header.gso_size < 8 or not finish(frame, length, cython.address(self.header)):
                return False
        self.at = self.head
        return True

    def next(self, out):
        """Write the next frame to ``out`` (of MAX_FRAME bytes); its length, 0 behind the last."""
        kind: cython.int = self.header.gso_type & ~GSO_ECN & 0xFF
        start: uint32_t = self.header.csum_start
        size: uint32_t = self.length - self.at
        total: uint32_t
        last: cython.bint = True
        if not size:
            return 0
        if kind == GSO_UDP:
            return self._next_fragment(out)
        if size > self.header.gso_size:
            size = self.header.gso_size
            last = False
        memcpy(out, self.frame, self.head)
        memcpy(out + self.head, self.frame + self.at, size)
        total = self.head + size
        _set_length(out, self.network, self.version, total - self.network, self.count)
        if kind == GSO_UDP_L4:
            put16(out + start + 4, 8 + size)
        else:
            put32(out + start + 4, get32(out + start + 4) + self.at - self.head)
            if not last:
                out[start + 13] &= 0xF6  # FIN and PSH belong to the end
            if self.count:
                out[start + 13] &= 0x7F  # CWR to the beginning (RFC 3168, 6.1.2)
        put16(out + start + self.header.csum_offset, 0)
        pseudo: uint32_t = 17 if kind == GSO_UDP_L4 else 6
        pseudo += total - start
        if self.version == 4:
            pseudo = checksum(out + self.network + 12, 8, pseudo)
        else:
            pseudo = checksum(out + self.network + 8, 32, pseudo)
        pseudo = checksum(out + start, total - start, pseudo) ^ 0xFFFF
        put16(out + start + self.header.csum_offset, pseudo if pseudo else 0xFFFF)
        self.at += size
        self.count += 1
        return total

    def _next_fragment(self, out):
        """A UDP datagram larger than a frame goes as IP fragments."""
        size: uint32_t = self.length - self.at
        more: uint32_t = 0
        offset: uint32_t = self.at - self.head
        head: uint32_t = self.head
        if size > self.header.gso_size:
            size = self.header.gso_size & ~7
            more = 1
        memcpy(out, self.frame, head)
        if self.version == 4:
            _set_length(out, self.network, 4, head - self.network + size, 0)
            put16(out + self.network + 6, more << 13 | offset >> 3)
            put16(out + self.network + 10, 0)
            put16(
                out + self.network + 10,
                checksum(out + self.network, (out[self.network] & 15) * 4, 0) ^ 0xFFFF,
            )
        else:
            # RFC 8200, 4.5; the identification must differ from others' on their way: the checksum is as good as any.
            out[self.network + 6] = 44
            out[head] = 17
            out[head + 1] = 0
            put16(out + head + 2, offset & 0xFFF8 | more)
            put16(out + head + 4, self.length & 0xFFFF)
            put16(out + head + 6, get16(self.frame + self.header.csum_start + 6))
            head += 8
            _set_length(out, self.network, 6, head - self.network + size, 0)
        memcpy(out + head, self.frame + self.at, size)
        self.at += size
        self.count += 1
        return head + size


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _set_length(
    out: cython.pointer(uint8_t), network: uint32_t, version: cython.int, length: uint32_t, count: uint32_t
) -> cython.void:
    """The IP header's length, and IPv4's identification, which counts on, and checksum."""
    if version == 6:
        put16(out + network + 4, length - 40)
        return
    put16(out + network + 2, length)
    put16(out + network + 4, get16(out + network + 4) + count)
    put16(out + network + 10, 0)
    put16(out + network + 10, checksum(out + network, (out[network] & 15) * 4, 0) ^ 0xFFFF)


def segments_of(header: bytes, frame: bytes) -> list[bytes]:
    """All frames that a frame with a header becomes, for tests; empty where the header makes no sense."""
    parsed: NetHeader
    data: bytearray = bytearray(frame)
    room: bytearray = bytearray(MAX_FRAME)
    head: cython.p_char = header
    if len(header) != HEADER_SIZE or len(frame) > MAX_FRAME:
        raise ValueError("a header has 12 bytes, a frame has 65550 at most")
    memcpy(cython.address(parsed), head, HEADER_SIZE)
    at: cython.pointer(uint8_t) = cython.cast(cython.pointer(uint8_t), cython.cast(cython.p_char, data))
    out: cython.pointer(uint8_t) = cython.cast(cython.pointer(uint8_t), cython.cast(cython.p_char, room))
    if not sound(cython.address(parsed), len(frame)):
        return []
    if not parsed.gso_type:
        return [bytes(data)] if finish(at, len(frame), cython.address(parsed)) else []
    segments: Segments = Segments()
    found: list = []
    if segments.start(at, len(frame), cython.address(parsed)):
        while True:
            size: uint32_t = segments.next(out)
            if not size:
                break
            found.append(bytes(room[:size]))
    return found
