"""A TCP connection inside the guest, on standard input and output: ``agent connect PORT``, compiled with it (`tiny`).

So that ``hostel ssh`` reaches a server in the guest with no network between: its stream goes over the agent's channel.
"""

from hostel.images.tiny import buffer, store16, store32, store64, syscall

READ, WRITE, SOCKET, CONNECT, SHUTDOWN, CLOSE, CLONE, EXIT, KILL = 0, 1, 41, 42, 48, 3, 56, 60, 62
EINTR = 4
SIGCHLD, SIGKILL = 17, 9
AF_INET, AF_INET6, SOCK_STREAM = 2, 10, 1
RELAY = buffer(0x10000)
RELAY_SIZE = 0x10000
ADDRESS = buffer(32)


def connect(port: int) -> int:
    """Connects to that port of the guest's own 127.0.0.1 or ::1; 1 where nobody listens."""
    order = port // 256 + port % 256 * 256
    store64(ADDRESS, 0)
    store16(ADDRESS, AF_INET)
    store16(ADDRESS + 2, order)
    store32(ADDRESS + 4, 0x0100007F)
    store64(ADDRESS + 8, 0)
    fd = syscall(SOCKET, AF_INET, SOCK_STREAM, 0)
    if fd < 0 or syscall(CONNECT, fd, ADDRESS, 16) < 0:
        if fd >= 0:
            syscall(CLOSE, fd)
        store16(ADDRESS, AF_INET6)
        store32(ADDRESS + 4, 0)
        store64(ADDRESS + 16, 1 << 56)
        store64(ADDRESS + 24, 0)
        fd = syscall(SOCKET, AF_INET6, SOCK_STREAM, 0)
        if fd < 0 or syscall(CONNECT, fd, ADDRESS, 28) < 0:
            return 1
    pid = syscall(CLONE, SIGCHLD, 0, 0, 0, 0)
    if pid == 0:
        relay(0, fd)
        syscall(SHUTDOWN, fd, 1)  # SHUT_WR
        syscall(EXIT, 0)
    relay(fd, 1)
    syscall(KILL, pid, SIGKILL)
    return 0


def relay(source: int, to: int) -> int:
    while 1:
        n = syscall(READ, source, RELAY, RELAY_SIZE)
        if n == -EINTR:
            continue
        if n <= 0:
            return 0
        at = 0
        while at < n:
            done = syscall(WRITE, to, RELAY + at, n - at)
            if done < 0 and done != -EINTR:
                return 0
            if done > 0:
                at += done
    return 0
