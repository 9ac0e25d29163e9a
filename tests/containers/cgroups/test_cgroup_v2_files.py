"""cgroup v2's files, in a folder that stands for a cgroup file system: which value is written where, as the kernel's
Documentation/admin-guide/cgroup-v2.rst has the files; and where a host has its cgroups."""

import os

import pytest

from hostel.base.errors import ContainerError
from hostel.containers.cgroups import open_cgroup
from hostel.containers.cgroups.hierarchy import find
from hostel.containers.cgroups.v2 import weight_of_blkio, weight_of_shares

CONTROLLERS = "cpuset cpu io memory hugetlb pids rdma misc"
# A new cgroup's files and what the kernel has in them.
FILES = {
    "cgroup.procs": "", "cgroup.controllers": CONTROLLERS, "cgroup.subtree_control": "", "cgroup.type": "domain",
    "cgroup.events": "populated 0\nfrozen 0\n", "cgroup.freeze": "0", "cgroup.kill": "",
    "cgroup.max.descendants": "max",
    "cpu.max": "max 100000", "cpu.max.burst": "0", "cpu.weight": "100", "cpu.idle": "0",
    "cpu.stat": "usage_usec 1500\nuser_usec 1000\nsystem_usec 500\nnr_periods 9\nnr_throttled 4\nthrottled_usec 70\n",
    "cpuset.cpus": "", "cpuset.mems": "", "cpuset.cpus.effective": "0-2,5", "cpuset.mems.effective": "0",
    "memory.max": "max", "memory.low": "0", "memory.high": "max", "memory.swap.max": "max", "memory.current": "5000",
    "memory.peak": "9000", "memory.swap.current": "300", "memory.stat": "anon 4000\nfile 1000\n",
    "memory.events": "low 0\nhigh 0\nmax 3\noom 2\noom_kill 1\n",
    "io.max": "", "io.weight": "default 100", "io.stat": "8:0 rbytes=4096 wbytes=512 rios=2 wios=1 dbytes=0 dios=0\n",
    "pids.max": "max", "pids.current": "3", "rdma.max": "mlx5_0 hca_handle=max hca_object=max",
    "hugetlb.2MB.max": "max", "hugetlb.2MB.rsvd.max": "max", "hugetlb.2MB.current": "2097152",
    "hugetlb.2MB.events": "max 7\n",
}  # fmt: skip


def host(tmp_path, mounts, own="0::/user/me\n"):
    (tmp_path / "mountinfo").write_text("22 1 254:0 / / rw,relatime - ext4 /dev/vda rw\n" + mounts)
    (tmp_path / "cgroup").write_text(own)
    return find(str(tmp_path))


@pytest.fixture
def fs(tmp_path):
    """A host with v2 alone, and its top."""
    top = tmp_path / "fs"
    top.mkdir()
    (top / "cgroup.controllers").write_text(CONTROLLERS)
    (top / "cgroup.subtree_control").write_text("")
    return top, host(tmp_path, f"30 22 0:26 / {top} rw - cgroup2 cgroup2 rw\n")


@pytest.fixture
def one(fs):
    top, found = fs
    leaf = top / "a"
    leaf.mkdir()
    for name, content in FILES.items():
        (leaf / name).write_text(content)
    cgroup = open_cgroup("/a", "test", host=found)
    cgroup.places.pop("devices")  # eBPF wants a real one: test_cgroup_devices
    cgroup.rootless = True
    cgroup.create()
    return cgroup


def files(cgroup):
    """What isn't as it was."""
    now = {name: open(f"{cgroup.unified}/{name}").read() for name in os.listdir(cgroup.unified)}
    return {name: text for name, text in now.items() if text != FILES[name]}


