"""The guest's agent: runs commands for the host over one byte channel, and is the micro image's init.

It is written in the subset of Python that `tiny` compiles; nothing here ever runs under Python. The protocol
is described in `hostel.vm.agent`, its other end.

As process 1 it mounts what a Linux program expects, loads the modules of the devices that are there, puts a
shell on the console and serves the channel; otherwise ``agent CHANNEL...`` serves the first of these devices that is
there, or an open file descriptor given as a number. One process does it all, without a single fork before the shell:
under emulation each fork and exec costs milliseconds. A command may be the agent itself (FLAG_SELF): ``send``,
``receive``, ``connect``, ``mount`` and ``identity`` are agent_copy's, agent_forward's, agent_mount's and
agent_identity's.

How bytes flow: everything is non-blocking and driven by poll. Output is read from a command's pipe straight
into TX behind the room for a header, and only when its stream has credit and little waits in TX, so a
stream that nobody reads stops alone. Input waits in the slot's own buffer, which the host's window never
overfills, so the channel is always read on. Replies that the host's frames cause are few and bounded for
each read of the channel; while much waits in TX, it isn't read.

Limits: SLOTS commands at once, FRAME_MAX bytes of arguments and environment for each.
"""

from hostel.images import agent_bytes, agent_copy, agent_forward, agent_identity, agent_mount, agent_root
from hostel.images.agent_bytes import append, begins, found, least, length, number, same
from hostel.images.agent_copy import receive, send
from hostel.images.agent_forward import connect
from hostel.images.agent_identity import end_clients, identity, start_client
from hostel.images.agent_mount import mount
from hostel.images.agent_root import enter_root
from hostel.images.tiny import buffer, copy, load8, load16, load32, load64, store8, store32, store64, syscall, text

PARTS = (agent_bytes, agent_copy, agent_forward, agent_identity, agent_mount, agent_root)

VERSION = 2

# System calls (arch/x86/entry/syscalls/syscall_64.tbl)
READ, WRITE, OPEN, CLOSE, POLL, RT_SIGPROCMASK, IOCTL, DUP2, NANOSLEEP, GETPID = 0, 1, 2, 3, 7, 14, 16, 33, 35, 39
SOCKET, CLONE, EXECVE, EXIT, WAIT4, KILL, FCNTL, CHDIR, MKDIR, SYMLINK = 41, 56, 59, 60, 61, 62, 72, 80, 83, 88
SETUID, SETGID, SETSID, SETGROUPS, GETSID, SYNC, MOUNT, REBOOT = 105, 106, 112, 116, 124, 162, 165, 169
SETHOSTNAME, GETDENTS64 = 170, 217
CLOCK_GETTIME, SIGNALFD4, PIPE2, FINIT_MODULE = 228, 289, 293, 313

ENOENT, EINTR, EIO, EAGAIN, EACCES, ENOTDIR, EINVAL, E2BIG = 2, 4, 5, 11, 13, 20, 22, 7
O_RDONLY, O_RDWR, O_NOCTTY, O_NONBLOCK, O_CLOEXEC = 0, 2, 0x100, 0x800, 0x80000
F_SETFD, F_GETFL, F_SETFL = 2, 3, 4
POLLIN, POLLOUT, POLLERR, POLLHUP = 1, 4, 8, 16
SIGHUP, SIGINT, SIGKILL, SIGUSR1, SIGUSR2, SIGPIPE, SIGTERM, SIGCHLD, SIGCONT = 1, 2, 9, 10, 12, 13, 15, 17, 18
VFORK = 0x4111  # CLONE_VM | CLONE_VFORK | SIGCHLD
WNOHANG = 1
TCGETS, TCSETS, TIOCSCTTY, TIOCOUTQ, TIOCSWINSZ = 0x5401, 0x5402, 0x540E, 0x5411, 0x5414
TIOCSPTLCK, TIOCGPTPEER, SIOCGIFFLAGS, SIOCSIFFLAGS = 0x40045431, 0x5441, 0x8913, 0x8914
REBOOT_MAGIC1, REBOOT_MAGIC2 = 0xFEE1DEAD, 672274793
POWER_OFF, RESTART, HALT = 0x4321FEDC, 0x01234567, 0xCDEF0123

# Frames from the host
START, STDIN, STDIN_EOF, RESIZE, SIGNAL, CREDIT, PING, POWER, RESET = 1, 2, 3, 4, 5, 6, 7, 8, 9
# Frames to the host
HELLO, STARTED, FAILED, STDOUT, STDERR, EXITED = 65, 66, 67, 68, 69, 70
CREDITED, STDIN_CLOSED, PONG, ACK = 71, 72, 73, 74

HEADER = 8
START_HEADER = 28
FLAG_TTY, FLAG_STDIN, FLAG_SELF = 1, 2, 4
STAGE_EXEC, STAGE_CWD, STAGE_SETUP = 1, 2, 3

SLOTS = 64
CARDS = 8  # network cards that get a DHCP client
FRAME_MAX = 0x40000  # the longest payload, of START
RX_SIZE = 0x50000
READ_MAX = 0x10000  # bytes taken from the channel at once: bounds the replies that they cause
TX_SIZE = 0x80000
TX_HIGH = 0x20000  # the channel is read while less than this waits; TX_SIZE leaves room for the replies
STDIN_WINDOW = 0x20000
STDIN_STEP = 0x8000  # input is credited in steps of this
# The same on a terminal, whose buffers are small, and on any other channel
DATA_TTY, DATA_MAX = 0x2000, 0x8000
TX_LOW_TTY, TX_LOW = 0x4000, 0x10000  # output is read while less than this waits
WINDOW_TTY, WINDOW = 0x8000, 0x20000  # unacknowledged bytes that a host may send: less than a tty's buffers hold
WORDS_MAX = 0x2000  # arguments and environment strings of one command
KILL_AFTER = 2000  # milliseconds that a shutdown leaves to processes that don't end

