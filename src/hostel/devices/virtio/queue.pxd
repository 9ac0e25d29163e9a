cimport cython
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from hostel.memory.ram cimport Ram

cdef extern from "<sys/eventfd.h>" nogil:
    int eventfd_write(int fd, uint64_t value)
    int eventfd_read(int fd, uint64_t* value)

cdef extern from "<sys/uio.h>" nogil:
    struct iovec:
        void* iov_base
        size_t iov_len

cdef extern from "<stdlib.h>" nogil:
    void* calloc(size_t count, size_t size)
    void* realloc(void* p, size_t size)
    void free(void* p)

cdef extern from * nogil:
    void fence "__sync_synchronize"()
    uint32_t atomic_or "__sync_fetch_and_or"(volatile uint32_t* word, uint32_t bits)
    uint32_t atomic_and "__sync_fetch_and_and"(volatile uint32_t* word, uint32_t bits)
    void fence_at "__atomic_thread_fence"(int order)     # 2: acquire, 3: release; nothing but an order for the compiler
    int exchange "__sync_lock_test_and_set"(volatile int* word, int value)

cdef enum:
    MAX_SIZE = 1024               # entries of a queue, and descriptors of a chain

cdef enum:                        # device status (virtio 1.2, 2.1)
    STATUS_ACKNOWLEDGE = 1
    STATUS_DRIVER = 2
    STATUS_DRIVER_OK = 4
    STATUS_FEATURES_OK = 8
    STATUS_NEEDS_RESET = 64
    STATUS_FAILED = 128

cdef enum:                        # why a device is broken; names in queue.py
    BAD_RING = 0
    BAD_AVAIL_INDEX = 1
    BAD_HEAD = 2
    BAD_NEXT = 3
    BAD_LOOP = 4
    BAD_ADDRESS = 5
    BAD_LENGTH = 6
    BAD_ORDER = 7
    BAD_INDIRECT = 8
    BAD_REUSE = 9
    NO_MEMORY = 10
    BAD_REQUEST = 11
    REASONS = 12

# A descriptor, split or packed: where the two differ, `next` is the packed one's flags and `flags` its id
cdef struct Descriptor:
    uint64_t address
    uint32_t length
    uint16_t flags
    uint16_t next

# A chain of descriptors in the device's hands: buffers it may read, then buffers it may write.
cdef struct Chain:
    iovec* iov                    # out_count readable ones, behind them in_count writable ones
    uint32_t out_count
    uint32_t in_count
    uint64_t out_bytes
    uint64_t in_bytes
    void* tag                     # the device's own
    uint64_t order                # the chains were taken in this order
    uint32_t capacity             # of iov
    uint16_t id                   # split: the head's index; packed: the buffer's id
    uint16_t slots                # packed: descriptors in the ring
    uint16_t number               # of this struct in its queue
    bint busy

cdef class Queue

# Who answers a notification on the thread of the vCPU that makes it. What he doesn't, he leaves to who waits for
# notify_fd, by wake().
cdef class Bell:
    cdef void rung(self, Queue queue) noexcept nogil

# What queues ask of the device's transport.
cdef class Transport:
    cdef volatile uint32_t status         # the device status field
    cdef volatile int running             # DRIVER_OK, not broken, and the device may do DMA
    cdef uint64_t broken[REASONS]         # how often, why
    cdef void interrupt(self, int queue) noexcept nogil         # used buffers
    cdef void config_interrupt(self) noexcept nogil             # the configuration changed, or a reset is needed
    cdef void fail(self, int reason) noexcept nogil

