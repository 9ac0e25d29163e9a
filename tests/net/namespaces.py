"""A real Linux network stack as the guest, and another as the outside, without root: network namespaces.

``Lab`` is a user namespace with several network namespaces. *Outside* has 198.51.100.1 and 2001:db8::1 on its loopback
interface; the router runs there, and what it should reach. Each *guest* has a tap, whose descriptor is the router's
port. Programs run in them with ``outside`` and ``guest``.
"""

import array
import contextlib
import fcntl
import json
import os
import socket
import struct
import subprocess
import sys
import time
from pathlib import Path

OUTSIDE4, OUTSIDE6 = "198.51.100.1", "2001:db8::1"
TUNSETIFF, TUNSETOFFLOAD, TUNSETVNETHDRSZ = 0x400454CA, 0x400454D0, 0x400454D8
IFF_TAP, IFF_NO_PI, IFF_VNET_HDR = 2, 0x1000, 0x4000
HERE = Path(__file__).parent


def open_tap(name: str, offload: int) -> int:
    fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    fcntl.ioctl(fd, TUNSETIFF, struct.pack("16sH22x", name.encode(), IFF_TAP | IFF_NO_PI | IFF_VNET_HDR))
    fcntl.ioctl(fd, TUNSETVNETHDRSZ, struct.pack("i", 12))
    fcntl.ioctl(fd, TUNSETOFFLOAD, offload)
    return fd


def hold(fd: int) -> None:
    """Be a namespace: make a tap on request and hand over its descriptor."""
    sock = socket.socket(fileno=fd)
    sock.send(b"up")
    while True:
        request = sock.recv(64)
        if not request:
            return
        name, offload = request.decode().split()
        tap = open_tap(name, int(offload))
        sock.sendmsg([b"tap"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [tap]))])
        os.close(tap)


class Namespace:
    def __init__(self, enter: list[str], unshare: list[str]):
        ours, theirs = socket.socketpair()
        code = f"import sys; sys.path.insert(0, {str(HERE)!r}); import namespaces; namespaces.hold({theirs.fileno()})"
        self.socket = ours
        self.process = subprocess.Popen(
            [*enter, "unshare", *unshare, sys.executable, "-S", "-c", code], pass_fds=[theirs.fileno()],
            stderr=subprocess.PIPE,
        )
        theirs.close()
        ours.settimeout(20)
        if ours.recv(2) != b"up":
            raise OSError(self.process.stderr.read().decode().strip() or "no namespaces here")
        self.enter = ["nsenter", "-t", str(self.process.pid), "-U", "-n", "--preserve-credentials"]

    def tap(self, name: str, offload: int) -> int:
        self.socket.send(f"{name} {offload}".encode())
        _, ancillary, _, _ = self.socket.recvmsg(16, 64)
        if not ancillary:
            raise OSError(self.process.stderr.read().decode().strip().split("\n")[-1] or "no tap")
        return struct.unpack("i", ancillary[0][2])[0]

    def close(self) -> None:
        self.socket.close()
        self.process.wait(10)
        self.process.stderr.close()


