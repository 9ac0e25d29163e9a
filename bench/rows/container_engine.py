"""What stays with an idle container, and what gets through a forwarded port: hostel's router beside slirp4netns, which
stands for "the host itself". The machines just stand there.

Memory is the proportional set size (smaps_rollup): what the monitor, and the router where there is one, have of their
own, and their part of what they share with each other and with other Pythons.
"""

import atexit
import contextlib
import functools
import hashlib
import io
import json
import os
import shutil
import socket
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from bench.errors import BenchError, Missing, Wrong
from bench.hostel import program
from bench.mounts import TUN_FOR_ALL, changed
from bench.peer import Peer
from bench.row import Context, Goal, Row, Sample, Values

MEGABYTES = 400
NOBODY = 65534
_IN, _OUT = 5001, 5002
_SERVER = f"""
import socket, threading
def sink(c):
    while c.recv(1 << 20): pass
    c.close()
def source(c):
    for _ in range({MEGABYTES}): c.sendall(bytes(1000000))
    c.close()
def serve(port, answer):
    listener = socket.create_server(("0.0.0.0", port))
    while True:
        threading.Thread(target=answer, args=(listener.accept()[0],), daemon=True).start()
threading.Thread(target=serve, args=({_IN}, sink), daemon=True).start()
serve({_OUT}, source)
"""


def idle_memory(network: str) -> Callable[[Sequence[Peer], Context], Values]:
    def measure(peers: Sequence[Peer], context: Context) -> Values:
        with container(0, "--network", network) as state:
            time.sleep(1.0)
            pids = [state["pid"], *([state["router"]] if state["router"] else [])]
            return {"hostel": Sample(sum(map(proportional, pids)) / 1e6)}

    return measure


def proportional(pid: int) -> int:
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) << 10
    raise Wrong(f"process {pid} has no memory")


def forwarded(direction: str) -> Callable[[Sequence[Peer], Context], Values]:
    """A stream "in" to a server behind a forwarded port of an ordinary user's container, or "out" of it."""
    move, behind = (send, _IN) if direction == "in" else (receive, _OUT)

    def measure(peers: Sequence[Peer], context: Context) -> Values:
        values: Values = {}
        for peer in peers:
            port = free_port()
            if peer.name == "hostel":
                with changed(TUN_FOR_ALL), container(NOBODY, "-p", f"{port}:{behind}") as state, server(state["init"]):
                    values[peer.name] = Sample(move(port))
            elif peer.name == "native":
                with slirp(port, behind):
                    values[peer.name] = Sample(move(port))
        return values

    return measure


def send(port: int) -> float:
    with reached(port) as sock:
        begun, piece = time.monotonic(), bytes(1_000_000)
        for _ in range(MEGABYTES):
            sock.sendall(piece)
        sock.shutdown(socket.SHUT_WR)
        sock.recv(1)
        return time.monotonic() - begun


def receive(port: int) -> float:
    with reached(port) as sock:
        begun, count = time.monotonic(), 0
        while data := sock.recv(1 << 20):
            count += len(data)
        if count != MEGABYTES * 1_000_000:
            raise Wrong(f"{count} bytes came, not {MEGABYTES} MB")
        return time.monotonic() - begun


def reached(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=60)


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@contextlib.contextmanager
def server(pid: int) -> Iterator[None]:
    """The server in a process's network namespace; there when it listens."""
    process = subprocess.Popen(["nsenter", "-t", str(pid), "-n", sys.executable, "-c", _SERVER])
    try:
        for _ in range(200):
            listening = Path(f"/proc/{process.pid}/net/tcp").read_text()
            if f":{_IN:04X} 00000000:0000 0A" in listening and f":{_OUT:04X} 00000000:0000 0A" in listening:
                break
            time.sleep(0.05)
        yield
    finally:
        process.kill()
        process.wait()


