"""Real guests: the micro image on the translator, as users have it."""

import os
import re
import signal
import threading
import time

import pytest

from hostel import VM
from hostel.board.boot import linux
from hostel.client.connection import Connection


def test_the_sdk(guests):
    with VM.run("micro", cpus=2, memory="512M") as vm:
        assert re.fullmatch(r"6\.\d+\.\d+-\d+-cloud-amd64\n", vm.exec(["uname", "-r"]).stdout)
        assert vm.exec(["nproc"]).stdout == "2\n"
        assert vm.exec(["sh", "-c", "cat >&2; exit 3"], input="x" * 100000).stderr == "x" * 100000
        counters = vm.inspect()["statistics"]
        assert len(counters["vcpus"]) == 2
        assert counters["vcpus"][0]["exits"]["pio"] > 100
        assert counters["memory"]["guest_resident"] > 16 << 20
        assert counters["serial"]["ttyS1"]["overruns"] == 0
    assert VM.list() == []


@pytest.mark.parametrize("cpus", [1, 2, 4])
@pytest.mark.parametrize("form", ["bzImage", "vmlinux"])
def test_boots(guests, micro, tmp_path, cpus, form):
    kernel = None
    if form == "vmlinux":
        kernel = tmp_path / "vmlinux"
        kernel.write_bytes(linux.extract_vmlinux(micro.kernel.read_bytes()))
    with VM.run("micro", cpus=cpus, kernel=kernel and str(kernel), verify_code=form == "vmlinux" and cpus == 1) as vm:
        assert vm.exec(["nproc"], timeout=60).stdout == f"{cpus}\n"


@pytest.mark.parametrize("memory, least", [("96M", 50_000), ("4G", 3_900_000)])
def test_memory_sizes(guests, memory, least):
    with VM.run("micro", memory=memory) as vm:
        total = int(vm.exec(["sh", "-c", "grep MemTotal /proc/meminfo"], timeout=60).stdout.split()[1])
        assert least < total


def test_the_guest_powers_off_by_itself(guests):
    with VM.run("micro", name="one") as vm:
        vm.wait_agent(60)
        vm.stop(timeout=30)
        assert vm.state.reason == "poweroff"


def test_reboots_cost_no_memory(guests):
    with VM.run("micro", memory="256M") as vm:
        sizes = []
        for _ in range(4):
            vm.wait_agent(60)
            sizes.append(vm.inspect()["statistics"]["memory"]["worker_resident"])
            boots = vm.inspect()["statistics"]["exec"]["greetings"]
            with Connection(vm.folder) as watcher:
                watcher.call("subscribe")
                vm.exec(["reboot"], timeout=60)
                assert next(watcher.events(timeout=60)) == {"event": "reset", "reason": "reset"}
            while vm.inspect()["statistics"]["exec"]["greetings"] == boots:
                time.sleep(0.05)
        assert max(sizes[1:]) < sizes[0] + (24 << 20), sizes


def test_a_triple_fault_resets(guests):
    with VM.run("micro", append="reboot=t") as vm:
        vm.wait_agent(60)
        with Connection(vm.folder) as watcher:
            watcher.call("subscribe")
            vm.exec(["reboot"], timeout=60)
            assert next(watcher.events(timeout=60)) == {"event": "reset", "reason": "triple fault"}
        assert vm.exec(["echo", "again"], timeout=60).stdout == "again\n"


def test_two_vms_at_once(guests):
    with VM.run("micro", name="one") as one, VM.run("micro", name="two") as two:
        for vm in (one, two):
            vm.exec(["sh", "-c", f"echo {vm.name} > /tmp/who"], timeout=60, check=True)
        for vm in (one, two):
            assert vm.exec(["cat", "/tmp/who"]).stdout == f"{vm.name}\n"
        assert one.state.pid != two.state.pid
        os.kill(one.state.pid, signal.SIGKILL)
        assert two.exec(["cat", "/tmp/who"]).stdout == "two\n"


def test_pause(guests):
    with VM.run("micro", cpus=2) as vm:
        vm.wait_agent(60)
        for _ in range(20):
            vm.pause()
            vm.resume()
        vm.pause()
        before = vm.inspect()["statistics"]["vcpus"]
        time.sleep(0.1)
        assert vm.inspect()["statistics"]["vcpus"] == before  # nothing runs
        vm.resume()
        assert vm.exec(["echo", "on"], timeout=60).stdout == "on\n"


@pytest.mark.parametrize("clocksource", ["tsc", "kvm-clock", "acpi_pm"])
def test_a_paused_ones_clocks_stand_still(guests, clocksource):
    """Its timers don't ring at once when it goes on; the calendar is set, by the agent."""

    def look(vm):
        first = time.monotonic()
        uptime, date = vm.exec(["sh", "-c", "cut -d ' ' -f 1 /proc/uptime; date +%s"], timeout=60).stdout.split()
        return first, float(uptime), time.monotonic(), float(date)

    def check(vm, before, still):
        after = look(vm)
        assert 0 <= after[1] - before[1] <= after[2] - before[0] - still + 0.02  # it tells hundredths
        assert abs(after[3] - time.time()) < 2

    with VM.run("micro", name="box", cpus=2, append=f"clocksource={clocksource}") as vm:
        vm.wait_agent(60)
        source = "/sys/devices/system/clocksource/clocksource0/current_clocksource"
        assert vm.exec(["cat", source]).stdout == f"{clocksource}\n"
        before = look(vm)
        vm.pause()
        paused = time.monotonic()
        time.sleep(2.5)
        taken = vm.snapshot()
        with vm.fork(1) as (copy,):
            copy.resume()
            check(copy, before, 2.5)
        time.sleep(1.0)
        still = time.monotonic() - paused
        vm.resume()
        check(vm, before, still)
        vm.revert(taken)
        assert vm.state.state == "paused"
        time.sleep(1.0)
        vm.resume()
        check(vm, before, still)
        time.sleep(1.5)  # the clocksource's watchdog looks
        assert "unstable" not in vm.exec(["dmesg"]).stdout


def test_a_kernel_panic_is_told(guests):
    with VM.run("micro", append="rdinit=/no/such") as vm:
        with pytest.raises(Exception, match="doesn't boot: 3 resets in a row, .*Kernel panic"):
            vm.wait_agent(60)


def test_megabytes_through_a_command(guests):
    data = os.urandom(2 << 20)
    with VM.run("micro") as vm:
        assert vm.exec(["cat"], input=data, text=False, timeout=60).stdout == data


@pytest.mark.slow
def test_a_hundred_megabytes_both_ways(guests):
    data = os.urandom(100 << 20)
    with VM.run("micro") as vm:
        assert vm.exec(["cat"], input=data, text=False, timeout=60).stdout == data


@pytest.mark.slow
def test_twenty_boots_in_a_row(guests):
    for i in range(20):
        with VM.run("micro", cpus=1 + i % 4) as vm:
            assert vm.exec(["echo", str(i)], timeout=60).stdout == f"{i}\n"


@pytest.mark.slow
def test_commands_at_once(guests):
    with VM.run("micro", cpus=2, name="one") as vm:
        vm.wait_agent(60)
        results = {}

        def work(i):
            results[i] = VM.get("one").exec(["sh", "-c", f"cat; echo {i}"], input=str(i) * 20000, timeout=60).stdout

        threads = [threading.Thread(target=work, args=(i,)) for i in range(20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert results == {i: str(i) * 20000 + f"{i}\n" for i in range(20)}
