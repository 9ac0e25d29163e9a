"""A FUSE server for one folder of the host's: the requests of a guest's kernel, answered without the GIL.

``handle`` takes a request as pieces of memory, those that it may read and those that it may write, and returns how
many bytes it has written. Nothing is kept from one request to the next but what the guest must tell of again: inodes
(inodes, tree) and open files (handles). Requests on
names are in names, those on extended attributes in xattrs, what all share is in session.

What the guest's kernel does itself: permissions (``default_permissions``) and locks. What it isn't offered: devices,
ioctls, ACLs, writing back later. FLUSH says ENOSYS, so that closing a file costs one request and not two.

Limits: inodes, descriptors for them and open files are bounded (``Server``'s arguments); 1 MiB a READ or WRITE.

Lock: ``mutex``, around each request.
"""


import cython
from cython.cimports.cpython.bytes import PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cython.cimports.hostel.base.lock import lock, unlock
from cython.cimports.hostel.devices.fuse.abi import (
    ACCESS,
    BATCH_FORGET,
    BMAP,
    COPY_FILE_RANGE,
    CREATE,
    DESTROY,
    FALLOCATE,
    FATTR_ATIME,
    FATTR_ATIME_NOW,
    FATTR_FH,
    FATTR_GID,
    FATTR_KILL_SUIDGID,
    FATTR_MODE,
    FATTR_MTIME,
    FATTR_MTIME_NOW,
    FATTR_SIZE,
    FATTR_UID,
    FLUSH,
    FORGET,
    FSYNC,
    FSYNC_FDATASYNC,
    FSYNCDIR,
    GETATTR,
    GETATTR_FH,
    GETLK,
    GETXATTR,
    INIT,
    INIT_ASYNC_READ,
    INIT_ATOMIC_O_TRUNC,
    INIT_AUTO_INVAL_DATA,
    INIT_BIG_WRITES,
    INIT_CACHE_SYMLINKS,
    INIT_DO_READDIRPLUS,
    INIT_HANDLE_KILLPRIV_V2,
    INIT_MAX_PAGES,
    INIT_PARALLEL_DIROPS,
    INIT_READDIRPLUS_AUTO,
    INTERRUPT,
    IOCTL,
    KERNEL_MINOR_VERSION,
    KERNEL_VERSION,
    LINK,
    LISTXATTR,
    LOOKUP,
    LSEEK,
    MKDIR,
    MKNOD,
    OLDEST_MINOR_VERSION,
    OPCODES,
    OPEN,
    OPEN_KILL_SUIDGID,
    OPENDIR,
    POLL,
    READ,
    READDIR,
    READDIRPLUS,
    READLINK,
    RELEASE,
    RELEASEDIR,
    REMOVEXATTR,
    RENAME,
    RENAME2,
    RMDIR,
    ROOT_ID,
    SETATTR,
    SETLK,
    SETLKW,
    SETXATTR,
    STATFS,
    SYMLINK,
    SYNCFS,
    TMPFILE,
    UNLINK,
    WRITE,
    WRITE_KILL_SUIDGID,
    attr_out,
    batch_forget_in,
    copy_file_range_in,
    dirent,
    direntplus,
    entry_out,
    fallocate_in,
    forget_in,
    forget_one,
    fsync_in,
    getattr_in,
    in_header,
    init_in,
    init_out,
    kstatfs,
    lseek_in,
    open_in,
    open_out,
    out_header,
    read_in,
    release_in,
    rename2_in,
    setattr_in,
    write_in,
    write_out,
)
from cython.cimports.hostel.devices.fuse.handles import Dent, Handle, Handles
from cython.cimports.hostel.devices.fuse.inodes import Inode, Inodes
from cython.cimports.hostel.devices.fuse.posix import (
    FALLOC_FL_KEEP_SIZE,
    FALLOC_FL_PUNCH_HOLE,
    FALLOC_FL_ZERO_RANGE,
    O_ACCMODE,
    O_APPEND,
    O_DIRECTORY,
    O_RDONLY,
    O_TRUNC,
    O_WRONLY,
    RWF_APPEND,
    RWF_NOWAIT,
    S_IFDIR,
    S_IFLNK,
    S_IFMT,
    S_IFREG,
    S_ISGID,
    S_ISUID,
    S_IXGRP,
    SEEK_DATA,
    SEEK_HOLE,
    UTIME_NOW,
    UTIME_OMIT,
    Statx,
    close,
    copy_file_range,
    fallocate,
    fdatasync,
    fstatfs,
    fsync,
    ftruncate,
    futimens,
    getegid,
    geteuid,
    iovec,
    lseek,
    preadv2,
    pwritev2,
    readlinkat,
    statfs_t,
    syncfs,
)
from cython.cimports.hostel.devices.fuse.session import (
    CACHE_ALWAYS,
    CACHE_AUTO,
    CACHE_NONE,
    MAX_PAGES,
    MAX_WRITE,
    NAME_MAX,
    REPLY_MAX,
    REQUEST_MAX,
)
from cython.cimports.hostel.devices.fuse.tree import Owner, Tree
from cython.cimports.hostel.devices.fuse.xattrs import Xattrs
from cython.cimports.libc.errno import (
    EACCES,
    EAGAIN,
    EBADF,
    EINVAL,
    EIO,
    ENFILE,
    ENOSYS,
    EOPNOTSUPP,
    ERANGE,
    EROFS,
    ESTALE,
    EXDEV,
    errno,
)
from cython.cimports.libc.stdint import int64_t, uint32_t, uint64_t
from cython.cimports.libc.string import memcpy, memset, strcmp, strlen
from cython.cimports.posix.time import timespec