# A slot: one command. Fields of 8 bytes.
FREE, RUNNING, DEAD = 0, 1, 2
STATE, STREAM, PID, STATUS, IN_FD, OUT_FD, ERR_FD, OUT_CREDIT, ERR_CREDIT = 0, 8, 16, 24, 32, 40, 48, 56, 64
IN_START, IN_END, IN_EOF, IN_CONSUMED, IS_TTY, IN_BUFFER = 72, 80, 88, 96, 104, 112
SLOT_SIZE = 128

RX = buffer(0x50000)
TX = buffer(0x80000)
TABLE = buffer(64 * 128)
INPUTS = buffer(64 * 0x20000)
POLLFDS = buffer(2048)
POLLED = buffer(4096)  # for each of POLLFDS the slot and, in its low bits, which of its descriptors
SCRATCH = buffer(256)
CHILD = buffer(32)  # the descriptors that become 0, 1 and 2
ARGV = buffer(0x2010 * 8)
ENVP = buffer(0x2010 * 8)
PATH = buffer(8192)
CMDLINE = buffer(4096)
DEVICES = buffer(16384)
MODULES = buffer(16384)
TERM = buffer(128)
CONSOLE = buffer(64)
CARD = buffer(64)
PROCESSES = buffer(8192)
TERMIOS = buffer(64)  # the console's, as the first shell found it

channel = -1
signals = -1
is_init = 0
data_max = 0x8000
tx_low = 0x10000
window = 0x20000
tx_start = 0
tx_end = 0
rx_start = 0
rx_end = 0
received = 0  # bytes from the channel, ever
acknowledged = 0
failed_stage = 0  # what the child tells its parent: they share memory until exec
failed_errno = 0
new_cwd = 0
new_uid = 0
new_gid = 0
console = -1
console_wanted = 0
console_size = 0  # rows | columns << 16
console_pid = 0
console_at = 0  # milliseconds; no new shell before
cmdline_size = 0
watched = 0
turn = 0  # the slot whose output was read last
turn_of_errors = 0  # which of a command's two outputs is watched first
ending = 0  # how reboot() is to be called once everything has ended
ending_at = 0
network_begun = 0


# Time and files


def now() -> int:
    syscall(CLOCK_GETTIME, 1, SCRATCH)
    return load64(SCRATCH) * 1000 + load64(SCRATCH + 8) // 1000000


def sleep_milliseconds(n: int) -> int:
    store64(SCRATCH, 0)
    store64(SCRATCH + 8, n * 1000000)
    return syscall(NANOSLEEP, SCRATCH, 0)


def read_file(path: int, to: int, size: int) -> int:
    """Reads a file into ``to``, at most ``size`` - 1 bytes, and ends it with a zero."""
    fd = syscall(OPEN, path, O_RDONLY | O_CLOEXEC, 0)
    n = 0
    while fd >= 0 and n < size - 1:
        got = syscall(READ, fd, to + n, size - 1 - n)
        if got <= 0:
            break
        n += got
    store8(to + n, 0)
    if fd >= 0:
        syscall(CLOSE, fd)
    return n


def close(at: int) -> int:
    """Closes the descriptor in the variable at ``at``, if there is one."""
    if load64(at) >= 0:
        syscall(CLOSE, load64(at))
    store64(at, -1)
    return 0


# The channel


def waiting() -> int:
    return tx_end - tx_start


def make_room() -> int:
    """Moves what waits to the front of TX when the rest of it grows small."""
    global tx_start, tx_end
    if tx_start == tx_end:
        tx_start = 0
        tx_end = 0
    elif tx_end > TX_HIGH:
        copy(TX, TX + tx_start, tx_end - tx_start)
        tx_end -= tx_start
        tx_start = 0
    return 0


def begin(kind: int, stream: int, size: int) -> int:
    global tx_end
    make_room()
    store32(TX + tx_end, kind | stream << 16)
    store32(TX + tx_end + 4, size)
    tx_end += HEADER
    return 0


def put(value: int) -> int:
    global tx_end
    store32(TX + tx_end, value)
    tx_end += 4
    return 0


def tell(kind: int, stream: int, value: int) -> int:
    begin(kind, stream, 4)
    return put(value)


def tell_two(kind: int, stream: int, first: int, second: int) -> int:
    begin(kind, stream, 8)
    put(first)
    return put(second)


def hello() -> int:
    global tx_end
    begin(HELLO, 0, 32)
    copy(TX + tx_end, text("hostel-agent"), 12)
    tx_end += 12
    put(VERSION)
    put(STDIN_WINDOW)
    put(window)
    put(FRAME_MAX)
    return put(received)


def open_channel(path: int) -> int:
    """Opens a device, or takes the descriptor that a number names; non-blocking, a terminal raw."""
    global channel, data_max, tx_low, window
    if load8(path) >= 48 and load8(path) <= 57:
        channel = number(path)
        syscall(FCNTL, channel, F_SETFD, 1)
        syscall(FCNTL, channel, F_SETFL, syscall(FCNTL, channel, F_GETFL, 0) | O_NONBLOCK)
    else:
        channel = syscall(OPEN, path, O_RDWR | O_NOCTTY | O_NONBLOCK | O_CLOEXEC, 0)
    if channel < 0:
        return channel
    if syscall(IOCTL, channel, TCGETS, SCRATCH) == 0:
        store32(SCRATCH, 0)  # c_iflag
        store32(SCRATCH + 4, 0)  # c_oflag
        store32(SCRATCH + 8, 0x800018B2)  # c_cflag: CRTSCTS, CLOCAL, CREAD, CS8, B115200
        store32(SCRATCH + 12, 0)  # c_lflag
        store8(SCRATCH + 17 + 5, 0)  # VTIME
        store8(SCRATCH + 17 + 6, 1)  # VMIN
        result = syscall(IOCTL, channel, TCSETS, SCRATCH)
        if result < 0:  # a serial port that isn't there opens well and fails here
            syscall(CLOSE, channel)
            channel = -1
            return result
        data_max = DATA_TTY
        tx_low = TX_LOW_TTY
        window = WINDOW_TTY
    return 0


