"""SYSCALL and SYSRET as translated code does them against the monitor's own, which the slow twin uses."""

import pytest
from bare import KERNEL_CODE, P, Space, U, W, segment
from machine import assemble

from hostel.cpu.bt.run import BtEngine
from hostel.memory.ram import Ram

USER, STACK, KERNEL = 0x400000, 0x500000, 0xFFFFFFFF80000000
STAR, LSTAR, SFMASK = 0xC0000081, 0xC0000082, 0xC0000084
LINUX_SFMASK = 0x257FD5

# 5 times: flags of an addition, SYSCALL, and what came back kept on the stack
PROGRAM = """
    mov ebp, 5
again:
    mov rax, 0x1234567812345678
    add rbx, rax
    syscall
    pushfq
    push rcx
    push r11
    mov edx, ss
    push rdx
    mov r12, rsp
    dec ebp
    jnz again
    int3
"""
# the kernel's side: its flags and selectors where the user finds them, then back
HANDLER = """
    mov rsp, 0xffffffff80500800
    pushfq
    pop rsi
    add rdi, rsi
    mov esi, cs
    add rdi, rsi
    mov esi, ss
    add rdi, rsi
    mov rsp, r12
    sysretq
"""


def machine(sfmask: int, flags: int):
    ram = Ram()
    ram.add(0, 16 << 20)
    space = Space(ram)
    space.map(USER, 0x200000, 0x1000, P | W | U)
    space.map(STACK, 0x201000, 0x1000, P | W | U)
    space.map(KERNEL, 0x202000, 0x1000, P | W)
    space.map(KERNEL + 0x500000, 0x203000, 0x1000, P | W)
    ram.write(0x200000, assemble(PROGRAM, USER, runtime=False))
    ram.write(0x202000, assemble(HANDLER, KERNEL, runtime=False))
    vcpu = BtEngine(ram, 1).vcpus[0]
    state = vcpu.save_state()
    state.cr0, state.cr3, state.cr4, state.efer = 0x80050033, space.cr3, 0x200620, 0xD01
    state.segments = [segment(0x33 if i == 1 else 0x2B) for i in range(6)]
    state.msrs |= {STAR: 0x23 << 48 | KERNEL_CODE << 32, LSTAR: KERNEL, SFMASK: sfmask}
    state.rip, state.rflags = USER, flags | 2
    state.registers[4], state.registers[12] = STACK + 0x800, STACK + 0x800
    vcpu.load_state(state)
    vcpu.catch_exceptions = True
    return ram, vcpu


def result(ram, vcpu):
    state = vcpu.save_state()
    return state.registers, state.rip, state.rflags & ~0x10000, state.segments, ram.read(0x201000, 4096)


@pytest.mark.parametrize("sfmask", [LINUX_SFMASK, 0, 0x40700, 0x40500])
@pytest.mark.parametrize("flags", [0x202, 0x2, 0x240202, 0x4AD7])
def test_the_same_as_one_by_one(sfmask, flags):
    ram, vcpu = machine(sfmask, flags)
    vcpu.run_py()
    assert vcpu.take_exception()[0] == 3
    inline = result(ram, vcpu)
    monitored = vcpu.statistics()["monitor"].get("syscall", 0)
    assert monitored < 5 or sfmask != LINUX_SFMASK  # the later ones didn't leave

    ram, vcpu = machine(sfmask, flags)
    for _ in range(1000):
        vcpu.step_py()
        if (exception := vcpu.take_exception()) is not None:
            break
    assert exception[0] == 3
    assert result(ram, vcpu) == inline
