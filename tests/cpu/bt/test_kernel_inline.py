"""What kernels do all the time, as translated code does it against the monitor's own, which the slow twin uses."""

import pytest
from bare import KERNEL_CODE, P, Space, W, segment
from machine import assemble

from hostel.cpu.bt.run import BtEngine
from hostel.memory.ram import Ram

CODE, DATA = 0xFFFFFFFF80000000, 0xFFFFFFFF80500000
FSGSBASE, SMAP, PGE, LINUX_CR4 = 0x10000, 0x200000, 0x80, 0x620
GLOBAL = 0x100  # a page's
FS_BASE, GS_BASE = 0xC0000100, 0xC0000101

CONTROL = "mov rax, cr0; mov r14, cr2; mov rcx, cr3; mov r15, cr4; int3"
BASES = """
    mov r14, 0x7fff12345678
    add r8, r8
    wrfsbase r14
    pushfq
    mov ebx, 0x80001234
    wrgsbase ebx
    rdfsbase rcx
    rdgsbase r15
    wrgsbase r14
    rdgsbase edx
    int3
"""
NOT_CANONICAL = "mov rax, 0x800000000000; add rbx, rbx; wrfsbase rax; int3"
FLAGS = """
    add r8, r8
    cld
    pushfq
    clac
    pushfq
    stac
    stac
    pushfq
    clac
    pushfq
    std
    std
    pushfq
    cld
    pushfq
    int3
"""
# the state as XSAVE and its relatives store it, twice, with something done in between
SAVES = """
    fninit
    fld1
    mov eax, 7
    xor edx, edx
    xsave [rbp]
    fld1
    faddp
    fxsave [rbp + 1024]
    mov eax, 7
    xsaveopt [rbp + 2048]
    fstp qword ptr [rbp + 3072]
    int3
"""


def machine(program: str, cr4: int, flags: int = 2, space_flags: int = P | W, also: int = 0):
    ram = Ram()
    ram.add(0, 16 << 20)
    space = Space(ram)
    for place in (CODE, also) if also else (CODE,):
        space.map(place, 0x202000, 0x1000, space_flags)
    space.map(DATA, 0x203000, 0x2000, P | W)
    ram.write(0x202000, assemble(program, CODE, runtime=False))
    vcpu = BtEngine(ram, 1).vcpus[0]
    state = vcpu.save_state()
    state.cr0, state.cr2, state.cr3, state.cr4, state.efer = 0x80050033, 0x1122334455667788, space.cr3, cr4, 0xD01
    state.xcr0 = 7
    state.segments = [segment(KERNEL_CODE if i == 1 else 0x18) for i in range(6)]
    state.rip, state.rflags, state.registers[4], state.registers[5] = CODE, flags, DATA + 0x1800, DATA
    state.registers[8] = 1 << 63
    vcpu.load_state(state)
    vcpu.catch_exceptions = True
    return ram, vcpu


def result(ram, vcpu):
    state = vcpu.save_state()
    bases = [s.base for s in state.segments]
    return state.registers, state.rip, state.rflags & ~0x10000, bases, ram.read(0x203000, 0x2000)


@pytest.mark.parametrize("cr4", [LINUX_CR4 | 0x40000 | FSGSBASE | SMAP, LINUX_CR4 | 0x40000])
@pytest.mark.parametrize("flags", [0x2, 0x406, 0x40AD7])
@pytest.mark.parametrize("name", ["CONTROL", "BASES", "NOT_CANONICAL", "FLAGS", "SAVES"])
def test_the_same_as_one_by_one(name, flags, cr4):
    ram, vcpu = machine(globals()[name], cr4, flags)
    vcpu.run_py()
    raised = vcpu.take_exception()
    inline = result(ram, vcpu)

    ram, vcpu = machine(globals()[name], cr4, flags)
    for _ in range(40):
        vcpu.step_py()
        again = vcpu.take_exception()
        if again:
            break
    assert again == raised
    assert result(ram, vcpu) == inline


def test_what_comes_to_the_monitor():
    program = (CONTROL + "\n" + BASES + FLAGS).replace("int3", "nop") + "int3"
    ram, vcpu = machine(program, LINUX_CR4 | FSGSBASE | SMAP)
    vcpu.run_py()
    assert vcpu.take_exception()[0] == 3
    monitor = vcpu.statistics()["monitor"]
    # INT3, STD and CLD where DF changes, and STAC and CLAC as long as the other mode's table has no mode yet
    assert set(monitor) <= {"int3", "clac", "stac", "cld", "std"}, monitor
    assert monitor.get("clac", 0) <= 1 and monitor.get("cld", 0) <= 1


def test_jumps_to_global_pages_survive_a_change_of_cr3():
    """Two targets that share an entry of the jump cache: the second one's entries stay too."""
    other = CODE + 0x10000
    program = f"""
        mov ebp, 200
    again:
        mov rax, {CODE + 0x800:#x}
        call rax
        mov rax, {other + 0x800:#x}
        call rax
        mov rax, cr3
        mov cr3, rax
        dec ebp
        jnz again
        int3
        .org 0x800
        inc ebx
        ret
    """
    misses = []
    for flags in (P | W, P | W | GLOBAL):
        ram, vcpu = machine(program, LINUX_CR4 | PGE, space_flags=flags, also=other)
        vcpu.run_py()
        assert vcpu.take_exception()[0] == 3
        assert vcpu.save_state().registers[3] & 0xFFFFFFFF == 400
        misses.append(vcpu.statistics()["exits"]["miss"])
    assert misses[1] < 20 < 400 <= misses[0], misses
