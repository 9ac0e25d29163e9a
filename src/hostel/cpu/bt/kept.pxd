from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from hostel.cpu.bt.cache cimport Cache
from hostel.cpu.bt.translation cimport Translation
from hostel.cpu.bt.vcpu cimport VCpu

cdef extern from "<unistd.h>" nogil:
    ssize_t write(int fd, const void* p, size_t size)

cdef enum:
    VERSION = 1
    UNSUMMED = 16                # bytes of a record before what its sum is of
    KEY_SIZE = 32
    KEY_BYTES = 16               # of the guest's, from a block's first on, go into its key
    MAX_PROBES = 32              # places of the table that are looked at
    MOST_WISHES = 48 << 20       # bytes that one machine tells
    PART_WISHES = 1              # kinds of parts in a file of wishes
    PART_MARKS = 2               # a bit for each place of the table adopted from
    IN_COLD = 0x8000             # of an offset: from the start of a block's cold part, else from its start
    NOWHERE = 0xFFFF

# A file of kept translations: this, a table of uint64_t (a key's upper 32 bits << 32 | a record's offset / 8; 0: none),
# records. Numbers are the host's own, little-endian.
cdef struct Head:
    char magic[8]
    uint32_t version
    uint32_t slots               # of the table, a power of 2; it follows this
    uint8_t key[KEY_SIZE]        # of the translator and the processor that they are for
    uint64_t stamp               # no two files have the same
    uint64_t size                # bytes of the file
    uint64_t sum                 # of this with `sum` as 0, and of the table

# A block. Behind it lie its Insns, Sites, Faults, Places (sites', stubs', parts'), its guest bytes, its code, its cold
# code, and zeros up to a multiple of 8
cdef struct Record:
    uint64_t sum                 # of what follows `used`
    uint32_t size                # bytes of all of it
    uint32_t used                # how many files ago somebody last wanted it
    uint64_t key                 # where the table has it
    uint64_t pc                  # as Block.pc
    uint32_t mode
    uint16_t low                 # in the page: the first of the guest's bytes, and their number
    uint16_t guest
    uint16_t insns
    uint16_t hot                 # bytes of code, and of cold code
    uint16_t cold
    uint16_t pad                 # from the start
    uint16_t entry_host
    uint16_t entry_mem
    uint16_t cold_host           # from the start of the cold part
    uint16_t cold_mem
    uint16_t shift               # its start modulo 8
    uint16_t n_pool
    uint16_t n_sites
    uint16_t n_faults
    uint16_t n_site_places
    uint16_t n_stub_places
    uint16_t n_part_places
    uint16_t unused

cdef struct KeptSite:            # a Site
    uint64_t pc
    uint16_t host                # an offset, or NOWHERE
    uint16_t extra               # SK_SYS: among the block's own Insns
    uint16_t size
    uint16_t span
    uint16_t delta
    uint8_t kind
    uint8_t access
    uint8_t window_access
    uint8_t check
    uint16_t unused[2]

cdef struct KeptFault:           # a Fault
    uint16_t host
    uint16_t site
    uint16_t flags_in_host
    uint16_t unused

cdef struct Place:               # 4 bytes of code that depend on where it lies
    uint16_t at
    uint16_t value               # a site of the block's; a stub's offset in code memory; an offset in the other part

# In a file of wishes, behind who they are from (vm/translations): each part begins so
cdef struct Part:
    uint32_t kind
    uint32_t size                # bytes that follow

cdef struct Wish:                # a block that was translated; its guest bytes follow, and zeros up to a multiple of 8
    uint64_t pc
    uint32_t mode
    uint16_t low
    uint16_t guest               # so many it depends on
    uint16_t bytes               # so many follow: as far as its key needs
    uint16_t unused[3]

cdef bint can_keep(Cache* m, uint32_t mode) noexcept nogil
cdef uint32_t adopt(Cache* m, VCpu* c, uint64_t gpa, uint32_t mode) noexcept nogil
cdef void wish(Cache* m, uint32_t number) noexcept nogil
cdef void tell_wishes(Cache* m) noexcept nogil
cdef size_t keep(Translation* t, uint32_t number, const uint8_t* page, uint8_t* out, size_t room) noexcept nogil
cdef uint64_t sum_up(const uint8_t* p, size_t size) noexcept nogil
