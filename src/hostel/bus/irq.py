"""Interrupt wires: a value handed to a device, ending at pins of interrupt controllers."""

import cython


@cython.cclass
class IrqSink:
    """A controller with numbered input pins; ``set_level`` may be called from any thread, without the GIL."""

    def set_level(self, pin, level):
        pass


@cython.cclass
class IrqLine:
    """A level-carrying wire. ``IrqLine((sink, pin), ...)``; at most four ends."""

    def __init__(self, *ends):
        self.ends = list(ends)
        self.count = 0
        self.level = 0
        for sink, pin in ends:
            self.sinks[self.count] = cython.cast(cython.p_void, sink)
            self.pins[self.count] = pin
            self.count += 1

    def set(self, level):
        i: cython.int
        self.level = level
        for i in range(self.count):
            cython.cast(IrqSink, self.sinks[i]).set_level(self.pins[i], level)

    def pulse(self):
        self.set(1)
        self.set(0)

    def set_py(self, level: cython.int):
        """``set`` for devices in plain Python."""
        self.set(level)
