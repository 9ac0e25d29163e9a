"""Making, changing, killing and removing cgroups; hosts that have less, and users that may less."""

import json
import os
import subprocess
import sys
import threading
import time

import pytest
from cgroup_programs import BOMB, value

from hostel.base.errors import ContainerError
from hostel.containers.cgroups import Cgroup
from hostel.containers.cgroups.setting import Place

MIB = 1 << 20


def test_everything_is_removed_with_what_is_below(cgroup):
    one = cgroup({"pids": {"limit": 5}}, "pids")
    for folder in one.folders():
        os.makedirs(f"{folder}/a/b")
        os.mkdir(f"{folder}/c")
    assert one.exists()
    one.delete()
    assert not one.exists()
    one.delete()  # what isn't there is gone


def test_delete_waits_for_the_dying(cgroup, inside):
    one = cgroup()
    process = inside(one, "time.sleep(100)").process
    killer = threading.Timer(0.2, process.kill)
    killer.start()
    one.delete()
    killer.join()
    assert not one.exists()


def test_who_is_in_it_is_told(cgroup, inside, monkeypatch):
    one = cgroup()
    process = inside(one, "time.sleep(100)").process
    monkeypatch.setattr("hostel.containers.cgroups.group._DELETE_SECONDS", 0.1)
    with pytest.raises(ContainerError, match=f"in use by process {process.pid}"):
        one.delete()
    with pytest.raises(ContainerError, match=f"in use by process {process.pid}: give another linux.cgroupsPath"):
        Cgroup.from_state(one.state()).create()
    assert one.pids() == [process.pid]
    assert Cgroup.from_state(one.state()).pids() == [process.pid]


def test_a_frozen_one_is_refused(cgroup):
    one = cgroup({}, "freezer")
    one.freeze()
    with pytest.raises(ContainerError, match="is frozen"):
        Cgroup.from_state(one.state()).create()
    one.thaw()
    Cgroup.from_state(one.state()).create()  # an empty one may be had


def test_a_failure_leaves_nothing(cgroup, monkeypatch):
    whole = cgroup()
    folders = [f"{folder}-more/x" for folder in whole.folders()]
    for number in range(len(folders)):
        one = Cgroup("test", {str(n): Place(1, folder) for n, folder in enumerate(folders)}, None, False)
        if whole.unified:
            one.unified = one.places.pop("0").folder
        make = Cgroup._make

        def failing(self, folder, made, at=folders[number], make=make):
            make(self, folder, made)
            if folder == at:
                raise OSError(28, "No space left on device")

        monkeypatch.setattr(Cgroup, "_make", failing)
        with pytest.raises(ContainerError, match="can't make the cgroup .*: No space"):
            one.create()
        monkeypatch.undo()
        assert not any(os.path.exists(os.path.dirname(folder)) for folder in folders)


def test_a_process_that_is_gone(cgroup):
    process = subprocess.Popen(["true"])
    process.wait()
    with pytest.raises(ContainerError, match=f"can't put process {process.pid} into the cgroup .*: No such process"):
        cgroup().add(process.pid)


def test_limits_change_in_either_direction(cgroup):
    first = {"memory": {"limit": 32 * MIB, "swap": 32 * MIB}, "cpu": {"quota": 50000, "period": 100000}}
    one = cgroup(first, "memory", "cpu")
    for size, quota in ((64, 90000), (16, 20000)):
        one.apply({"memory": {"limit": size * MIB, "swap": size * MIB}, "cpu": {"quota": quota, "burst": quota}})
        assert value(one, "memory", "memory.limit_in_bytes", "memory.max") == str(size * MIB)
        assert value(one, "cpu", "cpu.cfs_quota_us", "cpu.max").split()[0] == str(quota)
    one.apply({"memory": {"limit": -1}, "cpu": {"quota": -1, "burst": 0}})
    assert [row.limit for row in one.limits() if row.what in ("memory", "CPUs at once")] == [None, None]


