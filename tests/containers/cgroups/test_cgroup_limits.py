"""Each limit on real processes, seen from inside (what the process gets) and from the host (what the kernel counts)."""

import errno
import json
import os
import select
import shutil
import signal
import subprocess
import tempfile
import time

import pytest
from cgroup_programs import BOMB, value

from hostel.base.errors import ContainerError

MIB = 1 << 20
SPIN = "end = time.monotonic() + {}\nwhile time.monotonic() < end: pass\nprint(time.process_time())"


def test_a_process_sees_that_it_is_inside(cgroup, inside):
    one = cgroup()
    seen = inside(one, "print(open('/proc/self/cgroup').read())").result()
    ours = os.path.basename(one.folders()[0])
    where = {name: line.split(":", 2)[2] for line in seen.splitlines() for name in line.split(":")[1].split(",")}
    assert all(where[name].endswith(f"/{ours}") for name in one.paths if name in where)
    assert set(one.paths) - set(where) <= {name for name, place in one.places.items() if place.version == 2}


def test_a_process_enters_by_itself(cgroup):
    one = cgroup()
    code = "import sys\nfor file in sys.argv[1:]: open(file, 'w').write('0')\nprint('in', flush=True); sys.stdin.read()"
    program = ["python3", "-c", code, *one.entries()]
    process = subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert process.stdout.readline() == b"in\n"
        for folder in one.folders():
            with open(f"{folder}/cgroup.procs") as members:
                assert members.read() == f"{process.pid}\n"
        assert len(one.entries(cloned=True)) == len(one.entries()) - bool(one.unified)
    finally:
        process.communicate()


def test_a_fork_bomb_is_stopped(cgroup, inside):
    one = cgroup({"pids": {"limit": 20}}, "pids")
    bomb = inside(one, BOMB).process
    place = one.places["pids"].folder
    refused = 0
    while not refused:  # until the kernel has refused a fork
        assert len(one.pids()) <= 20
        with open(f"{place}/pids.events") as events:
            refused = int(events.read().split()[1])
    assert one.stats()["pids"]["limit"] == 20
    assert one.stats()["pids"]["current"] <= 20
    one.kill()
    assert bomb.wait(30) == -signal.SIGKILL
    one.delete()
    assert not one.exists() and one.pids() == []


def test_forks_fail_inside_at_the_limit(cgroup, inside):
    one = cgroup({"pids": {"limit": 5}}, "pids")
    code = """
made = 0
try:
    while True:
        if not os.fork():
            time.sleep(100)
        made += 1
except OSError as error:
    print(made, error.errno, flush=True)
time.sleep(100)
"""
    assert inside(one, code).line() == f"4 {errno.EAGAIN}"
    assert len(one.pids()) == 5


def test_memory_over_the_limit_is_killed_and_reported(cgroup, inside):
    one = cgroup({"memory": {"limit": 24 * MIB, "swap": 24 * MIB}}, "memory")
    told = one.oom_fd()
    try:
        assert select.select([told], [], [], 0)[0] == [] and one.oom_kills() == 0
        hog = inside(one, "data = [b'x' * 65536 for _ in range(2000)]; print('had it')")
        assert hog.result() == ""
        assert hog.process.returncode == -signal.SIGKILL
        assert select.select([told], [], [], 10)[0] == [told]
        assert os.read(told, 4096)
        assert one.oom_kills() == 1
    finally:
        os.close(told)
    stats = one.stats()["memory"]
    assert stats["usage"]["limit"] == 24 * MIB and stats["usage"]["max"] <= 24 * MIB
    # one that keeps within it has it
    assert inside(one, "data = b'x' * (8 << 20); print('had it')").result() == "had it"
    assert one.oom_kills() == 1


def test_without_the_oom_killer_a_process_waits(cgroup, inside):
    one = cgroup({}, "memory")
    if one.places["memory"].version == 2:
        pytest.skip("cgroup v2 always kills")
    one.apply({"memory": {"limit": 24 * MIB, "swap": 24 * MIB, "disableOOMKiller": True}})
    told = one.oom_fd()
    try:
        hog = inside(one, "data = [b'x' * 65536 for _ in range(2000)]")
        assert select.select([told], [], [], 10)[0] == [told]
    finally:
        os.close(told)
    assert "under_oom 1" in value(one, "memory", "memory.oom_control", "")
    assert hog.process.poll() is None and one.oom_kills() == 0
    one.kill()
    assert hog.process.wait(10) == -signal.SIGKILL


def test_cpu_time_is_bounded_by_the_quota(cgroup, inside):
    one = cgroup({"cpu": {"quota": 20_000, "period": 100_000}}, "cpu")
    begin = time.monotonic()
    used = float(inside(one, SPIN.format(1.2)).result())
    elapsed = time.monotonic() - begin
    assert used < 0.5 * elapsed  # a fifth, and a period more
    stats = one.stats()["cpu"]
    assert stats["throttling"]["throttledTime"] > 0.1e9 and stats["throttling"]["throttledPeriods"] > 1
    assert 0 < stats["usage"]["total"] < 0.5e9 * elapsed
    limits = {limit.what: limit for limit in one.limits() if limit.controller == "cpu"}
    assert limits["CPUs at once"].limit == 0.2
    assert limits["throttled by the quota"].use > 0.1


