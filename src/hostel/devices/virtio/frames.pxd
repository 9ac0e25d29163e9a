from hostel.base.token_bucket cimport TokenBucket
from hostel.devices.virtio.offload cimport MAX_FRAME, NetHeader, Segments
from hostel.devices.virtio.queue cimport Chain, Queue, iovec
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t

cdef extern from "<sys/uio.h>" nogil:
    ssize_t readv(int fd, const iovec* iov, int count)
    ssize_t writev(int fd, const iovec* iov, int count)

cdef enum:
    HEAD = 26                     # bytes of a frame that are looked at in memory of ours: header, addresses, type
    WINDOW = 256                  # chains that one frame may be spread over
    MAX_IOV = 1000                # below the kernel's UIO_MAXIOV
    STAGE_SIZE = 12 + MAX_FRAME

cdef enum:                        # why pump stopped
    DONE = 0                      # nothing more to do
    MORE = 1                      # others must have their turn
    FULL = 2                      # transmit: the descriptor takes no more; receive: the guest has no room
    LATE = 3                      # the rate's limit: after wait_ns
    GONE = 4                      # the other end has closed

# What frames a card lets through: the driver's wishes and the host's rules; shared by its pairs
cdef class Filter:
    cdef uint8_t mac[6]
    cdef uint8_t own[6]                   # what the host gave it
    cdef public bint spoof                # the guest may send with any source
    cdef public bint promiscuous, all_multicast, all_unicast, no_multicast, no_unicast, no_broadcast
    cdef public bint multicast_overflow, unicast_overflow
    cdef uint8_t table[64][6]
    cdef int unicasts, multicasts         # in table, in this order
    cdef public bint vlan                 # tagged frames only of these VLANs
    cdef uint8_t vlans[512]
    cdef bint wants(self, uint8_t* frame) noexcept nogil

cdef class Pair:
    cdef Queue rx, tx
    cdef readonly int fd
    cdef Filter filter
    cdef readonly TokenBucket out_rate, in_rate
    cdef bint mergeable
    cdef bint csum, tso4, tso6, ecn, ufo, uso                            # the guest may leave it to us
    cdef bint guest_csum, guest_tso4, guest_tso6, guest_ecn, guest_ufo, guest_uso4, guest_uso6    # or we to it
    cdef bint may_ufo, may_uso            # what may come from the descriptor
    cdef uint32_t largest                 # a frame that isn't to be cut, with its Ethernet header and a tag
    cdef iovec iov[1026]
    cdef uint8_t head[HEAD]
    cdef Chain* window[WINDOW]
    cdef int chains
    cdef uint64_t room
    cdef uint8_t* stage                   # a frame that must be worked on, or waits for buffers
    cdef uint32_t staged                  # its bytes, header and all; 0: none
    cdef uint8_t* piece                   # what is next of it for the guest
    cdef uint32_t piece_size
    cdef Segments segments
    cdef bint cutting
    cdef readonly int64_t wait_ns
    cdef readonly uint64_t tx_frames, tx_bytes, rx_frames, rx_bytes, direct
    cdef readonly uint64_t malformed, spoofed, too_long, refused, filtered, no_room, unsound, segmented
    cdef int transmit_some(self, int budget) noexcept nogil
    cdef bint check_out(self, uint32_t size) noexcept nogil
    cdef int receive_some(self, int budget) noexcept nogil
    cdef int read_direct(self) noexcept nogil
    cdef int read_staged(self) noexcept nogil
    cdef bint prepare(self) noexcept nogil
    cdef int deliver(self) noexcept nogil
    cdef bint next_piece(self) noexcept nogil
    cdef bint takes(self, NetHeader* header) noexcept nogil
    cdef void gather_room(self, uint64_t enough) noexcept nogil
    cdef void give_back(self) noexcept nogil
    cdef int use(self, uint64_t size) noexcept nogil
