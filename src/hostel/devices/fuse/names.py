"""Requests about the entries of a folder: finding, making, renaming and removing them.

What loses its name while the guest knows it is given a descriptor first (``Tree.pin``), as on any Unix a file without a
name can still be used.
"""

import cython
from cython.cimports.hostel.devices.fuse.abi import (
    create_in,
    create_out,
    entry_out,
    link_in,
    mkdir_in,
    mknod_in,
    rename2_in,
)
from cython.cimports.hostel.devices.fuse.inodes import Inode
from cython.cimports.hostel.devices.fuse.posix import (
    AT_FDCWD,
    AT_REMOVEDIR,
    AT_SYMLINK_FOLLOW,
    O_ACCMODE,
    O_CLOEXEC,
    O_CREAT,
    O_EXCL,
    O_NOCTTY,
    O_NOFOLLOW,
    O_NONBLOCK,
    O_PATH,
    O_TMPFILE,
    O_TRUNC,
    O_WRONLY,
    RENAME_EXCHANGE,
    RENAME_NOREPLACE,
    S_IFDIR,
    S_IFIFO,
    S_IFMT,
    S_IFREG,
    S_IFSOCK,
    S_ISGID,
    Statx,
    close,
    linkat,
    mkdirat,
    mknodat,
    openat,
    renameat2,
    snprintf,
    symlinkat,
    unlinkat,
)
from cython.cimports.hostel.devices.fuse.session import Session
from cython.cimports.hostel.devices.fuse.tree import Owner
from cython.cimports.libc.errno import (
    EEXIST,
    EINVAL,
    ENFILE,
    ENOENT,
    EPERM,
    EROFS,
    EXDEV,
    errno,
)
from cython.cimports.libc.stdint import int64_t, uint32_t, uint64_t
from cython.cimports.libc.string import memset, strcmp


