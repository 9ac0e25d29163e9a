"""hostel-oci: a container's life, and what it sees, from inside and from the host."""

import json
import os
import subprocess
import time

import pytest
from tests.containers.bundles import COMMAND, nobody, nobodys_python

from hostel.containers.spec import NAMESPACES


def wait_for(what, seconds=20):
    until = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < until, "it never was so"
        time.sleep(0.01)


def test_a_containers_life(oci, bundle, tmp_path):
    bundle.script("echo hello; exec sleep 1000")
    out = tmp_path / "out"
    with open(out, "w") as file:
        words = [*COMMAND, "--root", str(oci.root), "create", "--bundle", str(bundle.write()), "--pid-file",
                 str(tmp_path / "pid"), "box"]  # fmt: skip
        assert subprocess.run(words, stdout=file, stderr=file, stdin=subprocess.DEVNULL).returncode == 0
    state = oci.state("box")
    assert (state["status"], state["id"], state["bundle"]) == ("created", "box", str(bundle.folder))
    assert (tmp_path / "pid").read_text() == str(state["pid"])
    assert out.read_text() == ""
    again = oci("create", "--bundle", bundle.folder, "box", check=False)
    assert again.returncode == 1 and "container with id exists: box" in again.stderr
    oci("start", "box")
    assert oci.state("box")["status"] == "running"
    assert open(f"/proc/{state['pid']}/comm").read() in ("sh\n", "sleep\n")
    wait_for(lambda: out.read_text() == "hello\n")
    refused = oci("start", "box", check=False)
    assert refused.returncode == 1 and "it is running" in refused.stderr
    refused = oci("delete", "box", check=False)
    assert refused.returncode == 1 and "not stopped" in refused.stderr
    assert [one["id"] for one in json.loads(oci("list", "--format", "json").stdout)] == ["box"]
    assert json.loads(oci("ps", "--format", "json", "box").stdout) == [state["pid"]]
    oci("pause", "box")
    assert oci.state("box")["status"] == "paused"
    oci("resume", "box")
    assert oci.state("box")["status"] == "running"
    oci("kill", "box", "KILL")
    wait_for(lambda: oci.state("box")["status"] == "stopped")
    assert oci("kill", "box", "TERM", check=False).returncode == 1
    oci("delete", "box")
    gone = oci("state", "box", check=False)
    assert gone.returncode == 1 and "does not exist" in gone.stderr
    oci("delete", "--force", "box")


def test_run_has_the_programs_status_and_leaves_nothing(oci, bundle):
    assert oci.run(bundle.script("exit 7"), check=False).returncode == 7
    assert oci.run(bundle.script("(sleep 1000 &); kill -KILL -1; exit 9"), check=False).returncode == 9
    assert [name for name in os.listdir(oci.root) if not name.startswith(".")] == []
    bundle.config["process"]["args"] = ["nothing-of-this-name"]
    missing = oci.run(bundle, check=False)
    assert missing.returncode == 1 and "executable file not found in $PATH" in missing.stderr
    bundle.config["process"]["args"] = ["/etc/passwd"]
    assert oci.run(bundle, check=False).returncode == 1


def test_every_namespace_is_its_own(oci, bundle):
    """From the host: other inodes; from inside: another machine."""
    bundle.namespaces().append({"type": "time"})
    bundle.config["linux"]["timeOffsets"] = {"boottime": {"secs": 1_000_000, "nanosecs": 0}}
    bundle.map_users()
    bundle.config["hostname"] = "inside"
    bundle.config["domainname"] = "example"
    pid = oci.detached(bundle.script("sleep 1000"))
    for kind, (_, name) in NAMESPACES.items():
        assert os.readlink(f"/proc/{pid}/ns/{name}") != os.readlink(f"/proc/self/ns/{name}"), kind

    def inside(text):
        return oci("exec", "box", "sh", "-c", text).stdout.strip()

    assert inside("hostname") == "inside"
    assert inside("cat /proc/sys/kernel/domainname") == "example"
    assert inside("cat /proc/1/comm") == "sleep"
    assert inside("ip -o link | wc -l") == "1" and "LOOPBACK,UP" in inside("ip -o link")
    assert inside("cat /proc/self/uid_map").split() == ["0", "200000", "65536"]
    assert inside("id -u") == "0" and os.stat(f"/proc/{pid}").st_uid in (0, 200000)
    assert float(inside("cat /proc/uptime").split()[0]) > 1_000_000
    assert set(inside("cat /proc/self/cgroup | grep -v '^$'").split("\n")) == {
        line.rpartition(":")[0] + ":/" for line in open("/proc/self/cgroup").read().split("\n") if line
    }
    assert inside("cat /proc/self/mountinfo").split("\n")[0].split()[4] == "/"
    assert "bundle" not in inside("ls /")
    assert inside("cat /proc/sysvipc/shm | wc -l") == "1"
    # and from the host
    assert f"\nUid:\t{200000}" in open(f"/proc/{pid}/status").read()
    assert f"NSpid:\t{pid}\t1\n" in open(f"/proc/{pid}/status").read()