def test_cpu_time_is_shared_by_weight(cgroup, inside):
    many = cgroup({"cpu": {"shares": 4096, "cpus": "0"}}, "cpu", "cpuset")
    few = cgroup({"cpu": {"shares": 128, "cpus": "0"}}, "cpu", "cpuset")
    for one in [inside(one, "print('here', flush=True)\nwhile True: pass") for one in (many, few)]:
        assert one.line() == "here"
    before = [one.stats()["cpu"]["usage"]["total"] for one in (many, few)]
    time.sleep(1)
    had = [one.stats()["cpu"]["usage"]["total"] - old for one, old in zip((many, few), before, strict=True)]
    assert had[0] > 4 * had[1]  # 32 to 1 was asked


def test_a_process_runs_on_its_cpus(cgroup, inside):
    one = cgroup({"cpu": {"cpus": "0", "mems": "0"}}, "cpuset")
    assert inside(one, "print(os.sched_getaffinity(0))").result() == "{0}"
    assert one.stats()["cpuset"]["cpus"] == [0] and one.stats()["cpuset"]["mems"] == [0]


@pytest.fixture
def loop(tmp_path):
    """A block device of 64 MiB, and its numbers."""
    if os.geteuid() != 0 or not os.path.exists("/dev/loop-control"):
        pytest.skip("loop devices take root and /dev/loop-control")
    disk = tmp_path / "disk"
    disk.write_bytes(b"\1" * 64 * MIB)
    program = ["losetup", "-f", "--show", disk]
    device = subprocess.run(program, capture_output=True, text=True, check=True).stdout.strip()
    number = os.stat(device).st_rdev
    yield device, {"major": os.major(number), "minor": os.minor(number)}
    subprocess.run(["losetup", "-d", device], check=True)


TRANSFER = """
import mmap
kind, size, seconds = {}
buffer = mmap.mmap(-1, size)
fd = os.open({!r}, os.O_RDWR | os.O_DIRECT)
end, count = time.monotonic() + seconds, 0
begin = time.monotonic()
while time.monotonic() < end:
    (os.preadv if kind == 'read' else os.pwritev)(fd, [buffer], count * size % (32 << 20))
    count += 1
print(count, time.monotonic() - begin)
"""


@pytest.mark.parametrize("kind, unit", [("read", "Bps"), ("write", "Bps"), ("read", "IOPS"), ("write", "IOPS")])
def test_block_io_is_throttled(cgroup, inside, loop, kind, unit):
    device, numbers = loop
    rate, size = (2 * MIB, 128 << 10) if unit == "Bps" else (40, 4096)
    rule = {f"throttle{kind.capitalize()}{unit}Device": [{**numbers, "rate": rate}]}
    allow = [{"allow": True, "type": "b", **numbers, "access": "rw"}]
    one = cgroup({"blockIO": rule, "devices": allow}, "blkio")
    count, elapsed = map(float, inside(one, TRANSFER.format((kind, size, 1), device)).result().split())
    done = count * size if unit == "Bps" else count
    assert 0 < done < 3 * rate * elapsed  # without it, thirty times that and more
    name = "ioServiceBytesRecursive" if unit == "Bps" else "ioServicedRecursive"
    rows = one.stats()["blkio"][name]
    counted = sum(row["value"] for row in rows if row["op"] == kind.capitalize() and row["minor"] == numbers["minor"])
    assert done <= counted <= done + (1 << 20 if unit == "Bps" else 100)
    assert [limit.limit for limit in one.limits() if limit.controller == "blkio"] == [rate]
    one.apply({"blockIO": {name: [{**row, "rate": 0} for row in rows] for name, rows in rule.items()}})
    more, elapsed = map(float, inside(one, TRANSFER.format((kind, size, 0.5), device)).result().split())
    assert more / elapsed > 3 * rate / (size if unit == "Bps" else 1)


def test_weights_of_block_io_are_set(cgroup):
    one = cgroup({}, "blkio")
    place = one.places["blkio"]
    weights = [f"{place.folder}/{name}" for name in ("blkio.bfq.weight", "blkio.weight", "io.bfq.weight", "io.weight")]
    if not any(map(os.path.exists, weights)):
        with pytest.raises(ContainerError, match="blockIO.weight: this kernel has no"):
            one.apply({"blockIO": {"weight": 300}})
        return
    one.apply({"blockIO": {"weight": 300}})
    with open(next(filter(os.path.exists, weights))) as file:
        assert file.read().split()[-1] in ("300", "2930")


