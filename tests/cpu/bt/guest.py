"""A vCPU in a mode of choice with descriptor tables, stacks and pages at known places, for tests of the monitor.

Memory is 4 MiB at 0, mapped one to one for the supervisor; in long mode the second 2 MiB are also at USER, for all.
"""

from hostel.cpu.bt.probe import Probe
from hostel.memory.ram import Ram

NEXT, EXCEPTION, EXIT, HALT, SHUTDOWN = range(5)
GDT, IDT, TSS, LDT, TABLES = 0x5000, 0x6000, 0x7000, 0x8000, 0x10000
STACK, STACK1, IST1, CODE = 0x20000, 0x24000, 0x28000, 0x30000
USER = 0x40000000
# selectors
CODE32, CODE64, DATA, UCODE32, UDATA, UCODE64, TASK, LDTS, CODE16, DATA16, CONF, EXEC_ONLY, RDONLY, ABSENT = (
    8, 0x10, 0x18, 0x23, 0x2B, 0x33, 0x40, 0x50, 0x60, 0x68, 0x70, 0x78, 0x80, 0x88
)  # fmt: skip
GATE = 0x90
IF, TF, DF, NT, RF, VM, AC, IOPL3, ID = 0x200, 0x100, 0x400, 0x4000, 0x10000, 0x20000, 0x40000, 0x3000, 0x200000
FLAT = 0xFFFFFFFF
ATTR = {
    CODE32: 0xC09A, CODE64: 0xA09A, DATA: 0xC092, UCODE32: 0xC0FA, UDATA: 0xC0F2, UCODE64: 0xA0FA, CODE16: 0x009A,
    DATA16: 0x0092, CONF: 0xC09E, EXEC_ONLY: 0xC098, RDONLY: 0xC090, ABSENT: 0xC012,
}  # fmt: skip


def descriptor(base, limit, attr):
    if attr & 0x8000:
        limit >>= 12
    return (
        limit & 0xFFFF | (base & 0xFFFFFF) << 16 | (attr & 0xFF) << 40 | (limit >> 16 & 15) << 48
        | (attr >> 12) << 52 | (base >> 24 & 0xFF) << 56
    )  # fmt: skip


class Guest:
    def __init__(self, index=0, vcpus=1):
        self.ram = Ram()
        self.ram.add(0, 4 << 20)
        self.p = Probe(self.ram, index, vcpus)
        for selector, attr in ATTR.items():
            limit = 0xFFFF if selector in (CODE16, DATA16) else FLAT
            self.put(GDT + (selector & ~7), descriptor(0, limit, attr))

    def put(self, gpa, value, size=8):
        self.ram.write(gpa, (value & (1 << 8 * size) - 1).to_bytes(size, "little"))

    def get(self, gpa, size=8):
        return int.from_bytes(self.ram.read(gpa, size), "little")

    def words(self, gpa, count, size=8):
        return [self.get(gpa + size * i, size) for i in range(count)]

    def gate(self, vector, offset=CODE, selector=None, kind=14, dpl=0, ist=0, present=True):
        """An interrupt gate (14) or trap gate (15) at its place; 6 and 7 are the 16-bit ones."""
        attr = 0x80 * present | dpl << 5 | kind
        if selector is None:
            selector = CODE64 if self.long else CODE32
        low = offset & 0xFFFF | selector << 16 | ist << 32 | attr << 40 | (offset >> 16 & 0xFFFF) << 48
        if self.long:
            self.put(IDT + 16 * vector, low)
            self.put(IDT + 16 * vector + 8, offset >> 32)
        else:
            self.put(IDT + 8 * vector, low)

    def user(self):
        """Go to CPL 3, in the mode's own user segments."""
        p = self.p
        p.set_segment(1, UCODE64 if self.long else UCODE32, 0, FLAT, 0xA0FB if self.long else 0xC0FB)
        p.set_segment(2, UDATA, 0, FLAT, 0xC0F3)
        p["cpl"] = 3
        p["r4"] = USER + 0x8000 if self.long else 0x208000
        p["rip"] = USER + 0x1000 if self.long else 0x201000
        p.update_mode()
        return self

    def run(self, text):
        """One instruction, in hex."""
        return self.p.execute(bytes.fromhex(text))

    def faults(self, text):
        """Run one instruction that must fault, and leave rip and registers alone; its exception."""
        before = [self.p[f"r{i}"] for i in range(16)] + [self.p["rip"], self.p["eflags"], self.p["cpl"]]
        assert self.run(text) == EXCEPTION
        after = [self.p[f"r{i}"] for i in range(16)] + [self.p["rip"], self.p["eflags"], self.p["cpl"]]
        assert after == before
        return self.p.pending()