def test_namespaces_are_joined_by_path(oci, bundle, tmp_path):
    first = oci.detached(bundle.script("sleep 1000"), "first")
    for namespace in bundle.namespaces():
        if namespace["type"] in ("network", "ipc", "uts", "pid"):
            namespace["path"] = f"/proc/{first}/ns/{NAMESPACES[namespace['type']][1]}"
    del bundle.config["hostname"]
    second = oci.detached(bundle.script("sleep 1000"), "second")
    for name in ("net", "ipc", "uts", "pid"):
        assert os.readlink(f"/proc/{first}/ns/{name}") == os.readlink(f"/proc/{second}/ns/{name}")
    assert os.readlink(f"/proc/{first}/ns/mnt") != os.readlink(f"/proc/{second}/ns/mnt")
    assert "sleep 1000" in oci("exec", "second", "sh", "-c", "cat /proc/1/cmdline | head -c 99").stdout.replace(
        "\0", " "
    )
    kind = "no namespace of this kind"
    for path, why in ((f"/proc/{first}/ns/mnt", kind), ("/etc/passwd", kind),
                      ("/nonexistent", "No such file")):  # fmt: skip
        bundle.namespaces()[:] = [{"type": "mount"}, {"type": "network", "path": path}]
        refused = oci.run(bundle, "third", check=False)
        assert refused.returncode == 1 and why in refused.stderr


def test_mounts_and_their_options(oci, bundle, tmp_path):
    host = tmp_path / "host"
    (host / "below").mkdir(parents=True)
    (host / "file").write_text("from the host")
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", host / "below"], check=True)
    try:
        bundle.config["mounts"] += [
            {"destination": "/mnt/bound", "type": "bind", "source": str(host), "options": ["rbind", "ro", "noexec"]},
            {"destination": "/mnt/all", "type": "bind", "source": str(host), "options": ["rbind", "rro"]},
            {"destination": "/mnt/one", "type": "none", "source": str(host), "options": ["bind"]},
            {"destination": "/deep/er/file", "type": "bind", "source": str(host / "file"), "options": ["bind"]},
            {"destination": "/etc", "type": "tmpfs", "source": "tmpfs", "options": ["tmpcopyup", "mode=700", "ro"]},
            {
                "destination": "/mnt/small",
                "type": "tmpfs",
                "source": "tmpfs",
                "options": ["size=4096", "nosuid", "sync"],
            },
        ]
        out = oci.run(bundle.script("""
            cat /deep/er/file; echo
            touch /mnt/bound/x 2>&1; touch /mnt/bound/below/y && echo below-bound
            touch /mnt/all/below/y 2>&1
            ls -d /mnt/one/below/y 2>&1; touch /mnt/one/z && echo one
            cat /etc/passwd | head -n 1; touch /etc/x 2>&1
            dd if=/dev/zero of=/mnt/small/x bs=4096 count=2 2>&1 | grep -o 'No space'
            mount | grep small
        """)).stdout  # fmt: skip
    finally:
        subprocess.run(["umount", host / "below"], check=True)
    for line in ("from the host", "touch: /mnt/bound/x: Read-only file system", "below-bound",
                 "touch: /mnt/all/below/y: Read-only file system", "ls: /mnt/one/below/y: No such file or directory",
                 "one",
                 "root:x:0:0:root:/root:/bin/sh", "touch: /etc/x: Read-only file system", "No space"):  # fmt: skip
        assert line in out, out
    assert "rw,sync,nosuid" in out
    assert (host / "z").exists() and not (bundle.rootfs / "etc/x").exists()


