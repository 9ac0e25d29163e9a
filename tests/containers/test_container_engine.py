"""Containers by the SDK: real namespaces, cgroups and processes, seen from inside and from the host."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from tests.containers.bundles import nobody, nobodys_python

from hostel.base import paths
from hostel.base.errors import ContainerError, HostelError, MachineError, UsageError
from hostel.client.container import Container
from hostel.containers import engine, store
from hostel.spec.container import ContainerSpec

NONE = {"networks": ["none"]}


def wait_until(condition, seconds=20.0):
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "it didn't come"
        time.sleep(0.02)
    return found


def run(image, *command, **options):
    """A container in the background."""
    return Container.run(image, command=command, detach=True, **{**NONE, **options})


def mounts_below(path):
    return [line for line in Path("/proc/mounts").read_text().splitlines() if str(path) in line.split()[1]]


def cgroups_of(container):
    return list(Path("/sys/fs/cgroup").glob(f"**/{engine.identity(container.folder)}"))


def is_gone(container):
    return not mounts_below(container.folder) and not cgroups_of(container)


def test_a_command_its_streams_and_its_status(box):
    with run(box, "sleep", "1000", env=["A=b"], user="user", workdir="/srv", hostname="there") as container:
        script = "id -u; id -G; pwd; hostname; echo $A $IMAGE $HOME; cat; echo no >&2; exit 3"
        told = container.exec(["sh", "-c", script], input="in")
        assert told.stdout == "1000\n1000 1001\n/srv\nthere\nb yes /home\nin"
        assert (told.stderr, told.status) == ("no\n", 3)
        assert container.exec(["id", "-u"], user="0:1001").stdout == "0\n"
        assert container.exec(["nosuch"]).status == 127
        assert container.exec(["/etc/passwd"]).status == 126
        assert container.exec(["sh", "-c", "kill -9 $$"]).status == 137
        container.rm(force=True)
    assert is_gone(container) and not container.folder.exists()


def test_what_is_large_gets_through_both_ways(box):
    data = os.urandom(1 << 20)
    container = run(box, "sleep", "1000")
    told = container.exec(["cat"], input=data, text=False)
    assert told.stdout == data and told.status == 0


def test_namespaces_of_its_own(box):
    container = run(box, "sleep", "1000", hostname="apart")
    pid = container.state.init
    for kind in ("pid", "net", "ipc", "uts", "mnt", "cgroup"):
        assert os.readlink(f"/proc/{pid}/ns/{kind}") != os.readlink(f"/proc/self/ns/{kind}"), kind
    told = container.explain()
    by_kind = {row["namespace"]: row for row in told["namespaces"]}
    assert by_kind["uts"]["container"] == "apart" and by_kind["uts"]["host"] == os.uname().nodename
    assert by_kind["pid"]["own"] and by_kind["pid"]["container"].startswith("1 process; the first is 1 inside")
    assert by_kind["pid"]["inode"] == os.stat(f"/proc/{pid}/ns/pid").st_ino
    assert by_kind["net"]["container"] == "lo 127.0.0.1"
    assert "overlay" in by_kind["mnt"]["container"]
    assert not by_kind["user"]["own"]
    assert container.exec(["sh", "-c", "ls /proc | grep -c '^[0-9]'"]).stdout.strip() in ("3", "4")


def test_limits_hold_and_are_shown_beside_their_use(box):
    container = run(box, "sleep", "1000", memory="32M", pids_limit=20, cpus=0.5, ulimits=["nofile=64:128"])
    rows = {(row["controller"], row["what"]): row for row in container.explain()["limits"]}
    assert rows["memory", "memory"]["limit"] == 32 << 20 and 0 < rows["memory", "memory"]["use"] < 32 << 20
    assert rows["pids", "processes and threads"]["limit"] == 20
    assert rows["cpu", "CPUs at once"]["limit"] == 0.5
    assert container.exec(["sh", "-c", "ulimit -n; ulimit -Hn"]).stdout == "64\n128\n"
    bomb = container.exec(["sh", "-c", "for i in $(seq 40); do sleep 5 & done; echo never"])
    assert "never" not in bomb.stdout and "fork" in bomb.stderr
    container.update(pids_limit=30, memory=64 << 20)
    rows = {(row["controller"], row["what"]): row for row in container.explain()["limits"]}
    assert rows["memory", "memory"]["limit"] == 64 << 20
    assert rows["pids", "processes and threads"]["limit"] == 30
    assert container.spec.pids_limit == 30


def test_out_of_memory_is_told(box):
    container = run(box, "sh", "-c", "x=a; while true; do x=$x$x; done", memory="16M", name="hungry")
    state = container.wait(timeout=60)
    assert (state.state, state.exit_status) == ("stopped", 137)
    assert state.reason == "out of memory" and state.oom_kills > 0
    assert is_gone(container)


def test_capabilities_read_only_root_tmpfs_volumes(box, tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in/file").write_text("host's")
    (tmp_path / "one").write_text("a file")
    container = run(
        box, "sleep", "1000", cap_drop=["ALL"], cap_add=["NET_RAW"], read_only=True, tmpfs=["/tmp:size=1M"],
        shares=[f"{tmp_path}/in:/srv/in:ro", f"{tmp_path}/one:/etc/one"], security=["no-new-privileges"],
    )
    assert int(container.exec(["sh", "-c", "grep CapEff /proc/1/status"]).stdout.split()[1], 16) == 1 << 13
    assert container.exec(["touch", "/new"]).status != 0
    assert container.exec(["sh", "-c", "dd if=/dev/zero of=/tmp/x bs=1k count=2000"]).status != 0
    assert container.exec(["cat", "/srv/in/file", "/etc/one"]).stdout == "host'sa file"
    assert container.exec(["touch", "/srv/in/new"]).status != 0
    assert container.exec(["sh", "-c", "echo more > /etc/one"]).status == 0
    assert (tmp_path / "one").read_text() == "more\n"
    told = container.explain()["privileges"]
    assert told["capabilities"] == ["CAP_NET_RAW"] and told["no_new_privs"] and told["seccomp"] == "filter"


def test_it_goes_on_where_it_was_after_stop_and_start(box):
    container = run(box, "sh", "-c", "echo begins; trap 'echo ends; exit 4' TERM; while true; do sleep 0.05; done")
    wait_until(lambda: b"begins" in container.logs())
    container.exec(["touch", "/srv/kept"])
    container.stop()
    state = container.state
    assert (state.state, state.reason, state.exit_status) == ("stopped", "stopped", 4)
    assert container.logs() == b"begins\nends\n" and is_gone(container)
    with pytest.raises(MachineError, match="is not running"):
        container.exec(["true"])
    container.start()
    assert container.exec(["ls", "/srv"]).stdout == "kept\n"
    container.pause()
    assert container.state.state == "paused"
    with pytest.raises(MachineError, match="is paused; 'hostel resume"):
        container.exec(["true"])
    container.resume()
    assert container.exec(["true"]).status == 0
    container.pause()
    container.kill()
    assert container.state.reason == "killed" and is_gone(container)


def test_a_stop_signal_that_is_not_heeded(box):
    container = run(box, "sh", "-c", "trap '' USR1; echo on; while true; do sleep 0.05; done", stop_signal="USR1",
                    stop_timeout=0.3)  # fmt: skip
    wait_until(lambda: b"on" in container.logs())
    container.stop()
    assert container.state.exit_status == 137


def test_init_reaps_and_forwards(box):
    container = run(box, "sh", "-c", "trap 'echo got; exit 9' HUP; echo on; while true; do sleep 0.05; done", init=True)
    wait_until(lambda: b"on" in container.logs())
    assert container.exec(["cat", "/proc/1/comm"]).stdout == ".hostel-init\n"
    container.exec(["sh", "-c", "(sh -c 'sleep 0.01 & exec true' &); true"])
    wait_until(lambda: " Z" not in container.exec(["ps", "-o", "stat"]).stdout)
    container.signal(signal.SIGHUP)
    state = container.wait(timeout=20)
    assert state.exit_status == 9 and container.logs() == b"on\ngot\n"


def test_restart_policies(box):
    container = run(box, "sh", "-c", "echo again; exit 3", restart="on-failure:2")
    state = container.wait(timeout=30)
    assert (state.restarts, state.exit_status) == (2, 3) and container.logs() == b"again\n" * 3
    container = run(box, "sh", "-c", "echo once", restart="on-failure")
    assert container.wait(timeout=30).restarts == 0
    container = run(box, "true", restart="always")
    wait_until(lambda: container.state.restarts >= 2)
    container.stop()
    assert container.state.state == "stopped" and container.state.by_hand and is_gone(container)


def test_health(box):
    container = run(box, "sleep", "1000", health_command="test -e /srv/well", health_interval="100ms", health_retries=2)
    wait_until(lambda: container.state.health == "unhealthy")
    container.exec(["touch", "/srv/well"])
    wait_until(lambda: container.state.health == "healthy")
    assert container.inspect()["health_log"][-1]["status"] == 0


def test_a_log_keeps_streams_apart_and_turns_over(box):
    container = run(box, "sh", "-c", "echo out; echo err >&2; printf '\\377half'; seq 3000", log_size=16384)
    container.wait(timeout=30)
    assert b"2999\n3000\n" in container.logs()
    sizes = [os.path.getsize(container.folder / name) for name in ("container.log", "container.log.1")]
    assert sum(sizes) < 2 * 16384 + 8192
    container = run(box, "sh", "-c", "echo out; sleep 0.1; echo err >&2; printf '\\377half'")
    container.wait(timeout=30)
    entries = list(container.log_entries())
    assert [entry["stream"] for entry in entries] == ["stdout", "stderr", "stdout"]
    assert container.logs() == b"out\nerr\n\xffhalf"


def test_copies_both_ways(box, tmp_path):
    container = run(box, "sleep", "1000", name="full")
    (tmp_path / "tree/sub").mkdir(parents=True)
    (tmp_path / "tree/sub/file").write_text("content")
    os.link(tmp_path / "tree/sub/file", tmp_path / "tree/same")
    (tmp_path / "tree/link").symlink_to("/etc/passwd")
    container.copy_in(str(tmp_path / "tree"), "/srv")
    assert container.exec(["cat", "/srv/tree/same"]).stdout == "content"
    assert container.exec(["stat", "-c", "%h", "/srv/tree/same"]).stdout == "2\n"
    container.copy_out("/srv/tree", str(tmp_path / "back"))
    assert (tmp_path / "back/sub/file").read_text() == "content"
    assert os.readlink(tmp_path / "back/link") == "/etc/passwd"
    container.exec(["ln", "-s", str(tmp_path), "/srv/out"])  # a link doesn't lead out of the container
    with pytest.raises(MachineError):
        container.copy_in(str(tmp_path / "tree/sub/file"), f"/srv/out/{os.urandom(4).hex()}/")
    with pytest.raises(MachineError, match="No such file"):
        container.copy_out("/srv/out/back", str(tmp_path / "never"))
    container.stop(timeout=0)
    container.copy_out("/srv/tree/sub", str(tmp_path / "stopped"))
    assert (tmp_path / "stopped/file").read_text() == "content" and not mounts_below(container.folder)


def test_the_monitor_is_killed(box):
    container = run(box, "sleep", "1000", name="orphan")
    state = container.state
    os.kill(state.pid, signal.SIGKILL)
    wait_until(lambda: engine.start_time(state.init) == 0 or _is_zombie(state.init))  # it ends with its monitor
    state = container.state
    assert (state.state, state.reason) == ("died", "its monitor was killed") and is_gone(container)
    container.start()
    assert container.exec(["true"]).status == 0
    container.rm(force=True)
    assert is_gone(container) and not container.folder.exists()


def _is_zombie(pid):
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"


def test_who_started_it_is_killed(box, home):
    program = (
        "from hostel.client.container import Container\n"
        "import sys\n"
        "c = Container.run('box', command=['sleep', '1000'], name='held', networks=['none'])\n"
        "print(c.state.init, flush=True); sys.stdin.read()"
    )
    pipe = subprocess.PIPE
    starter = subprocess.Popen([sys.executable, "-c", program], stdin=pipe, stdout=pipe, text=True)
    pid = int(starter.stdout.readline())
    starter.kill()
    starter.wait()
    container = Container.get("held")
    state = container.wait(timeout=20)
    assert state.reason == "killed: who started it has ended"
    assert engine.start_time(pid) == 0 and is_gone(container)
    starter.stdin.close()
    starter.stdout.close()


@pytest.mark.slow
def test_monitors_and_starters_are_killed_at_random_moments(box):
    """Whatever is killed when: the state says what is, nothing is left, and it can be started and removed."""
    import random

    rng = random.Random(7)
    program = (
        "from hostel.client.container import Container\n"
        "Container.run('box', command=['sleep', '1000'], name='victim', networks=['none'], detach=True)"
    )
    for round in range(40):
        starter = subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.DEVNULL)
        time.sleep(rng.uniform(0.05, 0.7))
        if rng.random() < 0.5:
            starter.kill()
        starter.wait()
        folder = store.Folder(store.paths.containers() / "victim")
        if not (folder.path / "container.json").exists():
            continue
        container = Container.get("victim")
        pid = folder.read_state().pid
        if pid and folder.owned() and rng.random() < 0.8:
            os.kill(pid, signal.SIGKILL)
            folder.wait_free(5.0)
        deadline = time.monotonic() + 20
        while (state := container.state).state in ("starting", "created") and folder.owned():
            assert time.monotonic() < deadline
            time.sleep(0.02)
        if state.state != "running":
            assert folder.wait_free(20.0), (round, state)  # its starter or a part of the monitor may still be at it
            if container.state.state != "running":
                assert is_gone(container), (round, state)
                container.start()
        assert container.exec(["echo", "here"]).stdout == "here\n"
        container.rm(force=True)
        assert is_gone(container) and not folder.path.exists()


@pytest.mark.parametrize(
    "options, why",
    [
        ({"memory": "1K"}, "at least 4M of memory"), ({"cpus": "many"}, "0.01 to 4096 processors"),
        ({"cap_add": ["no cap"]}, "is no capability"), ({"shares": ["/none:/x"]}, "can't share /none"),
        ({"shares": ["/etc:x"]}, "from the root"), ({"tmpfs": ["/t:what"]}, "'what' is none of"),
        ({"restart": "sometimes"}, "--restart takes"), ({"restart": "always", "rm": True}, "don't go together"),
        ({"ulimits": ["nofile=9:1"]}, "above the hard one"), ({"ulimits": ["what=1"]}, "is no limit"),
        ({"sysctls": ["nonsense"]}, "is no sysctl"), ({"sysctls": ["kernel.panic=1"]}, "all the host's"),
        ({"user": "nobody-there"}, "the image has no user"), ({"user": "0:nope"}, "the image has no group"),
        ({"workdir": "relative"}, "a folder from the root"), ({"stop_signal": "WHAT"}, "is no signal"),
        ({"devices": ["/etc/passwd"]}, "is no device"), ({"security": ["seccomp=/none"]}, "there is no file"),
        ({"networks": ["tap:x"]}, "can't be on tap:x"), ({"networks": ["nowhere"]}, "no network named 'nowhere'"),
        ({"hostname": "-x"}, "is no host name"), ({"health_interval": "5s"}, "has no health check"),
        ({"env": ["=x"]}, "is not KEY=VALUE"), ({"name": "A B"}, "is no name"),
        ({"memory": "64M", "memory_swap": "32M"}, "can't be less than --memory"),
        ({"tmpfs": ["/a"], "shares": ["/etc:/a"]}, "can't both be /a"), ({"entrypoint": "/none"}, "/none"),
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_refused_and_leaves_nothing(box, home, options, why):
    with pytest.raises(HostelError, match=why) as refused:
        Container.run(box, command=["true"], detach=True, **{**NONE, **options})
    assert "\n" not in str(refused.value)
    assert not mounts_below(home)
    made = os.listdir(home / "containers") if (home / "containers").is_dir() else []
    assert set(made) <= {".runtime"} and not list((home / "containers").glob(".runtime/[!.]*"))


def test_names_are_shared_with_vms(box, start):
    vm = start("taken")
    with pytest.raises(MachineError, match="a VM named 'taken' exists already"):
        run(box, "true", name="taken")
    assert vm.state.state == "running"
    container = run(box, "sleep", "100", name="other")
    from hostel.client.vm import VM

    with pytest.raises(MachineError, match="a container named 'other' exists already"):
        VM.run(name="other", kernel="/etc/hostname")
    container.rm(force=True)


def test_files_of_a_container_are_checked(box):
    container = run(box, "sleep", "100", name="one")
    container.stop(timeout=0)
    file = container.folder / "container.json"
    good = json.loads(file.read_text())
    damaged = ({**good, "version": 9}, "has version 9"), ({**good, "cpus": "x"}, "is damaged"), ([], "is damaged")
    for bad, why in damaged:
        file.write_text(json.dumps(bad))
        with pytest.raises(MachineError, match=why):
            container.start()
        with pytest.raises(MachineError, match=why):
            _ = container.spec
    file.write_text(json.dumps(good))
    container.start()


def test_an_image_without_a_command_and_one_that_is_not_there(box):
    with pytest.raises(UsageError, match="has no command"):
        Container.run(box, entrypoint="", detach=True, **NONE)


def test_users_are_looked_up_in_the_image_alone(tmp_path):
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/passwd").write_text("a:x:5:6:::\nbroken\nb:x:7:8::/b:\n")
    (tmp_path / "etc/group").symlink_to("/etc/group")  # in the image: of its own, which isn't there
    assert engine.find_user(tmp_path, "b") == {"uid": 7, "gid": 8, "groups": [], "home": "/b"}
    assert engine.find_user(tmp_path, "7:9") == {"uid": 7, "gid": 9, "groups": [], "home": "/b"}
    assert engine.find_user(tmp_path, "") == {"uid": 0, "gid": 0, "groups": [], "home": "/"}
    with pytest.raises(ContainerError, match="no group 'root'"):
        engine.find_user(tmp_path, "a:root")


def test_a_config_of_what_was_asked_for(tmp_path):
    (tmp_path / "etc").mkdir()
    spec = ContainerSpec(name="n", image="i", command=["x"], memory=1 << 26, cpus=1.5, init=True, cap_drop=["CAP_KILL"],
                         security=["seccomp=unconfined", "systempaths=unconfined"])  # fmt: skip
    config = engine.make_config(spec, tmp_path, tmp_path)
    assert config["process"]["args"] == [engine.INIT, "--", "x"]
    assert config["linux"]["resources"]["cpu"] == {"quota": 150000, "period": 100000}
    assert config["linux"]["resources"]["memory"] == {"limit": 1 << 26}
    assert "CAP_KILL" not in config["process"]["capabilities"]["bounding"]
    assert "seccomp" not in config["linux"] and "maskedPaths" not in config["linux"]


def test_the_rate_of_a_card(box):
    """What a container sends in two seconds to a server of the host's, by its router."""
    had = []

    def receive():
        peer = server.accept()[0]
        with peer:
            peer.settimeout(30)
            while data := peer.recv(1 << 16):
                had.append(len(data))

    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(30)
        receiver = threading.Thread(target=receive)
        receiver.start()
        container = run(box, "sleep", "1000", networks=["nat,rate=1M"], allow_host_loopback=True, name="slow")
        begin = time.monotonic()
        port = server.getsockname()[1]
        container.exec(["sh", "-c", f"timeout 2 dd if=/dev/zero bs=64k | nc 10.0.2.2 {port}"])
        receiver.join()
        assert 0 < sum(had) < 3 * (1 << 20) * (time.monotonic() - begin)
        rows = {row["what"]: row for row in container.explain()["limits"] if row["controller"] == "network"}
        assert [row["limit"] for row in rows.values()] == [1 << 20, 1 << 20]
        assert rows["sent by eth0"]["use"] >= sum(had)


