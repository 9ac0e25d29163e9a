"""The host's processor as an oracle: single instructions run in a traced child, one step at a time.

``Native`` forks a child that never runs Python again; its registers are set and read through ptrace, and the pages
that the instruction sees are shared with it. Nothing here needs privileges. The bytes run as they are, so a test
must keep ``rax`` away from real system call numbers when it makes instructions at random.
"""

import ctypes
import mmap
import os
import signal
import struct
from dataclasses import dataclass

CODE = 0x10000000  # one page, executable; the page behind it is never mapped
DATA = 0x10100000  # DATA_PAGES pages between two that are never mapped
DATA_PAGES = 4
PAGE = 4096
LIMIT = CODE + PAGE
USER_CS64, USER_CS32, USER_DS = 0x33, 0x23, 0x2B

NAMES = ("r15 r14 r13 r12 rbp rbx r11 r10 r9 r8 rax rcx rdx rsi rdi orig_rax rip cs eflags rsp ss fs_base gs_base "
         "ds es fs gs").split()  # fmt: skip
GPR = "rax rcx rdx rbx rsp rbp rsi rdi r8 r9 r10 r11 r12 r13 r14 r15".split()
NT_X86_XSTATE = 0x202

_libc = ctypes.CDLL(None, use_errno=True)
_ptrace = _libc.ptrace
_ptrace.argtypes = [ctypes.c_ulong, ctypes.c_ulong, ctypes.c_void_p, ctypes.c_void_p]
_ptrace.restype = ctypes.c_long
_mmap = _libc.mmap
_mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
_mmap.restype = ctypes.c_void_p
_TRACEME, _GETREGS, _SETREGS, _SINGLESTEP, _GETSIGINFO = 0, 12, 13, 9, 0x4202
_GETREGSET, _SETREGSET = 0x4204, 0x4205
_MAP_FIXED_NOREPLACE = 0x100000


class Registers(ctypes.Structure):
    """struct user_regs_struct"""

    _fields_ = [(name, ctypes.c_uint64) for name in NAMES]


class _Vector(ctypes.Structure):
    _fields_ = [("base", ctypes.c_void_p), ("size", ctypes.c_size_t)]


@dataclass(slots=True)
class Outcome:
    """``signal`` 5 (SIGTRAP): ran to its end; 4: #UD; 8: #DE, #MF, #XM; 11: #PF, #GP, #SS ...; 7: #AC"""

    signal: int
    address: int  # si_addr
    code: int  # si_code