def test_processors_that_arent_there(cgroup):
    one = cgroup({}, "cpuset")
    for name in ("cpus", "mems"):
        with pytest.raises(ContainerError, match=f"cpu.{name}: '900' isn't among what the host"):
            one.apply({"cpu": {name: "900"}})


def test_memory_isnt_limited_to_less_than_is_used(cgroup, inside):
    one = cgroup({"memory": {"limit": 64 * MIB}, "pids": {"limit": 9}}, "memory", "pids")
    assert inside(one, "data = b'x' * (24 << 20); print('had', flush=True); time.sleep(100)").line() == "had"
    with pytest.raises(ContainerError, match="memory.limit: 4194304 is under what is used now, [0-9]+"):
        one.apply({"pids": {"limit": 5}, "memory": {"limit": 4 * MIB, "checkBeforeUpdate": True}})
    assert value(one, "memory", "memory.limit_in_bytes", "memory.max") == str(64 * MIB)
    if one.places["memory"].version == 1:  # v1 refuses by itself, and what was written before is set back
        with pytest.raises(ContainerError, match="memory.swap|memory.limit: 4194304 is under what is used now"):
            one.apply({"cpu": {"shares": 7}, "memory": {"limit": 4 * MIB}})
        assert value(one, "cpu", "cpu.shares", "cpu.weight") in ("1024", "100")
    assert one.oom_kills() == 0


def test_a_fork_bomb_dies_where_only_v1_is(cgroup, inside):
    one = cgroup({"pids": {"limit": 30}}, "pids", "freezer")
    old = Cgroup("test", {name: place for name, place in one.places.items() if place.version == 1}, None, False)
    if not {"freezer", "pids"} <= set(old.places):
        pytest.skip("the host has no freezer of v1's")
    bomb = inside(old, BOMB).process
    while len(old.pids()) < 10:
        time.sleep(0.001)
    old.kill()
    assert bomb.wait(30) == -9
    old.delete()
    assert not any(os.path.exists(folder) for folder in old.folders())


def test_any_signal_reaches_all(cgroup, inside):
    one = cgroup()
    programs = [inside(one, "import signal\nprint('in', flush=True)\nsignal.pause()").process for _ in range(2)]
    for process in programs:
        process.stdout.readline()
    one.kill(15)
    assert [process.wait(30) for process in programs] == [-15, -15]


# In a mount namespace of its own: nobody else is to see the hierarchy, and it ends with the process.
MOUNTED = """
import json, os, subprocess, sys, time
from hostel.containers.cgroups import open_cgroup
from hostel.containers.cgroups.hierarchy import Hierarchies, find
point, controller, resources = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
if "devices" not in find().v1:
    sys.exit("skip: the host has no cgroup v1")
told = subprocess.run(["mount", "-t", "cgroup", "-o", controller, "hostel-test", point], capture_output=True)
if told.returncode:
    sys.exit("skip: " + told.stderr.decode().strip())
found = find()
one = open_cgroup("/hostel-test", "test", host=Hierarchies({"devices": found.v1.get("devices"),
                                                           controller: found.v1[controller]}, None))
del one.places["devices"]
one.rootless = True  # but for devices
one.check(resources)
one.create()
try:
    one.apply(resources)
    process = subprocess.Popen(["sleep", "100"])
    try:
        one.add(process.pid)
        assert one.pids() == [process.pid]
        assert f"{controller}:/hostel-test" in open(f"/proc/{process.pid}/cgroup").read()
    finally:
        one.kill()
        assert process.wait() == -9
    folder = one.places[controller].folder
    print(open(os.path.join(folder, sys.argv[4])).read())
finally:
    one.delete()
    for _ in range(500):  # the kernel keeps the hierarchy if one of its cgroups isn't all gone yet
        if f"\\t1\\t" in next(line for line in open("/proc/cgroups") if line.startswith(controller)):
            break
        time.sleep(0.01)
    subprocess.run(["umount", point], check=True)
"""


