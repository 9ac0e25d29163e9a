"""The real CPU as the oracle: cases run natively, in a process that is nothing but its cases (oracle.S).

A ``Case`` is some code with the whole user-visible state before it; an ``Outcome`` the state after it and the exception
that ended it (#BP at the latest). Both sides see the same memory at the same addresses:

    CODE   two pages a case, filled with int3, read-only
    OWN    two pages, writable: a copy of the case's code, for code that changes itself
    DATA   pages A and B writable, C behind them read-only, then a hole, then D writable
    STACK  two writable pages, holes on either side

Cases go in batches through memory that both processes share, so that one costs the host two signals' worth of work.
"""

import mmap
import os
import random
import struct
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

from hostel.cpu.bt import decode
from hostel.cpu.bt.disasm import disassemble
from hostel.cpu.bt.table import C

CODE, DATA, STACK = 0x57570000, 0x20000000, 0x30000000  # code is out of reach for 32-bit bit numbers
OWN = 0x5B5B0000
STATES = 16  # cases that share their code
SLOTS = 128
BATCH = 256
SLOT = 0x2000
IMAGES = 16
IMAGE = 0x5000  # A, B, D, two pages of stack
AFTER = IMAGE + SLOT  # what is left of it, and of OWN
RECORD = 0x500
_CONTROL = 0x6000_0000_0000
_INPUT = 0x1000
_OUTPUT = _INPUT + BATCH * RECORD
_MEMORY = _OUTPUT + BATCH * RECORD
_IMAGES = _MEMORY + BATCH * AFTER
_READONLY = _IMAGES + IMAGES * IMAGE
_CONTROL_SIZE = _READONLY + 0x1000
WRITABLE = ((DATA, 0x2000), (DATA + 0x4000, 0x1000), (STACK, 0x2000))  # in the order of an image
READONLY = DATA + 0x2000

NATIVE_TIMEOUT = -1  # Outcome.vector of a case that never ends (or came upon a system call)
STOPPED = -6  # and of one that takes the translator seconds
_GREGS = (13, 14, 12, 11, 15, 10, 9, 8, 0, 1, 2, 3, 4, 5, 6, 7)  # sigcontext's order, by encoding


def place_of(number: int, mode: int, writable: bool = False) -> int:
    """Where in CS the slot of a case begins. The segments of 16-bit code take eight slots each."""
    if writable:
        return 0 if mode == 2 else OWN
    return slot_of(number) % 8 * SLOT if mode == 2 else CODE + slot_of(number) * SLOT


def slot_of(number: int) -> int:
    return number // STATES % SLOTS


def code_segment(case: "Case") -> int:
    """Its entry in the LDT, for 16-bit code; entry 16 is DATA."""
    return 17 if case.writable else slot_of(case.number) // 8


@dataclass(slots=True)
class Case:
    """``code`` for ``rip`` in slot ``slot_of(number)`` with the state that it starts from."""

    number: int
    code: bytes
    offset: int  # of the code in its slot
    mode: int  # 8: 64-bit code; 4: 32-bit code; 2: 16-bit code, with DS and ES at DATA
    registers: list[int]
    flags: int
    fs_base: int
    gs_base: int
    xsave: bytes  # 512 legacy, 64 header, 256 upper halves
    image: int
    patches: list[tuple[int, int]] = field(default_factory=list)  # (address, 64-bit value), at most four
    rows: list[int] = field(default_factory=list)  # table rows in it
    focus: int = 0  # the row that it was made for
    ignore: list[tuple[int, int]] = field(default_factory=list)  # (address, bytes) of memory that may differ
    undefined: int = 0  # arithmetic flags that the manuals leave undefined at the end
    writable: bool = False  # it runs at OWN and may change itself
    end: int = 0  # where in the code its ordinary end is

    @property
    def base(self) -> int:
        return CODE + slot_of(self.number) * SLOT

    @property
    def rip(self) -> int:
        return place_of(self.number, self.mode, self.writable) + self.offset

    @property
    def page(self) -> bytes:
        """The whole slot."""
        return b"\xcc" * self.offset + self.code + b"\xcc" * (SLOT - self.offset - len(self.code))


