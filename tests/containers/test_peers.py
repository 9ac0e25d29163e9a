"""Bundles of runc run by hostel-oci and the other way round; podman with hostel-oci for its runtime."""

import json
import os
import shlex
import shutil
import subprocess

import pytest

LOOK = """
hostname; id; echo $$; ls -l /dev | grep -v total; mount | grep -v -e cgroup -e /proc/ | sort
grep -E 'Cap|NoNew|Seccomp:|Groups' /proc/self/status; cat /proc/self/cgroup; ip addr; ulimit -a; umask; pwd; env | sort
touch /x 2>&1; echo 1 2>&1 > /proc/sys/kernel/panic; ls /sys/firmware /proc/acpi 2>&1; cat /proc/self/oom_score_adj
ls /sys/fs/cgroup; cat /proc/timer_list | wc -c; dd if=/dev/vda of=/dev/null count=1 2>&1 | head -n 1
readlink /proc/self/ns/user
"""


def view(command, bundle):
    """What a shell in the container sees."""
    done = subprocess.run(
        [*command, "run", "--bundle", bundle.folder, "hostel-peer"],
        input=LOOK,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    # times, and the peers' own choices: a terminal's numbers, the size of a mask, whether cgroup's folder is read-only
    return [line for line in done.stdout.splitlines() if "tmpfs on /proc" not in line and "SHLVL" not in line]


def without_times(lines):
    return [
        " ".join(line.split()[:5] + line.split()[8:]) if line[:1] in "lcdb" and line.count(":") else line
        for line in lines
    ]


@pytest.fixture
def runc(oci):
    if not shutil.which("runc"):
        pytest.skip("no runc (Debian: runc)")
    yield ["runc", "--root", str(oci.root / "runc")]
    subprocess.run(["runc", "--root", str(oci.root / "runc"), "delete", "--force", "hostel-peer"], capture_output=True)
    shutil.rmtree(oci.root / "runc", ignore_errors=True)


def plain(config):
    config["process"]["terminal"] = False
    return config


@pytest.mark.parametrize("writer", ["runc", "hostel-oci"])
def test_a_bundle_of_eithers_is_the_same_in_both(oci, runc, bundle, writer):
    from tests.containers.bundles import COMMAND

    ours = [*COMMAND, "--root", str(oci.root)]
    subprocess.run([*(runc if writer == "runc" else ours), "spec", "--bundle", bundle.folder], check=True)
    path = bundle.folder / "config.json"
    config = plain(json.loads(path.read_text()))
    if writer != "runc":
        config["ociVersion"] = "1.0.2"  # this runc is older than ours
    path.write_text(json.dumps(config))
    assert without_times(view(ours, bundle)) == without_times(view(runc, bundle))


def test_users_limits_and_mounts_are_the_same(oci, runc, bundle, tmp_path):
    from tests.containers.bundles import COMMAND

    config = bundle.config
    config["ociVersion"] = "1.0.2"
    config["process"]["user"] = {"uid": 7, "gid": 8, "additionalGids": [9, 10], "umask": 0o77}
    config["process"]["capabilities"] = {name: ["CAP_CHOWN", "CAP_NET_RAW"] for name in
                                         ("bounding", "effective", "permitted", "inheritable", "ambient")}  # fmt: skip
    config["process"]["oomScoreAdj"] = 100
    config["process"]["cwd"] = "/tmp"
    config["linux"]["resources"].update({"memory": {"limit": 64 << 20}, "pids": {"limit": 99}})
    config["mounts"] += [
        {
            "destination": "/a",
            "type": "tmpfs",
            "source": "tmpfs",
            "options": ["nosuid", "noexec", "size=8k", "mode=1777"],
        },
        {"destination": "/b", "type": "bind", "source": "/etc", "options": ["rbind", "ro", "nodev", "rprivate"]},
    ]
    config["linux"]["namespaces"] = [{"type": kind} for kind in ("pid", "ipc", "uts", "mount", "network")]
    bundle.write()
    ours = without_times(view([*COMMAND, "--root", str(oci.root)], bundle))
    assert ours == without_times(view(runc, bundle))


@pytest.mark.slow
def test_podman(bundle, tmp_path):
    """Debian's podman, with an image made of the bundle's rootfs: run, exec, ps, stop, rm."""
    if not shutil.which("podman"):
        pytest.skip("no podman (Debian: podman)")
    from tests.containers.bundles import COMMAND

    runtime = tmp_path / "hostel-oci"
    quoted = shlex.join([*COMMAND, "--root", str(tmp_path / "oci")])
    runtime.write_text(f'#!/bin/sh\nexec {quoted} "$@"\n')
    runtime.chmod(0o755)
    base = ["podman", "--root", tmp_path / "storage", "--runroot", tmp_path / "run", "--storage-driver", "vfs",
            "--cgroup-manager", "cgroupfs", "--runtime", runtime, "--events-backend", "file"]  # fmt: skip

    def podman(*words, check=True):
        done = subprocess.run([*base, *words], capture_output=True, text=True, timeout=120, stdin=subprocess.DEVNULL)
        assert not check or done.returncode == 0, done.stderr
        return done

    subprocess.run(f"tar -C {bundle.rootfs} -c . | {' '.join(map(str, base))} import - box:1", shell=True, check=True)
    options = ["--network", "none", "--ulimit", "nofile=1024:1024", "--ulimit", "nproc=4096:4096"]
    assert podman("run", "--rm", *options, "box:1", "sh", "-c", "echo hello; exit 3", check=False).returncode == 3
    assert podman("run", "--rm", *options, "box:1", "echo", "hello").stdout == "hello\n"
    podman("run", "--detach", "--name", "one", *options, "--memory", "64m", "box:1", "sleep", "1000")
    assert podman("exec", "one", "cat", "/proc/1/comm").stdout == "sleep\n"
    assert "one" in podman("ps").stdout
    podman("pause", "one")
    podman("unpause", "one")
    podman("stop", "--time", "0", "one")
    podman("rm", "one")
    assert "one" not in podman("ps", "--all").stdout
    assert not [name for name in os.listdir(tmp_path / "oci") if not name.startswith(".")]