class Lab:
    """``options`` are those of net/settings.Settings; ``forwards`` lead to the first guest. ``offload``: of TUN_F_CSUM,
    TSO4, TSO6 and ECN, what the guests' kernel leaves to the router."""

    def __init__(
        self, forwards: tuple[str, ...] = (), guests: int = 1, configure: bool = True, offload: int = 0x0F, **options
    ):
        self._stack = contextlib.ExitStack()
        try:
            self._build(forwards, guests, offload, options)
        except BaseException:
            self._stack.close()
            raise
        if configure:
            for index in range(guests):
                self.configure(index)

    def _build(self, forwards: tuple[str, ...], guests: int, offload: int, options: dict) -> None:
        self.out = Namespace([], ["-r", "-n"])
        self._stack.callback(self.out.close)
        self.guests = []
        for _ in range(guests):
            self.guests.append(Namespace(self.out.enter, ["-n"]))
            self._stack.callback(self.guests[-1].close)
        self.outside("ip", "link", "set", "lo", "up")
        self.outside("ip", "addr", "add", f"{OUTSIDE4}/32", "dev", "lo")
        self.outside("ip", "addr", "add", f"{OUTSIDE6}/128", "dev", "lo", "nodad")
        taps = []
        for index, namespace in enumerate(self.guests):
            taps.append(namespace.tap("eth0", offload))
            self._stack.callback(os.close, taps[-1])
            self.guest("ip", "link", "set", "lo", "up", index=index)
            self.guest("ip", "link", "set", "eth0", "address", mac(index), "up", index=index)
        config = {"options": options, "forwards": forwards, "taps": taps}
        self.router = subprocess.Popen(
            [*self.out.enter, sys.executable, str(HERE / "router_main.py"), json.dumps(config)], pass_fds=taps,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )
        self._stack.callback(self._stop_router)
        line = self.router.stdout.readline()
        assert line, "the router doesn't start"
        started = json.loads(line)
        self.forwards, self.pid = started["forwards"], started["pid"]

    def configure(self, index: int = 0) -> None:
        """Addresses as the router gives them, but without a DHCP client, which hosts may lack."""
        self.guest("ip", "addr", "add", f"10.0.2.{15 + index}/24", "dev", "eth0", index=index)
        self.guest("ip", "route", "add", "default", "via", "10.0.2.2", index=index)

    def wait_ipv6(self, index: int = 0) -> str:
        """The guest's address, once it has one from the router's prefix and no double of it was found."""
        deadline = time.monotonic() + 30
        text = ""
        while time.monotonic() < deadline:
            text = self.guest("ip", "-6", "-o", "addr", "show", "dev", "eth0", "scope", "global", index=index)
            if "fd68" in text and "tentative" not in text:
                return text.split("inet6 ")[1].split("/")[0]
            time.sleep(0.1)
        raise AssertionError(f"no address: {text}")

    def allow_ping(self) -> None:
        self.outside("sh", "-c", "echo '0 0' > /proc/sys/net/ipv4/ping_group_range")

    def port(self, index: int = 0) -> int:
        """The host's port of a forward."""
        return int(self.forwards[index].rsplit(":", 2)[1])

    def counters(self) -> dict:
        self.router.stdin.write("counters\n")
        self.router.stdin.flush()
        return json.loads(self.router.stdout.readline())

    def outside(self, *argv: str, **options) -> str:
        return _run([*self.out.enter, *argv], **options)

    def guest(self, *argv: str, index: int = 0, **options) -> str:
        return _run([*self.guests[index].enter, *argv], **options)

    def start_outside(self, *argv: str, **options) -> subprocess.Popen:
        return self._start([*self.out.enter, *argv], **options)

    def start_guest(self, *argv: str, index: int = 0, **options) -> subprocess.Popen:
        return self._start([*self.guests[index].enter, *argv], **options)

    def _start(self, argv: list[str], **options) -> subprocess.Popen:
        options = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "text": True, **options}
        process = subprocess.Popen(argv, **options)

        def end() -> None:
            process.kill()
            process.wait()
            for stream in (process.stdin, process.stdout):
                if stream:
                    stream.close()

        self._stack.callback(end)
        return process

    def _stop_router(self) -> None:
        self.router.stdin.close()
        self.router.stdout.close()
        assert self.router.wait(10) == 0

    def close(self) -> None:
        self._stack.close()

    def __enter__(self) -> "Lab":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def mac(index: int) -> str:
    return f"52:54:00:12:34:{0x56 + index:02x}"


def _run(argv: list[str], check: bool = True, timeout: float = 60, **options) -> str:
    done = subprocess.run(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=timeout, **options)
    assert not check or done.returncode == 0, f"{argv}: {done.stdout}"
    return done.stdout
