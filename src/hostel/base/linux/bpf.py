"""eBPF (bpf(2)): a program that the kernel asks, attached to a cgroup; and an assembler of the instructions for one.

Only what a program without maps and helpers takes. A program lives as long as something holds it: who attached it may
close its descriptor.
"""

import ctypes
import os
import struct

from hostel.base.linux.syscall import syscall

_BPF = 321
_PROG_LOAD, _PROG_ATTACH, _PROG_DETACH, _PROG_GET_FD_BY_ID, _PROG_QUERY = 5, 8, 9, 13, 16
CGROUP_DEVICE_PROGRAM = 15      # BPF_PROG_TYPE_CGROUP_DEVICE
CGROUP_DEVICE = 6               # where it is attached
_ALLOW_MULTI, _REPLACE = 2, 4
_LOG_SIZE = 1 << 16
_MAX_ATTACHED = 64              # BPF_CGROUP_MAX_PROGS

# linux/bpf_common.h, bpf.h: class | operation | source
_LDX_W, _ALU32, _JMP, _K = 0x61, 0x04, 0x05, 0x00
_RSH, _AND, _MOV, _X = 0x70, 0x50, 0xB0, 0x08
_JA, _JSET, _JNE, _EXIT = 0x00, 0x40, 0x50, 0x90


class Assembler:
    """Instructions in order; jumps go forward, to labels, which have any name."""

    def __init__(self) -> None:
        self._code: list[tuple[int, int, int, int, str]] = []  # code, registers, offset, immediate, label
        self._labels: dict[str, int] = {}

    def _add(self, code: int, registers: int = 0, offset: int = 0, immediate: int = 0, label: str = "") -> None:
        self._code.append((code, registers, offset, immediate, label))

    def label(self, name: str) -> None:
        self._labels[name] = len(self._code)

    def load(self, to: int, base: int, offset: int) -> None:
        """32 bits from where ``base`` points."""
        self._add(_LDX_W, base << 4 | to, offset)

    def move(self, to: int, value: int) -> None:
        self._add(_ALU32 | _MOV | _K, to, immediate=value)

    def copy(self, to: int, register: int) -> None:
        self._add(_ALU32 | _MOV | _X, register << 4 | to)

    def conjoin(self, to: int, value: int) -> None:
        """``to &= value``"""
        self._add(_ALU32 | _AND | _K, to, immediate=value)

    def shift_right(self, to: int, bits: int) -> None:
        self._add(_ALU32 | _RSH | _K, to, immediate=bits)

    def jump(self, label: str) -> None:
        self._add(_JMP | _JA, label=label)

    def jump_unless_equal(self, register: int, value: int, label: str) -> None:
        self._add(_JMP | _JNE | _K, register, immediate=value, label=label)

    def jump_if_any(self, register: int, bits: int, label: str) -> None:
        self._add(_JMP | _JSET | _K, register, immediate=bits, label=label)

    def exit(self, value: int) -> None:
        self.move(0, value)
        self._add(_JMP | _EXIT)

    def program(self) -> bytes:
        code = b""
        for at, (operation, registers, offset, immediate, label) in enumerate(self._code):
            if label:
                offset = self._labels[label] - at - 1
            code += struct.pack("<BBhI", operation, registers, offset, immediate & 0xFFFFFFFF)
        return code


def _bpf(command: int, attr: bytes | ctypes.Array[ctypes.c_char]) -> int:
    if isinstance(attr, bytes):
        attr = ctypes.create_string_buffer(attr, len(attr))
    return syscall(_BPF, command, attr, len(attr))


def load(kind: int, program: bytes, name: str) -> int:
    """Its descriptor. Raises OSError, with what the verifier says."""
    code = ctypes.create_string_buffer(program, len(program))
    licence = ctypes.create_string_buffer(b"Apache-2.0")
    log = ctypes.create_string_buffer(_LOG_SIZE)

    def attr(level: int) -> bytes:
        return struct.pack(
            "<IIQQIIQII16s", kind, len(program) // 8, ctypes.addressof(code), ctypes.addressof(licence), level,
            _LOG_SIZE if level else 0, ctypes.addressof(log) if level else 0, 0, 0, name.encode()[:15],
        )  # fmt: skip

    try:
        return _bpf(_PROG_LOAD, attr(0))
    except PermissionError:
        raise
    except OSError:
        try:
            return _bpf(_PROG_LOAD, attr(1))
        except OSError as error:
            said = log.value.decode(errors="replace").strip().splitlines() or ["the verifier says nothing"]
            raise OSError(error.errno, f"{error.strerror}: {said[-1]}") from None


def attach(cgroup: int, program: int, where: int, replace: int | None = None) -> None:
    """To the cgroup whose folder is open as ``cgroup``; beside what is there, or in the place of ``replace``."""
    flags = _ALLOW_MULTI | (_REPLACE if replace is not None else 0)
    _bpf(_PROG_ATTACH, struct.pack("<IIIII", cgroup, program, where, flags, replace or 0))


def detach(cgroup: int, program: int, where: int) -> None:
    _bpf(_PROG_DETACH, struct.pack("<III", cgroup, program, where))


def attached(cgroup: int, where: int) -> list[int]:
    """Descriptors of the cgroup's own programs, for the caller to close."""
    ids = (ctypes.c_uint32 * _MAX_ATTACHED)()
    query = struct.pack("<IIIIQI4x", cgroup, where, 0, 0, ctypes.addressof(ids), _MAX_ATTACHED)
    attr = ctypes.create_string_buffer(query, len(query))
    _bpf(_PROG_QUERY, attr)
    count = struct.unpack_from("<I", attr, 24)[0]
    found: list[int] = []
    try:
        for number in ids[:count]:
            found.append(_bpf(_PROG_GET_FD_BY_ID, struct.pack("<III", number, 0, 0)))
    except OSError:
        for fd in found:
            os.close(fd)
        raise
    return found
