"""A small x86-64 assembler and ELF writer: enough for `tiny` to make a static Linux program.

Operands are ``Reg`` and ``Mem``; a branch names a label, bound before or after. Encodings follow Intel's
manual, volume 2. Memory operands are [base + displacement] or an absolute address below 2 GiB, which is
where the program is linked.
"""

import struct
from dataclasses import dataclass

TEXT_BASE = 0x400000  # where Linux programs traditionally are
DATA_BASE = 0x10000000  # far enough that text can grow, below 2 GiB so that addresses fit in 32 bits
PAGE = 4096


@dataclass(frozen=True)
class Reg:
    number: int


RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8, R9, R10 = map(Reg, range(11))


@dataclass(frozen=True)
class Mem:
    """[base + offset], or [offset] when there is no base."""

    base: Reg | None
    offset: int


Operand = Reg | Mem

ALU = {"add": 0, "or": 1, "and": 4, "sub": 5, "xor": 6, "cmp": 7}
CONDITIONS = {"==": 4, "!=": 5, "<": 12, ">=": 13, "<=": 14, ">": 15}  # signed: l, ge, le, g
INVERSE = {"==": "!=", "!=": "==", "<": ">=", ">=": "<", "<=": ">", ">": "<="}


class Label:
    """A place in the code, known or yet to come."""

    at: int | None = None


