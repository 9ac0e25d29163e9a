"""Forks of real guests: copies that go on where the original is, each a VM of its own."""

import contextlib
import http.client
import os
import signal
import socket
import threading
import time

import pytest
from copies import all_gone, date, go_on, left, names, sh, start_checks, wait

from hostel import VM
from hostel.base.errors import HostelError, MachineError, UsageError
from hostel.block.qcow2 import create
from hostel.client.network import Network
from hostel.net import networks
from hostel.vm import launch


@pytest.fixture
def disk(tmp_path):
    create.create(tmp_path / "disk.qcow2", 16 << 20, create.Options())
    return f"{tmp_path / 'disk.qcow2'},format=qcow2"


def run(**more):
    return VM.run("micro", **{"name": "box", "memory": "128M", "networks": ["none"], "rm": True} | more)


def free_port():
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


def fetch(port):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    with contextlib.closing(connection):
        connection.request("GET", "/name")
        return connection.getresponse().read().decode().strip()


def host_port(vm, number=0):
    return int(vm.spec.nics[0].ports[number].rpartition(":")[0].rpartition(":")[2])


def test_copies_go_on_and_are_of_their_own(clean, disk):
    with run(networks=["nat"], disks=[disk], devices=["rng"]) as vm:
        start_checks(vm, 1, "/dev/vda")
        sh(vm, "echo then > /tmp/word; echo 0123456789abcdef0123456789abcdef > /etc/machine-id; wait-network 60; "
               "echo disk | dd of=/dev/vda seek=100 conv=fsync 2>/dev/null")
        go_on(vm)
        one = vm.fork(name="single")
        three = vm.fork(3)
        with one, three:
            copies = [*one, *three]
            assert [copy.name for copy in copies] == ["single", "box-1", "box-2", "box-3"]
            assert names() == ["box", "box-1", "box-2", "box-3", "single"]
            everybody = [vm, *copies]
            for copy in everybody:
                out = sh(copy, "cat /tmp/word; dd if=/dev/vda skip=100 count=1 2>/dev/null | head -n 1")
                assert out == "then\ndisk\n"
                go_on(copy)
                assert copy.state.state == "running" and abs(date(copy) - time.time()) < 3
            for copy in everybody:  # from here on each by itself, in memory and on disk
                write = "dd of=/dev/vda seek=100 conv=fsync 2>/dev/null"
                sh(copy, f"echo {copy.name} > /tmp/word; echo {copy.name} | {write}")
            for copy in everybody:
                out = sh(copy, "cat /tmp/word; dd if=/dev/vda skip=100 count=1 2>/dev/null | head -n 1")
                assert out.split() == [copy.name] * 2
            for copy in copies:
                sh(copy, "wait-network 60")
                assert sh(copy, "hostname") == f"{copy.name}\n"
                assert sh(copy, "cat /sys/class/net/eth0/address").strip() == copy.spec.nics[0].mac
                sh(copy, "ping -c 1 -W 20 10.0.2.2")
            for what in ("cat /etc/machine-id", "cat /sys/class/net/eth0/address", "head -c 16 /dev/urandom | md5sum",
                         "cat /proc/sys/kernel/random/uuid"):  # fmt: skip
                assert len({sh(copy, what) for copy in everybody}) == 5
            pids = {copy.state.pid for copy in everybody}
            assert len(pids) == 5
            # one ends, one is killed, one is removed: the others don't mind
            three[0].stop()
            os.kill(three[1].state.pid, signal.SIGKILL)
            wait(lambda: three[1].state.state == "died")
            three[2].rm(force=True)
            assert three[0].state.state == "stopped" and three[0].state.reason == "poweroff"
            for copy in (vm, one[0]):
                go_on(copy)
        assert names() == ["box"]
        go_on(vm)


def test_its_ports_are_chosen_or_given(clean):
    ports = [free_port(), free_port()]
    with run(networks=["nat"], ports=[f"{ports[0]}:80"]) as vm:
        sh(vm, "wait-network 60; mkdir /tmp/www; echo box > /tmp/www/name; httpd -h /tmp/www")
        assert fetch(ports[0]) == "box"
        with vm.fork(2) as chosen, vm.fork(ports=[f"{ports[1]}:80"], name="given") as given:
            assert host_port(given[0]) == ports[1]
            everybody = [vm, *chosen, *given]
            assert len({host_port(copy) for copy in everybody}) == 4
            for copy in everybody:
                sh(copy, f"wait-network 60; echo {copy.name} > /tmp/www/name")
            for copy in everybody:
                assert fetch(host_port(copy)) == copy.name
            with pytest.raises(HostelError, match="another program has it|is forwarded|in use"):
                vm.fork(ports=[f"{ports[0]}:80"])
            with pytest.raises(UsageError, match="ports can be given to one copy"):
                vm.fork(2, ports=[f"{free_port()}:80"])
            assert names() == ["box", "box-1", "box-2", "given"]
            vm.kill()
            for copy in (*chosen, *given):
                assert fetch(host_port(copy)) == copy.name
        for port in ports:  # nobody has them any more
            socket.create_server(("127.0.0.1", port)).close()


