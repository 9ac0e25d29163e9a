"""The code cache across a fork: whoever writes to code memory has what he writes for himself, and only that.

Each test is a process of its own, so that what it freezes and forks is nobody else's. A guest has ``BLOCKS`` blocks of
straight code and, at their end, ``patched``, where a number is that its program, or a device, overwrites.
"""

import gc
import os
import pickle
import re
import resource
import signal
import sys
import threading
import traceback
from pathlib import Path

import pytest
from machine import Machine, assemble
from test_breakpoints import CODE, machine_of
from test_guests_smp import HEAD

from hostel.base.linux import prctl, seccomp

BLOCKS = 1500
PAGES = 16
SUM = BLOCKS * (BLOCKS + 1) // 2
CHUNK = 1 << 14
# `ecx` times all blocks, then patched's number on top; at STORE: first make that number edx
PROGRAM = f"""
start:
    .set    n, 0
    .rept   {BLOCKS}
    .set    n, n + 1
    add     rax, n
    bt      eax, 3
    jc      1f
    lock add [rdi + 8], rax
1:  lock add [rdi + 16], rax
    .endr
    dec     ecx
    jnz     start
    call    patched
    int3
store:
    mov     dword ptr [rip + patched + 1], edx
    call    patched
    int3
    .balign 4096
patched:
    mov     ebx, 0x1234
    add     rax, rbx
    ret
    nop
"""


def apart(job):
    """What ``job()`` returns, run in a process of its own."""
    pid, result = start(job)
    return finish(pid, result)


def start(job):
    out, into = os.pipe()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.close(out)
            signal.signal(signal.SIGALRM, signal.SIG_DFL)  # pytest's
            signal.alarm(120)  # a guest whose code others overwrite may run for ever
            answer = pickle.dumps(job())
            with os.fdopen(into, "wb") as f:
                f.write(answer)
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)
    os.close(into)
    return pid, out


def finish(pid, out):
    with os.fdopen(out, "rb") as f:
        answer = f.read()
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert status == 0, f"the process ended with {status}"
    return pickle.loads(answer)


class Guest:
    def __init__(self, code_size: int = 0, verify: int = -1):
        body = assemble(PROGRAM, CODE, runtime=False)
        assert len(body) <= PAGES << 12
        self.ram, self.vcpu, self.engine = machine_of(body, code_size, PAGES + 1, verify)
        self.patched = len(body) - 10
        self.store = body.rindex(bytes.fromhex("8915"))
        state = self.vcpu.save_state()
        state.registers[4] = CODE + (PAGES << 12) + 4096
        self.state = state

    def go(self, at: int = 0, rdx: int = 0, times: int = 1) -> int:
        """rax, run from that offset."""
        self.state.rip = CODE + at
        self.state.registers[:4] = [0, times, rdx, 0]
        self.vcpu.load_state(self.state)
        self.vcpu.run_py()
        assert self.vcpu.take_exception()[0] == 3
        return self.vcpu.save_state().registers[0]

    def device(self, number: int) -> None:
        """A device overwrites patched's number, from a thread that has no vCPU's stack."""
        thread = threading.Thread(target=self.ram.write, args=(0x200001 + self.patched, number.to_bytes(4, "little")))
        thread.start()
        thread.join()

    def fresh(self, number: int) -> int:
        """Code that nobody has seen: four of them, each in a place of its own."""
        at = self.patched + 0x100 + 0x40 * (number & 3)
        self.ram.write(0x200000 + at, b"\xb8" + number.to_bytes(4, "little") + b"\xcc")
        return self.go(at)

    def fork(self, job):
        """``start(job)`` in a child that goes on with this guest."""
        def forked():
            self.engine.forked(True)
            return job()

        self.engine.freeze()
        try:
            return start(forked)
        finally:
            self.engine.forked(False)

    def live(self, seed: int, rounds: int = 5) -> list:
        """All that may be written, with numbers of one's own; what came out."""
        seen = [self.go()]
        for i in range(rounds):
            number = 0x10000 * seed + i
            seen.append(self.go(self.store, number))  # by its program
            seen.append(self.go())
            self.device(number + 0x1000)
            seen.append(self.go())
            seen.append(self.fresh(number))
        check_mappings()
        return seen

    @staticmethod
    def expected(seed: int, before: int, rounds: int = 5) -> list:
        out = [SUM + before]
        for i in range(rounds):
            number = 0x10000 * seed + i
            out += [number, SUM + number, SUM + number + 0x1000, number]
        return out

    @staticmethod
    def last(seed: int, rounds: int = 5) -> int:
        return 0x10000 * seed + rounds - 1 + 0x1000