def open_one(paths: int) -> int:
    """Opens the first of some channels that can be."""
    while load64(paths):
        if open_channel(load64(paths)) >= 0:
            return 1
        paths += 8
    return 0


def write_channel() -> int:
    global tx_start
    if channel >= 0 and tx_end > tx_start:
        n = syscall(WRITE, channel, TX + tx_start, tx_end - tx_start)
        if n > 0:
            tx_start += n
        elif n != -EAGAIN and n != -EINTR:
            lose_channel()
    return 0


def read_channel() -> int:
    global rx_start, rx_end, received, acknowledged
    if rx_start:
        copy(RX, RX + rx_start, rx_end - rx_start)
        rx_end -= rx_start
        rx_start = 0
    n = syscall(READ, channel, RX + rx_end, least(READ_MAX, RX_SIZE - rx_end))
    if n == -EAGAIN or n == -EINTR:
        return 0
    if n <= 0:
        return lose_channel()
    rx_end += n
    received += n
    while rx_end - rx_start >= HEADER:
        size = load32(RX + rx_start + 4)
        if size > FRAME_MAX:
            return lose_channel()
        if rx_end - rx_start < HEADER + size:
            break
        frame(RX + rx_start, size)
        rx_start += HEADER + size
    if received - acknowledged >= window // 4:
        acknowledged = received
        tell(ACK, 0, received)
    return 0


def lose_channel() -> int:
    """The other end is gone for good: an init goes on without it."""
    global channel, tx_start, tx_end
    drop_all()
    if not is_init:
        syscall(EXIT, 0)
    syscall(CLOSE, channel)
    channel = -1
    tx_start = 0
    tx_end = 0
    return 0


def frame(at: int, size: int) -> int:
    """Does what one frame of the host's says."""
    global console_size
    kind = load8(at)
    stream = load16(at + 2)
    data = at + HEADER
    if kind == START:
        return start(stream, data, size)
    if kind == PING:
        return tell(PONG, stream, received)
    if kind == POWER and size >= 4:
        return end(load32(data))
    if kind == RESET:
        drop_all()
        return hello()
    if kind == RESIZE and stream == 0 and size >= 4:
        console_size = load32(data)
        return syscall(IOCTL, console, TIOCSWINSZ, winsize(console_size))
    slot = slot_of(STREAM, stream)
    if not slot:
        return 0  # it ended while the frame was on its way
    if kind == STDIN:
        take_input(slot, data, size)
    elif kind == STDIN_EOF:
        end_input(slot)
    elif kind == RESIZE and size >= 4:
        if load64(slot + IS_TTY) and load64(slot + OUT_FD) >= 0:
            syscall(IOCTL, load64(slot + OUT_FD), TIOCSWINSZ, winsize(load32(data)))
    elif kind == SIGNAL and size >= 4:
        if load64(slot + STATE) == RUNNING:
            syscall(KILL, -load64(slot + PID), load32(data))
    elif kind == CREDIT and size >= 8:
        store64(slot + OUT_CREDIT, load64(slot + OUT_CREDIT) + load32(data))
        store64(slot + ERR_CREDIT, load64(slot + ERR_CREDIT) + load32(data + 4))
    return 0


def winsize(size: int) -> int:
    """A struct winsize of rows | columns << 16."""
    store64(SCRATCH, size)
    return SCRATCH


# Commands


def slot_of(field: int, value: int) -> int:
    """The slot in use with that value in that field; 0 when there is none."""
    slot = TABLE
    while slot < TABLE + SLOTS * SLOT_SIZE:
        if load64(slot + STATE) != FREE and load64(slot + field) == value:
            return slot
        slot += SLOT_SIZE
    return 0


def free_slot() -> int:
    n = 0
    while n < SLOTS:
        slot = TABLE + n * SLOT_SIZE
        if load64(slot + STATE) == FREE:
            store64(slot + IN_BUFFER, INPUTS + n * STDIN_WINDOW)
            return slot
        n += 1
    return 0


def start(stream: int, data: int, size: int) -> int:
    global new_cwd, new_uid, new_gid
    if size < START_HEADER:
        return tell_two(FAILED, stream, STAGE_SETUP, EINVAL)
    flags = load32(data)
    new_uid = load32(data + 8)
    new_gid = load32(data + 12)
    argc = load16(data + 24)
    envc = load16(data + 26)
    new_cwd = data + START_HEADER
    if not argc or argc > WORDS_MAX or envc > WORDS_MAX:
        return tell_two(FAILED, stream, STAGE_SETUP, E2BIG)
    after = words(ARGV, argc, words(SCRATCH, 1, new_cwd, data + size), data + size)
    if not words(ENVP, envc, after, data + size):
        return tell_two(FAILED, stream, STAGE_SETUP, EINVAL)
    if flags & FLAG_SELF and argc > 1 and same(load64(ARGV + 8), text("identity")):
        if wants(text("stop=all")):
            stop_commands()
        if not (wants(text("mac=")) or wants(text("renew="))):
            # At once, and by nobody else: what is asked for behind it finds it done.
            tell(STARTED, stream, 0)
            return tell_two(EXITED, stream, identity(ARGV + 16), 0)
        end_clients(ARGV + 16)
    slot = free_slot()
    if not slot:
        return tell_two(FAILED, stream, STAGE_SETUP, EAGAIN)
    store64(slot + STREAM, stream)
    store64(slot + OUT_CREDIT, load32(data + 16))
    store64(slot + ERR_CREDIT, load32(data + 20))
    store64(slot + IN_START, 0)
    store64(slot + IN_END, 0)
    store64(slot + IN_EOF, 0)
    store64(slot + IN_CONSUMED, 0)
    store64(slot + IS_TTY, flags & FLAG_TTY)
    store64(slot + IN_FD, -1)
    store64(slot + OUT_FD, -1)
    store64(slot + ERR_FD, -1)
    error = spawn(slot, flags, load32(data + 4))
    close(CHILD)
    close(CHILD + 8)
    close(CHILD + 16)
    if error:
        close_slot(slot)
        return tell_two(FAILED, stream, failed_stage, error)
    store64(slot + STATE, RUNNING)
    return tell(STARTED, stream, load64(slot + PID))


