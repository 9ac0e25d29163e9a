"""Snapshots of real guests: what is in memory and on disks is as it was then, and nothing is lost or left behind."""

import contextlib
import hashlib
import io
import json
import os
import random
import select
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import msgspec
import pytest
from copies import all_gone, date, go_on, left, names, processes, sh, start_checks, wait

from hostel import VM
from hostel.base.errors import HostelError, MachineError
from hostel.block.qcow2 import create
from hostel.cli.main import main
from hostel.vm import snapshot as snapshots


@pytest.fixture
def disk(tmp_path):
    """A disk of a user's, 16 MiB."""
    create.create(tmp_path / "disk.qcow2", 16 << 20, create.Options())
    return tmp_path / "disk.qcow2"


def run(**more):
    return VM.run("micro", **{"name": "box", "memory": "128M", "networks": ["none"], "rm": True} | more)


def tree(vm):
    """Each snapshot's parent."""
    return {one.manifest.name: one.manifest.parent.partition("@")[2] for one in vm.snapshots()}


def check_chains(vm):
    """qemu-img finds nothing wrong in any layer of the VM's and its snapshots'."""
    if not shutil.which("qemu-img"):
        return
    home = vm.folder.parent.parent
    layers = [*(home / "disks" / vm.name).glob("*"), *(home / "snapshots").glob("*/disk*")]
    assert layers
    for layer in layers:
        if layer.suffix == ".qcow2":
            done = subprocess.run(["qemu-img", "check", "-U", layer], capture_output=True, text=True)
            assert done.returncode == 0, (layer, done.stdout, done.stderr)


def test_any_snapshot_of_the_tree_can_be_gone_back_to(clean, disk):
    with run(disks=[f"{disk},format=qcow2"], devices=["rng"]) as vm:
        sh(vm, "mke2fs -q /dev/vda 2>/dev/null || mkfs.ext2 /dev/vda >/dev/null; mount -t ext4 /dev/vda /mnt; "
               "echo 0 > /tmp/word; echo 0 > /mnt/word; sync")

        def write(word):
            sh(vm, f"echo {word} > /tmp/word; echo {word} > /mnt/word; head -c 300000 /dev/urandom > /mnt/{word}")

        def read():
            return sh(vm, "cat /tmp/word /mnt/word; ls /mnt | grep -v lost; dmesg | grep -ci 'ext4-fs error' || true")

        was = {"root": read()}
        vm.snapshot("root", description="the first")
        for name, parent in (("a", "root"), ("aa", "a"), ("b", "root"), ("ab", "a"), ("ba", "b")):
            vm.revert(parent)
            assert read() == was[parent]
            write(name)
            was[name] = read()
            vm.snapshot(name)
            write("lost")
        assert tree(vm) == {"root": "", "a": "root", "aa": "a", "b": "root", "ab": "a", "ba": "b"}
        for name in ("aa", "ba", "root", "b", "ab", "a", "aa"):
            vm.revert(name)
            assert read() == was[name]
        check_chains(vm)
        # from the middle: the others need nothing of it
        for name in ("a", "root"):
            vm.revert("ba")
            snapshots.find(f"box@{name}").remove()
            check_chains(vm)
        assert tree(vm) == {"aa": "a", "b": "root", "ab": "a", "ba": "b"}
        for name in ("ab", "b", "aa", "ba"):
            vm.revert(name)
            assert read() == was[name]
        with pytest.raises(MachineError, match="there is no snapshot box@a;"):
            vm.revert("a")
        assert read() == was["ba"]
        # what was on the disk when the VM was made is there as it was
        assert Path(disk).stat().st_size < 1 << 20


