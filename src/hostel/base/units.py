"""Sizes as people write them: ``512M``, ``4G``, ``1.5G``, ``65536``. Powers of 1024, always."""

import re

from hostel.base.errors import UsageError

_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


def parse_size(text: str) -> int:
    """Bytes; ``UsageError`` for what is no size. ``M``, ``MB`` and ``MiB`` mean the same, in either case."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?)(?:I?B)?\s*", text.upper(), re.ASCII)
    if not match:
        raise UsageError(f"'{text}' is no size: write for example 512M or 4G")
    return int(float(match[1]) * _UNITS[match[2]]) if "." in match[1] else int(match[1]) * _UNITS[match[2]]


def format_size(size: int) -> str:
    """The shortest exact form that ``parse_size`` reads back: 536870912 is ``512M``."""
    for unit in "TGMK":
        if size and size % _UNITS[unit] == 0:
            return f"{size // _UNITS[unit]}{unit}"
    return str(size)


def format_rough(size: int) -> str:
    """For people's eyes: ``1.4G``, ``312M``."""
    for unit in "TGMK":
        if size >= _UNITS[unit]:
            value = size / _UNITS[unit]
            return f"{value:.1f}{unit}" if value < 10 else f"{value:.0f}{unit}"
    return f"{size}B"


def format_duration(seconds: float) -> str:
    """Like ``ps``: the two largest units."""
    s = int(seconds)
    if s < 60:
        return f"{s}s"
    if s < 3600:
        return f"{s // 60}m{s % 60:02}s"
    if s < 86400:
        return f"{s // 3600}h{s % 3600 // 60:02}m"
    return f"{s // 86400}d{s % 86400 // 3600:02}h"
