# The FUSE protocol as Linux 5.10 and later speak it (include/uapi/linux/fuse.h; the names are its own, without fuse_
# and FUSE_), and the values of system calls' arguments that headers name differently.
from libc.stdint cimport int32_t, int64_t, uint16_t, uint32_t, uint64_t

cdef enum:
    KERNEL_VERSION = 7
    KERNEL_MINOR_VERSION = 38
    OLDEST_MINOR_VERSION = 31     # Linux 5.4's, the first with virtiofs
    ROOT_ID = 1

cdef enum:                        # opcodes
    LOOKUP = 1
    FORGET = 2
    GETATTR = 3
    SETATTR = 4
    READLINK = 5
    SYMLINK = 6
    MKNOD = 8
    MKDIR = 9
    UNLINK = 10
    RMDIR = 11
    RENAME = 12
    LINK = 13
    OPEN = 14
    READ = 15
    WRITE = 16
    STATFS = 17
    RELEASE = 18
    FSYNC = 20
    SETXATTR = 21
    GETXATTR = 22
    LISTXATTR = 23
    REMOVEXATTR = 24
    FLUSH = 25
    INIT = 26
    OPENDIR = 27
    READDIR = 28
    RELEASEDIR = 29
    FSYNCDIR = 30
    GETLK = 31
    SETLK = 32
    SETLKW = 33
    ACCESS = 34
    CREATE = 35
    INTERRUPT = 36
    BMAP = 37
    DESTROY = 38
    IOCTL = 39
    POLL = 40
    NOTIFY_REPLY = 41
    BATCH_FORGET = 42
    FALLOCATE = 43
    READDIRPLUS = 44
    RENAME2 = 45
    LSEEK = 46
    COPY_FILE_RANGE = 47
    SYNCFS = 50
    TMPFILE = 51
    OPCODES = 64                  # for counters; higher ones are counted as 0

cdef enum:                        # init flags
    INIT_ASYNC_READ = 1 << 0
    INIT_ATOMIC_O_TRUNC = 1 << 3
    INIT_BIG_WRITES = 1 << 5
    INIT_AUTO_INVAL_DATA = 1 << 12
    INIT_DO_READDIRPLUS = 1 << 13
    INIT_READDIRPLUS_AUTO = 1 << 14
    INIT_PARALLEL_DIROPS = 1 << 18
    INIT_MAX_PAGES = 1 << 22
    INIT_CACHE_SYMLINKS = 1 << 23
    INIT_HANDLE_KILLPRIV_V2 = 1 << 28

cdef enum:
    FATTR_MODE = 1 << 0
    FATTR_UID = 1 << 1
    FATTR_GID = 1 << 2
    FATTR_SIZE = 1 << 3
    FATTR_ATIME = 1 << 4
    FATTR_MTIME = 1 << 5
    FATTR_FH = 1 << 6
    FATTR_ATIME_NOW = 1 << 7
    FATTR_MTIME_NOW = 1 << 8
    FATTR_KILL_SUIDGID = 1 << 11
    GETATTR_FH = 1
    OPEN_KILL_SUIDGID = 1
    WRITE_KILL_SUIDGID = 1 << 2
    FSYNC_FDATASYNC = 1
    FOPEN_KEEP_CACHE = 1 << 1
    FOPEN_CACHE_DIR = 1 << 3

cdef struct in_header:
    uint32_t len
    uint32_t opcode
    uint64_t unique
    uint64_t nodeid
    uint32_t uid
    uint32_t gid
    uint32_t pid
    uint32_t padding

cdef struct out_header:
    uint32_t len
    int32_t error
    uint64_t unique

cdef struct attr:
    uint64_t ino
    uint64_t size
    uint64_t blocks
    uint64_t atime
    uint64_t mtime
    uint64_t ctime
    uint32_t atimensec
    uint32_t mtimensec
    uint32_t ctimensec
    uint32_t mode
    uint32_t nlink
    uint32_t uid
    uint32_t gid
    uint32_t rdev
    uint32_t blksize
    uint32_t flags

cdef struct entry_out:
    uint64_t nodeid
    uint64_t generation
    uint64_t entry_valid
    uint64_t attr_valid
    uint32_t entry_valid_nsec
    uint32_t attr_valid_nsec
    attr attr

