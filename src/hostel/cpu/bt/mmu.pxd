from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from hostel.cpu.bt.vcpu cimport JUMP_SIZE, TLB_SIZE, VCpu
from hostel.memory.ram cimport Slot

# Every function that returns int here: 0 = done, -1 = an exception is pending in c (exception_pending, exc_*).

# Record an exception (fault) to be delivered; never overwrites cr2 itself.
cdef void raise_exception(VCpu* c, int vector) noexcept nogil                       # no error code
cdef void raise_error(VCpu* c, int vector, uint32_t error) noexcept nogil          # with one
cdef void raise_page_fault(VCpu* c, uint64_t va, uint32_t error) noexcept nogil

# Which TLB table accesses at the present CPL and AC use.
cdef int current_table(VCpu* c) noexcept nogil

# Walk the guest's page tables for `va` (linear). access: ACCESS_*; table: TLB_* (the privilege). Sets A, and D for
# writes, atomically. On success *gpa is the guest-physical address and *size_log2 the page size (12, 21, 30) and
# *attr gets bit 0: writable without a new walk (D set already and W allowed), bit 1: global.
# Without paging: *gpa = va (A20 is always on).
cdef int walk(VCpu* c, uint64_t va, int access, int table, uint64_t* gpa, int* size_log2, int* attr) noexcept nogil

# Translate for data access; fills the TLB where the page is RAM. Returns 0 with *host set to the byte's host
# address (NULL: MMIO, or no memory there, or a write to ROM, or a write to a page that holds translated code; then *gpa tells).
cdef int lookup(VCpu* c, uint64_t va, int access, int table, uint8_t** host, uint64_t* gpa) noexcept nogil

# Whether the first TLB lets the page at va be written.
cdef inline bint is_writable(VCpu* c, uint64_t va, int table) noexcept nogil:
    return c.tag_w[table][(va >> 12) & (TLB_SIZE - 1)] == va & ~<uint64_t>0xFFF

# Whether it does, or may be made to without that the guest could tell.
cdef bint may_write(VCpu* c, uint64_t va, int table) noexcept nogil

# Translate for instruction fetch through the ITLB.
cdef int lookup_exec(VCpu* c, uint64_t va, uint64_t* gpa) noexcept nogil

# Move bytes between the guest's linear memory and a buffer, as the processor itself does for descriptor tables,
# stacks and TSS (system = True: supervisor access whatever CPL) or as the program does (False). May cross pages;
# a write is checked on all its pages before the first byte is stored. MMIO reads give ones, MMIO writes are dropped (counted).
# Writes to pages with translated code call cache.invalidate_range through c.machine.
cdef int read_linear(VCpu* c, uint64_t va, void* buffer, int size, bint system) noexcept nogil
cdef int write_linear(VCpu* c, uint64_t va, const void* buffer, int size, bint system) noexcept nogil
# Both for seg:offset with segment checks (limit, type, canonical; #GP/#SS(0) as the SDM says)
cdef int read_segment(VCpu* c, int seg, uint64_t offset, void* buffer, int size) noexcept nogil
cdef int write_segment(VCpu* c, int seg, uint64_t offset, const void* buffer, int size) noexcept nogil
cdef int segment_linear(VCpu* c, int seg, uint64_t offset, int size, bint write, uint64_t* linear) noexcept nogil

cdef void flush_tlb(VCpu* c, bint keep_global) noexcept nogil    # also the ITLB and jump caches
cdef void init_tlb(VCpu* c) noexcept nogil                       # of fresh memory; after jump_miss is set
# A CR3 write: flush_tlb but for what is global and, if `keep`, what was kept of PCID `new`
cdef void switch_space(VCpu* c, uint32_t old, uint32_t new, bint keep) noexcept nogil
cdef void forget_space(VCpu* c, uint32_t pcid) noexcept nogil
cdef void forget_spaces(VCpu* c) noexcept nogil
cdef void empty_tlb(VCpu* c) noexcept nogil                      # flush_tlb and the second levels too
cdef void flush_jumps(VCpu* c) noexcept nogil                    # the jump caches alone
cdef void flush_page(VCpu* c, uint64_t va) noexcept nogil        # INVLPG: every table, large pages too
# Enter a landing pad: the jump cache belongs to the address space, like the TLB.
# Where another target has its place, the second one gets `entry`, of the same block, which looks at no address.
cdef void jump_cache_insert(VCpu* c, int table, uint64_t pc, uint64_t host, uint64_t entry) noexcept nogil
# Where a target's second entry is: two targets that share the first rarely share this one, nor do two address spaces
cdef inline int second_hash(uint64_t pc, uint64_t key) noexcept nogil:
    return <int>(<uint32_t>(<uint32_t>(pc + key) * <uint32_t>0x9E3779B1) >> 19)
# The tag of an empty TLB entry: its page number belongs to another index, so that no address that selects the entry
# can match it, not even one that isn't canonical. Fresh memory is empty but for the entries of index 0.
cdef inline uint64_t empty_tag(int index) noexcept nogil:
    return 0x1000 if index == 0 else 0
cdef inline int jump_hash(uint64_t pc) noexcept nogil:
    return <int>(pc & (JUMP_SIZE - 1))
# Where a page's entry in the second TLB is
cdef inline int second_index(uint64_t va) noexcept nogil:
    return <int>(<uint32_t>((<uint32_t>va >> 12) * <uint32_t>0x9E3779B1) >> 22)
# Writes to guest-physical page `gpa` must be seen again (it now holds translated code): drop tag_w of entries for that host page.
# Any thread may call it, after it has set slot.code[page] (lookup looks at that again after it fills an entry).
cdef bint protect_page(VCpu* c, uint8_t* host_page) noexcept nogil

# The hook by which mmu tells the code cache of a write to a page that holds translated code (set by run.py):
cdef void (*on_code_write)(VCpu* c, uint64_t gpa, int size) noexcept nogil
# Behind every write by the monitor that didn't go through a TLB: tell it if the page holds code. Behind, so that no
# other vCPU translates the old bytes in between.
cdef void code_written(VCpu* c, Slot* slot, uint64_t gpa, int size) noexcept nogil

# ---- pieces for the monitor's own modules
cdef int table_for(VCpu* c, int cpl) noexcept nogil              # the table of explicit accesses at that CPL
cdef int system_table(VCpu* c) noexcept nogil                    # of implicit supervisor accesses
cdef void note_watched(VCpu* c, uint64_t va, uint64_t size, int wanted) noexcept nogil
cdef int read_table(VCpu* c, uint64_t va, void* buffer, int size, int table) noexcept nogil
cdef int write_table(VCpu* c, uint64_t va, const void* buffer, int size, int table) noexcept nogil
cdef int raise_segment(VCpu* c, int seg) noexcept nogil          # #SS(0) for SS, else #GP(0); returns -1
cdef Slot* find_slot(VCpu* c, uint64_t gpa) noexcept nogil
cdef int read_physical(VCpu* c, uint64_t gpa, void* buffer, int size) noexcept nogil     # within one page; -1: no RAM there
cdef int write_physical(VCpu* c, uint64_t gpa, const void* buffer, int size) noexcept nogil