def mappings():
    """(permissions, inode, resident bytes) of code memory."""
    out = []
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
            fields = line.split()
            assert not ("w" in fields[1] and "x" in fields[1]), line
            mine = len(fields) > 5 and fields[5] == "/dev/zero"
            if mine:
                out.append([fields[1], fields[4], 0])
        elif line.startswith("Rss:") and mine:
            out[-1][2] = int(line.split()[1]) << 10
    return out


def check_mappings():
    assert {how for how, _, _ in mappings()} <= {"r-xs", "rw-s", "r--s"}


def test_parent_and_children_go_their_own_ways():
    def job():
        guest = Guest()
        assert guest.live(1) == guest.expected(1, 0x1234)
        children = [guest.fork(lambda seed=seed: guest.live(seed)) for seed in range(2, 8)]
        assert guest.live(9) == guest.expected(9, guest.last(1))
        for seed, child in enumerate(children, 2):
            assert finish(*child) == guest.expected(seed, guest.last(1)), seed
        assert guest.go() == SUM + guest.last(9)
        guest.engine.audit()
        return guest.engine.statistics()

    counters = apart(job)
    assert counters["copied_chunks"] > 0
    assert counters["flushes"] == 0


def test_one_after_the_other():
    """Nobody may see what a child before him wrote, nor what the parent wrote since that one's fork."""
    def job():
        guest = Guest()
        before = 0x1234
        assert guest.go() == SUM + before
        for seed in range(2, 12):
            assert finish(*guest.fork(lambda seed=seed: guest.live(seed))) == guest.expected(seed, before)
            assert guest.go() == SUM + before
            if seed & 1:
                assert guest.live(seed + 100) == guest.expected(seed + 100, before)
                before = guest.last(seed + 100)

    apart(job)


def test_generations():
    def family(guest, depth, seed, before):
        assert guest.live(seed, 2) == guest.expected(seed, before, 2)
        mine = guest.last(seed, 2)
        if depth:
            children = [guest.fork(lambda i=i: family(guest, depth - 1, 4 * seed + i, mine)) for i in range(2)]
            guest.device(mine + 7)
            assert guest.go() == SUM + mine + 7
            told = [finish(*child) for child in children]
            assert told == [depth - 1, depth - 1]
            assert guest.go() == SUM + mine + 7
        return depth

    assert apart(lambda: family(Guest(), 4, 1, 0x1234)) == 4


def test_a_child_that_is_idle_costs_next_to_nothing():
    def job():
        guest = Guest()
        guest.go(times=3)
        used = guest.engine.statistics()["code_bytes"]
        here = {inode for _, inode, _ in mappings()}

        def child():
            guest.go(times=3)  # all is translated and linked
            idle = sum(size for _, inode, size in mappings() if inode not in here)
            guest.device(7)
            assert guest.go() == SUM + 7
            return idle, sum(size for _, inode, size in mappings() if inode not in here)

        return used, finish(*guest.fork(child))

    used, (idle, busy) = apart(job)
    assert used > 8 * CHUNK
    assert idle == 0
    # where it wrote, each in two views: the blocks' ends with what is rarely run, and what is new
    assert 0 < busy <= 2 * 6 * CHUNK < used


def test_new_translations_lie_in_memory_of_ones_own():
    """And a fork before anything is translated is as good as one later."""
    def job():
        guest = Guest()
        children = [guest.fork(lambda seed=seed: guest.live(seed)) for seed in range(2, 5)]
        assert guest.live(1) == guest.expected(1, 0x1234)
        for seed, child in enumerate(children, 2):
            assert finish(*child) == guest.expected(seed, 0x1234)
        # nothing but the stubs' chunk had to be copied, on either side
        return guest.engine.statistics()

    assert apart(job)["copied_chunks"] <= 1


@pytest.mark.parametrize("size", [1 << 17, 1 << 19, (1 << 18) + 4096 * 3])
def test_a_full_cache_starts_anew_on_both_sides(size):
    def job():
        guest = Guest(size, 0)
        for times in (1, 3):
            assert guest.go(times=times) == times * SUM + 0x1234
        flushes = guest.engine.statistics()["flushes"]

        def child():
            assert guest.go(times=2) == 2 * SUM + 0x1234
            assert guest.live(5) == guest.expected(5, 0x1234)
            grandchild = guest.fork(lambda: guest.live(6))
            assert finish(*grandchild) == guest.expected(6, guest.last(5))
            return guest.engine.statistics()["flushes"]

        handle = guest.fork(child)
        assert guest.live(3) == guest.expected(3, 0x1234)
        assert guest.engine.statistics()["flushes"] > flushes
        assert finish(*handle) > flushes
        assert guest.go() == SUM + guest.last(3)

    apart(job)


