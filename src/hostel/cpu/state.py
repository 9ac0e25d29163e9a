"""The architectural state of one virtual CPU, in one form for all engines.

Whatever engine saved it, another can go on from it: registers as the manuals number them, segments with their
hidden parts, MSRs by index, the extended state as a standard (not compacted) XSAVE area. What belongs to the
machine (memory, APIC, devices) is saved by those who own it. Integers are unsigned.

The format has a version; a reader refuses any other. New optional fields need no new version.
"""

import msgspec

VERSION = 1
XSAVE_SIZE = 832  # legacy region, header, AVX

SEGMENTS = ("es", "cs", "ss", "ds", "fs", "gs")  # in encoding order, as everywhere


class Segment(msgspec.Struct, forbid_unknown_fields=True):
    """A segment register; ``attributes`` are bits 40..47 and 52..55 of the descriptor, in 0..7 and 12..15.

    A segment that can't be used (null selector) has P (0x80) clear. CPL is the DPL of SS.
    """

    selector: int = 0
    base: int = 0
    limit: int = 0
    attributes: int = 0


class Table(msgspec.Struct, forbid_unknown_fields=True):
    """GDTR or IDTR."""

    base: int = 0
    limit: int = 0


class Exception_(msgspec.Struct, forbid_unknown_fields=True):
    """An exception that is to be delivered before the next instruction."""

    vector: int
    error: int | None = None
    address: int = 0  # of a page fault
    soft: bool = False  # INT n, INT3, INTO: rip is behind an instruction of ``length`` bytes
    trap: bool = False  # RF isn't set in the pushed flags
    length: int = 0


class VcpuState(msgspec.Struct, forbid_unknown_fields=True):
    """Everything that a program, an operating system or a debugger can see of one vCPU."""

    registers: list[int]  # rax rcx rdx rbx rsp rbp rsi rdi r8..r15
    rip: int
    rflags: int
    segments: list[Segment]  # SEGMENTS
    ldtr: Segment
    tr: Segment
    gdtr: Table
    idtr: Table
    cr0: int
    cr2: int
    cr3: int
    cr4: int
    efer: int
    xcr0: int
    pdptes: list[int]  # PAE paging
    debug: list[int]  # dr0..dr3, dr6, dr7
    msrs: dict[int, int]  # MSRs, but for EFER, FS and GS base, the TSC and the APIC's
    tsc: int
    clock_ns: int  # what the paravirtual clock read when the TSC read ``tsc``
    xsave: bytes
    exception: Exception_ | None = None
    halted: bool = False
    wait_sipi: bool = False
    shadow: bool = False  # interrupts wait for one instruction (STI, MOV SS)
    nmi_pending: bool = False
    nmi_blocked: bool = False
    version: int = VERSION


def encode(state: VcpuState) -> bytes:
    """As MessagePack, for files and the wire."""
    return msgspec.msgpack.encode(state)


def decode(data: bytes) -> VcpuState:
    """The state in ``data``; ``msgspec.ValidationError`` or ``DecodeError`` where it holds none."""
    return msgspec.msgpack.decode(data, type=VcpuState)