@dataclass(slots=True)
class Outcome:
    """The state after a case. ``fx`` is an FXSAVE image, ``ymmh`` the upper halves of ymm0..15."""

    vector: int
    error: int
    cr2: int
    rip: int
    flags: int
    registers: list[int]
    fs_base: int
    gs_base: int
    fx: bytes
    ymmh: bytes
    memory: bytes  # as an image; behind it OWN where the case may write to it


def images(seed: int) -> list[bytes]:
    """The contents of memory that cases start from: noise, with numbers that matter in between."""
    rng = random.Random(f"{seed}/images")
    made = []
    for i in range(IMAGES):
        image = bytearray(rng.randbytes(IMAGE))
        for at in range(0, IMAGE, 8):
            if rng.random() < 0.5:
                struct.pack_into("<Q", image, at, interesting(rng))
        if i == 0:
            image = bytearray(IMAGE)
        made.append(bytes(image))
    return made


_POOL = [
    0, 1, 2, 3, 7, 8, 0x1F, 0x20, 0x3F, 0x40, 0x7F, 0x80, 0xFF, 0x100, 0x7FFF, 0x8000, 0xFFFF, 0x10000, 0x7FFFFFFF,
    0x80000000, 0xFFFFFFFF, 0x1_0000_0000, 0x7FFF_FFFF_FFFF_FFFF, 0x8000_0000_0000_0000, 0xFFFF_FFFF_FFFF_FFFF,
    0xFFFF_FFFF_FFFF_FFFE, 0xFFFF_FFFF_8000_0000, 0xFFFF_FFFF_7FFF_FFFF, 0xFFFF_FFFF_FFFF_8000,
    0xFFFF_FFFF_FFFF_FF80, 0x0101010101010101, 0x8080808080808080, 0x7F7F7F7F7F7F7F7F, 0x5555555555555555,
    # doubles: 1, -1, inf, -inf, NaN, signalling NaN, denormals, the largest, 0.5, 2^31, 2^63, -0
    0x3FF0000000000000, 0xBFF0000000000000, 0x7FF0000000000000, 0xFFF0000000000000, 0x7FF8000000000000,
    0x7FF0000000000001, 0xFFF8000000000001, 0x0000000000000001, 0x000FFFFFFFFFFFFF, 0x0010000000000000,
    0x7FEFFFFFFFFFFFFF, 0x3FE0000000000000, 0x41E0000000000000, 0x43E0000000000000, 0x8000000000000000,
    # pairs of floats
    0x3F800000_3F800000, 0xBF800000_40000000, 0x7F800000_FF800000, 0x7FC00000_7F800001, 0x00000001_00800000,
    0x7F7FFFFF_007FFFFF, 0x4F000000_CF000000, 0x80000000_3F000000,
]  # fmt: skip


def interesting(rng) -> int:
    """64 bits: a number at an edge, a small one, or noise."""
    kind = rng.random()
    if kind < 0.4:
        return _POOL[int(rng.random() * len(_POOL))]
    if kind < 0.55:
        return rng.getrandbits(1 + int(rng.random() * 63))
    if kind < 0.65:
        return -rng.getrandbits(1 + int(rng.random() * 31)) & (1 << 64) - 1
    if kind < 0.7:
        return rng.choice(_POOL) ^ 1 << rng.randrange(64)
    return rng.getrandbits(64)


def readonly_page() -> bytes:
    return random.Random("read-only").randbytes(4096)


