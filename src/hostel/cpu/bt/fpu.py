"""FXSAVE and XSAVE areas, and vector accesses that go element by element (gathers, masked moves).

SDM vol. 1, 10.5 and chapter 13. Components: x87, SSE, AVX. The instruction and data pointers of the x87 belong
to translated code, that is to host addresses, so they are always saved as 0; CPUID says that FCS and FDS are
deprecated and that FDP changes with exceptions only. MXCSR is the word at ``c.fx + 24``.

XINUSE is computed from the registers' contents. XSAVEOPT's modified optimization isn't done.
"""

import cython
from cython.cimports.hostel.cpu.bt.cpuid import xcr0_allowed
from cython.cimports.hostel.cpu.bt.insn import REG_NONE, S_XSAVE, S_XSAVEC, Insn
from cython.cimports.hostel.cpu.bt.mmu import (
    current_table,
    lookup,
    raise_error,
    raise_exception,
    read_segment,
    segment_linear,
    write_segment,
)
from cython.cimports.hostel.cpu.bt.operand import address_mask, effective_address
from cython.cimports.hostel.cpu.bt.piecewise import writable
from cython.cimports.hostel.cpu.bt.segment import update_mode
from cython.cimports.hostel.cpu.bt.vcpu import (
    ACCESS_WRITE,
    MODE_CODE64,
    MODE_NOAVX,
    MODE_NOFPU,
    MODE_NOSSE,
    X_GP,
    X_MF,
    X_NM,
    X_UD,
    VCpu,
)
from cython.cimports.hostel.cpu.bt.x86 import (
    BIT63,
    CR0_EM,
    CR0_TS,
    CR4_OSXSAVE,
    M32,
    MXCSR_DEFAULT,
    MXCSR_MASK,
    XCR0_AVX,
    XCR0_SSE,
    XCR0_X87,
)
from cython.cimports.libc.stdint import int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from cython.cimports.libc.string import memcpy, memset


@cython.cfunc
@cython.inline
@cython.nogil
@cython.exceptval(check=False)
def _mxcsr(c: cython.pointer(VCpu)) -> cython.pointer(uint32_t):
    return cython.cast(cython.pointer(uint32_t), cython.address(c.fx[24]))


@cython.cfunc
@cython.inline
@cython.nogil
@cython.exceptval(check=False)
def _word(p: cython.pointer(uint8_t), offset: cython.int) -> uint64_t:
    value: uint64_t = 0
    memcpy(cython.address(value), p + offset, 8)
    return value


@cython.cfunc
@cython.inline
@cython.nogil
@cython.exceptval(check=False)
def _registers(c: cython.pointer(VCpu)) -> cython.int:
    return 16 if c.mode & MODE_CODE64 else 8


def init_x87(c):
    memset(c.fx, 0, 24)
    memset(cython.address(c.fx[32]), 0, 128)
    cython.cast(cython.pointer(uint16_t), c.fx)[0] = 0x37F


