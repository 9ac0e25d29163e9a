"""What makes a copy of a VM another machine: ``agent identity KEY=VALUE...``, compiled with the agent (`tiny`).

A forked VM, or one of several from a snapshot, goes on as its original, with its name, its clock and the state of its
random numbers. Each key is optional, and they are done in this order, whatever order they are written in::

    set-time=SECONDS[.FRACTION]  the clock, of a guest that has just started: Linux takes it from the CMOS clock, which
                              tells whole seconds
    time=SECONDS[.FRACTION]   the clock, if it is behind by 50 ms or more, or ahead by a minute
    entropy=HEX               1 to 64 bytes for the kernel's random numbers, which are made from them at once
    hostname=NAME             also in /etc/hostname, and in /etc/hosts behind 127.0.1.1, where these are
    machine-id=HEX            32 digits, in /etc/machine-id, where that is
    mac=CARD:MAC              a network card's address, six times two digits with colons; then as renew
    renew=CARD                the card's link down and up, and a new DHCP lease; of a link that is down nothing

A CARD is a name, an interface's index or the present MAC. ``mac`` and ``renew`` may be there for several cards.
``stop=all`` is for the agent itself (agent.stop_commands), and happens before the rest; ``stop=none`` is to leave
commands alone. The agent does all of it but ``mac`` and ``renew`` itself, before it looks at what it is asked for next.

What goes wrong is a line on standard error, and the others are done all the same; the exit status is the first errno.

The lease: the micro image's DHCP client has left its process id in /run/udhcpc.CARD; before all else the agent ends it,
and another one is started as at boot. /etc/resolv.conf is empty until that has its lease (wait-network looks there).
systemd-networkd asks for a lease by itself when it sees the link come up. What else was configured by hand, as routes,
goes with the link.

Limits: who has read the machine id keeps the old one until it starts again (systemd-journald: journalctl shows nothing
before). A Debian's SSH host keys stay. Debians made before this command answer with status 1 and say nothing.
"""

from hostel.images.agent_bytes import append, begins, length, number, same
from hostel.images.agent_copy import decimal
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

READ, WRITE, OPEN, CLOSE, IOCTL, DUP2, SOCKET, CLONE, EXECVE = 0, 1, 2, 3, 16, 33, 41, 56, 59
EXIT, KILL, SETSID, CHROOT, SETHOSTNAME, CLOCK_SETTIME, CLOCK_GETTIME = 60, 62, 112, 161, 170, 227, 228

ENOENT, EINTR, ENODEV, EINVAL, ENODATA = 2, 4, 19, 22, 61
O_RDONLY, O_WRONLY, O_RDWR, O_CREAT, O_TRUNC, O_CLOEXEC = 0, 1, 2, 0x40, 0x200, 0x80000
SIGKILL = 9
VFORK = 0x4111  # CLONE_VM | CLONE_VFORK | SIGCHLD
# include/uapi/linux/random.h, sockios.h
RNDADDENTROPY, RNDRESEEDCRNG = 0x40085203, 0x5207
SIOCGIFNAME, SIOCGIFFLAGS, SIOCSIFFLAGS, SIOCSIFHWADDR, SIOCGIFHWADDR = 0x8910, 0x8913, 0x8914, 0x8924, 0x8927
IFF_UP = 1
INDEXES = 64  # of interfaces among which a card is looked for: those made by hand come later
CLOSE_ENOUGH = 50000000  # nanoseconds
AHEAD = 60  # seconds
HOSTS_MAX = 0x4000

POOL = buffer(80)  # struct rand_pool_info
CLOCK = buffer(32)
HOSTS = buffer(0x4000)
HOSTS_NEW = buffer(0x4400)
CARD_NAME = buffer(48)  # struct ifreq
NEW_MAC = buffer(8)
CLIENT = buffer(64)
WORDS = buffer(96)
LINE = buffer(256)

first_errno = 0
link_socket = -1


def identity(argv: int) -> int:
    """``argv``: the arguments behind ``identity``, with a null at their end."""
    global first_errno
    first_errno = 0
    end_clients(argv)  # for who runs this by hand: the agent has
    do_all(argv, text("set-time="), 0)
    do_all(argv, text("time="), 1)
    do_all(argv, text("entropy="), 2)
    do_all(argv, text("hostname="), 3)
    do_all(argv, text("machine-id="), 4)
    do_all(argv, text("mac="), 5)
    do_all(argv, text("renew="), 6)
    while load64(argv):
        if not known(load64(argv)):
            trouble(load64(argv), EINVAL)
        argv += 8
    return first_errno