def test_propagation(oci, bundle, tmp_path):
    """A mount made on the host comes into a slave, and not into a private one."""
    host = tmp_path / "host"
    host.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", host], check=True)
    subprocess.run(["mount", "--make-shared", host], check=True)
    try:
        (host / "sub").mkdir()
        bundle.config["mounts"] += [
            {"destination": f"/mnt/{name}", "type": "bind", "source": str(host), "options": ["rbind", name]}
            for name in ("rslave", "rprivate", "rshared")
        ]
        oci.detached(bundle.script("sleep 1000"))
        subprocess.run(["mount", "-t", "tmpfs", "tmpfs", host / "sub"], check=True)
        (host / "sub/new").touch()
        seen = oci("exec", "box", "sh", "-c", "ls /mnt/*/sub").stdout
        assert "/mnt/rslave/sub:\nnew" in seen and "/mnt/rprivate/sub:\n\n" in seen
        info = oci("exec", "box", "cat", "/proc/self/mountinfo").stdout
        fields = {line.split()[4]: line for line in info.splitlines()}
        assert "master:" in fields["/mnt/rslave"] and "shared:" in fields["/mnt/rshared"]
        assert "master:" not in fields["/mnt/rprivate"] and "shared:" not in fields["/mnt/rprivate"]
    finally:
        oci("delete", "--force", "box", check=False)
        subprocess.run(["umount", "-R", host], check=True)


def test_masked_and_read_only_paths(oci, bundle):
    (bundle.rootfs / "secret").write_text("secret")
    (bundle.rootfs / "folder").mkdir()
    (bundle.rootfs / "folder/secret").write_text("secret")
    bundle.config["root"]["readonly"] = False
    bundle.config["linux"]["maskedPaths"] += ["/secret", "/folder", "/not/there"]
    bundle.config["linux"]["readonlyPaths"] += ["/tmp", "/not/there"]
    out = oci.run(bundle.script(
        "cat /secret; ls /folder; touch /folder/x 2>&1; touch /tmp/x 2>&1; touch /y && echo written; "
        "echo 1 2>&1 > /proc/sys/kernel/panic; cat /proc/timer_list | wc -c"
    )).stdout  # fmt: skip
    assert out.startswith("touch: /folder/x: Read-only file system\ntouch: /tmp/x: Read-only file system\nwritten\n")
    assert out.endswith("\n0\n") and "secret" not in out


def test_devices_are_made(oci, bundle):
    bundle.config["linux"]["devices"] = [
        {"path": "/dev/net/tun", "type": "c", "major": 10, "minor": 200, "fileMode": 0o640, "uid": 5, "gid": 6},
        {"path": "/dev/pipe", "type": "p"},
    ]
    out = oci.run(
        bundle.script(
            "stat -c '%F %a %u %g %t,%T' /dev/net/tun /dev/pipe /dev/null; readlink /dev/fd; readlink /dev/ptmx"
        )
    ).stdout
    assert out.splitlines() == [
        "character special file 640 5 6 a,c8",
        "fifo 666 0 0 0,0",
        "character special file 666 0 0 1,3",
        "/proc/self/fd",
        "pts/ptmx",
    ]