def test_forks_of_one_that_stands_still_make_no_chain(clean, home, disk):
    """Its disk's top is empty after the first: copies stand on what is below, and don't see what it writes later."""
    word = "dd if=/dev/vda skip=100 count=1 iflag=direct 2>/dev/null | head -n 1"
    write = "dd of=/dev/vda seek=100 oflag=direct conv=sync 2>/dev/null"
    with run(disks=[disk]) as vm:
        sh(vm, f"echo first | {write}")
        vm.pause()
        layers = []
        with contextlib.ExitStack() as stack:
            copies = []
            for _ in range(4):
                copies += stack.enter_context(vm.fork(1))
                layers.append(sorted(os.listdir(home / "disks" / "box")))
                copies[-1].resume()
                assert sh(copies[-1], word) == "first\n"
            assert layers[0] == layers[1] == layers[2] == layers[3] and len(layers[0]) == 1
            sh(copies[0], f"echo {copies[0].name} | {write}")
            vm.resume()
            sh(vm, f"echo later | {write}; sync")
            assert [sh(copy, word) for copy in copies] == [f"{copies[0].name}\n", *["first\n"] * 3]
            vm.pause()
            copies += stack.enter_context(vm.fork(1))  # of what it has written since
            assert len(os.listdir(home / "disks" / "box")) == 2
            copies[-1].resume()
            assert sh(copies[-1], word) == "later\n"
            vm.rm(force=True)
            assert [sh(copy, word) for copy in copies] == [f"{copies[0].name}\n", *["first\n"] * 3, "later\n"]


def test_the_original_goes_and_copies_live_on(clean, home, disk):
    vm = run(disks=[disk], networks=["nat"], rm=False, detach=True)
    sh(vm, "echo base | dd of=/dev/vda conv=fsync 2>/dev/null; echo word > /tmp/word")
    copies = vm.fork(2, detach=True)
    nested = copies[0].fork(2, name="deep%d", detach=True)
    assert [copy.name for copy in nested] == ["deep1", "deep2"]
    vm.rm(force=True)
    assert names() == ["box-1", "box-2", "deep1", "deep2"]
    everybody = [*copies, *nested]
    for copy in everybody:
        assert sh(copy, "cat /tmp/word; head -n 1 /dev/vda") == "word\nbase\n"
        sh(copy, f"echo {copy.name} | dd of=/dev/vda conv=fsync 2>/dev/null")
    copies[0].rm(force=True)
    for copy in everybody[1:]:
        assert sh(copy, "hostname; head -n 1 /dev/vda") == f"{copy.name}\n" * 2
    for copy in everybody[1:]:
        copy.reset()
        assert sh(copy, "head -n 1 /dev/vda") == f"{copy.name}\n"
        copy.stop()
        assert copy.state.state == "stopped"
        copy.start()  # from its own disk
        assert sh(copy, "hostname; head -n 1 /dev/vda").splitlines()[-1] == copy.name
        sh(copy, "wait-network 60")
        assert copy.spec.nics[0].mac == sh(copy, "cat /sys/class/net/eth0/address").strip()
    for copy in everybody[1:]:
        copy.rm(force=True)
    assert left(home) == []
    all_gone(home)


def test_snapshots_of_copies_and_copies_of_snapshots(clean, disk):
    with run(disks=[disk]) as vm:
        sh(vm, "echo one > /tmp/word; echo one | dd of=/dev/vda conv=fsync 2>/dev/null")
        vm.snapshot("one")
        with vm.fork(2) as copies:
            for copy in copies:
                sh(copy, f"echo {copy.name} > /tmp/word; echo {copy.name} | dd of=/dev/vda conv=fsync 2>/dev/null")
                own = copy.snapshot("own")
                assert own.full_name == f"{copy.name}@own" and own.manifest.parent == "box@one"
                assert len(own.manifest.memory) == 2 and own.size() < 6_000_000  # what changed only
                sh(copy, "echo lost > /tmp/word; echo lost | dd of=/dev/vda conv=fsync 2>/dev/null")
            vm.snapshots()[0].remove()
            for copy in copies:
                copy.revert("own")
                assert sh(copy, "cat /tmp/word; head -n 1 /dev/vda; hostname") == f"{copy.name}\n" * 3
                copy.suspend()
                copy.resume()
                with copy.fork() as deep:
                    assert sh(deep[0], "cat /tmp/word; head -n 1 /dev/vda") == f"{copy.name}\n" * 2
            again = copies[1].snapshot("again")
            copies[1].revert("own")
            copies[1].revert(again)
            assert sh(copies[1], "cat /tmp/word") == "box-2\n"
            with VM.run_from("box-2@own") as other, other.fork() as last:
                assert sh(last[0], "cat /tmp/word; hostname") == f"box-2\n{last[0].name}\n"
                with pytest.raises(MachineError, match="in use"):
                    copies[1].snapshots()[0].remove()


