import pytest
from hypothesis import given
from hypothesis import strategies as st

from hostel.base.errors import UsageError
from hostel.base.units import format_duration, format_rough, format_size, parse_size


@pytest.mark.parametrize(
    "text, size",
    [("0", 0), ("512M", 512 << 20), ("4g", 4 << 30), ("1.5G", 3 << 29), ("64 MiB", 64 << 20), ("2KB", 2048),
     ("65536", 65536), ("1T", 1 << 40), (" 7K ", 7168)],
)
def test_sizes(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "M", "-1M", "1X", "1.M", "512MM", "0x10", "1e3", "١٢", "1 2M", "nan"])
def test_no_sizes(text):
    with pytest.raises(UsageError, match="is no size"):
        parse_size(text)


@given(st.integers(0, 1 << 50))
def test_what_is_formatted_is_parsed(size):
    assert parse_size(format_size(size)) == size


def test_for_eyes():
    assert [format_rough(n) for n in (0, 1023, 1536, 320 << 20, 24 << 30)] == ["0B", "1023B", "1.5K", "320M", "24G"]
    assert [format_duration(n) for n in (0.4, 59, 61, 3700, 90000)] == ["0s", "59s", "1m01s", "1h01m", "1d01h"]
