"""Two cascaded 8259A interrupt controllers with the PC's edge/level control registers.

Intel 8259A data sheet (231468) and, for ELCR, the 82371FB (PIIX) data sheet. The slave's INT drives input
2 of the master, taken here as a level, which comes to the same as the pulses of a real slave's INT.
A falling edge doesn't withdraw an edge-triggered request, as on the PC's chip sets.

Lock: ``mutex`` around every register; the vCPU that sees INTR is kicked while it is held.
"""

import cython
from cython.cimports.hostel.base.lock import lock, mutex_init, unlock
from cython.cimports.hostel.cpu.engine import Vcpu
from cython.cimports.libc.stdint import uint8_t, uint64_t

_VERSION = 1


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _priority(chip: cython.pointer(Chip), inputs: uint8_t) -> cython.int:
    """Priority of the most urgent of ``inputs``: 0 is the highest, 8 where there is none."""
    n: cython.int
    for n in range(8):
        if inputs & (1 << ((chip.lowest + n) & 7)):
            return n
    return 8


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _request(chip: cython.pointer(Chip), is_master: cython.bint) -> cython.int:
    """The input that INT is raised for, or -1."""
    wanted: cython.int = _priority(chip, chip.irr & ~chip.imr)
    if wanted == 8:
        return -1
    busy: uint8_t = chip.isr
    if chip.special_mask:
        busy &= ~chip.imr
    # Special fully nested mode: the slave may interrupt its own service.
    if chip.special_fully_nested and is_master:
        busy &= ~4
    if wanted < _priority(chip, busy):
        return (chip.lowest + wanted) & 7
    return -1


