from libc.stdint cimport uint8_t, uint64_t

# xxHash's 64-bit rounds over the 512 words of a page
cdef uint64_t page_hash(const uint64_t* word, uint64_t seed) noexcept nogil
