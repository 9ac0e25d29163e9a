"""What tests of snapshots and forks share: shells in guests, the program that checks itself, and whether anything is
left behind."""

import base64
import os
import time

import self_check_program

from hostel import VM
from hostel.images import tiny


def sh(vm, script, **more):
    return vm.exec(["sh", "-ec", script], timeout=120, check=True, **more).stdout


def wait(condition, seconds=120):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def start_checks(vm, count=1, disk=""):
    """Have ``count`` programs check themselves, on sectors of the ``disk``."""
    program = base64.b64encode(tiny.compiled(self_check_program))
    vm.exec(["sh", "-c", "base64 -d > /tmp/check && chmod +x /tmp/check"], input=program, timeout=120, check=True)
    for number in range(count):
        sh(vm, f"(/tmp/check {number} /tmp/turn{number} {disk} || echo $? > /tmp/ended{number}) > /dev/null 2>&1 &")


def turns(vm, count=1):
    """The rounds that they have done; none has ended."""
    out = sh(vm, "cat /tmp/ended* 2>/dev/null || true; echo -; "
                 + "".join(f"od -An -td8 /tmp/turn{number} 2>/dev/null || true;" for number in range(count)))
    ended, _, found = out.partition("-\n")
    assert not ended, f"a program that checks itself ended with {ended}"
    return [int(word) for word in found.split()]


def go_on(vm, count=1, least=20):
    """Return once all have done some more rounds."""
    wait(lambda: len(turns(vm, count)) == count)
    before = after = turns(vm, count)
    deadline = time.monotonic() + 60
    while any(new < old + least for new, old in zip(after, before, strict=True)):
        if time.monotonic() > deadline:
            where = sh(vm, "for p in $(pidof check); do cat /proc/$p/stat /proc/$p/stack; done; dmesg | tail; free")
            raise AssertionError(f"they stand still: {before}, {after}: {where}")
        time.sleep(0.02)
        after = turns(vm, count)


def left(home):
    """Files in $HOSTEL_HOME that belong to VMs and snapshots, without locks that nobody holds."""
    return sorted(
        str(path.relative_to(home))
        for part in ("vms", "disks", "snapshots") if (home / part).exists()
        for path in (home / part).rglob("*") if not path.name.startswith(".lock")
    )


def processes(home):
    """Those that have something open in ``home``, or were started for a VM in it: (pid, name)."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        if int(pid) == os.getpid():
            continue
        try:
            command = open(f"/proc/{pid}/cmdline", "rb").read()
            links = [os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")]
        except OSError:
            continue
        if os.fsencode(home) in command or any(link.startswith(f"{home}/") for link in links):
            found.append((int(pid), command.decode(errors="replace").replace("\0", " ")))
    return found


def all_gone(home):
    """Return once no process has anything to do with ``home``."""
    deadline = time.monotonic() + 20
    while found := processes(home):
        assert time.monotonic() < deadline, found
        time.sleep(0.02)


def date(vm):
    return float(sh(vm, "date +%s"))


def names():
    return sorted(vm.name for vm in VM.list())