class Assembler:
    """Collects code; ``finish`` resolves the branches."""

    def __init__(self) -> None:
        self.code = bytearray()
        self.branches: list[tuple[int, Label]] = []

    def bind(self, label: Label) -> None:
        label.at = len(self.code)

    def finish(self) -> bytes:
        for at, label in self.branches:
            assert label.at is not None, "a branch to a label that was never bound"
            struct.pack_into("<i", self.code, at, label.at - at - 4)
        return bytes(self.code)

    def op(self, opcode: bytes, reg: int, rm: Operand, wide: bool = True) -> None:
        """REX, opcode and ModRM with its displacement."""
        base = rm if isinstance(rm, Reg) else rm.base
        rex = 0x48 * wide | (reg >> 3) << 2 | (base.number >> 3 if base else 0)
        if rex:
            self.code.append(0x40 | rex)
        self.code += opcode
        field = (reg & 7) << 3
        if isinstance(rm, Reg):
            self.code.append(0xC0 | field | rm.number & 7)
        elif base is None:  # SIB with neither base nor index: an absolute address
            self.code += bytes((0x04 | field, 0x25)) + struct.pack("<i", rm.offset)
        else:
            short = -128 <= rm.offset < 128
            self.code.append((0x40 if short else 0x80) | field | base.number & 7)
            if base.number & 7 == 4:  # rsp as a base needs a SIB byte
                self.code.append(0x24)
            self.code += struct.pack("<b" if short else "<i", rm.offset)

    def mov(self, to: Operand, source: Operand) -> None:
        if isinstance(to, Reg):
            self.op(b"\x8b", to.number, source)
        else:
            assert isinstance(source, Reg)
            self.op(b"\x89", source.number, to)

    def mov_imm(self, to: Reg, value: int) -> None:
        if value == 0:
            self.op(b"\x31", to.number, to, wide=False)
        elif 0 < value < 1 << 32:
            if to.number > 7:
                self.code.append(0x41)
            self.code += bytes((0xB8 + (to.number & 7),)) + struct.pack("<I", value)
        elif -(1 << 31) <= value < 0:
            self.op(b"\xc7", 0, to)
            self.code += struct.pack("<i", value)
        else:
            self.code += bytes((0x48 | to.number >> 3, 0xB8 + (to.number & 7)))
            self.code += struct.pack("<q" if value < 0 else "<Q", value)

    def load(self, to: Reg, source: Mem, size: int) -> None:
        """Zero-extending load of ``size`` bytes."""
        opcode, wide = {1: (b"\x0f\xb6", True), 2: (b"\x0f\xb7", True), 4: (b"\x8b", False), 8: (b"\x8b", True)}[size]
        self.op(opcode, to.number, source, wide)

    def store(self, to: Mem, source: Reg, size: int) -> None:
        """Stores the low ``size`` bytes of rax, rcx, rdx or rbx."""
        assert source.number < 4
        if size == 2:
            self.code.append(0x66)
        self.op(b"\x88" if size == 1 else b"\x89", source.number, to, wide=size == 8)

    def alu(self, name: str, to: Reg, source: Operand) -> None:
        self.op(bytes((ALU[name] << 3 | 3,)), to.number, source)

    def alu_imm(self, name: str, to: Reg, value: int) -> None:
        if -128 <= value < 128:
            self.op(b"\x83", ALU[name], to)
            self.code += struct.pack("<b", value)
        else:
            self.op(b"\x81", ALU[name], to)
            self.code += struct.pack("<i", value)

    def test(self, a: Reg, b: Reg) -> None:
        self.op(b"\x85", b.number, a)

    def imul(self, to: Reg, source: Operand) -> None:
        self.op(b"\x0f\xaf", to.number, source)

    def idiv(self, by: Reg) -> None:
        """rdx:rax, rax's sign extended, divided: rax the quotient, rdx the remainder."""
        self.code += b"\x48\x99"
        self.op(b"\xf7", 7, by)

    def neg(self, to: Reg) -> None:
        self.op(b"\xf7", 3, to)

    def invert(self, to: Reg) -> None:
        self.op(b"\xf7", 2, to)

    def shift(self, name: str, to: Reg) -> None:
        """By cl; "<<" or ">>" (arithmetic)."""
        self.op(b"\xd3", {"<<": 4, ">>": 7}[name], to)

    def push(self, source: Reg) -> None:
        self.op(b"\xff", 6, source, wide=False)

    def pop(self, to: Reg) -> None:
        self.op(b"\x8f", 0, to, wide=False)

    def call(self, label: Label) -> None:
        self.branch(b"\xe8", label)

    def jump(self, label: Label) -> None:
        self.branch(b"\xe9", label)

    def jump_if(self, condition: str, label: Label) -> None:
        self.branch(bytes((0x0F, 0x80 + CONDITIONS[condition])), label)

    def branch(self, opcode: bytes, label: Label) -> None:
        self.code += opcode + bytes(4)
        self.branches.append((len(self.code) - 4, label))

    def syscall(self) -> None:
        self.code += b"\x0f\x05"

    def copy(self) -> None:
        """rcx bytes from [rsi] to [rdi], upwards."""
        self.code += b"\xf3\xa4"

    def leave_and_return(self) -> None:
        self.code += b"\xc9\xc3"


def elf(text: bytes, data: bytes, zeroed: int) -> bytes:
    """A static executable: ``text`` at TEXT_BASE, entered at its first byte; ``data`` and ``zeroed`` bytes
    more at DATA_BASE, writable and not executable."""
    headers = 64 + 3 * 56
    text_at = headers
    data_at = text_at + len(text) + -(text_at + len(text)) % PAGE

    def segment(kind: int, flags: int, offset: int, address: int, size: int, memory: int) -> bytes:
        return struct.pack("<IIQQQQQQ", kind, flags, offset, address, address, size, memory, PAGE)

    load, stack, r, w, x = 1, 0x6474E551, 4, 2, 1
    whole = headers + len(text)
    program = segment(load, r | x, 0, TEXT_BASE, whole, whole)
    program += segment(load, r | w, data_at, DATA_BASE, len(data), len(data) + zeroed)
    program += segment(stack, r | w, 0, 0, 0, 0)
    ident = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")
    header = ident + struct.pack(
        "<HHIQQQIHHHHHH", 2, 62, 1, TEXT_BASE + text_at, 64, 0, 0, 64, 56, 3, 64, 0, 0
    )  # ET_EXEC, EM_X86_64
    return (header + program + text).ljust(data_at, b"\0") + data