def test_what_it_shows_and_counts(clean, disk):
    with run(disks=[f"{disk},format=qcow2"]) as vm:
        sh(vm, "head -c 20000000 /dev/urandom > /tmp/noise")
        first = vm.snapshot(description="full")
        assert (first.full_name, first.manifest.description, first.manifest.parent) == ("box@snap1", "full", "")
        assert 20_000_000 < first.size() < 90_000_000
        sh(vm, "echo more > /tmp/more")
        second = vm.snapshot()
        assert second.full_name == "box@snap2" and second.manifest.parent == "box@snap1"
        assert second.size() < 6_000_000  # what changed only
        assert [file.id for file in second.manifest.memory] == [first.manifest.id, second.manifest.id]
        disks_only = vm.snapshot("disks", memory=False)
        assert disks_only.manifest.state == b"" and disks_only.size() < 1_000_000
        with pytest.raises(MachineError, match="'box' has a snapshot 'snap2' already"):
            vm.snapshot("snap2")
        assert [one.manifest.name for one in vm.snapshots()] == ["snap1", "snap2", "disks"]
        ls = cli("snapshot", "ls", "box").splitlines()
        assert [line.split()[0] for line in ls] == ["SNAPSHOT", "box@snap1", "box@snap2", "box@disks"]
        assert ls[3].startswith("    box@disks *") and " no " in ls[3] and "full" in ls[1]
        listed = json.loads(cli("snapshot", "ls", "--json"))
        assert [one["name"] for one in listed] == ["snap1", "snap2", "disks"]
        shown = json.loads(cli("snapshot", "inspect", "box@snap2"))
        assert shown["parent"] == "box@snap1" and shown["spec"]["memory"] == 128 << 20 and len(shown["memory"]) == 2
        assert cli("snapshot", "create", "box", "by-hand", "--description", "x y") == "box@by-hand\n"
        cli("snapshot", "revert", "box", "snap1")
        assert vm.exec(["cat", "/tmp/more"], timeout=60).status == 1
        for name in ("snap2", "by-hand", "disks"):
            cli("snapshot", "rm", f"box@{name}")
        assert cli("snapshot", "ls", "-q") == "box@snap1\n"


def cli(*words):
    """What the command prints."""
    out, error = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(error):
        status = main([*words])
    assert status == 0, error.getvalue()
    return out.getvalue()


def test_disks_only_and_of_one_that_has_stopped(clean, disk):
    with run(disks=[f"{disk},format=qcow2"], rm=False) as vm:
        def put(word):
            sh(vm, f"echo {word} | dd of=/dev/vda bs=512 count=1 conv=fsync 2>/dev/null; echo {word} > /tmp/word")

        def on_disk():
            return sh(vm, "head -c 9 /dev/vda | head -n 1").strip()

        put("first")
        vm.snapshot("one", memory=False)
        put("second")
        vm.revert("one")  # it ran, so it runs again: it boots
        assert on_disk() == "first" and vm.exec(["cat", "/tmp/word"], timeout=60).status == 1
        put("third")
        vm.kill()
        two = vm.snapshot("two")
        assert not two.manifest.state and two.manifest.parent == "box@one"
        vm.revert("one")
        assert vm.state.state == "stopped"  # as it was
        vm.start()
        assert on_disk() == "first"
        vm.kill()
        vm.revert("two")
        vm.start()
        assert on_disk() == "third"
        put("fourth")
        vm.snapshot("three")
        vm.kill()
        vm.revert("three")  # with memory: it runs
        assert vm.state.state == "running" and on_disk() == "fourth" and sh(vm, "cat /tmp/word") == "fourth\n"
        vm.kill()
        vm.start()
        assert on_disk() == "fourth"
        check_chains(vm)
        vm.rm(force=True)