def test_the_rate_of_its_disk(box):
    """Written around the page cache, where the container's own files are."""
    try:
        engine.disk_of(paths.home())
    except ContainerError as error:
        pytest.skip(str(error))
    write = ["sh", "-c", "dd if=/dev/zero of=/file bs=128k count=1000 oflag=direct & sleep 1; kill $!; wc -c < /file"]
    free = run(box, "sleep", "1000", name="free")
    if (told := free.exec(write)).status or not told.stdout.strip().isdecimal():
        pytest.skip(f"no direct I/O there: {told.stderr}")
    slow = run(box, "sleep", "1000", name="slow", disk_rate="2M")
    begin = time.monotonic()
    written = int(slow.exec(write).stdout)
    assert 0 < written < 3 * (2 << 20) * (time.monotonic() - begin) < int(told.stdout)
    rows = {row["what"].split()[0]: row for row in slow.explain()["limits"] if row["controller"] == "blkio"}
    assert rows["written"]["limit"] == rows["read"]["limit"] == 2 << 20 and rows["written"]["use"] >= written


def test_an_ordinary_user_s(box_images, tmp_path):
    """Rootless: a user namespace, a root of copied layers or fuse-overlayfs, no right to anything of the host's."""
    home = tmp_path / "rootless"
    home.mkdir()
    os.chown(home, 65534, 65534)
    shutil.copy(box_images / "box.tar", tmp_path / "box.tar")
    python, user = nobodys_python(), nobody(tmp_path)
    user["env"]["HOSTEL_HOME"] = str(home)

    def hostel(*words):
        return subprocess.run([python, "-m", "hostel.cli.main", *words], timeout=60, **user)

    assert hostel("image", "load", "--input", str(tmp_path / "box.tar")).returncode == 0
    script = "id -u; cat /proc/self/uid_map; touch /new; exit 3"
    done = hostel("run", "box", "--network", "none", "--", "sh", "-c", script)
    assert done.returncode == 3 and done.stdout.split() == ["0", "0", "65534", "1"], done
    assert hostel("run", "box", "-d", "--name", "one", "--network", "none", "--", "sleep", "1000").returncode == 0
    assert hostel("exec", "one", "--", "hostname").stdout == "one\n"
    refused = hostel("run", "box", "--memory", "64M", "--network", "none", "--", "true")
    assert refused.returncode == 125 and "memory" in refused.stderr and refused.stderr.count("\n") == 1
    assert hostel("rm", "-f", "one").returncode == 0 and os.listdir(home / "containers") == [".runtime"]
