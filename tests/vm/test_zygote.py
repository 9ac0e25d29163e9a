"""Workers that are forked from a zygote are as those that are started as programs."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from hostel.base.errors import MachineError
from hostel.client.vm import VM
from hostel.spec.vm import VmSpec
from hostel.vm import launch, place, store, zygote


def until(condition, seconds=20):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it doesn't happen"
        time.sleep(0.01)


def zygotes():
    """Processes of this home's."""
    found = []
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            try:
                words = (process / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if b"hostel.vm.zygote" in words and os.fsencode(zygote.folder()) in words:
                found.append(int(process.name))
    return found


def ready():
    return any(name.name[0] != "." for name in zygote.folder().glob("*.sock"))


def parent(vm):
    return int(Path(f"/proc/{vm.state.pid}/stat").read_text().rpartition(")")[2].split()[1])


@pytest.fixture
def allowed(home, monkeypatch):
    """Zygotes may be; none is left."""
    monkeypatch.setenv("HOSTEL_ZYGOTE_SECONDS", "60")
    home.mkdir(exist_ok=True)
    yield
    for folder in store.folders():
        launch.kill(folder)
    for pid in zygotes():
        os.kill(pid, signal.SIGKILL)


@pytest.fixture
def one(allowed):
    """A zygote's process."""
    assert zygote.start()
    (pid,) = zygotes()
    return pid


@pytest.fixture
def run(guests, one):
    """``run()``: a VM that ``one`` has forked, if it lives."""
    return lambda **more: VM.run("micro", memory="128M", networks=["none"], **more)


def lines(pid, name):
    return (Path("/proc") / str(pid) / name).read_text().splitlines()


def test_the_first_start_makes_one(guests, allowed):
    with VM.run("micro", memory="128M") as first:
        (pid,) = zygotes()
        assert parent(first) == pid
        with VM.run("micro", memory="128M") as second:
            assert parent(second) == pid
            assert second.exec(["uname"]).stdout == "Linux\n"
    assert zygotes() == [pid]


def test_the_first_ones_at_once_share_one(guests, allowed):
    command = [sys.executable, "-c", "from hostel import VM; vm = VM.run('micro', memory='128M', networks=['none'], "
                                     "detach=True); print(vm.name)"]  # fmt: skip
    started = [subprocess.Popen(command, stdout=subprocess.PIPE) for _ in range(4)]
    vms = [VM.get(process.communicate()[0].decode().strip()) for process in started]
    (pid,) = zygotes()
    assert [parent(vm) for vm in vms] == [pid] * 4


def test_one_that_does_not_come_keeps_nobody_waiting(guests, allowed, monkeypatch):
    monkeypatch.setattr(zygote, "_ORPHAN", "import sys; sys.exit(1)")
    began = time.monotonic()
    assert not zygote.start() and time.monotonic() - began < zygote._START / 2
    with VM.run("micro", memory="128M", networks=["none"]) as vm:
        assert parent(vm) == os.getpid() and not zygotes()
        assert vm.exec(["true"]).status == 0


def test_a_forked_worker_is_as_one_that_was_started(run, one, monkeypatch):
    with run() as forked:
        monkeypatch.setenv("HOSTEL_ZYGOTE_SECONDS", "0")
        with run() as started:
            assert parent(forked) == one and parent(started) == os.getpid()
            for vm in (forked, started):
                vm.wait_agent()
            a, b = forked.inspect()["confinement"], started.inspect()["confinement"]
            numbers = a.pop("user"), b.pop("user")
            assert a == b and a["seccomp"] and bool(numbers[0]) == bool(numbers[1])
            pids = forked.state.pid, started.state.pid
            # names: pid, user and group are each one's own
            wanted = ("Umask", "Cap", "NoNewPrivs", "Seccomp", "Sig", "Cpus_allowed", "Threads", "Groups", "Name")
            a, b = ([line for line in lines(pid, "status") if line.startswith(wanted) and "SigQ" not in line]
                    for pid in pids)  # fmt: skip
            assert a == b
            for name in ("limits", "cgroup", "oom_score_adj"):
                assert lines(pids[0], name) == lines(pids[1], name)
            assert [os.getsid(pid) for pid in pids] == [*pids] and os.sched_getscheduler(pids[0]) == os.SCHED_OTHER
            titles = [[word for word in lines(pid, "cmdline")[0].split("\0") if word] for pid in pids]
            assert titles[0] == [*titles[1][:-1], str(forked.folder)]
            if os.geteuid() == 0:  # else the kernel shows nobody what a worker that isn't dumpable has open
                assert all(os.readlink(f"/proc/{pid}/cwd") == "/" for pid in pids)
                until(lambda: descriptors(forked) == descriptors(started))  # once our own connections are gone
            assert (forked.folder / "worker.log").read_text() == (started.folder / "worker.log").read_text() == ""


def test_signals_are_ignored_as_by_who_asks(run, one, monkeypatch):
    """Those in a script's background ignore SIGINT; one zygote serves them and others."""
    hangup = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    interrupt = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with run() as forked:
            monkeypatch.setenv("HOSTEL_ZYGOTE_SECONDS", "0")
            with run() as started:
                assert parent(forked) == one and parent(started) == os.getpid()
                a, b = (next(line for line in lines(vm.state.pid, "status") if line.startswith("SigIgn"))
                        for vm in (forked, started))  # fmt: skip
                assert a == b and int(a.split()[1], 16) & 1 << signal.SIGHUP - 1
    finally:
        signal.signal(signal.SIGHUP, hangup)
        signal.signal(signal.SIGINT, interrupt)


def descriptors(vm):
    """What a worker has open, without numbers of its own."""
    found = []
    for entry in Path(f"/proc/{vm.state.pid}/fd").iterdir():
        try:
            found.append(os.readlink(entry).replace(vm.name, "NAME").partition(":[")[0])
        except OSError:
            continue
    return sorted(found)


def test_it_ends_with_its_leash(run, one):
    vm = run(name="held")
    pid = vm.state.pid
    assert parent(vm) == one
    vm._leash.close()
    until(lambda: not os.path.exists(f"/proc/{pid}"))
    assert vm.state.reason == "who started it ended"


def test_errors_come_through(one):
    folder = store.create(VmSpec(name="bad", kernel="/none", cpus=1))
    with pytest.raises(MachineError) as error:
        launch.start(folder, held=False)
    assert str(error.value).count("\n") == 0 and "/none" in str(error.value)
    (folder.path / "vm.toml").write_text("cpus = 'many'\n")
    with pytest.raises(MachineError, match="vm.toml"):
        launch.start(folder, held=False)
    assert zygotes() == [one]


def test_how_a_worker_ended_is_told(one, monkeypatch):
    folder = store.create(VmSpec(name="killed", kernel="/none"))
    read = launch.first_word

    def killed(reader, timeout):
        (child,) = [int(pid) for pid in Path(f"/proc/{one}/task/{one}/children").read_text().split()]
        os.kill(child, signal.SIGKILL)
        return read(reader, timeout) and {}

    fifo = folder.path / "fifo"
    os.mkfifo(fifo)
    (folder.path / "vm.toml").write_text(f'version = 1\ncpus = 1\nmemory = "64M"\nkernel = "{fifo}"\n')
    monkeypatch.setattr(launch, "first_word", killed)
    with pytest.raises(MachineError, match="ended by signal 9 at its start"):
        launch.start(folder, held=False)


def test_one_that_was_killed_is_replaced(run, one):
    os.kill(one, signal.SIGKILL)
    with run() as vm:
        assert [parent(vm)] == zygotes() != [one]
        assert vm.exec(["true"]).status == 0


def test_one_that_is_stuck_keeps_nobody_waiting(run, one, monkeypatch):
    monkeypatch.setattr(zygote, "_WAIT", 0.3)
    os.kill(one, signal.SIGSTOP)
    with run() as vm:
        assert parent(vm) == os.getpid()
        os.kill(one, signal.SIGCONT)
        time.sleep(0.3)  # what it forks now has nobody who says "go"
        assert vm.exec(["true"]).status == 0
    assert not (vm.folder / "worker.log").exists()


def test_several_at_once(run, one):
    vms = []
    threads = [threading.Thread(target=lambda: vms.append(run())) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [parent(vm) for vm in vms] == [one] * 3
    for vm in vms:
        with vm:
            assert vm.exec(["hostname"]).status == 0
    until(lambda: not Path(f"/proc/{one}/task/{one}/children").read_text())  # it has reaped them


def test_another_version_is_not_asked(one, monkeypatch):
    here = zygote.key(zygote.place())
    assert (zygote.folder() / f"{here}.sock").exists()
    monkeypatch.setattr(place, "__version__", "0.0.other")
    assert zygote.key(zygote.place()) != here
    assert zygote.ask([], {}, 1, {}) is None


def test_other_code_is_not_run(allowed, tmp_path):
    """A file that it has imported changes: it gives no more workers."""
    module = tmp_path / "code.py"
    module.write_text("old = True\n")
    files = {str(module): zygote._look(str(module))}
    assert not zygote._changed(files)
    os.utime(module)
    assert zygote._changed(files)
    files = {str(module): zygote._look(str(module))}
    module.unlink()
    assert zygote._changed(files)


def test_changed_code_ends_it(one, monkeypatch):
    """The same with the whole of it: a file of this process's own stands for hostel's."""
    source = Path(zygote.__file__)
    now = source.stat()
    os.utime(source, ns=(now.st_atime_ns, now.st_mtime_ns))  # a new ctime
    assert zygote.ask(["/none"], {}, 2, {}) is None
    until(lambda: not zygotes() and not ready())


def test_another_place_has_another(one):
    """Who has other limits isn't served by the zygote of those who haven't."""
    script = ("import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (500, 500)); from hostel.vm import zygote; "
              "print(zygote.ask(['/none'], {}, 2, {}))")  # fmt: skip
    assert subprocess.check_output([sys.executable, "-c", script], text=True) == "None\n"
    # nor who says that it is at another place than it is
    script = script.replace("print", "import os; name = os.listdir(zygote.folder())[0].removesuffix('.sock'); "
                            "zygote.key = lambda here: name; print")  # fmt: skip
    assert subprocess.check_output([sys.executable, "-c", script], text=True) == "None\n"
    forked = zygote.ask(["/none"], {}, 2, {})
    assert forked and forked.wait() == 1
    forked.close()


@pytest.mark.skipif(os.geteuid() != 0, reason="another user is needed")
def test_another_user_is_not_served(one):
    os.chmod(zygote.folder(), 0o777)
    (socket,) = zygote.folder().glob("*.sock")
    socket.chmod(0o777)
    script = (f"import os, socket; s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET); os.setuid(12345); "
              f"s.connect({str(socket)!r}); s.send(b'{{}}'); print(s.recv(100))")  # fmt: skip
    result = subprocess.run([sys.executable, "-c", script], text=True, capture_output=True)
    assert result.stdout in ("", "b''\n") and (result.stdout or "Error" in result.stderr)


def test_it_ends_when_nobody_needs_it(allowed, monkeypatch):
    monkeypatch.setenv("HOSTEL_ZYGOTE_SECONDS", "0.5")
    assert zygote.start()
    until(lambda: not zygotes() and not ready())


def test_there_is_one_only(one):
    for _ in range(3):
        assert not zygote.start()
    assert zygotes() == [one]


def test_none_is_wanted(guests, allowed, monkeypatch):
    monkeypatch.setenv("HOSTEL_ZYGOTE_SECONDS", "0")
    with VM.run("micro", memory="128M"):
        assert not zygote.folder().exists() and not zygotes()


def test_it_owns_nothing(one):
    assert "Threads:\t1" in lines(one, "status")
    assert os.readlink(f"/proc/{one}/cwd") == "/"
    kinds = sorted(os.readlink(entry).partition(":")[0] for entry in Path(f"/proc/{one}/fd").iterdir())
    assert kinds == ["/dev/null"] * 3 + ["pipe"] * 2 + ["socket"]
