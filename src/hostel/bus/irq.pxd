# The receiving end of interrupt wires: an interrupt controller's pin.
cdef class IrqSink:
    cdef void set_level(self, int pin, int level) noexcept nogil

# A wire from a device to one or more pins. Devices get lines handed in and know no controller.
cdef class IrqLine:
    cdef list ends
    cdef void* sinks[4]
    cdef int pins[4]
    cdef int count
    cdef readonly int level
    cdef void set(self, int level) noexcept nogil
    cdef void pulse(self) noexcept nogil
