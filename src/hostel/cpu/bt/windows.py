"""Windows: ranges of memory that a block checks once and then accesses without a check.

Before a block is generated, its instructions are walked with a number for each value that a register holds (moves
and additions of constants are followed), so that operands at a known distance from each other are found. Those that
fit into WINDOW_SPAN bytes share a window: one look-up in the TLB for all of its bytes. How far the host's page is from
the guest's is kept in ``VCpu.window``, together with what of the address isn't base or displacement
(address._operand). A window that has a write in it demands to write, also where a conditional branch lies between: what
is read and then written now and then, as objects with a count of references, mostly may be written at any time. Pages
of code whose windows meet others that may not get blocks whose don't (``Translation.modest``).

The look-up is made before the first access, or earlier where flags would have to be put away for it: never before
what an address is made of is known, and never before a conditional branch, except for the stack.

A window that fails raises no exception for what comes later. The monitor looks at the access that is due; if that may
be made, but the window doesn't fit into one page or isn't writable as a whole, the guest goes on in a block
that is translated without windows (MODE_PLAIN) until its next jump. Windows end at an instruction that the monitor
runs. What invalidates a TLB entry happens in the monitor only (remote TLBs are flushed by an interrupt, which is
taken between blocks), but for a page that another vCPU's translation has just made read-only (docs/decisions.md).
"""

import cython
from cython.cimports.hostel.cpu.bt.address import operand_address, stack_address
from cython.cimports.hostel.cpu.bt.decode import table
from cython.cimports.hostel.cpu.bt.emit import S1, away
from cython.cimports.hostel.cpu.bt.insn import (
    FS,
    GS,
    K_BT,
    K_CALL,
    K_CALL_IND,
    K_FENCE,
    K_JCC,
    K_JMP,
    K_JMP_IND,
    K_LEA,
    K_LEAVE,
    K_MOV_MOFFS,
    K_NATIVE,
    K_NOP,
    K_POP,
    K_PUSH,
    K_RET,
    K_XLAT,
    M_ADDR,
    M_NONE,
    M_READ,
    M_WRITE,
    P_VEX,
    REG_NONE,
    REG_RIP,
    SS,
    U_BYTE,
    U_W,
    Insn,
    OpInfo,
)
from cython.cimports.hostel.cpu.bt.translate import may_fault, memory_size, refused
from cython.cimports.hostel.cpu.bt.translation import (
    EA_PLAIN,
    MAX_WINDOWS,
    WINDOW_SLOTS,
    WINDOW_SPAN,
    Address,
    Place,
    Translation,
    Value,
    Window,
)
from cython.cimports.hostel.cpu.bt.vcpu import ACCESS_READ, ACCESS_RW, ACCESS_WRITE, MODE_DEBUG, MODE_PLAIN
from cython.cimports.libc.stdint import int32_t, int64_t
from cython.cimports.libc.string import memcpy


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _fresh(t: cython.pointer(Translation), v: cython.pointer(Value)) -> cython.void:
    t.n_values += 1
    v.number = t.n_values
    v.offset = 0


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _constant_added(insn: cython.pointer(Insn), amount: cython.pointer(int64_t)) -> cython.bint:
    """ADD, SUB, INC, DEC of a whole register and a constant."""
    if insn.opmap or insn.prefixes & P_VEX or not insn.has_modrm or insn.mod != 3 or insn.opsize != 8:
        return False
    kind: cython.int = insn.reg & 7
    if insn.opcode == 0x81 or insn.opcode == 0x83:
        amount[0] = cython.cast(int64_t, insn.imm) if kind == 0 else -cython.cast(int64_t, insn.imm)
        return kind == 0 or kind == 5
    amount[0] = 1 if kind == 0 else -1
    return insn.opcode == 0xFF and kind <= 1


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _run(t: cython.pointer(Translation), i: cython.int) -> cython.void:
    """What registers hold behind instruction i."""
    insn: cython.pointer(Insn) = cython.address(t.insns[i])
    info: cython.pointer(OpInfo) = cython.address(table[insn.op])
    v: cython.pointer(Value) = cython.address(t.values[i + 1][0])
    k: cython.int = info.kind
    r: cython.int
    amount: int64_t = 0
    memcpy(v, cython.address(t.values[i][0]), sizeof_values())
    t.epochs[i + 1] = t.epochs[i]
    if k == K_JCC or k == K_JMP or k == K_NOP or k == K_FENCE or k == K_BT:
        return
    if k == K_NATIVE:
        if _constant_added(insn, cython.address(amount)):
            v[insn.rm].offset += amount
            return
        if not insn.opmap and not insn.prefixes & P_VEX and insn.mod == 3 and insn.opsize == 8:
            if insn.opcode == 0x89:
                v[insn.rm] = t.values[i][insn.reg]
                return
            if insn.opcode == 0x8B:
                v[insn.reg] = t.values[i][insn.rm]
                return
        if info.reg_use & U_W:
            _fresh_field(t, v, insn.reg, info.reg_use)
        if info.rm_use & U_W and insn.mod == 3:
            _fresh_field(t, v, insn.rm, info.rm_use)
        if info.vvvv_use & U_W:
            _fresh_field(t, v, insn.vvvv, info.vvvv_use)
        for r in range(16):
            if info.implicit_w >> r & 1:
                _fresh(t, cython.address(v[r]))
    elif k == K_LEA:
        if insn.opsize == 8 and insn.addrsize == 8 and insn.base < 16 and insn.index == REG_NONE:
            v[insn.reg] = t.values[i][insn.base]
            v[insn.reg].offset += insn.disp
        else:
            _fresh(t, cython.address(v[insn.reg]))
    elif k == K_PUSH:
        v[4].offset -= insn.opsize
    elif k == K_POP:
        v[4].offset += insn.opsize
        if not insn.has_modrm or insn.mod == 3:
            _fresh(t, cython.address(v[insn.rm]))
    elif k == K_LEAVE:
        v[4] = t.values[i][5]
        v[4].offset += insn.opsize
        _fresh(t, cython.address(v[5]))
    elif k == K_XLAT or k == K_MOV_MOFFS:
        _fresh(t, cython.address(v[0]))
    else:
        t.epochs[i + 1] += 1
        for r in range(16):
            _fresh(t, cython.address(v[r]))