class Native:
    def __init__(self) -> None:
        shared = mmap.MAP_SHARED | mmap.MAP_ANONYMOUS | _MAP_FIXED_NOREPLACE
        everything = mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC
        for base, pages, protection in ((CODE, 1, everything), (LIMIT, 1, 0), (DATA - PAGE, DATA_PAGES + 2, 0)):
            if _mmap(base, pages * PAGE, protection, shared, -1, 0) != base:
                raise OSError(ctypes.get_errno(), f"mmap at {base:#x}")
        _libc.mprotect(ctypes.c_void_p(DATA), ctypes.c_size_t(DATA_PAGES * PAGE), everything)
        self.code = (ctypes.c_ubyte * PAGE).from_address(CODE)
        self.data = (ctypes.c_ubyte * (DATA_PAGES * PAGE)).from_address(DATA)
        self.pid = os.fork()
        if self.pid == 0:
            _ptrace(_TRACEME, 0, None, None)
            os.kill(os.getpid(), signal.SIGSTOP)
            os._exit(0)
        os.waitpid(self.pid, 0)
        self.regs = Registers()
        _ptrace(_GETREGS, self.pid, None, ctypes.byref(self.regs))
        self.initial = bytes(self.regs)
        self._info = (ctypes.c_int32 * 32)()
        self._xstate = ctypes.create_string_buffer(16384)
        self._vector = _Vector(ctypes.addressof(self._xstate), 16384)
        self.clean_xstate = self.get_xstate()
        self.cs16 = 0
        self.cs16 = self._segment16()

    def close(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        for base, pages in ((CODE, 2), (DATA - PAGE, DATA_PAGES + 2)):
            _libc.munmap(ctypes.c_void_p(base), ctypes.c_size_t(pages * PAGE))

    def __enter__(self) -> "Native":
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _segment16(self) -> int:
        """Selector of a 16-bit code segment at CODE; 0 where the kernel has no modify_ldt."""
        struct.pack_into("<IIII", self.data, 0, 0, CODE, 0xFFFF, 0b1000100)  # code, seg_16bit off; useable
        self.place(b"\x0f\x05", CODE)
        regs = self.fresh()
        regs.rax, regs.rdi, regs.rsi, regs.rdx, regs.rip = 154, 0x11, DATA, 16, CODE
        self.step(regs)
        ctypes.memset(DATA, 0, 16)
        return 7 if regs.rax == 0 else 0

    def get_xstate(self) -> bytes:
        """The XSAVE image (standard form): x87 and SSE as FXSAVE, then the header, ymm's upper halves at 576."""
        self._vector.size = 16384
        if _ptrace(_GETREGSET, self.pid, NT_X86_XSTATE, ctypes.byref(self._vector)):
            raise OSError(ctypes.get_errno(), "PTRACE_GETREGSET")
        return self._xstate.raw[: self._vector.size]

    def set_xstate(self, image: bytes) -> None:
        ctypes.memmove(self._xstate, image, len(image))
        self._vector.size = len(image)
        if _ptrace(_SETREGSET, self.pid, NT_X86_XSTATE, ctypes.byref(self._vector)):
            raise OSError(ctypes.get_errno(), "PTRACE_SETREGSET")

    def step(self, regs: Registers) -> Outcome:
        """Run the instruction at ``regs.rip``; ``regs`` becomes what it left."""
        regs.orig_rax = 0xFFFFFFFFFFFFFFFF
        if _ptrace(_SETREGS, self.pid, None, ctypes.byref(regs)):
            raise OSError(ctypes.get_errno(), "PTRACE_SETREGS")
        _ptrace(_SINGLESTEP, self.pid, None, None)
        _, status = os.waitpid(self.pid, 0)
        if not os.WIFSTOPPED(status):
            raise RuntimeError(f"the traced child ended: {status:#x}")
        _ptrace(_GETREGS, self.pid, None, ctypes.byref(regs))
        number = os.WSTOPSIG(status)
        _ptrace(_GETSIGINFO, self.pid, None, self._info)
        return Outcome(number, self._info[4] & 0xFFFFFFFF | (self._info[5] & 0xFFFFFFFF) << 32, self._info[2])

    def fresh(self, mode: int = 8) -> Registers:
        """Registers for a test: zero, no flags, in 64-bit (8), 32-bit (4) or 16-bit (2) code.

        16-bit code runs in a segment that starts at ``CODE``: its rip is an offset.
        """
        regs = Registers.from_buffer_copy(self.initial)
        for name in GPR:
            setattr(regs, name, 0)
        regs.eflags = 0x202
        regs.cs = {8: USER_CS64, 4: USER_CS32, 2: self.cs16}[mode]
        regs.ss = USER_DS
        if mode != 8:
            regs.ds = regs.es = USER_DS
        return regs

    def place(self, code: bytes, at: int) -> None:
        ctypes.memmove(at, code, len(code))

    def length(self, code: bytes, mode: int = 8) -> tuple[int, Outcome]:
        """How many bytes the processor reads of ``code``, and what happens then.

        The bytes are moved against an unmapped page, one more each time, until the fault isn't for lack of them.
        """
        for n in range(1, len(code) + 1):
            regs = self.fresh(mode)
            regs.rax = 0x7FFF0000
            regs.rip = LIMIT - n - (CODE if mode == 2 else 0)
            self.place(code[:n], LIMIT - n)
            outcome = self.step(regs)
            if not (outcome.signal == signal.SIGSEGV and outcome.address == LIMIT and outcome.code in (1, 2)):
                return n, outcome
        return 16, outcome
