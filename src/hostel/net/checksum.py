"""The internet checksum (RFC 1071): the ones' complement of a sum in ones' complement, of 16-bit words.

That sum is the number's remainder by 65535, since 65536 is 1 there; Python divides a long number by a short one at
gigabytes a second. Of bytes that aren't all 0 the remainder may be 0 where a sum by words would be 65535: both are
zero in ones' complement, and a receiver's sum is right with either.
"""


def total(data: bytes | memoryview, start: int = 0) -> int:
    """The sum of ``data`` and ``start``, not complemented, below 65535."""
    value = int.from_bytes(data, "big")
    return (start + (value << 8 if len(data) & 1 else value)) % 0xFFFF


def checksum(data: bytes | memoryview, start: int = 0) -> int:
    """What stands in a header whose own field was 0. It is never 0, as UDP wants it (RFC 768)."""
    return total(data, start) ^ 0xFFFF
