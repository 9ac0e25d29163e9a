"""Running translated code: the vCPU's loop, its way in and out, signals, and the accesses that can't go inline.

The loop (``BtVcpu.loop``) delivers what is pending, finds or makes the block of ``rip``, enters it and handles the
site at which it left. It runs without the GIL on the vCPU's own thread and comes back to the caller only with an exit.

A thread that runs guest code has GS at its ``VCpu`` and the guest's rsp in rsp, so signals use an alternate stack. The
host's SIGSEGV, SIGFPE and SIGBUS at an instruction that the fault table knows are the guest's exceptions or a kick (the
poll's null pointer). A write to code memory that a fork shares, on any thread, is done again once it is this process's
own. Any other is a bug of ours and takes the default action, so that the worker dies visibly.

Accesses that cross pages, go to devices or to pages with translations come to ``memory_access``. Reads are gathered
into ``VCpu.stage`` and the instruction goes on with that as its operand. Writes run the instruction alone (a block of
MODE_SINGLE) on the stage, which is written back when it is done: the slow twin.

Lock order: ``Cache.lock``, then the world is stopped; a vCPU that waits for either is out of translated code.
"""

import os
import sys

import cython
from cython.cimports.hostel.base.clock import rdtsc
from cython.cimports.hostel.bus.space import Region
from cython.cimports.hostel.cpu.bt import mmu
from cython.cimports.hostel.cpu.bt.cache import (
    MAX_BREAKS,
    MODE_SINGLE,
    PIC_PAGE,
    POLL_PAUSE,
    SITE_ALIGNED,
    SITE_ATOMIC,
    SITE_DISTANCE,
    SITE_EARLY,
    SITE_GREEDY,
    SITE_STACK,
    SITE_STRING,
    SK_LINK,
    SK_MEM,
    SK_MISS,
    SK_PLAIN,
    SK_POLL,
    SK_POLL_S1,
    SK_RAISE,
    SK_STEP,
    SK_STEP_S1,
    SK_SYS,
    Block,
    Cache,
    Fault,
    Site,
    bear_greed,
    enlarge,
    fence,
    find,
    find_fault,
    flush,
    forked,
    freeze,
    full,
    invalidate,
    is_break,
    lock,
    resume_world,
    sched_yield,
    setup,
    stop_world,
    teardown,
    text,
    unlock,
    unshare,
)
from cython.cimports.hostel.cpu.bt.decode import table
from cython.cimports.hostel.cpu.bt.emit import fill_hole
from cython.cimports.hostel.cpu.bt.insn import (
    CS,
    DS,
    K_STRING,
    S_CPUID,
    S_FXSAVE,
    S_INT,
    S_INT3,
    S_INVLPG,
    S_INVPCID,
    S_IRET,
    S_MASKMOVQ,
    S_MOV_TO_CR,
    S_RDFSBASE,
    S_RDMSR,
    S_STI,
    S_SYSCALL,
    S_SYSENTER,
    S_SYSRET,
    S_WRGSBASE,
    S_XRSTORS,
    S_XSAVE,
    S_XSAVEC,
    SS,
    Insn,
)
from cython.cimports.hostel.cpu.bt.kept import adopt, wish
from cython.cimports.hostel.cpu.bt.mmu import (
    current_table,
    find_slot,
    flush_jumps,
    flush_tlb,
    forget_spaces,
    init_tlb,
    jump_cache_insert,
    lookup,
    lookup_exec,
    may_write,
    note_watched,
    raise_error,
    raise_exception,
)
from cython.cimports.hostel.cpu.bt.msr import tell_of_stop, update_kvmclock
from cython.cimports.hostel.cpu.bt.piecewise import peek, read_pieces, stage, writable, write_pieces
from cython.cimports.hostel.cpu.bt.segment import update_mode
from cython.cimports.hostel.cpu.bt.strings import STRING_ASK, STRING_DONE, STRING_MORE, run_string
from cython.cimports.hostel.cpu.bt.stubs import prepare
from cython.cimports.hostel.cpu.bt.system import (
    SYS_EXCEPTION,
    SYS_EXIT,
    SYS_NEXT,
    SYS_SHUTDOWN,
    deliver_exception,
    deliver_interrupt,
    deliver_nmi,
    execute,
    finish_io,
    init,
    raise_debug,
    reset,
    sipi,
)
from cython.cimports.hostel.cpu.bt.transfer import load, save
from cython.cimports.hostel.cpu.bt.translate import translate
from cython.cimports.hostel.cpu.bt.translation import FLAGS_HOST, Translation
from cython.cimports.hostel.cpu.bt.vcpu import (
    ACCESS_READ,
    ACCESS_RW,
    ACCESS_WRITE,
    FL_ARITH,
    FL_IF,
    FL_RF,
    JUMP_SIZE,
    MODE_AC,
    MODE_CODE32,
    MODE_CODE64,
    MODE_DEBUG,
    MODE_PIC,
    MODE_PLAIN,
    MODE_TF,
    MODE_USER,
    TLB_KERNEL,
    TLB_KERNEL_AC,
    TLB_SIZE,
    TLB_USER,
    X_AC,
    X_DE,
    X_GP,
    X_MF,
    X_NM,
    X_PF,
    X_UD,
    X_XM,
    VCpu,
)
from cython.cimports.hostel.cpu.bt.x86 import CR0_EM
from cython.cimports.hostel.cpu.engine import (
    DEBUG_BREAK,
    DEBUG_READ,
    DEBUG_STEP,
    DEBUG_WRITE,
    EXIT_DEBUG,
    EXIT_ERROR,
    EXIT_HLT,
    EXIT_KICK,
    EXIT_MMIO,
    EXIT_PIO,
    EXIT_SHUTDOWN,
    Exit,
    InterruptController,
    Vcpu,
)
from cython.cimports.hostel.memory.ram import Slot
from cython.cimports.libc.stdint import int64_t, uint8_t, uint32_t, uint64_t
from cython.cimports.libc.string import memcpy, memset
from cython.cimports.posix.mman import (
    MAP_ANONYMOUS,
    MAP_FAILED,
    MAP_NORESERVE,
    MAP_PRIVATE,
    PROT_READ,
    PROT_WRITE,
    mmap,
    munmap,
)

from hostel.base.errors import MachineError, MemoryError_
from hostel.cpu.bt import verify as verifier
from hostel.cpu.bt.stubs import layout as stub_layout
from hostel.cpu.bt.stubs import stub_names
from hostel.cpu.bt.table import C

# What the monitor ran, by OpInfo.system; 0 stands for string instructions
_monitored = {number: name[2:].lower() for name, number in C.items() if name.startswith("S_")} | {0: "string"}
_handlers_installed = cython.declare(cython.bint, False)


