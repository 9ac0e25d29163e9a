"""hostel's own death: whatever ends it, no machine is left behind."""

import os
import signal
import subprocess
import sys
import time

import pytest

from hostel.client.vm import VM

HOSTEL = (sys.executable, "-m", "hostel.cli.main")


def until(condition, seconds=30):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it doesn't happen"
        time.sleep(0.01)


@pytest.mark.parametrize(
    "number, status", [(signal.SIGINT, 130), (signal.SIGTERM, -signal.SIGTERM), (signal.SIGKILL, -signal.SIGKILL)]
)
@pytest.mark.parametrize("moment", ["booting", "running"])
def test_signals(guests, number, status, moment):
    with subprocess.Popen(
        [*HOSTEL, "run", "--", "sh", "-c", "echo up; exec sleep 1000"], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE
    ) as hostel:
        until(lambda: [vm for vm in VM.list() if vm.state.state == "running"])
        if moment == "running":
            assert hostel.stdout.readline() == b"up\n"
            status = {signal.SIGTERM: 143}.get(number, status)  # the command's
        hostel.send_signal(number)
        assert hostel.wait(30) == status
    until(lambda: VM.list() == [])


def test_the_worker_is_killed_under_the_console(guests):
    with subprocess.Popen(
        [*HOSTEL, "run", "--kernel", guests_kernel(), "--append", "console=ttyS0", "--name", "one"],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as hostel:
        assert hostel.stdout.read(1)
        os.kill(VM.get("one").state.pid, signal.SIGKILL)
        out, err = hostel.communicate(timeout=30)
    assert hostel.returncode == 125
    assert err == b"hostel: 'one' ended: the worker ended without a word\n"
    assert VM.get("one").state.state == "died"
    VM.get("one").rm()


def guests_kernel():
    from hostel.images import store

    return store.find("micro").kernel


def test_a_console_without_a_terminal(guests):
    """A kernel of one's own has no agent: stdin and stdout are its serial port."""
    from hostel.images import store

    image = store.find("micro")
    done = subprocess.run(
        [*HOSTEL, "run", "--kernel", image.kernel, "--initrd", image.initrd, "--append", image.cmdline],
        input=b"echo $((6*7))-; poweroff\n", capture_output=True, timeout=60,
    )
    assert done.returncode == 0
    assert b"42-" in done.stdout
    assert VM.list() == []