def test_others_are_started_from_it(clean, disk):
    with run(disks=[f"{disk},format=qcow2"], networks=["nat"]) as vm:
        start_checks(vm, 1, "/dev/vda")
        go_on(vm)
        sh(vm, "echo kept > /tmp/word; echo 0123 > /etc/machine-id")
        taken = vm.snapshot("base")
        sh(vm, "echo changed > /tmp/word")
        with VM.run_from("box@base", name="one", rm=True) as one, VM.run_from(taken) as two:
            with pytest.raises(MachineError, match="box@base is in use"):
                taken.remove()
            assert len({vm.name, one.name, two.name}) == 3 and two.spec.remove
            for other in (one, two):
                assert sh(other, "cat /tmp/word") == "kept\n"
                go_on(other)
                sh(other, f"echo {other.name} > /tmp/word")
            assert [sh(other, "hostname") for other in (one, two)] == [f"{one.name}\n", f"{two.name}\n"]
            assert len({sh(other, "cat /tmp/word; cat /etc/machine-id") for other in (vm, one, two)}) == 3
            assert len({sh(other, "head -c 16 /dev/urandom | md5sum") for other in (vm, one, two)}) == 3
            assert len({other.spec.nics[0].mac for other in (vm, one, two)}) == 3
            go_on(vm)
            nested = one.snapshot("own")
            assert nested.full_name == "one@own"
            one.revert("own")
            assert sh(one, "cat /tmp/word") == "one\n"
            go_on(one)
            with pytest.raises(MachineError, match="isn't of 'one'"):
                one.revert(taken)
        assert names() == ["box"]
        taken.remove()
        go_on(vm)
        with pytest.raises(HostelError, match="there is no snapshot box@base"):
            VM.run_from("box@base")
        assert names() == ["box"]


def test_suspended_it_goes_on_where_it_was(clean, home, disk):
    with run(disks=[f"{disk},format=qcow2"], networks=["nat"], rm=False) as vm:
        start_checks(vm, 1, "/dev/vda")
        go_on(vm)
        for turn in range(2):
            vm.suspend()
            assert (vm.state.state, vm.state.reason) == ("stopped", "suspended")
            assert vm.snapshots() == [] and cli("snapshot", "ls", "-q") == ""
            assert processes(home) == []
            with pytest.raises(MachineError, match="'box' is not running"):
                vm.suspend()
            time.sleep(1.2)
            vm.resume() if turn else vm.start()
            go_on(vm)
            assert abs(date(vm) - time.time()) < 3
            sh(vm, "wait-network 60")
        vm.kill()
        with pytest.raises(MachineError, match="'box' isn't suspended"):
            vm.resume()
        vm.start()  # it boots
        assert sh(vm, "ls /tmp") == ""
        vm.suspend()
        vm.rm()
    assert names() == []


def test_what_was_suspended_is_stale_once_it_went_on_or_back(clean, disk):
    with run(disks=[f"{disk},format=qcow2"], rm=False) as vm:
        sh(vm, "echo one > /tmp/word")
        vm.snapshot("one")
        sh(vm, "echo two > /tmp/word; echo two | dd of=/dev/vda conv=fsync 2>/dev/null")
        vm.suspend()
        vm.snapshot("disks")  # under a new top it still goes on
        vm.resume()
        assert sh(vm, "cat /tmp/word; head -n 1 /dev/vda") == "two\ntwo\n"
        vm.suspend()
        vm.revert("one")
        assert sh(vm, "cat /tmp/word; head -c 3 /dev/vda | tr '\\0' -") == "one\n---"
        vm.kill()
        vm.start()
        assert vm.exec(["cat", "/tmp/word"], timeout=60).status == 1  # it booted
        vm.suspend()
        vm.revert("disks")
        assert vm.state.state == "stopped"
        with pytest.raises(MachineError, match="isn't suspended"):
            vm.resume()
        vm.rm()


def test_one_that_is_removed_at_its_end_can_be_suspended(clean):
    vm = run(name=None, detach=True, rm=True)
    sh(vm, "echo word > /tmp/word")
    vm.suspend()
    assert names() == [vm.name]
    vm.resume()
    assert sh(vm, "cat /tmp/word") == "word\n"
    vm.kill()
    wait(lambda: names() == [])


def test_a_paused_one_stays_so(clean):
    with run() as vm:
        sh(vm, "echo word > /tmp/word")
        vm.pause()
        taken = vm.snapshot()
        assert vm.state.state == "paused" and taken.manifest.paused
        vm.resume()
        sh(vm, "echo other > /tmp/word")
        vm.revert(taken)
        assert vm.state.state == "paused"
        vm.resume()
        assert sh(vm, "cat /tmp/word") == "word\n"


