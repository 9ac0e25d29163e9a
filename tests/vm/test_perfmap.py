"""/tmp/perf-PID.map and the names in it."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import machine
import pytest

from hostel import VM
from hostel.base.errors import UsageError
from hostel.base.loop import Loop
from hostel.vm.perfmap import PerfMap
from hostel.vm.symbols import Symbols

_LINE = re.compile(r"([0-9a-f]+) ([0-9a-f]+) (\S.*)")


@pytest.fixture
def pid(monkeypatch):
    """A process number of our own for the file's name, which goes at the end."""
    number = 1 << 30 | os.getpid()
    monkeypatch.setattr(os, "getpid", lambda: number)
    yield number
    Path(f"/tmp/perf-{number}.map").unlink(missing_ok=True)


def lines(pid):
    text = Path(f"/tmp/perf-{pid}.map").read_text()
    found = [_LINE.fullmatch(line) for line in text.splitlines()]
    assert all(found), text
    return [(int(m[1], 16), int(m[2], 16), m[3]) for m in found]


def test_it_names_what_is_translated_as_it_comes(pid):
    Path(f"/tmp/perf-{pid}.map").symlink_to("/nonexistent/elsewhere")  # it is replaced, not followed
    guest = machine.Machine()
    guest.boot(".org 0x4000\nmain: mov eax, 5\nagain: dec eax\n jnz again\n QUIT\n hlt")
    engine = guest.engine
    symbols = Symbols([0x1000, 0x104000], ["low", "main"])
    written = PerfMap(Loop(), lambda: engine, symbols)
    written.update()
    assert [name for *_, name in lines(pid)] == ["hostel_stubs"]
    guest.go()
    written.update()
    names = [name for *_, name in lines(pid)]
    for name in (r"main kernel64 \d+B", r"main\+0x9 kernel64 \d+B", r"main\+0x9 kernel64 \d+B cold"):
        assert any(re.fullmatch(name, n) for n in names), names
    assert len(set(names)) == len(names) > 6
    spans = sorted((start, start + size) for start, size, _ in lines(pid))
    assert all(a[1] <= b[0] for a, b in zip(spans, spans[1:], strict=False)), "they overlap"
    before = lines(pid)
    written.update()
    assert lines(pid) == before  # nothing new, nothing twice
    other = machine.Machine()
    engine = other.engine
    written.update()
    assert [name for *_, name in lines(pid)] == ["hostel_stubs"]  # a reset: another machine


def test_symbols(tmp_path):
    file = tmp_path / "System.map"
    file.write_text("0000000000000000 A absolute\nffffffff81000000 T _text\nffffffff81000000 t alias\n"
                    "ffffffff81000040 t inner [module]\nffffffff82000000 D data\nnonsense\n")  # fmt: skip
    symbols = Symbols.read(str(file))
    assert symbols.name(0xFFFFFFFF81000000) == "_text"
    assert symbols.name(0xFFFFFFFF8100003F) == "_text+0x3f"
    assert symbols.name(0xFFFFFFFF81000041) == "inner+0x1"
    assert symbols.name(0xFFFFFFFF80FFFFFF) is None
    assert symbols.name(0xFFFFFFFF82000000) is None
    file.write_text("0000000000000000 T _text\n0000000000000000 t other\n")  # kallsyms without privileges
    with pytest.raises(UsageError, match="names no addresses"):
        Symbols.read(str(file))
    with pytest.raises(UsageError, match="can't read"):
        Symbols.read(str(tmp_path))


def test_perf_names_guest_code(guests, tmp_path):
    """A real guest: what is running is in the map, and perf, where there is one, says so."""
    with VM.run("micro", perf_map=True) as vm:
        vm.exec(["true"], timeout=60)
        (tmp_path / "symbols").write_text(vm.exec(["cat", "/proc/kallsyms"], timeout=60).stdout)
        Path(f"/tmp/perf-{vm.state.pid}.map").unlink()
    with VM.run("micro", perf_map=True, symbols=str(tmp_path / "symbols")) as vm:
        vm.exec(["true"], timeout=60)
        pid = vm.state.pid
        vm.exec(["sh", "-c", "while :; do :; done >/dev/null 2>&1 &"], timeout=60)
        if shutil.which("perf"):
            command = ["perf", "record", "-q", "-o", str(tmp_path / "data"), "-p", str(pid), "sleep", "1"]
            record = subprocess.run(command, capture_output=True, text=True, timeout=60)
    try:
        names = [name for *_, name in lines(pid)]
        assert any(name.startswith("do_syscall_64") for name in names)
        assert any(" user64 " in name for name in names)
        if not shutil.which("perf"):
            return
        if record.returncode:
            error = record.stderr
            assert "ermission" in error or "not supported" in error, error  # the host keeps perf from us
            return
        report = ["perf", "report", "-i", str(tmp_path / "data"), "--stdio", "--sort", "sym"]
        told = subprocess.run(report, capture_output=True, text=True, timeout=60).stdout
        assert re.search(r"\d+% .*\S+ (kernel|user)64 \d+B", told), told
    finally:
        Path(f"/tmp/perf-{pid}.map").unlink(missing_ok=True)
