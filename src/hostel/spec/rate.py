"""Limits of disks and networks: so much a second, with a burst (base/token_bucket).

As people write them: ``100M`` is 100 MiB a second and as much at once after a pause;
``100M:1G`` lets 1 GiB through at once.
"""

import msgspec

from hostel.base.errors import UsageError
from hostel.base.token_bucket import MAX_BURST, MAX_RATE, TokenBucket
from hostel.base.units import format_size, parse_size


class Rate(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """``rate`` units a second, ``burst`` units at once (0: a second's worth)."""

    rate: int
    burst: int = 0

    def __str__(self) -> str:
        return format_size(self.rate) + (f":{format_size(self.burst)}" if self.burst else "")

    def bucket(self) -> TokenBucket:
        return TokenBucket(self.rate, self.burst)


def parse_rate(text: str, option: str) -> Rate:
    """``RATE[:BURST]``, each a number with K, M or G; ``UsageError`` that names the ``option``."""
    rate, colon, burst = text.partition(":")
    try:
        result = Rate(parse_size(rate), parse_size(burst) if colon else 0)
    except UsageError:
        raise UsageError(f"{option} takes RATE[:BURST] a second, for example 500 or 100M:1G; not '{text}'") from None
    if not 1 <= result.rate <= MAX_RATE or result.burst > MAX_BURST or colon and not result.burst:
        raise UsageError(f"{option}: from 1 to {format_size(MAX_RATE)} a second; not '{text}'")
    return result