def test_a_flush_copies_nothing():
    def job():
        guest = Guest()
        guest.go(times=3)

        def child():
            guest.engine.set_points([], [])  # which flushes
            assert guest.go(times=2) == 2 * SUM + 0x1234
            return guest.engine.statistics(), {how for how, _, _ in mappings()}

        told = finish(*guest.fork(child))
        assert guest.go() == SUM + 0x1234
        return told

    counters, how = apart(job)
    assert counters["flushes"] == 1
    assert counters["copied_chunks"] == 0
    assert how == {"r-xs", "rw-s"}


def test_in_a_worker_that_is_confined():
    def job():
        guest = Guest()
        guest.go()

        def child():
            prctl.set_no_new_privs()
            seccomp.restrict()
            return guest.live(2)

        return finish(*guest.fork(child))

    assert apart(job) == Guest.expected(2, 0x1234)


def test_without_memory_it_dies_visibly():
    def job():
        guest = Guest()
        guest.go()

        def child():
            guest.go(guest.store, 5)
            here = int(Path("/proc/self/statm").read_text().split()[0]) << 12
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            guest.engine.freeze()
            guest.engine.forked(False)
            resource.setrlimit(resource.RLIMIT_AS, (here, here))
            guest.go(guest.store, 6)

        pid, out = guest.fork(child)
        os.close(out)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        assert guest.go() == SUM + 0x1234
        return status

    assert apart(job) == -signal.SIGSEGV


def test_all_is_unmapped_at_the_end():
    def job():
        gc.collect()  # what earlier tests left
        before = len(mappings())
        guests = [Guest(), Guest(), Guest()]
        for guest in guests:
            guest.go()
            finish(*guest.fork(lambda guest=guest: guest.live(2)))
            guest.live(3)
        number = guest.last(3)
        while guests:
            del guests[len(guests) // 2]
            guest = None
            gc.collect()
            for guest in guests:
                children = [guest.fork(lambda guest=guest: guest.live(4)) for _ in range(2)]
                guest.device(9)
                assert finish(*children[0]) == guest.expected(4, number)
                assert finish(*children[1]) == guest.expected(4, number)
            number = 9
        gc.collect()
        return len(mappings()) - before

    assert apart(job) <= 0


ROUNDS = 5_000
# vCPU 0 calls what is next to what vCPU 1 overwrites, calls and overwrites again
NEIGHBOURS = HEAD + f"""TOGETHER
work:   mov     ebp, {ROUNDS}
        xor     r12d, r12d
        test    edi, edi
        jz      2f
1:      mov     dword ptr [rip + mine + 1], ebp
        call    mine
        add     r12, rbx
        dec     ebp
        jnz     1b
        mov     [sums + 8], r12
        ret
2:      call    his
        add     r12, rbx
        cmp     dword ptr [done], 0
        je      2b
        mov     [sums], r12
        ret
        .balign 64
his:    mov     ebx, 1
        .rept   8
        jmp     1f
1:      add     ebx, 1
        .endr
        inc     qword ptr [calls]
        ret
        .balign 4096
mine:   mov     ebx, 0x1234
        ret
        .balign 4096
sums:   .quad   0, 0
calls:  .quad   0
results:
        SAY     [sums]
        SAY     [calls]
        SAY     [sums + 8]
        ret
"""


def _neighbours(machine):
    """One thread runs where another writes, and all of it is frozen again and again meanwhile."""
    done = threading.Event()

    def freeze():
        while not done.wait(0.0005):
            machine.engine.freeze()
            machine.engine.forked(False)

    thread = threading.Thread(target=freeze)
    thread.start()
    try:
        his, calls, mine = machine.go(60)
    finally:
        done.set()
        thread.join()
    assert his == 9 * calls
    assert mine == ROUNDS * (ROUNDS + 1) // 2
    check_mappings()
    return machine.engine.statistics()["copied_chunks"]


def test_two_vcpus_in_one_chunk():
    def job():
        machine = Machine(2)
        machine.boot(NEIGHBOURS, VCPUS=2)
        return _neighbours(machine)

    assert apart(job) > 10


def test_two_vcpus_in_a_child():
    """The machine has run in the parent, threads and timers with it, and goes on in the child."""
    def again(machine):
        machine.said.clear()
        for runner, vcpu in zip(machine.runners, machine.engine.vcpus, strict=True):
            runner.stop(False)
            vcpu.reset()
        machine.boot(NEIGHBOURS, VCPUS=2)
        return _neighbours(machine)

    def child(machine):
        machine.engine.forked(True)
        return again(machine)

    def job():
        machine = Machine(2)
        machine.boot(NEIGHBOURS, VCPUS=2)
        assert machine.go(60)[2] == ROUNDS * (ROUNDS + 1) // 2
        machine.engine.freeze()
        handles = [start(lambda: child(machine)) for _ in range(2)]
        machine.engine.forked(False)
        return [again(machine), *(finish(*handle) for handle in handles)]

    assert min(apart(job)) > 10