def test_who_it_is_and_what_it_may(oci, bundle):
    process = bundle.config["process"]
    process["user"] = {"uid": 1000, "gid": 1001, "additionalGids": [5, 7], "umask": 0o27}
    process["capabilities"] = {name: ["CAP_KILL", "CAP_CHOWN"] for name in
                               ("bounding", "effective", "permitted", "inheritable", "ambient")}  # fmt: skip
    process["rlimits"] = [
        {"type": "RLIMIT_NOFILE", "soft": 100, "hard": 200},
        {"type": "RLIMIT_CORE", "soft": 0, "hard": 0},
    ]
    process["oomScoreAdj"] = 321
    process["ioPriority"] = {"class": "IOPRIO_CLASS_IDLE", "priority": 0}
    process["scheduler"] = {"policy": "SCHED_BATCH", "nice": 7}
    process["cwd"] = "/tmp"
    bundle.config["linux"]["personality"] = {"domain": "LINUX32"}
    bundle.config["linux"]["sysctl"] = {"net.ipv4.ip_forward": "1", "kernel.shm_rmid_forced": "1"}
    out = oci.run(bundle.script(
        "id; umask; pwd; echo $HOME; grep -E 'Cap|NoNew' /proc/self/status; cat /proc/self/oom_score_adj; "
        "cat /proc/sys/net/ipv4/ip_forward /proc/sys/kernel/shm_rmid_forced; ulimit -n; ulimit -Hn; "
        "cat /proc/self/personality;"
        "cat /proc/$$/stat; ls -l /proc/self/fd"
    )).stdout  # fmt: skip
    lines = out.splitlines()
    assert lines[:4] == ["uid=1000(user) gid=1001 groups=5,7", "0027", "/tmp", "/home/user"]
    assert [line.split("\t")[1] for line in lines[4:9]] == ["0000000000000021"] * 5
    assert lines[9] == "NoNewPrivs:\t1" and lines[10:15] == ["321", "1", "1", "100", "200"]
    assert int(lines[15], 16) & 0xFF == 8
    fields = lines[16].rpartition(")")[2].split()
    assert fields[16] == "7" and fields[38] == "3"  # nice, SCHED_BATCH
    assert all(int(line.split()[8]) <= 3 for line in lines[17:] if "->" in line)


def test_hooks_at_all_six_points(oci, bundle, tmp_path):
    log = tmp_path / "log"
    (bundle.rootfs / "tmp/inner").mkdir()
    bundle.config["root"]["readonly"] = False
    bundle.config["mounts"].append(
        {"destination": "/log", "type": "bind", "source": str(tmp_path), "options": ["bind"]}
    )
    for kind in ("prestart", "createRuntime", "createContainer", "poststart", "poststop"):
        bundle.config.setdefault("hooks", {})[kind] = [
            {"path": "/bin/sh", "args": ["sh", "-c", f"echo {kind} $A $(readlink /proc/self/ns/net) $(cat) >> {log}"],
             "env": ["A=b", "PATH=/bin:/usr/bin"], "timeout": 20}]  # fmt: skip
    bundle.config["hooks"]["startContainer"] = [
        {"path": "/bin/sh", "args": ["sh", "-c", "echo startContainer x x $(cat) >> /log/log"], "env": ["PATH=/bin"]}
    ]
    oci.detached(bundle.script("sleep 1000"))
    oci("delete", "--force", "box")
    rows = [line.split(" ", 3) for line in log.read_text().splitlines()]
    order = [row[0] for row in rows]
    assert order == ["prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"]
    status = {row[0]: json.loads(row[3])["status"] for row in rows}
    assert status == {"prestart": "creating", "createRuntime": "creating", "createContainer": "creating",
                      "startContainer": "created", "poststart": "running", "poststop": "stopped"}  # fmt: skip
    assert json.loads(rows[0][3])["pid"] > 0 and rows[0][1] == "b"
    host = os.readlink("/proc/self/ns/net")
    assert rows[0][2] == host and rows[2][2] != host


@pytest.mark.parametrize("kind", ["prestart", "createRuntime", "createContainer", "startContainer"])
@pytest.mark.parametrize("how", ["fails", "is late", "isn't there"])
def test_a_hook_that_fails_ends_the_container(oci, bundle, kind, how):
    hook = {"fails": {"path": "/bin/false"}, "is late": {"path": "/bin/sleep", "args": ["sleep", "99"], "timeout": 1},
            "isn't there": {"path": "/nonexistent"}}[how]  # fmt: skip
    bundle.config["hooks"] = {kind: [hook]}
    failed = oci.run(bundle, check=False)
    said = "a startContainer hook failed" if kind == "startContainer" else f"the {kind} hook {hook['path']}"
    assert failed.returncode == 1 and said in failed.stderr
    assert [name for name in os.listdir(oci.root) if not name.startswith(".")] == []


