"""VMs that are forks of one that has booted before (client/warm)."""

import pytest
from copies import all_gone, sh, wait

from hostel import VM
from hostel.cli.main import main
from hostel.client import warm
from hostel.client.connection import Connection
from hostel.vm import store


@pytest.fixture
def rehearsals(guests, home, monkeypatch):
    """How often templates were rehearsed; they go at the end, and no process is left."""
    seen = []
    rehearse = warm._rehearse
    monkeypatch.setattr(warm, "_rehearse", lambda vm: (seen.append(vm.name), rehearse(vm)))
    yield seen
    for folder in templates(home):
        warm._discard(folder)
    assert not templates(home)
    all_gone(home)


def templates(home):
    return [store.Folder(path) for path in (home / "vms").glob(".warm-*")]


def identity(vm):
    return sh(vm, "hostname; cat /etc/machine-id 2>/dev/null || true; cat /proc/sys/kernel/random/uuid; "
                  "cat /sys/class/net/eth0/address").split()  # fmt: skip


def test_each_is_a_machine_of_its_own(home, rehearsals):
    with VM.run_warm("micro", memory="128M") as one, VM.run_warm("micro", memory="128M") as two:
        assert not set(identity(one)) & set(identity(two))
        assert identity(one)[0] == one.name
        sh(one, "echo here > /tmp/file; wait-network 60")
        assert sh(two, "ls /tmp") == "" and sh(two, "wait-network 60; echo fine") == "fine\n"
        assert len(rehearsals) == len(templates(home)) == 1
        assert sorted(vm.name for vm in VM.list()) == sorted([one.name, two.name])  # it is among nobody's
        assert templates(home)[0].state().state == "paused"
    with VM.run_warm("micro", memory="192M") as other:
        assert int(sh(other, "grep MemTotal /proc/meminfo").split()[1]) > 150_000
    assert len(templates(home)) == 2


def test_one_that_has_ended_starts_from_its_snapshot(home, rehearsals):
    with VM.run_warm("micro", memory="128M") as vm:
        sh(vm, "true")
    folder = templates(home)[0]
    before = folder.state().pid
    with Connection(folder.path) as connection:
        connection.call("quit", reason="nobody wanted a copy of it")
    wait(lambda: not folder.owned())
    for _ in range(2):
        with VM.run_warm("micro", memory="128M") as vm:
            assert identity(vm)[0] == vm.name and folder.state().state == "paused"
    assert folder.state().pid != before and len(rehearsals) == 1


def test_it_ends_by_itself(home, rehearsals, monkeypatch):
    monkeypatch.setattr(warm, "IDLE", 10)  # it is rehearsed meanwhile
    with VM.run_warm("micro", memory="128M") as vm:
        sh(vm, "true")
    folder = templates(home)[0]
    wait(lambda: not folder.owned())
    assert folder.state().reason == "nobody wanted a copy of it"


@pytest.mark.parametrize("how", ["damaged", "older"])
def test_one_of_no_use_is_made_anew(home, rehearsals, monkeypatch, how):
    with VM.run_warm("micro", memory="128M") as vm:
        sh(vm, "true")
    folder = templates(home)[0]
    with Connection(folder.path) as connection:
        connection.call("quit", reason="nobody wanted a copy of it")
    wait(lambda: not folder.owned())
    if how == "damaged":
        (home / "snapshots" / f"{folder.name}@booted" / "state").write_bytes(b"damage")
    else:
        monkeypatch.setattr(warm, "__version__", "99")
    with VM.run_warm("micro", memory="128M") as vm:
        assert sh(vm, "echo fine") == "fine\n"
    assert len(rehearsals) == 2 and len(templates(home)) == 1


def test_translations_dropped_meanwhile_are_made_again(home, rehearsals, monkeypatch):
    counts = iter([0, 1, 1, 1])
    monkeypatch.setattr(warm, "_dropped", lambda vm: next(counts))
    with VM.run_warm("micro", memory="128M") as vm:
        assert sh(vm, "echo fine") == "fine\n"
    assert not list(counts)


def test_the_command(home, rehearsals, capfd):
    status = main(["run", "--warm", "--memory", "128M", "micro", "--", "sh", "-c", "echo here; exit 3"])
    assert (status, capfd.readouterr().out) == (3, "here\n")
    assert len(rehearsals) == 1 and VM.list() == []
