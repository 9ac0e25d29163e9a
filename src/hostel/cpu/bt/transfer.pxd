from libc.stdint cimport uint64_t
from hostel.cpu.bt.vcpu cimport VCpu

# The VCpu as a hostel.cpu.state.VcpuState and back. `now` is a host TSC reading, the same for all vCPUs of a
# machine (0: now), so that their TSCs and clocks stay together. The vCPU isn't running, has no exit unanswered
# and x87 and vector registers are in *c.
cdef object save(VCpu* c, uint64_t now)
# MachineError where the state can't be one of a processor. Every cache of translations is emptied.
cdef int load(VCpu* c, object state, uint64_t now) except -1