from hostel.base.errors import MachineError

_VERSION = 1
CACHES = {"none": CACHE_NONE, "auto": CACHE_AUTO, "always": CACHE_ALWAYS}
TIMEOUTS = {"none": 0, "auto": 1, "always": 86400}   # seconds that the guest may believe what it was told
OPCODE_NAMES = {
    0: "unknown", FLUSH: "flush", GETLK: "getlk", SETLK: "setlk", SETLKW: "setlkw", BMAP: "bmap", IOCTL: "ioctl",
    POLL: "poll",
    LOOKUP: "lookup", FORGET: "forget", GETATTR: "getattr", SETATTR: "setattr", READLINK: "readlink",
    SYMLINK: "symlink", MKNOD: "mknod", MKDIR: "mkdir", UNLINK: "unlink", RMDIR: "rmdir", RENAME: "rename",
    LINK: "link", OPEN: "open", READ: "read", WRITE: "write", STATFS: "statfs", RELEASE: "release", FSYNC: "fsync",
    SETXATTR: "setxattr", GETXATTR: "getxattr", LISTXATTR: "listxattr", REMOVEXATTR: "removexattr", INIT: "init",
    OPENDIR: "opendir", READDIR: "readdir", RELEASEDIR: "releasedir", FSYNCDIR: "fsyncdir", ACCESS: "access",
    CREATE: "create", INTERRUPT: "interrupt", DESTROY: "destroy", BATCH_FORGET: "batch_forget",
    FALLOCATE: "fallocate", READDIRPLUS: "readdirplus", RENAME2: "rename2", LSEEK: "lseek",
    COPY_FILE_RANGE: "copy_file_range", SYNCFS: "syncfs", TMPFILE: "tmpfile",
}  # fmt: skip