@cython.cfunc
@cython.inline
@cython.nogil
@cython.exceptval(check=False)
def sizeof_values() -> cython.size_t:
    return 16 * cython.sizeof(Value)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _fresh_field(
    t: cython.pointer(Translation), v: cython.pointer(Value), r: cython.int, use: cython.int
) -> cython.void:  # fmt: skip
    """A field's register; byte registers 4 to 7 may be ah..bh, which are parts of 0 to 3."""
    _fresh(t, cython.address(v[r & 15]))
    if use & U_BYTE and 4 <= r <= 7:
        _fresh(t, cython.address(v[r - 4]))


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _place(
    t: cython.pointer(Translation), i: cython.int, a: cython.pointer(Address), p: cython.pointer(Place)
) -> cython.bint:
    """Where operand a of instruction i lies; False: nowhere that can be compared."""
    v: cython.pointer(Value) = cython.address(t.values[i][0])
    if a.kind != EA_PLAIN or a.size != 8:
        return False
    p.base = 0
    p.index = 0
    p.scale = 0
    p.seg = a.seg if a.seg == FS or a.seg == GS else 0
    p.epoch = t.epochs[i]
    p.offset = a.disp
    if a.base == REG_RIP:
        p.offset += cython.cast(int64_t, a.rip)
        if t.pic:
            p.base = RIP_VALUE
    elif a.base < 16:
        p.base = v[a.base].number
        p.offset += v[a.base].offset
    if a.index < 16:
        p.index = v[a.index].number
        p.scale = a.scale
        p.offset += v[a.index].offset << a.scale
    return True


@cython.cfunc
@cython.inline
@cython.nogil
@cython.exceptval(check=False)
def _comparable(a: cython.pointer(Place), b: cython.pointer(Place)) -> cython.bint:
    return (
        a.base == b.base and a.index == b.index and a.scale == b.scale and a.seg == b.seg and a.epoch == b.epoch
    )  # fmt: skip


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _operands(
    t: cython.pointer(Translation), i: cython.int, a: cython.pointer(Address), size: cython.pointer(cython.int),
    access: cython.pointer(cython.int),
) -> cython.int:  # fmt: skip
    """The memory operands of instruction i that may share a check, as the generators ask for them; how many."""
    insn: cython.pointer(Insn) = cython.address(t.insns[i])
    info: cython.pointer(OpInfo) = cython.address(table[insn.op])
    k: cython.int = info.kind
    n: cython.int = 0
    memory: cython.bint = insn.has_modrm and insn.mod != 3
    if k == K_NATIVE:
        if memory and info.mem != M_NONE and info.mem != M_ADDR:
            operand_address(t, insn, cython.address(a[0]))
            size[0] = memory_size(insn, info)
            access[0] = ACCESS_READ if info.mem == M_READ else ACCESS_WRITE if info.mem == M_WRITE else ACCESS_RW
            n = 1
    elif k == K_PUSH or k == K_CALL or k == K_CALL_IND or k == K_JMP_IND:
        if memory and k != K_CALL:
            operand_address(t, insn, cython.address(a[0]))
            size[0] = insn.opsize
            access[0] = ACCESS_READ
            n = 1
        if k != K_JMP_IND:
            size[n] = 8 if k == K_CALL else insn.opsize
            stack_address(t, -cython.cast(int64_t, size[n]), cython.address(a[n]))
            access[n] = ACCESS_WRITE
            n += 1
    elif k == K_POP or k == K_RET:
        stack_address(t, 0, cython.address(a[0]))
        size[0] = insn.opsize
        access[0] = ACCESS_READ
        n = 1
        if k == K_POP and memory:
            operand_address(t, insn, cython.address(a[1]))
            if insn.base == 4:
                a[1].disp += insn.opsize
            size[1] = insn.opsize
            access[1] = ACCESS_WRITE
            n = 2
    elif k == K_LEAVE:
        stack_address(t, 0, cython.address(a[0]))
        a[0].base = 5
        size[0] = insn.opsize
        access[0] = ACCESS_READ
        n = 1
    return n


