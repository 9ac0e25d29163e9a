# ruff: noqa: F403, F405  (the numbers of a hundred handlers come from insn.pxd, the one place where they stand)
"""The instructions that the monitor runs itself: privileged ones, segments, port I/O, and the odd rest.

``execute`` is a switch over ``OpInfo.system``, cut into groups. A handler checks everything before it changes
anything; what it returns is ``DONE`` (go on behind the instruction), ``JUMPED`` (rip is set), ``FAULT`` (an
exception is pending, rip untouched), or what execute() returns from it.
"""

import cython
from cython.cimports.hostel.cpu.bt.bcd import bcd
from cython.cimports.hostel.cpu.bt.control import invpcid, read_cr, read_dr, write_cr, write_cr0, write_dr
from cython.cimports.hostel.cpu.bt.cpuid import cpuid
from cython.cimports.hostel.cpu.bt.decode import table
from cython.cimports.hostel.cpu.bt.fpu import (
    fnstenv,
    fxrstor,
    fxsave,
    gather,
    maskmov_bytes,
    maskmov_load,
    maskmov_store,
    xgetbv,
    xrstor,
    xsave,
    xsetbv,
)
from cython.cimports.hostel.cpu.bt.insn import *
from cython.cimports.hostel.cpu.bt.interrupt import (
    iret,
    raise_debug,
    raise_soft,
    set_flags,
    syscall,
    sysenter,
    sysexit,
    sysret,
)
from cython.cimports.hostel.cpu.bt.mmu import (
    current_table,
    flush_page,
    lookup,
    raise_error,
    raise_exception,
    read_linear,
    read_segment,
    segment_linear,
    write_segment,
)
from cython.cimports.hostel.cpu.bt.msr import guest_tsc, read_msr, write_msr
from cython.cimports.hostel.cpu.bt.operand import (
    address_mask,
    effective_address,
    read_operand,
    read_rm,
    set_register,
    write_operand,
    write_rm,
)
from cython.cimports.hostel.cpu.bt.segment import (
    call_far,
    jump_far,
    lar,
    load_ldt,
    load_segment,
    load_task,
    lsl,
    pop_values,
    push_frame,
    return_far,
    set_sp,
    stack_mask,
    update_mode,
    verify,
)
from cython.cimports.hostel.cpu.bt.vcpu import (
    ACCESS_WRITE,
    FL_AC,
    FL_ARITH,
    FL_DF,
    FL_ID,
    FL_IF,
    FL_IOPL,
    FL_NT,
    FL_OF,
    FL_RF,
    FL_TF,
    FL_VIF,
    FL_VIP,
    FL_VM,
    FL_ZF,
    MODE_CODE64,
    X_BP,
    X_BR,
    X_GP,
    X_OF,
    X_UD,
    Segment,
    VCpu,
)
from cython.cimports.hostel.cpu.bt.x86 import (
    CR0_PE,
    CR0_TS,
    CR4_FSGSBASE,
    CR4_TSD,
    CR4_UMIP,
    M32,
    SEG_P,
    canonical,
)
from cython.cimports.hostel.cpu.engine import EXIT_PIO
from cython.cimports.libc.stdint import int16_t, int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from cython.cimports.libc.string import memcpy


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _gp(c: cython.pointer(VCpu)) -> cython.int:
    raise_error(c, X_GP, 0)
    return FAULT


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _ud(c: cython.pointer(VCpu)) -> cython.int:
    raise_exception(c, X_UD)
    return FAULT


@cython.cfunc
@cython.inline
@cython.nogil
@cython.exceptval(check=False)
def _iopl(c: cython.pointer(VCpu)) -> cython.int:
    return cython.cast(cython.int, (c.eflags & FL_IOPL) >> 12)


@cython.cfunc
@cython.inline
@cython.nogil
@cython.exceptval(check=False)
def _real(c: cython.pointer(VCpu)) -> cython.bint:
    """Real or virtual-8086 mode."""
    return not c.cr0 & CR0_PE or (c.eflags & FL_VM) != 0


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _next(c: cython.pointer(VCpu), insn: cython.pointer(cython.const[Insn])) -> uint64_t:
    """EIP isn't cut to 16 bits in 16-bit code: beyond the segment's limit is #GP's business."""
    return (insn.pc + insn.length) & address_mask(8 if insn.code == 8 else 4)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _push(c: cython.pointer(VCpu), values: cython.pointer(uint64_t), count: cython.int, size: cython.int) -> cython.int:
    """Push ``count`` values at once; values[0] ends lowest."""
    sp: uint64_t = c.r[4]
    ss = cython.declare(Segment)
    ss = c.seg[2]
    if push_frame(
        c, cython.address(ss), (c.mode & MODE_CODE64) != 0, c.cpl, cython.address(sp), values, count, size, 0
    ):
        return FAULT
    set_sp(c, sp)
    return DONE


