from libc.stdint cimport uint32_t
from hostel.cpu.bt.translation cimport Address, Translation, Window

# Values, epochs and windows of the block's instructions, which are decoded, with liveness known.
cdef enum:
    RIP_VALUE = 0xFFFF           # the number of an address that moves with the block

cdef void plan(Translation* t) noexcept nogil
# The window that holds the access of instruction i at `a`, or NULL; *disp: from the window's start.
cdef Window* find_window(Translation* t, int i, Address* a, int size, int access) noexcept nogil
# Whether no access of instruction i needs a check of its own.
cdef bint covered(Translation* t, int i) noexcept nogil
# Whether s1 is used for something else between a window's check and its last use.
cdef bint disturbed(Translation* t, int number) noexcept nogil
# Whether the stack pointer need not be exact for instruction i.
cdef bint ignores_stack(Translation* t, int i) noexcept nogil
# Whether a window is checked before instruction i.
cdef bint checked_at(Translation* t, int i) noexcept nogil
