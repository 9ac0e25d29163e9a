"""Operands by the distance of their page (address._operand): every form of address, alone and in windows whose index or
base moves between two accesses, in blocks and one instruction at a time, with every block verified."""

import struct

import pytest
from bare import KERNEL_CODE, KERNEL_DATA, P, Space, W, segment
from machine import assemble

from hostel.cpu.bt.run import BtEngine
from hostel.memory.ram import Ram

CODE, DATA, FAR, RAM = 0x400000, 0x500000, 0x7FFF12345000, 0x300000
FS_BASE, GS_BASE = 0x4FF000, FAR - 0x40
PAGES = 3

# rbx, r12, rbp, r13, rsp, r10: DATA + 0x800; r15: FAR; rcx, r11: 3. Results go to the third page.
BODIES = {
    "a base": "mov rax, [rbx]; mov rdx, [rbx + 8]; add rbx, 16; mov rsi, [rbx - 8]; mov rdi, [rbx + 0x40]",
    "bases that need a displacement or an index byte":
        "mov rax, [rbp]; mov rdx, [r13]; mov rsi, [r12]; mov rdi, [rsp]; mov r8, [r12 + 0x300]; "
        "mov r9, [rbp - 0x300]",
    "an index":
        "mov rax, [rbx + rcx * 8]; mov rdx, [rbx + rcx * 4 + 4]; mov rsi, [rbx + rcx]; mov rdi, [rcx * 8 + DATA]",
    "an index that moves":
        "mov rax, [rbx + rcx * 8]; add rcx, 2; mov rdx, [rbx + rcx * 8]; sub rcx, 3; mov rsi, [rbx + rcx * 8 + 8]; "
        "inc rcx; mov rdi, [rbx + rcx * 8]; lea rcx, [rcx + 5]; add [rbx + rcx * 8], rdi",
    "base and index that move":
        "mov rax, [rbx + rcx * 2 + 2]; add rbx, 32; inc rcx; mov rdx, [rbx + rcx * 2 - 10]; dec rcx; sub rbx, 8; "
        "mov rsi, [rbx + rcx * 2 - 6]",
    "a base that another register takes over":
        "mov rax, [rbx]; mov rdi, rbx; mov rbx, 5; mov rdx, [rdi + 8]; mov r9, [rdi]",
    "registers in memory":
        "mov rax, [r10]; mov rdx, [r10 + r11 * 8]; mov rsi, [rbx + r11 * 8]; add r11, 1; mov rdi, [rbx + r11 * 8]; "
        "mov r8, [r10 + 8]; mov [r10 + 16], r11; add r10, 8; mov r9, [r10]; mov [r10 + r11 * 8], r10",
    "the stack":
        "push rax; push rcx; mov rdx, [rsp]; mov rsi, [rsp + 8]; push qword ptr [rsp + 8]; pop rdi; "
        "mov [rsp + 24], rdi; pop r8; pop qword ptr [rsp + 16]; push rsp; pop r9; push 77; pop qword ptr [rsp]; "
        "mov rsi, [rsp + rcx * 8]",
    "pop to where it lay": "push rbx; push rcx; pop [rsp + 8]; pop rsp; mov rsp, rbp",
    "leave": "mov rbp, rsp; sub rsp, 64; mov [rbp], rbx; mov [rbp - 8], rcx; leave; mov rbp, rsp",
    "constants":
        "mov rax, [DATA]; mov rdx, [DATA + 8]; mov [DATA + 0x10], rcx; mov rsi, [DATA + 0xff9]; mov rdi, [rbx]",
    "a constant across two pages": "mov rax, [DATA + 0xffc]; add [DATA + 0xffd], rcx; mov rdx, [DATA + 0xff8]",
    "code's own": "mov rax, [rip + DATA - CODE]; add rcx, [rip + DATA - CODE + 1]; mov [rip + DATA - CODE], rcx",
    "far":
        "mov rax, [r15]; mov rdx, [r15 + 8]; movabs rax, [FAR + 16]; add [r15 + rcx * 8], rax; "
        "mov r8, [r15 + 0x24]",
    "segments":
        "mov rax, fs:[0x1008]; mov rdx, fs:[rcx + 0x1010]; add fs:[0x1018], rdx; mov rsi, gs:[0x48]; "
        "mov rdi, gs:[rcx * 8 + 0x40]; inc rcx; mov r8, gs:[rcx * 8 + 0x40]; mov r9, gs:[0x50]",
    "parts of registers":
        "mov ah, [rbx]; mov dh, [rbx + 1]; add ah, [rbp + 2]; mov [rbp + 3], dh; mov [rbp + rcx], ah",
    "three operands":
        "andn r10, r11, [rbx]; andn r10, r11, [rsi]; andn r11, r10, [rdi + 8]; bextr r11, [rbx + 8], r10; "
        "mulx r10, r11, [rbx]",
    "vectors":
        "movups xmm1, [rbx]; vmovdqu ymm2, [r12 + 32]; vpaddd ymm1, ymm2, [rbx + rcx * 8]; "
        "vmovdqu [rbp + 64], ymm1",
    "bits and strings": "bt [rbx], rcx; bts qword ptr [r12], 70; lodsq; movsq; stosd; xlatb",
    "read, changed, written":
        "xadd [rbx], rcx; lock add [rbx + 8], rax; xchg [r12 + 16], rdx; cmpxchg [rbp + 24], rsi; "
        "neg qword ptr [rsp + 32]",
    "flags that live on":
        "add rax, rcx; mov rdx, [rbx]; adc rdx, [rbx + 8]; mov rsi, [DATA]; sbb [r12 + 8], rsi; setc dil",
    "a branch between":
        "mov rax, [rbx]; test rax, rax; jz 1f; add [rbx + 8], rax; 1: mov rdx, [rbx + 16]; mov [rbx + 24], rdx",
    "a loop": "1: mov rax, [rbx]; add [rbx + 8], rax; mov rdx, [r12 + rcx * 8]; add rbx, 8; dec rcx; jnz 1b",
}  # fmt: skip


