"""Blocks that run at any address of their page: the same physical pages of code at several addresses.

Each program runs as blocks and one instruction at a time (the slow twin, whose blocks have one address each), at each
address, and must do the same; what was translated for the first address serves for the others.
"""

import pytest
from bare import KERNEL_CODE, P, Space, U, W, segment
from machine import assemble

from hostel.cpu.bt.run import BtEngine
from hostel.memory.ram import Ram

STACK, KERNEL = 0x500000, 0xFFFFFFFF80000000
PLACES = (0x7F0012345000, 0x55AA00003000, 0x1_0000_0000, 0x7FFFFFF00000)
CODE, PAGES = 0x200000, 3
STAR, LSTAR, SFMASK = 0xC0000081, 0xC0000082, 0xC0000084

# Three pages of code that is its own data too. r13: where it is.
CALLS = """
    mov ebp, 3
again:
    lea rax, [rip + again]
    sub rax, r13
    push rax
    add ebx, ebx
    mov rcx, [rip + words]
    adc rcx, [rip + words + 8]
    add [rip + words + 16], rcx
    call near_by
    call far_away
    lea rdx, [rip + far_away]
    call rdx
    lea rdx, [rip + near_by]
    mov [rip + pointer], rdx   # in a page that holds translated code
    call qword ptr [rip + pointer]
    cmp dword ptr [rip + words], 77
    jne page2
back:
    dec ebp
    jnz again
    syscall
    sub rcx, r13
    push rcx
    int3
near_by:
    mov rax, [rsp]
    sub rax, r13
    add rsi, rax
    ret
words: .quad 5, 7, 9
pointer: .quad 0
    .org 0x1000 - 3
    nop
page2:
    lea rdi, [rip + words]     # across the page's end
    sub rdi, r13
    add r8, rdi
    jmp back
far_away:
    mov rax, [rsp]
    sub rax, r13
    imul rsi, rax, 5
    jmp page3
    .org 0x2000
page3:
    add rsi, [rip + words]
    ret
    .org 0x3000
"""
FAULT = """
    lea rbx, [rip + 0x12345]
    nop
    add rax, rax
    mov rcx, [rbx]
    int3
    .org 0x3000
"""
FAR = """
    lea rax, [rip + 0x7fffff00]
    lea rcx, [rip - 0x7fffff00]
    sub rax, r13
    sub rcx, r13
    lea rdx, [rip + 0x7ffffff8]
    sub rdx, r13
    xor esi, esi
    div esi                    # #DE at an instruction of the host's
    test esi, esi
    int3
    .org 0x3000
"""
PATCHED = """
    mov ebp, 4
1:  inc dword ptr [rip + 2f + 1]
    jmp 2f
    .balign 64
2:  mov eax, 5
    add rbx, rax
    dec ebp
    jnz 1b
    int3
    .org 0x3000
"""
PROGRAMS = {"CALLS": CALLS, "FAULT": FAULT, "FAR": FAR, "PATCHED": PATCHED}


class Process:
    def __init__(self, program: str):
        self.ram = Ram()
        self.ram.add(0, 16 << 20)
        self.space = Space(self.ram)
        for place in PLACES:
            self.space.map(place, CODE, PAGES << 12, P | W | U)
        self.space.map(STACK, 0x210000, 0x1000, P | W | U)
        self.space.map(KERNEL, 0x211000, 0x1000, P | W)
        self.program = program
        self.ram.write(0x211000, assemble("sysretq", KERNEL, runtime=False))
        self.engine = BtEngine(self.ram, 1)
        self.vcpu = self.engine.vcpus[0]
        self.vcpu.catch_exceptions = True

    def start(self, place: int) -> None:
        image = assemble(self.program, 0, runtime=False)
        old = self.ram.read(CODE, len(image))
        for i, byte in enumerate(image):  # what is as it should be must not look written
            if old[i] != byte:
                self.ram.write(CODE + i, bytes([byte]))
        self.ram.write(0x210000, bytes(4096))
        state = self.vcpu.save_state()
        state.cr0, state.cr3, state.cr4, state.efer = 0x80050033, self.space.cr3, 0x200620, 0xD01
        state.segments = [segment(0x33 if i == 1 else 0x2B) for i in range(6)]
        state.msrs |= {STAR: 0x23 << 48 | KERNEL_CODE << 32, LSTAR: KERNEL, SFMASK: 0x257FD5}
        state.registers = [0] * 16
        state.registers[3], state.registers[4], state.registers[13] = 0x91234567, STACK + 0x800, place
        state.rip, state.rflags = place, 2
        self.vcpu.load_state(state)

    def result(self, place: int):
        state = self.vcpu.save_state()
        registers = list(state.registers)
        registers[13] = 0
        for i in range(16):  # addresses of the code, as seen from its start
            if 0 <= registers[i] - place < 1 << 20:
                registers[i] -= place
        # flags that the faulting instruction would overwrite aren't exact (docs/decisions.md)
        return registers, state.rip - place, state.rflags & ~0x108D5

    def run(self, place: int):
        self.start(place)
        self.vcpu.run_py()
        return self.exception(place), self.result(place)

    def exception(self, place: int):
        found = self.vcpu.take_exception()
        return found and (*found[:2], found[2] - place if found[0] == 14 else None)

    def steps(self, place: int):
        self.start(place)
        for _ in range(2000):
            self.vcpu.step_py()
            found = self.exception(place)
            if found:
                return found, self.result(place)
        raise AssertionError("it doesn't end")


@pytest.mark.parametrize("name", PROGRAMS)
def test_the_same_everywhere(name):
    expected = Process(PROGRAMS[name]).steps(PLACES[0])
    assert expected[0][0] == {"FAULT": 14, "FAR": 0}.get(name, 3)
    process = Process(PROGRAMS[name])
    for place in (*PLACES, *reversed(PLACES)):
        assert process.run(place) == expected, hex(place)
    for place in PLACES:
        assert process.steps(place) == expected, hex(place)


@pytest.mark.parametrize("name", ["FAULT", "FAR"])
def test_translated_once(name):
    process = Process(PROGRAMS[name])
    process.run(PLACES[0])
    blocks = process.engine.statistics()["translated_blocks"]
    for place in PLACES[1:]:
        process.run(place)
    assert process.engine.statistics()["translated_blocks"] == blocks


def test_two_mappings_in_one_space_call_each_other():
    """A jump from one address of a page to another: the block is the same, what it knows of itself isn't."""
    program = """
        lea rax, [rip + here]
        sub rax, r13
        push rax
        mov rax, r12
        lea rcx, [rip + here]
        sub rcx, r13
        add rax, rcx
        xchg r12, r13
        jmp rax
    here:
        lea rax, [rip + here]
        sub rax, r13
        push rax
        dec ebp
        jz done
        xchg r12, r13
        lea rcx, [rip + here]
        sub rcx, r12
        add rcx, r13
        jmp rcx
    done:
        int3
        .org 0x3000
    """
    process = Process(program)
    process.start(PLACES[0])
    state = process.vcpu.save_state()
    state.registers[5], state.registers[12] = 40, PLACES[1]
    process.vcpu.load_state(state)
    process.vcpu.run_py()
    assert process.vcpu.take_exception()[0] == 3
    stack = process.ram.read(0x210000, 0x800)
    words = {int.from_bytes(stack[i : i + 8], "little") for i in range(0x800 - 8 * 41, 0x800, 8)}
    assert len(words) == 1  # the same offset, wherever it was computed