cdef class Queue:
    cdef readonly int index
    cdef readonly int max_size
    cdef readonly int size                # entries
    cdef readonly bint enabled
    cdef readonly bint packed
    cdef readonly bint event_idx
    cdef readonly bint indirect
    cdef readonly int notify_fd           # eventfd: the driver has made buffers available; see acknowledge()
    cdef readonly uint64_t descriptors, driver, device          # guest-physical addresses of the three areas
    cdef Transport transport
    cdef Bell bell                        # or None
    cdef Ram ram
    cdef list views                       # of the memory's slots, for Requests
    cdef uint8_t* desc_area               # host addresses of the three areas
    cdef uint8_t* driver_area
    cdef uint8_t* device_area
    cdef uint16_t next_avail              # split: runs freely; packed: the place in the ring
    cdef uint16_t next_used
    cdef bint avail_wrap, used_wrap       # packed: the wrap counters
    cdef uint16_t signalled               # split: next_used at the last signal()
    cdef uint32_t unsignalled             # packed: descriptors used since
    cdef bint listening                   # the driver has been asked to notify
    cdef bint holding                     # between hold() and publish()
    cdef uint8_t* held                    # packed: the first descriptor since, whose flags wait
    cdef uint16_t held_flags
    cdef int in_flight                    # chains taken and not yet used
    cdef uint32_t slots_in_flight
    cdef volatile int notified            # the eventfd has been written and acknowledge() not called since
    cdef public int budget                # chains that pop() may still give; -1: any number
    cdef Chain* chains                    # max_size of them; split: by head
    cdef uint16_t* spare                  # packed: numbers of those that are free, a stack
    cdef int spare_count
    cdef uint16_t* again                  # numbers of chains that were given back, a stack
    cdef int again_count
    cdef uint64_t popped
    cdef readonly uint64_t generation     # counts resets: chains of before are void
    cdef readonly uint64_t requests, kicks, interrupts, bytes_in, bytes_out
    cdef void ring(self) noexcept nogil                          # the driver's notification; any thread
    cdef void wake(self) noexcept nogil                          # make notify_fd readable; any thread
    cdef void acknowledge(self) noexcept nogil                   # notify_fd was readable: whoever waits for it, before pop()
    cdef Chain* pop(self) noexcept nogil                         # the next chain, or NULL
    cdef void unpop(self, Chain* chain) noexcept nogil           # give it back: the next pop() returns it
    cdef void push(self, Chain* chain, uint64_t written) noexcept nogil   # used; `written` bytes from the first writable on
    cdef void hold(self) noexcept nogil                          # what is pushed from here on ...
    cdef void publish(self) noexcept nogil                       # ... the driver sees at once: several chains, one packet
    cdef void signal(self) noexcept nogil                        # interrupt, if the driver wants to know of what was pushed
    cdef void fail(self, int reason) noexcept nogil              # the device needs a reset
    cdef bint available(self) noexcept nogil
    cdef void listen(self) noexcept nogil
    cdef void ignore(self) noexcept nogil
    cdef Chain* new_chain(self, int number) noexcept nogil
    cdef bint add(self, Chain* chain, uint64_t address, uint32_t length, bint writable) noexcept nogil
    cdef uint8_t* table(self, uint64_t address, uint32_t length) noexcept nogil
    cdef Chain* take(self, Chain* chain) noexcept nogil
    cdef Chain* pop_split(self) noexcept nogil
    cdef Chain* pop_packed(self) noexcept nogil
    cdef bint walk_split(self, Chain* chain, uint32_t index) noexcept nogil
    cdef bint walk_packed(self, Chain* chain) noexcept nogil
    cdef void show_used(self) noexcept nogil
    cdef void release(self, Chain* chain) noexcept nogil
    cdef void touched(self, Chain* chain, uint64_t written) noexcept nogil
    cdef bint wants_interrupt(self) noexcept nogil

# A chain for devices in plain Python
@cython.freelist(64)
cdef class Request:
    cdef readonly Queue queue
    cdef Chain* chain
    cdef uint64_t generation
    cdef uint64_t filled                  # bytes that write() has stored
    cdef readonly uint64_t readable_bytes, writable_bytes

# Copies between a chain and a buffer, from `offset` bytes on; they return how many bytes there were
cdef uint64_t gather(const Chain* chain, uint64_t offset, void* buffer, uint64_t size) noexcept nogil
cdef uint64_t scatter(const Chain* chain, uint64_t offset, const void* buffer, uint64_t size) noexcept nogil