cdef struct attr_out:
    uint64_t attr_valid
    uint32_t attr_valid_nsec
    uint32_t dummy
    attr attr

cdef struct init_in:
    uint32_t major
    uint32_t minor
    uint32_t max_readahead
    uint32_t flags

cdef struct init_out:
    uint32_t major
    uint32_t minor
    uint32_t max_readahead
    uint32_t flags
    uint16_t max_background
    uint16_t congestion_threshold
    uint32_t max_write
    uint32_t time_gran
    uint16_t max_pages
    uint16_t map_alignment
    uint32_t flags2
    uint32_t unused[7]

cdef struct getattr_in:
    uint32_t getattr_flags
    uint32_t dummy
    uint64_t fh

cdef struct setattr_in:
    uint32_t valid
    uint32_t padding
    uint64_t fh
    uint64_t size
    uint64_t lock_owner
    uint64_t atime
    uint64_t mtime
    uint64_t ctime
    uint32_t atimensec
    uint32_t mtimensec
    uint32_t ctimensec
    uint32_t mode
    uint32_t unused4
    uint32_t uid
    uint32_t gid
    uint32_t unused5

cdef struct mknod_in:
    uint32_t mode
    uint32_t rdev
    uint32_t umask
    uint32_t padding

cdef struct mkdir_in:
    uint32_t mode
    uint32_t umask

cdef struct rename2_in:           # RENAME has only the first field
    uint64_t newdir
    uint32_t flags
    uint32_t padding

cdef struct link_in:
    uint64_t oldnodeid

cdef struct open_in:
    uint32_t flags
    uint32_t open_flags

cdef struct open_out:
    uint64_t fh
    uint32_t open_flags
    uint32_t padding

cdef struct create_in:            # TMPFILE's too
    uint32_t flags
    uint32_t mode
    uint32_t umask
    uint32_t open_flags

cdef struct create_out:
    entry_out entry
    open_out open

cdef struct release_in:
    uint64_t fh
    uint32_t flags
    uint32_t release_flags
    uint64_t lock_owner

cdef struct read_in:              # READDIR's and READDIRPLUS's too
    uint64_t fh
    uint64_t offset
    uint32_t size
    uint32_t read_flags
    uint64_t lock_owner
    uint32_t flags
    uint32_t padding

cdef struct write_in:
    uint64_t fh
    uint64_t offset
    uint32_t size
    uint32_t write_flags
    uint64_t lock_owner
    uint32_t flags
    uint32_t padding

cdef struct write_out:
    uint32_t size
    uint32_t padding

cdef struct kstatfs:
    uint64_t blocks
    uint64_t bfree
    uint64_t bavail
    uint64_t files
    uint64_t ffree
    uint32_t bsize
    uint32_t namelen
    uint32_t frsize
    uint32_t padding
    uint32_t spare[6]

cdef struct fsync_in:
    uint64_t fh
    uint32_t fsync_flags
    uint32_t padding

cdef struct setxattr_in:          # without FUSE_SETXATTR_EXT
    uint32_t size
    uint32_t flags

cdef struct getxattr_in:          # LISTXATTR's too
    uint32_t size
    uint32_t padding

cdef struct fallocate_in:
    uint64_t fh
    uint64_t offset
    uint64_t length
    uint32_t mode
    uint32_t padding

cdef struct lseek_in:
    uint64_t fh
    uint64_t offset
    uint32_t whence
    uint32_t padding

cdef struct copy_file_range_in:
    uint64_t fh_in
    uint64_t off_in
    uint64_t nodeid_out
    uint64_t fh_out
    uint64_t off_out
    uint64_t len
    uint64_t flags

cdef struct forget_in:
    uint64_t nlookup

cdef struct forget_one:
    uint64_t nodeid
    uint64_t nlookup

cdef struct batch_forget_in:
    uint32_t count
    uint32_t dummy

cdef struct dirent:               # the name follows, padded to 8 bytes
    uint64_t ino
    uint64_t off
    uint32_t namelen
    uint32_t type

cdef struct direntplus:
    entry_out entry
    dirent entry_dirent
