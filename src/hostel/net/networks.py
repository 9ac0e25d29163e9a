"""Named networks: ``networks/NAME/`` with network.toml (what it is), net.sock and owner (its process, while it runs)
and net.log.

Nobody has to start or stop one: the first VM's worker starts the process (net/named), which ends with the last VM. The
lock on ``lock`` is held for a moment by who starts or removes it, the one on ``owner`` by the process itself.
"""

import contextlib
import ipaddress
import json
import os
import random
import select
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from hostel.base import atomic, paths
from hostel.base.errors import MachineError, NetworkError
from hostel.base.linux import lock
from hostel.base.log import last_line
from hostel.base.toml import write_toml
from hostel.net import bridge
from hostel.spec.net import NETWORK_VERSION, NetworkSpec, check_network_name, check_network_spec

AUTO6 = "auto"          # in place of an IPv6 subnet: choose one
START_TIMEOUT = 20.0
_ANSWER_TIMEOUT = 10.0
_MESSAGE_MAX = 1 << 18
_ENVIRONMENT = ("PATH", "PYTHONPATH", "HOME", "LANG", "LC_ALL", "TZ")
# Where subnets are chosen from: private (RFC 1918), and seldom used by anything else.
_POOL = ipaddress.ip_network("10.64.0.0/10")


