"""A worker whose machine is a fake: no engine, no board, a guest of a few lines. ``python -m fake_worker``.

Its guest writes a prompt to the console and answers lines: ``echo TEXT``, ``poweroff``, ``reset``, ``crash``
(a triple fault), ``flood N`` (N lines), ``full N`` (no room for its disk, N
times). Its agent is the real one, compiled, as a process of the host's. What is
tested with it is everything around the machine.
"""

import encodings.idna  # noqa: F401  what misbehaves must not fail by a module that it can't import
import mmap
import os
import resource
import socket
import subprocess
import sys
import threading
import types

from hostel.base.linux import seccomp
from hostel.base.linux.syscall import syscall
from hostel.images import agent, tiny


class FakePort:
    """The host's end of a serial port (devices/uart), to a function instead of a guest."""

    def __init__(self, receive=None):
        self.tx_fd = os.eventfd(0, os.EFD_NONBLOCK)
        self.rx_fd = os.eventfd(0, os.EFD_NONBLOCK)
        self.out = bytearray()
        self.lock = threading.Lock()
        self.receive = receive

    def transmit(self, data):
        """The guest writes; it waits while 128 KiB are unread."""
        while len(self.out) > 131072:
            threading.Event().wait(0.001)
        with self.lock:
            self.out += data
            os.eventfd_write(self.tx_fd, 1)

    def take(self, limit=65536):
        with self.lock:
            data = bytes(self.out[:limit])
            del self.out[:limit]
            if not self.out:
                try:
                    os.eventfd_read(self.tx_fd)
                except BlockingIOError:
                    pass
        return data

    def send(self, data):
        if self.receive:
            self.receive(bytes(data))
        return len(data)

    def close(self):
        os.close(self.tx_fd)
        os.close(self.rx_fd)


class AgentPort:
    """The agent, on a socket in a serial port's place."""

    def __init__(self):
        self.socket, theirs = socket.socketpair()
        self.socket.setblocking(False)
        self.tx_fd = self.socket.fileno()
        self.rx_fd = os.eventfd(0, os.EFD_NONBLOCK)
        program = os.memfd_create("agent", 0)
        os.write(program, tiny.compiled(agent))
        self.process = subprocess.Popen(
            ["agent", str(theirs.fileno())], executable=f"/proc/self/fd/{program}", pass_fds=(theirs.fileno(), program)
        )
        os.close(program)
        theirs.close()

    def take(self, limit=65536):
        try:
            return self.socket.recv(limit)
        except BlockingIOError:
            return b""

    def send(self, data):
        return self.socket.send(data)

    def close(self):
        self.socket.close()
        os.close(self.rx_fd)


def misbehave(outside):
    """Try to get out of the worker as what broke out of the engine would; what worked."""
    tries = {
        "read a file": lambda: open("/etc/passwd").read(),
        "read a neighbour's file": lambda: os.listdir(outside),
        "write beside its folder": lambda: open(f"{outside}/mine", "w"),
        "change a mode": lambda: os.chmod(outside, 0o777),
        "change its parent's mode": lambda: os.chmod("/proc/self/cwd", 0o777),
        "look into its starter": lambda: open(f"/proc/{os.getppid()}/environ").read(),
        "look into init": lambda: os.listdir("/proc/1/fd"),
        "kill its starter": lambda: os.kill(os.getppid(), 0),
        "kill everybody": lambda: os.kill(-1, 0),
        "a TCP connection": lambda: socket.create_connection(("127.0.0.1", 9), 1),
        "a unix socket": lambda: socket.socket(socket.AF_UNIX),
        "a pair of sockets": lambda: socket.socketpair(),
        "a process in another namespace": lambda: syscall(56, 0x10000000 | 17, 0, 0, 0, 0),
        "a process that shares its memory": lambda: syscall(56, 0x100 | 17, 0, 0, 0, 0),
        "another program": lambda: os.posix_spawn("/bin/true", ["true"], {}),
        "a FIFO": lambda: os.mkfifo(f"{outside}/fifo"),
        "a link": lambda: os.symlink("/etc/passwd", f"{outside}/link"),
        "another's limits": lambda: resource.prlimit(os.getppid(), resource.RLIMIT_NOFILE),
        "code it wrote": lambda: mmap.mmap(-1, 4096, prot=mmap.PROT_WRITE | mmap.PROT_EXEC),
    }
    worked = []
    for name, act in tries.items():
        try:
            act()
        except OSError:
            continue
        worked.append(name)
    return f"tried {len(tries)}, worked: {', '.join(worked) or 'none'}"


NO_ROOM = "full: no room for disk /x: the file system is full"


class FakeMachine:
    def __init__(self, spec, files, loop, on_event, blank=False, on=None):
        self.on_event = on_event
        self.console = FakePort(self.typed)
        self.agent = self.agent_port = files.agents.pop() if files.agents else FakePort()
        self.line = b""
        self.starts = 0
        self.missing = 0  # how often there will be no room

    def typed(self, data):
        self.line += data
        while b"\n" in self.line:
            line, self.line = self.line.split(b"\n", 1)
            threading.Thread(target=self.command, args=(line.decode(),)).start()

    def command(self, line):
        word, _, rest = line.partition(" ")
        if word == "echo":
            self.console.transmit(rest.encode() + b"\r\n# ")
        elif word == "flood":
            for i in range(int(rest)):
                self.console.transmit(b"%08d: a line of the flood that is eighty characters long or nearly so\n" % i)
        elif word in ("poweroff", "reset"):
            self.on_event(self, word)
        elif word == "misbehave":
            self.console.transmit(misbehave(rest).encode() + b"\r\n# ")
        elif word == "breach":
            syscall(seccomp.BREACHES[rest], 0, 0, 0, 0, 0)
        elif word == "full":
            self.missing = int(rest)
            self.on_event(self, NO_ROOM)
        elif word == "crash":
            self.on_event(self, "triple fault")

    def start(self):
        self.starts += 1
        if self.starts == 1:
            self.console.transmit(b"fake guest\r\n# ")

    def stop(self):
        pass

    def stand_still(self):
        pass

    @property
    def full(self):
        return self.missing > 0

    def retry(self):
        self.missing -= 1
        if self.full:
            self.on_event(self, NO_ROOM)

    def close(self):
        self.console.close()
        self.agent.close()

    def new_generation(self, guid):
        pass

    def press_power_button(self):
        self.on_event(self, "poweroff")
        return True

    def statistics(self):
        return {"vcpus": []}


class BootFiles:
    """Holds the agents too, since a confined worker can't start one for the second boot."""

    def __init__(self, spec, resumed=False):
        self.agents = [AgentPort() for _ in range(2)] if spec.agent else []

    def rings(self):
        return []

    def shares(self):
        return []

    def close(self):
        pass


def replace(machine_class, boot_files):
    """Put these in the place of the real ones; only in a worker's own process, as it is for good."""
    module = types.ModuleType("hostel.vm.machine")
    module.Machine = machine_class
    module.BootFiles = boot_files
    sys.modules["hostel.vm.machine"] = module


if __name__ == "__main__":
    replace(FakeMachine, BootFiles)
    from hostel.vm import worker

    os._exit(worker.main(sys.argv[1:]))