# ---------------------------------------------------------------- signals


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _on_signal(signum: cython.int, info: cython.pointer(siginfo_t), context: cython.p_void) -> cython.void:
    c: cython.pointer(VCpu) = cython.NULL
    uc: cython.pointer(ucontext_t) = cython.cast(cython.pointer(ucontext_t), context)
    m: cython.pointer(Cache)
    f: cython.pointer(Fault)
    action: sigaction_t
    pc: uint64_t
    if signum == SIGSEGV and info.si_code == SEGV_ACCERR and unshare(info.si_addr):
        return
    syscall(SYS_arch_prctl, ARCH_GET_GS, cython.address(c))
    if c != cython.NULL and c.self == cython.cast(uint64_t, c):
        m = cython.cast(cython.pointer(Cache), c.machine)
        pc = cython.cast(uint64_t, uc.uc_mcontext.gregs[REG_RIP]) - cython.cast(uint64_t, m.run)
        if pc < m.code_size:
            f = find_fault(m, cython.cast(uint32_t, pc))
            # a page fault is a kick: a guest's access that its check let through doesn't fault, or is a bug of ours
            if f != cython.NULL and (
                uc.uc_mcontext.gregs[REG_TRAPNO] != X_PF
                or m.sites[f.site].kind == SK_POLL
                or m.sites[f.site].kind == SK_POLL_S1
            ):
                c.site = f.site
                c.exit_code = cython.cast(uint32_t, uc.uc_mcontext.gregs[REG_TRAPNO])
                uc.uc_mcontext.gregs[REG_RIP] = cython.cast(
                    cython.longlong, text(m, m.leave_host if f.flags_in_host else m.leave_mem)
                )
                return
    # not the guest's doing: die of it
    memset(cython.address(action), 0, cython.sizeof(action))
    sigaction(signum, cython.address(action), cython.NULL)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _install_handlers() -> cython.void:
    global _handlers_installed
    action: sigaction_t
    if _handlers_installed:
        return
    _handlers_installed = True
    memset(cython.address(action), 0, cython.sizeof(action))
    action.sa_sigaction = _on_signal
    action.sa_flags = SA_SIGINFO | SA_ONSTACK
    sigemptyset(cython.address(action.sa_mask))
    sigaction(SIGSEGV, cython.address(action), cython.NULL)
    sigaction(SIGFPE, cython.address(action), cython.NULL)
    sigaction(SIGBUS, cython.address(action), cython.NULL)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _code_written(c: cython.pointer(VCpu), gpa: uint64_t, size: cython.int) -> cython.void:
    c.n_smc += 1
    invalidate(cython.cast(cython.pointer(Cache), c.machine), c, gpa, size)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _device_wrote(owner: cython.p_void, gpa: uint64_t, size: uint64_t) -> cython.void:
    invalidate(cython.cast(cython.pointer(Cache), owner), cython.NULL, gpa, size)


# ---------------------------------------------------------------- flags, registers


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
@cython.inline
def _flags_in(c: cython.pointer(VCpu)) -> cython.void:
    """flags_saved (lahf in ah, seto in al) to eflags."""
    ax: uint64_t = c.flags_saved
    c.eflags = (c.eflags & ~cython.cast(uint64_t, FL_ARITH)) | (ax >> 8 & 0xD5) | ((ax & 1) << 11)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
@cython.inline
def _flags_out(c: cython.pointer(VCpu)) -> cython.void:
    c.flags_saved = (c.eflags & 0xD5) << 8 | (c.eflags >> 11 & 1)


# ---------------------------------------------------------------- piecewise memory

# ---------------------------------------------------------------- the machine's side


