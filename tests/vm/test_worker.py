"""The worker around a fake machine: its life, its control socket, its death."""

import json
import os
import re
import signal
import socket
import stat
import subprocess
import tempfile
import threading
import time

import pytest

from hostel.base.errors import MachineError
from hostel.base.linux import identity
from hostel.client.connection import Connection, connect
from hostel.client.vm import VM
from hostel.spec import stream
from hostel.spec.vm import VmSpec
from hostel.vm import launch, store


def until(condition, seconds=10):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it doesn't happen"
        time.sleep(0.005)


def type_line(vm, text):
    with Connection(vm.folder) as connection:
        sock, _ = connection.upgrade("console")
        sock.sendall(stream.frame(stream.STDIN, text.encode() + b"\n"))


def files(vm):
    return sorted(os.listdir(vm.folder))


def test_a_life(start):
    vm = start()
    assert vm.state.state == "running"
    assert vm.state.pid != os.getpid()
    assert stat.S_IMODE(os.stat(vm.folder / "control.sock").st_mode) == 0o600
    assert vm.inspect()["state"]["state"] == "running"
    until(lambda: b"fake guest" in vm.logs())
    type_line(vm, "poweroff")
    state = vm.wait(10)
    assert (state.state, state.reason) == ("stopped", "poweroff")
    assert vm.state == state
    assert files(vm) == ["console.log", "lock", "state.json", "vm.toml", "worker.log"]
    assert (vm.folder / "worker.log").read_text() == ""
    vm.start()
    assert vm.state.state == "running"
    vm.kill()
    assert vm.state.state == "stopped" and vm.state.reason == "killed"
    vm.rm()
    assert VM.list() == []


def test_stop_presses_the_button(start):
    vm = start()
    vm.stop(timeout=5)
    assert vm.state.reason == "poweroff"


def test_pause_and_resume_are_states_and_events(start):
    vm = start()
    with Connection(vm.folder) as watcher:
        watcher.call("subscribe")
        vm.pause()
        assert vm.state.state == "paused"
        vm.resume()
        assert vm.state.state == "running"
        vm.kill()
        seen = [(event["event"], event.get("state")) for event in watcher.events(timeout=10)]
    assert seen == [("state", "paused"), ("state", "running"), ("stopped", None)]


NO_ROOM = "no room for disk /x: the file system is full"


def test_without_room_for_a_disk_it_stands_still_until_there_is(start):
    vm = start()
    with Connection(vm.folder) as watcher:
        watcher.call("subscribe")
        type_line(vm, "full 2")
        until(lambda: vm.state.state == "paused")
        assert vm.state.reason == NO_ROOM
        until(lambda: vm.state.state == "running")
        assert vm.state.reason == ""
        vm.kill()
        seen = [(event["event"], event.get("state"), event.get("reason")) for event in watcher.events(timeout=10)]
    assert seen == [("state", "paused", NO_ROOM), ("state", "running", None), ("stopped", None, "killed")]


def test_resume_looks_for_room(start):
    vm = start()
    type_line(vm, "full 1000")
    until(lambda: vm.state.state == "paused")
    with pytest.raises(MachineError, match=NO_ROOM):
        vm.resume()
    assert vm.state.state == "paused"
    type_line(vm, "full 1")
    vm.resume()
    assert vm.state.state == "running"


def test_who_is_paused_stays_so_when_there_is_room(start):
    vm = start()
    type_line(vm, "full 1000")
    until(lambda: vm.state.state == "paused")
    vm.pause()
    assert vm.state.reason == ""
    type_line(vm, "full 1")
    type_line(vm, "echo there")
    until(lambda: b"there" in vm.logs())
    vm.resume()
    assert vm.state.state == "running"
    vm.pause()
    vm.reset()
    assert vm.state.state == "paused"


def test_a_killed_worker_is_seen_and_removed(start):
    vm = start()
    os.kill(vm.state.pid, signal.SIGKILL)
    until(lambda: vm.state.state == "died")
    with pytest.raises(MachineError, match="'one' is not running"):
        vm._call("status")
    with pytest.raises(MachineError, match="exists already .died.*hostel rm one"):
        start()
    vm.start()
    assert vm.state.state == "running"
    os.kill(vm.state.pid, signal.SIGKILL)
    until(lambda: vm.state.state == "died")
    vm.rm()
    start().rm(force=True)
    assert VM.list() == []