@cython.cclass
class Names(Session):
    def lookup(self, folder):
        found: Statx
        after: uint32_t
        out: cython.pointer(entry_out) = cython.cast(cython.pointer(entry_out), self.reply)
        name: cython.p_char = self.name(0, cython.address(after))
        if name == cython.NULL:
            return -EINVAL
        error: cython.int = self.tree.look(folder, name, cython.address(found))
        if error == -ENOENT and self.tree.timeout:
            memset(out, 0, cython.sizeof(entry_out))  # nodeid 0: there is none, and may be believed so
            out.entry_valid = self.tree.timeout
            return cython.sizeof(entry_out)
        if error < 0:
            return error
        error = self.tree.enter(folder, name, cython.address(found), -1, out)
        return error if error < 0 else cython.sizeof(entry_out)

    # -- making

    def newborn(self, folder, mode, is_folder):
        """Whose a new file is: its maker's; in a folder with the set-group-ID bit, of that group."""
        owner: Owner
        owner.uid = self.header.uid
        owner.gid = self.header.gid
        owner.mode = mode & 0o7777
        if folder.owner_mode >= 0 and folder.owner_mode & S_ISGID:
            owner.gid = folder.owner_gid
            if is_folder:
                owner.mode |= S_ISGID
        return owner

    def own(self, inode, found, fd, owner):
        """Give a new file that the guest was told of its owner, and look again. ``fd`` is open on it, or -1. Where
        the host can't keep it, the file is root's."""
        is_now: Owner = self.tree.owner(inode, found)
        opened: cython.int = -1
        if is_now.uid == owner.uid and is_now.gid == owner.gid and is_now.mode == owner.mode:
            return
        if fd < 0:
            opened = fd = self.tree.open(inode, 0)
            if fd < 0:
                return
        if self.tree.set_owner(inode, found, fd, owner[0]) < 0:
            self.errors += 1
        self.tree.stat_open(fd, found)
        if opened >= 0:
            close(opened)

    def entered(self, folder, name, fd, owner):
        """The reply to what has made ``name``. ``fd`` is open on it, or -1; ``owner``: whose it is to be, or NULL."""
        found: Statx
        out: cython.pointer(entry_out) = cython.cast(cython.pointer(entry_out), self.reply)
        error: cython.int
        if fd >= 0:
            error = self.tree.stat_open(fd, cython.address(found))
        else:
            error = self.tree.look(folder, name, cython.address(found))
        if error >= 0:
            error = self.tree.enter(folder, name, cython.address(found), fd, out)
        if error < 0:
            return error
        if owner != cython.NULL:
            inode: cython.pointer(Inode) = self.inodes.at(cython.cast(uint32_t, out.nodeid))
            self.own(inode, cython.address(found), fd, owner)
            self.tree.fill(inode, cython.address(found), cython.address(out.attr))
        return cython.sizeof(entry_out)

    def create(self, folder):
        found: Statx
        fh: uint64_t
        owner: Owner
        after: uint32_t
        wanted: cython.pointer(create_in) = cython.cast(cython.pointer(create_in), self.argument)
        out: cython.pointer(create_out) = cython.cast(cython.pointer(create_out), self.reply)
        if not self.has(cython.sizeof(create_in)):
            return -EINVAL
        name: cython.p_char = self.name(cython.sizeof(create_in), cython.address(after))
        if name == cython.NULL:
            return -EINVAL
        if self.readonly:
            return -EROFS
        parent: cython.int = self.tree.folder(folder)
        if parent < 0:
            return parent
        owner = self.newborn(folder, wanted.mode, False)
        flags: cython.int = wanted.flags & O_ACCMODE
        error: cython.int
        fd: cython.int = openat(
            parent, name, flags | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC | O_NOCTTY | O_NONBLOCK,
            cython.cast(cython.uint, self.tree.host_mode(owner.mode, False)),
        )
        is_new: cython.bint = fd >= 0
        if not is_new and errno == EEXIST and not wanted.flags & O_EXCL:  # the host has made it meanwhile
            error = self.tree.look(folder, name, cython.address(found))
            if error < 0:
                return error
            if found.mode & S_IFMT != S_IFREG:
                return -EEXIST
            fd = self.tree.open_named(parent, name, cython.address(found), flags | wanted.flags & O_TRUNC)
            if fd < 0:
                return fd
        if fd < 0:
            return -errno
        size: int64_t = self.entered(folder, name, fd, cython.address(owner) if is_new else cython.NULL)
        if size < 0:
            close(fd)
            return size
        self.tree.stat_open(fd, cython.address(found))
        inode: cython.pointer(Inode) = self.inodes.at(cython.cast(uint32_t, out.entry.nodeid))
        error = self.opened(
            inode, cython.address(found), fd, flags, cython.address(fh), cython.address(out.open.open_flags)
        )
        if error < 0:
            self.inodes.forget(inode, 1)
            return error
        out.open.fh = fh
        out.open.padding = 0
        return cython.sizeof(create_out)

    def tmpfile(self, folder):
        """A file without a name, until LINK gives it one."""
        found: Statx
        owner: Owner
        fh: uint64_t
        path: cython.char[32]
        wanted: cython.pointer(create_in) = cython.cast(cython.pointer(create_in), self.argument)
        out: cython.pointer(create_out) = cython.cast(cython.pointer(create_out), self.reply)
        if not self.has(cython.sizeof(create_in)):
            return -EINVAL
        if self.readonly:
            return -EROFS
        parent: cython.int = self.tree.folder(folder)
        if parent < 0:
            return parent
        owner = self.newborn(folder, wanted.mode, False)
        fd: cython.int = openat(
            parent, b".", wanted.flags & O_ACCMODE | O_TMPFILE | O_CLOEXEC,
            cython.cast(cython.uint, self.tree.host_mode(owner.mode, False)),
        )
        if fd < 0:
            return -errno
        # O_PATH: what LINK makes a name of
        snprintf(path, 32, b"/proc/self/fd/%d", fd)
        reference: cython.int = openat(AT_FDCWD, path, O_PATH | O_CLOEXEC)
        error: cython.int = self.tree.stat_open(fd, cython.address(found))
        if reference < 0 or error < 0 or self.inodes.pinned >= self.inodes.held_limit // 2:
            close(fd)
            if reference >= 0:
                close(reference)
            return -ENFILE
        error = self.tree.enter(folder, b"", cython.address(found), fd, cython.address(out.entry))
        if error < 0:
            close(fd)
            close(reference)
            return error
        inode: cython.pointer(Inode) = self.inodes.at(cython.cast(uint32_t, out.entry.nodeid))
        self.inodes.unname(inode)
        self.own(inode, cython.address(found), fd, cython.address(owner))
        self.tree.fill(inode, cython.address(found), cython.address(out.entry.attr))
        error = -ENFILE
        if self.inodes.hold(inode, reference) >= 0:
            error = self.opened(
                inode, cython.address(found), fd, wanted.flags, cython.address(fh),
                cython.address(out.open.open_flags),
            )
        else:
            close(fd)
        if error < 0:
            self.inodes.forget(inode, 1)
            return error
        out.open.fh = fh
        out.open.padding = 0
        return cython.sizeof(create_out)

    def mknod(self, folder):
        owner: Owner
        after: uint32_t
        size: int64_t
        wanted: cython.pointer(mknod_in) = cython.cast(cython.pointer(mknod_in), self.argument)
        if not self.has(cython.sizeof(mknod_in)):
            return -EINVAL
        name: cython.p_char = self.name(cython.sizeof(mknod_in), cython.address(after))
        if name == cython.NULL:
            return -EINVAL
        if self.readonly:
            return -EROFS
        parent: cython.int = self.tree.folder(folder)
        if parent < 0:
            return parent
        kind: uint32_t = wanted.mode & S_IFMT
        owner = self.newborn(folder, wanted.mode, False)
        mode: uint32_t = self.tree.host_mode(owner.mode, False)
        if kind == S_IFREG or kind == 0:
            fd: cython.int = openat(
                parent, name, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, cython.cast(cython.uint, mode)
            )
            if fd < 0:
                return -errno
            size = self.entered(folder, name, fd, cython.address(owner))
            close(fd)
            return size
        if kind != S_IFIFO and kind != S_IFSOCK:
            return -EPERM  # the host's devices are the host's
        if mknodat(parent, name, kind | mode, 0) < 0:
            return -errno
        return self.entered(folder, name, -1, cython.NULL)

    def mkdir(self, folder):
        owner: Owner
        after: uint32_t
        wanted: cython.pointer(mkdir_in) = cython.cast(cython.pointer(mkdir_in), self.argument)
        if not self.has(cython.sizeof(mkdir_in)):
            return -EINVAL
        name: cython.p_char = self.name(cython.sizeof(mkdir_in), cython.address(after))
        if name == cython.NULL:
            return -EINVAL
        if self.readonly:
            return -EROFS
        parent: cython.int = self.tree.folder(folder)
        if parent < 0:
            return parent
        owner = self.newborn(folder, wanted.mode, True)
        if mkdirat(parent, name, self.tree.host_mode(owner.mode, True)) < 0:
            return -errno
        return self.entered(folder, name, -1, cython.address(owner))

    def symlink(self, folder):
        after: uint32_t
        name: cython.p_char = self.name(0, cython.address(after))
        if name == cython.NULL:
            return -EINVAL
        target: cython.p_char = self.text(after, cython.address(after))
        if target == cython.NULL:
            return -EINVAL
        if self.readonly:
            return -EROFS
        parent: cython.int = self.tree.folder(folder)
        if parent < 0:
            return parent
        if symlinkat(target, parent, name) < 0:
            return -errno
        return self.entered(folder, name, -1, cython.NULL)

    def link(self, folder):
        after: uint32_t
        path: cython.char[32]
        if not self.has(cython.sizeof(link_in)):
            return -EINVAL
        name: cython.p_char = self.name(cython.sizeof(link_in), cython.address(after))
        inode: cython.pointer(Inode) = self.inodes.get(
            cython.cast(cython.pointer(link_in), self.argument).oldnodeid
        )
        if name == cython.NULL or inode == cython.NULL:
            return -EINVAL
        if self.readonly:
            return -EROFS
        if inode.foreign:
            return -EXDEV
        if inode.kind == S_IFDIR:
            return -EPERM
        parent: cython.int = self.tree.folder(folder)
        if parent < 0:
            return parent
        fd: cython.int = self.tree.reach(inode)
        if fd < 0:
            return fd
        # To name a file by its descriptor takes a capability; the kernel's own link to it doesn't.
        snprintf(path, 32, b"/proc/self/fd/%d", fd)
        if linkat(AT_FDCWD, path, parent, name, AT_SYMLINK_FOLLOW) < 0:
            return -errno
        if not inode.hashed:
            self.inodes.hash_in(inode)  # TMPFILE's, or what the host has linked again
        return self.entered(folder, name, -1, cython.NULL)

    # -- removing and renaming

    def name_gone(self, inode, folder, name, found):
        """``name`` no longer leads to the inode, which was ``found`` before."""
        if found.nlink <= 1 or found.mode & S_IFMT == S_IFDIR:
            self.inodes.unhash(inode)
            self.inodes.unname(inode)
        elif inode.parent == folder.id and strcmp(inode.name, name) == 0:
            self.inodes.unname(inode)

    def unlink(self, folder, is_folder):
        found: Statx
        after: uint32_t
        inode: cython.pointer(Inode)
        name: cython.p_char = self.name(0, cython.address(after))
        if name == cython.NULL:
            return -EINVAL
        if self.readonly:
            return -EROFS
        error: cython.int = self.tree.look(folder, name, cython.address(found))
        if error < 0:
            return error
        inode = self.tree.known(cython.address(found))
        if inode != cython.NULL:
            self.tree.pin(inode)
        if unlinkat(self.tree.folder(folder), name, AT_REMOVEDIR if is_folder else 0) < 0:
            return -errno
        if inode != cython.NULL:
            self.name_gone(inode, folder, name, cython.address(found))
        return 0

    def rename(self, folder, fixed):
        found: Statx
        replaced: Statx
        after: uint32_t
        error: cython.int
        wanted: cython.pointer(rename2_in) = cython.cast(cython.pointer(rename2_in), self.argument)
        flags: uint32_t = 0
        if not self.has(fixed):
            return -EINVAL
        if fixed == cython.sizeof(rename2_in):
            flags = wanted.flags
        if flags & ~cython.cast(uint32_t, RENAME_NOREPLACE | RENAME_EXCHANGE):
            return -EINVAL
        target: cython.pointer(Inode) = self.inodes.get(wanted.newdir)
        old: cython.p_char = self.name(fixed, cython.address(after))
        if old == cython.NULL or target == cython.NULL:
            return -EINVAL
        new: cython.p_char = self.name(after, cython.address(after))
        if new == cython.NULL:
            return -EINVAL
        if self.readonly:
            return -EROFS
        error = self.tree.look(folder, old, cython.address(found))
        if error < 0:
            return error
        moved: cython.pointer(Inode) = self.tree.known(cython.address(found))
        gone: cython.pointer(Inode) = cython.NULL
        error = self.tree.look(target, new, cython.address(replaced))
        if error == 0:
            gone = self.tree.known(cython.address(replaced))
        elif error != -ENOENT:
            return error
        if gone == moved:
            gone = cython.NULL  # two names of one file: both stay, or its own
        if gone != cython.NULL and not flags & RENAME_EXCHANGE:
            self.tree.pin(gone)
        if renameat2(self.tree.folder(folder), old, self.tree.folder(target), new, flags) < 0:
            return -errno
        if gone != cython.NULL:
            if flags & RENAME_EXCHANGE:
                self.inodes.rename(gone, folder, old)
            else:
                self.name_gone(gone, target, new, cython.address(replaced))
        if moved != cython.NULL:
            self.inodes.rename(moved, target, new)
        return 0