def find_window(t, i, a, size, access):
    p: Place
    k: cython.int
    w: cython.pointer(Window)
    distance: int64_t
    if not t.n_windows or not _place(t, i, a, cython.address(p)):
        return cython.NULL
    for k in range(t.n_windows):
        w = cython.address(t.windows[k])
        if w.point <= i <= w.last and _comparable(cython.address(w.place), cython.address(p)):
            distance = p.offset - w.place.offset
            if 0 <= distance and distance + size <= w.span and (w.access != ACCESS_READ or access == ACCESS_READ):
                return w
    return cython.NULL


def covered(t, i):
    a: Address[2]
    size: cython.int[2]
    access: cython.int[2]
    n: cython.int = _operands(t, i, a, size, access)
    k: cython.int
    for k in range(n):
        if find_window(t, i, cython.address(a[k]), size[k], access[k]) == cython.NULL:
            return False
    return True


def checked_at(t, i):
    k: cython.int
    for k in range(t.n_windows):
        if t.windows[k].point == i:
            return True
    return False


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _early(
    t: cython.pointer(Translation), i: cython.int, a: cython.pointer(Address), low: int64_t,
    point: cython.pointer(cython.int), disp: cython.pointer(int64_t),
) -> cython.bint:  # fmt: skip
    """Where the look-up costs no flags: at i, or before it; the displacement that gives the window's start there."""
    j: cython.int = i
    stack: cython.bint = a.base == 4 and a.index == REG_NONE
    best: cython.int = i
    k: cython.int
    offset: int64_t
    if t.live[i]:
        while j > 0:
            k = table[t.insns[j - 1].op].kind
            if t.epochs[j - 1] != t.epochs[i] or (k == K_JCC and not stack):
                break
            if a.base < 16 and t.values[j - 1][a.base].number != t.values[i][a.base].number:
                break
            if a.index < 16 and t.values[j - 1][a.index].number != t.values[i][a.index].number:
                break
            j -= 1
            if not t.live[j]:
                best = j
                break
    offset = low
    if a.base < 16:
        offset -= t.values[best][a.base].offset
    if a.index < 16:
        offset -= t.values[best][a.index].offset << a.scale
    if a.base == REG_RIP:
        offset -= cython.cast(int64_t, a.rip)
    point[0] = best
    disp[0] = offset
    return offset == cython.cast(int32_t, offset)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _grow(
    t: cython.pointer(Translation), w: cython.pointer(Window), first: cython.int, operand: cython.int
) -> cython.int:
    """Let the window take in later accesses; how many accesses it has then."""
    a: Address[2]
    size: cython.int[2]
    access: cython.int[2]
    p: Place
    low: int64_t
    high: int64_t
    count: cython.int = 1
    branches: cython.bint = False
    i: cython.int = first
    k: cython.int
    n: cython.int
    while i < t.n and t.epochs[i] == w.place.epoch:
        n = _operands(t, i, a, size, access)
        for k in range(n):
            if (i == first and k <= operand) or not _place(t, i, cython.address(a[k]), cython.address(p)):
                continue
            if not _comparable(cython.address(w.place), cython.address(p)):
                continue
            if access[k] != ACCESS_READ and w.access == ACCESS_READ and branches and t.modest:
                continue
            low = min(p.offset, w.place.offset)
            high = max(p.offset + size[k], w.place.offset + w.span)
            if high - low > WINDOW_SPAN:
                continue
            w.delta += cython.cast(cython.int, w.place.offset - low)
            w.place.offset = low
            w.span = cython.cast(cython.int, high - low)
            if access[k] != ACCESS_READ:
                w.greedy |= w.access == ACCESS_READ and branches
                w.access = ACCESS_WRITE
            w.last = i
            count += 1
        if table[t.insns[i].op].kind == K_JCC:
            branches = True
        i += 1
    return count


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _free_slot(t: cython.pointer(Translation), point: cython.int, last: cython.int) -> cython.int:
    slot: cython.int
    k: cython.int
    for slot in range(WINDOW_SLOTS):
        for k in range(t.n_windows):
            if t.windows[k].slot == slot and t.windows[k].point <= last and point <= t.windows[k].last:
                break
        else:
            return slot
    return -1


