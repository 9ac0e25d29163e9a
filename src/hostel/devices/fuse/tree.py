"""A host's folder as a guest sees it: how files are found, what they are, and whose.

**Nothing leads out.** Every look-up is of one component, in a folder of which there is a descriptor, and follows no
link; the guest's kernel walks paths. A file that is opened again is compared with what it was: device, number and
time of birth. What is mounted beneath the folder isn't shared: its mount point can be seen, not entered. Only
regular files and folders are ever opened, so no FIFO, socket or device of the host's.

**Owners.** The worker is one user of the host without capabilities, so all files that it makes are that user's. A
guest expects more: its root may give files away, and may write to files whose mode says that nobody may. So the
host's user is the guest's root, everybody else of the host's is 65534, and what the guest sets beyond that (other
owners, special bits, a mode by which not even its owner could use the file) is kept in an extended attribute,
``user.containers.override_stat``, as podman and libkrun write it: ``uid:gid:0mode``. Most files never need one. A
set-user-ID bit is only ever there, never in the host's mode. Where the host's permissions were changed later, they
hold. The attribute counts only in files of the worker's own user. Without ``keeps_owners`` (or where the file system
has no such attributes) everything is root's, and changes of owners are accepted and forgotten.

Times between what a clock's tick can tell apart aren't trusted to say that nothing changed (``TICK``).

Lock: its Server's.
"""

import cython
from cython.cimports.hostel.devices.fuse.inodes import Inode, Inodes
from cython.cimports.hostel.devices.fuse.posix import (
    AT_EMPTY_PATH,
    AT_NO_AUTOMOUNT,
    AT_SYMLINK_NOFOLLOW,
    CLOCK_REALTIME_COARSE,
    O_CLOEXEC,
    O_DIRECTORY,
    O_NOCTTY,
    O_NOFOLLOW,
    O_NONBLOCK,
    O_PATH,
    O_RDONLY,
    S_IFDIR,
    S_IFMT,
    S_IFREG,
    S_ISUID,
    STATX_BASIC_STATS,
    STATX_BTIME,
    STATX_MNT_ID,
    SYS_STATX,
    Statx,
    StatxTime,
    clock_gettime,
    close,
    fchmod,
    fgetxattr,
    fremovexattr,
    fsetxattr,
    openat,
    snprintf,
    syscall,
)
from cython.cimports.libc.errno import (
    ELOOP,
    ENFILE,
    ENOENT,
    ENOTDIR,
    EOPNOTSUPP,
    EPERM,
    ESTALE,
    EXDEV,
    errno,
)
from cython.cimports.libc.stdint import int64_t, uint32_t, uint64_t
from cython.cimports.posix.time import timespec

OWNER = b"user.containers.override_stat"


