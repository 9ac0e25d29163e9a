import contextlib
import itertools
import os
import subprocess
import sys

import pytest

from hostel.containers.cgroups import open_cgroup
from hostel.containers.cgroups.setting import read

_number = itertools.count()


@pytest.fixture
def cgroup(request):
    """``cgroup(resources, *controllers)``: a new one of this host's, with these limits; skips without a controller."""
    parent = f"hostel-test-{os.getpid()}"
    made = []

    def make(resources=None, *controllers):
        if os.geteuid() != 0:
            pytest.skip("cgroups take root")
        one = open_cgroup(f"/{parent}/{next(_number)}", "test")
        if lacking := set(controllers) - set(one.places):
            pytest.skip(f"the host has no cgroup controller {', '.join(lacking)}")
        one.check(resources or {})
        one.create()
        made.append(one)
        one.apply(resources or {})
        return one

    yield make
    for one in made:
        if one.frozen():
            one.thaw()
        one.kill()
        one.delete()
        for folder in one.folders():
            with contextlib.suppress(OSError):
                os.rmdir(os.path.dirname(folder))


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


@pytest.fixture
def inside():
    """``inside(cgroup, code)``: the program, which runs in the cgroup when this returns."""
    made = []

    def start(cgroup, code, **more):
        made.append(Inside(cgroup, code, **more))
        return made[-1].go()

    yield start
    for one in made:
        one.process.kill()
        one.process.wait()
        for pipe in (one.process.stdin, one.process.stdout):  # which what it has forked may still hold
            with contextlib.suppress(BrokenPipeError):
                pipe.close()


def value(cgroup, controller, v1, v2):
    """What the kernel has in the file of this host's version."""
    place = cgroup.places[controller]
    return read(place.folder, v1 if place.version == 1 else v2)