def words(to: int, count: int, at: int, limit: int) -> int:
    """Puts the addresses of ``count`` strings and a null at ``to``; returns where they end, 0 if too late."""
    if not at:
        return 0
    n = 0
    while n < count:
        store64(to + n * 8, at)
        while at < limit and load8(at):
            at += 1
        if at >= limit:
            return 0
        at += 1
        n += 1
    store64(to + n * 8, 0)
    return at


def spawn(slot: int, flags: int, size: int) -> int:
    """Starts the command of ARGV and ENVP. Returns 0 or an errno, and failed_stage."""
    global failed_stage, failed_errno
    failed_stage = STAGE_SETUP
    failed_errno = 0
    store64(CHILD, -1)
    store64(CHILD + 8, -1)
    store64(CHILD + 16, -1)
    if flags & FLAG_TTY:
        error = open_terminal(slot, size)
    else:
        error = open_pipe(slot + OUT_FD, CHILD + 8, 0)
        if not error:
            error = open_pipe(slot + ERR_FD, CHILD + 16, 0)
        if not error and flags & FLAG_STDIN:
            error = open_pipe(slot + IN_FD, CHILD, 1)
        elif not error:
            store64(CHILD, syscall(OPEN, text("/dev/null"), O_RDONLY | O_CLOEXEC, 0))
    if error:
        return error
    pid = syscall(CLONE, VFORK, 0, 0, 0, 0)
    if pid == 0:
        child(flags)
    if pid < 0:
        return -pid
    if failed_errno:
        syscall(WAIT4, pid, SCRATCH, 0, 0)
        return failed_errno
    store64(slot + PID, pid)
    return 0


def open_pipe(ours: int, theirs: int, writing: int) -> int:
    error = syscall(PIPE2, SCRATCH, O_CLOEXEC)
    if error:
        return -error
    store64(ours, load32(SCRATCH + 4 * writing))
    store64(theirs, load32(SCRATCH + 4 - 4 * writing))
    syscall(FCNTL, load64(ours), F_SETFL, O_NONBLOCK | writing)
    return 0


def open_terminal(slot: int, size: int) -> int:
    master = syscall(OPEN, text("/dev/ptmx"), O_RDWR | O_NOCTTY | O_NONBLOCK | O_CLOEXEC, 0)
    if master < 0:
        return -master
    store64(slot + OUT_FD, master)
    store64(slot + IN_FD, master)
    store64(SCRATCH, 0)
    syscall(IOCTL, master, TIOCSPTLCK, SCRATCH)
    other = syscall(IOCTL, master, TIOCGPTPEER, O_RDWR | O_NOCTTY | O_CLOEXEC)
    if other < 0:
        return -other
    store64(CHILD, other)
    syscall(IOCTL, other, TCGETS, SCRATCH)
    store32(SCRATCH, load32(SCRATCH) | 0x4000)  # IUTF8: erase takes a whole character
    syscall(IOCTL, other, TCSETS, SCRATCH)
    syscall(IOCTL, other, TIOCSWINSZ, winsize(size))
    return 0


def child(flags: int) -> int:
    """What the new process does; it borrows the parent's memory and stack until exec."""
    global failed_stage
    syscall(SETSID)
    if flags & FLAG_TTY:
        syscall(IOCTL, load64(CHILD), TIOCSCTTY, 0)
        syscall(DUP2, load64(CHILD), 0)
        syscall(DUP2, 0, 1)
        syscall(DUP2, 0, 2)
    else:
        syscall(DUP2, load64(CHILD), 0)
        syscall(DUP2, load64(CHILD + 8), 1)
        syscall(DUP2, load64(CHILD + 16), 2)
    if new_uid or new_gid:
        syscall(SETGROUPS, 0, 0)
        give_up(syscall(SETGID, new_gid))
        give_up(syscall(SETUID, new_uid))
    failed_stage = STAGE_CWD
    if load8(new_cwd):
        give_up(syscall(CHDIR, new_cwd))
    failed_stage = STAGE_EXEC
    unblock_signals()
    if flags & FLAG_SELF:
        give_up(syscall(EXECVE, text("/proc/self/exe"), ARGV, ENVP))
    give_up(-execute())
    return 0


def give_up(result: int) -> int:
    """Ends a child that met an error, and leaves that to its parent."""
    global failed_errno
    if result < 0:
        failed_errno = -result
        syscall(EXIT, 127)
    return 0


