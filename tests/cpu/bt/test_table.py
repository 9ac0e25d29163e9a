"""What the instruction table says of each row, against the processor: registers, flags, memory, alignment.

Each row that runs as itself runs on the host with random operands, and again with everything changed that the table
says it doesn't depend on. Then nothing else may differ. Wrong in the table, one of these would let the translator
drop a live register or flag, or check too few bytes of memory.
"""

import ctypes
import random
import struct
from dataclasses import dataclass

import pytest
from instructions import Sample, encode
from native import CODE, DATA, DATA_PAGES, GPR, PAGE, Native
from rows import AMD

from hostel.cpu.bt.decode import ROWS, decode_py
from hostel.cpu.bt.disasm import disassemble
from hostel.cpu.bt.table import C, Row

FLAGS = C["F_ALL"]
END = DATA + DATA_PAGES * PAGE
AT = CODE + 0x100
MASK = (1 << 64) - 1
TESTED = {C["K_NATIVE"], C["K_BT"], C["K_FENCE"], C["K_NOP"]}
# They run, but their results are random, or they touch what they only hint at.
LEFT_OUT = {"rdrand", "rdseed", "clflush", "clflushopt", "clwb"}


@dataclass
class State:
    """What an instruction can see, and what it leaves."""

    registers: list[int]
    flags: int
    xstate: bytes
    memory: bytes
    address: int
    signal: int = 0
    rip: int = 0

    def vectors(self) -> bytes:
        return self.xstate[160:416] + self.xstate[576:832]

    def x87(self) -> bytes:
        return self.xstate[0:8] + self.xstate[32:160]

    def floating(self) -> bytes:
        """All but the addresses of the last x87 instruction and operand."""
        return self.x87() + self.xstate[24:28] + self.vectors()


def run(native: Native, sample: Sample, before: State) -> State:
    regs = native.fresh()
    for name, value in zip(GPR, before.registers, strict=True):
        setattr(regs, name, value)
    regs.eflags = 0x202 | before.flags
    regs.rip = AT
    native.place(sample.code, AT)
    native.place(before.memory, before.address)
    native.set_xstate(before.xstate)
    outcome = native.step(regs)
    return State(
        [getattr(regs, name) for name in GPR], regs.eflags & FLAGS, native.get_xstate(),
        ctypes.string_at(before.address, len(before.memory)), before.address, outcome.signal, regs.rip,
    )  # fmt: skip


def random_xstate(native: Native, rng: random.Random) -> bytes:
    """Vector registers with floats or anything in them, the x87 stack with some numbers, no exception unmasked."""
    x = bytearray(native.clean_xstate)
    for i in range(16):
        for at in (160 + 16 * i, 576 + 16 * i):
            kind = rng.random()
            if kind < 0.4:
                x[at : at + 16] = rng.randbytes(16)
            elif kind < 0.7:
                struct.pack_into("<2d", x, at, *(rng.uniform(-1e3, 1e3) for _ in range(2)))
            else:
                struct.pack_into("<4f", x, at, *(rng.uniform(-1e3, 1e3) for _ in range(4)))
    for i in range(8):
        exponent = 0x3FFF + rng.randrange(-20, 20) | rng.randrange(2) << 15
        struct.pack_into("<QH", x, 32 + 16 * i, 1 << 63 | rng.getrandbits(63), exponent)
    struct.pack_into("<HHB", x, 0, 0x37F, rng.choice((0x3000, 0x2800)), rng.choice((0xF0, 0xFF, 0xFC)))
    struct.pack_into("<I", x, 24, 0x1F80)
    struct.pack_into("<Q", x, 512, 7)  # XSTATE_BV: x87, SSE, AVX
    return bytes(x)


def memory_size(row: Row, insn: dict) -> int:
    size = row.fields["mem_size"]
    wide = 32 if insn["vex_l"] else 16
    narrow = insn["opsize"] == 2
    special = {
        0: insn["opsize"], C["MS_X"]: wide, C["MS_HALF"]: wide // 2, C["MS_QUARTER"]: wide // 4,
        C["MS_EIGHTH"]: wide // 8, C["MS_ENV"]: 14 if narrow else 28, C["MS_FSAVE"]: 94 if narrow else 108,
    }  # fmt: skip
    return special.get(size, size)