# ---- port I/O


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _port_allowed(c: cython.pointer(VCpu), port: uint32_t, size: cython.int) -> cython.int:
    """SDM vol. 1, 19.5: IOPL, then the TSS's I/O permission bitmap."""
    base: uint16_t = 0
    bits: uint16_t = 0
    if not c.cr0 & CR0_PE or (c.cpl <= _iopl(c) and not c.eflags & FL_VM):
        return DONE
    if not c.tr.attr & SEG_P or not c.tr.attr & 8 or c.tr.limit < 103:
        return _gp(c)
    if read_linear(c, c.tr.base + 102, cython.address(base), 2, True) != 0:
        return FAULT
    if base + (port >> 3) + 1 > c.tr.limit:
        return _gp(c)
    if read_linear(c, c.tr.base + base + (port >> 3), cython.address(bits), 2, True) != 0:
        return FAULT
    if (bits >> (port & 7)) & ((1 << size) - 1):
        return _gp(c)
    return DONE


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _exit_pio(
    c: cython.pointer(VCpu), port: uint64_t, size: cython.int, write: cython.bint, data: uint64_t
) -> cython.int:
    c.io.reason = EXIT_PIO
    c.io.address = port
    c.io.size = size
    c.io.is_write = write
    c.io.data = data
    return EXITED


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _advance_string(c: cython.pointer(VCpu), register: cython.int, size: cython.int) -> cython.bint:
    """Step rsi or rdi, and rcx with REP; whether the instruction is done."""
    n: cython.int = c.io_addrsize
    set_register(c, register, c.r[register] + (-size if c.eflags & FL_DF else size), n)
    if not c.io_rep:
        return True
    set_register(c, 1, c.r[1] - 1, n)
    return (c.r[1] & address_mask(n)) == 0


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _port_io(c: cython.pointer(VCpu), insn: cython.pointer(cython.const[Insn]), what: cython.int) -> cython.int:
    size: cython.int = 1
    port: uint64_t = c.r[2] & 0xFFFF
    value: uint64_t = 0
    linear: uint64_t = 0
    gpa: uint64_t = 0
    host: cython.pointer(uint8_t) = cython.NULL
    mask: uint64_t = address_mask(insn.addrsize)
    if insn.opcode & 1:
        size = 2 if insn.opsize == 2 else 4
    if (what == S_IN or what == S_OUT) and insn.opcode < 0xE8:
        port = insn.imm & 0xFF
    if _port_allowed(c, cython.cast(uint32_t, port), size) != DONE:
        return FAULT
    c.io_length = insn.length
    c.io_addrsize = insn.addrsize
    c.io_rep = (insn.prefixes & (P_REP | P_REPNE)) != 0
    if what == S_OUT:
        c.rip = _next(c, insn)
        return _exit_pio(c, port, size, True, c.r[0] & address_mask(size) if size > 1 else c.r[0] & 0xFF)
    if what == S_IN:
        c.rip = _next(c, insn)
        c.io_kind = 1
        return _exit_pio(c, port, size, False, 0)
    if c.io_rep and (c.r[1] & mask) == 0:
        return DONE
    if what == S_OUTS:
        if read_segment(c, insn.seg, c.r[6] & mask, cython.address(value), size) != 0:
            return FAULT
        if _advance_string(c, 6, size):
            c.rip = _next(c, insn)
        return _exit_pio(c, port, size, True, value)
    # INS: a fault in storing must come before the device is read
    if segment_linear(c, ES, c.r[7] & mask, size, True, cython.address(linear)) != 0:
        return FAULT
    if lookup(c, linear, ACCESS_WRITE, current_table(c), cython.address(host), cython.address(gpa)) != 0:
        return FAULT
    if (linear & 0xFFF) + size > 4096:
        linear = (linear | 0xFFF) + 1
        if lookup(c, linear, ACCESS_WRITE, current_table(c), cython.address(host), cython.address(gpa)) != 0:
            return FAULT
    c.io_kind = 2
    return _exit_pio(c, port, size, False, 0)


