"""A running VM goes back without another worker, where that can be."""

import contextlib
import os
import re
import socket
import threading

import pytest
from copies import go_on, sh, start_checks, wait

from hostel import VM
from hostel.base.errors import MachineError
from hostel.block.qcow2 import create
from hostel.client import snapshots
from hostel.vm import layers
from hostel.vm import snapshot as snapshot_files


def run(**more):
    return VM.run("micro", **{"name": "box", "memory": "128M", "networks": ["none"], "rm": True} | more)


@pytest.fixture
def disk(tmp_path):
    create.create(tmp_path / "disk.qcow2", 16 << 20, create.Options())
    return f"{tmp_path / 'disk.qcow2'},format=qcow2"


@pytest.fixture
def listener():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(60)
        yield listener


def test_what_is_outside_stays_and_knows_it(clean, disk, listener):
    port = listener.getsockname()[1]
    with run(networks=["nat"], allow_host_loopback=True, disks=[disk]) as vm:
        pid, seen = vm.state.pid, bytearray()
        sinks = {"on_stdout": seen.extend, "on_stderr": seen.extend}
        threading.Thread(target=lambda: vm.console(stdin=None, **sinks), daemon=True).start()
        sh(vm, f"""wait-network 60; mkfifo /tmp/words
               (nc 10.0.2.2 {port} < /tmp/words; echo $? > /tmp/ended) >/dev/null 2>&1 &
               exec 3> /tmp/words; (sleep 100000 >&3 &) >/dev/null 2>&1; echo one >&3""")
        connection, _ = listener.accept()
        with connection:
            connection.settimeout(60)
            assert connection.recv(4) == b"one\n"
            sh(vm, "echo was > /tmp/word; echo was | dd of=/dev/vda conv=fsync 2>/dev/null")
            vm.snapshot("here")
            sh(vm, "echo two > /tmp/words; echo is > /tmp/word; echo is | dd of=/dev/vda conv=fsync 2>/dev/null")
            assert connection.recv(4) == b"two\n"
            vm.revert("here")
            assert vm.state.pid == pid and vm.state.state == "running" and not vm.state.reason
            with pytest.raises(ConnectionResetError):
                connection.recv(1)
        assert sh(vm, "cat /tmp/word; head -n 1 /dev/vda") == "was\nwas\n"
        sh(vm, "echo three > /tmp/words")  # it hears that nobody knows of it
        wait(lambda: vm.exec(["cat", "/tmp/ended"], timeout=60).status == 0)
        sh(vm, f"echo again | nc 10.0.2.2 {port} >/dev/null 2>&1 &")
        with listener.accept()[0] as connection:
            connection.settimeout(60)
            assert connection.recv(6) == b"again\n"
        sh(vm, "echo still there > /dev/ttyS0")
        wait(lambda: b"still there" in seen)
        assert "vda" not in sh(vm, "dmesg | grep -i error || true")


def test_the_twentieth_time_is_as_the_first(clean, disk):
    with run(disks=[disk], cpus=2) as vm:
        sh(vm, "echo was > /tmp/word; echo was | dd of=/dev/vda conv=fsync 2>/dev/null")
        vm.snapshot("here")
        pid = vm.state.pid
        held = []
        for _ in range(20):
            sh(vm, "echo is > /tmp/word; echo is | dd of=/dev/vda conv=fsync 2>/dev/null")
            vm.revert("here")
            assert sh(vm, "cat /tmp/word; head -n 1 /dev/vda") == "was\nwas\n"
            held.append((len(os.listdir(f"/proc/{pid}/fd")), len(os.listdir(f"/proc/{pid}/task"))))
        assert vm.state.pid == pid
        assert all(last <= first + 4 for first, last in zip(held[4], held[-1], strict=True)), held  # one may be closing
        assert len(list(layers.folder("box").iterdir())) == 1  # its top, on what is the user's


def test_what_runs_goes_on_each_time(clean, disk):
    """Also programs that others took the place of in memory: what was translated of them is of no use."""
    with run(disks=[disk], cpus=4, memory="256M") as vm:
        start_checks(vm, 3, "/dev/vda")
        go_on(vm, 3)
        vm.snapshot("here")
        pid = vm.state.pid
        for number in range(25):
            if number % 3:
                sh(vm, f"""for n in 1 2 3; do
                           cp /bin/busybox /tmp/busybox$n
                           /tmp/busybox$n head -c {number}00000 /dev/urandom | /tmp/busybox$n sha256sum
                           rm /tmp/busybox$n
                       done; echo 3 > /proc/sys/vm/drop_caches""")
            go_on(vm, 3, 1 + number % 5)
            vm.revert("here")
        go_on(vm, 3)
        assert vm.state.pid == pid
        assert not re.search("bug:|oops|segfault|traps:|stall", sh(vm, "dmesg").lower())


