"""Extended attributes, which go to the host's file where they are ``user.``.

``security.`` and ``trusted.``, which the host wouldn't let us set, become ``user.hostel.security.`` and so on. The one
that keeps owners (tree) can't be seen. There are no ACLs.
"""

import cython
from cython.cimports.hostel.devices.fuse.abi import GETXATTR, LISTXATTR, REMOVEXATTR, SETXATTR, getxattr_in, setxattr_in
from cython.cimports.hostel.devices.fuse.names import Names
from cython.cimports.hostel.devices.fuse.posix import (
    O_RDONLY,
    S_IFDIR,
    S_IFREG,
    close,
    fgetxattr,
    flistxattr,
    fremovexattr,
    fsetxattr,
    snprintf,
)
from cython.cimports.hostel.devices.fuse.session import NAME_MAX, REPLY_MAX
from cython.cimports.hostel.devices.fuse.tree import OWNER
from cython.cimports.libc.errno import EINVAL, ENODATA, EOPNOTSUPP, EPERM, ERANGE, EROFS, EXDEV, errno
from cython.cimports.libc.stdint import int64_t, uint32_t
from cython.cimports.libc.string import memset, strcmp, strlen, strncmp

OURS = cython.declare(cython.p_const_char, b"user.hostel.")
OURS_SIZE = cython.declare(cython.int, 12)


@cython.cclass
class Xattrs(Names):
    def xattr(self, inode):
        opened: cython.int = -1
        fd: cython.int = -1
        after: uint32_t = 0
        fixed: uint32_t = 0
        answer: int64_t
        opcode: uint32_t = self.header.opcode
        name: cython.p_char = cython.NULL
        ours: cython.char[512]
        value: cython.p_void = cython.NULL
        if opcode != REMOVEXATTR:
            fixed = cython.sizeof(getxattr_in)
        if not self.has(fixed):
            return -EINVAL
        if opcode != LISTXATTR:
            name = self.text(fixed, cython.address(after))
            if name == cython.NULL or not name[0] or strlen(name) > NAME_MAX:
                return -EINVAL
        if opcode == SETXATTR:
            value = self.argument + after
            if not self.has(after + cython.cast(cython.pointer(setxattr_in), self.argument).size):
                return -EINVAL
            if cython.cast(cython.pointer(setxattr_in), self.argument).size > XATTR_MAX:
                return -EINVAL
        if self.readonly and (opcode == SETXATTR or opcode == REMOVEXATTR):
            return -EROFS
        if inode.foreign:
            return -EXDEV
        if name != cython.NULL:
            if strncmp(name, b"security.", 9) == 0 or strncmp(name, b"trusted.", 8) == 0:
                snprintf(ours, 512, b"%s%s", OURS, name)
                name = ours
            elif strncmp(name, b"user.", 5) != 0:
                return -EOPNOTSUPP
            elif strcmp(name, OWNER) == 0 or strncmp(name, OURS, OURS_SIZE) == 0:
                return -ENODATA if opcode == GETXATTR else -EPERM
        if inode.kind != S_IFREG and inode.kind != S_IFDIR:
            return 0 if opcode == LISTXATTR else -ENODATA if opcode == GETXATTR else -EPERM
        if inode.handles:
            fd = self.handles.all[inode.handles].fd
        if fd < 0:
            fd = opened = self.tree.open(inode, O_RDONLY)
            if fd < 0:
                return fd
        if opcode == LISTXATTR:
            answer = self.listxattr(fd, cython.cast(cython.pointer(getxattr_in), self.argument).size)
        else:
            answer = self.xattr_named(fd, name, value)
        if opened >= 0:
            close(opened)
        return answer

    def xattr_named(self, fd, name, value):
        size: uint32_t = cython.cast(cython.pointer(getxattr_in), self.argument).size
        flags: uint32_t
        got: int64_t
        if self.header.opcode == REMOVEXATTR:
            return 0 if fremovexattr(fd, name) == 0 else -errno
        if self.header.opcode == SETXATTR:
            flags = cython.cast(cython.pointer(setxattr_in), self.argument).flags
            return 0 if fsetxattr(fd, name, value, size, flags) == 0 else -errno
        got = fgetxattr(fd, name, self.reply, size if size < REPLY_MAX else REPLY_MAX)
        if got < 0:
            return -errno
        if size == 0:
            memset(self.reply, 0, cython.sizeof(getxattr_in))
            cython.cast(cython.pointer(getxattr_in), self.reply).size = cython.cast(uint32_t, got)
            return cython.sizeof(getxattr_in)
        return got

    def listxattr(self, fd, size):
        i: int64_t
        list: cython.p_char = cython.cast(cython.p_char, self.reply)
        at: int64_t = 0
        kept: int64_t = 0
        length: int64_t
        skip: int64_t
        got: int64_t = flistxattr(fd, list, REPLY_MAX)
        if got < 0:
            return -errno
        while at < got:
            length = strlen(list + at) + 1
            skip = 0
            if strncmp(list + at, OURS, OURS_SIZE) == 0:
                skip = OURS_SIZE  # security. and trusted.; nothing else is set with this prefix
            if strncmp(list + at, b"user.", 5) == 0 and strcmp(list + at, OWNER) != 0:
                for i in range(length - skip):
                    list[kept + i] = list[at + skip + i]
                kept += length - skip
            at += length
        if size == 0:
            memset(self.reply, 0, cython.sizeof(getxattr_in))
            cython.cast(cython.pointer(getxattr_in), self.reply).size = cython.cast(uint32_t, kept)
            return cython.sizeof(getxattr_in)
        return kept if kept <= size else -ERANGE