def execute() -> int:
    """execvp(3) of ARGV and ENVP; returns the errno."""
    file = load64(ARGV)
    at = file
    while load8(at) and load8(at) != 47:
        at += 1
    if load8(at) or at == file:
        return -syscall(EXECVE, file, ARGV, ENVP)
    search = text("/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
    at = ENVP
    while load64(at):
        if begins(load64(at), text("PATH=")):
            search = load64(at) + 5
        at += 8
    result = ENOENT
    while 1:
        n = 0
        while load8(search + n) and load8(search + n) != 58:
            n += 1
        if n < 4000 and length(file) < 4000:
            copy(PATH, search, n)
            if not n:
                store8(PATH, 46)
                n = 1
                search -= 1
            store8(PATH + n, 47)
            append(PATH + n + 1, file)
            error = -syscall(EXECVE, PATH, ARGV, ENVP)
            if error == EACCES:
                result = EACCES
            elif error != ENOENT and error != ENOTDIR:
                return error
        search += n
        if not load8(search):
            return result
        search += 1
    return result


def take_input(slot: int, data: int, size: int) -> int:
    if load64(slot + IN_FD) < 0 or load64(slot + IN_EOF):
        return credit_input(slot, size)
    start_at = load64(slot + IN_START)
    end_at = load64(slot + IN_END)
    where = load64(slot + IN_BUFFER)
    if end_at + size > STDIN_WINDOW:
        copy(where, where + start_at, end_at - start_at)
        end_at -= start_at
        store64(slot + IN_START, 0)
    size = least(size, STDIN_WINDOW - end_at)  # a host that respects the window is never cut
    copy(where + end_at, data, size)
    store64(slot + IN_END, end_at + size)
    return feed(slot)


def feed(slot: int) -> int:
    """Hands waiting input to the command, and closes its pipe after the last of it."""
    start_at = load64(slot + IN_START)
    size = load64(slot + IN_END) - start_at
    if size:
        n = syscall(WRITE, load64(slot + IN_FD), load64(slot + IN_BUFFER) + start_at, size)
        if n == -EAGAIN or n == -EINTR:
            return 0
        if n < 0:
            close_input(slot)
            tell(STDIN_CLOSED, load64(slot + STREAM), -n)
            n = size
        store64(slot + IN_START, start_at + n)
        credit_input(slot, n)
        size -= n
        if not size:
            store64(slot + IN_START, 0)
            store64(slot + IN_END, 0)
    if not size and load64(slot + IN_EOF) and not load64(slot + IS_TTY):
        close_input(slot)
    return 0


def credit_input(slot: int, size: int) -> int:
    consumed = load64(slot + IN_CONSUMED) + size
    if consumed >= STDIN_STEP:
        tell(CREDITED, load64(slot + STREAM), consumed)
        consumed = 0
    store64(slot + IN_CONSUMED, consumed)
    return 0


def end_input(slot: int) -> int:
    if load64(slot + IN_FD) >= 0 and not load64(slot + IN_EOF):
        if load64(slot + IS_TTY):
            store8(SCRATCH, 4)  # VEOF
            take_input(slot, SCRATCH, 1)
        store64(slot + IN_EOF, 1)
        feed(slot)
    return 0


def close_input(slot: int) -> int:
    """A terminal's one descriptor stays open for its output."""
    if load64(slot + IS_TTY):
        store64(slot + IN_FD, -1)
    return close(slot + IN_FD)


def pump(slot: int, which: int) -> int:
    """Moves output (0) or error output (1) into TX; returns whether something happened."""
    global tx_end
    fd = load64(slot + OUT_FD + 8 * which)
    credit = load64(slot + OUT_CREDIT + 8 * which)
    if fd < 0 or credit <= 0 or waiting() >= tx_low:
        return 0
    make_room()
    n = syscall(READ, fd, TX + tx_end + HEADER, least(credit, data_max))
    if n > 0:
        store64(slot + OUT_CREDIT + 8 * which, credit - n)
        store32(TX + tx_end, STDOUT + which | load64(slot + STREAM) << 16)
        store32(TX + tx_end + 4, n)
        tx_end += HEADER + n
        return 1
    if n == -EINTR:
        return 1
    if n == -EAGAIN and load64(slot + STATE) == RUNNING:
        return 0
    # The end, a terminal nobody holds (EIO), or whatever a background process may write after the
    # command itself has ended.
    if load64(slot + IS_TTY):
        store64(slot + IN_FD, -1)
    close(slot + OUT_FD + 8 * which)
    return 1


def finish(slot: int) -> int:
    """Reports a dead command once its output is out."""
    status = load64(slot + STATUS)
    tell_two(EXITED, load64(slot + STREAM), status >> 8 & 255, status & 127)
    return close_slot(slot)


def close_slot(slot: int) -> int:
    close_input(slot)
    close(slot + OUT_FD)
    close(slot + ERR_FD)
    store64(slot + STATE, FREE)
    return 0


def drop_all() -> int:
    """Kills every command and forgets it."""
    slot = TABLE
    while slot < TABLE + SLOTS * SLOT_SIZE:
        if load64(slot + STATE) == RUNNING:
            syscall(KILL, -load64(slot + PID), SIGKILL)
        if load64(slot + STATE) != FREE:
            close_slot(slot)
        slot += SLOT_SIZE
    return 0


def wants(key: int) -> int:
    """Whether one of ARGV's words behind ``agent identity`` begins so."""
    at = ARGV + 16
    while load64(at):
        if begins(load64(at), key):
            return 1
        at += 8
    return 0


def stop_commands() -> int:
    """Kills every command with its session, and tells their ends without the rest of their output: in a copy of a VM
    whoever would read that is elsewhere, and with it nobody would give credit for it."""
    fd = syscall(OPEN, text("/proc"), O_RDONLY | O_CLOEXEC, 0)
    size = 1
    while size > 0:
        size = syscall(GETDENTS64, fd, PROCESSES, 8192)
        at = PROCESSES
        while at < PROCESSES + size:
            pid = number(at + 19)  # 0 of what is no process
            slot = 0
            if pid:
                slot = slot_of(PID, syscall(GETSID, pid))
            if slot and load64(slot + STATE) == RUNNING:
                syscall(KILL, pid, SIGKILL)
            at += load16(at + 16)
    syscall(CLOSE, fd)
    slot = TABLE
    while slot < TABLE + SLOTS * SLOT_SIZE:
        if load64(slot + STATE) == DEAD:
            finish(slot)
        elif load64(slot + STATE) == RUNNING:
            syscall(KILL, -load64(slot + PID), SIGKILL)
            tell_two(EXITED, load64(slot + STREAM), 0, SIGKILL)
            close_slot(slot)
        slot += SLOT_SIZE
    return 0


def reap() -> int:
    """Collects ended processes, adopted ones too; returns whether any are left."""
    global console_pid
    while 1:
        pid = syscall(WAIT4, -1, SCRATCH, WNOHANG, 0)
        if pid <= 0:
            return pid == 0
        status = load32(SCRATCH)
        slot = slot_of(PID, pid)
        if pid == console_pid:
            console_pid = 0
        elif slot and load64(slot + STATE) == RUNNING:
            store64(slot + STATE, DEAD)
            store64(slot + STATUS, status)
    return 0


# Signals and the end


def mask(how: int, bits: int) -> int:
    store64(SCRATCH, bits)
    return syscall(RT_SIGPROCMASK, how, SCRATCH, 0, 8)


def unblock_signals() -> int:
    return mask(2, 0)


def take_signals() -> int:
    """Signals come as readable events; a write to a closed pipe is an error and no more."""
    global signals
    bits = 1 << SIGCHLD - 1
    if is_init:
        bits |= 1 << SIGINT - 1 | 1 << SIGUSR1 - 1 | 1 << SIGUSR2 - 1 | 1 << SIGTERM - 1
    mask(2, bits | 1 << SIGPIPE - 1)
    store64(SCRATCH, bits)
    signals = syscall(SIGNALFD4, -1, SCRATCH, 8, O_NONBLOCK | O_CLOEXEC)
    return 0


def read_signals() -> int:
    """busybox's poweroff, reboot and halt tell init by these signals; Ctrl-Alt-Del comes as SIGINT."""
    while syscall(READ, signals, SCRATCH, 128) == 128:
        signal = load32(SCRATCH)
        if signal == SIGUSR2:
            end(0)
        elif signal == SIGUSR1:
            end(2)
        elif signal == SIGTERM or signal == SIGINT:
            end(1)
    return reap()


def end(how: int) -> int:
    """Begins to power off (0), restart (1) or halt (2): asks all processes to end."""
    global ending, ending_at
    if not is_init:
        return ask_init(how)
    if not ending:
        syscall(KILL, -1, SIGTERM)
        syscall(KILL, -1, SIGHUP)  # what an interactive shell heeds
        syscall(KILL, -1, SIGCONT)
        ending_at = now() + KILL_AFTER
    ending = POWER_OFF
    if how == 1:
        ending = RESTART
    elif how == 2:
        ending = HALT
    return 0


def ask_init(how: int) -> int:
    """Ends the machine as its init does it, by the commands that every one has."""
    name = text("/sbin/poweroff")
    if how == 1:
        name = text("/sbin/reboot")
    elif how == 2:
        name = text("/sbin/halt")
    store64(ARGV, name)
    store64(ARGV + 8, 0)
    store64(ENVP, 0)
    pid = syscall(CLONE, VFORK, 0, 0, 0, 0)
    if pid == 0:
        syscall(SETSID)
        unblock_signals()
        syscall(EXECVE, name, ARGV, ENVP)
        syscall(EXIT, 127)
    return 0


def end_now() -> int:
    """Every process has ended, or has had its time."""
    syscall(KILL, -1, SIGKILL)
    syscall(SYNC)
    limit = now() + 500
    while channel >= 0 and now() < limit:
        write_channel()
        store64(SCRATCH, 0)
        if channel >= 0 and tx_start == tx_end:
            syscall(IOCTL, channel, TIOCOUTQ, SCRATCH)
            if not load32(SCRATCH):
                break
        sleep_milliseconds(1)
    return syscall(REBOOT, REBOOT_MAGIC1, REBOOT_MAGIC2, ending, 0)


# Process 1


def read_cmdline() -> int:
    """Makes strings of the words on the kernel's command line."""
    global cmdline_size
    cmdline_size = read_file(text("/proc/cmdline"), CMDLINE, 4096)
    n = 0
    while n < cmdline_size:
        if load8(CMDLINE + n) == 32 or load8(CMDLINE + n) == 10:
            store8(CMDLINE + n, 0)
        n += 1
    return 0


def parameter(name: int) -> int:
    """What follows ``name`` on the kernel's command line; 0 when it isn't there."""
    at = CMDLINE
    while at < CMDLINE + cmdline_size:
        value = begins(at, name)
        if value:
            return value
        at += length(at) + 1
    return 0


def device(to: int, name: int, default: int) -> int:
    """Writes the path of the device that a parameter names ("none" is as good as any that isn't there)."""
    value = parameter(name)
    if not value:
        value = default
    if length(value) < 50:
        append(append(to, text("/dev/")), value)
    return to


def boot() -> int:
    global console_size, console_wanted
    syscall(MOUNT, text("proc"), text("/proc"), text("proc"), 0, 0)
    syscall(MOUNT, text("sysfs"), text("/sys"), text("sysfs"), 0, 0)
    syscall(MOUNT, text("devtmpfs"), text("/dev"), text("devtmpfs"), 0, 0)
    syscall(MKDIR, text("/dev/pts"), 0o755)
    syscall(MKDIR, text("/dev/shm"), 0o1777)
    syscall(MOUNT, text("devpts"), text("/dev/pts"), text("devpts"), 0, text("gid=5,mode=620,ptmxmode=666"))
    syscall(SYMLINK, text("/proc/self/fd"), text("/dev/fd"))
    syscall(SYMLINK, text("/proc/self/fd/0"), text("/dev/stdin"))
    syscall(SYMLINK, text("/proc/self/fd/1"), text("/dev/stdout"))
    syscall(SYMLINK, text("/proc/self/fd/2"), text("/dev/stderr"))
    read_cmdline()
    load_modules(0)
    name = parameter(text("hostel.hostname="))
    if not name:
        name = text("micro")
    syscall(SETHOSTNAME, name, length(name))
    bring_up_loopback()
    rows = parameter(text("hostel.rows="))
    columns = parameter(text("hostel.cols="))
    if rows and columns:
        console_size = number(rows) & 65535 | (number(columns) & 65535) << 16
    device(CONSOLE, text("hostel.console="), text("ttyS0"))
    console_wanted = not parameter(text("hostel.shell=no"))
    return 0


def load_modules(cards: int) -> int:
    """Loads what /lib/modules/boot has for the PCI functions that are there: what only network cards want
    (``cards``), or all else.

    A line of it is a module's path and the functions, as /proc/bus/pci/devices writes them, that want it;
    each module stands after those that it needs.
    """
    read_file(text("/proc/bus/pci/devices"), DEVICES, 16384)
    if not found(DEVICES, text("1af4")):
        return 0
    read_file(text("/lib/modules/boot"), MODULES, 16384)
    at = MODULES
    while load8(at):
        path = at
        wanted = 0
        wanted_by_card = 0
        while load8(at) > 10:
            if load8(at) == 32:
                store8(at, 0)
                if function_is_there(at + 1):
                    if begins(at + 1, text("1af41000")) or begins(at + 1, text("1af41041")):
                        wanted_by_card = 1
                    else:
                        wanted = 1
            at += 1
        at += 1
        if cards and wanted_by_card and not wanted or wanted and not cards:
            fd = syscall(OPEN, path, O_RDONLY | O_CLOEXEC, 0)
            if fd >= 0:
                syscall(FINIT_MODULE, fd, text(""), 0)
                syscall(CLOSE, fd)
    return 0


def function_is_there(wanted: int) -> int:
    """Whether DEVICES holds the eight digits at ``wanted``."""
    store64(SCRATCH, load64(wanted))
    store8(SCRATCH + 8, 0)
    return found(DEVICES, SCRATCH)


def bring_up_loopback() -> int:
    fd = syscall(SOCKET, 2, 2, 0)  # AF_INET, SOCK_DGRAM
    if fd >= 0:
        store64(SCRATCH, 0x6F6C)  # struct ifreq: the name "lo", its flags at 16
        store64(SCRATCH + 8, 0)
        store64(SCRATCH + 16, 0x41)  # IFF_UP | IFF_RUNNING
        syscall(IOCTL, fd, SIOCSIFFLAGS, SCRATCH)
        syscall(CLOSE, fd)
    return 0


def start_shell() -> int:
    """A login shell on the console, as getty would start it.

    The console is opened for each anew: when a session's leader ends, Linux hangs up its terminal, and a
    descriptor from before is dead.
    """
    global console, console_pid, console_wanted, console_at
    if console >= 0:
        syscall(CLOSE, console)
    console = syscall(OPEN, CONSOLE, O_RDWR | O_NOCTTY | O_CLOEXEC, 0)
    console_at = now() + 1000
    if not load32(TERMIOS + 8):
        if console < 0 or syscall(IOCTL, console, TCGETS, TERMIOS) < 0:
            console_wanted = 0
            return 0
        store32(TERMIOS, load32(TERMIOS) | 0x4000)  # IUTF8
        store32(TERMIOS + 8, load32(TERMIOS + 8) | 0x80000000)  # CRTSCTS: what is pasted waits in the host
    syscall(IOCTL, console, TCSETS, TERMIOS)
    if console_size:
        syscall(IOCTL, console, TIOCSWINSZ, winsize(console_size))
    term = parameter(text("hostel.term="))
    if not term or length(term) > 60:
        term = text("xterm")
    append(append(TERM, text("TERM=")), term)
    store64(ENVP, text("HOME=/root"))
    store64(ENVP + 8, text("PATH=/bin"))
    store64(ENVP + 16, TERM)
    store64(ENVP + 24, text("USER=root"))
    store64(ENVP + 32, text("SHELL=/bin/sh"))
    store64(ENVP + 40, 0)
    store64(ARGV, text("-sh"))
    store64(ARGV + 8, 0)
    pid = syscall(CLONE, VFORK, 0, 0, 0, 0)
    if pid == 0:
        syscall(SETSID)
        syscall(IOCTL, console, TIOCSCTTY, 1)
        syscall(DUP2, console, 0)
        syscall(DUP2, console, 1)
        syscall(DUP2, console, 2)
        syscall(CHDIR, text("/root"))
        unblock_signals()
        syscall(EXECVE, text("/bin/sh"), ARGV, ENVP)
        syscall(EXIT, 127)
    if pid > 0:
        console_pid = pid
    return 0


def change_root() -> int:
    """Into the root of another image (agent_root). Its command is all that runs there, no shell on the console."""
    global console_wanted
    console_wanted = 0
    start_network()  # its clients are here, and stay
    name = parameter(text("hostel.hostname="))
    if not name:
        name = text("micro")
    error = enter_root(parameter(text("hostel.root=")), name)
    if error:
        fd = syscall(OPEN, text("/dev/console"), O_RDWR | O_NOCTTY | O_CLOEXEC, 0)
        complaint = text("hostel: the image's disk can't be mounted\n")
        syscall(WRITE, fd, complaint, length(complaint))
        end(0)
    return error


def start_network() -> int:
    """Network cards' modules, and a DHCP client for each card: in a process of its own, as commands shouldn't wait
    for it. The clients' script is in images/micro."""
    global network_begun
    network_begun = 1
    if not (found(DEVICES, text("1af41041")) or found(DEVICES, text("1af41000"))):
        return 0
    pid = syscall(CLONE, SIGCHLD, 0, 0, 0, 0)
    if pid:
        return pid
    load_modules(1)
    sock = syscall(SOCKET, 2, 2, 0)  # AF_INET, SOCK_DGRAM
    unblock_signals()
    n = 0
    while n < CARDS and not parameter(text("hostel.dhcp=no")):
        store64(CARD, 0x30687465 + (n << 24))  # struct ifreq: the name "eth0"
        store64(CARD + 8, 0)
        store64(CARD + 16, 0)
        if syscall(IOCTL, sock, SIOCGIFFLAGS, CARD) < 0:
            break
        start_client(CARD)
        n += 1
    return syscall(EXIT, 0)


# The loop


def watch(fd: int, events: int, who: int) -> int:
    global watched
    store32(POLLFDS + watched * 8, fd)
    store32(POLLFDS + watched * 8 + 4, events)
    store64(POLLED + watched * 8, who)
    watched += 1
    return 0


def watch_slot(slot: int) -> int:
    """Registers what a command waits for; returns 1 if there is something to do at once."""
    if load64(slot + STATE) == DEAD:
        again = pump(slot, 0) | pump(slot, 1)
        if load64(slot + OUT_FD) < 0 and load64(slot + ERR_FD) < 0:
            finish(slot)
        return again
    # Who is watched first is served first when TX has room for one only: streams take turns.
    which = turn_of_errors
    while which < turn_of_errors + 2:
        fd = load64(slot + OUT_FD + 8 * (which & 1))
        if fd >= 0 and load64(slot + OUT_CREDIT + 8 * (which & 1)) > 0 and waiting() < tx_low:
            watch(fd, POLLIN, slot + (which & 1))
        which += 1
    if load64(slot + IN_FD) >= 0 and load64(slot + IN_END) > load64(slot + IN_START):
        watch(load64(slot + IN_FD), POLLOUT, slot + 2)
    return 0


def serve() -> int:
    """One round: waits for something and does it."""
    global watched, turn, turn_of_errors
    timeout = -1
    watched = 0
    turn_of_errors = turn_of_errors ^ 1
    slot = turn
    n = 0
    while n < SLOTS:
        slot += SLOT_SIZE
        if slot >= TABLE + SLOTS * SLOT_SIZE:
            slot = TABLE
        if load64(slot + STATE) != FREE:
            if watch_slot(slot):
                timeout = 0
        n += 1
    watch(signals, POLLIN, 0)
    if channel >= 0:
        events = 0
        if waiting() < TX_HIGH:
            events = POLLIN
        if waiting():
            events |= POLLOUT
        watch(channel, events, 1)
    if ending:
        if not reap() and not waiting() or now() >= ending_at:
            end_now()
        timeout = 20
    elif console_wanted and not console_pid:
        if now() >= console_at:
            start_shell()
        else:
            timeout = 100
    syscall(POLL, POLLFDS, watched, timeout)
    n = 0
    while n < watched:
        events = load16(POLLFDS + n * 8 + 6)
        if events:
            happened(load64(POLLED + n * 8), events)
        n += 1
    return write_channel()


def happened(who: int, events: int) -> int:
    global turn
    if who == 0:
        return read_signals()
    if who == 1:
        if events & POLLIN:
            return read_channel()
        if events & (POLLHUP | POLLERR):
            return lose_channel()
        return 0
    slot = who & ~(SLOT_SIZE - 1)
    if load64(slot + STATE) != RUNNING:
        return 0
    if who - slot == 2:
        return feed(slot)
    if pump(slot, who - slot):
        turn = slot
    return 0


def main(stack: int) -> int:
    global is_init, turn
    # The three standard descriptors must be taken, or a pipe's end would be among them when a child moves its
    # own there.
    fd = 0
    while fd >= 0 and fd <= 2:
        fd = syscall(OPEN, text("/dev/null"), O_RDWR | O_CLOEXEC, 0)
    if fd > 2:
        syscall(CLOSE, fd)
    turn = TABLE
    is_init = syscall(GETPID) == 1
    if load64(stack) >= 3 and not is_init:
        first = load64(stack + 16)
        if same(first, text("connect")):
            return connect(number(load64(stack + 24)))
        if same(first, text("send")):
            return send(load64(stack + 24))
        if same(first, text("receive")) and load64(stack) >= 4:
            return receive(load64(stack + 24), load64(stack + 32))
        if same(first, text("mount")) and load64(stack) >= 4:
            return mount(load64(stack + 24), load64(stack + 32), load64(stack + 40))
        if same(first, text("identity")):
            return identity(stack + 24)
    take_signals()
    if is_init:
        boot()
        if parameter(text("hostel.root=")):
            change_root()
        elif console_wanted:
            start_shell()
        open_channel(device(PATH, text("hostel.agent="), text("ttyS1")))
    elif load64(stack) < 2:
        return 2
    elif not open_one(stack + 16):
        return 1
    if channel >= 0:
        hello()
        write_channel()
    if is_init and not network_begun:
        start_network()
    while 1:
        serve()
    return 0