def test_a_second_worker_for_one_folder_is_refused_and_harms_nothing(start):
    vm = start()
    with pytest.raises(MachineError, match="'one' is running"):
        vm.start()
    with pytest.raises(MachineError, match="running.*rm --force"):
        vm.rm()
    assert vm.state.state == "running"
    assert vm.inspect()["name"] == "one"


def test_a_worker_that_fails_to_start_says_why(home, monkeypatch, fake):
    folder = store.create(VmSpec(name="one", kernel="/none"))
    (folder.path / "vm.toml").write_text("version = 1\ncpus = 'many'\nkernel = '/none'\n")
    with pytest.raises(MachineError, match="vm.toml"):
        launch.start(folder, held=False)
    assert folder.state().state == "stopped"
    monkeypatch.setattr(launch, "WORKER", "no_such_module")
    with pytest.raises(MachineError, match="ended with status 1 at its start.*no_such_module"):
        launch.start(folder, held=False)


def test_a_held_vm_ends_with_who_holds_it(home, fake):
    folder = store.create(VmSpec(name="one", kernel="/none", agent=False, remove=True))
    leash = launch.start(folder, held=True)
    assert VM(folder).inspect()["state"]["state"] == "running"
    leash.close()
    until(lambda: not folder.path.exists())


def test_a_released_vm_lives_on(home, fake):
    folder = store.create(VmSpec(name="one", kernel="/none", agent=False))
    leash = launch.start(folder, held=True)
    leash.release()
    time.sleep(0.1)
    assert VM(folder).inspect()["state"]["state"] == "running"


def test_a_hung_worker_is_killed(start):
    vm = start()
    os.kill(vm.state.pid, signal.SIGSTOP)
    vm.kill()
    assert (vm.state.state, vm.state.reason) == ("stopped", "killed")
    vm.rm()


def test_sigterm_ends_it_in_order(start):
    vm = start()
    os.kill(vm.state.pid, signal.SIGTERM)
    assert vm.wait(10).reason == "ended by SIGTERM"
    assert vm.state.state == "stopped"


def test_resets_go_on_and_a_guest_that_only_resets_is_stopped(start):
    vm = start()
    type_line(vm, "reset")
    until(lambda: vm.logs().count(b"fake guest") == 2)
    assert vm.inspect()["statistics"]["resets"] == 1
    type_line(vm, "crash")
    until(lambda: vm.logs().count(b"fake guest") == 3)
    type_line(vm, "crash")
    assert "doesn't boot: 3 resets in a row, by a triple fault" in vm.wait(10).reason


# -- the socket


def talk(vm, data):
    """Everything the worker answers to ``data`` until it is quiet or closes."""
    with connect(str(vm.folder)) as sock:
        sock.settimeout(5)
        sock.sendall(data)
        sock.shutdown(socket.SHUT_WR)
        answer = b""
        while part := sock.recv(65536):
            answer += part
    return [json.loads(line) for line in answer.splitlines()]


@pytest.mark.parametrize(
    "line, code",
    [
        (b"garbage", -32700), (b"{", -32700), (b"\xff\xfe", -32700), (b"[]", -32600), (b"1", -32600),
        (b'{"id": 1}', -32600), (b'{"method": 5, "id": 1}', -32600),
        (b'{"method": "status", "id": 1, "params": {"a": ' + b"[" * 100000, -32700),
        (b'{"method": "nothing", "id": 1}', -32601), (b'{"method": "_end", "id": 1}', -32601),
        (b'{"method": "stop", "params": {"grace": "x"}, "id": 1}', -32602),
        (b'{"method": "stop", "params": {"grave": 1}, "id": 1}', -32602),
        (b'{"method": "exec", "params": {"argv": []}, "id": 1}', 1),
    ],
)
def test_bad_requests(start_once, line, code):
    replies = talk(start_once, line + b"\n")
    assert [reply["error"]["code"] for reply in replies] == [code]
    assert start_once.inspect()["state"]["state"] == "running"


