"""The process of a named network: ``python -m hostel.net.named FOLDER SETTINGS READY``, started by net/networks with
the first VM that wants it, and gone with the last.

It is net/process's router and switch for VMs that come and go. A VM's worker connects to ``net.sock`` in the
network's folder (SOCK_SEQPACKET, mode 0600, and only its owner's) and says who it is in one JSON message, with the
sockets of its forwarded ports (SCM_RIGHTS); after the answer the connection carries the card's frames. With ``"tap":
true`` the frames are those of a tap, which comes as the last descriptor, and the connection only shows by its end that
nobody has it any more: so a container has a card (containers/wiring). ``{"inspect": true}`` asks instead what there is.
The lock on ``owner`` says that the network runs; a process that died leaves only
that file and the socket behind, which mean nothing then.

With the driver ``bridge`` (root's) frames don't come here: cards are taps on a bridge of the kernel's (net/bridge),
which is the way out. This process is one more of its ports, for DHCP, names and IPv6; a card's connection only says
that it is there. The process that made the bridge stays root's and waits for it, to take it away again.
"""

import contextlib
import gc
import json
import os
import signal
import socket
import struct
import sys
from pathlib import Path
from typing import Any

from hostel.base.linux import lock, prctl
from hostel.base.loop import READ, Loop, Timer
from hostel.net.port import Port
from hostel.net.process import confine
from hostel.net.router import Network
from hostel.net.settings import Settings

MESSAGE_MAX = 65536
LISTENERS_MAX = 64            # forwarded ports of one card, and its tap
PORTS_MAX = 250
STRANGERS_MAX = 64            # connections that haven't said who they are
GREETING_TIMEOUT = 5.0
LINGER = 3.0                  # seconds without a VM: one that restarts should find it