class Native:
    """The process that runs cases on the host's processor."""

    def __init__(self, directory: Path, seed: int):
        program = Path(directory) / "oracle"
        defines = dict(
            CODE=CODE, CODE_SIZE=SLOTS * SLOT, DATA=DATA, STACK=STACK, CONTROL=_CONTROL, CONTROL_SIZE=_CONTROL_SIZE,
            RECORD=RECORD, INPUT=_INPUT, OUTPUT=_OUTPUT, MEMORY=_MEMORY, AFTER=AFTER, READONLY=_READONLY,
            OWN=OWN, OWN_SIZE=SLOT,
        )  # fmt: skip
        subprocess.run(
            ["gcc", "-nostdlib", "-static", "-no-pie", "-Wl,-Ttext-segment=0x500000000000", "-o", str(program),
             *(f"-D{name}={value}" for name, value in defines.items()), str(Path(__file__).with_name("oracle.S"))],
            check=True,
        )  # fmt: skip
        fd = os.memfd_create("oracle")
        os.ftruncate(fd, _CONTROL_SIZE + SLOTS * SLOT)
        self.shared = mmap.mmap(fd, _CONTROL_SIZE + SLOTS * SLOT)
        self.images = images(seed)
        for i, image in enumerate(self.images):
            self.shared[_IMAGES + i * IMAGE : _IMAGES + (i + 1) * IMAGE] = image
        self.shared[_READONLY : _READONLY + 4096] = readonly_page()
        self.process = subprocess.Popen([str(program)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=fd)
        os.close(fd)

    def run(self, cases: list[Case]) -> list[Outcome]:
        """At most BATCH cases, of which each has a slot of its own."""
        shared = self.shared
        for i, case in enumerate(cases):
            at = _INPUT + i * RECORD
            code = {8: 0x33, 4: 0x23, 2: code_segment(case) << 3 | 7}[case.mode]
            patches = (case.patches + [(0, 0)] * 4)[:4]
            shared[at : at + 256] = struct.pack(
                "<32Q", *case.registers, case.rip, code, case.flags, case.registers[4], 0x2B,
                case.fs_base, case.gs_base, _CONTROL + _IMAGES + case.image * IMAGE | (case.mode == 2),
                *(a for a, _ in patches), *(v for _, v in patches),
            )  # fmt: skip
            shared[at + 256 : at + 256 + 840] = case.xsave + struct.pack("<Q", case.base if case.writable else 0)
            if i == 0 or case.number % STATES == 0:
                at = _CONTROL_SIZE + slot_of(case.number) * SLOT
                shared[at : at + SLOT] = case.page
        shared[0:8] = struct.pack("<Q", len(cases))
        self.process.stdin.write(b"x")
        self.process.stdin.flush()
        if not self.process.stdout.read(1):
            at = struct.unpack_from("<Q", shared, 8)[0]
            raise RuntimeError(f"the native process died ({self.process.wait()}) at case {cases[at].number}")
        return [self._outcome(i, case.writable) for i, case in enumerate(cases)]

    def has_segments(self) -> bool:
        """Whether the host's kernel lends segments to 16-bit code; known after a first ``run``."""
        return self.shared[24] == 0

    def _outcome(self, i: int, writable: bool) -> Outcome:
        at = _OUTPUT + i * RECORD
        signal, address, *g, fs_base, gs_base = struct.unpack_from("<27Q", self.shared, at)
        state = self.shared[at + 256 : at + 256 + 832]
        present = struct.unpack_from("<Q", state, 512)[0]
        fx = bytearray(state[:512])
        if not present & 1:
            fx[0:24] = b"\x7f\x03" + bytes(22)
            fx[32:160] = bytes(128)
        if not present & 2:
            fx[160:416] = bytes(256)
        ymmh = state[576:832] if present & 4 else bytes(256)
        vector, error = g[20], g[19]
        if signal in (26, 31):  # SIGVTALRM, SIGSYS
            vector = NATIVE_TIMEOUT
        memory = _MEMORY + i * AFTER
        return Outcome(
            vector, error, g[22], g[16], g[17], [g[k] for k in _GREGS], fs_base, gs_base, bytes(fx), ymmh,
            self.shared[memory : memory + (AFTER if writable else IMAGE)],
        )  # fmt: skip

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()
        self.shared.close()


def default_xsave() -> bytes:
    fx = bytearray(512)
    struct.pack_into("<H", fx, 0, 0x37F)
    struct.pack_into("<I", fx, 24, 0x1F80)
    return bytes(fx) + struct.pack("<Q", 7) + bytes(56) + bytes(256)


# ---------------------------------------------------------------- comparing


_ERRORS = (8, 10, 11, 12, 13, 14, 17)  # the vectors with an error code


def _same(case: Case, a: Outcome, b: Outcome) -> bool:
    """Most are: all alike but for what has no meaning."""
    return (
        a.vector == b.vector and a.rip == b.rip and a.registers == b.registers and not (a.flags ^ b.flags) & _FLAGS
        and a.memory == b.memory and a.fx[:5] == b.fx[:5] and a.fx[24:28] == b.fx[24:28]
        and a.fx[32:416] == b.fx[32:416] and a.ymmh == b.ymmh and a.fs_base == b.fs_base
        and a.gs_base == b.gs_base and (a.vector not in _ERRORS or a.error == b.error)
        and (a.vector != 14 or a.cr2 == b.cr2)
    )  # fmt: skip


_NAMES = "rax rcx rdx rbx rsp rbp rsi rdi r8 r9 r10 r11 r12 r13 r14 r15".split()
_FLAGS = 0x247FD5  # all but RF and what a user can't have
ARITHMETIC = 0x8D5


def _code_after(case: Case, outcome: Outcome) -> bytes:
    """The case's code, with what it did to itself."""
    return outcome.memory[IMAGE + case.offset :] if case.writable else case.code


def live_flags(case: Case, native: Outcome) -> int:
    """The arithmetic flags that are exact when the instruction at ``native.rip`` faults.

    The translator keeps those that an instruction from there on, across jumps, may still read; what surely overwrites
    them first makes the others dead (translate.py).
    """
    return _looked_at(case, _code_after(case, native), native.rip - case.rip, ARITHMETIC, 40)


def _looked_at(case: Case, code: bytes, at: int, undecided: int, jumps: int) -> int:
    """Of the undecided flags those that the code from there on may read before it writes them."""
    live = 0
    while 0 <= at < len(code) and undecided and jumps > 0:
        insn = decode.decode_py(code[at : at + 15] + b"\xcc" * 15, case.rip + at, case.mode)
        if insn["result"] <= 0 or insn["op"] == 0:
            break
        row = decode.ROWS[insn["op"]].fields
        if row["kind"] in (C["K_LOOP"], C["K_UD"]):
            break
        if row["kind"] == C["K_STRING"] and row["flags_mod"]:  # CMPS and SCAS inline, or repeated
            return live | undecided if row["flags"] & C["O_FLAGS_COUNT"] else live
        live |= row["flags_read"] & undecided
        kill = row["flags_kill"]
        if row["flags"] & C["O_FLAGS_COUNT"] and insn["imm_size"]:
            if insn["imm"] & (63 if insn["rex"] & 8 else 31):
                kill |= row["flags_mod"]  # the count is known
        undecided &= ~(kill | row["flags_read"])
        at += insn["result"]
        target = at + (insn["imm"] ^ 1 << 63) - (1 << 63)
        if row["kind"] == C["K_JCC"]:
            if case.mode != 8:
                break
            live |= _looked_at(case, code, target, undecided, jumps // 4)
            jumps -= 1
        elif row["kind"] == C["K_JMP"] or (row["kind"] == C["K_CALL"] and case.mode == 8):
            at = target
            jumps -= 1
    return live | undecided


def differences(case: Case, native: Outcome, other: Outcome) -> list[str]:
    """What disagrees, one line each."""
    found: list[str] = []
    if _same(case, native, other) or _tolerated(case, native, other):
        return found

    def check(name: str, a: int, b: int) -> None:
        if a != b:
            found.append(f"{name}: host {a:#x}, translator {b:#x}")

    check("exception", native.vector, other.vector)
    check("rip", native.rip, other.rip)
    if native.vector == other.vector and native.vector in _ERRORS:
        # Linux says "present" of what isn't the user's
        kernel = int(native.vector == 14 and native.cr2 >= 0x7FFF_FFFF_F000)
        row = faulting(case, native)[0]
        if row.name not in _WIDE or native.cr2 >> 12 == other.cr2 >> 12:
            check("error code", native.error | kernel, other.error | kernel)
        if native.vector == 14:
            # wide operands: which end the processor touches first is its own affair
            shift = 16 if row.name in _WIDE else 12 if row.fields["kind"] == C["K_GATHER"] else 0
            if not row.name.endswith(("maskmovq", "maskmovdqu")):
                check("cr2", native.cr2 >> shift, other.cr2 >> shift)
    row, insn = faulting(case, native)
    popa = row.name == "popa"  # some of the registers may have been popped
    short = row.fields["kind"] == C["K_STRING"] and insn["addrsize"] == 4
    for i in range(0 if popa else 16 if case.mode == 8 else 8):
        # a fault may cut the registers of a string instruction with 32-bit addresses
        cut = 0xFFFFFFFF if short and i in (1, 6, 7) else -1
        check(_NAMES[i], native.registers[i] & cut, other.registers[i] & cut)
    mask = _FLAGS
    if native.vector not in (1, 3):
        mask &= ~ARITHMETIC | live_flags(case, native)
    if native.vector == 3 and native.rip == case.rip + case.end + 1:
        mask &= ~case.undefined
    else:
        for number in case.rows:
            mask &= ~decode.ROWS[number].fields["flags_undef"]
    check("flags", native.flags & mask, other.flags & mask)
    check("fs base", native.fs_base, other.fs_base)
    check("gs base", native.gs_base, other.gs_base)
    if native.fx != other.fx or native.ymmh != other.ymmh:
        a, b = native.fx, other.fx
        row, insn = faulting(case, native) if native.vector in (12, 13, 14) else (decode.ROWS[0], {})
        # a gather that faults: which elements are done is the processor's choice
        loose = (insn["reg"], insn["vvvv"]) if row.fields["flags"] & C["O_VSIB"] else ()
        # MMX: the host may have made TOP 0 and all registers valid before it faulted
        turned = any(o.letter in "PQN" for o in row.operands if o.letter)
        for name, at, size in (("fcw", 0, 2), ("fsw", 2, 2), ("ftw", 4, 1), ("mxcsr", 24, 4)):
            # VCVTPS2PH: the flags may be set before the store faults
            if not (turned and name in ("fsw", "ftw")) and not (row.name == "vcvtps2ph" and name == "mxcsr"):
                check(name, int.from_bytes(a[at : at + size], "little"), int.from_bytes(b[at : at + size], "little"))
        for i in range(0 if turned else 8):
            at = 32 + 16 * i
            check(f"st{i}", int.from_bytes(a[at : at + 10], "little"), int.from_bytes(b[at : at + 10], "little"))
        for i in range(16):
            at = 160 + 16 * i
            x = a[at : at + 16] + native.ymmh[16 * i : 16 * i + 16]
            y = b[at : at + 16] + other.ymmh[16 * i : 16 * i + 16]
            if i not in loose:
                check(f"ymm{i}", int.from_bytes(x, "little"), int.from_bytes(y, "little"))
    wide = native.vector == 14 and faulting(case, native)[0].name in _WIDE
    if native.memory != other.memory and not wide:  # those may have been stored in part
        found += _memory_differences(case, native.memory, other.memory)
    return found


_WIDE = ("fnsave", "frstor", "fnstenv", "fldenv", "fxsave", "fxrstor", "pusha", "fstp", "fbstp")


def _wraps(native: Outcome, insn: dict) -> bool:
    """Whether the operand lies across the end of its segment's 4 GiB, which the translator doesn't check."""
    if not insn or insn["code"] == 8:
        return False
    kind = decode.ROWS[insn["op"]].fields["kind"]
    if kind in (C["K_POP"], C["K_RET"], C["K_LEAVE"], C["K_PUSH"], C["K_CALL"], C["K_CALL_IND"]):
        stack = native.registers[5 if kind == C["K_LEAVE"] else 4]
        if (stack + 512) & 0xFFFFFFFF < 1024:
            return True
    moffs = kind == C["K_MOV_MOFFS"]
    if insn["addrsize"] != 4 or insn["mod"] == 3 and not moffs:
        return False
    offset = insn["disp"]
    if insn["base"] < 16 and not moffs:
        offset += native.registers[insn["base"]]
    if insn["index"] < 16 and not moffs:
        offset += native.registers[insn["index"]] << insn["scale"]
    if kind == C["K_BT"]:
        bits = 8 * insn["opsize"]
        number = native.registers[insn["reg"]] & (1 << bits) - 1
        offset += ((number ^ 1 << bits - 1) - (1 << bits - 1)) // bits * insn["opsize"]
    return offset & 0xFFFFFFFF > 0xFFFF_FFFF - 512


def _astray(case: Case, address: int) -> bool:
    """In the slot of another case, whose code isn't the same on both sides."""
    if case.mode == 2 and not case.writable:
        return not 0 <= address - place_of(case.number, 2) <= SLOT and 0 <= address < 0x10000
    own = case.base if not case.writable else OWN
    return CODE <= address < CODE + SLOTS * SLOT and not 0 <= address - own <= SLOT


def _tolerated(case: Case, native: Outcome, other: Outcome) -> bool:
    """Two reasons to refuse one instruction: processors differ in which comes first, and so does the translator."""
    if _astray(case, native.rip) or _astray(case, other.rip):
        return True
    if case.mode != 2 and any(_astray(case, o.registers[r]) for o in (native, other) for r in (6, 7)):
        return True  # a string instruction read there
    row, insn = faulting(case, native)
    if native.vector == 13 and native.error & 2 and other.vector == native.error >> 3:
        return True  # INT in the middle of an instruction: the host's IDT decides
    if native.vector == 13 and case.mode != 8 and insn and insn["seg"] in (4, 5):
        return True  # null segments, which the translator doesn't check
    memory = (12, 13, 14)
    if (native.vector in (12, 13) or native.vector in memory and other.vector in memory) and _wraps(native, insn):
        return True
    if native.rip != other.rip:
        if other.vector in (12, 13, 14):
            # an x87 store that doesn't happen, as it raises an unmasked error, can't fault on the host
            at = faulting(case, other)[0].fields
            if at["flags"] & C["O_X87"] and at["mem"] == C["M_WRITE"]:
                return True
        # Intel refuses an indirect jump to a non-canonical address, the translator (as AMD) what is fetched there;
        # so with CS's limit
        jumps = row.fields["kind"] in (C["K_RET"], C["K_JMP_IND"], C["K_CALL_IND"])
        there = other.rip >> 47 not in (0, 0x1FFFF) or (case.mode == 2 and other.rip > 0xFFFF)
        return jumps and there and native.vector == 13 and other.vector in (1, 13)
    if native.vector == other.vector and native.cr2 == other.cr2:
        return False
    if native.vector == 1 and row.fields["flags"] & C["O_VSIB"]:  # a gather traps after some of its elements
        return True
    if native.vector in memory and other.vector in memory:
        # CMPS: either operand is read first. Operands in pieces: each piece may be checked by itself
        edge = any(o.vector == 14 and (1 << 47) - 512 <= o.cr2 < 1 << 47 for o in (native, other))
        return row.name == "cmps" or edge or (case.mode != 8 and native.cr2 > 0xFFFF_FF00)
    # a bad operand and: a pending x87 error; a vector store with an error; BOUND's lower bound
    store = row.fields["mem"] == C["M_WRITE"]
    return other.vector in memory and (native.vector in (5, 16) or (native.vector == 19 and store))


def faulting(case: Case, native: Outcome) -> tuple:
    """Table row and decoded form of the instruction at ``native.rip``; row 0 where there is none."""
    code = _code_after(case, native)
    at = native.rip - case.rip
    if not 0 <= at < len(code):
        return decode.ROWS[0], {}
    insn = decode.decode_py(code[at : at + 15] + b"\xcc" * 15, native.rip, case.mode)
    return (decode.ROWS[insn["op"]], insn) if insn["result"] > 0 else (decode.ROWS[0], {})


def _pushed_selector(a: bytes, b: bytes, at: int) -> bool:
    """The byte at ``at`` is in the upper half of a 32-bit slot that a selector was pushed to: written, or not."""
    return any(
        low >= 0 and a[low : low + 2] == b[low : low + 2] in _SELECTORS and b[low + 2 : low + 4] == b"\0\0"
        for low in (at - 2, at - 3)
    )  # fmt: skip


_SELECTORS = [n.to_bytes(2, "little") for n in (0, 0x10, 0x18, 0x23, 0x2B, 0x33, 0x87, *range(7, 0x90, 8))]


def _memory_differences(case: Case, a: bytes, b: bytes) -> list[str]:
    found, start = [], 0
    for base, size in (*WRITABLE, (OWN, len(a) - IMAGE)):
        for at in range(0, size, 8):
            x, y = a[start + at : start + at + 8], b[start + at : start + at + 8]
            if x == y:
                continue
            differ = [base + at + i for i in range(8) if x[i] != y[i]]
            if all(any(s <= d < s + n for s, n in case.ignore) for d in differ):
                continue
            if case.mode != 8 and all(_pushed_selector(a, b, start + d - base) for d in differ):
                continue
            found.append(f"memory at {base + at:#x}: host {x.hex()}, translator {y.hex()}")
        start += size
    return found[:8]


def describe(case: Case, native: Outcome) -> str:
    """A case for a person: its code, what it starts from, how it ended on the host."""
    lines = [f"case {case.number}, {8 * case.mode}-bit, host: exception {native.vector} "
             f"error {native.error:#x} cr2 {native.cr2:#x} at {native.rip:#x}"]  # fmt: skip
    code, pc = case.code, case.rip
    while code:
        n, text = disassemble(code[:15] + b"\xcc" * 15, pc, case.mode)
        n = n if n > 0 else 1
        if code[:n] == b"\xcc" and code[1:2] in (b"\xcc", b""):  # padding
            n = len(code) - len(code.lstrip(b"\xcc"))
            text = "..."
        lines.append(f"  {pc:#x}  {code[:min(n, 15)].hex():<30}  {text}")
        code, pc = code[n:], pc + n
    for i in range(0, 16, 4):
        lines.append("  " + "  ".join(f"{_NAMES[k]:>3} {case.registers[k]:016x}" for k in range(i, i + 4)))
    status = struct.unpack_from("<HHB", case.xsave)
    mxcsr = struct.unpack_from("<I", case.xsave, 24)[0]
    lines.append(f"  flags {case.flags:#x}  fs {case.fs_base:#x}  gs {case.gs_base:#x}  mxcsr {mxcsr:#x}")
    lines.append(f"  fcw {status[0]:#x}  fsw {status[1]:#x}  ftw {status[2]:#x}")
    for address, value in case.patches:
        lines.append(f"  [{address:#x}] = {value:#x}")
    return "\n".join(lines)