@pytest.mark.parametrize("controller, resources, file, line", [
    ("net_cls", {"network": {"classID": 0x100001}}, "net_cls.classid", "1048577"),
    ("net_prio", {"network": {"priorities": [{"name": "lo", "priority": 7}]}}, "net_prio.ifpriomap", "lo 7"),
])  # fmt: skip
def test_controllers_that_few_hosts_mount(tmp_path, controller, resources, file, line):
    if os.geteuid() != 0:
        pytest.skip("mounting takes root")
    program = ["unshare", "-m", sys.executable, "-c", MOUNTED, tmp_path, controller, json.dumps(resources), file]
    result = subprocess.run(program, capture_output=True, text=True)
    if result.stderr.startswith("skip: "):
        pytest.skip(f"no {controller} of cgroup v1: {result.stderr}")
    assert result.stderr == ""
    assert line in result.stdout.splitlines()


def test_huge_pages_in_v1s_files(tmp_path):
    for name in ("hugetlb.2MB.limit_in_bytes", "hugetlb.1GB.limit_in_bytes", "cgroup.procs"):
        (tmp_path / name).write_text("")
    (tmp_path / "hugetlb.2MB.usage_in_bytes").write_text("2097152")
    (tmp_path / "hugetlb.2MB.failcnt").write_text("4")
    one = Cgroup("test", {"hugetlb": Place(1, str(tmp_path))}, None, True)
    resources = {"hugepageLimits": [{"pageSize": "2MB", "limit": 4 * MIB}]}
    one.check(resources)
    one.apply(resources)  # an older kernel has no files for reserved pages
    assert (tmp_path / "hugetlb.2MB.limit_in_bytes").read_text() == str(4 * MIB)
    assert one.stats()["hugetlb"]["2MB"] == {"usage": 2 * MIB, "max": 0, "failcnt": 4}
    with pytest.raises(ContainerError, match="hugepageLimits: this kernel has no hugetlb.4KB.limit_in_bytes"):
        one.apply({"hugepageLimits": [{"pageSize": "4KB", "limit": 4 * MIB}]})


NOBODY = """
import sys
sys.path.insert(0, sys.argv[1])
from hostel.base.errors import ContainerError
from hostel.containers.cgroups import open_cgroup
one = open_cgroup("/hostel-test-nobody", "test")
wants = {"memory": {"limit": 1 << 20}, "pids": {"limit": 3}, "devices": [{"allow": False}]}
print(one.unlimited(wants))
try:
    one.check(wants)
except ContainerError as error:
    print(error)
one.check({"devices": [{"allow": False}]})
one.create()
one.apply({"devices": [{"allow": False}]})
one.add(1)
print(one.paths, one.stats()["memory"], one.pids(), one.oom_fd(), one.oom_kills())
one.kill()
one.delete()
"""


def test_a_user_without_delegation_is_told_what_cant_be_limited(tmp_path):
    version = subprocess.run(["/usr/bin/python3", "-V"], capture_output=True, text=True).stdout
    if os.geteuid() != 0 or version < "Python 3.11":
        pytest.skip("it takes root to become another user, and a Python >= 3.11 that everybody may run")
    source = tmp_path / "source"
    house = os.path.dirname(os.path.dirname(sys.modules["hostel"].__file__))
    program = ["/usr/bin/python3", "-S", "-c", NOBODY, str(source)]  # ours may be in root's home
    subprocess.run(["cp", "-r", house, source], check=True)
    for folder in (*tmp_path.parents, tmp_path):
        if folder.is_relative_to("/tmp") and folder != type(folder)("/tmp"):
            folder.chmod(0o755)
    result = subprocess.run(program, capture_output=True, text=True, user=65534, group=65534, extra_groups=[])
    assert result.stderr == ""
    assert result.stdout.splitlines() == [
        "['memory.limit', 'pids.limit']",
        "linux.resources: memory.limit, pids.limit can't be limited here: that isn't delegated to us",
        "{} {} [] None 0",
    ]