def test_commands_that_ran_end_in_copies(clean):
    with run() as vm:
        ended = {}

        def command():
            ended["box"] = vm_again.exec(
                ["sh", "-c", "trap 'echo hup > /tmp/hup; exit 1' HUP; echo $$ > /tmp/pid; while [ ! -e /tmp/stop ]; do "
                 "sleep 0.1; done; echo done"], timeout=120
            )  # fmt: skip

        vm_again = VM.get("box")
        thread = threading.Thread(target=command)
        thread.start()
        wait(lambda: sh(vm, "cat /tmp/pid 2>/dev/null || true"))
        sh(vm, "(while :; do sleep 1; done) > /dev/null 2>&1 & echo $! > /tmp/background")
        with vm.fork(2) as copies:
            for copy in copies:
                wait(lambda copy=copy: sh(copy, "cat /tmp/hup 2>/dev/null || true") == "hup\n")
                wait(lambda copy=copy: sh(copy, "test -d /proc/$(cat /tmp/pid) || echo gone") == "gone\n")
                sh(copy, "test -d /proc/$(cat /tmp/background)")  # it was nobody's
            sh(vm, "test ! -e /tmp/hup; touch /tmp/stop")
            thread.join(60)
            assert ended["box"].status == 0 and ended["box"].stdout == "done\n"