@cython.cclass
class Pic(IrqSink):
    """Inputs 0..15; input 2 is the cascade and can't be driven from outside. ``level``: those that the firmware has
    made level triggered, in ELCR."""

    def __cinit__(self):
        mutex_init(cython.address(self.mutex), cython.NULL)
        self.chips[0].elcr_mask = 0xF8  # IRQ 0, 1, 2 are edge triggered for ever
        self.chips[1].elcr_mask = 0xDE  # and so are 8 and 13

    def __init__(self, level=()):
        for pin in level:
            self.chips[pin >> 3].elcr |= 1 << (pin & 7)

    def connect(self, vcpu: Vcpu):
        """Let ``vcpu`` see INTR (through its local APIC, which asks ``peek``)."""
        self.vcpu = vcpu

    def ports(self) -> list:
        """``[(port, size, Region), ...]`` to map."""
        return [
            (0x20, 2, PicPorts("pic", self, 0)),
            (0xA0, 2, PicPorts("pic", self, 1)),
            (0x4D0, 2, ElcrPorts("elcr", self)),
        ]

    def set_level(self, pin, level):
        if pin < 0 or pin > 15 or pin == 2:
            return
        chip: cython.pointer(Chip) = cython.address(self.chips[pin >> 3])
        bit: uint8_t = 1 << (pin & 7)
        lock(cython.address(self.mutex))
        if level:
            if chip.elcr & bit or not chip.lines & bit:
                chip.irr |= bit
            chip.lines |= bit
        else:
            if chip.elcr & bit:
                chip.irr &= ~bit
            chip.lines &= ~bit
        self.update()
        unlock(cython.address(self.mutex))

    def update(self):
        if _request(cython.address(self.chips[1]), False) >= 0:
            self.chips[0].irr |= 4
        else:
            self.chips[0].irr &= ~4
        was: cython.int = self.output
        self.output = _request(cython.address(self.chips[0]), True) >= 0
        if self.output and not was and cython.cast(cython.p_void, self.vcpu) != cython.cast(cython.p_void, None):
            self.vcpu.kick()

    def take(self, chip, pin):
        c: cython.pointer(Chip) = cython.address(self.chips[chip])
        bit: uint8_t = 1 << pin
        if c.auto_eoi:
            if c.rotate_on_auto_eoi:
                c.lowest = (pin + 1) & 7
        else:
            c.isr |= bit
        if not c.elcr & bit:
            c.irr &= ~bit

    def peek(self):
        vector: cython.int = -1
        if not self.output:
            return -1
        lock(cython.address(self.mutex))
        pin: cython.int = _request(cython.address(self.chips[0]), True)
        if pin >= 0:
            vector = self.chips[0].vector_base + pin
            if pin == 2:
                pin = _request(cython.address(self.chips[1]), False)
                vector = self.chips[1].vector_base + (pin if pin >= 0 else 7)
        unlock(cython.address(self.mutex))
        return vector

    def acknowledge(self):
        lock(cython.address(self.mutex))
        # A request that went away before INTA reads as input 7 ("default IR7").
        pin: cython.int = _request(cython.address(self.chips[0]), True)
        vector: cython.int = self.chips[0].vector_base + 7
        if pin >= 0:
            self.take(0, pin)
            vector = self.chips[0].vector_base + pin
            if pin == 2:
                pin = _request(cython.address(self.chips[1]), False)
                if pin >= 0:
                    self.take(1, pin)
                vector = self.chips[1].vector_base + (pin if pin >= 0 else 7)
        self.update()
        unlock(cython.address(self.mutex))
        return vector

    def command(self, chip, value):
        c: cython.pointer(Chip) = cython.address(self.chips[chip])
        pin: cython.int
        if value & 0x10:  # ICW1
            c.irr = c.lines & c.elcr
            c.isr = 0
            c.imr = 0
            c.lowest = 0
            c.special_mask = 0
            c.special_fully_nested = 0
            c.auto_eoi = 0
            c.rotate_on_auto_eoi = 0
            c.read_isr = 0
            c.poll = 0
            c.needs_icw4 = value & 1
            c.single = (value >> 1) & 1
            c.expects = 2
        elif value & 8:  # OCW3
            if value & 4:
                c.poll = 1
            if value & 2:
                c.read_isr = value & 1
            if value & 0x40:
                c.special_mask = (value >> 5) & 1
        else:  # OCW2: R, SL, EOI
            if (value >> 5) & 1:
                if value & 0x40:
                    pin = value & 7
                else:
                    pin = _priority(c, c.isr & ~c.imr if c.special_mask else c.isr)
                    pin = (c.lowest + pin) & 7 if pin < 8 else -1
                if pin >= 0:
                    c.isr &= ~(1 << pin)
                    if value & 0x80:
                        c.lowest = (pin + 1) & 7
            elif value & 0x40:
                if value & 0x80:
                    c.lowest = ((value & 7) + 1) & 7
            else:
                c.rotate_on_auto_eoi = value >> 7

    def read_port(self, chip, offset):
        c: cython.pointer(Chip) = cython.address(self.chips[chip])
        value: uint8_t
        pin: cython.int
        lock(cython.address(self.mutex))
        if c.poll:
            c.poll = 0
            pin = _request(c, chip == 0)
            value = 0
            if pin >= 0:
                self.take(chip, pin)
                value = 0x80 | pin
                self.update()
        elif offset == 1:
            value = c.imr
        else:
            value = c.isr if c.read_isr else c.irr
        unlock(cython.address(self.mutex))
        return value

    def write_port(self, chip, offset, value):
        c: cython.pointer(Chip) = cython.address(self.chips[chip])
        lock(cython.address(self.mutex))
        if offset == 0:
            self.command(chip, value)
        elif c.expects == 2:
            c.vector_base = value & 0xF8
            c.expects = 4 if c.single else 3
            if c.single and not c.needs_icw4:
                c.expects = 0
        elif c.expects == 3:  # the wiring is what it is
            c.expects = 4 if c.needs_icw4 else 0
        elif c.expects == 4:
            c.auto_eoi = (value >> 1) & 1
            c.special_fully_nested = (value >> 4) & 1
            c.expects = 0
        else:
            c.imr = value
        self.update()
        unlock(cython.address(self.mutex))

    # -- for tests, tools and saved state

    def intr(self) -> bool:
        """Whether INTR is raised."""
        return bool(self.output)

    def peek_py(self) -> int:
        """``peek`` for tests."""
        return self.peek()

    def acknowledge_py(self) -> int:
        """``acknowledge`` for tests."""
        return self.acknowledge()

    def set_level_py(self, pin: cython.int, level: cython.int):
        """``set_level`` for tests."""
        self.set_level(pin, level)

    def save(self) -> dict:
        """Both chips' registers."""
        return {"version": _VERSION, "chips": [self.chips[0], self.chips[1]]}

    def load(self, state: dict):
        """Restore what ``save`` gave."""
        if state["version"] != _VERSION:
            raise ValueError(f"pic: state version {state['version']} is not {_VERSION}")
        self.chips[0] = state["chips"][0]
        self.chips[1] = state["chips"][1]
        with cython.nogil:
            lock(cython.address(self.mutex))
            self.update()
            unlock(cython.address(self.mutex))


@cython.cclass
class PicPorts(Region):
    """Command and data port of one chip."""

    def __init__(self, name: str, pic: Pic, chip: cython.int):
        self.name = name
        self.pic = pic
        self.chip = chip

    def read(self, offset, size):
        return self.pic.read_port(self.chip, offset & 1)

    def write(self, offset, size, value):
        self.pic.write_port(self.chip, offset & 1, value & 0xFF)


@cython.cclass
class ElcrPorts(Region):
    """Edge/level control: bit n of the two bytes makes input n level triggered."""

    def __init__(self, name: str, pic: Pic):
        self.name = name
        self.pic = pic

    def read(self, offset, size):
        value: uint64_t = self.pic.chips[offset & 1].elcr
        if size > 1 and not offset & 1:
            value |= cython.cast(uint64_t, self.pic.chips[1].elcr) << 8
        return value

    def write(self, offset, size, value):
        i: cython.int = offset & 1
        lock(cython.address(self.pic.mutex))
        self.pic.chips[i].elcr = value & self.pic.chips[i].elcr_mask
        if size > 1 and i == 0:
            self.pic.chips[1].elcr = (value >> 8) & self.pic.chips[1].elcr_mask
        unlock(cython.address(self.pic.mutex))