class Named:
    """The network's door: new connections become ports, or are told what there is. ``own`` ports aren't cards."""

    def __init__(self, loop: Loop, network: Network, listener: socket.socket, uid: int, own: int = 0):
        self._loop = loop
        self._network = network
        self._listener = listener
        self._uid = uid
        self._strangers: dict[socket.socket, Timer] = {}
        self._end: Timer | None = None
        self._own = own
        network.on_empty = self._linger
        loop.watch(listener.fileno(), READ, lambda _: self._accept())
        self._linger()

    def _linger(self) -> None:
        self._keep()
        self._end = self._loop.call_later(LINGER, self._leave)

    def _leave(self) -> None:
        if len(self._network.ports) > self._own:
            self._end = None
            if self._own:
                self._linger()  # such a network is never empty
        elif self._strangers:
            self._linger()
        else:
            self._loop.stop()

    def _keep(self) -> None:
        if self._end:
            self._end.cancel()
            self._end = None

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            sock, _ = self._listener.accept()
            peer = struct.unpack("iII", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
            if peer[1] not in (self._uid, 0) or len(self._strangers) >= STRANGERS_MAX:
                sock.close()
                return
            sock.setblocking(False)
            self._strangers[sock] = self._loop.call_later(GREETING_TIMEOUT, lambda: self._dismiss(sock).close())
            self._loop.watch(sock.fileno(), READ, lambda _: self._greeted(sock))

    def _dismiss(self, sock: socket.socket) -> socket.socket:
        self._strangers.pop(sock).cancel()
        self._loop.unwatch(sock.fileno())
        return sock

    def _greeted(self, sock: socket.socket) -> None:
        fds: list[int] = []
        answer: dict[str, Any]
        try:
            data, fds, flags, _ = socket.recv_fds(sock, MESSAGE_MAX, LISTENERS_MAX + 1)
            self._dismiss(sock)
            hello = json.loads(data)
            if hello.get("inspect"):
                answer = self._all()
            else:
                answer = self._admit(hello, sock, fds)
        except BlockingIOError:
            return
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        if sock in self._strangers:
            self._dismiss(sock)
        with contextlib.suppress(OSError):
            sock.send(json.dumps(answer).encode())
        if "address" in answer:
            if not self._own:
                self._keep()
            mac, guests = bytes.fromhex(hello["mac"].replace(":", "")), hello.get("guest_ports", [])
            tap = fds.pop() if hello.get("tap") else -1
            listeners = [(socket.socket(fileno=fd), port) for fd, port in zip(fds, guests, strict=True)]
            port = self._network.add_port(sock.detach() if tap < 0 else tap, mac, hello["name"], listeners)
            if tap >= 0:
                self._loop.watch(sock.fileno(), READ, lambda _: self._let_go(sock, port))
        else:
            for fd in fds:
                os.close(fd)
            sock.close()

    def _let_go(self, sock: socket.socket, port: Port) -> None:
        """Nobody has the tap any more."""
        self._loop.unwatch(sock.fileno())
        sock.close()
        self._network.remove_port(port)

    def _admit(self, hello: dict[str, Any], sock: socket.socket, fds: list[int]) -> dict[str, Any]:
        """The answer to a card that wants a port; it gets one if there is an address in it."""
        mac, name = bytes.fromhex(hello["mac"].replace(":", "")), hello["name"]
        if len(mac) != 6 or not isinstance(name, str) or (
            len(fds) != len(hello.get("guest_ports", [])) + bool(hello.get("tap"))
        ):
            raise ValueError("no greeting of a card's")
        if len(self._network.ports) >= PORTS_MAX:
            return {"error": f"it has {PORTS_MAX} cards already"}
        if any(port.mac == mac for port in self._network.ports):
            return {"error": f"another card has the MAC address {hello['mac']}"}
        address = self._network.dhcp.assign(mac, name)
        if not address:
            return {"error": "its subnet has no more addresses"}
        return {"address": socket.inet_ntoa(address.to_bytes(4, "big"))}

    def _all(self) -> dict[str, Any]:
        ports = [
            {"name": port.name, "mac": port.mac.hex(":"), "address": socket.inet_ntoa(port.address)}
            for port in self._network.ports[self._own :]
        ]
        return {"pid": os.getpid(), "cards": ports, "counters": self._network.counters()}


def main(argv: list[str]) -> int:
    folder, options, ready = Path(argv[0]), json.loads(argv[1]), int(argv[2])
    driver = options.pop("driver")
    settings = Settings(**options)
    os.closerange(3, ready)
    os.closerange(ready + 1, 1 << 16)
    owner = os.open(folder / "owner", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    if not lock.take(owner):
        return 1
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGPIPE):
        signal.signal(number, signal.SIG_IGN)
    prctl.set_name("hostel-net")
    os.umask(0o077)
    os.chdir(folder)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    with contextlib.suppress(FileNotFoundError):
        os.unlink("net.sock")
    listener.bind("net.sock")
    listener.listen(64)
    os.chdir("/")
    if driver == "bridge":
        return _keep_bridge(folder, settings, listener, ready)
    return serve(settings, listener, ready)


def serve(settings: Settings, listener: socket.socket, ready: int, bridged: tuple[int, str, int] | None = None) -> int:
    """Be the network, until nobody is on it. ``bridged``: a tap on the bridge, the bridge's address, and a pipe whose
    other end its keeper holds."""
    uid = os.geteuid()
    confine(settings)
    gc.freeze()
    loop = Loop()
    network = Network(loop, settings)
    if bridged:
        tap, gateway, keeper = bridged
        loop.watch(keeper, READ, lambda _: loop.stop())
        if not settings.internal:
            network.dhcp.lease.router = socket.inet_aton(gateway)
        network.add_port(tap, bytes(6))
    Named(loop, network, listener, uid, 1 if bridged else 0)
    os.write(ready, b"1")
    os.close(ready)
    loop.run()
    return 0


def _keep_bridge(folder: Path, settings: Settings, listener: socket.socket, ready: int) -> int:
    """Make the bridge, have another process be the network, and take the bridge away when that has ended."""
    from hostel.net import bridge
    from hostel.net.tap import Tap, join_bridge, set_up

    name = bridge.name_of(folder)
    with contextlib.ExitStack() as stack:
        gateway = bridge.create(stack, name, settings.subnet, settings.internal)
        tap = Tap("hostel%d")
        join_bridge(tap.name, name)
        set_up(tap.name)
        here, there = os.pipe()
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                os.close(there)
                status = serve(settings, listener, ready, (tap.fds[0], gateway, here))
            finally:
                sys.stderr.flush()
                os._exit(status)
        os.close(here)
        os.close(ready)
        listener.close()
        tap.close()
        signal.signal(signal.SIGTERM, lambda *_: os.kill(pid, signal.SIGKILL))
        os.waitpid(pid, 0)
    return 0


if __name__ == "__main__":
    status = main(sys.argv[1:])
    sys.stderr.flush()
    os._exit(status)
