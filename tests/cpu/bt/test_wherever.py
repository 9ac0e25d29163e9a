"""Programs' code that is translated once for wherever its page is mapped (MODE_PIC)."""

import struct
import threading
import time

from bare import USER_CODE, USER_DATA, P, Space, U, W, segment

from hostel.cpu.bt.run import BtEngine
from hostel.memory.ram import Ram

LOW, HIGH, STACK = 0x7F00_0000_0000, 0x7F11_0000_0000, 0x7F22_0000_0000
DEBUG = 7


def machine(first: bytes, second: bytes = b"", stack: tuple = ()):
    """(engine, vcpu, state): two pages of code, mapped at LOW and at HIGH, and where it begins: LOW, in user mode."""
    ram = Ram()
    ram.add(0, 16 << 20)
    space = Space(ram)
    for va in (LOW, HIGH):
        space.map(va, 0x200000, 0x2000, P | U)
    space.map(STACK, 0x300000, 4096, P | W | U)
    ram.write(0x200000, first)
    ram.write(0x201000, second)
    ram.write(0x300800, struct.pack(f"<{len(stack)}Q", *stack))
    engine = BtEngine(ram, 1)
    vcpu = engine.vcpus[0]
    state = vcpu.save_state()
    state.cr0, state.cr3, state.cr4, state.efer = 0x80050033, space.cr3, 0x620, 0xD01
    state.segments = [segment(USER_CODE if i == 1 else USER_DATA) for i in range(6)]
    state.rip, state.rflags, state.registers[1], state.registers[4] = LOW, 2, 100, STACK + 0x800
    vcpu.load_state(state)
    vcpu.catch_exceptions = True
    return engine, vcpu, state


def test_a_breakpoint_at_one_of_its_addresses():
    # 0: inc eax   2: inc ecx   4: loop 9   6: jmp 6   9: nop   10: pop rbx   11: jmp rbx
    body = bytes.fromhex("ffc0" "ffc1" "e203" "ebfe90" "90" "5b" "ffe3")
    engine, vcpu, state = machine(body, stack=(LOW, HIGH, 0))
    vcpu.run_py()
    assert vcpu.take_exception()[0] == 14
    assert {pc >> 12 for _, _, pc, mode, *_ in engine.translations()[2] if mode} == {LOW >> 12}  # one for both
    engine.set_points([HIGH + 9], [])
    vcpu.load_state(state)
    assert (vcpu.run_py()[0], vcpu.debug_exit(), vcpu.save_state().rip) == (DEBUG, ("break", HIGH + 9), HIGH + 9)
    assert vcpu.save_state().registers[0] == state.registers[0] + 3


def test_a_loop_over_two_pages_can_be_stopped():
    """The jump back leaves the page, so that its target is below the address that the page is taken to be at."""
    _, vcpu, _ = machine(bytes.fromhex("e9fb0f0000"), bytes.fromhex("e9fbefffff"))
    thread = threading.Thread(target=vcpu.run_py, daemon=True)
    thread.start()
    time.sleep(0.05)
    vcpu.request_stop()
    thread.join(10)
    assert not thread.is_alive()