@contextlib.contextmanager
def slirp(port: int, behind: int) -> Iterator[None]:
    if not shutil.which("slirp4netns"):
        raise Missing("there is no slirp4netns to compare with; on Debian: apt-get install slirp4netns")
    with contextlib.ExitStack() as stack:
        holder = subprocess.Popen(["unshare", "-n", "sleep", "1000"])
        stack.callback(holder.wait)
        stack.callback(holder.kill)
        while os.stat(f"/proc/{holder.pid}/ns/net").st_ino == os.stat("/proc/self/ns/net").st_ino:
            time.sleep(0.01)
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="hostel-bench-"))
        options = ["--configure", "--mtu=65520", "--api-socket", f"{folder}/api"]
        process = subprocess.Popen(
            ["slirp4netns", *options, str(holder.pid), "tap0"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        stack.callback(process.wait)
        stack.callback(process.kill)
        while not os.path.exists(f"{folder}/api"):
            time.sleep(0.02)
        arguments = {"proto": "tcp", "host_addr": "127.0.0.1", "host_port": port, "guest_port": behind}
        with socket.socket(socket.AF_UNIX) as api:
            api.connect(f"{folder}/api")
            api.sendall(json.dumps({"execute": "add_hostfwd", "arguments": arguments}).encode())
            api.shutdown(socket.SHUT_WR)
            if b"error" in (said := api.recv(4096)):
                raise Wrong(f"slirp4netns: {said!r}")
        stack.enter_context(server(holder.pid))
        yield


@contextlib.contextmanager
def container(user: int, *options: str) -> Iterator[dict[str, Any]]:
    """An idle one of that user's; its state."""
    words = ["run", "-d", "--name", "bench", *options, "box", "--", "sleep", "1000"]
    hostel(user, home(user), *words)
    try:
        yield {"router": 0, **json.loads(Path(home(user), "containers/bench/state.json").read_text())}
    finally:
        hostel(user, home(user), "rm", "-f", "bench")


def hostel(user: int, folder: str, *words: str) -> None:
    """As that user, by the host's Python where ours may not be run by others."""
    environment = {**os.environ, "HOME": folder, "HOSTEL_HOME": folder, "HOSTEL_ZYGOTE_SECONDS": "0"}
    argv = program()
    if user:
        environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
        argv = [f"/usr/bin/python3.{sys.version_info.minor}", "-m", "hostel.cli.main"]
    try:
        subprocess.run(
            [*argv, *words], env=environment, check=True, stdout=subprocess.DEVNULL, cwd="/", user=user, group=user,
            extra_groups=[],
        )
    except (OSError, subprocess.CalledProcessError) as e:
        raise BenchError(f"hostel as user {user}: {e}") from e


@functools.cache
def home(user: int) -> str:
    """A user's home with an image of a static busybox, made once a process."""
    busybox = shutil.which("busybox")
    if os.geteuid() or not busybox:
        raise Missing("containers are measured as root, and with busybox; on Debian: apt-get install busybox-static")
    folder = tempfile.mkdtemp(prefix="hostel-bench-", dir="/var/tmp")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    layer = io.BytesIO()
    with tarfile.open(fileobj=layer, mode="w") as tar:
        tar.add(busybox, "bin/busybox")
        link = tarfile.TarInfo("bin/sleep")
        link.type, link.linkname = tarfile.SYMTYPE, "busybox"
        tar.addfile(link)
    digest = hashlib.sha256(layer.getvalue()).hexdigest()
    config = {"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": [f"sha256:{digest}"]}}
    manifest = [{"Config": "config.json", "RepoTags": ["box:latest"], "Layers": ["layer.tar"]}]
    with tarfile.open(f"{folder}/box.tar", "w") as tar:
        for name, data in (("config.json", json.dumps(config).encode()), ("layer.tar", layer.getvalue()),
                           ("manifest.json", json.dumps(manifest).encode())):  # fmt: skip
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    os.chown(folder, user, user)
    os.chmod(f"{folder}/box.tar", 0o644)
    hostel(user, folder, "image", "load", "-q", "-i", f"{folder}/box.tar")
    return folder


ROWS = [
    Row("container-memory", "memory of an idle container's own processes of ours, without a network", "MB",
        idle_memory("none"), Goal(most=12)),
    Row("container-memory-nat", "the same with a router of its own", "MB", idle_memory("nat"), Goal(most=12)),
    Row("forward-in", f"{MEGABYTES} MB into an ordinary user's container by -p (host: slirp4netns)", "s",
        forwarded("in"), Goal(slower=1.0)),
    Row("forward-out", "the same, out of it", "s", forwarded("out"), Goal(slower=1.0)),
]  # fmt: skip
