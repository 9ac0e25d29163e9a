"""Seccomp profiles: what they forbid is forbidden, the default one lets programs live, notifications arrive."""

import array
import json
import os
import socket
import subprocess
import threading

import pytest
from tests.containers.bundles import COMMAND

from hostel.base.errors import ContainerError
from hostel.containers import seccomp


def test_what_is_refused_and_how(oci, bundle):
    bundle.config["linux"]["seccomp"] = {
        "defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86_64"],
        "syscalls": [
            {"names": ["mkdir", "mkdirat", "no_such_call_at_all"], "action": "SCMP_ACT_ERRNO", "errnoRet": 28},
            {"names": ["sethostname"], "action": "SCMP_ACT_KILL_PROCESS"},
            {"names": ["kill"], "action": "SCMP_ACT_ERRNO", "args": [{"index": 1, "value": 12, "op": "SCMP_CMP_EQ"}]},
        ],
    }  # fmt: skip
    text = "mkdir /tmp/x 2>&1; hostname x; echo $?; kill -12 $$ 2>&1; kill -0 $$ && echo fine; "
    text += "grep Seccomp: /proc/self/status"
    for privileges in (True, False):
        bundle.config["process"]["noNewPrivileges"] = privileges
        out = oci.run(bundle.script(text)).stdout.splitlines()
        assert "No space left on device" in out[0] and out[1] == "159" and "Operation not permitted" in out[2]
        assert out[3:] == ["fine", "Seccomp:\t2"]
    oci.detached(bundle.script("sleep 1000"))
    assert "No space left" in oci("exec", "box", "mkdir", "/tmp/x", check=False).stderr


def test_the_default_profile(oci, bundle):
    profile = bundle.config["linux"]["seccomp"] = seccomp.default_profile(["CAP_CHOWN"])
    out = oci.run(bundle.script(
        "ls / > /dev/null && (echo a | cat) && sleep 0.01 && date > /tmp/x; ip -o link | wc -l; unshare -r true 2>&1; "
        "mount -t tmpfs x /tmp 2>&1; chroot / true 2>&1; echo end"
    )).stdout  # fmt: skip
    assert out.startswith("a\n1\n") and out.endswith("end\n")
    assert out.count("not permitted") + out.count("denied") >= 1, out
    names = {name for row in profile["syscalls"] for name in row["names"] if row["action"] == "SCMP_ACT_ALLOW"}
    assert not names & {"bpf", "mount", "init_module", "kexec_load", "keyctl", "userfaultfd", "io_uring_setup", "setns"}
    more = seccomp.default_profile(["CAP_SYS_ADMIN", "CAP_SYS_CHROOT"])
    names = {name for row in more["syscalls"] for name in row["names"]}
    assert {"mount", "unshare", "chroot"} <= names


def test_calls_newer_than_the_profile_are_not_there(tmp_path):
    """ENOSYS, so that a C library takes an older one; not EPERM, with which programs end."""
    code = seccomp.compile({"defaultAction": "SCMP_ACT_ERRNO", "architectures": ["SCMP_ARCH_X86_64"],
                            "syscalls": [{"names": ["read", "openat2"], "action": "SCMP_ACT_ALLOW"}]},
                           str(tmp_path)).code  # fmt: skip
    assert run_filter(code, 437) == 0x7FFF0000
    assert run_filter(code, 0) == 0x7FFF0000
    assert run_filter(code, 1) == 0x50001
    assert run_filter(code, 450) == 0x50000 | 38
    assert run_filter(code, 0x40000000 | 0) in (0, 0x80000000, 0x50001)  # x32's numbers aren't new calls


def run_filter(code, number, arch=0xC000003E):
    """A classic BPF program's answer: just enough of an interpreter for what libseccomp writes."""
    import struct

    data = struct.pack("<IIQ6Q", number, arch, 0, *[0] * 6)
    at = value = 0
    while True:
        op, yes, no, k = struct.unpack_from("<HBBI", code, at * 8)
        at += 1
        if op == 0x20:
            value = struct.unpack_from("<I", data, k)[0]
        elif op in (0x15, 0x25, 0x35, 0x45):
            met = {0x15: value == k, 0x25: value > k, 0x35: value >= k, 0x45: bool(value & k)}[op]
            at += yes if met else no
        elif op == 0x54:
            value &= k
        elif op == 0x05:
            at += k
        else:
            assert op == 0x06, hex(op)
            return k


@pytest.mark.parametrize("profile, why", [
    ({"defaultAction": "SCMP_ACT_NONE"}, "defaultAction"),
    ({"defaultAction": "SCMP_ACT_NOTIFY"}, "can't be"),
    ({"defaultAction": "SCMP_ACT_ALLOW", "flags": ["SECCOMP_FILTER_FLAG_X"]}, "SECCOMP_FILTER_FLAG_X"),
    ({"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_PDP11"]}, "SCMP_ARCH_PDP11"),
    ({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["write"], "action": "SCMP_ACT_NOTIFY"}]}, "write"),
    ({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["mkdir"], "action": "SCMP_ACT_NOTIFY"}]}, "listener"),
    ({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": [], "action": "SCMP_ACT_ALLOW"}]}, "names"),
    ({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
        {"names": ["mkdir"], "action": "SCMP_ACT_ERRNO", "args": [{"index": 9, "value": 1, "op": "SCMP_CMP_EQ"}]}]},
     "index"),
])  # fmt: skip
def test_bad_profiles_are_refused_by_name(profile, why, tmp_path):
    with pytest.raises(ContainerError, match=why):
        seccomp.compile(profile, str(tmp_path))


@pytest.mark.parametrize("privileges", [True, False])
def test_notifications(oci, bundle, tmp_path, privileges):
    """An agent at listenerPath gets the descriptor, and answers the container's mkdir in the kernel's stead."""
    import fcntl
    import struct

    bundle.config["process"]["noNewPrivileges"] = privileges
    bundle.config["linux"]["seccomp"] = {
        "defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86_64"],
        "listenerPath": str(tmp_path / "agent"),
        "listenerMetadata": "meta", "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_NOTIFY"}],
    }  # fmt: skip
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / "agent"))
    listener.listen()
    told = {}

    def agent():
        connection, _ = listener.accept()
        message, fds, _, _ = socket.recv_fds(connection, 65536, 1)
        told.update(json.loads(message))
        request = array.array("b", bytes(80))
        fcntl.ioctl(fds[0], 0xC0502100, request)  # SECCOMP_IOCTL_NOTIF_RECV
        identity, pid = struct.unpack_from("<QI", request)
        told["asked by"] = pid
        answer = array.array("b", struct.pack("<QqiI", identity, 0, -122, 0))  # EDQUOT
        fcntl.ioctl(fds[0], 0xC0182101, answer)  # SECCOMP_IOCTL_NOTIF_SEND
        os.close(fds[0])

    thread = threading.Thread(target=agent, daemon=True)
    thread.start()
    words = [*COMMAND, "--root", str(oci.root), "run", "--bundle", str(bundle.script("mkdir /tmp/x").write()), "box"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL)
    thread.join(10)
    listener.close()
    assert "uota exceeded" in done.stderr, done
    assert told["metadata"] == "meta" and told["fds"] == ["seccompFd"] and told["state"]["id"] == "box"
    assert told["pid"] == told["state"]["pid"] and told["asked by"] > 0
