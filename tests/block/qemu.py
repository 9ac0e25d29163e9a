"""qemu-img and qemu-io, the peers that images are compared with (Debian: qemu-utils); without them such tests are
skipped."""

import json
import shutil
import subprocess

import pytest

needed = pytest.mark.skipif(
    not (shutil.which("qemu-img") and shutil.which("qemu-io")),
    reason="no qemu-img and qemu-io to compare with; on Debian: apt-get install qemu-utils",
)


def run(*words, status=0):
    """stdout of a command of QEMU's, which must end with this status."""
    done = subprocess.run([*map(str, words)], capture_output=True, text=True)
    assert done.returncode == status, f"{words}: {done.returncode}: {done.stdout}{done.stderr}"
    return done.stdout


def img(*words, status=0):
    return run("qemu-img", *words, status=status)


def io(path, *commands, format="qcow2"):
    return run("qemu-io", "-f", format, *[word for command in commands for word in ("-c", command)], path)


def check(path):
    """What qemu-img check counts; nothing may be corrupt."""
    done = subprocess.run(["qemu-img", "check", "--output=json", path], capture_output=True, text=True)
    assert done.returncode in (0, 3), f"{done.returncode}: {done.stdout}{done.stderr}"
    return json.loads(done.stdout)


def content(path, folder):
    """What QEMU reads of an image."""
    img("convert", "-O", "raw", path, folder / "content")
    data = (folder / "content").read_bytes()
    (folder / "content").unlink()
    return data
