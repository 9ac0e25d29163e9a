from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

# struct virtio_net_hdr_v1 (virtio 1.2, 5.1.6), little-endian as the host is
cdef packed struct NetHeader:
    uint8_t flags
    uint8_t gso_type
    uint16_t hdr_len
    uint16_t gso_size
    uint16_t csum_start
    uint16_t csum_offset
    uint16_t num_buffers

cdef enum:
    HEADER_SIZE = 12
    MAX_FRAME = 65550            # a GSO frame: 65,535 bytes of IP behind an Ethernet header, with a VLAN tag
    NEEDS_CSUM = 1               # flags
    DATA_VALID = 2
    GSO_NONE = 0                 # gso_type
    GSO_TCPV4 = 1
    GSO_UDP = 3
    GSO_TCPV6 = 4
    GSO_UDP_L4 = 5
    GSO_ECN = 0x80

# A frame on its way to one who takes nothing large: what comes next, from where.
cdef class Segments:
    cdef uint8_t* frame          # the whole
    cdef uint32_t length
    cdef NetHeader header
    cdef uint32_t at             # of the payload that is still to go
    cdef uint32_t head           # bytes of headers that each segment begins with
    cdef uint32_t network        # where the IP header is
    cdef int version             # 4 or 6
    cdef uint32_t count          # segments so far
    cdef bint start(self, uint8_t* frame, uint32_t length, NetHeader* header) noexcept nogil
    cdef uint32_t next(self, uint8_t* out) noexcept nogil
    cdef uint32_t _next_fragment(self, uint8_t* out) noexcept nogil

cdef bint sound(NetHeader* header, uint32_t length) noexcept nogil
cdef bint finish(uint8_t* frame, uint32_t length, NetHeader* header) noexcept nogil
cdef uint32_t checksum(uint8_t* data, uint32_t length, uint32_t start) noexcept nogil