def test_paused_ones_copies_and_children(clean, disk):
    with run(disks=[disk]) as vm:
        vm.pause()
        vm.snapshot("still")
        vm.resume()
        sh(vm, "echo word > /tmp/word")
        vm.snapshot("child")
        pid = vm.state.pid
        vm.revert("still")
        assert (vm.state.pid, vm.state.state) == (pid, "paused")
        vm.resume()
        assert sh(vm, "ls /tmp") == ""
        with vm.fork() as copies:
            copy = copies[0]
            sh(copy, "echo copy > /tmp/word")
            copy.snapshot("own")
            sh(copy, "rm /tmp/word")
            own = copy.state.pid
            copy.revert("own")
            assert sh(copy, "cat /tmp/word; hostname") == f"copy\n{copy.name}\n" and copy.state.pid == own
        vm.revert("child")  # its disk stands on another image than the running one's: another worker has to open it
        assert sh(vm, "cat /tmp/word") == "word\n" and vm.state.pid != pid


def test_where_another_worker_has_to_start(clean, disk):
    with run(disks=[disk]) as vm:
        sh(vm, "echo word > /tmp/word")
        vm.snapshot("one")
        pid = vm.state.pid
        with contextlib.closing(vm.debug()):
            vm.revert("one")
        assert sh(vm, "cat /tmp/word") == "word\n" and vm.state.pid != pid


def test_one_that_is_damaged_leaves_nothing(clean, disk):
    with run(disks=[disk]) as vm:
        taken = vm.snapshot("one")
        pid, before = vm.state.pid, sorted(layers.folder("box").iterdir())
        with open(taken.path / "state", "r+b") as file:
            file.write(b"damage")
        with pytest.raises(MachineError, match="state isn't what was written"):
            vm.revert("one")
        assert sorted(layers.folder("box").iterdir()) == before
        assert sh(vm, "echo fine") == "fine\n" and vm.state.pid == pid


def test_who_asks_goes_in_the_middle(clean, disk):
    """The guest has gone back, and nobody has written that down."""

    def killed():
        raise KeyboardInterrupt

    with run(disks=[disk], rm=False) as vm:
        sh(vm, "echo word > /tmp/word")
        taken = vm.snapshot("one")
        folder, tops = vm._folder, snapshots.put_disks(taken, "box")
        spec = layers.on_tops(taken.manifest.spec, tops)
        with contextlib.closing(taken.check()) as base, pytest.raises(KeyboardInterrupt):
            snapshots._revert_in_place(folder, taken, base, spec, tops, killed, True)
        wait(lambda: not folder.owned())
        assert vm.state.state == "stopped" and vm.state.reason == "reverted"
        vm.revert("one")
        assert sh(vm, "cat /tmp/word") == "word\n"
        assert snapshot_files.names("box") == ["one"]


def test_nobody_else_is_served_meanwhile(clean):
    refused = []

    with run() as vm:
        taken = vm.snapshot("one")
        spec = taken.manifest.spec

        def meanwhile():
            for ask in (vm.pause, vm.resume, vm.reset, lambda: vm.snapshot("two"), vm.fork, lambda: vm.exec(["true"])):
                try:
                    ask()
                except Exception as error:
                    refused.append(str(error))
            assert vm.inspect()["state"]["state"] == "running"

        with contextlib.closing(taken.check()) as base:
            assert snapshots._revert_in_place(vm._folder, taken, base, spec, {}, meanwhile, True)
        assert refused == ["'box' is being reverted"] * 6
        assert sh(vm, "echo fine") == "fine\n"


@pytest.mark.parametrize("translations", ["0", "1"])
def test_what_fails_behind_the_old_machine_ends_it(clean, disk, monkeypatch, translations):
    monkeypatch.setenv("HOSTEL_TRANSLATIONS", translations)
    with run(disks=[disk], rm=False) as vm:
        sh(vm, "echo word > /tmp/word")
        taken = vm.snapshot("one")
        tops = snapshots.put_disks(taken, "box")
        tops[0].unlink()
        create.create(tops[0], 32 << 20, create.Options())  # of another size than what it is to stand on
        spec = layers.on_tops(taken.manifest.spec, tops)
        with contextlib.closing(taken.check()) as base:
            assert not snapshots._revert_in_place(vm._folder, taken, base, spec, tops, lambda: None, True)
        wait(lambda: not vm._folder.owned())
        assert vm.state.state == "stopped" and vm.state.reason.startswith("error: it can't be reverted: ")
        vm.revert("one")
        assert sh(vm, "cat /tmp/word") == "word\n"