@pytest.mark.parametrize("resources, expected", [
    ({"cpu": {"shares": 1024}}, {}),
    ({"cpu": {"shares": 2}}, {"cpu.weight": "1"}),
    ({"cpu": {"shares": 262144}}, {"cpu.weight": "10000"}),
    ({"cpu": {"quota": 20000}}, {"cpu.max": "20000"}),
    ({"cpu": {"quota": 20000, "period": 50000, "burst": 10000}}, {"cpu.max": "20000 50000", "cpu.max.burst": "10000"}),
    ({"cpu": {"period": 50000}}, {"cpu.max": "max 50000"}),
    ({"cpu": {"quota": -1, "period": 50000}}, {"cpu.max": "max 50000"}),
    ({"cpu": {"idle": 1}}, {"cpu.idle": "1"}),
    ({"cpu": {"cpus": "0-2", "mems": "0"}}, {"cpuset.cpus": "0-2", "cpuset.mems": "0"}),
    ({"memory": {"limit": 1 << 20}}, {"memory.max": "1048576"}),
    ({"memory": {"limit": 1 << 20, "swap": 3 << 20}}, {"memory.max": "1048576", "memory.swap.max": "2097152"}),
    ({"memory": {"limit": 1 << 20, "swap": 1 << 20}}, {"memory.max": "1048576", "memory.swap.max": "0"}),
    ({"memory": {"limit": 1 << 20, "swap": -1, "reservation": 4096}}, {"memory.max": "1048576", "memory.low": "4096"}),
    ({"memory": {"limit": 0, "swap": 0, "disableOOMKiller": False, "useHierarchy": True}}, {}),
    ({"pids": {"limit": 7}}, {"pids.max": "7"}),
    ({"pids": {"limit": 0}}, {}),
    ({"pids": {"limit": -1}}, {}),
    ({"blockIO": {"weight": 10}}, {"io.weight": "default 1"}),
    ({"blockIO": {"weight": 1000}}, {"io.weight": "default 10000"}),
    ({"hugepageLimits": [{"pageSize": "2MB", "limit": 4 << 20}]},
     {"hugetlb.2MB.max": "4194304", "hugetlb.2MB.rsvd.max": "4194304"}),
    ({"rdma": {"mlx5_0": {"hcaHandles": 2, "hcaObjects": 2000}}}, {"rdma.max": "mlx5_0 hca_handle=2 hca_object=2000"}),
    ({"unified": {"memory.high": "4096", "cgroup.max.descendants": "3"}},
     {"memory.high": "4096", "cgroup.max.descendants": "3"}),
    ({"cpu": {"shares": 2}, "unified": {"cpu.weight": "7"}}, {"cpu.weight": "7"}),
])  # fmt: skip
def test_settings_become_v2s(one, resources, expected):
    one.check(resources)
    one.apply(resources)
    assert files(one) == expected


def test_block_devices(one):
    rows = [entry for entry in os.listdir("/sys/dev/block")]
    if not rows:
        pytest.skip("the host has no block device")
    numbers = dict(zip(("major", "minor"), map(int, rows[0].split(":")), strict=True))
    for name, key in (("throttleReadBpsDevice", "rbps"), ("throttleWriteBpsDevice", "wbps"),
                      ("throttleReadIOPSDevice", "riops"), ("throttleWriteIOPSDevice", "wiops")):  # fmt: skip
        for rate, word in ((1000, "1000"), (0, "max")):
            resources = {"blockIO": {name: [{**numbers, "rate": rate}]}}
            one.check(resources)
            one.apply(resources)
            assert files(one) == {"io.max": f"{rows[0]} {key}={word}"}
    one.apply({"blockIO": {"weightDevice": [{**numbers, "weight": 505}]}})
    assert files(one)["io.weight"] == f"{rows[0]} 5000"
    with open(f"{one.unified}/io.bfq.weight", "w"):
        pass
    one.apply({"blockIO": {"weight": 505, "weightDevice": [{**numbers, "weight": 500}]}})
    with open(f"{one.unified}/io.bfq.weight") as file:
        assert file.read() == f"{rows[0]} 500"


