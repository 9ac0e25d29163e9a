"""Devices that write to memory while vCPUs run what lies there."""

import threading
import time

import pytest
from machine import FRAMES, WINDOW, Machine

from hostel.bus.space import PyRegion

CODE = FRAMES + 0x2000          # guest-physical; the guest runs it at WINDOW + 0x2000
SHOWN = FRAMES + 0x3000         # what the code returned last, how often it ran, whether to end
LOOP = f"""
main:   mov     ebx, {WINDOW + 0x2000}
1:      call    rbx
        mov     [{WINDOW + 0x3000}], rax
        lock inc qword ptr [{WINDOW + 0x3008}]
        cmp     dword ptr [{WINDOW + 0x3010}], 0
        je      1b
        QUIT
other:  mov     ebx, {WINDOW + 0x2000}
2:      call    rbx
        jmp     2b
"""


@pytest.mark.parametrize("cpus", [1, 2])
def test_code_that_a_device_overwrites_is_the_new_code(cpus):
    machine = Machine(cpus)
    start = "main: START_OTHERS\n" if cpus > 1 else "main:\n"
    machine.boot(LOOP.replace("main:", start, 1))
    machine.ram.write(CODE, bytes.fromhex("b8ffffffff 90 c3"))  # mov eax, ...; nop; ret
    wrong = []

    def word(at):
        return int.from_bytes(machine.ram.view(SHOWN + at, 8), "little")

    def passed(rounds):
        target, end = word(8) + rounds, time.monotonic() + 15
        while word(8) < target and time.monotonic() < end:
            time.sleep(0)

    def device():
        passed(1000)
        for value in range(300):
            machine.ram.view(CODE + 1, 4)[:] = value.to_bytes(4, "little")
            machine.ram.mark_written(CODE + 1, 4)
            passed(2)
            if word(0) != value:
                wrong.append((value, word(0)))
        machine.ram.view(SHOWN + 0x10, 1)[0] = 1

    thread = threading.Thread(target=device)
    thread.start()
    machine.go(60)
    thread.join()
    assert wrong == []
    assert machine.engine.statistics()["invalidated_blocks"] >= 300


def test_a_device_whose_register_is_locked_may_wait_for_one_that_writes_to_code():
    """LOCK stops the other vCPUs; the register's device waits for a thread that wants to drop translations."""

    class Register(PyRegion):
        def __init__(self):
            super().__init__("register")
            self.log = []

        def _other_device(self):
            thread = threading.Thread(target=machine.ram.mark_written, args=(CODE, 8), daemon=True)
            thread.start()
            thread.join(10)
            self.log.append(thread.is_alive())

        def read_py(self, offset, size):
            self._other_device()
            return 41

        def write_py(self, offset, size, value):
            self._other_device()
            self.log.append(value)

    machine = Machine(2)
    register = Register()
    machine.mmio.map(0xFEF00000, 4096, register)
    machine.boot(f"""
main:   START_OTHERS
        mov     ebx, {WINDOW + 0x2000}
        call    rbx
        mov     eax, 0xFEF00000
        lock inc dword ptr [rax]
        QUIT
other:  pause
        jmp     other
""")
    machine.space.map(0xFEE00000, 0xFEE00000, 1 << 21, 3, level=2)
    machine.ram.write(CODE, bytes.fromhex("b801000000 90 c3"))
    machine.go(60)
    assert register.log == [False, False, 42]