def test_of_a_paused_one_and_many_at_once(clean):
    with run(cpus=2) as vm:
        sh(vm, "echo word > /tmp/word")
        vm.pause()
        with vm.fork(2) as copies:
            for copy in copies:
                assert copy.state.state == "paused"
                copy.resume()
                assert sh(copy, "cat /tmp/word; hostname") == f"word\n{copy.name}\n"
                assert abs(date(copy) - time.time()) < 3
            assert vm.state.state == "paused"
        vm.resume()
        made, failed = [], []

        def fork():
            try:
                made.append(VM.get("box").fork(3, detach=True))
            except HostelError as error:
                failed.append(error)

        threads = [threading.Thread(target=fork) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(120)
        assert not failed
        everybody = sorted(copy.name for copies in made for copy in copies)
        assert everybody == sorted(f"box-{number}" for number in range(1, 10))
        for name in everybody:
            assert sh(VM.get(name), "hostname; nproc") == f"{name}\n2\n"
        assert sh(vm, "cat /tmp/word") == "word\n"


def test_on_a_named_network(clean):
    Network.create("lab")
    with run(networks=["lab"]) as vm:
        sh(vm, "wait-network 60")
        with vm.fork(2, name="peer%d") as copies:
            for copy in copies:
                sh(copy, "wait-network 60")
            address = {card["name"]: card["address"] for card in Network.get("lab").cards()}
            assert sorted(address) == ["box", "peer1", "peer2"] and len(set(address.values())) == 3
            sh(copies[0], "ping -c 1 -W 20 peer2 && ping -c 1 -W 20 box")
            sh(copies[1], "ping -c 1 -W 20 peer1.lab")
            sh(vm, "ping -c 1 -W 20 peer1 && ping -c 1 -W 20 peer2")
    wait(lambda: not networks.find("lab").running())
    Network.get("lab").rm()


def test_devices_work_in_copies(clean, disk, tmp_path):
    shared = tmp_path / "shared"
    shared.mkdir()
    (shared / "file").write_text("on the host\n")
    with run(
        cpus=4, memory="256M", disks=[f"{disk},cache=none"], devices=["rng", "balloon", "port:org.test"], vsock="",
        shares=[f"{shared}:/work"], networks=["nat"],
    ) as vm:
        start_checks(vm, 4, "/dev/vda")
        sh(vm, "(exec 3>>/work/log; while :; do echo $(hostname) >&3; sleep 0.1; done) >/dev/null 2>&1 &")
        go_on(vm, 4)
        with vm.fork(2) as copies:
            for copy in (*copies, vm):
                go_on(copy, 4)
                assert sh(copy, "cat /work/file; head -c 100 /dev/hwrng | wc -c; nproc") == "on the host\n100\n4\n"
                assert copy.balloon("200M")["target"] == 200 << 20
                assert (copy.folder / "vsock.sock").exists()
                sh(copy, f"echo {copy.name} > /work/{copy.name}; wait-network 60; ping -c 1 -W 20 10.0.2.2")
                assert (shared / copy.name).read_text() == f"{copy.name}\n"
                cards = copy.inspect()["statistics"]["cards"]
                assert not any(card.get("broken") for card in cards.values()), cards
            wait(lambda: {"box-1", "box-2"} <= set((shared / "log").read_text().split()))
            copies[0].reset()
            assert sh(copies[0], "cat /work/file; nproc") == "on the host\n4\n"
            copies[1].suspend()
            copies[1].resume()
            go_on(copies[1], 4)


def test_the_console_and_logs_of_a_copy(clean):
    with run() as vm:
        sh(vm, "echo before > /dev/console")
        with vm.fork() as copies:
            sh(copies[0], "echo of the copy > /dev/console")
            sh(vm, "echo of the original > /dev/console")
            wait(lambda: b"of the copy" in copies[0].logs())
            wait(lambda: b"of the original" in vm.logs())
            assert b"of the original" not in copies[0].logs() and b"of the copy" not in vm.logs()


def test_what_cannot_be_forked(clean, home):
    with run(rm=False) as vm:
        sh(vm, "true")
        for count in (0, -1, 1001):
            with pytest.raises(UsageError, match="1 to 1000 copies"):
                vm.fork(count)
        with pytest.raises(UsageError, match="is no name for a VM"):
            vm.fork(name="A B")
        with pytest.raises(MachineError, match="a VM named 'box' exists already"):
            vm.fork(name="box")
        assert names() == ["box"]
        sh(vm, "true")
        vm.kill()
        with pytest.raises(MachineError, match="'box' is not running"):
            vm.fork()
        vm.rm()
    assert left(home) == []
    with run(command=["sleep", "1000"], detach=True, name="busy") as vm:
        vm.wait_agent(60)
        with vm.fork() as copies:  # the command goes on in both
            for one in (vm, *copies):
                assert "sleep 1000" in sh(one, "ps")
        with VM.run("micro", name="traced", trace=f"exits:{home.parent / 'trace'}", rm=True) as traced:
            traced.wait_agent(60)
            with pytest.raises(MachineError, match="it runs with --trace"):
                traced.fork()
            assert sh(traced, "echo on") == "on\n"
        vm.rm(force=True)


@pytest.mark.parametrize("allowed", [0, 1, 4])
def test_too_few_processes(clean, monkeypatch, disk, allowed):
    """Some come to life, others can't: none is there then, and the original goes on."""
    monkeypatch.setattr(launch, "WORKER", "few_forks_worker")
    monkeypatch.setenv("PYTHONPATH", os.path.dirname(__file__))
    monkeypatch.setenv("HOSTEL_TEST_FORKS", str(allowed))
    with run(disks=[disk]) as vm:
        sh(vm, "echo word > /tmp/word; echo word | dd of=/dev/vda conv=fsync 2>/dev/null")
        with pytest.raises(MachineError, match="processes"):
            vm.fork(10)
        assert names() == ["box"]
        with pytest.raises(MachineError, match="process"):
            vm.snapshot()
        assert sh(vm, "cat /tmp/word; head -n 1 /dev/vda") == "word\nword\n" and vm.snapshots() == []
        with pytest.raises(MachineError, match="process"):
            vm.suspend()
        assert sh(vm, "cat /tmp/word; head -n 1 /dev/vda") == "word\nword\n"


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_hundred_at_once(clean, home):
    with run() as vm:
        start_checks(vm)
        sh(vm, "echo word > /tmp/word")
        go_on(vm)
        with vm.fork(100) as copies:
            answers = {}

            def ask(copy):
                answers[copy.name] = sh(copy, "cat /tmp/word; hostname; head -c 16 /dev/urandom | md5sum")

            threads = [threading.Thread(target=ask, args=(copy,)) for copy in copies]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(600)
            assert len(answers) == 100
            assert all(text.startswith(f"word\n{name}\n") for name, text in answers.items())
            assert len({text.split()[2] for text in answers.values()}) == 100
            for copy in copies[::10]:
                go_on(copy)
        go_on(vm)


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_a_thousand_forks_one_after_another(clean):
    """Each is a copy of the one before."""
    vm = run(rm=False, detach=True)
    start_checks(vm)
    go_on(vm)
    for number in range(1000):
        copy = vm.fork(name=f"c{number}", detach=True)[0]
        vm.rm(force=True)
        vm = copy
        if number % 50 == 0:
            go_on(vm)
            assert sh(vm, "hostname") == f"c{number}\n"
    vm.rm(force=True)
