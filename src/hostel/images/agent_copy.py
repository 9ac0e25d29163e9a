"""Trees of files in the guest, as a stream of entries: the agent's part of ``hostel cp``, compiled with it (`tiny`).

``agent send PATH`` writes the stream to its standard output, ``agent receive PATH NAME`` makes what its standard
input says. The other end and the form of the stream are `hostel.client.copy`'s. Owners, modes, times, symbolic links,
devices and the holes of sparse files are kept; a file has its name only once it is whole.

What goes wrong is an ERROR entry on the standard output, with its errno and the name, and status 1.
"""

from hostel.images.agent_bytes import append, least, length
from hostel.images.tiny import (
    buffer,
    copy,
    load8,
    load16,
    load32,
    load64,
    store8,
    store16,
    store32,
    store64,
    syscall,
    text,
)

READ, WRITE, CLOSE, FSTAT, LSEEK, MMAP, MUNMAP, RT_SIGPROCMASK, PWRITE64 = 0, 1, 3, 5, 8, 9, 11, 14, 18
GETPID, EXIT, FTRUNCATE, FCHMOD, FCHOWN, GETDENTS64, OPENAT, MKDIRAT = 39, 60, 77, 91, 93, 217, 257, 258
MKNODAT, FCHOWNAT, NEWFSTATAT, UNLINKAT, RENAMEAT, LINKAT = 259, 260, 262, 263, 264, 265
SYMLINKAT, READLINKAT, UTIMENSAT = 266, 267, 280

ENOENT, EINTR, EEXIST, ENOTDIR, EISDIR, EINVAL, EPIPE = 2, 4, 17, 20, 21, 22, 32
O_RDONLY, O_WRONLY, O_CREAT, O_EXCL, O_NONBLOCK = 0, 1, 0x40, 0x80, 0x800
O_DIRECTORY, O_NOFOLLOW, O_CLOEXEC = 0x10000, 0x20000, 0x80000
AT_FDCWD, AT_SYMLINK_NOFOLLOW = -100, 0x100
S_IFMT, S_IFREG, S_IFDIR, S_IFLNK, S_IFSOCK = 0xF000, 0x8000, 0x4000, 0xA000, 0xC000
SEEK_SET, SEEK_DATA, SEEK_HOLE = 0, 3, 4

# An entry: u8 kind, u8 zero, u16 length of the name, u32 of the link's target, u32 mode, u32 uid, u32 gid, u32 device
# or errno, u64 size, s64 and u32 modification time, u32 zero; then name, target and, of DATA, ``size`` bytes.
FILE, FOLDER, LEAVE, LINK, NODE, DATA, FILE_END, ERROR, END, SAME_FILE = 1, 2, 3, 4, 5, 6, 7, 8, 9, 10
ENTRY = 48
PIECE = 0x10000  # bytes in a DATA entry, at most
FOLDERS = 512  # deep, at most
LISTING = 0x8000

OUTPUT = buffer(0x30000)
OUTPUT_SIZE = 0x30000
INPUT = buffer(0x30000)
INPUT_SIZE = 0x30000
STAT = buffer(144)
TARGET = buffer(8192)
NAME = buffer(512)
TEMPORARY = buffer(64)
TIMES = buffer(32)
PARENT = buffer(8192)
STACK = buffer(512 * 64)  # folders that are being received: descriptor, whether new, then as in their entry

output_end = 0
input_start = 0
input_end = 0
temporary_fd = -1  # the file that is being received
temporary_in = -1


# Output


def flush_output() -> int:
    global output_end
    at = 0
    while at < output_end:
        n = syscall(WRITE, 1, OUTPUT + at, output_end - at)
        if n < 0 and n != -EINTR:
            syscall(EXIT, 1)
        if n > 0:
            at += n
    output_end = 0
    return 0


