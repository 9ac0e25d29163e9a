"""Ways out of a container that others had, tried; docs/security.md lists them."""

import hashlib
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from hostel.containers import stage


def digest(path):
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def everything(bundle):
    """As much as a container without a user namespace can have; more than any engine gives."""
    from hostel.containers.capabilities import NAMES, last

    bundle.config["process"]["capabilities"] = {
        name: list(NAMES[: last() + 1]) for name in ("bounding", "effective", "permitted")
    }  # fmt: skip
    held = int(next(line for line in open("/proc/self/status") if line.startswith("CapPrm")).split()[1], 16)
    for names in bundle.config["process"]["capabilities"].values():
        names[:] = [name for number, name in enumerate(NAMES) if held >> number & 1]
    bundle.config["process"]["noNewPrivileges"] = False
    bundle.config["root"]["readonly"] = False


def test_the_interpreter_cant_be_overwritten_from_a_program_of_its_own_name(oci, bundle):
    """CVE-2019-5736, the first way: '#!/proc/self/exe' has the kernel run again what ran the exec."""
    everything(bundle)
    before = digest(os.path.realpath(sys.executable))
    (bundle.rootfs / "evil").write_text("#!/proc/self/exe\n")
    (bundle.rootfs / "evil").chmod(0o755)
    (bundle.rootfs / "link").symlink_to("/proc/self/exe")
    for program in ("/evil", "/link"):
        bundle.config["process"]["args"] = [program]
        done = oci.run(bundle, check=False)
        assert done.returncode != 0 and "Python" not in done.stdout + done.stderr
    assert digest(os.path.realpath(sys.executable)) == before


def test_what_joins_a_container_is_never_the_interpreter(oci, bundle):
    """CVE-2019-5736, the second way: whoever is in already opens /proc/PID/exe of who comes in."""
    everything(bundle)
    before = digest(os.path.realpath(sys.executable))
    oci.detached(
        bundle.script("""
        while :; do for p in /proc/[2-9]* /proc/[1-9][0-9]*; do
            [ -e $p/exe ] && [ ! $p/exe -ef /bin/busybox ] && {
                exec 7>&1; (echo x >> $p/exe) && echo written >> /tmp/seen; readlink $p/exe >> /tmp/seen; }
        done; done 2>/dev/null""")
    )
    seen = bundle.rootfs / "tmp/seen"
    for count in range(200):
        oci("exec", "box", "true")
        if count > 10 and seen.exists() and "memfd" in seen.read_text():
            break
    names = {name for name in seen.read_text().split("\n") if name} - {"/bin/busybox"}
    assert names == {"/memfd:hostel (deleted)"}  # the attack does see who comes in, and that is all it sees
    assert digest(os.path.realpath(sys.executable)) == before


def test_the_program_that_joins_is_sealed():
    fd = stage.memfd(stage.Script(1).program(), executable=True)
    try:
        with pytest.raises(OSError):
            os.write(fd, b"x")
        with pytest.raises(OSError):
            os.ftruncate(fd, 0)
    finally:
        os.close(fd)


def test_a_working_directory_that_is_a_descriptor_of_the_hosts(oci, bundle):
    """CVE-2024-21626."""
    everything(bundle)
    oci.detached(bundle.script("sleep 1000"))
    for number in range(3, 16):
        for form in (f"/proc/self/fd/{number}", f"/proc/1/fd/{number}/../.."):
            out = oci("exec", "--cwd", form, "box", "sh", "-c", "pwd; ls ../../../../../etc", check=False)
            assert "hostname" not in out.stdout and "machine-id" not in out.stdout, (form, out.stdout)
            assert out.returncode == 255 or out.stdout.startswith("/"), out
    oci("delete", "--force", "box")
    for number in range(3, 24):
        bundle.config["process"]["cwd"] = f"/proc/self/fd/{number}"
        out = oci.run(bundle.script("pwd; ls ../../../../../etc"), check=False)
        assert out.returncode == 1 and "machine-id" not in out.stdout, out


def test_links_in_the_rootfs_lead_nowhere(oci, bundle, tmp_path):
    """Where something is mounted, made or masked: absolute links, '..', and links in place of /proc and /dev."""
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "file").write_text("of the host")
    depth = "../" * 20
    (bundle.rootfs / "absolute").symlink_to(victim)
    (bundle.rootfs / "relative").symlink_to(depth + str(victim).lstrip("/"))
    (bundle.rootfs / "proclink").symlink_to("/proc/self/root/../../../" + str(victim))
    bundle.config["mounts"] += [
        {"destination": "/absolute/new/folder", "type": "tmpfs", "source": "tmpfs"},
        {"destination": "/relative/another", "type": "tmpfs", "source": "tmpfs"},
        {"destination": depth + str(victim) + "/third", "type": "tmpfs", "source": "tmpfs"},
        {"destination": "/absolute/file", "type": "bind", "source": "/etc/hostname", "options": ["bind"]},
    ]
    bundle.config["linux"]["devices"] = [{"path": "/absolute/device", "type": "c", "major": 1, "minor": 3}]
    bundle.config["linux"]["maskedPaths"] += ["/absolute/file", "/relative"]
    oci.run(bundle.script("ls -R /absolute/"), check=False)
    assert os.listdir(victim) == ["file"] and (victim / "file").read_text() == "of the host"
    bundle.config["mounts"] = bundle.config["mounts"][:7]
    for name in ("proc", "sys"):
        (bundle.rootfs / name).rmdir()
        (bundle.rootfs / name).symlink_to("tmp")
        refused = oci.run(bundle, check=False)
        assert refused.returncode == 1 and f"on /{name}: " in refused.stderr
        (bundle.rootfs / name).unlink()
        (bundle.rootfs / name).mkdir()


