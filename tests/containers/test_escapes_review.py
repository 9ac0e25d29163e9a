"""Ways out of a container, a second look; docs/security.md lists them."""

import contextlib
import ctypes
import json
import os
import shutil
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from tests.containers.bundles import COMMAND, busybox, root_only
from tests.containers.test_escapes import everything

from hostel.base.errors import ContainerError, MachineError
from hostel.base.linux.syscall import syscall
from hostel.cli.main import main
from hostel.client import copy
from hostel.client.container import Container
from hostel.containers import engine, seccomp

HIGHEST = 40  # descriptors that a starting container could have


def test_the_hosts_programs_through_a_descriptor(oci, bundle, tmp_path):
    """A variant of CVE-2024-21626: an image's entrypoint is a path that begins at a folder that is still open. What is
    run so is the host's file, which ``/proc/self/exe`` leads back to."""
    everything(bundle)
    victim = tmp_path / "sh"
    shutil.copy(busybox(), victim)
    before = victim.read_bytes()
    attack = 'exec 9</proc/self/exe; exec /bin/busybox sh -c "echo overwritten > /proc/self/fd/9"'
    up = "../" * 12
    # One container's start tries them all: the first that is there is run.
    paths = ":".join(f"/proc/self/fd/{number}/{up}{str(tmp_path).lstrip('/')}" for number in range(3, HIGHEST))
    bundle.config["process"]["env"] = [f"PATH={paths}"]
    bundle.config["process"]["args"] = ["sh", "-c", attack]
    done = oci.run(bundle, check=False)
    assert victim.read_bytes() == before
    assert done.returncode == 1 and "executable file not found in $PATH" in done.stderr, done
    bundle.config["process"]["env"] = ["PATH=/bin"]
    oci.detached(bundle.script("sleep 1000"))
    done = oci("exec", "--env", f"PATH={paths}", "box", "sh", "-c", attack, check=False)
    assert victim.read_bytes() == before
    assert done.returncode != 0 and "executable file not found in $PATH" in done.stderr, done


def usual(bundle):
    """What an engine's container has."""
    for name in ("bounding", "effective", "permitted"):
        bundle.config["process"]["capabilities"][name] = list(engine.CAPABILITIES)
    bundle.config["root"]["readonly"] = False


@pytest.fixture
def null(tmp_path):
    """A /dev/null of the host's, to be spoilt."""
    path = tmp_path / "null"
    os.mknod(path, 0o666 | stat.S_IFCHR, os.makedev(1, 3))
    path.chmod(0o666)
    with open(path, "r+b", buffering=0) as file:
        yield file


def test_the_hosts_null_is_out_of_reach(oci, bundle, null):
    """A container whose input is /dev/null has a descriptor of the host's, by which root changes its mode and owner."""
    usual(bundle)
    attack = "chmod 600 /proc/self/fd/0; chown 5 /proc/self/fd/0; cat; stat -c '%a %u %t:%T' /dev/stdin -L"
    done = oci.run(bundle.script(attack), "first", stdin=null)
    assert done.stdout == "600 5 1:3\n"  # its own
    oci.detached(bundle.script("sleep 1000"))
    assert oci("exec", "box", "sh", "-c", attack, stdin=null).stdout == "600 5 1:3\n"
    oci("exec", "box", "sh", "-c", "rm /dev/null; echo text > /dev/null")
    done = oci("exec", "box", "sh", "-c", attack, stdin=null, check=False)
    assert done.returncode != 0 and "the container's /dev/null is another file" in done.stderr
    found = os.fstat(null.fileno())
    assert (stat.S_IMODE(found.st_mode), found.st_uid) == (0o666, 0)


def test_a_device_in_place_of_the_users_file(oci, bundle, tmp_path):
    """The container may make devices, though not open them: the runtime, which may, is not to open one for it."""
    usual(bundle)
    oci.detached(bundle.script("rm /etc/passwd; mknod /etc/passwd c 1 5; sleep 1000"))
    passwd = bundle.rootfs / "etc/passwd"
    until = time.monotonic() + 10
    while not (passwd.exists() and passwd.is_char_device()) and time.monotonic() < until:
        time.sleep(0.01)
    assert passwd.is_char_device()
    opened = []
    watch = inotify(passwd)
    try:
        assert oci("exec", "--user", "1000", "box", "sh", "-c", "echo $HOME").stdout == "/\n"
        assert engine.read_below(bundle.rootfs, "etc/passwd", 100) == b""
        opened = os.read(watch, 4096)
    except BlockingIOError:
        pass
    finally:
        os.close(watch)
    assert not opened