@pytest.fixture(scope="module")
def start_once(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOSTEL_HOME", str(tmp_path_factory.mktemp("home") / ("x" * 100)))  # longer than a socket address
        patch.setenv("PYTHONPATH", os.path.dirname(__file__))
        patch.setattr(launch, "WORKER", "fake_worker")
        folder = store.create(VmSpec(name="one", kernel="/none"))
        launch.start(folder, held=False)
        yield VM(folder)
        launch.kill(folder)


def test_an_endless_line_closes_the_connection(start_once):
    with connect(str(start_once.folder)) as sock:
        sock.settimeout(10)
        with pytest.raises((BrokenPipeError, ConnectionResetError)):
            for _ in range(1000):
                sock.sendall(b"x" * 65536)
    assert start_once.inspect()["state"]["state"] == "running"


def test_requests_in_pieces_and_in_bunches(start_once):
    line = b'{"jsonrpc": "2.0", "method": "status", "id": "a"}\n'
    with connect(str(start_once.folder)) as sock:
        for byte in line:
            sock.sendall(bytes([byte]))
        sock.sendall(line * 50)
        reader = sock.makefile("rb")
        for _ in range(51):
            reply = json.loads(reader.readline())
            assert reply["id"] == "a" and reply["result"]["state"] == "running" and reply["jsonrpc"] == "2.0"


def test_a_frame_that_is_too_long_closes_the_stream(start_once):
    with Connection(start_once.folder) as connection:
        sock, _ = connection.upgrade("console")
        sock.settimeout(10)
        sock.sendall(stream.HEADER.pack(stream.STDIN, 1 << 30))
        while sock.recv(65536):
            pass
    assert start_once.inspect()["state"]["state"] == "running"


def test_many_clients_come_and_go(start_once):
    socks = [connect(str(start_once.folder)) for _ in range(200)]
    for sock in socks:
        sock.close()
    until(lambda: start_once.inspect()["statistics"]["control"]["connections"] < 5)


# -- confinement


def test_the_worker_is_confined(start):
    vm = start()
    status = dict(
        line.split(":\t", 1) for line in open(f"/proc/{vm.state.pid}/status").read().splitlines() if ":\t" in line
    )
    assert status["NoNewPrivs"] == "1"
    assert status["Seccomp"] == "2"
    limits = subprocess.check_output(["cat", f"/proc/{vm.state.pid}/limits"], text=True)
    assert any(line.split()[4:6] == ["0", "0"] for line in limits.splitlines() if line.startswith("Max core"))
    assert vm.inspect()["confinement"]["seccomp"] is True


def test_a_worker_that_misbehaves_gets_nowhere(start, tmp_path):
    vm = start()
    neighbour = tmp_path / "neighbour"
    neighbour.mkdir(mode=0o700)
    assert b"fake guest" in read_console(vm, b"# ")
    type_line(vm, f"misbehave {neighbour}")
    said = read_console(vm, b"worked: ")
    assert re.search(rb"tried \d\d, worked: none", said + read_console(vm, b"none")), said
    assert list(neighbour.iterdir()) == [] and neighbour.stat().st_mode & 0o777 == 0o700
    assert vm.state.state == "running"


@pytest.mark.parametrize("call", ["execve", "ptrace", "mount", "unshare", "bpf", "keyctl", "io_uring_setup", "setns"])
def test_a_worker_that_breaks_out_is_killed_and_reported(start, call):
    vm = start()
    type_line(vm, f"breach {call}")
    until(lambda: vm.state.state == "died")


def test_the_worker_has_no_capabilities(start):
    vm = start()
    text = open(f"/proc/{vm.state.pid}/status").read()
    for kind in ("CapInh", "CapPrm", "CapEff", "CapAmb"):
        assert re.search(rf"{kind}:\t0+$", text, re.M), kind
    holds = vm.inspect()["confinement"]
    assert holds["capabilities"] is False
    for name in holds["namespaces"]:
        assert os.readlink(f"/proc/{vm.state.pid}/ns/{name}") != os.readlink(f"/proc/self/ns/{name}")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root's worker becomes another user")
def test_roots_worker_is_a_user_of_its_own(start, monkeypatch):
    with tempfile.TemporaryDirectory(dir="/tmp") as home:
        os.chmod(home, 0o755)  # pytest's own folders are closed to others
        monkeypatch.setenv("HOSTEL_HOME", home)
        vm, other = start(remove=True), start("two")
        user = vm.inspect()["confinement"]["user"]
        assert user == identity.number_for(vm.folder) != other.inspect()["confinement"]["user"]
        for kind in ("Uid", "Gid"):
            assert re.search(rf"{kind}:((\t{user}){{4}})$", open(f"/proc/{vm.state.pid}/status").read(), re.M)
        assert {path.stat().st_uid for path in (vm.folder, *vm.folder.iterdir())} == {user}
        type_line(vm, "poweroff")
        until(lambda: not (vm.folder / "lock").exists())
        # The worker empties its folder, and who lists next removes it.
        until(lambda: [vm.name for vm in VM.list()] == os.listdir(os.path.join(home, "vms")) == ["two"])
        other.kill()
        other.start()  # root's again, then given away again
        other.kill()
        other.rm()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root's worker becomes another user")
def test_roots_worker_stays_roots_where_another_could_not_get_to_its_folder(start, home):
    home.mkdir(mode=0o700)
    vm = start()
    assert vm.inspect()["confinement"]["user"] == 0
    assert {path.stat().st_uid for path in (vm.folder, *vm.folder.iterdir())} == {0}


def test_the_worker_inherits_no_files(start, tmp_path):
    stray = os.open(tmp_path, os.O_RDONLY)
    os.set_inheritable(stray, True)
    vm = start()
    os.close(stray)
    targets = [os.readlink(f"/proc/{vm.state.pid}/fd/{fd}") for fd in os.listdir(f"/proc/{vm.state.pid}/fd")]
    assert str(tmp_path) not in targets


# -- streams


def read_console(vm, want, replay=True, seconds=10):
    seen = b""
    with Connection(vm.folder) as connection:
        sock, early = connection.upgrade("console", replay=replay)
        sock.settimeout(seconds)
        reader = stream.FrameReader()
        frames = list(reader.feed(early))
        while want not in seen:
            for kind, payload in frames:
                assert kind == stream.STDOUT
                seen += payload
            if want not in seen:
                data = sock.recv(65536)
                assert data, seen
                frames = list(reader.feed(data))
    return seen


def test_the_console_is_shared(start):
    vm = start()
    assert b"fake guest\r\n# " in read_console(vm, b"# ")
    type_line(vm, "echo one")
    assert read_console(vm, b"one").startswith(b"fake guest")
    until(lambda: vm.logs().endswith(b"one\r\n# "))
    assert read_console(vm, b"# ", replay=False) == b"# "  # a newcomer sees the prompt


def test_a_flood_reaches_a_reader_whole(start):
    vm = start()
    lines = 40000
    with Connection(vm.folder) as connection:
        sock, _ = connection.upgrade("console")
        sock.settimeout(30)
        sock.sendall(stream.frame(stream.STDIN, b"flood %d\n" % lines))
        reader = stream.FrameReader()
        seen = bytearray()
        while seen.count(b"nearly so") < lines:  # the guest's greeting may come first
            for _, payload in reader.feed(sock.recv(65536)):
                seen += payload
            time.sleep(0.0001)  # slower than the guest
    numbers = [int(number) for number in re.findall(rb"(\d{8}): a line", seen)]
    assert numbers == list(range(lines))


def test_a_stuck_reader_does_not_stop_the_guest(start, monkeypatch):
    vm = start()
    with Connection(vm.folder) as stuck:
        stuck.upgrade("console")
        type_line(vm, "flood 60000")  # 5 MB; the stuck one's buffer and socket hold one or two
        until(lambda: b"00059999" in vm.logs(), seconds=30)
    assert vm.inspect()["state"]["state"] == "running"


def test_logs_are_bounded(start):
    vm = start()
    type_line(vm, "flood 160000")  # 13 MB
    until(lambda: b"00159999" in vm.logs(), seconds=60)
    assert len(vm.logs()) <= 8 << 20
    assert sorted(name for name in files(vm) if name.startswith("console")) == ["console.log", "console.log.1"]


# -- commands, through the real agent


def test_commands(start):
    vm = start(agent=True)
    result = vm.exec(["sh", "-c", "cat; echo err >&2; exit 3"], input="in\n")
    assert (result.status, result.stdout, result.stderr) == (3, "in\n", "err\n")
    assert vm.exec(["/no/such"]).status == 127
    assert "/no/such: can't run it: No such file or directory" in vm.exec(["/no/such"]).stderr
    assert vm.exec(["/etc/passwd"]).status == 126
    assert vm.exec(["sh", "-c", "kill -9 $$"]).status == 137
    assert vm.exec(["sh", "-c", "echo $A; pwd"], env={"A": "b c"}, cwd="/tmp").stdout == "b c\n/tmp\n"
    assert vm.exec(["true"], cwd="/no/such").status == 125
    with pytest.raises(MachineError, match="'false' ended with status 1"):
        vm.exec(["false"], check=True)
    assert vm.exec(["printf", "\\377"], text=False).stdout == b"\xff"
    with pytest.raises(MachineError, match="UTF-8"):
        vm.exec(["echo", "\udcff"])


def test_a_command_that_ends_before_its_input_came(start):
    vm = start(agent=True)
    for _ in range(50):
        result = vm.exec(["sh", "-c", "echo early; exit 4"], input=b"x" * 300000)
        assert (result.status, result.stdout) == (4, "early\n")


def test_a_hundred_megabytes_both_ways(start):
    vm = start(agent=True)
    data = os.urandom(1 << 20) * 100
    result = vm.exec(["cat"], input=data, text=False)
    assert result.status == 0
    assert result.stdout == data


def test_commands_side_by_side(start):
    start(agent=True)
    results = {}

    def work(i):
        results[i] = VM.get("one").exec(["sh", "-c", f"cat; echo {i}"], input=str(i) * 50000).stdout

    threads = [threading.Thread(target=work, args=(i,)) for i in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert results == {i: str(i) * 50000 + f"{i}\n" for i in range(20)}


def test_a_client_that_goes_hangs_its_command_up(start, tmp_path):
    vm = start(agent=True)
    with Connection(vm.folder) as connection:
        connection.call("wait_agent", timeout=10)
        sock, _ = connection.upgrade("exec", argv=["sh", "-c", f"trap 'echo > {tmp_path}/hup; exit' HUP; cat"])
        sock.sendall(stream.frame(stream.STDIN, b"x\n"))
        assert sock.recv(100)
    until(lambda: (tmp_path / "hup").exists())
    assert vm.exec(["echo", "next"]).stdout == "next\n"


def test_a_slow_client_stops_its_command_only(start):
    vm = start(agent=True)
    with Connection(vm.folder) as connection:
        connection.call("wait_agent", timeout=10)
        connection.upgrade("exec", argv=["cat", "/dev/zero"])
        time.sleep(0.3)
        before = vm.inspect()["statistics"]["exec"]["received"]
        assert vm.exec(["echo", "next"]).stdout == "next\n"
        time.sleep(0.3)
        assert vm.inspect()["statistics"]["exec"]["received"] - before < 4 << 20


def test_the_end_of_the_vm_is_the_end_of_its_commands(start):
    vm = start(agent=True)
    thread = threading.Thread(target=lambda: (time.sleep(0.3), VM.get("one").kill()))
    thread.start()
    with pytest.raises(MachineError, match="'one' ended: killed"):
        vm.exec(["sleep", "60"])
    thread.join()


def test_a_reset_loses_commands_and_takes_new_ones(start):
    vm = start(agent=True)
    thread = threading.Thread(target=lambda: (time.sleep(0.3), VM.get("one").reset()))
    thread.start()
    result = vm.exec(["sleep", "60"])
    assert result.status == 125 and "reset while the command ran" in result.stderr
    thread.join()
    assert vm.exec(["echo", "again"]).stdout == "again\n"


def test_a_detached_command_ends_its_vm(start):
    vm = start(agent=True, command=["sh", "-c", "echo out; exit 5"])
    state = vm.wait(10)
    assert (state.exit_status, state.reason) == (5, "its command ended with status 5")
    assert b"out\n" in vm.logs()


def test_without_an_agent_commands_are_refused(start):
    vm = start()
    with pytest.raises(MachineError, match="takes no commands"):
        vm.exec(["true"])