@cython.cclass
class Server(Xattrs):
    """``root`` is an O_PATH descriptor of the folder, which this takes. At most ``inodes`` files are known to the guest
    at once, ``descriptors`` of them held open, and ``files`` open for the guest."""

    def __init__(
        self, root: cython.int, readonly: cython.bint = False, keeps_owners: cython.bint = True, cache: str = "auto",
        inodes: uint32_t = 1 << 20, descriptors: uint32_t = 4096, files: uint32_t = 8192,
    ):
        self.readonly = readonly
        self.cache = CACHES[cache]
        self.inodes = Inodes(inodes, descriptors)
        self.handles = Handles(self.inodes, files)
        self.tree = Tree(self.inodes, root, keeps_owners, TIMEOUTS[cache])

    # -- from request to reply

    def handle(self, vector, readable, writable, hasty):
        """Answer the request in the first ``readable`` pieces of ``vector``, into the ``writable`` ones behind them;
        how many bytes were stored there. A ``hasty`` one isn't answered where it would have to wait for a file's
        contents: ``LATER``."""
        size: uint64_t
        lock(cython.address(self.mutex))
        self.readable = vector
        self.readable_count = readable
        self.writable = vector + readable
        self.writable_count = writable
        self.hasty = hasty
        size = self.answer()
        unlock(cython.address(self.mutex))
        return size

    def answer(self):
        i: uint32_t
        room: uint64_t = 0
        total: uint64_t = 0
        size: int64_t
        inode: cython.pointer(Inode)
        header: cython.pointer(out_header)
        for i in range(self.writable_count):
            room += self.writable[i].iov_len
        for i in range(self.readable_count):
            total += self.readable[i].iov_len
        if self.gather(0, cython.address(self.header), cython.sizeof(in_header)) < cython.sizeof(in_header):
            self.malformed += 1
            return 0
        self.counts[self.header.opcode if self.header.opcode < OPCODES else 0] += 1
        self.inodes.request += 1
        self.in_place = False
        total -= cython.sizeof(in_header)
        self.argument_size = cython.cast(uint32_t, total) if total < REQUEST_MAX else REQUEST_MAX
        if self.header.opcode == WRITE and self.argument_size > cython.sizeof(write_in):
            self.argument_size = cython.sizeof(write_in)
        self.gather(cython.sizeof(in_header), self.argument, self.argument_size)
        if self.header.opcode == FORGET or self.header.opcode == BATCH_FORGET or self.header.opcode == INTERRUPT:
            self.forget_many()  # an interrupted request has been answered by now
            return 0
        if room < cython.sizeof(out_header):
            self.malformed += 1
            return 0
        self.room = room - cython.sizeof(out_header)
        if self.header.len > total + cython.sizeof(in_header) or self.header.len < cython.sizeof(in_header):
            self.malformed += 1
            size = -EINVAL
        elif self.header.opcode == INIT:
            size = self.begin()
        elif not self.started:
            size = -EIO
        else:
            inode = self.inodes.get(self.header.nodeid)
            size = self.dispatch(inode) if inode != cython.NULL else -ESTALE
        if size == LATER_ERROR:
            return LATER
        if size > cython.cast(int64_t, self.room):
            size = -ERANGE
        header = cython.cast(cython.pointer(out_header), self.reply - cython.sizeof(out_header))
        header.unique = self.header.unique
        header.error = 0
        if size < 0:
            self.errors += 1
            header.error = cython.cast(cython.int, size)
            size = 0
            self.in_place = False
        header.len = cython.cast(uint32_t, size + cython.sizeof(out_header))
        self.scatter(header, cython.sizeof(out_header) if self.in_place else header.len)
        return header.len

    def dispatch(self, inode):
        """The size of the reply, or -errno."""
        opcode: uint32_t = self.header.opcode
        if opcode == LOOKUP:
            return self.lookup(inode)
        elif opcode == GETATTR:
            return self.getattr(inode)
        elif opcode == READ:
            return self.read(inode)
        elif opcode == WRITE:
            return self.write(inode)
        elif opcode == OPEN:
            return self.open(inode)
        elif opcode == RELEASE:
            return self.release(inode, False)
        elif opcode == CREATE:
            return self.create(inode)
        elif opcode == SETATTR:
            return self.setattr(inode)
        elif opcode == OPENDIR:
            return self.opendir(inode)
        elif opcode == READDIR:
            return self.readdir(inode, False)
        elif opcode == READDIRPLUS:
            return self.readdir(inode, True)
        elif opcode == RELEASEDIR:
            return self.release(inode, True)
        elif opcode == READLINK:
            return self.readlink(inode)
        elif opcode == UNLINK:
            return self.unlink(inode, False)
        elif opcode == RMDIR:
            return self.unlink(inode, True)
        elif opcode == MKDIR:
            return self.mkdir(inode)
        elif opcode == MKNOD:
            return self.mknod(inode)
        elif opcode == SYMLINK:
            return self.symlink(inode)
        elif opcode == LINK:
            return self.link(inode)
        elif opcode == RENAME:
            return self.rename(inode, 8)
        elif opcode == RENAME2:
            return self.rename(inode, cython.sizeof(rename2_in))
        elif opcode == TMPFILE:
            return self.tmpfile(inode)
        elif opcode == STATFS:
            return self.statfs()
        elif opcode == FSYNC:
            return self.fsync(inode, False)
        elif opcode == FSYNCDIR:
            return self.fsync(inode, True)
        elif opcode == SYNCFS:
            return self.syncfs(inode)
        elif opcode == FALLOCATE:
            return self.fallocate(inode)
        elif opcode == LSEEK:
            return self.lseek(inode)
        elif opcode == COPY_FILE_RANGE:
            return self.copy_file_range(inode)
        elif opcode == GETXATTR or opcode == SETXATTR or opcode == LISTXATTR or opcode == REMOVEXATTR:
            return self.xattr(inode)
        elif opcode == DESTROY:
            self.handles.clear()
            self.inodes.clear()
            self.started = False
            return 0
        return -ENOSYS

    def begin(self):
        """INIT: a new guest, or a rebooted one."""
        wanted: cython.pointer(init_in) = cython.cast(cython.pointer(init_in), self.argument)
        out: cython.pointer(init_out) = cython.cast(cython.pointer(init_out), self.reply)
        if not self.has(cython.sizeof(init_in)):
            return -EINVAL
        if wanted.major < KERNEL_VERSION or wanted.major == KERNEL_VERSION and wanted.minor < OLDEST_MINOR_VERSION:
            return -EIO
        self.handles.clear()
        self.inodes.clear()
        self.tree.host_uid = geteuid()  # a worker's user isn't settled before it is confined
        self.tree.host_gid = getegid()
        memset(out, 0, cython.sizeof(init_out))
        out.major = KERNEL_VERSION
        out.minor = KERNEL_MINOR_VERSION
        if wanted.major > KERNEL_VERSION:
            return cython.sizeof(init_out)  # it will ask again with ours
        out.max_readahead = wanted.max_readahead
        flags: uint32_t = (
            INIT_ASYNC_READ | INIT_ATOMIC_O_TRUNC | INIT_BIG_WRITES | INIT_AUTO_INVAL_DATA | INIT_DO_READDIRPLUS
            | INIT_READDIRPLUS_AUTO | INIT_PARALLEL_DIROPS | INIT_MAX_PAGES | INIT_CACHE_SYMLINKS
            | INIT_HANDLE_KILLPRIV_V2
        )
        if self.cache == CACHE_ALWAYS:
            flags &= ~cython.cast(uint32_t, INIT_AUTO_INVAL_DATA)
        out.flags = wanted.flags & flags
        out.max_background = 64
        out.congestion_threshold = 48
        out.max_write = MAX_WRITE
        out.max_pages = MAX_PAGES
        out.time_gran = 1
        self.started = True
        return cython.sizeof(init_out)

    def forget_many(self):
        i: uint32_t
        inode: cython.pointer(Inode)
        one: cython.pointer(forget_one)
        if self.header.opcode == FORGET and self.has(cython.sizeof(forget_in)):
            inode = self.inodes.get(self.header.nodeid)
            if inode != cython.NULL:
                self.inodes.forget(inode, cython.cast(cython.pointer(forget_in), self.argument).nlookup)
        elif self.header.opcode == BATCH_FORGET and self.has(cython.sizeof(batch_forget_in)):
            count: uint32_t = cython.cast(cython.pointer(batch_forget_in), self.argument).count
            for i in range(count):
                if not self.has(cython.sizeof(batch_forget_in) + (i + 1) * cython.sizeof(forget_one)):
                    break
                one = cython.cast(
                    cython.pointer(forget_one),
                    self.argument + cython.sizeof(batch_forget_in) + i * cython.sizeof(forget_one),
                )
                inode = self.inodes.get(one.nodeid)
                if inode != cython.NULL:
                    self.inodes.forget(inode, one.nlookup)

    # -- attributes

    def told(self, inode, found):
        out: cython.pointer(attr_out) = cython.cast(cython.pointer(attr_out), self.reply)
        self.tree.learn_owner(inode, found, -1)
        out.attr_valid = self.tree.timeout
        out.attr_valid_nsec = out.dummy = 0
        self.tree.fill(inode, found, cython.address(out.attr))
        return cython.sizeof(attr_out)

    def getattr(self, inode):
        found: Statx
        error: cython.int
        wanted: cython.pointer(getattr_in) = cython.cast(cython.pointer(getattr_in), self.argument)
        fh: uint32_t = inode.handles
        if self.has(cython.sizeof(getattr_in)) and wanted.getattr_flags & GETATTR_FH:
            if self.handles.get(wanted.fh, inode.id, inode.kind == S_IFDIR) != cython.NULL:
                fh = cython.cast(uint32_t, wanted.fh)
        if fh and self.handles.all[fh].fd >= 0:
            error = self.tree.stat_open(self.handles.all[fh].fd, cython.address(found))
        else:
            error = self.tree.stat(inode, cython.address(found))
        return self.told(inode, cython.address(found)) if error == 0 else error

    def setattr(self, inode):
        found: Statx
        fd: cython.int = -1
        opened: cython.int = -1
        handle: cython.pointer(Handle) = cython.NULL
        wanted: cython.pointer(setattr_in) = cython.cast(cython.pointer(setattr_in), self.argument)
        size: int64_t
        if not self.has(cython.sizeof(setattr_in)):
            return -EINVAL
        if self.readonly:
            return -EROFS
        if inode.foreign:
            return -EXDEV
        if inode.kind != S_IFREG and inode.kind != S_IFDIR:
            # Links and FIFOs: what is set would need a name or a capability, and nothing depends on it.
            if wanted.valid & (FATTR_SIZE | FATTR_MODE):
                return -EOPNOTSUPP
            size = self.tree.stat(inode, cython.address(found))
            return self.told(inode, cython.address(found)) if size == 0 else size
        if wanted.valid & FATTR_FH:
            handle = self.handles.get(wanted.fh, inode.id, inode.kind == S_IFDIR)
        if wanted.valid & FATTR_SIZE:
            if handle == cython.NULL or handle.flags & O_ACCMODE == O_RDONLY:
                handle = self.handles.writable(inode)
        elif handle == cython.NULL and inode.handles:
            handle = cython.address(self.handles.all[inode.handles])
        if handle != cython.NULL:
            fd = handle.fd
        if fd < 0:
            fd = self.tree.open(inode, O_WRONLY if wanted.valid & FATTR_SIZE else O_RDONLY)
            if fd == -EACCES and inode.kind == S_IFREG:
                fd = self.tree.open(inode, O_WRONLY)
            if fd < 0:
                return fd
            opened = fd
        size = self.change(inode, fd)
        if opened >= 0:
            close(opened)
        return size

    def change(self, inode, fd):
        """SETATTR, of a regular file or folder that ``fd`` is open on."""
        found: Statx
        times: timespec[2]
        wanted: cython.pointer(setattr_in) = cython.cast(cython.pointer(setattr_in), self.argument)
        valid: uint32_t = wanted.valid
        if valid & FATTR_SIZE and ftruncate(fd, wanted.size) < 0:
            return -errno
        if valid & (FATTR_MODE | FATTR_UID | FATTR_GID):
            error: cython.int = self.tree.stat_open(fd, cython.address(found))
            if error < 0:
                return error
            self.tree.learn_owner(inode, cython.address(found), fd)
            was: Owner = self.tree.owner(inode, cython.address(found))
            owner: Owner = was
            if valid & FATTR_UID:
                owner.uid = wanted.uid
            if valid & FATTR_GID:
                owner.gid = wanted.gid
            if valid & FATTR_MODE:
                owner.mode = wanted.mode & 0o7777
            elif valid & FATTR_KILL_SUIDGID and inode.kind == S_IFREG:
                owner.mode &= ~cython.cast(uint32_t, S_ISUID)
                if owner.mode & S_IXGRP:
                    owner.mode &= ~cython.cast(uint32_t, S_ISGID)
            if owner.uid != was.uid or owner.gid != was.gid or owner.mode != was.mode:
                error = self.tree.set_owner(inode, cython.address(found), fd, owner)
                if error < 0:
                    return error
        elif valid & FATTR_KILL_SUIDGID:
            self.drop_privileges(inode, fd)
        if valid & (FATTR_ATIME | FATTR_MTIME):
            times[0].tv_sec = times[1].tv_sec = 0
            times[0].tv_nsec = times[1].tv_nsec = UTIME_OMIT
            if valid & FATTR_ATIME_NOW:
                times[0].tv_nsec = UTIME_NOW
            elif valid & FATTR_ATIME:
                times[0].tv_sec = wanted.atime
                times[0].tv_nsec = wanted.atimensec
            if valid & FATTR_MTIME_NOW:
                times[1].tv_nsec = UTIME_NOW
            elif valid & FATTR_MTIME:
                times[1].tv_sec = wanted.mtime
                times[1].tv_nsec = wanted.mtimensec
            if futimens(fd, times) < 0:
                return -errno
        if self.tree.stat_open(fd, cython.address(found)) < 0:
            return -EIO
        self.tree.learn_owner(inode, cython.address(found), fd)
        return self.told(inode, cython.address(found))

    def readlink(self, inode):
        if inode.kind != S_IFLNK:
            return -EINVAL
        if inode.foreign:
            return -EXDEV
        fd: cython.int = self.tree.reach(inode)
        if fd < 0:
            return fd
        size: int64_t = readlinkat(fd, b"", cython.cast(cython.p_char, self.reply), REPLY_MAX)
        return size if size >= 0 else -errno

    def statfs(self):
        found: statfs_t
        out: cython.pointer(kstatfs) = cython.cast(cython.pointer(kstatfs), self.reply)
        if fstatfs(self.inodes.at(ROOT_ID).fd, cython.address(found)) < 0:
            return -errno
        memset(out, 0, cython.sizeof(kstatfs))
        out.blocks = found.f_blocks
        out.bfree = found.f_bfree
        out.bavail = found.f_bavail
        out.files = found.f_files
        out.ffree = found.f_ffree
        out.bsize = cython.cast(uint32_t, found.f_bsize)
        out.namelen = NAME_MAX
        out.frsize = cython.cast(uint32_t, found.f_frsize)
        return cython.sizeof(kstatfs)

    # -- open files

    def open(self, inode):
        found: Statx
        fh: uint64_t
        wanted: cython.pointer(open_in) = cython.cast(cython.pointer(open_in), self.argument)
        out: cython.pointer(open_out) = cython.cast(cython.pointer(open_out), self.reply)
        if not self.has(cython.sizeof(open_in)):
            return -EINVAL
        flags: uint32_t = wanted.flags & (O_ACCMODE | O_TRUNC)
        if self.readonly and flags != O_RDONLY:
            return -EROFS
        if inode.kind != S_IFREG:
            return -EOPNOTSUPP
        fd: cython.int = self.tree.open(inode, flags)
        if fd < 0:
            return fd
        if wanted.open_flags & OPEN_KILL_SUIDGID and flags & O_TRUNC:
            self.drop_privileges(inode, fd)
        error: cython.int = self.tree.stat_open(fd, cython.address(found))
        if error < 0:
            close(fd)
            return error
        error = self.opened(inode, cython.address(found), fd, flags, cython.address(fh), cython.address(out.open_flags))
        if error < 0:
            return error
        out.fh = fh
        out.padding = 0
        return cython.sizeof(open_out)

    def opendir(self, inode):
        out: cython.pointer(open_out) = cython.cast(cython.pointer(open_out), self.reply)
        if inode.kind != S_IFDIR:
            return -EINVAL
        fd: cython.int = self.tree.open(inode, O_RDONLY | O_DIRECTORY)
        if fd < 0:
            return fd
        out.fh = self.handles.add(inode, fd, O_RDONLY, True)
        if not out.fh:
            return -ENFILE
        out.open_flags = out.padding = 0
        return cython.sizeof(open_out)

    def release(self, inode, is_folder):
        wanted: cython.pointer(release_in) = cython.cast(cython.pointer(release_in), self.argument)
        if not self.has(cython.sizeof(release_in)):
            return -EINVAL
        if self.handles.get(wanted.fh, inode.id, is_folder) == cython.NULL:
            return -EBADF
        self.handles.remove(cython.cast(uint32_t, wanted.fh))
        return 0

    def read(self, inode):
        wanted: cython.pointer(read_in) = cython.cast(cython.pointer(read_in), self.argument)
        handle: cython.pointer(Handle)
        found: Statx
        size: uint64_t
        part: uint64_t = 0
        done: uint64_t = 0
        got: int64_t
        pieces: cython.int
        if not self.has(cython.sizeof(read_in)):
            return -EINVAL
        handle = self.handles.get(wanted.fh, inode.id, False)
        if handle == cython.NULL:
            return -EBADF
        size = wanted.size if wanted.size < self.room else self.room
        size = size if size < MAX_WRITE else MAX_WRITE
        while done < size:
            pieces = self.slice(
                self.writable, self.writable_count, cython.sizeof(out_header) + done, size - done, cython.address(part)
            )
            got = preadv2(handle.fd, self.vector, pieces, wanted.offset + done, RWF_NOWAIT if self.hasty else 0)
            if self.hasty and (got < 0 or cython.cast(uint64_t, got) < part):
                if got < 0 and errno != EAGAIN and errno != EOPNOTSUPP:
                    return -errno
                if self.tree.stat_open(handle.fd, cython.address(found)) < 0:
                    return -EIO
                if got < 0 or wanted.offset + done + got < found.size:
                    return LATER_ERROR
            if got < 0:
                if done == 0:
                    return -errno
                break
            done += got
            if cython.cast(uint64_t, got) < part:
                break
        self.bytes_read += done
        self.in_place = True
        return done

    def write(self, inode):
        wanted: cython.pointer(write_in) = cython.cast(cython.pointer(write_in), self.argument)
        out: cython.pointer(write_out) = cython.cast(cython.pointer(write_out), self.reply)
        handle: cython.pointer(Handle)
        size: uint64_t
        part: uint64_t = 1
        done: uint64_t = 0
        got: int64_t
        pieces: cython.int
        if not self.has(cython.sizeof(write_in)):
            return -EINVAL
        handle = self.handles.get(wanted.fh, inode.id, False)
        if handle == cython.NULL:
            return -EBADF
        if wanted.write_flags & WRITE_KILL_SUIDGID:
            self.drop_privileges(inode, handle.fd)
        size = wanted.size if wanted.size < MAX_WRITE else MAX_WRITE
        # The guest has the flag as it is now, which may not be as it was when the file was opened.
        flags: cython.int = RWF_APPEND if wanted.flags & O_APPEND else 0
        while done < size:
            pieces = self.slice(
                self.readable, self.readable_count, cython.sizeof(in_header) + cython.sizeof(write_in) + done,
                size - done, cython.address(part),
            )
            if not part:
                break  # there is less than it says
            got = pwritev2(handle.fd, self.vector, pieces, wanted.offset + done, flags)
            if got < 0:
                if done == 0:
                    return -errno
                break
            done += got
            if cython.cast(uint64_t, got) < part:
                break
        self.bytes_written += done
        out.size = cython.cast(uint32_t, done)
        out.padding = 0
        return cython.sizeof(write_out)

    def fsync(self, inode, is_folder):
        wanted: cython.pointer(fsync_in) = cython.cast(cython.pointer(fsync_in), self.argument)
        if not self.has(cython.sizeof(fsync_in)):
            return -EINVAL
        handle: cython.pointer(Handle) = self.handles.get(wanted.fh, inode.id, is_folder)
        if handle == cython.NULL:
            return -EBADF
        if wanted.fsync_flags & FSYNC_FDATASYNC:
            return 0 if fdatasync(handle.fd) == 0 else -errno
        return 0 if fsync(handle.fd) == 0 else -errno

    def syncfs(self, inode):
        if self.readonly:
            return 0
        fd: cython.int = self.tree.open(self.inodes.at(ROOT_ID), O_RDONLY | O_DIRECTORY)
        if fd < 0:
            return fd
        error: cython.int = 0 if syncfs(fd) == 0 else -errno
        close(fd)
        return error

    def fallocate(self, inode):
        wanted: cython.pointer(fallocate_in) = cython.cast(cython.pointer(fallocate_in), self.argument)
        if not self.has(cython.sizeof(fallocate_in)):
            return -EINVAL
        handle: cython.pointer(Handle) = self.handles.get(wanted.fh, inode.id, False)
        if handle == cython.NULL:
            return -EBADF
        known: uint32_t = FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE | FALLOC_FL_ZERO_RANGE
        if wanted.mode & ~known:
            return -EOPNOTSUPP
        return 0 if fallocate(handle.fd, wanted.mode, wanted.offset, wanted.length) == 0 else -errno

    def lseek(self, inode):
        wanted: cython.pointer(lseek_in) = cython.cast(cython.pointer(lseek_in), self.argument)
        if not self.has(cython.sizeof(lseek_in)) or wanted.whence != SEEK_DATA and wanted.whence != SEEK_HOLE:
            return -EINVAL
        handle: cython.pointer(Handle) = self.handles.get(wanted.fh, inode.id, False)
        if handle == cython.NULL:
            return -EBADF
        at: int64_t = lseek(handle.fd, wanted.offset, wanted.whence)
        if at < 0:
            return -errno
        cython.cast(cython.pointer(int64_t), self.reply)[0] = at
        return 8

    def copy_file_range(self, inode):
        wanted: cython.pointer(copy_file_range_in) = cython.cast(cython.pointer(copy_file_range_in), self.argument)
        out: cython.pointer(write_out) = cython.cast(cython.pointer(write_out), self.reply)
        if not self.has(cython.sizeof(copy_file_range_in)):
            return -EINVAL
        source: cython.pointer(Handle) = self.handles.get(wanted.fh_in, inode.id, False)
        target: cython.pointer(Handle) = self.handles.get(wanted.fh_out, wanted.nodeid_out, False)
        if source == cython.NULL or target == cython.NULL:
            return -EBADF
        read_at: int64_t = wanted.off_in
        write_at: int64_t = wanted.off_out
        size: uint64_t = wanted.len if wanted.len < COPY_MAX else COPY_MAX
        copied: int64_t = copy_file_range(
            source.fd, cython.address(read_at), target.fd, cython.address(write_at), size, 0
        )
        if copied < 0:
            return -errno
        out.size = cython.cast(uint32_t, copied)
        out.padding = 0
        return cython.sizeof(write_out)

    # -- folders

    def readdir(self, inode, plus):
        wanted: cython.pointer(read_in) = cython.cast(cython.pointer(read_in), self.argument)
        handle: cython.pointer(Handle)
        found: Statx
        dent: Dent
        entry: cython.pointer(entry_out)
        told: cython.pointer(dirent)
        at: uint64_t = 0
        size: uint64_t
        length: uint64_t
        before: uint64_t = cython.sizeof(direntplus) - cython.sizeof(dirent) if plus else 0
        special: cython.bint
        if not self.has(cython.sizeof(read_in)):
            return -EINVAL
        handle = self.handles.get(wanted.fh, inode.id, True)
        if handle == cython.NULL or handle.fd < 0:
            return -EBADF
        room: uint64_t = wanted.size if wanted.size < self.room else self.room
        room = room if room < REPLY_MAX else REPLY_MAX
        offset: int64_t = wanted.offset
        while True:
            dent = self.handles.next_dent(handle, offset)
            if dent.entry == cython.NULL:
                return -dent.error if dent.error and not at else at
            length = strlen(dent.name)
            size = (before + cython.sizeof(dirent) + length + 7) & ~cython.cast(uint64_t, 7)
            if at + size > room:
                return at if at else -EINVAL
            memset(self.reply + at, 0, size)
            entry = cython.cast(cython.pointer(entry_out), self.reply + at)
            told = cython.cast(cython.pointer(dirent), self.reply + at + before)
            special = strcmp(dent.name, b".") == 0 or strcmp(dent.name, b"..") == 0
            told.ino = dent.entry.ino
            if special and inode.id == ROOT_ID:
                told.ino = inode.number  # what is above the share is nobody's business
            told.off = dent.entry.off
            told.namelen = cython.cast(uint32_t, length)
            told.type = dent.entry.type
            memcpy(cython.cast(cython.p_char, told) + cython.sizeof(dirent), dent.name, length)
            if plus and not special and self.tree.look(inode, dent.name, cython.address(found)) == 0:
                if self.tree.enter(inode, dent.name, cython.address(found), -1, entry) < 0:
                    memset(entry, 0, before)  # the guest looks it up when it needs it, and is told why it can't
            at += size
            offset = dent.entry.off
            self.handles.passed(handle, dent.entry)

    # -- from Python

    def request(self, data: bytes, room: cython.Py_ssize_t) -> bytes:
        """One request as the kernel wrote it to /dev/fuse; its reply, of at most ``room`` bytes, or none."""
        vector: iovec[2]
        size: uint64_t
        reply: bytes = PyBytes_FromStringAndSize(cython.NULL, room)
        vector[0].iov_base = PyBytes_AS_STRING(data)
        vector[0].iov_len = len(data)
        vector[1].iov_base = PyBytes_AS_STRING(reply)
        vector[1].iov_len = room
        with cython.nogil:
            size = self.handle(vector, 1, 1, False)
        return reply[:size]

    def reset(self):
        """The guest has gone: nothing is open or known any more."""
        with cython.nogil:
            lock(cython.address(self.mutex))
            self.handles.clear()
            self.inodes.clear()
            self.started = False
            unlock(cython.address(self.mutex))

    def statistics(self) -> dict:
        """Requests by kind, and what the tables hold."""
        return {
            "requests": {name: self.counts[opcode] for opcode, name in OPCODE_NAMES.items() if self.counts[opcode]},
            "errors": self.errors,
            "malformed": self.malformed,
            "bytes_read": self.bytes_read,
            "bytes_written": self.bytes_written,
            "inodes": self.inodes.count,
            "descriptors": self.inodes.held_count,
            "pinned": self.inodes.pinned,
            "evicted": self.inodes.evicted,
            "stale": self.tree.stale,
            "open": self.handles.count,
        }

    def save(self) -> dict:
        """What the guest knows and has open, by name: the folder itself is the host's."""
        id: uint32_t
        fh: uint32_t
        inodes = []
        handles = []
        for id in range(ROOT_ID, self.inodes.top):
            inode: cython.pointer(Inode) = self.inodes.at(id)
            if inode.kind:
                name = cython.cast(bytes, inode.name) if inode.name != cython.NULL and inode.named else None
                inodes.append((id, inode.generation, inode.lookups, inode.parent, name, inode.kind, inode.foreign))
        for fh in range(1, self.handles.top):
            handle: cython.pointer(Handle) = cython.address(self.handles.all[fh])
            if handle.inode:
                handles.append((fh, handle.inode, handle.flags, handle.is_folder))
        return {
            "version": _VERSION,
            "started": bool(self.started),
            "generation": self.inodes.generation,
            "inodes": inodes,
            "handles": handles,
        }

    def load(self, state: dict):
        """Restore what ``save`` gave, of the same folder or a copy of it. What isn't there any more under its name is
        stale to the guest, as on a network file system."""
        found: Statx
        error: cython.int
        fd: cython.int
        inode: cython.pointer(Inode)
        parent: cython.pointer(Inode)
        if state["version"] != _VERSION:
            raise ValueError(f"share: state version {state['version']} is not {_VERSION}")
        self.reset()
        entries = {entry[0]: entry for entry in state["inodes"] if entry[0] != ROOT_ID}
        children: dict = {}
        for entry in entries.values():
            children.setdefault(entry[3], []).append(entry)
        waiting = [ROOT_ID]
        while waiting:
            for id, generation, lookups, parent_id, name, kind, foreign in children.get(waiting.pop(), ()):
                inode = self.inodes.allocate(id)
                if inode == cython.NULL:
                    raise MachineError("the saved share knows more files than this one may")
                parent = self.inodes.at(parent_id)
                inode.kind = kind
                inode.generation = generation
                inode.lookups = lookups
                inode.foreign = foreign
                inode.parent = parent_id
                parent.children += 1
                self.inodes.request += 1
                error = self.tree.look(parent, name, cython.address(found)) if name is not None else -1
                if error == 0 and found.mode & S_IFMT == kind and self.tree.known(cython.address(found)) == cython.NULL:
                    self.tree.identify(inode, cython.address(found))
                    self.inodes.rename(inode, parent, name)
                    self.inodes.hash_in(inode)
                waiting.append(id)
        self.inodes.generation = max(self.inodes.generation, state["generation"])
        for fh, id, flags, is_folder in state["handles"]:
            inode = self.inodes.at(id)
            self.inodes.request += 1
            fd = self.tree.open(inode, flags)
            if not self.handles.put(fh, inode, max(fd, -1), flags, is_folder):
                raise MemoryError()
        self.started = state["started"]