@cython.cclass
class Tree:
    """``root``: an O_PATH descriptor of the folder, which this takes. ``timeout`` in seconds."""

    def __cinit__(self, inodes: Inodes, root: cython.int, keeps_owners: cython.bint, timeout: uint64_t):
        found: Statx
        fd: cython.int
        self.inodes = inodes
        self.timeout = timeout
        if _statx(root, b"", AT_EMPTY_PATH, cython.address(found)) < 0:
            raise OSError(errno, "statx of a share")
        self.mount = found.mnt_id
        inode: cython.pointer(Inode) = inodes.add(
            _device(cython.address(found)), found.ino, _birth(cython.address(found)), S_IFDIR, cython.NULL, b""
        )
        if inode == cython.NULL or inodes.hold(inode, root) < 0:
            raise MemoryError()
        inode.lookups = 1
        fd = openat(root, b".", O_RDONLY | O_DIRECTORY | O_CLOEXEC)
        if fd < 0:
            raise OSError(errno, "open of a share")
        self.keeps_owners = keeps_owners and (fgetxattr(fd, OWNER, cython.NULL, 0) >= 0 or errno != EOPNOTSUPP)
        close(fd)

    def now(self):
        """What a file's ctime would be now, in ns."""
        time: timespec
        clock_gettime(CLOCK_REALTIME_COARSE, cython.address(time))
        return cython.cast(int64_t, time.tv_sec) * 1000000000 + time.tv_nsec

    # -- finding

    def is_foreign(self, found):
        """Whether it is of another mount than the share's folder."""
        return found.mask & STATX_MNT_ID and found.mnt_id != self.mount

    def is_same(self, inode, found):
        return (
            found.ino == inode.number
            and _device(found) == inode.device
            and _birth(found) == inode.born
            and self.is_foreign(found) == inode.foreign
        )

    def reach(self, inode):
        """The inode's O_PATH descriptor, which stays the table's; or -errno."""
        top: cython.pointer(Inode)
        chain: uint32_t[DEPTH]
        depth: cython.int = 0
        fd: cython.int
        if inode.fd >= 0:
            self.inodes.use(inode)
            return inode.fd
        top = inode
        while top.fd < 0:
            if not top.named or depth == DEPTH:
                self.stale += 1
                return -ESTALE
            chain[depth] = top.id
            depth += 1
            top = self.inodes.at(top.parent)
        while depth:
            depth -= 1
            # Only the next one needs it: it may be closed again then, unless another part of this request has it.
            before: uint32_t = top.request
            self.inodes.use(top)
            fd = self.step(self.inodes.at(chain[depth]))
            top.request = before
            if fd < 0:
                return fd
            top = self.inodes.at(chain[depth])
            top.request = 0
        self.inodes.use(inode)
        return inode.fd

    def step(self, inode):
        """Open it below its parent, which has a descriptor."""
        found: Statx
        parent: cython.pointer(Inode) = self.inodes.at(inode.parent)
        fd: cython.int = openat(parent.fd, inode.name, O_PATH | O_NOFOLLOW | O_CLOEXEC)
        if fd < 0:
            self.stale += 1
            return -ESTALE if errno == ENOENT or errno == ENOTDIR else -errno
        if _statx(fd, b"", AT_EMPTY_PATH, cython.address(found)) < 0 or not self.is_same(inode, cython.address(found)):
            close(fd)
            self.stale += 1
            return -ESTALE
        fd = self.inodes.hold(inode, fd)
        return fd if fd >= 0 else -ENFILE

    def folder(self, inode):
        """The O_PATH descriptor of what must be a folder of the share, or -errno."""
        if inode.foreign:
            return -EXDEV
        if inode.kind != S_IFDIR:
            return -ENOTDIR
        return self.reach(inode)

    def known(self, found):
        """The inode of a file that the guest knows, or NULL."""
        return self.inodes.find(_device(found), found.ino, _birth(found))

    def identify(self, inode, found):
        """It is this file."""
        inode.device = _device(found)
        inode.number = found.ino
        inode.born = _birth(found)

    def stat_open(self, fd, found):
        """What ``fd`` is open on: 0 or -errno."""
        return _statx(fd, b"", AT_EMPTY_PATH, found)

    def look(self, folder, name, found):
        """What ``name`` in ``folder`` is: 0 or -errno."""
        fd: cython.int = self.folder(folder)
        if fd < 0:
            return fd
        return _statx(fd, name, AT_SYMLINK_NOFOLLOW | AT_NO_AUTOMOUNT, found)

    def stat(self, inode, found):
        """What the inode's file is now, by its descriptor or its name: 0 or -errno."""
        error: cython.int
        if inode.fd >= 0:
            return _statx(inode.fd, b"", AT_EMPTY_PATH, found)
        if not inode.named:
            self.stale += 1
            return -ESTALE
        error = self.look(self.inodes.at(inode.parent), inode.name, found)
        if error == -ENOENT or error == 0 and not self.is_same(inode, found):
            self.stale += 1
            return -ESTALE
        return error

    def open(self, inode, flags):
        """A new descriptor of a regular file or folder, or -errno."""
        expected: Statx
        path: cython.char[32]
        fd: cython.int
        if inode.foreign:
            return -EXDEV
        flags |= O_CLOEXEC | O_NOCTTY | O_NONBLOCK
        if inode.kind == S_IFDIR:
            fd = self.reach(inode)
            if fd < 0:
                return fd
            fd = openat(fd, b".", flags | O_DIRECTORY)
            return fd if fd >= 0 else -errno
        if inode.kind != S_IFREG:
            return -EOPNOTSUPP
        if inode.fd >= 0:
            # The kernel's own link to what the descriptor is of; it is no name in the share.
            snprintf(path, 32, b"/proc/self/fd/%d", inode.fd)
            fd = openat(inode.fd, path, flags)
            return fd if fd >= 0 else -errno
        error: cython.int = self.stat(inode, cython.address(expected))
        if error < 0:
            return error
        return self.open_named(self.reach(self.inodes.at(inode.parent)), inode.name, cython.address(expected), flags)

    def open_named(self, folder, name, expected, flags):
        """Open what ``name`` was a moment ago, a regular file or folder; -ESTALE where it is something else now."""
        found: Statx
        fd: cython.int
        fd = openat(folder, name, flags | O_NOFOLLOW | O_CLOEXEC | O_NOCTTY | O_NONBLOCK)
        if fd < 0:
            return -ESTALE if errno == ENOENT or errno == ELOOP else -errno
        if (
            _statx(fd, b"", AT_EMPTY_PATH, cython.address(found)) < 0
            or found.ino != expected.ino
            or _device(cython.address(found)) != _device(expected)
            or found.mode & S_IFMT != expected.mode & S_IFMT
            or self.is_foreign(cython.address(found))
        ):
            close(fd)
            return -ESTALE
        return fd

    def enter(self, folder, name, found, fd, out):
        """Tell the guest of what ``name`` is; it will have to forget it. ``fd`` is open on it, or -1. 0 or -errno."""
        inode: cython.pointer(Inode)
        inode = self.inodes.find(_device(found), found.ino, _birth(found))
        if inode == cython.NULL:
            inode = self.inodes.add(
                _device(found), found.ino, _birth(found), found.mode & S_IFMT, folder, name
            )
            if inode == cython.NULL:
                return -ENFILE
            inode.foreign = self.is_foreign(found)
        elif inode.id == 1 or not self.inodes.rename(inode, folder, name):
            return -ELOOP
        inode.lookups += 1
        self.learn_owner(inode, found, fd)
        out.nodeid = inode.id
        out.generation = inode.generation
        out.entry_valid = out.attr_valid = self.timeout
        out.entry_valid_nsec = out.attr_valid_nsec = 0
        self.fill(inode, found, cython.address(out.attr))
        return 0

    def pin(self, inode):
        """Before its name goes: a descriptor with which it can still be reached. At most half of them are for that."""
        if inode.fd >= 0 or inode.foreign or self.inodes.pinned >= self.inodes.held_limit // 2:
            return 0
        return self.reach(inode)

    # -- what it is

    def fill(self, inode, found, out):
        owner: Owner = self.owner(inode, found)
        out.ino = found.ino
        out.size = found.size
        out.blocks = found.blocks
        out.atime, out.atimensec = found.atime.sec, found.atime.nsec
        out.mtime, out.mtimensec = found.mtime.sec, found.mtime.nsec
        out.ctime, out.ctimensec = found.ctime.sec, found.ctime.nsec
        out.mode = found.mode & S_IFMT | owner.mode
        out.nlink = found.nlink
        out.uid = owner.uid
        out.gid = owner.gid
        # new_encode_dev: the low byte of the minor, the major's 12 bits, the minor's others
        out.rdev = found.rdev_minor & 0xFF | found.rdev_major << 8 | found.rdev_minor >> 8 << 20
        out.blksize = found.blksize
        out.flags = 0

    def owner(self, inode, found):
        """Whose the guest thinks it is. ``learn_owner`` must have looked."""
        owner: Owner
        mode: uint32_t = found.mode & 0o7777
        owner.uid = 0 if found.uid == self.host_uid else NOBODY
        owner.gid = 0 if found.gid == self.host_gid else NOBODY
        if found.mode & S_IFMT == S_IFDIR:
            owner.mode = mode & ~cython.cast(uint32_t, S_ISUID)
        else:
            owner.mode = mode & 0o777
        if inode.owner_mode >= 0:
            owner.uid = inode.owner_uid
            owner.gid = inode.owner_gid
            owner.mode = inode.owner_mode
            if mode & 0o777 != self.host_mode(owner.mode, found.mode & S_IFMT == S_IFDIR):
                owner.mode = owner.mode & 0o7000 | mode & 0o777  # the host's owner changed it since
        return owner

    def learn_owner(self, inode, found, fd):
        """Look up what the guest set, unless it is known. ``fd`` is open on it, or -1."""
        ctime: int64_t = _ns(cython.address(found.ctime))
        opened: cython.int = -1
        if not self.keeps_owners or inode.foreign or inode.kind != S_IFREG and inode.kind != S_IFDIR:
            return
        if found.uid != self.host_uid:
            inode.owner_mode = -1
            return
        if inode.owner_ctime == ctime and ctime:
            return
        if fd < 0:
            if inode.named and inode.fd < 0:
                fd = self.reach(self.inodes.at(inode.parent))
                if fd >= 0:
                    opened = self.open_named(fd, inode.name, found, O_RDONLY)
            else:
                opened = self.open(inode, O_RDONLY)
            if opened < 0:
                inode.owner_mode = -1
                return
            fd = opened
        self.read_owner(inode, fd)
        inode.owner_ctime = ctime if self.now() - ctime > TICK else 0
        if opened >= 0:
            close(opened)

    def read_owner(self, inode, fd):
        value: cython.char[64]
        numbers: uint64_t[3]
        i: cython.int = 0
        part: cython.int = 0
        size: cython.Py_ssize_t = fgetxattr(fd, OWNER, value, 64)
        inode.owner_mode = -1
        if size <= 0:
            return
        numbers[0] = numbers[1] = numbers[2] = 0
        while i < size and part < 3:
            digit: cython.int = value[i] - 48
            if value[i] == 58:  # a colon
                part += 1
            elif 0 <= digit < (8 if part == 2 else 10) and numbers[part] < NO_ID:
                numbers[part] = numbers[part] * (8 if part == 2 else 10) + digit
            elif value[i] != 0:
                return
            i += 1
        if part < 2 or numbers[0] >= NO_ID or numbers[1] >= NO_ID:
            return
        inode.owner_uid = cython.cast(uint32_t, numbers[0])
        inode.owner_gid = cython.cast(uint32_t, numbers[1])
        inode.owner_mode = numbers[2] & 0o7777

    def set_owner(self, inode, found, fd, wanted):
        """Make it the guest's wish, of a file that ``fd`` is open on and that is ``found``: 0 or -errno."""
        value: cython.char[64]
        is_folder: cython.bint = found.mode & S_IFMT == S_IFDIR
        mode: uint32_t = self.host_mode(wanted.mode, is_folder)
        keep: uint32_t = 0
        if is_folder and not self.keeps_owners:
            keep = wanted.mode & 0o1000
        if found.mode & 0o7777 != mode | keep and fchmod(fd, mode | keep) < 0:
            return -errno
        if not self.keeps_owners:
            return 0
        inode.owner_ctime = 0
        if wanted.uid == 0 and wanted.gid == 0 and wanted.mode == mode:
            if inode.owner_mode >= 0 and fremovexattr(fd, OWNER) < 0:
                return -errno
            inode.owner_mode = -1
            return 0
        if found.uid != self.host_uid:
            return -EPERM
        size: cython.int = snprintf(value, 64, b"%u:%u:0%o", wanted.uid, wanted.gid, wanted.mode)
        if fsetxattr(fd, OWNER, value, size, 0) < 0:
            return -errno
        inode.owner_uid = wanted.uid
        inode.owner_gid = wanted.gid
        inode.owner_mode = wanted.mode
        return 0

    def host_mode(self, mode, is_folder):
        """The host's permissions for the guest's mode: never such that we couldn't use it any more."""
        if not self.keeps_owners:
            return mode & 0o777
        return mode & 0o777 | (0o700 if is_folder else 0o600)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _statx(fd: cython.int, path: cython.p_const_char, flags: cython.int, found: cython.pointer(Statx)) -> cython.int:
    if syscall(
        SYS_STATX, cython.cast(cython.long, fd), path, cython.cast(cython.long, flags),
        cython.cast(cython.long, STATX_BASIC_STATS | STATX_BTIME | STATX_MNT_ID), found,
    ) < 0:
        return -errno
    if not found.mask & STATX_BTIME:
        found.btime.sec = 0
        found.btime.nsec = 0
    return 0


@cython.cfunc
@cython.nogil
@cython.inline
@cython.exceptval(check=False)
def _device(found: cython.pointer(Statx)) -> uint64_t:
    return cython.cast(uint64_t, found.dev_major) << 32 | found.dev_minor


@cython.cfunc
@cython.nogil
@cython.inline
@cython.exceptval(check=False)
def _birth(found: cython.pointer(Statx)) -> int64_t:
    return _ns(cython.address(found.btime))


@cython.cfunc
@cython.nogil
@cython.inline
@cython.exceptval(check=False)
def _ns(time: cython.pointer(StatxTime)) -> int64_t:
    return time.sec * 1000000000 + time.nsec
