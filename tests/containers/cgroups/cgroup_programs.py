"""Programs in a cgroup, and what the kernel has of it."""

import subprocess
import sys

from hostel.containers.cgroups.setting import read

BOMB = """
while True:
    try:
        os.fork()
    except OSError:
        pass
"""


class Inside:
    """A Python program in a cgroup: it begins after a line on its standard input."""

    def __init__(self, cgroup, code, **more):
        start = "import os, sys, time, errno\nsys.stdin.readline()\n"
        self.process = subprocess.Popen(
            [sys.executable, "-S", "-E", "-c", start + code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            **more,
        )
        cgroup.add(self.process.pid)

    def go(self):
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return self

    def line(self):
        return self.process.stdout.readline().strip()

    def result(self, timeout=60):
        """What it has written, when it has ended."""
        return self.process.communicate(timeout=timeout)[0].strip()


def value(cgroup, controller, v1, v2):
    """What the kernel has in the file of this host's version."""
    place = cgroup.places[controller]
    return read(place.folder, v1 if place.version == 1 else v2)
