"""What an image may cost this machine at most, and what says so."""

from dataclasses import dataclass

from hostel.base.errors import ImageError
from hostel.base.units import format_rough

RATIO_FROM = 256 << 20  # bytes: what unpacks to less is harmless whatever its ratio


class LimitError(ImageError):
    """An image is larger than it may be."""


@dataclass(frozen=True)
class Limits:
    """For a layer: ``size``, bytes of all its files together as they look (a hole counts); ``entries``; ``ratio``, how
    many times as long a layer may be unpacked as it is packed. Ordinary layers have ratios of 2 to 5."""

    size: int = 128 << 30
    entries: int = 4_000_000
    ratio: int = 250

    def check_size(self, size: int) -> None:
        if size > self.size:
            raise LimitError(
                f"a layer unpacks to more than {format_rough(self.size)}; if that is as it should be, allow more"
                " (--max-size)"
            )

    def check_entries(self, count: int) -> None:
        if count > self.entries:
            raise LimitError(f"a layer has more than {self.entries} entries; --max-entries allows more")

    def check_ratio(self, packed: int, unpacked: int) -> None:
        if unpacked > RATIO_FROM and unpacked > packed * self.ratio:
            raise LimitError(
                f"a layer unpacks to more than {self.ratio} times its size, as a decompression bomb does; --max-ratio"
                " allows more"
            )