def entry(kind: int, name: int, target: int, status: int) -> int:
    """Writes an entry with what ``status``, a struct stat or 0, says."""
    global output_end
    name_size = length(name)
    target_size = length(target)
    if output_end + ENTRY + name_size + target_size + PIECE > OUTPUT_SIZE:
        flush_output()
    at = OUTPUT + output_end
    n = 0
    while n < ENTRY:
        store64(at + n, 0)
        n += 8
    store8(at, kind)
    store16(at + 2, name_size)
    store32(at + 4, target_size)
    if status:
        store32(at + 8, load32(status + 24))
        store32(at + 12, load32(status + 28))
        store32(at + 16, load32(status + 32))
        store32(at + 20, load64(status + 40))
        store64(at + 24, load64(status + 48))
        store64(at + 32, load64(status + 88))
        store32(at + 40, load64(status + 96))
    copy(at + ENTRY, name, name_size)
    copy(at + ENTRY + name_size, target, target_size)
    output_end += ENTRY + name_size + target_size
    return at


def complain(error: int, name: int) -> int:
    at = entry(ERROR, name, text(""), 0)
    store32(at + 20, error)
    return flush_output()


def fail(error: int, name: int) -> int:
    complain(error, name)
    return syscall(EXIT, 1)


# Sending


def send(path: int) -> int:
    """Writes the tree at ``path``; its first entry has no name, as the receiver knows that better."""
    result = send_entry(AT_FDCWD, path, text(""), 0)
    entry(END, text(""), text(""), 0)
    flush_output()
    return result


def send_entry(folder: int, path: int, name: int, depth: int) -> int:
    error = syscall(NEWFSTATAT, folder, path, STAT, AT_SYMLINK_NOFOLLOW)
    if error:
        return complain(-error, path) + 1
    kind = load32(STAT + 24) & S_IFMT
    if kind == S_IFDIR or kind == S_IFREG:
        # O_NONBLOCK: should a pipe have come in its place, nobody waits for a writer
        fd = syscall(OPENAT, folder, path, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC, 0)
        if fd < 0:
            return complain(-fd, path) + 1
        syscall(FSTAT, fd, STAT)
        if load32(STAT + 24) & S_IFMT != kind:
            result = complain(EINVAL, path) + 1
        elif kind == S_IFDIR:
            result = send_folder(fd, path, name, depth)
        else:
            result = send_file(fd, path, name)
        syscall(CLOSE, fd)
        return result
    if kind == S_IFLNK:
        n = syscall(READLINKAT, folder, path, TARGET, 4096)
        if n < 0:
            return complain(-n, path) + 1
        store8(TARGET + n, 0)
        entry(LINK, name, TARGET, STAT)
    elif kind != S_IFSOCK:  # a socket is nothing without its server
        entry(NODE, name, text(""), STAT)
    return 0


def send_folder(fd: int, path: int, name: int, depth: int) -> int:
    if depth >= FOLDERS - 1:
        return complain(EINVAL, path) + 1
    listing = syscall(MMAP, 0, LISTING, 3, 0x22, -1, 0)  # PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS
    if listing < 0:
        return complain(-listing, path) + 1
    entry(FOLDER, name, text(""), STAT)
    result = 0
    while 1:
        size = syscall(GETDENTS64, fd, listing, LISTING)
        if size < 0:
            result |= complain(-size, path) + 1
        if size <= 0:
            break
        at = listing
        while at < listing + size:
            each = at + 19
            if not is_dot(each):
                result |= send_entry(fd, each, each, depth + 1)
            at += load16(at + 16)
    syscall(MUNMAP, listing, LISTING)
    entry(LEAVE, text(""), text(""), 0)
    return result


def is_dot(name: int) -> int:
    """Whether it is "." or ".."."""
    if load8(name) != 46:
        return 0
    return not load8(name + 1) or load8(name + 1) == 46 and not load8(name + 2)


def send_file(fd: int, path: int, name: int) -> int:
    """The pieces of the file that hold data, as far as it went when it was opened."""
    global output_end
    size = load64(STAT + 48)
    entry(FILE, name, text(""), STAT)
    at = 0
    result = 0
    while at < size and not result:
        start = syscall(LSEEK, fd, at, SEEK_DATA)
        end = size
        if start == -EINVAL:
            start = at  # a file system that knows no holes
        elif start < 0:
            break  # ENXIO: a hole to its end
        else:
            end = least(size, syscall(LSEEK, fd, start, SEEK_HOLE))
            if end <= start:
                end = size
        if syscall(LSEEK, fd, start, SEEK_SET) != start:
            break
        at = start
        while at < end:
            piece = entry(DATA, text(""), text(""), 0)
            n = syscall(READ, fd, piece + ENTRY, least(PIECE, end - at))
            if n <= 0:
                output_end -= ENTRY
                if n < 0:
                    result = complain(-n, path) + 1
                at = size  # it shrank
                break
            store64(piece + 24, n)
            store64(piece + 32, at)
            output_end += n
            at += n
    entry(FILE_END, text(""), text(""), 0)
    return result


