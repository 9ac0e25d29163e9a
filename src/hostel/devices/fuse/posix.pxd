# The system calls that a share needs. All take descriptors; a name is one component, beneath a descriptor.
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from posix.time cimport timespec

cdef extern from "<sys/uio.h>" nogil:
    struct iovec:
        void* iov_base
        size_t iov_len
    ssize_t preadv2(int fd, const iovec* vector, int count, int64_t offset, int flags)
    ssize_t pwritev2(int fd, const iovec* vector, int count, int64_t offset, int flags)
    enum: RWF_APPEND, RWF_NOWAIT

cdef extern from "<fcntl.h>" nogil:
    enum:
        O_RDONLY, O_WRONLY, O_RDWR, O_ACCMODE, O_CREAT, O_EXCL, O_TRUNC, O_APPEND, O_NONBLOCK, O_NOCTTY, O_NOFOLLOW
        O_DIRECTORY, O_CLOEXEC, O_PATH, O_TMPFILE
        AT_FDCWD, AT_EMPTY_PATH, AT_SYMLINK_NOFOLLOW, AT_SYMLINK_FOLLOW, AT_NO_AUTOMOUNT, AT_REMOVEDIR
        FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE, FALLOC_FL_ZERO_RANGE
    int openat(int folder, const char* name, int flags, ...)
    int fallocate(int fd, int mode, int64_t offset, int64_t length)

cdef extern from "<unistd.h>" nogil:
    enum: SEEK_SET, SEEK_DATA, SEEK_HOLE
    uint32_t geteuid()
    uint32_t getegid()
    int close(int fd)
    int fsync(int fd)
    int fdatasync(int fd)
    int syncfs(int fd)
    int ftruncate(int fd, int64_t size)
    int64_t lseek(int fd, int64_t offset, int whence)
    int linkat(int old_folder, const char* old, int new_folder, const char* new, int flags)
    int symlinkat(const char* target, int folder, const char* name)
    int unlinkat(int folder, const char* name, int flags)
    ssize_t readlinkat(int folder, const char* name, char* buffer, size_t size)
    ssize_t copy_file_range(int source, int64_t* source_at, int target, int64_t* target_at, size_t length, unsigned flags)
    long syscall(long number, ...)

cdef extern from "<stdio.h>" nogil:
    enum: RENAME_NOREPLACE, RENAME_EXCHANGE
    int renameat2(int old_folder, const char* old, int new_folder, const char* new, unsigned flags)
    int snprintf(char* buffer, size_t size, const char* form, ...)

cdef extern from "<sys/stat.h>" nogil:
    enum: S_IFMT, S_IFREG, S_IFDIR, S_IFLNK, S_IFIFO, S_IFSOCK, S_ISUID, S_ISGID, S_ISVTX, S_IXGRP, UTIME_NOW, UTIME_OMIT
    int fchmod(int fd, unsigned mode)
    int futimens(int fd, const timespec* times)
    int mkdirat(int folder, const char* name, unsigned mode)
    int mknodat(int folder, const char* name, unsigned mode, uint64_t device)

cdef extern from "<sys/xattr.h>" nogil:
    ssize_t fgetxattr(int fd, const char* name, void* value, size_t size)
    int fsetxattr(int fd, const char* name, const void* value, size_t size, int flags)
    int fremovexattr(int fd, const char* name)
    ssize_t flistxattr(int fd, char* list, size_t size)

cdef extern from "<sys/vfs.h>" nogil:
    struct statfs_t "statfs":
        uint64_t f_blocks, f_bfree, f_bavail, f_files, f_ffree
        int64_t f_bsize, f_namelen, f_frsize
    int fstatfs(int fd, statfs_t* result)

cdef extern from "<time.h>" nogil:
    enum: CLOCK_REALTIME_COARSE
    int clock_gettime(int clock, timespec* now)

cdef enum:                        # arch/x86/entry/syscalls/syscall_64.tbl
    SYS_GETDENTS64 = 217
    SYS_STATX = 332

cdef enum:                        # statx(2); C libraries differ in what they declare of it
    STATX_BASIC_STATS = 0x7FF
    STATX_BTIME = 0x800
    STATX_MNT_ID = 0x1000

cdef struct StatxTime:
    int64_t sec
    uint32_t nsec
    uint32_t reserved

cdef struct Statx:
    uint32_t mask
    uint32_t blksize
    uint64_t attributes
    uint32_t nlink
    uint32_t uid
    uint32_t gid
    uint16_t mode
    uint16_t spare0
    uint64_t ino
    uint64_t size
    uint64_t blocks
    uint64_t attributes_mask
    StatxTime atime
    StatxTime btime
    StatxTime ctime
    StatxTime mtime
    uint32_t rdev_major
    uint32_t rdev_minor
    uint32_t dev_major
    uint32_t dev_minor
    uint64_t mnt_id
    uint64_t spare[13]

cdef struct Dirent:               # linux_dirent64; the name follows at its 19th byte
    uint64_t ino
    int64_t off
    uint16_t reclen
    uint8_t type