class NetworkFolder:
    """One network's folder."""

    def __init__(self, path: Path):
        self.path = path
        self.name = path.name

    def spec(self) -> NetworkSpec:
        file = self.path / "network.toml"
        try:
            data = tomllib.loads(file.read_text())
        except OSError as e:
            raise MachineError(f"can't read {file}: {e.strerror}") from e
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as e:
            raise MachineError(f"{file} is damaged: {e}") from e
        if data.get("version", NETWORK_VERSION) != NETWORK_VERSION:
            raise MachineError(f"{file} has version {data['version']}; this hostel knows version {NETWORK_VERSION}")
        try:
            return msgspec.convert({**data, "name": self.name}, NetworkSpec)
        except msgspec.ValidationError as e:
            raise MachineError(f"{file}: {e}") from e

    def running(self) -> bool:
        """Whether its process lives."""
        return lock.is_held(self.path / "owner")

    def inspect(self) -> dict[str, Any]:
        """The process's word: pid, cards, counters; empty where it doesn't run."""
        try:
            return self._ask({"inspect": True})[1]
        except (OSError, ValueError):
            return {}

    def join(
        self, name: str, mac: str, listeners: list[socket.socket], guest_ports: list[int], tap: int = -1
    ) -> tuple[int, str]:
        """A card's end of a new port, non-blocking, and the address that it will be given; the network starts if it
        must. With ``tap`` that is the card's end, and what is returned only has to stay open. Raises NetworkError."""
        hello = {"name": name, "mac": mac, "guest_ports": guest_ports, "tap": tap >= 0}
        passed = [*(listener.fileno() for listener in listeners), *([tap] if tap >= 0 else [])]
        deadline = time.monotonic() + START_TIMEOUT
        while True:
            with contextlib.suppress(OSError, ValueError):  # none there, or one that is just leaving
                sock, answer = self._ask(hello, passed)
                if "error" in answer:
                    sock.close()
                    raise NetworkError(f"can't join the network '{self.name}': {answer['error']}")
                sock.setblocking(False)
                return sock.detach(), answer["address"]
            if time.monotonic() > deadline:
                raise NetworkError(f"the network '{self.name}' doesn't answer; see {self.path / 'net.log'}")
            with atomic.locked(self.path / "lock"):
                if not (self.path / "network.toml").exists():
                    raise NetworkError(f"there is no network named '{self.name}'")
                if self.running():
                    time.sleep(0.02)
                else:
                    self._start()

    def _ask(self, message: dict[str, Any], passed: Sequence[int] = ()) -> tuple[socket.socket, dict]:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
        try:
            sock.settimeout(_ANSWER_TIMEOUT)
            folder = os.open(self.path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                sock.connect(f"/proc/self/fd/{folder}/net.sock")
            finally:
                os.close(folder)
            socket.send_fds(sock, [json.dumps(message).encode()], passed)
            return sock, json.loads(sock.recv(_MESSAGE_MAX))
        except BaseException:
            sock.close()
            raise

    def _start(self) -> None:
        """Start its process; return when it listens."""
        settings = json.dumps(settings_of(self.spec()))
        reader, writer = os.pipe()
        environment = {k: v for k, v in os.environ.items() if k in _ENVIRONMENT or k.startswith("HOSTEL_")}
        try:
            with open(self.path / "net.log", "wb", buffering=0) as log:
                process = subprocess.Popen(
                    [sys.executable, "-P", "-m", "hostel.net.named", str(self.path), settings, str(writer)],
                    stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, pass_fds=[writer],
                    start_new_session=True, cwd="/",
                )
        finally:
            os.close(writer)
        try:
            ready, _, _ = select.select([reader], [], [], START_TIMEOUT)
            if not ready or not os.read(reader, 1):
                process.kill()
                process.wait()
                raise NetworkError(f"the network '{self.name}' didn't start: {last_line(self.path / 'net.log')}")
        finally:
            os.close(reader)
        process.returncode = 0  # whose child it is doesn't matter: nobody waits for it


def settings_of(spec: NetworkSpec) -> dict[str, Any]:
    """What net/settings.Settings is made from."""
    return {
        "driver": spec.driver, "subnet": spec.subnet, "prefix": spec.subnet6, "domain": spec.name,
        "internal": spec.internal,
    }


def sweep() -> None:
    """Take away bridges whose process was killed; only root can have left some."""
    if os.geteuid() == 0:
        for folder in folders():
            name = bridge.name_of(folder.path)
            if bridge.exists(name) and not folder.running():
                with atomic.locked(folder.path / "lock"):
                    if not folder.running():
                        bridge.remove(name)


def create(spec: NetworkSpec) -> NetworkFolder:
    """Make the network; subnets that weren't given are chosen. Raises UsageError, MachineError."""
    if spec.subnet6 == AUTO6:
        spec.subnet6 = choose6()
    check_network_spec(spec)
    if spec.driver == "bridge":
        bridge.check()
    sweep()
    root = paths.networks()
    with atomic.told(root):
        root.mkdir(parents=True, exist_ok=True)
    with atomic.locked(root / ".lock"):
        others = [folder.spec() for folder in folders()]
        if any(other.name == spec.name for other in others):
            raise MachineError(f"a network named '{spec.name}' exists already")
        taken = [ipaddress.IPv4Network(other.subnet) for other in others]
        if not spec.subnet:
            spec.subnet = _choose(taken + _routes())
        elif any(ipaddress.IPv4Network(spec.subnet).overlaps(other) for other in taken):
            raise MachineError(f"{spec.subnet} overlaps another network's subnet; 'hostel network ls' shows them")
        folder = NetworkFolder(root / spec.name)
        with atomic.told(folder.path):
            new = Path(tempfile.mkdtemp(prefix=".new-", dir=root))
            try:
                data = msgspec.to_builtins(spec)
                del data["name"]
                atomic.write(new / "network.toml", write_toml({"version": spec.version, **data}))
                if folder.path.exists():  # an interrupted removal's rest
                    shutil.rmtree(folder.path)
                os.rename(new, folder.path)
            except BaseException:
                shutil.rmtree(new, ignore_errors=True)
                raise
    return folder


def choose6() -> str:
    """A /64 of a unique local prefix (RFC 4193, 3.2.2)."""
    return str(ipaddress.ip_network((b"\xfd" + os.urandom(5) + b"\0\0" + bytes(8), 64)))


def _choose(taken: list[ipaddress.IPv4Network]) -> str:
    subnets = _POOL.num_addresses >> 8
    for number in random.sample(range(subnets), 256):
        subnet = ipaddress.IPv4Network((int(_POOL.network_address) + (number << 8), 24))
        if not any(subnet.overlaps(other) for other in taken):
            return str(subnet)
    raise MachineError("there is no free subnet; choose one by --subnet")


def _routes() -> list[ipaddress.IPv4Network]:
    """The host's own networks, which guests may want to reach."""
    found = []
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in Path("/proc/net/route").read_text().splitlines()[1:]:
            fields = line.split()
            address, mask = (int.from_bytes(bytes.fromhex(fields[i]), "little") for i in (1, 7))
            if mask:
                found.append(ipaddress.IPv4Network((address & mask, mask.bit_count())))
    return found


def find(name: str) -> NetworkFolder:
    """An existing network; ``MachineError`` where there is none."""
    check_network_name(name)
    folder = NetworkFolder(paths.networks() / name)
    if not (folder.path / "network.toml").exists():
        raise MachineError(f"there is no network named '{name}'; 'hostel network create {name}' makes one")
    return folder


def folders() -> list[NetworkFolder]:
    """All networks, by name."""
    try:
        names = sorted(os.listdir(paths.networks()))
    except OSError:
        return []
    all_ = [NetworkFolder(paths.networks() / name) for name in names if not name.startswith(".")]
    return [folder for folder in all_ if (folder.path / "network.toml").exists()]


def remove(name: str) -> None:
    """Remove a network that no VM is on."""
    sweep()
    folder = find(name)
    with atomic.locked(folder.path / "lock"):
        cards = folder.inspect().get("cards", []) if folder.running() else []
        if cards:
            names = ", ".join(sorted({card["name"] for card in cards}))
            raise MachineError(f"the network '{name}' is used by {names}; stop them first")
        with atomic.told(folder.path):
            (folder.path / "network.toml").unlink(missing_ok=True)
            shutil.rmtree(folder.path)
