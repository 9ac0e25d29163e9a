"""A debugger's hold on a machine, by the SDK, around a guest of a few instructions."""

import struct
import time

import pytest
from bare_worker import CELL, MAIN, OTHER, WORK

from hostel.base.errors import MachineError
from hostel.client.connection import Connection, Gone


def cell(debugger):
    return struct.unpack("<Q", debugger.read(0, CELL, 8))[0]


def until(condition, seconds=10):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it doesn't happen"
        time.sleep(0.005)


def test_breakpoints_steps_and_going_on(bare):
    vm = bare()
    with vm.debug() as debugger:
        debugger.breaks = {WORK}
        debugger.go()
        assert debugger.wait(10) == (0, "break", WORK)
        before = cell(debugger)
        state = debugger.state()
        assert (state.rip, state.registers[8], state.registers[14]) == (WORK, 0x8877665544332211, 0x8877665544332211)
        assert state.xsave[176:192] == state.xsave[592:600] + bytes(8)  # ymm1, its halves
        assert [debugger.step().address - WORK for _ in range(3)] == [8, 11, 19]
        assert cell(debugger) == before + 1
        debugger.go()
        assert debugger.wait(10) == (0, "break", WORK)
        assert cell(debugger) == before + 1
    with vm.debug() as debugger:  # gone with the debugger that made it, and the guest went on
        until(lambda: cell(debugger) > before + 1 or debugger.go() or time.sleep(0.01) or debugger.interrupt())
        assert debugger.breaks == set()


def test_watchpoints(bare):
    with bare().debug() as debugger:
        debugger.watches = {(CELL, 8, "write")}
        debugger.go()
        assert debugger.wait(10) == (0, "write", CELL)
        assert debugger.state().rip == WORK + 19
        debugger.watches = {(CELL + 7, 1, "read")}
        debugger.go()
        assert debugger.wait(10) == (0, "read", CELL + 7)
        assert debugger.state().rip == WORK + 8


def test_registers_and_memory_are_written(bare):
    with bare().debug() as debugger:
        debugger.breaks = {WORK + 8}
        debugger.go()
        debugger.wait(10)
        state = debugger.state()
        tsc = state.tsc
        state.registers[0] = 0x1234
        state.tsc = 0  # the clocks are nobody's to turn back
        debugger.set_state(state)
        assert debugger.state().tsc > tsc
        for _ in range(2):
            debugger.step()
        assert cell(debugger) == 0x1235
        assert debugger.translate(CELL) == CELL and debugger.translate(1 << 40) is None
        assert debugger.translate(1 << 62) is None
        assert debugger.write(0, CELL, b"\x07") == 1
        assert debugger.read(0, CELL, 2, physical=True) == b"\x07\x12"
        assert debugger.write(0, WORK + 19, b"\xcc") == 1  # over translated code
        assert debugger.write(0, WORK + 19, b"\x90\xc3") == 2
        assert debugger.read(0, 16 << 20, 16) == b""  # mapped, but no memory there
        assert debugger.read(0, (16 << 20) - 8, 16) == bytes(8)  # as far as it goes
        assert len(debugger.read(0, 0, 1 << 20)) == 1 << 20
        state = debugger.state()
        state.cr4 = 1 << 40
        with pytest.raises(MachineError, match="CR4"):
            debugger.set_state(state)
        assert debugger.state().cr4 != 1 << 40
        debugger.go()
        assert debugger.wait(10) == (0, "break", WORK + 8)  # it still runs


def test_vcpus_stop_and_go_together(bare):
    vm = bare(cpus=3)
    with vm.debug() as debugger:
        assert debugger.vcpus == 3
        debugger.breaks = {OTHER}
        seen = set()
        for _ in range(40):
            debugger.go()
            stop = debugger.wait(10)
            assert stop.why == "break" and debugger.state(stop.vcpu).rip == OTHER
            seen.add(stop.vcpu)
            counter = cell(debugger)
            assert cell(debugger) == counter
            debugger.step(stop.vcpu)  # over it, alone
            assert cell(debugger) == counter
        assert seen == {1, 2}
        debugger.breaks = {WORK}
        debugger.go(only=[0])
        assert debugger.wait(10).vcpu == 0


def test_an_interrupt_and_the_end(bare):
    vm = bare()
    with vm.debug() as debugger:
        debugger.go()
        with pytest.raises(TimeoutError):
            debugger.wait(0.05)
        with pytest.raises(MachineError, match="is running"):
            debugger.state()
        debugger.interrupt()
        assert debugger.wait(10).why == "interrupt"
        assert MAIN <= debugger.state().rip < CELL
        debugger.go()
        Connection(vm.folder).call("quit")
        with pytest.raises(Gone, match="ended: killed"):
            debugger.wait(10)


def test_one_debugger_at_a_time_and_no_other_hands(bare):
    vm = bare()
    with vm.debug() as debugger:
        with pytest.raises(MachineError, match="has a debugger already"):
            vm.debug()
        for wish in (vm.pause, vm.resume):
            with pytest.raises(MachineError, match="a debugger holds"):
                wish()
        with Connection(vm.folder) as stranger, pytest.raises(MachineError, match="isn't the debugger's"):
            stranger.call("debug_go")
        assert vm.inspect()["debugger"] is True
        for method, params in (
            ("debug_state", {"vcpu": 1}), ("debug_state", {"vcpu": -1}), ("debug_go", {"only": [7]}),
            ("debug_set_state", {"vcpu": 0, "state": {"registers": []}}),
            ("debug_points", {"breaks": list(range(257))}), ("debug_read", {"vcpu": 9, "address": 0, "size": 1}),
        ):  # fmt: skip
            with pytest.raises(MachineError):
                debugger.connection.call(method, **params)
    vm.pause()
    vm.resume()


def test_it_waits_for_a_debugger_at_its_start(bare):
    vm = bare(debug=True)
    assert vm.state.state == "paused"
    with vm.debug() as debugger:
        assert (debugger.state().rip, cell(debugger)) == (0x100000, 0)
        debugger.breaks = {WORK}
        debugger.go()
        assert debugger.wait(10) == (0, "break", WORK)
        assert cell(debugger) == 0
    assert vm.state.state == "running"


def test_a_paused_machine_stays_paused(bare):
    vm = bare()
    vm.pause()
    with vm.debug() as debugger:
        debugger.state()
    assert vm.state.state == "paused" and vm.inspect()["statistics"]["threads"] == 0
    vm.resume()


def test_a_debugger_that_dies_leaves_nothing(bare):
    vm = bare(cpus=2)
    debugger = vm.debug()
    debugger.breaks = {WORK}
    debugger.go()
    debugger.wait(10)
    debugger.connection.sock.close()
    until(lambda: not vm.inspect()["debugger"])
    with vm.debug() as debugger:
        first = cell(debugger)
    with vm.debug() as debugger:
        until(lambda: cell(debugger) > first or debugger.go() or time.sleep(0.01) or debugger.interrupt())


def test_a_reset_under_the_debugger(bare):
    vm = bare(cpus=2, debug=True)
    with vm.debug() as debugger:
        debugger.breaks = {WORK}
        debugger.go()
        debugger.wait(10)
        assert cell(debugger) == 0
        debugger.step(), debugger.go(), debugger.wait(10)
        assert cell(debugger) == 1
        vm.reset()
        assert debugger.state().rip == 0x100000  # it stands still, as it did
        debugger.go()
        assert debugger.wait(10) == (0, "break", WORK) and cell(debugger) == 0