def test_time_goes_on_and_never_back(clean):
    with run(cpus=2) as vm:
        start_checks(vm, 2)
        go_on(vm, 2)
        times = []
        for turn in range(6):
            if turn % 3 == 0:
                vm.snapshot(f"s{turn}")
            elif turn % 3 == 1:
                vm.revert(f"s{turn - 1}")
            else:
                vm.suspend()
                vm.resume()
            go_on(vm, 2)
            uptime, now = sh(vm, "cat /proc/uptime; date +%s").splitlines()
            times.append(float(now))
            assert abs(float(now) - time.time()) < 3 and float(uptime.split()[0]) > 0
        assert times == sorted(times)
        assert "clocksource" not in sh(vm, "dmesg | grep -i unstable || true")


def test_all_its_devices_are_in_it(clean, disk, tmp_path):
    shared = tmp_path / "shared"
    shared.mkdir()
    (shared / "file").write_text("on the host\n")
    create.create(tmp_path / "two.qcow2", 16 << 20, create.Options())
    with run(
        cpus=4, memory="256M", disks=[f"{disk},format=qcow2", f"{tmp_path / 'two.qcow2'},format=qcow2,cache=none"],
        devices=["rng", "balloon", "hvc", "port:org.test"], vsock="", shares=[f"{shared}:/work"], networks=["nat"],
    ) as vm:
        start_checks(vm, 4, "/dev/vda")
        sh(vm, "(while :; do head -c 65536 /dev/urandom | dd of=/dev/vdb conv=notrunc,fsync; done) >/dev/null 2>&1 &")
        sh(vm, "(exec 3>>/work/log; while :; do echo line >&3; usleep 50000; done) >/dev/null 2>&1 &")
        sh(vm, "echo to the host > /dev/vport*p2 & "
               "(exec 4< /work/file; cat /work/file; sleep 100000) >/dev/null 2>&1 &")  # fmt: skip
        go_on(vm, 4)
        vm.snapshot("one")
        go_on(vm, 4)
        for name in ("one", "two", "one"):
            if name == "two":
                vm.snapshot("two")
            vm.revert(name)
            go_on(vm, 4)
            assert sh(vm, "cat /work/file; head -c 100 /dev/hwrng | wc -c; nproc") == "on the host\n100\n4\n"
            size = (shared / "log").stat().st_size
            wait(lambda size=size: (shared / "log").stat().st_size > size)
            assert vm.balloon("200M")["target"] == 200 << 20
            sh(vm, "wait-network 60; ping -c 1 -W 20 10.0.2.2")
            cards = vm.inspect()["statistics"]["cards"]
            assert not any(card.get("broken") for card in cards.values()), cards
        (shared / "file").write_text("changed\n")
        vm.reset()
        vm.wait_agent(60)
        assert sh(vm, "cat /work/file; dd if=/dev/vda bs=4096 count=1 2>/dev/null | wc -c") == "changed\n4096\n"


def test_a_reset_behind_a_snapshot(clean, disk):
    with run(disks=[f"{disk},format=qcow2"]) as vm:
        sh(vm, "echo kept | dd of=/dev/vda conv=fsync 2>/dev/null")
        vm.snapshot("one")
        vm.reset()
        assert sh(vm, "head -n 1 /dev/vda") == "kept\n"
        sh(vm, "echo word > /tmp/word")
        two = vm.snapshot("two")
        assert len(two.manifest.memory) == 1  # memory is another
        vm.revert("one")
        vm.reset()
        assert sh(vm, "head -n 1 /dev/vda") == "kept\n"
        vm.revert("two")
        assert sh(vm, "cat /tmp/word") == "word\n"


# -- what isn't as it was written


def flip(path, at):
    with open(path, "r+b") as file:
        size = os.fstat(file.fileno()).st_size
        file.seek(at % size)
        byte = file.read(1)
        file.seek(at % size)
        file.write(bytes([byte[0] ^ 0x10]))