def test_an_update_keeps_what_it_says_nothing_about(one):
    one.apply({"cpu": {"quota": 20000, "period": 50000}, "memory": {"limit": 1 << 20}})
    one.apply({"cpu": {"period": 80000}})
    assert files(one)["cpu.max"] == "20000 80000"
    one.apply({"memory": {"swap": 3 << 20}})
    assert files(one)["memory.swap.max"] == str(2 << 20)
    with pytest.raises(ContainerError, match="memory.swap: 4096 .* is under memory.limit, 1048576"):
        one.apply({"memory": {"swap": 4096}})


@pytest.mark.parametrize("resources, said", [
    ({"memory": {"swappiness": 10}}, "memory.swappiness: cgroup v2 has none"),
    ({"memory": {"kernelTCP": 4096}}, "memory.kernelTCP: cgroup v2 has no such"),
    ({"memory": {"disableOOMKiller": True}}, "memory.disableOOMKiller: cgroup v2 always kills"),
    ({"memory": {"swap": 4096}}, "memory.swap: takes a memory.limit"),
    ({"cpu": {"realtimeRuntime": 5}}, "cpu.realtimeRuntime: cgroup v2 has no"),
    ({"blockIO": {"leafWeight": 10}}, "blockIO.leafWeight: cgroup v2 has none"),
    ({"network": {"classID": 5}}, "network.classID can't be limited here"),
    ({"network": {"priorities": [{"name": "lo", "priority": 1}]}}, "network.priorities can't be limited here"),
    ({"unified": {"dmem.max": "5"}}, "unified.dmem.max can't be limited here"),
])  # fmt: skip
def test_what_v2_lacks_is_refused_by_name(one, resources, said):
    with pytest.raises(ContainerError, match=said):
        one.check(resources)
    assert files(one) == {}


def test_a_file_that_the_kernel_lacks_is_refused_by_name_and_the_rest_is_set_back(one):
    os.remove(f"{one.unified}/pids.max")
    one._new = False
    with pytest.raises(ContainerError, match="pids.limit: this kernel has no pids.max"):
        one.apply({"memory": {"limit": 1 << 20}, "pids": {"limit": 5}})
    assert files(one) == {}


def test_check_before_update(one):
    with pytest.raises(ContainerError, match="memory.limit: 4096 is under what is used now, 5000"):
        one.apply({"memory": {"limit": 4096, "checkBeforeUpdate": True}})
    assert files(one) == {}


def test_statistics(one):
    stats = one.stats()
    assert stats["cpu"]["usage"] == {"total": 1_500_000, "user": 1_000_000, "kernel": 500_000}
    assert stats["cpu"]["throttling"] == {"periods": 9, "throttledPeriods": 4, "throttledTime": 70_000}
    assert stats["cpuset"] == {"cpus": [0, 1, 2, 5], "mems": [0]}
    assert stats["memory"]["usage"] == {"limit": (1 << 64) - 1, "usage": 5000, "max": 9000, "failcnt": 3}
    assert stats["memory"]["swap"]["usage"] == 5300 and stats["memory"]["cache"] == 1000
    assert stats["pids"] == {"current": 3}
    assert [row["value"] for row in stats["blkio"]["ioServiceBytesRecursive"]] == [4096, 512, 0]
    assert stats["blkio"]["ioServicedRecursive"][1] == {"major": 8, "minor": 0, "op": "Write", "value": 1}
    assert stats["hugetlb"] == {"2MB": {"usage": 2097152, "failcnt": 7}}
    assert one.oom_kills() == 1


def test_being_told_of_an_oom_kill(one):
    fd = one.oom_fd()
    try:
        with pytest.raises(BlockingIOError):
            os.read(fd, 4096)
        with open(f"{one.unified}/memory.events", "w") as file:
            file.write("oom_kill 2\n")
        assert os.read(fd, 4096)
        assert one.oom_kills() == 2
    finally:
        os.close(fd)


