"""What the launcher does itself, without a helper and without Python: ``start``, and ``delete`` of what has ended.

That is as the runtime does it (runtime.start, runtime.delete), for containers whose ``quick`` file (state.write_quick)
says that there is nothing else to do. Whatever isn't as expected is left to the runtime, which does all of it again,
and says what is wrong. In the subset of Python that ``images/tiny`` compiles.
"""

from hostel.images.agent_bytes import append, begins, length, number, same
from hostel.images.tiny import buffer, load8, load64, store8, store32, store64, syscall, text

READ, WRITE, OPEN, CLOSE, POLL, NANOSLEEP = 0, 1, 2, 3, 7, 35
RENAME, RMDIR, UNLINK, GETEUID = 82, 84, 87, 107
O_RDONLY, O_WRONLY, O_NONBLOCK, O_NOFOLLOW, O_CLOEXEC = 0, 1, 0x800, 0x20000, 0x80000
ENOENT, EINTR, EBUSY = 2, 4, 16
CONTENT_MAX = 8192
STAT_MAX = 1024
PLACE_MAX = 3800        # bytes of a root and an ID together
BUSY_MAX = 40           # half milliseconds that a cgroup whose last process ends may stay busy

content = buffer(8192)
status = buffer(1024)
place = buffer(4096)    # "ROOT/ID/", and then a file's name
taken = buffer(4096)
pause = buffer(16)
polled = buffer(8)
name_at = 0             # where in ``place`` names are written


def quick(arguments, count, environment):
    """1 once it is done; 0 where it is left to others."""
    root = 0
    at = 1
    while at < count and load8(load64(arguments + 8 * at)) == 45:
        word = load64(arguments + 8 * at)
        if same(word, text("--root")):
            at = at + 1
            if at >= count:
                return 0
            root = load64(arguments + 8 * at)
        elif begins(word, text("--root=")):
            root = word + 7
        elif same(word, text("--log")) or same(word, text("--log-format")):
            at = at + 1
        elif not (begins(word, text("--log=")) or begins(word, text("--log-format="))):
            if not (same(word, text("--debug")) or same(word, text("--systemd-cgroup"))):
                return 0
        at = at + 1
    if at + 2 > count:
        return 0
    word = load64(arguments + 8 * at)
    starts = same(word, text("start"))
    if not starts and not same(word, text("delete")):
        return 0
    id = load64(arguments + 8 * at + 8)
    if not starts and at + 3 == count and (same(id, text("--force")) or same(id, text("-f"))):
        id = load64(arguments + 8 * at + 16)  # of one that has ended that is the same
    elif at + 2 != count:
        return 0
    if not root:
        user = defined(environment, text("USER="))
        if syscall(GETEUID) or user and not same(user, text("root")):
            return 0
        root = text("/run/hostel-oci")
    if not find(root, id):
        return 0
    if starts:
        return start()
    return delete()


def defined(environment, name):
    """The variable's value; 0 where there is none."""
    while load64(environment):
        value = begins(load64(environment), name)
        if value:
            return value
        environment = environment + 8
    return 0


def find(root, id):
    """Read the container's ``quick`` file; 0 without one."""
    global name_at
    if not load8(root) or not load8(id) or load8(id) == 45 or load8(id) == 46:
        return 0
    at = id
    while load8(at):
        if load8(at) == 47:
            return 0
        at = at + 1
    if length(root) + length(id) > PLACE_MAX:
        return 0
    name_at = append(append(append(append(place, root), text("/")), id), text("/"))
    append(name_at, text("quick"))
    return read_text(place, content, CONTENT_MAX) > 0


def read_text(path, to, size):
    """A file's bytes, with a zero behind them; how many, a negative errno, or 0 where it is too long."""
    fd = syscall(OPEN, path, O_RDONLY + O_CLOEXEC + O_NOFOLLOW, 0)
    if fd < 0:
        return fd
    got = syscall(READ, fd, to, size)
    syscall(CLOSE, fd)
    if got < 0 or got == size:
        return 0
    store8(to + got, 0)
    return got


def named(name):
    """The path of that file of the container's."""
    append(name_at, name)
    return place


def behind(at, letter):
    """Behind the next such letter; at the end without one."""
    while load8(at) and load8(at) != letter:
        at = at + 1
    if load8(at):
        at = at + 1
    return at


def put_decimal(to, value):
    if value >= 10:
        to = put_decimal(to, value // 10)
    store8(to, 48 + value % 10)
    store8(to + 1, 0)
    return to + 1


def alive():
    """Whether the first process is: 1, 0, or -1 where that can't be told."""
    started = number(behind(content + 3, 32))
    append(put_decimal(append(taken, text("/proc/")), number(content + 3)), text("/stat"))
    got = read_text(taken, status, STAT_MAX)
    if got == 0 - ENOENT:
        return 0
    if got <= 0:
        return 0 - 1
    at = status
    last = status
    while load8(at):
        if load8(at) == 41:
            last = at
        at = at + 1
    letter = load8(last + 2)
    if letter == 90 or letter == 88:
        return 0
    at = last + 2
    field = 0
    while field < 19:
        at = behind(at, 32)
        field = field + 1
    return number(at) == started


def start():
    if load8(content) != 49 or alive() != 1:
        return 0
    append(append(taken, named(text("exec.fifo"))), text(".taken"))
    if syscall(RENAME, place, taken) < 0:
        return 0
    fd = syscall(OPEN, taken, O_WRONLY + O_NONBLOCK + O_CLOEXEC, 0)
    if fd < 0:
        syscall(RENAME, taken, place)
        return 0
    syscall(UNLINK, taken)
    syscall(WRITE, fd, text("+"), 1)
    store32(polled, fd)
    store32(polled + 4, 0)
    while syscall(POLL, polled, 1, 0 - 1) == 0 - EINTR:  # until exec closes the other end
        store32(polled + 4, 0)
    return 1


def delete():
    if load8(content + 1) != 49 or alive() != 0:
        return 0
    at = behind(content, 10)
    store64(pause, 0)
    store64(pause + 8, 500000)
    while load8(at):
        after = behind(at, 10)
        store8(after - 1, 0)
        error = syscall(RMDIR, at)
        times = 0
        while error == 0 - EBUSY and times < BUSY_MAX:
            syscall(NANOSLEEP, pause, 0)
            error = syscall(RMDIR, at)
            times = times + 1
        if error < 0 and error != 0 - ENOENT:
            return 0
        at = after
    syscall(UNLINK, named(text("exec.fifo")))
    syscall(UNLINK, named(text("hooks.fifo")))
    syscall(UNLINK, named(text("quick")))
    syscall(UNLINK, named(text("state.json")))
    store8(name_at - 1, 0)
    return syscall(RMDIR, place) == 0