@cython.cclass
class BtEngine:
    """The binary translator for one machine: ``cpus`` vCPUs over ``ram``, which must be complete.

    ``code_size``: bytes for translated code; when they are full, it starts anew. 0: a sixteenth of the guest's memory,
    at least 64 MiB and at most 128. ``verify``: of so many blocks one is proved harmless before it runs (verify.py);
    0: none. A block that isn't ends the run with EXIT_ERROR.
    """

    def __cinit__(self, ram: Ram, cpus: cython.int, code_size: cython.size_t = 0, verify: cython.int = -1):
        i: cython.int
        if not 1 <= cpus <= 16:
            raise MachineError(f"{cpus} vCPUs: a machine has 1 to 16")
        self.ram = ram
        self.verify = verify if verify >= 0 else int(os.environ.get("HOSTEL_VERIFY_CODE", "0"))
        self.unverified = 0
        self.verified = 0
        self.broken = False
        self.refusal = ""
        self.layout = None
        self.vcpus = []
        memset(cython.address(self.cache), 0, cython.sizeof(self.cache))
        mmu.on_code_write = _code_written
        self.cache.slots = ram.slots
        self.cache.n_slots = ram.count
        if not code_size:
            for i in range(ram.count):
                code_size += ram.slots[i].size >> 4
            code_size = min(max(code_size & ~cython.cast(cython.size_t, 0xFFFFF), 64 << 20), 128 << 20)
        self.cache.code_size = code_size
        if setup(cython.address(self.cache)) != 0:
            raise MemoryError_("no address space left for the translator's cache")
        self.cache.translation = cython.address(self.translation)
        for i in range(cpus):
            v: BtVcpu = BtVcpu(self, i, cpus)
            self.vcpus.append(v)
            self.cache.vcpus[i] = v.c
        self.cache.n_vcpus = cpus
        ram.code_written = _device_wrote
        ram.code_owner = cython.address(self.cache)

    def __dealloc__(self):
        if self.ram is not None and self.ram.code_owner == cython.address(self.cache):
            self.ram.code_written = cython.NULL
        if self.cache.code:
            teardown(cython.address(self.cache))

    def note_writes(self):
        """Memory's dirty marks were taken: what is written from now on is to be marked anew. No vCPU is running."""
        vcpu: BtVcpu
        for vcpu in self.vcpus:
            with cython.nogil:
                flush_tlb(vcpu.c, False)

    def freeze(self):
        """Have the processes that this thread forks until ``forked`` share the code memory. What one of them, or this
        one, writes there afterwards is its own; it costs as much memory as it writes. No vCPU is running, and no thread
        may need the translator before ``forked``."""
        _install_handlers()
        failed: cython.int
        with cython.nogil:
            failed = freeze(cython.address(self.cache))
        if failed:
            raise MemoryError_("the translations can't be shared: the host has no memory for that")

    def forked(self, child: cython.bint):
        """After ``freeze`` and ``os.fork()``, if that failed too: once in the parent, and in each child before anything
        else. A child has none of the vCPUs' threads and timers: they begin anew, the guest goes on."""
        v: BtVcpu
        forked(cython.address(self.cache), child)
        if child:
            for v in self.vcpus:
                v.timer_made = False  # its number may be another timer's by now
                v.owned = False

    def set_pic_from(self, pc: uint64_t):
        """Let programs' 64-bit code from this address on be translated for any address; for tests."""
        self.cache.pic_from = pc

    def set_points(self, breaks: list, watches: list):
        """A debugger's breakpoints (linear addresses) and watchpoints ((linear address, bytes, DEBUG_*)), in place of
        those before. The guest sees nothing of them, in memory or in DR0 to DR7. No vCPU is running."""
        m: cython.pointer(Cache) = cython.address(self.cache)
        i: cython.int
        j: cython.int
        if len(breaks) > MAX_BREAKS or len(watches) > 16:
            raise MachineError(f"{MAX_BREAKS} breakpoints and 16 watchpoints are the most")
        for i in range(len(breaks)):
            m.breaks[i] = breaks[i]
        m.n_breaks = len(breaks)
        for i in range(m.n_vcpus):
            c: cython.pointer(VCpu) = m.vcpus[i]
            for j in range(len(watches)):
                c.watch_address[j], c.watch_length[j], c.watch_kind[j] = watches[j]
            c.watch_count = len(watches)
            c.watch_met = 0
            update_mode(c)
        with cython.nogil:
            lock(m)
            flush(m)  # whatever was translated without these breakpoints
            unlock(m)

    def count_instructions(self, on: cython.bint):
        """Count instructions from now on, or stop it: by translations apart from the others, so that it costs nothing
        when off. No vCPU is running."""
        i: cython.int
        for i in range(self.cache.n_vcpus):
            self.cache.vcpus[i].counting = on
            update_mode(self.cache.vcpus[i])

    def translations(self, since: cython.uint = 0) -> tuple:
        """What lies in the code memory, for profilers: (epoch, position, pieces).

        Pieces: (host address, host bytes, guest address, mode, guest bytes, part); the part is "cold" for what is
        rarely run, and the mode is "" for the engine's own code, which ``part`` names. ``since`` is a position that an
        earlier call returned, in the same epoch: only what came later; 0: everything.
        """
        m: cython.pointer(Cache) = cython.address(self.cache)
        base: cython.size_t = cython.cast(cython.size_t, m.run)
        i: uint32_t
        end: uint32_t
        out = []
        with cython.nogil:
            lock(m)  # a block in the making isn't told
        if since == 0:
            since = 1
            out.append((base, m.start - m.code, 0, "", 0, "stubs"))
        for i in range(since, m.n_blocks):
            b: cython.pointer(Block) = cython.address(m.blocks[i])
            end = m.blocks[i + 1].cold if i + 1 < m.n_blocks else cython.cast(uint32_t, m.cold_free - m.code)
            mode = BtEngine.mode_name(b.mode)
            out.append((base + b.start, b.end - b.start, b.first_pc, mode, b.size, ""))
            out.append((base + b.cold, end - b.cold, b.first_pc, mode, b.size, "cold"))
        position = m.n_blocks
        epoch = m.generation
        unlock(m)
        return epoch, position, out

    @staticmethod
    def mode_name(mode: int) -> str:
        """For people: what a block was translated for, as in ``kernel64``."""
        name = "user" if mode & MODE_USER else "kernel"
        name += "64" if mode & MODE_CODE64 else "32" if mode & MODE_CODE32 else "16"
        return name + ("-alone" if mode & (MODE_SINGLE | MODE_TF | MODE_DEBUG) else "")

    def instruction_name(self, system: cython.int) -> str:
        """An instruction that the monitor runs, by its number in a trace."""
        return _monitored.get(system, str(system))

    def stubs(self) -> dict:
        """Names of places in ``code`` that blocks jump to, by offset."""
        return stub_names(cython.cast(cython.size_t, cython.address(self.cache)))

    def dissect(self, number: cython.uint) -> dict:
        """A block with its code and its sites, for the verifier; the block exists."""
        m: cython.pointer(Cache) = cython.address(self.cache)
        b: cython.pointer(Block) = cython.address(m.blocks[number])
        code: cython.p_char = cython.cast(cython.p_char, m.code)
        end: uint32_t = cython.cast(uint32_t, m.cold_free - m.code)
        if number + 1 < m.n_blocks:
            end = m.blocks[number + 1].cold
        low: uint32_t = 1
        high: uint32_t = m.n_sites
        while low < high:  # sites are in the order of their blocks
            if m.sites[(low + high) >> 1].block < number:
                low = ((low + high) >> 1) + 1
            else:
                high = (low + high) >> 1
        sites = {}
        while low < m.n_sites and m.sites[low].block == number:
            site: dict = m.sites[low]
            site["behind"] = m.behind[low]
            sites[low] = site
            low += 1
        found: dict = b[0]
        found.update(
            number=number, sites=sites, code=code[b.start : b.end],
            cold_code=code[b.cold : end],
            table=TLB_USER if b.mode & MODE_USER else TLB_KERNEL_AC if b.mode & MODE_AC else TLB_KERNEL,
        )
        return found

    def entries(self) -> dict:
        """Where blocks are entered, by the mode that they are for. Dead blocks' entries lead on."""
        m: cython.pointer(Cache) = cython.address(self.cache)
        found: dict = {}
        for i in range(1, m.n_blocks):
            b: cython.pointer(Block) = cython.address(m.blocks[i])
            found.setdefault(b.mode & ~cython.cast(uint32_t, MODE_PLAIN), set()).update(
                (b.pad, b.entry_host, b.entry_mem)
            )
        return found

    def verifier_layout(self):
        m: cython.pointer(Cache) = cython.address(self.cache)
        if self.layout is None:
            places = {
                "leave_mem": m.leave_site_mem - m.code, "leave_host": m.leave_site_host - m.code,
                "look_up": m.look_up - m.code, "miss": [m.miss[i] - m.code for i in range(3)],
                "second_tlb": [m.second_tlb[i] - m.code for i in range(12)],
            }  # fmt: skip
            sizes = {"tlb": TLB_SIZE, "jump": JUMP_SIZE}
            self.layout = verifier.Layout(stub_layout(), places, sizes)
        return self.layout

    def audit(self) -> int:
        """Verify every block as it is now, linked with others; how many. ``Refused`` for the first that isn't safe."""
        entries = self.entries()
        count = 0
        for i in range(1, self.cache.n_blocks):
            if not self.cache.blocks[i].dead:
                told = self.dissect(i)
                links = entries[told["mode"] & ~cython.cast(uint32_t, MODE_PLAIN)]
                verifier.verify(self.verifier_layout(), told, links.__contains__)
                count += 1
        return count

    def due(self):
        """Whether the block that has just been translated is to be verified."""
        if self.verify == 0:
            return False
        self.unverified += 1
        if self.unverified < self.verify:
            return False
        self.unverified = 0
        return True

    def proved(self, number):
        """Verify a block; False: it must not run."""
        try:
            verifier.verify(self.verifier_layout(), self.dissect(number))
            self.verified += 1
            return True
        except Exception as error:
            self.broken = True
            self.refusal = str(error) if isinstance(error, MachineError) else f"the verifier failed: {error!r}"
            print(f"worker: {self.refusal}", file=sys.stderr)
            return False

    def last_block(self) -> dict:
        """The block that was translated last, for tools/showblock: where its parts lie in the code memory,
        and (pc, bytes, where) of each instruction."""
        t: cython.pointer(Translation) = cython.address(self.translation)
        b: cython.pointer(Block) = cython.address(t.m.blocks[t.block])
        return {
            "insns": [(t.insns[i].pc, t.insns[i].length, t.starts[i]) for i in range(t.n)],
            "start": b.start, "pad": b.pad, "entry_host": b.entry_host, "entry_mem": b.entry_mem, "end": b.end,
            "cold": b.cold, "cold_host": b.cold_host, "cold_mem": b.cold_mem, "cold_end": t.m.cold_free - t.m.code,
        }  # fmt: skip

    def code(self) -> bytes:
        """The code memory as it is filled, from the stubs on; for disassemblers."""
        n: cython.Py_ssize_t = self.cache.cold_free - self.cache.code
        return cython.cast(cython.p_char, self.cache.code)[:n]

    def statistics(self) -> dict:
        """Counters of the code cache."""
        m: cython.pointer(Cache) = cython.address(self.cache)
        return {
            "blocks": m.n_blocks - 1,
            "code_bytes": (m.free - m.code) + (m.cold_free - m.cold),
            "code_capacity": m.code_size,
            "translated_blocks": m.total_blocks,
            "adopted_blocks": m.n_adopted,
            "translated_instructions": m.total_insns,
            "invalidated_blocks": m.n_invalidated,
            "flushes": m.n_flushes,
            "copied_chunks": m.n_copied,
            "verified_blocks": self.verified,
        }


