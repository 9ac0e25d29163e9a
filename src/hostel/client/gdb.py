"""GDB's remote serial protocol, in front of a ``Debugger``: what ``hostel debug`` speaks.

A thread is a vCPU (thread 1 is vCPU 0). All-stop mode; vCont with steps of single vCPUs. Registers go by a target
description with gdb's own names (org.gnu.gdb.i386.*), the system's registers in a feature of ours. As with QEMU,
``maintenance packet Qqemu.PhyMemMode:1`` makes memory physical and ``Qqemu.sstep`` says whether interrupts may come
before a step; ``monitor help`` lists what there is beside.

What gdb sends is checked, but gdb is trusted as the VM's owner is.
"""

import os
import select
import struct

from hostel.base.errors import HostelError
from hostel.client.connection import Gone
from hostel.client.debugger import Debugger, Stop
from hostel.client.gdb_registers import REGISTERS, get_register, set_register, target_description
from hostel.vm.debug import VcpuState

_PACKET_SIZE = 0x8000
_SIGINT, _SIGTRAP = 2, 5
_KINDS = {2: "write", 3: "read", 4: "access"}
_WATCHED = {"write": "watch", "read": "rwatch", "access": "awatch"}
_NO_INTERRUPTS = 2  # QEMU's SSTEP_NOIRQ


class Detached(Exception):
    """gdb lets go."""