def test_exec(oci, bundle, tmp_path):
    pid = oci.detached(bundle.script("sleep 1000"))
    assert oci("exec", "box", "sh", "-c", "exit 3", check=False).returncode == 3
    missing = oci("exec", "box", "nothing", check=False)
    assert missing.returncode == 255 and "executable file not found" in missing.stderr
    out = oci("exec", "--cwd", "/tmp", "--env", "A=b", "--user", "1000:7", "--cap", "CAP_CHOWN", "box", "sh", "-c",
              "pwd; echo $A $HOME; id -u; id -g; grep CapEff /proc/self/status; ps | grep -c sleep; "
              "cat /proc/self/cgroup").stdout  # fmt: skip
    lines = out.splitlines()
    assert lines[:5] == ["/tmp", "b /home/user", "1000", "7", "CapEff:\t0000000000000000"]
    inside = oci("exec", "box", "cat", "/proc/1/cgroup").stdout
    assert "\n".join(lines[6:]) == inside.strip()
    oci("exec", "--detach", "--pid-file", tmp_path / "pid", "box", "sh", "-c", "exec sleep 500 >/dev/null 2>&1")
    other = int((tmp_path / "pid").read_text())
    assert sorted(json.loads(oci("ps", "--format", "json", "box").stdout)) == sorted([pid, other])
    assert f"NSpid:\t{other}" in open(f"/proc/{other}/status").read()
    process = tmp_path / "process.json"
    process.write_text(json.dumps({"args": ["sh", "-c", "echo $X"], "env": ["X=y", "PATH=/bin"], "cwd": "/",
                                   "rlimits": [{"type": "RLIMIT_NOFILE", "soft": 33, "hard": 33}]}))  # fmt: skip
    assert oci("exec", "--process", process, "box").stdout == "y\n"


def test_descriptors(oci, bundle):
    """Those preserved come through, and no others."""
    reader, writer = os.pipe()
    file = os.open("/etc/hostname", os.O_RDONLY)
    os.set_inheritable(file, True)
    try:
        # In the runtime descriptor 3 is the pipe, 4 and 9 are open files that aren't anybody's business.
        text = "echo to-3 >&3; ls /proc/self/fd | grep -c ."
        bundle.script(text)
        words = [
            *COMMAND,
            "--root",
            str(oci.root),
            "run",
            "--preserve-fds",
            "1",
            "--bundle",
            str(bundle.write()),
            "box",
        ]
        line = f'exec 3>&{writer} 4</etc/passwd 9</etc/passwd; exec "$@"'
        done = subprocess.run(["bash", "-c", line, "-", *words], capture_output=True, text=True, pass_fds=[writer])
        assert done.stdout == "5\n", done  # 0 to 3, and the one of ls
        assert os.read(reader, 99) == b"to-3\n"
        few = oci("run", "--preserve-fds", "60", "--bundle", bundle.folder, "box", check=False)
        assert few.returncode == 1 and "isn't open" in few.stderr
    finally:
        for fd in (reader, writer, file):
            os.close(fd)


def test_a_terminal(oci, bundle, tmp_path):
    """By --console-socket, as engines ask for it; and by 'run' on a terminal of ours."""
    import socket

    bundle.config["process"]["terminal"] = True
    bundle.config["process"]["consoleSize"] = {"height": 33, "width": 77}
    bundle.script("tty; stty size; ls -l /dev/console; echo to-console > /dev/console; read line; echo got $line")
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / "console"))
    listener.listen()
    oci("create", "--bundle", bundle.write(), "--console-socket", tmp_path / "console", "box")
    connection, _ = listener.accept()
    name, fds, _, _ = socket.recv_fds(connection, 100, 1)
    oci("start", "box")
    os.write(fds[0], b"something\n")
    out = b""
    while b"got something" not in out:
        out += os.read(fds[0], 4096)
    assert b"/dev/pts/0" in out and b"33 77" in out and b"to-console" in out
    for fd in fds:
        os.close(fd)
    listener.close()
    connection.close()
    refused = oci("create", "--bundle", bundle.write(), "other", check=False)
    assert refused.returncode == 1 and "--console-socket" in refused.stderr


def test_run_and_exec_on_our_terminal(oci, bundle):
    import pty

    bundle.config["process"]["terminal"] = True
    bundle.script("read line; echo got $line; exit 5")

    def on_terminal(words, said, until):
        pid, fd = pty.fork()
        if not pid:
            os.execv(words[0], words)
        os.write(fd, said)
        out = b""
        try:
            while True:
                out += os.read(fd, 4096)
        except OSError:
            pass
        os.close(fd)
        assert until in out, out
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    start = [*COMMAND, "--root", str(oci.root)]
    assert on_terminal([*start, "run", "--bundle", str(bundle.write()), "box"], b"hey\n", b"got hey") == 5
    bundle.config["process"]["terminal"] = False
    oci.detached(bundle.script("sleep 1000"))
    words = [*start, "exec", "--tty", "box", "sh", "-c", "tty; read a; echo got $a; exit 6"]
    assert on_terminal(words, b"you\n", b"got you") == 6