def rewrite(taken, **changes):
    """The manifest with other content and the right checksum."""
    content = msgspec.msgpack.decode((taken.path / "manifest").read_bytes()[:-32])
    content |= changes
    data = msgspec.msgpack.encode(content)
    (taken.path / "manifest").write_bytes(data + hashlib.sha256(data).digest())


def test_what_is_damaged_is_refused_before_anything_is_lost(clean, disk, tmp_path):
    with run(disks=[f"{disk},format=qcow2"]) as vm:
        sh(vm, "echo running > /tmp/word")
        vm.snapshot("good")
        taken = vm.snapshot("bad")
        saved = tmp_path / "saved"
        shutil.copytree(taken.path, saved)
        pid = vm.state.pid
        memory = [file for file in os.listdir(saved) if file.startswith("memory-")]
        rng = random.Random(5)

        def refused(pattern, damaged=True):
            with pytest.raises(MachineError, match=pattern) as raised:
                vm.revert("bad")
            assert "\n" not in str(raised.value) and "bad" in str(raised.value)
            assert vm.state.pid == pid and sh(vm, "cat /tmp/word") == "running\n"
            with pytest.raises(MachineError, match=pattern):
                VM.run_from("box@bad")
            assert names() == ["box"]
            if damaged:
                assert cli("snapshot", "ls", "-q").startswith("box@good\n")  # the others are still to be seen
            shutil.rmtree(taken.path)
            shutil.copytree(saved, taken.path)

        for name in ["manifest", "state", *memory]:
            path = taken.path / name
            size = path.stat().st_size
            for at in (0, size - 1, rng.randrange(size)):
                if size:
                    shutil.copy(path, tmp_path / "whole")
                    path.unlink()
                    shutil.copy(tmp_path / "whole", path)  # not the other snapshot's file
                    flip(path, at)
                    refused("damaged")
            for length in (0, size // 2, max(0, size - 1), size + 1):
                if length != size:
                    path.unlink()
                    shutil.copy(saved / name, path)
                    os.truncate(path, length)
                    refused("damaged")
            path.unlink()
            refused("damaged|there is no snapshot")
        rewrite(taken, format=77)
        refused("has format 77; this hostel reads 1", False)
        rewrite(taken, cpu=[*taken.manifest.cpu, "avx1024", "x87plus"])
        refused("needs a processor with avx1024, x87plus", False)
        state = msgspec.msgpack.decode((taken.path / "state").read_bytes())
        data = msgspec.msgpack.encode(state | {"version": 99})
        (taken.path / "state").unlink()
        (taken.path / "state").write_bytes(data)
        rewrite(taken, state=hashlib.sha256(data).digest())
        refused("version 99", False)
        layer = next(path for path in taken.path.iterdir() if path.name.startswith("disk"))
        layer.unlink()
        refused("disk")
        vm.revert("bad")
        vm.revert("good")
        assert sh(vm, "cat /tmp/word") == "running\n"
        # one that is damaged can be removed, and is no hindrance to others
        flip(taken.path / "manifest", 10)
        vm.snapshot("another")
        cli("snapshot", "rm", "box@bad")
        assert cli("snapshot", "ls", "-q") == "box@good\nbox@another\n"
        flip(snapshots.place("box@another") / "manifest", 10)


# -- what is interrupted


def hostel(*words):
    return subprocess.Popen(
        [sys.executable, "-m", "hostel.cli.main", *words], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE, start_new_session=True,
    )


def interrupt(vm, action, victim, delay):
    """Have it done, and the command or the worker killed meanwhile."""
    words = {
        "create": ("snapshot", "create", "box", "new"), "revert": ("snapshot", "revert", "box", "second"),
        "rm": ("snapshot", "rm", "box@first"), "fork": ("fork", "box", "--count", "3"), "suspend": ("suspend", "box"),
    }[action]
    pid = vm.state.pid
    process = hostel(*words)
    time.sleep(delay)
    if victim == "command":
        process.kill()
    else:
        with contextlib.suppress(ProcessLookupError):
            worker = os.pidfd_open(pid)
            os.kill(pid, 9)
            assert select.select([worker], [], [], 60)[0]  # all of its threads have ended, and what they held is free
            os.close(worker)
    error = process.communicate(timeout=60)[1].decode()
    assert "Traceback" not in error, error
    return process.returncode


def settled(vm):
    """Once it runs, started if need be; whether it did all the time."""
    always = vm.state.state == "running"
    deadline = time.monotonic() + 60
    while vm.state.state != "running":
        assert time.monotonic() < deadline
        with contextlib.suppress(MachineError):  # a worker is just starting
            vm.start()
        time.sleep(0.05)
    return always


def interruptions(vm, home, points):
    """After each everything is usable, and soon nothing half made is left."""
    def read():
        return sh(vm, "cat /tmp/word || echo none.; head -n 1 /dev/vda")

    def put(word):
        sh(vm, f"echo {word} > /tmp/word; echo {word} | dd of=/dev/vda conv=fsync 2>/dev/null")

    put("first")
    vm.snapshot("first")
    put("second")
    vm.snapshot("second")
    for action, victim, delay in points:
        what = (action, victim, delay)
        put("since")
        interrupt(vm, action, victim, delay)
        there = {one.manifest.name for one in vm.snapshots()}
        assert {"second"} <= there <= {"first", "second", "new"}, what
        assert action == "rm" or "first" in there, what
        disks_only = False  # of one whose worker was killed before it was asked
        for one in vm.snapshots():
            if one.manifest.name == "new" and victim == "worker" and not one.manifest.state:
                disks_only = True
            else:
                one.open().close()
        others = [other for other in VM.list() if other.name != "box"]
        assert action == "fork" or not others
        for other in others:  # the copies that came to life before it was killed
            assert other.state.state == "running" and sh(other, "cat /tmp/word") == "since\n", what
            other.rm(force=True)
        print(what, vm.state, there, [other.name for other in others])
        if settled(vm) and action not in ("revert", "suspend"):
            assert read() == "since\nsince\n", what
        else:  # it has booted, perhaps: what was on the disk is there, or what is gone back to
            found = sh(vm, "head -n 1 /dev/vda")
            assert found in ("since\n", "second\n")[: 1 + (action == "revert")], what
        vm.revert("second")
        assert read() == "second\nsecond\n", what
        if "new" in there:
            vm.revert("new")
            settled(vm)
            assert read()[6 * disks_only :] == "since\nsince\n"[6 * disks_only :], what
            vm.revert("second")
            snapshots.find("box@new").remove()
        if "first" in there:
            vm.revert("first")
            assert read() == "first\nfirst\n", what
            vm.revert("second")
            snapshots.find("box@first").remove()
        vm.snapshot("first")
        put("first")
        snapshots.find("box@first").remove()
        vm.snapshot("first")  # a removal and a creation: what was left half made is gone by now
        assert {path.split("/")[0] + "/" + path.split("/")[1] for path in left(home)} == {
            "vms/box", "disks/box", "snapshots/box@first", "snapshots/box@second",
        }, what  # fmt: skip
        vm.revert("second")
    check_chains(vm)


def test_killed_in_the_middle(clean, home, disk):
    with run(disks=[f"{disk},format=qcow2"], rm=False, detach=True) as vm:
        interruptions(vm, home, [
            ("create", "command", 0.35), ("create", "worker", 0.4), ("revert", "command", 0.6),
            ("fork", "command", 0.4), ("revert", "worker", 0.6), ("rm", "command", 0.3), ("fork", "worker", 0.4),
            ("suspend", "command", 0.4),
        ])  # fmt: skip


@pytest.mark.slow
@pytest.mark.timeout(3000)
@pytest.mark.parametrize("action", ["create", "revert", "rm", "fork", "suspend"])
def test_killed_at_fifty_points(clean, home, disk, action):
    rng = random.Random(action)
    with run(disks=[f"{disk},format=qcow2"], rm=False, detach=True) as vm:
        points = [(action, rng.choice(("command", "worker")), rng.uniform(0.1, 0.9)) for _ in range(50)]
        interruptions(vm, home, points)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs to mount a small file system")
def test_no_space(micro, tmp_path, monkeypatch, disk):
    home = tmp_path / "small"
    home.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64M", "tmpfs", home], capture_output=True).returncode:
        pytest.skip("no mount here")
    try:
        monkeypatch.setenv("HOSTEL_HOME", str(home))
        (home / "images").symlink_to(micro.folder.parent)
        with run(disks=[f"{disk},format=qcow2"], memory="256M") as vm:
            sh(vm, "echo word > /tmp/word; echo word | dd of=/dev/vda conv=fsync 2>/dev/null")
            vm.snapshot("good")
            sh(vm, "head -c 60000000 /dev/urandom > /tmp/noise")
            for _ in range(2):
                before = left(home)
                with pytest.raises(HostelError, match="(?i)no space") as raised:
                    vm.snapshot("bad")
                assert "\n" not in str(raised.value)
                assert [one.manifest.name for one in vm.snapshots()] == ["good"]
                assert len(left(home)) <= len(before) + 1  # a new top of the disk
                sh(vm, "md5sum /tmp/noise; echo more | dd of=/dev/vda conv=fsync 2>/dev/null")
            filler = home / "filler"
            with open(filler, "wb", buffering=0) as file, contextlib.suppress(OSError):
                while file.write(bytes(4096)):
                    pass
            for action in (lambda: vm.snapshot("bad", memory=False), lambda: vm.fork(2), lambda: vm.revert("good"),
                           vm.suspend):  # fmt: skip
                with pytest.raises(HostelError, match="(?i)no space") as raised:
                    action()
                assert "\n" not in str(raised.value)
                assert sh(vm, "cat /tmp/word") == "word\n" and names() == ["box"]
            filler.unlink()
            sh(vm, "rm /tmp/noise")
            vm.revert("good")
            assert sh(vm, "cat /tmp/word; head -n 1 /dev/vda") == "word\nword\n"
            vm.snapshot("good2")
        assert left(home) == []
    finally:
        for vm in VM.list():
            vm.rm(force=True)
        all_gone(home)
        subprocess.run(["umount", "-l", home], check=True)


def test_two_at_once(clean):
    with run() as vm:
        sh(vm, "echo word > /tmp/word")
        made, failed = [], []

        def take():
            try:
                made.append(VM.get("box").snapshot().manifest.name)
            except HostelError as error:
                failed.append(error)

        threads = [threading.Thread(target=take) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(120)
        assert not failed and sorted(made) == ["snap1", "snap2", "snap3", "snap4"]
        vm.revert("snap3")
        assert sh(vm, "cat /tmp/word") == "word\n"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root's worker becomes another user")
def test_where_the_worker_is_another_user(micro, monkeypatch, disk, tmp_path):
    import tempfile

    with tempfile.TemporaryDirectory(dir="/tmp") as top:
        os.chmod(top, 0o755)
        home = Path(top) / "home"
        home.mkdir()
        (home / "images").symlink_to(micro.folder.parent)
        monkeypatch.setenv("HOSTEL_HOME", str(home))
        shutil.copy(disk, f"{top}/disk")
        with run(disks=[f"{top}/disk,format=qcow2"], networks=["nat"]) as vm:
            sh(vm, "echo one > /tmp/word; echo one | dd of=/dev/vda conv=fsync 2>/dev/null")
            assert vm.inspect()["confinement"]["user"] != 0
            vm.snapshot("one")
            sh(vm, "echo two > /tmp/word; echo two | dd of=/dev/vda conv=fsync 2>/dev/null")
            vm.snapshot("two")
            for word in ("one", "two"):
                vm.revert(word)
                assert sh(vm, "cat /tmp/word; head -n 1 /dev/vda") == f"{word}\n{word}\n"
            vm.suspend()
            vm.resume()
            with vm.fork(2) as copies, VM.run_from("box@one") as other:
                assert [sh(copy, "cat /tmp/word; head -n 1 /dev/vda") for copy in copies] == ["two\ntwo\n"] * 2
                assert sh(other, "cat /tmp/word") == "one\n"
                copies[0].reset()
                assert sh(copies[0], "head -n 1 /dev/vda") == "two\n"
                copies[1].stop()
                copies[1].start()
                assert sh(copies[1], "head -n 1 /dev/vda") == "two\n"
            vm.reset()
            assert sh(vm, "head -n 1 /dev/vda") == "two\n"
        assert left(home) == []
        all_gone(home)


# -- long ones


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_a_hundred_snapshots_under_load(clean, disk):
    with run(cpus=4, memory="256M", disks=[f"{disk},format=qcow2"]) as vm:
        start_checks(vm, 4, "/dev/vda")
        rng = random.Random(100)
        for turn in range(100):
            go_on(vm, 4, 5)
            vm.snapshot(f"s{turn}")
            if turn % 5 == 4:
                go_on(vm, 4, 5)
                vm.revert(f"s{rng.randrange(max(0, turn - 20), turn + 1)}")
        go_on(vm, 4)
        check_chains(vm)


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_a_chain_of_two_hundred(clean, disk):
    with run(disks=[f"{disk},format=qcow2"]) as vm:
        for turn in range(200):
            sh(vm, f"echo {turn} > /tmp/word; echo {turn} | dd of=/dev/vda seek={turn} conv=fsync 2>/dev/null")
            vm.snapshot(f"s{turn}")

        def check(turn):
            vm.revert(f"s{turn}")
            assert sh(vm, "cat /tmp/word") == f"{turn}\n"
            one = "dd if=/dev/vda skip=$i count=1 2>/dev/null | head -n 1 | tr -d '\\0'"
            out = sh(vm, f"for i in $(seq 0 199); do {one}; done")
            assert out.split() == [str(number) for number in range(turn + 1)]

        for turn in (199, 100, 0, 150):
            check(turn)
        for turn in range(60, 140):
            snapshots.find(f"box@s{turn}").remove()
        check_chains(vm)
        for turn in (59, 140, 199, 0):
            check(turn)
        assert len(vm.snapshots()) == 120


def test_the_same_one_twice_runs_alike(clean):
    """Until something comes from outside both do the same: what differs is what they are told that differs."""
    with run() as vm:
        sh(vm, "(i=0; while :; do i=$((i+1)); echo $i; done > /tmp/lines) > /dev/null 2>&1 &")
        vm.pause()
        taken = vm.snapshot()
        with VM.run_from(taken, name="one", rm=True) as one, VM.run_from(taken, name="two", rm=True) as two:
            states = [other.state.state for other in (one, two)]
            assert states == ["paused", "paused"]
            seen = []
            for other in (one, two):
                with other.debug() as debugger:
                    state = debugger.state(0)
                    seen.append((state.registers, state.rip, state.rflags, state.cr3, state.msrs, state.xsave))
            assert seen[0] == seen[1]
            for other in (one, two):
                other.resume()
                assert int(sh(other, "wc -l < /tmp/lines")) > 0


@pytest.mark.parametrize("name", [None, "box"])
def test_reverted_by_somebody_else(clean, name):
    """Who started it sees it end, and leaves it, and its snapshots, alone."""
    words = ["run", "--memory", "128M", "--network", "none", *(["--name", name] if name else []), "--"]
    process = hostel(*words, "sh", "-c", "echo word > /tmp/word; sleep 1000")
    wait(lambda: names() and VM.list()[0].state.state == "running")
    vm = VM.list()[0]
    wait(lambda: "word" in sh(vm, "cat /tmp/word || true"))
    vm.snapshot("one")
    sh(vm, "echo other > /tmp/word")
    cli("snapshot", "revert", vm.name, "one")
    process.communicate(timeout=60)
    assert process.returncode == 125
    assert sh(vm, "cat /tmp/word") == "word\n"
    assert cli("snapshot", "ls", "-q") == f"{vm.name}@one\n"