def do_all(argv: int, key: int, which: int) -> int:
    """Does what the arguments with this key say."""
    while load64(argv):
        value = begins(load64(argv), key)
        if value:
            error = do_one(which, value)
            if error:
                trouble(load64(argv), error)
        argv += 8
    return 0


def do_one(which: int, value: int) -> int:
    """0 or an errno."""
    if which < 2:
        return set_time(value, which)
    if which == 2:
        return add_entropy(value)
    if which == 3:
        return set_hostname(value)
    if which == 4:
        return set_machine_id(value)
    if which == 5:
        return set_mac(value)
    return renew(value)


def known(argument: int) -> int:
    if begins(argument, text("time=")) or begins(argument, text("entropy=")) or begins(argument, text("hostname=")):
        return 1
    if begins(argument, text("set-time=")):
        return 1
    if begins(argument, text("machine-id=")) or begins(argument, text("mac=")) or begins(argument, text("renew=")):
        return 1
    return same(argument, text("stop=all")) or same(argument, text("stop=none"))


def trouble(argument: int, error: int) -> int:
    """A line of what failed, and how."""
    global first_errno
    if not first_errno:
        first_errno = error
    at = append(LINE, text("identity: "))
    n = 0
    while n < 64 and load8(argument + n):
        store8(at + n, load8(argument + n))
        n += 1
    at = append(at + n, text(": error "))
    if error >= 100:
        store8(at, 48 + error // 100)
        at += 1
    store8(at, 48 + error // 10 % 10)
    store8(at + 1, 48 + error % 10)
    store8(at + 2, 10)
    return syscall(WRITE, 2, LINE, at + 3 - LINE)


# The clock and the random numbers


def set_time(value: int, unless_near: int) -> int:
    seconds = number(value)
    nanoseconds = 0
    scale = 100000000
    while load8(value) >= 48 and load8(value) <= 57:
        value += 1
    if load8(value) == 46:
        value += 1
        while load8(value) >= 48 and load8(value) <= 57:
            nanoseconds += (load8(value) - 48) * scale
            scale = scale // 10
            value += 1
    if load8(value) or not seconds:
        return EINVAL
    syscall(CLOCK_GETTIME, 0, CLOCK)
    behind = seconds - load64(CLOCK)
    # What we are told may have waited for us: a clock that is ahead of it a little may be right, and isn't set back.
    if unless_near and behind > -AHEAD and behind <= 1:
        if behind * 1000000000 + nanoseconds - load64(CLOCK + 8) < CLOSE_ENOUGH:
            return 0
    store64(CLOCK, seconds)
    store64(CLOCK + 8, nanoseconds)
    return -syscall(CLOCK_SETTIME, 0, CLOCK)


def digit(letter: int) -> int:
    """A hexadecimal digit's value; -1 of what is none."""
    if letter >= 48 and letter <= 57:
        return letter - 48
    letter = letter | 32
    if letter >= 97 and letter <= 102:
        return letter - 87
    return -1


def add_entropy(value: int) -> int:
    size = 0
    while load8(value):
        high = digit(load8(value))
        low = digit(load8(value + 1))
        if high < 0 or low < 0 or size >= 64:
            return EINVAL
        store8(POOL + 8 + size, high * 16 + low)
        # Whoever is in the guest may read our arguments (/proc/PID/cmdline).
        store16(value, 0x2A2A)
        size += 1
        value += 2
    if not size:
        return EINVAL
    store32(POOL, size * 8)  # bits: all of it counts
    store32(POOL + 4, size)
    fd = syscall(OPEN, text("/dev/urandom"), O_WRONLY | O_CLOEXEC, 0)
    if fd < 0:
        return -fd
    error = -syscall(IOCTL, fd, RNDADDENTROPY, POOL)
    if not error:
        error = -syscall(IOCTL, fd, RNDRESEEDCRNG, 0)
        if error == ENODATA:
            error = 0  # the kernel has no random numbers to give yet; these are among what it waits for
    syscall(CLOSE, fd)
    return error


# Names


def rewrite(path: int, data: int, size: int) -> int:
    """Replaces what is in a file, if it is there."""
    return write_file(path, data, size, 0)


def write_file(path: int, data: int, size: int, create: int) -> int:
    """``create``: O_CREAT or 0."""
    fd = syscall(OPEN, path, O_WRONLY | O_TRUNC | O_CLOEXEC | create, 0o644)
    if fd == -ENOENT:
        return 0
    if fd < 0:
        return -fd
    error = 0
    while size > 0 and not error:
        n = syscall(WRITE, fd, data, size)
        if n > 0:
            data += n
            size -= n
        elif n != -EINTR:
            error = -n
    syscall(CLOSE, fd)
    return error


def read_text(path: int, to: int, size: int) -> int:
    """Reads a file whole, and ends it with a zero; returns its length, or -1 if it isn't there or too long."""
    fd = syscall(OPEN, path, O_RDONLY | O_CLOEXEC, 0)
    if fd < 0:
        return -1
    n = 0
    got = 1
    while got > 0 and n < size - 1:
        got = syscall(READ, fd, to + n, size - 1 - n)
        if got > 0:
            n += got
    syscall(CLOSE, fd)
    store8(to + n, 0)
    if got != 0:
        return -1
    return n


def set_hostname(name: int) -> int:
    size = length(name)
    if not size or size > 64:
        return EINVAL
    error = -syscall(SETHOSTNAME, name, size)
    if error:
        return error
    copy(LINE, name, size)
    store8(LINE + size, 10)
    error = rewrite(text("/etc/hostname"), LINE, size + 1)
    if error:
        return error
    return rename_in_hosts(name)


def rename_in_hosts(name: int) -> int:
    """The line of 127.0.1.1, Debian's for a machine's own name, gets the new one."""
    n = read_text(text("/etc/hosts"), HOSTS, HOSTS_MAX)
    at = HOSTS
    to = HOSTS_NEW
    changed = 0
    while n > 0 and at < HOSTS + n:
        end_at = at
        while end_at < HOSTS + n and load8(end_at) != 10:
            end_at += 1
        mine = begins(at, text("127.0.1.1"))
        if mine and (load8(mine) == 32 or load8(mine) == 9) and not changed:
            to = append(append(to, text("127.0.1.1 ")), name)
            changed = 1
        else:
            copy(to, at, end_at - at)
            to += end_at - at
        store8(to, 10)
        to += 1
        at = end_at + 1
    if not changed:
        return 0
    return rewrite(text("/etc/hosts"), HOSTS_NEW, to - HOSTS_NEW)


def set_machine_id(value: int) -> int:
    n = 0
    while n < 32:
        if digit(load8(value + n)) < 0:
            return EINVAL
        n += 1
    if load8(value + 32):
        return EINVAL
    copy(LINE, value, 32)
    store8(LINE + 32, 10)
    return rewrite(text("/etc/machine-id"), LINE, 33)


# Network cards


def read_mac(string: int, to: int) -> int:
    """Six bytes of twice two digits each with colons between; what follows it, else 0."""
    n = 0
    while n < 6:
        high = digit(load8(string))
        if high < 0:
            return 0
        low = digit(load8(string + 1))
        if low < 0:
            return 0
        store8(to + n, high * 16 + low)
        string += 2
        n += 1
        if n < 6:
            if load8(string) != 58:
                return 0
            string += 1
    return string


def set_mac(value: int) -> int:
    size = length(value)
    if size < 19 or load8(value + size - 18) != 58:
        return EINVAL
    after = read_mac(value + size - 17, NEW_MAC)
    if not after or load8(after):
        return EINVAL
    return change_card(value, size - 18, 1)


def renew(value: int) -> int:
    return change_card(value, length(value), 0)


def open_link() -> int:
    """0 or an errno."""
    global link_socket
    if link_socket < 0:
        link_socket = syscall(SOCKET, 2, 0x80002, 0)  # AF_INET, SOCK_DGRAM | SOCK_CLOEXEC
        if link_socket < 0:
            return -link_socket
    return 0


def link_ioctl(request: int) -> int:
    return syscall(IOCTL, link_socket, request, CARD_NAME)


def find_card(card: int, size: int) -> int:
    """Leaves its name at CARD_NAME; returns 0 or an errno."""
    n = 0
    while n < 48:
        store8(CARD_NAME + n, 0)
        n += 1
    if size == 17 and read_mac(card, LINE):
        index = 1
        while index <= INDEXES:
            store32(CARD_NAME + 16, index)
            if link_ioctl(SIOCGIFNAME) == 0 and link_ioctl(SIOCGIFHWADDR) == 0:
                # 1: ARPHRD_ETHER
                if load16(CARD_NAME + 16) == 1 and load32(CARD_NAME + 18) == load32(LINE):
                    if load16(CARD_NAME + 22) == load16(LINE + 4):
                        return 0
            index += 1
        return ENODEV
    if load8(card) >= 48 and load8(card) <= 57:
        store32(CARD_NAME + 16, number(card))
        return -link_ioctl(SIOCGIFNAME)
    if size > 15:
        return EINVAL
    copy(CARD_NAME, card, size)
    return 0


def flags_of(card: int, size: int) -> int:
    """Of the card, whose name is at CARD_NAME then; or -errno."""
    error = find_card(card, size)
    if not error:
        error = -link_ioctl(SIOCGIFFLAGS)
    if error:
        return -error
    return load16(CARD_NAME + 16)


def change_card(card: int, size: int, new_mac: int) -> int:
    """The link goes down and comes up, with NEW_MAC if that is wanted, and the card asks for a lease anew."""
    error = open_link()
    if error:
        return error
    flags = flags_of(card, size)
    if flags < 0:
        return -flags
    if flags & IFF_UP:
        store16(CARD_NAME + 16, flags - IFF_UP)
        error = -link_ioctl(SIOCSIFFLAGS)
        if error:
            return error
    if new_mac:
        store16(CARD_NAME + 16, 1)  # ARPHRD_ETHER
        copy(CARD_NAME + 18, NEW_MAC, 6)
        error = -link_ioctl(SIOCSIFHWADDR)
    if flags & IFF_UP:
        # Also where the MAC was refused: a card that was up stays so.
        store16(CARD_NAME + 16, flags)
        other = -link_ioctl(SIOCSIFFLAGS)
        if not error:
            error = other
        restart_client()
    return error


def end_clients(argv: int) -> int:
    """Of the cards that will ask for a lease anew: their DHCP clients of the agent's end, with the script of each,
    which may be about to set what the old lease says. Whoever waits for the network from now on (wait-network) waits
    for what comes. ``argv`` is identity's."""
    while load64(argv):
        card = begins(load64(argv), text("mac="))
        if card:
            end_client(card, length(card) - 18)
        card = begins(load64(argv), text("renew="))
        if card:
            end_client(card, length(card))
        argv += 8
    return 0


def end_client(card: int, size: int) -> int:
    if size <= 0 or open_link():
        return 0
    flags = flags_of(card, size)
    if flags < 0 or not flags & IFF_UP:
        return 0
    append(append(CLIENT, text("/dev/.hostel/run/udhcpc.")), CARD_NAME)
    n = read_text(CLIENT, LINE, 16)
    if n <= 0:
        append(append(CLIENT, text("/run/udhcpc.")), CARD_NAME)
        n = read_text(CLIENT, LINE, 16)
    if n > 0 and number(LINE) > 1:
        syscall(KILL, -number(LINE), SIGKILL)
        rewrite(text("/etc/resolv.conf"), LINE, 0)
    return 0


def restart_client() -> int:
    """Where the card has a DHCP client of the agent's, another one takes its place: in the initramfs, if the root is
    another image's (agent_root). We have nothing else to do later."""
    syscall(CHROOT, text("/dev/.hostel"))
    append(append(CLIENT, text("/run/udhcpc.")), CARD_NAME)
    if read_text(CLIENT, LINE, 16) <= 0:
        return 0
    return start_client(CARD_NAME)


def start_client(card: int) -> int:
    """A DHCP client for the card of that name, in the micro image; its script is in images/micro. Output goes where
    ours does."""
    append(append(CLIENT, text("/run/udhcpc.")), card)
    store64(WORDS, text("udhcpc"))
    store64(WORDS + 8, text("-f"))
    store64(WORDS + 16, text("-R"))
    store64(WORDS + 24, text("-t20"))
    store64(WORDS + 32, text("-T1"))
    store64(WORDS + 40, text("-p"))
    store64(WORDS + 48, CLIENT)
    store64(WORDS + 56, text("-i"))
    store64(WORDS + 64, card)
    store64(WORDS + 72, 0)
    store64(WORDS + 80, text("PATH=/bin"))
    store64(WORDS + 88, 0)
    pid = syscall(CLONE, VFORK, 0, 0, 0, 0)
    if pid == 0:
        syscall(SETSID)
        null = syscall(OPEN, text("/dev/null"), O_RDWR | O_CLOEXEC, 0)
        syscall(DUP2, null, 0)
        syscall(DUP2, null, 1)
        syscall(DUP2, null, 2)
        syscall(EXECVE, text("/bin/udhcpc"), WORDS, WORDS + 80)
        syscall(EXIT, 127)
    # It does so itself, but only some time later, when one may come who wants to end it.
    digits = decimal(pid)
    return write_file(CLIENT, digits, length(digits), O_CREAT)