def test_limits_beside_their_use(one):
    one.apply({"cpu": {"quota": 150000, "period": 100000}, "memory": {"limit": 1 << 20}, "pids": {"limit": 7}})
    with open(f"{one.unified}/io.max", "w") as file:
        file.write("8:0 rbps=1000 wbps=max riops=max wiops=20\n")
    limits = {(row.controller, row.what): (row.limit, row.use) for row in one.limits()}
    assert limits["cpu", "CPUs at once"] == (1.5, None)
    assert limits["memory", "memory"] == (1 << 20, 5000)
    assert limits["memory", "swap"] == (None, 300)
    assert limits["pids", "processes and threads"] == (7, 3)
    assert limits["blkio", "read from 8:0"] == (1000, 4096)
    assert limits["blkio", "written to 8:0"] == (20, 1)
    assert limits["hugetlb", "pages of 2MB"] == (None, 2097152)


def test_weights():
    for shares, weight in ((0, 1), (2, 1), (512, 59), (1024, 100), (2048, 174), (262144, 10000), (1 << 20, 10000)):
        assert weight_of_shares(shares) == weight
    weights = [weight_of_shares(shares) for shares in range(2, 262145, 97)]
    assert weights == sorted(weights)
    assert [weight_of_blkio(weight) for weight in (10, 100, 1000)] == [1, 910, 10000]


def test_controllers_are_enabled_on_the_way(fs):
    top, found = fs
    cgroup = open_cgroup("/a/b", "test", host=found, rootless=True)
    cgroup.create()
    assert (top / "a/b").is_dir()
    written = (top / "cgroup.subtree_control").read_text()
    assert sorted(written.split()) == sorted(f"+{name}" for name in CONTROLLERS.split())
    # no kernel is there to put a controller into the new ones: all that is left is what every cgroup has
    assert set(cgroup.places) == {"devices", "freezer"}
    with pytest.raises(ContainerError, match="memory.limit can't be limited here"):
        cgroup.check({"memory": {"limit": 1 << 20}})


def test_paths(fs, tmp_path):
    top, found = fs

    def folder(path):
        return open_cgroup(path, "id", host=found).unified

    assert folder("/x/y") == f"{top}/x/y"
    assert folder("x") == f"{top}/user/x"         # beside our own, /user/me
    assert folder(None) == folder("") == f"{top}/user/id"
    assert folder("/x/../../../y") == f"{top}/y"
    assert folder("../../../y") == f"{top}/user/y"
    for path in ("/", "/..", "."):
        with pytest.raises(ContainerError, match="is the whole host's cgroup"):
            folder(path)
    with pytest.raises(ContainerError, match="systemd's form"):
        folder("user.slice:hostel:x")


def test_a_hybrid_host_has_each_controller_in_one_place(tmp_path):
    top = tmp_path / "unified hierarchy"
    top.mkdir()
    (top / "cgroup.controllers").write_text("hugetlb")
    found = host(tmp_path, (
        "31 22 0:28 / /cg/cpu,cpuacct rw shared:9 - cgroup cgroup rw,cpu,cpuacct\n"
        "32 22 0:29 / /elsewhere rw - cgroup cgroup rw,cpu,cpuacct\n"
        "33 22 0:30 /box /cg/memory rw - cgroup cgroup rw,memory\n"
        "34 22 0:31 / /cg/systemd rw - cgroup cgroup rw,xattr,name=systemd\n"
        f"35 22 0:32 / {tmp_path}/unified\\040hierarchy rw - cgroup2 cgroup2 rw\n"
    ), "4:cpu,cpuacct:/me\n3:memory:/box/me\n1:name=systemd:/\n0::/me\n")  # fmt: skip
    cgroup = open_cgroup("x", "id", host=found)
    assert cgroup.paths == {
        "": f"{top}/me/x", "cpu": "/cg/cpu,cpuacct/me/x", "cpuacct": "/cg/cpu,cpuacct/me/x",
        "memory": "/cg/memory/me/x", "name=systemd": "/cg/systemd/x", "hugetlb": f"{top}/me/x",
        "devices": f"{top}/me/x", "freezer": f"{top}/me/x",
    }  # fmt: skip
    assert {name: place.version for name, place in cgroup.places.items()} == {
        "cpu": 1, "cpuacct": 1, "memory": 1, "name=systemd": 1, "hugetlb": 2, "devices": 2, "freezer": 2,
    }  # fmt: skip
    assert cgroup.folders() == [f"{top}/me/x", "/cg/cpu,cpuacct/me/x", "/cg/memory/me/x", "/cg/systemd/x"]
    with pytest.raises(ContainerError, match="unified.memory.high: this host has the controller memory in cgroup v1"):
        cgroup.check({"unified": {"memory.high": "5"}})
    again = type(cgroup).from_state(cgroup.state())
    assert again.state() == cgroup.state() and again.paths == cgroup.paths
    with pytest.raises(ContainerError, match="of version 9"):
        type(cgroup).from_state(cgroup.state() | {"version": 9})


