"""Frames for tests, and what one must find in frames: independent of what the product makes of them."""

import struct

NEEDS_CSUM = 1
TCPV4, UDP, TCPV6, UDP_L4, ECN = 1, 3, 4, 5, 0x80


def inet_sum(data: bytes) -> int:
    """RFC 1071's sum, word by word, not inverted."""
    data = data.ljust(len(data) + 1 & ~1, b"\0")
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


def net_header(flags=0, kind=0, hdr_len=0, size=0, start=0, offset=0, buffers=0) -> bytes:
    return struct.pack("<BBHHHHH", flags, kind, hdr_len, size, start, offset, buffers)


def ethernet(kind: int, source=b"\2\0\0\0\0\1", to=b"\2\0\0\0\0\2", tag: int | None = None) -> bytes:
    return to + source + (struct.pack("!HH", 0x8100, tag) if tag is not None else b"") + struct.pack("!H", kind)


def large(version: int, protocol: int, payload: bytes, size: int, flags=0x18, options=b"", tag=None, ecn=False):
    """(header, frame) of a large segment or datagram whose checksum is the receiver's work. ``protocol``: 6, 17 (USO)
    or 117 (UFO)."""
    eth = ethernet(0x0800 if version == 4 else 0x86DD, tag=tag)
    if protocol == 6:
        l4 = struct.pack("!HHIIBBHHH", 1000, 2000, 0xFFFFFF00, 7, (20 + len(options)) * 4, flags, 512, 0, 0) + options
        kind, at = (TCPV4 if version == 4 else TCPV6), 16
    else:
        l4 = struct.pack("!HHHH", 1000, 2000, 8 + len(payload), 0)
        kind, at = (UDP_L4 if protocol == 17 else UDP), 6
    number = 6 if protocol == 6 else 17
    length = len(l4) + len(payload)
    if version == 4:
        source, to = bytes([10, 0, 0, 1]), bytes([10, 0, 0, 2])
        ip = struct.pack("!BBHHHBBH", 0x45, 0, 20 + length, 0xFFFE, 0x4000, 64, number, 0) + source + to
        ip = ip[:10] + struct.pack("!H", inet_sum(ip) ^ 0xFFFF) + ip[12:]
    else:
        source, to = bytes(15) + b"\1", bytes(15) + b"\2"
        ip = struct.pack("!IHBB", 6 << 28, length, number, 64) + source + to
    pseudo = inet_sum(source + to + struct.pack("!II", length, number))
    l4 = l4[:at] + struct.pack("!H", pseudo) + l4[at + 2 :]
    start = len(eth) + len(ip)
    header = net_header(NEEDS_CSUM, kind | (ECN if ecn else 0), start + len(l4), size, start, at)
    return header, eth + ip + l4 + payload


def parse(frame: bytes) -> dict:
    """A frame's fields, with every length and checksum looked at; fragments' payload is left alone."""
    at = 12
    while frame[at : at + 2] in (b"\x81\x00", b"\x88\xa8"):
        at += 4
    kind = struct.unpack_from("!H", frame, at)[0]
    ip = frame[at + 2 :]
    out: dict = {"ethernet": frame[:at]}
    if kind == 0x0800:
        head = (ip[0] & 15) * 4
        total, out["id"], fragment = struct.unpack_from("!HHH", ip, 2)
        assert total == len(ip) and inet_sum(ip[:head]) == 0xFFFF
        protocol, body, addresses = ip[9], ip[head:], ip[12:20]
        out["fragment"] = (fragment & 0x1FFF) * 8, bool(fragment & 0x2000)
        fragmented = bool(fragment & 0x3FFF)
    else:
        assert kind == 0x86DD
        length, protocol = struct.unpack_from("!HB", ip, 4)
        assert length == len(ip) - 40
        body, addresses, fragmented = ip[40:], ip[8:40], False
        if protocol == 44:
            protocol, _, word, out["id"] = struct.unpack_from("!BBHI", body)
            out["fragment"], fragmented, body = (word & 0xFFF8, bool(word & 1)), True, body[8:]
    out["protocol"] = protocol
    if fragmented:
        out["body"] = body
        return out
    assert inet_sum(addresses + struct.pack("!II", len(body), protocol) + body) == 0xFFFF
    if protocol == 6:
        out["sequence"] = struct.unpack_from("!I", body, 4)[0]
        out["flags"] = body[13]
        out["payload"] = body[(body[12] >> 4) * 4 :]
    else:
        assert struct.unpack_from("!H", body, 4)[0] == len(body)
        out["payload"] = body[8:]
    return out
