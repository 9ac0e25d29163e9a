"""Large segments cut up and checksums finished, against an independent reading of what comes out."""

import os
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.devices.virtio import packets

from hostel.devices.virtio import offload


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize(
    "length, size", [(1, 1460), (1460, 1460), (1461, 1460), (64000, 1448), (10000, 9), (65000, 65000)]
)
@pytest.mark.parametrize("tag", [None, 5])
def test_tcp(version, length, size, tag):
    payload = os.urandom(length)
    header, frame = packets.large(version, 6, payload, size, flags=0x99, options=b"\1" * 12, tag=tag, ecn=True)
    parsed = [packets.parse(piece) for piece in offload.segments_of(header, frame)]
    assert b"".join(p["payload"] for p in parsed) == payload
    assert len(parsed) == -(-length // size)
    at = 0
    for index, p in enumerate(parsed):
        assert p["sequence"] == 0xFFFFFF00 + at & 0xFFFFFFFF
        assert bool(p["flags"] & 0x09) == (index == len(parsed) - 1)  # FIN, PSH
        assert bool(p["flags"] & 0x80) == (index == 0)  # CWR
        assert p["flags"] & 0x10
        if version == 4:
            assert p["id"] == 0xFFFE + index & 0xFFFF
        at += len(p["payload"])


@pytest.mark.parametrize("version", [4, 6])
def test_udp_segments(version):
    payload = os.urandom(5000)
    parsed = [packets.parse(piece) for piece in offload.segments_of(*packets.large(version, 17, payload, 1200))]
    assert [len(p["payload"]) for p in parsed] == [1200, 1200, 1200, 1200, 200]
    assert b"".join(p["payload"] for p in parsed) == payload


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("size", [1480, 1475, 8])
def test_udp_fragments(version, size):
    payload = os.urandom(4000)
    pieces = offload.segments_of(*packets.large(version, 117, payload, size))
    parsed = [packets.parse(piece) for piece in pieces]
    assert len({p["id"] for p in parsed}) == 1
    whole = b""
    for index, p in enumerate(parsed):
        offset, more = p["fragment"]
        assert offset == len(whole) and more == (index < len(parsed) - 1)
        whole += p["body"]
    assert whole[8:] == payload
    addresses = bytes([10, 0, 0, 1, 10, 0, 0, 2]) if version == 4 else bytes(15) + b"\1" + bytes(15) + b"\2"
    assert packets.inet_sum(addresses + struct.pack("!II", len(whole), 17) + whole) == 0xFFFF


def test_a_checksum_alone():
    header, frame = packets.large(4, 6, b"abc", 0)
    header = packets.net_header(packets.NEEDS_CSUM, start=34, offset=16)
    (piece,) = offload.segments_of(header, frame)
    assert packets.parse(piece)["payload"] == b"abc"
    assert offload.segments_of(packets.net_header(), frame) == [frame]


@pytest.mark.parametrize(
    "header",
    [
        packets.net_header(1, start=13, offset=0), packets.net_header(1, start=60, offset=16),
        packets.net_header(0, 1, size=1000), packets.net_header(1, 1, size=0, start=34, offset=16),
        packets.net_header(1, 2, size=100, start=34, offset=16),
        packets.net_header(1, 0x83, size=100, start=34, offset=6),
        packets.net_header(1, 1, hdr_len=9999, size=100, start=34, offset=16), packets.net_header(0, 0x80),
        packets.net_header(1, 4, size=100, start=34, offset=16),
        packets.net_header(1, 1, size=100, start=35, offset=16),
    ],
)  # fmt: skip
def test_what_makes_no_sense(header):
    assert offload.segments_of(header, packets.large(4, 6, b"abcdef", 2)[1]) == []


@given(
    st.builds(
        packets.net_header, st.sampled_from([0, 1, 2, 3, 255]), st.sampled_from([0, 1, 3, 4, 5, 0x81, 0x84, 77]),
        st.integers(0, 300), st.sampled_from([0, 1, 7, 8, 100, 65535]), st.integers(0, 120), st.integers(0, 40),
    ),
    st.binary(max_size=200),
    st.sampled_from([b"\x08\x00\x45", b"\x86\xdd\x60", b"\x81\x00\0\1\x08\x00\x4f", b"\x08\x06\0"]),
)  # fmt: skip
def test_anything(header, rest, kind):
    """Never out of bounds, and never without an end."""
    frame = (bytes(12) + kind + rest).ljust(14, b"\0")
    for piece in offload.segments_of(header, frame):
        assert len(piece) <= len(frame) + 8