def test_outside_of_what_is_mounted(tmp_path):
    found = host(tmp_path, "33 22 0:30 /box /cg/memory rw - cgroup cgroup rw,memory\n", "3:memory:/other\n")
    assert open_cgroup("/x", "id", host=found).paths == {"memory": "/cg/memory/x"}
    with pytest.raises(ContainerError, match="our own cgroup /other isn't under /cg/memory"):
        open_cgroup("x", "id", host=found)
    with pytest.raises(ContainerError, match="no cgroups mounted"):
        open_cgroup("x", "id", host=host(tmp_path, ""))


@pytest.mark.parametrize("resources, said", [
    ({"cpu": {"shares": 1}}, "cpu.shares: 1 isn't from 2 to 262144"),
    ({"cpu": {"quota": 10}}, "cpu.quota: 10 is under"),
    ({"cpu": {"period": 10}}, "cpu.period: 10 isn't from"),
    ({"cpu": {"quota": 5000, "burst": 6000}}, "cpu.burst: 6000"),
    ({"cpu": {"idle": 2}}, "cpu.idle"),
    ({"cpu": {"cpus": "all"}}, "cpu.cpus: 'all' is no list"),
    ({"cpu": {"shares": "7"}}, "cpu.shares is to be an integer"),
    ({"memory": {"kernel": 5}}, "memory.kernel: Linux has no such"),
    ({"memory": {"limit": -2}}, "memory.limit: -2 is no number of bytes"),
    ({"memory": {"limit": 10, "swap": 5}}, "memory.swap: 5"),
    ({"memory": {"limit": -1, "swap": 5}}, "memory.swap: takes a memory.limit"),
    ({"memory": {"useHierarchy": False}}, "memory.useHierarchy"),
    ({"memory": {"swappiness": 101}}, "memory.swappiness"),
    ({"blockIO": {"weight": 9}}, "blockIO.weight: 9 isn't from 10"),
    ({"blockIO": {"throttleReadBpsDevice": [{"major": 4095, "minor": 9, "rate": 5}]}}, "no block device 4095:9"),
    ({"blockIO": {"throttleReadBpsDevice": [{"rate": 5}]}}, "no block device -1:-1"),
    ({"hugepageLimits": [{"pageSize": "../2MB", "limit": 5}]}, "hugepageLimits"),
    ({"hugepageLimits": [{"pageSize": "2MB", "limit": 5}, {"pageSize": "2MB", "limit": 6}]}, "2MB is there twice"),
    ({"network": {"priorities": [{"name": "a b", "priority": 5}]}}, "network.priorities"),
    ({"network": {"classID": 1 << 32}}, "network.classID"),
    ({"unified": {"../memory.max": "5"}}, "unified"),
    ({"unified": {"memory.max": ""}}, "unified"),
    ({"rdma": {"mlx": {"hcaHandles": "x"}}}, "rdma.mlx.hcaHandles is to be an integer"),
    ({"devices": [{"allow": True, "type": "p"}]}, "devices: type 'p'"),
    ({"devices": [{"allow": True, "type": "c", "access": "x"}]}, "devices: type 'c', access 'x'"),
    ({"devices": [{"allow": True, "type": "c", "major": -5}]}, "devices: -5:None"),
])  # fmt: skip
def test_impossible_values_are_refused_by_name(one, resources, said):
    with pytest.raises(ContainerError, match=said):
        one.check(resources)