def random_memory(row: Row, size: int, rng: random.Random) -> bytes:
    memory = rng.randbytes(size)
    if size in (4, 8, 16, 32) and rng.random() < 0.5:
        number = rng.uniform(-1e3, 1e3)
        memory = (struct.pack("<d", number) if size > 4 else struct.pack("<f", number)) * (size // 8 or 1)
    # Control words mask all exceptions.
    if row.name in ("fldenv", "frstor"):
        head = struct.pack("<III", 0xFFFF037F, 0xFFFF0000, 0xFFFFFFFF)
        if size in (14, 94):
            head = struct.pack("<HHH", 0x37F, 0, 0xFFFF)
        memory = head + memory[len(head) :]
    elif row.name == "fldcw":
        memory = struct.pack("<H", 0x37F)
    elif row.name.endswith("ldmxcsr"):
        memory = struct.pack("<I", 0x1F80)
    return memory


def prepare(native: Native, row: Row, sample: Sample, insn: dict, rng: random.Random) -> State | None:
    """Random operands; the memory operand ends where the mapped memory ends."""
    registers = [
        rng.getrandbits(64) if rng.random() < 0.7 else rng.choice((0, 1, rng.getrandbits(8), rng.getrandbits(31), MASK))
        for _ in GPR
    ]
    registers[4] = DATA + PAGE + 0x800
    if row.name in ("div", "idiv"):
        registers[2], registers[0] = rng.getrandbits(3), rng.getrandbits(9 if row.opcode == 0xF6 else 50)
    flags = sum(bit for bit in (1, 4, 16, 64, 128, 2048) if rng.random() < 0.5)
    before = State(registers, flags, random_xstate(native, rng), b"", DATA)
    if sample.memory and row.fields["mem"] != C["M_ADDR"]:
        size = memory_size(row, insn)
        before.address = END - size
        if row.fields["kind"] == C["K_BT"]:
            if insn["reg"] == 4:
                return None  # the bit number would be the stack pointer
            before.address = DATA + PAGE
            registers[insn["reg"]] = rng.randrange(8 * size)
        target = before.address - sample.displacement
        if sample.index >= 0:
            registers[sample.index] = rng.randrange(-5000, 5000) & MASK
            target -= registers[sample.index] << sample.scale
        registers[sample.base] = target & MASK
        before.memory = random_memory(row, size, rng)
    return before


def declared(row: Row, insn: dict) -> tuple[int, int]:
    """Masks of the general registers that the table says are read and written."""
    f = row.fields
    read, written = f["implicit_r"], f["implicit_w"]
    in_register = insn["mod"] == 3
    for use, number, there in (
        (f["reg_use"], insn["reg"], row.modrm),
        (f["rm_use"], insn["rm"], in_register),
        (f["vvvv_use"], insn["vvvv"], True),
    ):
        if there and use:
            if use & C["U_BYTE"] and 4 <= number < 8 and not insn["prefixes"] & C["P_REX"]:
                number -= 4  # ah, ch, dh, bh
            read |= bool(use & C["U_R"]) << number
            written |= bool(use & C["U_W"]) << number
    return read, written


def check(native: Native, number: int, rng: random.Random, memory: bool) -> str | None:
    """Run one sample of a row; what the table has wrong, or nothing. ``skip`` where it isn't there to be run."""
    row = ROWS[number]
    f = row.fields
    sample = encode(number, rng, 8, memory)
    insn = decode_py(sample.code, AT, 8)
    before = prepare(native, row, sample, insn, rng)
    if before is None:
        return None
    after = run(native, sample, before)
    if after.signal == 4:
        return "skip"
    if after.signal == 8:
        return None  # a division overflowed
    if after.signal != 5:
        return f"signal {after.signal}: the memory operand is larger"
    if after.rip != AT + len(sample.code):
        return f"rip {after.rip:#x}"
    read, written = declared(row, insn)
    for i in range(16):
        if after.registers[i] != before.registers[i] and not written >> i & 1:
            return f"{GPR[i]} is written"
    if (after.flags ^ before.flags) & ~f["flags_mod"]:
        return f"flags {(after.flags ^ before.flags) & ~f['flags_mod']:#x} change"
    if not f["flags"] & C["O_VECTOR"] and after.vectors() != before.vectors():
        return "vector registers change"
    if not f["flags"] & C["O_X87"] and after.x87() != before.x87():
        return "x87 registers change"
    if after.memory != before.memory and not f["mem"] & C["M_WRITE"]:
        return "memory is written"

    address = (1 << sample.base if sample.base >= 0 else 0) | (1 << sample.index if sample.index >= 0 else 0)
    for changed in ("registers", "flags", "memory"):
        other = State(list(before.registers), before.flags, before.xstate, before.memory, before.address)
        if changed == "registers":
            for i in range(16):
                if not (read | address) >> i & 1 and i != 4:
                    other.registers[i] = rng.getrandbits(64)
        elif changed == "flags":
            other.flags ^= FLAGS & ~f["flags_read"] & rng.choice((FLAGS, rng.getrandbits(12)))
        elif not before.memory or f["mem"] & C["M_READ"]:
            continue
        else:
            other.memory = rng.randbytes(len(before.memory))
        again = run(native, sample, other)
        depends = f"depends on {changed} that it doesn't read: "
        if again.signal != 5:
            return depends + f"signal {again.signal}"
        for i in range(16):
            expected = after.registers[i] if written >> i & 1 else other.registers[i]
            if again.registers[i] != expected:
                return depends + GPR[i]
        certain = f["flags_kill"] if changed == "flags" else f["flags_mod"] & ~f["flags_undef"]
        if (again.flags ^ after.flags) & certain:
            return depends + "flags"
        if again.floating() != after.floating():
            return depends + "vector or x87 registers"
        if again.memory != after.memory:
            return depends + "memory"

    if before.memory and f["kind"] == C["K_NATIVE"]:
        before.registers[sample.base] = before.registers[sample.base] + 1 & MASK
        if run(native, sample, before).signal != 11:
            return "the memory operand is smaller"
        if len(before.memory) > 1:
            size = len(before.memory)
            before.registers[sample.base] = before.registers[sample.base] - size - 2 & MASK
            before.address -= size + 1
            aligned = run(native, sample, before).signal == 11
            if aligned != bool(f["flags"] & C["O_ALIGNED"]):
                return "alignment is checked" if aligned else "alignment isn't checked"
    return None


def check_rows(rounds: int) -> None:
    seed = random.randrange(1 << 32)
    rng = random.Random(seed)
    wrong = []
    missing = 0
    ran = 0
    with Native() as native:
        for number, row in enumerate(ROWS):
            if row.fields["kind"] not in TESTED or row.modes == "32" or row.name in LEFT_OUT:
                continue
            if row.name == "movsxd" and AMD:  # with 66 it reads 32 bits there (emit.native)
                continue
            for i in range(rounds):
                state = rng.getstate()
                problem = check(native, number, rng, bool(i & 1))
                if problem == "skip":
                    missing += 1
                    break
                ran += 1
                if problem:
                    rng.setstate(state)
                    sample = encode(number, rng, 8, bool(i & 1))
                    text = disassemble(sample.code)[1]
                    wrong.append(f"{row.name} {row.encoding}: {problem}: {text} ({sample.code.hex(' ')})")
    assert not wrong, f"seed {seed}\n" + "\n".join(wrong)
    assert ran > 1000 * rounds or missing > 100


def test_rows_against_the_processor() -> None:
    check_rows(4)


@pytest.mark.slow
def test_rows_against_the_processor_at_length() -> None:
    check_rows(300)


def test_the_check_can_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows made wrong on purpose are found."""

    def row(name: str, encoding: str) -> int:
        return next(i for i, r in enumerate(ROWS) if (r.name, r.encoding) == (name, encoding))

    wrong = {
        row("adc", "11 /r"): ("flags_read", 0),
        row("addps", "NP 0F 58 /r"): ("flags", C["O_VECTOR"]),
        row("movsd", "F2 0F 10 /r"): ("mem_size", 4),
        row("movss", "F3 0F 10 /r"): ("mem_size", 8),
        row("mulx", "VEX.128.F2.0F38 F6 /r"): ("implicit_r", 0),
        row("cmove", "0F 44 /r"): ("reg_use", C["U_W"]),
        row("fadd", "D8 /0m"): ("flags", 0),
        row("shl", "D3 /4"): ("flags_kill", C["F_ZF"]),
    }
    rng = random.Random(4)
    with Native() as native:
        for number, (name, value) in wrong.items():
            monkeypatch.setitem(ROWS[number].fields, name, value)
            found = [check(native, number, rng, bool(i & 1)) for i in range(60)]
            assert any(found), f"{ROWS[number].name}: {name}"
