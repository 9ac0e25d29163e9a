"""Hardware breakpoints: DR0..DR3, on instructions and on data (SDM vol. 3, 18.2 and 18.3)."""

import pytest
from bare import KERNEL_CODE, KERNEL_DATA, P, Space, W, segment

from hostel.cpu.bt.run import BtEngine
from hostel.memory.ram import Ram

CODE, DATA = 0x400000, 0x500000
BS = 0x4000

# 0: mov rax, [rdi]   3: mov [rdi+8], rax   7: nop   8: movsq   10: int3
BODY = bytes.fromhex("488b07" "48894708" "90" "48a5" "cc")


def machine_of(body: bytes, code_size: int = 0, pages: int = 1, verify: int = -1):
    """(ram, vcpu, engine) at CODE in 64-bit mode, CPL 0, with two pages at DATA in rdi; exceptions are caught."""
    ram = Ram()
    ram.add(0, 16 << 20)
    space = Space(ram)
    space.map(CODE, 0x200000, pages << 12, P | W)
    space.map(DATA, 0x300000, 0x2000, P | W)
    ram.write(0x200000, body)
    engine = BtEngine(ram, 1, code_size, verify)
    vcpu = engine.vcpus[0]
    state = vcpu.save_state()
    state.cr0, state.cr3, state.cr4, state.efer = 0x80050033, space.cr3, 0x620, 0xD01
    state.segments = [segment(KERNEL_CODE if i == 1 else KERNEL_DATA) for i in range(6)]
    state.rip, state.rflags = CODE, 2
    state.registers[7], state.registers[6] = DATA, DATA + 0x100
    vcpu.load_state(state)
    vcpu.catch_exceptions = True
    return ram, vcpu, engine


def machine(dr7: int, dr0: int):
    _, vcpu, _ = machine_of(BODY)
    state = vcpu.save_state()
    state.debug = [dr0, 0, 0, 0, 0xFFFF0FF0, dr7 | 0x400]
    vcpu.load_state(state)
    return vcpu


def outcome(vcpu):
    """(vector, rip - CODE, the hits in DR6)"""
    vcpu.run_py()
    exception = vcpu.take_exception()
    state = vcpu.save_state()
    return exception[0], state.rip - CODE, state.debug[4] & 0x600F


def dr7(kind: int, length: int) -> int:
    return 1 | kind << 16 | {1: 0, 2: 1, 8: 2, 4: 3}[length] << 18


@pytest.mark.parametrize("offset", [0, 3, 7])
def test_instruction_breakpoint_is_a_fault(offset):
    assert outcome(machine(dr7(0, 1), CODE + offset)) == (1, offset, 1)


def test_rf_holds_an_instruction_breakpoint_off_once():
    vcpu = machine(dr7(0, 1), CODE)
    state = vcpu.save_state()
    state.rflags |= 0x10000
    vcpu.load_state(state)
    vector, _, hits = outcome(vcpu)
    assert (vector, hits) == (3, 0)


@pytest.mark.parametrize(
    ("kind", "length", "address", "expected"),
    [
        (1, 8, DATA, (1, 10, 1)),  # the first write there is MOVSQ's; the read before doesn't count
        (3, 8, DATA, (1, 3, 1)),
        (1, 4, DATA + 12, (1, 7, 1)),
        (1, 1, DATA + 15, (1, 7, 1)),
        (1, 1, DATA + 16, (3, 11, 0)),
        (3, 2, DATA + 0x106, (1, 10, 1)),  # MOVSQ's source
    ],
)
def test_data_breakpoint_is_a_trap(kind, length, address, expected):
    vector, rip, hits = outcome(machine(dr7(kind, length), address))
    assert (vector, hits) == (expected[0], expected[2])
    if vector == 1:
        assert rip == expected[1]


def test_disabled_breakpoints_cost_nothing_and_do_nothing():
    assert outcome(machine(0, CODE))[::2] == (3, 0)
