"""``hostel top``: its figures are the guest's, and looking leaves nothing behind."""

import json
import os
import pty
import select
import subprocess
import sys
import time

import pytest
from bare_worker import WORK

from hostel.cli.main import main


def until(condition, seconds=10):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it doesn't happen"
        time.sleep(0.01)


def counted(vm):
    return sum(vcpu["engine"]["instructions"] for vcpu in vm.inspect()["statistics"]["vcpus"])


def test_for_programs(bare, capsys):
    vm = bare(cpus=2)
    assert main(["top", "--once", "--json", "--interval", "0.3"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert (row["name"], row["pid"], len(row["vcpus"])) == ("bare", vm.state.pid, 2)
    assert row["mips"] > 1 and row["cpu"] > 0.01 and row["steal"] >= 0
    assert row["mips"] == pytest.approx(sum(vcpu["mips"] for vcpu in row["vcpus"]))
    assert row["exits_total"] == pytest.approx(sum(row["exits"].values()))
    assert 0 < row["cache_bytes"] < row["cache_capacity"] and row["blocks"] > 5
    until(lambda: vm.inspect()["statistics"]["threads"] == 2)
    before = counted(vm)
    time.sleep(0.1)
    assert counted(vm) == before > 0  # nobody looks: nothing is counted


def test_mips_are_what_the_guest_runs(bare, capsys):
    """Its loop is 7 instructions for each addition to CELL: a debugger counts one, top the other."""
    vm = bare()
    with vm.debug() as debugger:
        before = counted(vm)
        debugger.connection.call("count", on=True)
        debugger.breaks = {WORK}
        for _ in range(10):
            debugger.go()
            debugger.wait(10)
            debugger.step()
    assert 9 * 7 <= counted(vm) - before <= 13 * 7


def test_tables(bare, capsys):
    bare(cpus=2)
    bare("other")
    assert main(["top", "--once", "-i", "0.1"]) == 0
    head, *rows = capsys.readouterr().out.splitlines()
    assert head.split()[:4] == ["NAME", "CPU", "STEAL", "MIPS"]
    assert [row.split()[0] for row in rows] == ["bare", "other"]
    assert main(["top", "--once", "-i", "0.1", "bare", "--no-mips"]) == 0
    text = capsys.readouterr().out
    assert text.split("\n\n")[1].splitlines()[2].split()[0] == "1"
    assert "monitor" in text and "emptied 0 times" in text
    assert rows[0].split()[3] != "-" == text.splitlines()[1].split()[3]


def test_paused_and_ended(bare, capsys):
    vm = bare()
    vm.pause()
    assert main(["top", "--once", "--json", "-i", "0.1"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["mips"] == 0
    vm.kill()
    assert main(["top", "--once"]) == 0
    assert capsys.readouterr().out == "no VM or container is running\n"
    assert main(["top", "bare"]) == 125
    assert capsys.readouterr().err == "hostel: 'bare' is not running\n"
    for args in (["--interval", "0"], ["--interval", "x"], ["nobody"]):
        assert main(["top", *args]) == 125
        assert capsys.readouterr().err.count("\n") == 1


def test_live_on_a_terminal(bare):
    vm = bare()
    ours, theirs = pty.openpty()
    top = subprocess.Popen(
        [sys.executable, "-m", "hostel.cli.main", "top", "-i", "0.1"], stdin=theirs, stdout=theirs, stderr=theirs
    )
    os.close(theirs)
    shown = b""

    def read_until(word):
        nonlocal shown
        deadline = time.monotonic() + 20
        while word not in shown:
            assert select.select([ours], [], [], max(0, deadline - time.monotonic()))[0], shown
            shown += os.read(ours, 65536)

    read_until(b"MIPS")
    read_until(b"bare ")
    vm.kill()
    read_until(b"no VM or container is running")
    os.write(ours, b"q")
    read_until(b"\x1b[?25h\x1b[?1049l")  # the screen and the cursor are back
    assert top.wait(10) == 0
    os.close(ours)


def test_a_reset_while_somebody_looks(bare, capsys):
    from hostel.client.meter import Meter

    vm = bare()
    meter = Meter(vm)
    vm.reset()
    meter.read()
    time.sleep(0.1)
    assert meter.read()["mips"] > 0
    meter.close()