def reset_fpu(c):
    init_x87(c)
    cython.cast(cython.pointer(uint16_t), c.fx)[0] = 0x40  # SDM vol. 3, table 10-1: FINIT's value comes later
    c.fx[4] = 0xFF
    memset(c.ymm, 0, 512)
    _mxcsr(c)[0] = MXCSR_DEFAULT
    cython.cast(cython.pointer(uint32_t), cython.address(c.fx[28]))[0] = MXCSR_MASK


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _legacy_image(c: cython.pointer(VCpu), out: cython.pointer(uint8_t)) -> cython.void:
    """The first 416 bytes of an FXSAVE area."""
    i: cython.int
    memcpy(out, c.fx, 160)
    out[5] = 0
    memset(out + 6, 0, 18)
    cython.cast(cython.pointer(uint32_t), out + 28)[0] = MXCSR_MASK
    for i in range(8):
        memset(out + 42 + 16 * i, 0, 6)  # reserved after each 80-bit register
    for i in range(16):
        memcpy(out + 160 + 16 * i, cython.address(c.ymm[32 * i]), 16)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _load_x87(c: cython.pointer(VCpu), image: cython.pointer(uint8_t)) -> cython.void:
    memcpy(c.fx, image, 5)
    memset(cython.address(c.fx[5]), 0, 19)
    memcpy(cython.address(c.fx[32]), image + 32, 128)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _area(
    c: cython.pointer(VCpu), insn: cython.pointer(cython.const[Insn]), align: cython.int, ea: cython.pointer(uint64_t)
) -> cython.int:  # fmt: skip
    linear: uint64_t = 0
    ea[0] = effective_address(c, insn)
    if segment_linear(c, insn.seg, ea[0], 1, False, cython.address(linear)) != 0:
        return -1
    if linear & (align - 1):
        raise_error(c, X_GP, 0)
        return -1
    return 0


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _area_writable(
    c: cython.pointer(VCpu), insn: cython.pointer(cython.const[Insn]), ea: uint64_t, size: cython.int
) -> cython.int:  # fmt: skip
    """Check the whole area, reserved bytes too: none of it is written unless all of it may be."""
    linear: uint64_t = 0
    if segment_linear(c, insn.seg, ea, size, True, cython.address(linear)) != 0:
        return -1
    return writable(c, linear, size, current_table(c))


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _clear_top(c: cython.pointer(VCpu)) -> cython.void:
    """Set TOP to 0 and turn the image, so that ST(i) is register i: MMX instructions, FNINIT."""
    regs = cython.declare(uint8_t[128])
    fsw: cython.pointer(uint16_t) = cython.cast(cython.pointer(uint16_t), cython.address(c.fx[2]))
    top: cython.int = (fsw[0] >> 11) & 7
    i: cython.int
    memcpy(regs, cython.address(c.fx[32]), 128)
    for i in range(8):
        memcpy(cython.address(c.fx[32 + 16 * i]), cython.address(regs[16 * ((i - top) & 7)]), 16)
    fsw[0] &= ~0x3800


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _full_tags(c: cython.pointer(VCpu)) -> uint32_t:
    """The tag word of FSTENV: 0 valid, 1 zero, 2 special, 3 empty for each register."""
    top: cython.int = (c.fx[3] >> 3) & 7
    tags: uint32_t = 0
    tag: uint32_t
    i: cython.int
    st: cython.pointer(uint8_t)
    mantissa: uint64_t
    exponent: cython.int
    for i in range(8):
        st = cython.address(c.fx[32 + 16 * ((i - top) & 7)])
        mantissa = _word(st, 0)
        exponent = cython.cast(cython.int, _word(st, 8) & 0x7FFF)
        if not (c.fx[4] >> i) & 1:
            tag = 3
        elif exponent == 0 and mantissa == 0:
            tag = 1
        elif exponent == 0 or exponent == 0x7FFF or not mantissa >> 63:
            tag = 2
        else:
            tag = 0
        tags |= tag << (2 * i)
    return tags