def inotify(path):
    """A descriptor that tells when the file is opened."""
    library = ctypes.CDLL(None, use_errno=True)
    fd = library.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
    assert fd >= 0 and library.inotify_add_watch(fd, os.fsencode(path), 0x20) >= 0
    return fd


def test_a_masked_file_is_not_the_hosts_null_to_change(oci, bundle):
    """What covers masked files is the host's /dev/null, whose mode and owner stay."""
    usual(bundle)
    before = os.stat("/dev/null")
    masked = "/proc/keys"
    bundle.config["linux"]["maskedPaths"] = [masked]
    try:
        done = oci.run(
            bundle.script(f"cat {masked}; echo x > {masked} && echo fine; chmod 600 {masked}; chown 5 {masked}"),
            check=False,
        )
        after = os.stat("/dev/null")
    finally:
        os.chmod("/dev/null", stat.S_IMODE(before.st_mode))
        os.chown("/dev/null", before.st_uid, before.st_gid)
    assert (after.st_mode, after.st_uid) == (before.st_mode, before.st_uid)
    assert done.stdout == "fine\n" and done.stderr.count("Read-only file system") == 2, done


def test_users_that_are_no_numbers(tmp_path):
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/passwd").write_text(f"x:x:{'9' * 5000}:0::/:/bin/sh\nu:x:5:6::/u:/bin/sh\n")
    (tmp_path / "etc/group").write_text("a:x:99999999999:u\nb:x:7:u\nc:x:²:u\n")
    assert engine.find_user(tmp_path, "u") == {"uid": 5, "gid": 6, "groups": [7], "home": "/u"}
    for text in ("x", "9" * 5000, "u:" + "9" * 5000, "2147483648", "²"):
        with pytest.raises(ContainerError):
            engine.find_user(tmp_path, text)


def test_words_of_an_image_dont_steer_the_terminal(box, capfd):
    """An image says what its user is, and an error repeats it; here by the option that takes its place."""
    words = ["run", "--isolation", "container", "--network", "none", "--user", "no\x1b]0;title\x07such", box]
    assert main(words) != 0
    said = capfd.readouterr().err
    assert "the image has no user 'no?]0;title?such'" in said and "\x1b" not in said


def test_a_process_by_the_number_of_an_earlier_one(box):
    """Process numbers come around: a command by the number of one of hostel's own earlier ones isn't taken for it."""
    where = Path("/proc/sys/kernel/ns_last_pid")
    if not os.access(where, os.W_OK):
        pytest.skip(f"needs root, and {where}")
    with Container.run(box, command=["sleep", "1000"], detach=True, networks=["none"]) as container:
        before = where.read_text()
        try:
            for distance in range(6):
                where.write_text(str(31000 - distance))
                assert container.exec(["sh", "-c", "sleep 0.02; echo fine"]).stdout == "fine\n"
        finally:
            where.write_text(before)
        container.rm(force=True)


def test_a_copy_onto_a_link_to_the_host(box, tmp_path):
    """``hostel cp`` onto a link that leads nowhere in the container, but somewhere on the host."""
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "file").write_text("of the host")
    (tmp_path / "file").write_text("new")
    with Container.run(box, command=["sleep", "1000"], detach=True, networks=["none"]) as container:
        links = f"cd /tmp; ln -s {victim} folder; ln -s {victim}/file name; ln -s {victim} tree; ln -s /x/y z"
        container.exec(["sh", "-c", links], check=True)
        for name in ("folder", "name", "z"):
            container.copy_in(str(tmp_path / "file"), f"/tmp/{name}")
        with pytest.raises(MachineError):
            container.copy_in(str(victim), "/tmp/tree")
        assert os.listdir(victim) == ["file"] and (victim / "file").read_text() == "of the host"
        assert container.exec(["sh", "-c", "cd /tmp; cat folder name z"]).stdout == "newnewnew"
        container.rm(force=True)