def test_huge_pages_are_limited(cgroup, inside):
    one = cgroup({"hugepageLimits": [{"pageSize": "2MB", "limit": 2 * MIB}]}, "hugetlb")
    pool = "/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages"
    with open(pool) as file:
        before = file.read()
    with open(pool, "w") as file:
        file.write(str(int(before) + 3))
    try:
        with open(pool) as file:
            if int(file.read()) < int(before) + 3:
                pytest.skip("the host hasn't three huge pages to spare")
        code = """
import mmap
maps = []
try:
    for _ in range(2):
        maps.append(mmap.mmap(-1, 2 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x40000))
        maps[-1][0] = 1
except OSError as error:
    print(len(maps), error.errno, flush=True)
time.sleep(100)
"""
        assert inside(one, code).line() == f"1 {errno.ENOMEM}"
        assert one.stats()["hugetlb"]["2MB"]["usage"] == 2 * MIB
        (limit,) = [limit for limit in one.limits() if limit.what == "pages of 2MB"]
        assert (limit.limit, limit.use) == (2 * MIB, 2 * MIB)
    finally:
        one.kill()
        one.delete()
        with open(pool, "w") as file:
            file.write(before)


COUNT = "n = 0\nwhile True:\n    n += 1\n    os.pwrite(1, b'%020d' % n, 0)\n    time.sleep(0.001)"


def test_frozen_processes_stand_still(cgroup, inside, tmp_path):
    one = cgroup({}, "freezer")
    counter = tmp_path / "counter"
    with open(counter, "w") as file:
        process = subprocess.Popen(["python3", "-c", "import os, time\n" + COUNT], stdout=file)
    try:
        one.add(process.pid)
        _wait_change(counter)
        one.freeze()
        assert one.frozen()
        before = counter.read_bytes()
        time.sleep(0.1)
        assert counter.read_bytes() == before
        one.thaw()
        assert not one.frozen()
        _wait_change(counter)
        one.freeze()
        one.kill()  # reaches it all the same
        assert process.wait(10) == -signal.SIGKILL
    finally:
        process.kill()
        process.wait()


def _wait_change(path):
    before, end = path.read_bytes(), time.monotonic() + 30
    while path.read_bytes() == before:
        assert time.monotonic() < end
        time.sleep(0.005)


def test_statistics_are_as_runcs(cgroup, inside):
    """Every key that runc's events have for the same cgroup, and the same limits."""
    busybox = shutil.which("busybox")
    if not shutil.which("runc") or not busybox:
        pytest.skip("runc or busybox isn't installed")
    one = cgroup({"memory": {"limit": 64 * MIB}, "pids": {"limit": 9}}, "memory", "pids")
    name = f"hostel-stats-{os.getpid()}"
    path = "/" + one.folders()[-1].partition("hostel-test-")[1] + one.folders()[-1].partition("hostel-test-")[2]
    with tempfile.TemporaryDirectory() as bundle:
        subprocess.run(["runc", "spec"], cwd=bundle, check=True)
        with open(f"{bundle}/config.json") as file:
            config = json.load(file)
        os.mkdir(f"{bundle}/rootfs")
        shutil.copy(busybox, f"{bundle}/rootfs/busybox")
        config["process"] |= {"args": ["/busybox", "sleep", "100"], "terminal": False}
        config["linux"]["cgroupsPath"] = path
        config["linux"]["resources"] |= {"memory": {"limit": 64 * MIB}, "pids": {"limit": 9}}
        with open(f"{bundle}/config.json", "w") as file:
            json.dump(config, file)
        one.delete()
        program = ["runc", "--log", f"{bundle}/log", "run", "-d", name]
        quiet = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.DEVNULL)
        if subprocess.run(program, cwd=bundle, **quiet).returncode:
            with open(f"{bundle}/log") as log:
                pytest.skip(f"runc doesn't run here: {log.read().strip()[-200:]}")
        try:
            events = subprocess.run(["runc", "events", "--stats", name], capture_output=True, text=True, check=True)
            theirs, ours = json.loads(events.stdout)["data"], json.loads(json.dumps(one.stats()))
        finally:
            subprocess.run(["runc", "delete", "-f", name], check=True)
    lenient = one.places["memory"].version == 2
    assert _missing(theirs, ours, lenient) == []
    assert ours["memory"]["usage"]["limit"] == theirs["memory"]["usage"]["limit"] == 64 * MIB
    assert ours["pids"] == theirs["pids"]
    told = {name: value for name, value in theirs["cpuset"].items() if value or name in ours["cpuset"] or not lenient}
    assert ours["cpuset"] == told | {name: ours["cpuset"][name] for name in ("cpus", "mems")}


def _missing(theirs, ours, lenient, path=""):
    """``lenient``: v2 hasn't all of v1's; what is 0 and left out reads the same to who reads it by runc's types."""
    if not isinstance(theirs, dict):
        return []
    return [
        found for key, inner in theirs.items() if inner or key in ours or not lenient
        for found in ([f"{path}.{key}"] if key not in ours else _missing(inner, ours[key], lenient, f"{path}.{key}"))
    ]  # fmt: skip