def test_update_and_events(oci, bundle):
    bundle.config["linux"]["resources"]["pids"] = {"limit": 50}
    oci.detached(bundle.script("sleep 1000"))
    path = "/sys/fs/cgroup/pids/pids.max"
    if not os.path.exists("/sys/fs/cgroup/pids"):
        pytest.skip("no pids controller of cgroup v1")
    del path
    stats = json.loads(oci("events", "--stats", "box").stdout)
    assert stats["type"] == "stats" and stats["id"] == "box" and stats["data"]["pids"]["limit"] == 50
    oci("update", "--pids-limit", "20", "box")
    assert json.loads(oci("events", "--stats", "box").stdout)["data"]["pids"]["limit"] == 20
    assert oci("update", "box", check=False).returncode == 1


def test_id_mapped_mounts(oci, bundle, tmp_path):
    host = tmp_path / "host"
    host.mkdir()
    (host / "file").touch()
    os.chown(host / "file", 1000, 1000)
    maps = [{"containerID": 1000, "hostID": 5000, "size": 1}, {"containerID": 0, "hostID": 0, "size": 1000}]
    bundle.config["mounts"].append({"destination": "/mnt", "type": "bind", "source": str(host), "options": ["bind"],
                                    "uidMappings": maps, "gidMappings": maps})  # fmt: skip
    assert oci.run(bundle.script("stat -c '%u %g' /mnt/file")).stdout == "5000 5000\n"
    bundle.config["mounts"][-1] = {
        "destination": "/mnt",
        "type": "bind",
        "source": str(host),
        "options": ["bind", "idmap"],
    }
    bundle.map_users()
    assert oci.run(bundle.script("stat -c '%u %g' /mnt/file; touch /mnt/new && echo made")).stdout.splitlines()[:1] == [
        "1000 1000"
    ]


def test_no_pivot(oci, bundle):
    out = oci("run", "--no-pivot", "--bundle", bundle.script("ls /; cat /proc/self/mountinfo").write(), "box").stdout
    assert "bin\n" in out and "bundle" not in out.partition("\n1 ")[0].split("\n")


def test_features_and_spec(oci, tmp_path):
    features = json.loads(oci("features").stdout)
    assert features["ociVersionMax"].startswith("1.2") and "rro" in features["mountOptions"]
    assert set(features["linux"]["namespaces"]) == set(NAMESPACES)
    oci("spec", "--bundle", tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["ociVersion"].startswith("1.2")
    assert oci("spec", "--bundle", tmp_path, check=False).returncode == 1


def test_rootless(bundle, tmp_path):
    """An ordinary user's, with a single mapping; nothing in it is root's on the host."""
    from hostel.containers import spec

    bundle.config = spec.default(rootless=True)
    for name in ("uidMappings", "gidMappings"):
        bundle.config["linux"][name] = [{"containerID": 0, "hostID": 65534, "size": 1}]
    bundle.config["process"]["terminal"] = False
    bundle.config["mounts"].append({"destination": "/etc", "type": "tmpfs", "source": "x", "options": ["tmpcopyup"]})
    bundle.script(
        "id -u; cat /proc/self/uid_map; touch /etc/x && cat /etc/passwd | wc -l; "
        "cat /proc/self/mountinfo | head -n 1; ls /dev"
    )
    bundle.write()
    for path in [bundle.folder, *bundle.folder.rglob("*")]:
        os.chown(path, 65534, 65534, follow_symlinks=False)
    root = tmp_path / "rootless"
    root.mkdir()
    os.chown(root, 65534, 65534)
    words = [nobodys_python(), *COMMAND[1:], "--root", str(root), "run", "--bundle", str(bundle.folder), "box"]
    done = subprocess.run(words, **nobody(tmp_path))
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "0" and lines[1].split() == ["0", "65534", "1"] and lines[2] == "2" and "null" in lines