def plan(t):
    a: Address[2]
    size: cython.int[2]
    access: cython.int[2]
    i: cython.int
    k: cython.int
    n: cython.int
    low: int64_t = 0
    count: cython.int
    w: cython.pointer(Window)
    t.n_windows = 0
    t.in_s1 = -1
    if t.single or not t.code64 or t.mode & (MODE_PLAIN | MODE_DEBUG):
        return
    t.n_values = 0
    for i in range(16):
        _fresh(t, cython.address(t.values[0][i]))
    t.epochs[0] = 0
    for i in range(t.n):
        _run(t, i)
    for i in range(t.n):
        n = _operands(t, i, a, size, access)
        for k in range(n):
            if t.n_windows == MAX_WINDOWS:
                return
            if find_window(t, i, cython.address(a[k]), size[k], access[k]) != cython.NULL:
                continue
            w = cython.address(t.windows[t.n_windows])
            if not _place(t, i, cython.address(a[k]), cython.address(w.place)):
                continue
            w.first = i
            w.last = i
            w.span = size[k]
            w.access = access[k]
            w.delta = 0
            w.size = size[k]
            w.first_access = access[k]
            w.second = k > 0
            w.greedy = False
            w.stack = a[k].seg == SS
            w.address = a[k]
            count = _grow(t, w, i, k)
            if not _early(t, i, cython.address(a[k]), w.place.offset, cython.address(w.point), cython.address(low)):
                continue
            if count == 1 and w.point == i:
                continue  # no gain
            w.address.disp = low
            w.slot = _free_slot(t, w.point, w.last)
            if w.slot >= 0:
                t.n_windows += 1


def disturbed(t, number):
    a: Address[2]
    size: cython.int[2]
    access: cython.int[2]
    w: cython.pointer(Window) = cython.address(t.windows[number])
    used: cython.pointer(Window)
    here: cython.bint = True  # in s1
    i: cython.int = w.point
    k: cython.int
    n: cython.int
    while i <= w.last:
        insn: cython.pointer(Insn) = cython.address(t.insns[i])
        info: cython.pointer(OpInfo) = cython.address(table[insn.op])
        for k in range(t.n_windows):
            if t.windows[k].point == i and (k > number or i > w.point):
                here = False
        n = _operands(t, i, a, size, access)
        for k in range(n):
            used = find_window(t, i, cython.address(a[k]), size[k], access[k])
            if used != w:
                here = False
            elif not here:
                return True
        k = info.kind
        if k == K_NATIVE:
            if insn.mod == 3 and (insn.reg == S1 or insn.rm == S1 or insn.vvvv == S1):
                here = False
        elif k == K_LEA:
            if insn.base >= 16 or away(insn.base) or insn.index == S1 or away(insn.reg):
                here = False
        elif k == K_POP:
            if away(insn.rm):
                here = False
        elif k != K_PUSH and k != K_NOP and k != K_JCC and k != K_JMP:
            here = False
        i += 1
    return False


def ignores_stack(t, i):
    insn: cython.pointer(Insn) = cython.address(t.insns[i])
    info: cython.pointer(OpInfo) = cython.address(table[insn.op])
    k: cython.int = info.kind
    memory: cython.bint = insn.has_modrm and insn.mod != 3
    if t.single or checked_at(t, i) or refused(t, insn, info) >= 0:
        return False
    if k == K_NOP:
        return True
    if k == K_LEA:
        return insn.base != 4 and insn.reg != 4
    if k == K_PUSH or k == K_POP:
        return not memory and covered(t, i) and (insn.imm_size != 0 or insn.rm != 4)
    if k == K_RET or k == K_CALL:
        return covered(t, i)
    if k != K_NATIVE or may_fault(insn, info) or (info.implicit_r | info.implicit_w) & 16 or not covered(t, i):
        return False
    return not (
        (info.reg_use and insn.reg == 4) or (info.rm_use and insn.rm == 4 and not memory)
        or (info.vvvv_use and insn.vvvv == 4)
    )  # fmt: skip