def test_the_hypervisor_isnt_reached_around_the_filter(tmp_path):
    """AF_VSOCK, by a number of which the kernel reads the lower half only, and by i386's calls."""
    code = seccomp.compile(seccomp.default_profile(list(engine.CAPABILITIES)), str(tmp_path)).code
    done = subprocess.run([sys.executable, "-c", SOCKETS, code.hex()], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    found = dict(line.rsplit(" ", 1) for line in done.stdout.splitlines())
    assert {"unix", "vsock", "vsock above 32 bits", "none"} <= found.keys()
    assert int(found.pop("unix")) >= 0 and int(found.pop("old unix", 0)) >= 0
    assert set(found.values()) <= {"-1", "-22", "-38", "-97"}, done.stdout  # refused, or this kernel has none


SOCKETS = """
import ctypes, struct, sys
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype, libc.syscall.restype = ctypes.c_void_p, ctypes.c_long
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
page = libc.mmap(None, 4096, 7, 0x62, -1, 0)  # below 4 GiB
def old(eax, ebx, ecx, edx):
    # push rbx; mov eax, ebx, ecx, edx; int 0x80; pop rbx; cdqe; ret
    code = b"S" + b"".join(op + struct.pack("<I", value) for op, value in
        ((b"\\xb8", eax), (b"\\xbb", ebx), (b"\\xb9", ecx), (b"\\xba", edx))) + b"\\xcd\\x80[\\x48\\x98\\xc3"
    ctypes.memmove(page, code, len(code))
    return ctypes.CFUNCTYPE(ctypes.c_long)(page)()
def new(family):
    result = libc.syscall(ctypes.c_long(41), ctypes.c_long(family), ctypes.c_long(1), ctypes.c_long(0))
    return result if result >= 0 else -ctypes.get_errno()
code = ctypes.create_string_buffer(bytes.fromhex(sys.argv[1]))
program = ctypes.create_string_buffer(struct.pack("<HxxxxxxQ", len(sys.argv[1]) // 16, ctypes.addressof(code)), 16)
i386 = old(20, 0, 0, 0) > 0  # getpid
assert not libc.prctl(38, 1, 0, 0, 0)
assert not libc.syscall(ctypes.c_long(317), ctypes.c_long(1), ctypes.c_long(0), program)
print("unix", new(1), flush=True)
print("vsock", new(40))
print("vsock above 32 bits", new(0x1_0000_0028))
print("none", new(99))
if i386:
    print("old unix", old(359, 1, 1, 0))
    print("old vsock", old(359, 40, 1, 0))
    ctypes.memmove(page + 256, struct.pack("<3I", 40, 1, 0), 12)
    print("oldest vsock", old(102, 1, page + 256, 0))
sys.stdout.flush()
"""


def test_a_folder_in_tmp_that_somebody_else_made(tmp_path):
    """An ordinary user's states, with hooks in them, are in /tmp where there is no XDG_RUNTIME_DIR."""
    root_only()
    victim, attacker = 61234, 61235
    place, proof = Path(f"/tmp/hostel-oci-{victim}"), Path(f"/tmp/hostel-review-{os.getpid()}")
    state = {
        "id": "box", "pid": 0, "start_time": 0, "ready": True, "runtime": [0, 0], "bundle": "/", "rootfs": "/",
        "created": "", "cgroup": None, "config": {
            "linux": {"namespaces": [{"type": "pid"}]}, "hooks": {"poststop": [{"path": "/bin/touch",
            "args": ["touch", str(proof)]}]},
        },
    }  # fmt: skip
    try:
        (place / "box").mkdir(parents=True)
        (place / "box/state.json").write_text(json.dumps(state))
        for path in (place, place / "box"):
            os.chmod(path, 0o777)
            os.chown(path, attacker, attacker)
        # As that user, who may not read this interpreter's files.
        code = COMMAND[-1].replace("sys.exit(main())", (
            "from hostel.containers import fastjson, hooks, runtime\n"
            f"import os; os.setgroups([]); os.setresgid({victim}, {victim}, {victim}); "
            f"os.setresuid({victim}, {victim}, {victim}); sys.exit(main(['delete', 'box']))"
        ))  # fmt: skip
        done = subprocess.run(
            [*COMMAND[:-1], code], env={"PATH": os.environ["PATH"]}, cwd="/", capture_output=True, text=True, timeout=60
        )
        assert not proof.exists()
        assert done.returncode == 1 and f"{place} isn't only ours" in done.stderr, done
    finally:
        shutil.rmtree(place, ignore_errors=True)
        proof.unlink(missing_ok=True)


def test_a_file_that_becomes_a_device_while_it_is_copied(tmp_path, monkeypatch):
    """``hostel cp`` out of a container that exchanges the two all the time."""
    root_only()
    (tmp_path / "one").write_text("x")
    os.mknod(tmp_path / "other", 0o666 | stat.S_IFCHR, os.makedev(1, 5))
    one, other = (ctypes.c_char_p(os.fsencode(tmp_path / name)) for name in ("one", "other"))
    over, opened, real = threading.Event(), [], os.open

    def exchange():
        while not over.is_set():
            syscall(316, -100, one, -100, other, 2)  # renameat2, RENAME_EXCHANGE

    def watched(path, flags, *args, **more):
        fd = real(path, flags, *args, **more)
        if not flags & os.O_PATH and stat.S_ISCHR(os.fstat(fd).st_mode):
            opened.append(fd)
        return fd

    monkeypatch.setattr(copy.os, "open", watched)
    thread = threading.Thread(target=exchange)
    thread.start()
    until = time.monotonic() + 1
    try:
        while time.monotonic() < until:
            with contextlib.suppress(BlockingIOError):
                for _ in copy.walk(str(tmp_path / "one")):
                    pass
    finally:
        over.set()
        thread.join()
    assert not opened


def test_descriptors_of_who_joins(oci, bundle, tmp_path):
    """With CAP_SYS_PTRACE a container sees the descriptors of who comes in: no folder of the host's is one."""
    everything(bundle)
    (tmp_path / "victim").write_text("of the host")
    way = "../" * 12 + str(tmp_path / "victim").lstrip("/")
    numbers = " ".join(map(str, range(3, 20)))
    oci.detached(
        bundle.script(f"""
        while :; do for p in /proc/[2-9]* /proc/[1-9][0-9]*; do
            echo looked > /tmp/looked
            for n in {numbers}; do [ -e $p/fd/$n/{way} ] && echo $n >> /tmp/seen; done
        done; done 2>/dev/null""")
    )
    seen = bundle.rootfs / "tmp/seen"
    for _ in range(40):
        oci("exec", "box", "true")
        if seen.exists():
            break
    assert (bundle.rootfs / "tmp/looked").exists() and not seen.exists()


def test_what_is_mounted_below_a_read_only_share(box, tmp_path):
    root_only()
    below = tmp_path / "share/below"
    below.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", below], check=True)
    try:
        shares = [f"{tmp_path}/share:/srv:ro"]
        with Container.run(
            box, command=["sleep", "1000"], detach=True, networks=["none"], shares=shares
        ) as container:
            assert container.exec(["touch", "/srv/file"]).status != 0
            assert container.exec(["touch", "/srv/below/file"]).status != 0
            container.rm(force=True)
        assert os.listdir(below) == []
    finally:
        subprocess.run(["umount", "-l", below], check=True)


def test_the_hosts_keys_stay_outside(oci, bundle):
    """Neither the first process nor one that joins keeps the session keyring of who starts it."""
    bundle.config["linux"]["maskedPaths"] = []
    bundle.config["linux"].pop("seccomp", None)
    oci.detached(bundle.script("cat /proc/keys > /dev/shm/keys; sleep 1000"))
    # One of ours, that only who has it sees.
    join = "import ctypes; libc, n = ctypes.CDLL(None), ctypes.c_long; libc.syscall(n(250), n(1), b'of-the-host')\n"
    join += "assert libc.syscall(n(250), n(5), n(-3), n(0x3F000000)) == 0\n"
    host = [*COMMAND[:-1], join + COMMAND[-1], "--root", str(oci.root)]
    words = ["exec", "box", "cat", "/proc/keys"]
    inside = subprocess.run([*host, *words], capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL)
    assert inside.returncode == 0 and "keyring" in inside.stdout, inside
    assert "of-the-host" not in inside.stdout and "_ses.box" in inside.stdout
    bundle.config["process"]["args"] = ["cat", "/proc/keys"]
    words = ["run", "--bundle", str(bundle.write()), "another"]
    inside = subprocess.run([*host, *words], capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL)
    assert inside.returncode == 0 and "of-the-host" not in inside.stdout and "_ses.another" in inside.stdout, inside


def test_a_pid_file_in_a_folder_of_others(oci, bundle, tmp_path):
    """Somebody expects the file, and has put links where it is going to be."""
    victim, pid_file = tmp_path / "victim", tmp_path / "pid"
    victim.write_text("of the host")
    for name in ("pid", ".pid.new", ".pid"):
        (tmp_path / name).symlink_to(victim)
    oci("run", "--pid-file", pid_file, "--bundle", bundle.script("true").write(), "box")
    assert victim.read_text() == "of the host" and not pid_file.is_symlink() and int(pid_file.read_text())