@cython.cclass
class BtVcpu(Vcpu):
    """A vCPU of the translator. Power-on state: at the reset vector; all but number 0 wait for SIPI."""

    def __cinit__(self, engine: BtEngine, index: cython.int, cpus: cython.int):
        size: cython.size_t = cython.sizeof(VCpu) + 64
        p: cython.p_void = mmap(
            cython.NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0
        )
        if p == MAP_FAILED:
            raise MemoryError_("no memory for a vCPU")
        self.memory = p
        self.memory_size = size
        self.alt_stack = cython.NULL
        self.ring = cython.NULL
        self.owned = False
        c: cython.pointer(VCpu) = cython.cast(cython.pointer(VCpu), p)
        # fxsave wants its area at a multiple of 16
        shift: cython.size_t = (16 - cython.cast(cython.size_t, cython.address(c.fx[0])) % 16) % 16
        c = cython.cast(cython.pointer(VCpu), cython.cast(cython.size_t, p) + shift)
        self.c = c
        self.m = cython.address(engine.cache)
        self.engine = engine
        self.index = index
        c.self = cython.cast(uint64_t, c)
        c.index = index
        c.vcpus = cpus
        c.machine = self.m
        c.slots = engine.cache.slots
        c.slot_count = engine.cache.n_slots
        c.apic = cython.NULL
        if index == 0:
            prepare(self.m, c)
        for i in range(3):
            c.jump_miss[i] = text(self.m, self.m.miss[i])
        c.behind = self.m.behind
        c.code_run = cython.cast(uint64_t, self.m.run)
        c.poll_word = 0
        c.poll = cython.cast(uint64_t, cython.address(c.poll_word))
        init_tlb(c)
        reset(c)
        c.wait_sipi = index != 0
        self.irq_check = True

    def __dealloc__(self):
        if self.memory:
            munmap(self.memory, self.memory_size)
        if self.alt_stack:
            munmap(self.alt_stack, ALT_STACK)
        if self.ring:
            munmap(self.ring, RING * cython.sizeof(Record))

    def set_apic(self, apic: InterruptController):
        """Hand in the local APIC; before the first run."""
        self.apic = apic
        self.c.apic = cython.cast(cython.p_void, apic)
        apic.set_tsc_offset(cython.cast(int64_t, self.c.tsc_offset))

    def load_state(self, state, now: uint64_t = 0):
        """Take over an architectural state (``hostel.cpu.state``); the vCPU is not running.

        ``now`` is a host TSC reading, the same for all vCPUs of a machine; 0: this moment.
        """
        load(self.c, state, now if now else rdtsc())
        self.irq_check = True
        if self.apic is not None:
            self.apic.set_tsc_offset(cython.cast(int64_t, self.c.tsc_offset))

    def save_state(self, now: uint64_t = 0):
        """The architectural state (``hostel.cpu.state``); the vCPU is not running."""
        return save(self.c, now if now else rdtsc())

    def skip(self, ticks: uint64_t):
        """Time has stood still for that many of the TSC's ticks: the TSC and the paravirtual clock go on as if they had
        not passed. The vCPU is not running; the same for all of a machine."""
        self.c.tsc_offset -= ticks
        self.c.clock_origin += ticks
        update_kvmclock(self.c)
        if self.apic is not None:
            self.apic.set_tsc_offset(cython.cast(int64_t, self.c.tsc_offset))

    def change_state(self, state):
        """As ``load_state``, for debuggers: the clocks go on as if nothing had been, and a state that can't be loaded
        changes nothing."""
        c: cython.pointer(VCpu) = self.c
        now: uint64_t = rdtsc()
        offset: uint64_t = c.tsc_offset
        origin: uint64_t = c.clock_origin
        before = save(c, now)
        state.tsc, state.clock_ns = before.tsc, before.clock_ns
        try:
            self.load_state(state, now)
        except MachineError:
            self.load_state(before, now)
            raise
        finally:
            c.tsc_offset = offset
            c.clock_origin = origin
            update_kvmclock(c)

    def reset(self):
        """Power-on state again (reboot); the vCPU is not running."""
        with cython.nogil:
            reset(self.c)
            flush_tlb(self.c, False)
        if self.apic is not None:
            self.apic.set_tsc_offset(cython.cast(int64_t, self.c.tsc_offset))
        self.c.wait_sipi = self.index != 0
        self.c.exception_pending = 0
        self.io_wait = False
        self.mmio_wait = False
        self.c.mmio_answers = 0
        self.c.mmio_pending_count = 0
        self.c.stage_size = 0
        self.init_request = 0
        self.sipi_request = 0
        self.nmi_request = 0
        self.irq_check = True

    def run_py(self) -> tuple:
        """For tests and debuggers: run until an exit; ``(reason, address, size, is_write, data)``."""
        with cython.nogil:
            self.run()
        e: cython.pointer(Exit) = cython.address(self.exit)
        return (e.reason, e.address, e.size, bool(e.is_write), e.data)

    def answer(self, data: uint64_t):
        """The answer to a read that ``run_py`` returned."""
        self.exit.data = data

    def take_exception(self):
        """With ``catch_exceptions``: the exception that stopped ``run``, ``(vector, error or None, cr2)``, or None."""
        c: cython.pointer(VCpu) = self.c
        if not c.exception_pending:
            return None
        c.exception_pending = 0
        return (c.exc_vector, c.exc_error if c.exc_has_error else None, c.exc_cr2 if c.exc_vector == 14 else None)

    def trace(self, what: cython.int):
        """Write down what happens (TRACE_* bits: blocks 1, exits 2 and 4, faults 8 and 16), for ``trace_take``."""
        if not self.ring:
            p: cython.p_void = mmap(
                cython.NULL, RING * cython.sizeof(Record), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0
            )
            if p == MAP_FAILED:
                raise MemoryError_("no memory for a trace")
            self.ring = cython.cast(cython.pointer(Record), p)
        self.tracing = what

    def trace_take(self) -> list:
        """What was written down since the last call: ``(tsc, kind, rip, cpl, a, b, c)``, see TRACE_* in run.pxd. While
        RING entries wait to be taken, the vCPU waits too, unless it is asked to stop: then they are lost, as kind 0."""
        head: uint32_t = self.ring_head
        last: uint64_t = 0
        out = []
        while self.ring_tail != head:
            r: cython.pointer(Record) = cython.address(self.ring[self.ring_tail & (RING - 1)])
            out.append((r.tsc, r.kind, r.rip, r.cpl, r.a, r.b, r.c))
            last = r.tsc
            self.ring_tail += 1
        if self.trace_lost:
            out.append((last, 0, 0, 0, self.trace_lost, 0, 0))
            self.trace_lost = 0
        return out

    def note(self, kind, a, b, value):
        """Write a record for a trace."""
        while self.ring_head - self.ring_tail >= RING:
            if self.stop_request or self.held:
                self.trace_lost += 1
                return
            usleep(200)
        r: cython.pointer(Record) = cython.address(self.ring[self.ring_head & (RING - 1)])
        r.tsc = rdtsc()
        r.rip = self.c.rip
        r.cpl = self.c.cpl
        r.kind = kind
        r.a = a
        r.b = b
        r.c = value
        fence()
        self.ring_head += 1

    def debug_step(self, interrupts: cython.bint):
        """The next run ends with EXIT_DEBUG behind one instruction; ``interrupts`` may come before it or not. One that
        halts waits for them in any case. The vCPU is not running."""
        self.single = True
        self.one_step = STEP_DEBUG
        self.step_irq = interrupts or self.c.halted != 0 or self.c.wait_sipi != 0

    def debug_go(self):
        """Take a step that hasn't come to its end back. The vCPU is not running."""
        self.one_step = 0

    def step_py(self) -> tuple:
        """The slow twin: run one instruction alone, then as ``run_py``."""
        self.single = True
        self.one_step = STEP_KICK
        out = self.run_py()
        self.single = False  # an exception may have come first
        self.one_step = 0
        return out

    def registers(self) -> dict:
        """For people: where it is; exact only while it is not running."""
        c: cython.pointer(VCpu) = self.c
        names = ("rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi")
        out = {n: c.r[i] for i, n in enumerate(names)}
        for i in range(8, 16):
            out[f"r{i}"] = c.r[i]
        out.update(rip=c.rip, eflags=c.eflags, cr0=c.cr0, cr2=c.cr2, cr3=c.cr3, cr4=c.cr4, efer=c.efer, mode=c.mode)
        out.update(cpl=c.cpl, halted=c.halted, wait_sipi=c.wait_sipi, cs=c.seg[1].selector, ss=c.seg[2].selector)
        return out

    def statistics(self) -> dict:
        """Counters since power-on."""
        c: cython.pointer(VCpu) = self.c
        exits = {}
        names = "miss link memory monitor raise poll poll_indirect fault step step_indirect plain".split()
        for i, name in enumerate(names):
            exits[name] = c.n_exits[i]
        exceptions = {str(i): c.n_exception[i] for i in range(32) if c.n_exception[i]}
        return {
            "exits": exits,
            "monitor": {_monitored[i]: c.n_monitor[i] for i in range(128) if c.n_monitor[i]},
            "exceptions": exceptions,
            "interrupts": c.n_interrupts,
            "tlb_misses": c.n_tlb_miss,
            "tlb_fills": c.n_tlb_fill,
            "tlb_flushes": c.n_tlb_flush,
            "jump_flushes": c.n_jump_flush,
            "switches": c.n_switches,
            "spaces_found": c.n_spaces_found,
            "lookups": c.n_lookups,
            "monitor_instructions": c.n_system,
            "single_steps": c.n_twin,
            "self_modifying_writes": c.n_smc,
            "stops": self.stops,
            "instructions": c.n_insns,
        }

    # ------------------------------------------------------------ the thread

    def attach(self):
        stack: stack_t
        if Vcpu.attach(self):
            return -1
        _install_handlers()
        if not self.alt_stack:
            self.alt_stack = mmap(
                cython.NULL, ALT_STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0
            )
            if self.alt_stack == MAP_FAILED:
                self.alt_stack = cython.NULL
                return -1
        memset(cython.address(stack), 0, cython.sizeof(stack))
        stack.ss_sp = self.alt_stack
        stack.ss_size = ALT_STACK
        stack.ss_flags = cython.cast(cython.int, cython.cast(cython.uint, 1) << 31)  # SS_AUTODISARM: rsp is the guest's
        sigaltstack(cython.address(stack), cython.NULL)
        syscall(SYS_arch_prctl, ARCH_SET_GS, self.c)
        self.owned = True
        return 0

    def detach(self):
        stack: stack_t
        gs: uint64_t = 0
        Vcpu.detach(self)
        if not self.owned:
            return
        self.owned = False
        syscall(SYS_arch_prctl, ARCH_GET_GS, cython.address(gs))
        if gs != cython.cast(uint64_t, self.c):
            return  # the thread is another vCPU's by now, or this isn't the thread
        syscall(SYS_arch_prctl, ARCH_SET_GS, 0)
        memset(cython.address(stack), 0, cython.sizeof(stack))
        stack.ss_flags = SS_DISABLE
        sigaltstack(cython.address(stack), cython.NULL)

    def kick(self):
        self.c.poll = 0
        Vcpu.kick(self)

    def stood_still(self):
        Vcpu.stood_still(self)
        tell_of_stop(self.c)

    def runnable(self):
        c: cython.pointer(VCpu) = self.c
        if self.stop_request or self.init_request:
            return True
        if c.wait_sipi:
            return self.sipi_request != 0
        if self.nmi_request:
            return True
        if c.eflags & FL_IF and c.apic:
            return cython.cast(InterruptController, c.apic).pending() >= 0
        return not c.halted

    def run(self):
        reason: cython.int
        if self.engine.broken or (not self.owned and self.attach()):
            return EXIT_ERROR
        cython.cast(stub_t, text(self.m, self.m.fx_restore))()
        reason = self.loop()
        if self.held:
            self.release()
        cython.cast(stub_t, text(self.m, self.m.fx_save))()
        self.exit = self.c.io
        self.exit.reason = reason
        if self.tracing & TRACE_RUN:
            self.note(
                TRACE_RUN, self.exit.address, self.exit.data,
                reason | cython.cast(uint64_t, self.exit.is_write) << 8 | cython.cast(uint64_t, self.exit.size) << 16,
            )
        return reason

    def events(self):
        """Take requests and interrupts; True if run() must return (c.io.reason)."""
        c: cython.pointer(VCpu) = self.c
        vector: cython.int
        if c.poll == 0:
            c.poll = cython.cast(uint64_t, cython.address(c.poll_word))
            fence()
            self.irq_check = True
            c.n_polls += 1
        if self.stop_request:
            c.io.reason = EXIT_KICK
            return True
        if self.init_request:
            self.init_request = 0  # a SIPI that came behind it stays
            init(c)
            flush_tlb(c, False)
        if self.sipi_request:
            vector = self.sipi_request & 0xFF
            self.sipi_request = 0
            if c.wait_sipi:
                sipi(c, vector)
                flush_tlb(c, False)
        if c.wait_sipi:
            c.io.reason = EXIT_HLT
            return True
        if c.exception_pending:
            if self.catch_exceptions:
                c.io.reason = EXIT_KICK
                return True
            if self.tracing & TRACE_FAULT:
                self.note(
                    TRACE_FAULT, c.exc_cr2, c.exc_error,
                    c.exc_vector | cython.cast(uint64_t, c.exc_has_error) << 8 | cython.cast(uint64_t, c.exc_soft) << 9,
                )
            if deliver_exception(c) == SYS_SHUTDOWN:
                c.io.reason = EXIT_SHUTDOWN
                return True
        if self.nmi_request and not c.nmi_blocked and not c.inhibit:
            self.nmi_request = 0
            c.halted = 0
            if deliver_nmi(c) == SYS_SHUTDOWN:
                c.io.reason = EXIT_SHUTDOWN
                return True
        if self.irq_check and c.apic:
            vector = cython.cast(InterruptController, c.apic).pending()
            c.irq_wait = vector >= 0 and not c.eflags & FL_IF
            if vector < 0:
                self.irq_check = False
            elif c.eflags & FL_IF and (self.one_step != STEP_DEBUG or self.step_irq):
                if c.inhibit:
                    self.single = True  # one instruction first
                else:
                    vector = cython.cast(InterruptController, c.apic).acknowledge()
                    if vector >= 0:
                        c.halted = 0
                        c.n_interrupts += 1
                        if self.tracing & TRACE_IRQ:
                            self.note(TRACE_IRQ, 0, 0, vector)
                        if deliver_interrupt(c, vector) == SYS_SHUTDOWN:
                            c.io.reason = EXIT_SHUTDOWN
                            return True
        c.inhibit = 0
        if c.halted:
            c.io.reason = EXIT_HLT
            return True
        return False

    def loop(self):
        c: cython.pointer(VCpu) = self.c
        m: cython.pointer(Cache) = self.m
        go: cython.int
        # the answer to the exit that the caller has just handled
        if self.io_wait:
            self.io_wait = False
            c.io.data = self.exit.data
            if finish_io(c) == SYS_EXCEPTION:
                pass
        if self.mmio_wait:
            self.mmio_wait = False
            c.mmio_answer[c.mmio_answers & 15] = self.exit.data
            c.mmio_answers += 1
            self.single = True
        while True:
            if c.mmio_pending_count:
                self.pop_mmio()
                return EXIT_MMIO
            if self.held and not self.single:
                self.release()
            # an instruction that has had answers from devices goes on before anything else
            if not (self.single and c.mmio_answers):
                if c.watch_met:
                    return self.watch_exit()
                if self.events() and (c.io.reason != EXIT_HLT or self.one_step != STEP_DEBUG or self.single):
                    return c.io.reason
                if c.watch_met:  # by what an interrupt or an exception has put on the stack
                    return self.watch_exit()
            if self.one_step and not self.single:
                c.io.reason = EXIT_KICK
                if self.one_step == STEP_DEBUG:
                    self.debug_exit_for(DEBUG_STEP, c.rip)
                self.one_step = 0
                return c.io.reason
            go = self.find_block()
            if go == GO_LOOKUP:
                continue
            _flags_out(c)
            while go == GO_RESUME:
                c.in_guest = 1
                if not self.held:
                    if m.n_vcpus > 1 or m.fences:
                        fence()
                    while m.world_stop:
                        c.in_guest = 0
                        while m.world_stop:
                            sched_yield()
                        c.in_guest = 1
                        fence()
                if m.generation != self.generation:
                    # the cache was flushed since host_pc was found: find it again
                    c.in_guest = 0
                    _flags_in(c)
                    self.single = self.was_single
                    go = GO_LOOKUP
                    break
                if m.n_written != self.n_written:
                    self.n_written = m.n_written
                    cython.cast(stub_t, text(m, m.serialize))()
                cython.cast(stub_t, text(m, m.enter))()
                # once in_guest is 0 the cache may be flushed under our hands: take along what is needed of it
                self.site = m.sites[cython.cast(uint32_t, c.site)]
                self.block = m.blocks[self.site.block]
                if self.site.kind == SK_SYS:
                    self.insn = m.pool[self.site.extra]
                c.in_guest = 0
                if self.block.mode & MODE_PIC:
                    self.relocate()
                go = self.handle()
            if go == GO_EXIT:
                return c.io.reason

    def relocate(self):
        """The block that has left doesn't know where it is: correct what it says."""
        delta: uint64_t = self.c.pc_page - PIC_PAGE
        self.block.pc += delta
        self.site.pc += delta
        self.insn.pc += delta

    def pop_mmio(self):
        c: cython.pointer(VCpu) = self.c
        i: cython.int
        c.io.reason = EXIT_MMIO
        c.io.is_write = True
        c.io.address = c.mmio_pending[0]
        c.io.data = c.mmio_pending[1]
        c.io.size = c.mmio_pending_size[0]
        c.mmio_pending_count -= 1
        for i in range(c.mmio_pending_count):
            c.mmio_pending[2 * i] = c.mmio_pending[2 * i + 2]
            c.mmio_pending[2 * i + 1] = c.mmio_pending[2 * i + 3]
            c.mmio_pending_size[i] = c.mmio_pending_size[i + 1]
        self.irq_check = True

    def hold(self):
        """Nobody else runs until the instruction is done."""
        lock(self.m)
        stop_world(self.m, self.c)
        self.held = True

    def release(self):
        self.held = False
        resume_world(self.m)
        unlock(self.m)

    # ------------------------------------------------------------ blocks

    def find_block(self):
        """Set c.host_pc to the block of c.rip. GO_RESUME, or GO_LOOKUP with an exception pending."""
        c: cython.pointer(VCpu) = self.c
        m: cython.pointer(Cache) = self.m
        gpa: uint64_t = 0
        gpa2: uint64_t = 0
        linear: uint64_t = c.rip
        n: uint32_t
        b: cython.pointer(Block)
        mode: uint32_t = c.mode
        tlb: cython.int
        proved: cython.bint = True
        single: cython.bint = self.single
        plain: cython.bint = self.plain
        self.single = False
        self.plain = False
        self.was_single = single
        c.n_lookups += 1
        if self.generation != m.generation:
            self.renew()
        if not mode & MODE_CODE64:
            if c.rip > c.seg[CS].limit:
                raise_error(c, X_GP, 0)
                return GO_LOOKUP
            linear = cython.cast(uint32_t, linear + c.seg[CS].base)
        if m.n_breaks and self.one_step != STEP_DEBUG and not (single and c.mmio_answers) and is_break(m, linear):
            self.single = single
            self.debug_exit_for(DEBUG_BREAK, linear)
            return GO_EXIT
        if mode & MODE_DEBUG and self.breakpoint(linear):
            return GO_LOOKUP
        if lookup_exec(c, linear, cython.address(gpa)):
            return GO_LOOKUP
        if single:
            mode |= MODE_SINGLE
            c.n_twin += 1
            c.mmio_next = 0
            c.stage_size = 0
        elif plain:
            mode |= MODE_PLAIN
        if mode & MODE_CODE64:
            c.pc_page = c.rip & ~cython.cast(uint64_t, 0xFFF)
            if mode & MODE_USER and c.rip >= m.pic_from and not mode & (MODE_SINGLE | MODE_TF | MODE_DEBUG):
                if not m.n_breaks:  # breakpoints are at virtual addresses
                    mode |= MODE_PIC
        n = find(m, gpa, c.rip, mode)
        if n:
            b = cython.address(m.blocks[n])
            if b.gpa2 != 1:
                if lookup_exec(c, (linear & ~cython.cast(uint64_t, 0xFFF)) + 0x1000, cython.address(gpa2)):
                    return GO_LOOKUP
                if (gpa2 & ~cython.cast(uint64_t, 0xFFF)) != b.gpa2:
                    n = 0
        if n == 0:
            lock(m)
            if full(m):
                stop_world(m, c)
                flush(m)
                resume_world(m)
            if self.generation != m.generation:
                self.renew()
            n = find(m, gpa, c.rip, mode)
            if n == 0 or m.blocks[n].gpa2 != 1:
                enlarge(m)
                n = adopt(m, c, gpa, mode)
                if n == 0:
                    n = translate(m, c, gpa, mode)
                    if n:
                        wish(m, n)
                if n and self.engine.due():
                    cython.cast(stub_t, text(m, m.fx_save))()
                    with cython.gil:
                        proved = self.engine.proved(n)
                    cython.cast(stub_t, text(m, m.fx_restore))()
                    if not proved:
                        m.blocks[n].dead = 1
                        unlock(m)
                        c.io.reason = EXIT_ERROR
                        return GO_EXIT
            unlock(m)
            if n == 0:
                return GO_LOOKUP
            if self.tracing & TRACE_BLOCK:
                b = cython.address(m.blocks[n])
                self.note(
                    TRACE_BLOCK, gpa, b.size | cython.cast(uint64_t, b.end - b.start) << 32,
                    cython.cast(uint64_t, b.insns) << 32 | mode,
                )
        b = cython.address(m.blocks[n])
        if not mode & (MODE_SINGLE | MODE_PLAIN | MODE_TF | MODE_DEBUG):
            tlb = current_table(c)
            if c.table_mode[tlb] != c.mode or (not mode & MODE_CODE64 and c.table_base != c.seg[CS].base):
                # pads of other modes and segments must not be reachable from here
                flush_jumps(c)
                c.table_mode[tlb] = c.mode
                c.table_base = c.seg[CS].base
            jump_cache_insert(c, tlb, c.rip, text(m, m.code + b.pad), text(m, m.code + b.entry_mem))
        c.host_pc = text(m, m.code + b.entry_mem)
        return GO_RESUME

    def renew(self):
        """The cache was flushed: forget its landing pads."""
        flush_jumps(self.c)
        forget_spaces(self.c)
        self.generation = self.m.generation

    def resume(self, host):
        """Go on in the block that has just left, behind an instruction that the monitor ran; c.rip is there too."""
        m: cython.pointer(Cache) = self.m
        if m.generation != self.generation or m.blocks[self.site.block].dead:
            return GO_LOOKUP
        _flags_out(self.c)
        self.c.host_pc = text(m, m.code + host)
        return GO_RESUME

    def follow(self):
        """A direct jump that isn't linked: find its target, and let it go there by itself from now on."""
        c: cython.pointer(VCpu) = self.c
        m: cython.pointer(Cache) = self.m
        generation: uint32_t = self.generation
        pic: uint32_t = self.block.mode & MODE_PIC
        n: uint32_t
        b: cython.pointer(Block)
        go: cython.int = self.find_block()
        if go == GO_RESUME:
            lock(m)
            if m.generation == generation:
                n = find(m, self.block.gpa - self.block.pc + self.site.pc, self.site.pc, c.mode | pic)
                b = cython.address(m.blocks[n])
                if n and b.gpa2 == 1:
                    fill_hole(
                        m.code + self.site.host,
                        m.code + (b.entry_host if self.site.access == FLAGS_HOST else b.entry_mem),
                    )
            unlock(m)
        return go

    def handle(self):
        """Deal with the site at which translated code left."""
        c: cython.pointer(VCpu) = self.c
        s: cython.pointer(Site) = cython.address(self.site)
        kind: cython.int = s.kind
        c.n_exits[kind] += 1
        if self.tracing & TRACE_EXIT:
            c.rip = s.pc
            self.note(
                TRACE_EXIT, c.target, table[self.insn.op].system if kind == SK_SYS else s.size,
                kind | cython.cast(uint64_t, s.access) << 8,
            )
        if kind == SK_MEM:
            return self.memory_access()
        _flags_in(c)
        c.rip = s.pc
        if kind == SK_MISS:
            c.rip = c.target
            if c.poll == 0 or self.irq_check:
                return GO_LOOKUP
            return self.find_block()
        if kind == SK_LINK:
            return self.follow()
        if kind == SK_PLAIN:
            return self.plainly()
        if kind == SK_SYS:
            if table[self.insn.op].kind == K_STRING:
                return self.string()
            return self.monitor()
        if kind == SK_POLL:
            if s.extra == POLL_PAUSE:
                c.pauses = PAUSES
                sched_yield()
            return GO_LOOKUP
        if kind == SK_POLL_S1:
            c.rip = c.target
            return GO_LOOKUP
        if kind == SK_STEP:
            return self.step_done()
        if kind == SK_STEP_S1:
            c.rip = c.target
            return self.step_done()
        c.stage_size = 0
        c.mmio_answers = 0
        if kind == SK_RAISE:
            if s.extra == X_NM and s.size and c.cr0 & CR0_EM:
                raise_exception(c, X_UD)
            elif s.extra == X_GP:
                raise_error(c, X_GP, 0)
            else:
                raise_exception(c, s.extra)
        elif c.exit_code == X_DE or c.exit_code == X_MF or c.exit_code == X_XM:
            raise_exception(c, c.exit_code)
        elif c.exit_code == X_AC:
            raise_error(c, X_AC, 0)
        else:
            raise_error(c, X_GP, 0)
        return GO_LOOKUP

    # ------------------------------------------------------------ accesses that missed

    def memory_access(self):
        c: cython.pointer(VCpu) = self.c
        m: cython.pointer(Cache) = self.m
        s: cython.pointer(Site) = cython.address(self.site)
        va: uint64_t = c.target
        host: cython.pointer(uint8_t) = cython.NULL
        gpa: uint64_t = 0
        slot: cython.pointer(Slot)
        tlb: cython.int = current_table(c)
        alone: cython.bint = (self.block.mode & (MODE_SINGLE | MODE_TF | MODE_DEBUG)) != 0
        devices: cython.bint = False
        code: cython.bint
        c.rip = s.pc
        c.access_seg = SS if s.extra & SITE_STACK else DS
        if s.span:
            return self.window_access()
        if s.extra & SITE_ALIGNED and va & (s.size - 1):
            raise_error(c, X_GP, 0)
            return self.refuse()
        if (va & 0xFFF) + s.size <= 0x1000:
            if lookup(c, va, s.access, tlb, cython.address(host), cython.address(gpa)):
                return self.refuse()
            slot = cython.NULL if host != cython.NULL else find_slot(c, gpa)
            code = slot != cython.NULL and not slot.readonly and not s.extra & SITE_STRING
            if code and m.n_vcpus > 1 and not self.held:
                # nobody may translate the old bytes before the write is done
                self.hold()
                return self.alone()
            if self.block.mode & MODE_DEBUG:
                self.watch(va, s.size, s.access)
                if host != cython.NULL:
                    return self.behind(host)
            if host != cython.NULL:
                c.host_pc = text(m, m.code + s.host)
                return GO_RESUME
            if code:
                # a page with translations: drop those that it overwrites, then let it write
                c.n_smc += 1
                if slot.code[(gpa - slot.gpa) >> 12] and invalidate(m, c, gpa, s.size) and not alone:
                    if m.generation != self.generation or m.blocks[s.block].dead:
                        return self.alone()
                slot.dirty[(gpa - slot.gpa) >> 12] = 1
                return self.behind(slot.host + (gpa - slot.gpa))
            devices = slot == cython.NULL
        if (devices or s.access != ACCESS_READ or s.extra & SITE_STRING) and not alone:
            if s.extra & SITE_ATOMIC and m.n_vcpus > 1 and not self.held:
                # an atomic access that the host can't make atomic: nobody else runs meanwhile
                self.hold()
            return self.alone()
        return self.staged()

    def behind(self, host):
        """Go on behind the check, with that address for the operand."""
        c: cython.pointer(VCpu) = self.c
        s: cython.pointer(Site) = cython.address(self.site)
        c.target = cython.cast(uint64_t, host) - (c.target if s.extra & SITE_DISTANCE else 0)
        c.host_pc = text(self.m, self.m.code + s.host + s.check)
        return GO_RESUME

    def window_access(self):
        """A window that isn't all there: make it so, or go on without windows (windows.py)."""
        c: cython.pointer(VCpu) = self.c
        s: cython.pointer(Site) = cython.address(self.site)
        start: uint64_t = c.target
        va: uint64_t = start + s.delta
        host: cython.pointer(uint8_t) = cython.NULL
        gpa: uint64_t = 0
        tlb: cython.int = current_table(c)
        if (va & 0xFFF) + s.size <= 0x1000:
            access: cython.int = ACCESS_READ if s.extra & SITE_EARLY else s.access
            if lookup(c, va, access, tlb, cython.address(host), cython.address(gpa)):
                if not s.extra & SITE_EARLY:
                    return self.refuse()
                c.exception_pending = 0
            elif (
                host != cython.NULL
                and (start & 0xFFF) + s.span <= 0x1000
                and (s.window_access == ACCESS_READ or may_write(c, start, tlb))
            ):
                c.host_pc = text(self.m, self.m.code + s.host)
                return GO_RESUME
            elif s.extra & SITE_GREEDY and host != cython.NULL and (start & 0xFFF) + s.span <= 0x1000:
                bear_greed(self.m, c, cython.address(self.block))
        _flags_in(c)
        return self.plainly()

    def plainly(self):
        """Go on at c.rip in a block without windows."""
        c: cython.pointer(VCpu) = self.c
        m: cython.pointer(Cache) = self.m
        generation: uint32_t = self.generation
        pic: uint32_t = self.block.mode & MODE_PIC
        n: uint32_t
        self.plain = True
        go: cython.int = self.find_block()
        if go == GO_RESUME and self.site.kind == SK_PLAIN:
            lock(m)
            if m.generation == generation:
                n = find(m, self.block.gpa - self.block.pc + self.site.pc, self.site.pc, c.mode | MODE_PLAIN | pic)
                if n and m.blocks[n].gpa2 == 1:
                    fill_hole(m.code + self.site.host, m.code + m.blocks[n].entry_mem)
            unlock(m)
        return go

    def staged(self):
        """Gather the operand in c.stage and go on with that in its place."""
        c: cython.pointer(VCpu) = self.c
        s: cython.pointer(Site) = cython.address(self.site)
        va: uint64_t = c.target
        tlb: cython.int = current_table(c)
        to: cython.pointer(uint8_t) = stage(c, va)
        r: cython.int = 0
        if s.access != ACCESS_READ:
            r = writable(c, va, s.size, tlb)
        if r == 0 and s.access == ACCESS_WRITE:
            peek(c, va, to, s.size, tlb)  # x87 stores don't happen when they raise an unmasked error
        elif r == 0:
            r = read_pieces(c, va, to, s.size, tlb)
        if r < 0:
            return self.refuse()
        if r > 0:
            return self.ask()
        if self.block.mode & MODE_DEBUG:
            self.watch(va, s.size, s.access)
        if s.access != ACCESS_READ:
            c.stage_va = va
            c.stage_size = s.size
        return self.behind(to)

    def breakpoint(self, linear):
        """Instruction breakpoints at c.rip (SDM vol. 3, 18.3.1.1): True with #DB pending. RF holds them off once."""
        c: cython.pointer(VCpu) = self.c
        i: cython.int
        hits: uint32_t = 0
        c.debug_hits = 0
        if not c.eflags & FL_RF:
            for i in range(4):
                if c.dr[7] >> (2 * i) & 3 and c.dr[7] >> (16 + 4 * i) & 3 == 0 and c.dr[i] == linear:
                    hits |= cython.cast(uint32_t, 1) << i
        if hits:
            raise_debug(c, hits, False)
        return hits != 0

    def watch(self, va, size, access):
        """Note the data breakpoints that an access meets: writes (R/W = 1), reads and writes (3); a debugger's."""
        c: cython.pointer(VCpu) = self.c
        i: cython.int
        wanted: cython.int = DEBUG_READ if access == ACCESS_READ else DEBUG_WRITE
        kind: cython.int
        length: uint64_t
        at: uint64_t
        if access == ACCESS_RW:
            wanted |= DEBUG_READ
        if c.watch_count:
            note_watched(c, va, size, wanted)
        for i in range(4):
            if not c.dr[7] >> (2 * i) & 3:
                continue
            kind = cython.cast(cython.int, c.dr[7] >> (16 + 4 * i) & 3)
            length = (c.dr[7] >> (18 + 4 * i) & 3) + 1
            if length == 3:  # encoded 2: eight bytes
                length = 8
            at = c.dr[i] & ~(length - 1)
            if kind == 3 or (kind == 1 and access != ACCESS_READ):
                if at < va + size and va < at + length:
                    c.debug_hits |= cython.cast(uint32_t, 1) << i

    def watch_exit(self):
        """A watchpoint was met."""
        met: cython.int = self.c.watch_met - 1
        self.c.watch_met = 0
        self.one_step = 0
        return self.debug_exit_for(self.c.watch_kind[met], self.c.watch_address[met])

    def debug_exit_for(self, why, address):
        """What run() is to return to a debugger."""
        self.c.io.reason = EXIT_DEBUG
        self.c.io.data = why
        self.c.io.address = address
        return EXIT_DEBUG

    def watch_run(self, before, after, access):
        """Data breakpoints that a string instruction met on its way from one address to another (as if upwards)."""
        if after > before:
            self.watch(before, after - before, access)
        elif after < before:
            self.watch(after, before - after, access)

    def refuse(self):
        """The access faulted: the exception is pending, and nothing of the instruction remains."""
        _flags_in(self.c)
        self.c.stage_size = 0
        self.c.mmio_answers = 0
        return GO_LOOKUP

    def alone(self):
        """Run the instruction at c.rip by itself."""
        _flags_in(self.c)
        self.single = True
        return GO_LOOKUP

    def ask(self):
        """c.io asks a device; the instruction starts again when the answer is there."""
        _flags_in(self.c)
        self.mmio_wait = True
        return GO_EXIT

    def step_done(self):
        """A block of one instruction has come to its end; c.rip is behind it."""
        c: cython.pointer(VCpu) = self.c
        if c.stage_size:
            write_pieces(c, c.stage_va, stage(c, c.stage_va), c.stage_size, current_table(c))
            c.stage_size = 0
        c.mmio_answers = 0
        self.trap()
        return GO_LOOKUP

    def trap(self):
        """The debug traps behind an instruction: single step, if it began with TF set, and data breakpoints."""
        c: cython.pointer(VCpu) = self.c
        hits: uint32_t = 0x4000 if self.block.mode & MODE_TF else 0  # DR6.BS
        if self.block.mode & MODE_DEBUG:
            hits |= c.debug_hits
            c.debug_hits = 0
            c.eflags &= ~cython.cast(uint64_t, FL_RF)
        if hits:
            raise_debug(c, hits, True)

    # ------------------------------------------------------------ instructions that the monitor runs

    def monitor(self):
        """Run the instruction by hand, and go on behind it if nothing has changed that the block relies on."""
        c: cython.pointer(VCpu) = self.c
        m: cython.pointer(Cache) = self.m
        insn: cython.pointer(Insn) = cython.address(self.insn)
        what: cython.int = table[insn.op].system
        next_pc: uint64_t = insn.pc + insn.length
        reads: cython.bint = what == S_FXSAVE or S_XSAVE <= what <= S_XSAVEC
        fpu: cython.bint = (S_FXSAVE <= what <= S_XRSTORS or what == S_MASKMOVQ) and not reads
        quiet: cython.bint = _leaves_interrupts(c, insn, what)
        r: cython.int
        c.n_system += 1
        c.n_monitor[what] += 1
        c.access_seg = DS
        if reads:
            cython.cast(stub_t, text(m, m.fx_read))()
        elif fpu:
            cython.cast(stub_t, text(m, m.fx_save))()
        r = execute(c, insn)
        if fpu:
            cython.cast(stub_t, text(m, m.fx_restore))()
        if not quiet:
            self.irq_check = True
        if r == SYS_NEXT and (what == S_SYSCALL or (what == S_SYSRET and insn.opsize == 8)):
            keep_fast(c, 0 if what == S_SYSCALL else 1)
        if r == SYS_EXIT and c.io.reason == EXIT_PIO and self.ask_port():
            r = SYS_NEXT if c.io.is_write else finish_io(c)
        if r == SYS_NEXT:
            if (
                self.site.host
                and c.rip == next_pc
                and c.mode == self.block.mode & ~(MODE_SINGLE | MODE_PLAIN | MODE_PIC)
                and c.poll
                and not c.inhibit
                and not c.exception_pending
                and (
                    quiet
                    or not (c.eflags & FL_IF and c.apic and cython.cast(InterruptController, c.apic).pending() >= 0)
                )
            ):
                return self.resume(self.site.host)
            # SDM vol. 3, 6.8.3: MOV SS and POP SS put debug exceptions off too, STI doesn't
            if not _enters_kernel(what) and not (c.inhibit and what != S_STI):
                self.trap()
            return GO_LOOKUP
        if r == SYS_EXIT:
            self.io_wait = not c.io.is_write
            return GO_EXIT
        if r == SYS_SHUTDOWN:
            c.io.reason = EXIT_SHUTDOWN
            return GO_EXIT
        return GO_LOOKUP

    def ask_port(self):
        """Have port I/O done at once, by a device that needs no exit; False: there is none at that port."""
        e: cython.pointer(Exit) = cython.address(self.c.io)
        offset: uint64_t = 0
        region: cython.p_void
        if self.ports is None:
            return False
        region = self.ports.find_native(e.address, cython.address(offset))
        if region == cython.NULL:
            return False
        if e.is_write:
            cython.cast(Region, region).write(offset, e.size, e.data)
        else:
            e.data = cython.cast(Region, region).read(offset, e.size)
        return True

    def string(self):
        """MOVS CMPS STOS LODS SCAS with their prefixes; interruptible between elements."""
        c: cython.pointer(VCpu) = self.c
        r: cython.int
        c.n_system += 1
        c.n_monitor[0] += 1
        source: uint64_t = c.r[6]
        destination: uint64_t = c.r[7]
        r = run_string(c, cython.address(self.insn))
        if self.block.mode & MODE_DEBUG:
            self.watch_run(source, c.r[6], ACCESS_READ)
            self.watch_run(destination, c.r[7], ACCESS_WRITE)
        if r == STRING_ASK:
            self.mmio_wait = True
            return GO_EXIT
        c.mmio_answers = 0
        if r == STRING_MORE:
            self.trap()
        if r != STRING_DONE:
            return GO_LOOKUP  # a fault, or the rest later
        c.rip = self.insn.pc + self.insn.length
        if not c.mode & MODE_CODE64:
            c.rip = cython.cast(uint32_t, c.rip)
        if c.poll and not c.mmio_pending_count:
            return self.resume(self.site.host)
        self.trap()
        return GO_LOOKUP


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def keep_fast(c: cython.pointer(VCpu), which: cython.int) -> cython.void:
    """Keep what SYSCALL (0) or SYSRET (1) has just made of STAR, for the next ones (inline.to_ring)."""
    c.fast_star[which] = c.msr_star
    memcpy(cython.address(c.fast_cs[which]), cython.address(c.seg[CS].limit), 8)
    memcpy(cython.address(c.fast_ss[which]), cython.address(c.seg[SS].limit), 8)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _leaves_interrupts(c: cython.pointer(VCpu), insn: cython.pointer(Insn), what: cython.int) -> cython.bint:
    """Whether an instruction that the monitor runs can't make an interrupt deliverable.

    One that arrives kicks the vCPU; one that waits for IF shows in irq_wait. So what is left is what writes to the
    interrupt controller, by MSRs, CR8 or ports, and what has a shadow.
    """
    if c.irq_wait or c.poll == 0:
        return False
    if what == S_MOV_TO_CR:
        return insn.reg != 8
    if S_FXSAVE <= what <= S_XRSTORS or S_RDFSBASE <= what <= S_WRGSBASE:
        return True
    return what == S_CPUID or what == S_RDMSR or what == S_INVLPG or what == S_INVPCID or what == S_IRET


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _enters_kernel(what: cython.int) -> cython.bint:
    if what == S_SYSCALL or what == S_SYSENTER or what == S_SYSRET:
        return True
    return what == S_INT or what == S_INT3