class Long(Guest):
    long = True

    def __init__(self, **kw):
        super().__init__(**kw)
        p = self.p
        self.put(TABLES, TABLES + 0x1000 | 7)
        self.put(TABLES + 0x1000, 0x83)  # 1 GiB, supervisor
        self.put(TABLES + 0x1008, TABLES + 0x2000 | 7)
        self.put(TABLES + 0x2000, TABLES + 0x3000 | 7)
        for i in range(512):
            self.put(TABLES + 0x3000 + 8 * i, 0x200000 + (i << 12) | 7)
        p["cr3"] = TABLES
        p["cr0"] = 0x80010033
        p["cr4"] = 0x6A0  # PAE PGE OSFXSR OSXMMEXCPT
        p["efer"] = 0xD01
        p["gdtr_base"], p["gdtr_limit"] = GDT, 0xFFF
        p["idtr_base"], p["idtr_limit"] = IDT, 0xFFF
        self.put(GDT + TASK, descriptor(TSS, 0x67, 0x89))
        self.put(GDT + LDTS, descriptor(LDT, 0xFF, 0x82))
        p.set_segment(7, TASK, TSS, 0x67, 0x8B)
        p.set_segment(6, 0, 0, 0, 0)
        self.put(TSS + 4, STACK1)
        self.put(TSS + 0x24, IST1)
        p.set_segment(1, CODE64, 0, FLAT, 0xA09B)
        p.set_segment(2, DATA, 0, FLAT, 0xC093)
        for i in (0, 3, 4, 5):
            p.set_segment(i, 0, 0, 0, 0)
        p["r4"], p["rip"] = STACK, 0x1000
        p.update_mode()


class Protected(Guest):
    long = False

    def __init__(self, **kw):
        super().__init__(**kw)
        p = self.p
        p["cr0"] = 0x11
        p["gdtr_base"], p["gdtr_limit"] = GDT, 0xFFF
        p["idtr_base"], p["idtr_limit"] = IDT, 0x7FF
        self.put(GDT + TASK, descriptor(TSS, 0xFF, 0x89))
        self.put(GDT + LDTS, descriptor(LDT, 0xFF, 0x82))
        p.set_segment(7, TASK, TSS, 0xFF, 0x8B)
        self.put(TSS + 4, STACK1, 4)
        self.put(TSS + 8, DATA, 4)
        p.set_segment(1, CODE32, 0, FLAT, 0xC09B)
        for i in (0, 2, 3, 4, 5):
            p.set_segment(i, DATA, 0, FLAT, 0xC093)
        p["r4"], p["rip"] = STACK, 0x1000
        p.update_mode()


class Real(Guest):
    long = False

    def __init__(self, **kw):
        super().__init__(**kw)
        p = self.p
        p.set_segment(1, 0x100, 0x1000, 0xFFFF, 0x9B)
        for i in (0, 2, 3, 4, 5):
            p.set_segment(i, 0x200, 0x2000, 0xFFFF, 0x93)
        p["r4"], p["rip"] = 0x800, 0
        p.update_mode()
