"""How people write disks and rates."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hostel.base.errors import UsageError
from hostel.spec.disk import DiskSpec, check_disk, parse_disk
from hostel.spec.rate import Rate, parse_rate


def test_a_disk_with_all_its_options():
    disk = parse_disk("/a/b,format=qcow2,readonly,cache=none,serial=X 1,iops=100:5K,rate=10M")
    assert disk == DiskSpec(
        path="/a/b", format="qcow2", readonly=True, cache="none", serial="X 1", iops=Rate(100, 5120),
        rate=Rate(10 << 20),
    )
    assert msgspec.convert(msgspec.to_builtins(disk), DiskSpec) == disk


def test_a_path_alone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert parse_disk("disk.img") == DiskSpec(path=str(tmp_path / "disk.img"))
    assert parse_disk("a,,b,readonly") == DiskSpec(path=str(tmp_path / "a,b"), readonly=True)


@pytest.mark.parametrize("text, word", [
    ("", "no path"), (",readonly", "no path"), ("a,format=vmdk", "raw or qcow2"), ("a,cache=x", "writeback or"),
    ("a,cache", "not 'cache'"), ("a,readonly=1", "not 'readonly=1'"), ("a,", "not ''"), ("a,x=1", "not 'x=1'"),
    ("a,serial=" + "x" * 21, "20 ASCII"), ("a,serial=ä", "20 ASCII"), ("a,serial=\n", "printable"),
    ("a,iops=", "iops takes RATE"), ("a,iops=0", "from 1 to"), ("a,rate=1:0", "from 1 to"), ("a,rate=9000G", "from 1"),
    ("a,rate=x", "rate takes RATE"), ("a,readonly,readonly", "twice"), ("a,format=", "not 'format='"),
])  # fmt: skip
def test_what_makes_no_sense_is_said(text, word):
    with pytest.raises(UsageError, match=word):
        parse_disk(text)


@given(st.text(max_size=40))
def test_any_text_is_a_disk_or_an_error(text):
    try:
        disk = parse_disk(text)
    except UsageError:
        return
    assert check_disk(disk) is disk


@pytest.mark.parametrize("text", ["1", "100", "10M", "1K:1G"])
def test_rates_read_back(text):
    assert str(parse_rate(text, "--x")) == text