def finish_io(c):
    kind: cython.int = c.io_kind
    size: cython.int = c.io.size
    value: uint64_t = c.io.data
    c.io_kind = 0
    if kind == 1:
        if size == 1:
            c.r[0] = (c.r[0] & ~0xFF) | (value & 0xFF)
        else:
            set_register(c, 0, value, size)
    elif kind == 2:
        if write_segment(c, ES, c.r[7] & address_mask(c.io_addrsize), cython.address(value), size) != 0:
            return SYS_EXCEPTION
        if _advance_string(c, 7, size):
            c.rip = (c.rip + c.io_length) & (cython.cast(uint64_t, -1) if c.mode & MODE_CODE64 else M32)
    return SYS_NEXT


# ---- groups of instructions


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _transfer(c: cython.pointer(VCpu), insn: cython.pointer(cython.const[Insn]), what: cython.int) -> cython.int:
    """Software interrupts, returns, system calls, far jumps."""
    r: cython.int = 0
    low: int64_t = 0
    high: int64_t = 0
    index: int64_t
    pointer = cython.declare(uint8_t[16])
    offset: uint64_t = 0
    selector: uint16_t = 0
    if what == S_SYSCALL:
        r = syscall(c, _next(c, insn))
    elif what == S_SYSRET:
        r = sysret(c, insn.opsize)
    elif what == S_IRET:
        r = iret(c, insn.opsize)
    elif what == S_SYSENTER:
        r = sysenter(c)
    elif what == S_SYSEXIT:
        r = sysexit(c, insn.opsize)
    elif what == S_INT3 or what == S_INT:
        if what == S_INT and c.eflags & FL_VM and _iopl(c) < 3:
            return _gp(c)
        c.rip = _next(c, insn)
        raise_soft(c, X_BP if what == S_INT3 else cython.cast(cython.int, insn.imm & 0xFF), insn.length)
        return FAULT
    elif what == S_INTO:
        if not c.eflags & FL_OF:
            return DONE
        c.rip = _next(c, insn)
        raise_soft(c, X_OF, insn.length)
        return FAULT
    elif what == S_INT1:
        c.rip = _next(c, insn)
        raise_debug(c, 0, True)
        return FAULT
    elif what == S_BOUND:
        if read_operand(c, insn, pointer, 2 * insn.opsize) != 0:
            return FAULT
        if insn.opsize == 2:
            index = cython.cast(int16_t, c.r[insn.reg])
            low = cython.cast(cython.pointer(int16_t), pointer)[0]
            high = cython.cast(cython.pointer(int16_t), pointer)[1]
        else:
            index = cython.cast(int32_t, c.r[insn.reg])
            low = cython.cast(cython.pointer(int32_t), pointer)[0]
            high = cython.cast(cython.pointer(int32_t), pointer)[1]
        if index < low or index > high:
            raise_exception(c, X_BR)
            return FAULT
        return DONE
    elif what == S_RETF:
        r = return_far(c, insn.opsize, cython.cast(uint32_t, insn.imm & 0xFFFF) if insn.imm_size else 0)
    else:
        if what == S_JMP_FAR or what == S_CALL_FAR:
            offset = insn.imm & address_mask(insn.opsize)
            selector = insn.imm2
        else:
            if read_operand(c, insn, pointer, insn.opsize + 2) != 0:
                return FAULT
            memcpy(cython.address(offset), pointer, insn.opsize)
            memcpy(cython.address(selector), cython.address(pointer[insn.opsize]), 2)
        if what == S_JMP_FAR or what == S_JMP_FAR_MEM:
            r = jump_far(c, selector, offset, insn.opsize)
        else:
            r = call_far(c, selector, offset, insn.opsize, _next(c, insn))
    return JUMPED if r == 0 else FAULT


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _hypercall(c: cython.pointer(VCpu)) -> cython.int:
    """KVM's hypercalls (Documentation/virt/kvm/x86/hypercalls.rst): none is announced, so none is known."""
    result: int64_t = -1 if c.cpl else -1000  # -EPERM, -KVM_ENOSYS
    set_register(c, 0, cython.cast(uint64_t, result), 8 if c.mode & MODE_CODE64 else 4)
    return DONE


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _control(c: cython.pointer(VCpu), insn: cython.pointer(cython.const[Insn]), what: cython.int) -> cython.int:
    """Processor control, MSRs, control and debug registers."""
    value: uint64_t = 0
    words = cython.declare(uint32_t[4])
    pair = cython.declare(uint64_t[2])
    linear: uint64_t = 0
    size: cython.int = 8 if c.mode & MODE_CODE64 else 4
    if what == S_CPUID:
        cpuid(c, cython.cast(uint32_t, c.r[0]), cython.cast(uint32_t, c.r[1]), words)
        c.r[0] = words[0]
        c.r[3] = words[1]
        c.r[1] = words[2]
        c.r[2] = words[3]
        return DONE
    if what == S_RDTSC or what == S_RDTSCP:
        if c.cr4 & CR4_TSD and c.cpl:
            return _gp(c)
        value = guest_tsc(c)
        c.r[0] = value & M32
        c.r[2] = value >> 32
        if what == S_RDTSCP:
            c.r[1] = c.msr_tsc_aux & M32
        return DONE
    if what == S_RDPID:
        c.r[insn.rm] = c.msr_tsc_aux & M32
        return DONE
    if what == S_SMSW:
        if c.cr4 & CR4_UMIP and c.cpl:
            return _gp(c)
        if insn.mod == 3:
            set_register(c, insn.rm, c.cr0, insn.opsize)
            return DONE
        return write_rm(c, insn, 2, c.cr0)
    if what == S_SWAPGS and not c.mode & MODE_CODE64:
        return _ud(c)
    if what == S_STAC or what == S_CLAC:
        if c.cpl or not c.cr0 & CR0_PE:
            return _ud(c)
        c.eflags = c.eflags | FL_AC if what == S_STAC else c.eflags & ~FL_AC
        update_mode(c)
        return DONE
    if what == S_VMCALL or what == S_VMMCALL:
        return _hypercall(c)
    if what == S_MONITOR or what == S_MWAIT:
        return _ud(c) if c.cpl else DONE  # not announced; a wait that always ends at once
    if c.cpl:
        return _gp(c)
    if what == S_RDMSR:
        if read_msr(c, cython.cast(uint32_t, c.r[1]), cython.address(value)) != 0:
            return _gp(c)
        c.r[0] = value & M32
        c.r[2] = value >> 32
    elif what == S_WRMSR:
        if write_msr(c, cython.cast(uint32_t, c.r[1]), (c.r[0] & M32) | (c.r[2] << 32)) != 0:
            return _gp(c)
    elif what == S_SWAPGS:
        value = c.seg[GS].base
        c.seg[GS].base = c.msr_kernel_gs_base
        c.msr_kernel_gs_base = value
    elif what == S_HLT:
        c.rip = _next(c, insn)
        c.halted = 1
        return HALTED
    elif what == S_MOV_FROM_CR:
        if read_cr(c, insn.reg, cython.address(value)) != 0:
            return FAULT
        set_register(c, insn.rm, value, size)
    elif what == S_MOV_TO_CR:
        return write_cr(c, insn.reg, c.r[insn.rm] & address_mask(size))
    elif what == S_MOV_FROM_DR:
        if read_dr(c, insn.reg, cython.address(value)) != 0:
            return FAULT
        set_register(c, insn.rm, value, size)
    elif what == S_MOV_TO_DR:
        return write_dr(c, insn.reg, c.r[insn.rm] & address_mask(size))
    elif what == S_CLTS:
        c.cr0 &= ~CR0_TS
        update_mode(c)
    elif what == S_LMSW:
        if read_rm(c, insn, 2, cython.address(value)) != 0:
            return FAULT
        return write_cr0(c, (c.cr0 & ~0xE) | (value & 0xF))  # it sets PE but never clears it
    elif what == S_INVLPG:
        value = effective_address(c, insn)
        if c.mode & MODE_CODE64:
            linear = value + (c.seg[insn.seg].base if insn.seg >= FS else 0)
        else:
            linear = (value + c.seg[insn.seg].base) & M32
        flush_page(c, linear)
    elif what == S_INVPCID:
        if read_operand(c, insn, pair, 16) != 0:
            return FAULT
        return invpcid(c, c.r[insn.reg] & address_mask(size), pair)
    elif what == S_RDPMC:
        return _gp(c)  # no counters
    # INVD, WBINVD: the caches are the host's
    return DONE


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _table_register(c: cython.pointer(VCpu), insn: cython.pointer(cython.const[Insn]), what: cython.int) -> cython.int:
    """LGDT, SGDT, LIDT, SIDT."""
    raw = cython.declare(uint8_t[16])
    base: uint64_t = 0
    limit: uint16_t = 0
    size: cython.int = 8 if insn.code == 8 else 4
    if what == S_SGDT or what == S_SIDT:
        if c.cr4 & CR4_UMIP and c.cpl:
            return _gp(c)
        base = c.gdtr.base if what == S_SGDT else c.idtr.base
        limit = c.gdtr.limit if what == S_SGDT else c.idtr.limit
        memcpy(raw, cython.address(limit), 2)
        memcpy(cython.address(raw[2]), cython.address(base), 8)
        return write_operand(c, insn, raw, 2 + size)
    if c.cpl:
        return _gp(c)
    if read_operand(c, insn, raw, 2 + size) != 0:
        return FAULT
    memcpy(cython.address(limit), raw, 2)
    memcpy(cython.address(base), cython.address(raw[2]), size)
    if size == 4 and (insn.code == 2) != ((insn.prefixes & P_OPSIZE) != 0):
        base &= 0xFFFFFF  # 16-bit operand size
    if not canonical(base):
        return _gp(c)
    if what == S_LGDT:
        c.gdtr.base = base
        c.gdtr.limit = limit
    else:
        c.idtr.base = base
        c.idtr.limit = limit
    return DONE


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _descriptors(c: cython.pointer(VCpu), insn: cython.pointer(cython.const[Insn]), what: cython.int) -> cython.int:
    """LLDT, SLDT, LTR, STR, LAR, LSL, VERR, VERW, ARPL: protected mode only."""
    value: uint64_t = 0
    result: uint64_t = 0
    r: cython.int = 0
    if _real(c):
        return _ud(c)
    if what == S_SLDT or what == S_STR:
        if c.cr4 & CR4_UMIP and c.cpl:
            return _gp(c)
        value = c.ldtr.selector if what == S_SLDT else c.tr.selector
        return write_rm(c, insn, insn.opsize if insn.mod == 3 else 2, value)
    if (what == S_LLDT or what == S_LTR) and c.cpl:
        return _gp(c)
    if read_rm(c, insn, 2, cython.address(value)) != 0:
        return FAULT
    if what == S_LLDT:
        return load_ldt(c, cython.cast(uint16_t, value))
    if what == S_LTR:
        return load_task(c, cython.cast(uint16_t, value))
    if what == S_ARPL:
        r = (value & 3) < (c.r[insn.reg] & 3)
        if r and write_rm(c, insn, 2, (value & ~3) | (c.r[insn.reg] & 3)) != 0:
            return FAULT
    elif what == S_LAR:
        r = lar(c, cython.cast(uint16_t, value), cython.address(result))
    elif what == S_LSL:
        r = lsl(c, cython.cast(uint16_t, value), cython.address(result))
    else:
        r = verify(c, cython.cast(uint16_t, value), what == S_VERW)
    if r < 0:
        return FAULT
    if r and (what == S_LAR or what == S_LSL):
        set_register(c, insn.reg, result, insn.opsize)
    c.eflags = c.eflags | FL_ZF if r else c.eflags & ~FL_ZF
    return DONE


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _segments(c: cython.pointer(VCpu), insn: cython.pointer(cython.const[Insn]), what: cython.int) -> cython.int:
    """Segment registers and their bases."""
    value: uint64_t = 0
    raw = cython.declare(uint8_t[16])
    seg: cython.int = cython.cast(cython.int, insn.imm & 7)
    selector: uint16_t = 0
    if what == S_MOV_FROM_SEG:
        value = c.seg[insn.reg & 7].selector
        return write_rm(c, insn, insn.opsize if insn.mod == 3 else 2, value)
    if what == S_MOV_TO_SEG:
        seg = insn.reg & 7
        if read_rm(c, insn, 2, cython.address(value)) != 0:
            return FAULT
        if load_segment(c, seg, cython.cast(uint16_t, value)) != 0:
            return FAULT
        if seg == SS:
            c.inhibit = 1
        return DONE
    if what == S_PUSH_SEG:
        value = c.seg[seg].selector
        return _push(c, cython.address(value), 1, insn.opsize)
    if what == S_POP_SEG:
        # two bytes are read, whatever the operand size
        if read_segment(c, SS, c.r[4] & stack_mask(c), cython.address(selector), 2) != 0:
            return FAULT
        value = c.r[4]
        if seg == SS:
            set_sp(c, value + insn.opsize)
            if load_segment(c, seg, selector) != 0:
                c.r[4] = value
                return FAULT
            c.inhibit = 1
            return DONE
        if load_segment(c, seg, selector) != 0:
            return FAULT
        set_sp(c, value + insn.opsize)
        return DONE
    if what == S_LOAD_FAR:
        if read_operand(c, insn, raw, insn.opsize + 2) != 0:
            return FAULT
        memcpy(cython.address(value), raw, insn.opsize)
        memcpy(cython.address(selector), cython.address(raw[insn.opsize]), 2)
        if load_segment(c, seg, selector) != 0:
            return FAULT
        set_register(c, insn.reg, value, insn.opsize)
        return DONE
    if not c.mode & MODE_CODE64 or not c.cr4 & CR4_FSGSBASE:
        return _ud(c)
    seg = FS if what == S_RDFSBASE or what == S_WRFSBASE else GS
    if what == S_RDFSBASE or what == S_RDGSBASE:
        set_register(c, insn.rm, c.seg[seg].base, insn.opsize)
        return DONE
    value = c.r[insn.rm] & address_mask(insn.opsize)
    if not canonical(value):
        return _gp(c)
    c.seg[seg].base = value
    return DONE


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _popf(c: cython.pointer(VCpu), size: cython.int) -> cython.int:
    value: uint64_t = 0
    mask: uint64_t = FL_ARITH | FL_TF | FL_DF | FL_NT
    if pop_values(c, 0, cython.address(value), 1, size) != 0:
        return FAULT
    set_sp(c, c.r[4] + size)
    if size > 2:
        mask |= FL_AC | FL_ID
        if c.cpl == 0 and not c.eflags & FL_VM:
            mask |= FL_VIF | FL_VIP
            value &= ~cython.cast(uint64_t, FL_VIF | FL_VIP)
    if c.cpl == 0:
        mask |= FL_IOPL | FL_IF
    elif c.cpl <= _iopl(c):
        mask |= FL_IF
    set_flags(c, value, mask)
    update_mode(c)
    return DONE


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _enter(c: cython.pointer(VCpu), insn: cython.pointer(cython.const[Insn])) -> cython.int:
    value: uint64_t = c.r[5]
    level: cython.int = insn.imm2 & 31
    size: cython.int = insn.opsize
    i: cython.int
    mask: uint64_t = stack_mask(c)
    sp: uint64_t = c.r[4]
    frame: uint64_t = (sp - size) & mask
    last: uint64_t
    linear: uint64_t = 0
    gpa: uint64_t = 0
    host: cython.pointer(uint8_t) = cython.NULL
    ss = cython.declare(Segment)
    ss = c.seg[2]
    # rbp, the outer frames' pointers, this frame's: one after the other, since the frames may overlap
    for i in range(level + 1):
        if i == level and level:
            value = frame
        elif i:
            value = 0
            if read_segment(c, SS, (c.r[5] - i * size) & mask, cython.address(value), size) != 0:
                return FAULT
        wide: cython.bint = (c.mode & MODE_CODE64) != 0
        if push_frame(c, cython.address(ss), wide, c.cpl, cython.address(sp), cython.address(value), 1, size, 0):
            return FAULT
    # the SDM: a fault where the new stack pointer can't be written
    last = (sp - (insn.imm & 0xFFFF)) & mask
    if segment_linear(c, SS, last, 1, True, cython.address(linear)) != 0:
        return FAULT
    if lookup(c, linear, ACCESS_WRITE, current_table(c), cython.address(host), cython.address(gpa)) != 0:
        return FAULT
    set_register(c, 5, frame, size)
    set_sp(c, last)
    return DONE


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _flags_and_stack(c: cython.pointer(VCpu), insn: cython.pointer(cython.const[Insn]), what: cython.int) -> cython.int:
    """PUSHF, POPF, CLI, STI, CLD, STD, ENTER, PUSHA, POPA."""
    values = cython.declare(uint64_t[8])
    i: cython.int
    if what == S_PUSHF or what == S_POPF:
        if c.eflags & FL_VM and _iopl(c) < 3:
            return _gp(c)
        if what == S_POPF:
            return _popf(c, insn.opsize)
        values[0] = c.eflags & ~cython.cast(uint64_t, FL_RF | FL_VM)
        return _push(c, values, 1, insn.opsize)
    if what == S_CLI or what == S_STI:
        if c.cr0 & CR0_PE and (c.cpl > _iopl(c) or c.eflags & FL_VM and _iopl(c) < 3):
            return _gp(c)
        if what == S_CLI:
            c.eflags &= ~FL_IF
        else:
            if not c.eflags & FL_IF:
                c.inhibit = 1
            c.eflags |= FL_IF
        return DONE
    if what == S_CLD or what == S_STD:
        c.eflags = c.eflags & ~FL_DF if what == S_CLD else c.eflags | FL_DF
        update_mode(c)
        return DONE
    if what == S_ENTER:
        return _enter(c, insn)
    if what == S_PUSHA:
        for i in range(8):
            values[i] = c.r[7 - i]
        return _push(c, values, 8, insn.opsize)
    if pop_values(c, 0, values, 8, insn.opsize) != 0:
        return FAULT
    for i in range(8):
        if i != 3:  # not the stack pointer
            set_register(c, 7 - i, values[i], insn.opsize)
    set_sp(c, c.r[4] + 8 * insn.opsize)
    return DONE


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _extended(c: cython.pointer(VCpu), insn: cython.pointer(cython.const[Insn]), what: cython.int) -> cython.int:
    """FPU and vector state, gathers, masked moves."""
    if what == S_FXSAVE:
        return fxsave(c, insn)
    if what == S_FXRSTOR:
        return fxrstor(c, insn)
    if what == S_XSAVE or what == S_XSAVEOPT or what == S_XSAVEC:
        return xsave(c, insn, what)
    if what == S_XRSTOR:
        return xrstor(c, insn)
    if what == S_FNSTENV or what == S_FNSAVE:
        return fnstenv(c, insn, what == S_FNSAVE)
    if what == S_XGETBV:
        return xgetbv(c)
    if what == S_XSETBV:
        return xsetbv(c)
    if what == S_VPGATHERDD:
        return gather(c, insn, 4, 4)
    if what == S_VPGATHERDQ:
        return gather(c, insn, 4, 8)
    if what == S_VPGATHERQD:
        return gather(c, insn, 8, 4)
    if what == S_VPGATHERQQ:
        return gather(c, insn, 8, 8)
    if what == S_VMASKMOV_LOAD_D:
        return maskmov_load(c, insn, 4)
    if what == S_VMASKMOV_LOAD_Q:
        return maskmov_load(c, insn, 8)
    if what == S_VMASKMOV_STORE_D:
        return maskmov_store(c, insn, 4)
    if what == S_VMASKMOV_STORE_Q:
        return maskmov_store(c, insn, 8)
    if what == S_MASKMOVQ or what == S_MASKMOVDQU:
        return maskmov_bytes(c, insn, what == S_MASKMOVQ)
    return _ud(c)  # XSAVES, XRSTORS: not announced


def execute(c, insn):
    what: cython.int = table[insn.op].system
    r: cython.int
    if what == S_NONE:
        r = _ud(c)
    elif what <= S_OUTS:
        r = _port_io(c, insn, what)
    elif what <= S_SYSEXIT or (what >= S_JMP_FAR and what <= S_RETF):
        r = _transfer(c, insn, what)
    elif what <= S_MOV_TO_DR:
        r = _control(c, insn, what)
    elif what <= S_SIDT:
        r = _table_register(c, insn, what)
    elif what <= S_ARPL:
        r = _descriptors(c, insn, what)
    elif what <= S_WRGSBASE:
        r = _segments(c, insn, what)
    elif what <= S_STD:
        r = _flags_and_stack(c, insn, what)
    elif what <= S_SALC:
        r = DONE if bcd(c, what, cython.cast(cython.int, insn.imm & 0xFF)) == 0 else FAULT
    else:
        r = _extended(c, insn, what)
    if r == DONE:
        c.rip = _next(c, insn)
        return SYS_NEXT
    if r == JUMPED:
        return SYS_NEXT
    if r == FAULT:
        return SYS_EXCEPTION
    return SYS_EXIT if r == EXITED else SYS_HALT