def run(body: str, alone: bool, near_end: int) -> tuple:
    ram = Ram()
    ram.add(0, 16 << 20)
    space = Space(ram)
    space.map(CODE, 0x200000, 0x1000, P | W)
    space.map(DATA, RAM, PAGES << 12, P | W)
    space.map(FAR, RAM, PAGES << 12, P | W)
    ram.write(RAM, struct.pack(f"<{PAGES << 9}Q", *(0x0123456789ABCDEF * n & (1 << 64) - 1 for n in range(PAGES << 9))))
    text = body.replace(";", "\n").replace("DATA", hex(DATA)).replace("FAR", hex(FAR)).replace("CODE", hex(CODE))
    ram.write(0x200000, assemble(text + "\nint3", CODE, runtime=False))
    engine = BtEngine(ram, 1, verify=1)
    vcpu = engine.vcpus[0]
    state = vcpu.save_state()
    state.cr0, state.cr3, state.cr4, state.efer = 0x80050033, space.cr3, 0x40620, 0xD01
    state.xcr0 = 7
    state.segments = [segment(KERNEL_CODE if i == 1 else KERNEL_DATA) for i in range(6)]
    state.segments[4].base, state.segments[5].base = FS_BASE, GS_BASE
    state.rip, state.rflags = CODE, 2
    middle = DATA + 0x800 + near_end
    state.registers = [0x1111 * n for n in range(16)]
    for r in (3, 4, 5, 6, 7, 10, 12, 13):
        state.registers[r] = middle
    state.registers[1] = state.registers[11] = 3
    state.registers[15] = FAR
    vcpu.load_state(state)
    vcpu.catch_exceptions = True
    exception = None
    while exception is None:
        vcpu.step_py() if alone else vcpu.run_py()
        exception = vcpu.take_exception()
        assert engine.refusal == "" and (alone or exception)
    assert exception[0] == 3
    after = vcpu.save_state()
    return after.registers, after.rflags, after.xsave, ram.read(RAM, PAGES << 12)


@pytest.mark.parametrize("near_end", [0, 0x7F0], ids=["", "at a page's end"])
@pytest.mark.parametrize("what", BODIES)
def test_blocks_do_as_their_instructions(what, near_end):
    assert run(BODIES[what], False, near_end) == run(BODIES[what], True, near_end)