def fnstenv(c, insn, registers):
    image = cython.declare(uint8_t[112])
    fcw: cython.pointer(uint16_t) = cython.cast(cython.pointer(uint16_t), c.fx)
    fsw: cython.pointer(uint16_t) = cython.cast(cython.pointer(uint16_t), cython.address(c.fx[2]))
    size: cython.int = 14 if insn.opsize == 2 else 28
    tags: uint16_t = cython.cast(uint16_t, _full_tags(c))
    ea: uint64_t
    i: cython.int
    if c.cr0 & (CR0_TS | CR0_EM):
        raise_exception(c, X_NM)
        return -1
    memset(image, 0, 112)
    if size == 28:
        for i in range(3):
            memset(cython.address(image[4 * i + 2]), 0xFF, 2)
        memset(cython.address(image[26]), 0xFF, 2)
    memcpy(image, fcw, 2)
    memcpy(cython.address(image[size // 7]), fsw, 2)
    memcpy(cython.address(image[size // 7 * 2]), cython.address(tags), 2)
    if registers:
        for i in range(8):
            memcpy(cython.address(image[size + 10 * i]), cython.address(c.fx[32 + 16 * i]), 10)
    ea = effective_address(c, insn)
    # the environment comes first: its page fault before the limit that the registers violate
    if registers and _area_writable(c, insn, ea, size) != 0:
        return -1
    if write_segment(c, insn.seg, ea, image, size + 80 if registers else size) != 0:
        return -1
    if registers:  # FNINIT
        _clear_top(c)
        fcw[0] = 0x37F
        fsw[0] = 0
        c.fx[4] = 0
    else:
        fcw[0] |= 0x3F
        fsw[0] &= ~0x8080  # ES and B: nothing is unmasked any more
    return 0


def fxsave(c, insn):
    image = cython.declare(uint8_t[416])
    ea: uint64_t = 0
    if c.cr0 & (CR0_TS | CR0_EM):
        raise_exception(c, X_NM)
        return -1
    if _area(c, insn, 16, cython.address(ea)) != 0 or _area_writable(c, insn, ea, 512) != 0:
        return -1
    _legacy_image(c, image)
    return write_segment(c, insn.seg, ea, image, 160 + 16 * _registers(c))


def fxrstor(c, insn):
    image = cython.declare(uint8_t[512])
    ea: uint64_t = 0
    i: cython.int
    if c.cr0 & (CR0_TS | CR0_EM):
        raise_exception(c, X_NM)
        return -1
    if _area(c, insn, 16, cython.address(ea)) != 0 or read_segment(c, insn.seg, ea, image, 512) != 0:
        return -1
    if cython.cast(cython.pointer(uint32_t), cython.address(image[24]))[0] & ~MXCSR_MASK:
        raise_error(c, X_GP, 0)
        return -1
    _load_x87(c, image)
    _mxcsr(c)[0] = cython.cast(cython.pointer(uint32_t), cython.address(image[24]))[0]
    for i in range(_registers(c)):
        memcpy(cython.address(c.ymm[32 * i]), cython.address(image[160 + 16 * i]), 16)
    return 0


def xinuse(c):
    bits: uint64_t = 0
    any_low: uint64_t = 0
    any_high: uint64_t = 0
    i: cython.int
    if (_word(c.fx, 0) & M32) != 0x37F or c.fx[4]:
        bits = XCR0_X87
    else:
        for i in range(16):
            any_low |= _word(c.fx, 32 + 8 * i)
        if any_low:
            bits = XCR0_X87
    any_low = 0
    for i in range(16):
        any_low |= _word(c.ymm, 32 * i) | _word(c.ymm, 32 * i + 8)
        any_high |= _word(c.ymm, 32 * i + 16) | _word(c.ymm, 32 * i + 24)
    if any_low:
        bits |= XCR0_SSE
    if any_high:
        bits |= XCR0_AVX
    return bits


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _xsave_usable(c: cython.pointer(VCpu)) -> cython.int:
    if not c.cr4 & CR4_OSXSAVE:
        raise_exception(c, X_UD)
        return -1
    if c.cr0 & CR0_TS:
        raise_exception(c, X_NM)
        return -1
    return 0


def xsave(c, insn, form):
    image = cython.declare(uint8_t[832])
    ea: uint64_t = 0
    i: cython.int
    requested: uint64_t
    used: uint64_t
    written: uint64_t
    header: uint64_t = 0
    size: cython.int
    n: cython.int = _registers(c)
    if _xsave_usable(c) != 0 or _area(c, insn, 64, cython.address(ea)) != 0:
        return -1
    requested = c.xcr0 & ((c.r[0] & M32) | (c.r[2] << 32))
    used = xinuse(c)
    if form == S_XSAVEC and _mxcsr(c)[0] != MXCSR_DEFAULT:
        used |= XCR0_SSE  # SDM vol. 1, 13.10: there MXCSR counts as SSE state
    written = requested if form == S_XSAVE else requested & used
    size = 832 if written & XCR0_AVX else 576
    # Read what is there, change what is to be saved, and write it back: a fault anywhere leaves all untouched.
    if _area_writable(c, insn, ea, size) != 0 or read_segment(c, insn.seg, ea, image, size) != 0:
        return -1
    if form == S_XSAVEC:
        cython.cast(cython.pointer(uint64_t), cython.address(image[512]))[0] = written
        cython.cast(cython.pointer(uint64_t), cython.address(image[520]))[0] = requested | BIT63
    else:
        header = cython.cast(cython.pointer(uint64_t), cython.address(image[512]))[0]
        header = (header & ~requested) | (used & requested)
        cython.cast(cython.pointer(uint64_t), cython.address(image[512]))[0] = header
    if written & XCR0_X87:
        memcpy(image, c.fx, 24)
        image[5] = 0
        memset(cython.address(image[6]), 0, 18)
        memcpy(cython.address(image[32]), cython.address(c.fx[32]), 128)
        for i in range(8):
            memset(cython.address(image[42 + 16 * i]), 0, 6)
    if written & XCR0_SSE if form == S_XSAVEC else requested & (XCR0_SSE | XCR0_AVX):
        memcpy(cython.address(image[24]), _mxcsr(c), 4)
        cython.cast(cython.pointer(uint32_t), cython.address(image[28]))[0] = MXCSR_MASK
    if written & XCR0_SSE:
        for i in range(n):
            memcpy(cython.address(image[160 + 16 * i]), cython.address(c.ymm[32 * i]), 16)
    if written & XCR0_AVX:
        for i in range(n):
            memcpy(cython.address(image[576 + 16 * i]), cython.address(c.ymm[32 * i + 16]), 16)
    return write_segment(c, insn.seg, ea, image, 832 if written & XCR0_AVX else 528)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _bad_header(c: cython.pointer(VCpu), image: cython.pointer(uint8_t)) -> cython.bint:
    """SDM vol. 1, 13.8.1 and 13.8.2: what makes XRSTOR raise #GP."""
    i: cython.int
    bv: uint64_t = _word(image, 512)
    comp: uint64_t = _word(image, 520)
    if comp & BIT63:
        if comp & ~BIT63 & ~c.xcr0 or bv & ~comp or bv & BIT63:
            return True
        for i in range(2, 8):
            if _word(image, 512 + 8 * i):
                return True
        return False
    return bv & ~c.xcr0 != 0 or comp != 0 or _word(image, 528) != 0


def xrstor(c, insn):
    image = cython.declare(uint8_t[832])
    ea: uint64_t = 0
    i: cython.int
    n: cython.int = _registers(c)
    requested: uint64_t
    bv: uint64_t
    mxcsr: uint32_t
    compact: cython.bint
    if _xsave_usable(c) != 0 or _area(c, insn, 64, cython.address(ea)) != 0:
        return -1
    requested = c.xcr0 & ((c.r[0] & M32) | (c.r[2] << 32))
    if read_segment(c, insn.seg, ea, image, 576) != 0:
        return -1
    bv = _word(image, 512)
    compact = (_word(image, 520) & BIT63) != 0
    if _bad_header(c, image):
        raise_error(c, X_GP, 0)
        return -1
    if requested & bv & XCR0_AVX:
        if read_segment(c, insn.seg, ea + 576, cython.address(image[576]), 256) != 0:
            return -1
    mxcsr = cython.cast(cython.pointer(uint32_t), cython.address(image[24]))[0]
    if compact:
        if not requested & XCR0_SSE:
            mxcsr = _mxcsr(c)[0]
        elif not bv & XCR0_SSE:
            mxcsr = MXCSR_DEFAULT
    elif not requested & (XCR0_SSE | XCR0_AVX):
        mxcsr = _mxcsr(c)[0]
    if mxcsr & ~MXCSR_MASK:
        raise_error(c, X_GP, 0)
        return -1
    _mxcsr(c)[0] = mxcsr
    if requested & XCR0_X87:
        if bv & XCR0_X87:
            _load_x87(c, image)
        else:
            init_x87(c)
    if requested & XCR0_SSE:
        for i in range(n):
            if bv & XCR0_SSE:
                memcpy(cython.address(c.ymm[32 * i]), cython.address(image[160 + 16 * i]), 16)
            else:
                memset(cython.address(c.ymm[32 * i]), 0, 16)
    if requested & XCR0_AVX:
        for i in range(n):
            if bv & XCR0_AVX:
                memcpy(cython.address(c.ymm[32 * i + 16]), cython.address(image[576 + 16 * i]), 16)
            else:
                memset(cython.address(c.ymm[32 * i + 16]), 0, 16)
    return 0


def xgetbv(c):
    value: uint64_t
    if not c.cr4 & CR4_OSXSAVE:
        raise_exception(c, X_UD)
        return -1
    if (c.r[1] & M32) == 0:
        value = c.xcr0
    elif (c.r[1] & M32) == 1:
        value = c.xcr0 & xinuse(c)
    else:
        raise_error(c, X_GP, 0)
        return -1
    c.r[0] = value & M32
    c.r[2] = value >> 32
    return 0


def xsetbv(c):
    value: uint64_t = (c.r[0] & M32) | (c.r[2] << 32)
    if not c.cr4 & CR4_OSXSAVE:
        raise_exception(c, X_UD)
        return -1
    if (
        c.cpl
        or c.r[1] & M32
        or not value & XCR0_X87
        or value & ~cython.cast(uint64_t, xcr0_allowed)
        or (value & XCR0_AVX and not value & XCR0_SSE)
    ):
        raise_error(c, X_GP, 0)
        return -1
    c.xcr0 = value
    update_mode(c)
    return 0


# ---- element by element


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _vex_usable(c: cython.pointer(VCpu)) -> cython.int:
    if c.mode & MODE_NOAVX:
        raise_exception(c, X_UD)
        return -1
    if c.cr0 & CR0_TS:
        raise_exception(c, X_NM)
        return -1
    return 0


def gather(c, insn, index_size, size):
    # The SDM's order: elements from the lowest up; a fault keeps what was gathered, with those mask elements clear.
    n: cython.int = 32 if insn.vex_l else 16
    count: cython.int = n // (index_size if index_size > size else size)
    dest: cython.pointer(uint8_t) = cython.address(c.ymm[32 * insn.reg])
    mask: cython.pointer(uint8_t) = cython.address(c.ymm[32 * insn.vvvv])
    vector: cython.pointer(uint8_t) = cython.address(c.ymm[32 * insn.index])
    i: cython.int
    k: int64_t
    ea: uint64_t
    value: uint64_t = 0
    if _vex_usable(c) != 0:
        return -1
    if insn.reg == insn.vvvv or insn.reg == insn.index or insn.vvvv == insn.index:
        raise_exception(c, X_UD)
        return -1
    for i in range(count):
        memset(mask + i * size, 0xFF if mask[i * size + size - 1] & 0x80 else 0, size)
    for i in range(count):
        if not mask[i * size]:
            continue
        if index_size == 4:
            k = cython.cast(cython.pointer(int32_t), vector)[i]
        else:
            k = cython.cast(cython.pointer(int64_t), vector)[i]
        ea = cython.cast(uint64_t, insn.disp) + (cython.cast(uint64_t, k) << insn.scale)
        if insn.base < REG_NONE:
            ea += c.r[insn.base]
        if read_segment(c, insn.seg, ea & address_mask(insn.addrsize), cython.address(value), size) != 0:
            return -1
        memcpy(dest + i * size, cython.address(value), size)
        memset(mask + i * size, 0, size)
    memset(mask, 0, 32)
    memset(dest + count * size, 0, 32 - count * size)
    return 0


def maskmov_load(c, insn, size):
    n: cython.int = 32 if insn.vex_l else 16
    out = cython.declare(uint8_t[32])
    mask: cython.pointer(uint8_t) = cython.address(c.ymm[32 * insn.vvvv])
    ea: uint64_t
    i: cython.int = 0
    if _vex_usable(c) != 0:
        return -1
    ea = effective_address(c, insn)
    memset(out, 0, 32)
    while i < n:
        if mask[i + size - 1] & 0x80:
            if read_segment(c, insn.seg, ea + i, cython.address(out[i]), size):
                return -1
        i += size
    memcpy(cython.address(c.ymm[32 * insn.reg]), out, 32)
    return 0


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _store_masked(
    c: cython.pointer(VCpu), seg: cython.int, ea: uint64_t, data: cython.pointer(uint8_t),
    mask: cython.pointer(uint8_t), n: cython.int, size: cython.int,
) -> cython.int:  # fmt: skip
    """Store the elements whose mask has its top bit set; all are checked before the first is stored."""
    i: cython.int = 0
    linear: uint64_t = 0
    gpa: uint64_t = 0
    host: cython.pointer(uint8_t) = cython.NULL
    table: cython.int = current_table(c)
    while i < n:
        if mask[i + size - 1] & 0x80:
            if segment_linear(c, seg, ea + i, size, True, cython.address(linear)) != 0:
                return -1
            if lookup(c, linear, ACCESS_WRITE, table, cython.address(host), cython.address(gpa)) != 0:
                return -1
            if (linear & 0xFFF) + size > 4096:
                linear = (linear | 0xFFF) + 1
                if lookup(c, linear, ACCESS_WRITE, table, cython.address(host), cython.address(gpa)) != 0:
                    return -1
        i += size
    i = 0
    while i < n:
        if mask[i + size - 1] & 0x80:
            if write_segment(c, seg, ea + i, data + i, size) != 0:
                return -1
        i += size
    return 0


def maskmov_store(c, insn, size):
    if _vex_usable(c) != 0:
        return -1
    return _store_masked(
        c, insn.seg, effective_address(c, insn), cython.address(c.ymm[32 * insn.reg]),
        cython.address(c.ymm[32 * insn.vvvv]), 32 if insn.vex_l else 16, size,
    )  # fmt: skip


def maskmov_bytes(c, insn, mmx):
    ea: uint64_t = c.r[7] & address_mask(insn.addrsize)
    if mmx:
        if c.mode & MODE_NOFPU:
            raise_exception(c, X_UD if c.cr0 & CR0_EM else X_NM)
            return -1
        if c.fx[2] & 0x80:  # ES
            raise_exception(c, X_MF)
            return -1
        _clear_top(c)
        c.fx[4] = 0xFF
        return _store_masked(
            c, insn.seg, ea, cython.address(c.fx[32 + 16 * (insn.reg & 7)]),
            cython.address(c.fx[32 + 16 * (insn.rm & 7)]), 8, 1,
        )  # fmt: skip
    if c.mode & MODE_NOSSE or c.cr0 & CR0_EM:
        raise_exception(c, X_UD)
        return -1
    if c.cr0 & CR0_TS:
        raise_exception(c, X_NM)
        return -1
    return _store_masked(
        c, insn.seg, ea, cython.address(c.ymm[32 * insn.reg]),
        cython.address(c.ymm[32 * insn.rm]), 16, 1,
    )  # fmt: skip
