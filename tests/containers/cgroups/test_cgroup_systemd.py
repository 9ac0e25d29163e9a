"""Cgroups by systemd: a real one, booted in namespaces and cgroups of its own over the host's files. It starts nothing
but a bus, and may not write what is the whole kernel's (/proc/sys)."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest

from hostel.base.errors import ContainerError
from hostel.containers.cgroups import open_cgroup, systemd
from hostel.containers.cgroups.hierarchy import find
from hostel.containers.cgroups.setting import put

BOOT = """
set -e
mount --make-rprivate /
mount -t tmpfs tmpfs {0}
mkdir {0}/upper {0}/work {0}/root
mount -t overlay overlay -o lowerdir=/,upperdir={0}/upper,workdir={0}/work {0}/root
cd {0}/root
mount -t proc proc proc
mount --bind proc/sys proc/sys
mount -o remount,bind,ro proc/sys
mount -t sysfs sysfs sys
mount -t tmpfs tmpfs run
mount --rbind /dev dev
mount -t tmpfs tmpfs sys/fs/cgroup
{1}
rm -rf etc/systemd/system
mkdir -p etc/systemd/system
cd etc/systemd/system
unit='[Unit]\\nDefaultDependencies=no\\n'
printf "$unit"'Requires=dbus.service\\nAfter=dbus.service\\n' > probe.target
printf "$unit"'[Socket]\\nListenStream=/run/dbus/system_bus_socket\\n' > dbus.socket
printf "$unit"'Requires=dbus.socket\\nAfter=dbus.socket\\n[Service]\\nType=notify\\nExecStart=%s\\n' \
    '/usr/bin/dbus-daemon --system --address=systemd: --nofork --nopidfile --syslog-only' > dbus.service
cd ../../..
exec env -i container=hostel PATH=/usr/sbin:/usr/bin:/sbin:/bin chroot . \
    /lib/systemd/systemd --system --unit=probe.target --log-target=console --show-status=false
