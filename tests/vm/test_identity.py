"""``agent identity`` in a real guest: what a copy of a VM is given, while its original's commands still run there."""

import os
import re
import threading
import time

import pytest

from hostel import VM

DISTANT = 2_000_000_000  # seconds: 2033
NEW, LINK_LOCAL = "02:00:5e:00:00:0a", "fe80::5eff:fe00:a/64"


@pytest.fixture
def vm(guests):
    with VM.run("micro", networks=["nat,spoof=on"]) as vm:
        shell(vm, "wait-network 60")
        yield vm


def shell(vm, text):
    return vm.exec(["sh", "-ec", text], timeout=120, check=True).stdout


def identity(vm, *arguments):
    """The exit status, and what it said."""
    said = []
    status = vm.attach(
        ["agent", "identity", *arguments], itself=True, stdin=None, timeout=60,
        on_stdout=lambda data: said.append(bytes(data)), on_stderr=lambda data: said.append(bytes(data)),
    )  # fmt: skip
    return status, b"".join(said).decode()


def wait(condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def address(vm):
    return re.search(r"inet (\S+)/24", shell(vm, "ip -4 addr show eth0"))[1]


def test_a_guest_becomes_another(vm):
    old = vm.spec.nics[0].mac
    assert address(vm) == "10.0.2.15"
    statuses = []

    def attach(script):
        nothing = {"on_stdout": lambda data: None, "on_stderr": lambda data: None}
        statuses.append(vm.attach(["sh", "-c", script], stdin=None, **nothing))

    for script in ("sleep 1000 & sleep 1000", "cat /dev/zero"):
        threading.Thread(target=attach, args=(script,), daemon=True).start()
    shell(vm, "until pidof sleep && pidof cat; do usleep 10000; done; setsid sh -c 'sleep 2000' >/dev/null 2>&1 &")
    done = identity(
        vm, f"mac={old}:{NEW}", "stop=all", "hostname=copy", f"entropy={os.urandom(64).hex()}", f"time={DISTANT}.25",
        f"machine-id={os.urandom(16).hex()}",
    )  # fmt: skip
    assert done == (0, "")
    assert shell(vm, "hostname; cat /etc/hostname").split() == ["copy", "copy"]
    assert DISTANT <= int(shell(vm, "date +%s")) < DISTANT + 60
    assert shell(vm, "cat /sys/class/net/eth0/address").strip() == NEW
    shell(vm, "wait-network 60 && ping -c 1 -W 20 10.0.2.2")
    assert address(vm) == "10.0.2.254"  # the router's for a MAC that isn't the card's own
    assert shell(vm, "ip route").startswith("default via 10.0.2.2 dev eth0")
    assert len(shell(vm, "pidof udhcpc").split()) == 1
    wait(lambda: re.findall(r"inet6 (\S+)", shell(vm, "ip -6 addr show dev eth0 scope link")) == [LINK_LOCAL])
    wait(lambda: statuses == [137, 137])
    # what is no command's any more goes on
    assert shell(vm, "ps | grep -c '[s]leep 2000'; ps | grep '[s]leep 1000' || true").split() == ["1"]


def test_what_a_lease_said_before_is_not_done_late(vm):
    script = "/etc/udhcpc/default.script"
    late = "touch began$n; sleep 3; touch late$n"
    shell(vm, f"sed -i -e 's/^bound.*/&\\n{late}/' -e '2s,^,cd /tmp; n=1;,' {script}")
    assert identity(vm, "renew=eth0") == (0, "")
    shell(vm, f"until [ -e /tmp/began1 ]; do usleep 10000; done; sed -i s/n=1/n=2/ {script}")
    assert identity(vm, "renew=eth0", "hostname=another") == (0, "")
    shell(vm, "wait-network 60; sleep 4")
    assert shell(vm, "cd /tmp; ls began* late*; hostname") == "began1\nbegan2\nlate2\nanother\n"


def test_a_lease_is_renewed(vm):
    shell(vm, "ip addr flush dev eth0")
    for card in ("eth0", vm.spec.nics[0].mac):
        assert identity(vm, f"renew={card}", f"time={time.time():.9f}") == (0, "")
        shell(vm, "wait-network 60 && ping -c 1 -W 20 10.0.2.2")
        assert address(vm) == "10.0.2.15"
    assert abs(int(shell(vm, "date +%s")) - time.time()) < 5
    # by hand, in the guest
    before = shell(vm, "pidof udhcpc").split()
    shell(vm, "/proc/1/exe identity renew=eth0; wait-network 60")
    after = shell(vm, "pidof udhcpc").split()
    assert len(before) == len(after) == 1 and before != after
    assert identity(vm, "renew=eth1", "hostname=x") == (19, "identity: renew=eth1: error 19\n")
    assert identity(vm, f"entropy={'5a' * 65}")[0] == 22
    assert shell(vm, "hostname") == "x\n"
