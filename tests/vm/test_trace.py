"""``hostel run --trace``: what the file says."""

import re

import pytest
from bare_worker import CELL, WORK

from hostel import VM
from hostel.base.errors import MachineError, UsageError
from hostel.spec.vm import parse_trace

_LINE = re.compile(r"\[ *(\d+\.\d{6})\] vcpu(\d) (\w+) (.*)")


def lines(path):
    found = [_LINE.fullmatch(line) for line in path.read_text().splitlines()]
    assert all(found), path.read_text()[:2000]
    for vcpu in "01":
        times = [float(m[1]) for m in found if m[2] == vcpu]
        assert times == sorted(times), [(a, b) for a, b in zip(times, times[1:], strict=False) if b < a]
    return [(int(m[2]), m[3], m[4]) for m in found]


def test_what_a_guest_does(bare, tmp_path):
    (tmp_path / "symbols").write_text(f"{WORK:016x} T work\n")
    vm = bare(cpus=2, trace=f"blocks,exits,faults:{tmp_path}/trace", symbols=str(tmp_path / "symbols"))
    with vm.debug() as debugger:
        debugger.breaks = {WORK + 20}
        debugger.go()
        debugger.wait(10)
    vm.kill()
    told = lines(tmp_path / "trace")
    assert (tmp_path / "trace").stat().st_mode & 0o777 == 0o600
    assert any(re.fullmatch(rf"{WORK:x} <work> kernel64: \d+ instructions, \d+ bytes at {WORK:x} -> \d+", text)
               for _, kind, text in told if kind == "block")  # fmt: skip
    assert (0, "exit", f"memory {WORK + 11:x} <work+0xb>: write 8 at {CELL:x}") in told
    assert any(text.startswith("device") and "write 4 at fee00300" in text for _, kind, text in told if kind == "exit")
    assert {index for index, *_ in told} == {0, 1}
    assert any(text.startswith("debug") for _, kind, text in told)


def test_only_what_was_asked_for(bare, tmp_path):
    bare(cpus=1, trace=f"blocks:{tmp_path}/trace").kill()
    assert {kind for _, kind, _ in lines(tmp_path / "trace")} == {"block"}


def test_a_reset_goes_on_in_the_same_file(bare, tmp_path):
    vm = bare(trace=f"blocks:{tmp_path}/trace")
    vm.reset()
    vm.kill()
    told = lines(tmp_path / "trace")
    assert sum(text.startswith("100000 kernel64") for _, _, text in told) == 2


def test_what_it_refuses(bare, tmp_path):
    assert parse_trace("blocks,exits:a:b") == (["blocks", "exits"], "a:b")
    assert parse_trace("faults") == (["faults"], "hostel.trace")
    for text in ("", "all", "blocks,", "blocks exits"):
        with pytest.raises(UsageError, match="--trace takes blocks, exits, faults"):
            parse_trace(text)
    with pytest.raises(MachineError, match="can't write the trace to /nonexistent/x"):
        bare(trace="blocks:/nonexistent/x")


def test_a_real_guest(guests, tmp_path):
    with VM.run("micro", trace=f"faults:{tmp_path}/trace") as vm:
        assert vm.exec(["echo", "on"], timeout=60).stdout == "on\n"
    told = lines(tmp_path / "trace")
    assert any(re.fullmatch(r"#PF\([0-7]\) [0-9a-f]+: at [0-9a-f]+", text) for _, kind, text in told if kind == "fault")
    assert any(kind == "interrupt" for _, kind, _ in told)