# Receiving


def need(size: int) -> int:
    """Returns once ``size`` bytes of input are there, at INPUT + input_start. The end of it is the end of us."""
    global input_start, input_end
    if input_start + size > INPUT_SIZE:
        copy(INPUT, INPUT + input_start, input_end - input_start)
        input_end -= input_start
        input_start = 0
    while input_end - input_start < size:
        n = syscall(READ, 0, INPUT + input_end, INPUT_SIZE - input_end)
        if n <= 0 and n != -EINTR:
            abandon_file()
            fail(EPIPE, text(""))
        if n > 0:
            input_end += n
    return INPUT + input_start


def abandon_file() -> int:
    global temporary_fd
    if temporary_fd >= 0:
        syscall(UNLINKAT, temporary_in, TEMPORARY, 0)
        temporary_fd = -1
    return 0


def receive(path: int, name: int) -> int:
    """Makes the tree of the input in the folder ``path`` under ``name`` ("": its content into that folder), or,
    where there is no such folder, under ``path``."""
    global input_start, input_end
    # Who hangs up ends the input, and what is half received is to be removed then.
    store64(TIMES, 1 << 0 | 1 << 1 | 1 << 14)  # SIGHUP, SIGINT, SIGTERM
    syscall(RT_SIGPROCMASK, 0, TIMES, 0, 8)
    append(append(TEMPORARY, text(".hostel-cp-")), decimal(syscall(GETPID)))
    base = syscall(OPENAT, AT_FDCWD, path, O_RDONLY | O_DIRECTORY | O_CLOEXEC, 0)
    merge = base >= 0 and not load8(name)
    if base == -ENOENT or base == -ENOTDIR:
        size = length(path)
        if not size or size > 4096 or load8(path + size - 1) == 47:
            return fail(-base, path)
        last = path + size
        while last > path and load8(last - 1) != 47:
            last -= 1
        append(PARENT, text("."))
        if last > path:
            copy(PARENT, path, last - path)
            store8(PARENT + (last - path), 0)
        name = last
        base = syscall(OPENAT, AT_FDCWD, PARENT, O_RDONLY | O_DIRECTORY | O_CLOEXEC, 0)
    if base < 0:
        return fail(-base, path)
    depth = 0
    store64(STACK, base)
    while 1:
        at = need(ENTRY)
        kind = load8(at)
        name_size = load16(at + 2)
        target_size = load32(at + 4)
        if kind == END:
            return 0
        if name_size > 255 or target_size > 4096:
            return fail(EINVAL, text(""))
        at = need(ENTRY + name_size + target_size)
        input_start += ENTRY + name_size + target_size
        if kind == LEAVE:
            if not depth:
                return fail(EINVAL, text(""))
            leave(STACK + depth * 64)
            depth -= 1
            continue
        if depth:
            name = NAME
            copy(NAME, at + ENTRY, name_size)
            store8(NAME + name_size, 0)
        copy(TARGET, at + ENTRY + name_size, target_size)
        store8(TARGET + target_size, 0)
        folder = load64(STACK + depth * 64)
        if kind == FOLDER:
            depth += 1
            if depth >= FOLDERS:
                return fail(EINVAL, name)
            enter(STACK + depth * 64, folder, name, at, merge and depth == 1)
        elif kind == FILE:
            receive_file(folder, name, at)
        else:
            make(kind, folder, name, at)
    return 0


