from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

cdef extern from * nogil:
    # 4: acquire and release, which costs nothing on x86
    void fence "__atomic_thread_fence"(int order)

# A device's answer to port or memory-mapped I/O. Compiled devices override read/write and run without
# the GIL; devices in plain Python derive from PyRegion and define read_py/write_py.
cdef class Region:
    cdef readonly str name
    cdef public bint native         # takes neither the GIL nor the FPU: an engine may ask it between two guest instructions
    cdef uint64_t read(self, uint64_t offset, int size) noexcept nogil
    cdef void write(self, uint64_t offset, int size, uint64_t value) noexcept nogil

cdef class PyRegion(Region):
    cdef uint64_t read(self, uint64_t offset, int size) noexcept nogil
    cdef void write(self, uint64_t offset, int size, uint64_t value) noexcept nogil

cdef struct Window:
    uint64_t base
    uint64_t size
    void* region

cdef class Space:
    cdef readonly str name
    cdef list regions
    cdef Window windows[128]
    cdef int count
    cdef volatile uint32_t changes      # odd while the windows change; who reads them meanwhile looks again
    cdef public uint64_t unclaimed
    cdef void* find(self, uint64_t address, uint64_t* offset) noexcept nogil
    cdef void* find_native(self, uint64_t address, uint64_t* offset) noexcept nogil
    cdef uint64_t read(self, uint64_t address, int size) noexcept nogil
    cdef void write(self, uint64_t address, int size, uint64_t value) noexcept nogil