"""


@pytest.fixture(params=["hybrid", "unified"])
def host(request, cgroup, tmp_path):
    """``host(code)``: run a Python program where systemd runs; what it prints, as JSON. With v1's hierarchies and v2's,
    or v2's alone, which has few controllers where others are in use by v1."""
    if not all(map(os.path.exists, ("/lib/systemd/systemd", "/usr/bin/busctl", "/usr/bin/dbus-daemon"))):
        pytest.skip("systemd and dbus aren't installed")
    if not shutil.which("unshare"):
        pytest.skip("unshare isn't installed")
    one = cgroup()
    mounts = []
    for name, place in one.places.items():
        if place.version == 1 and request.param == "hybrid":
            folder = name.removeprefix("name=")
            mounts.append(f"mkdir sys/fs/cgroup/{folder}; mount -t cgroup -o {name} cgroup sys/fs/cgroup/{folder}"
                          .replace("-o name=", "-o none,name="))  # fmt: skip
    if request.param == "unified" and not one.unified:
        pytest.skip("the host has no cgroup v2")
    if one.unified:
        point = "sys/fs/cgroup/unified" if mounts else "sys/fs/cgroup"
        mounts.append(f"mkdir -p {point}; mount -t cgroup2 cgroup2 {point}")
    script = tmp_path / "boot"
    (tmp_path / "mnt").mkdir()
    script.write_text(BOOT.format(tmp_path / "mnt", "\n".join(mounts)))
    enter = (
        "import os, sys\nfor file in sys.argv[2:]: open(file, 'w').write('0')\n"
        "os.execvp('unshare', ['unshare', '-mpiuC', '--fork', 'sh', sys.argv[1]])"
    )
    program = [sys.executable, "-S", "-c", enter]
    with open(tmp_path / "log", "w") as log:
        process = subprocess.Popen([*program, script, *one.entries()], stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        leader = 0
        end = time.monotonic() + 30

        def inside(*command):
            program = ["nsenter", "-t", str(leader), "-a", "--root", "--wdns=/", *command]
            return subprocess.run(program, capture_output=True, text=True)

        while True:
            with open(f"/proc/{process.pid}/task/{process.pid}/children") as children:
                leader = int((children.read().split() or [0])[0])
            if leader and inside("busctl", "--system", "get-property", *systemd._MANAGER, "Version").returncode == 0:
                break
            if time.monotonic() > end or process.poll() is not None:
                pytest.skip(f"systemd doesn't boot here: {(tmp_path / 'log').read_text()[-300:]}")
            time.sleep(0.1)
        if one.unified:  # where unshare still is; a cgroup with processes gives its controllers to none below it
            put(find().v2.point, "cgroup.procs", str(process.pid))

        def run(code):
            paths = [os.path.dirname(os.path.dirname(sys.modules["hostel"].__file__))]
            start = f"import json, os, subprocess, sys, time\nsys.path[:0] = {paths}\n"
            told = inside(sys.executable, "-c", start + code)
            assert told.stderr == "", told.stderr
            return json.loads(told.stdout)

        yield run
    finally:
        process.send_signal(signal.SIGKILL)
        if leader:
            os.kill(leader, signal.SIGKILL)
        process.wait()


PROGRAM = """
from hostel.base.errors import ContainerError
from hostel.containers.cgroups import Cgroup, open_cgroup
def show(unit, *names):
    said = subprocess.run(["systemctl", "show", unit, *("-p" + name for name in names)], capture_output=True, text=True)
    return dict(line.split("=", 1) for line in said.stdout.splitlines())
one = open_cgroup("machine-foo.slice:hostel:x", "x", systemd=True)
limits = {"memory": {"limit": 64 << 20}, "pids": {"limit": 7}, "cpu": {"shares": 300},
          "hugepageLimits": [{"pageSize": "2MB", "limit": 4 << 20}]}
limits = {name: limit for name, limit in limits.items()
          if {"hugepageLimits": "hugetlb"}.get(name, name) in one.places}
told = {"limits": list(limits)}
one.check(limits)
one.create()
one.apply(limits)
told |= {"empty": one.pids(), "placeholder": len(one.placeholders)}
nowhere = subprocess.DEVNULL
sleeper = subprocess.Popen(["sleep", "1000"], stdout=nowhere, stderr=nowhere)
one.add(sleeper.pid)
told["pids"] = one.pids() == [sleeper.pid]
told["where"] = {line.strip().split(":", 2)[1]: line.strip().split(":", 2)[2]
                 for line in open(f"/proc/{sleeper.pid}/cgroup")}
told["places"] = list({name if place.version == 1 else "": 0 for name, place in one.places.items()})
told["unit"] = show("hostel-x.scope", "ActiveState", "Slice", "Delegate", "Description")
other = open_cgroup("machine-foo.slice:hostel:x", "x", systemd=True)
try:
    other.create()
except ContainerError as error:
    told["twice"] = str(error)
subprocess.run(["systemctl", "daemon-reload"], check=True)
time.sleep(0.5)
told["after"] = {row.what: row.limit for row in one.limits()}
told["alive"] = sleeper.poll() is None
again = Cgroup.from_state(json.loads(json.dumps(one.state())))
again.kill()
sleeper.wait()
again.delete()
end = time.monotonic() + 10
while (state := show("hostel-x.scope", "ActiveState")) != {"ActiveState": "inactive"} and time.monotonic() < end:
    time.sleep(0.05)
told["gone"] = state
told["left"] = [path for path in one.folders() if os.path.exists(path) or os.path.exists(os.path.dirname(path))]
print(json.dumps(told))
"""


def test_a_scope_of_systemds(host):
    told = host(PROGRAM)
    scope = "/machine.slice/machine-foo.slice/hostel-x.scope"
    assert told["empty"] == [] and told["placeholder"] == 1 and told["pids"]
    assert {told["where"][name] for name in told["places"]} == {f"{scope}/container"}
    assert told["unit"] == {
        "ActiveState": "active", "Slice": "machine-foo.slice", "Delegate": "yes", "Description": "container x",
    }  # fmt: skip
    assert "already exists" in told["twice"] or "already loaded" in told["twice"]
    assert told["alive"]
    assert told["limits"]
    for name, what, limit in (("memory", "memory", 64 << 20), ("pids", "processes and threads", 7),
                              ("hugepageLimits", "pages of 2MB", 4 << 20)):  # fmt: skip
        assert name not in told["limits"] or told["after"][what] == limit
    assert told["gone"]["ActiveState"] == "inactive" and told["left"] == []


RUNTIME = """
import shutil
from hostel.containers import spec
bundle = "/tmp/bundle"
os.makedirs(bundle + "/rootfs/proc")
shutil.copy(shutil.which("busybox"), bundle + "/rootfs/busybox")
config = spec.default()
config["process"] |= {"terminal": False, "args": ["/busybox", "sleep", "1000"]}
config["linux"] |= {"cgroupsPath": "machine.slice:podman:boxed"}
with open(bundle + "/config.json", "w") as file:
    json.dump(config, file)
def runtime(*words):
    quiet = dict(stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    with open("/tmp/told", "w+") as told:
        program = [sys.executable, "-m", "hostel.containers.oci", "--systemd-cgroup", *words]
        status = subprocess.run(program, cwd=bundle, stderr=told, **quiet).returncode
        told.seek(0)
        return [status, told.read()]
def active():
    said = subprocess.run(["systemctl", "is-active", "podman-boxed.scope"], capture_output=True, text=True)
    return said.stdout.strip()
told = {"run": runtime("run", "-d", "--pid-file", "/tmp/pid", "boxed")}
with open("/tmp/pid") as file:
    told["where"] = open(f"/proc/{file.read().strip()}/cgroup").read().splitlines()[-1]
time.sleep(0.3)
told["active"] = active()
told["delete"] = runtime("delete", "-f", "boxed")
end = time.monotonic() + 10
while (state := active()) != "inactive" and time.monotonic() < end:
    time.sleep(0.05)
told["then"] = state
print(json.dumps(told))
"""


def test_a_container_in_a_scope(host):
    if not shutil.which("busybox"):
        pytest.skip("busybox isn't installed")
    assert host(RUNTIME) == {
        "run": [0, ""], "where": "0::/machine.slice/podman-boxed.scope/container", "active": "active",
        "delete": [0, ""], "then": "inactive",
    }  # fmt: skip


def test_names():
    assert systemd.named("a-b.slice:podman:id", "id", False) == ("a-b.slice", "podman-id.scope")
    assert systemd.named(":pre:id", "id", True) == ("user.slice", "pre-id.scope")
    assert systemd.named("::id", "id", False) == ("system.slice", "id.scope")
    assert systemd.named(None, "id", False) == ("system.slice", "hostel-id.scope")
    for path in ("/a/b", "a:b", "a.slice:b:", "a.slice:b:c d", "a.slice:b:/c"):
        with pytest.raises(ContainerError, match=f"linux.cgroupsPath '{path}'"):
            systemd.named(path, "id", False)


def test_slices_are_folders():
    assert systemd.folder_of("-.slice") == ""
    assert systemd.folder_of("a-b-c.slice") == "/a.slice/a-b.slice/a-b-c.slice"
    for name in ("a", "a--b.slice", "-a.slice", ".slice"):
        with pytest.raises(ContainerError, match="no name of a slice"):
            systemd.folder_of(name)


def test_without_systemd_it_is_refused_by_name(monkeypatch):
    monkeypatch.setattr(systemd, "_RUNNING", "/proc/none")
    with pytest.raises(ContainerError, match="this host doesn't run systemd: leave out --systemd-cgroup"):
        open_cgroup("user.slice:hostel:x", "x", systemd=True)
