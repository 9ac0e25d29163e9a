"""Translated code stays in the guest's memory: random accesses at the edges of what is mapped, and of all there is.

Guest memory lies between guard pages (memory/ram), so that whatever goes a little beyond it ends the process; that is
why the cases run in a child. What the guest hasn't mapped, and what it may only read, must be as it was.
"""

import random
import subprocess
import sys

import pytest
from bare import KERNEL_CODE, KERNEL_DATA, P, Space, W, segment
from machine import assemble

from hostel.cpu.bt.run import BtEngine
from hostel.memory.ram import Ram

CODE, FIRST, READONLY, LAST = 0x400000, 0x800000, 0xA00000, 0xC00000
SIZE = 8 << 20
PAGES = {FIRST: 0, READONLY: 0x300000, LAST: SIZE - 4096}  # the first and the last page that there are, and one between
SWATH = 700                                                # as far as FXRSTOR's operand reaches
INSTRUCTIONS = """
mov [rdi], al | mov [rdi], ax | mov [rdi], eax | mov [rdi], rax | mov rax, [rdi] | movzx eax, byte ptr [rdi]
add [rdi + 8], rax | lock xadd [rdi], rcx | xchg [rdi], rcx | lock cmpxchg16b [rdi] | bts [rdi], rcx | bt [rdi], ecx
movups [rdi], xmm0 | movups xmm0, [rdi] | movaps [rdi], xmm0 | vmovups [rdi], ymm0 | vmovups ymm1, [rdi] | fnsave [rdi]
frstor [rdi] | fxsave [rdi] | fnstenv [rdi] | fstp tbyte ptr [rdi] | mov [rdi], rax; mov [rdi + 400], rax
mov rax, [rdi]; mov rcx, [rdi + 100]; mov [rdi + 500], rcx | push rax; push rcx; push rdx | pop rax; pop rcx
mov [rsp + 64], rax; push rax; call 1f; 1: nop | leave | enter 32, 0 | pushf | stosb | rep stosb | rep stosq | movsq
rep movsb | std; rep stosq | cmpsd | xlatb | mov [rdi + rcx * 8], rdx | mov rdx, [rdi + rcx * 8 + 3] | popf
"""
CASES = 40


def texts():
    return [t.strip().replace("; ", "\n") for line in INSTRUCTIONS.strip().splitlines() for t in line.split("|")]


def edge(rng):
    """An address by which an edge is near."""
    base = rng.choice((FIRST, READONLY, LAST)) + rng.choice((0, 4096))
    return base + rng.choice((rng.randrange(-SWATH, SWATH), rng.randrange(-16, 16), rng.randrange(-4096, 4096)))


def run(seed):
    rng = random.Random(seed)
    ram = Ram()
    ram.add(0, SIZE)
    space = Space(ram)
    bodies = [assemble(text + "\nint3\n", CODE, runtime=False) for text in texts()]
    for va, gpa in PAGES.items():
        space.map(va, gpa, 4096, P if va == READONLY else P | W)
    space.map(CODE, 0x200000, len(bodies) << 12, P)
    for i, body in enumerate(bodies):
        ram.write(0x200000 + (i << 12), body)
    pattern = rng.randbytes(4096)
    others = {0x1000, 0x300000, 0x301000, 0x2FF000, SIZE - 8192}  # neighbours, and what may only be read
    for gpa in others:
        ram.write(gpa, pattern)
    tables = ram.read(0x10000, space.free - 0x10000)
    engine = BtEngine(ram, 1)
    vcpu = engine.vcpus[0]
    vcpu.catch_exceptions = True
    state = vcpu.save_state()
    state.cr0, state.cr3, state.cr4, state.efer, state.xcr0 = 0x80050033, space.cr3, 0x40620, 0xD01, 7
    state.segments = [segment(KERNEL_CODE if i == 1 else KERNEL_DATA) for i in range(6)]
    done = faults = 0
    for _ in range(CASES):
        for i in range(len(bodies)):
            state.rip, state.rflags = CODE + (i << 12), 2
            state.registers = [rng.choice((rng.randrange(64), rng.getrandbits(64), edge(rng))) for _ in range(16)]
            state.registers[1] = rng.choice((rng.randrange(-300, 300) & (1 << 64) - 1, rng.getrandbits(64)))
            for r in (3, 4, 5, 6, 7):
                state.registers[r] = edge(rng)
            vcpu.load_state(state)
            vcpu.run_py()
            vector = vcpu.take_exception()[0]
            done += vector == 3
            faults += vector == 14
    for gpa in others:
        assert ram.read(gpa, 4096) == pattern, hex(gpa)
    # accessed and dirty bits are all that may change in the tables
    for at in range(0, len(tables), 8):
        old, new = (int.from_bytes(t[at : at + 8], "little") for t in (tables, ram.read(0x10000, len(tables))))
        assert (old ^ new) & ~0x60 == 0, hex(at)
    assert engine.audit() > len(bodies) and engine.refusal == ""
    assert done > 100 and faults > 100, (done, faults)
    return done, faults


@pytest.mark.parametrize("seed", [1, 2])
def test_nothing_outside_is_touched(seed):
    code = f"import sys; sys.path[:0] = {sys.path!r}; import test_contained; print(test_contained.run({seed}))"
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=250)
    assert child.returncode == 0, (child.returncode, child.stderr[-2000:])


def test_guards_are_around_guest_memory():
    """A byte before and a byte behind can't be had."""
    code = """
import ctypes, sys
from hostel.memory.ram import Ram
ram = Ram(); ram.add(0, 1 << 20)
start = ctypes.addressof(ctypes.c_char.from_buffer(ram.view(0, 1)))
ctypes.string_at(start, 1 << 20)
print("inside", flush=True)
ctypes.string_at(start + int(sys.argv[1]), 1)
"""
    for offset in (-1, 1 << 20, -(2 << 20), (3 << 20) - 1):
        child = subprocess.run([sys.executable, "-c", code, str(offset)], capture_output=True, text=True)
        assert child.returncode == -11 and child.stdout == "inside\n", (offset, child)