def test_a_race_of_renames_on_a_shared_volume(oci, bundle, tmp_path):
    """Another container that shares a volume swaps a folder and a link while ours is being mounted on it."""
    from hostel.base.linux.syscall import syscall

    victim, volume = tmp_path / "victim", tmp_path / "volume"
    victim.mkdir()
    (volume / "a/b").mkdir(parents=True)
    (volume / "link").symlink_to(victim)
    over = threading.Event()

    def swap():
        import ctypes

        one, other = (ctypes.c_char_p(str(volume / name).encode()) for name in ("a", "link"))
        while not over.is_set():
            syscall(316, -100, one, -100, other, 2)  # renameat2, RENAME_EXCHANGE

    thread = threading.Thread(target=swap)
    thread.start()
    bundle.config["mounts"] += [
        {"destination": "/volume", "type": "bind", "source": str(volume), "options": ["rbind", "rw"]},
        {"destination": "/volume/a/b/c", "type": "tmpfs", "source": "tmpfs"},
        {"destination": "/volume/a/d", "type": "bind", "source": "/etc/hostname", "options": ["bind"]},
    ]
    bundle.config["linux"]["maskedPaths"] += ["/volume/a/b"]
    bundle.script("ls /volume/a/").write()
    try:
        for _ in range(15):
            done = oci("run", "--bundle", bundle.folder, "box", check=False)
            assert done.returncode in (0, 1)
            assert os.listdir(victim) == []
    finally:
        over.set()
        thread.join()


def test_a_hostile_pid_namespace(oci, bundle, tmp_path):
    """A container joins a PID namespace whose processes, root in a user namespace of theirs, wait for it to come."""
    log = tmp_path / "log"
    log.touch()
    log.chmod(0o666)
    place = tmp_path
    while place != place.parent:
        place.chmod(place.stat().st_mode | 0o011)
        place = place.parent
    attack = f"""
        while :; do for p in /proc/[0-9]*; do
            [ $p = /proc/1 ] && continue
            [ -e $p/exe ] && readlink $p/exe
            [ -e $p/root/etc/passwd ] && echo root of $p
            [ -r $p/environ ] && read line < $p/environ && echo $line
        done; done >> {log} 2>/dev/null"""
    attacker = subprocess.Popen(
        ["unshare", "--user", "--map-root-user", "--pid", "--fork", "--mount-proc", "sh", "-c", attack],
        user=65534, group=65534, extra_groups=[], cwd="/", stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        inner = None
        until = time.monotonic() + 20
        while not inner and time.monotonic() < until:
            inner = Path(f"/proc/{attacker.pid}/task/{attacker.pid}/children").read_text().split()
        time.sleep(0.2)
        before = set(log.read_text().split("\n"))
        bundle.config["process"]["env"].append("SECRET=1")
        for namespace in bundle.namespaces():
            if namespace["type"] == "pid":
                namespace["path"] = f"/proc/{inner[0]}/ns/pid"
        for number in range(6):
            oci.run(bundle.script("sleep 0.05"), f"box{number}")
        assert not [line for line in set(log.read_text().split("\n")) - before if line], log.read_text()
    finally:
        subprocess.run(["pkill", "-KILL", "-P", str(attacker.pid)])
        attacker.wait()


def test_the_hosts_root_is_out_of_reach(oci, bundle):
    """After pivot_root: no mount of the host's, and '..' from anywhere ends at the container's root."""
    everything(bundle)
    out = oci.run(bundle.script(
        "cd /; for i in 1 2 3 4 5 6 7 8 9; do cd ..; done; ls; ls /proc/1/root/; cat /proc/self/mountinfo"
    )).stdout  # fmt: skip
    assert "home" not in out.split() and "boot" not in out.split()
    points = [line.split()[4] for line in out.splitlines() if " - " in line]
    assert points[0] == "/" and points.count("/") == 1
    assert all(point.startswith(("/proc", "/dev", "/sys")) for point in points[1:])


def test_a_false_multiplexer(oci, bundle):
    """A container puts another file in place of /dev/ptmx, and waits for exec --tty."""
    import pty

    from tests.containers.bundles import COMMAND

    everything(bundle)
    oci.detached(bundle.script("rm /dev/ptmx; ln -s /dev/zero /dev/ptmx; sleep 1000"))
    time.sleep(0.2)
    pid, fd = pty.fork()
    if not pid:
        os.execv(COMMAND[0], [*COMMAND, "--root", str(oci.root), "exec", "--tty", "box", "true"])
    out = b""
    try:
        while part := os.read(fd, 4096):
            out += part
    except OSError:
        pass
    os.close(fd)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 255 and b"is no terminal multiplexer" in out, out
