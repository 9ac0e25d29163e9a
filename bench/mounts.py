"""What peers need of the host's mounts, in a mount namespace that only the benchmark sees."""

import contextlib
import os
import subprocess
from collections.abc import Iterator

from bench.errors import BenchError
from hostel.base.linux.syscall import syscall

_SETNS, _CLONE_NEWNS = 308, 0x00020000

# crun refuses hosts whose cgroup v2 beside v1's hierarchies has controllers.
V1_ALONE = "if mountpoint -q /sys/fs/cgroup/unified; then umount /sys/fs/cgroup/unified; fi"
# Most hosts let everybody make taps in namespaces of their own; on others, nobody but root could be measured.
TUN_FOR_ALL = """
    mount -t tmpfs -o mode=755 tmpfs /mnt
    mknod -m 666 /mnt/tun c 10 200
    mount --bind /mnt/tun /dev/net/tun
    umount -l /mnt"""


@contextlib.contextmanager
def changed(script: str) -> Iterator[None]:
    """In here this process and those that it starts see what ``script`` did to the mounts."""
    words = ["unshare", "--mount", "sh", "-ec", f"{script}\necho done\nexec sleep 10000"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL) as holder:
        home = os.open("/proc/self/ns/mnt", os.O_RDONLY)
        where = os.getcwd()
        try:
            assert holder.stdout
            if holder.stdout.readline() != b"done\n":
                raise BenchError("can't change mounts for the benchmark")
            there = os.open(f"/proc/{holder.pid}/ns/mnt", os.O_RDONLY)
            syscall(_SETNS, there, _CLONE_NEWNS)
            os.close(there)
            os.chdir(where)
            yield
        finally:
            syscall(_SETNS, home, _CLONE_NEWNS)
            os.chdir(where)
            os.close(home)
            holder.kill()
