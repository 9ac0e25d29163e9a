"""What a debugger asks of the translator: breakpoints, watchpoints and steps that the guest can't see."""

import struct

import pytest
from bare import KERNEL_CODE32, KERNEL_DATA, segment
from test_breakpoints import CODE, DATA, machine_of

from hostel.base.errors import MachineError
from hostel.cpu import state as st

KICK, DEBUG, HLT = 5, 7, 3
WRITE, READ, ACCESS = 1, 2, 3

# 0: mov ecx, 3   5: add [rdi], rcx   8: dec ecx   10: jnz 5   12: call 20   17: hlt   18: jmp 18   20: nop   21: ret
LOOP = bytes.fromhex("b903000000" "48010f" "ffc9" "75f9" "e803000000" "f4" "ebfe" "90" "c3")


def machine():
    ram, vcpu, engine = machine_of(LOOP)
    state = vcpu.save_state()
    state.registers[4] = DATA + 0x1000
    vcpu.load_state(state)
    return ram, vcpu, engine


def go(vcpu):
    """(why, address, rip - CODE), or the exit's number."""
    reason = vcpu.run_py()[0]
    if reason != DEBUG:
        return reason
    why, address = vcpu.debug_exit()
    return why, address, vcpu.save_state().rip - CODE


@pytest.mark.parametrize("offset", [0, 5, 8, 10, 12, 17, 20, 21])
def test_it_stops_before_the_instruction(offset):
    ram, vcpu, engine = machine()
    before = ram.read(0x200000, len(LOOP))
    engine.set_points([CODE + offset], [])
    assert go(vcpu) == ("break", CODE + offset, offset)
    assert go(vcpu) == ("break", CODE + offset, offset)  # it is still there
    assert ram.read(0x200000, len(LOOP)) == before
    assert vcpu.save_state().debug == [0, 0, 0, 0, 0xFFFF0FF0, 0x400]
    engine.set_points([], [])
    assert go(vcpu) == HLT
    assert ram.read(0x300000, 8) == struct.pack("<Q", 6)


def test_a_loop_comes_by_again():
    """Though its blocks are linked by then."""
    ram, vcpu, engine = machine()
    hits = []
    engine.set_points([CODE + 8], [])
    while go(vcpu) != HLT:
        hits.append(vcpu.save_state().registers[1])
        vcpu.debug_step(False)  # over it
        assert go(vcpu) == ("step", CODE + 10, 10)
    assert hits == [3, 2, 1]


def test_code_that_has_run_already():
    ram, vcpu, engine = machine()
    assert go(vcpu) == HLT
    state = vcpu.save_state()
    state.rip, state.halted = CODE, False
    vcpu.load_state(state)
    engine.set_points([CODE + 20], [])
    assert go(vcpu) == ("break", CODE + 20, 20)


def test_steps():
    _, vcpu, engine = machine()
    engine.set_points([CODE + 5], [])  # steps don't stop before it, but on it
    places = []
    for _ in range(14):
        vcpu.debug_step(False)
        places.append(go(vcpu)[2])
    assert places == [5, 8, 10, 5, 8, 10, 5, 8, 10, 12, 20, 21, 17, 18]
    assert vcpu.save_state().halted
    vcpu.debug_step(False)  # halted: it waits for an interrupt
    assert go(vcpu) == HLT
    vcpu.debug_go()
    assert go(vcpu) == HLT


def test_a_step_into_a_fault_ends_at_the_handler():
    ram, vcpu, _ = machine_of(bytes.fromhex("0f0b"))  # ud2
    vcpu.catch_exceptions = False
    state = vcpu.save_state()
    state.gdtr, state.idtr = st.Table(DATA + 0x800, 0x1F), st.Table(DATA, 0xFFF)
    state.registers[4] = DATA + 0x1800
    vcpu.load_state(state)
    ram.write(0x300000 + 16 * 6, struct.pack("<HHBBHII", (CODE + 0x100) & 0xFFFF, 0x10, 0, 0x8E, CODE >> 16, 0, 0))
    ram.write(0x300800 + 0x10, struct.pack("<Q", 0xAF9B000000FFFF))
    vcpu.debug_step(False)
    assert go(vcpu) == ("step", CODE + 0x100, 0x100)


@pytest.mark.parametrize(
    ("address", "length", "kind", "expected"),
    [
        (DATA, 8, WRITE, ("write", DATA, 8)),
        (DATA, 8, READ, ("read", DATA, 8)),
        (DATA, 8, ACCESS, ("access", DATA, 8)),
        (DATA + 7, 1, WRITE, ("write", DATA + 7, 8)),
        (DATA + 8, 1, ACCESS, HLT),
        (DATA - 4, 8, WRITE, ("write", DATA - 4, 8)),
        (DATA - 4, 4, WRITE, HLT),
        (DATA + 0x1000 - 8, 8, WRITE, ("write", DATA + 0xFF8, 20)),  # the return address
        (DATA + 0x1000 - 8, 8, READ, ("read", DATA + 0xFF8, 17)),
        (CODE, 64, ACCESS, HLT),  # running isn't reading
    ],
)
def test_watchpoints(address, length, kind, expected):
    """It stops behind the instruction that met one."""
    _, vcpu, engine = machine()
    engine.set_points([], [(address, length, kind)])
    assert go(vcpu) == expected
    assert vcpu.save_state().debug == [0, 0, 0, 0, 0xFFFF0FF0, 0x400]
    engine.set_points([], [])
    assert go(vcpu) == HLT


def test_what_an_exception_puts_on_the_stack_is_watched():
    ram, vcpu, engine = machine_of(bytes.fromhex("90" "0f0b"))  # nop; ud2
    vcpu.catch_exceptions = False
    state = vcpu.save_state()
    state.gdtr, state.idtr = st.Table(DATA + 0x800, 0x1F), st.Table(DATA, 0xFFF)
    state.registers[4] = DATA + 0x1800
    vcpu.load_state(state)
    ram.write(0x300000 + 16 * 6, struct.pack("<HHBBHII", (CODE + 0x100) & 0xFFFF, 0x10, 0, 0x8E, CODE >> 16, 0, 0))
    ram.write(0x300800 + 0x10, struct.pack("<Q", 0xAF9B000000FFFF))
    engine.set_points([], [(DATA + 0x17D8, 8, WRITE)])  # the return address
    assert go(vcpu) == ("write", DATA + 0x17D8, 0x100)


def test_a_string_instruction_meets_a_watchpoint():
    _, vcpu, engine = machine_of(bytes.fromhex("b900010000" "f348a5" "f4"))  # mov ecx, 256; rep movsq; hlt
    engine.set_points([], [(DATA + 0x300, 4, WRITE)])
    why, address, rip = go(vcpu)
    assert (why, address) == ("write", DATA + 0x300) and rip in (5, 8)


def test_code_of_32_bits():
    ram, vcpu, engine = machine_of(bytes.fromhex("40" "43" "90" "f4"))  # inc eax; inc ebx; nop; hlt
    state = vcpu.save_state()
    state.segments[1] = segment(KERNEL_CODE32)
    state.segments[2] = segment(KERNEL_DATA)
    vcpu.load_state(state)
    engine.set_points([CODE + 2], [])
    assert go(vcpu) == ("break", CODE + 2, 2)
    assert vcpu.save_state().registers[0::3][:2] == [1, 1]


def test_more_than_fit():
    _, _, engine = machine()
    with pytest.raises(MachineError, match="256 breakpoints and 16"):
        engine.set_points(list(range(257)), [])
