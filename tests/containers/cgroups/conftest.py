import contextlib
import itertools
import os

import pytest
from cgroup_programs import Inside

from hostel.containers.cgroups import open_cgroup

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
