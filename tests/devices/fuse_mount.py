"""A share without a guest: ``hostel.devices.fuse`` behind /dev/fuse, so that the host's kernel is its client.

``python tests/devices/fuse_mount.py FOLDER MOUNTPOINT [OPTION=VALUE...]`` mounts, says "ready" and serves until it is
unmounted. It is a process of its own: what faults in a mapped file must not wait for its own interpreter.
"""

import contextlib
import ctypes
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

libc = ctypes.CDLL(None, use_errno=True)
BUFFER = (1 << 20) + 8192


def mount(fd: int, target: str) -> None:
    options = f"fd={fd},rootmode=40000,user_id=0,group_id=0,allow_other,default_permissions"
    if libc.mount(b"hostel", target.encode(), b"fuse", 6, options.encode()):  # MS_NOSUID | MS_NODEV
        raise OSError(ctypes.get_errno(), f"mount {target}")


def serve(folder: str, target: str, **options: object) -> None:
    from hostel.devices.fuse.server import Server

    server = Server(os.open(folder, os.O_PATH | os.O_DIRECTORY), **options)
    fd = os.open("/dev/fuse", os.O_RDWR)
    mount(fd, target)
    print("ready", flush=True)
    while True:
        try:
            request = os.read(fd, BUFFER)
        except FileNotFoundError:  # interrupted before it was read
            continue
        except OSError:
            break  # unmounted
        reply = server.request(request, BUFFER)
        if reply:
            with contextlib.suppress(FileNotFoundError):  # nobody waits for it any more
                os.write(fd, reply)
    print(json.dumps(server.statistics()), flush=True)


class Mounted:
    """``host`` is the folder, ``guest`` the same through the server. ``unmount`` returns the server's statistics."""

    def __init__(self, base: Path, **options: object):
        self.host, self.guest = base / "host", base / "guest"
        self.host.mkdir(exist_ok=True)
        self.guest.mkdir(exist_ok=True)
        self.process = subprocess.Popen(
            [sys.executable, __file__, self.host, self.guest, json.dumps(options)], stdout=subprocess.PIPE, text=True
        )
        assert self.process.stdout.readline() == "ready\n"

    def unmount(self) -> dict:
        if self.process.poll() is None:
            libc.umount2(str(self.guest).encode(), 2)  # MNT_DETACH
            out, _ = self.process.communicate(timeout=30)
            assert self.process.returncode == 0
            return json.loads(out)
        return {}


@contextlib.contextmanager
def mounted(base: Path, **options: object):
    if os.geteuid() != 0 or not os.access("/dev/fuse", os.W_OK):
        pytest.skip("mounting through /dev/fuse takes root")
    share = Mounted(base, **options)
    try:
        yield share
    finally:
        libc.umount2(str(share.guest).encode(), 2)
        share.process.wait(30)
        share.process.stdout.close()


if __name__ == "__main__":
    serve(sys.argv[1], sys.argv[2], **json.loads(sys.argv[3]))