def enter(slot: int, folder: int, name: int, at: int, merge: int) -> int:
    """Makes a folder, or goes into the one that is there, which keeps its mode, owner and time."""
    copy(slot + 16, at, ENTRY)
    if merge:
        store64(slot, syscall(OPENAT, folder, text("."), O_RDONLY | O_DIRECTORY | O_CLOEXEC, 0))
        store64(slot + 8, 0)
        return 0
    error = syscall(MKDIRAT, folder, name, 0o700)
    if error and error != -EEXIST:
        fail(-error, name)
    fd = syscall(OPENAT, folder, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC, 0)
    if fd < 0:
        fail(-fd, name)
    store64(slot, fd)
    store64(slot + 8, error == 0)
    return 0


def leave(slot: int) -> int:
    if load64(slot + 8):
        attributes(load64(slot), slot + 16)
    return syscall(CLOSE, load64(slot))


def attributes(fd: int, at: int) -> int:
    """Owner, mode and time of an open file, as its entry says; not owners where we aren't root."""
    syscall(FCHOWN, fd, load32(at + 12), load32(at + 16))
    syscall(FCHMOD, fd, load32(at + 8) & 0o7777)
    return syscall(UTIMENSAT, fd, 0, times(at), 0)


def times(at: int) -> int:
    store64(TIMES, load64(at + 32))
    store64(TIMES + 8, load32(at + 40))
    store64(TIMES + 16, load64(at + 32))
    store64(TIMES + 24, load32(at + 40))
    return TIMES


def receive_file(folder: int, name: int, at: int) -> int:
    global input_start, temporary_fd, temporary_in
    slot = STACK + (FOLDERS - 1) * 64  # a copy of the entry: INPUT moves
    copy(slot, at, ENTRY)
    fd = syscall(OPENAT, folder, TEMPORARY, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0o600)
    if fd < 0:
        return fail(-fd, name)
    temporary_in = folder
    temporary_fd = fd
    while 1:
        at = need(ENTRY)
        kind = load8(at)
        left = load64(at + 24)
        offset = load64(at + 32)
        input_start += ENTRY
        if kind == FILE_END:
            break
        if kind != DATA:
            abandon_file()
            return fail(EINVAL, name)
        while left > 0:
            at = need(1)
            n = syscall(PWRITE64, fd, at, least(left, input_end - input_start), offset)
            if n < 0 and n != -EINTR:
                abandon_file()
                return fail(-n, name)
            if n > 0:
                input_start += n
                offset += n
                left -= n
    error = syscall(FTRUNCATE, fd, load64(slot + 24))
    if not error:
        attributes(fd, slot)
        error = syscall(RENAMEAT, folder, TEMPORARY, folder, name)
    if error:
        abandon_file()
        return fail(-error, name)
    temporary_fd = -1
    return syscall(CLOSE, fd)


def make(kind: int, folder: int, name: int, at: int) -> int:
    """A symbolic link, a device or another name of a file, which takes the place of what is no folder."""
    if kind == SAME_FILE:  # the target's path begins in the tree's first folder
        error = syscall(LINKAT, load64(STACK + 64), TARGET, folder, TEMPORARY, 0)
        if not error:
            error = syscall(RENAMEAT, folder, TEMPORARY, folder, name)
            syscall(UNLINKAT, folder, TEMPORARY, 0)  # rename(2) leaves two names of one file alone
        if error:
            return fail(-error, name)
        return 0
    if kind == LINK:
        error = syscall(SYMLINKAT, TARGET, folder, TEMPORARY)
    elif kind == NODE:
        error = syscall(MKNODAT, folder, TEMPORARY, load32(at + 8), load32(at + 20))
    else:
        return fail(EINVAL, name)
    if not error:
        syscall(FCHOWNAT, folder, TEMPORARY, load32(at + 12), load32(at + 16), AT_SYMLINK_NOFOLLOW)
        syscall(UTIMENSAT, folder, TEMPORARY, times(at), AT_SYMLINK_NOFOLLOW)
        error = syscall(RENAMEAT, folder, TEMPORARY, folder, name)
    if error:
        syscall(UNLINKAT, folder, TEMPORARY, 0)
        return fail(-error, name)
    return 0


def decimal(value: int) -> int:
    """A number's digits, at the end of NAME."""
    at = NAME + 500
    store8(at, 0)
    while 1:
        at -= 1
        store8(at, 48 + value % 10)
        value = value // 10
        if not value:
            return at