class Server:
    """One gdb, from its connection to its end: ``Server(debugger, in_fd, out_fd).run()``."""

    def __init__(self, debugger: Debugger, in_fd: int, out_fd: int):
        self._debugger = debugger
        self._in = in_fd
        self._out = out_fd
        self._data = b""
        self._acknowledge = True
        self._thread = 0            # vCPU of registers and memory
        self._states: dict[int, VcpuState] = {}
        self._physical = False
        self._step_flags = 7
        self._hard: set[int] = set()
        self._soft: set[int] = set()
        self._last = Stop(0, "interrupt", 0)
        self._reports = False        # gdb understands swbreak and hwbreak

    def run(self) -> None:
        """Until gdb goes away or the VM ends."""
        try:
            while True:
                stop = self._debugger.poll()
                if stop is not None:
                    self._stopped(stop)
                ready, _, _ = select.select([self._in, self._debugger.connection.sock.fileno()], [], [])
                if self._in in ready:
                    data = os.read(self._in, 65536)
                    if not data:
                        return
                    self._data += data
                    self._packets()
        except Gone:
            self._send("W00")
        except (Detached, ConnectionError, BrokenPipeError):
            pass

    # -- packets

    def _packets(self) -> None:
        while self._data:
            first = self._data[0]
            if first == 3:
                self._data = self._data[1:]
                if self._debugger.running:
                    self._debugger.interrupt()
            elif first != ord("$"):
                self._data = self._data[1:]  # acknowledgements, noise
            else:
                end = self._data.find(b"#")
                if end < 0 or len(self._data) < end + 3:
                    if len(self._data) > 4 * _PACKET_SIZE:
                        self._data = b""
                    return
                body, check = self._data[1:end], self._data[end + 1 : end + 3]
                self._data = self._data[end + 3 :]
                good = check.decode("latin-1").lower() == f"{sum(body) & 255:02x}"
                if self._acknowledge:
                    self._write(b"+" if good else b"-")
                if good:
                    self._handle(body)

    def _handle(self, body: bytes) -> None:
        if self._debugger.running:
            return  # gdb has been told nothing yet: it may only interrupt
        try:
            answer = self._answer(body)
        except Gone:
            raise
        except (HostelError, ValueError, IndexError, struct.error, UnicodeDecodeError):
            answer = "E22"
        if answer is not None:
            self._send(answer)

    def _send(self, text: str | bytes) -> None:
        body = text if isinstance(text, bytes) else text.encode("latin-1")
        self._write(b"$" + body + b"#%02x" % (sum(body) & 255))

    def _write(self, data: bytes) -> None:
        while data:
            data = data[os.write(self._out, data) :]

    def _answer(self, body: bytes) -> str | bytes | None:
        """The reply; "" for what isn't supported, None where the reply comes later."""
        if body[:1] == b"X":
            head, _, data = body.partition(b":")
            start, size = (int(n, 16) for n in head[1:].split(b","))
            return self._store(start, _unescape(data), size)
        text = body.decode("latin-1")
        letter, rest = text[:1], text[1:]
        if letter == "?":
            return self._stop_reply(self._last)
        if letter == "g":
            return "".join(get_register(self._state(), i).hex() for i in range(len(REGISTERS)))
        if letter == "G":
            return self._set_all(bytes.fromhex(rest))
        if letter == "p":
            return get_register(self._state(), _number(rest)).hex()
        if letter == "P":
            number, _, value = rest.partition("=")
            state = self._state()
            set_register(state, _number(number), bytes.fromhex(value))
            return self._set_state(state)
        if letter == "m":
            address, length = (int(n, 16) for n in rest.split(","))
            data = self._debugger.read(self._thread, address, min(length, _PACKET_SIZE // 2), self._physical)
            return data.hex() if data or not length else "E14"
        if letter == "M":
            where, _, value = rest.partition(":")
            address, length = (int(n, 16) for n in where.split(","))
            return self._store(address, bytes.fromhex(value), length)
        if letter in "Zz":
            return self._point(letter == "Z", rest)
        if letter == "H":
            vcpu = _vcpu(rest[1:])
            if rest[:1] == "g" and vcpu is not None:
                self._thread = self._checked(vcpu)
            return "OK"
        if letter == "T":
            self._checked(_vcpu(rest) or 0)
            return "OK"
        if letter in "cCsS":
            self._resume([(letter.lower(), None)])
            return None
        if letter == "v":
            return self._verbose(text)
        if letter == "D":
            self._send("OK")
            raise Detached
        if letter == "k":
            self._kill()
        if letter in "qQ":
            return self._query(text)
        return ""

    # -- going on and standing still

    def _verbose(self, text: str) -> str | None:
        if text == "vCont?":
            return "vCont;c;C;s;S"
        if text.startswith("vCont;"):
            actions = []
            for action in text[6:].split(";"):
                what, _, thread = action.partition(":")
                if what[:1].lower() not in "cs":
                    return "E22"
                actions.append((what[:1].lower(), _vcpu(thread) if thread else None))
            self._resume(actions)
            return None
        if text.startswith("vKill"):
            self._send("OK")
            self._kill()
        return ""

    def _resume(self, actions: list[tuple[str, int | None]]) -> None:
        """The first action that fits a thread is its own; one without a thread fits all, one with none stays."""
        chosen: list[int] = []
        steps: list[int] = []
        for vcpu in range(self._debugger.vcpus):
            for what, which in actions:
                if which is None and what == "s" and len(actions) == 1:
                    which = self._thread  # a plain 's'
                if which in (None, vcpu):
                    (steps if what == "s" else chosen).append(vcpu)
                    break
        self._states.clear()
        self._debugger.breaks = self._hard | self._soft
        self._debugger.go(
            only=sorted(chosen + steps), step=steps, interrupts=not self._step_flags & _NO_INTERRUPTS
        )

    def _stopped(self, stop: Stop) -> None:
        self._thread = stop.vcpu
        self._last = stop
        self._send(self._stop_reply(stop))

    def _stop_reply(self, stop: Stop) -> str:
        signal = _SIGINT if stop.why == "interrupt" else _SIGTRAP
        detail = ""
        if stop.why in _WATCHED:
            detail = f"{_WATCHED[stop.why]}:{stop.address:x};"
        elif stop.why == "break" and self._reports:
            detail = "hwbreak:;" if stop.address in self._hard else "swbreak:;"
        return f"T{signal:02x}thread:{stop.vcpu + 1:x};{detail}"

    def _kill(self) -> None:
        self._debugger.connection.call("quit")
        raise Detached

    def _point(self, insert: bool, rest: str) -> str:
        kind, address, length = (int(n, 16) for n in rest.split(";")[0].split(","))
        if kind in (0, 1):
            place = self._soft if kind == 0 else self._hard
            (place.add if insert else place.discard)(address)
        elif kind in _KINDS:
            watch = (address, length, _KINDS[kind])
            (self._debugger.watches.add if insert else self._debugger.watches.discard)(watch)
        else:
            return ""
        return "OK" if len(self._hard | self._soft) <= 256 and len(self._debugger.watches) <= 16 else "E28"

    # -- registers and memory

    def _checked(self, vcpu: int) -> int:
        if not 0 <= vcpu < self._debugger.vcpus:
            raise ValueError("no such thread")
        return vcpu

    def _state(self) -> VcpuState:
        if self._thread not in self._states:
            self._states[self._thread] = self._debugger.state(self._thread)
        return self._states[self._thread]

    def _set_state(self, state: VcpuState) -> str:
        self._states.clear()
        self._debugger.set_state(state, self._thread)
        return "OK"

    def _set_all(self, data: bytes) -> str:
        state = self._state()
        at = 0
        for number, (_, bits, _) in enumerate(REGISTERS):
            value = data[at : at + bits // 8]
            if len(value) < bits // 8:
                break
            if value != get_register(state, number):
                set_register(state, number, value)
            at += bits // 8
        return self._set_state(state)

    def _store(self, address: int, data: bytes, length: int) -> str:
        if len(data) != length:
            return "E22"
        return "OK" if self._debugger.write(self._thread, address, data, self._physical) == length else "E14"

    # -- questions

    def _query(self, text: str) -> str | bytes | None:
        debugger = self._debugger
        name, _, rest = text.partition(":")
        if name == "qSupported":
            self._reports = "swbreak+" in rest and "hwbreak+" in rest
            return (
                f"PacketSize={_PACKET_SIZE:x};qXfer:features:read+;vContSupported+;QStartNoAckMode+;swbreak+;hwbreak+"
            )
        if text == "QStartNoAckMode":
            self._send("OK")
            self._acknowledge = False
            return None
        if text.startswith("qXfer:features:read:target.xml:"):
            offset, length = (int(n, 16) for n in text.rpartition(":")[2].split(","))
            part = target_description().encode()[offset : offset + length]
            return _escape((b"m" if len(part) == length else b"l") + part)
        if text == "qfThreadInfo":
            return "m" + ",".join(f"{i + 1:x}" for i in range(debugger.vcpus))
        if text == "qsThreadInfo":
            return "l"
        if name.startswith("qThreadExtraInfo,"):
            state = debugger.state(self._checked(_vcpu(name.partition(",")[2]) or 0))
            how = " (waits for SIPI)" if state.wait_sipi else " (halted)" if state.halted else ""
            return f"vCPU {int(name.partition(',')[2], 16) - 1}{how}".encode().hex()
        if text == "qC":
            return f"QC{self._thread + 1:x}"
        if name == "qAttached":
            return "1"
        if name == "qSymbol":
            return "OK"
        if name.startswith("qRcmd,"):
            return self._monitor(bytes.fromhex(name[6:]).decode())
        if text == "qqemu.sstepbits":
            return "ENABLE=1,NOIRQ=2,NOTIMER=4"
        if text == "qqemu.sstep":
            return f"0x{self._step_flags:x}"
        if text.startswith("Qqemu.sstep="):
            self._step_flags = int(text.partition("=")[2], 16)
            return "OK"
        if text == "qqemu.PhyMemMode":
            return str(int(self._physical))
        if name == "Qqemu.PhyMemMode":
            self._physical = bool(int(rest))
            return "OK"
        return ""

    def _monitor(self, line: str) -> str:
        words = line.replace("/", " /", 1).split()
        command, arguments = (words[0] if words else "help"), words[1:]
        try:
            said = self._command(command, arguments)
        except (ValueError, IndexError):
            said = f"{command}: 'monitor help' shows how\n"
        return said.encode().hex() or "OK"

    def _command(self, command: str, arguments: list[str]) -> str:
        if command == "xp":
            form = arguments.pop(0)[1:] if arguments[0].startswith("/") else "1w"
            count = int("".join(c for c in form if c.isdigit()) or "1")
            size = next((n for c, n in (("b", 1), ("h", 2), ("w", 4), ("g", 8)) if c in form), 4)
            return self._physical_dump(int(arguments[0], 0), count, size)
        if command == "gva2gpa":
            gpa = self._debugger.translate(int(arguments[0], 0), self._thread)
            return "not mapped\n" if gpa is None else f"{gpa:#x}\n"
        if command == "system_reset":
            self._debugger.connection.call("reset")
            self._states.clear()
            return "reset\n"
        return (
            "xp[/COUNT[b|h|w|g]] ADDRESS   show physical memory\n"
            "gva2gpa ADDRESS               the physical address of a virtual one\n"
            "system_reset                  press the reset button\n"
        )

    def _physical_dump(self, address: int, count: int, size: int) -> str:
        data = self._debugger.read(self._thread, address, count * size, True)
        lines = []
        for at in range(0, len(data) // size * size, 16):
            row = data[at : at + 16]
            words = [int.from_bytes(row[i : i + size], "little") for i in range(0, len(row) // size * size, size)]
            lines.append(f"{address + at:016x}: " + " ".join(f"0x{word:0{2 * size}x}" for word in words))
        if len(data) < count * size:
            lines.append(f"no memory at {address + len(data):#x}")
        return "\n".join(lines) + "\n"


def _number(text: str) -> int:
    number = int(text, 16)
    if not 0 <= number < len(REGISTERS):
        raise ValueError("no such register")
    return number


def _vcpu(text: str) -> int | None:
    """A thread's vCPU; None for "any" and "all"."""
    number = -1 if text == "-1" else int(text, 16)
    return None if number in (-1, 0) else number - 1


def _unescape(data: bytes) -> bytes:
    out = bytearray()
    at = 0
    while at < len(data):
        if data[at] == 0x7D:
            at += 1
            out.append(data[at] ^ 0x20)
        else:
            out.append(data[at])
        at += 1
    return bytes(out)


def _escape(data: bytes) -> bytes:
    return b"".join(b"}" + bytes([c ^ 0x20]) if c in b"#$}*" else bytes([c]) for c in data)
